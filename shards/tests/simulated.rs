//! One shard on the simulator: what needs links of a known length, disks that fail or clocks that
//! jump.

mod world;

use std::path::PathBuf;
use std::time::Duration;

use ring::sim::Faults;
use shards::control::*;
use source::{Fault, Target, TopicSpec};
use world::{World, settings};

const MINUTE: Duration = Duration::from_secs(60);
const SECOND: Duration = Duration::from_secs(1);
const MANY: i32 = 800;

fn topic(name: &str, partitions: i32, batches: u64) -> TopicSpec {
    TopicSpec::new(name, partitions, batches).with_batches(7, 20_000, 16)
}

/// A shard that has all of `orders`: so many partitions of 20 batches.
fn caught_up(partitions: i32) -> World {
    let orders = topic("orders", partitions, 20);
    let mut world = World::new(Faults::none(), &[orders], settings(), 16 << 20);
    world.until_caught_up(MINUTE);
    world
}

/// One more, of two partitions, whose disk takes no write any more: the second has noticed.
fn with_a_failed_log() -> World {
    let mut world = caught_up(2);
    let mut faults = Faults::none();
    faults.disk.write_error_ppm = 1_000_000;
    world.sim.set_faults(faults);
    world.cluster.append("orders", 1, 2).expect("appends");
    world.until("the failure", MINUTE, |status| status.partitions.iter().any(has_failed));
    world
}

fn has_failed(partition: &PartitionStatus) -> bool {
    partition.state == PartitionState::Faulted(FaultCode::LocalLog)
}

/// A link with so long a way there and back, and 100 KiB on the way at most per connection.
fn long_link(round_trip: Duration) -> Faults {
    let mut faults = Faults::none();
    faults.network.delay = round_trip / 2..round_trip / 2 + Duration::from_micros(100);
    faults.network.window_bytes = 100 << 10;
    faults.steps_max = u64::MAX;
    faults
}

/// How long a backlog takes over such a link, with so many connections at most.
fn copy_over(round_trip: Duration, partitions: i32, batches: u64, connections_max: u32) -> World {
    let orders = TopicSpec::new("orders", partitions, batches).with_batches(7, 100_000, 100);
    let settings = LinkSettings { connections_max, ..settings() };
    World::new(long_link(round_trip), &[orders], settings, 64 << 20)
}

#[test]
fn a_backlog_of_many_partitions_fills_a_long_link_and_lets_it_go() {
    let round_trip = Duration::from_millis(100);
    let (partitions, batches) = (48, 16);
    let mut two = copy_over(round_trip, partitions, batches, 3);
    let slow = two.until_caught_up(10 * MINUTE);
    let mut many = copy_over(round_trip, partitions, batches, 33);
    let fast = many.until_caught_up(10 * MINUTE);
    println!("two: {slow:?}, {}; many: {fast:?}, {}", two.connections_peak, many.connections_peak);
    assert!(many.connections_peak > 8, "{} connections", many.connections_peak);
    assert!(two.connections_peak <= 3, "{} connections", two.connections_peak);
    assert!(fast * 2 < slow, "{fast:?} with many, {slow:?} with two");
    many.until("few connections", MINUTE, |status| {
        status.connections.iter().all(|(_, count)| *count == 1)
    });
    many.cluster.append("orders", 3, 2).expect("appends");
    many.until_caught_up(MINUTE);
}

/// Over so slow a connection an answer takes seconds: what it brings must count before its end.
#[test]
fn a_very_long_link_gets_many_connections_too() {
    let mut many = copy_over(Duration::from_millis(400), 48, 32, 33);
    let took = many.until_caught_up(10 * MINUTE);
    println!("{took:?} with {}", many.connections_peak);
    assert!(many.connections_peak > 24, "{} connections", many.connections_peak);
    assert!(took < MINUTE, "{took:?}: with two it takes 150 s");
}

/// Many connections, each of which would ask for more than its share of little memory.
#[test]
fn answers_are_allowed_no_more_than_is_reserved_for_them() {
    let memory_bytes = 4 << 20;
    let orders = TopicSpec::new("orders", 48, 32).with_batches(7, 100_000, 100);
    let settings = LinkSettings { connections_max: 17, ..settings() };
    let link = long_link(Duration::from_millis(100));
    let mut world = World::new(link, &[orders], settings, memory_bytes);
    world.until_caught_up(10 * MINUTE);
    let peak = world.allowed_bytes_peak();
    println!("{} connections, {peak} bytes", world.connections_peak);
    assert!(world.connections_peak > 4, "{} connections", world.connections_peak);
    assert!(peak > memory_bytes / 4, "{peak} bytes: too little to tell");
    assert!(peak <= memory_bytes / 4 * 3, "{peak} bytes were asked for, reserved are fewer");
}

