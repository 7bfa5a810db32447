//! What a partition's own end and the source's answers mean together, sans-I/O.
//!
//! Before records are taken, on every start of a partition, its last batch is compared with the
//! source's at that offset, and its last epoch's end with the source's: a topic that was recreated
//! and has grown past our end looks healthy otherwise, and sources before 2.8 have no topic ids.

/// The head of a batch: enough to tell batches apart, for it holds offsets, epoch, length and the
/// checksum of all the rest.
pub const HEAD_BYTES: usize = 61;

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
}

/// Compares the heads of two batches of magic 2 (or the first bytes of older message sets).
/// `theirs` is empty when the source answered no records.
pub fn compare(ours: &[u8], theirs: &[u8]) -> Compared {
    let len = ours.len().min(HEAD_BYTES);
    if theirs.len() >= len && ours[..len] == theirs[..len] {
        return Compared::Same;
    }
    let (Some(ours), Some(theirs)) = (Head::read(ours), Head::read(theirs)) else {
        return if theirs.len() < 8 { Compared::Gone } else { compare_old(ours, theirs) };
    };
    if theirs.base_offset > ours.last_offset {
        return Compared::Gone;
    }
    // The cleaner keeps offsets, epoch and producer, and takes records out (LogCleaner,
    // MemoryRecords.filterTo): fewer records, another checksum.
    let cleaned = theirs.base_offset == ours.base_offset
        && theirs.last_offset == ours.last_offset
        && theirs.leader_epoch == ours.leader_epoch
        && theirs.producer == ours.producer
        && theirs.records < ours.records;
    if cleaned { Compared::Cleaned } else { Compared::Different }
}

/// Message sets of magic 0 and 1 have no head to speak of: another base offset beyond ours means
/// that ours is gone.
fn compare_old(ours: &[u8], theirs: &[u8]) -> Compared {
    let offset = |bytes: &[u8]| i64::from_be_bytes(bytes[..8].try_into().expect("8 bytes"));
    if ours.len() < 8 || offset(theirs) > offset(ours) {
        Compared::Gone
    } else {
        Compared::Different
    }
}

/// The fields of a batch's head that the comparison needs (KIP-98, DefaultRecordBatch).
struct Head {
    base_offset: i64,
    last_offset: i64,
    leader_epoch: i32,
    /// Producer id, epoch and base sequence.
    producer: [u8; 14],
    records: i32,
}

impl Head {
    fn read(bytes: &[u8]) -> Option<Self> {
        const MAGIC_AT: usize = 16;
        if bytes.len() < HEAD_BYTES || bytes[MAGIC_AT] != 2 {
            return None;
        }
        let i32_at = |at: usize| i32::from_be_bytes(bytes[at..at + 4].try_into().expect("4"));
        let base_offset = i64::from_be_bytes(bytes[..8].try_into().expect("8"));
        Some(Self {
            base_offset,
            last_offset: base_offset.saturating_add(i64::from(i32_at(23))),
            leader_epoch: i32_at(12),
            producer: bytes[43..57].try_into().expect("14"),
            records: i32_at(57),
        })
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
}

/// Judges the source's answer to OffsetForLeaderEpoch (KIP-101, KIP-320).
///
/// `asked` is the epoch we asked for and `our_end` where that epoch ends here; `theirs` is
/// the source's answer: the largest epoch it has at or below ours, and where that one ends (both
/// −1: it knows none). `our_end_of` says where an epoch ends in our log.
pub fn judge_epochs(
    asked: i32,
    our_end: i64,
    theirs: (i32, i64),
    our_end_of: impl Fn(i32) -> Option<(i32, i64)>,
) -> Epochs {
    let (epoch, end) = theirs;
    if epoch < 0 || end < 0 {
        return Epochs::Agree;
    }
    if epoch >= asked {
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
        None => Epochs::Diverged { common_end: 0 },
    }
}

/// What an OFFSET_OUT_OF_RANGE means, once the source's range is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutOfRange {
    /// The source's log starts beyond our end: these records are lost to us.
    Gap {
        /// The first offset the source still has.
        source_start: i64,
    },
    /// The source's log ends before ours. Whether it lost records or only lags behind a leader
    /// change, its epochs tell.
    BeyondEnd,
    /// The range has moved meanwhile: ask again.
    InRange,
}

