//! One link: its topics, its source's metadata, and what its shards are told.

use super::observe::{self, Observation, observe};
use super::records::{Change, LinkRecord, TopicRecord};
use super::source::{Source, SourceCluster, SourceTopic};
use super::store::StoreError;
use super::{Shared, may_talk, wall_ms};
use crate::config::LinkConfig;
use crate::reload::LinkFacts;
use crate::shard_port::{
    Assign, Broker, ClusterView, Command, LinkSettings, Mode, PartitionKey, PartitionState,
    PartitionView, TopicView,
};
use crate::states::{LinkMode, LinkState, TopicState};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::hash::BuildHasher;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, Notify, watch};
use tokio::time::{Instant, sleep_until, timeout};

/// First wait after a source failed.
const RETRY_MIN: Duration = Duration::from_secs(1);
/// Longest wait. A probe is one connection, and every second of it is copy we do not have when the
/// source is back, so this is shorter than what partitions use.
const RETRY_MAX: Duration = Duration::from_secs(30);
/// Least time between two questions, however often shards ask for fresh leaders.
const REFRESH_MIN: Duration = Duration::from_millis(500);
/// Kafka's defaults of `segment.bytes` and `segment.ms`.
const SEGMENT_BYTES: u32 = 1 << 30;
const SEGMENT_MS: i64 = 7 * 86_400_000;
/// How long a broker's name may take to resolve.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(2);

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
    /// The shards were told to stop because another cluster answered.
    barred: bool,
}

