//! How the source lies, when it is told to.
//!
//! A fault is injected with a [`Target`] and a number of times. Faults of a partition change what
//! an answer says about it, or its records; faults of a frame change a whole answer on its
//! way out. Everything else stays true, so that a test sees one lie at a time.

use crate::log::{BatchAt, PartitionLog};
use crate::record_batch::HEADER_BYTES;
use std::time::Duration;

/// One way of misbehaving.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    // Of a partition's records.
    /// Flips one bit of the first batch. The CRC covers bytes from 21 on; base offset (0..8),
    /// length (8..12), leader epoch (12..16), magic (16) and the CRC itself (17..21) lie before.
    FlipBit {
        /// Byte of the batch; beyond its end the last byte is hit.
        byte: usize,
        /// Bit of the byte, 0..8.
        bit: u8,
    },
    /// Sets the first batch's length field.
    BatchLength(i32),
    /// Serves the first batch twice.
    RepeatBatch,
    /// Swaps the first two batches.
    ReorderBatches,
    /// Leaves the first batch out, where others follow: a gap in the offsets.
    DropBatch,
    /// Adds to every batch's base offset.
    ShiftOffsets(i64),
    /// Subtracts from every batch's leader epoch, and from the epoch that Metadata tells.
    LeaderEpochBack(i32),
    /// Serves another partition's records in place of this one's.
    OtherPartition {
        /// Index of the other partition, of the same topic.
        partition: i32,
        /// Offset to serve from; `None` is the one asked for.
        offset: Option<i64>,
    },
    /// Serves no more than so many bytes, and so possibly never a whole batch.
    CutRecords(usize),

    // Of what an answer says about a partition.
    /// Sets the length in front of the records. The records follow unchanged.
    RecordsLength(i32),
    /// Tells this high watermark.
    HighWatermark(i64),
    /// Says that the log parts from the reader's: the end of an epoch (KIP-595).
    Diverging {
        /// The epoch.
        epoch: i32,
        /// Where it ends.
        end_offset: i64,
    },
    /// Answers at once and without records, however many there are.
    Empty,
    /// Answers under another partition index.
    WrongPartition(i32),
    /// Answers with an error code.
    ErrorCode(i16),
    /// Tells this log start.
    LogStart(i64),

    // Of what other answers say about a partition.
    /// ListOffsets: tells this log start and this end, where they are given.
    Offsets {
        /// The log start.
        earliest: Option<i64>,
        /// The end.
        latest: Option<i64>,
    },
    /// ListOffsets: tells that the broker's own disk begins here, and a remote tier is before it.
    LocalStart(i64),
    /// ListOffsets: tells this offset for every time.
    OffsetForTime(i64),
    /// OffsetForLeaderEpoch: tells this epoch and its end.
    EpochEnd {
        /// The epoch.
        epoch: i32,
        /// Where it ends.
        end_offset: i64,
    },

    /// ListOffsets and OffsetForLeaderEpoch: answers with an error code.
    RefuseQuestions(i16),
    /// ListOffsets and OffsetForLeaderEpoch: answers under another partition index.
    AnswerAs(i32),

    // Of a frame.
    /// Sends the first half of an answer and closes the connection.
    HalfFrameThenClose,
    /// Sends the first half of an answer and nothing more, the connection staying open.
    HalfFrameThenSilence,
    /// Answers with another correlation id.
    WrongCorrelationId,
    /// Sets the length in front of the frame. The frame follows unchanged.
    FrameLength(i32),
    /// Replaces everything behind the correlation id by bytes that mean nothing.
    Garbage,
    /// Closes the connection without an answer.
    Close,
    /// Never answers, the connection staying open.
    NeverAnswer,
    /// Answers late.
    Delay(Duration),
}

/// What a fault applies to: all that match every condition given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// Index of the broker.
    pub broker: Option<usize>,
    /// Topic and partition; for faults of partitions only.
    pub partition: Option<(String, i32)>,
    /// API key of the request; for faults of frames only. 1 is Fetch.
    pub api_key: Option<i16>,
}

impl Target {
    /// One partition.
    pub fn partition(topic: impl Into<String>, partition: i32) -> Target {
        Target { partition: Some((topic.into(), partition)), ..Target::default() }
    }

    /// Every connection to one broker.
    pub fn broker(broker: usize) -> Target {
        Target { broker: Some(broker), ..Target::default() }
    }

    /// Every Fetch request.
    pub fn fetches() -> Target {
        Target { api_key: Some(1), ..Target::default() }
    }
}

impl Fault {
    /// Whether it is a fault of a whole frame, and not of a partition.
    pub fn is_of_frame(&self) -> bool {
        matches!(
            self,
            Fault::HalfFrameThenClose
                | Fault::HalfFrameThenSilence
                | Fault::WrongCorrelationId
                | Fault::FrameLength(_)
                | Fault::Garbage
                | Fault::Close
                | Fault::NeverAnswer
                | Fault::Delay(_)
        )
    }

    /// Whether it changes what a Fetch answer says of a partition, or its records.
    pub(crate) fn is_of_fetch(&self) -> bool {
        !self.is_of_frame() && !self.is_of_questions()
    }

    /// Whether it changes what ListOffsets or OffsetForLeaderEpoch say of a partition.
    fn is_of_questions(&self) -> bool {
        matches!(
            self,
            Fault::Offsets { .. }
                | Fault::LocalStart(_)
                | Fault::OffsetForTime(_)
                | Fault::EpochEnd { .. }
                | Fault::RefuseQuestions(_)
                | Fault::AnswerAs(_)
        )
    }

