//! The check every byte passes before it is written: an incremental validator of batches.
//!
//! [`Checker`] takes bytes in arbitrary pieces, keeps what it must of a head that is split between
//! them, and says where each complete batch ends. The same code judges a fetch response as it
//! arrives and a segment as it is scanned at recovery.
//!
//! The checksum of magic 2 does not cover base offset, length and leader epoch, so these are held
//! against what must be true: a length is sane before it is believed; offsets go up; nothing lies
//! at or above the high watermark of the same response; epochs lie within [last seen, leader's].

use thiserror::Error;
use zerocopy::FromBytes;

use crate::batch::{
    self, Batch, CHECKED_FROM, HEADER_BYTES, Header, LEGACY_CHECKED_FROM, LEGACY_HEADER_BYTES,
    LEGACY_V1_BYTES_MIN, MAGIC_AT, OVERHEAD_BYTES, Producer,
};
use crate::crc::{self, Crc32c};

/// Why bytes were not appended. Nothing of the batch named is kept; what was complete before it is.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AppendError {
    /// The checksum differs: the bytes were changed on the way, or at the source.
    #[error("CRC of the batch at offset {base_offset} (byte {position}) does not match")]
    CrcMismatch {
        /// Base offset as the head has it.
        base_offset: i64,
        /// Byte of the segment.
        position: u64,
    },
    /// Offsets must go up.
    #[error("batch begins at offset {base_offset}, below the expected {expected}")]
    OffsetBelowExpected {
        /// Base offset as the head has it.
        base_offset: i64,
        /// The next offset of the log.
        expected: i64,
    },
    /// Negative offsets, or a last offset below the base or beyond what 64 bits hold.
    #[error("batch at offset {base_offset} has the last offset delta {delta}")]
    BadOffsets {
        /// Base offset as the head has it.
        base_offset: i64,
        /// Last offset minus base offset as the head has it.
        delta: i32,
    },
    /// On disk: no index could name it, so nothing like it was ever written there.
    #[error("batch at offset {base_offset} is too far from the segment's start, {segment}")]
    OutOfSegment {
        /// The batch's first offset.
        base_offset: i64,
        /// The segment's base offset.
        segment: i64,
    },
    /// A batch the response itself says is not committed.
    #[error("batch ends at offset {last_offset}, not below the high watermark {high_watermark}")]
    BeyondHighWatermark {
        /// Last offset of the batch.
        last_offset: i64,
        /// High watermark of the same response.
        high_watermark: i64,
    },
    /// Leader epochs never go back within a log.
    #[error("batch at offset {base_offset} has leader epoch {epoch}, after {last_epoch}")]
    EpochWentBack {
        /// Base offset as the head has it.
        base_offset: i64,
        /// The batch's leader epoch.
        epoch: i32,
        /// The epoch of the batch before it.
        last_epoch: i32,
    },
    /// A batch newer than the leader that served it.
    #[error("batch at offset {base_offset} has leader epoch {epoch}, the leader has {leader}")]
    EpochBeyondLeader {
        /// Base offset as the head has it.
        base_offset: i64,
        /// The batch's leader epoch.
        epoch: i32,
        /// The leader's epoch.
        leader: i32,
    },
    /// Larger than this log takes.
    #[error("batch at offset {base_offset} has {bytes} bytes, more than the allowed {max}")]
    BatchTooLarge {
        /// Base offset as the head has it.
        base_offset: i64,
        /// Its size.
        bytes: u64,
        /// `batch_bytes_max`.
        max: u32,
    },
    /// A length no batch can have.
    #[error("entry at byte {position} has the impossible length {length}")]
    BadLength {
        /// Byte of the segment.
        position: u64,
        /// The length field.
        length: i32,
    },
    /// A format newer than this code, or noise.
    #[error("batch at offset {base_offset} has unknown magic {magic}")]
    UnknownMagic {
        /// Base offset as the head has it.
        base_offset: i64,
        /// The magic byte.
        magic: u8,
    },
    /// No memory for the bytes; they may be asked for again later.
    #[error("no memory to append to")]
    NoMemory,
    /// The lease is not the one last lent.
    #[error("the bytes came in a lease this log has not lent")]
    ForeignLease,
    /// The log takes nothing now; its state says why.
    #[error("the log is not accepting records")]
    NotHealthy,
}

/// What a batch is held against, beside what came before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Every last offset lies below.
    pub high_watermark: i64,
    /// The leader's epoch; negative: unknown, not checked.
    pub leader_epoch: i32,
    /// The largest batch taken.
    pub batch_bytes_max: u32,
}

