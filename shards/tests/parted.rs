//! Sources without topic ids whose logs parted from the copy while nobody told.

mod world;

use std::sync::Arc;
use std::time::Duration;

use shards::control::*;
use source::TopicSpec;
use world::{World, settings};

const MINUTE: Duration = Duration::from_secs(60);

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
