//! What to believe of a partition's files after a start, as a decision without I/O.
//!
//! [`Recovery`] is given what was found (files, seals, the checkpoint's entry), asks for scans one
//! after the other, and ends with a [`Verdict`]. The rules:
//!
//! - What the checkpoint calls flushed is trusted; what lies above it is scanned.
//! - Of a log that no checkpoint names nothing counts as flushed: a seal is no proof of it.
//! - Bad bytes above the flushed place were torn: they are cut, the source is asked again.
//! - Good ones above it are written again (`write_again`): that they can be read does not
//!   say that a flush will find them.
//! - Bad or missing bytes *below* it, or bytes that cannot be read at all, are never cut: the log
//!   is CORRUPT with the range, and everything is kept.
//! - A later segment counts only if all before it are sealed and end where their seal says.
//! - Zeros behind the tail are prepared space.
//! - What is lost beside the batches is made anew from them: indexes from the segment's own, epochs
//!   and producers from all.
//! - Damage that lies wholly below the visible start is nobody's any more, the source has deleted
//!   what was there: the log goes on behind it, at the next batch or with the next segment, and it
//!   is named. Nothing of it is cut or removed. Where that hides a visible offset, it is CORRUPT.
//! - If the checkpoints themselves were lost, a sealed segment is believed to have been flushed
//!   (so damage there is CORRUPT, not cut), every byte is read once, and nothing is removed.

use std::fmt;
use std::ops::Range;

use crate::checkpoint::Replay;
use crate::index::fits;
use crate::position::Place;
use crate::seal::Seal;

mod found;

use found::is_bad;
pub use found::{Found, FoundSegment, Known, ReadFrom, Scan, Scanned, Stopped, describe};

/// A damaged range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Corrupt {
    /// The segment.
    pub segment: i64,
    /// Bytes of it; the end is the least that must be wrong.
    pub bytes: Range<u64>,
    /// Offsets to fetch again.
    pub offsets: Range<i64>,
    /// What was seen.
    pub reason: String,
}

impl fmt::Display for Corrupt {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Corrupt { segment, bytes, offsets, reason } = self;
        let (from, to) = (offsets.start, offsets.end);
        let (start, end) = (bytes.start, bytes.end);
        write!(
            out,
            "offsets {from} to {to} (bytes {start} to {end} of segment {segment}): {reason}"
        )
    }
}

/// The end of a recovery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Finished segments: base and exact bytes.
    pub sealed: Vec<(i64, u64)>,
    /// Where appending goes on.
    pub end: Place,
    /// Cut the files of these segments to so many bytes.
    pub cut: Vec<(i64, u64)>,
    /// Torn bytes among what is cut (prepared zeros not counted).
    pub torn_bytes: u64,
    /// Remove these segments: nothing of them was flushed.
    pub remove: Vec<i64>,
    /// Remove this segment's seal: it is appended to again.
    pub unseal: Option<i64>,
    /// Write a seal for these: it was missing or garbled, the bytes are whole.
    pub reseal: Vec<(i64, i64)>,
    /// Damage. Nothing may be changed then.
    pub corrupt: Option<Corrupt>,
    /// Damage below the visible start, roughly: segments that count as finished because of it.
    pub hidden: Vec<Corrupt>,
    /// What stands before the end is such damage: which batch was the last is not known.
    pub bare: bool,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Scan, then call [`Recovery::scanned`].
    Scan(Scan),
    /// Finished.
    Done(Verdict),
}

/// The decision in progress.
pub struct Recovery {
    found: Found,
    at: usize,
    verdict: Verdict,
    /// What the seal before said about the next segment.
    next_base: Option<i64>,
    pending: Option<Scan>,
    done: bool,
}

impl Recovery {
    /// Begins.
    pub fn new(found: Found) -> Recovery {
        let start = found.entry.map_or(found.start_offset, |entry| entry.flushed.offset);
        let verdict = Verdict {
            sealed: Vec::new(),
            end: Place { segment: start, bytes: 0, offset: start },
            cut: Vec::new(),
            torn_bytes: 0,
            remove: Vec::new(),
            unseal: None,
            reseal: Vec::new(),
            corrupt: None,
            hidden: Vec::new(),
            bare: false,
        };
        Recovery { found, at: 0, verdict, next_base: None, pending: None, done: false }
    }

    /// What to do next.
    pub fn step(&mut self) -> Step {
        while !self.done && self.pending.is_none() {
            self.look();
        }
        match self.pending {
            Some(scan) => Step::Scan(scan),
            None => Step::Done(self.verdict.clone()),
        }
    }

