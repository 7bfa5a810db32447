//! One partition as its shard sees it: what is wanted of it, what it is doing, what its source
//! said last.
//!
//! The state is a small machine without I/O. Two things decide it: the *mode* control set
//! ([`Mode`]) and the *condition* the partition got itself into. A partition is fetched when its
//! mode says replicate and its condition allows it.

mod reopening;
mod shown;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use net::backoff::Backoff;
use ring::Instant;
use storage::check::AppendError;
use storage::log::{Log, LogState};
use uuid::Uuid;

use crate::control::{Assign, FaultCode, Mode, PartitionKey};
use crate::fetcher::FetcherShared;
use crate::limits::{BACKFILL_BYTES, HIGH_WATERMARK_PATIENCE};
use crate::pool::missing_bytes;
use crate::repairing::RepairNote;

use self::reopening::Reopening;

/// One partition. Shared by the link, the fetcher that serves it and the commands that touch it.
pub struct Partition {
    /// Unique in the shard's life.
    pub uid: u64,
    pub key: PartitionKey,
    /// The id it is asked for by; `None`: it is asked for by name.
    pub topic_id: Option<Uuid>,
    pub assign: Assign,
    /// `None` until the source has said where a new partition begins.
    log: RefCell<Option<Rc<Log>>>,
    mode: RefCell<Mode>,
    condition: RefCell<Condition>,
    since_ms: Cell<i64>,
    backoff: RefCell<Backoff>,
    /// Failures of one kind in a row, for those that become a fault.
    repeated: Cell<u32>,
    /// Counts the owners: a fetcher that serves an older term has lost the partition.
    term: Cell<u64>,
    fetcher: RefCell<Option<Rc<FetcherShared>>>,
    /// Records are arriving right now, for the fetcher of this term.
    appending: Cell<Option<u64>>,
    /// The last batch has to be compared with the source before records are taken.
    unchecked: Cell<bool>,
    /// When the source was last asked for records of it that were seen to continue what is here.
    known_at: Cell<Option<Instant>>,
    /// The source said that its log parts from ours, so many times in a row, and it did not.
    pub contradicted: Cell<u32>,
    /// Since when the source says less than what it once called committed.
    lower_since: Cell<Option<Instant>>,
    /// Tries to open its log.
    pub opening: Cell<u32>,
    /// Its log failed, and is opened again.
    pub reopening: RefCell<Reopening>,
    /// How many are at its log: to cut it back, to mend it, to open it again.
    occupied: Cell<u32>,
    /// Far behind: it belongs on a backfill connection.
    pub backfill: Cell<bool>,
    pub leader: Cell<Option<Leader>>,
    source: Cell<Source>,
    /// Its log is there, and there was no room on the disk to open it.
    pub unopened: Cell<bool>,
    /// What became of the last try to mend its damage.
    pub repair: RefCell<RepairNote>,
    bytes_received: Cell<u64>,
    records_received: Cell<u64>,
}

/// Who leads a partition at the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leader {
    pub broker: i32,
    /// −1 when unknown.
    pub epoch: i32,
}

/// What the source said last.
#[derive(Clone, Copy, Debug, Default)]
struct Source {
    start: Option<i64>,
    end: Option<i64>,
    /// It was found to hold no records from the first of these offsets to the second.
    bare: Option<(i64, i64)>,
    caught_up: bool,
    caught_up_at: Option<Instant>,
}

impl Source {
    /// Where its records end for somebody who has all below `received`: at its end, or before a
    /// gap that its log ends with.
    fn records_end(&self, received: Option<i64>) -> Option<i64> {
        match (received.zip(self.end), self.bare) {
            (Some(here), Some(bare)) if here == bare => received,
            _ => self.end,
        }
    }
}

/// What a partition got itself into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Nothing is wrong; perhaps not compared yet.
    Fine,
    /// Waits for control to say who leads it; or for the next try with the same, who may only not
    /// have heard of it yet.
    NoLeader { reason: String, retry_at: Option<Instant> },
    /// Its connection is down and will be tried again.
    SourceAway { reason: String, retry_at: Instant },
    /// Waits for its next try.
    Waiting { reason: String, retry_at: Instant },
    /// Waits for a person.
    Faulted { code: FaultCode, reason: String },
}

/// Somebody is at a partition's log; nobody fetches it.
pub struct Occupied(Rc<Partition>);

impl Drop for Occupied {
    fn drop(&mut self) {
        self.0.occupied.set(self.0.occupied.get() - 1);
    }
}

