//! One link: its state, its topics, and what its shards are told. `discovery` follows the source.

mod discovery;

use super::observe;
use super::records::{LinkRecord, TopicRecord};
use super::source::Source;
use super::{Shared, may_talk, wall_ms};
use crate::config::LinkConfig;
use crate::reload::LinkFacts;
use crate::states::{LinkMode, LinkState, TopicState};
use shards::control::{
    Assign, ClusterView, Command, LinkSettings, Mode, PartitionKey, PartitionState,
};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use tokio::sync::{Mutex, Notify, watch};

/// Kafka's defaults of `segment.bytes` and `segment.ms`.
const SEGMENT_BYTES: u32 = 1 << 30;
const SEGMENT_MS: i64 = 7 * 86_400_000;
/// From so many partitions on, opening them leaves megabytes of freed memory behind.
const MANY_OPENED: usize = 1000;

/// One source cluster and its copy.
pub struct Link {
    name: Arc<str>,
    pub(super) shared: Rc<Shared>,
    pub(super) state: RefCell<State>,
    /// Verbs and metadata take turns: whoever changes topics holds this.
    pub(super) turn: Mutex<()>,
    wake: Notify,
    gate: Notify,
    source: RefCell<Option<Box<dyn Source>>>,
    /// Whether a client with open sockets may exist.
    open: watch::Sender<bool>,
    retired: Cell<bool>,
}

/// What may be read at any time.
pub struct State {
    /// The link as declared.
    pub config: LinkConfig,
    /// What was decided.
    pub record: LinkRecord,
    /// Its topics.
    pub topics: BTreeMap<String, Topic>,
    /// What is observed of the source.
    pub health: Health,
    /// Brokers as last seen.
    pub brokers: usize,
    view: Option<Arc<ClusterView>>,
    /// The shards are to fetch nothing until the right cluster answers: another one did, or none
    /// has since the link was paused.
    pub(super) barred: bool,
}

/// A topic at run time.
pub struct Topic {
    /// What is durable.
    pub record: TopicRecord,
    /// Owning shard of each partition.
    pub shards: Vec<usize>,
    /// Partitions whose shard could not open them, and why. Tried again by `resume`.
    pub refused: BTreeMap<i32, String>,
    /// Answers in a row that left it out, or some of its partitions.
    missing: u32,
}

impl Topic {
    fn new(record: TopicRecord, shards: Vec<usize>) -> Self {
        Topic { record, shards, refused: BTreeMap::new(), missing: 0 }
    }
}

/// How the source does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// Not asked yet.
    Unknown,
    /// It answers.
    Well {
        /// Since when, wall clock.
        since_ms: i64,
        /// When it last did, wall clock.
        at_ms: i64,
    },
    /// It does not, or it is not the one expected.
    Ill {
        /// Stable code.
        code: &'static str,
        /// For people.
        reason: String,
        /// When this began, wall clock.
        since_ms: i64,
        /// When it is asked again, wall clock.
        retry_at_ms: i64,
        /// Failures in a row.
        failures: u32,
    },
}

impl Link {
    /// A link from its declaration and what the store knows of it.
    pub fn new(
        shared: Rc<Shared>,
        config: LinkConfig,
        record: Option<LinkRecord>,
        topics: BTreeMap<String, TopicRecord>,
    ) -> Rc<Self> {
        let record =
            record.unwrap_or_else(|| LinkRecord { since_ms: wall_ms(), ..Default::default() });
        let topics = topics
            .into_iter()
            .map(|(name, record)| {
                let mut placement = shared.placement.borrow_mut();
                let shards = record.partitions.iter().map(|_| placement.shard()).collect();
                for dir in &record.partitions {
                    placement.found(dir);
                }
                (name, Topic::new(record, shards))
            })
            .collect();
        let state = State {
            config,
            record,
            topics,
            health: Health::Unknown,
            brokers: 0,
            view: None,
            barred: false,
        };
        Rc::new(Link {
            name: Arc::from(state.config.name.as_str()),
            shared,
            state: RefCell::new(state),
            turn: Mutex::new(()),
            wake: Notify::new(),
            gate: Notify::new(),
            source: RefCell::new(None),
            open: watch::Sender::new(false),
            retired: Cell::new(false),
        })
    }

