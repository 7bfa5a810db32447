//! The source's state, and the hand that moves it.
//!
//! One mutex holds everything: topics, leaders, sessions, faults. A request holds it for
//! microseconds, while an answer is put together; the bytes are sent without it. Waiting fetches
//! sleep on one condition variable, which every change wakes; growth over time needs no thread,
//! as a log grows when it is looked at, and a waiting fetch knows when to look again.

use crate::fault::{Fault, FaultList, Target};
use crate::log::PartitionLog;
use crate::payload::PayloadRing;
use crate::session::{SessionCache, TopicKey};
use crate::topic::{Content, TopicError, TopicSpec};
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use uuid::Uuid;

/// Moves a running source: topics, leaders, logs, faults. Clones move the same source.
#[derive(Clone, Debug)]
pub struct Cluster {
    pub(crate) shared: Arc<Shared>,
}

/// Why the source would not do what was asked of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// There is no topic of that name.
    #[error("no topic {0:?}")]
    UnknownTopic(String),
    /// The topic has no such partition.
    #[error("no partition {1} in topic {0:?}")]
    UnknownPartition(String, i32),
    /// There is no broker of that index.
    #[error("no broker {0}")]
    UnknownBroker(usize),
    /// The topic's description is not possible.
    #[error(transparent)]
    Topic(#[from] TopicError),
    /// The change makes no sense as things stand.
    #[error("{0}")]
    Refused(String),
}

#[derive(Debug)]
pub(crate) struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
pub(crate) struct State {
    pub cluster_id: String,
    pub brokers: Vec<Broker>,
    /// Never shrinks, so that a slot names one topic for ever; `None` is a deleted one.
    pub topics: Vec<Option<Topic>>,
    pub slot_by_name: BTreeMap<String, usize>,
    slot_by_id: HashMap<Uuid, usize>,
    generations: HashMap<String, u64>,
    pub faults: FaultList,
    pub stopping: bool,
    pub bytes_sent: u64,
}

#[derive(Debug)]
pub(crate) struct Broker {
    pub address: SocketAddr,
    pub up: bool,
    pub paused: bool,
    pub sessions: SessionCache,
}

#[derive(Debug)]
pub(crate) struct Topic {
    pub name: Arc<str>,
    pub id: Uuid,
    spec: TopicSpec,
    ring: Option<Arc<PayloadRing>>,
    partitions: Vec<Partition>,
    /// When growth over time begins.
    started: Instant,
    /// Time between two batches of a partition, where it grows by itself.
    interval: Option<Duration>,
}

#[derive(Debug)]
pub(crate) struct Partition {
    pub leader: usize,
    pub log: PartitionLog,
    /// Batches that time has brought.
    grown: u64,
}

impl Topic {
    pub fn new(
        spec: TopicSpec,
        generation: u64,
        brokers: usize,
        now: Instant,
    ) -> Result<Self, TopicError> {
        let ring = spec.payload_ring()?.map(Arc::new);
        let interval = ring.as_ref().and_then(|ring| spec.growth.interval(ring.batch_bytes_mean()));
        let mut topic = Topic {
            name: spec.name.as_str().into(),
            id: TopicSpec::topic_id(&spec.name, generation),
            ring,
            partitions: Vec::new(),
            started: now + Duration::from_millis(spec.grows_after_ms),
            interval,
            spec,
        };
        topic.set_partitions(topic.spec.partitions, brokers);
        Ok(topic)
    }

    fn set_partitions(&mut self, partitions: i32, brokers: usize) {
        let known = self.partitions.len() as i32;
        for partition in known..partitions {
            self.partitions.push(Partition {
                leader: partition as usize % brokers,
                log: first_log(&self.spec, self.ring.as_ref(), partition),
                grown: 0,
            });
        }
    }

    pub fn spec(&self) -> &TopicSpec {
        &self.spec
    }

    pub fn partitions(&self) -> usize {
        self.partitions.len()
    }

    /// A partition as it stands now, grown to this moment.
    pub fn partition(&mut self, partition: i32, now: Instant) -> Option<&mut Partition> {
        let index = usize::try_from(partition).ok()?;
        let due = self.due(index, now);
        let partition = self.partitions.get_mut(index)?;
        if due > partition.grown {
            partition.log.grow(due - partition.grown);
            partition.grown = due;
        }
        Some(partition)
    }