impl Partition {
    pub fn new(uid: u64, assign: Assign, topic_id: Option<Uuid>, now_ms: i64) -> Rc<Self> {
        Rc::new(Self {
            uid,
            key: assign.key.clone(),
            topic_id,
            mode: RefCell::new(assign.mode.clone()),
            assign,
            log: RefCell::new(None),
            condition: RefCell::new(Condition::Fine),
            since_ms: Cell::new(now_ms),
            backoff: RefCell::default(),
            repeated: Cell::new(0),
            term: Cell::new(0),
            fetcher: RefCell::new(None),
            appending: Cell::new(None),
            unchecked: Cell::new(true),
            known_at: Cell::new(None),
            contradicted: Cell::new(0),
            lower_since: Cell::new(None),
            opening: Cell::new(0),
            reopening: RefCell::default(),
            occupied: Cell::new(0),
            backfill: Cell::new(false),
            leader: Cell::new(None),
            source: Cell::default(),
            unopened: Cell::new(false),
            repair: RefCell::default(),
            bytes_received: Cell::new(0),
            records_received: Cell::new(0),
        })
    }

    pub fn log(&self) -> Option<Rc<Log>> {
        self.log.borrow().clone()
    }

    pub fn set_log(&self, log: Option<Rc<Log>>) {
        *self.log.borrow_mut() = log;
    }

    /// Until it is dropped the partition is not fetched, whoever else comes and goes.
    pub fn occupy(self: &Rc<Self>) -> Occupied {
        self.occupied.set(self.occupied.get() + 1);
        Occupied(Rc::clone(self))
    }

    pub fn is_occupied(&self) -> bool {
        self.occupied.get() > 0
    }

    /// Whether its log failed, or could not be opened: it is tried again.
    pub fn wants_reopening(&self) -> bool {
        let failed = |log: Rc<Log>| matches!(log.state(), LogState::Failed(_));
        self.unopened.get() || self.log().is_some_and(failed)
    }

    /// Whether it is to be fetched now, if somebody leads it.
    pub fn wants_fetching(&self) -> bool {
        *self.mode.borrow() == Mode::Replicate
            && !self.is_occupied()
            && !self.unopened.get()
            && matches!(*self.condition.borrow(), Condition::Fine | Condition::SourceAway { .. })
            && self
                .log()
                .is_none_or(|log| matches!(log.state(), LogState::Healthy | LogState::DiskFull))
    }

    pub fn mode(&self) -> Mode {
        self.mode.borrow().clone()
    }

    /// Changes what is wanted. Sealed stays sealed.
    pub fn set_mode(&self, mode: Mode, now_ms: i64) {
        let mut current = self.mode.borrow_mut();
        if *current != mode && *current != Mode::Sealed {
            *current = mode;
            self.since_ms.set(now_ms);
            self.unchecked.set(true);
        }
    }

    pub fn condition(&self) -> Condition {
        self.condition.borrow().clone()
    }

    fn set_condition(&self, condition: Condition, now_ms: i64) {
        let mut current = self.condition.borrow_mut();
        if std::mem::discriminant(&*current) != std::mem::discriminant(&condition) {
            self.since_ms.set(now_ms);
        }
        *current = condition;
    }

    /// Something came, or all has come: trouble is over.
    pub fn succeeded(&self, now_ms: i64) {
        self.forget_failures();
        self.asked_anew(now_ms);
    }

    /// The next failure is the first of its kind.
    pub fn forget_failures(&self) {
        self.backoff.borrow_mut().succeeded();
        self.repeated.set(0);
    }

    /// It is asked for again; whether that ends the trouble is yet to be seen.
    pub fn asked_anew(&self, now_ms: i64) {
        if !matches!(*self.condition.borrow(), Condition::Fine | Condition::Faulted { .. }) {
            self.set_condition(Condition::Fine, now_ms);
        }
    }

    /// It is tried again after a pause that grows; returns how long that is.
    pub fn failed(&self, reason: String, random: u64, now_ms: i64) -> Duration {
        let pause = self.backoff.borrow_mut().failed(random);
        let retry_at = ring::now() + pause;
        self.set_condition(Condition::Waiting { reason, retry_at }, now_ms);
        pause
    }

    /// One more failure of a kind that is tried a few times and then becomes a fault.
    pub fn count_repeated(&self) -> u32 {
        self.repeated.set(self.repeated.get() + 1);
        self.repeated.get()
    }

