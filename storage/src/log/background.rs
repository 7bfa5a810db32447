//! What the volume does with a log behind its appends: it takes writes from it and says how they
//! ended, notes that the disk is full, what a flush covered, what the checkpoint is to say, and
//! that the device has failed.

use std::io;
use std::time::Duration;

use ring::Instant;

use super::{Log, LogState};
use crate::checkpoint::Entry;
use crate::position::Place;
use crate::queue::pop_if;
use crate::segment::{Segment, Urge, Write};
use crate::volume::flush::Covered;

impl Log {
    /// What follows every change of the received end.
    pub(super) fn appended(&self) {
        let Some(this) = self.this.upgrade() else { return };
        self.volume.touch(&this);
        let (waits, unplaced) = {
            let mut inner = self.inner.borrow_mut();
            inner.compact();
            let waits = inner.expecting && inner.segments().any(|segment| segment.unsent() > 0);
            (waits, inner.unplaced)
        };
        if waits {
            self.volume.set_deadline(&this);
        }
        if unplaced {
            self.volume.mark_dirty(&this);
            self.volume.flush_soon();
        }
    }

    pub(crate) fn has_unsent(&self) -> bool {
        let inner = self.inner.borrow();
        matches!(inner.state, LogState::Healthy) && inner.segments().any(|s| s.unsent() > 0)
    }

    pub(crate) fn unsent_bytes(&self) -> u64 {
        self.inner.borrow().segments().map(Segment::unsent).sum()
    }

    pub(crate) fn set_overdue(&self) {
        self.inner.borrow_mut().overdue = true;
    }

    pub(crate) fn next_write(&self) -> Option<Write> {
        let mut inner = self.inner.borrow_mut();
        if !matches!(inner.state, LogState::Healthy) {
            return None;
        }
        for segment in &mut inner.closing {
            if let Some(write) = segment.next_write(Urge::All) {
                return Some(write);
            }
        }
        let urge = inner.urge();
        let write = inner.active.next_write(urge);
        if inner.active.unsent() == 0 {
            (inner.overdue, inner.tail_due) = (false, false);
        }
        write
    }

    pub(crate) fn write_completed(&self, segment: i64, flight: u64, result: io::Result<()>) {
        let failure = {
            let mut inner = self.inner.borrow_mut();
            let before = inner.written();
            match result {
                Ok(()) => {
                    if let Some(segment) = inner.segments_mut().find(|s| s.base == segment) {
                        segment.complete(flight);
                    }
                    inner.compact();
                    let moved = inner.written() != before;
                    drop(inner);
                    if let Some(this) = self.this.upgrade().filter(|_| moved) {
                        self.volume.mark_dirty(&this);
                    }
                    None
                }
                Err(error) => {
                    if let Some(segment) = inner.segments_mut().find(|s| s.base == segment) {
                        segment.abandon(flight);
                    }
                    Some(format!("write failed: {error}"))
                }
            }
        };
        if let Some(reason) = failure {
            self.fail(&reason);
        }
        self.changed.notify();
    }

    pub(crate) fn set_disk_full(&self, full: bool) {
        let was = std::mem::replace(&mut self.inner.borrow_mut().disk_full, full);
        if was != full {
            self.changed.notify();
        }
    }

    /// What waited for more from the source has waited long enough.
    pub(crate) fn set_tail_due(&self) {
        let mut inner = self.inner.borrow_mut();
        inner.tail_due = inner.active.unsent() > 0;
    }

    /// Whether it waits for housekeeping to look at it again.
    pub(crate) fn wants_housekeeping(&self) -> bool {
        let inner = self.inner.borrow();
        let unsent = inner.segments().any(|segment| segment.unsent() > 0);
        inner.disk_full || !inner.expired.is_empty() || unsent
    }

    /// Nothing more of it waits for room on the disk.
    pub(crate) fn forget_disk_full(&self) {
        if self.inner.borrow().segments().all(|segment| segment.in_flight() == 0) {
            self.set_disk_full(false);
        }
    }

