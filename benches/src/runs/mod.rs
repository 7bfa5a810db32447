//! The benches, each with its load, its rows and what it is held against.

mod ceiling;
mod failover;
mod grid;
mod kafka;
mod lag;
mod memory;
mod partitions;
mod records;
mod recovery;
mod replicate;
mod roundtrip;
mod shards;
mod steady;

use source::{Growth, TopicSpec};

use crate::Outcome;
use crate::cli::Options;
use crate::conditions::{Conditions, load_average};
use crate::report::Report;

/// A bench.
pub struct Bench {
    /// What it is called by.
    pub name: &'static str,
    /// What it shows.
    pub line: &'static str,
    /// Runs per row, unless told otherwise.
    pub runs: usize,
    /// Whether the product's binary is needed.
    pub needs_product: bool,
    /// Does it.
    pub run: fn(&Bench, &Options) -> Outcome<Report>,
}

/// All of them.
pub const ALL: &[Bench] = &[
    ceiling::BENCH,
    replicate::BENCH,
    partitions::BENCH,
    steady::BENCH,
    records::BENCH,
    lag::BENCH,
    failover::BENCH,
    recovery::BENCH,
    memory::BENCH,
    shards::BENCH,
    roundtrip::BENCH,
    kafka::BENCH,
];

/// Size of a record batch where nothing else is said.
const BATCH_BYTES: usize = 64 << 10;

impl Bench {
    /// An empty report under the conditions of now.
    fn report(&self, options: &Options, load: &str, ceiling: &str) -> Outcome<Report> {
        let (folder, runs) = (&options.folder, options.runs);
        Ok(Report {
            bench: self.name.to_owned(),
            title: self.line.to_owned(),
            conditions: Conditions::here(folder, load, ceiling, runs, options.quick)?,
            busy: [load_average(), String::new()],
            rows: Vec::new(),
            ratios: Vec::new(),
            notes: Vec::new(),
            panels: Vec::new(),
        })
    }
}

/// A topic of so many bytes in all, waiting in batches of 64 KiB.
fn backlog(partitions: i32, bytes: u64) -> TopicSpec {
    backlog_of(partitions, bytes, BATCH_BYTES, 64)
}

/// A topic of so many bytes in all, waiting in batches of that size with so many records.
fn backlog_of(partitions: i32, bytes: u64, batch_bytes: usize, records: usize) -> TopicSpec {
    let batches = bytes / u64::from(partitions.unsigned_abs()) / batch_bytes as u64;
    TopicSpec::new("load", partitions, batches.max(1)).with_batches(1, batch_bytes, records)
}

/// A topic that grows at a rate, all partitions together, in batches of that size.
fn growing(partitions: i32, bytes_per_second: f64, batch_bytes: usize) -> TopicSpec {
    let records = (batch_bytes >> 10).max(1);
    TopicSpec::new("load", partitions, 0)
        .with_batches(1, batch_bytes, records)
        .with_growth(Growth::rate_in_all(bytes_per_second, partitions))
}
