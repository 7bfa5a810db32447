//! Incremental fetch sessions (KIP-227), as a broker keeps them.
//!
//! A bounded cache per broker. A full fetch makes a session when there is room, or when a stale
//! one may go; an incremental fetch names it, changes its partitions and raises its epoch. What
//! was answered with data or news moves to the end, so that every partition gets its turn.

use crate::record_batch::Random;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use uuid::Uuid;

const INITIAL_EPOCH: i32 = 0;
const FINAL_EPOCH: i32 = -1;
const NO_SESSION: i32 = 0;

/// How a request names a topic: by name up to Fetch v12, by id from v13.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum TopicKey {
    Name(Arc<str>),
    Id(Uuid),
}

/// What is asked of one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub topic: TopicKey,
    pub partition: i32,
    pub fetch_offset: i64,
    pub current_leader_epoch: i32,
    pub last_fetched_epoch: i32,
    pub bytes_max: i32,
    /// Where the topic was found last time.
    pub slot: Option<usize>,
    /// What the session was told last, −1 before the first answer.
    pub told_high_watermark: i64,
    pub told_log_start: i64,
}

/// What a Fetch request says about its session.
#[derive(Clone, Debug)]
pub(crate) struct SessionRequest {
    pub session_id: i32,
    pub epoch: i32,
    pub by_topic_id: bool,
    pub wanted: Vec<Wanted>,
    pub forgotten: Vec<(TopicKey, i32)>,
}

/// How a Fetch request is to be answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FetchContext {
    /// Everything asked for, and no session.
    Sessionless(Vec<Wanted>),
    /// Everything asked for, and a new session if there is room.
    Full(Vec<Wanted>),
    /// What has news, out of all the session's partitions.
    Incremental { session_id: i32, next_epoch: i32, wanted: Vec<Wanted> },
    /// Nothing but this error.
    Error(SessionError),
}

/// Why a session cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SessionError {
    IdNotFound,
    InvalidEpoch,
    TopicIdError,
}

/// The epoch after this one: sessions begin at 1 and go round below zero.
pub(crate) fn next_epoch(epoch: i32) -> i32 {
    match epoch {
        FINAL_EPOCH => FINAL_EPOCH,
        i32::MAX => 1,
        epoch => epoch + 1,
    }
}

/// The sessions of one broker.
#[derive(Debug)]
pub(crate) struct SessionCache {
    sessions: HashMap<i32, Session>,
    sessions_max: usize,
    evict_after: Duration,
    random: Random,
}

#[derive(Debug)]
struct Session {
    epoch: i32,
    by_topic_id: bool,
    created: Instant,
    last_used: Instant,
    partitions: PartitionList,
}

impl SessionCache {
    pub fn new(sessions_max: usize, evict_after: Duration, seed: u64) -> SessionCache {
        let random = Random(seed);
        SessionCache { sessions: HashMap::new(), sessions_max, evict_after, random }
    }

    /// Forgets every session, as a restarted broker does.
    pub fn clear(&mut self) {
        self.sessions.clear();
    }

    pub fn len(&self) -> usize {
        self.sessions.len()
    }

    /// Finds out how a request is to be answered, and takes its changes into its session.
    pub fn open(&mut self, request: SessionRequest, now: Instant) -> FetchContext {
        if request.epoch == INITIAL_EPOCH || request.epoch == FINAL_EPOCH {
            self.sessions.remove(&request.session_id);
            return match request.epoch {
                FINAL_EPOCH => FetchContext::Sessionless(request.wanted),
                _ => FetchContext::Full(request.wanted),
            };
        }
        let Some(session) = self.sessions.get_mut(&request.session_id) else {
            return FetchContext::Error(SessionError::IdNotFound);
        };
        if session.epoch != request.epoch {
            return FetchContext::Error(SessionError::InvalidEpoch);
        }
        if session.by_topic_id != request.by_topic_id {
            return FetchContext::Error(SessionError::TopicIdError);
        }
        for wanted in &request.wanted {
            session.partitions.want(wanted.clone());
        }
        for (topic, partition) in request.forgotten {
            session.partitions.remove(&(topic, partition));
        }
        if session.partitions.is_empty() {
            self.sessions.remove(&request.session_id);
            return FetchContext::Sessionless(request.wanted);
        }
        session.last_used = now;
        session.epoch = next_epoch(session.epoch);
        FetchContext::Incremental {
            session_id: request.session_id,
            next_epoch: session.epoch,
            wanted: session.partitions.in_order(),
        }
    }