    /// The device failed this log: nothing above the flushed end is certain.
    pub(crate) fn fail(&self, reason: &str) {
        {
            let mut inner = self.inner.borrow_mut();
            // A damaged log may be opened again, too.
            inner.suspect |= matches!(inner.state, LogState::Corrupt(_));
            if matches!(inner.state, LogState::Healthy | LogState::Closed) {
                tracing::error!(log = %self.id, reason, "log failed");
                inner.state = LogState::Failed(reason.to_owned());
                inner.rewind();
                // It is not written any more, and others want the memory.
                inner.segments_mut().for_each(Segment::drop_unwritten);
            }
        }
        self.changed.notify();
    }

    /// What a flush that begins now will cover.
    pub(crate) fn before_flush(&self) -> Covered {
        let inner = self.inner.borrow();
        let written = inner.written();
        Covered {
            written,
            epoch: inner.closing.front().unwrap_or(&inner.active).written_epoch,
            replay: inner.saved.iter().rev().find(|saved| saved.place <= written).copied(),
            // What is written now is about to be cut or read anew, or a file about to go: no flush
            // may vouch for it.
            generation: inner.generation.wrapping_sub(u64::from(
                inner.truncating || inner.mending || inner.displaced.is_some(),
            )),
        }
    }

    /// The flush is complete; a checkpoint is to say so. Returns what it will say: the flushed
    /// place and the visible start.
    pub(crate) fn raise_flushed(&self, covered: &Covered) -> (Place, i64) {
        let mut inner = self.inner.borrow_mut();
        let current = covered.generation == inner.generation;
        if current && matches!(inner.state, LogState::Healthy | LogState::Closed) {
            inner.flushed = inner.flushed.max(covered.written);
            inner.flushed_epoch = covered.epoch.or(inner.flushed_epoch);
            if let Some(replay) = covered.replay {
                inner.saved.retain(|saved| saved.place > replay.place);
                inner.move_replay(replay);
            }
        }
        (inner.flushed, inner.log_start_offset)
    }

    /// The checkpoint that says so is durable.
    pub(crate) fn show_flushed(&self, generation: u64, (place, start): (Place, i64)) {
        let placed = {
            let mut inner = self.inner.borrow_mut();
            let current = generation == inner.generation;
            if current {
                inner.shown_flushed = inner.shown_flushed.max(place);
                inner.shown_start = inner.shown_start.max(start);
            }
            current && std::mem::take(&mut inner.unplaced)
        };
        self.changed.notify();
        if placed {
            self.touch();
        }
    }

    /// The checkpoint's entry.
    pub(crate) fn entry(&self) -> Entry {
        let inner = self.inner.borrow();
        Entry {
            topic_id: inner.settings.topic_id,
            log_start_offset: inner.log_start_offset,
            high_watermark: inner.high_watermark,
            last_epoch: inner.flushed_epoch,
            flushed: inner.flushed,
            replay: inner.replay,
            turn: self.turn,
            doubtful: inner.doubtful,
            suspect: inner.suspect || matches!(inner.state, LogState::Failed(_)),
        }
    }

    /// Moves retired segments whose undo window has passed to the list of those to delete. On a
    /// full disk there is none: what the source has deleted goes before what it still sends.
    pub(crate) fn retire_due(&self) {
        let mut inner = self.inner.borrow_mut();
        let full = inner.disk_full || self.volume.full();
        let window = if full { Duration::ZERO } else { inner.settings.undo_window };
        let now = ring::now();
        // As long as a checkpoint names a segment, or calls its records visible, its files have to
        // be there. Where there is no room even to say otherwise, they make it.
        let (named, start) = (inner.shown_flushed.segment, inner.shown_start);
        let unsaved = self.volume.unsaved();
        let due = |(since, base, next): &(Instant, i64, i64)| {
            now - *since >= window && *base < named && (*next <= start || unsaved)
        };
        while let Some((_, base, _)) = pop_if(&mut inner.retired, due) {
            inner.expired.push(base);
        }
    }
}
