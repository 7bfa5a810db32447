//! What happens once per process, before the shards start: data directories are locked, found
//! partitions listed, and all checkpoints of all shards merged into one.
//!
//! Blocking, with `std::fs`: nothing else runs yet.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;

use crate::checkpoint::{Checkpoint, Entry, merge};
use crate::inventory::{self, FoundPartition, InventoryError};
use crate::limits::RESERVE_FILE_BYTES;
use crate::names::{LogId, OWN_FOLDER};

mod simulated;

/// Why the process cannot use its data directories.
#[derive(Debug, Error)]
pub enum BootError {
    /// Another process has it.
    #[error("data directory {0} is in use by another process (its lock file is held)")]
    Locked(PathBuf),
    /// The same directory twice, or one within another.
    #[error("data directories {0} and {1} overlap")]
    Overlap(PathBuf, PathBuf),
    /// Missing, read-only, or broken.
    #[error("data directory {path}: {source}")]
    Io {
        /// What was accessed.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Listing failed.
    #[error(transparent)]
    Inventory(#[from] InventoryError),
    /// CRC code does not compute what Kafka expects.
    #[error("the checksum code fails its self-check on this processor")]
    Checksum,
}

/// The data directories, locked as long as a clone of this lives. Cheap to clone, sent to every
/// shard.
#[derive(Clone, Debug)]
pub struct Boot(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    count: u64,
    directories: Vec<Directory>,
    partitions: Vec<FoundPartition>,
}

#[derive(Debug)]
struct Directory {
    path: PathBuf,
    entries: BTreeMap<LogId, Entry>,
    lost: bool,
    /// Holds the lock until the process ends. A simulated machine has one process.
    _lock: Option<File>,
}

impl Boot {
    /// Locks, lists, merges. Missing directories are created.
    pub fn prepare(data_dirs: &[PathBuf]) -> Result<Boot, BootError> {
        if !crate::crc::self_check() {
            return Err(BootError::Checksum);
        }
        let mut locked = Vec::new();
        for path in data_dirs {
            locked.push((path.clone(), lock(path)?));
        }
        check_overlap(data_dirs)?;
        let partitions = inventory::inventory(data_dirs)?;
        let mut directories = Vec::new();
        let mut count = 0;
        for (index, (path, lock)) in locked.into_iter().enumerate() {
            let present = partitions.iter().any(|found| found.data_dir == index);
            let (merged, boot, lost) = read_checkpoints(&path, present)?;
            count = count.max(boot);
            directories.push(Directory { path, entries: merged, lost, _lock: Some(lock) });
        }
        count += 1;
        for (index, directory) in directories.iter_mut().enumerate() {
            directory.keep_found(partitions.iter().filter(|found| found.data_dir == index));
            write_base(directory, count)?;
            write_reserve(&directory.path)?;
        }
        Ok(Boot(Arc::new(Inner { count, directories, partitions })))
    }

    /// How often the process was started on these directories.
    pub fn count(&self) -> u64 {
        self.0.count
    }

    /// The directories, in configuration order.
    pub fn data_dirs(&self) -> impl ExactSizeIterator<Item = &Path> {
        self.0.directories.iter().map(|directory| directory.path.as_path())
    }

    /// The partitions found.
    pub fn partitions(&self) -> &[FoundPartition] {
        &self.0.partitions
    }

    /// Whether the checkpoints of a directory were lost: every partition there is read whole.
    pub fn lost(&self, data_dir: usize) -> bool {
        self.0.directories[data_dir].lost
    }

    pub(crate) fn entry(&self, data_dir: usize, id: &LogId) -> Option<Entry> {
        self.0.directories[data_dir].entries.get(id).copied()
    }
}

impl Directory {
    /// Entries of partitions that are gone go, too; doubt is noted on each of the others.
    fn keep_found<'a>(&mut self, found: impl Iterator<Item = &'a FoundPartition>) {
        let ids: BTreeSet<&LogId> = found.map(|found| &found.id).collect();
        self.entries.retain(|id, _| ids.contains(id));
        if self.lost {
            for id in ids {
                self.entries.entry(id.clone()).or_insert(Entry::UNKNOWN).doubtful = true;
            }
        }
    }
}

/// The path of a shard's checkpoint slot.
pub fn slot_path(data_dir: &Path, shard: u16, slot: u64) -> PathBuf {
    data_dir.join(OWN_FOLDER).join(format!("checkpoint-{shard}.{slot}"))
}

/// Gives space back to a full disk, so that a failover can write out what it has and be recorded:
/// the reserve of a directory is cut to `bytes`. The next start fills it up again.
///
/// # Errors
/// The file cannot be cut. That there is none is no error.
pub fn shrink_reserve(data_dir: &Path, bytes: u64) -> io::Result<()> {
    let path = data_dir.join(OWN_FOLDER).join("reserve");
    match File::options().write(true).open(path) {
        Ok(file) if file.metadata()?.len() > bytes => {
            file.set_len(bytes)?;
            // What a journal still holds is not free yet.
            file.sync_all()
        }
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn lock(data_dir: &Path) -> Result<File, BootError> {
    let own = data_dir.join(OWN_FOLDER);
    let path = own.join("lock");
    let io = |source| BootError::Io { path: data_dir.to_owned(), source };
    fs::create_dir_all(&own).map_err(io)?;
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(io)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(BootError::Locked(data_dir.to_owned())),
        Err(TryLockError::Error(source)) => Err(io(source)),
    }
}

fn check_overlap(data_dirs: &[PathBuf]) -> Result<(), BootError> {
    let mut real = Vec::new();
    for path in data_dirs {
        let io = |source| BootError::Io { path: path.clone(), source };
        real.push((path, fs::canonicalize(path).map_err(io)?));
    }
    for (i, (path, one)) in real.iter().enumerate() {
        for (other_path, other) in &real[i + 1..] {
            if one.starts_with(other) || other.starts_with(one) {
                return Err(BootError::Overlap((*path).clone(), (*other_path).clone()));
            }
        }
    }
    Ok(())
}

/// Entries, boot count, and whether a file that must be whole is not.
type Merged = (BTreeMap<LogId, Entry>, u64, bool);

fn read_checkpoints(data_dir: &Path, has_partitions: bool) -> Result<Merged, BootError> {
    let own = data_dir.join(OWN_FOLDER);
    let io = |source| BootError::Io { path: own.clone(), source };
    let mut files = Vec::new();
    for file in fs::read_dir(&own).map_err(io)? {
        let file = file.map_err(io)?;
        let name = file.file_name().into_string().unwrap_or_default();
        if is_checkpoint(&name) {
            files.push(read_slot(name, fs::read(file.path())));
        }
    }
    Ok(merge_files(files, has_partitions))
}

fn is_checkpoint(name: &str) -> bool {
    name.starts_with(CHECKPOINT) && !name.ends_with(".new")
}

/// A slot that cannot be read is as good as a torn one: the power loss that tore it may have left
/// it unreadable, and the node has to start.
fn read_slot(name: String, bytes: io::Result<Vec<u8>>) -> (String, Vec<u8>) {
    let bytes = bytes.unwrap_or_else(|error| {
        tracing::warn!(file = name, %error, "a checkpoint cannot be read");
        Vec::new()
    });
    (name, bytes)
}

const CHECKPOINT: &str = "checkpoint-";
const BASE: &str = "checkpoint-base";

/// Merges the base and all slots.
fn merge_files(files: Vec<(String, Vec<u8>)>, has_partitions: bool) -> Merged {
    let mut good = Vec::new();
    let mut base_good = false;
    let mut slots: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for (name, bytes) in files {
        let checkpoint = Checkpoint::decode(&bytes).ok();
        let whole = checkpoint.is_some();
        good.extend(checkpoint);
        if name == BASE {
            base_good = whole;
        } else if let Some((shard, _)) = name.split_once('.') {
            let slot = slots.entry(shard.to_owned()).or_default();
            slot.0 += usize::from(whole);
            slot.1 += 1;
        }
    }
    // One torn slot is what a crash leaves. Two, or a missing base, are damage.
    let lost_slot = slots.values().any(|&(whole, all)| whole == 0 && all > 1);
    let lost = has_partitions && (!base_good || lost_slot);
    let boot = good.iter().map(|checkpoint| checkpoint.boot).max().unwrap_or(0);
    (merge(good), boot, lost)
}

/// Makes the merged state durable, then removes the slots it was merged from: shards write new
/// ones.
fn write_base(directory: &Directory, boot: u64) -> Result<(), BootError> {
    let own = directory.path.join(OWN_FOLDER);
    let io = |source| BootError::Io { path: own.clone(), source };
    let checkpoint = Checkpoint { boot, sequence: 0, entries: directory.entries.clone() };
    let new = own.join(format!("{BASE}.new"));
    let mut file = File::create(&new).map_err(io)?;
    file.write_all(&checkpoint.encode()).map_err(io)?;
    file.sync_all().map_err(io)?;
    fs::rename(&new, own.join(BASE)).map_err(io)?;
    File::open(&own).and_then(|folder| folder.sync_all()).map_err(io)?;
    for file in fs::read_dir(&own).map_err(io)? {
        let file = file.map_err(io)?;
        let name = file.file_name().into_string().unwrap_or_default();
        if name.starts_with(CHECKPOINT) && name != BASE {
            fs::remove_file(file.path()).map_err(io)?;
        }
    }
    Ok(())
}

/// Takes the reserve if there is room for it; a full disk is no reason not to start.
fn write_reserve(data_dir: &Path) -> Result<(), BootError> {
    let path = data_dir.join(OWN_FOLDER).join("reserve");
    if fs::metadata(&path).is_ok_and(|m| m.len() == RESERVE_FILE_BYTES) {
        return Ok(());
    }
    let written = File::create(&path).and_then(|mut file| {
        let zeros = vec![0; 1 << 20];
        for _ in 0..RESERVE_FILE_BYTES >> 20 {
            file.write_all(&zeros)?;
        }
        Ok(())
    });
    match written {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::StorageFull => {
            let _ = fs::remove_file(&path);
            Ok(())
        }
        Err(source) => Err(BootError::Io { path, source }),
    }
}
