//! A partition's log: what the shard appends to and asks about.
//!
//! All methods that take no time are plain functions; state lives in a `RefCell` that is never
//! held over an await. The bytes of a fetch response go through
//!
//! [`Log::begin`] → ([`Log::lend`] → receive → [`Log::filled`])* → [`Log::end`]
//!
//! and complete, checked batches become writable at once. Writing, preparing space, sealing and
//! flushing happen behind it, in [`crate::volume`] and `work`.

use std::cell::{Cell, RefCell};
use std::io;
use std::path::PathBuf;
use std::rc::{Rc, Weak};
use std::time::Duration;

use ring::Lease;
use thiserror::Error;

use crate::append::Inner;
use crate::batch::{Batch, Producer};
use crate::check::{AppendError, Bounds};
use crate::limits::{BATCH_BYTES_MAX, SEGMENT_BYTES_MAX};
use crate::names::{LogId, NameError};
use crate::position::Positions;
use crate::recovery::Corrupt;
use crate::signal::Signal;
use crate::store::Memory;
use crate::volume::Volume;

mod background;

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
    /// How long files below the visible log start are kept; a full disk ends it at once.
    pub undo_window: Duration,
    /// Where a new log begins.
    pub start_offset_if_new: i64,
    /// None is made: nobody knows yet where a new one begins.
    pub only_existing: bool,
    /// Index of the data directory.
    pub data_dir: usize,
}

