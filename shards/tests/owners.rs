//! Partitions that another shard of the process had before.

mod world;

use std::time::Duration;

use ring::sim::Faults;
use shards::control::*;
use source::TopicSpec;
use world::{World, settings};

const MINUTE: Duration = Duration::from_secs(60);

fn orders() -> TopicSpec {
    TopicSpec::new("orders", 1, 20).with_batches(7, 20_000, 16)
}

/// A link that is taken out of the configuration and declared again has its partitions spread anew.
#[test]
fn a_log_that_another_shard_made_is_open_at_once_and_gone_when_it_is_deleted() {
    let mut world = World::new(Faults::none(), &[orders()], settings(), 16 << 20);
    world.until_caught_up(MINUTE);
    let partitions = vec![world.key("orders", 0)];
    world.ask(|reply| Command::Release { partitions, reply });
    assert!(!world.segments(0).is_empty(), "its files stay");
    world.other_shard();
    world.assign_in_mode(64 << 20, &Mode::Sealed);
    assert_eq!(world.partition("orders", 0).flushed, 320, "the copy is not open");
    let partitions = vec![world.key("orders", 0)];
    let deleted = world.ask(|reply| Command::Delete { partitions, reply });
    assert!(deleted.iter().all(Result::is_ok), "{deleted:?}");
    let folder = "/data/prod/orders-0";
    let left = world.sim.disk(world.machine(), |disk| disk.files(folder));
    assert!(left.is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound), "files stay");
}

/// A topic that is deleted and copied anew has its partitions spread anew.
#[test]
fn where_a_copy_begins_anew_is_asked_of_the_source_whoever_had_the_one_before() {
    let mut world = World::new(Faults::none(), &[orders()], settings(), 16 << 20);
    world.until_caught_up(MINUTE);
    world.restart(|_| {});
    let partitions = vec![world.key("orders", 0)];
    let deleted = world.ask(|reply| Command::Delete { partitions, reply });
    assert!(deleted.iter().all(Result::is_ok), "{deleted:?}");
    world.cluster.delete_records("orders", 0, 160).expect("deletes");
    world.other_shard();
    world.assign(64 << 20);
    world.until_caught_up(MINUTE);
    assert_eq!(world.partition("orders", 0).log_start, 160);
}

/// Its folder is made before there is a segment in it that says where it begins.
#[test]
fn where_a_copy_begins_is_not_lost_with_a_process_that_dies_when_it_had_just_been_told() {
    for power in [false, true] {
        for micros in (0..20_000).step_by(2_000) {
            let mut world = World::new(Faults::none(), &[], settings(), 16 << 20);
            world.cluster.add_topic(orders()).expect("adds");
            world.cluster.delete_records("orders", 0, 320).expect("deletes");
            world.follow(orders());
            world.tell_leaders();
            world.assign(64 << 20);
            world.sim.run_for(Duration::from_micros(micros));
            if power {
                world.crash();
            }
            world.restart(|_| {});
            world.cluster.append("orders", 0, 2).expect("appends");
            world.sim.run_for(Duration::from_secs(5));
            let partition = world.partition("orders", 0);
            let found = (partition.state, partition.log_start, partition.received);
            assert_eq!(found, (PartitionState::Active, 320, 352), "{power} {micros} µs");
        }
    }
}
