//! What each answer means, one by one.

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
    encode_batch(
        &[record],
        &BatchFields { base_offset: 100, leader_epoch: 3, ..BatchFields::default() },
    )
}

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

fn asked(epoch: i32, end: i64) -> AskedEpoch {
    AskedEpoch { epoch, end, below: None }
}

#[test]
fn a_source_that_lost_our_tail_is_found() {
    let none = |_| None;
    assert_eq!(judge_epochs(asked(5, 100), 0, (5, 100), none), Epochs::Agree);
    assert_eq!(judge_epochs(asked(5, 100), 0, (5, 900), none), Epochs::Agree);
    assert_eq!(judge_epochs(asked(5, 100), 0, (5, 80), none), Epochs::Diverged { common_end: 80 });
    assert_eq!(judge_epochs(asked(5, 100), 0, (-1, -1), none), Epochs::Agree);
}

#[test]
fn an_epoch_the_source_never_had_ends_at_the_older_one() {
    let ours = |epoch| (epoch >= 3).then_some((3, 70));
    assert_eq!(judge_epochs(asked(5, 100), 0, (3, 60), ours), Epochs::Diverged { common_end: 60 });
    assert_eq!(judge_epochs(asked(5, 100), 0, (3, 90), ours), Epochs::Diverged { common_end: 70 });
    let none = |_| None;
    let cut = |start, end| judge_epochs(asked(5, 100), start, (2, end), none);
    assert_eq!(cut(70, 90), Epochs::Diverged { common_end: 70 });
    assert_eq!(cut(70, 60), Epochs::Diverged { common_end: 60 });
    let ours = |_| Some((2, 50));
    assert_eq!(
        judge_epochs(asked(5, 100), 0, (4, 80), ours),
        Epochs::Older(AskedEpoch { epoch: 2, end: 50, below: Some(80) })
    );
}

#[test]
fn epochs_that_no_log_has_say_nothing() {
    for theirs in [(6, 100), (6, 3), (5, -1), (i32::MAX, i64::MAX), (-1, 100), (5, i64::MIN)] {
        assert_eq!(judge_epochs(asked(5, 100), 0, theirs, |_| None), Epochs::Senseless);
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

#[test]
fn what_follows_an_epoch_that_the_source_never_had_is_not_common() {
    let older = AskedEpoch { below: Some(80), ..asked(2, 50) };
    let judge = |theirs| judge_epochs(older, 0, theirs, |_| None);
    assert_eq!(judge((2, 60)), Epochs::Diverged { common_end: 50 });
    assert_eq!(judge((2, 40)), Epochs::Diverged { common_end: 40 });
    assert_eq!(judge((-1, -1)), Epochs::Diverged { common_end: 50 });
    // No epoch ends behind a younger one.
    assert_eq!(judge((2, 81)), Epochs::Senseless);
    assert_eq!(judge((1, 81)), Epochs::Senseless);
}
