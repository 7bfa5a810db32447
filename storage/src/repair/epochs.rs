//! Epochs that were made anew while a batch was damaged. No checksum of a batch covers its leader
//! epoch and its base offset, so only the seal tells, later, that they are not what they should be;
//! one that is too high hides those that come after it, too.

use std::ops::Range;

use ring::{File, OpenOptions};

use crate::epochs::Epochs;
use crate::log::{Log, LogError};
use crate::names::{EPOCHS_FILE, Kind};
use crate::open::{Files, read_epochs};
use crate::position::Place;
use crate::verify::Verifier;
use crate::work::{at, remove};

impl Log {
    /// Batches of these epochs are about to be mended. Where the epochs that are written down say
    /// otherwise of their offsets, they were read from what was damaged: their file goes, durably,
    /// before the damage does that would tell so, and they are made anew, at the next start if not
    /// before.
    pub(super) async fn doubt_epochs(
        &self,
        base: i64,
        offsets: &Range<i64>,
        mended: &Epochs,
    ) -> Result<(), LogError> {
        let known = match self.is_open() {
            true => Some(self.inner.borrow().epochs.clone()),
            // What opening read of them ends where the damage begins.
            false => read_epochs(&Files::of(self.id(), self.volume().path())).await?,
        };
        if known.is_none_or(|known| known.agrees_with(offsets, mended)) {
            return Ok(());
        }
        {
            let mut inner = self.inner.borrow_mut();
            inner.epochs_doubted = Some(inner.epochs_doubted.map_or(base, |other| other.min(base)));
        }
        let folder = self.folder();
        remove(&folder.join(EPOCHS_FILE)).await?;
        at(&folder, ring::fs::sync_dir(&folder).await)
    }

    /// Makes doubted epochs anew from the batches of their segment and of all behind it. Where one
    /// of these is damaged yet, or about to be sealed, that is left to the next repair, or to the
    /// next start.
    pub(super) async fn remake_epochs(&self, by: &Verifier) -> Result<(), LogError> {
        let Some(doubted) = self.inner.borrow().epochs_doubted else { return Ok(()) };
        {
            // One above the last batch's would hide those that come from now on.
            let mut inner = self.inner.borrow_mut();
            if let Some(last) = inner.last_batch.and_then(|batch| batch.leader_epoch) {
                inner.epochs.forget_above(last);
            }
        }
        // All that came before that is on the disk then.
        self.flush().await?;
        let (segments, mut epochs, generation) = {
            let inner = self.inner.borrow();
            if !inner.closing.is_empty() {
                return Ok(());
            }
            let active = (inner.flushed.segment, inner.flushed.bytes);
            let active = Some(active).filter(|active| active.0 == inner.active.base);
            let sealed = inner.sealed.iter().copied().chain(active);
            let segments: Vec<(i64, u64)> = sealed.filter(|s| doubted <= s.0).collect();
            let mut epochs = inner.epochs.clone();
            epochs.truncate_end(doubted);
            (segments, epochs, inner.generation)
        };
        for (base, bytes) in segments {
            let path = self.path(Kind::Log, base);
            let file = at(&path, File::open(&path, OpenOptions::READ.direct()).await)?;
            let start = Place { segment: base, bytes: 0, offset: base };
            let scanned = by
                .scan(&file, start, bytes, |found| {
                    if let Some(epoch) = found.batch.leader_epoch {
                        epochs.assign(epoch, found.batch.base_offset);
                    }
                    true
                })
                .await;
            if scanned.place.bytes != bytes {
                return Ok(());
            }
        }
        let held = self.hold().await;
        {
            let mut inner = self.inner.borrow_mut();
            if inner.generation != generation || inner.epochs_doubted != Some(doubted) {
                return Ok(());
            }
            // Those that came meanwhile.
            for &(epoch, offset) in inner.epochs.entries() {
                epochs.assign(epoch, offset);
            }
            inner.epochs = epochs;
            (inner.epochs_dirty, inner.epochs_doubted) = (true, None);
        }
        let saved = self.save_epochs().await;
        held.release();
        saved
    }
}
