//! What is looked at before a copy is cut: the source's records at the place of the cut, over the
//! connection, and by the topic id, that they are fetched with.

mod world;

use std::time::Duration;

use ring::sim::Faults;
use shards::control::*;
use source::{Fault, Target, TopicSpec};
use world::{World, settings};

const MINUTE: Duration = Duration::from_secs(60);
/// What a copy of `orders` has at first.
const RECORDS: i64 = 20 * 16;

fn orders(seed: u64, batches: u64) -> TopicSpec {
    TopicSpec::new("orders", 2, batches).with_batches(seed, 20_000, 16)
}

/// A copy that may be cut.
fn caught_up() -> World {
    let settings = LinkSettings { allow_truncation: true, ..settings() };
    let mut world = World::new(Faults::none(), &[orders(7, 20)], settings, 16 << 20);
    world.until_caught_up(MINUTE);
    world
}

fn lies(world: &World, fault: Fault, times: Option<u64>) {
    world.cluster.inject(Target::partition("orders", 1), fault, times);
}

/// Where the copy was cut to.
fn cuts(world: &World) -> Vec<i64> {
    let cut = |event: &Event| match event {
        Event::Truncated { from, .. } => Some(*from),
        _ => None,
    };
    world.seen.iter().filter_map(cut).collect()
}

/// Where the copy's last batch cannot be looked at, too: since what the source calls committed has
/// truly gone back before it for a while, or since the source has truly deleted it.
#[test]
fn leader_epochs_that_part_by_a_lie_cut_nothing_where_the_last_batch_cannot_be_seen() {
    for (end_offset, deleted) in [(0, false), (32, false), (32, true)] {
        let mut world = caught_up();
        let lie = Fault::EpochEnd { epoch: 0, end_offset };
        world.pause_and_resume("orders", |world| {
            match deleted {
                true => drop(world.cluster.delete_records("orders", 1, RECORDS - 4)),
                false => drop(world.cluster.hold_high_watermark("orders", 1, Some(64))),
            }
            lies(world, lie.clone(), None);
        });
        world.until("a named state", MINUTE, |status| {
            let p = &status.partitions[1];
            p.state == PartitionState::Retrying && p.reason.is_some()
        });
        world.sim.run_for(MINUTE);
        assert!(cuts(&world).is_empty(), "{lie:?}: {:?}", world.seen);
        assert_eq!(world.partition("orders", 1).received, RECORDS, "{lie:?}");
        world.cluster.clear_faults();
        world.cluster.hold_high_watermark("orders", 1, None).expect("lets go");
        world.cluster.append("orders", 1, 1).expect("appends");
        world.until_caught_up(20 * MINUTE);
        assert!(cuts(&world).is_empty(), "{lie:?}: {:?}", world.seen);
    }
}

/// Records are truly lost, and the source lies about from where on: nothing that it has is cut.
#[test]
fn a_lie_about_where_logs_part_cuts_nothing_that_the_source_has() {
    let mut world = caught_up();
    world.pause_and_resume("orders", |world| {
        world.cluster.lose_tail("orders", 1, 160).expect("it is lost");
        world.cluster.append("orders", 1, 20).expect("appends");
        lies(world, Fault::EpochEnd { epoch: 0, end_offset: 32 }, Some(3));
    });
    world.until_caught_up(20 * MINUTE);
    assert_eq!(cuts(&world), [160]);
    assert_eq!(world.cluster.faults_applied(), 3);
}

/// A topic is made anew between a fetch by its id, which was out of range, and the questions that
/// follow, which are asked by name: what they say of another log cuts nothing here.
#[test]
fn a_topic_made_anew_between_a_fetch_and_the_questions_about_it_cuts_nothing() {
    let mut world = caught_up();
    world.pause_and_resume("orders", |world| {
        // One fetch waits yet, of before.
        lies(world, Fault::ErrorCode(1), Some(2));
    });
    while world.cluster.faults_applied() < 2 {
        world.sim.run_for(Duration::from_micros(5));
    }
    world.cluster.delete_topic("orders").expect("deletes");
    world.cluster.add_topic(orders(8, 10)).expect("adds");
    for _ in 0..60 {
        world.sim.run_for(Duration::from_secs(1));
        let p = world.partition("orders", 1);
        assert_eq!((p.received, p.flushed), (RECORDS, RECORDS), "{p:?}");
    }
    assert!(cuts(&world).is_empty(), "{:?}", world.seen);
}
