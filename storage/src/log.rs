//! A partition's log: what the shard appends to and asks about.
//!
//! All methods that take no time are plain functions; state lives in a `RefCell` that is never held
//! over an await. The bytes of a fetch response go through
//!
//! [`Log::reserve`] → [`Log::begin`] → ([`Log::lend`] → receive → [`Log::filled`])* → [`Log::end`]
//!
//! and complete, checked batches become writable at once. Writing, preparing space, sealing and
//! flushing happen behind it, in [`crate::volume`] and `work`.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::{Rc, Weak};

use ring::{Class, File, Instant, Lease};
use thiserror::Error;

use crate::batch::{Batch, Producer};
use crate::chain::Chain;
use crate::check::{AppendError, Bounds, Checker};
use crate::checkpoint::{Entry, Replay};
use crate::epochs::Epochs;
use crate::limits::{
    BATCH_BYTES_MAX, PREPARE_AHEAD_BYTES, SAVE_BYTES, SEGMENT_BYTES_MAX, SPACE_BYTES_MAX,
};
use crate::names::{LogId, NameError};
use crate::position::{Flushed, Place, Positions, Received, Written};
use crate::producers::Producers;
use crate::queue::pop_if;
use crate::recovery::Corrupt;
use crate::seal::SealBuilder;
use crate::segment::{Finished, Segment, Urge, Write};
use crate::signal::Signal;
use crate::store::Memory;
use crate::volume::{Covered, Volume};

/// How a log is kept.
#[derive(Clone, Debug)]
pub struct LogSettings {
    /// The source's topic id, if it has them (since 2.8).
    pub topic_id: Option<[u8; 16]>,
    /// A segment is rolled before it grows beyond this.
    pub segment_bytes: u64,
    /// A segment is rolled when its records span more than this.
    pub segment_ms: i64,
    /// The largest batch taken.
    pub batch_bytes_max: u32,
    /// Where a new log begins.
    pub start_offset_if_new: i64,
    /// Index of the data directory.
    pub data_dir: usize,
}

impl Default for LogSettings {
    /// Kafka's defaults, and batches up to 16 MiB.
    fn default() -> Self {
        LogSettings {
            topic_id: None,
            segment_bytes: SEGMENT_BYTES_MAX,
            segment_ms: 7 * 24 * 60 * 60 * 1000,
            batch_bytes_max: 16 << 20,
            start_offset_if_new: 0,
            data_dir: 0,
        }
    }
}

/// What every batch of one fetch response is held against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AppendLimits {
    /// The high watermark in the same response.
    pub high_watermark: i64,
    /// The epoch of the leader that answers; negative: unknown.
    pub leader_epoch: i32,
}

/// Whether a log takes records, and if not, why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogState {
    /// It does.
    Healthy,
    /// It does not for now: there is no space to prepare or to write.
    DiskFull,
    /// Damage below the flushed end; everything is kept.
    Corrupt(Corrupt),
    /// Its device failed, or it could not be saved. Positions are the flushed ones; it may be
    /// opened again.
    Failed(String),
    /// It was closed or deleted.
    Closed,
}

/// The last batch of a log, to be compared with the source's on every start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastBatch {
    /// Offset of the first record.
    pub base_offset: i64,
    /// Offset of the last record.
    pub last_offset: i64,
    /// All bytes.
    pub bytes: u32,
    /// The leader epoch, if batches carry one.
    pub leader_epoch: Option<i32>,
    /// The CRC field.
    pub crc: u32,
    /// The idempotent producer that wrote it.
    pub producer: Option<Producer>,
    /// Records inside.
    pub record_count: u32,
    /// Segment it lies in.
    pub segment: i64,
    /// Where it begins there.
    pub position: u64,
}

