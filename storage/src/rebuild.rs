//! Makes what stands beside a sealed segment anew from its batches: the indexes and the seal.
//!
//! Called when verifying finds that an index is not what the seal remembers, or that there is no
//! seal. The log file is read whole and must be good; nothing of it is written. Which transactions
//! were open at its start stands in the snapshot there; without one it is read from the batches
//! before, or the aborted ones among them would pass for committed.

use ring::{File, OpenOptions, Share};

use crate::index::{IndexState, Indexes};
use crate::log::{Log, LogError, LogState};
use crate::names::Kind;
use crate::position::Place;
use crate::producers::Producers;
use crate::recovery::Stopped;
use crate::seal::{Ends, Seal, SealBuilder};
use crate::verify::{Part, Verifier};
use crate::work::{INDEXES, at, index_crc, read_small, remove};

/// What is made anew.
struct Sides {
    indexes: Indexes,
    builder: SealBuilder,
    /// That of the producers at the segment's start, if it is lost.
    snapshot: Option<Vec<u8>>,
}

impl Log {
    /// Whether the indexes of a sealed segment are what its seal remembers.
    pub(crate) async fn indexes_match(&self, seal: &Seal) -> Result<bool, LogError> {
        Ok(index_crc(|kind| self.path(kind, seal.base)).await? == seal.index_crc)
    }

    /// Makes the indexes and the seal of a sealed segment anew. False: its batches are not good, or
    /// it is not there any more.
    pub(crate) async fn rebuild(&self, part: &Part, by: &Verifier) -> Result<bool, LogError> {
        let base = part.base;
        let file = at(&part.path, File::open(&part.path, OpenOptions::READ.direct()).await)?;
        let mut indexes = Indexes::new(base, IndexState::EMPTY);
        let mut builder = SealBuilder::starting_at(0);
        let mut snapshot = None;
        let mut producers = match self.producers_at(base).await? {
            Some(producers) => producers,
            None => {
                let Some(producers) = self.producers_before(base, by).await? else {
                    return Ok(false);
                };
                snapshot = (!self.is_first(base)).then(|| producers.encode());
                producers
            }
        };
        let start = Place { segment: base, bytes: 0, offset: base };
        let scanned = by
            .scan(&file, start, part.end.bytes, |found| {
                let batch = &found.batch;
                let bytes = u64::from(batch.bytes);
                builder.append_checksum(found.file_crc, bytes, batch.next_offset());
                indexes.append(found.position, batch);
                if let Some(aborted) = producers.append(batch) {
                    indexes.append_aborted(aborted);
                }
                true
            })
            .await;
        if scanned.stopped != Stopped::End || scanned.place.bytes != part.end.bytes {
            return Ok(false);
        }
        indexes.finish();
        // From here on it comes to its end, whatever becomes of this task: files half made must
        // not be made on under who opens the log next.
        let Some(this) = self.volume().log(self.id()) else { return Ok(false) };
        let sides = Sides { indexes, builder, snapshot };
        let writing = async move {
            // So that the segment is not deleted while files of it are made.
            let held = this.hold().await;
            let written = this.write_sides(base, scanned.place, sides).await;
            held.release();
            written
        };
        ring::to_its_end(Share::Background, writing).await
    }

    /// The snapshot at the start of a segment, if there is a good one.
    async fn producers_at(&self, base: i64) -> Result<Option<Producers>, LogError> {
        let snapshot = read_small(&self.path(Kind::Snapshot, base)).await?;
        Ok(snapshot.and_then(|bytes| Producers::decode(&bytes).ok()))
    }

    fn is_first(&self, base: i64) -> bool {
        self.inner.borrow().sealed.first().is_none_or(|first| first.0 == base)
    }

    /// The producers at the start of a segment, from the batches since the nearest snapshot before
    /// it. None: these are not good.
    async fn producers_before(
        &self,
        base: i64,
        by: &Verifier,
    ) -> Result<Option<Producers>, LogError> {
        let mut before = self.inner.borrow().sealed.clone();
        before.retain(|sealed| sealed.0 < base);
        let (mut from, mut producers) = (0, None);
        for (index, &(earlier, _)) in before.iter().enumerate().rev() {
            producers = self.producers_at(earlier).await?;
            if producers.is_some() {
                from = index;
                break;
            }
        }
        let mut producers = producers.unwrap_or_default();
        for &(earlier, bytes) in &before[from..] {
            let path = self.path(Kind::Log, earlier);
            let file = at(&path, File::open(&path, OpenOptions::READ.direct()).await)?;
            let start = Place { segment: earlier, bytes: 0, offset: earlier };
            let scanned = by
                .scan(&file, start, bytes, |found| {
                    producers.append(&found.batch);
                    true
                })
                .await;
            if scanned.stopped != Stopped::End || scanned.place.bytes != bytes {
                return Ok(None);
            }
        }
        Ok(Some(producers))
    }

    async fn write_sides(&self, base: i64, end: Place, sides: Sides) -> Result<bool, LogError> {
        let Sides { mut indexes, builder, snapshot } = sides;
        let next_base = {
            let inner = self.inner.borrow();
            let here = inner.sealed.iter().position(|sealed| *sealed == (base, end.bytes));
            let open = matches!(inner.state, LogState::Healthy);
            let Some(here) = here.filter(|_| open && !inner.mending && !inner.truncating) else {
                return Ok(false);
            };
            inner.sealed.get(here + 1).map_or(inner.first_unsealed(), |sealed| sealed.0)
        };
        let state = indexes.state();
        let bytes = indexes.take();
        // Until the new seal stands, there is none: a start then reads the segment.
        remove(&self.path(Kind::Seal, base)).await?;
        for (kind, bytes) in INDEXES.into_iter().zip([bytes.offsets, bytes.times, bytes.aborted]) {
            let path = self.path(kind, base);
            if kind == Kind::TxnIndex && bytes.1.is_empty() {
                remove(&path).await?;
            } else {
                at(&path, ring::fs::replace(&path, bytes.1).await)?;
            }
        }
        if let Some(snapshot) = snapshot {
            let path = self.path(Kind::Snapshot, base);
            at(&path, ring::fs::replace(&path, snapshot).await)?;
        }
        let ends = Ends { base, next_offset: end.offset, next_base, indexes: state };
        self.write_seal(&builder.finish(Vec::new(), ends)).await?;
        tracing::info!(log = %self.id(), base, "indexes and seal were made anew");
        Ok(true)
    }
}
