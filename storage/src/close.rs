//! The end of a log: closing, cutting back, deleting.

use crate::checkpoint::{Entry, Replay};
use crate::log::{Log, LogError, LogState};
use crate::names::{Kind, PREPARED_FILE};
use crate::open::{Files, load};
use crate::position::Place;
use crate::work::remove;

impl Log {
    /// Writes, seals, cuts and flushes everything, and closes the log. Its files are then what
    /// Kafka's tools accept.
    pub async fn close(&self) -> Result<(), LogError> {
        self.begin_closing();
        let result = self.finish_closing().await;
        // Also of a log that failed: it may be opened again, and nothing may write to it then.
        self.settle().await;
        self.volume().flush().await;
        self.volume().forget(self.id(), Some(self.entry()));
        result
    }

    /// No more records are taken.
    pub(crate) fn begin_closing(&self) {
        let _ = self.end();
        self.inner.borrow_mut().closing_down = true;
        self.touch();
    }

    /// Everything is written and saved, files have their exact lengths. Not flushed.
    pub(crate) async fn finish_closing(&self) -> Result<(), LogError> {
        self.write_out().await?;
        self.settle().await;
        let (file, bytes) = {
            let mut inner = self.inner.borrow_mut();
            // No work begins in this state.
            inner.state = LogState::Closed;
            inner.active.indexes.finish();
            (inner.active.file.take(), inner.active.received.bytes)
        };
        if bytes > 0 {
            self.save().await?;
        }
        self.drop_prepared().await?;
        if let Some(file) = file {
            let path = self.path(Kind::Log, self.inner.borrow().active.base);
            crate::work::at(&path, file.truncate(bytes).await)?;
        }
        Ok(())
    }

    /// Cuts off everything from `offset` on, at a batch's start: if `offset` lies within a batch,
    /// that batch goes too. The source's log diverged from ours there.
    pub async fn truncate_to(&self, offset: i64) -> Result<(), LogError> {
        if self.inner.borrow().is_expecting() {
            return Err(LogError::Busy);
        }
        if offset >= self.positions().received.0.offset {
            return Ok(());
        }
        self.flags.cutting.set(true);
        self.inner.borrow_mut().closing_down = true;
        let result = self.truncate_settled(offset).await;
        self.inner.borrow_mut().closing_down = false;
        self.flags.cutting.set(false);
        self.changed.notify();
        self.touch();
        result
    }

    async fn truncate_settled(&self, offset: i64) -> Result<(), LogError> {
        self.write_out().await?;
        self.settle().await;
        // Workers stay away until the end.
        self.flags.working.set(true);
        let result = self.truncate_exclusively(offset).await;
        self.flags.working.set(false);
        if let Err(error) = &result {
            self.fail(&format!("truncation failed: {error}"));
        }
        result
    }

    async fn truncate_exclusively(&self, offset: i64) -> Result<(), LogError> {
        let (entry, settings, dropped, generation) = {
            let mut inner = self.inner.borrow_mut();
            let mut bases: Vec<i64> = inner.sealed.iter().map(|sealed| sealed.0).collect();
            bases.push(inner.active.base);
            let keep = bases.partition_point(|&base| base < offset).max(1);
            let target = bases[keep - 1];
            let dropped: Vec<i64> = bases[keep..].to_vec();
            // The checkpoint says so first. Else a crash in between would leave files that are
            // shorter than it claims, which is what damage looks like.
            let place = Place { segment: target, bytes: 0, offset: target };
            let start = target.min(offset);
            inner.flushed = place;
            inner.replay = Replay::segment_start(target, None, false);
            inner.saved.clear();
            inner.generation += 1;
            inner.truncating = true;
            inner.log_start_offset = inner.log_start_offset.min(offset.max(start));
            let entry = Entry {
                topic_id: inner.settings.topic_id,
                log_start_offset: inner.log_start_offset,
                high_watermark: inner.high_watermark,
                last_epoch: None,
                flushed: inner.flushed,
                replay: inner.replay,
                doubtful: false,
                suspect: false,
            };
            inner.active.file = None;
            (entry, inner.settings.clone(), dropped, inner.generation)
        };
        self.drop_prepared().await?;
        // The first writes the slot, the second makes it durable.
        if !self.volume().flush().await || !self.volume().flush().await {
            return Err(LogError::State(self.state()));
        }
        for &base in dropped.iter().rev() {
            for kind in Kind::ALL {
                if kind != Kind::Snapshot || base > offset {
                    remove(&self.path(kind, base)).await?;
                }
            }
        }
        remove(&self.path(Kind::Seal, entry.flushed.segment)).await?;
        let files = Files::of(self.id(), self.volume().path());
        let (opened, _) = load(&files, settings, Some(entry), Some(offset)).await?;
        *self.inner.borrow_mut() = opened.into_inner(generation);
        if let Some(this) = self.volume().log(self.id()) {
            self.volume().mark_dirty(&this);
        }
        Ok(())
    }

    async fn drop_prepared(&self) -> Result<(), LogError> {
        let prepared = self.inner.borrow_mut().prepared.take();
        if prepared.is_some() {
            remove(&self.folder().join(PREPARED_FILE)).await?;
        }
        Ok(())
    }

    /// Removes the log and all its files.
    pub async fn delete(&self) -> Result<(), LogError> {
        let _ = self.end();
        self.inner.borrow_mut().state = LogState::Closed;
        self.settle().await;
        self.inner.borrow_mut().active.file = None;
        let folders = [self.folder().to_owned(), self.seal_folder().to_owned()];
        for folder in folders {
            let entries = match ring::fs::read_dir(&folder).await {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                other => crate::work::at(&folder, other)?,
            };
            for entry in entries {
                remove(&folder.join(&entry.name)).await?;
            }
            crate::work::at(&folder, ring::fs::remove_dir(&folder).await)?;
        }
        self.volume().forget(self.id(), None);
        self.changed.notify();
        Ok(())
    }
}
