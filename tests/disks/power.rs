//! The power goes: a device with a volatile cache keeps what was flushed and, of what was not, what
//! the lot decides, sector by sector.

use std::time::{Duration, Instant};

use source::{Growth, TopicSpec};
use tests::Outcome;
use tests::understudy::{Partition, Understudy};

use crate::blocks::{Blocks, Cut};
use crate::fuse::Refused;
use crate::stage::{Source, ensure, pause, seeded};
use crate::volume::{Kind, Volume};

const TOPIC: &str = "dark";
const PARTITIONS: i32 = 4;

/// On ext4.
pub fn power_cut_on_ext4() -> Outcome {
    rounds(Kind::Ext4)
}

/// On XFS.
pub fn power_cut_on_xfs() -> Outcome {
    rounds(Kind::Xfs)
}

/// The device refuses writes and flushes under load: every partition says so and the process
/// answers; on a sound device again, with what this one had kept, nothing flushed is missing.
pub fn failing_device() -> Outcome {
    for kind in [Kind::Ext4, Kind::Xfs] {
        let topic = TopicSpec::new(TOPIC, PARTITIONS, 20)
            .with_batches(7, 6_000, 9)
            .with_growth(Growth { backlog_batches: 20, ..Growth::rate(200_000.0) });
        let source = Source::start(&[topic])?;
        let name = format!("failing-{}", kind.name());
        let bytes = kind.make(kind.bytes_min().max(256 << 20))?;
        let volume = Volume::mount(kind, &name, bytes)?;
        let data = volume.path().join("data");
        let mut node = Understudy::at(&name, source.bootstrap(), Some(&data), &[TOPIC])?;
        node.launch()?;
        let told = node.wait_until("some of every partition flushed", |all| {
            all.len() == PARTITIONS as usize && all.iter().all(|p| p.flushed > Some(0))
        })?;
        volume.device.refuse(Refused { reads: false, writes: true, flushes: true });
        let hurt = node.wait_until("all partitions to be in trouble", |all| {
            all.iter().all(|p| p.state != "ACTIVE" && !p.reason.is_empty())
        })?;
        eprintln!("  {}: {} {}", kind.name(), hurt[0].state, hurt[0].reason);
        let (left, _) = volume.device.cut(Cut::Nothing, &mut || 0);
        node.kill();
        ensure(volume.device.refusals() > 0, || "nothing was ever refused".into())?;
        drop(volume);
        source.leave()?;
        let volume = Volume::mount(kind, &format!("{name}-again"), left)?;
        let data = volume.path().join("data");
        let mut node = Understudy::at(&name, source.bootstrap(), Some(&data), &[TOPIC])?;
        recovers(&source, &mut node, &told)?;
        source.come_back()?;
        source.prove(&mut node)?;
        drop(volume.unmount()?);
    }
    Ok(())
}

/// Whatever is told as flushed is on the device at that moment, on an idle link too: what the
/// device is sure of is looked at as it is, before any recovery of ours.
pub fn flushed_is_on_the_device() -> Outcome {
    for kind in [Kind::Ext4, Kind::Xfs] {
        let topic = TopicSpec::new(TOPIC, PARTITIONS, 20).with_batches(7, 6_000, 9);
        let source = Source::start(&[topic])?;
        let name = format!("sure-{}", kind.name());
        let bytes = kind.make(kind.bytes_min().max(256 << 20))?;
        let volume = Volume::mount(kind, &name, bytes)?;
        let data = volume.path().join("data");
        let mut node = Understudy::at(&name, source.bootstrap(), Some(&data), &[TOPIC])?;
        node.launch()?;
        let mut pictures = Vec::new();
        for _ in 0..5 {
            for partition in 0..PARTITIONS {
                source.cluster().append(TOPIC, partition, 3).map_err(|e| e.to_string())?;
            }
            node.wait_caught_up(TOPIC, &source.ends(TOPIC)?)?;
            let told = node.status()?;
            pictures.push((told, volume.device.cut(Cut::Nothing, &mut || 0).0));
        }
        node.kill();
        drop(volume.unmount()?);
        let count = pictures.len();
        for (told, left) in pictures {
            let volume = Volume::mount(kind, &name, left)?;
            source.holds(&node, &told)?;
            drop(volume.unmount()?);
        }
        eprintln!("  {}: {count} times everything that was told as flushed", kind.name());
    }
    Ok(())
}