    /// Whether it changes a partition's records, and so needs some.
    pub(crate) fn is_of_records(&self) -> bool {
        self.is_of_fetch()
            && !matches!(
                self,
                Fault::HighWatermark(_)
                    | Fault::Diverging { .. }
                    | Fault::Empty
                    | Fault::WrongPartition(_)
                    | Fault::ErrorCode(_)
                    | Fault::LogStart(_)
            )
    }
}

#[derive(Debug)]
struct Injected {
    target: Target,
    fault: Fault,
    times_left: Option<u64>,
}

/// The faults that wait for their turn.
#[derive(Debug, Default)]
pub(crate) struct FaultList {
    injected: Vec<Injected>,
    applied: u64,
}

impl FaultList {
    pub fn inject(&mut self, target: Target, fault: Fault, times: Option<u64>) {
        if times != Some(0) {
            self.injected.push(Injected { target, fault, times_left: times });
        }
    }

    pub fn clear(&mut self) {
        self.injected.clear();
    }

    pub fn is_empty(&self) -> bool {
        self.injected.is_empty()
    }

    /// How often any fault was applied.
    pub fn applied(&self) -> u64 {
        self.applied
    }

    /// The fault that a partition's answer is to suffer, if any. It counts only once
    /// [`FaultList::count`] was called.
    pub fn of_partition(
        &self,
        broker: usize,
        topic: &str,
        partition: i32,
        suits: impl Fn(&Fault) -> bool,
    ) -> Option<(usize, Fault)> {
        let hit = |i: &Injected| {
            !i.fault.is_of_frame()
                && suits(&i.fault)
                && i.target.broker.is_none_or(|b| b == broker)
                && i.target.partition.as_ref().is_none_or(|(t, p)| t == topic && *p == partition)
        };
        let index = self.injected.iter().position(hit)?;
        Some((index, self.injected[index].fault.clone()))
    }

    /// The fault that an answer to this broker's request is to suffer, if any; counted.
    pub fn of_frame(&mut self, broker: usize, api_key: i16) -> Option<Fault> {
        let hit = |i: &Injected| {
            i.fault.is_of_frame()
                && i.target.broker.is_none_or(|b| b == broker)
                && i.target.api_key.is_none_or(|k| k == api_key)
        };
        let index = self.injected.iter().position(hit)?;
        let fault = self.injected[index].fault.clone();
        self.count(&[index]);
        Some(fault)
    }

    /// Notes that these faults were applied.
    pub fn count(&mut self, indices: &[usize]) {
        for &index in indices {
            self.applied += 1;
            if let Some(left) = &mut self.injected[index].times_left {
                *left = left.saturating_sub(1);
            }
        }
        self.injected.retain(|i| i.times_left != Some(0));
    }
}

/// The records from `first` on, up to some `bytes_max`, changed by a fault of records. `None`
/// where the fault cannot show.
pub(crate) fn false_records(
    fault: &Fault,
    log: &PartitionLog,
    other: Option<&PartitionLog>,
    first: &BatchAt,
    bytes_max: usize,
) -> Option<Vec<u8>> {
    let (mut batches, mut used) = (Vec::new(), 0);
    for batch in log.batches_from(first.base_offset) {
        if batch.next_offset > log.high_watermark() || (used > 0 && used + batch.bytes > bytes_max)
        {
            break;
        }
        used += batch.bytes;
        batches.push(whole_batch(log, &batch));
    }
    match *fault {
        Fault::FlipBit { byte, bit } => {
            let first = batches.first_mut()?;
            let at = byte.min(first.len() - 1);
            first[at] ^= 1 << (bit % 8);
        }
        Fault::BatchLength(length) => {
            batches.first_mut()?[8..12].copy_from_slice(&length.to_be_bytes());
        }
        Fault::RepeatBatch => batches.insert(0, batches.first()?.clone()),
        Fault::ReorderBatches => {
            batches.get(1)?;
            batches.swap(0, 1);
        }
        Fault::DropBatch => {
            batches.get(1)?;
            batches.remove(0);
        }
        Fault::ShiftOffsets(by) => {
            for batch in &mut batches {
                let shifted = i64::from_be_bytes(batch[..8].try_into().ok()?).wrapping_add(by);
                batch[..8].copy_from_slice(&shifted.to_be_bytes());
            }
        }
        Fault::LeaderEpochBack(by) => {
            for batch in &mut batches {
                let epoch = i32::from_be_bytes(batch[12..16].try_into().ok()?).wrapping_sub(by);
                batch[12..16].copy_from_slice(&epoch.to_be_bytes());
            }
        }
        Fault::OtherPartition { offset, .. } => {
            let other = other?;
            let from = other.batch_at(offset.unwrap_or(first.base_offset))?;
            batches = vec![whole_batch(other, &from)];
        }
        Fault::CutRecords(bytes) => {
            let mut all = batches.concat();
            all.truncate(bytes);
            return Some(all);
        }
        Fault::RecordsLength(_) => {}
        _ => return None,
    }
    debug_assert!(batches.iter().all(|batch| batch.len() >= HEADER_BYTES));
    Some(batches.concat())
}

fn whole_batch(log: &PartitionLog, batch: &BatchAt) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(batch.bytes);
    log.write_batch(batch, &mut bytes);
    bytes
}
