use proptest::prelude::*;

use super::*;
use crate::testing::{self, Shape};

const BOUNDS: Bounds =
    Bounds { high_watermark: 1 << 40, leader_epoch: 100, batch_bytes_max: 1 << 20 };

fn check(pieces: &[&[u8]], bounds: Bounds) -> (Vec<Batch>, Result<(), AppendError>) {
    let mut checker = Checker::new(0, None, 0, bounds);
    let (mut batches, mut crcs) = (Vec::new(), Vec::new());
    let mut start = 0;
    for piece in pieces {
        let mut rest = *piece;
        while !rest.is_empty() {
            match checker.feed(rest) {
                Ok(fed) => {
                    assert!(fed.consumed > 0);
                    crcs.extend(fed.batch.map(|batch| checker.file_crc(&batch)));
                    batches.extend(fed.batch);
                    rest = &rest[fed.consumed..];
                }
                Err(e) => return (batches, Err(e)),
            }
        }
    }
    let whole = pieces.concat();
    for (batch, crc) in batches.iter().zip(crcs) {
        let end = start + batch.bytes as usize;
        assert_eq!(crc, crc::crc32c(&whole[start..end]));
        start = end;
    }
    (batches, Ok(()))
}

fn stream() -> impl Strategy<Value = Vec<u8>> {
    let entry = (0i64..5, 1i32..20, 0usize..300, 0i32..3, 0u8..10);
    prop::collection::vec(entry, 1..8).prop_map(|entries| {
        let (mut base, mut epoch, mut bytes) = (0, 0, Vec::new());
        for (gap, records, body, newer, kind) in entries {
            base += gap;
            match kind {
                0 => bytes.extend(testing::legacy(0, base, 0, body)),
                1 => bytes.extend(testing::legacy(1, base, 77, body)),
                2 => bytes.extend(testing::marker(base, epoch, 5, 1, body % 2 == 0)),
                _ => {
                    epoch += newer;
                    let shape = Shape { records, body, epoch, ..Shape::at(base) };
                    bytes.extend(shape.bytes());
                    base += i64::from(records) - 1;
                }
            }
            base += 1;
        }
        bytes
    })
}

proptest! {
    #[test]
    fn any_split_gives_the_same_result(
        bytes in stream(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let whole = check(&[&bytes], BOUNDS);
        prop_assert!(whole.1.is_ok());
        prop_assert_eq!(whole.0.iter().map(|b| b.bytes as usize).sum::<usize>(), bytes.len());
        let mut cuts: Vec<usize> = cuts.iter().map(|c| c.index(bytes.len() + 1)).collect();
        cuts.push(0);
        cuts.push(bytes.len());
        cuts.sort_unstable();
        let pieces: Vec<&[u8]> = cuts.windows(2).map(|w| &bytes[w[0]..w[1]]).collect();
        prop_assert_eq!(check(&pieces, BOUNDS), whole);
    }

    #[test]
    fn a_flipped_bit_is_found_or_harmless(
        bytes in stream(),
        at in any::<prop::sample::Index>(),
        bit in 0u8..8,
    ) {
        let (before, _) = check(&[&bytes], BOUNDS);
        let mut flipped = bytes.clone();
        let at = at.index(bytes.len());
        flipped[at] ^= 1 << bit;
        let (after, result) = check(&[&flipped], BOUNDS);
        // Every batch before the flipped one stands. What follows is refused, or waits for
        // bytes that do not come, or differs only in what no checksum covers and the rules
        // allow: a later base offset, a leader epoch within bounds.
        let mut start = 0;
        for (i, batch) in before.iter().enumerate() {
            let end = start + batch.bytes as usize;
            if end <= at {
                prop_assert_eq!(after.get(i), Some(batch));
            } else if let Some(other) = after.get(i) {
                let in_head = at - start < CHECKED_FROM;
                prop_assert!(in_head, "the flip at {} of {batch:?} went unseen", at - start);
                prop_assert_eq!(other.crc, batch.crc);
                prop_assert_eq!(other.bytes, batch.bytes);
                let after_last = i == 0 || other.base_offset > after[i - 1].last_offset;
                prop_assert!(other.base_offset >= batch.base_offset || after_last);
                break;
            } else {
                prop_assert!(result.is_err() || after.len() < before.len());
                break;
            }
            start = end;
        }
    }

    #[test]
    fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = check(&[&bytes], BOUNDS);
    }
}

