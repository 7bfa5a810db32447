//! A source that contradicts itself about its offsets: on the simulator, one lie at a time.
//! Whatever it says ends in a named state and pauses that grow, moves and cuts nothing, and is over
//! with the lie.

mod world;

use std::time::Duration;

use ring::sim::Faults;
use shards::control::*;
use source::{Fault, Target, TopicSpec};
use world::{World, settings};

const MINUTE: Duration = Duration::from_secs(60);
const SECOND: Duration = Duration::from_secs(1);
const OUT_OF_RANGE: Fault = Fault::ErrorCode(1);
/// What a copy of `orders` has at first.
const RECORDS: i64 = 20 * 16;

fn orders(seed: u64, batches: u64) -> TopicSpec {
    TopicSpec::new("orders", 2, batches).with_batches(seed, 20_000, 16)
}

fn caught_up() -> World {
    let mut world = World::new(Faults::none(), &[orders(7, 20)], settings(), 16 << 20);
    world.until_caught_up(MINUTE);
    world
}

/// One batch more in each partition.
fn grow(world: &World) {
    for partition in 0..2 {
        world.cluster.append("orders", partition, 1).expect("appends");
    }
}

/// What a lasting lie has come to after a minute: waiting for its next try in nearly every look,
/// with a reason, and nothing moved. The neighbour goes on.
fn assert_named(world: &mut World, lie: &Fault) {
    let well = world.partition("orders", 0);
    grow(world);
    let (mut named, mut asked) = (0, world.cluster.faults_applied());
    for _ in 0..60 {
        world.sim.run_for(SECOND);
        let sick = world.partition("orders", 1);
        assert!(sick.log_start <= RECORDS && sick.received <= RECORDS, "{lie:?}: {sick:?}");
        named += usize::from(sick.state == PartitionState::Retrying && sick.reason.is_some());
    }
    asked = world.cluster.faults_applied() - asked;
    assert!((1..=40).contains(&asked), "{lie:?}: {asked} times in a minute");
    assert!(named >= 45, "{lie:?}: {named} of 60 looks: {:?}", world.partition("orders", 1));
    assert!(world.partition("orders", 0).received > well.received, "the neighbour stands still");
    let moved = |event: &Event| {
        matches!(event, Event::SourceGap { .. } | Event::Truncated { .. } | Event::Fault { .. })
    };
    assert!(!world.seen.iter().any(moved), "{lie:?}: {:?}", world.seen);
}

/// The lie is over: all has come, by itself, and nothing had moved.
fn assert_healed(world: &mut World, lie: &Fault) {
    world.cluster.clear_faults();
    grow(world);
    world.until_caught_up(20 * MINUTE);
    world.until("an active partition", MINUTE, |status| {
        status.partitions[1].state == PartitionState::Active
    });
    let well = world.partition("orders", 1);
    if world.settings.start != Start::Latest {
        assert_eq!(well.log_start, 0, "{lie:?}");
    }
}

fn offsets(earliest: Option<i64>, latest: Option<i64>) -> Fault {
    Fault::Offsets { earliest, latest }
}

fn lies(world: &World, fault: Fault, times: Option<u64>) {
    world.cluster.inject(Target::partition("orders", 1), fault, times);
}

/// Another topic of the same name that has grown past our end: as long as it has not been compared
/// nothing of it is taken, however often the question fails.
#[test]
fn a_last_batch_said_to_be_out_of_range_is_compared_all_the_same() {
    for times in [1, 2, 5] {
        let mut world = World::before_ids(&[orders(7, 20)], settings());
        world.until_caught_up(MINUTE);
        world.pause_and_resume("orders", |world| {
            world.cluster.delete_topic("orders").expect("deletes");
            world.cluster.add_topic(orders(8, 41)).expect("adds");
            lies(world, OUT_OF_RANGE, Some(times));
        });
        world.until("the fault", MINUTE, |status| {
            status.partitions[1].state == PartitionState::Faulted(FaultCode::Diverged)
        });
        assert_eq!(world.cluster.faults_applied(), times);
        assert_eq!(world.partition("orders", 1).received, RECORDS, "two logs are mixed");
    }
}

