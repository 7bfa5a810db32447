//! One connection to one broker and the partitions it serves: the replicate loop.
//!
//! A fetcher holds no connection while it has no partitions. With partitions it connects, finds
//! out where new ones begin, compares the others with the source ([`crate::check`]), and then
//! fetches: ask, receive into the logs, settle what the answer said, ask again.
//!
//! A partition belongs to one fetcher at a time, by *term*. Whoever takes it away raises the term:
//! from then on this fetcher skips its records, whatever is still in flight.

mod below_end;
mod checking;
mod in_touch;
mod settling;
mod shared;
mod silence;
mod starts;

pub use checking::list_offsets;
use shared::Change;
pub use shared::{FetcherShared, Kind};

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use net::backoff::Backoff;
use net::fetch::{FetchLimits, FetchSession, TopicName, Wanted};
use net::{Api, Connection, NetError};
use ring::Instant;
use storage::log::LogState;
use uuid::Uuid;

use self::below_end::BelowEnd;
use crate::budget::Reserved;
use crate::limits::{
    BACKFILL_ANSWER_TARGET, FETCH_WAIT_MS, FRUITLESS_ANSWER_MAX, FRUITLESS_ANSWERS_FREE,
    FRUITLESS_PAUSE, FRUITLESS_PAUSE_MAX, IDLE_PAUSE, LARGE_ANSWER_BYTES, OUT_OF_TOUCH_AFTER,
    PARTITION_BYTES_MAX, REQUEST_LIMIT, TAIL_ANSWER_TARGET, TAIL_INTERVAL,
};
use crate::link::Link;
use crate::partition::Partition;
use crate::pool::FetchSize;
use crate::sink::{Member, Outcome, Sink, Stage};

/// The task's own state.
pub struct Fetcher {
    link: Rc<Link>,
    shared: Rc<FetcherShared>,
    /// By the session's keys.
    members: Vec<Option<Member>>,
    free_keys: Vec<u32>,
    by_uid: BTreeMap<u64, u32>,
    session: FetchSession,
    /// Members not yet asked for on this connection.
    fresh: Vec<u32>,
    /// Members whose log takes nothing now.
    blocked: Vec<u32>,
    /// Members whose offset was out of the source's range.
    out_of_range: Vec<u32>,
    /// Members that answers were silent about long enough, and from where they were asked for.
    silent: Vec<(u32, i64)>,
    /// Members of which the source may have deleted records, and when it was last asked.
    started: Vec<u32>,
    starts_asked_at: Option<Instant>,
    /// Members below the source's end, and how many answers passed them over.
    below_end: BelowEnd,
    outcome: Outcome,
    backoff: Backoff,
    /// Answers in a row that came at once and brought nothing.
    fruitless: u32,
    size: FetchSize,
    /// Since when its connection is up, and when the last request was sent over it.
    connected_at: Instant,
    asked_at: Instant,
    answered_at: Instant,
    /// After a long pause all last batches are being compared, until then at most.
    recheck_until: Option<Instant>,
    /// The last placement of the link that was followed.
    placement: u64,
}

impl Drop for Fetcher {
    /// Nobody follows changes any more: a partition among them points back to where they stand.
    fn drop(&mut self) {
        self.shared.changes.take();
    }
}

impl Fetcher {
    pub fn new(link: Rc<Link>, shared: Rc<FetcherShared>) -> Self {
        Self {
            link,
            shared,
            members: Vec::new(),
            free_keys: Vec::new(),
            by_uid: BTreeMap::new(),
            session: FetchSession::new(),
            fresh: Vec::new(),
            blocked: Vec::new(),
            out_of_range: Vec::new(),
            silent: Vec::new(),
            started: Vec::new(),
            starts_asked_at: None,
            below_end: BelowEnd::default(),
            outcome: Outcome::default(),
            backoff: Backoff::new(),
            fruitless: 0,
            size: FetchSize::default(),
            connected_at: ring::now(),
            asked_at: ring::now(),
            answered_at: ring::now(),
            recheck_until: None,
            placement: 0,
        }
    }

