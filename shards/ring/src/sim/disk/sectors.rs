//! A file's bytes: sectors in two layers, what reads see and what the device surely holds, and
//! between them every version that may or may not have reached it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::rc::Rc;

use crate::sim::faults::Random;
use crate::sim::happened::{Accident, Happened};

/// The unit that is written wholly or not at all, in bytes.
pub const SECTOR: u64 = 512;

/// One sector's bytes, inside those of the write that brought them.
#[derive(Clone)]
struct Sector {
    bytes: Rc<[u8]>,
    at: u32,
}

impl Sector {
    fn get(&self) -> &[u8] {
        &self.bytes[self.at as usize..][..SECTOR as usize]
    }
}

/// Something written since the last flush.
#[derive(Clone)]
struct Version {
    stamp: u64,
    sector: Sector,
    /// A flush that should have written it failed: no later flush will.
    abandoned: bool,
}

/// The bytes of one file.
#[derive(Default)]
pub struct Sectors {
    /// What reads see. An absent sector is zeros.
    seen: BTreeMap<u64, Sector>,
    /// What the device surely holds, with the stamp of its write.
    durable: BTreeMap<u64, (u64, Sector)>,
    /// Written since, oldest first.
    unflushed: BTreeMap<u64, Vec<Version>>,
    /// Cuts whose change of length is not durable: stamp and first sector cut.
    cuts: Vec<(u64, u64)>,
    /// Sectors that cannot be read, until they are written again.
    unreadable: BTreeSet<u64>,
    /// Bytes that the device turned beneath the page cache, and their bits, until they are written
    /// again.
    rotten: BTreeMap<u64, u8>,
}

impl Sectors {
    /// Whether a range holds a sector that cannot be read.
    pub fn unreadable(&self, range: Range<u64>) -> bool {
        !range.is_empty()
            && self.unreadable.range(range.start / SECTOR..range.end.div_ceil(SECTOR)).count() > 0
    }

    /// Makes the sectors of a range unreadable.
    pub fn spoil(&mut self, range: Range<u64>) {
        self.unreadable.extend(range.start / SECTOR..range.end.div_ceil(SECTOR));
    }

    /// Reads what calls see.
    pub fn read(&self, at: u64, into: &mut [u8]) {
        let mut done = 0;
        while done < into.len() {
            let position = at + done as u64;
            let offset = (position % SECTOR) as usize;
            let take = (SECTOR as usize - offset).min(into.len() - done);
            let target = &mut into[done..done + take];
            match self.seen.get(&(position / SECTOR)) {
                Some(sector) => target.copy_from_slice(&sector.get()[offset..offset + take]),
                None => target.fill(0),
            }
            done += take;
        }
    }

    /// Reads past the page cache.
    pub fn read_device(&self, at: u64, into: &mut [u8]) {
        self.read(at, into);
        for (position, mask) in self.rotten.range(at..at + into.len() as u64) {
            into[(position - at) as usize] ^= mask;
        }
    }

    /// Turns one bit that the page cache still has as it was.
    pub fn rot(&mut self, at: u64, bit: u8) {
        *self.rotten.entry(at).or_default() ^= 1 << (bit % 8);
    }

    /// Writes; returns the sectors touched.
    pub fn write(&mut self, at: u64, bytes: &[u8], stamp: u64) -> Range<u64> {
        let end = at + bytes.len() as u64;
        let range = at / SECTOR..end.div_ceil(SECTOR);
        let whole_start = range.start * SECTOR;
        let mut whole = vec![0; ((range.end - range.start) * SECTOR) as usize];
        if whole.len() != bytes.len() {
            self.read(whole_start, &mut whole); // the rest of the first and last sector stays
        }
        whole[(at - whole_start) as usize..][..bytes.len()].copy_from_slice(bytes);
        let whole: Rc<[u8]> = whole.into();
        self.rotten.retain(|at, _| !range.contains(&(at / SECTOR)));
        for index in range.clone() {
            let at = ((index - range.start) * SECTOR) as u32;
            let sector = Sector { bytes: Rc::clone(&whole), at };
            self.seen.insert(index, sector.clone());
            self.unreadable.remove(&index);
            let versions = self.unflushed.entry(index).or_default();
            versions.push(Version { stamp, sector, abandoned: false });
        }
        range
    }

    /// Cuts what reads see to `len` bytes. The rest of the last sector becomes zeros.
    pub fn cut(&mut self, len: u64, stamp: u64) {
        let first = len.div_ceil(SECTOR);
        self.seen.split_off(&first);
        self.unreadable.split_off(&first);
        self.rotten.split_off(&len);
        self.cuts.push((stamp, first));
        let tail = (len % SECTOR) as usize;
        if tail > 0 && self.seen.contains_key(&(len / SECTOR)) {
            self.write(len, &vec![0; SECTOR as usize - tail], stamp);
        }
    }

    /// What was written up to `until` is on the device now.
    pub fn flush(&mut self, until: u64) {
        let durable = &mut self.durable;
        self.unflushed.retain(|index, versions| {
            let flushed = versions.iter().rposition(|v| v.stamp <= until && !v.abandoned);
            if let Some(position) = flushed {
                let version = versions.drain(..=position).next_back().expect("found above");
                durable.insert(*index, (version.stamp, version.sector));
            }
            !versions.is_empty()
        });
    }

