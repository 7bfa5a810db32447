//! Sources without topic ids whose logs parted from the copy while nobody told.

mod world;

use std::sync::Arc;
use std::time::Duration;

use shards::control::*;
use source::{Fault, Target, TopicSpec};
use world::{World, settings};

const MINUTE: Duration = Duration::from_secs(60);
const UNKNOWN_TOPIC: i16 = 3;

/// The next leader may have lost records, and by now have as many as before: it is compared with
/// the copy, also if for a while there was none.
#[test]
fn a_leader_that_comes_after_there_was_none_is_compared_with_the_copy() {
    let orders = TopicSpec::new("orders", 1, 20).with_batches(7, 20_000, 16);
    let mut world = World::before_ids(&[orders], settings());
    world.until_caught_up(MINUTE);
    let nobody = ClusterView { brokers: Vec::new(), topics: Vec::new() };
    let link = world.key("orders", 0).link;
    world.tell(Command::Leaders { link, view: Arc::new(nobody) });
    let waits = |status: &ShardStatus| status.partitions[0].state == PartitionState::Retrying;
    world.until("a partition without a leader", MINUTE, waits);
    world.cluster.lose_tail("orders", 0, 160).expect("it is lost");
    world.cluster.append("orders", 0, 20).expect("appends");
    world.tell_leaders();
    world.until("the fault", MINUTE, |status| {
        status.partitions[0].state == PartitionState::Faulted(FaultCode::Diverged)
    });
    assert_eq!(world.partition("orders", 0).received, 320, "two logs are mixed");
}

fn orders(seed: u64, batches: u64) -> TopicSpec {
    TopicSpec::new("orders", 1, batches).with_batches(seed, 20_000, 16)
}

/// Made anew with batches that end where ours did, and longer than ours: its leader, the same as
/// before, refuses it for a moment.
#[test]
fn a_topic_made_anew_at_the_same_leader_is_compared_with_the_copy() {
    let mut world = World::before_ids(&[orders(7, 20)], settings());
    world.until_caught_up(MINUTE);
    let refusal = Fault::ErrorCode(UNKNOWN_TOPIC);
    world.cluster.inject(Target::partition("orders", 0), refusal, None);
    let waits = |status: &ShardStatus| status.partitions[0].state == PartitionState::Retrying;
    world.until("a refusal", MINUTE, waits);
    world.cluster.delete_topic("orders").expect("deletes");
    world.cluster.add_topic(orders(8, 41)).expect("adds");
    world.cluster.clear_faults();
    world.until("the fault", MINUTE, |status| {
        status.partitions[0].state == PartitionState::Faulted(FaultCode::Diverged)
    });
    assert_eq!(world.partition("orders", 0).received, 320, "two logs are mixed");
}

/// Nothing is asked for while its disk is full, which may last for hours.
#[test]
fn a_topic_made_anew_while_the_disk_was_full_is_compared_with_the_copy() {
    let mut world = World::before_ids(&[orders(7, 20)], settings());
    world.until_caught_up(MINUTE);
    let machine = world.machine();
    world.sim.disk(machine, |disk| {
        let used = (1 << 40) - disk.free_bytes();
        disk.set_capacity(used);
    });
    world.cluster.append("orders", 0, 40).expect("appends");
    world.until("a full disk", MINUTE, |status| {
        status.partitions[0].state == PartitionState::DiskFull
    });
    world.sim.run_for(10 * MINUTE);
    let before = world.partition("orders", 0).received;
    world.cluster.delete_topic("orders").expect("deletes");
    world.cluster.add_topic(orders(8, 81)).expect("adds");
    world.sim.disk(machine, |disk| disk.set_capacity(1 << 40));
    world.until("the fault", MINUTE, |status| {
        status.partitions[0].state == PartitionState::Faulted(FaultCode::Diverged)
    });
    assert_eq!(world.partition("orders", 0).received, before, "two logs are mixed");
}

/// The rate limit keeps a link from asking for records for so long that a topic can go and come
/// again between two requests.
#[test]
fn a_topic_made_anew_between_two_requests_is_compared_with_the_copy() {
    let bulk = TopicSpec::new("bulk", 1, 0).with_batches(3, 20_000, 16);
    let settings = LinkSettings { rate_limit: Some(2_000), ..settings() };
    let mut world = World::before_ids(&[orders(7, 2), bulk], settings);
    world.until_caught_up(MINUTE);
    world.sim.run_for(MINUTE);
    world.cluster.append("bulk", 0, 4).expect("appends");
    world.until("the first of it", MINUTE, |status| {
        status.partitions.iter().any(|p| &*p.key.topic == "bulk" && p.received >= 16)
    });
    world.cluster.delete_topic("orders").expect("deletes");
    world.sim.run_for(Duration::from_secs(5));
    world.cluster.add_topic(orders(8, 5)).expect("adds");
    world.until("the fault", MINUTE, |status| {
        status.partitions.iter().any(|p| p.state == PartitionState::Faulted(FaultCode::Diverged))
    });
    assert_eq!(world.partition("orders", 0).received, 32, "two logs are mixed");
    // Its neighbour gets on, at its rate.
    world.until("the rest", MINUTE, |status| {
        status.partitions.iter().any(|p| &*p.key.topic == "bulk" && p.received == 64)
    });
}

/// The leader that the copy's last epoch is of began it where an older epoch ended for it. The one
/// that leads now has more of that older one, and another one after it: the logs part where the
/// older one ends in the copy, not where it ends in the source's.
#[test]
fn logs_part_where_the_last_common_epoch_ends_in_either_of_them() {
    let settings = LinkSettings { allow_truncation: true, ..settings() };
    let topic = |batches| TopicSpec { leader_epoch: 2, ..orders(7, batches) };
    let mut world = World::before_ids(&[topic(10)], settings);
    let epoch = |world: &World, epoch, batches| {
        while world.cluster.bump_leader_epoch("orders", 0).expect("a leader") < epoch {}
        world.cluster.append("orders", 0, batches).expect("appends");
    };
    world.until_caught_up(MINUTE);
    epoch(&world, 5, 10);
    world.until_caught_up(MINUTE);
    let topics = Some(vec!["orders".into()]);
    world.ask(|reply| Command::Pause { link: "prod".into(), topics, reply });
    world.cluster.delete_topic("orders").expect("deletes");
    world.cluster.add_topic(topic(12)).expect("adds");
    epoch(&world, 4, 4);
    epoch(&world, 6, 8);
    world.resume("orders");
    world.until_caught_up(MINUTE);
    let cut = |event: &&Event| matches!(event, Event::Truncated { .. });
    let cuts: Vec<&Event> = world.seen.iter().filter(cut).collect();
    assert!(matches!(cuts[..], [Event::Truncated { from: 160, to: 320, .. }]), "{:?}", world.seen);
}
