//! A data directory as one shard sees it: its writes, its background work, its flush cycle
//! ([`flush`]), and how far receiving may run ahead of its writes ([`pace`]).
//!
//! Nothing here belongs to one partition, so an idle partition costs no task and no timer: logs
//! with something to write stand in one list, logs with something to prepare in another, and
//! waiting bytes in a queue of deadlines that is in order because every delay is the same.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ring::{BLOCK, Gather, Instant, Share, spawn};

use crate::boot::{Directory, dead_folders};
use crate::checkpoint::Entry;
use crate::limits::{
    BACKGROUND_WORKERS, INDEX_ENTRIES_IN_ALL, INDEX_ENTRIES_PENDING, INDEX_ENTRIES_PENDING_MIN,
    SPACE_BYTES_MAX, SPACE_BYTES_MIN, WRITE_DELAY_US, WRITES_IN_FLIGHT_MAX,
};
use crate::log::{Log, LogError, LogState};
use crate::names::LogId;
use crate::queue::pop_if;
use crate::segment::Write;
use crate::signal::Signal;
use crate::work::at;

pub mod flush;
mod pace;

/// A data directory.
pub struct Volume {
    directory: Arc<Directory>,
    shard: u16,
    flush_interval: Duration,
    logs: RefCell<BTreeMap<LogId, Rc<Log>>>,
    /// The last entries of logs that were open.
    closed: RefCell<BTreeMap<LogId, Entry>>,
    /// Logs that are about to be made again: what older checkpoints say of them is over.
    gone: RefCell<BTreeMap<LogId, u64>>,
    ready: RefCell<VecDeque<Rc<Log>>>,
    deadlines: RefCell<VecDeque<(Instant, Rc<Log>)>>,
    deadline_set: Signal,
    in_flight: Cell<usize>,
    pace: pace::Pace,
    work: RefCell<VecDeque<Rc<Log>>>,
    work_added: Signal,
    dirty: RefCell<Vec<Rc<Log>>>,
    flush_wanted: Signal,
    flush_urgent: Cell<bool>,
    cycles_begun: Cell<u64>,
    cycles_ended: Cell<u64>,
    /// A cycle has ended, or there will be none any more.
    flushes: Signal,
    /// Flushes whose checkpoint found no room.
    missed: Cell<u64>,
    /// The last checkpoint found no room.
    unsaved: Cell<bool>,
    sequence: Cell<u64>,
    durable_slot: Cell<u64>,
    /// It is on the device that there are slots.
    begun: Cell<bool>,
    space_step_max: Cell<u64>,
    index_entries_pending: Cell<usize>,
    full: Cell<bool>,
    stopping: Cell<bool>,
    /// The store is gone.
    let_go: Cell<bool>,
    /// Folders that were deleted.
    dead: Cell<u64>,
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
    pub(crate) fn start(
        directory: &Arc<Directory>,
        shard: u16,
        flush_interval: Duration,
    ) -> Rc<Volume> {
        let volume = Rc::new(Volume {
            directory: Arc::clone(directory),
            shard,
            flush_interval,
            logs: RefCell::default(),
            closed: RefCell::default(),
            gone: RefCell::default(),
            ready: RefCell::default(),
            deadlines: RefCell::default(),
            deadline_set: Signal::default(),
            in_flight: Cell::new(0),
            pace: pace::Pace::default(),
            work: RefCell::default(),
            work_added: Signal::default(),
            dirty: RefCell::default(),
            flush_wanted: Signal::default(),
            flush_urgent: Cell::new(false),
            cycles_begun: Cell::new(0),
            cycles_ended: Cell::new(0),
            flushes: Signal::default(),
            missed: Cell::new(0),
            unsaved: Cell::new(false),
            sequence: Cell::new(0),
            durable_slot: Cell::new(1),
            begun: Cell::new(false),
            space_step_max: Cell::new(SPACE_BYTES_MAX),
            index_entries_pending: Cell::new(INDEX_ENTRIES_PENDING),
            // Without room for a few bytes at the start there is none for records.
            full: Cell::new(directory.is_base_missing()),
            stopping: Cell::new(false),
            let_go: Cell::new(false),
            dead: Cell::new(0),
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
        &self.directory.path
    }

    /// The largest step of prepared space at present.
    pub fn space_step_max(&self) -> u64 {
        self.space_step_max.get()
    }

    /// How many index entries each log may hold in memory at present.
    pub fn index_entries_pending(&self) -> usize {
        self.index_entries_pending.get()
    }

    /// Whether the last try to take space failed for want of it.
    pub fn full(&self) -> bool {
        self.full.get()
    }

    /// Notes that the disk is full, or no more.
    pub fn set_full(&self, full: bool) {
        self.full.set(full);
    }

    /// Whether there was no room for the last checkpoint: nothing counts as flushed until there is.
    pub fn unsaved(&self) -> bool {
        self.unsaved.get()
    }

    /// What was done so far.
    pub fn counters(&self) -> Counters {
        *self.counters.borrow()
    }

    /// Flushes that failed so far.
    pub fn flush_failures(&self) -> u64 {
        self.counters.borrow().flush_failures
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
        self.gone.borrow_mut().remove(log.id());
        self.logs.borrow_mut().insert(log.id().clone(), Rc::clone(log));
        self.divide_index_entries();
    }

    /// What each log may hold of the index entries of all.
    fn divide_index_entries(&self) {
        let each = INDEX_ENTRIES_IN_ALL / self.logs.borrow().len().max(1);
        let each = each.clamp(INDEX_ENTRIES_PENDING_MIN, INDEX_ENTRIES_PENDING);
        self.index_entries_pending.set(each);
    }

    /// A log was closed, with this entry, or deleted: whoever claims it next may have it.
    pub fn forget(&self, log: &Log, entry: Option<Entry>) {
        let is_it = |other: &Rc<Log>| other.turn() == log.turn();
        if !self.log(log.id()).is_some_and(|other| is_it(&other)) {
            return; // it was opened again since
        }
        self.logs.borrow_mut().remove(log.id());
        if let Some(entry) = entry {
            // Until the next owner's word is durable, this one is needed.
            self.closed.borrow_mut().insert(log.id().clone(), entry);
        }
        self.directory.ledger.give_back(log.id(), log.turn(), entry);
    }

    /// Where a folder goes that is being deleted: a name that no other has.
    pub async fn dead_folder(&self) -> Result<PathBuf, LogError> {
        let folder = dead_folders(self.path());
        at(&folder, ring::fs::create_dir_all(&folder).await)?;
        let count = self.dead.get() + 1;
        self.dead.set(count);
        Ok(folder.join(format!("{}-{}-{count}", self.directory.boot, self.shard)))
    }

    /// Makes it durable that what older checkpoints say of this log is over, for it is about to be
    /// made again. False if that failed.
    pub async fn forget_deleted(&self, id: &LogId, turn: u64) -> bool {
        self.gone.borrow_mut().insert(id.clone(), turn);
        self.flush().await
    }

    /// Makes it durable where a log ends that is about to be cut there. Whoever had it in this run
    /// may have lowered its end, and no checkpoint may say so: a crash would then find files that
    /// are shorter than a checkpoint claims, which is what damage looks like. `entry` has the turn
    /// of the new owner.
    ///
    /// # Errors
    /// There is no room to say so, or the flush failed. Nothing may be cut then.
    pub(crate) async fn make_durable(&self, id: &LogId, entry: Entry) -> Result<(), LogError> {
        let failures = self.flush_failures();
        self.closed.borrow_mut().insert(id.clone(), entry);
        if self.flush().await {
            return Ok(());
        }
        let state = match self.flush_failures() == failures {
            true => LogState::DiskFull,
            false => LogState::Failed("where it is to be cut could not be made durable".to_owned()),
        };
        Err(LogError::State(state))
    }

    /// Whether the checkpoints of the runs before are on the device as they were read.
    pub(crate) fn has_base(&self) -> bool {
        !self.directory.is_base_missing()
    }

    /// The store is gone: nothing of it is held here any more, nor listed by a task that is still
    /// at work for it.
    pub(crate) fn let_go(&self) {
        self.let_go.set(true);
        let lists = (self.ready.take(), self.work.take(), self.dirty.take());
        drop((self.logs.take(), self.deadlines.take(), lists));
    }

    /// How many logs are open.
    pub fn log_count(&self) -> usize {
        self.logs.borrow().len()
    }

    /// Something changed in a log: look whether it has something to write or to prepare.
    pub fn touch(self: &Rc<Self>, log: &Rc<Log>) {
        if self.let_go.get() {
            return;
        }
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
        } else if !self.let_go.get() && !log.flags.working.replace(true) {
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
        if !self.let_go.get() && !log.flags.timed.replace(true) {
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
        if !self.let_go.get() && !log.flags.dirty.replace(true) {
            let mut dirty = self.dirty.borrow_mut();
            dirty.push(Rc::clone(log));
            if dirty.len() == 1 {
                self.flush_wanted.notify();
            }
        }
    }

    /// Waits while too much of what came before is on its way to the device.
    pub(crate) async fn keep_pace(&self, log: &Log) {
        self.pace.keep(|| log.unsent_bytes()).await;
    }

    /// Starts writes until nothing is due or enough are in flight.
    fn pump(self: &Rc<Self>) {
        while self.in_flight.get() < WRITES_IN_FLIGHT_MAX {
            let Some(log) = self.next_ready() else { return };
            log.flags.queued.set(false);
            while let Some(write) = log.next_write() {
                self.in_flight.set(self.in_flight.get() + 1);
                self.pace.begin(write.bytes());
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
        let (segment, flight, bytes) = (write.segment, write.flight, write.bytes());
        let result = self.write_whole(&log, write).await;
        self.in_flight.set(self.in_flight.get() - 1);
        self.pace.end(bytes);
        if result.is_ok() {
            let mut counters = self.counters.borrow_mut();
            counters.writes += 1;
            counters.write_bytes += bytes;
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
                    if self.stopping.get() || !log.is_open() {
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

    /// Now and then: how large steps of space may be, whether a full disk has room again, whose
    /// undo window has passed.
    async fn keep_house(self: Rc<Self>) {
        while !self.stopping.get() {
            let logs = self.logs.borrow().len().max(1);
            self.divide_index_entries();
            if let Ok(free) = ring::fs::free_bytes(self.path()).await {
                let logs = logs as u64;
                let step = (free / 16 / logs).clamp(SPACE_BYTES_MIN, SPACE_BYTES_MAX);
                self.space_step_max.set(step);
                if free > step + SPACE_BYTES_MIN {
                    self.set_full(false);
                }
            }
            for log in self.logs() {
                log.retire_due();
                if log.wants_housekeeping() {
                    log.set_tail_due();
                    self.look_again(&log);
                }
            }
            ring::sleep(HOUSEKEEPING_INTERVAL).await;
        }
    }
}

const HOUSEKEEPING_INTERVAL: Duration = Duration::from_secs(1);

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
