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

/// Our last batch on its way to be compared with what the source sends of its own.
pub struct Comparison {
    ours: LastBatch,
    /// The first bytes of this answer, as many as are compared.
    head: Vec<u8>,
    checker: Checker,
    result: Option<Compared>,
    parted: Option<i64>,
}

impl Comparison {
    /// With our last batch; and where the source's epochs part from ours, if they say so.
    pub fn new(ours: LastBatch, parted: Option<i64>) -> Self {
        let checker = Checker::new(0, None, 0, Bounds::local(BATCH_BYTES_MAX));
        Self { ours, head: Vec::new(), checker, result: None, parted }
    }

    /// Our last batch.
    pub fn ours(&self) -> &LastBatch {
        &self.ours
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
        let compared = compare(&self.ours, &self.head);
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
    /// The source does not know our epoch but an older one: ask again for that one, see the
    /// common part as ending no later than here.
    Older {
        /// The epoch to ask for next.
        epoch: i32,
        /// The common part ends here or before.
        common_end: i64,
    },
    /// No log has such epochs.
    Senseless,
}

/// Judges the source's answer to OffsetForLeaderEpoch (KIP-101, KIP-320).
///
/// `asked` is the epoch we asked for and `our_end` where that epoch ends here; `theirs` is
/// the source's answer: the largest epoch it has at or below ours, and where that one ends (both
/// −1: it knows none). `our_end_of` says where an epoch ends in our log, which begins at
/// `our_start`.
pub fn judge_epochs(
    asked: i32,
    (our_start, our_end): (i64, i64),
    theirs: (i32, i64),
    our_end_of: impl Fn(i32) -> Option<(i32, i64)>,
) -> Epochs {
    let (epoch, end) = theirs;
    if epoch < 0 && end < 0 {
        return Epochs::Agree;
    }
    if epoch < 0 || end < 0 || epoch > asked {
        return Epochs::Senseless;
    }
    if epoch == asked {
        return match end < our_end {
            true => Epochs::Diverged { common_end: end },
            false => Epochs::Agree,
        };
    }
    // The source never had the epoch of our last batch. What it shares with us ends, at the
    // latest, where its older epoch ends at either side.
    match our_end_of(epoch) {
        Some((ours, our_older_end)) if ours == epoch => {
            Epochs::Diverged { common_end: end.min(our_older_end) }
        }
        Some((ours, our_older_end)) => {
            Epochs::Older { epoch: ours, common_end: end.min(our_older_end) }
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
mod tests {
    use source::{BatchFields, Record, encode_batch};

    use super::*;

    fn head(base: i64, delta: i32, epoch: i32, records: i32, crc: u32) -> Vec<u8> {
        let mut head = vec![0; HEAD_BYTES];
        head[..8].copy_from_slice(&base.to_be_bytes());
        head[8..12].copy_from_slice(&88i32.to_be_bytes());
        head[12..16].copy_from_slice(&epoch.to_be_bytes());
        head[16] = 2;
        head[17..21].copy_from_slice(&crc.to_be_bytes());
        head[23..27].copy_from_slice(&delta.to_be_bytes());
        head[43..57].fill(0xff);
        head[57..61].copy_from_slice(&records.to_be_bytes());
        head
    }

    fn ours() -> LastBatch {
        LastBatch {
            base_offset: 100,
            last_offset: 109,
            bytes: 100,
            leader_epoch: Some(3),
            crc: 7,
            producer: None,
            record_count: 10,
            segment: 0,
            position: 0,
        }
    }

    #[test]
    fn heads_are_compared() {
        let ours = ours();
        assert_eq!(compare(&ours, &head(100, 9, 3, 10, 7)), Compared::Same);
        assert_eq!(compare(&ours, &head(100, 9, 3, 4, 8)), Compared::Cleaned);
        assert_eq!(compare(&ours, &head(110, 9, 3, 10, 7)), Compared::Gone);
        assert_eq!(compare(&ours, &[]), Compared::Gone);
        assert_eq!(compare(&ours, &head(100, 9, 3, 10, 8)), Compared::Different);
        assert_eq!(compare(&ours, &head(100, 9, 4, 10, 7)), Compared::Different);
        assert_eq!(compare(&ours, &head(98, 9, 3, 10, 7)), Compared::Different);
        // A recreated topic: same offsets, fewer records, but another producer.
        let mut recreated = head(100, 9, 3, 4, 8);
        recreated[43..57].fill(1);
        assert_eq!(compare(&ours, &recreated), Compared::Different);
    }

    fn whole(value: &str) -> Vec<u8> {
        let record = Record { value: Some(value.into()), ..Record::default() };
        encode_batch(&[record], &BatchFields { base_offset: 100, leader_epoch: 3, ..FIELDS })
    }

    const FIELDS: BatchFields = BatchFields {
        base_offset: 0,
        leader_epoch: 0,
        attributes: 0,
        base_timestamp_ms: 0,
        producer_id: -1,
        producer_epoch: -1,
        base_sequence: -1,
    };

    fn judge(theirs: &[u8], piece: usize) -> Result<Option<Compared>, AppendError> {
        let bytes = whole("ours");
        let crc = u32::from_be_bytes(bytes[17..21].try_into().expect("4"));
        let bytes = bytes.len() as u32;
        let ours = LastBatch { last_offset: 100, bytes, crc, record_count: 1, ..ours() };
        let mut comparison = Comparison::new(ours, None);
        comparison.begin(Bounds::local(BATCH_BYTES_MAX));
        for piece in theirs.chunks(piece) {
            if !comparison.take(piece)? {
                break;
            }
        }
        Ok(comparison.result())
    }

    #[test]
    fn another_batch_is_believed_to_be_one_when_it_is_whole() {
        let (same, other) = (whole("ours"), whole("theirs"));
        for piece in 1..=other.len() {
            assert_eq!(judge(&same, piece), Ok(Some(Compared::Same)));
            assert_eq!(judge(&same[..HEAD_BYTES], piece), Ok(Some(Compared::Same)));
            assert_eq!(judge(&same[..HEAD_BYTES - 1], piece), Ok(None));
            assert_eq!(judge(&other, piece), Ok(Some(Compared::Different)));
            assert_eq!(judge(&[&other[..], &same[..]].concat(), piece), judge(&other, piece));
            assert_eq!(judge(&other[..other.len() - 1], piece), Ok(None));
        }
        // All that its checksum covers, and that itself.
        for at in MAGIC_AT + 1..other.len() {
            for bit in 0..8 {
                let mut turned = other.clone();
                turned[at] ^= 1 << bit;
                assert!(judge(&turned, 7).is_err(), "byte {at}");
            }
        }
        let mut longer = other.clone();
        longer[8] = 0x70;
        assert!(matches!(judge(&longer, 7), Err(AppendError::BatchTooLarge { .. })));
    }

    #[test]
    fn older_message_sets_are_told_by_offset_length_and_checksum() {
        let ours = LastBatch { leader_epoch: None, ..ours() };
        let legacy = |offset: i64, crc: u32| {
            let mut head = vec![0; LEGACY_HEAD_BYTES];
            head[..8].copy_from_slice(&offset.to_be_bytes());
            head[8..12].copy_from_slice(&88i32.to_be_bytes());
            head[12..16].copy_from_slice(&crc.to_be_bytes());
            head[16] = 1;
            head
        };
        assert_eq!(head_bytes(&legacy(109, 7)), LEGACY_HEAD_BYTES);
        assert_eq!(head_bytes(&head(100, 9, 3, 10, 7)), HEAD_BYTES);
        assert_eq!(compare(&ours, &legacy(109, 7)), Compared::Same);
        assert_eq!(compare(&ours, &legacy(109, 8)), Compared::Different);
        assert_eq!(compare(&ours, &legacy(110, 7)), Compared::Gone);
    }

    #[test]
    fn a_source_that_lost_our_tail_is_found() {
        let none = |_| None;
        assert_eq!(judge_epochs(5, (0, 100), (5, 100), none), Epochs::Agree);
        assert_eq!(judge_epochs(5, (0, 100), (5, 900), none), Epochs::Agree);
        assert_eq!(judge_epochs(5, (0, 100), (5, 80), none), Epochs::Diverged { common_end: 80 });
        assert_eq!(judge_epochs(5, (0, 100), (-1, -1), none), Epochs::Agree);
    }

    #[test]
    fn an_epoch_the_source_never_had_ends_at_the_older_one() {
        let ours = |epoch| (epoch >= 3).then_some((3, 70));
        assert_eq!(judge_epochs(5, (0, 100), (3, 60), ours), Epochs::Diverged { common_end: 60 });
        assert_eq!(judge_epochs(5, (0, 100), (3, 90), ours), Epochs::Diverged { common_end: 70 });
        let none = |_| None;
        let cut = |start, end| judge_epochs(5, (start, 100), (2, end), none);
        assert_eq!(cut(70, 90), Epochs::Diverged { common_end: 70 });
        assert_eq!(cut(70, 60), Epochs::Diverged { common_end: 60 });
        let ours = |_| Some((2, 50));
        assert_eq!(
            judge_epochs(5, (0, 100), (4, 80), ours),
            Epochs::Older { epoch: 2, common_end: 50 }
        );
    }

    #[test]
    fn epochs_that_no_log_has_say_nothing() {
        for theirs in [(6, 100), (6, 3), (5, -1), (i32::MAX, i64::MAX), (-1, 100), (5, i64::MIN)] {
            assert_eq!(judge_epochs(5, (0, 100), theirs, |_| None), Epochs::Senseless);
        }
    }

    #[test]
    fn out_of_range_has_two_sides() {
        let classify = |ours, start, end| classify(ours, SourceLog { start, end });
        assert_eq!(classify(5, 10, 20), OutOfRange::Gap { source_start: 10 });
        assert_eq!(classify(21, 10, 20), OutOfRange::BeyondEnd);
        assert_eq!(classify(20, 10, 20), OutOfRange::InRange);
        assert_eq!(classify(5, i64::MAX, 20), OutOfRange::Senseless);
        assert_eq!(classify(5, -1, 20), OutOfRange::Senseless);
        assert_eq!(classify(5, 0, -1), OutOfRange::Senseless);
    }
}
