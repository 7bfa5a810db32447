//! Batches are what the format says, and logs hold what their description says.

use crate::{
    BatchFields, Content, Difference, Expected, Growth, PartitionLog, Record, Timestamps,
    TopicSpec, encode_batch, generated_batch, generated_batch_bytes_min,
};
use bytes::Bytes;
use kafka_protocol::records::RecordBatchDecoder;
use proptest::prelude::*;

fn decoded(bytes: &[u8]) -> Vec<kafka_protocol::records::Record> {
    let sets = RecordBatchDecoder::decode_all(&mut Bytes::copy_from_slice(bytes)).unwrap();
    sets.into_iter().flat_map(|set| set.records).collect()
}

fn bytes_or_null() -> impl Strategy<Value = Option<Vec<u8>>> {
    proptest::option::of(proptest::collection::vec(any::<u8>(), 0..200))
}

fn record() -> impl Strategy<Value = Record> {
    let headers = proptest::collection::btree_map("[a-z]{1,8}", bytes_or_null(), 0..3);
    (0i64..100_000, bytes_or_null(), bytes_or_null(), headers).prop_map(|(ts, key, value, h)| {
        Record { timestamp_delta_ms: ts, key, value, headers: h.into_iter().collect() }
    })
}

proptest! {
    #[test]
    fn generated_batches_have_the_size_asked_for(
        seed: u64, records in 1usize..300, extra in 0usize..70_000,
    ) {
        let bytes = generated_batch_bytes_min(records) + extra;
        let Some(batch) = generated_batch(seed, records, bytes) else {
            prop_assert_eq!(records, 1);
            return Ok(());
        };
        prop_assert_eq!(batch.len(), bytes);
        // The decoder checks the CRC.
        prop_assert_eq!(decoded(&batch).len(), records);
    }

    #[test]
    fn encoded_records_are_decoded_again(
        list in proptest::collection::vec(record(), 1..20),
        base in 0i64..1 << 40,
        epoch in 0i32..99,
    ) {
        let fields = BatchFields {
            base_offset: base, leader_epoch: epoch, base_timestamp_ms: 1_000, ..Default::default()
        };
        let batch = encode_batch(&list, &fields);
        let back = decoded(&batch);
        prop_assert_eq!(back.len(), list.len());
        for (offset, (back, record)) in (base..).zip(back.iter().zip(&list)) {
            prop_assert_eq!(back.offset, offset);
            prop_assert_eq!(back.partition_leader_epoch, epoch);
            prop_assert_eq!(back.timestamp, 1_000 + record.timestamp_delta_ms);
            prop_assert_eq!(back.key.as_deref(), record.key.as_deref());
            prop_assert_eq!(back.value.as_deref(), record.value.as_deref());
            prop_assert_eq!(back.headers.len(), record.headers.len());
        }
    }

    /// Offsets, epochs, timestamps and CRCs of a log whose batches differ in size, through
    /// elections that lose the tail and such that do not.
    #[test]
    fn logs_hold_consecutive_valid_batches(
        sizes in proptest::collection::vec(1usize..5, 1..6),
        changes in proptest::collection::vec((0u64..9, any::<bool>(), 0i64..40), 0..6),
        base_ms in 0i64..1 << 41, step_us in 0u64..5_000_000, first_offset in 0i64..1 << 33,
    ) {
        let batches = sizes.iter().map(|&n| vec![value_record(n); n]).collect();
        let mut spec = TopicSpec::new("t", 3, 4);
        spec.content = Content::Records(batches);
        spec.timestamps = Timestamps { base_ms, step_us };
        spec.first_offset = first_offset;
        let mut log = Expected::new(&spec).unwrap().log(1, 0);
        for (grow, lose, back) in changes {
            log.grow(grow);
            let epoch = log.leader_epoch() + 1;
            let changed = match lose {
                true => log.lose_tail(log.end_offset() - back, epoch),
                false => log.begin_epoch(epoch),
            };
            prop_assert!(changed);
        }
        log.grow(3);
        check_log(&log, first_offset)?;
    }
}

fn value_record(n: usize) -> Record {
    Record { timestamp_delta_ms: n as i64 * 3, value: Some(vec![7; n * 11]), ..Record::default() }
}