/// What was there at one moment, and what the device kept of it.
struct Picture {
    cut: Cut,
    told: Vec<Partition>,
    left: Blocks,
}

/// Under load, at random moments: what was told as flushed before the cut is there after it, every
/// byte there is the source's, the node starts with the source away, and catches up with it back.
/// A node's life gives a cut of each kind, and the next begins with what one of them left.
/// `UNDERSTUDY_CUTS` says how many.
fn rounds(kind: Kind) -> Outcome {
    let cuts: usize =
        std::env::var("UNDERSTUDY_CUTS").ok().and_then(|n| n.parse().ok()).unwrap_or(20);
    let mut random = seeded();
    // Each batch is three hours younger than the one before: a segment of seven days is soon over.
    let mut topic = TopicSpec::new(TOPIC, PARTITIONS, 20)
        .with_batches(7, 6_000, 9)
        .with_growth(Growth { backlog_batches: 20, ..Growth::rate(200_000.0) });
    topic.timestamps.step_us = 3 * 3_600_000_000;
    let source = Source::start(&[topic])?;
    let name = format!("dark-{}", kind.name());
    let bytes = kind.make(kind.bytes_min().max(256 << 20))?;
    let mut volume = Volume::mount(kind, &name, bytes)?;
    let data = volume.path().join("data");
    let mut node = Understudy::at(&name, source.bootstrap(), Some(&data), &[TOPIC])?;
    node.launch()?;
    let (mut made, mut unflushed, mut flushes, mut slowest) = (0, 0, 0, Duration::ZERO);
    while made < cuts {
        node.wait_until("some of every partition flushed", |all| {
            all.len() == PARTITIONS as usize && all.iter().all(|p| p.flushed > Some(0))
        })?;
        let mut pictures = Vec::new();
        for cut in Cut::ALL {
            pause(&mut random, 700);
            let told = node.status()?;
            pause(&mut random, 30);
            let (left, lost) = volume.device.cut(cut, &mut random);
            unflushed += lost;
            pictures.push(Picture { cut, told, left });
        }
        flushes += volume.device.flushes();
        node.kill();
        drop(volume.unmount()?);
        source.leave()?;
        // Another one is the last each time: the next life begins with what it left.
        pictures.rotate_left(1 + made / Cut::ALL.len() % Cut::ALL.len());
        let count = pictures.len();
        let mut last = None;
        for (index, picture) in pictures.into_iter().enumerate() {
            let at = format!("cut {}, {:?}", made + index, picture.cut);
            let mounted = Volume::mount(kind, &name, picture.left)?;
            let started = Instant::now();
            recovers(&source, &mut node, &picture.told).map_err(|e| format!("{at}: {e}"))?;
            slowest = slowest.max(started.elapsed());
            if index + 1 < count {
                node.kill();
                drop(mounted.unmount()?);
            } else {
                last = Some(mounted);
            }
        }
        volume = last.expect("there are pictures");
        source.come_back()?;
        made += count;
    }
    let records = source.prove(&mut node)?;
    eprintln!(
        "  {made} cuts on {}: {flushes} flushes seen, {unflushed} writes not covered by one, \
         {records} records compared at the end; the slowest recovery took {} ms",
        kind.name(),
        slowest.as_millis()
    );
    ensure(unflushed > 0, || "no cut ever met an unflushed write".into())
}

/// Starts the node, the source being away, and looks whether what was told is there.
fn recovers(source: &Source, node: &mut Understudy, told: &[Partition]) -> Outcome {
    node.launch()?;
    // A cut may have taken the checkpoint that said so; the bytes are flushed again, then.
    let kept = |all: &[Partition]| {
        told.iter().all(|then| {
            let now = all.iter().find(|p| p.partition == then.partition);
            now.is_some_and(|p| p.written >= then.flushed && p.flushed >= then.flushed)
        })
    };
    let back = node
        .wait_until("what was flushed to be there", kept)
        .map_err(|e| format!("cut after {told:?}: {e}"))?;
    for partition in &back {
        let well = ["ACTIVE", "RETRYING"].contains(&partition.state.as_str());
        ensure(well, || format!("{partition:?}\n{}", node.log_tail()))?;
    }
    source.holds(node, told)
}
