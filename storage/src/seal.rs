//! The seal of a finished segment: where it ends, what comes after it, and checksums.
//!
//! A seal says that a segment is complete: `bytes` long, holding offsets up to `next_offset`,
//! followed by the segment at `next_base`. It does not say that the bytes are on the device; the
//! checkpoint says that. A later segment counts only if all before it are sealed: a lost tail
//! between two segments would look just like a compaction gap.
//!
//! Checksums are CRC-32C, one of the whole file and one per *stride*: a run of whole batches of at
//! least 1 MiB. Strides end where batches end, so a damaged one names the offsets to fetch again.
//! They are combined from the batches' own checksums; the bytes are not read a second time.
//!
//! Layout, little-endian: a 72-byte head, then 16 bytes per stride. The head's CRC-32 covers
//! all that follows it.

use bytemuck::{Pod, Zeroable};
use thiserror::Error;

use crate::crc::{self, Crc32c};
use crate::index::IndexState;
use crate::limits::SEAL_STRIDE_BYTES;

/// Why bytes are no seal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the seal is cut short, garbled, or of an unknown version")]
pub struct SealError;

/// A run of whole batches.
#[derive(Pod, Zeroable, Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Stride {
    /// Where it ends in the file; it begins where the one before ends.
    pub end: u32,
    /// CRC-32C of its bytes.
    pub crc: u32,
    /// The offset after its last record.
    pub next_offset: i64,
}

/// A finished segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seal {
    /// Base offset: the file's name.
    pub base: i64,
    /// The file's exact length.
    pub bytes: u64,
    /// The offset after its last record.
    pub next_offset: i64,
    /// The base of the segment that follows it.
    pub next_base: i64,
    /// Lengths of `.index`, `.timeindex` and `.txnindex`.
    pub index_bytes: [u32; 3],
    /// CRC-32C of these three, one behind another.
    pub index_crc: u32,
    /// CRC-32C of the whole file.
    pub crc: u32,
    /// In order.
    pub strides: Vec<Stride>,
}

#[derive(Pod, Zeroable, Clone, Copy)]
#[repr(C)]
struct Head {
    magic: [u8; 8],
    crc: u32,
    count: u32,
    base: i64,
    bytes: u64,
    next_offset: i64,
    next_base: i64,
    index_bytes: [u32; 3],
    file_crc: u32,
    index_crc: u32,
    padding: u32,
}

const MAGIC: [u8; 8] = *b"USSEAL01";
const HEAD_BYTES: usize = size_of::<Head>();
const CRC_COVERS_FROM: usize = 12;
const _: () = assert!(HEAD_BYTES == 72);
const _: () = assert!(size_of::<Stride>() == 16);

impl Seal {
    /// The file's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let head = Head {
            magic: MAGIC,
            crc: 0,
            count: self.strides.len() as u32,
            base: self.base,
            bytes: self.bytes,
            next_offset: self.next_offset,
            next_base: self.next_base,
            index_bytes: self.index_bytes,
            file_crc: self.crc,
            index_crc: self.index_crc,
            padding: 0,
        };
        let mut bytes = bytemuck::bytes_of(&head).to_vec();
        bytes.extend_from_slice(bytemuck::cast_slice(&self.strides));
        let crc = crc::crc32(&bytes[CRC_COVERS_FROM..]);
        bytes[8..12].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads the file.
    pub fn decode(bytes: &[u8]) -> Result<Seal, SealError> {
        let head: Head = bytemuck::pod_read_unaligned(bytes.get(..HEAD_BYTES).ok_or(SealError)?);
        let whole = head.magic == MAGIC
            && crc::crc32(&bytes[CRC_COVERS_FROM..]) == head.crc
            && (bytes.len() - HEAD_BYTES) as u64 == u64::from(head.count) * 16
            && head.base >= 0
            && head.next_offset >= head.base
            && head.next_base >= head.next_offset;
        if !whole {
            return Err(SealError);
        }
        Ok(Seal {
            base: head.base,
            bytes: head.bytes,
            next_offset: head.next_offset,
            next_base: head.next_base,
            index_bytes: head.index_bytes,
            index_crc: head.index_crc,
            crc: head.file_crc,
            strides: bytes[HEAD_BYTES..]
                .chunks_exact(16)
                .map(bytemuck::pod_read_unaligned)
                .collect(),
        })
    }
}

/// What a seal says beside checksums.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    /// See [`Seal::base`].
    pub base: i64,
    /// See [`Seal::next_offset`].
    pub next_offset: i64,
    /// See [`Seal::next_base`].
    pub next_base: i64,
    /// What its indexes came to.
    pub indexes: IndexState,
}

/// Gathers a segment's checksums as batches are appended.
#[derive(Clone)]
pub struct SealBuilder {
    strides: Vec<Stride>,
    /// Bytes before the first one seen here.
    start: u64,
    /// Where the bytes seen end, the run's apart.
    bytes: u64,
    crc: u32,
    stride_bytes: u64,
    /// Small batches in a row: running over their bytes costs less than combining.
    run: Option<(Crc32c, u64)>,
}

/// From this size on, combining checksums costs less than reading the bytes again.
const COMBINE_BYTES: u32 = 32 << 10;

impl SealBuilder {
    /// Checksums from byte `start` on; those before it are brought to [`SealBuilder::finish`].
    pub fn starting_at(start: u64) -> SealBuilder {
        SealBuilder { strides: Vec::new(), start, bytes: start, crc: 0, stride_bytes: 0, run: None }
    }