    /// A flush failed: nobody will write these again, and reads may see the old bytes.
    pub fn abandon(&mut self, until: u64, random: &mut Random) -> bool {
        let evict = random.coin();
        let mut any = false;
        for (index, versions) in &mut self.unflushed {
            for version in versions.iter_mut().filter(|v| v.stamp <= until && !v.abandoned) {
                version.abandoned = true;
                any = true;
            }
            if evict && versions.iter().all(|v| v.abandoned) && random.coin() {
                let cut = self.cuts.iter().any(|(_, first)| index >= first);
                match self.durable.get(index).filter(|_| !cut) {
                    Some((_, sector)) => self.seen.insert(*index, sector.clone()),
                    None => self.seen.remove(index),
                };
            }
        }
        any
    }

    /// A longer length became durable: the data of the write that extended the file is, too.
    pub fn commit_extension(&mut self, sectors: Range<u64>, stamp: u64) {
        let find = |versions: &[Version], stamp| {
            versions.iter().position(|v| v.stamp == stamp && !v.abandoned)
        };
        for index in sectors {
            let Some(versions) = self.unflushed.get_mut(&index) else { continue };
            let Some(position) = find(versions, stamp) else { continue };
            let version = versions.drain(..=position).next_back().expect("found above");
            self.durable.insert(index, (version.stamp, version.sector));
        }
    }

    /// A cut became durable.
    pub fn commit_cut(&mut self, stamp: u64) {
        self.cuts.retain(|(cut, first)| {
            if *cut != stamp {
                return true;
            }
            let keep = |index: &u64, written: u64| index < first || written > stamp;
            self.durable.retain(|index, (written, _)| keep(index, *written));
            self.unflushed.retain(|index, versions| {
                versions.retain(|version| keep(index, version.stamp));
                !versions.is_empty()
            });
            false
        });
    }

    /// The power went: per sector any one of what may have reached the device. `len` is the length
    /// that survived. Says what became of the writes.
    pub fn crash(&mut self, len: u64, unreadable_ppm: u32, random: &mut Random) -> Happened {
        // There is no page cache any more.
        for (at, mask) in std::mem::take(&mut self.rotten) {
            (0..8).filter(|bit| mask >> bit & 1 == 1).for_each(|bit| self.flip(at, bit));
        }
        let mut happened = Happened::default();
        let (mut kept, mut lost) = (BTreeSet::new(), BTreeSet::new());
        // Whole crashes that keep all or nothing are likely in reality; draw them often.
        let chance = match random.below(8) {
            0 => 0,
            1 => 1_000_000,
            _ => random.below(1_000_000) as u32,
        };
        for (index, versions) in std::mem::take(&mut self.unflushed) {
            // Data written behind a cut lies in blocks that only the cut's commit lets it have.
            let cut = self.cuts.iter().filter(|(_, first)| index >= *first).map(|(cut, _)| *cut);
            let before = cut.min().unwrap_or(u64::MAX);
            let possible = versions.iter().filter(|version| version.stamp < before).count();
            let mut survivor = None;
            if possible > 0 && random.chance(chance) {
                let pick = if random.coin() { possible - 1 } else { random.index(possible) };
                let version = &versions[pick];
                self.durable.insert(index, (version.stamp, version.sector.clone()));
                survivor = Some(version.stamp);
            }
            kept.extend(survivor);
            lost.extend(versions.iter().map(|v| v.stamp).filter(|v| Some(*v) > survivor));
            if random.chance(unreadable_ppm) {
                self.unreadable.insert(index);
                happened.count(Accident::UnreadableSector);
            }
        }
        for stamp in &lost {
            happened.count(match kept.contains(stamp) {
                true => Accident::TornWrite,
                false => Accident::LostWrite,
            });
        }
        let late = lost.first().zip(kept.last()).is_some_and(|(lost, kept)| lost < kept);
        happened.count_if(Accident::ReorderedWrite, late);
        self.cuts.clear();
        let end = len.div_ceil(SECTOR);
        self.durable.split_off(&end);
        self.unreadable.split_off(&end);
        self.seen = self.durable.iter().map(|(at, (_, sector))| (*at, sector.clone())).collect();
        let tail = (len % SECTOR) as usize;
        if let Some(last) = self.seen.get_mut(&(len / SECTOR)) {
            let mut bytes = last.get().to_vec();
            bytes[tail..].fill(0);
            *last = Sector { bytes: bytes.into(), at: 0 };
            self.durable.insert(len / SECTOR, (0, last.clone()));
        }
        happened
    }

    /// Turns one bit, in every layer: the medium forgot.
    pub fn flip(&mut self, at: u64, bit: u8) {
        let turn = |sector: &mut Sector| {
            let mut bytes = sector.get().to_vec();
            bytes[(at % SECTOR) as usize] ^= 1 << (bit % 8);
            *sector = Sector { bytes: bytes.into(), at: 0 };
        };
        let index = at / SECTOR;
        let zeros = || Sector { bytes: vec![0; SECTOR as usize].into(), at: 0 };
        turn(self.seen.entry(index).or_insert_with(zeros));
        turn(&mut self.durable.entry(index).or_insert_with(|| (0, zeros())).1);
        for version in self.unflushed.get_mut(&index).into_iter().flatten() {
            turn(&mut version.sector);
        }
    }

    /// Whether anything written has not been flushed.
    pub fn is_dirty(&self) -> bool {
        self.unflushed.values().any(|versions| !versions.is_empty())
    }
}
