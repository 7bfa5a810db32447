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