    /// Bytes before the first one seen here.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// The strides so far; the last may be short.
    pub fn into_strides(mut self, next_offset: i64) -> Vec<Stride> {
        self.fold_run();
        if self.stride_bytes > 0 {
            self.push_stride(next_offset);
        }
        self.strides
    }

    /// Whether the next batch, of so many bytes, is taken by its checksum alone.
    pub fn takes_checksum(batch_bytes: u32) -> bool {
        batch_bytes >= COMBINE_BYTES
    }

    /// A batch with this CRC-32C over all its bytes follows.
    pub fn append_checksum(&mut self, crc: u32, bytes: u64, next_offset: i64) {
        self.fold_run();
        self.crc = crc::combine(self.crc, crc, bytes);
        self.stride_bytes += bytes;
        self.bytes += bytes;
        self.end_stride(next_offset);
    }

    /// A piece of a batch follows.
    pub fn append_piece(&mut self, piece: &[u8]) {
        let (crc, bytes) = self.run.get_or_insert_with(|| (Crc32c::new(), 0));
        crc.update(piece);
        *bytes += piece.len() as u64;
    }

    /// The pieces appended since the last batch's end make a whole batch.
    pub fn end_pieces(&mut self, next_offset: i64) {
        let run_bytes = self.run.as_ref().map_or(0, |run| run.1);
        if self.stride_bytes + run_bytes >= SEAL_STRIDE_BYTES {
            self.fold_run();
            self.end_stride(next_offset);
        }
    }

    /// The segment is complete. `prefix` are the strides of the bytes before this builder's start.
    pub fn finish(self, prefix: Vec<Stride>, ends: Ends) -> Seal {
        assert_eq!(prefix.last().map_or(0, |stride| u64::from(stride.end)), self.start);
        let mut strides = prefix;
        strides.extend(self.into_strides(ends.next_offset));
        let (mut crc, mut bytes) = (0, 0);
        for stride in &strides {
            crc = crc::combine(crc, stride.crc, u64::from(stride.end) - bytes);
            bytes = u64::from(stride.end);
        }
        let Ends { base, next_offset, next_base, indexes } = ends;
        let index_bytes = indexes.file_bytes().map(|bytes| bytes as u32);
        let index_crc = indexes.joined_crc();
        Seal { base, bytes, next_offset, next_base, index_bytes, index_crc, crc, strides }
    }

    fn fold_run(&mut self) {
        if let Some((crc, bytes)) = self.run.take() {
            self.crc = crc::combine(self.crc, crc.finish(), bytes);
            self.stride_bytes += bytes;
            self.bytes += bytes;
        }
    }

    fn end_stride(&mut self, next_offset: i64) {
        if self.stride_bytes >= SEAL_STRIDE_BYTES {
            self.push_stride(next_offset);
        }
    }

    fn push_stride(&mut self, next_offset: i64) {
        let end = u32::try_from(self.bytes).expect("a segment is below 4 GiB");
        self.strides.push(Stride { end, crc: self.crc, next_offset });
        self.stride_bytes = 0;
        self.crc = 0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn checksums_are_those_of_the_bytes(
            sizes in prop::collection::vec(1usize..700_000, 1..12),
        ) {
            let (mut builder, mut file) = (SealBuilder::starting_at(0), Vec::new());
            for (i, &size) in sizes.iter().enumerate() {
                let batch: Vec<u8> = (0..size).map(|b| (b * 7 + i) as u8).collect();
                let next = i as i64 + 1;
                if SealBuilder::takes_checksum(size as u32) {
                    builder.append_checksum(crc::crc32c(&batch), size as u64, next);
                } else {
                    builder.append_piece(&batch[..size / 2]);
                    builder.append_piece(&batch[size / 2..]);
                    builder.end_pieces(next);
                }
                file.extend(batch);
            }
            let next_offset = sizes.len() as i64;
            let indexes = IndexState { offset_entries: 1, crc: [77, 0, 0], ..IndexState::EMPTY };
            let ends = Ends { base: 0, next_offset, next_base: 99, indexes };
            let seal = builder.finish(Vec::new(), ends);
            prop_assert_eq!((seal.index_bytes, seal.index_crc), ([8, 0, 0], 77));
            prop_assert_eq!(seal.bytes, file.len() as u64);
            prop_assert_eq!(seal.crc, crc::crc32c(&file));
            let mut start = 0;
            for stride in &seal.strides {
                let bytes = &file[start..stride.end as usize];
                prop_assert_eq!(stride.crc, crc::crc32c(bytes));
                let largest = 1_800_000;
                prop_assert!(bytes.len() <= largest);
                start = stride.end as usize;
            }
            prop_assert_eq!(start, file.len());
            let bytes = seal.encode();
            prop_assert_eq!(Seal::decode(&bytes), Ok(seal));
            let mut flipped = bytes.clone();
            let at = sizes[0] % bytes.len();
            flipped[at] ^= 1;
            prop_assert_eq!(Seal::decode(&flipped), Err(SealError));
            prop_assert_eq!(Seal::decode(&bytes[..at]), Err(SealError));
        }
    }

    #[test]
    fn an_empty_seal() {
        let indexes = IndexState::EMPTY;
        let ends = Ends { base: 5, next_offset: 5, next_base: 5, indexes };
        let seal = SealBuilder::starting_at(0).finish(Vec::new(), ends);
        assert_eq!((seal.bytes, seal.crc, seal.strides.len()), (0, 0, 0));
    }
}
