//! What happens once per process, before the shards start: data directories are locked, found
//! partitions listed, and all checkpoints of all shards merged into one.
//!
//! Blocking, with `std::fs`: nothing else runs yet.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use thiserror::Error;

use crate::checkpoint::{Checkpoint, Entry, merge};
use crate::inventory::{self, FoundPartition, InventoryError};
use crate::limits::RESERVE_FILE_BYTES;
use crate::names::{LogId, OWN_FOLDER};
use crate::volume::is_full;

mod ledger;
mod simulated;

pub(crate) use ledger::{Claim, Ledger};

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
    directories: Vec<Arc<Directory>>,
    partitions: Vec<FoundPartition>,
    /// Held until the process ends. A simulated machine has one process.
    _locks: Vec<File>,
}

/// What the shards share of a data directory.
#[derive(Debug)]
pub(crate) struct Directory {
    pub path: PathBuf,
    /// See [`Boot::count`].
    pub boot: u64,
    lost: bool,
    pub ledger: Ledger,
    base: Mutex<Base>,
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
        let (mut found, mut locks, mut count) = (Vec::new(), Vec::new(), 0);
        for (index, (path, lock)) in locked.into_iter().enumerate() {
            let here = || partitions.iter().filter(|found| found.data_dir == index);
            let (mut entries, boot, lost) = read_checkpoints(&path, here().next().is_some())?;
            keep_found(&mut entries, lost, here());
            count = count.max(boot);
            locks.push(lock);
            found.push((path, entries, lost));
        }
        count += 1;
        let mut directories = Vec::new();
        for (path, entries, lost) in found {
            let ledger = Ledger::new(&entries);
            let base = base_of(entries, count);
            let base = match write_base(&path, &base.encode()) {
                Ok(()) => Base::Written,
                Err(error) if is_full(&error) => {
                    tracing::warn!(path = %path.display(), "the disk is full at the start");
                    Base::Missing(base)
                }
                Err(source) => return Err(BootError::Io { path: path.join(OWN_FOLDER), source }),
            };
            // What a crash left of deletions; if it cannot be removed, it harms nobody.
            let _ = remove_dead(&path);
            write_reserve(&path)?;
            let base = Mutex::new(base);
            directories.push(Arc::new(Directory { path, boot: count, lost, ledger, base }));
        }
        Ok(Boot(Arc::new(Inner { count, directories, partitions, _locks: locks })))
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

    pub(crate) fn directory(&self, data_dir: usize) -> &Arc<Directory> {
        &self.0.directories[data_dir]
    }
}

/// The file with what all shards knew at the end of the last run.
#[derive(Debug)]
enum Base {
    /// It is there, and the slots it was made of are gone.
    Written,
    /// There was no room for it; the slots are still there.
    Missing(Checkpoint),
    /// A shard is writing it.
    InHand,
}

impl Directory {
    /// Whether the disk was full at the start, and still is as far as is known.
    pub fn is_base_missing(&self) -> bool {
        !matches!(*self.base(), Base::Written)
    }

    /// Makes up for the base that found no room at the start. Until that is done no shard may write
    /// a slot: it would overwrite what the base is to hold.
    pub async fn finish_base(&self) -> io::Result<()> {
        let checkpoint = {
            let mut base = self.base();
            match std::mem::replace(&mut *base, Base::InHand) {
                Base::Written => {
                    *base = Base::Written;
                    return Ok(());
                }
                // Another shard is at it.
                Base::InHand => return Err(io::ErrorKind::StorageFull.into()),
                Base::Missing(checkpoint) => checkpoint,
            }
        };
        let result = simulated::write_base(&self.path, checkpoint.encode()).await;
        *self.base() = match result {
            Ok(()) => Base::Written,
            Err(_) => Base::Missing(checkpoint),
        };
        result
    }

    fn base(&self) -> std::sync::MutexGuard<'_, Base> {
        self.base.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Entries of partitions that are gone go, too; doubt is noted on each of the others.
fn keep_found<'a>(
    entries: &mut BTreeMap<LogId, Entry>,
    lost: bool,
    found: impl Iterator<Item = &'a FoundPartition>,
) {
    let ids: BTreeSet<&LogId> = found.map(|found| &found.id).collect();
    entries.retain(|id, _| ids.contains(id));
    // Turns are counted anew in each run.
    entries.values_mut().for_each(|entry| entry.turn = 0);
    if lost {
        for id in ids {
            entries.entry(id.clone()).or_insert(Entry::UNKNOWN).doubtful = true;
        }
    }
}

fn base_of(entries: BTreeMap<LogId, Entry>, boot: u64) -> Checkpoint {
    Checkpoint { boot, sequence: 0, entries, gone: BTreeMap::new() }
}