    /// Batches that time has brought to a partition by now. Partitions take turns.
    fn due(&self, index: usize, now: Instant) -> u64 {
        let Some(interval) = self.interval else { return 0 };
        let most = self.spec.growth.batches_max.saturating_sub(self.spec.growth.backlog_batches);
        let elapsed = now.saturating_duration_since(self.started).as_nanos() as u64;
        let interval = interval.as_nanos() as u64;
        ((elapsed + self.head_start(interval, index)) / interval).min(most)
    }

    /// A partition's log as it stood when last looked at.
    pub fn log(&self, partition: i32) -> Option<&PartitionLog> {
        let index = usize::try_from(partition).ok()?;
        self.partitions.get(index).map(|partition| &partition.log)
    }

    /// When a partition next grows by itself.
    pub fn next_growth(&self, partition: i32) -> Option<Instant> {
        let index = usize::try_from(partition).ok()?;
        let interval = self.interval?.as_nanos() as u64;
        let next = self.partitions.get(index)?.grown + 1;
        if next > self.spec.growth.batches_max.saturating_sub(self.spec.growth.backlog_batches) {
            return None;
        }
        let after = next.checked_mul(interval)? - self.head_start(interval, index);
        self.started.checked_add(Duration::from_nanos(after))
    }

    fn head_start(&self, interval_ns: u64, index: usize) -> u64 {
        (u128::from(interval_ns) * index as u128 / self.partitions.len().max(1) as u128) as u64
    }
}

/// A partition's log at the start.
pub(crate) fn first_log(
    spec: &TopicSpec,
    ring: Option<&Arc<PayloadRing>>,
    partition: i32,
) -> PartitionLog {
    match ring {
        Some(ring) => {
            let mut log = PartitionLog::generated(Arc::clone(ring), spec, partition);
            log.grow(spec.growth.backlog_batches.min(spec.growth.batches_max));
            log
        }
        None => PartitionLog::given(spec.first_offset, spec.leader_epoch),
    }
}

impl State {
    /// Where a topic is; `hint` is where it was.
    pub fn slot_of(&self, key: &TopicKey, hint: Option<usize>) -> Option<usize> {
        if let Some(slot) = hint.filter(|&slot| self.topics[slot].is_some()) {
            return Some(slot);
        }
        match key {
            TopicKey::Name(name) => self.slot_by_name.get(&**name).copied(),
            TopicKey::Id(id) => self.slot_by_id.get(id).copied(),
        }
    }

    fn add_topic(&mut self, spec: TopicSpec, now: Instant) -> Result<Uuid, ControlError> {
        if self.slot_by_name.contains_key(&spec.name) {
            return Err(ControlError::Refused(format!("topic {:?} exists", spec.name)));
        }
        let generation = self.generations.get(&spec.name).copied().unwrap_or(0);
        let topic = Topic::new(spec, generation, self.brokers.len(), now)?;
        let (id, slot) = (topic.id, self.topics.len());
        self.generations.insert(topic.name.to_string(), generation + 1);
        self.slot_by_name.insert(topic.name.to_string(), slot);
        self.slot_by_id.insert(id, slot);
        self.topics.push(Some(topic));
        Ok(id)
    }

    fn topic(&mut self, name: &str) -> Result<&mut Topic, ControlError> {
        let unknown = || ControlError::UnknownTopic(name.into());
        let slot = *self.slot_by_name.get(name).ok_or_else(unknown)?;
        self.topics[slot].as_mut().ok_or_else(unknown)
    }

    fn partition(&mut self, name: &str, index: i32) -> Result<&mut Partition, ControlError> {
        let topic = self.topic(name)?;
        topic
            .partition(index, Instant::now())
            .ok_or_else(|| ControlError::UnknownPartition(name.into(), index))
    }

    pub fn broker(&mut self, index: usize) -> Result<&mut Broker, ControlError> {
        self.brokers.get_mut(index).ok_or(ControlError::UnknownBroker(index))
    }
}

impl Shared {
    pub fn new(cluster_id: String, brokers: Vec<Broker>) -> Shared {
        let state = State {
            cluster_id,
            brokers,
            topics: Vec::new(),
            slot_by_name: BTreeMap::new(),
            slot_by_id: HashMap::new(),
            generations: HashMap::new(),
            faults: FaultList::default(),
            stopping: false,
            bytes_sent: 0,
        };
        Shared { state: Mutex::new(state), changed: Condvar::new() }
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while the lock was held fails that test; the state itself stays usable.
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub fn wake(&self) {
        self.changed.notify_all();
    }

    /// Waits for a change, or until then.
    pub fn wait<'a>(&self, state: MutexGuard<'a, State>, until: Instant) -> MutexGuard<'a, State> {
        let time = until.saturating_duration_since(Instant::now());
        let waited = self.changed.wait_timeout(state, time);
        waited.unwrap_or_else(std::sync::PoisonError::into_inner).0
    }
}

