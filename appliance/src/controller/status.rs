//! What `status` says: the controller's decisions and the shards' observations, put together.
//!
//! Unknown is absent, never zero.

use super::link::{Health, Link, Topic};
use super::records::End;
use super::verbs::shown_id;
use super::{Controller, wall_ms};
use crate::states::{Answer, LinkMode, LinkState, TopicState};
use serde::{Deserialize, Serialize};
use shards::control::{FaultCode, PartitionKey, PartitionState, PartitionStatus, ShardStatus};
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

/// Shortest time over which a rate is worth computing.
const RATE_WINDOW_MIN_MS: i64 = 500;
/// Of a partition that its shard has sealed while its topic has not failed over.
pub(super) const SEALED_ONLY: &str = "a failover that failed has sealed it, and it is fetched no \
                                      more: run the failover again, or start the node again to go \
                                      on copying";

/// The whole node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeView {
    /// This version.
    pub version: String,
    /// Node id from the configuration.
    pub node_id: u32,
    /// Whether boot has ended.
    pub ready: bool,
    /// Wall clock of this answer.
    pub now_ms: i64,
    /// Data shards.
    pub shards: Vec<ShardView>,
    /// Links, topics, partitions.
    pub links: Vec<LinkView>,
    /// What the last reload of the configuration file refused, and why.
    pub reload_refused: Vec<Answer>,
}

/// One data shard.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ShardView {
    /// Its number.
    pub shard: usize,
    /// Whether it answered; the rest is absent when it did not.
    pub answers: bool,
    /// Partitions it owns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partitions: Option<usize>,
    /// Memory it uses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_used_bytes: Option<u64>,
    /// Memory it may use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_budget_bytes: Option<u64>,
    /// CPU time of its thread.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_seconds: Option<f64>,
    /// Record bytes received since start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub received_bytes: Option<u64>,
}

/// One link.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LinkView {
    /// Its name.
    pub name: String,
    /// Its state.
    pub state: String,
    /// Stable code of the trouble.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// For people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When the state began.
    pub since_ms: i64,
    /// When the source is asked again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_at_ms: Option<i64>,
    /// When the source last answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answered_at_ms: Option<i64>,
    /// The source's cluster id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_id: Option<String>,
    /// Brokers of the source when last seen.
    pub brokers: usize,
    /// Sockets that shards have open to the source.
    pub connections: u32,
    /// How many topics it has.
    pub topics_total: usize,
    /// How many partitions.
    pub partitions_total: usize,
    /// Totals over its partitions.
    #[serde(flatten)]
    pub totals: Totals,
    /// Its topics; absent where only links are asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topics: Option<Vec<TopicView>>,
}

/// Sums over partitions.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Totals {
    /// Sum of what is known; absent when nothing is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lag_records: Option<i64>,
    /// The worst of what is known; absent when nothing is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lag_seconds: Option<f64>,
    /// Partitions whose lag is not known.
    pub lag_unknown_partitions: usize,
    /// Record bytes per second; absent until measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_bytes_per_second: Option<f64>,
    /// Partitions that need a person: FAULTED, CORRUPT, DISK_FULL, MEMORY_SHORT.
    pub troubled_partitions: usize,
}

/// One topic.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TopicView {
    /// Its name.
    pub name: String,
    /// The source's id of it, as Kafka prints it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topic_id: Option<String>,
    /// Its state.
    pub state: String,
    /// Stable code of the trouble.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// For people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When the state began.
    pub since_ms: i64,
    /// How many partitions.
    pub partitions_total: usize,
    /// Totals over its partitions.
    #[serde(flatten)]
    pub totals: Totals,
    /// Where the copy ended at failover.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub ends: Vec<End>,
    /// Its partitions; absent where only topics are asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partitions: Option<Vec<PartitionView>>,
}

