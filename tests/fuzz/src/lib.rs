//! Every parser that meets outside bytes, against bytes that lie.
//!
//! A [`Target`] is a function of bytes: it arranges them as its parser gets them (a version, points
//! at which the input is cut, checksums put right so that what lies behind them is reached too),
//! calls the parser with its memory watched ([`memory`]), and holds the result against an oracle
//! where there is one: `kafka-protocol`, the same input in one piece, or our own encoder. It
//! panics when something is wrong, and only then.
//!
//! The same functions run in two places. `cargo test` replays the corpora in `corpus/` and a
//! bounded number of mutations of them ([`mutate`]). `cargo run -p fuzz --bin search` builds them
//! into libFuzzer and lets it search, for as long as it is told.

pub mod input;
pub mod memory;
pub mod mutate;
pub mod seeds;

mod appliance;
mod canonical;
mod net;
mod open;
mod storage;
mod store;

use std::path::{Path, PathBuf};

/// A parser and how it is fed.
#[derive(Clone, Copy)]
pub struct Target {
    /// Name of its corpus, too.
    pub name: &'static str,
    /// Panics when the parser does wrong.
    pub run: fn(&[u8]),
    /// Mutations that `cargo test` tries.
    pub mutations: u32,
}

const fn target(name: &'static str, run: fn(&[u8])) -> Target {
    Target { name, run, mutations: 20_000 }
}

/// All targets.
pub const TARGETS: &[Target] = &[
    target("fetch_response", net::fetch_response),
    target("api_versions", net::api_versions),
    target("metadata", net::metadata),
    target("list_offsets", net::list_offsets),
    target("epoch_ends", net::epoch_ends),
    target("frames", net::frames),
    target("batches", storage::batches),
    target("marker", storage::marker),
    target("segment", storage::segment),
    target("indexes", storage::indexes),
    target("producers", storage::producers),
    target("epochs", storage::epochs),
    target("names", storage::names),
    target("checkpoint", storage::checkpoint),
    target("seal", storage::seal),
    target("recovery", storage::recovery),
    Target { mutations: 500, ..target("open", open::open) },
    target("records", store::records),
    Target { mutations: 200, ..target("store", store::store) },
    Target { mutations: 5000, ..target("configuration", appliance::configuration) },
    Target { mutations: 5000, ..target("filters", appliance::filters) },
    Target { mutations: 2000, ..target("admin_request", appliance::admin_request) },
    target("admin_body", appliance::admin_body),
];

/// The target of that name.
pub fn find(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

/// The folder of a target's inputs: seeds, and what once did harm.
pub fn corpus_dir(target: &Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name)
}
