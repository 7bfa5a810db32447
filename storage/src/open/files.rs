//! A log's files: where they lie, whose they are, what the small ones hold.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use crate::checkpoint::{Entry, Replay};
use crate::crc::crc32c;
use crate::epochs::Epochs;
use crate::index;
use crate::log::{LogError, LogSettings};
use crate::names::{self, EPOCHS_FILE, Kind, LogId, METADATA_FILE};
use crate::position::Place;
use crate::producers::Producers;
use crate::recovery::{Found, FoundSegment, ReadFrom};
use crate::seal::Seal;
use crate::work::{INDEXES, at, read_small, remove};

/// The folders of a log.
pub(crate) struct Files {
    pub folder: PathBuf,
    pub seals: PathBuf,
}

impl Files {
    /// Those of `id`.
    pub fn of(id: &LogId, data_dir: &Path) -> Files {
        Files { folder: id.folder(data_dir), seals: id.seal_folder(data_dir) }
    }

    /// The path of a segment's file.
    pub fn path(&self, kind: Kind, offset: i64) -> PathBuf {
        let folder = if kind == Kind::Seal { &self.seals } else { &self.folder };
        folder.join(kind.name(offset))
    }

    /// Removes a segment that lies behind the `end` of the log. The snapshot at the base of the
    /// first of these is the end of what stays.
    pub async fn remove_behind(&self, end: i64, base: i64) -> Result<(), LogError> {
        for kind in Kind::ALL {
            if kind != Kind::Snapshot || base > end {
                remove(&self.path(kind, base)).await?;
            }
        }
        Ok(())
    }

    /// Creates the folder if it is new; refuses one of another topic id. Where its file does not
    /// say whose it is, what is `known` counts.
    pub(super) async fn claim(
        &self,
        settings: &mut LogSettings,
        known: Option<[u8; 16]>,
    ) -> Result<(), LogError> {
        let path = self.folder.join(METADATA_FILE);
        let text = read_small(&path).await?;
        let written = text.and_then(|text| names::parse_metadata(&String::from_utf8(text).ok()?));
        let foreign = settings.topic_id.filter(|&wanted| written.is_some_and(|id| id != wanted));
        // Where the checkpoint says what the source says, the file is not what was written: no
        // checksum covers it. And a folder alone, which a crash may leave of a log that was begun,
        // keeps nobody out.
        let says_nothing = foreign.is_some()
            && (known == settings.topic_id || (known.is_none() && self.list().await?.is_empty()));
        let written = written.filter(|_| !says_nothing);
        let found = written.or(known);
        if let (Some(found), Some(wanted)) = (found, settings.topic_id)
            && found != wanted
        {
            return Err(LogError::TopicId { found, wanted });
        }
        settings.topic_id = found.or(settings.topic_id);
        if written.is_some() {
            return Ok(());
        }
        at(&self.folder, ring::fs::create_dir_all(&self.folder).await)?;
        let Some(id) = settings.topic_id else { return Ok(()) };
        at(&path, ring::fs::write(&path, names::format_metadata(id).into_bytes()).await)
    }

    /// All segment files, with their lengths.
    pub(super) async fn list(&self) -> Result<BTreeMap<(i64, u8), u64>, LogError> {
        let mut files = BTreeMap::new();
        for folder in [&self.folder, &self.seals] {
            let entries = match ring::fs::read_dir(folder).await {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => at(folder, other)?,
            };
            for entry in entries {
                let Some((offset, kind)) = entry.name.to_str().and_then(names::parse_file) else {
                    continue;
                };
                files.insert((offset, kind as u8), entry.len);
            }
        }
        Ok(files)
    }

    /// The base of the last segment.
    pub async fn last_base(&self) -> Result<Option<i64>, LogError> {
        let listing = self.list().await?;
        Ok(listing.into_keys().filter(|key| key.1 == Kind::Log as u8).map(|key| key.0).max())
    }
}

