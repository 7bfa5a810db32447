//! Incremental fetch sessions (KIP-227), sans-I/O.
//!
//! The source remembers what a session asks for; a request names only partitions that are new,
//! changed or no longer wanted. So the cost of a request is that of its changes: a partition that
//! is idle costs nothing, however many there are, and in the steady state nothing is allocated.
//!
//! The session knows two things of each partition: what is *wanted* now, and what was *sent* last.
//! Changing the first marks the partition; encoding a request sends the difference and makes both
//! equal. Whenever the source's picture may differ from ours (an answer was lost, the session was
//! evicted, an answer named what we did not ask for) the session starts over with a full request,
//! which needs no knowledge of what was sent before.
//!
//! Without a session (the source's cache is full and it answers with id 0, or it is too old) every
//! request is a full one. The order then rotates, since a source fills an answer in request order.

mod encode;

use super::request::{put_no_tags, put_text, put_top};
use super::response::{ResponseHead, SESSIONS_SINCE, TOPIC_IDS_SINCE, TopicRef};
use crate::codes::{ErrorCode, Meaning};
use crate::limits::{PARTITION_KEYS_MAX, TOPIC_NAME_BYTES_MAX};
use std::collections::HashMap;
use std::rc::Rc;
use uuid::Uuid;

/// A topic's name and id. The id is nil when the source has none to give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TopicName<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its id, or nil.
    pub id: Uuid,
}

/// What is wanted of one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// From this offset on.
    pub fetch_offset: i64,
    /// The epoch of the last batch we have; -1 when none. Lets the source tell divergence.
    pub last_fetched_epoch: i32,
    /// The leader epoch we believe in; -1 when unknown. Lets the source tell that we err.
    pub leader_epoch: i32,
    /// At most so many bytes of records (but at least one batch).
    pub max_bytes: i32,
}

/// Bounds of one request as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FetchLimits {
    /// How long the source may wait for data, in milliseconds.
    pub max_wait_ms: i32,
    /// How much data it may wait for, in bytes.
    pub min_bytes: i32,
    /// How much it may send, in bytes (but at least one batch).
    pub max_bytes: i32,
}

/// What a request asks for, for counters and tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// Whether it names everything that is wanted.
    pub full: bool,
    /// Partitions named because they are wanted.
    pub wanted: usize,
    /// Partitions named because they no longer are.
    pub forgotten: usize,
}

/// What an answer's head means for the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Partitions follow.
    Good,
    /// The session starts over with the next request, which can be sent at once.
    Restarted,
    /// Topic ids do not fit: the session starts over, after metadata has been refreshed.
    RefreshMetadata,
    /// The source refuses the whole request.
    Refused(ErrorCode),
}

/// Whose records follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// The partition that the caller named by this key.
    Key(u32),
    /// Nobody asked for it (or it came twice): the session starts over.
    NotAsked,
}

/// One session with one broker. See the module.
#[derive(Debug, Default)]
pub struct FetchSession {
    phase: Phase,
    in_flight: Option<i16>,
    answered_id: i32,
    mismatch: bool,
    /// Counts answers, to notice a partition that comes twice in one.
    round: u32,
    rotation: usize,
    named_by_id: Option<bool>,
    wanted: usize,
    topics: Vec<Topic>,
    free_topics: Vec<u32>,
    topics_without_id: usize,
    by_name: HashMap<Rc<str>, u32>,
    by_id: HashMap<Uuid, u32>,
    slots: Vec<Slot>,
    free_slots: Vec<u32>,
    /// Slot of each key; [`NONE`] for keys not in use.
    by_key: Vec<u32>,
    /// Slots whose wanted state may differ from the one sent.
    dirty: Vec<u32>,
    forget: Vec<u32>,
}

const NONE: u32 = u32::MAX;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The next request is a full one; it also ends the session of this id, if that is not 0.
    Full { closes: i32 },
    /// The next request names changes.
    Incremental { id: i32, epoch: i32 },
}