    /// The result of the scan asked for.
    pub fn scanned(&mut self, scanned: Scanned) {
        self.pending.take().expect("a scan was asked for");
        let segment = &self.found.segments[self.at];
        let (base, file_bytes, seal) = (segment.base, segment.bytes, segment.seal.clone());
        let indexed = segment.indexed;
        let trusted = self.trusted_bytes();
        let place = scanned.place;
        self.verdict.end = place;
        if let Stopped::Unreadable(reason) = &scanned.stopped {
            return self.fail(place, trusted.max(place.bytes.saturating_add(1)), reason.clone());
        }
        if place.bytes < trusted {
            return self.fail(place, trusted, describe(&scanned.stopped));
        }
        let sealed_here = seal.as_ref().is_some_and(|seal| seal.bytes == place.bytes);
        let flushed = self.found.entry.map(|entry| entry.flushed.segment);
        let flushed = flushed.filter(|&flushed| base < flushed);
        if let Some(seal) = seal.filter(|_| sealed_here) {
            return self.pass(base, file_bytes, &seal);
        }
        let next = self.found.segments.get(self.at + 1).map(|s| s.base);
        let follows = next.filter(|&next| self.found.lost && next == place.offset);
        if let Some(flushed) = flushed.or(follows) {
            // Its seal is gone, but the end that was flushed lies behind it, or the next begins
            // where it ends: it was finished. Where nothing was written at that end, there need
            // not be a file.
            let next_base = next.unwrap_or(flushed);
            // Behind its end zeros are what a repair leaves that a crash cut short; elsewhere they
            // are where batches were.
            let zeros = scanned.stopped == Stopped::Zeros && place.offset != next_base;
            // It may be left empty only where the next records lie too far off for it.
            let emptied = place.bytes == 0 && fits(base, next_base) && next_base > base;
            if indexed.is_some_and(|last| (place.offset..next_base).contains(&last)) {
                let reason = "its indexes tell of more batches".to_owned();
                return self.fail(place, place.bytes.saturating_add(1), reason);
            }
            if next_base < place.offset || zeros || emptied || is_bad(&scanned.stopped) {
                return self.fail(place, place.bytes.saturating_add(1), describe(&scanned.stopped));
            }
            self.verdict.reseal.push((base, next_base));
            self.verdict.sealed.push((base, place.bytes));
            self.verdict.bare &= place.bytes == 0;
            if file_bytes > place.bytes {
                self.verdict.cut.push((base, place.bytes));
            }
            self.next_base = next.is_none().then_some(next_base);
            self.at += 1;
            return;
        }
        if self.found.lost && next.is_some() {
            return self.fail(
                place,
                place.bytes.saturating_add(1),
                "not sealed, yet not the last".to_owned(),
            );
        }
        self.end_here(place, file_bytes, &scanned.stopped);
    }

    /// Looks at the segment in turn.
    fn look(&mut self) {
        let Some(segment) = self.found.segments.get(self.at) else {
            return self.no_more_segments();
        };
        let base = segment.base;
        let flushed = self.found.entry.map(|entry| entry.flushed);
        if let Some(expected) = self.next_base.filter(|&expected| expected != base) {
            // The segment the seal names is not here.
            if self.found.lost || flushed.is_some_and(|f| (f.segment, f.bytes) > (expected, 0)) {
                if self.is_hidden_before(base) {
                    (self.verdict.bare, self.next_base) = (true, None);
                    return;
                }
                let place = Place { segment: expected, bytes: 0, offset: expected };
                self.verdict.end = place;
                return self.fail_until(place, 1, base, "the segment's file is missing".to_owned());
            }
            self.remove_from(self.at);
            return self.begin_segment(expected);
        }
        if let Some(entry) = self.found.entry.filter(|_| self.begins_late(base)) {
            let start = entry.log_start_offset;
            self.verdict.end = entry.flushed;
            let place = Place { segment: start, bytes: 0, offset: start };
            return self.fail_until(place, 1, base, "the segment's file is missing".to_owned());
        }
        let missing = self.at == 0 && self.missing_before(base);
        self.verdict.bare |= missing;
        if missing && !self.is_hidden_before(base) {
            let entry = self.found.entry.expect("checked");
            self.verdict.end = entry.flushed;
            let segment = entry.flushed.segment;
            let place = Place { segment, bytes: 0, offset: segment };
            let reason = "the segment's file is missing".to_owned();
            return self.fail_until(place, entry.flushed.bytes, entry.flushed.offset, reason);
        }
        let read_whole = self.found.lost || self.found.read_from == ReadFrom::Start;
        let below_flushed = flushed.is_some_and(|f| base < f.segment);
        let finished = !read_whole && below_flushed;
        if let Some(seal) = segment.seal.clone().filter(|_| finished && segment.is_as_sealed()) {
            let bytes = segment.bytes;
            return self.pass(base, bytes, &seal);
        }
        let mut to_bytes = segment.bytes;
        if let Some(seal) = &segment.seal {
            to_bytes = to_bytes.min(seal.bytes);
        }
        let from = match self.found.entry {
            Some(entry)
                if entry.replay.place.segment == base
                    && self.found.read_from == ReadFrom::Replay
                    && !self.found.lost
                    && entry.replay.place.bytes <= to_bytes =>
            {
                entry.replay
            }
            _ => Replay::segment_start(base, None, false),
        };
        let flushed_segment = flushed.map(|flushed| flushed.segment);
        let flushed = self.found.flushed().filter(|known| known.0 == base).map(|known| known.1);
        let sealed = segment.seal.as_ref();
        let sealed =
            sealed.map(|seal| Known { bytes: seal.bytes, offset: seal.next_offset, epoch: None });
        let known = [flushed, sealed];
        let trusted_bytes = self.trusted_bytes();
        let flushed_bytes = if below_flushed { u64::MAX } else { trusted_bytes };
        // Of what was never flushed a later segment says nothing: it goes.
        let next = self.found.segments.get(self.at + 1).map(|next| next.base);
        let next = next.or(flushed_segment.filter(|_| below_flushed));
        let next_base = next.filter(|_| below_flushed || self.found.lost).unwrap_or(i64::MAX);
        self.pending =
            Some(Scan { from, to_bytes, known, flushed_bytes, trusted_bytes, next_base });
    }

