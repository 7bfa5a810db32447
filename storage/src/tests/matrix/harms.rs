//! Every way to hurt one file.

use std::ops::Range;

use ring::sim::{Machine, Simulation};

use super::made::{Ended, Made, base_of};
use super::*;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum How {
    Lost,
    Cut(u64),
    Flip(u64, u8),
    Zeros(Range<u64>),
    Unreadable(Range<u64>),
}

/// One harm to one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Harm {
    pub path: PathBuf,
    pub how: How,
    /// What lies there, for a reader of failures.
    pub what: &'static str,
    /// A bit of a leader epoch is turned.
    pub epoch: bool,
}

impl std::fmt::Display for Harm {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        write!(out, "{} {:?} ({})", name.trim_start_matches('0'), self.how, self.what)
    }
}

impl Harm {
    /// Does it; false if an earlier harm has left nothing to hurt there.
    pub fn apply(&self, sim: &mut Simulation) -> bool {
        sim.disk(Machine::FIRST, |disk| {
            let Some(mut bytes) = disk.read_file(&self.path) else { return false };
            let len = bytes.len() as u64;
            match &self.how {
                How::Lost => disk.lose_file(&self.path).unwrap(),
                How::Cut(to) if *to >= len => return false,
                How::Cut(to) => disk.cut_file(&self.path, *to).unwrap(),
                How::Flip(at, _) if *at >= len => return false,
                How::Flip(at, bit) => disk.flip_bit(&self.path, *at, *bit),
                How::Zeros(range) | How::Unreadable(range) if range.end > len => return false,
                How::Zeros(range) => {
                    bytes[range.start as usize..range.end as usize].fill(0);
                    disk.write_file(&self.path, &bytes).unwrap();
                }
                How::Unreadable(range) => disk.spoil(&self.path, range.clone()),
            }
            true
        })
    }
}

impl Harm {
    /// To what a shard wrote down of its logs.
    pub fn is_checkpoint(&self) -> bool {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("checkpoint-") && !name.ends_with(".begun")
    }

    /// To a batch's leader epoch.
    pub fn is_epoch(&self) -> bool {
        matches!(self.how, How::Flip(..)) && self.epoch
    }
}

/// All single harms to a log.
pub fn all(made: &Made) -> Vec<Harm> {
    let mut harms = Vec::new();
    for (path, bytes) in &made.files {
        let mut add = |how, what: &'static str| {
            let epoch = what.starts_with("leader epoch");
            harms.push(Harm { path: path.clone(), how, what, epoch });
        };
        let len = bytes.len() as u64;
        add(How::Lost, "file");
        if len == 0 {
            continue;
        }
        add(How::Cut(0), "file");
        add(How::Unreadable(0..1), "first sector");
        match base_of(path) {
            Some(base) => {
                let segment = made.segments.iter().position(|other| other.0 == base).unwrap();
                of_batches(made, segment, len, &mut add);
            }
            None => {
                add(How::Cut(len / 2), "half");
                add(How::Flip(len / 2, 3), "middle");
                add(How::Flip(1, 0), "start");
                add(How::Flip(len - 1, 0), "end");
                add(How::Zeros(0..len), "file");
            }
        }
    }
    harms
}

fn of_batches(made: &Made, segment: usize, len: u64, add: &mut impl FnMut(How, &'static str)) {
    let places = made.places(segment);
    let is_last = segment + 1 == made.segments.len();
    // No checksum covers all of the head, and behind the flushed end nothing else tells.
    let flushed = |offset: i64| offset < made.flushed;
    let picked =
        [(0, "first batch"), (places.len() / 2, "middle batch"), (places.len() - 1, "last batch")];
    for (at, what) in picked {
        let (offset, place) = places[at].clone();
        add(How::Flip(place.end - 20, 5), what);
        if flushed(offset) {
            // Base offset, length, leader epoch, magic, checksum, attributes, last offset delta.
            for byte in [7, 11, 16, 17, 22, 26] {
                add(How::Flip(place.start + byte, 1), what);
            }
            add(How::Flip(place.start + 7, 0), what);
            add(How::Flip(place.start + 15, 0), "leader epoch");
            add(How::Flip(place.start + 15, 1), "leader epoch");
        }
    }
    let middle = places[places.len() / 2].1.clone();
    let last = places[places.len() - 1].1.clone();
    add(How::Cut((middle.start + middle.end) / 2), "within the middle batch");
    add(How::Cut(middle.start), "before the middle batch");
    add(How::Cut(last.start), "before the last batch");
    add(How::Cut(last.end - 1), "within the last batch");
    let blocks = len / 4096;
    if blocks > 1 {
        let block = 4096 * (blocks / 2)..4096 * (blocks / 2) + 4096;
        add(How::Zeros(block.clone()), "block in the middle");
        add(How::Unreadable(block), "block in the middle");
    }
    add(How::Zeros(0..len.min(4096)), "first block");
    add(How::Zeros((last.end - 1) / 4096 * 4096..last.end), "last block");
    add(How::Zeros(last.start..last.end), "last batch");
    add(How::Unreadable(last.end - 1..last.end), "last sector");
    if is_last && made.ended == Ended::Killed {
        let end = places.iter().find(|place| place.0 + 1 == made.flushed).unwrap().1.clone();
        add(How::Flip(end.start + 7, 1), "last flushed batch");
        add(How::Flip(end.start + 15, 1), "last flushed batch");
        add(How::Flip(end.end - 20, 1), "last flushed batch");
        add(How::Cut(end.start), "before the last flushed batch");
        add(How::Cut(end.end), "behind the last flushed batch");
        add(How::Zeros(end), "last flushed batch");
    }
}
