//! Orders that come while logs are being opened, which may take minutes after a crash.

mod world;

use std::path::PathBuf;
use std::time::Duration;

use ring::sim::Faults;
use shards::control::*;
use source::TopicSpec;
use world::{DATA, LINK, World, settings};

const MINUTE: Duration = Duration::from_secs(60);

fn assign(world: &World, partition: i32) -> Assign {
    Assign {
        key: world.key("orders", partition),
        topic_id: world.cluster.topic_id("orders").ok(),
        data_dir: PathBuf::from(DATA),
        mode: Mode::Replicate,
        segment_bytes: 64 << 20,
        segment_ms: i64::MAX,
    }
}

/// A partition that is being opened when this is ordered.
fn ordered(order: impl FnOnce(&mut World)) -> World {
    let orders = TopicSpec::new("orders", 1, 20).with_batches(7, 20_000, 16);
    let mut world = World::new(Faults::none(), &[orders], settings(), 16 << 20);
    world.until_caught_up(MINUTE);
    let partitions = vec![world.key("orders", 0)];
    world.ask(|reply| Command::Release { partitions, reply });
    world.cluster.append("orders", 0, 5).expect("appends");
    let mut slow = Faults::none();
    slow.disk.delay = Duration::from_millis(100)..Duration::from_millis(200);
    world.sim.set_faults(slow);
    let assign = assign(&world, 0);
    let (reply, _) = tokio::sync::oneshot::channel();
    world.tell(Command::Assign { partitions: vec![assign], reply });
    world.sim.run_for(Duration::from_millis(50));
    order(&mut world);
    world.sim.run_for(MINUTE);
    world
}

#[test]
fn a_topic_that_is_paused_while_it_is_opened_is_paused() {
    let topics = || Some(vec!["orders".into()]);
    let mut world = ordered(|world| {
        world.ask(|reply| Command::Pause { link: LINK.into(), topics: topics(), reply })
    });
    let p = world.partition("orders", 0);
    assert_eq!((p.state, p.received), (PartitionState::Paused, 320));
}

#[test]
fn a_topic_that_is_sealed_while_it_is_opened_is_sealed() {
    let mut world = ordered(|world| {
        let topics = vec!["orders".into()];
        world.ask(|reply| Command::Seal { link: LINK.into(), topics, reply });
    });
    let p = world.partition("orders", 0);
    assert_eq!((p.state, p.received), (PartitionState::Sealed, 320));
}

/// Who asked for many waits ten minutes: it hears which are open by then, and which are not yet.
#[test]
fn logs_that_are_open_are_not_said_to_be_missing_for_those_that_take_long() {
    const PARTITIONS: i32 = 34;
    let orders = TopicSpec::new("orders", PARTITIONS, 2).with_batches(7, 20_000, 16);
    let mut world = World::new(Faults::none(), &[orders], settings(), 64 << 20);
    world.until_caught_up(MINUTE);
    let partitions = (0..PARTITIONS).map(|partition| world.key("orders", partition)).collect();
    world.ask(|reply| Command::Release { partitions, reply });
    let mut slow = Faults::none();
    slow.disk.delay = Duration::from_millis(20)..Duration::from_millis(30);
    world.sim.set_faults(slow.clone());
    let partitions = (0..PARTITIONS).map(|partition| assign(&world, partition)).collect();
    let (reply, mut answer) = tokio::sync::oneshot::channel();
    world.tell(Command::Assign { partitions, reply });
    while !world.status().partitions.iter().any(|p| p.state == PartitionState::Active) {
        world.sim.run_for(Duration::from_millis(5));
    }
    slow.disk.delay = 10 * MINUTE..11 * MINUTE;
    world.sim.set_faults(slow);
    world.sim.run_for(10 * MINUTE);
    let opened = answer.try_recv().expect("an answer in time");
    let late = opened.iter().filter(|opened| opened.is_err()).count();
    assert!(0 < late && late < opened.len(), "{late} of {}", opened.len());
    let slow = opened.iter().find_map(|opened| opened.as_ref().err()).expect("one of them");
    assert!(slow.reason.contains("still being opened"), "{}", slow.reason);
    // They are opened all the same.
    world.sim.set_faults(Faults::none());
    for partition in 0..PARTITIONS {
        world.cluster.append("orders", partition, 1).expect("appends");
    }
    world.until_caught_up(2 * MINUTE);
}
