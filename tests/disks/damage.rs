//! Damage done while the node was down: each file of a copy missing, cut short, or with bits
//! turned over. Each ends in a named state or in a copy that equals the source; never in a silent
//! cut, never in a process that does not run; the neighbours notice nothing.

use std::cell::Cell;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use source::TopicSpec;
use tests::understudy::{LINK, Partition, Understudy};
use tests::{Outcome, process};

use crate::stage::{Source, ensure};
use crate::volume::{Kind, Volume};

const TOPIC: &str = "hurt";
/// Batches of each partition: three sealed segments of 56 batches, and some in the last.
const BATCHES: u64 = 200;

/// How a file is hurt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    Missing,
    Truncated,
    Emptied,
    /// A bit in the middle.
    Flipped,
    /// Noise over the first half.
    Garbled,
}

const MANNERS: [Manner; 5] =
    [Manner::Missing, Manner::Truncated, Manner::Emptied, Manner::Flipped, Manner::Garbled];

/// Which file of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    FirstSegment,
    LastSealedSegment,
    LastSegment,
    Index,
    TimeIndex,
    LastIndex,
    FirstSeal,
    LastSeal,
    Epochs,
    Metadata,
}

const PARTS: [Part; 10] = [
    Part::FirstSegment,
    Part::LastSealedSegment,
    Part::LastSegment,
    Part::Index,
    Part::TimeIndex,
    Part::LastIndex,
    Part::FirstSeal,
    Part::LastSeal,
    Part::Epochs,
    Part::Metadata,
];

/// A copy, stopped, whose source is at hand.
struct Stopped {
    source: Source,
    node: Understudy,
    safe: PathBuf,
}

/// Every file of a partition, in every manner: one partition for each, in one node, with one
/// unharmed beside them.
pub fn partition_files() -> Outcome {
    let mut stopped = Stopped::new("files")?;
    let mut wrong = Vec::new();
    for manner in MANNERS {
        stopped.restore()?;
        let mut before = Vec::new();
        for (partition, part) in PARTS.into_iter().enumerate() {
            let file = stopped.file(partition, part)?;
            hurt(&file, manner)?;
            before.push(listing(&stopped.node.partition_dir(TOPIC, partition))?);
        }
        let settled = stopped.settle_verified()?;
        stopped.node.stop()?;
        for (partition, part) in PARTS.into_iter().enumerate() {
            let told = settled.iter().find(|p| p.partition == partition);
            let told = told.ok_or_else(|| format!("{part:?} {manner:?}: not there"))?;
            let folder = stopped.node.partition_dir(TOPIC, partition);
            let whole = stopped.whole(partition);
            eprintln!("  {part:?} {manner:?}: {} {} {}", told.state, told.code, told.reason);
            match (told.state.as_str(), whole) {
                ("ACTIVE", Ok(())) => {
                    let sides = stopped.sides_whole(partition);
                    wrong.extend(sides.err().map(|e| format!("{part:?} {manner:?}: {e}")));
                }
                ("ACTIVE", Err(e)) => wrong.push(format!("{part:?} {manner:?}: ACTIVE, yet {e}")),
                _ if part.is_segment() => {
                    wrong.push(format!("{part:?} {manner:?}: not repaired: {told:?}"));
                }
                _ => {
                    let after = listing(&folder)?;
                    let shrunk = before[partition].iter().any(|(name, bytes)| {
                        name.ends_with(".log") && after.iter().all(|(n, b)| n != name || b < bytes)
                    });
                    if shrunk || told.reason.is_empty() {
                        wrong.push(format!("{part:?} {manner:?}: {told:?}, cut: {shrunk}"));
                    }
                }
            }
        }
        let neighbour = PARTS.len();
        let well = settled.iter().any(|p| p.partition == neighbour && p.state == "ACTIVE");
        ensure(well, || format!("{manner:?}: the neighbour: {settled:?}"))?;
        stopped.whole(neighbour)?;
    }
    ensure(wrong.is_empty(), || wrong.join("\n"))
}

