//! Record batches and the older message sets, as they stand in a log: their heads, decoded.
//!
//! Kafka's log is a sequence of entries that all begin with a base offset (8 bytes) and a length
//! (4 bytes). Magic 2 (since Kafka 0.11) is a batch with a 61-byte head and a CRC-32C over
//! everything from `attributes` on; base offset, length and leader epoch are *outside* that
//! checksum. Magic 0 and 1 are single messages or compressed wrappers, with a CRC-32 (IEEE) over
//! everything from `magic` on. Big-endian throughout.

use zerocopy::byteorder::big_endian::{I16, I32, I64, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes before the part that `length` counts: base offset and length.
pub const OVERHEAD_BYTES: usize = 12;
/// The head of a magic 2 batch.
pub const HEADER_BYTES: usize = 61;
/// Where the magic byte stands, in every version.
pub const MAGIC_AT: usize = 16;
/// Where a magic 2 batch's checksum begins to count.
pub const CHECKED_FROM: usize = 21;
/// Where a magic 0 or 1 message's checksum begins to count.
pub const LEGACY_CHECKED_FROM: usize = 16;
/// The head of a magic 0 or 1 message up to and including its timestamp; also the least length
/// of a whole magic 0 message.
pub const LEGACY_HEADER_BYTES: usize = 26;
/// The least length of a whole magic 1 message.
pub const LEGACY_V1_BYTES_MIN: usize = 34;

/// The head of a magic 2 batch (KIP-98).
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct Header {
    /// Offset of the first record.
    pub base_offset: I64,
    /// Bytes after this field.
    pub length: I32,
    /// Epoch of the leader that appended the batch.
    pub leader_epoch: I32,
    /// 2.
    pub magic: u8,
    /// CRC-32C of everything after this field.
    pub crc: U32,
    /// Codec (bits 0-2), timestamp type (3), transactional (4), control (5), delete horizon (6).
    pub attributes: I16,
    /// Last offset minus base offset.
    pub last_offset_delta: I32,
    /// Timestamp of the first record.
    pub base_timestamp: I64,
    /// Largest timestamp.
    pub max_timestamp: I64,
    /// -1 if none.
    pub producer_id: I64,
    /// -1 if none.
    pub producer_epoch: I16,
    /// -1 if none.
    pub base_sequence: I32,
    /// Records that follow.
    pub record_count: I32,
}

const _: () = assert!(size_of::<Header>() == HEADER_BYTES);

const ATTRIBUTE_TRANSACTIONAL: i16 = 1 << 4;
const ATTRIBUTE_CONTROL: i16 = 1 << 5;

impl Header {
    /// Part of a transaction.
    pub fn transactional(&self) -> bool {
        self.attributes.get() & ATTRIBUTE_TRANSACTIONAL != 0
    }

    /// Written by a coordinator, not by a producer.
    pub fn control(&self) -> bool {
        self.attributes.get() & ATTRIBUTE_CONTROL != 0
    }
}

/// A complete, checked entry of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Offset of the first record. A magic 0 or 1 wrapper does not say it: its own offset.
    pub base_offset: i64,
    /// Offset of the last record.
    pub last_offset: i64,
    /// All bytes, overhead included.
    pub bytes: u32,
    /// 0, 1 or 2.
    pub magic: u8,
    /// The checksum in the head.
    pub crc: u32,
    /// Epoch of the leader that appended it. Magic 0 and 1 have none.
    pub leader_epoch: Option<i32>,
    /// Largest timestamp in ms, -1 if unknown.
    pub max_timestamp: i64,
    /// The idempotent producer that wrote it.
    pub producer: Option<Producer>,
    /// Part of a transaction.
    pub transactional: bool,
    /// Written by a coordinator.
    pub control: bool,
    /// What a transaction's control batch decides.
    pub marker: Option<Marker>,
    /// Records inside; 1 for a magic 0 or 1 entry, whatever it wraps.
    pub record_count: u32,
}

impl Batch {
    /// The offset after this batch.
    pub fn next_offset(&self) -> i64 {
        self.last_offset + 1
    }
}

/// Who wrote a batch (KIP-98).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Producer {
    /// Given by the source's cluster.
    pub id: i64,
    /// Fences older instances of the same producer.
    pub epoch: i16,
    /// Sequence of the first record; -1 in control batches.
    pub base_sequence: i32,
}

/// The end of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marker {
    /// True: aborted. False: committed.
    pub aborted: bool,
    /// Epoch of the coordinator that decided.
    pub coordinator_epoch: i32,
}

/// Reads the marker from the first record of a control batch (the bytes after the head; a prefix
/// is enough). None if it is none of a transaction's markers or too short to tell.
pub fn parse_marker(records: &[u8]) -> Option<Marker> {
    let mut rest = records;
    varint(&mut rest)?; // record length
    take(&mut rest, 1)?; // attributes
    varint(&mut rest)?; // timestamp delta
    varint(&mut rest)?; // offset delta
    if varint(&mut rest)? < 4 {
        return None;
    }
    let key = take(&mut rest, 4)?;
    let aborted = match i16::from_be_bytes([key[2], key[3]]) {
        0 => true,
        1 => false,
        _ => return None,
    };
    if varint(&mut rest)? < 6 {
        return None;
    }
    let value = take(&mut rest, 6)?;
    let coordinator_epoch = i32::from_be_bytes([value[2], value[3], value[4], value[5]]);
    Some(Marker { aborted, coordinator_epoch })
}

fn take<'a>(rest: &mut &'a [u8], bytes: usize) -> Option<&'a [u8]> {
    let (head, tail) = rest.split_at_checked(bytes)?;
    *rest = tail;
    Some(head)
}

/// A zigzag varint of at most ten bytes.
fn varint(rest: &mut &[u8]) -> Option<i64> {
    let mut value = 0u64;
    for shift in (0..70).step_by(7) {
        let byte = take(rest, 1)?[0];
        value |= u64::from(byte & 0x7F).checked_shl(shift)?;
        if byte & 0x80 == 0 {
            return Some((value >> 1) as i64 ^ -((value & 1) as i64));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn a_marker_is_read() {
        for aborted in [true, false] {
            let bytes = testing::marker(7, 1, 42, 3, aborted);
            let marker = parse_marker(&bytes[HEADER_BYTES..]).unwrap();
            assert_eq!(marker, Marker { aborted, coordinator_epoch: 9 });
        }
    }

    #[test]
    fn a_short_or_foreign_marker_is_none() {
        let bytes = testing::marker(7, 1, 42, 3, true);
        let records = &bytes[HEADER_BYTES..];
        for end in 0..records.len() - 1 {
            // The trailing byte is the empty header list, which the marker does not need.
            assert_eq!(parse_marker(&records[..end]), None, "prefix of {end}");
        }
        let mut foreign = records.to_vec();
        foreign[8] = 5;
        assert_eq!(parse_marker(&foreign), None);
    }
}
