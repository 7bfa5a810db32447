//! Damage that is found when a segment is sealed.

mod world;

use std::path::Path;
use std::time::Duration;

use shards::control::*;
use source::TopicSpec;
use world::{World, settings};

const MINUTE: Duration = Duration::from_secs(60);

/// A bit turned, since the log was opened, in what was written before: nobody reads it until its
/// segment is sealed. The source still has it.
#[test]
fn what_sealing_finds_damaged_is_mended() {
    let orders = TopicSpec::new("orders", 1, 20).with_batches(7, 20_000, 16);
    let faults = ring::sim::Faults::none();
    let mut world = World::new(faults, &[orders], settings(), 16 << 20);
    world.until_caught_up(MINUTE);
    let partitions = vec![world.key("orders", 0)];
    world.ask(|reply| Command::Release { partitions, reply });
    world.assign(500_000);
    world.until_caught_up(MINUTE);
    let path = Path::new("/data/prod/orders-0/00000000000000000000.log");
    world.sim.disk(world.machine(), |disk| disk.flip_bit(path, 200_000, 3));
    // One batch more than the segment takes, and then nothing that would ask for more.
    world.cluster.append("orders", 0, 6).expect("appends");
    world.until("the repair", 10 * MINUTE, |status| status.stats.damages_repaired == 1);
    world.until_caught_up(MINUTE);
}
