//! A data directory as one shard sees it: its writes, its background work, its flush cycle.
//!
//! Nothing here belongs to one partition, so an idle partition costs no task and no timer: logs
//! with something to write stand in one list, logs with something to prepare in another, and
//! waiting bytes in a queue of deadlines that is in order because every delay is the same.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use ring::{BLOCK, Gather, Instant, Share, spawn};

use crate::boot::slot_path;
use crate::checkpoint::{Checkpoint, Entry, Replay, SLOTS};
use crate::limits::{
    BACKGROUND_WORKERS, SPACE_BYTES_MAX, SPACE_BYTES_MIN, WRITE_DELAY_US, WRITES_IN_FLIGHT_MAX,
};
use crate::log::Log;
use crate::names::LogId;
use crate::position::Place;
use crate::queue::pop_if;
use crate::segment::Write;
use crate::signal::Signal;

/// A data directory.
pub struct Volume {
    path: PathBuf,
    shard: u16,
    boot: u64,
    flush_interval: Duration,
    logs: RefCell<BTreeMap<LogId, Rc<Log>>>,
    /// Logs that were open: their last entry, or none if they were deleted.
    closed: RefCell<BTreeMap<LogId, Option<Entry>>>,
    ready: RefCell<VecDeque<Rc<Log>>>,
    deadlines: RefCell<VecDeque<(Instant, Rc<Log>)>>,
    deadline_set: Signal,
    in_flight: Cell<usize>,
    work: RefCell<VecDeque<Rc<Log>>>,
    work_added: Signal,
    dirty: RefCell<Vec<Rc<Log>>>,
    flush_wanted: Signal,
    flush_urgent: Cell<bool>,
    cycles_begun: Cell<u64>,
    /// Counts the completed cycles.
    flushes: Signal,
    flush_failures: Cell<u64>,
    sequence: Cell<u64>,
    /// The slot that a completed flush covers, and the one written since.
    durable_slot: Cell<u64>,
    fresh_slot: Cell<Option<u64>>,
    space_step_max: Cell<u64>,
    full: Cell<bool>,
    stopping: Cell<bool>,
    counters: RefCell<Counters>,
}

/// What a volume did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Completed writes.
    pub writes: u64,
    /// Bytes of these, padding and rewritten blocks included.
    pub write_bytes: u64,
    /// Completed flushes of the file system.
    pub flushes: u64,
    /// Failed flushes.
    pub flush_failures: u64,
    /// Checkpoints written.
    pub checkpoints: u64,
}

impl Volume {
    /// A volume at work; it stops with [`Volume::stop`].
    pub fn start(path: &Path, shard: u16, boot: u64, flush_interval: Duration) -> Rc<Volume> {
        let volume = Rc::new(Volume {
            path: path.to_owned(),
            shard,
            boot,
            flush_interval,
            logs: RefCell::default(),
            closed: RefCell::default(),
            ready: RefCell::default(),
            deadlines: RefCell::default(),
            deadline_set: Signal::default(),
            in_flight: Cell::new(0),
            work: RefCell::default(),
            work_added: Signal::default(),
            dirty: RefCell::default(),
            flush_wanted: Signal::default(),
            flush_urgent: Cell::new(false),
            cycles_begun: Cell::new(0),
            flushes: Signal::default(),
            flush_failures: Cell::new(0),
            sequence: Cell::new(0),
            durable_slot: Cell::new(1),
            fresh_slot: Cell::new(None),
            space_step_max: Cell::new(SPACE_BYTES_MAX),
            full: Cell::new(false),
            stopping: Cell::new(false),
            counters: RefCell::default(),
        });
        spawn(Share::Replicate, Rc::clone(&volume).watch_deadlines()).detach();
        spawn(Share::Background, Rc::clone(&volume).flush_cycle()).detach();
        spawn(Share::Background, Rc::clone(&volume).keep_house()).detach();
        for _ in 0..BACKGROUND_WORKERS {
            spawn(Share::Background, Rc::clone(&volume).do_work()).detach();
        }
        volume
    }

