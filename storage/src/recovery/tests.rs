//! The rules, one by one, and a model of crashes: any subset of unflushed writes survives.

use proptest::prelude::*;

use super::*;
use crate::check::AppendError;
use crate::checkpoint::Entry;
use crate::index::IndexState;

const NO_INDEX: [u64; 3] = [0; 3];

fn seal(base: i64, bytes: u64, next_offset: i64, next_base: i64) -> Seal {
    Seal {
        base,
        bytes,
        next_offset,
        next_base,
        index_bytes: [0; 3],
        index_crc: 0,
        crc: 0,
        strides: Vec::new(),
    }
}

fn segment(base: i64, bytes: u64, seal: Option<Seal>) -> FoundSegment {
    let has_seal = seal.is_some();
    FoundSegment { base, bytes, seal, has_seal, index_bytes: NO_INDEX, indexed: None }
}

fn entry(segment: i64, bytes: u64, offset: i64) -> Entry {
    let replay = Replay {
        place: Place { segment, bytes, offset },
        index: IndexState::EMPTY,
        epoch: None,
        snapshot: false,
    };
    Entry { flushed: replay.place, replay, doubtful: false, ..Entry::UNKNOWN }
}

fn found(segments: Vec<FoundSegment>, entry: Option<Entry>) -> Found {
    Found {
        segments,
        entry,
        lost: false,
        read_from: ReadFrom::Replay,
        start_offset: 0,
        visible_start: 0,
    }
}

/// Runs a recovery over segments whose good bytes are known: (base, good bytes, next offset).
fn recover(found: Found, good: &[(i64, u64, i64)], bad: Stopped) -> (Verdict, Vec<Scan>) {
    let mut recovery = Recovery::new(found);
    let mut scans = Vec::new();
    loop {
        match recovery.step() {
            Step::Done(verdict) => return (verdict, scans),
            Step::Scan(scan) => {
                scans.push(scan);
                let segment = scan.from.place.segment;
                let &(_, bytes, offset) = good.iter().find(|g| g.0 == segment).unwrap();
                let end = bytes.min(scan.to_bytes);
                let stopped = if end == scan.to_bytes { Stopped::End } else { bad.clone() };
                let place = Place { segment, bytes: end.max(scan.from.place.bytes), offset };
                recovery.scanned(Scanned { place, stopped });
            }
        }
    }
}

fn torn() -> Stopped {
    Stopped::Bad(AppendError::CrcMismatch { base_offset: 0, position: 0 })
}

#[test]
fn only_what_lies_above_the_flushed_place_is_read() {
    let segments = vec![segment(0, 1000, Some(seal(0, 1000, 10, 10))), segment(10, 8192, None)];
    let (verdict, scans) =
        recover(found(segments, Some(entry(10, 4000, 14))), &[(10, 5000, 15)], Stopped::Zeros);
    assert_eq!(scans.len(), 1);
    assert_eq!(scans[0].from.place.bytes, 4000);
    assert_eq!(verdict.end, Place { segment: 10, bytes: 5000, offset: 15 });
    assert_eq!(verdict.cut, [(10, 5000)]);
    assert_eq!(verdict.torn_bytes, 0, "prepared zeros are not torn");
    assert_eq!(verdict.sealed, [(0, 1000)]);
    assert_eq!(verdict.corrupt, None);
}

#[test]
fn bad_bytes_above_the_flushed_place_are_cut() {
    let segments = vec![segment(0, 8192, None)];
    let (verdict, _) = recover(found(segments, Some(entry(0, 4000, 14))), &[(0, 4500, 15)], torn());
    assert_eq!(verdict.cut, [(0, 4500)]);
    assert_eq!(verdict.torn_bytes, 8192 - 4500);
    assert_eq!(verdict.corrupt, None);
}

#[test]
fn bad_bytes_below_the_flushed_place_are_never_cut() {
    for bad in [torn(), Stopped::Zeros] {
        let mut entry = entry(0, 4000, 14);
        entry.replay.place = Place { segment: 0, bytes: 1000, offset: 4 };
        let segments = vec![segment(0, 8192, None)];
        let (verdict, _) = recover(found(segments, Some(entry)), &[(0, 2000, 7)], bad);
        let corrupt = verdict.corrupt.unwrap();
        assert_eq!((corrupt.bytes, corrupt.offsets), (2000..4000, 7..14));
        assert!(verdict.cut.is_empty() && verdict.remove.is_empty());
    }
}

