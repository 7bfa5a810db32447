//! Who is at a log's files: its workers, which prepare, name, seal, save and delete, or one other
//! that keeps them away. A cut, a close and a deletion wait in [`Log::settle`] for either.

use crate::log::{Log, LogError};

/// Workers stay away until it is released. Dropped with the task that holds it, it keeps nobody
/// away either.
pub(crate) struct Held<'a>(&'a Log);

impl Held<'_> {
    /// Workers look again what there is to do.
    pub fn release(self) {
        let log = self.0;
        drop(self);
        log.touch();
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.flags.working.set(false);
        self.0.changed.notify();
    }
}

/// Nothing is appended to the log: its end is being cut back, or it is mended and read anew.
pub(crate) struct Alone<'a>(&'a Log);

impl Alone<'_> {
    /// The log goes on.
    pub fn release(self) {
        let log = self.0;
        drop(self);
        // Of what was written before, a flush that was under way has said nothing.
        log.mark_dirty();
        log.touch();
    }
}

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        self.0.inner.borrow_mut().mending = false;
        self.0.changed.notify();
    }
}

impl Log {
    /// Keeps workers away once none is at the files. Appending and writing go on in the space that
    /// is prepared: not to be held for long.
    pub(crate) async fn hold(&self) -> Held<'_> {
        loop {
            let seen = self.changed.count();
            if !self.flags.working.replace(true) {
                return Held(self);
            }
            self.changed.after(seen).await;
        }
    }

    /// Runs `work` while nothing is appended, written, prepared or sealed. No flush that begins
    /// meanwhile vouches for anything of the log.
    pub(crate) async fn alone<E: From<LogError>>(
        &self,
        work: impl AsyncFnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        if self.inner.borrow().is_expecting() || self.inner.borrow().closing_down {
            return Err(LogError::Busy.into());
        }
        let Some(alone) = self.begin_alone() else { return Err(LogError::Busy.into()) };
        let result = async {
            if self.is_open() {
                self.write_out().await?;
            }
            self.settle().await;
            if !self.inner.borrow().is_readable() {
                return Err(LogError::State(self.state()).into());
            }
            let _held = self.hold().await;
            if self.inner.borrow().closing_down {
                // Whoever closes it hands the files over, or has already.
                return Err(LogError::Busy.into());
            }
            work().await
        }
        .await;
        alone.release();
        result
    }

    /// Nothing is appended until it is dropped. None: another is alone with the log already.
    pub(crate) fn begin_alone(&self) -> Option<Alone<'_>> {
        let mut inner = self.inner.borrow_mut();
        // Not made at all if it is not to be had: its end would be that of the other.
        match std::mem::replace(&mut inner.mending, true) {
            false => Some(Alone(self)),
            true => None,
        }
    }
}
