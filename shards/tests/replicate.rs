//! One shard follows the embedded source, on the real ring and a real disk.

mod harness;

use std::time::Duration;

use harness::{LINK, Rig, settings};
use shards::control::*;
use source::{Config, Content, Fault, Growth, Target, TopicSpec, serve};

fn topic(name: &str, partitions: i32, batches: u64) -> TopicSpec {
    TopicSpec::new(name, partitions, batches).with_batches(7, 20_000, 16)
}

#[test]
fn everything_is_copied_and_goes_on_after_a_restart() {
    let orders = topic("orders", 8, 300);
    let tiny = TopicSpec::new("tiny", 3, 500).with_batches(9, 200, 1);
    let empty = topic("empty", 2, 0);
    let config = Config::loopback(2)
        .with_topic(orders.clone())
        .with_topic(tiny.clone())
        .with_topic(empty.clone());
    let mut rig = Rig::new(serve(config).expect("a source"), &[&orders, &tiny, &empty], settings());
    rig.until_caught_up();
    rig.stop();
    rig.assert_equal();

    for partition in 0..8 {
        rig.source.cluster().append("orders", partition, 41).expect("appends");
    }
    rig.source.cluster().append("empty", 1, 3).expect("appends");
    rig.start();
    rig.until_caught_up();
    // Idle ones too: what was heard when they were compared says that they are caught up.
    rig.until("a known lag", |status| {
        let known = |p: &PartitionStatus| p.caught_up_at_ms.is_some();
        status.partitions.iter().all(|p| known(p) && p.state == PartitionState::Active)
    });
    rig.stop();
    rig.assert_equal();
}

#[test]
fn records_arrive_while_the_source_grows() {
    let growing = topic("growing", 4, 0).with_growth(Growth {
        backlog_batches: 10,
        bytes_per_second: 4e6,
        batches_max: 400,
    });
    let source = serve(Config::loopback(1).with_topic(growing.clone())).expect("a source");
    let mut rig = Rig::new(source, &[&growing], settings());
    rig.until("400 batches", |status| status.partitions.iter().all(|p| p.flushed == 400 * 16));
    let status = rig.status();
    assert!(status.partitions.iter().all(|p| p.caught_up_at_ms.is_some()));
    assert!(status.stats.bytes_received >= 4 * 400 * 20_000);
    rig.stop();
    rig.assert_equal();
}

#[test]
fn leaders_move_and_brokers_go_away() {
    let orders = topic("orders", 6, 100);
    let source = serve(Config::loopback(3).with_topic(orders.clone())).expect("a source");
    let mut rig = Rig::new(source, &[&orders], settings());
    rig.until_caught_up();
    for partition in 0..6 {
        rig.move_leader("orders", partition, (partition as usize + 1) % 3);
        rig.source.cluster().append("orders", partition, 50).expect("appends");
    }
    rig.until_caught_up();
    rig.source.stop_broker(1).expect("stops");
    for partition in [0, 3] {
        rig.source.cluster().append("orders", partition, 20).expect("appends");
        rig.move_leader("orders", partition, 2);
    }
    rig.until_caught_up();
    rig.stop();
    rig.assert_equal();
}

#[test]
fn one_partitions_corrupt_batch_stops_no_other() {
    let orders = topic("orders", 4, 100);
    let source = serve(Config::loopback(1).with_topic(orders.clone())).expect("a source");
    source.cluster().inject(
        Target::partition("orders", 2),
        Fault::FlipBit { byte: 1000, bit: 3 },
        None,
    );
    let mut rig = Rig::new(source, &[&orders], settings());
    rig.until("trouble and three healthy ones", |status| {
        status.partitions.iter().all(|p| match p.key.partition {
            2 => p.state == PartitionState::Retrying,
            _ => p.flushed == 1600,
        })
    });
    let sick = rig.partition("orders", 2);
    assert!(sick.reason.expect("a reason").contains("CRC"), "the reason names the checksum");
    assert!(sick.retry_at_ms.is_some());
    assert_eq!(sick.received, 0);
    rig.source.cluster().clear_faults();
    rig.until_caught_up();
    rig.stop();
    rig.assert_equal();
}