/// Why a log could not be opened, flushed, cut or closed.
#[derive(Debug, Error)]
pub enum LogError {
    /// A name that may not become a folder.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The folder belongs to another incarnation of the topic.
    #[error("the folder holds topic id {found:02x?}, the source has {wanted:02x?}")]
    TopicId {
        /// In `partition.metadata`.
        found: [u8; 16],
        /// Asked for.
        wanted: [u8; 16],
    },
    /// It is open already.
    #[error("the log is open already")]
    Open,
    /// There is no such data directory.
    #[error("there is no data directory number {0}")]
    DataDir(usize),
    /// Not in the state for this.
    #[error("the log is {0:?}")]
    State(LogState),
    /// Records are arriving.
    #[error("records are arriving")]
    Busy,
    /// The file system said no.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// What the volume's lists know of a log.
#[derive(Default)]
pub(crate) struct Flags {
    pub queued: Cell<bool>,
    pub working: Cell<bool>,
    pub timed: Cell<bool>,
    pub dirty: Cell<bool>,
}

/// A partition's log.
pub struct Log {
    id: LogId,
    folder: PathBuf,
    seal_folder: PathBuf,
    pub(crate) flags: Flags,
    /// Notified whenever a position or the state moves.
    pub changed: Signal,
    pub(crate) inner: RefCell<Inner>,
    volume: Rc<Volume>,
    memory: Rc<Memory>,
    this: Weak<Log>,
}

/// The state.
pub(crate) struct Inner {
    pub settings: LogSettings,
    pub state: LogState,
    pub active: Segment,
    /// Complete segments that are not sealed yet, oldest first.
    pub closing: VecDeque<Segment>,
    /// Sealed segments: base and bytes.
    pub sealed: Vec<(i64, u64)>,
    /// Segments wholly below the visible start, and since when.
    pub retired: VecDeque<(Instant, i64)>,
    /// Retired segments whose undo window has passed.
    pub expired: Vec<i64>,
    /// A file for the next segment, with space in it, so that a roll waits for neither.
    pub prepared: Option<(File, u64)>,
    pub checker: Checker,
    pub epochs: Epochs,
    pub epochs_dirty: bool,
    pub producers: Producers,
    pub last_batch: Option<LastBatch>,
    pub log_start_offset: i64,
    pub high_watermark: i64,
    pub flushed: Place,
    pub flushed_epoch: Option<i32>,
    pub replay: Replay,
    /// Saved side files, oldest first; one becomes the replay place once it is flushed.
    pub saved: VecDeque<Replay>,
    /// Snapshots that no segment needs.
    pub stray_snapshots: Vec<i64>,
    pub generation: u64,
    /// The end is being cut back.
    pub truncating: bool,
    /// Damaged, and known from doubtful checkpoints only.
    pub doubtful: bool,
    /// Records of a response are arriving.
    expecting: bool,
    /// This response brought a bad batch; the rest of it is not taken.
    refused: bool,
    overdue: bool,
    disk_full: bool,
    pub closing_down: bool,
    reserved: usize,
}

impl Log {
    pub(crate) fn new(
        id: LogId,
        data_dir: &Path,
        volume: Rc<Volume>,
        memory: Rc<Memory>,
        inner: Inner,
    ) -> Rc<Log> {
        Rc::new_cyclic(|this| Log {
            folder: id.folder(data_dir),
            seal_folder: id.seal_folder(data_dir),
            id,
            flags: Flags::default(),
            changed: Signal::default(),
            inner: RefCell::new(inner),
            volume,
            memory,
            this: this.clone(),
        })
    }

    /// Link, topic, partition.
    pub fn id(&self) -> &LogId {
        &self.id
    }

    /// The partition's folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where it stands.
    pub fn positions(&self) -> Positions {
        self.inner.borrow().positions()
    }

    /// Whether it takes records.
    pub fn state(&self) -> LogState {
        let inner = self.inner.borrow();
        match inner.state {
            LogState::Healthy if inner.disk_full => LogState::DiskFull,
            _ => inner.state.clone(),
        }
    }

    /// The last batch, to be compared with the source's.
    pub fn last_batch(&self) -> Option<LastBatch> {
        self.inner.borrow().last_batch
    }

    /// The source's topic id.
    pub fn topic_id(&self) -> Option<[u8; 16]> {
        self.inner.borrow().settings.topic_id
    }

    /// The largest epoch at or below `epoch`, and where it ended.
    pub fn end_offset_for_epoch(&self, epoch: i32) -> Option<(i32, i64)> {
        let inner = self.inner.borrow();
        inner.epochs.end_offset(epoch, inner.active.received.offset)
    }

    /// Open transactions: (first offset, producer id, producer epoch).
    pub fn open_transactions(&self) -> Vec<(i64, i64, i16)> {
        self.inner.borrow().producers.open_transactions().collect()
    }