impl Cluster {
    fn change<T>(
        &self,
        change: impl FnOnce(&mut State) -> Result<T, ControlError>,
    ) -> Result<T, ControlError> {
        let result = change(&mut self.shared.lock());
        self.shared.wake();
        result
    }

    /// When a topic begins to grow, or began.
    pub fn grows_from(&self, topic: &str) -> Option<Instant> {
        let state = self.shared.lock();
        let slot = *state.slot_by_name.get(topic)?;
        state.topics[slot].as_ref().map(|topic| topic.started)
    }

    /// Adds a topic. Returns its id, which is another one each time the name is used again.
    pub fn add_topic(&self, spec: TopicSpec) -> Result<Uuid, ControlError> {
        self.change(|state| state.add_topic(spec, Instant::now()))
    }

    /// Deletes a topic.
    pub fn delete_topic(&self, topic: &str) -> Result<(), ControlError> {
        self.change(|state| {
            let id = state.topic(topic)?.id;
            let slot = state.slot_by_name.remove(topic);
            state.slot_by_id.remove(&id);
            if let Some(slot) = slot {
                state.topics[slot] = None;
            }
            Ok(())
        })
    }

    /// Puts another topic in the place of the one of that name, under the same id: a source that
    /// was restored from a backup, and has gone on from there.
    pub fn replace_topic(&self, spec: TopicSpec) -> Result<(), ControlError> {
        self.change(|state| {
            let id = state.topic(&spec.name)?.id;
            let slot = state.slot_by_id[&id];
            let generation = state.generations.get(&spec.name).map_or(0, |next| next - 1);
            let topic = Topic::new(spec, generation, state.brokers.len(), Instant::now())?;
            debug_assert_eq!(topic.id, id, "the same incarnation");
            state.topics[slot] = Some(topic);
            Ok(())
        })
    }

    /// Adds partitions up to a new total; the new ones begin as the first ones did.
    pub fn add_partitions(&self, topic: &str, total: i32) -> Result<(), ControlError> {
        self.change(|state| {
            let brokers = state.brokers.len();
            let topic = state.topic(topic)?;
            if total <= topic.partitions.len() as i32 {
                return Err(ControlError::Refused("partitions are never taken away".into()));
            }
            topic.set_partitions(total, brokers);
            Ok(())
        })
    }

    /// The topic's id.
    pub fn topic_id(&self, topic: &str) -> Result<Uuid, ControlError> {
        self.change(|state| Ok(state.topic(topic)?.id))
    }

    /// Appends so many batches of the topic's generated content. Returns the new end offset.
    pub fn append(&self, topic: &str, partition: i32, batches: u64) -> Result<i64, ControlError> {
        self.change(|state| {
            if state.topic(topic)?.spec().content == Content::Given {
                return Err(ControlError::Refused("the topic has no batches of its own".into()));
            }
            let partition = state.partition(topic, partition)?;
            partition.log.grow(batches);
            Ok(partition.log.end_offset())
        })
    }

    /// Appends batches of magic 2 to a topic of given batches. Base offset and leader epoch are
    /// set as a leader would, or with `verbatim` left as they stand: then gaps and wrong epochs
    /// are possible. Returns the new end offset.
    pub fn append_batches(
        &self,
        topic: &str,
        partition: i32,
        batches: &[Vec<u8>],
        verbatim: bool,
    ) -> Result<i64, ControlError> {
        self.change(|state| {
            let partition = state.partition(topic, partition)?;
            for batch in batches {
                partition.log.append_given(batch, verbatim).ok_or_else(|| {
                    let reason = "not a whole batch of magic 2 behind the end, or not a topic of \
                                  given batches";
                    ControlError::Refused(reason.into())
                })?;
            }
            Ok(partition.log.end_offset())
        })
    }