    /// The link's name.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// State, code, reason and when it began.
    pub fn shown(&self) -> (LinkState, Option<String>, Option<String>, i64) {
        let state = self.state.borrow();
        let decided = |shown| (shown, None, None, state.record.since_ms);
        match (state.record.mode, &state.health) {
            (LinkMode::Paused, _) => decided(LinkState::Paused),
            (LinkMode::Deleted, _) => decided(LinkState::Deleted),
            (LinkMode::Active, Health::Ill { code, reason, since_ms, .. }) => {
                (LinkState::Unavailable, Some((*code).to_owned()), Some(reason.clone()), *since_ms)
            }
            (LinkMode::Active, Health::Unknown) => (
                LinkState::Unavailable,
                Some("not_reached_yet".to_owned()),
                Some("the source has not answered yet".to_owned()),
                state.record.since_ms,
            ),
            (LinkMode::Active, Health::Well { since_ms, .. }) => {
                (LinkState::Active, None, None, (*since_ms).max(state.record.since_ms))
            }
        }
    }

    /// What a reload asks about.
    pub fn facts(&self) -> LinkFacts {
        let state = self.state.borrow();
        let live =
            |(name, topic): (&String, &Topic)| topic.record.state.is_live().then(|| name.clone());
        LinkFacts {
            live_topics: state.topics.iter().filter_map(live).collect(),
            cluster_id: state.record.cluster_id.clone(),
            deleted: state.record.mode == LinkMode::Deleted,
        }
    }

    /// Opens every known partition in the mode its record asks for, and finishes what a crash
    /// interrupted. What the metadata store has no room for now waits for a person or the next
    /// start: it is no reason to copy nothing, and nothing of it is fetched.
    pub async fn boot(&self) {
        let _turn = self.turn.lock().await;
        if self.mode() == LinkMode::Deleted {
            return;
        }
        self.send_settings().await;
        if self.mode() == LinkMode::Paused {
            // The gate is closed before there is anything behind it.
            let _ = self.shared.shards.pause(&self.name, None).await;
        }
        let names: Vec<String> = self.state.borrow().topics.keys().cloned().collect();
        self.assign(&names, 0).await;
        for finished in [self.finish_deletions().await, self.finish_failovers().await] {
            if let Err(error) = finished {
                let link = &*self.name;
                tracing::error!(link, %error, "what was begun before the start is not finished");
            }
        }
    }

    /// Starts following the source.
    pub fn start(self: &Rc<Self>) {
        tokio::task::spawn_local(self.clone().follow());
    }

    /// A shard finds that leaders have moved: ask soon. While the source does not answer control
    /// either, its own back-off is what counts.
    pub fn leaders_moved(&self) {
        if !matches!(self.state.borrow().health, Health::Ill { .. }) {
            self.refresh_soon();
        }
    }

    /// Asks the source soon, whatever the interval.
    pub fn refresh_soon(&self) {
        self.wake.notify_one();
    }

    /// New settings from the file.
    pub async fn update(&self, config: LinkConfig) {
        let _turn = self.turn.lock().await;
        let moved = {
            let mut state = self.state.borrow_mut();
            let moved = state.config.bootstrap_servers != config.bootstrap_servers;
            state.config = config;
            moved
        };
        if moved {
            self.close_source().await;
        }
        if self.mode() != LinkMode::Deleted {
            self.send_settings().await;
        }
        self.refresh_soon();
    }

    /// Stops following the source: the node is stopping.
    pub async fn close(&self) {
        self.retired.set(true);
        self.wake.notify_one();
        self.close_source().await;
    }

    /// Stops for good and closes everything; hands the topics' records back.
    pub async fn retire(&self) -> BTreeMap<String, TopicRecord> {
        self.retired.set(true);
        let _turn = self.turn.lock().await;
        self.close_source().await;
        self.release_all().await;
        self.wake.notify_one();
        let topics = std::mem::take(&mut self.state.borrow_mut().topics);
        topics.into_iter().map(|(name, topic)| (name, topic.record)).collect()
    }

    pub(super) fn mode(&self) -> LinkMode {
        self.state.borrow().record.mode
    }

    /// Whether nothing is to be decided of it any more.
    pub(super) fn is_retired(&self) -> bool {
        self.retired.get()
    }

    fn may_run(&self) -> bool {
        may_talk(self.mode()) && !self.retired.get()
    }