    /// Takes `bytes` of the shard's budget for records about to be asked for. False: ask for none
    /// now. Released by [`Log::end`].
    pub fn reserve(&self, bytes: usize) -> bool {
        let mut inner = self.inner.borrow_mut();
        if !inner.takes_records() || inner.disk_full || self.volume.full() {
            return false;
        }
        if !self.memory.reserve(bytes) {
            return false;
        }
        inner.reserved += bytes;
        true
    }

    /// Gives a reservation back for which no response came.
    pub fn release(&self) {
        let mut inner = self.inner.borrow_mut();
        self.memory.release(std::mem::take(&mut inner.reserved));
    }

    /// Records of one response are about to arrive.
    pub fn begin(&self, limits: AppendLimits) {
        let mut inner = self.inner.borrow_mut();
        inner.rewind();
        inner.expecting = true;
        inner.refused = false;
        let batch_bytes_max = inner.settings.batch_bytes_max.min(BATCH_BYTES_MAX);
        inner.checker.set_bounds(Bounds {
            high_watermark: limits.high_watermark,
            leader_epoch: limits.leader_epoch,
            batch_bytes_max,
        });
        inner.high_watermark = inner.high_watermark.max(limits.high_watermark);
    }

    /// Memory for up to `want` bytes to come, in one piece; ask again for more. None: no memory now,
    /// or the log takes nothing.
    pub fn lend(&self, want: usize) -> Option<Lease> {
        let mut inner = self.inner.borrow_mut();
        if !inner.takes_records() || inner.refused || want == 0 {
            return None;
        }
        if inner.active.chain.is_lent() {
            inner.rewind();
        }
        let lease = inner.active.chain.lend(want, |bytes| self.memory.take(bytes, &self.id))?;
        let unused = inner.reserved.min(lease.len());
        inner.reserved -= unused;
        self.memory.release(unused);
        Some(lease)
    }

    /// The first `bytes` of the lease are new. Complete batches are checked and become writable.
    /// After an error nothing of the batch it names is kept, what was complete before it is, and
    /// the rest of the response is refused.
    pub fn filled(&self, lease: Lease, bytes: usize) -> Result<(), AppendError> {
        let result = {
            let mut inner = self.inner.borrow_mut();
            inner.filled(lease, bytes, &self.id, &self.memory)
        };
        self.appended();
        result
    }

    /// Appends bytes that lie elsewhere, with a copy: small record sets, and what arrived together
    /// with the response's head. Says how many were taken: fewer when there is no memory.
    pub fn copy_in(&self, bytes: &[u8]) -> Result<usize, AppendError> {
        let mut taken = 0;
        while taken < bytes.len() {
            if !self.inner.borrow().takes_records() {
                return Err(AppendError::NotHealthy);
            }
            let Some(mut lease) = self.lend(bytes.len() - taken) else { break };
            let count = lease.len();
            lease.copy_from_slice(&bytes[taken..taken + count]);
            taken += count;
            self.filled(lease, count)?;
        }
        Ok(taken)
    }

    /// The response's records are over: a partial batch at their end is dropped, the rest of the
    /// reservation released.
    pub fn end(&self) -> Result<(), AppendError> {
        let healthy = {
            let mut inner = self.inner.borrow_mut();
            inner.rewind();
            inner.expecting = false;
            self.memory.release(std::mem::take(&mut inner.reserved));
            self.memory.return_reserve(&self.id);
            inner.takes_records()
        };
        self.appended();
        if healthy { Ok(()) } else { Err(AppendError::NotHealthy) }
    }

    /// The source's high watermark, from a response without records.
    pub fn set_high_watermark(&self, high_watermark: i64) {
        let mut inner = self.inner.borrow_mut();
        inner.high_watermark = inner.high_watermark.max(high_watermark);
    }

    /// The source's log start moved: the visible start follows at once, files go after the undo
    /// window. A start beyond the end is a gap: the log goes on from there.
    pub fn advance_start(&self, offset: i64) {
        {
            let mut inner = self.inner.borrow_mut();
            if offset <= inner.log_start_offset || !inner.takes_records() {
                return;
            }
            inner.log_start_offset = offset;
            if offset > inner.active.received.offset {
                inner.rewind();
                inner.checker.skip_to(offset);
            }
            inner.retire(ring::now());
        }
        if let Some(this) = self.this.upgrade() {
            self.volume.mark_dirty(&this);
        }
    }

