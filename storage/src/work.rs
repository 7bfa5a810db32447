//! What happens to a log behind its appends, one piece of work at a time, never on the append path:
//! creating files, preparing space, sealing, saving side files, deleting.

use std::io;
use std::path::{Path, PathBuf};

use nix::libc::EIO;
use ring::{File, Gather, OpenOptions, Slice};

use crate::checkpoint::Replay;
use crate::crc::Crc32c;
use crate::index::IndexBytes;
use crate::limits::CONTROL_FILE_BYTES_MAX;
use crate::log::{Log, LogError, LogState};
use crate::names::{EPOCHS_FILE, Kind, PREPARED_FILE};
use crate::read_ahead::lease_of_any_size;
use crate::recovery::{Corrupt, Stopped, describe};
use crate::scan::scan;
use crate::seal::{Ends, Seal, SealBuilder, Stride};
use crate::volume::is_full;

/// How log files are opened for appending.
pub const APPEND: OpenOptions = OpenOptions::READ_WRITE.direct();

/// Bytes written to a side file at once.
const SIDE_WRITE_BYTES: usize = 64 << 10;

/// A piece of work.
enum Job {
    /// Prepare the segment's file up to so many bytes; create it first if need be.
    Space { base: i64, file: Option<File>, from: u64, to: u64 },
    /// Prepare the file of the segment after this one.
    PrepareNext { bytes: u64 },
    /// Give a prepared file the name of the segment that began in it.
    Name { base: i64 },
    /// The oldest complete segment is written: seal it.
    Seal,
    /// Save the side files.
    Save,
    /// Delete a segment below the visible start.
    Delete { base: i64 },
    /// Delete the empty segment above the place at which the log begins after all.
    DeleteEmpty { base: i64 },
}

impl Log {
    /// Whether there is anything to do. On a full disk housekeeping says when to try again.
    pub(crate) fn has_work(&self) -> bool {
        !self.inner.borrow().disk_full && self.has_job()
    }

    /// Whether there would be anything to do, had the disk room.
    pub(crate) fn has_job(&self) -> bool {
        self.next_job().is_some()
    }

    /// Does what is due now.
    pub(crate) async fn work(&self) {
        while let Some(job) = self.next_job() {
            let result = match job {
                Job::Space { base, file, from, to } => self.prepare(base, file, from, to).await,
                Job::PrepareNext { bytes } => self.prepare_next(bytes).await,
                Job::Name { base } => self.name(base).await,
                Job::Seal => self.seal_oldest().await,
                Job::Save => self.save().await,
                Job::Delete { base } => self.delete_segment(base).await,
                Job::DeleteEmpty { base } => self.delete_empty(base).await,
            };
            match result {
                Ok(()) => self.set_disk_full(false),
                Err(LogError::Io { source, .. }) if is_full(&source) => {
                    self.volume().set_full(true);
                    self.set_disk_full(true);
                    // Housekeeping asks again.
                    return;
                }
                Err(error) => return self.fail(&error.to_string()),
            }
            self.touch();
        }
    }

    fn next_job(&self) -> Option<Job> {
        let inner = self.inner.borrow();
        if !matches!(inner.state, LogState::Healthy) {
            return None;
        }
        if let Some(base) = inner.displaced {
            return Some(Job::DeleteEmpty { base });
        }
        let delete = inner.expired.first().map(|&base| Job::Delete { base });
        if inner.disk_full && delete.is_some() {
            return delete; // which makes room for everything else
        }
        let step_max = self.volume().space_step_max();
        for segment in inner.segments() {
            if segment.received.bytes == 0 || inner.unplaced {
                continue;
            }
            if let Some(to) = segment.wanted_space(inner.settings.segment_bytes, step_max) {
                let (base, file) = (segment.base, segment.file.clone());
                return Some(Job::Space { base, file, from: segment.space, to });
            }
        }
        // Before the segment ahead of it is sealed: only then does it count as written.
        let unnamed = inner.segments().find(|segment| segment.unnamed && !inner.unplaced);
        if let Some(segment) = unnamed {
            return Some(Job::Name { base: segment.base });
        }
        if inner.closing.front().is_some_and(|segment| segment.settled()) {
            return Some(Job::Seal);
        }
        let waiting = inner.active.indexes.waiting();
        if inner.wants_saving() || waiting >= self.volume().index_entries_pending() {
            return Some(Job::Save);
        }
        if let Some(bytes) = inner.wanted_prepared(step_max) {
            return Some(Job::PrepareNext { bytes });
        }
        delete
    }

