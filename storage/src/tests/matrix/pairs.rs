//! Pairs of harms that were once not told apart from what is whole, each by itself.

use super::*;

/// What becomes of a closed log, or of one with a finished segment without a seal.
fn hurt(ended: Ended, harms: impl Fn(&Made) -> Vec<(PathBuf, How)>) -> Result<(), String> {
    let made = Made::new(ended);
    let whole = whole(&made);
    let harm = |(path, how)| Harm { path, how, what: "", epoch: false };
    let harms: Vec<Harm> = harms(&made).into_iter().map(harm).collect();
    try_harms(&made, &whole, &harms)
}

fn file(base: i64, kind: Kind) -> PathBuf {
    id(0).folder(made::data()).join(kind.name(base))
}

/// Its transaction has begun in the segment before: it counted as begun with the first batch in the
/// segment that was read, so that what it had written before passed for committed.
#[test]
fn a_transaction_begins_where_it_began_though_the_last_batch_and_the_snapshot_are_lost() {
    let result = hurt(Ended::Clean, |made| {
        let (base, end) = *made.segments.last().unwrap();
        let last = made.places(made.segments.len() - 1).last().unwrap().1.clone();
        assert!(base > 44 && end == END);
        vec![
            (file(base, Kind::Log), How::Flip(last.end - 20, 5)),
            (file(base, Kind::Snapshot), How::Lost),
        ]
    });
    assert_eq!(result, Ok(()));
}

/// The same where its last segment ends before where its reading would begin.
#[test]
fn a_transaction_begins_where_it_began_though_the_segment_is_cut_short_and_its_snapshot_lost() {
    let result = hurt(Ended::Unsealed, |made| {
        let base = made.segments.last().unwrap().0;
        vec![(file(base, Kind::Log), How::Cut(3710)), (file(base, Kind::Snapshot), How::Cut(0))]
    });
    assert_eq!(result, Ok(()));
}

/// What an emptied segment held looked like a gap of the source's.
#[test]
fn an_emptied_segment_without_a_seal_is_damage() {
    let result =
        hurt(Ended::Unsealed, |made| vec![(file(made.segments[2].0, Kind::Log), How::Cut(0))]);
    assert_eq!(result, Ok(()));
}

/// Where it ended, only the seal said.
#[test]
fn a_segment_without_a_seal_that_is_cut_short_within_a_batch_is_mended() {
    let result = hurt(Ended::Unsealed, |made| {
        let last = made.places(2).last().unwrap().1.clone();
        vec![(file(made.segments[2].0, Kind::Log), How::Cut(last.end - 1))]
    });
    assert_eq!(result, Ok(()));
}

/// The checkpoint says whose the log is, and the source says the same.
#[test]
fn a_bit_turned_in_the_topic_id_does_not_keep_a_log_from_being_opened() {
    let metadata = id(0).folder(made::data()).join(crate::names::METADATA_FILE);
    let result = hurt(Ended::Clean, |_| vec![(metadata.clone(), How::Flip(22, 3))]);
    assert_eq!(result, Ok(()));
}

/// Both slots of a checkpoint gone as files looked like a crash before the first of them was
/// written: nothing counted as flushed, and what follows a segment without a seal was removed.
#[test]
fn lost_checkpoint_files_are_missed() {
    let slot = |slot| crate::boot::slot_path(made::data(), 0, slot);
    let result = hurt(Ended::Unsealed, |_| vec![(slot(0), How::Lost), (slot(1), How::Lost)]);
    assert_eq!(result, Ok(()));
    let result = hurt(Ended::Unsealed, |_| vec![(slot(0), How::Lost), (slot(1), How::Cut(0))]);
    assert_eq!(result, Ok(()));
}

/// A bit that no checksum covers: the batch went beyond where the next segment begins.
#[test]
fn a_last_batch_that_goes_beyond_its_segment_is_mended_without_a_seal() {
    let result = hurt(Ended::Clean, |made| {
        let base = made.segments[1].0;
        let last = made.places(1).last().unwrap().1.clone();
        let seal = id(0).seal_folder(made::data()).join(Kind::Seal.name(base));
        vec![(seal, How::Lost), (file(base, Kind::Log), How::Flip(last.start + 7, 1))]
    });
    assert_eq!(result, Ok(()));
}

/// The epochs are made anew from all batches, and no checksum of a batch covers its epoch: only the
/// seal tells later that one was not what it should be.
#[test]
fn epochs_made_anew_from_a_damaged_batch_are_right_once_it_is_mended() {
    for (segment, bit) in [(0, 0), (0, 1), (1, 0), (1, 1), (2, 1)] {
        for number in [0, 3] {
            let result = hurt(Ended::Clean, |made| {
                let base = made.segments[segment].0;
                let place = made.places(segment)[number].1.clone();
                let epochs = id(0).folder(made::data()).join(EPOCHS);
                vec![(epochs, How::Lost), (file(base, Kind::Log), How::Flip(place.start + 15, bit))]
            });
            assert_eq!(result, Ok(()), "batch {number} of segment {segment}, bit {bit}");
        }
    }
}

/// It looked like a gap of the source's; its time index tells of the batches that are not there.
#[test]
fn a_segment_without_a_seal_that_is_cut_at_a_batchs_end_is_mended() {
    for behind in [1, 5] {
        let result = hurt(Ended::Clean, |made| {
            let base = made.segments[2].0;
            let places = made.places(2);
            let cut = places[places.len() - behind].1.start;
            let seal = id(0).seal_folder(made::data()).join(Kind::Seal.name(base));
            vec![(seal, How::Lost), (file(base, Kind::Log), How::Cut(cut))]
        });
        assert_eq!(result, Ok(()), "{behind} batches are missing");
    }
}

/// Below the visible start nobody misses them.
#[test]
fn epochs_of_a_segment_that_is_lost_below_the_visible_start_are_not_missed() {
    let epochs = id(0).folder(made::data()).join(EPOCHS);
    let result =
        hurt(Ended::Clean, |_| vec![(epochs.clone(), How::Lost), (file(0, Kind::Log), How::Lost)]);
    assert_eq!(result, Ok(()));
}
