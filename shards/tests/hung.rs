//! A disk that answers no more, while the rest of the node is to fail over.

mod world;

use std::time::Duration;

use ring::sim::Faults;
use shards::control::*;
use source::TopicSpec;
use tokio::sync::oneshot;
use world::{World, settings};

const MINUTE: Duration = Duration::from_secs(60);

/// Control waits half a minute for the flush barrier, and for all partitions of a shard together:
/// one disk that hangs is not to keep those of the others from failing over.
#[test]
fn a_disk_that_hangs_keeps_no_failover_waiting() {
    let orders = TopicSpec::new("orders", 1, 20).with_batches(7, 20_000, 16);
    let mut world = World::new(Faults::none(), &[orders], settings(), 16 << 20);
    world.until_caught_up(MINUTE);
    world.until("a flush", MINUTE, |status| status.partitions[0].flushed == 320);
    let mut hung = Faults::none();
    hung.disk.delay = 10 * MINUTE..11 * MINUTE;
    world.sim.set_faults(hung);
    world.cluster.append("orders", 0, 3).expect("appends");
    world.sim.run_for(Duration::from_secs(2));
    assert_eq!(world.partition("orders", 0).received, 368);
    let seal = |reply| Command::Seal { link: "prod".into(), topics: vec!["orders".into()], reply };
    let (reply, mut answer) = oneshot::channel();
    world.tell(seal(reply));
    world.sim.run_for(Duration::from_secs(28));
    let sealed = answer.try_recv().expect("an answer while control waits");
    assert_eq!(sealed[0].end_offset, Some(320), "what is known to be safe");
    let error = sealed[0].error.as_deref().expect("a reason");
    assert!(error.contains("does not answer") && sealed[0].hung, "{error}");
    // It comes back: what had come is written, and a failover that is run again ends with it.
    world.sim.set_faults(Faults::none());
    world.sim.run_for(25 * MINUTE);
    let sealed = world.ask(seal);
    assert_eq!((sealed[0].end_offset, &sealed[0].error), (Some(368), &None));
}