impl Default for Phase {
    fn default() -> Phase {
        Phase::Full { closes: 0 }
    }
}

#[derive(Debug)]
struct Topic {
    name: Rc<str>,
    id: Uuid,
    /// Partition numbers and their slots, sorted.
    partitions: Vec<(i32, u32)>,
}

#[derive(Debug)]
struct Slot {
    key: u32,
    topic: u32,
    partition: i32,
    wanted: Option<Wanted>,
    sent: Option<Wanted>,
    dirty: bool,
    round: u32,
}

impl Topic {
    fn called(&self) -> TopicName<'_> {
        TopicName { name: &self.name, id: self.id }
    }
}

impl FetchSession {
    /// A session without partitions, unknown to any broker.
    pub fn new() -> FetchSession {
        FetchSession::default()
    }

    /// Makes a partition known under a key of the caller's choice (small: keys index a table). It
    /// is not wanted yet. A name under a new id takes the old topic's place, whose partitions are
    /// no longer wanted and are to be removed.
    ///
    /// # Panics
    /// When the key is in use or not below [`PARTITION_KEYS_MAX`], when the partition is known
    /// under another key, or when the name is no topic's.
    pub fn add(&mut self, key: u32, topic: TopicName<'_>, partition: i32) {
        assert!(key < PARTITION_KEYS_MAX, "partition key {key}");
        assert!((1..=TOPIC_NAME_BYTES_MAX).contains(&topic.name.len()), "name {:?}", topic.name);
        assert!(!self.knows(key), "partition key {key} is in use");
        let topic = self.topic_slot(topic);
        let partitions = &self.topics[topic as usize].partitions;
        let slot = match partitions.binary_search_by_key(&partition, |&(number, _)| number) {
            Ok(at) => {
                // It was removed, and the source has not been told yet: it never will be.
                let slot = partitions[at].1;
                assert_eq!(self.slots[slot as usize].key, NONE, "partition {partition} is known");
                self.slots[slot as usize].key = key;
                slot
            }
            Err(at) => {
                let slot = self.new_slot(key, topic, partition);
                self.topics[topic as usize].partitions.insert(at, (partition, slot));
                slot
            }
        };
        if self.by_key.len() <= key as usize {
            self.by_key.resize(key as usize + 1, NONE);
        }
        self.by_key[key as usize] = slot;
    }

    /// Forgets a partition; its key is free again.
    pub fn remove(&mut self, key: u32) {
        let slot = self.slot(key);
        self.set(slot, None);
        self.by_key[key as usize] = NONE;
        self.slots[slot as usize].key = NONE;
        self.mark(slot);
    }

    /// Whether a partition is known under this key.
    pub fn knows(&self, key: u32) -> bool {
        self.by_key.get(key as usize).is_some_and(|&slot| slot != NONE)
    }

    /// Asks for a partition from the next request on, until told otherwise.
    pub fn want(&mut self, key: u32, wanted: Wanted) {
        self.set(self.slot(key), Some(wanted));
    }

    /// Stops asking for a partition for now (there is no memory for it, it waits for a retry).
    pub fn unwant(&mut self, key: u32) {
        self.set(self.slot(key), None);
    }

    /// What is wanted of a partition.
    pub fn wanted(&self, key: u32) -> Option<Wanted> {
        self.slots[self.slot(key) as usize].wanted
    }

    /// How many partitions are wanted. A request that wants none makes little sense.
    pub fn wanted_count(&self) -> usize {
        self.wanted
    }

    /// Whether the source holds a session of ours, as far as we know.
    pub fn established(&self) -> bool {
        matches!(self.phase, Phase::Incremental { .. }) && self.in_flight.is_none()
    }

    /// Starts over because an answer was lost. The source is asked to drop the old session.
    pub fn lost(&mut self) {
        let id = match self.phase {
            Phase::Full { closes } => closes,
            Phase::Incremental { id, .. } => id,
        };
        self.phase = Phase::Full { closes: id };
        self.in_flight = None;
    }