#[test]
fn the_rules_outside_the_checksum() {
    let batch = Shape { records: 3, epoch: 5, ..Shape::at(10) }.bytes();
    let with = |expected, epoch, bounds| {
        Checker::new(expected, epoch, 0, bounds).feed(&batch).map(|fed| fed.batch.is_some())
    };
    assert_eq!(with(10, Some(5), BOUNDS), Ok(true));
    assert_eq!(
        with(11, None, BOUNDS),
        Err(AppendError::OffsetBelowExpected { base_offset: 10, expected: 11 })
    );
    assert_eq!(
        with(0, None, Bounds { high_watermark: 12, ..BOUNDS }),
        Err(AppendError::BeyondHighWatermark { last_offset: 12, high_watermark: 12 })
    );
    assert_eq!(with(0, None, Bounds { high_watermark: 13, ..BOUNDS }), Ok(true));
    assert_eq!(
        with(0, Some(6), BOUNDS),
        Err(AppendError::EpochWentBack { base_offset: 10, epoch: 5, last_epoch: 6 })
    );
    assert_eq!(
        with(0, None, Bounds { leader_epoch: 4, ..BOUNDS }),
        Err(AppendError::EpochBeyondLeader { base_offset: 10, epoch: 5, leader: 4 })
    );
    let max = batch.len() as u32 - 1;
    assert_eq!(
        with(0, None, Bounds { batch_bytes_max: max, ..BOUNDS }),
        Err(AppendError::BatchTooLarge { base_offset: 10, bytes: batch.len() as u64, max })
    );
}

#[test]
fn a_length_is_judged_before_it_is_waited_for() {
    for length in [-1, 0, 13, i32::MIN] {
        let mut head = 7i64.to_be_bytes().to_vec();
        head.extend_from_slice(&length.to_be_bytes());
        let result = Checker::new(0, None, 0, BOUNDS).feed(&head);
        assert_eq!(result, Err(AppendError::BadLength { position: 0, length }));
    }
    let mut head = 7i64.to_be_bytes().to_vec();
    head.extend_from_slice(&i32::MAX.to_be_bytes());
    let result = Checker::new(0, None, 0, BOUNDS).feed(&head);
    assert!(matches!(result, Err(AppendError::BatchTooLarge { .. })));
}

#[test]
fn only_the_first_batch_of_a_log_may_straddle_its_start() {
    let mut checker = Checker::new(11, None, 0, BOUNDS);
    checker.allow_straddle(0);
    let first = Shape { records: 3, ..Shape::at(10) }.bytes();
    assert!(checker.feed(&first).unwrap().batch.is_some());
    let second = Shape { records: 3, ..Shape::at(12) }.bytes();
    assert!(matches!(checker.feed(&second), Err(AppendError::OffsetBelowExpected { .. })));
    let mut checker = Checker::new(13, None, 0, BOUNDS);
    checker.allow_straddle(0);
    assert!(matches!(checker.feed(&first), Err(AppendError::OffsetBelowExpected { .. })));
}

#[test]
fn a_gap_may_end_inside_of_a_batch_that_does_not_reach_back_to_us() {
    let batch = |base| Shape { records: 5, ..Shape::at(base) }.bytes();
    for (base, accepted) in [(8, false), (9, false), (10, true), (12, true)] {
        let mut checker = Checker::new(10, None, 0, BOUNDS);
        checker.skip_to(11);
        checker.skip_to(13);
        let fed = checker.feed(&batch(base));
        assert_eq!(fed.is_ok_and(|fed| fed.batch.is_some()), accepted, "from {base}");
    }
}
