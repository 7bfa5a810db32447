//! A start reads what lies above the last checkpoint, however much lies below it.

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use source::TopicSpec;
use tests::Outcome;
use tests::understudy::Understudy;

use crate::stage::{Source, ensure};

const TOPIC: &str = "deep";
const PARTITIONS: i32 = 4;
const BATCH_BYTES: u64 = 64 << 10;
/// Side files are saved after so many bytes; a start reads no more of a partition than came since.
const SAVED_EVERY_BYTES: u64 = 64 << 20;
const BATCHES_MORE: u64 = 400;
/// Beside records: indexes, snapshots, checkpoints, the metadata store, the program itself.
const ELSE_BYTES: u64 = 32 << 20;

/// What a start cost.
struct Start {
    time: Duration,
    /// Fetched from the device: pages that were in memory are not counted, so none may be.
    bytes: u64,
}

/// After `kill -9` and after a clean stop. `UNDERSTUDY_LOG_BYTES` says how much there is, 1 GiB
/// unless told.
pub fn reads_little() -> Outcome {
    let wanted = std::env::var("UNDERSTUDY_LOG_BYTES").ok().and_then(|n| n.parse().ok());
    let wanted: u64 = wanted.unwrap_or(1 << 30);
    // Not a multiple of what is saved together: something lies above the last place that was.
    let batches = wanted / BATCH_BYTES / u64::from(PARTITIONS.unsigned_abs()) + BATCHES_MORE;
    let bytes = batches * BATCH_BYTES * u64::from(PARTITIONS.unsigned_abs());
    let source = Source::start(&[TopicSpec::new(TOPIC, PARTITIONS, batches)])?;
    let mut node = Understudy::at("deep", source.bootstrap(), None, &[TOPIC])?;
    node.launch()?;
    let ends = source.ends(TOPIC)?;
    node.wait_caught_up(TOPIC, &ends)?;
    node.kill();
    source.leave()?;

    let killed = start(&mut node, &ends)?;
    let bound = u64::from(PARTITIONS.unsigned_abs()) * SAVED_EVERY_BYTES + ELSE_BYTES;
    tell("after kill -9", bytes, &killed, bound);
    ensure(bound < bytes, || format!("a log of {bytes} bytes is too small to tell"))?;
    ensure(killed.bytes > BATCH_BYTES, || "nothing was counted".into())?;
    ensure(killed.bytes < bound, || format!("{} bytes read, {bound} allowed", killed.bytes))?;
    node.stop()?;

    let stopped = start(&mut node, &ends)?;
    tell("after a clean stop", bytes, &stopped, ELSE_BYTES);
    ensure(stopped.bytes < ELSE_BYTES, || {
        format!("{} bytes read, {ELSE_BYTES} allowed", stopped.bytes)
    })?;
    source.come_back()?;
    source.prove(&mut node).map(drop)
}

fn tell(when: &str, bytes: u64, start: &Start, bound: u64) {
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    eprintln!(
        "  {when}: {:.1} of {:.0} MiB read (bound {:.0}), started in {} ms",
        mib(start.bytes),
        mib(bytes),
        mib(bound),
        start.time.as_millis()
    );
}

/// Starts the node, the source being away, until it says of everything that it is flushed.
fn start(node: &mut Understudy, ends: &[i64]) -> Outcome<Start> {
    evict(node.data())?;
    let began = Instant::now();
    node.launch()?;
    let time = began.elapsed();
    node.wait_until("everything to be there", |all| {
        let there = |p: &tests::understudy::Partition| p.flushed == ends.get(p.partition).copied();
        all.len() == ends.len() && all.iter().all(there)
    })?;
    Ok(Start { time, bytes: node.bytes_read()? })
}

/// Has the kernel forget the pages of every file below a folder.
fn evict(folder: &Path) -> Outcome {
    let told = |path: &Path, e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    for entry in fs::read_dir(folder).map_err(|e| told(folder, &e))?.flatten() {
        let path = entry.path();
        if path.is_dir() {
            evict(&path)?;
            continue;
        }
        let file = File::open(&path).map_err(|e| told(&path, &e))?;
        file.sync_all().map_err(|e| told(&path, &e))?;
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)
            .map_err(|e| told(&path, &e))?;
    }
    Ok(())
}