impl Part {
    fn is_segment(self) -> bool {
        matches!(self, Part::FirstSegment | Part::LastSealedSegment | Part::LastSegment)
    }
}

/// After `kill -9` the last segment is read: a single bit of it below the flushed end is found, and
/// named with its range; nothing is cut.
pub fn bit_below_the_flushed_end() -> Outcome {
    let mut stopped = Stopped::new("bit")?;
    stopped.node.launch()?;
    // What comes now is not followed by a clean stop.
    for partition in 0..=PARTS.len() {
        let more = stopped.source.cluster().append(TOPIC, partition as i32, 20);
        more.map_err(|e| e.to_string())?;
    }
    let ends = stopped.source.ends(TOPIC)?;
    stopped.node.wait_caught_up(TOPIC, &ends)?;
    stopped.node.kill();
    let file = stopped.file(0, Part::LastSegment)?;
    let log = File::options().read(true).write(true).open(&file).map_err(|e| e.to_string())?;
    // Within the first of the batches that came last.
    let position = 32 * 20_000 - 5_000;
    let mut byte = [0];
    log.read_exact_at(&mut byte, position).map_err(|e| e.to_string())?;
    log.write_all_at(&[byte[0] ^ 1], position).map_err(|e| e.to_string())?;
    let before = fs::metadata(&file).map_err(|e| e.to_string())?.len();
    // The source no longer has all of the records to mend it with.
    let base = file.file_stem().and_then(|stem| stem.to_str()?.parse::<i64>().ok());
    let hurt = base.ok_or("a segment without a base")? + position as i64 / 20_000 * 10;
    stopped.source.cluster().delete_records(TOPIC, 0, hurt + 5).map_err(|e| e.to_string())?;
    stopped.node.launch()?;
    let settled = stopped.node.wait_until("the damage to be kept and named", |all| {
        all.iter().any(|p| p.partition == 0 && p.reason.contains("has deleted a part of it"))
    })?;
    let hurt = settled.iter().find(|p| p.partition == 0).ok_or("it is not there")?;
    eprintln!("  {} {}", hurt.state, hurt.reason);
    ensure(hurt.state == "CORRUPT" && hurt.reason.contains("bytes "), || format!("{hurt:?}"))?;
    let after = fs::metadata(&file).map_err(|e| e.to_string())?.len();
    ensure(after == before, || format!("{} had {before} bytes, has {after}", file.display()))?;
    // Once it has none of them the log goes on; the damage stays named, and nothing of it is cut.
    let end = ends[0];
    stopped.source.cluster().delete_records(TOPIC, 0, end - 10).map_err(|e| e.to_string())?;
    stopped.source.cluster().append(TOPIC, 0, 1).map_err(|e| e.to_string())?;
    let settled = stopped.node.wait_until("the log to go on", |all| {
        all.iter().any(|p| p.partition == 0 && p.flushed == Some(end + 10))
    })?;
    let hurt = settled.iter().find(|p| p.partition == 0).ok_or("it is not there")?;
    ensure(hurt.reason.contains("lies below the log start"), || format!("{hurt:?}"))?;
    stopped.node.stop()?;
    let after = fs::metadata(&file).map_err(|e| e.to_string())?.len();
    ensure(after == 50 * 20_000, || format!("{} has {after} bytes", file.display()))?;
    (1..=PARTS.len()).try_for_each(|partition| stopped.whole(partition))
}

