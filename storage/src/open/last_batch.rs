//! The batch that a log ends with, where reading did not come upon it.

use super::Loading;
use crate::checkpoint::Replay;
use crate::index;
use crate::log::{LastBatch, LogError};
use crate::names::Kind;
use crate::recovery::{Found, Known, Verdict};
use crate::scan::scan;
use crate::work::read_small;

/// The batch that a log ends with.
pub(super) enum Last {
    None,
    Found(LastBatch),
    /// What is there is not what was written.
    Other,
}

impl Loading<'_> {
    /// Nothing was scanned: the last batch stands behind the last index entry.
    pub(super) async fn find_last_batch(
        &self,
        verdict: &Verdict,
        found: &Found,
    ) -> Result<Last, LogError> {
        let end = verdict.end;
        let (base, bytes) = match verdict.sealed.last() {
            _ if end.bytes > 0 => (end.segment, end.bytes),
            Some(&(base, bytes)) => (base, bytes),
            None => return Ok(Last::None),
        };
        let Some(segment) = found.segments.iter().find(|segment| segment.base == base) else {
            return Ok(Last::None);
        };
        if bytes == 0 {
            return Ok(Last::None);
        }
        let flushed = found.flushed().filter(|known| known.0 == base).map(|known| known.1);
        let offset = segment.seal.as_ref().map_or(end.offset, |seal| seal.next_offset);
        let known = flushed.unwrap_or(Known { bytes, offset, epoch: None });
        let index = read_small(&self.files.path(Kind::Index, base)).await?.unwrap_or_default();
        let entries = index::read_offsets(&index).iter().rev();
        let near = entries.map(|entry| u64::from(entry.position.get())).find(|&at| at < bytes);
        // If the index is wrong, the scan finds no batch there: begin at the start then.
        for position in [near.unwrap_or(0), 0] {
            let mut from = Replay::segment_start(base, None, false);
            from.place.bytes = position;
            let mut last = None;
            let scanned = scan(&self.files.path(Kind::Log, base), &from, bytes, |found| {
                last = Some(LastBatch::new(&found.batch, base, found.position));
                true
            })
            .await;
            if let Some(last) = last.filter(|_| scanned.place.bytes == bytes) {
                let place = last.position..bytes;
                let other = known.contradicts(&place, last.last_offset + 1, last.leader_epoch);
                return Ok(if other { Last::Other } else { Last::Found(last) });
            }
        }
        Ok(Last::Other)
    }
}