    /// Waits until all that is received now is on the device.
    pub async fn flush(&self) -> Result<Positions, LogError> {
        self.write_out().await?;
        if !self.volume.flush().await {
            return Err(LogError::State(self.state()));
        }
        match self.state() {
            LogState::Healthy | LogState::DiskFull => Ok(self.positions()),
            state => Err(LogError::State(state)),
        }
    }

    /// Waits until all that is received now is written.
    pub(crate) async fn write_out(&self) -> Result<(), LogError> {
        let target = self.inner.borrow().active.received.offset;
        loop {
            let seen = self.changed.count();
            {
                let mut inner = self.inner.borrow_mut();
                match &inner.state {
                    LogState::Healthy | LogState::DiskFull => {}
                    state => return Err(LogError::State(state.clone())),
                }
                if inner.written().offset >= target {
                    return Ok(());
                }
                inner.overdue = true;
            }
            self.touch();
            self.changed.after(seen).await;
        }
    }

    /// Waits until nothing of this log is being written, prepared or sealed.
    pub(crate) async fn settle(&self) {
        loop {
            let seen = self.changed.count();
            {
                let inner = self.inner.borrow();
                let writing = inner.segments().any(|segment| segment.in_flight() > 0);
                if !writing && !self.flags.working.get() {
                    return;
                }
            }
            self.changed.after(seen).await;
        }
    }

    pub(crate) fn volume(&self) -> &Rc<Volume> {
        &self.volume
    }

    pub(crate) fn seal_folder(&self) -> &Path {
        &self.seal_folder
    }

    pub(crate) fn touch(&self) {
        if let Some(this) = self.this.upgrade() {
            self.volume.touch(&this);
        }
    }

    /// What follows every change of the received end.
    fn appended(&self) {
        let Some(this) = self.this.upgrade() else { return };
        self.volume.touch(&this);
        let waits = {
            let mut inner = self.inner.borrow_mut();
            if inner.idle() {
                let block = || ring::try_lease(ring::BLOCK, Class::Records);
                inner.active.chain.compact(block);
            }
            inner.expecting && inner.segments().any(|segment| segment.unsent() > 0)
        };
        if waits {
            self.volume.set_deadline(&this);
        }
    }

    pub(crate) fn has_unsent(&self) -> bool {
        let inner = self.inner.borrow();
        matches!(inner.state, LogState::Healthy) && inner.segments().any(|s| s.unsent() > 0)
    }

    pub(crate) fn unsent_bytes(&self) -> u64 {
        self.inner.borrow().segments().map(Segment::unsent).sum()
    }

    pub(crate) fn set_overdue(&self) {
        self.inner.borrow_mut().overdue = true;
    }

    pub(crate) fn next_write(&self) -> Option<Write> {
        let mut inner = self.inner.borrow_mut();
        if !matches!(inner.state, LogState::Healthy) {
            return None;
        }
        for segment in &mut inner.closing {
            if let Some(write) = segment.next_write(Urge::All) {
                return Some(write);
            }
        }
        let urge = match (inner.expecting, inner.overdue) {
            (false, _) => Urge::All,
            (true, true) => Urge::Overdue,
            (true, false) => Urge::Enough,
        };
        let write = inner.active.next_write(urge);
        if inner.active.unsent() == 0 {
            inner.overdue = false;
        }
        write
    }

    pub(crate) fn write_completed(&self, segment: i64, flight: u64, result: io::Result<()>) {
        let failure = {
            let mut inner = self.inner.borrow_mut();
            let before = inner.written();
            match result {
                Ok(()) => {
                    if let Some(segment) = inner.segments_mut().find(|s| s.base == segment) {
                        segment.complete(flight);
                    }
                    if inner.idle() {
                        let block = || ring::try_lease(ring::BLOCK, Class::Records);
                        inner.active.chain.compact(block);
                    }
                    let moved = inner.written() != before;
                    drop(inner);
                    if let Some(this) = self.this.upgrade().filter(|_| moved) {
                        self.volume.mark_dirty(&this);
                    }
                    None
                }
                Err(error) => {
                    if let Some(segment) = inner.segments_mut().find(|s| s.base == segment) {
                        segment.abandon(flight);
                    }
                    Some(format!("write failed: {error}"))
                }
            }
        };
        if let Some(reason) = failure {
            self.fail(&reason);
        }
        self.changed.notify();
    }

    pub(crate) fn set_disk_full(&self, full: bool) {
        let was = std::mem::replace(&mut self.inner.borrow_mut().disk_full, full);
        if was != full {
            self.changed.notify();
        }
    }