/// A device that cannot read some of what is to be recovered: the partition says so with the range,
/// or has mended it from the source; nothing is cut, the neighbours go on; on a sound device again
/// all is there.
pub fn unreadable_sectors() -> Outcome {
    for kind in [Kind::Ext4, Kind::Xfs] {
        let topic = TopicSpec::new(TOPIC, 3, 40).with_batches(3, 20_000, 10);
        let source = Source::start(&[topic.with_ring_bytes(8 << 20)])?;
        let name = format!("unreadable-{}", kind.name());
        let bytes = kind.make(kind.bytes_min().max(128 << 20))?;
        let volume = Volume::mount(kind, &name, bytes)?;
        let data = volume.path().join("data");
        let mut node = Understudy::at(&name, source.bootstrap(), Some(&data), &[TOPIC])?;
        node.launch()?;
        source.prove(&mut node)?;
        node.launch()?;
        // What comes now is not followed by a clean stop: the next start reads it.
        for partition in 0..3 {
            source.cluster().append(TOPIC, partition, 20).map_err(|e| e.to_string())?;
        }
        let ends = source.ends(TOPIC)?;
        node.wait_caught_up(TOPIC, &ends)?;
        node.kill();
        let log = ending(&node.partition_dir(TOPIC, 0), ".log")?;
        let log = log.last().ok_or("no segment")?.clone();
        let mut bytes = [0; 1024];
        let file = File::open(&log).map_err(|e| e.to_string())?;
        // Some way into the batches that came last.
        file.read_exact_at(&mut bytes, 45 * 20_000 / 4096 * 4096).map_err(|e| e.to_string())?;
        drop(file);
        let before = fs::metadata(&log).map_err(|e| e.to_string())?.len();
        let left = volume.unmount()?;
        let at = left.find(&bytes).ok_or("these bytes are not on the device")?;
        let volume = Volume::mount(kind, &name, left)?;
        volume.device.spoil(at..at + bytes.len() as u64);
        node.launch()?;
        let settled = node.wait_until("all to come to rest", |all| {
            all.len() == 3
                && all.iter().all(|p| match p.state.as_str() {
                    "ACTIVE" => p.flushed == ends.get(p.partition).copied(),
                    "CORRUPT" => p.partition == 0 && !p.reason.is_empty(),
                    _ => false,
                })
        })?;
        eprintln!("  {}: {} {}", kind.name(), settled[0].state, settled[0].reason);
        ensure(volume.device.refusals() > 0, || "nothing was refused".into())?;
        let after = fs::metadata(&log).map_err(|e| e.to_string())?.len();
        let kept = settled[0].state == "ACTIVE" || after == before;
        ensure(kept, || format!("{} had {before} bytes, has {after}", log.display()))?;
        node.stop()?;
        let volume = Volume::mount(kind, &name, volume.unmount()?)?;
        node.launch()?;
        source.prove(&mut node)?;
        drop(volume.unmount()?);
    }
    Ok(())
}

/// The node's own files: checkpoints are lost without harm, a store that is not whole is refused
/// in words.
pub fn own_files() -> Outcome {
    let mut stopped = Stopped::new("own")?;
    let own = stopped.node.data().join(".understudy");
    for manner in MANNERS {
        stopped.restore()?;
        for (name, _) in listing(&own)?.iter().filter(|(name, _)| name.starts_with("checkpoint-")) {
            hurt(&own.join(name), manner)?;
        }
        let settled = stopped.settle()?;
        let well = settled.iter().all(|p| p.state == "ACTIVE");
        ensure(well, || format!("checkpoints {manner:?}: {settled:?}"))?;
        stopped.node.stop()?;
        stopped.source.prove_stopped(&stopped.node)?;
    }
    for manner in MANNERS {
        stopped.restore()?;
        let store = own.join("metadata.store");
        without_room(&store)?;
        hurt(&store, manner)?;
        stopped.node.spawn()?;
        let ended = soon_ended(&mut stopped.node)?;
        let said = fs::read_to_string(stopped.node.log()).map_err(|e| e.to_string())?;
        match ended {
            None => return Err(format!("store {manner:?}: it runs\n{said}")),
            Some(code) => {
                // Which the unit says not to start again.
                let lasting = code == Some(7);
                ensure(lasting, || format!("store {manner:?}: status {code:?}\n{said}"))?;
                let last = said.lines().last().unwrap_or_default().to_owned();
                let named = said.contains("metadata.store");
                ensure(named, || format!("store {manner:?}: not named\n{said}"))?;
                eprintln!("  store {manner:?}: {last}");
            }
        }
        for partition in 0..=PARTS.len() {
            stopped.whole(partition)?;
        }
    }
    Ok(())
}

