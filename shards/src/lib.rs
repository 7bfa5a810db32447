//! What runs on each data core: the partitions it owns and how they follow their source.
//!
//! A *shard* is one thread with one executor. It owns partitions outright: their fetches, their
//! logs, their memory. The control thread tells it what to do by [`control::Command`]s and hears
//! back by replies, [`control::Event`]s and status snapshots; record bytes never leave the shard.
//!
//! A record's way: a fetcher (one connection to one broker, one fetch session) asks for its
//! partitions; `net` parses the answer while it arrives and receives the records into memory that
//! the sink borrows from the partition's log; `storage` checks and writes them.
//!
//! One partition's trouble is that partition's state, with a reason, an age and a retry time. It
//! never stops its neighbours.

#![forbid(unsafe_code)]

mod budget;
mod check;
pub mod control;
mod fetcher;
mod limits;
mod link;
mod partition;
mod pool;
mod repairing;
mod shard;
mod sink;

pub use ring::{return_freed_memory, trim_freed_memory};
pub use shard::{ShardHandle, StartError, run, start};