impl Default for LogSettings {
    /// Kafka's defaults, batches up to 16 MiB, hidden files for a day.
    fn default() -> Self {
        LogSettings {
            topic_id: None,
            segment_bytes: SEGMENT_BYTES_MAX,
            segment_ms: 7 * 24 * 60 * 60 * 1000,
            batch_bytes_max: 16 << 20,
            undo_window: Duration::from_secs(24 * 60 * 60),
            start_offset_if_new: 0,
            only_existing: false,
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

impl LastBatch {
    /// That batch, at this position of that segment.
    pub(crate) fn new(batch: &Batch, segment: i64, position: u64) -> LastBatch {
        LastBatch {
            base_offset: batch.base_offset,
            last_offset: batch.last_offset,
            bytes: batch.bytes,
            leader_epoch: batch.leader_epoch,
            crc: batch.crc,
            producer: batch.producer,
            record_count: batch.record_count,
            segment,
            position,
        }
    }
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
    /// There is none, and none is to be made.
    #[error("there is no such log")]
    Absent,
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
    /// Flushed bytes have changed where they had to be read; they are to be mended first.
    #[error("{path}: {reason}")]
    Damaged {
        /// The segment's file.
        path: PathBuf,
        /// Its base offset.
        segment: i64,
        /// What was seen.
        reason: String,
    },
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
    /// Repairs that began.
    pub repairs: Cell<u64>,
    /// Its visible start has moved, and it was not read anew since.
    pub unread: Cell<bool>,
}

/// A partition's log.
pub struct Log {
    id: LogId,
    turn: u64,
    pub(crate) flags: Flags,
    /// Notified whenever a position or the state moves.
    pub changed: Signal,
    pub(crate) inner: RefCell<Inner>,
    volume: Rc<Volume>,
    memory: Rc<Memory>,
    this: Weak<Log>,
}

impl Log {
    pub(crate) fn new(
        id: LogId,
        turn: u64,
        volume: Rc<Volume>,
        memory: Rc<Memory>,
        inner: Inner,
    ) -> Rc<Log> {
        Rc::new_cyclic(|this| Log {
            id,
            turn,
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

    /// Which claim of it this is; see [`crate::boot`].
    pub(crate) fn turn(&self) -> u64 {
        self.turn
    }

    /// The partition's folder.
    pub fn folder(&self) -> PathBuf {
        self.id.folder(self.volume.path())
    }

    /// Where it stands.
    pub fn positions(&self) -> Positions {
        self.inner.borrow().positions()
    }

    /// Whether it takes records.
    pub fn state(&self) -> LogState {
        let inner = self.inner.borrow();
        match inner.state {
            LogState::Healthy if inner.disk_full || self.volume.unsaved() => LogState::DiskFull,
            _ => inner.state.clone(),
        }
    }

    /// Whether it takes records, now or when there is room again.
    pub fn is_open(&self) -> bool {
        matches!(self.state(), LogState::Healthy | LogState::DiskFull)
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

    /// The response has so many bytes of records, as its head says: memory lent for the first of
    /// them has room for the rest, up to a bound.
    pub fn expect(&self, bytes: usize) {
        self.inner.borrow_mut().active.chain.expect(bytes);
    }

    /// Waits while too much of what came before is on its way to the device, but not for one that
    /// stands still: what bounds that is memory.
    pub async fn keep_pace(&self) {
        self.volume.keep_pace(self).await;
    }

    /// Memory for up to `want` bytes to come, in one piece; ask again for more. None: no memory
    /// now, or the log takes nothing.
    pub fn lend(&self, want: usize) -> Option<Lease> {
        let mut inner = self.inner.borrow_mut();
        if !inner.takes_records() || inner.refused || want == 0 {
            return None;
        }
        if inner.active.chain.is_lent() {
            inner.rewind();
        }
        let lease = inner.active.chain.lend(want, |bytes| self.memory.take(bytes, &self.id))?;
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
            inner.active.chain.expect(0);
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

    /// Up to where the source's records are committed, as it said.
    pub fn high_watermark(&self) -> i64 {
        self.inner.borrow().high_watermark
    }

    /// The source had said too much: the high watermark goes back, but not below the end of what
    /// is here.
    pub fn lower_high_watermark(&self, to: i64) {
        {
            let mut inner = self.inner.borrow_mut();
            let end = inner.active.received.offset;
            inner.high_watermark = inner.high_watermark.min(to.max(end));
        }
        if let Some(this) = self.this.upgrade() {
            self.volume.mark_dirty(&this);
        }
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

    /// Waits until all that is received now is on the device, and the checkpoint that says so, too:
    /// after it not even a crash followed by a failing device takes any of it back.
    ///
    /// While the end is being cut back, nothing of it is certain: that is waited for, too.
    ///
    /// # Errors
    /// The log is not, or no longer, in a state for this. On a disk that has no room even for the
    /// checkpoint the state named is [`LogState::DiskFull`]; another flush tries again.
    pub async fn flush(&self) -> Result<Positions, LogError> {
        let positions = loop {
            let seen = self.changed.count();
            if self.inner.borrow().mending {
                self.changed.after(seen).await;
                continue;
            }
            self.write_out().await?;
            if !self.volume.flush().await {
                let state = match self.state() {
                    LogState::Healthy => LogState::DiskFull,
                    state => state,
                };
                return Err(LogError::State(state));
            }
            if !self.inner.borrow().mending {
                break self.positions();
            }
        };
        match self.state() {
            LogState::Healthy | LogState::DiskFull => Ok(positions),
            state => Err(LogError::State(state)),
        }
    }

    /// Waits until all that is received now is written.
    pub(crate) async fn write_out(&self) -> Result<(), LogError> {
        let mut target = self.inner.borrow().active.received.offset;
        loop {
            let seen = self.changed.count();
            {
                let mut inner = self.inner.borrow_mut();
                match &inner.state {
                    LogState::Healthy | LogState::DiskFull => {}
                    state => return Err(LogError::State(state.clone())),
                }
                if inner.disk_full && inner.closing_down {
                    // There may never be room, and the others wait to be closed.
                    return Err(LogError::State(LogState::DiskFull));
                }
                // It may have been cut back meanwhile.
                target = target.min(inner.active.received.offset);
                if inner.written().offset >= target {
                    return Ok(());
                }
                (inner.overdue, inner.tail_due) = (true, true);
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

    pub(crate) fn seal_folder(&self) -> PathBuf {
        self.id.seal_folder(self.volume.path())
    }

    pub(crate) fn touch(&self) {
        if let Some(this) = self.this.upgrade() {
            self.volume.touch(&this);
        }
    }

    /// The largest batch taken.
    pub fn batch_bytes_max(&self) -> usize {
        self.inner.borrow().settings.batch_bytes_max as usize
    }

    /// Settings that may change while it is open.
    pub fn set_limits(&self, batch_bytes_max: u32, undo_window: Duration) {
        let mut inner = self.inner.borrow_mut();
        inner.settings.batch_bytes_max = batch_bytes_max;
        inner.settings.undo_window = undo_window;
    }
}