    pub(crate) fn path(&self, kind: Kind, offset: i64) -> PathBuf {
        let name = kind.name(offset);
        if kind == Kind::Seal { self.seal_folder().join(name) } else { self.folder().join(name) }
    }

    async fn prepare(
        &self,
        base: i64,
        file: Option<File>,
        from: u64,
        to: u64,
    ) -> Result<(), LogError> {
        let path = self.path(Kind::Log, base);
        let file = match file {
            Some(file) => file,
            None => at(&path, File::open(&path, APPEND).await)?,
        };
        at(&path, file.allocate(from, to - from).await)?;
        self.set_disk_full(false);
        let mut inner = self.inner.borrow_mut();
        if let Some(segment) = inner.segments_mut().find(|segment| segment.base == base) {
            segment.file = Some(file);
            segment.space = segment.space.max(to);
        }
        Ok(())
    }

    async fn prepare_next(&self, bytes: u64) -> Result<(), LogError> {
        let path = self.folder().join(PREPARED_FILE);
        let file = at(&path, File::open(&path, APPEND).await)?;
        at(&path, file.allocate(0, bytes).await)?;
        self.inner.borrow_mut().prepared = Some((file, bytes));
        Ok(())
    }

    async fn name(&self, base: i64) -> Result<(), LogError> {
        let path = self.path(Kind::Log, base);
        at(&path, ring::fs::rename(self.folder().join(PREPARED_FILE), &path).await)?;
        let mut inner = self.inner.borrow_mut();
        if let Some(segment) = inner.segments_mut().find(|segment| segment.base == base) {
            segment.unnamed = false;
        }
        Ok(())
    }

    /// Cuts the oldest complete segment to its length, writes its indexes, the snapshot at its end
    /// and, last, its seal. Only then do the segments after it count as written. Nothing is taken
    /// out of the segment before that, for on a full disk all of it is done again. The epochs are
    /// saved with it: a recovery that begins behind a sealed segment does not see those that began
    /// in it.
    async fn seal_oldest(&self) -> Result<(), LogError> {
        let (base, place, file, pending, indexes, checksums, finished) = {
            let inner = self.inner.borrow();
            let segment = inner.closing.front().expect("looked at");
            let pending = segment.indexes.pending();
            let indexes = segment.indexes.state();
            let checksums = segment.seal.clone();
            let finished = segment.finished.clone().expect("complete");
            let place = segment.received;
            (segment.base, place, segment.file.clone(), pending, indexes, checksums, finished)
        };
        let path = self.path(Kind::Log, base);
        let file = match file {
            Some(file) => file,
            // Nothing came for it.
            None => at(&path, File::open(&path, APPEND).await)?,
        };
        at(&path, file.truncate(place.bytes).await)?;
        append_indexes(|kind| self.path(kind, base), &pending).await?;
        self.save_epochs().await?;
        let next_base = finished.next_base;
        let snapshot = self.path(Kind::Snapshot, next_base);
        at(&snapshot, ring::fs::write(&snapshot, finished.snapshot).await)?;
        let damage = match self.prefix_strides(base, next_base, checksums.start()).await {
            Ok(prefix) => {
                let ends = Ends { base, next_offset: place.offset, next_base, indexes };
                let seal = checksums.finish(prefix, ends);
                assert_eq!(seal.bytes, place.bytes);
                self.write_seal(&seal).await?;
                None
            }
            Err(damage) => Some(damage),
        };
        let mut inner = self.inner.borrow_mut();
        if let Some(damage) = damage {
            // The log goes on: what comes is not to wait for a repair of what was there. A seal
            // is made once it is mended.
            tracing::error!(log = %self.id(), %damage, "stored bytes have changed");
            inner.doubted.push(base);
            inner.add_damages([damage]);
        }
        inner.closing.pop_front();
        inner.sealed.push((base, place.bytes));
        let replay = Replay::segment_start(next_base, finished.epoch, finished.has_producers);
        if inner.saved.back().is_none_or(|saved| saved.place < replay.place) {
            inner.saved.push_back(replay);
        }
        inner.retire(ring::now());
        drop(inner);
        self.mark_dirty();
        Ok(())
    }