    /// Whether it waits for housekeeping to look at it again.
    pub(crate) fn wants_housekeeping(&self) -> bool {
        let inner = self.inner.borrow();
        inner.disk_full || !inner.expired.is_empty()
    }

    /// The device failed this log: nothing above the flushed end is certain.
    pub(crate) fn fail(&self, reason: &str) {
        {
            let mut inner = self.inner.borrow_mut();
            if matches!(inner.state, LogState::Healthy) {
                tracing::error!(log = %self.id, reason, "log failed");
                inner.state = LogState::Failed(reason.to_owned());
                inner.rewind();
                let reserved = std::mem::take(&mut inner.reserved);
                self.memory.release(reserved);
            }
        }
        self.changed.notify();
    }

    /// What a flush that begins now will cover.
    pub(crate) fn before_flush(&self) -> Covered {
        let inner = self.inner.borrow();
        let written = inner.written();
        Covered {
            written,
            epoch: inner.closing.front().unwrap_or(&inner.active).written_epoch,
            replay: inner.saved.iter().rev().find(|saved| saved.place <= written).copied(),
            // What is written now is about to be cut: no flush may vouch for it.
            generation: inner.generation.wrapping_sub(u64::from(inner.truncating)),
        }
    }

    /// The flush is complete.
    pub(crate) fn flushed(&self, covered: Covered) {
        {
            let mut inner = self.inner.borrow_mut();
            let current = covered.generation == inner.generation;
            if current && matches!(inner.state, LogState::Healthy | LogState::Closed) {
                inner.flushed = inner.flushed.max(covered.written);
                inner.flushed_epoch = covered.epoch.or(inner.flushed_epoch);
                if let Some(replay) = covered.replay {
                    inner.saved.retain(|saved| saved.place > replay.place);
                    inner.move_replay(replay);
                }
            }
        }
        self.changed.notify();
    }

    /// The checkpoint's entry.
    pub(crate) fn entry(&self) -> Entry {
        let inner = self.inner.borrow();
        Entry {
            topic_id: inner.settings.topic_id,
            log_start_offset: inner.log_start_offset,
            high_watermark: inner.high_watermark,
            last_epoch: inner.flushed_epoch,
            flushed: inner.flushed,
            replay: inner.replay,
            doubtful: inner.doubtful,
        }
    }

    /// Moves retired segments whose undo window has passed to the list of those to delete.
    pub(crate) fn retire_due(&self) {
        let mut inner = self.inner.borrow_mut();
        let window = self.memory.undo_window();
        let now = ring::now();
        let due = |retired: &(Instant, i64)| now - retired.0 >= window;
        while let Some((_, base)) = pop_if(&mut inner.retired, due) {
            inner.expired.push(base);
        }
    }
}

impl Inner {
    pub fn takes_records(&self) -> bool {
        matches!(self.state, LogState::Healthy) && !self.closing_down
    }

    pub fn is_expecting(&self) -> bool {
        self.expecting
    }

    pub fn segments(&self) -> impl Iterator<Item = &Segment> {
        self.closing.iter().chain([&self.active])
    }

    pub fn segments_mut(&mut self) -> impl Iterator<Item = &mut Segment> {
        self.closing.iter_mut().chain([&mut self.active])
    }

    /// Written counts in order of segments: one that is not sealed holds those after it back.
    pub fn written(&self) -> Place {
        self.closing.front().unwrap_or(&self.active).written
    }

    fn idle(&self) -> bool {
        !self.expecting && self.active.unsent() == 0
    }

    fn positions(&self) -> Positions {
        let trusted = matches!(self.state, LogState::Healthy | LogState::Closed);
        let flushed = self.flushed;
        let (received, written) =
            if trusted { (self.active.received, self.written()) } else { (flushed, flushed) };
        let end = Place { offset: received.offset.max(self.checker.expected()), ..received };
        let received = if trusted { end } else { received };
        Positions {
            log_start_offset: self.log_start_offset,
            received: Received(received),
            written: Written(written),
            flushed: Flushed(flushed),
            high_watermark: self.high_watermark,
            last_stable_offset: self.producers.first_open().unwrap_or(received.offset),
            last_epoch: self.checker.last_epoch(),
        }
    }

    fn rewind(&mut self) {
        self.active.chain.rewind();
        self.checker.rewind();
    }

