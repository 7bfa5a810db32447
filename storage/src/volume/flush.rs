//! The flush cycle of a data directory: what makes written bytes flushed ones.
//!
//! One cycle: the written ends of all dirty logs are noted; `syncfs`; a checkpoint with these ends
//! goes into the slot that is not durable, over its old bytes, so that a full disk has room for it;
//! the slot is flushed; and only now do the ends count as *flushed*. So what is shown as flushed is
//! never ahead of a checkpoint that says so, and no crash followed by a failing device takes it
//! back.
//!
//! A flush that fails is not repeated: after it the kernel counts the pages it lost as clean, and
//! the next flush would succeed without them. All logs of the directory are FAILED; each may be
//! closed and opened again, which says durably what an earlier flush covered, cuts the log there,
//! reads the rest from the device and lets the source send what was cut once more. A process that
//! dies before it could say so is answered for by the next: it writes again what it reads above the
//! flushed place (`write_again`). On a full disk, where not even the slot can be written, nothing
//! fails: the ends stay unflushed, all logs are DISK_FULL, and every cycle tries again.

use std::io;
use std::rc::Rc;

use crate::boot::{begun_path, slot_path};
use crate::checkpoint::{Checkpoint, Encoder, Replay, SLOTS};
use crate::log::Log;
use crate::position::Place;
use crate::work::append_file;

use super::{Volume, is_full};

/// What a flush covers of one log, taken before it begins.
pub struct Covered {
    /// Written then.
    pub written: Place,
    /// The last leader epoch written then.
    pub epoch: Option<i32>,
    /// The side files were saved then up to here.
    pub replay: Option<Replay>,
    /// Counts truncations: what was written before one is not there any more.
    pub generation: u64,
}

impl Volume {
    /// Flushes what is written now, without waiting for the interval. False if the flush failed, or
    /// there was no room for its checkpoint.
    pub async fn flush(&self) -> bool {
        // A cycle that is under way may have begun before the last write ended: wait for the next.
        let (failures, missed) = (self.flush_failures(), self.missed.get());
        let cycle = self.cycles_begun.get() + 1;
        self.flush_soon();
        loop {
            let seen = self.flushes.count();
            if self.cycles_ended.get() >= cycle {
                break;
            }
            if self.stopping.get() {
                return false;
            }
            self.flushes.after(seen).await;
        }
        self.flush_failures() == failures && self.missed.get() == missed
    }

    /// Sees to it that a cycle begins without waiting for the interval.
    pub fn flush_soon(&self) {
        self.flush_urgent.set(true);
        self.flush_wanted.notify();
    }

    pub(super) async fn flush_cycle(self: Rc<Self>) {
        while !self.stopping.get() {
            let seen = self.flush_wanted.count();
            if self.dirty.borrow().is_empty() && !self.flush_urgent.get() {
                self.flush_wanted.after(seen).await;
                continue;
            }
            if !self.flush_urgent.get() {
                let _ = ring::timeout(self.flush_interval, self.until_urgent()).await;
            }
            self.flush_urgent.set(false);
            self.cycles_begun.set(self.cycles_begun.get() + 1);
            self.flush_once().await;
            self.cycles_ended.set(self.cycles_begun.get());
            self.flushes.notify();
        }
    }

    async fn until_urgent(&self) {
        loop {
            let seen = self.flush_wanted.count();
            if self.flush_urgent.get() || self.stopping.get() {
                return;
            }
            self.flush_wanted.after(seen).await;
        }
    }

    /// One flush: what was written before it is durable after it, and a checkpoint says so.
    async fn flush_once(&self) {
        let dirty: Vec<Rc<Log>> = self.dirty.take();
        let mut covered: Vec<(Rc<Log>, Covered)> = Vec::with_capacity(dirty.len());
        for log in dirty {
            log.flags.dirty.set(false);
            let before = log.before_flush();
            covered.push((log, before));
        }
        if let Err(error) = ring::fs::sync_filesystem(self.path()).await {
            return self.failed(&error).await;
        }
        self.counters.borrow_mut().flushes += 1;
        let raised: Vec<_> = covered
            .into_iter()
            .map(|(log, covered)| {
                let place = log.raise_flushed(&covered);
                (log, covered.generation, place)
            })
            .collect();
        match self.write_checkpoint().await {
            Ok(()) => {
                self.set_unsaved(false);
                for (log, generation, place) in raised {
                    log.show_flushed(generation, place);
                }
            }
            Err(error) if is_full(&error) => {
                self.set_full(true);
                self.set_unsaved(true);
                self.missed.set(self.missed.get() + 1);
                tracing::warn!(path = %self.path().display(), %error, "no room for a checkpoint");
                raised.iter().for_each(|(log, ..)| self.mark_dirty(log));
                // Not at once again: there is no more room than there was.
                ring::sleep(self.flush_interval).await;
            }
            Err(error) => self.failed(&error).await,
        }
    }

    fn set_unsaved(&self, unsaved: bool) {
        if self.unsaved.replace(unsaved) != unsaved {
            for log in self.logs() {
                log.changed.notify();
            }
        }
    }

    /// After a failed flush nobody knows which pages were lost: the device is suspect, and all that
    /// is certain is what an earlier flush covered.
    async fn failed(&self, error: &io::Error) {
        tracing::error!(path = %self.path().display(), %error, "flush failed");
        self.counters.borrow_mut().flush_failures += 1;
        for log in self.logs() {
            log.fail(&format!("flush failed: {error}"));
        }
        // Says that the logs are suspect, if it can still be said.
        if let Err(error) = self.write_checkpoint().await {
            tracing::warn!(path = %self.path().display(), %error, "checkpoint not written");
        }
    }

    /// Writes the slot that is not durable, and makes it so; else the other one is what counts.
    async fn write_checkpoint(&self) -> io::Result<()> {
        self.directory.finish_base().await?;
        let sequence = self.sequence.get() + 1;
        self.sequence.set(sequence);
        let boot = self.directory.boot;
        let slot = (self.durable_slot.get() + 1) % SLOTS;
        let path = slot_path(self.path(), self.shard, slot);
        let checkpoint = self.encode_checkpoint(boot, sequence);
        let file = append_file(&path, 0, &checkpoint).await?;
        file.sync_data().await?;
        self.durable_slot.set(slot);
        if !self.begun.get() {
            // Before anything counts as flushed: without it, slots that are lost as files would
            // look like a crash before the first one was written.
            let begun = Checkpoint { boot, ..Checkpoint::default() };
            ring::fs::replace(begun_path(self.path(), self.shard), begun.encode()).await?;
            self.begun.set(true);
        }
        self.counters.borrow_mut().checkpoints += 1;
        Ok(())
    }

    /// What is known of every log, open or closed; of one that is open again, what it is now.
    fn encode_checkpoint(&self, boot: u64, sequence: u64) -> Vec<u8> {
        let (logs, closed, gone) = (self.logs.borrow(), self.closed.borrow(), self.gone.borrow());
        let ids = logs.keys().chain(closed.keys()).chain(gone.keys());
        let mut encoder = Encoder::for_logs(ids);
        let closed = closed.iter().filter(|(id, _)| !logs.contains_key(*id));
        closed.for_each(|(id, entry)| encoder.entry(id, entry));
        logs.values().for_each(|log| encoder.entry(log.id(), &log.entry()));
        gone.iter().for_each(|(id, turn)| encoder.gone(id, *turn));
        encoder.finish(boot, sequence)
    }
}
