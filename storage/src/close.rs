//! The end of a log: closing, deleting.

use crate::log::{Log, LogError, LogState};
use crate::names::{Kind, PREPARED_FILE};
use crate::work::{at, remove};

impl Log {
    /// Writes, seals, cuts and flushes everything, and closes the log. Its files are then what
    /// Kafka's tools accept.
    pub async fn close(&self) -> Result<(), LogError> {
        self.begin_closing();
        let result = self.finish_closing().await;
        // Also of a log that failed: it may be opened again, and nothing may write to it then.
        self.settle().await;
        self.volume().flush().await;
        self.volume().forget(self, Some(self.entry()));
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
            at(&path, file.truncate(bytes).await)?;
        }
        Ok(())
    }

    pub(crate) async fn drop_prepared(&self) -> Result<(), LogError> {
        let prepared = self.inner.borrow_mut().prepared.take();
        if prepared.is_some() {
            remove(&self.folder().join(PREPARED_FILE)).await?;
        }
        Ok(())
    }

    /// Removes the log and all its files. Its folders leave their places first, the seals before
    /// what they vouch for, so that a crash leaves a whole log or none; what is left of the files
    /// is removed at the next start.
    ///
    /// # Errors
    /// The file system's. What it says is durable with the next completed flush.
    pub async fn delete(&self) -> Result<(), LogError> {
        let _ = self.end();
        self.inner.borrow_mut().state = LogState::Closed;
        self.settle().await;
        self.inner.borrow_mut().active.file = None;
        self.inner.borrow_mut().prepared = None;
        let folders = [self.seal_folder(), self.folder()];
        for folder in folders {
            if !at(&folder, ring::fs::exists(&folder).await)? {
                continue;
            }
            let dead = self.volume().dead_folder().await?;
            at(&folder, ring::fs::rename(&folder, &dead).await)?;
            for entry in at(&dead, ring::fs::read_dir(&dead).await)? {
                remove(&dead.join(&entry.name)).await?;
            }
            at(&dead, ring::fs::remove_dir(&dead).await)?;
        }
        self.volume().forget(self, None);
        self.changed.notify();
        Ok(())
    }
}