    /// Makes a session of a full fetch's partitions with what they were told. 0 if the cache has
    /// no room.
    pub fn create(&mut self, told: Vec<Wanted>, by_topic_id: bool, now: Instant) -> i32 {
        if self.sessions.len() >= self.sessions_max && !self.evict(told.len(), now) {
            return NO_SESSION;
        }
        let id = loop {
            let id = (self.random.next() >> 33) as i32;
            if id != NO_SESSION && !self.sessions.contains_key(&id) {
                break id;
            }
        };
        let mut partitions = PartitionList::default();
        for wanted in told {
            partitions.want(wanted);
        }
        let epoch = next_epoch(INITIAL_EPOCH);
        let session = Session { epoch, by_topic_id, created: now, last_used: now, partitions };
        self.sessions.insert(id, session);
        id
    }

    /// Notes what an incremental answer told. `false` if the session was used by someone else
    /// meanwhile, or is gone: then the answer is an error.
    pub fn told(&mut self, session_id: i32, next_epoch: i32, told: &[Wanted]) -> bool {
        let Some(session) = self.sessions.get_mut(&session_id) else { return true };
        if session.epoch != next_epoch {
            return false;
        }
        for wanted in told {
            session.partitions.told(wanted);
        }
        true
    }

    /// Makes room, if a session is stale, or old enough and smaller than the new one.
    fn evict(&mut self, new_size: usize, now: Instant) -> bool {
        let long_ago = |then: Instant| now.saturating_duration_since(then) > self.evict_after;
        let oldest = self.sessions.iter().min_by_key(|(id, s)| (s.last_used, **id));
        let stale = oldest.filter(|(_, s)| long_ago(s.last_used));
        let smallest = self
            .sessions
            .iter()
            .filter(|(_, s)| long_ago(s.created))
            .min_by_key(|(id, s)| (s.partitions.len(), **id))
            .filter(|(_, s)| s.partitions.len() <= new_size);
        match stale.or(smallest).map(|(id, _)| *id) {
            Some(id) => self.sessions.remove(&id).is_some(),
            None => false,
        }
    }
}

/// Partitions in the order in which they get their turn: a linked list in a vector, with an
/// index, so that moving one to the end costs nothing however many there are.
#[derive(Debug, Default)]
struct PartitionList {
    index: HashMap<(TopicKey, i32), usize>,
    nodes: Vec<Node>,
    free: Vec<usize>,
    first: Option<usize>,
    last: Option<usize>,
}

#[derive(Debug)]
struct Node {
    wanted: Wanted,
    previous: Option<usize>,
    next: Option<usize>,
}

impl PartitionList {
    fn len(&self) -> usize {
        self.index.len()
    }

    fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// Adds a partition at the end, or changes what is wanted of one that is there.
    fn want(&mut self, wanted: Wanted) {
        let key = (wanted.topic.clone(), wanted.partition);
        if let Some(&at) = self.index.get(&key) {
            let old = &mut self.nodes[at].wanted;
            *old = Wanted {
                slot: old.slot,
                told_high_watermark: old.told_high_watermark,
                told_log_start: old.told_log_start,
                ..wanted
            };
            return;
        }
        let node = Node { wanted, previous: None, next: None };
        let at = match self.free.pop() {
            Some(at) => {
                self.nodes[at] = node;
                at
            }
            None => {
                self.nodes.push(node);
                self.nodes.len() - 1
            }
        };
        self.index.insert(key, at);
        self.link_last(at);
    }

    fn remove(&mut self, key: &(TopicKey, i32)) {
        if let Some(at) = self.index.remove(key) {
            self.unlink(at);
            self.free.push(at);
        }
    }

    fn told(&mut self, wanted: &Wanted) {
        if let Some(&at) = self.index.get(&(wanted.topic.clone(), wanted.partition)) {
            let node = &mut self.nodes[at].wanted;
            node.slot = wanted.slot;
            node.told_high_watermark = wanted.told_high_watermark;
            node.told_log_start = wanted.told_log_start;
            self.unlink(at);
            self.link_last(at);
        }
    }

    fn in_order(&self) -> Vec<Wanted> {
        let mut all = Vec::with_capacity(self.len());
        let mut next = self.first;
        while let Some(at) = next {
            all.push(self.nodes[at].wanted.clone());
            next = self.nodes[at].next;
        }
        all
    }

    fn link_last(&mut self, at: usize) {
        self.nodes[at].previous = self.last;
        self.nodes[at].next = None;
        match self.last {
            Some(last) => self.nodes[last].next = Some(at),
            None => self.first = Some(at),
        }
        self.last = Some(at);
    }

    fn unlink(&mut self, at: usize) {
        let (previous, next) = (self.nodes[at].previous, self.nodes[at].next);
        match previous {
            Some(previous) => self.nodes[previous].next = next,
            None => self.first = next,
        }
        match next {
            Some(next) => self.nodes[next].previous = previous,
            None => self.last = previous,
        }
    }
}