    /// Up to which byte of the segment in turn damage is not to be explained by a crash.
    fn trusted_bytes(&self) -> u64 {
        let segment = &self.found.segments[self.at];
        let sealed = segment.seal.as_ref().map_or(0, |seal| seal.bytes);
        let known = match self.found.entry.map(|entry| entry.flushed) {
            Some(flushed) if segment.base < flushed.segment => sealed,
            Some(flushed) if segment.base == flushed.segment => flushed.bytes,
            _ => 0,
        };
        if self.found.lost { known.max(sealed) } else { known }
    }

    fn missing_before(&self, first_base: i64) -> bool {
        let Some(entry) = self.found.entry else { return false };
        entry.flushed.bytes > 0 && first_base > entry.flushed.segment
    }

    /// Whether the first segment, flushed or before what was, begins above the visible start: what
    /// nobody reads any more is all that ever goes, so one before it is gone, with its seal or
    /// without one.
    fn begins_late(&self, base: i64) -> bool {
        let entry = self.found.entry.filter(|_| self.at == 0 && !self.found.lost);
        entry.is_some_and(|e| e.log_start_offset < base && base <= e.flushed.segment)
    }

    /// Whether all that is missing before the segment at `base` lies below the visible start. Then
    /// the log goes on there.
    fn is_hidden_before(&self, base: i64) -> bool {
        let flushed = self.found.entry.map(|entry| entry.flushed);
        let flushed = flushed.filter(|flushed| flushed.segment < base);
        let end = flushed.map_or(base, |flushed| base.max(flushed.offset));
        end <= self.found.visible_start
    }

    fn no_more_segments(&mut self) {
        let flushed = self.found.entry.map(|entry| entry.flushed);
        let last = self.found.segments.last().map(|segment| segment.base);
        match flushed {
            Some(flushed)
                if flushed.bytes > 0 && last.is_none_or(|base| base < flushed.segment) =>
            {
                self.verdict.end = flushed;
                if flushed.offset <= self.found.visible_start {
                    self.verdict.bare = true;
                    return self.begin_segment(flushed.offset);
                }
                let segment = flushed.segment;
                let place = Place { segment, bytes: 0, offset: segment };
                let reason = "the segment's file is missing".to_owned();
                self.fail_until(place, flushed.bytes, flushed.offset, reason);
            }
            _ => {
                let base = self.next_base.unwrap_or(self.verdict.end.offset);
                self.begin_segment(base);
            }
        }
    }

    fn pass(&mut self, base: i64, file_bytes: u64, seal: &Seal) {
        self.verdict.sealed.push((base, seal.bytes));
        if file_bytes > seal.bytes {
            self.verdict.cut.push((base, seal.bytes));
        }
        self.verdict.end = Place { segment: base, bytes: seal.bytes, offset: seal.next_offset };
        self.verdict.bare &= seal.bytes == 0;
        self.next_base = Some(seal.next_base);
        self.at += 1;
    }