    /// Starts over with another broker, which knows nothing of this session.
    pub fn moved(&mut self) {
        self.phase = Phase::default();
        self.in_flight = None;
    }

    /// The version a request will have, of those up to `newest`: topics without ids cannot be
    /// asked for by id.
    pub fn version(&self, newest: i16) -> i16 {
        if self.topics_without_id > 0 { newest.min(TOPIC_IDS_SINCE - 1) } else { newest }
    }

    /// Whether such a request names its topics by id. By name alone, a topic that was made anew is
    /// asked for as the one it replaced.
    pub fn asks_by_id(&self, newest: i16) -> bool {
        self.version(newest) >= TOPIC_IDS_SINCE
    }

    /// Appends a request's body to `out`, in [`FetchSession::version`] of the newest one that both
    /// sides speak. If the answer to an earlier request has not come, that one counts as lost.
    pub fn encode(&mut self, newest: i16, limits: &FetchLimits, out: &mut Vec<u8>) -> Asked {
        let version = self.version(newest);
        let by_id = version >= TOPIC_IDS_SINCE;
        if self.in_flight.is_some() || self.named_by_id.is_some_and(|before| before != by_id) {
            self.lost();
        }
        if version < SESSIONS_SINCE {
            self.moved();
        }
        self.named_by_id = Some(by_id);
        self.in_flight = Some(version);
        let (id, epoch) = match self.phase {
            Phase::Full { closes } => (closes, 0),
            Phase::Incremental { id, epoch } => (id, epoch),
        };
        put_top(out, version, limits, id, epoch);
        let asked = match self.phase {
            Phase::Full { .. } => self.encode_full(version, out),
            Phase::Incremental { .. } => self.encode_changes(version, out),
        };
        if version >= 11 {
            put_text(out, version, ""); // rack: follow the leader
        }
        put_no_tags(out, version);
        asked
    }

    /// Takes the head of an answer. On [`Verdict::Good`] the partitions follow, and then
    /// [`FetchSession::end_response`] has to be called.
    pub fn begin_response(&mut self, head: &ResponseHead) -> Verdict {
        assert!(self.in_flight.is_some(), "an answer without a request");
        self.round = self.round.wrapping_add(1);
        self.mismatch = false;
        self.answered_id = head.session_id;
        if head.error_code.is_none() {
            return Verdict::Good;
        }
        match head.error_code {
            // The source does not know the session, so there is nothing to close.
            ErrorCode::FETCH_SESSION_ID_NOT_FOUND => self.moved(),
            _ => self.lost(),
        }
        match head.error_code.meaning() {
            Meaning::RestartSession => Verdict::Restarted,
            Meaning::RefreshMetadata => Verdict::RefreshMetadata,
            _ => Verdict::Refused(head.error_code),
        }
    }

    /// Finds a topic by what the answer calls it; the result is for [`FetchSession::find`].
    pub fn find_topic(&self, topic: TopicRef<'_>) -> Option<u32> {
        match topic {
            TopicRef::Name(name) => self.by_name.get(name).copied(),
            TopicRef::Id(id) => self.by_id.get(&id).copied(),
        }
    }

    /// Finds a partition of an answer; each is found once per answer.
    pub fn find(&mut self, topic: Option<u32>, partition: i32) -> Found {
        let round = self.round;
        let found = topic.and_then(|topic| {
            let partitions = &self.topics[topic as usize].partitions;
            let at = partitions.binary_search_by_key(&partition, |&(number, _)| number).ok()?;
            let slot = &mut self.slots[partitions[at].1 as usize];
            let asked = slot.key != NONE && slot.sent.is_some() && slot.round != round;
            slot.round = round;
            asked.then_some(slot.key)
        });
        match found {
            Some(key) => Found::Key(key),
            None => {
                self.mismatch = true;
                Found::NotAsked
            }
        }
    }