    /// Nobody leads it.
    pub fn no_leader(&self, reason: String, now_ms: i64) {
        self.set_condition(Condition::NoLeader { reason, retry_at: None }, now_ms);
    }

    /// Its leader says that it is none. Control is asked, but may have nothing new to say: then the
    /// same one is tried again after a pause that grows.
    pub fn refused_by_leader(&self, reason: String, random: u64, now_ms: i64) {
        let pause = self.backoff.borrow_mut().failed(random);
        let retry_at = Some(ring::now() + pause);
        self.set_condition(Condition::NoLeader { reason, retry_at }, now_ms);
    }

    /// A person has to decide.
    pub fn fault(&self, code: FaultCode, reason: String, now_ms: i64) {
        self.set_condition(Condition::Faulted { code, reason }, now_ms);
    }

    /// Forgets trouble, so that it is tried at once.
    pub fn clear(&self, now_ms: i64) {
        self.backoff.borrow_mut().succeeded();
        self.repeated.set(0);
        self.unchecked.set(true);
        self.set_condition(Condition::Fine, now_ms);
    }

    /// Control has said who leads: a partition that waited for it is fine again.
    pub fn leader_known(&self, now_ms: i64) {
        if matches!(*self.condition.borrow(), Condition::NoLeader { .. }) {
            self.set_condition(Condition::Fine, now_ms);
        }
    }

    /// The time of the next try has come, or not yet. A clock that jumps changes nothing.
    pub fn retry_due(&self, now: Instant) {
        let due = match &*self.condition.borrow() {
            Condition::Waiting { retry_at, .. }
            | Condition::NoLeader { retry_at: Some(retry_at), .. } => *retry_at <= now,
            _ => false,
        };
        if due {
            self.set_condition(Condition::Fine, ring::wall_ms());
        }
    }

    pub fn unchecked(&self) -> bool {
        self.unchecked.get()
    }

    pub fn set_unchecked(&self, unchecked: bool) {
        self.unchecked.set(unchecked);
    }

    /// What was asked for at that time continues, or was compared with, what is here.
    pub fn known(&self, asked_at: Instant) {
        self.known_at.set(self.known_at.get().max(Some(asked_at)));
    }

    /// Whether it is known to be the source's as of that time, or later.
    pub fn is_known_since(&self, time: Instant) -> bool {
        self.known_at.get().is_some_and(|at| at >= time)
    }

    /// Hands the partition to a fetcher, or to none; the term of the new owner. Records that are
    /// just arriving for the old owner end here: what is complete of them stays.
    pub fn hand_to(&self, fetcher: Option<Rc<FetcherShared>>) -> u64 {
        if self.appending.get().is_some() {
            let _ = self.end_append();
        }
        let mut current = self.fetcher.borrow_mut();
        if let Some(old) = current.take() {
            self.freeze_lag(old.heard.get());
            self.lower_since.set(None);
        }
        *current = fetcher;
        self.term.set(self.term.get() + 1);
        self.term.get()
    }

    pub fn fetcher(&self) -> Option<Rc<FetcherShared>> {
        self.fetcher.borrow().clone()
    }

    pub fn term(&self) -> u64 {
        self.term.get()
    }

    /// Records begin to arrive for the fetcher of this term. Refused when the partition has another
    /// owner, or the records of an earlier owner have not ended.
    pub fn begin_append(&self, term: u64) -> bool {
        let free = term == self.term.get() && self.appending.get().is_none();
        if free {
            self.appending.set(Some(term));
        }
        free
    }

    /// Whether records that arrive for this term are still wanted.
    pub fn appends_for(&self, term: u64) -> bool {
        self.appending.get() == Some(term) && self.term.get() == term
    }

    /// The records of the current owner have ended.
    ///
    /// # Errors
    /// What the log says of their end.
    pub fn end_append(&self) -> Result<(), AppendError> {
        self.appending.set(None);
        self.log().map_or(Ok(()), |log| log.end())
    }

    /// Counts what was appended: offsets passed and bytes received.
    pub fn count(&self, records: u64, bytes: u64) {
        self.records_received.set(self.records_received.get() + records);
        self.bytes_received.set(self.bytes_received.get() + bytes);
    }

    /// Offsets passed since start.
    pub fn records(&self) -> u64 {
        self.records_received.get()
    }

    /// Bytes received since start.
    pub fn bytes(&self) -> u64 {
        self.bytes_received.get()
    }

