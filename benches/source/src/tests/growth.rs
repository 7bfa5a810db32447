//! Logs grow by the clock, partitions in turn.

use crate::cluster::Topic;
use crate::{Expected, Growth, TopicSpec};
use std::time::{Duration, Instant};

#[test]
fn partitions_grow_evenly_and_in_turn() {
    // A batch of 1000 bytes every 100 ms in each of four partitions, 25 ms apart.
    let growth = Growth { backlog_batches: 3, bytes_per_second: 10_000.0, batches_max: 8 };
    let spec = TopicSpec::new("t", 4, 0).with_batches(1, 1000, 1).with_growth(growth);
    let started = Instant::now();
    let mut topic = Topic::new(spec.growing_after(1000), 0, 1, started).unwrap();
    let before = started + Duration::from_millis(999);
    assert_eq!(topic.partition(0, before).unwrap().log.end_offset(), 3, "it grows too soon");
    let began = started + Duration::from_millis(1000);
    for (ms, ends) in [
        (0, [3, 3, 3, 3]),
        (24, [3, 3, 3, 3]),
        (25, [3, 3, 3, 4]),
        (50, [3, 3, 4, 4]),
        (99, [3, 4, 4, 4]),
        (100, [4, 4, 4, 4]),
        (399, [6, 7, 7, 7]),
        (500, [8, 8, 8, 8]),
        (90_000, [8, 8, 8, 8]),
    ] {
        let now = began + Duration::from_millis(ms);
        for (partition, end) in (0..).zip(ends) {
            let log = &topic.partition(partition, now).unwrap().log;
            assert_eq!(log.end_offset(), end, "partition {partition} after {ms} ms");
            let next = topic.next_growth(partition);
            assert_eq!(next.is_none(), end == 8);
            if let Some(next) = next {
                assert!(next > now);
                let later = &topic.partition(partition, next).unwrap().log;
                assert_eq!(later.end_offset(), end + 1);
                // Time does not run backwards in a source; look again from the beginning.
                topic = Topic::new(topic.spec().clone(), 0, 1, started).unwrap();
            }
        }
    }
}

#[test]
fn live_timestamps_go_with_the_growth() {
    let growth = Growth { backlog_batches: 30, ..Growth::rate_in_all(40_000.0, 4) };
    let spec = TopicSpec::new("t", 4, 0).with_batches(1, 1000, 1).with_growth(growth);
    let expected = Expected::new(&spec.with_live_timestamps(1_000_000_000_000)).unwrap();
    for partition in 0..4 {
        let log = expected.log(partition, 40);
        let of = |offset| log.batch_at(offset).unwrap().max_timestamp_ms - i64::from(partition);
        // One batch every 100 ms, and the first that time brings is of now.
        assert_eq!(of(30), 1_000_000_000_000);
        assert_eq!(of(29), 999_999_999_900);
        assert_eq!(of(31), 1_000_000_000_100);
    }
}
