//! Following the source: asking for its metadata, and what the answers come to.
//!
//! An answer is taken in under the link's turn, in this order: is it the right cluster, which
//! topics are new, what has become of those we know, who leads. Leaders come last, so that nothing
//! is fetched of a topic that has just been found to be another.

use super::{Health, Link, Topic, mode_of};
use crate::controller::observe::{Observation, observe};
use crate::controller::records::{self, TopicRecord};
use crate::controller::source::{SourceCluster, SourcePartition, SourceTopic};
use crate::controller::store::StoreError;
use crate::controller::wall_ms;
use crate::states::TopicState;
use shards::control::{
    Broker, ClusterView, Command, Mode, PartitionState, PartitionView, TopicView,
};
use std::collections::BTreeMap;
use std::hash::BuildHasher;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep_until, timeout};

/// First wait after a source failed.
const RETRY_MIN: Duration = Duration::from_secs(1);
/// Longest wait. A probe is one connection, and every second of it is copy we do not have when the
/// source is back, so this is shorter than what partitions use.
const RETRY_MAX: Duration = Duration::from_secs(30);
/// Least time between two questions, however often shards ask for fresh leaders.
const REFRESH_MIN: Duration = Duration::from_millis(500);
/// How long a broker's name may take to resolve.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(2);

impl Link {
    /// The link's task: asks the source at its interval, sooner when woken, later while it fails.
    pub(super) async fn follow(self: Rc<Self>) {
        while !self.retired.get() {
            if !self.may_run() {
                self.wake.notified().await;
                continue;
            }
            let asked = Instant::now();
            let mut stored = true;
            match self.ask_source().await {
                Some(Ok((cluster, brokers))) => {
                    if let Err(error) = self.apply(cluster, brokers).await {
                        tracing::error!(link = &*self.name, %error, "discovery cannot be stored");
                        stored = false;
                    }
                }
                Some(Err(reason)) => self.failed("source_unreachable", reason),
                None => continue,
            }
            let mut next = Instant::now() + self.next_delay();
            let mut soonest = asked + REFRESH_MIN;
            if !stored {
                // Neither the source nor the disk gains by being asked all the time.
                let interval = self.state.borrow().config.metadata_interval;
                next = asked + interval.clamp(RETRY_MIN, RETRY_MAX);
                soonest = asked + RETRY_MIN;
            }
            tokio::select! {
                () = sleep_until(next) => {}
                () = self.wake.notified() => sleep_until(soonest).await,
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
        // When it answers again, shards are told even if nothing has changed: they then try at
        // once what they would else try at the end of their own pauses.
        state.view = None;
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
            let at_ms = wall_ms();
            let since_ms = match state.health {
                Health::Well { since_ms, .. } => since_ms,
                Health::Ill { .. } => {
                    tracing::info!(link = %self.name(), "the link is ACTIVE: the source answers");
                    at_ms
                }
                Health::Unknown => at_ms,
            };
            state.health = Health::Well { since_ms, at_ms };
            state.brokers = cluster.brokers.len();
            std::mem::take(&mut state.barred)
        };
        // Each by itself: what cannot be stored of one topic keeps no other from being fetched.
        let discovered = self.discover(&cluster).await;
        let compared = self.compare_known(&cluster).await;
        self.push_leaders(&cluster, brokers).await;
        if was_barred {
            // By now nobody goes by who led before.
            self.open_gate().await;
        }
        discovered.and(compared)
    }

    /// Lets the shards fetch again. That ends what control holds, too, so it is held anew: a topic
    /// that was recreated stays FAULTED until it is resumed itself.
    pub(in crate::controller) async fn open_gate(&self) {
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
            self.shared.store.commit(vec![records::set_link(&self.name, &record)]).await?;
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
        let changes =
            fresh.iter().map(|(name, record)| records::set_topic(&self.name, name, record));
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
                let known = topic.record.partitions.len();
                let whole =
                    |seen: &SourceTopic| seen.error.is_some() || seen.partitions.len() >= known;
                let there = seen.is_some_and(whole);
                topic.missing = if there { 0 } else { topic.missing.saturating_add(1) };
                let dense = seen.is_none_or(is_dense);
                if topic.record.deleting {
                    return None;
                }
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
            changes.push(records::set_topic(&self.name, &name, &record));
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

/// Partitions must be numbered 0, 1, 2 …: everything here counts on it.
fn is_dense(topic: &SourceTopic) -> bool {
    let numbers = topic.partitions.iter().map(|partition| partition.partition);
    numbers.eq(0..topic.partitions.len() as i32)
}

fn view_of(topic: &SourceTopic) -> TopicView {
    let partition = |seen: &SourcePartition| PartitionView {
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
