//! The records of one answer, held in memory until they are judged.

use net::ErrorCode;
use net::codes::Meaning;
use net::fetch::{End, Flow, PartitionHead, RecordSink, Take};
use ring::{Class, Lease, Slice};
use storage::limits::CHUNK_BYTES_MAX;

use super::Failure;

/// Takes the records of one answer into memory.
#[derive(Default)]
pub(super) struct Gathering {
    code: Option<ErrorCode>,
    pub high_watermark: i64,
    /// Negative: not told.
    pub log_start: i64,
    pub pieces: Vec<Slice>,
    spare: Option<Lease>,
}

impl Gathering {
    /// What the answer says beside records.
    pub fn judge(&self, offset: i64) -> Result<(), Failure> {
        let Some(code) = self.code else { return Ok(()) };
        if code == ErrorCode::NONE {
            return Ok(());
        }
        match code.meaning() {
            Meaning::OffsetOutOfRange => Err(Failure::OutOfRange(offset)),
            _ => Err(Failure::Later(format!("the source answered {code}"))),
        }
    }

    fn keep(&mut self, lease: Lease, bytes: usize) {
        let (piece, rest) = lease.freeze(bytes);
        if !self.pieces.last_mut().is_some_and(|last| last.try_join(&piece)) {
            self.pieces.push(piece);
        }
        self.spare = (!rest.is_empty()).then_some(rest);
    }
}

impl RecordSink for Gathering {
    fn partition(&mut self, _key: u32, head: &PartitionHead) -> Take {
        self.code = Some(head.error_code);
        self.high_watermark = head.high_watermark;
        self.log_start = head.log_start_offset;
        match head.error_code == ErrorCode::NONE && head.records_bytes > 0 {
            true => Take::Records,
            false => Take::Skip,
        }
    }

    fn lend(&mut self, remaining: usize) -> Option<Lease> {
        let lease = match self.spare.take() {
            Some(spare) => spare,
            None => ring::try_lease(remaining.min(CHUNK_BYTES_MAX), Class::Records)?,
        };
        let (lease, rest) = {
            let wanted = lease.len().min(remaining);
            lease.split(wanted)
        };
        drop(rest);
        Some(lease)
    }

    fn filled(&mut self, lease: Lease, bytes: usize) -> Flow {
        self.keep(lease, bytes);
        Flow::Continue
    }

    fn copy_in(&mut self, bytes: &[u8]) -> (usize, Flow) {
        let Some(mut lease) = self.lend(bytes.len()) else { return (0, Flow::Continue) };
        let count = lease.len().min(bytes.len());
        lease[..count].copy_from_slice(&bytes[..count]);
        self.keep(lease, count);
        (count, Flow::Continue)
    }

    async fn memory(&mut self, bytes: usize) {
        drop(ring::lease(bytes.min(ring::BLOCK), Class::Records).await);
    }

    fn end(&mut self, _end: End) {}
}
