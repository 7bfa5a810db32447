//! Cutting the end of a log back: the source's log parted from ours there.
//!
//! In an order that can be left at any point: where the log is to end is looked up first, to the
//! byte; a checkpoint with that place becomes durable; only then are later segments removed and the
//! last one cut. Whatever fails on the way, the log never counts as ending below that place, so
//! what was flushed and stays is not touched by the failure.
//!
//! Damage is cut away with the rest where all that stays ends at the cut. Where flushed bytes below
//! the cut are damaged, so that its place cannot be told, nothing is cut: they are to be named and
//! mended first. Damage further below stays, named, and is mended afterwards.

use std::io;

use crate::check::AppendError;
use crate::checkpoint::{Entry, Replay};
use crate::index;
use crate::log::{Log, LogError, LogSettings};
use crate::names::Kind;
use crate::open::{Files, load};
use crate::position::Place;
use crate::recovery::{Corrupt, Scanned, Stopped, describe};
use crate::scan::scan;
use crate::work::{at, cut_file, read_small, remove};

/// Where a log is to end, and what goes.
struct Cut {
    place: Place,
    /// The last leader epoch before it.
    epoch: Option<i32>,
    /// Segments behind it.
    dropped: Vec<i64>,
}

impl Log {
    /// Cuts off everything from `offset` on, at a batch's start: if `offset` lies within a batch,
    /// that batch goes too. Below the first segment nothing is left: the log is then empty and
    /// goes on at `offset`, which becomes its visible start.
    ///
    /// # Errors
    /// While records arrive. [`LogError::Damaged`]: nothing was changed, and the log goes on. If
    /// the device fails, the log is FAILED; it may be opened again, and then ends at the cut or
    /// behind it.
    pub async fn truncate_to(&self, offset: i64) -> Result<(), LogError> {
        loop {
            let seen = self.changed.count();
            if self.inner.borrow().is_expecting() {
                return Err(LogError::Busy);
            }
            if offset >= self.positions().received.0.offset {
                return Ok(());
            }
            if let Some(alone) = self.begin_alone() {
                let result = self.truncate_settled(offset).await;
                alone.release();
                return result;
            }
            self.changed.after(seen).await;
        }
    }

    async fn truncate_settled(&self, offset: i64) -> Result<(), LogError> {
        let failures = self.volume().flush_failures();
        self.write_out().await?;
        self.settle().await;
        let _held = self.hold().await;
        if self.inner.borrow().closing_down {
            return Err(LogError::Busy);
        }
        let result = self.truncate_exclusively(offset, failures).await;
        if let Err(error) = &result
            && !matches!(error, LogError::Damaged { .. })
        {
            self.fail(&format!("truncation failed: {error}"));
        }
        result
    }

    async fn truncate_exclusively(&self, offset: i64, failures: u64) -> Result<(), LogError> {
        let cut = self.find_cut(offset).await?;
        let (entry, settings, generation) = self.begin_cut(&cut, offset);
        self.drop_prepared().await?;
        // Else a crash in between would leave files that are shorter than the checkpoint claims,
        // which is what damage looks like.
        if !self.volume().flush().await {
            return Err(LogError::State(self.state()));
        }
        let files = Files::of(self.id(), self.volume().path());
        for &base in cut.dropped.iter().rev() {
            files.remove_behind(cut.place.offset, base).await?;
        }
        remove(&files.path(Kind::Seal, cut.place.segment)).await?;
        // Reading may find damage that stays, and then cuts nothing.
        cut_file(&files.path(Kind::Log, cut.place.segment), cut.place.bytes).await?;
        let (opened, _) = load(&files, settings, Some(entry), Some(offset)).await?;
        {
            let mut inner = self.inner.borrow_mut();
            let mut damages = std::mem::take(&mut inner.damages);
            damages = damages.into_iter().filter_map(|d| staying(d, cut.place)).collect();
            inner.replace(opened, generation, damages);
        }
        self.mark_dirty();
        self.outlive_flush_failures(failures)
    }