    /// Ends the tasks. What they hold is released when they next run.
    pub fn stop(&self) {
        self.stopping.set(true);
        self.deadline_set.notify();
        self.work_added.notify();
        self.flush_wanted.notify();
        self.flushes.notify();
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The largest step of prepared space at present.
    pub fn space_step_max(&self) -> u64 {
        self.space_step_max.get()
    }

    /// Whether the last try to take space failed for want of it.
    pub fn full(&self) -> bool {
        self.full.get()
    }

    /// Notes that the disk is full, or no more.
    pub fn set_full(&self, full: bool) {
        self.full.set(full);
    }

    /// What was done so far.
    pub fn counters(&self) -> Counters {
        *self.counters.borrow()
    }

    /// Flushes that failed so far.
    pub fn flush_failures(&self) -> u64 {
        self.flush_failures.get()
    }

    /// The logs, by id.
    pub fn logs(&self) -> Vec<Rc<Log>> {
        self.logs.borrow().values().cloned().collect()
    }

    /// The log of an id, if it is open.
    pub fn log(&self, id: &LogId) -> Option<Rc<Log>> {
        self.logs.borrow().get(id).cloned()
    }

    /// A log was opened.
    pub fn add(&self, log: &Rc<Log>) {
        self.closed.borrow_mut().remove(log.id());
        self.logs.borrow_mut().insert(log.id().clone(), Rc::clone(log));
    }

    /// A log was closed, with this entry, or deleted.
    pub fn forget(&self, id: &LogId, entry: Option<Entry>) {
        self.logs.borrow_mut().remove(id);
        self.closed.borrow_mut().insert(id.clone(), entry);
    }

    /// The entry of a log that was closed since the start.
    pub fn closed_entry(&self, id: &LogId) -> Option<Entry> {
        self.closed.borrow().get(id).copied().flatten()
    }

    /// Whether a log was deleted since the start.
    pub fn was_deleted(&self, id: &LogId) -> bool {
        matches!(self.closed.borrow().get(id), Some(None))
    }

    /// How many logs are open.
    pub fn log_count(&self) -> usize {
        self.logs.borrow().len()
    }

    /// Something changed in a log: look whether it has something to write or to prepare.
    pub fn touch(self: &Rc<Self>, log: &Rc<Log>) {
        if log.has_unsent() && !log.flags.queued.replace(true) {
            self.ready.borrow_mut().push_back(Rc::clone(log));
            self.pump();
        }
        if log.has_work() && !log.flags.working.replace(true) {
            self.work.borrow_mut().push_back(Rc::clone(log));
            self.work_added.notify();
        }
    }

    /// The same, for what found no room or no memory before.
    fn look_again(self: &Rc<Self>, log: &Rc<Log>) {
        if !log.has_job() {
            log.forget_disk_full();
        } else if !log.flags.working.replace(true) {
            self.work.borrow_mut().push_back(Rc::clone(log));
            self.work_added.notify();
        }
        self.touch(log);
    }

    /// Whether so many writes are under way that reading should wait.
    pub(crate) fn is_busy(&self) -> bool {
        self.in_flight.get() >= WRITES_IN_FLIGHT_MAX / 2
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.get()
    }

    /// Sees to it that bytes of this log wait no longer than the limit.
    pub fn set_deadline(&self, log: &Rc<Log>) {
        if !log.flags.timed.replace(true) {
            let at = ring::now() + Duration::from_micros(WRITE_DELAY_US);
            let mut deadlines = self.deadlines.borrow_mut();
            deadlines.push_back((at, Rc::clone(log)));
            if deadlines.len() == 1 {
                self.deadline_set.notify();
            }
        }
    }

    /// The written end of this log moved.
    pub fn mark_dirty(&self, log: &Rc<Log>) {
        if !log.flags.dirty.replace(true) {
            let mut dirty = self.dirty.borrow_mut();
            dirty.push(Rc::clone(log));
            if dirty.len() == 1 {
                self.flush_wanted.notify();
            }
        }
    }

    /// Flushes what is written now, without waiting for the interval. False if the flush failed.
    pub async fn flush(&self) -> bool {
        // A cycle that is under way may have begun before the last write ended: wait for the next.
        let failures = self.flush_failures.get();
        let cycle = self.cycles_begun.get() + 1;
        self.flush_urgent.set(true);
        self.flush_wanted.notify();
        while self.flushes.count() < cycle {
            if self.stopping.get() {
                return false;
            }
            self.flushes.after(cycle - 1).await;
        }
        self.flush_failures.get() == failures
    }

    /// Starts writes until nothing is due or enough are in flight.
    fn pump(self: &Rc<Self>) {
        while self.in_flight.get() < WRITES_IN_FLIGHT_MAX {
            let Some(log) = self.next_ready() else { return };
            log.flags.queued.set(false);
            while let Some(write) = log.next_write() {
                self.in_flight.set(self.in_flight.get() + 1);
                let task = Rc::clone(self).write(Rc::clone(&log), write);
                spawn(Share::Replicate, task).detach();
                if self.in_flight.get() >= WRITES_IN_FLIGHT_MAX {
                    if log.has_unsent() && !log.flags.queued.replace(true) {
                        self.ready.borrow_mut().push_back(log);
                    }
                    return;
                }
            }
        }
    }

    /// First come, first served; when memory is short, the one that frees most.
    fn next_ready(&self) -> Option<Rc<Log>> {
        let mut ready = self.ready.borrow_mut();
        let memory = ring::memory();
        if memory.used < memory.total / 4 * 3 {
            return ready.pop_front();
        }
        let largest = (0..ready.len()).max_by_key(|&i| ready[i].unsent_bytes())?;
        ready.swap_remove_back(largest)
    }

    async fn write(self: Rc<Self>, log: Rc<Log>, write: Write) {
        let (segment, flight) = (write.segment, write.flight);
        let bytes: usize = write.pieces.iter().map(|piece| piece.len()).sum();
        let result = self.write_whole(&log, write).await;
        self.in_flight.set(self.in_flight.get() - 1);
        if result.is_ok() {
            let mut counters = self.counters.borrow_mut();
            counters.writes += 1;
            counters.write_bytes += bytes as u64;
        }
        log.write_completed(segment, flight, result);
        self.touch(&log);
        self.pump();
    }

    /// Repeats short writes. A full disk is waited for: the bytes stay where they are.
    async fn write_whole(&self, log: &Rc<Log>, write: Write) -> io::Result<()> {
        let Write { file, mut at, mut pieces, .. } = write;
        while !pieces.is_empty() {
            match file.write_at(at, pieces.clone()).await {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(bytes) => {
                    // A direct write that ends inside a block is repeated from the block's start.
                    let whole = bytes / BLOCK * BLOCK;
                    at += whole as u64;
                    advance(&mut pieces, whole);
                }
                Err(error) if is_full(&error) => {
                    self.set_full(true);
                    log.set_disk_full(true);
                    ring::sleep(Duration::from_secs(1)).await;
                    if self.stopping.get() {
                        return Err(error);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        log.set_disk_full(false);
        Ok(())
    }

    async fn watch_deadlines(self: Rc<Self>) {
        while !self.stopping.get() {
            let seen = self.deadline_set.count();
            let first = self.deadlines.borrow().front().map(|(at, _)| *at);
            let Some(at) = first else {
                self.deadline_set.after(seen).await;
                continue;
            };
            ring::sleep_until(at).await;
            let now = ring::now();
            loop {
                let due = pop_if(&mut self.deadlines.borrow_mut(), |(at, _)| *at <= now);
                let Some((_, log)) = due else { break };
                log.flags.timed.set(false);
                log.set_overdue();
                self.touch(&log);
            }
        }
        self.deadlines.borrow_mut().clear();
    }

    async fn do_work(self: Rc<Self>) {
        while !self.stopping.get() {
            let seen = self.work_added.count();
            let next = self.work.borrow_mut().pop_front();
            let Some(log) = next else {
                self.work_added.after(seen).await;
                continue;
            };
            log.work().await;
            log.flags.working.set(false);
            log.changed.notify();
            self.touch(&log);
        }
        self.work.borrow_mut().clear();
    }

    async fn flush_cycle(self: Rc<Self>) {
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
        match ring::fs::sync_filesystem(&self.path).await {
            Ok(()) => {
                self.counters.borrow_mut().flushes += 1;
                if let Some(slot) = self.fresh_slot.take() {
                    self.durable_slot.set(slot);
                }
                for (log, covered) in covered {
                    log.flushed(covered);
                }
                self.write_checkpoint().await;
            }
            Err(error) => {
                // After a failed flush nobody knows which pages were lost: the device is suspect,
                // and all that is certain is what an earlier flush covered.
                tracing::error!(path = %self.path.display(), %error, "flush failed");
                self.counters.borrow_mut().flush_failures += 1;
                self.flush_failures.set(self.flush_failures.get() + 1);
                for log in self.logs() {
                    log.fail(&format!("flush failed: {error}"));
                }
                // Says that the logs are suspect, if it can still be said.
                self.write_checkpoint().await;
            }
        }
    }

    /// Writes the slot that is not durable. It becomes so with the next completed flush; until
    /// then, also after failed ones, the other slot is what counts.
    async fn write_checkpoint(&self) {
        let sequence = self.sequence.get() + 1;
        self.sequence.set(sequence);
        let checkpoint = Checkpoint { boot: self.boot, sequence, entries: self.entries() };
        let slot = (self.durable_slot.get() + 1) % SLOTS;
        self.fresh_slot.set(Some(slot));
        let path = slot_path(&self.path, self.shard, slot);
        match ring::fs::write(&path, checkpoint.encode()).await {
            Ok(()) => self.counters.borrow_mut().checkpoints += 1,
            // Without it a recovery reads more than it had to; nothing is lost.
            Err(error) => tracing::warn!(path = %path.display(), %error, "checkpoint not written"),
        }
    }

    /// What is known of every log, open or closed.
    fn entries(&self) -> BTreeMap<LogId, Entry> {
        let (logs, closed) = (self.logs.borrow(), self.closed.borrow());
        let closed = closed.iter().filter_map(|(id, entry)| Some((id.clone(), (*entry)?)));
        let open = logs.values().map(|log| (log.id().clone(), log.entry()));
        closed.chain(open).collect()
    }

    /// Now and then: how large steps of space may be, whether a full disk has room again, whose
    /// undo window has passed.
    async fn keep_house(self: Rc<Self>) {
        while !self.stopping.get() {
            if let Ok(free) = ring::fs::free_bytes(&self.path).await {
                let logs = self.logs.borrow().len().max(1) as u64;
                let step = (free / 16 / logs).clamp(SPACE_BYTES_MIN, SPACE_BYTES_MAX);
                self.space_step_max.set(step);
                if free > step + SPACE_BYTES_MIN {
                    self.set_full(false);
                }
            }
            for log in self.logs() {
                log.retire_due();
                if log.wants_housekeeping() {
                    self.look_again(&log);
                }
            }
            ring::sleep(HOUSEKEEPING_INTERVAL).await;
        }
    }
}

const HOUSEKEEPING_INTERVAL: Duration = Duration::from_secs(1);

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

/// Whether an error says that there is no space.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Drops the first `bytes`, whole blocks, of a write's pieces.
fn advance(pieces: &mut Gather, bytes: usize) {
    let mut left = bytes;
    while left > 0 {
        let first = &pieces[0];
        if first.len() <= left {
            left -= first.len();
            pieces.remove(0);
        } else {
            let rest = first.slice(left..first.len());
            pieces[0] = rest;
            left = 0;
        }
    }
}