    fn filled(
        &mut self,
        lease: Lease,
        bytes: usize,
        id: &LogId,
        memory: &Memory,
    ) -> Result<(), AppendError> {
        if !self.takes_records() || self.refused {
            return Err(AppendError::NotHealthy);
        }
        if self.active.chain.fill(lease, bytes).is_err() {
            return Err(AppendError::ForeignLease);
        }
        let mut unfed = bytes;
        while unfed > 0 {
            let result = self.checker.feed(self.active.chain.unfed(unfed)).and_then(|fed| {
                unfed -= fed.consumed;
                fed.batch.map_or(Ok(()), |batch| self.append(&batch, id, memory))
            });
            if let Err(error) = result {
                self.refused = true;
                self.rewind();
                return Err(error);
            }
        }
        Ok(())
    }

    /// The unchecked bytes begin with this good batch.
    fn append(&mut self, batch: &Batch, id: &LogId, memory: &Memory) -> Result<(), AppendError> {
        let combined = SealBuilder::takes_checksum(batch.bytes);
        let file_crc = combined.then(|| self.checker.file_crc(batch));
        if self.must_roll(batch) {
            self.roll(batch, id, memory)?;
        }
        let position = self.active.received.bytes;
        if let Some(aborted) = self.producers.append(batch) {
            self.active.indexes.append_aborted(aborted);
        }
        if let Some(epoch) = batch.leader_epoch
            && self.epochs.assign(epoch, batch.base_offset)
        {
            self.epochs_dirty = true;
        }
        self.active.append(batch, file_crc);
        self.last_batch = Some(LastBatch {
            base_offset: batch.base_offset,
            last_offset: batch.last_offset,
            bytes: batch.bytes,
            leader_epoch: batch.leader_epoch,
            crc: batch.crc,
            producer: batch.producer,
            record_count: batch.record_count,
            segment: self.active.base,
            position,
        });
        Ok(())
    }

    fn must_roll(&self, batch: &Batch) -> bool {
        let segment = &self.active;
        let fits = crate::index::fits(segment.base, batch.last_offset);
        if segment.received.bytes == 0 {
            // A file that has no name yet may get any.
            return !fits || batch.base_offset < segment.base;
        }
        let segment_bytes = self.settings.segment_bytes.min(SEGMENT_BYTES_MAX);
        let first = segment.indexes.state().first_timestamp;
        let age_ms = if first >= 0 {
            batch.max_timestamp.saturating_sub(first)
        } else {
            ring::wall_ms().saturating_sub(segment.created_ms)
        };
        segment.received.bytes + u64::from(batch.bytes) > segment_bytes
            || !fits
            || segment.indexes.full()
            || age_ms > self.settings.segment_ms
    }

    /// Ends the active segment and begins one at the batch's base offset. The bytes that were
    /// received already move to a buffer of the new segment's phase.
    fn roll(&mut self, batch: &Batch, id: &LogId, memory: &Memory) -> Result<(), AppendError> {
        let total = self.active.chain.unchecked_bytes();
        let mut chain = Chain::new(0);
        for piece in self.active.chain.pieces(total) {
            let mut rest = piece;
            while !rest.is_empty() {
                let lease = chain.lend(total, |bytes| memory.take(bytes, id));
                let mut lease = lease.ok_or(AppendError::NoMemory)?;
                let count = rest.len().min(lease.len());
                lease[..count].copy_from_slice(&rest[..count]);
                rest = &rest[count..];
                chain.fill(lease, count).expect("the lease just lent");
            }
        }
        let epoch = self.checker.last_epoch();
        let base = batch.base_offset;
        self.checker.start_segment(u64::from(batch.bytes));
        let mut next = Segment::new(base, base, epoch, ring::wall_ms());
        next.chain = chain;
        next.step = self.active.step.max(self.active.space).min(SPACE_BYTES_MAX);
        if let Some((file, space)) = self.prepared.take() {
            next.file = Some(file);
            next.space = space;
            next.unnamed = true;
        }
        let old = std::mem::replace(&mut self.active, next);
        if old.received.bytes == 0 && old.file.is_none() {
            if base < old.base {
                // The log's first batch begins below the offset it was opened at.
                self.flushed = self.active.written;
                self.replay = Replay::segment_start(base, None, false);
            }
            return Ok(());
        }
        self.finish(old, base);
        Ok(())
    }

