//! Everything of the binary `understudy` but its `main`.

pub mod config;
pub mod filters;