    /// Runs until it is dropped.
    pub async fn run(mut self) {
        loop {
            self.hand_over();
            self.apply_changes();
            if self.by_uid.is_empty() {
                self.forget_keys();
                self.shared.changed().await;
                continue;
            }
            let served = self.serve_connection().await;
            self.shared.connected.set(false);
            self.shared.socket.set(None);
            if let Err(error) = served {
                self.connection_failed(&error).await;
            }
        }
    }

    /// Connects and serves until there is nothing left to fetch (`Ok`) or the connection fails.
    async fn serve_connection(&mut self) -> Result<(), NetError> {
        let mut connection = self.link.connect(self.shared.broker).await?;
        self.connected_at = ring::now();
        (self.answered_at, self.recheck_until) = (self.connected_at, None);
        self.shared.connected.set(true);
        self.shared.socket.set(Some(connection.watch()));
        self.session.moved();
        self.size = FetchSize::default();
        self.start_over();
        let _sharer = self.link.share_memory();
        loop {
            self.hand_over();
            self.apply_changes();
            if self.by_uid.is_empty() {
                return Ok(());
            }
            self.check_fresh(&mut connection).await?;
            self.classify_out_of_range(&mut connection).await?;
            self.settle_silent(&mut connection).await?;
            self.follow_starts(&mut connection).await?;
            self.unblock(&connection);
            if self.session.wanted_count() == 0 {
                let _ = ring::timeout(IDLE_PAUSE, self.shared.changed()).await;
                continue;
            }
            self.wait_for_rate(&mut connection).await?;
            if !self.fresh.is_empty() || self.session.wanted_count() == 0 {
                continue;
            }
            let reserved = self.reserve().await;
            if self.is_out_of_touch(&connection) {
                self.recheck_until = Some(ring::now() + OUT_OF_TOUCH_AFTER);
                self.start_over();
                continue;
            }
            let rechecked = self.is_rechecked();
            self.fetch(&mut connection, reserved).await?;
            if rechecked {
                self.recheck_until = None;
            }
        }
    }

    /// Memory for the next answer.
    async fn reserve(&self) -> Reserved {
        self.shared.starved.set(Some(ring::now()));
        let bytes = match self.shared.kind {
            Kind::Tail => self.size.bytes(),
            Kind::Backfill(_) => self.size.bytes_of_many(ring::random()),
        };
        let reserved = self.link.reserve(bytes).await;
        self.shared.starved.set(None);
        reserved
    }

    /// One request and its answer.
    async fn fetch(
        &mut self,
        connection: &mut Connection,
        reserved: Reserved,
    ) -> Result<(), NetError> {
        let allowed = self.link.answer_bytes_max(self.shared.kind);
        let asked = reserved.bytes().min(usize::try_from(allowed).unwrap_or(usize::MAX));
        let limits = FetchLimits {
            max_wait_ms: FETCH_WAIT_MS,
            min_bytes: 1,
            max_bytes: i32::try_from(asked).unwrap_or(i32::MAX),
        };
        let waited_before = connection.counters().waiting;
        let begun = ring::now();
        self.asked_at = begun;
        self.outcome.clear();
        let answer = {
            let start = self.link.settings().start;
            let mut sink = Sink::new(&mut self.members, &mut self.outcome, start);
            connection.fetch(&mut self.session, &limits, &mut sink).await
        };
        drop(reserved);
        self.answered_at = ring::now();
        let waited = connection.counters().waiting.saturating_sub(waited_before);
        let receiving = (self.answered_at - begun).saturating_sub(waited);
        let progress = !self.outcome.moved.is_empty() || !self.outcome.compared.is_empty();
        if let Ok(answer) = &answer {
            self.find_silent(answer, asked, self.answered_at - begun);
        }
        self.settle(answer.as_ref().ok());
        let answer = answer?;
        let target = match self.shared.kind {
            Kind::Tail => TAIL_ANSWER_TARGET,
            Kind::Backfill(_) => BACKFILL_ANSWER_TARGET,
        };
        self.size.answered(asked, answer.records_bytes, receiving, target);
        let spent = ring::now() - begun;
        let small = answer.records_bytes < LARGE_ANSWER_BYTES.min(asked as u64 / 2);
        let gather = match self.shared.kind {
            Kind::Tail if small => TAIL_INTERVAL.saturating_sub(spent),
            _ => Duration::ZERO,
        };
        let pace = self.pace(progress, spent).max(gather);
        let pause = answer.throttle.min(REQUEST_LIMIT).max(pace);
        if !pause.is_zero() {
            ring::sleep(pause).await;
        }
        Ok(())
    }