    /// Whether it lacks more than what a few answers bring. `usual` is the size of a record where
    /// it has not seen any of its own.
    pub fn is_far_behind(&self, usual: Option<u64>) -> bool {
        self.missing_bytes(usual) >= BACKFILL_BYTES
    }

    /// How much it lacks, as far as can be known.
    pub fn missing_bytes(&self, usual: Option<u64>) -> u64 {
        let own = self.bytes().checked_div(self.records());
        match (own.or(usual), self.source.get().end, self.received()) {
            (Some(bytes), Some(end), Some(ours)) => missing_bytes(end.saturating_sub(ours), bytes),
            _ => 0,
        }
    }

    /// Whether we have all the source had when it last answered.
    pub fn is_caught_up(&self) -> bool {
        self.source.get().caught_up
    }

    /// The whole connection is down; shown, but the partition stays with its fetcher, which tries
    /// again by itself.
    pub fn source_away(&self, reason: String, retry_at: Instant, now_ms: i64) {
        if matches!(*self.condition.borrow(), Condition::Fine | Condition::SourceAway { .. }) {
            self.set_condition(Condition::SourceAway { reason, retry_at }, now_ms);
        }
    }

    /// Where the source's log ended when that was last heard.
    pub fn source_end(&self) -> Option<i64> {
        self.source.get().end
    }

    /// Where it began.
    pub fn source_start(&self) -> Option<i64> {
        self.source.get().start
    }

    /// Notes what an answer said of the source's log. One that contradicts itself says nothing.
    pub fn heard(&self, start: i64, end: i64) {
        if start >= 0 && end >= 0 && start > end {
            return;
        }
        let mut source = self.source.get();
        source.start = (start >= 0).then_some(start).or(source.start);
        source.end = (end >= 0).then_some(end).or(source.end);
        self.source.set(source);
        let lower = end >= 0 && self.log().is_some_and(|log| end < log.high_watermark());
        match (lower, self.lower_since.get()) {
            (true, None) => self.lower_since.set(Some(ring::now())),
            (false, Some(_)) => self.lower_since.set(None),
            _ => {}
        }
    }

    /// A leader may say less for a moment after an election; one that goes on saying so never had
    /// what was said before. Then the high watermark follows it down, as a follower's does, but
    /// never below what we have: that was committed when it came.
    pub fn follow_lower_end(&self, now: Instant) {
        let Some(since) = self.lower_since.get() else { return };
        // Silence on a connection that is down says nothing.
        let said = self.fetcher().is_some_and(|f| f.connected.get() && f.heard.get() > Some(since));
        if said && now - since >= HIGH_WATERMARK_PATIENCE {
            self.lower_since.set(None);
            if let (Some(log), Some(end)) = (self.log(), self.source.get().end) {
                log.lower_high_watermark(end);
            }
        }
    }

    /// Whether the source's log, as was last heard, begins within what is visible here. One that
    /// begins beyond our end is a gap, and not stepped over so.
    pub fn begins_later(&self) -> bool {
        let (Some(log), Some(start)) = (self.log(), self.source.get().start) else { return false };
        let positions = log.positions();
        positions.log_start_offset < start && start <= positions.received.0.offset
    }

    /// Follows the source's log start, which it has told twice: as last heard, and as it said when
    /// it was asked for it.
    pub fn follow_start(&self, asked: i64) {
        if let (true, Some(log), Some(start)) =
            (self.begins_later(), self.log(), self.source.get().start)
        {
            log.advance_start(start.min(asked));
        }
    }

    /// Notes whether we have all the source had when an answer was sent.
    pub fn note_lag(&self, heard: Instant) {
        let mut source = self.source.get();
        let received = self.received();
        source.caught_up = match (received, source.records_end(received)) {
            (Some(ours), Some(end)) => ours >= end,
            _ => false,
        };
        if source.caught_up {
            source.caught_up_at = Some(heard);
        }
        self.source.set(source);
    }

    /// The source has no records between our end and its own: its log ends with a gap.
    pub fn note_bare(&self, heard: Instant) {
        let mut source = self.source.get();
        source.bare = self.received().zip(source.end);
        self.source.set(source);
        self.note_lag(heard);
    }

    fn received(&self) -> Option<i64> {
        self.log().map(|log| log.positions().received.0.offset)
    }

    fn freeze_lag(&self, heard: Option<Instant>) {
        let mut source = self.source.get();
        if source.caught_up {
            source.caught_up_at = source.caught_up_at.max(heard);
            source.caught_up = false;
        }
        self.source.set(source);
    }
}