#[test]
fn sealing_works_with_the_source_dead_and_is_final() {
    let orders = topic("orders", 3, 200);
    let source = serve(Config::loopback(1).with_topic(orders.clone())).expect("a source");
    let mut rig = Rig::new(source, &[&orders], settings());
    rig.until_caught_up();
    rig.source.stop_broker(0).expect("stops");
    let topics = vec!["orders".into()];
    let sealed = rig.ask(|reply| Command::Seal { link: LINK.into(), topics, reply });
    assert_eq!(sealed.len(), 3);
    for partition in &sealed {
        assert_eq!((partition.end_offset, &partition.error), (Some(3200), &None));
    }
    rig.source.start_broker(0).expect("starts");
    rig.source.cluster().append("orders", 0, 5).expect("appends");
    rig.tell(Command::Resume { link: LINK.into(), topics: None });
    rig.tell_leaders();
    std::thread::sleep(Duration::from_millis(300));
    let status = rig.partition("orders", 0);
    assert_eq!((status.state, status.received), (PartitionState::Sealed, 3200));
    rig.stop();
}

#[test]
fn a_paused_link_has_no_socket_open() {
    let orders = topic("orders", 4, 50);
    let source = serve(Config::loopback(2).with_topic(orders.clone())).expect("a source");
    let mut rig = Rig::new(source, &[&orders], settings());
    rig.until_caught_up();
    assert!(rig.source.connections(0) > 0);
    rig.ask(|reply| Command::Pause { link: LINK.into(), topics: None, reply });
    rig.until("closed sockets", |_| true);
    let begun = std::time::Instant::now();
    while rig.source.connections(0) + rig.source.connections(1) > 0 {
        // Its threads notice the end of the stream when they are scheduled.
        assert!(begun.elapsed() < Duration::from_secs(10), "a socket stays open");
        std::thread::yield_now();
    }
    rig.source.cluster().append("orders", 1, 10).expect("appends");
    rig.tell_leaders();
    assert_eq!(rig.source.connections(0) + rig.source.connections(1), 0);
    rig.tell(Command::Resume { link: LINK.into(), topics: None });
    rig.until_caught_up();
    rig.stop();
    rig.assert_equal();
}

#[test]
fn what_is_resumed_after_a_pause_that_nobody_waited_for_goes_on() {
    let orders = topic("orders", 4, 50);
    let source = serve(Config::loopback(1).with_topic(orders.clone())).expect("a source");
    let mut rig = Rig::new(source, &[&orders], settings());
    rig.until_caught_up();
    for topics in [None, Some(vec!["orders".into()])] {
        for _ in 0..20 {
            let (reply, _) = tokio::sync::oneshot::channel();
            rig.tell(Command::Pause { link: LINK.into(), topics: topics.clone(), reply });
            rig.tell(Command::Resume { link: LINK.into(), topics: topics.clone() });
        }
        rig.source.cluster().append("orders", 1, 10).expect("appends");
        rig.until_caught_up();
    }
    rig.stop();
    rig.assert_equal();
}

#[test]
fn a_source_that_lost_records_is_found_and_cut_only_when_allowed() {
    let orders = topic("orders", 2, 100);
    let source = serve(Config::loopback(1).with_topic(orders.clone())).expect("a source");
    let mut rig = Rig::new(source, &[&orders], settings());
    rig.until_caught_up();
    rig.source.cluster().lose_tail("orders", 1, 1280).expect("loses");
    rig.source.cluster().append("orders", 1, 40).expect("appends");
    rig.tell_leaders();
    rig.until("divergence", |status| {
        status.partitions[1].state == PartitionState::Faulted(FaultCode::Diverged)
    });
    let reason = rig.partition("orders", 1).reason.expect("a reason");
    assert!(reason.contains("1280") && reason.contains("1600"), "both offsets are named: {reason}");
    assert_eq!(rig.partition("orders", 1).received, 1600, "nothing was cut");

    rig.settings.allow_truncation = true;
    rig.tell(Command::Link { link: LINK.into(), settings: rig.settings.clone() });
    rig.tell(Command::Resume { link: LINK.into(), topics: Some(vec!["orders".into()]) });
    rig.until_caught_up();
    assert!(
        rig.seen
            .iter()
            .any(|event| { matches!(event, Event::Truncated { from: 1280, to: 1600, .. }) })
    );
    rig.stop();
    rig.assert_equal();
}