    /// A source should hold a fetch that finds nothing. One that answers at once, again and again,
    /// is asked less and less often; it must not keep a core busy.
    fn pace(&mut self, progress: bool, spent: Duration) -> Duration {
        if progress || spent > FRUITLESS_ANSWER_MAX {
            self.fruitless = 0;
            return Duration::ZERO;
        }
        self.fruitless = self.fruitless.saturating_add(1);
        let excess = self.fruitless.saturating_sub(FRUITLESS_ANSWERS_FREE);
        (FRUITLESS_PAUSE * excess).min(FRUITLESS_PAUSE_MAX)
    }

    /// Partitions that belong on another connection by now go there: between two answers, so that
    /// nothing is received in vain.
    fn hand_over(&mut self) {
        let placement = self.link.placement();
        if placement == self.placement {
            return;
        }
        self.placement = placement;
        for key in self.by_uid.values().copied() {
            if let Some(partition) = self.owned(key) {
                self.link.place(&partition);
            }
        }
    }

    /// Nobody is left: tables that had room for thousands go.
    fn forget_keys(&mut self) {
        assert!(self.by_uid.is_empty(), "keys in use are not forgotten");
        (self.members, self.free_keys) = Default::default();
        (self.fresh, self.blocked) = Default::default();
        (self.out_of_range, self.silent) = Default::default();
        self.started = Vec::new();
        self.below_end.clear();
        self.session = FetchSession::new();
        self.outcome = Outcome::default();
    }

    /// On a fresh connection every member is asked for anew.
    fn start_over(&mut self) {
        self.fresh.clear();
        self.blocked.clear();
        self.out_of_range.clear();
        self.silent.clear();
        self.started.clear();
        self.below_end.clear();
        for key in self.by_uid.values() {
            self.session.unwant(*key);
            self.fresh.push(*key);
        }
        self.fresh.sort_unstable();
    }

    fn apply_changes(&mut self) {
        let changes = std::mem::take(&mut *self.shared.changes.borrow_mut());
        for change in changes {
            match change {
                Change::Add(partition, term) if partition.term() == term => {
                    self.add_member(partition, term);
                }
                Change::Add(..) => {} // it has gone elsewhere meanwhile
                Change::Remove(uid) => self.remove_member(uid),
            }
        }
    }

    fn add_member(&mut self, partition: Rc<Partition>, term: u64) {
        self.remove_member(partition.uid);
        let key = self.free_keys.pop().unwrap_or_else(|| {
            self.members.push(None);
            u32::try_from(self.members.len() - 1).expect("fewer than 2^32 partitions")
        });
        let id = partition.topic_id.unwrap_or(Uuid::nil());
        let name = TopicName { name: &partition.key.topic, id };
        self.session.add(key, name, partition.key.partition);
        self.by_uid.insert(partition.uid, key);
        let stage = Stage::Appending;
        self.members[key as usize] = Some(Member { partition, term, stage, asked: -1 });
        self.fresh.push(key);
    }

    fn remove_member(&mut self, uid: u64) {
        if let Some(key) = self.by_uid.remove(&uid) {
            self.session.remove(key);
            self.members[key as usize] = None;
            self.free_keys.push(key);
            self.below_end.forget(key);
            self.silent.retain(|(silent, _)| *silent != key);
            let Self { fresh, blocked, out_of_range, started, .. } = self;
            for list in [fresh, blocked, out_of_range, started] {
                list.retain(|other| *other != key);
            }
        }
    }