/// The path of a shard's checkpoint slot.
pub fn slot_path(data_dir: &Path, shard: u16, slot: u64) -> PathBuf {
    data_dir.join(OWN_FOLDER).join(format!("checkpoint-{shard}.{slot}"))
}

/// The path of what says that a shard has slots: those of this start, once one of them is durable.
pub fn begun_path(data_dir: &Path, shard: u16) -> PathBuf {
    data_dir.join(OWN_FOLDER).join(format!("checkpoint-{shard}{BEGUN}"))
}

/// Where the folders of deleted partitions lie until their files are removed.
pub(crate) fn dead_folders(data_dir: &Path) -> PathBuf {
    data_dir.join(OWN_FOLDER).join("deleted")
}

/// Empties it. It stays: on a full disk there may be no room for it when something is to be
/// deleted.
fn remove_dead(data_dir: &Path) -> io::Result<()> {
    let dead = dead_folders(data_dir);
    fs::create_dir_all(&dead)?;
    for folder in fs::read_dir(dead)? {
        fs::remove_dir_all(folder?.path())?;
    }
    Ok(())
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
const BEGUN: &str = ".begun";

/// The files of a shard's checkpoint.
#[derive(Default)]
struct Slots {
    whole: usize,
    all: usize,
    /// One of them was durable once.
    begun: bool,
}

impl Slots {
    /// One torn slot is what a crash leaves, and none is what a crash before the first one leaves.
    fn are_lost(&self) -> bool {
        self.whole == 0 && (self.all > 1 || self.begun)
    }
}

/// Merges the base and all slots.
fn merge_files(files: Vec<(String, Vec<u8>)>, has_partitions: bool) -> Merged {
    let decode = |(name, bytes): (String, Vec<u8>)| (name, Checkpoint::decode(&bytes).ok());
    let files: Vec<_> = files.into_iter().map(decode).collect();
    let base = files.iter().find(|file| file.0 == BASE).and_then(|file| file.1.as_ref());
    let (base_good, base_boot) = (base.is_some(), base.map_or(0, |base| base.boot));
    let mut good = Vec::new();
    let mut slots: BTreeMap<String, Slots> = BTreeMap::new();
    for (name, checkpoint) in files {
        if let Some((shard, _)) = name.split_once('.') {
            let slots = slots.entry(shard.to_owned()).or_default();
            if name.ends_with(BEGUN) {
                // Of an earlier start it is what a crash left when the slots were removed.
                slots.begun = checkpoint.as_ref().is_some_and(|begun| begun.boot >= base_boot);
            } else {
                slots.whole += usize::from(checkpoint.is_some());
                slots.all += 1;
            }
        }
        good.extend(checkpoint);
    }
    // A base says all that those before it said; what it leaves out is over.
    good.retain(|checkpoint| checkpoint.boot >= base_boot);
    let lost = has_partitions && (!base_good || slots.values().any(Slots::are_lost));
    let boot = good.iter().map(|checkpoint| checkpoint.boot).max().unwrap_or(0);
    (merge(good), boot, lost)
}

/// Makes the merged state durable, then removes the slots it was merged from: shards write new
/// ones.
fn write_base(data_dir: &Path, bytes: &[u8]) -> io::Result<()> {
    let own = data_dir.join(OWN_FOLDER);
    let new = own.join(format!("{BASE}.new"));
    let written = File::create(&new).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    if let Err(error) = written {
        let _ = fs::remove_file(&new);
        return Err(error);
    }
    fs::rename(&new, own.join(BASE))?;
    File::open(&own).and_then(|folder| folder.sync_all())?;
    for file in fs::read_dir(&own)? {
        let file = file?;
        let name = file.file_name().into_string().unwrap_or_default();
        if name.starts_with(CHECKPOINT) && name != BASE {
            fs::remove_file(file.path())?;
        }
    }
    Ok(())
}

/// Takes the reserve as far as there is room for it; a full disk is no reason not to start.
fn write_reserve(data_dir: &Path) -> Result<(), BootError> {
    let path = data_dir.join(OWN_FOLDER).join("reserve");
    let written = File::options().create(true).append(true).open(&path).and_then(|mut file| {
        let zeros = vec![0; 1 << 20];
        loop {
            // What is held already is not given up: on a full disk it would not come back.
            let missing = RESERVE_FILE_BYTES.saturating_sub(file.metadata()?.len());
            if missing == 0 {
                return Ok(());
            }
            file.write_all(&zeros[..missing.min(1 << 20) as usize])?;
        }
    });
    match written {
        Ok(()) => Ok(()),
        Err(error) if is_full(&error) => Ok(()),
        Err(source) => Err(BootError::Io { path, source }),
    }
}
