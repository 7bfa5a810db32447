//! The state of a log, and how batches enter it: checked, rolled into the right segment, noted in
//! producers, epochs and indexes, then frozen to be written.

use std::collections::VecDeque;

use ring::{Class, File, Instant, Lease};

use crate::batch::Batch;
use crate::chain::Chain;
use crate::check::{AppendError, Bounds, Checker};
use crate::checkpoint::Replay;
use crate::epochs::Epochs;
use crate::limits::{PREPARE_AHEAD_BYTES, SAVE_BYTES, SEGMENT_BYTES_MAX, SPACE_BYTES_MAX};
use crate::log::{LastBatch, LogSettings, LogState};
use crate::names::LogId;
use crate::position::{Flushed, Place, Positions, Received, Written};
use crate::producers::Producers;
use crate::recovery::Corrupt;
use crate::seal::SealBuilder;
use crate::segment::{Finished, Segment, Urge};
use crate::store::Memory;

/// The state.
pub(crate) struct Inner {
    pub settings: LogSettings,
    pub state: LogState,
    pub active: Segment,
    /// Complete segments that are not sealed yet, oldest first.
    pub closing: VecDeque<Segment>,
    /// Sealed segments: base and bytes.
    pub sealed: Vec<(i64, u64)>,
    /// Segments wholly below the visible start: since when, their base, that of the next.
    pub retired: VecDeque<(Instant, i64, i64)>,
    /// Retired segments whose undo window has passed.
    pub expired: Vec<i64>,
    /// A file for the next segment, with space in it, so that a roll waits for neither.
    pub prepared: Option<(File, u64)>,
    pub checker: Checker,
    pub epochs: Epochs,
    pub epochs_dirty: bool,
    /// From this segment on they may come of damage: they are not written to their file.
    pub epochs_doubted: Option<i64>,
    pub producers: Producers,
    pub last_batch: Option<LastBatch>,
    pub log_start_offset: i64,
    /// The same as far as a durable checkpoint is known to say it.
    pub shown_start: i64,
    pub high_watermark: i64,
    pub flushed: Place,
    /// The same as far as a durable checkpoint says it.
    pub shown_flushed: Place,
    pub flushed_epoch: Option<i32>,
    pub replay: Replay,
    /// Saved side files, oldest first; one becomes the replay place once it is flushed.
    pub saved: VecDeque<Replay>,
    /// An empty segment above the base at which the log begins after all: its files are to go.
    pub displaced: Option<i64>,
    /// Snapshots that no segment needs.
    pub stray_snapshots: Vec<i64>,
    pub generation: u64,
    /// Nothing may be on disk yet: durable checkpoints place the log's end behind its segment.
    pub unplaced: bool,
    /// Damage found while the log goes on, in order.
    pub damages: Vec<Corrupt>,
    /// Segments of which only roughly is known what of them is damaged.
    pub doubted: Vec<i64>,
    /// Nothing is appended: a damaged range is being written, the log read anew, or its end cut
    /// back. Whoever set it is the only one, see [`crate::alone`].
    pub mending: bool,
    /// The end is being cut back.
    pub truncating: bool,
    /// Damaged, and known from doubtful checkpoints only.
    pub doubtful: bool,
    /// Damaged, and what lies above its flushed place may not be on the device.
    pub suspect: bool,
    /// Records of a response are arriving.
    pub expecting: bool,
    /// This response brought a bad batch; the rest of it is not taken.
    pub refused: bool,
    pub overdue: bool,
    /// The partial block at the end waits no longer for what the source still has.
    pub tail_due: bool,
    pub disk_full: bool,
    pub closing_down: bool,
}

impl Inner {
    pub fn takes_records(&self) -> bool {
        matches!(self.state, LogState::Healthy) && !self.closing_down && !self.mending
    }