impl Bounds {
    /// For bytes that were checked when they were appended.
    pub fn local(batch_bytes_max: u32) -> Bounds {
        Bounds { high_watermark: i64::MAX, leader_epoch: -1, batch_bytes_max }
    }
}

/// What one call of [`Checker::feed`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fed {
    /// Bytes taken from the piece. All of it, unless a batch ended.
    pub consumed: usize,
    /// The batch that ended at the last consumed byte.
    pub batch: Option<Batch>,
}

/// Bytes of a control batch's records that are kept to read the marker from.
const MARKER_BYTES: usize = 64;

/// The validator. One per log; it survives from piece to piece and from response to response.
pub struct Checker {
    bounds: Bounds,
    /// The next base offset must not be below.
    expected: i64,
    /// A log that has no batch yet may begin inside one.
    straddle_from: Option<i64>,
    last_epoch: Option<i32>,
    /// Where the entry being read begins, in the segment.
    position: u64,
    head: [u8; HEADER_BYTES],
    head_bytes: usize,
    /// Of a batch that goes on in the next piece.
    body: Option<Body>,
    /// CRC-32C over all bytes of the magic 0 or 1 message that ended last.
    legacy_file_crc: u32,
    /// What it was before the batch that ended last.
    before: (i64, Option<i64>, Option<i32>, u64),
}

/// An entry whose head is complete and believed.
struct Body {
    batch: Batch,
    crc: RunningCrc,
    seen: u32,
    records: [u8; MARKER_BYTES],
    records_bytes: usize,
}

enum RunningCrc {
    Castagnoli(Crc32c),
    /// The second runs over all bytes, for the segment's own checksum.
    Ieee(crc32fast::Hasher, Crc32c),
}

impl Checker {
    /// A validator for a log that ends at `expected`.
    pub fn new(expected: i64, last_epoch: Option<i32>, position: u64, bounds: Bounds) -> Checker {
        Checker {
            bounds,
            expected,
            straddle_from: None,
            last_epoch,
            position,
            head: [0; HEADER_BYTES],
            head_bytes: 0,
            body: None,
            legacy_file_crc: 0,
            before: (expected, None, last_epoch, position),
        }
    }

    /// Sets what the next response's batches are held against.
    pub fn set_bounds(&mut self, bounds: Bounds) {
        assert!(!self.in_batch(), "bounds change between batches only");
        self.bounds = bounds;
    }

    /// Lets the very next batch begin below the expected offset, though not below `from`, if it
    /// ends at or above it: a source's start, or a timestamp, may lie inside of a batch.
    pub fn allow_straddle(&mut self, from: i64) {
        assert!(from <= self.expected);
        self.straddle_from = Some(from);
    }

    /// Moves the expected offset up, over a gap the source reported. What it left of the batch in
    /// which its start lies comes whole.
    pub fn skip_to(&mut self, expected: i64) {
        assert!(expected >= self.expected);
        self.straddle_from.get_or_insert(self.expected);
        self.expected = expected;
    }

    /// Entries are counted in a new segment from now on, in which the last batch ends here.
    pub fn start_segment(&mut self, position: u64) {
        assert!(!self.in_batch());
        self.position = position;
    }

    /// Forgets the entry that has begun.
    pub fn rewind(&mut self) {
        self.head_bytes = 0;
        self.body = None;
    }

    /// The batch that ended last could not be kept: it is expected again.
    pub fn take_back(&mut self) {
        assert!(!self.in_batch(), "nothing has begun behind it");
        (self.expected, self.straddle_from, self.last_epoch, self.position) = self.before;
    }

    /// The next base offset must not be below this.
    pub fn expected(&self) -> i64 {
        self.expected
    }

    /// The epoch of the last batch that had one.
    pub fn last_epoch(&self) -> Option<i32> {
        self.last_epoch
    }

    /// The byte of the segment at which the last complete batch ended.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Whether a batch has begun and not ended.
    pub fn in_batch(&self) -> bool {
        self.head_bytes > 0
    }

    /// The CRC-32C over all bytes of the batch just returned, made of its own checksum.
    pub fn file_crc(&self, batch: &Batch) -> u32 {
        assert!(!self.in_batch(), "the head of the batch just returned is still here");
        if batch.magic < 2 {
            return self.legacy_file_crc;
        }
        let head = crc::crc32c(&self.head[..CHECKED_FROM]);
        crc::combine(head, batch.crc, u64::from(batch.bytes) - CHECKED_FROM as u64)
    }

