//! Prepared batches, shared by all partitions of a topic.
//!
//! A [`PayloadRing`] holds N distinct batches back to back and stands for an endless log: the
//! batch of *ordinal* n is ring entry n mod N with its own base offset, leader epoch and
//! timestamps. Only the first [`PREFIX_BYTES`] differ from the stored bytes, so a response is a
//! short prefix per batch and the rest straight from shared memory.
//!
//! The CRC covers the timestamps. CRC-32C is linear over equal lengths: the checksum after some
//! bits were flipped is the old one xor a constant per flipped bit. Those constants are prepared
//! once per batch length, and a new timestamp costs some twenty xors, whatever the batch's size.

use crate::record_batch::{
    self, BASE_TIMESTAMP_AT, CRC_COVERS_FROM, MAX_TIMESTAMP_AT, crc32c, header, i64_at,
};
use std::collections::HashMap;

/// Bytes at the start of each batch that may differ from the ring's copy: up to and with the
/// max timestamp.
pub(crate) const PREFIX_BYTES: usize = MAX_TIMESTAMP_AT + 8;

/// What flipping each bit of the two timestamps does to the CRC of batches of one length.
type TimestampColumns = [u32; 128];

#[derive(Debug)]
pub(crate) struct PayloadRing {
    bytes: Box<[u8]>,
    entries: Vec<Entry>,
    columns: Vec<TimestampColumns>,
    /// Records in the whole ring.
    cycle_records: u64,
    /// The largest of any batch.
    max_timestamp_delta_ms: i64,
    /// Set when all batches have the same size and count, which makes looking up cheap.
    uniform: bool,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    from: usize,
    bytes: usize,
    /// Records in the ring before this batch.
    records_before: u64,
    records: u64,
    columns: usize,
    max_timestamp_delta_ms: i64,
}

impl PayloadRing {
    /// Takes whole batches whose base timestamps are 0.
    pub fn new(batches: &[Vec<u8>]) -> PayloadRing {
        assert!(!batches.is_empty(), "a ring holds at least one batch");
        let mut bytes = Vec::with_capacity(batches.iter().map(Vec::len).sum());
        let mut entries: Vec<Entry> = Vec::with_capacity(batches.len());
        let mut columns = Vec::new();
        let mut columns_of: HashMap<usize, usize> = HashMap::new();
        let mut records_before = 0;
        for batch in batches {
            let head = header(batch).expect("a prepared batch is whole");
            assert_eq!(head.bytes, batch.len(), "exactly one batch");
            let of_length = *columns_of.entry(batch.len()).or_insert_with(|| {
                columns.push(timestamp_columns(batch.len()));
                columns.len() - 1
            });
            let records = u64::try_from(head.last_offset_delta).expect("records in a batch") + 1;
            entries.push(Entry {
                from: bytes.len(),
                bytes: batch.len(),
                records_before,
                records,
                columns: of_length,
                max_timestamp_delta_ms: head.max_timestamp_ms - i64_at(batch, BASE_TIMESTAMP_AT),
            });
            records_before += records;
            bytes.extend_from_slice(batch);
        }
        let uniform =
            entries.iter().all(|e| (e.bytes, e.records) == (entries[0].bytes, entries[0].records));
        PayloadRing {
            bytes: bytes.into_boxed_slice(),
            max_timestamp_delta_ms: entries
                .iter()
                .map(|e| e.max_timestamp_delta_ms)
                .max()
                .unwrap_or(0),
            entries,
            columns,
            cycle_records: records_before,
            uniform,
        }
    }

    /// How many distinct batches there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Records in all batches of an ordinal below `ordinal`.
    pub fn records_before(&self, ordinal: u64) -> u64 {
        let (cycle, entry) = self.entry(ordinal);
        cycle * self.cycle_records + entry.records_before
    }

    /// Bytes in all batches of an ordinal below `ordinal`.
    pub fn bytes_before(&self, ordinal: u64) -> u64 {
        let (cycle, entry) = self.entry(ordinal);
        cycle * self.bytes.len() as u64 + entry.from as u64
    }

