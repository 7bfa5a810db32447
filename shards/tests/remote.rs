//! A source with tiered storage: what has to be fetched from afar may take longer than a broker
//! waits for it, which then answers with nothing.

mod harness;

use std::time::Duration;

use harness::{Rig, settings};
use source::{Config, Fault, Target, TopicSpec, serve};

/// It holds fetches as long as one that has nothing, which may also end with a gap.
fn slow(ours: u64, theirs: u64, start: bool) -> Rig {
    let orders = TopicSpec::new("orders", 1, ours).with_batches(7, 20_000, 16);
    let source = serve(Config::loopback(1).with_topic(orders.clone())).expect("a source");
    let mut rig = Rig::new(source, &[&orders], settings());
    rig.until_caught_up();
    let cluster = rig.source.cluster();
    if start {
        rig.stop();
    }
    let partition = || Target::partition("orders", 0);
    cluster.inject(partition(), Fault::Empty, None);
    cluster.inject(partition(), Fault::LocalStart(10_000), None);
    cluster.inject(Target::fetches(), Fault::Delay(Duration::from_millis(500)), None);
    cluster.append("orders", 0, theirs).expect("appends");
    if start {
        rig.start();
    }
    rig
}

#[test]
fn a_source_that_is_slow_to_find_records_is_not_said_to_have_none() {
    let mut rig = slow(20, 200, false);
    for _ in 0..50 {
        std::thread::sleep(Duration::from_millis(100));
        let p = rig.partition("orders", 0);
        assert_eq!(p.source_records_end, p.source_end, "{p:?}");
    }
    rig.source.cluster().clear_faults();
    rig.until_caught_up();
    rig.stop();
    rig.assert_equal();
}

#[test]
fn a_last_batch_that_is_slow_to_come_is_not_said_to_be_gone() {
    let mut rig = slow(20, 200, true);
    rig.until("a reason", |status| {
        let reason = status.partitions[0].reason.as_ref();
        reason.is_some_and(|reason| reason.contains("remote tier"))
    });
    rig.source.cluster().clear_faults();
    rig.until_caught_up();
    rig.stop();
    rig.assert_equal();
}