impl Stopped {
    fn new(name: &str) -> Outcome<Stopped> {
        let mut topic = TopicSpec::new(TOPIC, PARTS.len() as i32 + 1, BATCHES)
            .with_batches(3, 20_000, 10)
            .with_ring_bytes(1 << 20);
        topic.timestamps.step_us = 3 * 3_600_000_000;
        let source = Source::start(&[topic])?;
        let mut node = Understudy::at(name, source.bootstrap(), None, &[TOPIC])?;
        let verify = "[shards]\nverify_rate = \"1GiB\"\nverify_every = \"1s\"";
        // One shard, whose passes are all there are.
        let configuration = node.configuration()?.replace("cores = \"auto\"", "cores = \"0\"");
        node.configure(&configuration.replace("[shards]", verify))?;
        node.launch()?;
        source.prove(&mut node)?;
        let safe = node.data().with_extension("safe");
        copy(node.data(), &safe)?;
        Ok(Stopped { source, node, safe })
    }

    fn restore(&self) -> Outcome {
        fs::remove_dir_all(self.node.data()).map_err(|e| e.to_string())?;
        copy(&self.safe, self.node.data())
    }

    /// Starts the node and waits until every partition has come to rest.
    fn settle(&mut self) -> Outcome<Vec<Partition>> {
        self.node.launch()?;
        let ends = self.source.ends(TOPIC)?;
        self.node.wait_until("every partition to come to rest", |all| {
            all.len() == ends.len()
                && all.iter().all(|p| match p.state.as_str() {
                    "ACTIVE" => p.flushed == ends.get(p.partition).copied(),
                    "FAULTED" | "CORRUPT" => true,
                    _ => false,
                })
        })
    }

    /// Starts the node and waits until every partition has come to rest, and is at rest still when
    /// all that is stored has been read again since: what can be repaired is.
    fn settle_verified(&mut self) -> Outcome<Vec<Partition>> {
        self.node.launch()?;
        let ends = self.source.ends(TOPIC)?;
        let log = self.node.log();
        let passes = || {
            let said = fs::read_to_string(&log).unwrap_or_default();
            said.matches("stored bytes were verified").count()
        };
        let passes_due = Cell::new(None);
        self.node.wait_until("every partition to be verified and to come to rest", |all| {
            let at_rest = all.len() == ends.len()
                && all.iter().all(|p| match p.state.as_str() {
                    "ACTIVE" => p.flushed == ends.get(p.partition).copied(),
                    "FAULTED" => true,
                    _ => false,
                });
            if !at_rest {
                passes_due.set(None);
                return false;
            }
            let passes = passes();
            // The pass under way has read some before they were at rest.
            let due = passes_due.get().unwrap_or(passes + 2);
            passes_due.set(Some(due));
            passes >= due
        })
    }

    /// Whether a partition's copy is exactly the source's.
    fn whole(&self, partition: usize) -> Outcome {
        let folder = self.node.partition_dir(TOPIC, partition);
        let end = self.source.compare(TOPIC, partition as i32, &folder)?;
        let due = self.source.ends(TOPIC)?[partition];
        ensure(end == due, || format!("{TOPIC}-{partition} ends at {end}, not at {due}"))
    }

    /// Whether what lies beside a partition's batches is byte for byte what it was.
    fn sides_whole(&self, partition: usize) -> Outcome {
        let name = format!("{TOPIC}-{partition}");
        for folder in [Path::new(LINK), &Path::new(".understudy/seals").join(LINK)] {
            let (was, is) = (self.safe.join(folder).join(&name), self.node.data().join(folder));
            let is = is.join(&name);
            let (before, after) = (listing(&was)?, listing(&is)?);
            ensure(before == after, || format!("{before:?} have become {after:?}"))?;
            // Batches are held against the source.
            for (file, _) in before.iter().filter(|(file, _)| !file.ends_with(".log")) {
                let read = |folder: &Path| fs::read(folder.join(file)).map_err(|e| e.to_string());
                ensure(read(&was)? == read(&is)?, || format!("{name}: {file} has changed"))?;
            }
        }
        Ok(())
    }

