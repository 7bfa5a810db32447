//! What a partition's own end and the source's answers mean together, sans-I/O.
//!
//! Before records are taken, on every start of a partition, its last batch is compared with the
//! source's at that offset, and its last epoch's end with the source's: a topic that was recreated
//! and has grown past our end looks healthy otherwise, and sources before 2.8 have no topic ids.
//! Where the source's epochs say that it parted from us, that batch has to be another one, too.
//! A batch that is another one is held against its own checksum before that is believed: bytes
//! that were changed on the way are bad bytes, and no sign that a source has parted from us.

use std::fmt;

use storage::batch::Producer;
use storage::check::{AppendError, Bounds, Checker};
use storage::limits::BATCH_BYTES_MAX;
use storage::log::LastBatch;

/// The head of a batch of magic 2: it holds offsets, epoch, length, producer and the checksum of
/// all the rest (KIP-98, DefaultRecordBatch). Older message sets are told by their first 17 bytes.
const HEAD_BYTES: usize = 61;

/// Where older message sets have said all that is compared.
const LEGACY_HEAD_BYTES: usize = 17;
const MAGIC_AT: usize = 16;

/// How the source's batch at our last batch's offset compares with ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compared {
    /// The same.
    Same,
    /// The source's cleaner took records out of it.
    Cleaned,
    /// It is not there: deleted, or cleaned away as a whole. Nothing can be said.
    Gone,
    /// Another batch at the same offsets.
    Different,
    /// What the source calls committed ends before it.
    NotYet,
}

/// What we hold, on its way to be compared with what the source sends of its own.
pub struct Comparison {
    ours: Ours,
    /// The first bytes of this answer, as many as are compared.
    head: Vec<u8>,
    checker: Checker,
    result: Option<Compared>,
    parted: Option<i64>,
}

/// What is compared.
enum Ours {
    /// Our last batch.
    Last(LastBatch),
    /// The leader epoch that we have at the place of a cut. Where two logs have a batch of one
    /// epoch at one offset it is the same batch.
    Epoch { at: i64, epoch: i32 },
}

impl Comparison {
    /// With our last batch; and where the source's epochs part from ours, if they say so.
    pub fn new(ours: LastBatch, parted: Option<i64>) -> Self {
        Self::of(Ours::Last(ours), parted)
    }

    /// With our leader epoch at an offset: whether the source's log parts from ours where its
    /// epochs say so.
    pub fn of_cut(at: i64, epoch: i32, common_end: i64) -> Self {
        Self::of(Ours::Epoch { at, epoch }, Some(common_end))
    }

    fn of(ours: Ours, parted: Option<i64>) -> Self {
        let checker = Checker::new(0, None, 0, Bounds::local(BATCH_BYTES_MAX));
        Self { ours, head: Vec::new(), checker, result: None, parted }
    }

    /// What the source is asked for.
    pub fn offset(&self) -> i64 {
        match self.ours {
            Ours::Last(ours) => ours.base_offset,
            Ours::Epoch { at, .. } => at,
        }
    }

    /// Whether it is the place of a cut that is looked at.
    pub fn is_of_cut(&self) -> bool {
        matches!(self.ours, Ours::Epoch { .. })
    }

    /// Where the source's epochs part from ours, if they say so.
    pub fn parted(&self) -> Option<i64> {
        self.parted
    }

    /// What came of it. None: what was sent so far does not tell.
    pub fn result(&self) -> Option<Compared> {
        self.result
    }

    /// An answer begins whose records, if there are any, are taken next.
    pub fn begin(&mut self, bounds: Bounds) {
        self.head.clear();
        self.checker = Checker::new(0, None, 0, bounds);
        self.result = None;
    }

    /// Of what the source calls committed it is no part.
    pub fn is_not_yet(&mut self) {
        self.result = Some(Compared::NotYet);
    }

    /// Takes the answer's next bytes. Whether more are needed.
    ///
    /// # Errors
    /// The source's batch is another one, or looks like one, and fails its check.
    pub fn take(&mut self, bytes: &[u8]) -> Result<bool, AppendError> {
        let mut rest = bytes;
        loop {
            let missing = head_bytes(&self.head) - self.head.len();
            if missing == 0 {
                break;
            }
            let (first, behind) = rest.split_at(missing.min(rest.len()));
            self.head.extend_from_slice(first);
            rest = behind;
            if first.len() < missing {
                return Ok(true);
            }
        }
        let compared = match &self.ours {
            Ours::Last(ours) => compare(ours, &self.head),
            Ours::Epoch { epoch, .. } => compare_epoch(*epoch, &self.head),
        };
        if matches!(compared, Compared::Same | Compared::Gone) {
            self.result = Some(compared);
            return Ok(false);
        }
        let mut whole = false;
        if !self.checker.in_batch() {
            whole = self.checker.feed(&self.head)?.batch.is_some();
        }
        if !whole {
            whole = self.checker.feed(rest)?.batch.is_some();
        }
        self.result = whole.then_some(compared);
        Ok(!whole)
    }
}

