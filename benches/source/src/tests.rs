//! The source seen from outside, by a client of the `kafka-protocol` crate.

mod batches;
mod child;
mod client;
mod control;
mod faults;
mod fetching;
mod growth;
mod sending;
mod sessions;
