//! A source that is upgraded while it is followed begins to tell topic ids.

mod world;

use std::path::PathBuf;
use std::time::Duration;

use shards::control::*;
use source::TopicSpec;
use uuid::Uuid;
use world::{DATA, World, settings};

const MINUTE: Duration = Duration::from_secs(60);

fn orders(partitions: i32) -> TopicSpec {
    TopicSpec::new("orders", partitions, 20).with_batches(7, 20_000, 16)
}

/// What came without an id is asked for by name, and one session cannot ask for a topic by both.
#[test]
fn a_partition_that_comes_with_an_id_stops_none_that_came_without() {
    let mut world = World::before_ids(&[orders(1)], settings());
    world.until_caught_up(MINUTE);
    world.cluster.add_partitions("orders", 2).expect("adds");
    let assign = |partition| Assign {
        key: world.key("orders", partition),
        topic_id: Some(Uuid::from_u128(77)),
        data_dir: PathBuf::from(DATA),
        mode: Mode::Replicate,
        segment_bytes: 64 << 20,
        segment_ms: i64::MAX,
    };
    // As it grows, and as all of it is opened that is not.
    for partitions in [vec![assign(1)], vec![assign(0), assign(1)]] {
        let answers = world.ask(|reply| Command::Assign { partitions, reply });
        assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    }
    world.follow(orders(2));
    world.tell_leaders();
    world.until_caught_up(MINUTE);
    for partition in 0..2 {
        world.cluster.append("orders", partition, 5).expect("appends");
    }
    world.until_caught_up(MINUTE);
}
