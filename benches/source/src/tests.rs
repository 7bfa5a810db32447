//! The source seen from outside, by a client of the `kafka-protocol` crate.

mod batches;
mod client;
mod fetching;