    /// From here on no flush vouches for more than what stays.
    fn begin_cut(&self, cut: &Cut, offset: i64) -> (Entry, LogSettings, u64) {
        let mut guard = self.inner.borrow_mut();
        let inner = &mut *guard;
        if cut.place < inner.flushed {
            inner.flushed = cut.place;
            inner.flushed_epoch = cut.epoch;
        }
        inner.shown_flushed = inner.shown_flushed.min(cut.place);
        if inner.replay.place > inner.flushed {
            let segment = inner.flushed.segment;
            inner.replay = Replay::segment_start(segment, None, false);
        }
        inner.saved.clear();
        inner.generation += 1;
        inner.truncating = true;
        inner.log_start_offset = inner.log_start_offset.min(offset);
        inner.shown_start = inner.shown_start.min(offset);
        inner.active.file = None;
        let (settings, generation) = (inner.settings.clone(), inner.generation);
        drop(guard);
        (self.entry(), settings, generation)
    }

    /// Looks up the end of the last batch that lies wholly below `offset`.
    async fn find_cut(&self, offset: i64) -> Result<Cut, LogError> {
        let segments: Vec<(i64, u64)> = {
            let inner = self.inner.borrow();
            let active = (inner.active.base, inner.active.received.bytes);
            inner.sealed.iter().copied().chain([active]).collect()
        };
        let keep = segments.partition_point(|segment| segment.0 < offset);
        let dropped = segments[keep..].iter().map(|segment| segment.0).collect();
        let Some(&(base, bytes)) = segments[..keep].last() else {
            let place = Place { segment: offset, bytes: 0, offset };
            return Ok(Cut { place, epoch: None, dropped });
        };
        let (place, epoch) = self.end_below(base, bytes, offset).await?;
        Ok(Cut { place, epoch, dropped })
    }

    /// The same within one segment; its index says where to begin.
    async fn end_below(
        &self,
        base: i64,
        bytes: u64,
        offset: i64,
    ) -> Result<(Place, Option<i32>), LogError> {
        let path = self.path(Kind::Log, base);
        let index = read_small(&self.path(Kind::Index, base)).await?.unwrap_or_default();
        let below = |entry: &&index::OffsetEntry| {
            base + i64::from(entry.relative_offset.get()) < offset
                && u64::from(entry.position.get()) < bytes
        };
        let near = index::read_offsets(&index).iter().rev().find(below);
        let near = near.map_or(0, |entry| u64::from(entry.position.get()));
        let flushed = self.inner.borrow().flushed;
        let mut stopped = None;
        // If the index is wrong, no batch begins there: begin at the start then.
        for position in [near, 0] {
            let mut from = Replay::segment_start(base, None, false);
            from.place.bytes = position;
            let mut epoch = None;
            let scanned = scan(&path, &from, bytes, |found| {
                let stays = found.batch.last_offset < offset;
                epoch = found.batch.leader_epoch.filter(|_| stays).or(epoch);
                stays
            })
            .await;
            if scanned.stopped == Stopped::End || is_all_below(&scanned, offset) {
                return Ok((scanned.place, epoch));
            }
            stopped = Some(scanned);
        }
        let Scanned { place, stopped } = stopped.expect("it was scanned");
        let reason = format!("where to cut cannot be found: {}", describe(&stopped));
        // A failed log that is opened again ends at its flushed place: no cut above it is needed.
        if place < flushed && offset < flushed.offset {
            return Err(LogError::Damaged { path, segment: base, reason });
        }
        at(&path, Err(io::Error::new(io::ErrorKind::InvalidData, reason)))
    }
}

/// Whether a scan that met damage has found all that lies below a cut: what ends there leaves no
/// room for more. A batch that goes back says that an offset before it may be the wrong one.
fn is_all_below(scanned: &Scanned, cut: i64) -> bool {
    let goes_back =
        matches!(scanned.stopped, Stopped::Bad(AppendError::OffsetBelowExpected { .. }));
    scanned.place.offset == cut && !goes_back
}

/// What of a damaged range lies below a cut.
fn staying(damage: Corrupt, cut: Place) -> Option<Corrupt> {
    if damage.segment != cut.segment {
        return (damage.segment < cut.segment).then_some(damage);
    }
    let bytes = damage.bytes.start..damage.bytes.end.min(cut.bytes);
    let offsets = damage.offsets.start..damage.offsets.end.min(cut.offset);
    (!bytes.is_empty()).then_some(Corrupt { bytes, offsets, ..damage })
}
