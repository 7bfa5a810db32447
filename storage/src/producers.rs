//! Producer state: who wrote last with which sequence, which transactions are open, and therefore
//! where the last stable offset lies; kept as Kafka's `ProducerStateManager` keeps it on a
//! follower. The source has validated the batches; here they are only recorded.
//!
//! A `.snapshot` holds the state up to the offset in its name: version 1 (i16), CRC-32C of all
//! that follows (u32), the count (i32), then 46 bytes per producer.

use std::collections::BTreeMap;

use thiserror::Error;
use zerocopy::byteorder::big_endian::{I16, I32, I64, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::batch::{Batch, Marker};
use crate::crc;
use crate::index::AbortedEntry;
use crate::limits::PRODUCER_IDLE_MS;

/// A snapshot that cannot be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SnapshotError {
    /// Shorter or longer than its count says.
    #[error("the producer snapshot has a wrong length")]
    Length,
    /// Not version 1.
    #[error("the producer snapshot has the unknown version {0}")]
    Version(i16),
    /// Its checksum does not match.
    #[error("the producer snapshot's CRC does not match")]
    Crc,
    /// A producer, or the start of a transaction, stands in it twice.
    #[error("the producer snapshot has an entry twice")]
    Twice,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct SnapshotHeader {
    version: I16,
    crc: U32,
    count: I32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct SnapshotEntry {
    producer_id: I64,
    producer_epoch: I16,
    last_sequence: I32,
    last_offset: I64,
    offset_delta: I32,
    timestamp: I64,
    coordinator_epoch: I32,
    transaction_first_offset: I64,
}

const _: () = assert!(size_of::<SnapshotHeader>() == 10);
const _: () = assert!(size_of::<SnapshotEntry>() == 46);
const CRC_COVERS_FROM: usize = 6;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    epoch: i16,
    last_sequence: i32,
    last_offset: i64,
    offset_delta: i32,
    timestamp: i64,
    coordinator_epoch: i32,
    transaction: Option<i64>,
}

impl Entry {
    const NEW: Entry = Entry {
        epoch: -1,
        last_sequence: -1,
        last_offset: -1,
        offset_delta: 0,
        timestamp: -1,
        coordinator_epoch: -1,
        transaction: None,
    };

    fn adopt_epoch(&mut self, epoch: i16) {
        if self.epoch != epoch {
            // Sequences start over with a new epoch.
            self.epoch = epoch;
            self.last_sequence = -1;
            self.last_offset = -1;
            self.offset_delta = 0;
        }
    }
}

/// The producers of a log, and its open transactions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Producers {
    entries: BTreeMap<i64, Entry>,
    /// First offset → producer.
    open: BTreeMap<i64, i64>,
}

impl Producers {
    /// A batch was appended. An aborted transaction comes back, for `.txnindex`.
    pub fn append(&mut self, batch: &Batch) -> Option<AbortedEntry> {
        let producer = batch.producer?;
        if batch.control {
            // A control batch without records means that the cleaner removed its transaction.
            let marker = batch.marker?;
            return self.end_transaction(producer.id, producer.epoch, batch, marker);
        }
        let entry = self.entries.entry(producer.id).or_insert(Entry::NEW);
        entry.adopt_epoch(producer.epoch);
        let delta = (batch.last_offset - batch.base_offset) as i32;
        entry.last_sequence = advance_sequence(producer.base_sequence, delta);
        entry.last_offset = batch.last_offset;
        entry.offset_delta = delta;
        entry.timestamp = batch.max_timestamp;
        if batch.transactional && entry.transaction.is_none() {
            entry.transaction = Some(batch.base_offset);
            self.open.insert(batch.base_offset, producer.id);
        }
        None
    }

    /// What follows was not read on from here: no transaction counts as open, for its marker may
    /// lie in between. One that goes on opens again with its next batch.
    pub fn forget_open(&mut self) {
        self.open.clear();
        self.entries.values_mut().for_each(|entry| entry.transaction = None);
    }

    /// The first offset of the oldest open transaction.
    pub fn first_open(&self) -> Option<i64> {
        self.open.first_key_value().map(|(&first, _)| first)
    }