/// One partition. Ends are next offsets.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PartitionView {
    /// Its number.
    pub partition: i32,
    /// Owning shard.
    pub shard: usize,
    /// Its state; UNKNOWN while its shard does not answer.
    pub state: String,
    /// Stable code of the trouble.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// For people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When the state began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since_ms: Option<i64>,
    /// When it is tried again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_at_ms: Option<i64>,
    /// Broker it is fetched from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leader: Option<i32>,
    /// First offset of the copy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_start: Option<i64>,
    /// The source's end when last heard.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_end: Option<i64>,
    /// Received and checked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub received: Option<i64>,
    /// Survives the death of the process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub written: Option<i64>,
    /// Survives power loss.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flushed: Option<i64>,
    /// What the source has and is not written here; 0 before a gap that its log ends with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lag_records: Option<i64>,
    /// Time since the copy last had all of the source; grows while the source is away.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lag_seconds: Option<f64>,
    /// Record bytes per second; absent until measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_bytes_per_second: Option<f64>,
    /// Data folder.
    pub data_dir: String,
}

/// How much of a view to fill in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Depth {
    /// Links alone.
    Links,
    /// Links and topics.
    Topics,
    /// Everything.
    Partitions,
}

/// Remembers earlier counters, so that rates can be told.
#[derive(Default)]
pub struct Rates {
    latest: RefCell<Sample>,
    before: RefCell<Sample>,
}

/// When and how many bytes, by partition.
type Sample = HashMap<PartitionKey, (i64, u64)>;

impl Rates {
    /// Takes counters in; call it every few seconds.
    pub fn sample(&self, statuses: &[Option<ShardStatus>], now_ms: i64) {
        // The oldest goes first: of thousands of partitions there are never three tables.
        self.before.replace(self.latest.take());
        let partitions = statuses.iter().flatten().flat_map(|status| &status.partitions);
        let fresh = partitions.map(|status| (status.key.clone(), (now_ms, status.bytes_received)));
        self.latest.replace(fresh.collect());
    }

    fn rate(&self, status: &PartitionStatus, now_ms: i64) -> Option<f64> {
        // Right after a sample was taken, the one before it tells more.
        [&self.latest, &self.before].into_iter().find_map(|sample| {
            let (then_ms, bytes) = *sample.borrow().get(&status.key)?;
            let elapsed_ms = now_ms - then_ms;
            // A counter that went back belongs to an earlier life of the partition.
            let grown = status.bytes_received.checked_sub(bytes)?;
            (elapsed_ms >= RATE_WINDOW_MIN_MS).then(|| grown as f64 * 1000.0 / elapsed_ms as f64)
        })
    }
}

/// One moment of the whole node, to build views from.
pub struct Snapshot<'a> {
    statuses: &'a [Option<ShardStatus>],
    partitions: HashMap<(&'a str, &'a str, i32), &'a PartitionStatus>,
    rates: &'a Rates,
    now_ms: i64,
}

impl<'a> Snapshot<'a> {
    /// Sorts the shards' answers by partition.
    pub fn new(statuses: &'a [Option<ShardStatus>], rates: &'a Rates) -> Self {
        let all = statuses.iter().flatten().flat_map(|status| &status.partitions);
        let partitions = all
            .map(|status| ((&*status.key.link, &*status.key.topic, status.key.partition), status))
            .collect();
        Snapshot { statuses, partitions, rates, now_ms: wall_ms() }
    }

    /// The whole node.
    pub fn node(&self, controller: &Controller, depth: Depth) -> NodeView {
        let shards = self.statuses.iter().enumerate().map(|(shard, status)| {
            let stats = status.as_ref().map(|status| &status.stats);
            ShardView {
                shard,
                answers: status.is_some(),
                partitions: status.as_ref().map(|status| status.partitions.len()),
                memory_used_bytes: stats.map(|stats| stats.memory_used),
                memory_budget_bytes: stats.map(|stats| stats.memory_budget),
                cpu_seconds: stats.map(|stats| stats.cpu_ns as f64 / 1e9),
                received_bytes: stats.map(|stats| stats.bytes_received),
            }
        });
        let links: Vec<Rc<Link>> = controller.links();
        NodeView {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node_id: controller.config().node.id,
            ready: controller.is_booted(),
            now_ms: self.now_ms,
            shards: shards.collect(),
            links: links.iter().map(|link| self.link(link, depth)).collect(),
            reload_refused: controller.last_reload().map_or_else(Vec::new, |reload| reload.refused),
        }
    }

