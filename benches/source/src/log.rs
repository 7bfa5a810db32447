//! One partition's log: which bytes stand at which offset.
//!
//! A log is a run of whole batches. It is cut into *stretches*, one per leader epoch that
//! appended something (as in Kafka's leader epoch cache); within a stretch generated batches
//! follow each other by ordinal, so that offsets, positions and ordinals are found by arithmetic
//! and a log of terabytes costs nothing. A position counts bytes from the log's first batch.

use crate::payload::{PREFIX_BYTES, PayloadRing};
use crate::record_batch;
use crate::topic::{Timestamps, TopicSpec};
use std::ops::Range;
use std::sync::Arc;

/// A partition's log, as the source serves it and as a copy must hold it.
///
/// Cloning is cheap for generated content and gives a picture of this moment.
#[derive(Clone, Debug)]
pub struct PartitionLog {
    content: LogContent,
    /// Never empty; ordered by epoch, offset and position.
    stretches: Vec<Stretch>,
    log_start: i64,
    end_offset: i64,
    end_position: u64,
    /// The ordinal that the next generated batch gets.
    end_ordinal: u64,
    held_high_watermark: Option<i64>,
}

#[derive(Clone, Debug)]
enum LogContent {
    Generated(Arc<PayloadRing>, Clock),
    Given(Vec<GivenBatch>),
}

/// The base timestamps of generated batches.
#[derive(Clone, Copy, Debug)]
struct Clock {
    timestamps: Timestamps,
    partition: u64,
}

impl Clock {
    /// Batch n of every partition is of the same time but for some ms, so that not even equal
    /// content makes batches equal.
    fn base_timestamp_ms(&self, ordinal: u64) -> i64 {
        let late_ms = (self.partition % 1000).cast_signed();
        self.timestamps.of(ordinal.saturating_sub(self.partition)).saturating_add(late_ms)
    }
}

#[derive(Clone, Debug)]
struct GivenBatch {
    bytes: Arc<[u8]>,
    base_offset: i64,
    next_offset: i64,
    position: u64,
    max_timestamp_ms: i64,
}

#[derive(Clone, Copy, Debug)]
struct Stretch {
    leader_epoch: i32,
    first_offset: i64,
    first_position: u64,
    first_ordinal: u64,
}

/// A batch in a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchAt {
    /// Offset of its first record.
    pub base_offset: i64,
    /// Offset behind its last record.
    pub next_offset: i64,
    /// Epoch of the leader that appended it.
    pub leader_epoch: i32,
    /// Bytes of the log in front of it.
    pub position: u64,
    /// Size with its header.
    pub bytes: usize,
    /// Largest timestamp of its records, ms since 1970.
    pub max_timestamp_ms: i64,
    ordinal: u64,
    stretch: usize,
}

impl BatchAt {
    /// Offsets that it spans: its records, where none were compacted away.
    pub fn records(&self) -> u64 {
        (self.next_offset - self.base_offset).unsigned_abs()
    }
}

/// Takes a log's bytes, piece by piece.
pub(crate) trait BatchSink {
    /// Bytes that are made for this call.
    fn own(&mut self, bytes: &[u8]);
    /// Bytes of a ring that many logs share.
    fn shared(&mut self, ring: &Arc<PayloadRing>, range: Range<usize>);
}

impl BatchSink for Vec<u8> {
    fn own(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }

    fn shared(&mut self, ring: &Arc<PayloadRing>, range: Range<usize>) {
        self.extend_from_slice(&ring.bytes()[range]);
    }
}

impl PartitionLog {
    /// An empty log of generated batches. Partitions begin at different ordinals, so that the
    /// same offset holds other bytes in each.
    pub(crate) fn generated(
        ring: Arc<PayloadRing>,
        spec: &TopicSpec,
        partition: i32,
    ) -> PartitionLog {
        let partition = u64::from(partition.unsigned_abs());
        let clock = Clock { timestamps: spec.timestamps, partition };
        let content = LogContent::Generated(ring, clock);
        Self::empty(content, partition, spec.first_offset, spec.leader_epoch)
    }

    /// An empty log of batches that are given to it.
    pub(crate) fn given(first_offset: i64, leader_epoch: i32) -> PartitionLog {
        Self::empty(LogContent::Given(Vec::new()), 0, first_offset, leader_epoch)
    }