/// Its fetcher may have asked where it begins, and hear of it only then: nobody would own that log.
#[test]
fn a_partition_that_is_deleted_before_it_begins_can_be_made_again() {
    for after_ms in (0..800).step_by(20) {
        let link = long_link(Duration::from_millis(100));
        let mut world = World::new(link, &[topic("orders", 2, 2)], settings(), 16 << 20);
        world.sim.run_for(Duration::from_millis(after_ms));
        let partitions = vec![world.key("orders", 0), world.key("orders", 1)];
        let deleted = world.ask(|reply| Command::Delete { partitions, reply });
        assert!(deleted.iter().all(Result::is_ok), "after {after_ms} ms: {deleted:?}");
        world.assign(64 << 20);
        world.until_caught_up(MINUTE);
    }
}

/// At any moment: when its fetcher has been given a partition while an answer for another arrives,
/// in the midst of that answer, when a write is under way.
#[test]
fn a_shard_that_is_killed_leaves_no_memory_behind() {
    for steps in 0..60 {
        let topics = [topic("orders", 1, 20), topic("bills", 1, 20)];
        let mut world = World::new(Faults::none(), &topics, settings(), 16 << 20);
        world.until_caught_up(MINUTE);
        let orders = || Some(vec!["orders".into()]);
        world.ask(|reply| Command::Pause { link: "prod".into(), topics: orders(), reply });
        world.cluster.append("bills", 0, 20).expect("appends");
        (0..steps).for_each(|_| assert!(world.sim.step()));
        world.resume("orders");
        (0..4).for_each(|_| assert!(world.sim.step()));
        world.sim.kill(world.executor);
        assert_eq!(world.sim.arenas_of_the_dead(), 0, "after {steps} steps");
    }
}

#[test]
fn a_failed_log_is_opened_again_when_its_time_has_come() {
    let mut world = with_a_failed_log();
    // Tries do not help; pauses between them grow, up to minutes.
    world.sim.run_for(10 * MINUTE);
    let sick = world.partition("orders", 1);
    assert!(has_failed(&sick) && sick.reason.is_some(), "{sick:?}");
    world.sim.set_faults(Faults::none());
    world.until_caught_up(10 * MINUTE);
    let well = world.partition("orders", 1);
    assert_eq!((well.state, well.received), (PartitionState::Active, 22 * 16));
}

#[test]
fn a_failed_log_is_opened_at_once_when_it_is_resumed() {
    let mut world = with_a_failed_log();
    world.sim.run_for(10 * MINUTE);
    world.sim.set_faults(Faults::none());
    let now_ms = world.sim.enter(world.executor, ring::wall_ms);
    let next_ms = world.partition("orders", 1).retry_at_ms;
    if next_ms.is_some_and(|at_ms| at_ms - now_ms < 10_000) {
        panic!("the pause is too short to tell: {next_ms:?}, {now_ms}");
    }
    world.resume("orders");
    let took = world.until_caught_up(MINUTE);
    assert!(took < Duration::from_secs(5), "{took:?}");
}

/// Room may come between a part of an answer that was not taken and the answer's end.
#[test]
fn a_disk_that_fills_again_and_again_leaves_no_partition_behind() {
    let orders = topic("orders", 6, 20);
    let faults = long_link(Duration::from_millis(400));
    let settings = LinkSettings { connections_max: 1, ..settings() };
    let mut world = World::new(faults, &[orders], settings, 16 << 20);
    let machine = world.machine();
    let mut times_full = 0;
    for round in 0..24 {
        for partition in 0..6 {
            world.cluster.append("orders", partition, 40).expect("appends");
        }
        world.sim.disk(machine, |disk| {
            disk.set_capacity(1 << 40);
            let used = (1 << 40) - disk.free_bytes();
            disk.set_capacity(used + 100_000);
        });
        let full = |p: &PartitionStatus| p.state == PartitionState::DiskFull;
        world.until("the full disk, or the end", 10 * MINUTE, |status| {
            let is_full = status.partitions.iter().any(full);
            times_full += usize::from(is_full);
            is_full || status.partitions.iter().all(|p| Some(p.written) == p.source_end)
        });
        world.sim.run_for(Duration::from_millis(90 * round));
        world.sim.disk(machine, |disk| disk.set_capacity(1 << 40));
        world.sim.run_for(Duration::from_millis(1_000 + 90 * round));
    }
    assert!(times_full > 8, "{times_full}");
    world.until_caught_up(10 * MINUTE);
}

