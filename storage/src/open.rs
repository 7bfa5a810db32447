//! Opening a log: reads what is on disk, lets [`crate::recovery`] decide, carries the decision out.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::rc::Rc;

use ring::{BLOCK, Class, File, OpenOptions};

use crate::append::Opened;
use crate::boot::Claim;
use crate::chain::Chain;
use crate::checkpoint::{Entry, Replay};
use crate::epochs::Epochs;
use crate::index::{IndexState, Indexes};
use crate::log::{LastBatch, Log, LogError, LogSettings, LogState};
use crate::names::{Kind, LogId, PREPARED_FILE};
use crate::position::{Place, Positions};
use crate::producers::Producers;
use crate::recovery::{
    Corrupt, Found, FoundSegment, ReadFrom, Recovery, Scan, Scanned, Step, Stopped, Verdict,
    describe,
};
use crate::scan::{FoundBatch, scan_writing};
use crate::seal::{Ends, SealBuilder};
use crate::segment::Segment;
use crate::store::Memory;
use crate::verify::Verifier;
use crate::volume::{Volume, is_full};
use crate::work::{APPEND, INDEXES, append_indexes, at, cut_file, remove, write_epochs};
use crate::write_again::WriteAgain;

mod carry_out;
mod files;
mod last_batch;
mod reading;

pub(crate) use files::{Files, read_epochs};
use files::{find, knows_producers, read_snapshot};
use last_batch::Last;
use reading::Reading;

/// What opening a log found and did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// There was no such log before.
    pub new: bool,
    /// Where it stands now.
    pub positions: Positions,
    /// Bytes read from its segments.
    pub scanned_bytes: u64,
    /// Bytes of torn writes that were cut away.
    pub torn_bytes: u64,
    /// Segments removed, since nothing of them was flushed.
    pub removed_segments: usize,
    /// Damage; the log is CORRUPT and unchanged.
    pub corrupt: Option<Corrupt>,
}

/// Opens or creates a log.
pub(crate) async fn open(
    id: LogId,
    settings: LogSettings,
    claim: Claim<'_>,
    volume: &Rc<Volume>,
    memory: &Rc<Memory>,
) -> Result<(Rc<Log>, Recovered), LogError> {
    let mut settings = settings;
    let files = Files::of(&id, volume.path());
    if claim.deleted && !volume.forget_deleted(&id, claim.turn).await {
        let reason = "that its namesake was deleted could not be made durable";
        return Err(LogError::State(LogState::Failed(reason.to_owned())));
    }
    let known = claim.entry.filter(|_| !claim.deleted).and_then(|entry| entry.topic_id);
    files.claim(&mut settings, known).await?;
    // An entry of another incarnation of the topic says nothing about this one.
    let entry = claim.entry.filter(|entry| {
        entry.topic_id.is_none() || entry.topic_id == settings.topic_id || entry.doubtful
    });
    let until = entry.and_then(cut_of);
    // What was read at the start is durable already.
    let said_now = |entry: &Entry| entry.turn > 0 || !volume.has_base();
    if let Some(entry) = entry.filter(|entry| entry.suspect && said_now(entry)) {
        volume.make_durable(&id, Entry { turn: claim.turn, ..entry }).await?;
    }
    let (failures, only_existing) = (volume.flush_failures(), settings.only_existing);
    let (opened, recovered) = load(&files, settings, entry, until).await.map_err(|error| {
        match error {
            // What lies beside the segments could not be made anew. As after a crash, another
            // opening does the same again.
            LogError::Io { path, source } if is_full(&source) => {
                tracing::warn!(path = %path.display(), "no room to open a log");
                volume.set_full(true);
                LogError::State(LogState::DiskFull)
            }
            error => error,
        }
    })?;
    // A folder alone, which a crash may leave, does not say where its log begins.
    if recovered.new && only_existing {
        return Err(LogError::Absent);
    }
    let memory = Rc::clone(memory);
    let log = Log::new(id, claim.turn, Rc::clone(volume), memory, opened.into_inner(0));
    claim.keep();
    volume.add(&log);
    volume.mark_dirty(&log);
    // Housekeeping says when there is room.
    log.set_disk_full(volume.full());
    if volume.flush_failures() != failures {
        // What was just read may have been part of what that flush lost.
        log.fail("a flush failed while it was opened");
    }
    if until.is_some() {
        // Before anything more counts as flushed, no durable checkpoint may call for a cut.
        volume.flush().await;
    }
    let positions = log.positions();
    Ok((log, Recovered { positions, ..recovered }))
}