#[test]
fn a_file_shorter_than_flushed_or_missing_is_damage() {
    let short = vec![segment(0, 3000, None)];
    let mut entry = entry(0, 4000, 14);
    entry.replay.place = Place::default();
    let (verdict, _) = recover(found(short, Some(entry)), &[(0, 3000, 10)], torn());
    assert_eq!(verdict.corrupt.unwrap().bytes, 3000..4000);
    let (verdict, _) = recover(found(Vec::new(), Some(entry)), &[], torn());
    assert_eq!(verdict.corrupt.unwrap().offsets, 0..14);
    // A finished one below it, likewise.
    let segments = vec![segment(0, 900, Some(seal(0, 1000, 10, 10))), segment(10, 8192, None)];
    let good = [(0, 900, 9), (10, 4000, 14)];
    let (verdict, _) = recover(found(segments, Some(self::entry(10, 4000, 14))), &good, torn());
    assert_eq!(verdict.corrupt.unwrap().bytes, 900..1000);
    // A whole one is gone.
    let segments = vec![segment(0, 1000, Some(seal(0, 1000, 10, 10))), segment(20, 8192, None)];
    let (verdict, _) =
        recover(found(segments, Some(self::entry(20, 4000, 24))), &[(20, 4000, 24)], torn());
    assert_eq!(verdict.corrupt.unwrap().offsets, 10..20);
    // The last one: what lies before it is unharmed.
    let segments = vec![segment(0, 1000, Some(seal(0, 1000, 10, 10)))];
    let (verdict, _) = recover(found(segments, Some(self::entry(10, 4000, 14))), &[], torn());
    assert_eq!(verdict.corrupt.unwrap().offsets, 10..14);
}

#[test]
fn damage_takes_back_what_was_to_be_cut_before_it() {
    // A file longer than its seal, and a segment whose seal is missing: both would be put right.
    let segments = vec![
        segment(0, 1500, Some(seal(0, 1000, 10, 10))),
        segment(10, 2000, None),
        segment(20, 8192, None),
    ];
    let good = [(10, 1800, 20), (20, 2000, 23)];
    let mut entry = entry(20, 4000, 24);
    entry.replay.place = Place { segment: 20, bytes: 0, offset: 20 };
    let sound = [(10, 1800, 20), (20, 8192, 30)];
    let (verdict, _) = recover(found(segments.clone(), Some(entry)), &sound, Stopped::Zeros);
    assert_eq!((verdict.cut, verdict.reseal), (vec![(0, 1000), (10, 1800)], vec![(10, 20)]));
    let (verdict, _) = recover(found(segments, Some(entry)), &good, Stopped::Zeros);
    assert_eq!(verdict.corrupt.unwrap().bytes, 2000..4000);
    assert_eq!((verdict.cut, verdict.reseal), (Vec::new(), Vec::new()), "nothing is changed");
}

#[test]
fn unreadable_bytes_are_never_cut() {
    let segments = vec![segment(0, 8192, None)];
    let (verdict, _) = recover(
        found(segments, Some(entry(0, 4000, 14))),
        &[(0, 5000, 15)],
        Stopped::Unreadable("EIO".to_owned()),
    );
    assert_eq!(verdict.corrupt.unwrap().bytes.start, 5000);
    assert!(verdict.cut.is_empty());
}

#[test]
fn a_later_segment_counts_only_if_those_before_are_sealed() {
    // The tail of the first was lost; the second is whole. It looks like a compaction gap.
    let segments = vec![segment(0, 8192, None), segment(10, 4096, None)];
    let good = [(0, 5000, 8), (10, 4096, 12)];
    let (verdict, _) = recover(found(segments, Some(entry(0, 4000, 7))), &good, Stopped::Zeros);
    assert_eq!(verdict.end, Place { segment: 0, bytes: 5000, offset: 8 });
    assert_eq!(verdict.remove, [10]);
    // The same with a seal that the file does not reach.
    let segments = vec![segment(0, 8192, Some(seal(0, 6000, 10, 10))), segment(10, 4096, None)];
    let (verdict, _) = recover(found(segments, Some(entry(0, 4000, 7))), &good, Stopped::Zeros);
    assert_eq!(verdict.end.bytes, 5000);
    assert_eq!(verdict.remove, [10]);
    assert_eq!(verdict.unseal, Some(0));
    // The same with one that is garbled.
    let garbled = FoundSegment { has_seal: true, ..segment(0, 8192, None) };
    let segments = vec![garbled, segment(10, 4096, None)];
    let (verdict, _) = recover(found(segments, Some(entry(0, 4000, 7))), &good, Stopped::Zeros);
    assert_eq!(verdict.unseal, Some(0));
    // And with one that it reaches.
    let segments = vec![segment(0, 5000, Some(seal(0, 5000, 8, 10))), segment(10, 4096, None)];
    let (verdict, _) = recover(found(segments, Some(entry(0, 4000, 7))), &good, torn());
    assert_eq!(verdict.end, Place { segment: 10, bytes: 4096, offset: 12 });
    assert!(verdict.remove.is_empty());
}

