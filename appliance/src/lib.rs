//! Everything of the binary `understudy` but its `main`.

pub mod admin;
pub mod boot;
pub mod check;
pub mod cli;
pub mod config;
pub mod controller;
pub mod demo;
pub mod filters;
pub mod host;
pub mod http;
pub mod kafka;
pub mod metrics;
pub mod reload;
pub mod states;
pub mod words;
