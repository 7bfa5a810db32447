//! Two who are at one log at once: a repair that ends while the log is cut back.

mod world;

use std::time::Duration;

use ring::sim::Faults;
use shards::control::*;
use source::TopicSpec;
use world::{World, settings};

const MINUTE: Duration = Duration::from_secs(60);

/// Where the batches in the copy's files end, if none is missing in between.
fn end_of_copy(world: &World) -> Result<i64, String> {
    let mut expected = 0;
    for path in world.segments(0) {
        let bytes = world.sim.disk(world.machine(), |disk| disk.read_file(&path)).expect("a file");
        let mut rest = &bytes[..];
        while let Some(head) = rest.first_chunk::<61>() {
            let field = |at: usize| i32::from_be_bytes(head[at..at + 4].try_into().expect("four"));
            let (base, length) = (i64::from_be_bytes(head[..8].try_into().expect("8")), field(8));
            if length == 0 {
                break;
            }
            if base != expected {
                return Err(format!("a hole from {expected} to {base} in {}", path.display()));
            }
            expected = base + i64::from(field(23)) + 1;
            rest = &rest[12 + length as usize..];
        }
    }
    Ok(expected)
}

/// Many damaged segments are being mended, on a slow disk, when the source loses its last records.
fn play(delay_ms: u64, regained: u64) {
    let orders = TopicSpec::new("orders", 1, 200).with_batches(7, 20_000, 16);
    let settings = LinkSettings { allow_truncation: true, ..settings() };
    let mut world = World::new(Faults::none(), &[orders], settings, 16 << 20);
    let partitions = vec![world.key("orders", 0)];
    world.ask(|reply| Command::Release { partitions, reply });
    world.assign(100_000);
    world.until_caught_up(MINUTE);
    for path in world.segments(0).iter().rev().skip(8) {
        world.sim.disk(world.machine(), |disk| disk.flip_bit(path, 30_000, 3));
    }
    let mut slow = Faults::none();
    slow.disk.delay = Duration::from_millis(1)..Duration::from_millis(12);
    world.sim.set_faults(slow);
    let (first_after, every) = (Duration::ZERO, Duration::from_secs(36_000));
    world.tell(Command::Verify(VerifySettings { bytes_per_second: 0, first_after, every }));
    world.until("a repair", 10 * MINUTE, |status| status.stats.damages_repaired >= 1);
    world.sim.run_for(Duration::from_millis(delay_ms));
    world.cluster.lose_tail("orders", 0, 2912).expect("loses");
    world.cluster.append("orders", 0, regained).expect("appends");
    world.tell_leaders();
    for _ in 0..200 {
        world.cluster.append("orders", 0, 1).expect("appends");
        world.sim.run_for(Duration::from_millis(7));
    }
    world.until_caught_up(10 * MINUTE);
    world.until("all repairs", 10 * MINUTE, |status| {
        status.partitions[0].state == PartitionState::Active
    });
    let cut = |event: &Event| matches!(event, Event::Truncated { .. });
    assert!(world.seen.iter().any(cut), "{:?}", world.seen);
    let end = world.cluster.log("orders", 0).expect("it has it").high_watermark();
    assert_eq!(end_of_copy(&world), Ok(end), "{delay_ms} ms, {regained} batches");
}

#[test]
fn a_repair_that_ends_while_the_log_is_cut_leaves_no_hole() {
    for round in 0..12 {
        play(round * 15, 1 + round % 17);
    }
}