    /// Its files are what they are known to be.
    pub fn is_readable(&self) -> bool {
        matches!(self.state, LogState::Healthy | LogState::Corrupt(_)) && !self.truncating
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

    /// The base of the first segment that is not sealed.
    pub fn first_unsealed(&self) -> i64 {
        self.closing.front().unwrap_or(&self.active).base
    }

    /// Written counts in order of segments: one that is not sealed holds those after it back.
    pub fn written(&self) -> Place {
        self.closing.front().unwrap_or(&self.active).written
    }

    /// What is worth writing of the active segment.
    pub fn urge(&self) -> Urge {
        // A block that is written in part is written again, over space that is in use and space
        // that is not: ext4 makes such a write wait for all others of its file. While the source
        // has more, the rest of the block is not far.
        let more = self.high_watermark > self.active.received.offset;
        match (self.expecting, self.overdue) {
            (true, true) => Urge::Overdue,
            (true, false) => Urge::Enough,
            (false, _) if more && !self.tail_due && !self.closing_down => Urge::Whole,
            (false, _) => Urge::All,
        }
    }

    /// Between two responses no more than a partial block is held.
    pub fn compact(&mut self) {
        if !self.expecting {
            let block = || ring::try_lease(ring::BLOCK, Class::Control);
            self.active.chain.compact(block);
        }
    }

    pub fn positions(&self) -> Positions {
        let trusted = matches!(self.state, LogState::Healthy | LogState::Closed);
        let flushed = self.shown_flushed;
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

    /// The log was read anew, by whoever is alone with it; these of its damages are still there.
    pub fn replace(&mut self, opened: Opened, generation: u64, damages: Vec<Corrupt>) {
        assert!(self.mending, "nobody else is at it");
        let (closing_down, closed) = (self.closing_down, self.state == LogState::Closed);
        let shown_start = self.shown_start;
        *self = opened.into_inner(generation);
        self.shown_start = shown_start.min(self.log_start_offset);
        self.keep_damages(damages);
        (self.closing_down, self.mending) = (closing_down, true);
        if closed {
            self.state = LogState::Closed;
        }
    }

    pub fn rewind(&mut self) {
        self.active.chain.rewind();
        self.checker.rewind();
    }

    pub fn filled(
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
        self.last_batch = Some(LastBatch::new(batch, self.active.base, position));
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
        chain.expect(total + self.active.chain.coming());
        for piece in self.active.chain.pieces(total) {
            let mut rest = piece;
            while !rest.is_empty() {
                let Some(mut lease) = chain.lend(total, |bytes| memory.take(bytes, id)) else {
                    // Or the log would go on behind a batch that it does not have.
                    self.checker.take_back();
                    return Err(AppendError::NoMemory);
                };
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
        if base < old.base {
            self.place_below(old);
        } else {
            // Also without a record: the seal before it says that it follows, or it is where the
            // log begins.
            self.finish(old, base);
        }
        Ok(())
    }

    /// The log's first batch begins below the offset it was opened at. A flush that is under way
    /// has noted that offset, and must not vouch for it. Nor may a crash find bytes here while a
    /// checkpoint says that the log goes on further behind: they would count as flushed.
    fn place_below(&mut self, empty: Segment) {
        assert!(empty.received.bytes == 0 && self.closing.is_empty(), "it has no batch yet");
        let base = self.active.base;
        self.generation = self.generation.wrapping_add(1);
        self.unplaced = true;
        self.flushed = self.active.written;
        self.shown_flushed = self.flushed;
        self.replay = Replay::segment_start(base, None, false);
        // An empty file is what a cut, or a power loss, leaves where the log was to begin. Between
        // the segments that come it would look like one whose records were lost.
        self.displaced = empty.file.map(|_| empty.base);
    }

    /// Hands a complete segment to the background, which seals it once it is written.
    fn finish(&mut self, mut old: Segment, next_base: i64) {
        old.chain.rewind();
        old.chain.drop_free();
        old.indexes.finish();
        old.finished = Some(Box::new(Finished {
            next_base,
            snapshot: self.producers.encode(),
            has_producers: !self.producers.is_empty(),
            // Not what is written down of epochs: what comes next is held against this at a start.
            epoch: self.last_batch.and_then(|batch| batch.leader_epoch).or(old.written_epoch),
        }));
        self.closing.push_back(old);
    }

    /// Finds sealed segments that fell wholly below the visible start.
    pub fn retire(&mut self, now: Instant) {
        let bases: Vec<i64> =
            self.sealed.iter().map(|s| s.0).chain(self.segments().map(|s| s.base)).collect();
        for pair in bases.windows(2) {
            let known = self.retired.iter().any(|(_, base, _)| *base == pair[0])
                || self.expired.contains(&pair[0]);
            let sealed = self.sealed.iter().any(|s| s.0 == pair[0]);
            if pair[1] <= self.log_start_offset && sealed && !known {
                self.retired.push_back((now, pair[0], pair[1]));
            }
        }
    }

    pub fn move_replay(&mut self, replay: Replay) {
        let old = std::mem::replace(&mut self.replay, replay);
        if old.snapshot && old.place.bytes > 0 && old.place.offset != replay.place.offset {
            self.stray_snapshots.push(old.place.offset);
        }
    }

    /// What was known to be damaged before the log was read anew stays so.
    fn keep_damages(&mut self, known: Vec<Corrupt>) {
        let found: Vec<i64> = self.damages.iter().map(|damage| damage.segment).collect();
        self.add_damages(known.into_iter().filter(|known| !found.contains(&known.segment)));
    }

    /// Known from now on, in order with the others.
    pub fn add_damages(&mut self, found: impl IntoIterator<Item = Corrupt>) {
        self.damages.extend(found);
        self.damages.sort_by_key(|damage| (damage.segment, damage.bytes.start));
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
    /// They could not be saved yet.
    pub epochs_dirty: bool,
    pub producers: Producers,
    pub last_batch: Option<LastBatch>,
    pub last_epoch: Option<i32>,
    pub log_start_offset: i64,
    pub shown_start: i64,
    pub high_watermark: i64,
    pub flushed: Place,
    pub flushed_epoch: Option<i32>,
    pub replay: Replay,
    pub saved: Option<Replay>,
    pub doubtful: bool,
    pub suspect: bool,
    /// Damage that lies below the visible start.
    pub damages: Vec<Corrupt>,
    pub new: bool,
}

impl Opened {
    pub fn into_inner(self, generation: u64) -> Inner {
        let place = self.active.received;
        let bounds = Bounds::local(self.settings.batch_bytes_max);
        let expected = place.offset.max(self.log_start_offset);
        let mut checker = Checker::new(expected, self.last_epoch, place.bytes, bounds);
        // The first batch of a log may begin below it, also after a restart that came before it.
        if self.new || (self.sealed.is_empty() && place.bytes == 0) {
            checker.allow_straddle(0);
        } else if place.offset < expected {
            checker.allow_straddle(place.offset);
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
            epochs_dirty: self.epochs_dirty,
            epochs_doubted: None,
            producers: self.producers,
            last_batch: self.last_batch,
            log_start_offset: self.log_start_offset,
            shown_start: self.shown_start,
            high_watermark: self.high_watermark,
            flushed: self.flushed,
            shown_flushed: self.flushed,
            flushed_epoch: self.flushed_epoch,
            replay: self.replay,
            saved: self.saved.into_iter().collect(),
            displaced: None,
            stray_snapshots: Vec::new(),
            generation,
            doubted: self.damages.iter().map(|damage| damage.segment).collect(),
            damages: self.damages,
            mending: false,
            truncating: false,
            doubtful: self.doubtful,
            suspect: self.suspect,
            expecting: false,
            refused: false,
            overdue: false,
            tail_due: false,
            unplaced: false,
            disk_full: false,
            closing_down: false,
        };
        inner.retire(ring::now());
        inner
    }
}