    /// The log ends in the segment in turn.
    fn end_here(&mut self, place: Place, file_bytes: u64, stopped: &Stopped) {
        let segment = &self.found.segments[self.at];
        if segment.has_seal {
            self.verdict.unseal = Some(segment.base);
        }
        if file_bytes > place.bytes {
            self.verdict.cut.push((segment.base, place.bytes));
        }
        if is_bad(stopped) {
            self.verdict.torn_bytes = file_bytes - place.bytes;
        }
        self.verdict.bare &= place.bytes == 0;
        self.verdict.end = place;
        self.remove_from(self.at + 1);
        self.done = true;
    }

    fn begin_segment(&mut self, base: i64) {
        let offset = self.verdict.end.offset.max(base);
        self.verdict.end = Place { segment: base, bytes: 0, offset };
        self.done = true;
    }

    fn remove_from(&mut self, index: usize) {
        self.verdict.remove.extend(self.found.segments[index..].iter().map(|s| s.base));
    }

    /// Damage from `place` to `end_bytes` of its segment. If none of that is visible the segment
    /// counts as finished, without a seal, and the log goes on behind it.
    fn fail(&mut self, place: Place, end_bytes: u64, reason: String) {
        let hidden_end = self.hidden_end(place.bytes);
        let flushed = self.found.entry.map(|entry| entry.flushed);
        let next = self.found.segments.get(self.at + 1).map(|s| s.base);
        let seal = self.found.segments[self.at].seal.as_ref().map(|seal| seal.next_offset);
        let end_offset = match flushed {
            Some(flushed) if flushed.segment == place.segment => flushed.offset,
            // Where nothing was written at the flushed end, there need not be a file.
            Some(flushed) if place.segment < flushed.segment => {
                seal.or(next).unwrap_or(flushed.segment)
            }
            _ => seal.or(next).unwrap_or(place.offset.saturating_add(1)),
        };
        match hidden_end {
            Some(end) => self.pass_over(damage(place, end_bytes, end_offset, reason), end),
            None => self.fail_until(place, end_bytes, end_offset, reason),
        }
    }

    /// The offset behind the segment in turn, damaged at byte `at`, if all that it can have held
    /// lies below the visible start. None also where nothing of the damage was flushed.
    fn hidden_end(&self, at: u64) -> Option<i64> {
        let segment = &self.found.segments[self.at];
        let flushed = self.found.entry.map(|entry| entry.flushed);
        let below = flushed.filter(|f| segment.base < f.segment).map(|f| f.segment);
        let within = flushed.filter(|f| segment.base == f.segment && at < f.bytes);
        let within = within.map(|f| f.offset);
        if !self.found.lost && below.is_none() && within.is_none() {
            return None;
        }
        let next = self.found.segments.get(self.at + 1).map(|next| next.base);
        let sealed = segment.seal.as_ref().map(|seal| seal.next_base);
        let end = next.or(sealed).or(within).or(below)?;
        let last = within.map_or(end, |offset| offset.max(end));
        (segment.base < end && last <= self.found.visible_start).then_some(end)
    }

    fn pass_over(&mut self, damage: Corrupt, end: i64) {
        let segment = &self.found.segments[self.at];
        let flushed = self.found.entry.map(|entry| entry.flushed);
        let flushed = flushed.filter(|flushed| flushed.segment == segment.base);
        let unsealed = flushed.map_or(segment.bytes, |flushed| flushed.bytes);
        let bytes = segment.seal.as_ref().map_or(unsealed, |seal| seal.bytes);
        self.verdict.sealed.push((segment.base, bytes));
        self.verdict.end = Place { segment: segment.base, bytes, offset: end };
        self.verdict.hidden.push(damage);
        self.verdict.bare = true;
        self.next_base = Some(end);
        self.at += 1;
    }

    fn fail_until(&mut self, place: Place, end_bytes: u64, end_offset: i64, reason: String) {
        self.verdict.corrupt = Some(damage(place, end_bytes, end_offset, reason));
        // Damage changes nothing on disk.
        self.verdict.cut.clear();
        self.verdict.remove.clear();
        self.verdict.reseal.clear();
        self.verdict.unseal = None;
        self.done = true;
    }
}

fn damage(place: Place, end_bytes: u64, end_offset: i64, reason: String) -> Corrupt {
    Corrupt {
        segment: place.segment,
        bytes: place.bytes..end_bytes.max(place.bytes.saturating_add(1)),
        offsets: place.offset..end_offset.max(place.offset.saturating_add(1)),
        reason,
    }
}

#[cfg(test)]
mod tests;