    /// Ends a topic's growth over time.
    pub fn freeze_growth(&self, topic: &str) -> Result<(), ControlError> {
        self.change(|state| {
            let topic = state.topic(topic)?;
            for partition in 0..topic.partitions.len() as i32 {
                topic.partition(partition, Instant::now());
            }
            topic.interval = None;
            Ok(())
        })
    }

    /// Moves the log start up, as DeleteRecords does.
    pub fn delete_records(
        &self,
        topic: &str,
        partition: i32,
        before: i64,
    ) -> Result<(), ControlError> {
        self.change(|state| match state.partition(topic, partition)?.log.advance_start(before) {
            true => Ok(()),
            false => Err(ControlError::Refused(format!("offset {before} is not in the log"))),
        })
    }

    /// Elects the same leader again. Returns its new epoch.
    pub fn bump_leader_epoch(&self, topic: &str, partition: i32) -> Result<i32, ControlError> {
        self.change(|state| {
            let log = &mut state.partition(topic, partition)?.log;
            log.begin_epoch(log.leader_epoch() + 1);
            Ok(log.leader_epoch())
        })
    }

    /// Elects another leader. Returns its epoch.
    pub fn move_leader(
        &self,
        topic: &str,
        partition: i32,
        broker: usize,
    ) -> Result<i32, ControlError> {
        self.change(|state| {
            state.broker(broker)?;
            let partition = state.partition(topic, partition)?;
            partition.leader = broker;
            partition.log.begin_epoch(partition.log.leader_epoch() + 1);
            Ok(partition.log.leader_epoch())
        })
    }

    /// Elects a leader that lacks the batches from the one that holds `offset` on (an unclean
    /// election). Returns its epoch. What is appended afterwards differs from what was lost.
    pub fn lose_tail(&self, topic: &str, partition: i32, offset: i64) -> Result<i32, ControlError> {
        self.change(|state| {
            let log = &mut state.partition(topic, partition)?.log;
            log.lose_tail(offset, log.leader_epoch() + 1);
            Ok(log.leader_epoch())
        })
    }

    /// Holds the high watermark at an offset below the log's end, or lets it go with the end.
    pub fn hold_high_watermark(
        &self,
        topic: &str,
        partition: i32,
        at: Option<i64>,
    ) -> Result<(), ControlError> {
        self.change(|state| {
            state.partition(topic, partition)?.log.hold_high_watermark(at);
            Ok(())
        })
    }

    /// A picture of a partition's log as it stands now: what a copy must hold.
    pub fn log(&self, topic: &str, partition: i32) -> Result<PartitionLog, ControlError> {
        Ok(self.shared.lock().partition(topic, partition)?.log.clone())
    }

    /// Calls the cluster by another id.
    pub fn set_cluster_id(&self, id: impl Into<String>) {
        self.shared.lock().cluster_id = id.into();
        self.shared.wake();
    }

    /// A broker stops answering, connections staying open.
    pub fn pause(&self, broker: usize) -> Result<(), ControlError> {
        self.set_paused(broker, true)
    }

    /// A paused broker answers again, what was asked meanwhile first.
    pub fn resume(&self, broker: usize) -> Result<(), ControlError> {
        self.set_paused(broker, false)
    }

    fn set_paused(&self, broker: usize, paused: bool) -> Result<(), ControlError> {
        self.change(|state| {
            state.broker(broker)?.paused = paused;
            Ok(())
        })
    }

    /// A broker forgets its fetch sessions.
    pub fn forget_sessions(&self, broker: usize) -> Result<(), ControlError> {
        self.change(|state| {
            state.broker(broker)?.sessions.clear();
            Ok(())
        })
    }

    /// Fetch sessions that a broker holds.
    pub fn sessions(&self, broker: usize) -> Result<usize, ControlError> {
        Ok(self.shared.lock().broker(broker)?.sessions.len())
    }

    /// Makes the source misbehave so many times; `None` until [`Cluster::clear_faults`].
    pub fn inject(&self, target: Target, fault: Fault, times: Option<u64>) {
        self.shared.lock().faults.inject(target, fault, times);
        self.shared.wake();
    }

    /// Takes back every fault.
    pub fn clear_faults(&self) {
        self.shared.lock().faults.clear();
        self.shared.wake();
    }

    /// How often any fault was applied since the start.
    pub fn faults_applied(&self) -> u64 {
        self.shared.lock().faults.applied()
    }

    /// Bytes of all answers sent since the start, frame heads included.
    pub fn bytes_sent(&self) -> u64 {
        self.shared.lock().bytes_sent
    }
}