#[test]
fn a_seal_that_names_another_successor_does_not_admit_this_one() {
    let segments = vec![segment(0, 5000, Some(seal(0, 5000, 8, 9))), segment(10, 4096, None)];
    let good = [(0, 5000, 8), (10, 4096, 12)];
    let (verdict, _) = recover(found(segments, Some(entry(0, 4000, 7))), &good, torn());
    assert_eq!(verdict.end, Place { segment: 9, bytes: 0, offset: 9 });
    assert_eq!(verdict.remove, [10]);
}

#[test]
fn a_missing_seal_below_the_flushed_segment_is_written_again() {
    let segments = vec![segment(0, 1000, None), segment(10, 8192, None)];
    let good = [(0, 1000, 10), (10, 4000, 14)];
    let (verdict, _) = recover(found(segments, Some(entry(10, 4000, 14))), &good, Stopped::Zeros);
    assert_eq!(verdict.reseal, [(0, 10)]);
    assert_eq!(verdict.corrupt, None);
}

#[test]
fn with_lost_checkpoints_nothing_is_removed() {
    let lost = |segments| Found { lost: true, ..found(segments, None) };
    // Damage in a sealed segment is damage.
    let sealed = || segment(0, 1000, Some(seal(0, 1000, 10, 10)));
    let segments = vec![sealed(), segment(10, 8192, None)];
    let (verdict, scans) = recover(lost(segments), &[(0, 500, 5), (10, 4000, 14)], torn());
    assert_eq!(verdict.corrupt.unwrap().bytes, 500..1000);
    assert_eq!(scans.len(), 1);
    // An unsealed segment in the middle is, too, if it does not end where the next begins.
    let unsealed = || vec![segment(0, 1000, None), segment(10, 8192, None)];
    let (verdict, _) = recover(lost(unsealed()), &[(0, 900, 9), (10, 4000, 14)], torn());
    assert!(verdict.corrupt.is_some() && verdict.remove.is_empty());
    let (verdict, _) = recover(lost(unsealed()), &[(0, 1000, 10), (10, 4000, 14)], torn());
    assert_eq!((verdict.reseal, verdict.end.offset), (vec![(0, 10)], 14));
    assert!(verdict.corrupt.is_none() && verdict.remove.is_empty());
    // Everything is read, and the tail of the last is a tail.
    let segments = vec![sealed(), segment(10, 8192, None)];
    let (verdict, scans) = recover(lost(segments), &[(0, 1000, 10), (10, 4000, 14)], torn());
    assert_eq!(scans.len(), 2);
    assert_eq!(verdict.end.offset, 14);
}

proptest! {
    /// A log of segments was written; up to some place it was flushed. Above it any file may have
    /// lost any tail, any seal may be missing. The result is a prefix, at least what was flushed,
    /// never CORRUPT.
    #[test]
    fn any_loss_above_the_flushed_place_leaves_a_prefix(
        sizes in prop::collection::vec(2u64..40, 1..6),
        flushed in any::<prop::sample::Index>(),
        kept in prop::collection::vec((0u64..50, any::<bool>()), 6),
    ) {
        // Batches of 100 bytes and one offset.
        let starts: Vec<u64> =
            (0..sizes.len()).map(|i| sizes[..i].iter().sum::<u64>()).collect();
        let total: u64 = sizes.iter().sum();
        let flushed = flushed.index(total as usize + 1) as u64;
        let last = starts.iter().rposition(|&start| start <= flushed).unwrap();
        let flushed_segment = last.min(sizes.len() - 1);
        let base = starts[flushed_segment];
        let entry = entry(base as i64, (flushed - base) * 100, flushed as i64);
        let (mut segments, mut good) = (Vec::new(), Vec::new());
        let mut whole = 0;
        let mut gapless = true;
        for (i, (&start, &size)) in starts.iter().zip(&sizes).enumerate() {
            let safe = flushed.saturating_sub(start).min(size);
            let (kept, sealed) = kept[i];
            let survives = if i < flushed_segment { size } else { kept.clamp(safe, size) };
            let sealed = i < flushed_segment || (sealed && i + 1 < sizes.len());
            let end = (start + size) as i64;
            let seal = sealed.then(|| seal(start as i64, size * 100, end, end));
            let bytes = if i < flushed_segment { size * 100 } else { size * 100 + 4096 };
            if survives == 0 && !sealed && i > flushed_segment {
                gapless = false;
                continue;
            }
            if gapless {
                whole = start + survives;
                gapless = survives == size && sealed;
            }
            segments.push(segment(start as i64, bytes, seal));
            good.push((start as i64, survives * 100, (start + survives) as i64));
        }
        let (verdict, _) = recover(found(segments, Some(entry)), &good, torn());
        prop_assert_eq!(&verdict.corrupt, &None);
        prop_assert!(verdict.end.offset as u64 >= flushed);
        prop_assert_eq!(verdict.end.offset as u64, whole.max(flushed));
        // What is kept plus what is removed is everything.
        prop_assert!(verdict.sealed.iter().all(|(base, _)| !verdict.remove.contains(base)));
    }
}