#[test]
fn a_high_watermark_that_was_false_is_not_kept_for_ever() {
    let mut world = caught_up(1);
    let lie = Fault::HighWatermark(10_000);
    world.cluster.inject(Target::partition("orders", 0), lie, None);
    world.cluster.append("orders", 0, 1).expect("appends");
    world.until("the lie", MINUTE, |status| status.partitions[0].source_end == Some(10_000));
    world.cluster.clear_faults();
    world.cluster.append("orders", 0, 1).expect("appends");
    world.until("the truth", MINUTE, |status| status.partitions[0].source_end == Some(22 * 16));
    assert_eq!(world.partition("orders", 0).high_watermark, 10_000, "it may be an election");
    world.until("the high watermark", 2 * MINUTE, |status| {
        status.partitions[0].high_watermark == 22 * 16
    });
}

#[test]
fn a_clock_that_jumps_moves_no_retry_and_no_lag() {
    let mut world = caught_up(2);
    let mut faults = Faults::none();
    faults.clock.jump_ppm = 100_000;
    world.sim.set_faults(faults.clone());
    // One partition waits, again and again, while the clock goes up to an hour to and fro.
    world.cluster.inject(
        Target::partition("orders", 1),
        Fault::FlipBit { byte: 900, bit: 1 },
        Some(3),
    );
    world.cluster.append("orders", 1, 5).expect("appends");
    let took = world.until_caught_up(MINUTE);
    assert!(took < Duration::from_secs(20), "three short pauses: {took:?}");
    for _ in 0..20 {
        world.sim.set_faults(faults.clone());
        world.sim.run_for(Duration::from_millis(1_700));
        // What was heard before the last jump is told by the clock after it.
        world.sim.set_faults(Faults::none());
        let status = world.status();
        let now_ms = world.sim.enter(world.executor, ring::wall_ms);
        for p in &status.partitions {
            let lag_ms = now_ms - p.caught_up_at_ms.expect("known");
            assert!((0..1_500).contains(&lag_ms), "{lag_ms} ms");
            assert_eq!(p.state, PartitionState::Active);
        }
    }
}

#[test]
fn memory_that_is_all_held_by_idle_ends_is_named() {
    let tiny = TopicSpec::new("tiny", 900, 1).with_batches(9, 300, 1).with_ring_bytes(1 << 10);
    let mut world = World::new(Faults::none(), &[tiny], settings(), 4 << 20);
    let short = |p: &PartitionStatus| p.state == PartitionState::MemoryShort;
    world.until("shortage", 5 * MINUTE, |status| status.partitions.iter().any(short));
    let status = world.status();
    let told = status.partitions.iter().find(|p| short(p)).expect("it is short");
    let reason = told.reason.as_deref().expect("a reason");
    assert!(reason.contains("[shards]"), "it says what to set: {reason}");
}

#[test]
fn a_source_that_says_diverging_again_and_again_is_asked_seldom_and_named() {
    let mut world = caught_up(2);
    let lie = Fault::Diverging { epoch: 0, end_offset: 32 };
    world.cluster.inject(Target::partition("orders", 1), lie, None);
    world.cluster.append("orders", 1, 5).expect("appends");
    let before = world.status().stats.fetches;
    world.until("a fault", 5 * MINUTE, |status| {
        status.partitions[1].state == PartitionState::Faulted(FaultCode::Diverged)
    });
    let asked = world.status().stats.fetches - before;
    assert!(asked < 200, "{asked} fetches");
    world.cluster.clear_faults();
    world.resume("orders");
    world.until_caught_up(MINUTE);
}