    /// The strides of a segment's first `bytes`, which were written before the last start: read
    /// again. Else what of them is damaged, roughly.
    async fn prefix_strides(
        &self,
        base: i64,
        next_base: i64,
        bytes: u64,
    ) -> Result<Vec<Stride>, Corrupt> {
        if bytes == 0 {
            return Ok(Vec::new());
        }
        let mut builder = SealBuilder::starting_at(0);
        let from = Replay::segment_start(base, None, false);
        let scanned = scan(&self.path(Kind::Log, base), &from, bytes, |found| {
            let batch = &found.batch;
            builder.append_checksum(found.file_crc, u64::from(batch.bytes), batch.next_offset());
            true
        })
        .await;
        if scanned.place.bytes == bytes && scanned.stopped == Stopped::End {
            return Ok(builder.into_strides(scanned.place.offset));
        }
        let end = self.inner.borrow().closing.front().map_or(bytes, |front| front.received.bytes);
        Err(Corrupt {
            segment: base,
            bytes: scanned.place.bytes..end,
            offsets: scanned.place.offset..next_base,
            reason: format!("found while sealing: {}", describe(&scanned.stopped)),
        })
    }

    pub(crate) async fn write_seal(&self, seal: &Seal) -> Result<(), LogError> {
        let folder = self.seal_folder();
        at(&folder, ring::fs::create_dir_all(&folder).await)?;
        let path = self.path(Kind::Seal, seal.base);
        at(&path, ring::fs::write(&path, seal.encode()).await)
    }

    /// Saves indexes, producers and epochs as they are now, so that a recovery can begin here.
    pub(crate) async fn save(&self) -> Result<(), LogError> {
        let (base, index_bytes, replay, snapshot, strays) = {
            let mut inner = self.inner.borrow_mut();
            inner.producers.expire(ring::wall_ms());
            let snapshot = (!inner.producers.is_empty()).then(|| inner.producers.encode());
            let epoch = inner.checker.last_epoch();
            let replay = inner.active.replay(epoch, snapshot.is_some());
            let strays = std::mem::take(&mut inner.stray_snapshots);
            let index_bytes = inner.active.indexes.take();
            (inner.active.base, index_bytes, replay, snapshot, strays)
        };
        let path = |kind| self.path(kind, base);
        if let Err(error) = append_indexes(path, &index_bytes).await {
            // On a full disk it is done again.
            let mut inner = self.inner.borrow_mut();
            inner.stray_snapshots.extend(strays);
            if let Some(segment) = inner.segments_mut().find(|segment| segment.base == base) {
                segment.indexes.put_back(&index_bytes);
            }
            return Err(error);
        }
        if let Some(snapshot) = snapshot {
            let path = self.path(Kind::Snapshot, replay.place.offset);
            at(&path, ring::fs::write(&path, snapshot).await)?;
        }
        self.save_epochs().await?;
        for offset in strays {
            let path = self.path(Kind::Snapshot, offset);
            let _ = ring::fs::remove_file(&path).await;
        }
        self.inner.borrow_mut().saved.push_back(replay);
        self.mark_dirty();
        Ok(())
    }

    /// Saves the epochs if one has come or gone.
    pub(crate) async fn save_epochs(&self) -> Result<(), LogError> {
        let text = {
            let mut inner = self.inner.borrow_mut();
            if inner.epochs_doubted.is_some() {
                return Ok(());
            }
            std::mem::take(&mut inner.epochs_dirty).then(|| inner.epochs.format())
        };
        let Some(text) = text else { return Ok(()) };
        let written = write_epochs(&self.folder(), text).await;
        self.inner.borrow_mut().epochs_dirty |= written.is_err();
        written
    }

    async fn delete_segment(&self, base: i64) -> Result<(), LogError> {
        {
            let mut inner = self.inner.borrow_mut();
            inner.expired.retain(|&expired| expired != base);
            inner.sealed.retain(|&(sealed, _)| sealed != base);
            // What is gone is not to be mended, nor may it keep others from it.
            inner.damages.retain(|damage| damage.segment != base);
            let start = inner.sealed.first().map_or(inner.active.base, |&(first, _)| first);
            if inner.epochs.truncate_start(start) {
                inner.epochs_dirty = true;
            }
        }
        self.remove_files(base).await
    }

    /// Only a flush that begins when its files are gone places the log: whatever a power loss
    /// leaves, they do not lie beside a segment that was begun below them.
    async fn delete_empty(&self, base: i64) -> Result<(), LogError> {
        self.remove_files(base).await?;
        self.inner.borrow_mut().displaced = None;
        self.mark_dirty();
        self.volume().flush_soon();
        Ok(())
    }

    /// Removes a segment's files.
    pub(crate) async fn remove_files(&self, base: i64) -> Result<(), LogError> {
        for kind in Kind::ALL {
            self.remove_file(kind, base).await?;
        }
        Ok(())
    }

    pub(crate) async fn remove_file(&self, kind: Kind, base: i64) -> Result<(), LogError> {
        remove(&self.path(kind, base)).await
    }