    /// Takes bytes until a batch ends or the piece does. Call again with the rest.
    pub fn feed(&mut self, piece: &[u8]) -> Result<Fed, AppendError> {
        let mut consumed = 0;
        let mut begun = self.body.take();
        while begun.is_none() {
            let wanted = self.head_wanted() - self.head_bytes;
            let taken = wanted.min(piece.len() - consumed);
            self.head[self.head_bytes..self.head_bytes + taken]
                .copy_from_slice(&piece[consumed..consumed + taken]);
            self.head_bytes += taken;
            consumed += taken;
            if taken < wanted {
                return Ok(Fed { consumed, batch: None });
            }
            begun = self.read_head()?;
        }
        let mut body = begun.expect("the loop ended with a body");
        let rest = &piece[consumed..];
        let taken = rest.len().min((body.batch.bytes - body.seen) as usize);
        body.take(&rest[..taken]);
        consumed += taken;
        if body.seen < body.batch.bytes {
            self.body = Some(body);
            return Ok(Fed { consumed, batch: None });
        }
        let batch = self.finish(body)?;
        Ok(Fed { consumed, batch: Some(batch) })
    }

    /// How many bytes of head are needed before more can be decided. A length is judged before
    /// anything beyond it is waited for.
    fn head_wanted(&self) -> usize {
        match self.head_bytes {
            0..OVERHEAD_BYTES => OVERHEAD_BYTES,
            OVERHEAD_BYTES..=MAGIC_AT => MAGIC_AT + 1,
            _ if self.head[MAGIC_AT] == 2 => HEADER_BYTES,
            _ => LEGACY_HEADER_BYTES,
        }
    }

    /// One step of the head is complete: judge it, and begin the body after the last step.
    fn read_head(&self) -> Result<Option<Body>, AppendError> {
        let base_offset = i64::from_be_bytes(self.head[..8].try_into().expect("eight bytes"));
        let length = i32::from_be_bytes(self.head[8..12].try_into().expect("four bytes"));
        let position = self.position;
        match self.head_bytes {
            OVERHEAD_BYTES => {
                let bytes = i64::from(length) + OVERHEAD_BYTES as i64;
                if bytes < LEGACY_HEADER_BYTES as i64 {
                    return Err(AppendError::BadLength { position, length });
                }
                let max = self.bounds.batch_bytes_max;
                if bytes > i64::from(max) {
                    return Err(AppendError::BatchTooLarge {
                        base_offset,
                        bytes: bytes as u64,
                        max,
                    });
                }
            }
            n if n == MAGIC_AT + 1 => {
                let magic = self.head[MAGIC_AT];
                let least = match magic {
                    0 => LEGACY_HEADER_BYTES,
                    1 => LEGACY_V1_BYTES_MIN,
                    2 => HEADER_BYTES,
                    _ => return Err(AppendError::UnknownMagic { base_offset, magic }),
                };
                if (length as usize) + OVERHEAD_BYTES < least {
                    return Err(AppendError::BadLength { position, length });
                }
            }
            HEADER_BYTES => return self.begin_batch().map(Some),
            LEGACY_HEADER_BYTES => return self.begin_legacy().map(Some),
            other => unreachable!("no step of the head ends at {other} bytes"),
        }
        Ok(None)
    }

    fn begin_batch(&self) -> Result<Body, AppendError> {
        let header = Header::read_from_bytes(&self.head).expect("a whole head");
        let base_offset = header.base_offset.get();
        let delta = header.last_offset_delta.get();
        let last_offset = base_offset.checked_add(i64::from(delta));
        let last_offset = match last_offset {
            Some(last) if base_offset >= 0 && delta >= 0 && last < i64::MAX => last,
            _ => return Err(AppendError::BadOffsets { base_offset, delta }),
        };
        self.judge_offsets(base_offset, last_offset)?;
        let epoch = header.leader_epoch.get();
        self.judge_epoch(base_offset, epoch)?;
        let producer_id = header.producer_id.get();
        let batch = Batch {
            base_offset,
            last_offset,
            bytes: (header.length.get() as usize + OVERHEAD_BYTES) as u32,
            magic: 2,
            crc: header.crc.get(),
            leader_epoch: (epoch >= 0).then_some(epoch),
            max_timestamp: header.max_timestamp.get(),
            producer: (producer_id >= 0).then(|| Producer {
                id: producer_id,
                epoch: header.producer_epoch.get(),
                base_sequence: header.base_sequence.get(),
            }),
            transactional: header.transactional(),
            control: header.control(),
            marker: None,
            record_count: header.record_count.get().max(0) as u32,
        };
        let mut crc = Crc32c::new();
        crc.update(&self.head[CHECKED_FROM..]);
        Ok(Body::new(batch, RunningCrc::Castagnoli(crc), HEADER_BYTES))
    }