    fn file(&self, partition: usize, part: Part) -> Outcome<PathBuf> {
        let name = format!("{TOPIC}-{partition}");
        let folder = self.node.partition_dir(TOPIC, partition);
        let seals = self.node.data().join(".understudy/seals").join(LINK).join(name);
        let from_end = |mut files: Vec<PathBuf>, back: usize| {
            let at = files.len().checked_sub(back + 1);
            at.map(|at| files.swap_remove(at)).ok_or_else(|| format!("no {part:?}"))
        };
        let first = |files: Vec<PathBuf>| files.into_iter().next().ok_or(format!("no {part:?}"));
        match part {
            Part::FirstSegment => first(ending(&folder, ".log")?),
            Part::LastSealedSegment => from_end(ending(&folder, ".log")?, 1),
            Part::LastSegment => from_end(ending(&folder, ".log")?, 0),
            Part::Index => first(ending(&folder, ".index")?),
            Part::TimeIndex => first(ending(&folder, ".timeindex")?),
            Part::LastIndex => from_end(ending(&folder, ".index")?, 0),
            Part::FirstSeal => first(ending(&seals, ".seal")?),
            Part::LastSeal => from_end(ending(&seals, ".seal")?, 0),
            Part::Epochs => Ok(folder.join("leader-epoch-checkpoint")),
            Part::Metadata => Ok(folder.join("partition.metadata")),
        }
    }
}

/// Names and sizes, by name.
fn listing(folder: &Path) -> Outcome<Vec<(String, u64)>> {
    let told = |e: std::io::Error| format!("{}: {e}", folder.display());
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(told)? {
        let entry = entry.map_err(told)?;
        let bytes = entry.metadata().map_err(told)?.len();
        files.push((entry.file_name().to_string_lossy().into_owned(), bytes));
    }
    files.sort();
    Ok(files)
}

/// Cuts a metadata store to what it says of itself: behind that lies the room that is kept for
/// more, where no damage does harm.
fn without_room(store: &Path) -> Outcome {
    let told = |e: std::io::Error| format!("{}: {e}", store.display());
    let file = File::options().read(true).write(true).open(store).map_err(told)?;
    let mut body_bytes = [0; 8];
    file.read_exact_at(&mut body_bytes, 24).map_err(told)?;
    file.set_len(40 + u64::from_le_bytes(body_bytes)).map_err(told)
}

fn hurt(path: &Path, manner: Manner) -> Outcome {
    let told = |e: std::io::Error| format!("{manner:?} {}: {e}", path.display());
    if manner == Manner::Missing {
        return fs::remove_file(path).map_err(told);
    }
    let file = File::options().read(true).write(true).open(path).map_err(told)?;
    let bytes = file.metadata().map_err(told)?.len();
    match manner {
        Manner::Truncated => file.set_len(bytes / 2),
        Manner::Emptied => file.set_len(0),
        Manner::Flipped => {
            let mut byte = [0];
            file.read_exact_at(&mut byte, bytes / 2).map_err(told)?;
            file.write_all_at(&[byte[0] ^ 0x10], bytes / 2)
        }
        Manner::Garbled => file.write_all_at(&vec![0xa5; (bytes / 2) as usize], 0),
        Manner::Missing => Ok(()),
    }
    .map_err(told)
}

fn copy(from: &Path, to: &Path) -> Outcome {
    let mut command = Command::new("cp");
    command.args(["-a", "--reflink=auto", "--"]).arg(from).arg(to);
    process::run("cp -a", &mut command).map(drop)
}

/// Whether it has ended within three seconds, and with status 0.
fn soon_ended(node: &mut Understudy) -> Outcome<Option<Option<i32>>> {
    for _ in 0..60 {
        let process = node.process().ok_or("it does not run")?;
        if let Some(status) = process.ended()? {
            node.kill();
            return Ok(Some(status.code()));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(None)
}

/// The files of a folder whose names end so, in order.
fn ending(folder: &Path, ending: &str) -> Outcome<Vec<PathBuf>> {
    let files = listing(folder)?.into_iter().filter(|(name, _)| name.ends_with(ending));
    Ok(files.map(|(name, _)| folder.join(name)).collect())
}