/// The copy was cut where the source begins, which is a batch's end here and within one there: what
/// lies below is of a past that the source has parted from, and stood in the way for ever.
#[test]
fn a_source_that_parted_below_its_start_is_followed_from_within_a_batch() {
    let parted = TopicSpec { content: Content::Given, ..TopicSpec::new("parted", 1, 0) };
    let sixteens = topic("sixteens", 1, 100);
    let tens = TopicSpec::new("tens", 1, 40).with_batches(8, 20_000, 10);
    let topics = [&parted, &sixteens, &tens];
    let config = topics.iter().fold(Config::loopback(1), |c, topic| c.with_topic((*topic).clone()));
    let source = serve(config).expect("a source");
    let append = |cluster: &source::Cluster, from: &str| {
        let log = cluster.log(from, 0).expect("it has it");
        let batches = log.batches_from(0).map(|batch| {
            let mut bytes = Vec::new();
            log.write_batch(&batch, &mut bytes);
            bytes
        });
        let batches: Vec<_> = batches.collect();
        cluster.append_batches("parted", 0, &batches, false).expect("appends");
    };
    append(&source.cluster(), "sixteens");
    let mut rig = Rig::new(source, &[&parted], settings());
    rig.until_caught_up();
    rig.stop();
    let cluster = rig.source.cluster();
    cluster.lose_tail("parted", 0, 1280).expect("loses");
    append(&cluster, "tens");
    cluster.delete_records("parted", 0, 1296).expect("deletes");
    rig.settings.allow_truncation = true;
    rig.start();
    rig.until_caught_up();
    assert_eq!(rig.partition("parted", 0).log_start, 1296);
    rig.stop();
}

#[test]
fn a_source_that_trimmed_its_log_beyond_our_end_is_a_named_gap() {
    let orders = topic("orders", 2, 100);
    let source = serve(Config::loopback(1).with_topic(orders.clone())).expect("a source");
    let mut rig = Rig::new(source, &[&orders], settings());
    rig.until_caught_up();
    rig.stop();
    rig.source.cluster().append("orders", 0, 60).expect("appends");
    rig.source.cluster().delete_records("orders", 0, 2000).expect("deletes");
    rig.start();
    rig.until("the gap", |status| {
        status.partitions[0].state == PartitionState::Faulted(FaultCode::SourceGap)
    });
    assert!(
        rig.seen.iter().any(|event| {
            matches!(event, Event::SourceGap { lost_from: 1600, lost_to: 2000, .. })
        })
    );
    rig.settings.on_source_gap = OnSourceGap::Continue;
    rig.tell(Command::Link { link: LINK.into(), settings: rig.settings.clone() });
    rig.tell(Command::Resume { link: LINK.into(), topics: Some(vec!["orders".into()]) });
    rig.until_caught_up();
    assert_eq!(rig.partition("orders", 0).log_start, 2000);
    rig.stop();
}

#[test]
fn a_topic_recreated_without_ids_is_found_by_its_last_batch() {
    let orders = topic("orders", 1, 50);
    let mut config = Config::loopback(1).with_topic(orders.clone());
    config.versions = source::Versions::kafka_2_1();
    let mut rig = Rig::without_ids(serve(config).expect("a source"), &[&orders], settings());
    rig.until_caught_up();
    rig.stop();
    rig.source.cluster().delete_topic("orders").expect("deletes");
    let other = TopicSpec::new("orders", 1, 90).with_batches(8, 20_000, 16);
    rig.source.cluster().add_topic(other).expect("adds");
    rig.start();
    rig.until("the fault", |status| {
        status.partitions[0].state == PartitionState::Faulted(FaultCode::Diverged)
    });
    assert_eq!(rig.partition("orders", 0).received, 800, "nothing was appended to the old log");
    rig.stop();
}

