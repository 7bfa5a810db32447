//! A source that contradicts itself about its offsets: on the simulator, one lie at a time. Whatever
//! it says ends in a named state and pauses that grow, moves and cuts nothing, and is over with the
//! lie.

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

fn lies(world: &World, fault: Fault, times: Option<u64>) {
    world.cluster.inject(Target::partition("orders", 1), fault, times);
}

/// Pauses the topic, and lets it go on after something has been done.
fn restart(world: &mut World, between: impl FnOnce(&World)) {
    let topics = Some(vec!["orders".into()]);
    world.ask(|reply| Command::Pause { link: "prod".into(), topics, reply });
    between(world);
    world.resume("orders");
}

/// Another topic of the same name that has grown past our end: as long as it has not been compared
/// nothing of it is taken, however often the question fails.
#[test]
fn a_last_batch_said_to_be_out_of_range_is_compared_all_the_same() {
    for times in [1, 2, 5] {
        let mut world = World::before_ids(&[orders(7, 20)], settings());
        world.until_caught_up(MINUTE);
        restart(&mut world, |world| {
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
