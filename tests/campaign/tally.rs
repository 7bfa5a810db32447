//! What a campaign counts.

use std::collections::BTreeMap;

use ring::sim::{Accident, Happened};

/// What a campaign must have done to its worlds, beside the accidents.
const WORLD_KINDS: [&str; 50] = [
    "bit turned below the flushed end",
    "broker killed",
    "broker without power",
    "disk filled",
    "flush failed by force",
    "high watermark moved",
    "leader moved",
    "lie: batch repeated",
    "lie: an error",
    "lie: another partition's number",
    "lie: bit turned",
    "lie: empty answers",
    "lie: negative batch length",
    "lie: negative records length",
    "lie: overlong batch",
    "lie: part of a batch",
    "link paused",
    "link resumed",
    "network cut",
    "records deleted",
    "sessions forgotten",
    "topic deleted",
    "topic failed over",
    "topic paused",
    "topic resumed",
    "unclean election",
    "held: another topic id",
    "held: fewer partitions",
    "held: topic gone",
    "lie: answer as another partition's",
    "lie: diverging epoch",
    "lie: epoch end",
    "lie: fetch refused",
    "lie: leader",
    "lie: leader epoch",
    "lie: log end",
    "lie: log start",
    "lie: log start of a fetch",
    "lie: log start and end",
    "lie: no brokers",
    "lie: no topic",
    "lie: no topics",
    "lie: out of range",
    "lie: partitions",
    "lie: question refused",
    "recreated with as many records",
    "recreated with fewer records",
    "recreated with more records",
    "copy of a topic that is no more",
    "topic deleted at the source",
];

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
    /// What went wrong with disks, network and clocks.
    pub happened: Happened,
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
        self.happened += other.happened;
        for (kind, count) in &other.done {
            *self.done.entry(kind).or_default() += count;
        }
        for (code, count) in &other.faulted {
            *self.faulted.entry(code).or_default() += count;
        }
    }

    /// Kinds of trouble that have not come up.
    pub fn missing(&self) -> Vec<&'static str> {
        let accidents = Accident::ALL.into_iter().filter(|kind| self.happened.of(*kind) == 0);
        let world = WORLD_KINDS.into_iter().chain(crate::brokers::KIND_NAMES);
        let world = world.filter(|kind| self.done.get(kind).is_none_or(|count| *count == 0));
        let ends = [("power loss", self.crashes), ("kill", self.kills), ("stop", self.stops)];
        let copy = [("cut that followed the source", self.truncations), ("loss told", self.gaps)];
        let none = ends.into_iter().chain(copy).filter(|(_, count)| *count == 0);
        accidents.map(Accident::name).chain(world).chain(none.map(|(kind, _)| kind)).collect()
    }
}