    fn member(&self, key: u32) -> Option<&Member> {
        self.members.get(key as usize)?.as_ref()
    }

    /// The partition of a key, if it is still this fetcher's: what an answer says of one that has
    /// gone elsewhere meanwhile is no longer of interest.
    fn owned(&self, key: u32) -> Option<Rc<Partition>> {
        let member = self.member(key)?;
        (member.partition.term() == member.term).then(|| Rc::clone(&member.partition))
    }

    /// Asks for a member's records from its end on.
    fn want(&mut self, key: u32) {
        let Some(partition) = self.owned(key) else { return };
        let Some(log) = partition.log() else { return };
        if log.state() == LogState::DiskFull {
            // Its bytes stay in memory, which is everybody's: no more of them.
            self.session.unwant(key);
            self.blocked.push(key);
            return;
        }
        let positions = log.positions();
        // Below the size of a batch, a source serves one partition per answer (KIP-74).
        let batch_bytes = log.last_batch().map_or(0, |last| last.bytes.next_power_of_two());
        let batch_bytes = i32::try_from(batch_bytes).unwrap_or(i32::MAX);
        let bytes_max = match self.shared.kind {
            Kind::Tail => PARTITION_BYTES_MAX,
            Kind::Backfill(_) => self.size.bytes_of_each(self.session.wanted_count()),
        };
        let wanted = Wanted {
            fetch_offset: positions.received.0.offset,
            last_fetched_epoch: positions.last_epoch.unwrap_or(-1),
            leader_epoch: partition.leader.get().map_or(-1, |leader| leader.epoch),
            max_bytes: bytes_max.max(batch_bytes),
        };
        if let Some(Some(member)) = self.members.get_mut(key as usize) {
            member.asked = wanted.fetch_offset;
        }
        self.session.want(key, wanted);
    }

    /// Whether topics are asked for by their ids.
    fn asks_by_id(&self, connection: &Connection) -> bool {
        let newest = connection.versions().newest(Api::Fetch);
        newest.is_some_and(|newest| self.session.asks_by_id(newest))
    }

    /// Members whose log takes records again are asked for again. By name that may be for those of
    /// another topic by now.
    fn unblock(&mut self, connection: &Connection) {
        let by_id = self.asks_by_id(connection);
        for key in std::mem::take(&mut self.blocked) {
            let Some(member) = self.member(key) else { continue };
            match member.partition.log() {
                Some(log) if log.state() == LogState::Healthy && by_id => self.want(key),
                Some(log) if log.state() == LogState::Healthy => self.fresh.push(key),
                _ => self.blocked.push(key),
            }
        }
        self.fresh.sort_unstable();
        self.fresh.dedup();
        if !self.blocked.is_empty() {
            self.block_others();
        }
    }

    /// A log may have become full while its partition, at its end, was asked for and silent.
    fn block_others(&mut self) {
        let is_full = |key: &u32| {
            let member = self.member(*key)?;
            let appending = matches!(member.stage, Stage::Appending);
            let full = member.partition.log()?.state() == LogState::DiskFull;
            (appending && full && self.session.wanted(*key).is_some()).then_some(*key)
        };
        let full: Vec<u32> = self.by_uid.values().filter_map(is_full).collect();
        full.into_iter().for_each(|key| self.want(key));
    }

    /// The connection is gone: everything waits, and is told why.
    async fn connection_failed(&mut self, error: &NetError) {
        self.link.count_error("connection");
        self.link.metadata_stale();
        let pause = self.backoff.failed(ring::random());
        let now_ms = ring::wall_ms();
        let retry_at = ring::now() + pause;
        for key in self.by_uid.values() {
            if let Some(Some(member)) = self.members.get(*key as usize)
                && member.partition.term() == member.term
            {
                member.partition.source_away(error.to_string(), retry_at, now_ms);
            }
        }
        // A change (another leader, another address) cuts the pause short.
        let _ = ring::timeout(pause, self.shared.changed()).await;
    }
}