    fn empty(
        content: LogContent,
        first_ordinal: u64,
        first_offset: i64,
        leader_epoch: i32,
    ) -> Self {
        let first = Stretch { leader_epoch, first_offset, first_position: 0, first_ordinal };
        PartitionLog {
            content,
            stretches: vec![first],
            log_start: first_offset,
            end_offset: first_offset,
            end_position: 0,
            end_ordinal: first_ordinal,
            held_high_watermark: None,
        }
    }

    /// First offset that can be read.
    pub fn log_start(&self) -> i64 {
        self.log_start
    }

    /// Offset behind the last record.
    pub fn end_offset(&self) -> i64 {
        self.end_offset
    }

    /// Bytes of all batches, those in front of the log start included.
    pub fn end_position(&self) -> u64 {
        self.end_position
    }

    /// Offset up to which consumers may read.
    pub fn high_watermark(&self) -> i64 {
        self.held_high_watermark.map_or(self.end_offset, |held| held.min(self.end_offset))
    }

    /// Epoch of the present leader.
    pub fn leader_epoch(&self) -> i32 {
        self.last_stretch().leader_epoch
    }

    /// The batch that holds `offset`, or the next one behind it in a gap. `None` from the log's
    /// end on and in front of its first batch's place.
    pub fn batch_at(&self, offset: i64) -> Option<BatchAt> {
        if offset >= self.end_offset || offset < self.stretches[0].first_offset {
            return None;
        }
        match &self.content {
            LogContent::Generated(ring, clock) => {
                let stretch = self.stretches.partition_point(|s| s.first_offset <= offset) - 1;
                let first = &self.stretches[stretch];
                let record = ring.records_before(first.first_ordinal)
                    + (offset - first.first_offset).unsigned_abs();
                let ordinal = ring.ordinal_of_record(record);
                Some(self.generated_at(ring, clock, stretch, ordinal))
            }
            LogContent::Given(batches) => {
                let index = batches.partition_point(|b| b.next_offset <= offset);
                batches.get(index).map(|_| self.given_at(batches, index))
            }
        }
    }

    /// The batch behind this one.
    pub fn batch_after(&self, batch: &BatchAt) -> Option<BatchAt> {
        if batch.next_offset >= self.end_offset {
            return None;
        }
        match &self.content {
            LogContent::Generated(ring, clock) => {
                let next = batch.stretch + 1;
                match self.stretches.get(next) {
                    Some(stretch) if stretch.first_offset <= batch.next_offset => {
                        Some(self.generated_at(ring, clock, next, stretch.first_ordinal))
                    }
                    _ => Some(self.generated_at(ring, clock, batch.stretch, batch.ordinal + 1)),
                }
            }
            LogContent::Given(batches) => {
                let index = usize::try_from(batch.ordinal).expect("an index") + 1;
                batches.get(index).map(|_| self.given_at(batches, index))
            }
        }
    }