    /// One link.
    pub fn link(&self, link: &Link, depth: Depth) -> LinkView {
        let (shown, code, reason, since_ms) = link.shown();
        let state = link.state.borrow();
        let (retry_at_ms, answered_at_ms) = match (&state.health, shown) {
            (Health::Ill { retry_at_ms, .. }, LinkState::Unavailable) => (Some(*retry_at_ms), None),
            (Health::Well { at_ms, .. }, _) => (None, Some(*at_ms)),
            _ => (None, None),
        };
        // Totals need the partitions, whatever the depth of the answer.
        let topics: Vec<TopicView> =
            state.topics.iter().map(|(name, topic)| self.topic(link, name, topic)).collect();
        let connections = self.statuses.iter().flatten().flat_map(|status| &status.connections);
        let ours = connections.filter(|(name, _)| name == link.name()).map(|(_, count)| *count);
        LinkView {
            name: link.name().to_string(),
            state: shown.name().to_owned(),
            code,
            reason,
            since_ms,
            retry_at_ms,
            answered_at_ms,
            cluster_id: state.record.cluster_id.clone(),
            brokers: state.brokers,
            connections: ours.sum(),
            topics_total: topics.len(),
            partitions_total: topics.iter().map(|topic| topic.partitions_total).sum(),
            totals: sum(topics.iter().map(|topic| &topic.totals)),
            topics: (depth > Depth::Links).then(|| trim(topics, depth)),
        }
    }

    /// One topic with its partitions, if the link has it.
    pub fn topic_of(&self, link: &Link, name: &str) -> Option<TopicView> {
        let state = link.state.borrow();
        let topic = state.topics.get(name)?;
        Some(self.topic(link, name, topic))
    }

    fn topic(&self, link: &Link, name: &str, topic: &Topic) -> TopicView {
        let follows = topic.record.state != TopicState::FailedOver;
        let link_paused = link.mode() == LinkMode::Paused;
        let paused = topic.record.state == TopicState::Paused || link_paused;
        let over = matches!(topic.record.state, TopicState::FailingOver | TopicState::FailedOver);
        let partitions: Vec<PartitionView> = topic
            .shards
            .iter()
            .enumerate()
            .map(|(number, shard)| {
                let key = (&**link.name(), name, number as i32);
                let status = self.partitions.get(&key).copied();
                let dir = topic.record.partitions[number].display().to_string();
                let mut view = self.partition(number as i32, *shard, dir, status, follows);
                // What was decided is shown where the shard has no trouble to report.
                let decided = match status.map(|status| status.state) {
                    Some(PartitionState::Sealed) if over => Some(topic.record.state.name()),
                    Some(
                        PartitionState::Starting
                        | PartitionState::Active
                        | PartitionState::Retrying,
                    ) if paused => Some(TopicState::Paused.name()),
                    _ => None,
                };
                if let (None, Some(reason)) = (status, topic.refused.get(&(number as i32))) {
                    let code = FaultCode::LocalLog;
                    view.state = PartitionState::Faulted(code).name().to_owned();
                    view.code = Some(code.name().to_owned());
                    view.reason = Some(reason.clone());
                }
                let silent = self.statuses.get(*shard).is_some_and(Option::is_none);
                if silent && view.reason.is_none() {
                    view.reason = Some(format!("shard {shard}, which has it, does not answer"));
                }
                if !over && status.is_some_and(|status| status.state == PartitionState::Sealed) {
                    view.reason = Some(match topic.record.deleting {
                        true => "it is being deleted".to_owned(),
                        false => SEALED_ONLY.to_owned(),
                    });
                }
                if let Some(decided) = decided {
                    view.state = decided.to_owned();
                    view.retry_at_ms = None;
                    view.reason = None;
                }
                view
            })
            .collect();
        let mut totals = totals(partitions.iter());
        if !follows {
            totals.lag_unknown_partitions = 0;
        }
        TopicView {
            name: name.to_owned(),
            topic_id: shown_id(&topic.record),
            state: topic.record.state.name().to_owned(),
            code: topic.record.code.clone(),
            reason: topic.record.reason.clone(),
            since_ms: topic.record.since_ms,
            partitions_total: partitions.len(),
            totals,
            ends: topic.record.ends.clone(),
            partitions: Some(partitions),
        }
    }

