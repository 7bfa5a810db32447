//! What a shard does with a copy that cannot be read behind its flushed end.

mod world;

use std::path::{Path, PathBuf};
use std::time::Duration;

use ring::sim::Faults;
use shards::control::*;
use source::{Fault, Target, TopicSpec};
use world::{DATA, LINK, World, settings};

const MINUTE: Duration = Duration::from_secs(60);

/// Bytes up to the last that is not zero.
fn used(world: &mut World, path: &Path) -> u64 {
    let machine = world.machine();
    let bytes = world.sim.disk(machine, |disk| disk.read_file(path).expect("a segment"));
    bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 + 1)
}

/// The source is heard first about these very offsets: else it may be gone, or have none.
#[test]
fn what_cannot_be_read_is_kept_until_the_source_has_sent_what_it_has_there() {
    let orders = TopicSpec::new("orders", 1, 20).with_batches(7, 20_000, 16);
    let mut world = World::new(Faults::none(), &[orders], settings(), 16 << 20);
    let path = PathBuf::from(DATA).join(LINK).join("orders-0/00000000000000000000.log");
    world.until_caught_up(MINUTE);
    world.until("a flush", MINUTE, |status| {
        status.partitions.iter().all(|p| p.flushed == p.written)
    });
    let flushed = used(&mut world, &path);
    world.cluster.append("orders", 0, 20).expect("appends");
    while used(&mut world, &path) < flushed + 300_000 {
        world.sim.run_for(Duration::from_micros(200));
    }
    let partition = Target::partition("orders", 0);
    world.cluster.inject(partition, Fault::Empty, None);
    let machine = world.machine();
    world.restart(|sim| {
        sim.disk(machine, |disk| disk.spoil(&path, flushed + 150_000..flushed + 150_001));
    });
    let mut length = None;
    for _ in 0..20 {
        world.sim.run_for(MINUTE);
        let kept = world.partition("orders", 0);
        assert_eq!(kept.state, PartitionState::Corrupt, "{kept:?}");
        let now = used(&mut world, &path);
        assert_eq!(*length.get_or_insert(now), now, "nothing is cut");
    }
    world.cluster.clear_faults();
    world.until_caught_up(10 * MINUTE);
    assert_eq!(world.partition("orders", 0).state, PartitionState::Active);
}
