//! Everything of the binary `understudy` but its `main`.

pub mod admin;
pub mod config;
pub mod controller;
pub mod filters;
pub mod http;
pub mod metrics;
pub mod reload;
#[path = "../../shards/src/control.rs"]
pub mod shard_port;
pub mod states;