    /// The answer is complete. Returns false when it named partitions that were not asked for, or
    /// another session: then the session starts over.
    pub fn end_response(&mut self) -> bool {
        assert!(self.in_flight.take().is_some(), "an answer without a request");
        let id = self.answered_id;
        let known = match self.phase {
            Phase::Full { .. } => true,
            Phase::Incremental { id: ours, .. } => id == 0 || id == ours,
        };
        if self.mismatch || !known {
            self.lost();
            return false;
        }
        self.phase = match self.phase {
            _ if id == 0 => Phase::Full { closes: 0 },
            Phase::Full { .. } => Phase::Incremental { id, epoch: 1 },
            // The source counts the same way: from the largest epoch on to 1.
            Phase::Incremental { epoch: i32::MAX, .. } => Phase::Incremental { id, epoch: 1 },
            Phase::Incremental { epoch, .. } => Phase::Incremental { id, epoch: epoch + 1 },
        };
        true
    }

    fn slot(&self, key: u32) -> u32 {
        assert!(self.knows(key), "no partition has the key {key}");
        self.by_key[key as usize]
    }

    fn set(&mut self, slot: u32, wanted: Option<Wanted>) {
        let state = &mut self.slots[slot as usize];
        self.wanted += usize::from(wanted.is_some());
        self.wanted -= usize::from(state.wanted.is_some());
        state.wanted = wanted;
        self.mark(slot);
    }

    fn mark(&mut self, slot: u32) {
        let state = &mut self.slots[slot as usize];
        if !state.dirty {
            state.dirty = true;
            self.dirty.push(slot);
        }
    }

    fn topic_slot(&mut self, topic: TopicName<'_>) -> u32 {
        if let Some(&old) = self.by_name.get(topic.name) {
            if self.topics[old as usize].id == topic.id {
                return old;
            }
            // Requests by name could not tell them apart, and of the two only this one exists.
            self.lost();
            for at in 0..self.topics[old as usize].partitions.len() {
                let slot = self.topics[old as usize].partitions[at].1;
                self.set(slot, None);
            }
        }
        let name: Rc<str> = topic.name.into();
        let fresh = Topic { name: name.clone(), id: topic.id, partitions: Vec::new() };
        let at = match self.free_topics.pop() {
            Some(at) => {
                self.topics[at as usize] = fresh;
                at
            }
            None => {
                self.topics.push(fresh);
                self.topics.len() as u32 - 1
            }
        };
        self.by_name.insert(name, at);
        if topic.id.is_nil() {
            self.topics_without_id += 1;
        } else {
            self.by_id.insert(topic.id, at);
        }
        at
    }

    fn new_slot(&mut self, key: u32, topic: u32, partition: i32) -> u32 {
        let round = self.round;
        let fresh = Slot { key, topic, partition, wanted: None, sent: None, dirty: false, round };
        match self.free_slots.pop() {
            Some(at) => {
                self.slots[at as usize] = fresh;
                at
            }
            None => {
                self.slots.push(fresh);
                self.slots.len() as u32 - 1
            }
        }
    }

    /// Frees a removed partition that the source no longer knows of, and its topic with the last.
    fn free(&mut self, slot: u32) {
        let Slot { topic: at, partition, .. } = self.slots[slot as usize];
        let topic = &mut self.topics[at as usize];
        let found = topic.partitions.binary_search_by_key(&partition, |&(number, _)| number);
        topic.partitions.remove(found.expect("a slot belongs to its topic"));
        self.free_slots.push(slot);
        if !topic.partitions.is_empty() {
            return;
        }
        let (name, id) = (topic.name.clone(), topic.id);
        if self.by_name.get(&name) == Some(&at) {
            self.by_name.remove(&name);
        }
        if id.is_nil() {
            self.topics_without_id -= 1;
        } else if self.by_id.get(&id) == Some(&at) {
            self.by_id.remove(&id);
        }
        self.free_topics.push(at);
    }
}

#[cfg(test)]
mod tests;