fn hidden(segments: Vec<FoundSegment>, entry: Option<Entry>, visible_start: i64) -> Found {
    Found { visible_start, ..found(segments, entry) }
}

#[test]
fn damage_is_passed_over_only_where_all_that_it_hides_lies_below_the_visible_start() {
    let sealed = || segment(0, 900, Some(seal(0, 1000, 10, 10)));
    let entry_at = entry(20, 4000, 24);
    let good = [(0, 900, 9), (10, 1000, 20), (20, 4000, 24), (30, 0, 30)];
    let whole = || segment(10, 1000, Some(seal(10, 1000, 20, 20)));
    for (visible, corrupt) in [(9, true), (10, false), (24, false)] {
        let segments = vec![sealed(), whole(), segment(20, 8192, None)];
        let (verdict, _) = recover(hidden(segments, Some(entry_at), visible), &good, torn());
        assert_eq!(verdict.corrupt.is_some(), corrupt, "{visible}");
        assert_eq!(verdict.sealed.len(), if corrupt { 0 } else { 2 });
        assert!(!verdict.bare);
    }
    // One is missing in the middle, at the front, at the end.
    let missing = |segments: Vec<FoundSegment>, visible| {
        recover(hidden(segments, Some(entry_at), visible), &good, torn()).0
    };
    let first = || segment(0, 1000, Some(seal(0, 1000, 10, 10)));
    for (visible, corrupt) in [(19, true), (20, false)] {
        let verdict = missing(vec![first(), segment(20, 8192, None)], visible);
        assert_eq!((verdict.corrupt.is_some(), verdict.bare), (corrupt, false));
    }
    for (visible, corrupt) in [(29, true), (30, false)] {
        let verdict = missing(vec![segment(30, 0, None)], visible);
        assert_eq!((verdict.corrupt.is_some(), verdict.bare), (corrupt, true));
    }
    for (visible, corrupt) in [(23, true), (24, false)] {
        let verdict = missing(vec![first(), whole()], visible);
        assert_eq!((verdict.corrupt.is_some(), verdict.bare), (corrupt, !corrupt));
        assert!(corrupt || verdict.end == Place { segment: 24, bytes: 0, offset: 24 });
    }
}

#[test]
fn a_flushed_segment_is_passed_over_only_below_what_may_follow_it() {
    let good = [(0, 500, 5), (30, 100, 31)];
    let mut entry = entry(0, 4000, 24);
    entry.replay.place = Place::default();
    // What was not flushed may hold what is visible.
    for (next, seal, visible, end) in [
        (None, None, 23, None),
        (None, None, 24, Some(24)),
        (None, None, 70, Some(24)),
        (None, Some(seal(0, 6000, 28, 30)), 29, None),
        (None, Some(seal(0, 6000, 28, 30)), 30, Some(30)),
        (Some(segment(30, 4096, None)), None, 29, None),
        (Some(segment(30, 4096, None)), None, 30, Some(31)),
    ] {
        let mut segments = vec![segment(0, 8192, seal)];
        segments.extend(next);
        let (verdict, _) = recover(hidden(segments, Some(entry), visible), &good, torn());
        assert_eq!(verdict.corrupt.is_none().then_some(verdict.end.offset), end, "{visible}");
        assert!(end.is_none() || verdict.remove.is_empty());
        assert_eq!(verdict.hidden.len(), usize::from(end.is_some()));
    }
}

/// Else the source would be asked for less than a batch, and it could never be mended.
#[test]
fn damage_before_a_flushed_end_without_a_file_reaches_up_to_it() {
    let segments = vec![segment(0, 8192, None)];
    let (verdict, _) = recover(found(segments, Some(entry(20, 0, 20))), &[(0, 0, 0)], torn());
    assert_eq!(verdict.corrupt.unwrap().offsets, 0..20);
}