    /// Hands a complete segment to the background, which seals it once it is written.
    fn finish(&mut self, mut old: Segment, next_base: i64) {
        old.chain.rewind();
        old.chain.drop_free();
        old.indexes.finish();
        old.finished = Some(Finished {
            next_base,
            snapshot: self.producers.encode(),
            has_producers: !self.producers.is_empty(),
            epoch: old.written_epoch.max(self.epochs.last()),
        });
        self.closing.push_back(old);
    }

    /// Finds sealed segments that fell wholly below the visible start.
    pub fn retire(&mut self, now: Instant) {
        let bases: Vec<i64> =
            self.sealed.iter().map(|s| s.0).chain(self.segments().map(|s| s.base)).collect();
        for pair in bases.windows(2) {
            let known = self.retired.iter().any(|(_, base)| *base == pair[0])
                || self.expired.contains(&pair[0]);
            let sealed = self.sealed.iter().any(|s| s.0 == pair[0]);
            if pair[1] <= self.log_start_offset && sealed && !known {
                self.retired.push_back((now, pair[0]));
            }
        }
    }

    fn move_replay(&mut self, replay: Replay) {
        let old = std::mem::replace(&mut self.replay, replay);
        if old.snapshot && old.place.bytes > 0 && old.place.offset != replay.place.offset {
            self.stray_snapshots.push(old.place.offset);
        }
    }

    /// How much space the next segment's file should get, if it should be prepared now.
    pub fn wanted_prepared(&self, step_max: u64) -> Option<u64> {
        let active = &self.active;
        let limit = self.settings.segment_bytes.min(SEGMENT_BYTES_MAX);
        let near = limit.saturating_sub(active.received.bytes) < limit / 4;
        // A slow partition rolls by time; its next file can wait for the roll.
        let grown = active.space >= PREPARE_AHEAD_BYTES.min(limit / 2);
        let due = near && grown && active.unsent() > 0;
        (self.prepared.is_none() && due).then(|| {
            let most = limit.next_multiple_of(ring::BLOCK as u64);
            active.space.min(step_max).min(most).next_multiple_of(ring::BLOCK as u64)
        })
    }

    /// Whether so much was appended since the side files were saved that they should be again.
    pub fn wants_saving(&self) -> bool {
        let last = self.saved.back().map_or(self.replay.place, |saved| saved.place);
        let segment = &self.active;
        let since = if last.segment == segment.base { last.bytes } else { 0 };
        segment.indexes.wants_saving() || segment.received.bytes - since >= SAVE_BYTES
    }
}

/// Everything a log is opened with.
pub(crate) struct Opened {
    pub settings: LogSettings,
    pub state: LogState,
    pub active: Segment,
    pub sealed: Vec<(i64, u64)>,
    pub epochs: Epochs,
    pub producers: Producers,
    pub last_batch: Option<LastBatch>,
    pub last_epoch: Option<i32>,
    pub log_start_offset: i64,
    pub high_watermark: i64,
    pub flushed: Place,
    pub replay: Replay,
    pub doubtful: bool,
    pub new: bool,
}

impl Opened {
    pub fn into_inner(self, generation: u64) -> Inner {
        let place = self.active.received;
        let bounds = Bounds::local(self.settings.batch_bytes_max);
        let expected = place.offset.max(self.log_start_offset);
        let mut checker = Checker::new(expected, self.last_epoch, place.bytes, bounds);
        if self.new {
            checker.allow_straddle();
        }
        let mut inner = Inner {
            settings: self.settings,
            state: self.state,
            active: self.active,
            closing: VecDeque::new(),
            sealed: self.sealed,
            retired: VecDeque::new(),
            expired: Vec::new(),
            prepared: None,
            checker,
            epochs: self.epochs,
            epochs_dirty: false,
            producers: self.producers,
            last_batch: self.last_batch,
            log_start_offset: self.log_start_offset,
            high_watermark: self.high_watermark,
            flushed: self.flushed,
            flushed_epoch: self.last_epoch,
            replay: self.replay,
            saved: VecDeque::new(),
            stray_snapshots: Vec::new(),
            generation,
            truncating: false,
            doubtful: self.doubtful,
            expecting: false,
            refused: false,
            overdue: false,
            disk_full: false,
            closing_down: false,
            reserved: 0,
        };
        inner.retire(ring::now());
        inner
    }
}