    /// Open transactions: (first offset, producer id, producer epoch).
    pub fn open_transactions(&self) -> impl Iterator<Item = (i64, i64, i16)> + '_ {
        self.open.iter().map(|(&first, id)| (first, *id, self.entries[id].epoch))
    }

    /// Producers known.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// No producer is known.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Forgets who wrote nothing for a day and has no transaction open.
    pub fn expire(&mut self, now_ms: i64) {
        self.entries.retain(|_, entry| {
            entry.transaction.is_some() || now_ms.saturating_sub(entry.timestamp) < PRODUCER_IDLE_MS
        });
    }

    /// The bytes of a `.snapshot`.
    pub fn encode(&self) -> Vec<u8> {
        let header =
            SnapshotHeader { version: 1.into(), crc: 0.into(), count: (self.len() as i32).into() };
        let mut bytes = header.as_bytes().to_vec();
        for (&id, entry) in &self.entries {
            let encoded = SnapshotEntry {
                producer_id: id.into(),
                producer_epoch: entry.epoch.into(),
                last_sequence: entry.last_sequence.into(),
                last_offset: entry.last_offset.into(),
                offset_delta: entry.offset_delta.into(),
                timestamp: entry.timestamp.into(),
                coordinator_epoch: entry.coordinator_epoch.into(),
                transaction_first_offset: entry.transaction.unwrap_or(-1).into(),
            };
            bytes.extend_from_slice(encoded.as_bytes());
        }
        let crc = crc::crc32c(&bytes[CRC_COVERS_FROM..]);
        bytes[2..6].copy_from_slice(&crc.to_be_bytes());
        bytes
    }

    /// Reads the bytes of a `.snapshot`.
    pub fn decode(bytes: &[u8]) -> Result<Producers, SnapshotError> {
        let (header, rest) =
            SnapshotHeader::read_from_prefix(bytes).map_err(|_| SnapshotError::Length)?;
        if header.version.get() != 1 {
            return Err(SnapshotError::Version(header.version.get()));
        }
        if crc::crc32c(&bytes[CRC_COVERS_FROM..]) != header.crc.get() {
            return Err(SnapshotError::Crc);
        }
        let encoded = <[SnapshotEntry]>::ref_from_bytes(rest).map_err(|_| SnapshotError::Length)?;
        if usize::try_from(header.count.get()) != Ok(encoded.len()) {
            return Err(SnapshotError::Length);
        }
        let mut producers = Producers::default();
        for entry in encoded {
            let (id, first) = (entry.producer_id.get(), entry.transaction_first_offset.get());
            let transaction = (first >= 0).then_some(first);
            let entry = Entry {
                epoch: entry.producer_epoch.get(),
                last_sequence: entry.last_sequence.get(),
                last_offset: entry.last_offset.get(),
                offset_delta: entry.offset_delta.get(),
                timestamp: entry.timestamp.get(),
                coordinator_epoch: entry.coordinator_epoch.get(),
                transaction,
            };
            // Else a transaction could stay open that no producer can end.
            let known = producers.entries.insert(id, entry).is_some();
            if known || transaction.is_some_and(|at| producers.open.insert(at, id).is_some()) {
                return Err(SnapshotError::Twice);
            }
        }
        Ok(producers)
    }

    fn end_transaction(
        &mut self,
        id: i64,
        epoch: i16,
        batch: &Batch,
        marker: Marker,
    ) -> Option<AbortedEntry> {
        let entry = self.entries.entry(id).or_insert(Entry::NEW);
        entry.adopt_epoch(epoch);
        entry.coordinator_epoch = marker.coordinator_epoch;
        entry.timestamp = batch.max_timestamp;
        let first = entry.transaction.take()?;
        // What is unstable once this one is decided: the oldest transaction of another producer.
        let next = self.open.iter().find(|&(_, other)| *other != id).map(|(&first, _)| first);
        self.open.remove(&first);
        marker.aborted.then(|| AbortedEntry {
            version: 0.into(),
            producer_id: id.into(),
            first_offset: first.into(),
            last_offset: batch.base_offset.into(),
            last_stable_offset: next.unwrap_or(batch.base_offset + 1).into(),
        })
    }
}

