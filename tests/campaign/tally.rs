//! What a campaign counts.

use std::collections::BTreeMap;

/// Counts of one world, or of many together.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Worlds.
    pub seeds: u64,
    /// Power losses.
    pub crashes: u64,
    /// Processes killed.
    pub kills: u64,
    /// Clean stops.
    pub stops: u64,
    /// Bytes held against the source's.
    pub bytes: u64,
    /// Copies compared.
    pub comparisons: u64,
    /// Cuts that followed the source.
    pub truncations: u64,
    /// Reported losses.
    pub gaps: u64,
    /// Starts refused by a broken disk.
    pub refused: u64,
    /// Partitions seen corrupt after bits were turned.
    pub corrupt: u64,
    /// What was done to the world, by kind.
    pub done: BTreeMap<&'static str, u64>,
    /// Faults that partitions reported, by code.
    pub faulted: BTreeMap<&'static str, u64>,
    /// Steps of the simulator.
    pub steps: u64,
}

impl Tally {
    /// Counts one more of a kind.
    pub fn count(&mut self, kind: &'static str) {
        *self.done.entry(kind).or_default() += 1;
    }

    /// Adds another's counts.
    pub fn add(&mut self, other: &Tally) {
        let Tally { seeds, crashes, kills, stops, bytes, comparisons, truncations, .. } = other;
        self.seeds += seeds;
        self.crashes += crashes;
        self.kills += kills;
        self.stops += stops;
        self.bytes += bytes;
        self.comparisons += comparisons;
        self.truncations += truncations;
        self.gaps += other.gaps;
        self.refused += other.refused;
        self.corrupt += other.corrupt;
        self.steps += other.steps;
        for (kind, count) in &other.done {
            *self.done.entry(kind).or_default() += count;
        }
        for (code, count) in &other.faulted {
            *self.faulted.entry(code).or_default() += count;
        }
    }
}
