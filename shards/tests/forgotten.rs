//! A copy that a start finds damaged, of records that the source has deleted: it goes on without
//! them, once the source has said so in two ways, and not before.

mod world;

use std::path::PathBuf;
use std::time::Duration;

use ring::sim::Faults;
use shards::control::*;
use source::{Fault, Target, TopicSpec};
use world::{DATA, LINK, World, settings};

const MINUTE: Duration = Duration::from_secs(60);
const BATCH: i64 = 16;
/// What the copy has when it is damaged.
const END: i64 = 20 * BATCH;
const OUT_OF_RANGE: Fault = Fault::ErrorCode(1);

fn segment() -> PathBuf {
    PathBuf::from(DATA).join(LINK).join("orders-0/00000000000000000000.log")
}

fn flushed(on_source_gap: OnSourceGap) -> World {
    let orders = TopicSpec::new("orders", 1, 20).with_batches(7, 20_000, BATCH as usize);
    let settings = LinkSettings { on_source_gap, ..settings() };
    let mut world = World::new(Faults::none(), &[orders], settings, 16 << 20);
    world.until_caught_up(MINUTE);
    world.until("a flush", MINUTE, |status| status.partitions[0].flushed == END);
    world
}

/// The shard dies, and the copy's only segment is gone when it comes back.
fn lose(world: &mut World) {
    let machine = world.machine();
    world.restart(|sim| sim.disk(machine, |disk| disk.lose_file(segment()).expect("it is there")));
}

/// It stands still for ten minutes, with this in its reason.
fn assert_waits(world: &mut World, why: &str) {
    world.until("a reason", MINUTE, |status| {
        status.partitions[0].reason.as_ref().is_some_and(|reason| reason.contains(why))
    });
    for _ in 0..10 {
        world.sim.run_for(MINUTE);
        let p = world.partition("orders", 0);
        assert_eq!((p.state, p.log_start, p.received), (PartitionState::Corrupt, 0, END));
        assert!(p.reason.expect("a reason").contains(why));
    }
}

fn delete_before(world: &World, offset: i64) {
    world.cluster.delete_records("orders", 0, offset).expect("deletes");
}

#[test]
fn a_copy_goes_on_once_the_source_has_deleted_all_that_is_lost() {
    let mut world = flushed(OnSourceGap::Fault);
    delete_before(&world, END - BATCH);
    lose(&mut world);
    world.cluster.append("orders", 0, 5).expect("appends");
    assert_waits(&mut world, "this is waited for");
    delete_before(&world, END);
    world.until_caught_up(10 * MINUTE);
    let p = world.partition("orders", 0);
    let end = END + 5 * BATCH;
    assert_eq!((p.state, p.log_start, p.received), (PartitionState::Active, END, end));
    // Nor is anything amiss after another start.
    world.until("a flush", MINUTE, |status| status.partitions[0].flushed == end);
    world.restart(|_| ());
    world.cluster.append("orders", 0, 5).expect("appends");
    world.until_caught_up(MINUTE);
    assert_eq!(world.partition("orders", 0).state, PartitionState::Active);
}

#[test]
fn a_damaged_batch_that_the_source_has_deleted_keeps_nothing_back() {
    let mut world = flushed(OnSourceGap::Fault);
    delete_before(&world, 6 * BATCH + 4);
    let machine = world.machine();
    world.restart(|sim| {
        sim.disk(machine, |disk| {
            let bytes = disk.read_file(segment()).expect("a segment");
            let mut at = 0;
            for _ in 0..5 {
                let length: [u8; 4] = bytes[at + 8..at + 12].try_into().expect("four bytes");
                at += 12 + u32::from_be_bytes(length) as usize;
            }
            disk.flip_bit(segment(), at as u64 + 100, 3);
        });
    });
    world.cluster.append("orders", 0, 5).expect("appends");
    world.until_caught_up(MINUTE);
    // As long as the segment is there the damage is named.
    let p = world.partition("orders", 0);
    assert_eq!((p.state, p.log_start), (PartitionState::Corrupt, 6 * BATCH + 4), "{p:?}");
    assert!(p.reason.expect("a reason").contains("lies below the log start, 100"));
    // Once it is cut loose nothing is promised of repairs.
    let topics = vec!["orders".into()];
    world.ask(|reply| Command::Seal { link: "prod".into(), topics, reply });
    let p = world.partition("orders", 0);
    assert!(p.reason.expect("a reason").contains("it is not mended any more"));
    assert_eq!(p.retry_at_ms, None);
}