/// As long as the source says so it is asked seldom, and is named; what grows meanwhile comes when
/// the lie ends.
#[test]
fn a_source_that_says_out_of_range_again_and_again_is_asked_seldom_and_named() {
    let mut world = caught_up();
    lies(&world, OUT_OF_RANGE, None);
    grow(&world);
    world.until("the lie", MINUTE, |s| s.partitions[1].state == PartitionState::Retrying);
    let before = world.cluster.faults_applied();
    let (sick, well) = (world.partition("orders", 1), world.partition("orders", 0));
    let mut named = 0;
    for _ in 0..60 {
        grow(&world);
        world.sim.run_for(SECOND);
        let now = world.partition("orders", 1);
        assert_eq!((now.log_start, now.received), (0, sick.received));
        if now.state == PartitionState::Retrying {
            assert!(now.reason.expect("a reason").contains("out of range"));
            assert!(now.retry_at_ms.is_some());
            named += 1;
        }
    }
    let asked = world.cluster.faults_applied() - before;
    assert!((3..=8).contains(&asked), "{asked} times in a minute");
    assert!(named >= 50, "{named} of 60 looks");
    assert!(world.partition("orders", 0).received > well.received, "the neighbour stands still");
    world.cluster.clear_faults();
    world.until_caught_up(2 * MINUTE);
    assert_eq!(world.partition("orders", 1).state, PartitionState::Active);
}

/// The last batch of another log may lie above what is committed there by now.
#[test]
fn nothing_is_taken_while_the_last_batch_cannot_be_compared() {
    let mut world = World::before_ids(&[orders(7, 20)], settings());
    world.until_caught_up(MINUTE);
    world.pause_and_resume("orders", |world| {
        world.cluster.delete_topic("orders").expect("deletes");
        world.cluster.add_topic(orders(8, 41)).expect("adds");
        world.cluster.hold_high_watermark("orders", 1, Some(64)).expect("holds");
    });
    world.until("a named state", MINUTE, |status| {
        let p = &status.partitions[1];
        p.state == PartitionState::Retrying && p.reason.is_some()
    });
    world.cluster.hold_high_watermark("orders", 1, None).expect("lets go");
    world.until("the fault", MINUTE, |status| {
        status.partitions[1].state == PartitionState::Faulted(FaultCode::Diverged)
    });
    assert_eq!(world.partition("orders", 1).received, RECORDS, "two logs are mixed");
}

#[test]
fn a_log_start_or_end_that_cannot_be_moves_nothing() {
    let gap = RECORDS + 16;
    for (lie, out_of_range) in [
        (offsets(Some(i64::MAX), None), None),
        (offsets(Some(i64::MIN), None), None),
        (offsets(None, Some(-1)), None),
        (offsets(None, Some(3)), None),
        (offsets(None, Some(i64::MAX)), None),
        (offsets(Some(i64::MAX), Some(i64::MAX)), None),
        // It begins there by one answer and not by the other.
        (offsets(Some(gap), None), None),
        (offsets(Some(gap), None), Some(20)),
    ] {
        for on_source_gap in [OnSourceGap::Continue, OnSourceGap::Fault] {
            let settings = LinkSettings { on_source_gap, allow_truncation: true, ..settings() };
            let mut world = World::new(Faults::none(), &[orders(7, 20)], settings, 16 << 20);
            world.until_caught_up(MINUTE);
            lies(&world, OUT_OF_RANGE, out_of_range);
            lies(&world, lie.clone(), None);
            if out_of_range.is_some() {
                // Fetches from our end, and not those from where the log is said to begin.
                world.cluster.clear_faults();
                for _ in 0..8 {
                    lies(&world, OUT_OF_RANGE, Some(1));
                    lies(&world, lie.clone(), Some(1));
                    grow(&world);
                    world.sim.run_for(20 * SECOND);
                    let p = world.partition("orders", 1);
                    assert_eq!(p.log_start, 0, "{lie:?}");
                }
                assert!(world.cluster.faults_applied() >= 16);
            } else {
                assert_named(&mut world, &lie);
            }
            assert_healed(&mut world, &lie);
        }
    }
}

#[test]
fn a_new_partition_begins_nowhere_by_a_lie() {
    let starts = [Start::Earliest, Start::Latest, Start::TimestampMs(1)];
    let time = Fault::OffsetForTime;
    for (lie, wrong) in [
        (offsets(Some(i64::MAX), None), [true; 3]),
        (offsets(Some(-7), None), [true; 3]),
        (offsets(None, Some(-7)), [true; 3]),
        (time(i64::MAX), [false, false, true]),
        (time(-7), [false, false, true]),
        // The first fetch says where the log begins, too.
        (offsets(Some(RECORDS / 2), None), [false, false, true]),
        // It contradicts nothing; that nothing is there shows when it is asked for.
        (offsets(None, Some(i64::MAX)), [false, true, false]),
        (Fault::RefuseQuestions(1), [true; 3]),
        (Fault::RefuseQuestions(999), [true; 3]),
    ] {
        for (start, wrong) in starts.into_iter().zip(wrong) {
            let settings = LinkSettings { start, ..settings() };
            let target = [(Target::partition("orders", 1), lie.clone())];
            let mut world = World::lying(&target, &[orders(7, 20)], settings);
            if wrong {
                world.until("a named state", MINUTE, |status| {
                    let p = &status.partitions[1];
                    p.state == PartitionState::Retrying && p.reason.is_some()
                });
                world.sim.run_for(MINUTE);
                assert_eq!(world.partition("orders", 1).state, PartitionState::Retrying);
            }
            assert_healed(&mut world, &lie);
            let begun = world.partition("orders", 1).log_start;
            let latest = (RECORDS..=RECORDS + 16).contains(&begun);
            assert_eq!(latest, start == Start::Latest, "{lie:?}: {begun}");
        }
    }
}