#[test]
fn many_partitions_are_deleted_while_another_is_followed() {
    let tiny = TopicSpec::new("tiny", MANY, 0).with_ring_bytes(1 << 10);
    let orders = topic("orders", 1, 20);
    let mut world = World::new(Faults::none(), &[tiny, orders], settings(), 64 << 20);
    world.sim.run_for(Duration::from_secs(30));
    let logs = world.status().partitions;
    assert!(logs.iter().all(|p| p.state == PartitionState::Active));
    let partitions: Vec<PartitionKey> = (0..MANY).map(|at| world.key("tiny", at)).collect();
    let answers = world.ask(|reply| Command::Delete { partitions, reply });
    assert!(answers.len() == MANY as usize && answers.iter().all(Result::is_ok));
    world.cluster.append("orders", 0, 3).expect("appends");
    let took = world.until("more", MINUTE, |status| {
        status.partitions.len() == 1 && status.partitions[0].received == 23 * 16
    });
    assert!(took < Duration::from_secs(5), "{took:?}");
}

/// Or a power loss would bring back what a person was told is gone.
#[test]
fn what_is_answered_to_be_deleted_does_not_come_back_after_a_power_loss() {
    let mut world = caught_up(9);
    let folder = |at: i32| PathBuf::from(format!("/data/prod/orders-{at}"));
    let there = |world: &World, at: i32| {
        world.sim.disk(world.machine(), |disk| disk.files(folder(at)).is_ok())
    };
    // Flushed, so that only the deletion is still to be.
    world.sim.run_for(Duration::from_secs(5));
    assert!((0..9).all(|at| there(&world, at)));
    let partitions = (0..8).map(|at| world.key("orders", at)).collect();
    let answers = world.ask(|reply| Command::Delete { partitions, reply });
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    world.crash();
    let back: Vec<i32> = (0..8).filter(|&at| there(&world, at)).collect();
    assert!(back.is_empty(), "back again: {back:?}");
    assert!(there(&world, 8), "its neighbour stays");
}

/// A deletion that fails can be ordered again, and says so as long as anything is left.
#[test]
fn what_could_not_be_deleted_is_not_said_to_be_gone() {
    let mut world = caught_up(2);
    let folder = PathBuf::from("/data/prod/orders-0");
    let machine = world.machine();
    let in_the_way = "/data/.understudy/deleted";
    world.sim.disk(machine, |disk| disk.write_file(in_the_way, b"no folder").expect("a file"));
    let delete = |world: &mut World| {
        let partitions = vec![world.key("orders", 0)];
        world.ask(|reply| Command::Delete { partitions, reply }).remove(0)
    };
    for _ in 0..2 {
        let refused = delete(&mut world).expect_err("there is no place for it");
        assert!(refused.reason.contains(in_the_way), "{refused:?}");
        assert!(world.sim.disk(machine, |disk| disk.files(&folder).is_ok()));
    }
    world.sim.disk(machine, |disk| disk.lose_file(in_the_way).expect("it was there"));
    delete(&mut world).expect("deleted");
    assert!(world.sim.disk(machine, |disk| disk.files(&folder).is_err()));
}

#[test]
fn a_batch_longer_than_any_can_be_is_asked_for_again_and_then_named_as_bad() {
    let mut world = caught_up(2);
    let lie = Fault::BatchLength(i32::MAX);
    world.cluster.inject(Target::partition("orders", 1), lie.clone(), Some(2));
    world.cluster.append("orders", 1, 5).expect("appends");
    world.until_caught_up(MINUTE);
    world.cluster.inject(Target::partition("orders", 1), lie, None);
    world.cluster.append("orders", 1, 5).expect("appends");
    world.until("a fault", 5 * MINUTE, |status| {
        status.partitions[1].state == PartitionState::Faulted(FaultCode::BadBatch)
    });
    world.cluster.clear_faults();
    world.resume("orders");
    world.until_caught_up(MINUTE);
}

/// The last batch is fetched again to be compared. If that one comes damaged, nothing is known of
/// the source's: it is asked for again, as any other.
#[test]
fn a_last_batch_that_comes_damaged_is_no_divergence() {
    let turned = |byte, bit| Fault::FlipBit { byte, bit };
    for (lie, code) in [
        (Fault::BatchLength(-1), FaultCode::BadBatch),
        (Fault::BatchLength(10_000), FaultCode::CorruptBatch),
        (turned(16, 1), FaultCode::CorruptBatch), // an older one
        (turned(18, 2), FaultCode::CorruptBatch), // the checksum itself
        (turned(26, 2), FaultCode::CorruptBatch), // the last offset
    ] {
        let mut world = caught_up(2);
        let compare_again = |world: &mut World| {
            let topics = Some(vec!["orders".into()]);
            world.ask(|reply| Command::Pause { link: "prod".into(), topics, reply });
            world.resume("orders");
        };
        for times in [Some(3), None] {
            world.cluster.inject(Target::partition("orders", 1), lie.clone(), times);
            compare_again(&mut world);
            world.until("the end of it", 5 * MINUTE, |status| {
                let state = status.partitions[1].state;
                assert_ne!(state, PartitionState::Faulted(FaultCode::Diverged), "{lie:?}");
                match times {
                    Some(_) => state == PartitionState::Active,
                    None => state == PartitionState::Faulted(code),
                }
            });
            assert_eq!(world.partition("orders", 0).state, PartitionState::Active);
            assert!(times.is_none() || world.cluster.faults_applied() >= 3, "{lie:?}");
        }
        world.cluster.clear_faults();
        world.resume("orders");
        world.cluster.append("orders", 1, 1).expect("appends");
        world.until_caught_up(MINUTE);
    }
}