/// What lies between the copy's end and the source's start is a gap, and decided as one.
#[test]
fn a_start_of_the_source_beyond_the_end_of_what_is_lost_is_a_gap() {
    for on_source_gap in [OnSourceGap::Continue, OnSourceGap::Fault] {
        let mut world = flushed(on_source_gap);
        let (machine, cluster) = (world.machine(), world.cluster.clone());
        world.restart(|sim| {
            sim.disk(machine, |disk| disk.lose_file(segment()).expect("it is there"));
            cluster.append("orders", 0, 5).expect("appends");
            cluster.delete_records("orders", 0, END + 2 * BATCH).expect("deletes");
        });
        let lost = END + 2 * BATCH;
        match on_source_gap {
            OnSourceGap::Continue => {
                world.until_caught_up(10 * MINUTE);
                let p = world.partition("orders", 0);
                assert_eq!((p.state, p.log_start), (PartitionState::Active, lost));
            }
            OnSourceGap::Fault => {
                world.until("the fault", 10 * MINUTE, |status| {
                    let state = status.partitions[0].state;
                    state == PartitionState::Faulted(FaultCode::SourceGap)
                });
                assert_eq!(world.partition("orders", 0).log_start, END);
            }
        }
        let gap = |event: &Event| {
            matches!(event, Event::SourceGap { lost_from, lost_to, .. }
                if (*lost_from, *lost_to) == (END, lost))
        };
        assert!(world.seen.iter().any(gap), "{:?}", world.seen);
    }
}

/// How often a fetch is said to be out of range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lies {
    Always,
    Once,
    /// And a fetch from where the log is said to begin repeats that.
    OnceAndThere,
}

/// One answer that contradicts another moves nothing, and what is there comes when the lie ends.
#[test]
fn a_lie_about_the_start_forgets_nothing() {
    use Lies::{Always, Once, OnceAndThere};
    let start = |earliest, latest| Fault::Offsets { earliest: Some(earliest), latest };
    let beyond = END + 100;
    for (lie, how, why) in [
        // A fetch there says otherwise.
        (start(END, None), Once, "goes from 0 to"),
        (start(END, None), Always, "is out of it, too"),
        // No log is like that.
        (start(beyond, None), Always, "goes from"),
        (start(-1, None), Always, "goes from"),
        (start(END, Some(END - 1)), Always, "goes from"),
        (start(END, Some(END - 1)), OnceAndThere, "goes from"),
        (start(i64::MAX, Some(i64::MAX)), Always, "is out of it, too"),
        // It has what it said to be out of its range.
        (start(0, None), Always, "goes from 0 to"),
    ] {
        let mut world = flushed(OnSourceGap::Continue);
        let (machine, cluster) = (world.machine(), world.cluster.clone());
        world.restart(|sim| {
            sim.disk(machine, |disk| disk.lose_file(segment()).expect("it is there"));
            // The fetch of the one that died is not to be what is lied to.
            sim.run_for(MINUTE);
            let partition = Target::partition("orders", 0);
            cluster.inject(partition.clone(), lie.clone(), None);
            cluster.inject(partition.clone(), OUT_OF_RANGE, (how != Always).then_some(1));
            if how == OnceAndThere {
                cluster.inject(partition, Fault::LogStart(END), None);
            }
        });
        if how == Always {
            assert_waits(&mut world, why);
        } else {
            world.until("a try", MINUTE, |status| {
                let p = &status.partitions[0];
                let named = p.reason.as_ref().is_some_and(|reason| reason.contains(why));
                assert_eq!((p.log_start, p.received), (0, END));
                named
            });
        }
        world.cluster.clear_faults();
        world.until("the repair", 20 * MINUTE, |status| {
            status.partitions[0].state == PartitionState::Active
        });
        let p = world.partition("orders", 0);
        assert_eq!((p.log_start, p.received), (0, END), "{lie:?}");
        assert_eq!(world.status().stats.damages_repaired, 1);
    }
}