    /// `follows`: whether there still is a source to lag behind.
    fn partition(
        &self,
        partition: i32,
        shard: usize,
        data_dir: String,
        status: Option<&PartitionStatus>,
        follows: bool,
    ) -> PartitionView {
        let lag_ms = status
            .filter(|_| follows)
            .and_then(|status| status.caught_up_at_ms)
            .map(|at_ms| (self.now_ms - at_ms).max(0));
        let source_end = status.and_then(|status| status.source_end);
        let lag_records = status
            .zip(status.and_then(|status| status.source_records_end))
            .filter(|_| follows)
            .map(|(status, end)| (end - status.written).max(0));
        PartitionView {
            partition,
            shard,
            state: status.map_or("UNKNOWN", |status| status.state.name()).to_owned(),
            code: status.and_then(|status| code_of(status.state)),
            reason: status.and_then(|status| status.reason.clone()),
            since_ms: status.map(|status| status.since_ms),
            retry_at_ms: status.and_then(|status| status.retry_at_ms),
            leader: status.and_then(|status| status.leader),
            log_start: status.map(|status| status.log_start),
            source_end,
            received: status.map(|status| status.received),
            written: status.map(|status| status.written),
            flushed: status.map(|status| status.flushed),
            lag_records,
            lag_seconds: lag_ms.map(|ms| ms as f64 / 1000.0),
            rate_bytes_per_second: status.and_then(|status| self.rates.rate(status, self.now_ms)),
            data_dir,
        }
    }
}

fn code_of(state: PartitionState) -> Option<String> {
    match state {
        PartitionState::Faulted(code) => Some(code.name().to_owned()),
        _ => None,
    }
}

fn trim(mut topics: Vec<TopicView>, depth: Depth) -> Vec<TopicView> {
    if depth < Depth::Partitions {
        for topic in &mut topics {
            topic.partitions = None;
        }
    }
    topics
}

/// Totals of totals.
fn sum<'a>(all: impl Iterator<Item = &'a Totals>) -> Totals {
    let mut sum = Totals::default();
    for totals in all {
        if let Some(lag) = totals.lag_records {
            *sum.lag_records.get_or_insert(0) += lag;
        }
        if let Some(lag) = totals.lag_seconds {
            sum.lag_seconds = Some(sum.lag_seconds.map_or(lag, |worst| worst.max(lag)));
        }
        if let Some(rate) = totals.rate_bytes_per_second {
            *sum.rate_bytes_per_second.get_or_insert(0.0) += rate;
        }
        sum.lag_unknown_partitions += totals.lag_unknown_partitions;
        sum.troubled_partitions += totals.troubled_partitions;
    }
    sum
}

fn totals<'a>(partitions: impl Iterator<Item = &'a PartitionView>) -> Totals {
    let mut totals = Totals::default();
    for partition in partitions {
        match partition.lag_records {
            Some(lag) => *totals.lag_records.get_or_insert(0) += lag,
            None => totals.lag_unknown_partitions += 1,
        }
        if let Some(lag) = partition.lag_seconds {
            totals.lag_seconds = Some(totals.lag_seconds.map_or(lag, |worst| worst.max(lag)));
        }
        if let Some(rate) = partition.rate_bytes_per_second {
            *totals.rate_bytes_per_second.get_or_insert(0.0) += rate;
        }
        let troubled = matches!(
            partition.state.as_str(),
            "FAULTED" | "CORRUPT" | "DISK_FULL" | "MEMORY_SHORT" | "SEALED"
        ) || (partition.state == "UNKNOWN" && partition.reason.is_some());
        totals.troubled_partitions += usize::from(troubled);
    }
    totals
}