    /// The ordinal of the batch that holds record number `record`.
    pub fn ordinal_of_record(&self, record: u64) -> u64 {
        if self.uniform {
            return record / self.entries[0].records;
        }
        let within = record % self.cycle_records;
        let index = self.entries.partition_point(|e| e.records_before <= within) - 1;
        record / self.cycle_records * self.entries.len() as u64 + index as u64
    }

    pub fn batch_bytes(&self, ordinal: u64) -> usize {
        self.entry(ordinal).1.bytes
    }

    pub fn batch_records(&self, ordinal: u64) -> u64 {
        self.entry(ordinal).1.records
    }

    /// Mean size of a batch, at least 1.
    pub fn batch_bytes_mean(&self) -> u64 {
        self.bytes.len() as u64 / self.entries.len() as u64
    }

    /// How far the batch's last timestamp lies behind its base timestamp.
    pub fn timestamp_delta_ms(&self, ordinal: u64) -> i64 {
        self.entry(ordinal).1.max_timestamp_delta_ms
    }

    /// The largest such distance of any batch.
    pub fn timestamp_delta_ms_max(&self) -> i64 {
        self.max_timestamp_delta_ms
    }

    /// The first bytes of the batch as it stands in a log.
    pub fn prefix(
        &self,
        ordinal: u64,
        base_offset: i64,
        leader_epoch: i32,
        base_timestamp_ms: i64,
    ) -> [u8; PREFIX_BYTES] {
        let (_, entry) = self.entry(ordinal);
        let stored = &self.bytes[entry.from..entry.from + PREFIX_BYTES];
        let mut prefix: [u8; PREFIX_BYTES] = stored.try_into().expect("the prefix's length");
        record_batch::place(&mut prefix, base_offset, leader_epoch);
        let base = base_timestamp_ms;
        let max = base.saturating_add(entry.max_timestamp_delta_ms);
        let flipped = (u128::from(base.cast_unsigned()) << 64)
            | u128::from((max ^ entry.max_timestamp_delta_ms).cast_unsigned());
        if flipped != 0 {
            prefix[BASE_TIMESTAMP_AT..MAX_TIMESTAMP_AT].copy_from_slice(&base.to_be_bytes());
            prefix[MAX_TIMESTAMP_AT..].copy_from_slice(&max.to_be_bytes());
            let stored_crc = u32::from_be_bytes(prefix[17..21].try_into().expect("four bytes"));
            let crc = stored_crc ^ self.crc_change(entry.columns, flipped);
            prefix[17..21].copy_from_slice(&crc.to_be_bytes());
        }
        prefix
    }

    /// Where the bytes behind the prefix stand in [`PayloadRing::bytes`].
    pub fn rest(&self, ordinal: u64) -> std::ops::Range<usize> {
        let (_, entry) = self.entry(ordinal);
        entry.from + PREFIX_BYTES..entry.from + entry.bytes
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn entry(&self, ordinal: u64) -> (u64, &Entry) {
        let n = self.entries.len() as u64;
        (ordinal / n, &self.entries[(ordinal % n) as usize])
    }

    fn crc_change(&self, columns: usize, flipped: u128) -> u32 {
        let columns = &self.columns[columns];
        let mut rest = flipped;
        let mut change = 0;
        while rest != 0 {
            change ^= columns[rest.trailing_zeros() as usize];
            rest &= rest - 1;
        }
        change
    }
}

/// Column i tells what flipping bit i does, counted from the low bit of the max timestamp.
fn timestamp_columns(batch_bytes: usize) -> TimestampColumns {
    let mut message = vec![0; batch_bytes - CRC_COVERS_FROM];
    let zero = crc32c(&message);
    std::array::from_fn(|bit| {
        let at = MAX_TIMESTAMP_AT + 7 - CRC_COVERS_FROM - bit / 8;
        message[at] = 1 << (bit % 8);
        let change = crc32c(&message) ^ zero;
        message[at] = 0;
        change
    })
}