/// A topic at run time.
pub struct Topic {
    /// What is durable.
    pub record: TopicRecord,
    /// Owning shard of each partition.
    pub shards: Vec<usize>,
    /// Partitions whose shard could not open them, and why. Tried again by `resume`.
    pub refused: BTreeMap<i32, String>,
    /// Answers in a row that left it out.
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
            (LinkMode::Active, Health::Well { .. }) => decided(LinkState::Active),
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
    /// interrupted.
    ///
    /// # Errors
    /// When the metadata store fails.
    pub async fn boot(&self) -> Result<(), StoreError> {
        let _turn = self.turn.lock().await;
        if self.mode() == LinkMode::Deleted {
            return Ok(());
        }
        self.send_settings().await;
        if self.mode() == LinkMode::Paused {
            // The gate is closed before there is anything behind it.
            let _ = self.shared.shards.pause(&self.name, None).await;
        }
        let names: Vec<String> = self.state.borrow().topics.keys().cloned().collect();
        self.assign(&names, 0).await;
        self.finish_deletions().await?;
        self.finish_failovers().await?;
        Ok(())
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

    /// The link's task: asks the source at its interval, sooner when woken, later while it fails.
    async fn follow(self: Rc<Self>) {
        while !self.retired.get() {
            if !self.may_run() {
                self.wake.notified().await;
                continue;
            }
            let asked = Instant::now();
            match self.ask_source().await {
                Some(Ok((cluster, brokers))) => {
                    if let Err(error) = self.apply(cluster, brokers).await {
                        tracing::error!(link = &*self.name, %error, "discovery cannot be stored");
                    }
                }
                Some(Err(reason)) => self.failed("source_unreachable", reason),
                None => continue,
            }
            let next = Instant::now() + self.next_delay();
            tokio::select! {
                () = sleep_until(next) => {}
                () = self.wake.notified() => sleep_until(asked + REFRESH_MIN).await,
            }
        }
    }

    /// One question; `None` when the gate closed meanwhile.
    async fn ask_source(&self) -> Option<Result<(SourceCluster, Vec<Broker>), String>> {
        let mut source = match self.source.borrow_mut().take() {
            Some(source) => source,
            None => self.shared.connector.source(&self.state.borrow().config),
        };
        self.open.send_replace(true);
        let answer = tokio::select! {
            answer = async {
                let cluster = source.metadata().await?;
                let brokers = resolve(&cluster).await;
                Ok((cluster, brokers))
            } => Some(answer),
            () = self.gate.notified() => None,
        };
        match answer {
            Some(Ok(_)) if self.may_run() => *self.source.borrow_mut() = Some(source),
            _ => drop(source),
        }
        self.open.send_replace(false);
        answer.filter(|_| self.may_run())
    }

    fn failed(&self, code: &'static str, reason: String) {
        let mut state = self.state.borrow_mut();
        let (since_ms, failures) = match &state.health {
            Health::Ill { since_ms, failures, .. } => (*since_ms, failures + 1),
            _ => {
                tracing::warn!(link = &*self.name, code, reason, "the link is UNAVAILABLE");
                (wall_ms(), 1)
            }
        };
        let delay = RETRY_MAX.min(RETRY_MIN * 2u32.saturating_pow(failures.min(16) - 1));
        let delay = jittered(delay);
        let retry_at_ms = wall_ms() + delay.as_millis() as i64;
        state.health = Health::Ill { code, reason, since_ms, retry_at_ms, failures };
    }

    fn next_delay(&self) -> Duration {
        let state = self.state.borrow();
        match &state.health {
            Health::Ill { retry_at_ms, .. } => {
                Duration::from_millis((retry_at_ms - wall_ms()).max(0) as u64)
            }
            _ => state.config.metadata_interval,
        }
    }

    /// Takes in what the source said: identity first, then topics, then leaders.
    async fn apply(&self, cluster: SourceCluster, brokers: Vec<Broker>) -> Result<(), StoreError> {
        let _turn = self.turn.lock().await;
        if !self.may_run() {
            return Ok(());
        }
        if !self.is_the_one(&cluster).await? {
            return Ok(());
        }
        let was_barred = {
            let mut state = self.state.borrow_mut();
            state.health = Health::Well { at_ms: wall_ms() };
            state.brokers = cluster.brokers.len();
            std::mem::take(&mut state.barred)
        };
        if was_barred {
            self.open_gate().await;
        }
        self.discover(&cluster).await?;
        self.compare_known(&cluster).await?;
        self.push_leaders(&cluster, brokers).await;
        Ok(())
    }

    /// Lets the shards fetch again. That ends what control holds, too, so it is held anew: a topic
    /// that was recreated stays FAULTED until it is resumed itself.
    pub(super) async fn open_gate(&self) {
        let link = &self.name;
        let command = || Command::Resume { link: link.clone(), topics: None };
        self.shared.shards.broadcast(command).await;
        let held: Vec<(Arc<str>, Mode)> = {
            let state = self.state.borrow();
            let faulted = |topic: &&Topic| topic.record.state == TopicState::Faulted;
            let topics = state.topics.iter().filter(|(_, topic)| faulted(topic));
            topics.map(|(name, topic)| (Arc::from(name.as_str()), mode_of(&topic.record))).collect()
        };
        for (topic, mode) in held {
            let Mode::Held { state, reason } = mode else { continue };
            let (link, topic) = (&self.name, &topic);
            let command = || Command::Hold {
                link: link.clone(),
                topic: topic.clone(),
                state,
                reason: reason.clone(),
            };
            self.shared.shards.broadcast(command).await;
        }
    }

    /// Whether this is the cluster the link was made with; remembers it the first time.
    async fn is_the_one(&self, cluster: &SourceCluster) -> Result<bool, StoreError> {
        let Some(found) = &cluster.cluster_id else { return Ok(true) };
        let (expected, known) = {
            let state = self.state.borrow();
            let known = state.record.cluster_id.clone();
            (known.clone().or_else(|| state.config.cluster_id.clone()), known)
        };
        if let Some(expected) = expected
            && expected != *found
        {
            let first = !std::mem::replace(&mut self.state.borrow_mut().barred, true);
            let reason = format!(
                "another cluster answers: expected id {expected}, found {found}. Nothing is \
                 fetched from it; correct bootstrap_servers or make a new link"
            );
            self.failed("cluster_id_changed", reason);
            if first {
                let _ = self.shared.shards.pause(&self.name, None).await;
            }
            return Ok(false);
        }
        if known.is_none() {
            let mut record = self.state.borrow().record.clone();
            record.cluster_id = Some(found.clone());
            self.shared.store.commit(vec![Change::link(&self.name, &record)]).await?;
            self.state.borrow_mut().record = record;
        }
        Ok(true)
    }

    /// Topics seen for the first time: one transaction for all, then their partitions are opened.
    async fn discover(&self, cluster: &SourceCluster) -> Result<(), StoreError> {
        let now_ms = wall_ms();
        let mut fresh: Vec<(String, TopicRecord)> = Vec::new();
        {
            let state = self.state.borrow();
            let mut placement = self.shared.placement.borrow_mut();
            for topic in &cluster.topics {
                let known = state.topics.contains_key(&topic.name);
                let whole = topic.error.is_none() && is_dense(topic);
                if known || !whole || !state.config.topics.covers(&topic.name) {
                    continue;
                }
                let record = TopicRecord {
                    topic_id: topic.id,
                    partitions: topic.partitions.iter().map(|_| placement.dir()).collect(),
                    state: TopicState::Active,
                    code: None,
                    reason: None,
                    since_ms: now_ms,
                    ends: Vec::new(),
                    deleting: false,
                };
                fresh.push((topic.name.clone(), record));
            }
        }
        let changes = fresh.iter().map(|(name, record)| Change::topic(&self.name, name, record));
        self.shared.store.commit(changes.collect()).await?;
        let names: Vec<String> = fresh.iter().map(|(name, _)| name.clone()).collect();
        {
            let mut state = self.state.borrow_mut();
            let mut placement = self.shared.placement.borrow_mut();
            for (name, record) in fresh {
                let shards = record.partitions.iter().map(|_| placement.shard()).collect();
                state.topics.insert(name, Topic::new(record, shards));
            }
        }
        if !names.is_empty() {
            tracing::info!(link = &*self.name, topics = names.len(), "topics discovered");
            self.assign(&names, 0).await;
        }
        Ok(())
    }

    /// Topics known before: deleted, recreated, grown, back.
    async fn compare_known(&self, cluster: &SourceCluster) -> Result<(), StoreError> {
        let seen: BTreeMap<&str, &SourceTopic> =
            cluster.topics.iter().map(|topic| (topic.name.as_str(), topic)).collect();
        let observed: Vec<(String, Observation)> = {
            let mut state = self.state.borrow_mut();
            let look = |(name, topic): (&String, &mut Topic)| {
                let seen = seen.get(name.as_str()).copied();
                topic.missing = if seen.is_some() { 0 } else { topic.missing.saturating_add(1) };
                let dense = seen.is_none_or(is_dense);
                let observation = observe(name, &topic.record, seen, topic.missing);
                (dense && observation != Observation::Same).then(|| (name.clone(), observation))
            };
            state.topics.iter_mut().filter_map(look).collect()
        };
        let mut changes = Vec::new();
        let mut changed: Vec<(String, TopicRecord, Observation)> = Vec::new();
        for (name, observation) in observed {
            let mut record = self.state.borrow().topics[&name].record.clone();
            match &observation {
                Observation::Same => {}
                Observation::LearnId(id) => record.topic_id = Some(*id),
                Observation::Grown(count) => {
                    let mut placement = self.shared.placement.borrow_mut();
                    record.partitions.resize_with(*count, || placement.dir());
                }
                Observation::Fault { code, reason } => {
                    let code = code.name();
                    tracing::error!(link = &*self.name, topic = name, code, reason, "FAULTED");
                    record.become_state(TopicState::Faulted, Some((code, reason)), wall_ms());
                }
                Observation::Back => record.become_state(TopicState::Active, None, wall_ms()),
            }
            changes.push(Change::topic(&self.name, &name, &record));
            changed.push((name, record, observation));
        }
        self.shared.store.commit(changes).await?;
        for (name, record, observation) in changed {
            self.carry_out(name, record, observation).await;
        }
        Ok(())
    }

    async fn carry_out(&self, name: String, record: TopicRecord, observation: Observation) {
        let known = {
            let mut state = self.state.borrow_mut();
            let topic = state.topics.get_mut(&name).expect("observed under the same turn");
            let known = topic.shards.len();
            let mut placement = self.shared.placement.borrow_mut();
            topic.shards.resize_with(record.partitions.len(), || placement.shard());
            topic.record = record;
            known
        };
        let (link, topic): (_, Arc<str>) = (&self.name, Arc::from(name.as_str()));
        let shards = &self.shared.shards;
        match observation {
            Observation::Grown(_) => self.assign(&[name], known).await,
            Observation::Fault { code, reason } => {
                let command = || Command::Hold {
                    link: link.clone(),
                    topic: topic.clone(),
                    state: PartitionState::Faulted(code),
                    reason: reason.clone(),
                };
                shards.broadcast(command).await;
            }
            Observation::Back => {
                let topics = vec![topic];
                let command =
                    || Command::Resume { link: link.clone(), topics: Some(topics.clone()) };
                shards.broadcast(command).await;
            }
            Observation::Same | Observation::LearnId(_) => {}
        }
    }

    /// Tells the shards who leads, when that has changed.
    async fn push_leaders(&self, cluster: &SourceCluster, brokers: Vec<Broker>) {
        let view = {
            let mut state = self.state.borrow_mut();
            let topics = cluster
                .topics
                .iter()
                .filter(|topic| state.topics.contains_key(&topic.name))
                .map(view_of)
                .collect();
            let view = Arc::new(ClusterView { brokers, topics });
            if state.view.as_ref() == Some(&view) {
                return;
            }
            state.view = Some(view.clone());
            view
        };
        let link = &self.name;
        let command = || Command::Leaders { link: link.clone(), view: view.clone() };
        self.shared.shards.broadcast(command).await;
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

/// Partitions must be numbered 0, 1, 2 …: everything here counts on it.
fn is_dense(topic: &SourceTopic) -> bool {
    let numbers = topic.partitions.iter().map(|partition| partition.partition);
    numbers.eq(0..topic.partitions.len() as i32)
}

fn view_of(topic: &SourceTopic) -> TopicView {
    let partition = |seen: &super::source::SourcePartition| PartitionView {
        partition: seen.partition,
        leader: seen.leader,
        leader_epoch: seen.leader_epoch,
    };
    TopicView {
        topic: Arc::from(topic.name.as_str()),
        topic_id: topic.id,
        partitions: topic.partitions.iter().map(partition).collect(),
    }
}

/// Brokers with their names resolved; one that does not resolve has no address and is retried with
/// the next answer.
async fn resolve(cluster: &SourceCluster) -> Vec<Broker> {
    let mut brokers = Vec::new();
    for broker in &cluster.brokers {
        let lookup = tokio::net::lookup_host((broker.host.as_str(), broker.port));
        let mut addresses: Vec<SocketAddr> = match timeout(RESOLVE_TIMEOUT, lookup).await {
            Ok(Ok(addresses)) => addresses.collect(),
            _ => Vec::new(),
        };
        // Resolvers rotate answers; a stable order keeps unchanged views equal.
        addresses.sort_unstable();
        let (id, host, port) = (broker.id, broker.host.clone(), broker.port);
        brokers.push(Broker { id, host, port, addresses });
    }
    brokers.sort_by_key(|broker| broker.id);
    brokers
}

/// Spread by a fifth, so that many links do not ask together.
fn jittered(delay: Duration) -> Duration {
    let random = std::hash::RandomState::new().hash_one(delay) % 401;
    delay * (800 + random as u32) / 1000
}