    fn begin_legacy(&self) -> Result<Body, AppendError> {
        let field =
            |at: usize| i64::from_be_bytes(self.head[at..at + 8].try_into().expect("eight bytes"));
        let offset = field(0);
        if !(0..i64::MAX).contains(&offset) {
            return Err(AppendError::BadOffsets { base_offset: offset, delta: 0 });
        }
        self.judge_offsets(offset, offset)?;
        let length = i32::from_be_bytes(self.head[8..12].try_into().expect("four bytes"));
        let magic = self.head[MAGIC_AT];
        let batch = Batch {
            base_offset: offset,
            last_offset: offset,
            bytes: (length as usize + OVERHEAD_BYTES) as u32,
            magic,
            crc: u32::from_be_bytes(self.head[12..16].try_into().expect("four bytes")),
            leader_epoch: None,
            max_timestamp: if magic == 1 { field(18) } else { -1 },
            producer: None,
            transactional: false,
            control: false,
            marker: None,
            record_count: 1,
        };
        let mut crc = crc32fast::Hasher::new();
        crc.update(&self.head[LEGACY_CHECKED_FROM..LEGACY_HEADER_BYTES]);
        let mut file_crc = Crc32c::new();
        file_crc.update(&self.head[..LEGACY_HEADER_BYTES]);
        Ok(Body::new(batch, RunningCrc::Ieee(crc, file_crc), LEGACY_HEADER_BYTES))
    }

    fn judge_offsets(&self, base_offset: i64, last_offset: i64) -> Result<(), AppendError> {
        let expected = self.expected;
        let straddles =
            self.straddle_from.is_some_and(|from| base_offset >= from) && last_offset >= expected;
        if base_offset < expected && !straddles {
            return Err(AppendError::OffsetBelowExpected { base_offset, expected });
        }
        let high_watermark = self.bounds.high_watermark;
        if last_offset >= high_watermark {
            return Err(AppendError::BeyondHighWatermark { last_offset, high_watermark });
        }
        Ok(())
    }

    fn judge_epoch(&self, base_offset: i64, epoch: i32) -> Result<(), AppendError> {
        if let Some(last_epoch) = self.last_epoch
            && epoch < last_epoch
        {
            return Err(AppendError::EpochWentBack { base_offset, epoch, last_epoch });
        }
        let leader = self.bounds.leader_epoch;
        if leader >= 0 && epoch > leader {
            return Err(AppendError::EpochBeyondLeader { base_offset, epoch, leader });
        }
        Ok(())
    }

    fn finish(&mut self, body: Body) -> Result<Batch, AppendError> {
        self.head_bytes = 0;
        let mut batch = body.batch;
        let computed = match body.crc {
            RunningCrc::Castagnoli(crc) => crc.finish(),
            RunningCrc::Ieee(crc, file_crc) => {
                self.legacy_file_crc = file_crc.finish();
                crc.finalize()
            }
        };
        if computed != batch.crc {
            let base_offset = batch.base_offset;
            return Err(AppendError::CrcMismatch { base_offset, position: self.position });
        }
        if batch.control {
            batch.marker = batch::parse_marker(&body.records[..body.records_bytes]);
        }
        self.before = (self.expected, self.straddle_from, self.last_epoch, self.position);
        self.expected = batch.next_offset();
        self.straddle_from = None;
        self.position += u64::from(batch.bytes);
        self.last_epoch = batch.leader_epoch.or(self.last_epoch);
        Ok(batch)
    }
}

impl Body {
    fn new(batch: Batch, crc: RunningCrc, seen: usize) -> Body {
        Body { batch, crc, seen: seen as u32, records: [0; MARKER_BYTES], records_bytes: 0 }
    }

    fn take(&mut self, bytes: &[u8]) {
        match &mut self.crc {
            RunningCrc::Castagnoli(crc) => crc.update(bytes),
            RunningCrc::Ieee(crc, file_crc) => {
                crc.update(bytes);
                file_crc.update(bytes);
            }
        }
        self.seen += bytes.len() as u32;
        if self.batch.control && self.records_bytes < MARKER_BYTES {
            let kept = bytes.len().min(MARKER_BYTES - self.records_bytes);
            self.records[self.records_bytes..][..kept].copy_from_slice(&bytes[..kept]);
            self.records_bytes += kept;
        }
    }
}

#[cfg(test)]
mod tests;
