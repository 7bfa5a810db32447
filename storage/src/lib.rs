//! Segment logs in Kafka's own format, written with direct I/O; see `DATA_FILE.md`.
pub mod batch;
pub mod boot;
pub mod chain;
pub mod check;
pub mod checkpoint;
mod close;
pub mod crc;
pub mod epochs;
pub mod index;
pub mod inventory;
pub mod limits;
pub mod log;
pub mod metadata;
pub mod names;
pub mod open;
pub mod position;
pub mod producers;
mod queue;
pub mod recovery;
pub mod scan;
pub mod seal;
pub mod segment;
mod signal;
pub mod store;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
pub mod volume;
mod work;