/// Where a log is cut when it is read: above its flushed place nothing is certain after a flush
/// that failed. What doubtful checkpoints say is flushed is not the end of what is.
pub(crate) fn cut_of(entry: Entry) -> Option<i64> {
    (entry.suspect && !entry.doubtful).then_some(entry.flushed.offset)
}

/// What was read of one segment.
struct ScannedSegment {
    base: i64,
    end: Place,
    indexes: Indexes,
    /// Of so many bytes its index files are kept: they may hold entries for what was scanned again,
    /// or for what is no more.
    kept: [u64; 3],
    /// Its checksums, if it was read from its start.
    checksums: Option<SealBuilder>,
}

/// What the seal of a finished segment is made of.
struct Reseal {
    checksums: SealBuilder,
    end: Place,
    indexes: IndexState,
}

/// State carried from scan to scan.
struct Loading<'a> {
    files: &'a Files,
    epochs: Epochs,
    producers: Producers,
    /// The segment scanned last, with the indexes as they came out.
    segment: Option<ScannedSegment>,
    reseals: BTreeMap<i64, Reseal>,
    /// Snapshots that are made anew, by offset: of a log that turns out to be damaged none is kept,
    /// or the next start would read less of it.
    snapshots: Vec<(i64, Vec<u8>)>,
    last_batch: Option<LastBatch>,
    last_epoch: Option<i32>,
    scanned_bytes: u64,
    until: i64,
    /// Damage below the visible start behind which reading went on.
    stepped_over: Vec<Corrupt>,
}

