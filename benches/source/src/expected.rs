//! What a copy must hold: the other side of the source, without a socket.
//!
//! [`Expected`] makes the same log from the same [`TopicSpec`] in any process; a [`Comparison`]
//! holds a copy's bytes against a log in pieces of any size, and names the first one that differs.

use crate::cluster::first_log;
use crate::log::{BatchAt, PartitionLog};
use crate::payload::PayloadRing;
use crate::topic::{TopicError, TopicSpec};
use std::ops::Range;
use std::sync::Arc;

/// What a topic's partitions hold from the beginning up to any offset, as long as nobody moved
/// the source by hand.
#[derive(Clone, Debug)]
pub struct Expected {
    spec: TopicSpec,
    ring: Option<Arc<PayloadRing>>,
}

impl Expected {
    /// Prepares the topic's batches.
    pub fn new(spec: &TopicSpec) -> Result<Expected, TopicError> {
        let ring = spec.payload_ring()?.map(Arc::new);
        Ok(Expected { spec: spec.clone(), ring })
    }

    /// A partition's log with at least all batches below `end_offset`, those included that only
    /// time brings.
    pub fn log(&self, partition: i32, end_offset: i64) -> PartitionLog {
        let mut log = first_log(&self.spec, self.ring.as_ref(), partition);
        while self.ring.is_some() && log.end_offset() < end_offset {
            // A batch has at least one record, so this many batches at most are missing; those
            // of a ring are alike enough that a few rounds do.
            let missing = (end_offset - log.end_offset()).unsigned_abs();
            let records = log.batch_at(log.end_offset() - 1).map_or(1, |b| b.records());
            log.grow((missing / records).max(1));
        }
        log
    }

    /// The bytes of all batches with an offset in the range.
    pub fn bytes(&self, partition: i32, offsets: Range<i64>) -> Vec<u8> {
        self.log(partition, offsets.end).bytes(offsets)
    }
}

impl PartitionLog {
    /// The bytes of all batches with an offset in the range.
    pub fn bytes(&self, offsets: Range<i64>) -> Vec<u8> {
        let mut bytes = Vec::new();
        let in_range = |batch: &BatchAt| batch.base_offset < offsets.end;
        for batch in self.batches_from(offsets.start).take_while(in_range) {
            self.write_batch(&batch, &mut bytes);
        }
        bytes
    }

    /// Begins to compare a copy with this log, from the batch that holds `offset` on.
    pub fn compare_from(&self, offset: i64) -> Comparison<'_> {
        let next = self.batch_at(offset);
        Comparison { log: self, next, batch: Vec::new(), used: 0, offset, compared_bytes: 0 }
    }
}

/// A copy under comparison with a log.
#[derive(Clone, Debug)]
pub struct Comparison<'a> {
    log: &'a PartitionLog,
    next: Option<BatchAt>,
    /// The batch that the copy is within, and how much of it was seen.
    batch: Vec<u8>,
    used: usize,
    offset: i64,
    compared_bytes: u64,
}

/// Where a copy differs from its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Difference {
    /// A byte differs.
    #[error(
        "byte {in_batch} of the batch at offset {base_offset} is {found:#04x}, \
         not {expected:#04x} (byte {position} of those compared)"
    )]
    Byte {
        /// Base offset of the batch that the source has there.
        base_offset: i64,
        /// Which byte of the batch.
        in_batch: usize,
        /// Which of all bytes compared.
        position: u64,
        /// What the source has.
        expected: u8,
        /// What the copy has.
        found: u8,
    },
    /// The copy goes on where the source has nothing.
    #[error("the copy has more bytes behind offset {end_offset}, where the source ends")]
    Beyond {
        /// Where the source's log ends.
        end_offset: i64,
    },
}

impl Comparison<'_> {
    /// Compares the copy's next bytes.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Result<(), Difference> {
        while !bytes.is_empty() {
            if self.used == self.batch.len() {
                let end_offset = self.log.end_offset();
                let batch = self.next.ok_or(Difference::Beyond { end_offset })?;
                self.batch.clear();
                self.used = 0;
                self.log.write_batch(&batch, &mut self.batch);
            }
            let expected = &self.batch[self.used..];
            let (now, later) = bytes.split_at(bytes.len().min(expected.len()));
            if now != &expected[..now.len()] {
                return Err(self.difference(now));
            }
            self.used += now.len();
            self.compared_bytes += now.len() as u64;
            if self.used == self.batch.len()
                && let Some(batch) = self.next
            {
                self.offset = batch.next_offset;
                self.next = self.log.batch_after(&batch);
            }
            bytes = later;
        }
        Ok(())
    }

    /// Offset behind the last batch that was seen whole.
    pub fn offset(&self) -> i64 {
        self.offset
    }

    /// Whether the copy ends between two batches.
    pub fn is_at_batch_end(&self) -> bool {
        self.used == self.batch.len()
    }

    /// Bytes compared so far, all of them equal.
    pub fn compared_bytes(&self) -> u64 {
        self.compared_bytes
    }

    fn difference(&self, found: &[u8]) -> Difference {
        let expected = &self.batch[self.used..];
        let at = found.iter().zip(expected).take_while(|(a, b)| a == b).count();
        Difference::Byte {
            base_offset: self.next.map_or(self.offset, |batch| batch.base_offset),
            in_batch: self.used + at,
            position: self.compared_bytes + at as u64,
            expected: expected[at],
            found: found[at],
        }
    }
}
