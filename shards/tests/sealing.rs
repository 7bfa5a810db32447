//! Damage that is found when a segment is sealed.

mod world;

use std::path::Path;
use std::time::Duration;

use shards::control::*;
use source::TopicSpec;
use world::{World, settings};

const MINUTE: Duration = Duration::from_secs(60);

/// A bit turned, since the log was opened, in what was written before: nobody reads it until its
/// segment is sealed.
fn damaged_when_sealed() -> World {
    let orders = TopicSpec::new("orders", 1, 20).with_batches(7, 20_000, 16);
    let faults = ring::sim::Faults::none();
    let mut world = World::new(faults, &[orders], settings(), 16 << 20);
    world.until_caught_up(MINUTE);
    let partitions = vec![world.key("orders", 0)];
    world.ask(|reply| Command::Release { partitions, reply });
    world.assign(500_000);
    world.until_caught_up(MINUTE);
    let path = Path::new("/data/prod/orders-0/00000000000000000000.log");
    world.sim.disk(world.machine(), |disk| disk.flip_bit(path, 200_000, 3));
    world
}

/// The source still has it.
#[test]
fn what_sealing_finds_damaged_is_mended() {
    let mut world = damaged_when_sealed();
    // One batch more than the segment takes, and then nothing that would ask for more.
    world.cluster.append("orders", 0, 6).expect("appends");
    world.until("the repair", 10 * MINUTE, |status| status.stats.damages_repaired == 1);
    world.until_caught_up(MINUTE);
    let seals = Path::new("/data/.understudy/seals/prod/orders-0");
    let sealed = world.sim.disk(world.machine(), |disk| disk.files(seals)).expect("a folder");
    assert!(!sealed.is_empty(), "what is whole again is sealed");
}

/// The source has deleted it: the log goes on behind it all the same.
#[test]
fn what_sealing_finds_damaged_and_the_source_has_deleted_stops_nothing() {
    let mut world = damaged_when_sealed();
    world.cluster.delete_records("orders", 0, 300).expect("trims");
    world.cluster.append("orders", 0, 6).expect("appends");
    world.until("the damage", MINUTE, |status| status.stats.damages_found == 1);
    world.cluster.append("orders", 0, 30).expect("appends");
    world.until_caught_up(MINUTE);
    world.until("a flush", MINUTE, |status| {
        status.partitions.iter().all(|p| p.flushed == p.received)
    });
    let status = world.status();
    assert_eq!(status.stats.damages_repaired, 0);
    assert_eq!(status.partitions[0].state, PartitionState::Corrupt);
    // What else it is, is said beside.
    let topics = Some(vec!["orders".into()]);
    world.ask(|reply| Command::Pause { link: "prod".into(), topics, reply });
    let reason = world.partition("orders", 0).reason.expect("a reason");
    assert!(reason.contains("besides, it is PAUSED"), "{reason}");
}

/// What was found damaged while appending went on there is a range of batches; once the segment is
/// sealed, damage is a range of its strides. It is looked for again, and mended with the rest.
#[test]
fn what_was_found_damaged_before_its_segment_was_sealed_is_mended() {
    let orders = TopicSpec::new("orders", 1, 1).with_batches(7, 20_000, 16);
    let mut world = World::new(ring::sim::Faults::none(), &[orders], settings(), 16 << 20);
    world.until_caught_up(MINUTE);
    let partitions = vec![world.key("orders", 0)];
    world.ask(|reply| Command::Release { partitions, reply });
    world.assign(1_500_000);
    let grow = |world: &mut World| {
        for _ in 0..10 {
            world.cluster.append("orders", 0, 10).expect("appends");
            world.until_caught_up(MINUTE);
        }
        world.until("a flush", MINUTE, |status| {
            status.partitions.iter().all(|p| p.flushed == p.received)
        });
    };
    grow(&mut world);
    let paths = world.segments(0);
    assert_eq!(paths.len(), 2);
    for (path, at) in paths.iter().zip([300_000, 30_000]) {
        world.sim.disk(world.machine(), |disk| disk.flip_bit(path, at, 3));
    }
    // The first takes its time, in which the second segment is sealed.
    let backfill_rate_limit = Some(50_000);
    let settings = LinkSettings { backfill_rate_limit, ..settings() };
    world.tell(Command::Link { link: world.key("orders", 0).link, settings });
    let every = Duration::from_secs(3600);
    let first_after = Duration::ZERO;
    world.tell(Command::Verify(VerifySettings { bytes_per_second: 0, first_after, every }));
    world.until("damage", MINUTE, |status| status.stats.damages_found == 2);
    grow(&mut world);
    assert!(world.segments(0).len() > 2);
    assert_eq!(world.status().stats.damages_repaired, 0);
    world.until("both repairs", 10 * MINUTE, |status| {
        status.stats.damages_repaired == 2
            && status.partitions.iter().all(|p| p.state == PartitionState::Active)
    });
}

/// What the source has deleted stays damaged; what it still has is looked at all the same.
#[test]
fn what_sealing_finds_beside_what_is_gone_is_mended() {
    let orders = TopicSpec::new("orders", 1, 20).with_batches(7, 20_000, 16);
    let mut world = World::new(ring::sim::Faults::none(), &[orders], settings(), 16 << 20);
    world.until_caught_up(MINUTE);
    let reassign = |world: &mut World, between: &dyn Fn(&World)| {
        let partitions = vec![world.key("orders", 0)];
        world.ask(|reply| Command::Release { partitions, reply });
        between(world);
        world.assign(500_000);
        world.until_caught_up(MINUTE);
    };
    reassign(&mut world, &|_| {});
    world.cluster.append("orders", 0, 20).expect("appends");
    world.until_caught_up(MINUTE);
    reassign(&mut world, &|world| {
        let first = world.segments(0).remove(0);
        world.sim.disk(world.machine(), |disk| disk.flip_bit(&first, 30_000, 3));
        world.cluster.delete_records("orders", 0, 160).expect("deletes");
    });
    let (first_after, every) = (Duration::ZERO, Duration::from_secs(7 * 24 * 3600));
    world.tell(Command::Verify(VerifySettings { bytes_per_second: 0, first_after, every }));
    world.until("what is gone", 10 * MINUTE, |status| {
        status.partitions[0].reason.as_ref().is_some_and(|reason| reason.contains("not repaired"))
    });
    let last = world.segments(0).pop().expect("some");
    world.sim.disk(world.machine(), |disk| disk.flip_bit(&last, 30_000, 3));
    world.cluster.append("orders", 0, 40).expect("appends");
    world.until("the repair", 10 * MINUTE, |status| status.stats.damages_repaired == 1);
    world.until_caught_up(MINUTE);
}