/// Campaigns let thousands of shards crash in one process.
#[test]
fn a_shard_that_crashes_leaves_no_memory_behind() {
    let mut world = caught_up(3);
    world.cluster.append("orders", 1, 200).expect("appends");
    world.sim.run_for(Duration::from_millis(3));
    assert!(world.crash(), "somebody still holds the shard");
}

/// What a full disk cannot take would stay in memory, which is everybody's, or be asked for again
/// and again: of its partitions nothing more is asked for.
#[test]
fn of_partitions_on_a_full_disk_nothing_more_is_asked_for() {
    let mut world = caught_up(4);
    let machine = world.machine();
    world.sim.disk(machine, |disk| {
        let used = (1 << 40) - disk.free_bytes();
        disk.set_capacity(used);
    });
    let grow = |world: &World| {
        for partition in 0..4 {
            world.cluster.append("orders", partition, 40).expect("appends");
        }
    };
    grow(&world);
    world.until("a full disk", MINUTE, |status| {
        status.partitions.iter().all(|p| p.state == PartitionState::DiskFull)
    });
    // What was asked for before comes to its end.
    world.sim.run_for(10 * SECOND);
    let before = world.status();
    for _ in 0..10 {
        grow(&world);
        world.sim.run_for(SECOND);
    }
    let after = world.status();
    assert_eq!(after.stats.bytes_received, before.stats.bytes_received);
    assert!(after.stats.memory_used <= before.stats.memory_used);
    world.sim.disk(machine, |disk| disk.set_capacity(1 << 40));
    world.until_caught_up(MINUTE);
}

#[test]
fn a_log_that_a_full_disk_keeps_from_being_opened_is_opened_when_there_is_room() {
    const SEGMENT_BYTES: u32 = 256 << 10;
    let orders = topic("orders", 2, 20);
    let mut world = World::new(Faults::none(), &[orders], settings(), 16 << 20);
    let partitions = vec![world.key("orders", 0), world.key("orders", 1)];
    let release = |reply| Command::Release { partitions: partitions.clone(), reply };
    world.ask(release);
    world.assign(SEGMENT_BYTES);
    for partition in 0..2 {
        world.cluster.append("orders", partition, 40).expect("appends");
    }
    world.until_caught_up(MINUTE);
    world.ask(release);
    // A seal that has to be made anew, for which there is no room.
    let seals = PathBuf::from("/data/.understudy/seals/prod/orders-0");
    world.sim.run_on(world.executor, async move {
        let seal = ring::fs::read_dir(&seals).await.expect("seals").remove(0).name;
        ring::fs::remove_file(seals.join(seal)).await.expect("removed");
    });
    let machine = world.machine();
    world.sim.disk(machine, |disk| disk.set_capacity(0));
    world.assign(SEGMENT_BYTES);
    world.cluster.append("orders", 0, 5).expect("appends");
    world.sim.run_for(MINUTE);
    let told = world.partition("orders", 0);
    assert_eq!((told.state, told.unopened), (PartitionState::DiskFull, true), "{told:?}");
    assert!(told.reason.is_some_and(|reason| reason.contains("no room")));
    assert!(!world.partition("orders", 1).unopened, "its neighbour can be read");
    let partitions = vec![world.key("orders", 0)];
    let deleted = world.ask(|reply| Command::Delete { partitions, reply });
    assert!(deleted[0].is_err(), "what is not open is not said to be deleted");
    world.sim.disk(machine, |disk| disk.set_capacity(1 << 40));
    world.until_caught_up(MINUTE);
    assert_eq!(world.partition("orders", 0).state, PartitionState::Active);
}