#[test]
fn a_topic_recreated_without_ids_while_no_connection_is_up_is_found() {
    let orders = topic("orders", 1, 50);
    let mut config = Config::loopback(1).with_topic(orders.clone());
    config.versions = source::Versions::kafka_2_1();
    let mut rig = Rig::without_ids(serve(config).expect("a source"), &[&orders], settings());
    rig.until_caught_up();
    let cluster = rig.source.cluster();
    cluster.inject(Target::fetches(), Fault::Close, None);
    rig.until("a source that is away", |status| {
        status.partitions[0].state == PartitionState::Retrying
    });
    let cluster = rig.source.cluster();
    cluster.delete_topic("orders").expect("deletes");
    let other = TopicSpec::new("orders", 1, 90).with_batches(8, 20_000, 16);
    cluster.add_topic(other).expect("adds");
    cluster.clear_faults();
    rig.until("the fault", |status| {
        status.partitions[0].state == PartitionState::Faulted(FaultCode::Diverged)
    });
    assert_eq!(rig.partition("orders", 0).received, 800, "nothing was appended to the old log");
    rig.stop();
}

#[test]
fn a_source_of_endless_empty_answers_is_asked_less_often() {
    let orders = topic("orders", 2, 50);
    let source = serve(Config::loopback(1).with_topic(orders.clone())).expect("a source");
    for partition in 0..2 {
        source.cluster().inject(Target::partition("orders", partition), Fault::Empty, None);
    }
    let mut rig = Rig::new(source, &[&orders], settings());
    rig.until("a fetch", |status| status.stats.fetches > 20);
    let before = rig.status().stats;
    std::thread::sleep(Duration::from_secs(2));
    let after = rig.status().stats;
    let fetches = after.fetches - before.fetches;
    assert!(fetches < 200, "{fetches} fruitless fetches in two seconds");
    rig.source.cluster().clear_faults();
    rig.until_caught_up();
    rig.stop();
    rig.assert_equal();
}

#[test]
fn batches_larger_than_a_fetch_are_copied_and_too_large_ones_named() {
    let large = TopicSpec::new("large", 2, 6).with_batches(3, 3 << 20, 2);
    let source = serve(Config::loopback(1).with_topic(large.clone())).expect("a source");
    let mut rig = Rig::new(source, &[&large], settings());
    rig.until_caught_up();
    rig.stop();
    rig.assert_equal();

    let huge = TopicSpec::new("huge", 1, 2).with_batches(3, 5 << 20, 2);
    let source = serve(Config::loopback(1).with_topic(huge.clone())).expect("a source");
    let mut rig = Rig::new(source, &[&huge], settings());
    rig.until("the fault", |status| {
        status.partitions[0].state == PartitionState::Faulted(FaultCode::BatchTooLarge)
    });
    assert_eq!(rig.partition("huge", 0).received, 0);
    rig.stop();
}

#[test]
fn every_lie_ends_in_a_named_state_or_a_new_connection() {
    let lies = [
        Fault::BatchLength(-1),
        Fault::BatchLength(i32::MAX),
        Fault::RepeatBatch,
        Fault::ReorderBatches,
        Fault::ShiftOffsets(-5),
        Fault::ShiftOffsets(1 << 40),
        Fault::RecordsLength(-7),
        Fault::RecordsLength(i32::MAX),
        Fault::HighWatermark(3),
        Fault::WrongPartition(77),
        Fault::CutRecords(10),
        Fault::ErrorCode(-1),
        Fault::ErrorCode(999),
    ];
    for lie in lies {
        let orders = topic("orders", 3, 40);
        let source = serve(Config::loopback(1).with_topic(orders.clone())).expect("a source");
        source.cluster().inject(Target::partition("orders", 1), lie.clone(), Some(3));
        let mut rig = Rig::new(source, &[&orders], settings());
        let cluster = rig.source.cluster();
        rig.until("three lies", |_| cluster.faults_applied() == 3);
        let healthy = |p: &PartitionStatus| p.key.partition == 1 || p.flushed == 640;
        rig.until("healthy neighbours", |status| status.partitions.iter().all(healthy));
        rig.source.cluster().clear_faults();
        for partition in rig.status().partitions {
            if let PartitionState::Faulted(_) = partition.state {
                assert!(partition.reason.is_some(), "{lie:?}");
                rig.tell(Command::Resume {
                    link: LINK.into(),
                    topics: Some(vec!["orders".into()]),
                });
            }
        }
        rig.until_caught_up();
        rig.stop();
        rig.assert_equal();
    }
}