/// Bases at or above `end` of seals without a segment.
pub(super) fn orphaned_seals(listing: &BTreeMap<(i64, u8), u64>, end: i64) -> Vec<i64> {
    let seals = listing.keys().filter(|key| key.1 == Kind::Seal as u8 && key.0 >= end);
    let alone = seals.filter(|key| !listing.contains_key(&(key.0, Kind::Log as u8)));
    alone.map(|key| key.0).collect()
}

/// Offsets above `end` of which there are snapshots: of what was cut off, or never came to be on
/// the device.
pub(super) fn stale_snapshots(
    listing: &BTreeMap<(i64, u8), u64>,
    end: i64,
) -> impl Iterator<Item = i64> {
    let snapshots = listing.keys().filter(move |key| key.1 == Kind::Snapshot as u8 && key.0 > end);
    snapshots.map(|key| key.0)
}

/// Everything the decision needs to know of the disk.
pub(super) async fn find(
    files: &Files,
    listing: &BTreeMap<(i64, u8), u64>,
    entry: Option<Entry>,
    start_offset: i64,
) -> Result<Found, LogError> {
    let length = |kind: Kind, base| listing.get(&(base, kind as u8)).copied().unwrap_or_default();
    let mut segments = Vec::new();
    let first = listing.keys().find(|key| key.1 == Kind::Log as u8).map(|key| key.0);
    for (&(base, kind), &bytes) in listing {
        let missing = kind == Kind::Seal as u8 && is_missing(listing, entry, base);
        if kind != Kind::Log as u8 && !missing {
            continue;
        }
        let bytes = if missing { 0 } else { bytes };
        let mut seal = None;
        let has_seal = listing.contains_key(&(base, Kind::Seal as u8));
        if has_seal {
            let bytes = read_small(&files.path(Kind::Seal, base)).await?.unwrap_or_default();
            seal = Seal::decode(&bytes).ok().filter(|seal| seal.base == base);
        }
        if missing && seal.is_none() {
            continue; // not even the damaged file's end is known
        }
        let index_bytes = INDEXES.map(|kind| length(kind, base));
        let finished = entry.is_some_and(|e| e.doubtful || base < e.flushed.segment);
        let indexed = match finished && seal.is_none() {
            true => last_indexed(files, base).await?,
            false => None,
        };
        segments.push(FoundSegment { base, bytes, seal, has_seal, index_bytes, indexed });
    }
    let lost = entry.is_some_and(|entry| entry.doubtful);
    let visible_start = entry.map_or(0, |entry| entry.log_start_offset);
    // An entry made up for want of a checkpoint holds no place.
    let entry = entry.filter(|entry| !(lost && entry.flushed == Place::default()));
    let mut read_from = ReadFrom::Start;
    if let Some(entry) = entry {
        let index_bytes = INDEXES.map(|kind| length(kind, entry.replay.place.segment));
        let first = first.unwrap_or_default();
        read_from = where_to_read(files, &entry, first, index_bytes).await?;
        // One that is shorter than where its reading would begin is read from its start.
        let place = entry.replay.place;
        let is_short = |s: &FoundSegment| s.base == place.segment && s.bytes < place.bytes;
        if segments.iter().any(is_short) && !knows_producers(files, first, place.segment).await? {
            read_from = ReadFrom::Start;
        }
        // As there, of the sealed ones that have to be read.
        let sealed = segments.iter().filter(|s| first < s.base && s.base < entry.flushed.segment);
        for segment in sealed.filter(|segment| !segment.is_as_sealed()) {
            if !knows_producers(files, first, segment.base).await? {
                read_from = ReadFrom::Start;
            }
        }
    }
    Ok(Found { segments, entry, lost, read_from, start_offset, visible_start })
}