fn check_log(log: &PartitionLog, first_offset: i64) -> Result<(), TestCaseError> {
    let (mut offset, mut position, mut epoch, mut max_ms) = (first_offset, 0, 0, i64::MIN);
    for batch in log.batches_from(first_offset) {
        let mut bytes = Vec::new();
        log.write_batch(&batch, &mut bytes);
        prop_assert_eq!((batch.base_offset, batch.position), (offset, position));
        prop_assert_eq!(batch.bytes, bytes.len());
        let records = decoded(&bytes);
        prop_assert_eq!(records.len() as u64, batch.records());
        prop_assert_eq!(records[0].offset, offset);
        prop_assert_eq!(records[0].partition_leader_epoch, batch.leader_epoch);
        let last_ms = records.iter().map(|r| r.timestamp).max().unwrap();
        prop_assert_eq!(batch.max_timestamp_ms, last_ms);
        prop_assert!(batch.leader_epoch >= epoch);
        for inside in batch.base_offset..batch.next_offset {
            prop_assert_eq!(log.batch_at(inside), Some(batch));
        }
        let by_time = log.batch_for_timestamp(last_ms).unwrap();
        let all = log.batches_from(first_offset);
        let first = all.take(500).find(|batch| batch.max_timestamp_ms >= last_ms);
        prop_assert_eq!(Some(by_time), first);
        max_ms = max_ms.max(last_ms);
        (offset, epoch) = (batch.next_offset, batch.leader_epoch);
        position += bytes.len() as u64;
        let (end_epoch, end_offset) = log.end_offset_for_epoch(epoch);
        prop_assert_eq!(end_epoch, epoch);
        prop_assert!(end_offset >= offset);
    }
    prop_assert_eq!((log.end_offset(), log.end_position()), (offset, position));
    prop_assert_eq!(log.batch_for_timestamp(max_ms + 1), None);
    prop_assert_eq!(log.batch_with_max_timestamp().unwrap().max_timestamp_ms, max_ms);
    Ok(())
}

#[test]
fn partitions_hold_different_bytes_at_the_same_offsets() {
    let expected = Expected::new(&TopicSpec::new("t", 4, 8).with_batches(3, 400, 4)).unwrap();
    let a = expected.bytes(0, 0..16);
    let b = expected.bytes(1, 0..16);
    assert_eq!((a.len(), b.len()), (1600, 1600));
    assert_ne!(a[100..], b[100..]);
    let again = Expected::new(&TopicSpec::new("t", 4, 0).with_batches(3, 400, 4)).unwrap();
    assert_eq!(a, again.bytes(0, 0..16));
    let other = Expected::new(&TopicSpec::new("u", 4, 0).with_batches(3, 400, 4)).unwrap();
    assert_ne!(a[100..], other.bytes(0, 0..16)[100..], "nor do topics of one seed");
}

#[test]
fn what_comes_after_a_lost_tail_differs_from_it() {
    for ring_batches in [2, 3, 5] {
        let mut spec = TopicSpec::new("t", 1, 20);
        spec.content = Content::Generated {
            seed: 9,
            batch_bytes: 300,
            batch_records: 2,
            ring_bytes: 300 * ring_batches,
        };
        spec.timestamps.step_us = 0;
        let before = Expected::new(&spec).unwrap().log(0, 40);
        let mut after = before.clone();
        assert!(after.lose_tail(21, 1));
        assert_eq!(after.end_offset(), 20);
        after.grow(10);
        assert_eq!(before.bytes(0..20), after.bytes(0..20));
        for offset in (20..40).step_by(2) {
            let (a, b) = (before.bytes(offset..offset + 2), after.bytes(offset..offset + 2));
            assert_ne!(a[17..], b[17..], "more than the epoch differs at {offset}");
        }
        assert_eq!(after.end_offset_for_epoch(0), (0, 20));
        assert_eq!(after.end_offset_for_epoch(1), (1, 40));
        assert_eq!(after.end_offset_for_epoch(2), (-1, -1));
    }
}

#[test]
fn a_comparison_names_the_first_wrong_byte() {
    let spec = TopicSpec::new("t", 2, 10).with_batches(5, 500, 5);
    let log = Expected::new(&spec).unwrap().log(1, 50);
    let mut copy = log.bytes(0..50);
    for chunk in [1, 7, 499, 500, 501, 4096] {
        let mut comparison = log.compare_from(0);
        for piece in copy.chunks(chunk) {
            comparison.feed(piece).unwrap();
        }
        assert_eq!(comparison.compared_bytes(), 5000);
        assert_eq!((comparison.offset(), comparison.is_at_batch_end()), (50, true));
        assert_eq!(comparison.feed(&[0]), Err(Difference::Beyond { end_offset: 50 }));
    }
    let right = copy[1234];
    copy[1234] ^= 4;
    let mut comparison = log.compare_from(0);
    let found = copy.chunks(100).try_for_each(|piece| comparison.feed(piece));
    let difference = Difference::Byte {
        base_offset: 10,
        in_batch: 234,
        position: 1234,
        expected: right,
        found: right ^ 4,
    };
    assert_eq!(found, Err(difference));
}

#[test]
fn descriptions_that_make_no_sense_are_refused() {
    let good = TopicSpec::new("t", 1, 1);
    let bad = [
        TopicSpec { name: String::new(), ..good.clone() },
        TopicSpec { partitions: 0, ..good.clone() },
        TopicSpec { first_offset: -1, ..good.clone() },
        good.clone().with_batches(1, 100, 64),
        good.clone().with_batches(1, 100, 0),
        good.clone().with_growth(Growth::rate(f64::NAN)),
        good.clone().with_growth(Growth::backlog(u64::MAX)),
        TopicSpec { content: Content::Records(vec![vec![]]), ..good.clone() },
        TopicSpec { content: Content::Given, ..good.clone() },
    ];
    for spec in bad {
        assert!(Expected::new(&spec).is_err(), "{spec:?}");
    }
    assert!(Expected::new(&good).is_ok());
}