    /// The next checkpoint has its entry.
    pub(crate) fn mark_dirty(&self) {
        if let Some(this) = self.volume().log(self.id()) {
            self.volume().mark_dirty(&this);
        }
    }
}

/// Removes a file that may be gone already.
pub async fn remove(path: &Path) -> Result<(), LogError> {
    match ring::fs::remove_file(path).await {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => at(path, other),
    }
}

/// Writes bytes into a side file, creating it.
pub async fn append_file(path: &Path, position: u64, bytes: &[u8]) -> io::Result<File> {
    let file = File::open(path, OpenOptions::READ_WRITE).await?;
    let mut at = position;
    let mut rest = bytes;
    while !rest.is_empty() {
        let mut lease = lease_of_any_size(rest.len().min(SIDE_WRITE_BYTES)).await;
        let (chunk, behind) = rest.split_at(rest.len().min(lease.len()));
        rest = behind;
        lease[..chunk.len()].copy_from_slice(chunk);
        let (slice, _) = lease.freeze(chunk.len());
        write_all(&file, at, slice).await?;
        at += chunk.len() as u64;
    }
    Ok(file)
}

/// Writes all of a slice, however little of it a write takes.
pub async fn write_all(file: &File, position: u64, slice: Slice) -> io::Result<()> {
    let (mut at, mut rest) = (position, slice);
    while !rest.is_empty() {
        let written = file.write_at(at, Gather::from_iter([rest.clone()])).await?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        at += written as u64;
        rest = rest.slice(written..rest.len());
    }
    Ok(())
}

/// Writes what is pending of a segment's indexes to the files of these paths.
pub async fn append_indexes(
    path: impl Fn(Kind) -> PathBuf,
    bytes: &IndexBytes,
) -> Result<(), LogError> {
    for (kind, (position, bytes)) in
        INDEXES.into_iter().zip([&bytes.offsets, &bytes.times, &bytes.aborted])
    {
        // Kafka creates the first two always, the third when it is needed.
        if !bytes.is_empty() || (*position == 0 && kind != Kind::TxnIndex) {
            let path = path(kind);
            at(&path, append_file(&path, *position, bytes).await)?;
        }
    }
    Ok(())
}

/// Puts a file of epochs into a log's folder, whole or not at all.
pub async fn write_epochs(folder: &Path, text: String) -> Result<(), LogError> {
    let path = folder.join(EPOCHS_FILE);
    let new = folder.join(format!("{EPOCHS_FILE}.tmp"));
    at(&new, ring::fs::write(&new, text.into_bytes()).await)?;
    at(&path, ring::fs::rename(&new, &path).await)
}

/// Cuts a file that may not be there.
pub async fn cut_file(path: &Path, bytes: u64) -> Result<(), LogError> {
    match ring::fs::size(path).await {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => at(path, Err(error)),
        Ok(size) if size <= bytes => Ok(()),
        Ok(_) => {
            let options = OpenOptions { read: true, write: true, ..OpenOptions::default() };
            let file = at(path, File::open(path, options).await)?;
            at(path, file.truncate(bytes).await)?;
            at(path, file.sync_data().await)
        }
    }
}

/// Reads a small file that can be made anew. None if it is not there; nothing where it cannot be
/// read, as a power loss may leave it.
pub async fn read_small(path: &Path) -> Result<Option<Vec<u8>>, LogError> {
    match ring::fs::read(path, CONTROL_FILE_BYTES_MAX).await {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        // Too long to be what it should be: as good as garbled.
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(Some(Vec::new())),
        Err(error) if error.raw_os_error() == Some(EIO) => {
            tracing::warn!(path = %path.display(), "a file cannot be read; it is made anew");
            Ok(Some(Vec::new()))
        }
        Err(error) => at(path, Err(error)),
    }
}

/// The three indexes of a segment.
pub const INDEXES: [Kind; 3] = [Kind::Index, Kind::TimeIndex, Kind::TxnIndex];

/// The CRC-32C of a segment's indexes, one behind another, as they are on disk.
pub async fn index_crc(path: impl Fn(Kind) -> PathBuf) -> Result<u32, LogError> {
    let mut crc = Crc32c::new();
    for kind in INDEXES {
        crc.update(&read_small(&path(kind)).await?.unwrap_or_default());
    }
    Ok(crc.finish())
}

/// Names the path in an error.
pub fn at<T>(path: &Path, result: io::Result<T>) -> Result<T, LogError> {
    result.map_err(|source| LogError::Io { path: path.to_owned(), source })
}
