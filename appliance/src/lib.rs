//! Everything of the binary `understudy` but its `main`.

pub mod config;
pub mod controller;
pub mod filters;
pub mod reload;
pub mod shard_port;
pub mod states;