#[test]
fn leader_epochs_that_part_by_a_lie_cut_nothing() {
    let ends = |epoch, end_offset| Fault::EpochEnd { epoch, end_offset };
    for (lie, allow_truncation) in [
        (ends(0, 32), true),
        (ends(0, 32), false),
        (ends(0, 0), true),
        (ends(0, -1), true),
        (ends(7, 32), true),
        (ends(i32::MAX, i64::MAX), true),
        (ends(-1, 32), true),
        (ends(0, i64::MIN), true),
        (Fault::RefuseQuestions(1), true),
        (Fault::RefuseQuestions(999), true),
    ] {
        let settings = LinkSettings { allow_truncation, ..settings() };
        let mut world = World::new(Faults::none(), &[orders(7, 20)], settings, 16 << 20);
        world.until_caught_up(MINUTE);
        world.pause_and_resume("orders", |world| lies(world, lie.clone(), None));
        assert_named(&mut world, &lie);
        assert_eq!(world.partition("orders", 1).received, RECORDS, "{lie:?}");
        assert_healed(&mut world, &lie);
    }
    // An end beyond ours parts from nothing; one of no epoch at all only says nothing.
    for lie in [ends(0, i64::MAX), ends(-1, -1)] {
        let mut world = caught_up();
        world.pause_and_resume("orders", |world| lies(world, lie.clone(), None));
        grow(&world);
        world.until_caught_up(MINUTE);
        assert!(world.cluster.faults_applied() > 0);
    }
}

/// Nor where two answers more agree with it: the copy's last batch is looked at before.
#[test]
fn an_end_below_the_copys_by_a_lie_cuts_nothing() {
    for end_offset in [0, 32, RECORDS - 16] {
        let settings = LinkSettings { allow_truncation: true, ..settings() };
        let mut world = World::new(Faults::none(), &[orders(7, 20)], settings, 16 << 20);
        world.until_caught_up(MINUTE);
        lies(&world, offsets(None, Some(RECORDS - 1)), Some(1));
        lies(&world, Fault::EpochEnd { epoch: 0, end_offset }, Some(1));
        lies(&world, OUT_OF_RANGE, Some(1));
        grow(&world);
        world.until_caught_up(MINUTE);
        assert_eq!(world.cluster.faults_applied(), 3);
        let cut = |event: &Event| matches!(event, Event::Truncated { .. });
        assert!(!world.seen.iter().any(cut), "{end_offset}: {:?}", world.seen);
    }
}

/// The copy's last batch is said to be out of range, and the log to begin behind it.
#[test]
fn a_last_batch_that_is_deleted_by_a_lie_hides_nothing() {
    for start in [RECORDS - 5, RECORDS] {
        let mut world = caught_up();
        world.pause_and_resume("orders", |world| {
            // One fetch waits yet, of before.
            lies(world, OUT_OF_RANGE, Some(2));
            lies(world, offsets(Some(start), None), Some(1));
        });
        grow(&world);
        world.until_caught_up(MINUTE);
        assert_eq!(world.cluster.faults_applied(), 3);
        let well = world.partition("orders", 1);
        assert_eq!((well.log_start, well.state), (0, PartitionState::Active), "{start}");
    }
}

/// In an answer that lets us go on, a log start beyond our end is none.
#[test]
fn a_log_start_that_a_fetch_tells_and_refutes_moves_nothing() {
    for start in [i64::MAX, RECORDS + 1_000, -9] {
        let mut world = caught_up();
        let lie = Fault::LogStart(start);
        lies(&world, lie.clone(), None);
        grow(&world);
        world.sim.run_for(10 * SECOND);
        assert!(world.cluster.faults_applied() > 0);
        assert_eq!(world.partition("orders", 1).log_start, 0);
        world.pause_and_resume("orders", |_| {});
        world.sim.run_for(10 * SECOND);
        assert_eq!(world.partition("orders", 1).log_start, 0);
        assert_healed(&mut world, &lie);
    }
}