/// Sequences wrap from the largest i32 to 0.
fn advance_sequence(base: i32, by: i32) -> i32 {
    if base > i32::MAX - by { by - (i32::MAX - base) - 1 } else { base + by }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::check::{Bounds, Checker};
    use crate::testing::{self, Shape};

    fn feed(producers: &mut Producers, bytes: &[u8]) -> Option<AbortedEntry> {
        let mut checker = Checker::new(0, None, 0, Bounds::local(1 << 20));
        producers.append(&checker.feed(bytes).unwrap().batch.unwrap())
    }

    fn data(base: i64, producer: i64, sequence: i32, transactional: bool) -> Vec<u8> {
        Shape {
            records: 3,
            producer: Some((producer, 1, sequence)),
            attributes: if transactional { 0x10 } else { 0 },
            ..Shape::at(base)
        }
        .bytes()
    }

    #[test]
    fn an_aborted_transaction_is_indexed_with_the_next_unstable_offset() {
        let mut producers = Producers::default();
        feed(&mut producers, &data(0, 7, 0, true));
        feed(&mut producers, &data(3, 8, 0, true));
        feed(&mut producers, &data(6, 7, 3, true));
        assert_eq!(producers.first_open(), Some(0));
        let aborted = feed(&mut producers, &testing::marker(9, 0, 7, 1, true)).unwrap();
        assert_eq!(aborted.producer_id.get(), 7);
        assert_eq!(aborted.first_offset.get(), 0);
        assert_eq!(aborted.last_offset.get(), 9);
        assert_eq!(aborted.last_stable_offset.get(), 3);
        assert_eq!(producers.first_open(), Some(3));
        assert!(feed(&mut producers, &testing::marker(10, 0, 8, 1, false)).is_none());
        assert_eq!(producers.first_open(), None);
        // A marker without a transaction decides nothing.
        assert!(feed(&mut producers, &testing::marker(11, 0, 8, 1, true)).is_none());
    }

    #[test]
    fn a_snapshot_that_has_an_entry_twice_is_refused() {
        let mut producers = Producers::default();
        feed(&mut producers, &data(0, 7, 0, true));
        let mut bytes = producers.encode();
        bytes.extend_from_within(size_of::<SnapshotHeader>()..);
        bytes[9] = 2;
        let crc = crc::crc32c(&bytes[CRC_COVERS_FROM..]);
        bytes[2..6].copy_from_slice(&crc.to_be_bytes());
        assert_eq!(Producers::decode(&bytes), Err(SnapshotError::Twice));
    }

    #[test]
    fn sequences_wrap() {
        assert_eq!(advance_sequence(i32::MAX - 1, 1), i32::MAX);
        assert_eq!(advance_sequence(i32::MAX - 1, 2), 0);
        assert_eq!(advance_sequence(i32::MAX, 3), 2);
    }

    #[test]
    fn a_new_epoch_starts_over() {
        let mut producers = Producers::default();
        feed(&mut producers, &data(0, 7, 5, false));
        feed(&mut producers, &testing::marker(3, 0, 7, 2, true));
        let entry = producers.entries[&7];
        assert_eq!((entry.epoch, entry.last_sequence, entry.last_offset), (2, -1, -1));
    }

    #[test]
    fn idle_producers_expire_unless_a_transaction_is_open() {
        let mut producers = Producers::default();
        feed(&mut producers, &data(0, 7, 0, false));
        feed(&mut producers, &data(3, 8, 0, true));
        producers.expire(1000 + PRODUCER_IDLE_MS);
        assert_eq!(producers.entries.keys().copied().collect::<Vec<_>>(), [8]);
    }

    proptest! {
        #[test]
        fn snapshots_come_back_and_flips_are_found(
            steps in prop::collection::vec((0i64..4, 0u8..4), 0..30),
            at in any::<prop::sample::Index>(),
        ) {
            let mut producers = Producers::default();
            for (i, (producer, kind)) in steps.into_iter().enumerate() {
                let base = i as i64 * 3;
                match kind {
                    0 => feed(&mut producers, &testing::marker(base, 0, producer, 1, true)),
                    1 => feed(&mut producers, &testing::marker(base, 0, producer, 1, false)),
                    2 => feed(&mut producers, &data(base, producer, 9, true)),
                    _ => feed(&mut producers, &data(base, producer, 9, false)),
                };
            }
            let mut bytes = producers.encode();
            prop_assert_eq!(Producers::decode(&bytes), Ok(producers));
            let at = at.index(bytes.len());
            bytes[at] ^= 4;
            prop_assert!(Producers::decode(&bytes).is_err());
            prop_assert!(Producers::decode(&bytes[..at]).is_err());
        }
    }
}