/// Classifies an OFFSET_OUT_OF_RANGE: our next offset against the source's log start and high
/// watermark, as its leader says them (ListOffsets).
pub fn classify(ours: i64, source_start: i64, source_end: i64) -> OutOfRange {
    if ours < source_start {
        OutOfRange::Gap { source_start }
    } else if ours > source_end {
        OutOfRange::BeyondEnd
    } else {
        OutOfRange::InRange
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(base: i64, delta: i32, epoch: i32, records: i32, crc: u32) -> Vec<u8> {
        let mut head = vec![0; HEAD_BYTES];
        head[..8].copy_from_slice(&base.to_be_bytes());
        head[8..12].copy_from_slice(&100i32.to_be_bytes());
        head[12..16].copy_from_slice(&epoch.to_be_bytes());
        head[16] = 2;
        head[17..21].copy_from_slice(&crc.to_be_bytes());
        head[23..27].copy_from_slice(&delta.to_be_bytes());
        head[43..57].fill(0xff);
        head[57..61].copy_from_slice(&records.to_be_bytes());
        head
    }

    #[test]
    fn heads_are_compared() {
        let ours = batch(100, 9, 3, 10, 7);
        assert_eq!(compare(&ours, &ours), Compared::Same);
        assert_eq!(compare(&ours, &batch(100, 9, 3, 4, 8)), Compared::Cleaned);
        assert_eq!(compare(&ours, &batch(110, 9, 3, 10, 7)), Compared::Gone);
        assert_eq!(compare(&ours, &[]), Compared::Gone);
        assert_eq!(compare(&ours, &batch(100, 9, 3, 10, 8)), Compared::Different);
        assert_eq!(compare(&ours, &batch(100, 9, 4, 10, 7)), Compared::Different);
        assert_eq!(compare(&ours, &batch(98, 9, 3, 10, 7)), Compared::Different);
        // A recreated topic: same offsets, fewer records, but other producers.
        let mut recreated = batch(100, 9, 3, 4, 8);
        recreated[43] = 0;
        assert_eq!(compare(&ours, &recreated), Compared::Different);
    }

    #[test]
    fn a_source_that_lost_our_tail_is_found() {
        let none = |_| None;
        assert_eq!(judge_epochs(5, 100, (5, 100), none), Epochs::Agree);
        assert_eq!(judge_epochs(5, 100, (5, 900), none), Epochs::Agree);
        assert_eq!(judge_epochs(5, 100, (5, 80), none), Epochs::Diverged { common_end: 80 });
        assert_eq!(judge_epochs(5, 100, (-1, -1), none), Epochs::Agree);
    }

    #[test]
    fn an_epoch_the_source_never_had_ends_at_the_older_one() {
        let ours = |epoch| (epoch >= 3).then_some((3, 70));
        assert_eq!(judge_epochs(5, 100, (3, 60), ours), Epochs::Diverged { common_end: 60 });
        assert_eq!(judge_epochs(5, 100, (3, 90), ours), Epochs::Diverged { common_end: 70 });
        let ours = |_| Some((2, 50));
        assert_eq!(judge_epochs(5, 100, (4, 80), ours), Epochs::Older { epoch: 2, common_end: 50 });
    }

    #[test]
    fn out_of_range_has_two_sides() {
        assert_eq!(classify(5, 10, 20), OutOfRange::Gap { source_start: 10 });
        assert_eq!(classify(21, 10, 20), OutOfRange::BeyondEnd);
        assert_eq!(classify(20, 10, 20), OutOfRange::InRange);
    }
}
