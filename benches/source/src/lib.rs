//! A small Kafka-protocol source that serves deterministic record batches.
//!
//! It stands where a Kafka cluster would: the `demo` command replicates from it and kills it, the
//! benches pull at line rate from it, the tests let it lie. Topics are described by a
//! [`TopicSpec`]; the same description always gives the same bytes, so that a copy can be held
//! against what the source must have served, byte for byte and without asking it ([`Expected`]).
//!
//! [`serve`] runs it in this process, [`run_child`] is the whole of a child process. A thread per
//! connection reads a request, puts the answer together under one lock, and sends it: the head
//! from a small buffer, the records straight from prepared batches that all partitions share.
//! What must differ from batch to batch (offset, leader epoch, timestamps, and the CRC over them)
//! stands in the first 43 bytes of a batch and is written anew each time.
//!
//! It answers ApiVersions, Metadata, ListOffsets, OffsetForLeaderEpoch and Fetch as a broker of
//! Apache Kafka would, closes the connection on anything else, and never panics on what it is
//! sent. There is no produce, no group, no TLS, no SASL.
#![forbid(unsafe_code)]

mod child;
mod cluster;
mod control;
mod desk;
mod expected;
mod fault;
mod fetch;
mod fetch_answer;
mod log;
mod payload;
mod record_batch;
mod server;
mod session;
mod topic;
mod wire;

#[cfg(test)]
mod tests;

pub use child::{ChildConfig, ChildError, parse_addresses, run_child, run_child_saying};
pub use cluster::{Cluster, ControlError};
pub use control::Versions;
pub use desk::{Desk, Reply, WaitingFetch};
pub use expected::{Comparison, Difference, Expected};
pub use fault::{Fault, Target};
pub use log::{BatchAt, PartitionLog};
pub use record_batch::{
    BatchFields, CRC_COVERS_FROM, HEADER_BYTES, LENGTH_PREFIX_BYTES, Record, crc32c, encode_batch,
    generated_batch, generated_batch_bytes_min, place, seal,
};
pub use server::{Config, Handle, ServeError, serve};
pub use topic::{Content, Growth, Timestamps, TopicError, TopicSpec};
