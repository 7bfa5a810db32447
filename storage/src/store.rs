//! All logs of one shard, over all data directories.

use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use ring::{BLOCK, Class, Lease, Share, spawn};
use thiserror::Error;

use crate::boot::Boot;
use crate::limits::{CHUNK_BYTES_MIN, CLOSES_AT_ONCE};
use crate::log::{Log, LogError, LogSettings};
use crate::names::LogId;
use crate::open::{self, Recovered};
use crate::volume::{Counters, Volume};

/// How a shard keeps its logs.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// The shard: names its checkpoints.
    pub shard: u16,
    /// The locked data directories.
    pub boot: Boot,
    /// The longest a written byte waits for a flush.
    pub flush_interval: Duration,
}

impl StoreConfig {
    /// Flushes every second.
    pub fn new(shard: u16, boot: Boot) -> StoreConfig {
        StoreConfig { shard, boot, flush_interval: Duration::from_secs(1) }
    }
}

/// Why a store could not be opened.
#[derive(Debug, Error)]
pub enum StoreError {
    /// No data directory.
    #[error("no data directory is configured")]
    NoDataDir,
    /// The folder of our own files cannot be read.
    #[error("data directory {path}: {source}")]
    Io {
        /// The directory.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

/// All logs of one shard.
pub struct Store {
    boot: Boot,
    volumes: Vec<Rc<Volume>>,
    memory: Rc<Memory>,
}

/// What a store holds and did.
#[derive(Clone, Debug, Default)]
pub struct StoreStats {
    /// Open logs.
    pub logs: usize,
    /// Per data directory.
    pub volumes: Vec<VolumeStats>,
}

/// What one data directory did.
#[derive(Clone, Debug)]
pub struct VolumeStats {
    /// The directory.
    pub path: PathBuf,
    /// What it did.
    pub counters: Counters,
    /// The last try to take space failed for want of it.
    pub full: bool,
}

impl Store {
    /// Opens the store on this thread's executor and starts its background tasks.
    pub async fn open(config: StoreConfig) -> Result<Rc<Store>, StoreError> {
        let StoreConfig { shard, boot, flush_interval } = config;
        let mut volumes = Vec::new();
        for (index, path) in boot.data_dirs().enumerate() {
            // A first look, so that later errors of write-back are told to the flush. It may
            // itself be told of an error from before this start; that one is over.
            if let Err(error) = ring::fs::sync_filesystem(path).await {
                tracing::warn!(path = %path.display(), %error, "an earlier flush had failed");
                let again = ring::fs::sync_filesystem(path).await;
                again.map_err(|source| StoreError::Io { path: path.to_owned(), source })?;
            }
            volumes.push(Volume::start(boot.directory(index), shard, flush_interval));
        }
        if volumes.is_empty() {
            return Err(StoreError::NoDataDir);
        }
        Ok(Rc::new(Store { boot, volumes, memory: Rc::new(Memory::new()) }))
    }

    /// Opens a partition's log, recovering it if it exists.
    ///
    /// # Errors
    /// [`crate::log::LogState::DiskFull`] when there is no room for what has to be made anew for
    /// it: nothing is lost, and it can be opened when there is.
    pub async fn open_log(
        &self,
        id: LogId,
        settings: LogSettings,
    ) -> Result<(Rc<Log>, Recovered), LogError> {
        id.check()?;
        let data_dir = settings.data_dir;
        let volume = self.volumes.get(data_dir).ok_or(LogError::DataDir(data_dir))?;
        let claim = self.boot.directory(data_dir).ledger.claim(&id).ok_or(LogError::Open)?;
        open::open(id, settings, claim, volume, &self.memory).await
    }

    /// Whether the last try to take space in a data directory failed for want of it, and there is
    /// none yet.
    pub fn is_full(&self, data_dir: usize) -> bool {
        self.volumes.get(data_dir).is_some_and(|volume| volume.full())
    }

    /// An open log.
    pub fn log(&self, id: &LogId) -> Option<Rc<Log>> {
        self.volumes.iter().find_map(|volume| volume.log(id))
    }

    /// Waits until all that was written, cut or removed is so on the devices, and the checkpoints
    /// that say so, too. False if a flush failed.
    pub async fn flush(&self) -> bool {
        let mut sure = true;
        for volume in &self.volumes {
            sure &= volume.flush().await;
        }
        sure
    }

    /// Flushes and closes every log, then stops the background tasks. After it every file is what
    /// Kafka's tools accept.
    pub async fn close(&self) {
        for volume in &self.volumes {
            let logs = volume.logs();
            for log in &logs {
                log.begin_closing();
            }
            finish_closing(logs).await;
            // Twice, so that both slots say the same.
            volume.flush().await;
            volume.flush().await;
            volume.stop();
        }
    }

    /// What it holds and did.
    pub fn stats(&self) -> StoreStats {
        let volumes = self.volumes.iter().map(|volume| VolumeStats {
            path: volume.path().to_owned(),
            counters: volume.counters(),
            full: volume.full(),
        });
        StoreStats {
            logs: self.volumes.iter().map(|volume| volume.log_count()).sum(),
            volumes: volumes.collect(),
        }
    }
}

impl Drop for Store {
    /// A log knows its volume, and the volume its logs: without this neither, nor the memory lent
    /// to them, would ever go.
    fn drop(&mut self) {
        self.volumes.iter().for_each(|volume| volume.let_go());
    }
}

/// Several at once: each waits for other threads and the disk several times.
async fn finish_closing(logs: Vec<Rc<Log>>) {
    let waiting = Rc::new(RefCell::new(logs.into_iter()));
    let closer = || {
        let waiting = Rc::clone(&waiting);
        async move {
            loop {
                let next = waiting.borrow_mut().next();
                let Some(log) = next else { return };
                if let Err(error) = log.finish_closing().await {
                    tracing::warn!(log = %log.id(), %error, "not closed cleanly");
                }
            }
        }
    };
    let closers = (0..CLOSES_AT_ONCE).map(|_| spawn(Share::Background, closer()));
    for closer in closers.collect::<Vec<_>>() {
        closer.await;
    }
}

/// The shard's memory for records, with a last chunk for a batch that has begun and finds no other.
/// How much of it is promised to fetches is the shard's business.
pub struct Memory {
    /// The log that may take memory beyond the records' share, so that one at least can complete.
    holder: RefCell<Option<LogId>>,
}

impl Memory {
    fn new() -> Memory {
        Memory { holder: RefCell::new(None) }
    }

    /// A chunk of `bytes` or, when memory is short, of less. The last resort is the control share,
    /// for one log at a time.
    pub fn take(&self, bytes: usize, id: &LogId) -> Option<Lease> {
        let mut size = bytes;
        loop {
            if let Some(lease) = ring::try_lease(size, Class::Records) {
                return Some(lease);
            }
            if size <= CHUNK_BYTES_MIN {
                break;
            }
            size = (size / 2).max(BLOCK);
        }
        let mut holder = self.holder.borrow_mut();
        if holder.as_ref().is_some_and(|holder| holder != id) {
            return None;
        }
        let memory = ring::memory();
        // Half of the control share stays for bounce blocks and requests.
        if memory.used + bytes > memory.total - memory.total / 32 {
            return None;
        }
        let lease = ring::try_lease(bytes, Class::Control)?;
        *holder = Some(id.clone());
        Some(lease)
    }

    /// The log no longer needs more than others.
    pub fn return_reserve(&self, id: &LogId) {
        let mut holder = self.holder.borrow_mut();
        if holder.as_ref() == Some(id) {
            *holder = None;
        }
    }
}