    /// Closes every socket control has to the source and waits until that is so.
    pub(super) async fn close_source(&self) {
        self.source.borrow_mut().take();
        self.gate.notify_waiters();
        let mut open = self.open.subscribe();
        // The sender lives as long as we do.
        let _ = open.wait_for(|open| !*open).await;
        self.state.borrow_mut().view = None;
    }

    pub(super) async fn release_all(&self) {
        let owned: Vec<(usize, PartitionKey)> = {
            let state = self.state.borrow();
            state.topics.iter().flat_map(|(name, topic)| self.owned(name, topic)).collect()
        };
        if let Err(error) = self.shared.shards.release(owned).await {
            tracing::warn!(link = &*self.name, %error, "did not close cleanly");
        }
    }

    pub(super) fn owned(&self, name: &str, topic: &Topic) -> Vec<(usize, PartitionKey)> {
        let topic_name: Arc<str> = Arc::from(name);
        let key = |partition: usize| PartitionKey {
            link: self.name.clone(),
            topic: topic_name.clone(),
            partition: partition as i32,
        };
        topic.shards.iter().enumerate().map(|(number, shard)| (*shard, key(number))).collect()
    }

    async fn send_settings(&self) {
        let shards = self.shared.shards.count() as u64;
        let settings = {
            let state = self.state.borrow();
            let config = &state.config;
            LinkSettings {
                start: config.start,
                rate_limit: config.rate_limit.map(|rate| (rate / shards).max(1)),
                connections_max: config.connections_max.div_ceil(shards as u32),
                allow_truncation: config.allow_truncation,
                on_source_gap: config.on_source_gap,
                undo_window: config.undo_window,
                backfill_rate_limit: None,
                batch_bytes_max: config.batch_bytes_max,
            }
        };
        let link = &self.name;
        let command = || Command::Link { link: link.clone(), settings: settings.clone() };
        self.shared.shards.broadcast(command).await;
    }

    /// Opens partitions from number `from` on of these topics.
    async fn assign(&self, names: &[String], from: usize) {
        let mut assigns = Vec::new();
        {
            let state = self.state.borrow();
            for name in names {
                let Some(topic) = state.topics.get(name) else { continue };
                let owned = self.owned(name, topic).into_iter().skip(from);
                for ((shard, key), dir) in owned.zip(topic.record.partitions.iter().skip(from)) {
                    let (topic_id, mode) = (topic.record.topic_id, mode_of(&topic.record));
                    let assign = Assign {
                        key,
                        topic_id,
                        data_dir: dir.clone(),
                        mode,
                        segment_bytes: SEGMENT_BYTES,
                        segment_ms: SEGMENT_MS,
                    };
                    assigns.push((shard, assign));
                }
            }
        }
        let keys: Vec<PartitionKey> =
            assigns.iter().map(|(_, assign)| assign.key.clone()).collect();
        let results = self.shared.shards.assign(assigns).await;
        if keys.len() >= MANY_OPENED {
            // What it took to open them is not needed again.
            shards::trim_freed_memory();
        }
        for (key, result) in keys.into_iter().zip(results) {
            let mut state = self.state.borrow_mut();
            let Some(known) = state.topics.get_mut(&*key.topic) else { continue };
            known.refused.remove(&key.partition);
            if let Err(error) = result {
                let (link, topic, partition) = (&*key.link, &*key.topic, key.partition);
                tracing::error!(link, topic, partition, error, "the partition cannot be opened");
                known.refused.insert(key.partition, error);
            }
        }
    }

    /// Tries to open again what could not be opened, of these topics or of all.
    pub(super) async fn open_refused(&self, names: Option<&[String]>) {
        let names: Vec<String> = {
            let state = self.state.borrow();
            let meant = |name: &String| names.is_none_or(|names| names.contains(name));
            let stuck = state
                .topics
                .iter()
                .filter(|(name, topic)| !topic.refused.is_empty() && meant(name));
            stuck.map(|(name, _)| name.clone()).collect()
        };
        if !names.is_empty() {
            self.assign(&names, 0).await;
        }
    }
}

fn mode_of(record: &TopicRecord) -> Mode {
    match record.state {
        _ if record.deleting => Mode::Sealed,
        TopicState::Active => Mode::Replicate,
        TopicState::Paused => Mode::Paused,
        TopicState::Faulted => Mode::Held {
            state: PartitionState::Faulted(observe::fault_code(record)),
            reason: record.reason.clone().unwrap_or_default(),
        },
        TopicState::FailingOver | TopicState::FailedOver => Mode::Sealed,
    }
}