/// Reads a log. With `until`, what begins at or above that offset is cut off.
pub(crate) async fn load(
    files: &Files,
    settings: LogSettings,
    entry: Option<Entry>,
    until: Option<i64>,
) -> Result<(Opened, Recovered), LogError> {
    // What lies in a file without a name never counted.
    remove(&files.folder.join(PREPARED_FILE)).await?;
    let listing = files.list().await?;
    let mut found = find(files, &listing, entry, settings.start_offset_if_new).await?;
    let cut_off = take_from(&mut found.segments, until);
    let new = found.segments.is_empty() && found.entry.is_none();
    let epochs = read_epochs(files).await?.unwrap_or_default();
    let begin = || Loading {
        files,
        epochs: epochs.clone(),
        producers: Producers::default(),
        segment: None,
        reseals: BTreeMap::new(),
        snapshots: Vec::new(),
        last_batch: None,
        last_epoch: entry.and_then(|entry| entry.last_epoch),
        scanned_bytes: 0,
        until: until.unwrap_or(i64::MAX),
        stepped_over: Vec::new(),
    };
    let mut loading = begin();
    let mut verdict = loading.recover(&found).await?;
    if loading.last_batch.is_none() && verdict.corrupt.is_none() && !verdict.bare {
        match loading.find_last_batch(&verdict, &found).await? {
            // It is not what was flushed. Reading tells what is wrong: from the beginning, for the
            // transactions that are open at the end are not those at a segment's start.
            Last::Other => {
                // Nor need they be known at a segment's start.
                let base = verdict.end.segment;
                let first = found.segments.first().map_or(i64::MIN, |first| first.base);
                let known = knows_producers(files, first, base).await?;
                let within = verdict.end.bytes > 0 && known;
                found.read_from = if within { ReadFrom::Segment } else { ReadFrom::Start };
                loading = Loading { scanned_bytes: loading.scanned_bytes, ..begin() };
                verdict = loading.recover(&found).await?;
            }
            Last::Found(last) => {
                loading.last_batch = Some(last);
                loading.last_epoch = last.leader_epoch.or(loading.last_epoch);
            }
            Last::None => {}
        }
    }
    if verdict.corrupt.is_none() {
        verdict.remove.extend(cut_off);
        loading.stepped_over.append(&mut verdict.hidden);
        for damage in &loading.stepped_over {
            let path = files.folder.display();
            tracing::error!(%path, %damage, "damaged below the visible start: it goes on behind");
        }
    }
    if verdict.corrupt.is_none() && verdict.bare {
        // What is left before the damage is not what the log ended with, nor to be compared.
        (loading.last_batch, loading.last_epoch) = (None, None);
        loading.producers.forget_open();
    }
    let recovered = Recovered {
        new,
        positions: Positions::default(),
        scanned_bytes: loading.scanned_bytes,
        torn_bytes: verdict.torn_bytes,
        removed_segments: verdict.remove.len(),
        corrupt: verdict.corrupt.clone(),
    };
    if verdict.corrupt.is_none() {
        verdict.remove.extend(files::orphaned_seals(&listing, verdict.end.segment));
        loading.carry_out(&verdict).await?;
        // The log may come to end there again, with other records.
        for offset in files::stale_snapshots(&listing, verdict.end.offset) {
            remove(&files.path(Kind::Snapshot, offset)).await?;
        }
    }
    let opened = loading.finish(settings, entry, &verdict, &found, new).await?;
    Ok((opened, recovered))
}

/// Takes out the segments that begin at or above a cut: of them nothing stays, and the log does not
/// go on where they are, nor where the seal before them says that they are.
fn take_from(segments: &mut Vec<FoundSegment>, until: Option<i64>) -> Vec<i64> {
    let Some(until) = until else { return Vec::new() };
    let keep = segments.partition_point(|segment| segment.base < until);
    let cut_off = segments.split_off(keep).into_iter().map(|segment| segment.base).collect();
    if let Some(last) = segments.last_mut()
        && last.seal.as_ref().is_some_and(|seal| seal.next_base > until)
    {
        last.seal = None;
    }
    cut_off
}

/// Where the next whole batch begins behind damage at a place of a segment, of those that begin
/// below an offset.
async fn batch_behind(path: &Path, place: Place, to_bytes: u64, below: i64) -> Option<Place> {
    if place.offset + 1 >= below || place.bytes >= to_bytes {
        return None;
    }
    let file = File::open(path, OpenOptions::READ.direct()).await.ok()?;
    let to = Place { bytes: to_bytes, ..place };
    Verifier::new(0).next_batch(&file, place.bytes + 1, to, place.offset..below).await
}

