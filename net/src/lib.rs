//! The Kafka wire, as a source client sees it.
//!
//! A data shard opens a [`Connection`] to the broker that leads its partitions, keeps a
//! [`fetch::FetchSession`] that says what it wants, and calls [`Connection::fetch`]. The answer is
//! parsed while it arrives: response heads go through a small buffer, records are received straight
//! into memory which a [`fetch::RecordSink`] lends. The control thread asks what is rare, cluster
//! metadata and offsets by time, through a [`control::ControlClient`] on tokio.
//!
//! Everything that decides is sans-I/O and shared by both: [`frame`] (request heads, response
//! lengths), [`versions`] (ApiVersions negotiation), [`guard`] (lengths are proven before a decoder
//! believes them), [`fetch`] (sessions, the streaming parser), [`backoff`] and [`rate_limit`].
//!
//! Bytes from outside yield typed errors, never a panic, and never an allocation on a length that
//! was not checked. This crate knows nothing of logs or disks, and holds no unsafe code.
#![forbid(unsafe_code)]

pub mod backoff;
pub mod codes;
pub mod connection;
pub mod control;
pub mod error;
pub mod fetch;
pub mod frame;
pub mod guard;
pub mod limits;
pub mod messages;
pub mod questions;
pub mod rate_limit;
#[cfg(test)]
mod testing;
pub mod transport;
pub mod versions;

pub use codes::{ErrorCode, Meaning};
pub use connection::{ConnectOptions, Connection, Counters};
pub use error::NetError;
pub use transport::Transport;
pub use versions::{Api, Versions};
