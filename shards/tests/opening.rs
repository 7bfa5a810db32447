//! Orders that come while logs are being opened, which may take minutes after a crash.

mod world;

use std::path::PathBuf;
use std::time::Duration;

use ring::sim::Faults;
use shards::control::*;
use source::TopicSpec;
use world::{DATA, LINK, World, settings};

const MINUTE: Duration = Duration::from_secs(60);

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
    let assign = Assign {
        key: world.key("orders", 0),
        topic_id: world.cluster.topic_id("orders").ok(),
        data_dir: PathBuf::from(DATA),
        mode: Mode::Replicate,
        segment_bytes: 64 << 20,
        segment_ms: i64::MAX,
    };
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