#[test]
fn broken_frames_cost_a_connection_and_nothing_else() {
    let lies = [
        Fault::HalfFrameThenClose,
        Fault::WrongCorrelationId,
        Fault::FrameLength(-1),
        Fault::FrameLength(i32::MAX),
        Fault::Garbage,
        Fault::Close,
    ];
    for lie in lies {
        let orders = topic("orders", 3, 40);
        let source = serve(Config::loopback(1).with_topic(orders.clone())).expect("a source");
        source.cluster().inject(Target::fetches(), lie, Some(1));
        let mut rig = Rig::new(source, &[&orders], settings());
        rig.until_caught_up();
        assert_eq!(rig.source.cluster().faults_applied(), 1);
        rig.stop();
        rig.assert_equal();
    }
}

/// A batch does not name its partition, and another partition's is as valid: it can only be found
/// when the source tells the truth again.
#[test]
fn another_partitions_records_are_found_on_the_next_start() {
    let orders = topic("orders", 3, 40);
    let source = serve(Config::loopback(1).with_topic(orders.clone())).expect("a source");
    let lie = Fault::OtherPartition { partition: 2, offset: None };
    source.cluster().inject(Target::partition("orders", 1), lie, None);
    let mut rig = Rig::new(source, &[&orders], settings());
    rig.until_caught_up();
    rig.stop();
    rig.source.cluster().clear_faults();
    rig.start();
    rig.until("the fault", |status| {
        let states: Vec<_> = status.partitions.iter().map(|p| p.state).collect();
        let diverged = PartitionState::Faulted(FaultCode::Diverged);
        states == [PartitionState::Active, diverged, PartitionState::Active]
    });
    rig.stop();
}

/// A source's log may end with a gap, after its cleaner or an old failure: its high watermark
/// promises more than there is, and the copy has all of it nevertheless.
#[test]
fn a_log_that_ends_with_a_gap_is_caught_up() {
    let orders = topic("orders", 1, 40);
    let gappy = TopicSpec { content: Content::Given, ..TopicSpec::new("gappy", 1, 0) };
    let busy = topic("busy", 1, 0).with_growth(Growth {
        backlog_batches: 1,
        bytes_per_second: 4e5,
        batches_max: 4_000,
    });
    let topics = [&orders, &gappy, &busy];
    let config = topics.iter().fold(Config::loopback(1), |c, topic| c.with_topic((*topic).clone()));
    let source = serve(config).expect("a source");
    let cluster = source.cluster();
    let from = cluster.log("orders", 0).expect("it has it");
    let batch = |base_offset: i64, epoch: i32| {
        let mut bytes = Vec::new();
        from.write_batch(&from.batch_at(0).expect("a batch"), &mut bytes);
        bytes[..8].copy_from_slice(&base_offset.to_be_bytes());
        bytes[12..16].copy_from_slice(&epoch.to_be_bytes());
        bytes
    };
    let append =
        |base| cluster.append_batches("gappy", 0, &[batch(base, 0)], true).expect("appends");
    append(0);
    append(100);
    let epoch = cluster.lose_tail("gappy", 0, 100).expect("loses");
    let mut rig = Rig::new(source, &topics, settings());
    let of = |status: &ShardStatus, topic: &str| {
        status.partitions.iter().find(|p| &*p.key.topic == topic).expect("it is known").clone()
    };
    // Neighbours' records come in every answer; those of this one end with none.
    rig.until("a known lag", |status| {
        let p = of(status, "gappy");
        let ends = (p.source_end, p.source_records_end, p.received);
        p.caught_up_at_ms.is_some() && ends == (Some(100), Some(16), 16)
    });
    // What comes behind the gap is taken as ever.
    rig.source.cluster().append_batches("gappy", 0, &[batch(100, epoch)], true).expect("appends");
    rig.until_caught_up();
    rig.stop();
}
