//! Logs that were replaced at the source while it seemed the same.

mod harness;

use harness::{Rig, settings};
use shards::control::*;
use source::{Config, Fault, Target, TopicSpec, serve};

fn orders(seed: u64, batches: u64) -> TopicSpec {
    TopicSpec::new("orders", 1, batches).with_batches(seed, 20_000, 16)
}

fn faulted(status: &ShardStatus) -> bool {
    let mut partitions = status.partitions.iter();
    partitions.any(|p| p.state == PartitionState::Faulted(FaultCode::Diverged))
}

/// Restored from a backup the topic has its id and its leader epoch, and by now more records than
/// the copy: all that tells is what they are.
#[test]
fn a_source_that_comes_back_from_a_backup_is_compared_with_the_copy() {
    let orders = orders(7, 20);
    let source = serve(Config::loopback(1).with_topic(orders.clone())).expect("a source");
    let mut rig = Rig::new(source, &[&orders], settings());
    rig.until_caught_up();
    let cluster = rig.source.cluster();
    cluster.inject(Target::fetches(), Fault::Close, None);
    rig.until("a source that is away", |status| {
        status.partitions[0].state == PartitionState::Retrying
    });
    cluster.replace_topic(self::orders(8, 41)).expect("another");
    cluster.clear_faults();
    rig.until("the fault", faulted);
    assert_eq!(rig.partition("orders", 0).received, 320, "two logs are mixed");
    rig.stop();
}
