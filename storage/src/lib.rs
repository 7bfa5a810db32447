//! Segment logs in Kafka's own format, written with direct I/O; and the node's metadata store.
//!
//! How a byte passes through: [`log::Log::lend`] gives the unfilled tail of a partition's append
//! buffer ([`chain`]); received bytes go through the validator ([`check`]); complete batches
//! freeze, enter the indexes ([`index`]), producer state ([`producers`]) and epochs ([`epochs`]),
//! and are written from where they landed ([`segment`], [`volume`]). Behind that, and never on the
//! append path, space is prepared, finished segments are sealed ([`seal`]), and a flush cycle makes
//! what is written durable and says so in a checkpoint ([`checkpoint`]).
//!
//! After a start [`boot`] locks the data directories and merges the checkpoints of all shards, and
//! [`recovery`] decides, without I/O, what of a partition's files to believe.
//!
//! What holds always:
//! - a byte is written only after its batch was checked;
//! - received ≥ written ≥ flushed, each the end of a complete batch ([`position`]);
//! - what a completed flush covered is never cut, whatever is found in it;
//! - damage is a state with a range, and it changes nothing on disk;
//! - a closed folder is what Kafka's own tools accept.
//!
//! What is where on disk, and why: `DATA_FILE.md`. This crate opens no socket and has no unsafe
//! code.

#![forbid(unsafe_code)]

mod alone;
mod append;
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
mod read_ahead;
mod rebuild;
pub mod recovery;
pub mod repair;
pub mod scan;
pub mod seal;
pub mod segment;
mod signal;
pub mod store;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod truncate;
pub mod verify;
pub mod volume;
mod work;
mod write_again;