    /// All batches from the one that holds `offset` on.
    pub fn batches_from(&self, offset: i64) -> impl Iterator<Item = BatchAt> + '_ {
        std::iter::successors(self.batch_at(offset), |batch| self.batch_after(batch))
    }

    /// Appends a batch's bytes to `out`.
    pub fn write_batch(&self, batch: &BatchAt, out: &mut Vec<u8>) {
        self.emit(batch, batch.bytes, out);
    }

    /// Position behind the last batch that lies wholly below `offset`.
    pub fn position_of(&self, offset: i64) -> u64 {
        if offset <= self.stretches[0].first_offset {
            return 0;
        }
        self.batch_at(offset).map_or(self.end_position, |batch| batch.position)
    }

    /// The end of a leader epoch, as OffsetForLeaderEpoch answers it: (−1, −1) when unknown.
    pub fn end_offset_for_epoch(&self, epoch: i32) -> (i32, i64) {
        const UNDEFINED: (i32, i64) = (-1, -1);
        if epoch < 0 {
            return UNDEFINED;
        }
        if epoch == self.leader_epoch() {
            return (epoch, self.end_offset);
        }
        // As in Kafka, epochs that lie wholly in front of the log start are forgotten, except
        // that the one the log start falls into begins there.
        let first_kept = self.stretches.partition_point(|s| s.first_offset <= self.log_start);
        let kept = &self.stretches[first_kept.saturating_sub(1)..];
        let higher = kept.partition_point(|s| s.leader_epoch <= epoch);
        match (higher.checked_sub(1), kept.get(higher)) {
            (_, None) => UNDEFINED,
            (None, Some(next)) => (epoch, next.first_offset.max(self.log_start)),
            (Some(floor), Some(next)) => (kept[floor].leader_epoch, next.first_offset),
        }
    }

    /// First batch whose largest timestamp is at least `timestamp_ms`.
    pub fn batch_for_timestamp(&self, timestamp_ms: i64) -> Option<BatchAt> {
        let mut from = self.log_start;
        if let LogContent::Generated(ring, clock) = &self.content {
            // Batches' own timestamps may go up and down, but what they stay below never falls:
            // halving the offsets finds where to begin, and one round of the ring ends it.
            let mut beyond = self.end_offset;
            while from < beyond {
                let middle = from + (beyond - from) / 2;
                let batch = self.batch_at(middle)?;
                let base_ms = clock.base_timestamp_ms(batch.ordinal);
                if base_ms.saturating_add(ring.timestamp_delta_ms_max()) >= timestamp_ms {
                    beyond = batch.base_offset.clamp(from, middle);
                } else {
                    from = batch.next_offset;
                }
            }
        }
        self.batches_from(from).find(|batch| batch.max_timestamp_ms >= timestamp_ms)
    }

    /// The last batch with the largest timestamp of all; of generated ones, of the last rounds of
    /// the ring, where it is.
    pub fn batch_with_max_timestamp(&self) -> Option<BatchAt> {
        let from = match &self.content {
            LogContent::Generated(ring, _) => {
                let rounds = 4 * ring.records_before(ring.len() as u64).cast_signed();
                self.log_start.max(self.end_offset - rounds)
            }
            LogContent::Given(_) => self.log_start,
        };
        self.batches_from(from).max_by_key(|batch| batch.max_timestamp_ms)
    }

    /// Generated logs: appends so many batches.
    pub(crate) fn grow(&mut self, batches: u64) {
        let LogContent::Generated(ring, _) = &self.content else {
            unreachable!("a topic of given batches is refused any growth")
        };
        let to = self.end_ordinal + batches;
        let records = ring.records_before(to) - ring.records_before(self.end_ordinal);
        self.end_position += ring.bytes_before(to) - ring.bytes_before(self.end_ordinal);
        self.end_offset += records.cast_signed();
        self.end_ordinal = to;
    }

    /// Given logs: appends one batch, base offset and leader epoch as they stand in it if
    /// `verbatim`, else set. Returns its base offset, or `None` if it is no whole batch of magic
    /// 2, lies below the end, or the log's content is generated.
    pub(crate) fn append_given(&mut self, batch: &[u8], verbatim: bool) -> Option<i64> {
        let (end_offset, leader_epoch) = (self.end_offset, self.leader_epoch());
        let LogContent::Given(batches) = &mut self.content else { return None };
        let head = record_batch::header(batch).filter(|head| head.bytes == batch.len())?;
        let base_offset = if verbatim { head.base_offset } else { end_offset };
        let delta = i64::from(head.last_offset_delta);
        if base_offset < end_offset || delta < 0 {
            return None;
        }
        let mut bytes = batch.to_vec();
        if !verbatim {
            record_batch::place(&mut bytes, base_offset, leader_epoch);
        }
        let next_offset = base_offset.checked_add(delta)?.checked_add(1)?;
        batches.push(GivenBatch {
            base_offset,
            next_offset,
            position: self.end_position,
            max_timestamp_ms: head.max_timestamp_ms,
            bytes: bytes.into(),
        });
        self.end_offset = next_offset;
        self.end_position += batch.len() as u64;
        Some(base_offset)
    }

    /// A new leader epoch begins at the log's end. `false` if it is not above the present one.
    pub(crate) fn begin_epoch(&mut self, leader_epoch: i32) -> bool {
        if leader_epoch <= self.leader_epoch() {
            return false;
        }
        let stretch = Stretch {
            leader_epoch,
            first_offset: self.end_offset,
            first_position: self.end_position,
            first_ordinal: self.end_ordinal,
        };
        // An epoch under which nothing was appended leaves no trace.
        if self.stretches.last().is_some_and(|s| s.first_offset >= self.end_offset) {
            self.stretches.pop();
        }
        self.stretches.push(stretch);
        true
    }

    /// Loses the batches from the one that holds `offset` on, and begins a new leader epoch.
    /// What is appended later differs from what was lost. `false` if the epoch is not new.
    pub(crate) fn lose_tail(&mut self, offset: i64, leader_epoch: i32) -> bool {
        if leader_epoch <= self.leader_epoch() {
            return false;
        }
        if let Some(cut) = self.batch_at(offset.max(self.stretches[0].first_offset)) {
            self.end_offset = cut.base_offset;
            self.end_position = cut.position;
            let keep = self.stretches.partition_point(|s| s.first_offset <= cut.base_offset);
            self.stretches.truncate(keep.max(1));
            match &mut self.content {
                LogContent::Generated(ring, _) => {
                    // Neither the ring entry nor the timestamp that stood here before.
                    self.end_ordinal += 1;
                    let n = ring.len() as u64;
                    if n > 1 && self.end_ordinal % n == cut.ordinal % n {
                        self.end_ordinal += 1;
                    }
                }
                LogContent::Given(batches) => {
                    batches.truncate(usize::try_from(cut.ordinal).expect("an index"));
                }
            }
            self.log_start = self.log_start.min(self.end_offset);
            self.held_high_watermark = self.held_high_watermark.map(|h| h.min(self.end_offset));
        }
        self.begin_epoch(leader_epoch)
    }

    /// Moves the log start up, as DeleteRecords does. `false` when outside the log or backwards.
    pub(crate) fn advance_start(&mut self, offset: i64) -> bool {
        let possible = (self.log_start..=self.high_watermark()).contains(&offset);
        if possible {
            self.log_start = offset;
        }
        possible
    }

    pub(crate) fn hold_high_watermark(&mut self, at: Option<i64>) {
        self.held_high_watermark = at;
    }

    /// Emits the first `bytes_max` bytes of a batch.
    pub(crate) fn emit(&self, batch: &BatchAt, bytes_max: usize, out: &mut impl BatchSink) {
        let bytes = batch.bytes.min(bytes_max);
        match &self.content {
            LogContent::Generated(ring, clock) => {
                let BatchAt { ordinal, base_offset, leader_epoch, .. } = *batch;
                let base_ms = clock.base_timestamp_ms(ordinal);
                let prefix = ring.prefix(ordinal, base_offset, leader_epoch, base_ms);
                out.own(&prefix[..bytes.min(PREFIX_BYTES)]);
                if bytes > PREFIX_BYTES {
                    let rest = ring.rest(batch.ordinal);
                    out.shared(ring, rest.start..rest.start + bytes - PREFIX_BYTES);
                }
            }
            LogContent::Given(batches) => {
                let index = usize::try_from(batch.ordinal).expect("an index");
                out.own(&batches[index].bytes[..bytes]);
            }
        }
    }

    fn generated_at(
        &self,
        ring: &PayloadRing,
        clock: &Clock,
        stretch: usize,
        ordinal: u64,
    ) -> BatchAt {
        let first = &self.stretches[stretch];
        let records = ring.records_before(ordinal) - ring.records_before(first.first_ordinal);
        let position = ring.bytes_before(ordinal) - ring.bytes_before(first.first_ordinal);
        let base_offset = first.first_offset + records.cast_signed();
        BatchAt {
            base_offset,
            next_offset: base_offset + ring.batch_records(ordinal).cast_signed(),
            leader_epoch: first.leader_epoch,
            position: first.first_position + position,
            bytes: ring.batch_bytes(ordinal),
            max_timestamp_ms: clock
                .base_timestamp_ms(ordinal)
                .saturating_add(ring.timestamp_delta_ms(ordinal)),
            ordinal,
            stretch,
        }
    }

    fn given_at(&self, batches: &[GivenBatch], index: usize) -> BatchAt {
        let batch = &batches[index];
        let stretch = self.stretches.partition_point(|s| s.first_offset <= batch.base_offset);
        BatchAt {
            base_offset: batch.base_offset,
            next_offset: batch.next_offset,
            leader_epoch: record_batch::i32_at(&batch.bytes, 12),
            position: batch.position,
            bytes: batch.bytes.len(),
            max_timestamp_ms: batch.max_timestamp_ms,
            ordinal: index as u64,
            stretch: stretch.saturating_sub(1),
        }
    }

    fn last_stretch(&self) -> &Stretch {
        self.stretches.last().expect("a log has at least one stretch")
    }
}
