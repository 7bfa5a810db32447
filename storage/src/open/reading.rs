//! What is made of a segment's batches while it is scanned.

use crate::epochs::Epochs;
use crate::index::Indexes;
use crate::log::LastBatch;
use crate::producers::Producers;
use crate::recovery::Scan;
use crate::scan::FoundBatch;
use crate::seal::SealBuilder;

/// A scan in progress.
pub(super) struct Reading<'a> {
    wanted: &'a Scan,
    until: i64,
    epochs: &'a mut Epochs,
    producers: &'a mut Producers,
    last_batch: &'a mut Option<LastBatch>,
    pub indexes: Indexes,
    /// The segment's checksums, if it is read whole.
    pub checksums: Option<SealBuilder>,
    /// That of the last batch.
    pub epoch: Option<i32>,
    /// The epochs as they were before the last batch, if they have changed with it.
    before: Option<Epochs>,
    /// It stopped before a batch that is at odds with what was written down of its place.
    pub is_displaced: bool,
    /// It stopped where the log is to be cut.
    pub is_at_cut: bool,
}

impl<'a> Reading<'a> {
    /// Begins; what begins at or above `until` is left out.
    pub fn new(
        wanted: &'a Scan,
        until: i64,
        (epochs, producers, last_batch): (
            &'a mut Epochs,
            &'a mut Producers,
            &'a mut Option<LastBatch>,
        ),
    ) -> Reading<'a> {
        let whole = wanted.from.place.bytes == 0;
        Reading {
            wanted,
            until,
            epochs,
            producers,
            last_batch,
            indexes: Indexes::new(wanted.from.place.segment, wanted.from.index),
            checksums: whole.then(|| SealBuilder::starting_at(0)),
            epoch: wanted.from.epoch,
            before: None,
            is_displaced: false,
            is_at_cut: false,
        }
    }

    /// The next batch; false: it is not taken, nor what follows it.
    pub fn take(&mut self, found: &FoundBatch) -> bool {
        let FoundBatch { batch, position, file_crc } = found;
        self.is_at_cut = batch.last_offset >= self.until;
        if self.is_at_cut {
            return false;
        }
        let bytes = *position..*position + u64::from(batch.bytes);
        let (next_offset, epoch) = (batch.next_offset(), batch.leader_epoch);
        self.is_displaced = self.wanted.is_contradicted(&bytes, next_offset, epoch);
        if self.is_displaced {
            return false;
        }
        if let Some(checksums) = &mut self.checksums {
            checksums.append_checksum(*file_crc, u64::from(batch.bytes), next_offset);
        }
        self.indexes.append(*position, batch);
        if let Some(aborted) = self.producers.append(batch) {
            self.indexes.append_aborted(aborted);
        }
        self.before = None;
        if let Some(epoch) = epoch {
            if self.epochs.last() < Some(epoch) {
                self.before = Some(self.epochs.clone());
            }
            self.epochs.assign(epoch, batch.base_offset);
            self.epoch = Some(epoch);
        }
        *self.last_batch = Some(LastBatch::new(batch, self.wanted.from.place.segment, *position));
        true
    }

    /// Damage follows. No checksum covers the epoch in the head of the batch before it.
    pub fn doubt_last(&mut self) {
        if let Some(before) = self.before.take() {
            *self.epochs = before;
        }
    }

    /// Reading goes on behind damage that nobody reads any more: the checksums would not be those
    /// of the whole segment, and what was open before it may have ended in it.
    pub fn step_over(&mut self) {
        self.producers.forget_open();
        self.checksums = None;
        self.is_displaced = false;
    }
}