impl Loading<'_> {
    /// Reads what has to be read.
    async fn recover(&mut self, found: &Found) -> Result<Verdict, LogError> {
        let mut recovery = Recovery::new(found.clone());
        let verdict = loop {
            match recovery.step() {
                Step::Scan(scan) => {
                    let scanned = self.scan(&scan, found.visible_start).await?;
                    recovery.scanned(scanned);
                }
                Step::Done(verdict) => break verdict,
            }
        };
        // A segment that is read at every start, for it has no seal, need not be the last.
        let last = match verdict.end {
            end if end.bytes > 0 => Some(end.segment),
            _ => verdict.sealed.iter().rfind(|sealed| sealed.1 > 0).map(|sealed| sealed.0),
        };
        self.last_batch = self.last_batch.filter(|batch| Some(batch.segment) == last);
        Ok(verdict)
    }

    /// Scans a segment and rebuilds what is kept beside it. Where it meets damage it goes on at the
    /// next batch that begins at or below the visible start.
    async fn scan(&mut self, wanted: &Scan, visible_start: i64) -> Result<Scanned, LogError> {
        let base = wanted.from.place.segment;
        let follows = self.segment.is_some();
        self.leave_segment().await?;
        self.load_producers(&wanted.from, follows).await?;
        let path = self.files.path(Kind::Log, base);
        let until = self.until;
        let mut reading = Reading::new(
            wanted,
            until,
            (&mut self.epochs, &mut self.producers, &mut self.last_batch),
        );
        let mut from = wanted.from;
        let scanned = loop {
            let again = WriteAgain::above(&path, wanted.flushed_bytes);
            let visit = |found: &FoundBatch| reading.take(found);
            let scanned = scan_writing(&path, &from, wanted.to_bytes, again, visit).await;
            let mut scanned = at(&path, scanned)?;
            if reading.is_displaced {
                scanned.stopped = Stopped::Displaced;
            }
            if reading.is_at_cut || !wanted.is_cut_short(&scanned) {
                break scanned;
            }
            let below = visible_start.min(until - 1).saturating_add(1);
            let next = batch_behind(&path, scanned.place, wanted.to_bytes, below).await;
            let may_end =
                scanned.stopped == Stopped::Zeros && scanned.place.bytes >= wanted.trusted_bytes;
            if next.is_some() || !may_end {
                reading.doubt_last();
            }
            let Some(next) = next else { break scanned };
            self.stepped_over.push(Corrupt {
                segment: base,
                bytes: scanned.place.bytes..next.bytes,
                offsets: scanned.place.offset..next.offset,
                reason: describe(&scanned.stopped),
            });
            reading.step_over();
            from = Replay { place: next, ..Replay::segment_start(base, None, false) };
        };
        let Reading { indexes, checksums, epoch, .. } = reading;
        self.scanned_bytes += scanned.place.bytes - wanted.from.place.bytes;
        let kept = wanted.from.index.file_bytes();
        self.segment = Some(ScannedSegment { base, end: scanned.place, indexes, kept, checksums });
        self.last_epoch = epoch.or(self.last_epoch);
        Ok(scanned)
    }

    /// The segment scanned before turned out to be a finished one: its indexes are complete.
    async fn leave_segment(&mut self) -> Result<(), LogError> {
        let Some(scanned) = self.segment.take() else { return Ok(()) };
        let ScannedSegment { base, end, mut indexes, kept, checksums } = scanned;
        self.cut_indexes(base, kept).await?;
        indexes.finish();
        if let Some(checksums) = checksums {
            let indexes = indexes.state();
            self.reseals.insert(base, Reseal { checksums, end, indexes });
        }
        append_indexes(|kind| self.files.path(kind, base), &indexes.take()).await
    }

    /// Not before it is decided that the segment is whole: what its indexes tell may be all that
    /// says that it is not.
    async fn cut_indexes(&self, base: i64, kept: [u64; 3]) -> Result<(), LogError> {
        for (kind, bytes) in INDEXES.into_iter().zip(kept) {
            cut_file(&self.files.path(kind, base), bytes).await?;
        }
        Ok(())
    }

    /// The producers at the place a scan begins: from the snapshot there, or, coming from the
    /// segment before, as they are; then the snapshot is made anew.
    async fn load_producers(&mut self, from: &Replay, follows: bool) -> Result<(), LogError> {
        let within = from.place.bytes > 0;
        if within && !from.snapshot {
            // Nobody was known there, whatever another file of that name says.
            self.producers = Producers::default();
            return Ok(());
        }
        match read_snapshot(self.files, from.place.offset).await? {
            Some(producers) => self.producers = producers,
            None if within => self.producers = Producers::default(),
            None if follows => self.snapshots.push((from.place.offset, self.producers.encode())),
            None => {}
        }
        Ok(())
    }
}