/// How many bytes the comparison needs of a batch that begins with these.
fn head_bytes(begun: &[u8]) -> usize {
    match begun.get(MAGIC_AT) {
        Some(2..) => HEAD_BYTES,
        _ => LEGACY_HEAD_BYTES,
    }
}

/// Compares our last batch with the head of the source's at its offset.
fn compare(ours: &LastBatch, theirs: &[u8]) -> Compared {
    let Some(theirs) = Head::read(theirs) else { return Compared::Gone };
    if theirs.first_offset() > ours.last_offset {
        return Compared::Gone;
    }
    let same_place = theirs.is_at(ours) && theirs.leader_epoch == ours.leader_epoch;
    if same_place && theirs.bytes == i64::from(ours.bytes) && theirs.crc == ours.crc {
        return Compared::Same;
    }
    // The cleaner keeps offsets, epoch and producer, and takes records out (LogCleaner,
    // MemoryRecords.filterTo): fewer records, another checksum.
    let cleaned = same_place
        && theirs.producer == ours.producer
        && theirs.records < i64::from(ours.record_count);
    if cleaned { Compared::Cleaned } else { Compared::Different }
}

/// Compares our leader epoch at an offset with that of the source's batch there.
fn compare_epoch(ours: i32, theirs: &[u8]) -> Compared {
    match Head::read(theirs).and_then(|theirs| theirs.leader_epoch) {
        Some(epoch) if epoch == ours => Compared::Same,
        Some(_) => Compared::Different,
        None => Compared::Gone,
    }
}

/// What the comparison needs of the source's batch.
struct Head {
    /// As it stands in the first 8 bytes. Of an older wrapper this is its *last* record's offset.
    offset: i64,
    /// Magic 2 says how many offsets follow.
    last_offset: Option<i64>,
    bytes: i64,
    leader_epoch: Option<i32>,
    crc: u32,
    producer: Option<Producer>,
    records: i64,
}

impl Head {
    fn read(bytes: &[u8]) -> Option<Self> {
        let magic = *bytes.get(MAGIC_AT)?;
        let i64_at = |at: usize| i64::from_be_bytes(bytes[at..at + 8].try_into().expect("8"));
        let i32_at = |at: usize| i32::from_be_bytes(bytes[at..at + 4].try_into().expect("4"));
        let (offset, length) = (i64_at(0), i64::from(i32_at(8)) + 12);
        if magic < 2 {
            return Some(Self {
                offset,
                last_offset: None,
                bytes: length,
                leader_epoch: None,
                crc: i32_at(12).cast_unsigned(),
                producer: None,
                records: i64::MAX,
            });
        }
        if bytes.len() < HEAD_BYTES {
            return None;
        }
        let producer = Producer {
            id: i64_at(43),
            epoch: i16::from_be_bytes(bytes[51..53].try_into().expect("2")),
            base_sequence: i32_at(53),
        };
        Some(Self {
            offset,
            last_offset: Some(offset.saturating_add(i64::from(i32_at(23)))),
            bytes: length,
            leader_epoch: Some(i32_at(12)),
            crc: i32_at(17).cast_unsigned(),
            producer: (producer.id >= 0).then_some(producer),
            records: i64::from(i32_at(57)),
        })
    }

    fn first_offset(&self) -> i64 {
        self.offset
    }

    fn is_at(&self, ours: &LastBatch) -> bool {
        match self.last_offset {
            Some(last) => self.offset == ours.base_offset && last == ours.last_offset,
            None => self.offset == ours.last_offset,
        }
    }
}

/// What follows from a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Nothing speaks against taking what comes behind our end.
    GoOn,
    /// The source has all records of the copy, but not the gap that the copy ends with: others may
    /// lie there by now. Nothing is lost by going back to where it begins.
    LeaveGap {
        /// Where that is.
        common_end: i64,
    },
    /// The source lost records we have, or says so.
    Diverged {
        /// The first offset that is not common.
        common_end: i64,
    },
    /// The source's epochs part from ours, and yet it has our batch.
    Contradiction {
        /// Where they are said to part.
        common_end: i64,
    },
    /// What the source calls committed has to reach our last batch first.
    Wait,
    /// The source has another log.
    Another,
}

/// What follows from how the source's batch compares with our last one, and from where its epochs
/// are said to part from ours. Our records end at `records_end`: behind them may be a gap.
pub fn decide(compared: Compared, parted: Option<i64>, records_end: i64) -> Decision {
    match (compared, parted) {
        (Compared::Same | Compared::Cleaned, Some(common_end)) => match records_end <= common_end {
            true => Decision::LeaveGap { common_end },
            false => Decision::Contradiction { common_end },
        },
        (_, Some(common_end)) => Decision::Diverged { common_end },
        (Compared::NotYet, None) => Decision::Wait,
        (Compared::Same | Compared::Cleaned | Compared::Gone, None) => Decision::GoOn,
        (Compared::Different, None) => Decision::Another,
    }
}