/// The last offset that the indexes of a segment tell of.
async fn last_indexed(files: &Files, base: i64) -> Result<Option<i64>, LogError> {
    let offsets = read_small(&files.path(Kind::Index, base)).await?.unwrap_or_default();
    let times = read_small(&files.path(Kind::TimeIndex, base)).await?.unwrap_or_default();
    let offset = index::read_offsets(&offsets).last().map(|entry| entry.relative_offset.get());
    let time = index::read_times(&times).last().map(|entry| entry.relative_offset.get());
    Ok(offset.max(time).map(|relative| base.saturating_add(i64::from(relative))))
}

/// Whether a segment that has a seal has lost its file. Deletion takes a seal first, so one without
/// a file is damage, unless the visible start lies beyond it. The seal before it, which names it,
/// may be lost, too: that would look like a gap.
fn is_missing(listing: &BTreeMap<(i64, u8), u64>, entry: Option<Entry>, base: i64) -> bool {
    let Some(entry) = entry.filter(|_| !listing.contains_key(&(base, Kind::Log as u8))) else {
        return false;
    };
    let mut bases = listing.keys().filter(|key| key.1 == Kind::Log as u8).map(|key| key.0);
    let first = bases.next();
    let next = first.filter(|&first| base < first).or_else(|| bases.find(|&next| base < next));
    let flushed = next == first || entry.doubtful || base < entry.flushed.segment;
    flushed && next.is_some_and(|next| entry.log_start_offset < next)
}

/// Where what lies beside the batches begins to be missing, in a log whose first segment is at
/// `first`.
async fn where_to_read(
    files: &Files,
    entry: &Entry,
    first: i64,
    index_bytes: [u64; 3],
) -> Result<ReadFrom, LogError> {
    let Replay { place, index, snapshot, .. } = entry.replay;
    let is_behind_others = place > Place { segment: first, bytes: 0, offset: first };
    if is_behind_others && entry.last_epoch.is_some() && read_epochs(files).await?.is_none() {
        return Ok(ReadFrom::Start);
    }
    let usable = index_bytes.iter().zip(index.file_bytes()).all(|(have, want)| *have >= want)
        && (!snapshot || read_snapshot(files, place.offset).await?.is_some())
        && indexes_match(files, &entry.replay).await?;
    if usable && place.bytes > 0 {
        return Ok(ReadFrom::Replay);
    }
    let base = if usable { place.segment } else { entry.flushed.segment };
    if !knows_producers(files, first, base).await? {
        return Ok(ReadFrom::Start);
    }
    Ok(if usable { ReadFrom::Replay } else { ReadFrom::Segment })
}

/// Whether the producers at the start of a segment are known, in a log whose first segment is at
/// `first`: else they come from all batches before it.
pub(super) async fn knows_producers(
    files: &Files,
    first: i64,
    base: i64,
) -> Result<bool, LogError> {
    Ok(base <= first || read_snapshot(files, base).await?.is_some())
}

/// Whether the indexes that appending goes on with are what they were. Those of sealed segments are
/// verified later.
async fn indexes_match(files: &Files, replay: &Replay) -> Result<bool, LogError> {
    let index = replay.index;
    for ((kind, bytes), crc) in INDEXES.into_iter().zip(index.file_bytes()).zip(index.crc) {
        if bytes > 0 {
            let path = files.path(kind, replay.place.segment);
            let mut file = read_small(&path).await?.unwrap_or_default();
            file.truncate(bytes as usize);
            if crc32c(&file) != crc {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// The epochs, if there is a good file of them.
pub(crate) async fn read_epochs(files: &Files) -> Result<Option<Epochs>, LogError> {
    let text = read_small(&files.folder.join(EPOCHS_FILE)).await?.unwrap_or_default();
    Ok(String::from_utf8(text).ok().and_then(|text| Epochs::parse(&text)))
}

/// The producers at an offset, if there is a good snapshot.
pub(super) async fn read_snapshot(
    files: &Files,
    offset: i64,
) -> Result<Option<Producers>, LogError> {
    let bytes = read_small(&files.path(Kind::Snapshot, offset)).await?;
    Ok(bytes.and_then(|bytes| Producers::decode(&bytes).ok()))
}