/// A log start within the copy is believed once the source says it when it is asked for it, too:
/// what lies below is hidden for good, and its files go.
#[test]
fn a_log_start_within_the_copy_by_a_lie_hides_nothing() {
    let lie = Fault::LogStart(RECORDS / 2);
    let mut world = caught_up();
    lies(&world, lie.clone(), None);
    grow(&world);
    world.until_caught_up(MINUTE);
    world.pause_and_resume("orders", |_| {});
    world.sim.run_for(10 * SECOND);
    assert!(world.cluster.faults_applied() > 1);
    assert_eq!(world.partition("orders", 1).log_start, 0);
    assert_healed(&mut world, &lie);
    // What is true is followed, also where nothing else is new.
    world.cluster.delete_records("orders", 1, RECORDS / 2).expect("deletes");
    world.until("its start", 10 * SECOND, |status| status.partitions[1].log_start == RECORDS / 2);
}

/// What is not promised (SPECIFICATION.md): a batch that a source leaves out within an answer looks
/// like one that its cleaner took, and no later look finds it.
#[test]
fn a_batch_left_out_passes_for_a_gap() {
    let target = [(Target::partition("orders", 1), Fault::DropBatch)];
    let mut world = World::lying(&target, &[orders(7, 20)], settings());
    world.until_caught_up(MINUTE);
    assert!(world.cluster.faults_applied() > 0);
    world.cluster.clear_faults();
    world.pause_and_resume("orders", |_| {});
    grow(&world);
    world.until_caught_up(MINUTE);
    let (hurt, well) = (world.partition("orders", 1), world.partition("orders", 0));
    assert_eq!((hurt.state, hurt.received), (PartitionState::Active, well.received));
    assert!(hurt.bytes_received <= well.bytes_received - 20_000, "it was found after all");
}

/// Each lie lasts, and has come to its end by then: in a named state, or in what is true in spite
/// of it. It costs the neighbours nothing and no more than the budget.
#[test]
fn every_lasting_lie_ends_in_a_named_state() {
    let turned = |byte, bit| Fault::FlipBit { byte, bit };
    for lie in [
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
        turned(3, 1),
        turned(7, 0),
        turned(7, 4),
        turned(14, 0),
        Fault::LeaderEpochBack(1),
        Fault::LeaderEpochBack(9),
        Fault::Empty,
    ] {
        let memory_bytes = 16 << 20;
        let mut topic = orders(7, 20);
        topic.leader_epoch = 5;
        let target = [(Target::partition("orders", 1), lie.clone())];
        let mut world = World::lying(&target, &[topic], settings());
        world.sim.run_for(3 * MINUTE);
        let applied = world.cluster.faults_applied();
        let (sick, well) = (world.partition("orders", 1), world.partition("orders", 0));
        let told = format!("{lie:?}, {applied} times: {sick:?}");
        // Paced, even where nothing is wrong with an answer but that it brings nothing.
        assert!((1..=800).contains(&applied), "{told}");
        let waits = matches!(sick.state, PartitionState::Retrying | PartitionState::Faulted(_));
        let named = waits && sick.reason.is_some();
        match lie {
            // Nobody can know where in the frame the neighbours' records are.
            Fault::RecordsLength(_) => assert!(named && well.reason.is_some(), "{told}"),
            // Silence, in a session, is no trouble; but no lag is known.
            Fault::Empty | Fault::WrongPartition(_) => {
                assert!(named || sick.caught_up_at_ms.is_none(), "{told}");
            }
            // It looks like a log that ends with a gap (SPECIFICATION.md).
            Fault::CutRecords(_) => assert_eq!(sick.received, 0, "{told}"),
            // Found where the last batch is compared, at the next start at the latest.
            Fault::LeaderEpochBack(_) => assert!(sick.received > 0, "{told}"),
            _ => assert!(named, "{told}"),
        }
        if !matches!(lie, Fault::RecordsLength(_)) {
            assert_eq!((well.state, well.flushed), (PartitionState::Active, RECORDS), "{told}");
        }
        assert!(world.status().stats.memory_used <= memory_bytes, "{told}");
        world.cluster.clear_faults();
        if sick.received == 0 {
            world.resume("orders");
            world.until_caught_up(10 * MINUTE);
        } else {
            world.pause_and_resume("orders", |_| {});
            world.until("the fault", 10 * MINUTE, |status| {
                status.partitions[1].state == PartitionState::Faulted(FaultCode::Diverged)
            });
        }
    }
}