/// What follows from what the source has at the place of a cut, where its epochs are said to part
/// from ours. What it calls committed ends at `source_end`, as it said with that.
pub fn decide_cut(compared: Compared, common_end: i64, source_end: Option<i64>) -> Decision {
    match compared {
        Compared::Different => Decision::Diverged { common_end },
        // It ends exactly there, too.
        Compared::NotYet if source_end == Some(common_end) => Decision::Diverged { common_end },
        Compared::NotYet | Compared::Gone => Decision::Wait,
        Compared::Same | Compared::Cleaned => Decision::Contradiction { common_end },
    }
}

/// The leader epoch that we have at an offset, or the first one if we begin behind it. `last` is
/// our last one; `our_end_of` says where an epoch ends in our log.
pub fn epoch_at(offset: i64, last: i32, our_end_of: impl Fn(i32) -> Option<(i32, i64)>) -> i32 {
    let mut epoch = last;
    while let Some((older, end)) = epoch.checked_sub(1).and_then(&our_end_of)
        && offset < end
    {
        epoch = older;
    }
    epoch
}

/// An epoch of ours whose end the source is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AskedEpoch {
    /// The epoch.
    pub epoch: i32,
    /// Where it ends here.
    pub end: i64,
    /// The source never had those that follow it here: as far as this one goes, and no further, the
    /// logs may be the same. What it has instead ends there at this offset.
    pub below: Option<i64>,
}

/// What the end of our last epoch at the source means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Epochs {
    /// Nothing speaks against going on.
    Agree,
    /// The source's log ends this epoch before ours does: it lost records we have. The common
    /// part ends here.
    Diverged {
        /// The first offset that is not common.
        common_end: i64,
    },
    /// The source does not know our epoch but an older one: ask again, for this one.
    Older(AskedEpoch),
    /// No log has such epochs.
    Senseless,
}

/// Judges the source's answer to OffsetForLeaderEpoch (KIP-101, KIP-320).
///
/// `theirs` is the source's answer: the largest epoch it has at or below the one asked for, and
/// where that one ends (both −1: it knows none). `our_end_of` says where an epoch ends in our log,
/// which begins at `our_start`.
pub fn judge_epochs(
    asked: AskedEpoch,
    our_start: i64,
    theirs: (i32, i64),
    our_end_of: impl Fn(i32) -> Option<(i32, i64)>,
) -> Epochs {
    let (epoch, end) = theirs;
    let nothing_more = match asked.below {
        Some(_) => Epochs::Diverged { common_end: asked.end },
        None => Epochs::Agree,
    };
    if epoch < 0 && end < 0 {
        return nothing_more;
    }
    let beyond_younger = asked.below.is_some_and(|below| end > below);
    if epoch < 0 || end < 0 || epoch > asked.epoch || beyond_younger {
        return Epochs::Senseless;
    }
    if epoch == asked.epoch {
        return match end < asked.end {
            true => Epochs::Diverged { common_end: end },
            false => nothing_more,
        };
    }
    // The source never had the epoch of our last batch. What it shares with us ends, at the
    // latest, where its older epoch ends at either side.
    match our_end_of(epoch) {
        Some((ours, our_older_end)) if ours == epoch => {
            Epochs::Diverged { common_end: end.min(our_older_end) }
        }
        Some((ours, our_older_end)) => {
            let end_here = end.min(our_older_end);
            Epochs::Older(AskedEpoch { epoch: ours, end: end_here, below: Some(end) })
        }
        // All we have is of epochs that it never had.
        None => Epochs::Diverged { common_end: end.min(our_start) },
    }
}

/// What a source says of one of its logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceLog {
    /// Its first offset.
    pub start: i64,
    /// Its high watermark.
    pub end: i64,
}

impl fmt::Display for SourceLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { start, end } = self;
        write!(f, "the source says that its log goes from {start} to {end}")
    }
}

impl SourceLog {
    /// Whether a log can be like that.
    pub fn is_possible(&self) -> bool {
        0 <= self.start && self.start <= self.end
    }

    /// Whether, moreover, this offset is one of it, or its end.
    pub fn holds(&self, offset: i64) -> bool {
        self.is_possible() && (self.start..=self.end).contains(&offset)
    }
}

/// What an OFFSET_OUT_OF_RANGE means, once the source's range is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutOfRange {
    /// No log has such a range.
    Senseless,
    /// The source's log starts beyond our end: these records are lost to us.
    Gap {
        /// The first offset the source still has.
        source_start: i64,
    },
    /// The source's log ends before ours. Whether it lost records or only lags behind a leader
    /// change, its epochs tell.
    BeyondEnd,
    /// The range has moved meanwhile, or the source contradicts itself.
    InRange,
}

/// Classifies an OFFSET_OUT_OF_RANGE: our next offset against the source's log start and high
/// watermark, as its leader says them (ListOffsets).
pub fn classify(ours: i64, theirs: SourceLog) -> OutOfRange {
    if !theirs.is_possible() {
        OutOfRange::Senseless
    } else if ours < theirs.start {
        OutOfRange::Gap { source_start: theirs.start }
    } else if ours > theirs.end {
        OutOfRange::BeyondEnd
    } else {
        OutOfRange::InRange
    }
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
