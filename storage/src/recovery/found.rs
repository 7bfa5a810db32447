//! What a recovery is given: a log's files as they were found, and what the scans that it asks for
//! tell of them.

use std::ops::Range;

use crate::check::AppendError;
use crate::checkpoint::{Entry, Replay};
use crate::position::Place;
use crate::seal::Seal;

/// A segment's files.
#[derive(Clone, Debug)]
pub struct FoundSegment {
    /// From the file's name.
    pub base: i64,
    /// The file's length.
    pub bytes: u64,
    /// Its seal, if there is a good one.
    pub seal: Option<Seal>,
    /// Whether there is a seal, good or not.
    pub has_seal: bool,
    /// Lengths of `.index`, `.timeindex` and `.txnindex`, 0 if missing.
    pub index_bytes: [u64; 3],
    /// The last offset that its indexes tell of, if they are looked at: of a finished segment whose
    /// seal is lost nothing else says where it ended.
    pub indexed: Option<i64>,
}

/// Where reading begins, unless seals or checkpoints call for more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadFrom {
    /// At the entry's replay place: the side files saved there are whole.
    Replay,
    /// At the start of the segment of that place.
    Segment,
    /// At the first batch: what only all of them tell is lost.
    Start,
}

/// Everything found.
#[derive(Clone, Debug)]
pub struct Found {
    /// By base offset.
    pub segments: Vec<FoundSegment>,
    /// The checkpoint's entry.
    pub entry: Option<Entry>,
    /// The checkpoints were lost: a missing or old entry proves nothing.
    pub lost: bool,
    /// From where on what lies beside the batches has to be made anew.
    pub read_from: ReadFrom,
    /// Where a log without segments begins.
    pub start_offset: i64,
    /// Nobody reads what lies below.
    pub visible_start: i64,
}

impl FoundSegment {
    /// Whether its files have the lengths that its seal says: nothing of it is read then.
    pub fn is_as_sealed(&self) -> bool {
        self.seal.as_ref().is_some_and(|seal| {
            self.bytes >= seal.bytes && seal.index_bytes.map(u64::from) == self.index_bytes
        })
    }
}

impl Found {
    /// The last batch that was flushed, and its segment.
    pub fn flushed(&self) -> Option<(i64, Known)> {
        let entry = self.entry.filter(|entry| entry.flushed.bytes > 0)?;
        let Place { segment, bytes, offset } = entry.flushed;
        Some((segment, Known { bytes, offset, epoch: entry.last_epoch }))
    }
}

/// A scan to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scan {
    /// From here, with this state.
    pub from: Replay,
    /// To here: the seal's or the file's end.
    pub to_bytes: u64,
    /// Where a batch of the segment ends, as far as that was written down.
    pub known: [Option<Known>; 2],
    /// What lies behind this byte can be read, and may yet not be on the device: it is to be
    /// written again.
    pub flushed_bytes: u64,
    /// Where it stops below this byte, it has met damage.
    pub trusted_bytes: u64,
    /// No batch of it goes beyond: there the next segment begins.
    pub next_base: i64,
}

/// What was written down of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// The byte of the segment at which it ends.
    pub bytes: u64,
    /// The offset behind it.
    pub offset: i64,
    /// Its epoch.
    pub epoch: Option<i32>,
}

impl Known {
    /// Whether what was found at these bytes cannot be that batch.
    pub fn contradicts(&self, bytes: &Range<u64>, next_offset: i64, epoch: Option<i32>) -> bool {
        if bytes.end != self.bytes {
            return bytes.start < self.bytes && self.bytes < bytes.end;
        }
        let other_epoch = epoch.is_some() && self.epoch.is_some() && epoch != self.epoch;
        next_offset != self.offset || other_epoch
    }
}

impl Scan {
    /// Whether it may have met damage, as far as that can be told without the segments around it.
    pub fn is_cut_short(&self, scanned: &Scanned) -> bool {
        // Of a finished segment whose seal is lost only the end is not known. Zeros may be behind
        // it.
        let finished = self.flushed_bytes == u64::MAX;
        scanned.place.bytes < self.trusted_bytes || (finished && scanned.stopped != Stopped::End)
    }

    /// Whether a batch at these bytes, the offset behind it and its epoch are at odds with what is
    /// known. No checksum covers a base offset: turned upwards it passes for a gap, and the records
    /// behind it would never be asked for. Nor does one cover an epoch: turned in the last batch it
    /// makes the log look like another one than the source's.
    pub fn is_contradicted(
        &self,
        bytes: &Range<u64>,
        next_offset: i64,
        epoch: Option<i32>,
    ) -> bool {
        next_offset > self.next_base
            || self.known.iter().flatten().any(|known| known.contradicts(bytes, next_offset, epoch))
    }
}

/// Why a scan stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// At the end it was given, between two batches.
    End,
    /// Where only zeros follow: at prepared space.
    Zeros,
    /// At bytes that are no batch.
    Bad(AppendError),
    /// Before a batch that is at odds with what was written down of its place.
    Displaced,
    /// At bytes the device does not give.
    Unreadable(String),
}

/// What a scan found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scanned {
    /// The end of the last good batch.
    pub place: Place,
    /// Why it went no further.
    pub stopped: Stopped,
}

/// Whether bytes are no batch, or not the one that was written.
pub(super) fn is_bad(stopped: &Stopped) -> bool {
    matches!(stopped, Stopped::Bad(_) | Stopped::Displaced)
}

/// In words.
pub fn describe(stopped: &Stopped) -> String {
    match stopped {
        Stopped::End => "the file is too short".to_owned(),
        Stopped::Zeros => "zeros where batches were".to_owned(),
        Stopped::Bad(error) => error.to_string(),
        Stopped::Displaced => "offsets have changed".to_owned(),
        Stopped::Unreadable(error) => error.clone(),
    }
}
