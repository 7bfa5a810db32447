//! Every metric family, written from one snapshot.

use crate::controller::status::{LinkView, NodeView, Totals};
use crate::states::{LinkState, TopicState};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;
use shards::control::{ShardStats, ShardStatus};
use std::collections::BTreeMap;
use std::fmt::{Error, Result};

/// States a partition is counted by.
const PARTITION_STATES: [&str; 12] = [
    "STARTING",
    "ACTIVE",
    "PAUSED",
    "RETRYING",
    "DISK_FULL",
    "MEMORY_SHORT",
    "FAULTED",
    "CORRUPT",
    "SEALED",
    "FAILING_OVER",
    "FAILED_OVER",
    "UNKNOWN",
];

/// One snapshot, to be written once.
#[derive(Debug)]
pub struct Scrape {
    node: NodeView,
    shards: Vec<Option<ShardStats>>,
    events: BTreeMap<&'static str, u64>,
}

type Labels = Vec<(&'static str, String)>;

impl Scrape {
    pub fn new(
        node: NodeView,
        statuses: Vec<Option<ShardStatus>>,
        events: BTreeMap<&'static str, u64>,
    ) -> Self {
        let shards = statuses.into_iter().map(|status| status.map(|status| status.stats));
        Scrape { node, shards: shards.collect(), events }
    }
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result {
        let out = &mut encoder;
        self.build(out)?;
        self.links(out)?;
        self.topics(out)?;
        self.partitions(out)?;
        self.shard_counters(out)?;
        self.shard_gauges(out)
    }
}

impl Scrape {
    fn build(&self, out: &mut DescriptorEncoder<'_>) -> Result {
        let version = vec![("version", self.node.version.clone())];
        gauges(out, "build", "This version", None, [(version, 1.0)])?;
        let events = self
            .events
            .iter()
            .map(|(kind, count)| (vec![("kind", (*kind).to_owned())], *count as f64));
        counters(out, "events", "What shards reported unasked, by kind", None, events)
    }

    fn links(&self, out: &mut DescriptorEncoder<'_>) -> Result {
        let links = &self.node.links;
        let states = links.iter().flat_map(|link| {
            LinkState::ALL.into_iter().map(|state| {
                let labels = labelled(link, &[("state", state.name())]);
                (labels, f64::from(u8::from(link.state == state.name())))
            })
        });
        gauges(out, "link_state", "1 for the state the link is in", None, states)?;
        let sockets = links.iter().map(|link| (labelled(link, &[]), f64::from(link.connections)));
        let help = "Sockets open to the source for records";
        gauges(out, "link_connections", help, None, sockets)?;
        let totals: Vec<(Labels, &Totals)> =
            links.iter().map(|link| (labelled(link, &[]), &link.totals)).collect();
        lags(out, "link", &totals)
    }

    fn topics(&self, out: &mut DescriptorEncoder<'_>) -> Result {
        let each = || {
            let of = |link| topics_of(link).map(move |topic| (link, topic));
            self.node.links.iter().flat_map(of)
        };
        let states = each().flat_map(|(link, topic)| {
            TopicState::ALL.into_iter().map(move |state| {
                let labels = labelled(link, &[("topic", &topic.name), ("state", state.name())]);
                (labels, f64::from(u8::from(topic.state == state.name())))
            })
        });
        gauges(out, "topic_state", "1 for the state the topic is in", None, states)?;
        let totals: Vec<(Labels, &Totals)> = each()
            .map(|(link, topic)| (labelled(link, &[("topic", &topic.name)]), &topic.totals))
            .collect();
        lags(out, "topic", &totals)
    }

    fn partitions(&self, out: &mut DescriptorEncoder<'_>) -> Result {
        let mut by_state: Vec<(Labels, f64)> = Vec::new();
        let mut states = Vec::new();
        let mut lag_records = Vec::new();
        let mut lag_seconds = Vec::new();
        for link in &self.node.links {
            let mut counts = [0usize; PARTITION_STATES.len()];
            for topic in topics_of(link) {
                for partition in topic.partitions.iter().flatten() {
                    let number = partition.partition.to_string();
                    let labels = labelled(link, &[("topic", &topic.name), ("partition", &number)]);
                    let index = PARTITION_STATES.iter().position(|name| *name == partition.state);
                    counts[index.unwrap_or(PARTITION_STATES.len() - 1)] += 1;
                    let lag = partition.lag_records.map(|lag| (labels.clone(), lag as f64));
                    lag_records.extend(lag);
                    lag_seconds.extend(partition.lag_seconds.map(|lag| (labels.clone(), lag)));
                    let mut labels = labels;
                    labels.push(("state", partition.state.clone()));
                    states.push((labels, 1.0));
                }
            }
            for (state, count) in PARTITION_STATES.iter().zip(counts) {
                by_state.push((labelled(link, &[("state", state)]), count as f64));
            }
        }
        gauges(out, "partitions", "Partitions by state", None, by_state)?;
        gauges(out, "partition_state", "The state the partition is in", None, states)?;
        let help = "Records the copy lacks; absent when unknown";
        gauges(out, "partition_lag_records", help, None, lag_records)?;
        let help = "Time since the copy last had all of the source; absent when unknown";
        gauges(out, "partition_lag", help, Some(Unit::Seconds), lag_seconds)
    }

    fn shard_counters(&self, out: &mut DescriptorEncoder<'_>) -> Result {
        type Counter = (&'static str, &'static str, Option<Unit>, fn(&ShardStats) -> f64);
        let families: [Counter; 12] = [
            ("shard_received", "Record bytes received", Some(Unit::Bytes), |s| {
                s.bytes_received as f64
            }),
            ("shard_written", "Bytes written to logs", Some(Unit::Bytes), |s| {
                s.bytes_written as f64
            }),
            ("shard_records", "Records received", None, |s| s.records as f64),
            ("shard_fetches", "Fetch requests answered", None, |s| s.fetches as f64),
            ("shard_flushes", "Flushes of a file system", None, |s| s.flushes as f64),
            ("shard_cpu", "CPU time of the shard's thread", Some(Unit::Seconds), |s| {
                s.cpu_ns as f64 / 1e9
            }),
            ("shard_enter", "Time in io_uring_enter", Some(Unit::Seconds), |s| {
                s.enter_ns as f64 / 1e9
            }),
            (
                "shard_enter_busy",
                "Time in io_uring_enter when nothing was waited for",
                Some(Unit::Seconds),
                |s| s.enter_busy_ns as f64 / 1e9,
            ),
            ("shard_enters", "Calls of io_uring_enter", None, |s| s.enters as f64),
            ("shard_verified", "Stored bytes read again", Some(Unit::Bytes), |s| {
                s.bytes_verified as f64
            }),
            ("shard_damages_found", "Damaged ranges found in stored bytes", None, |s| {
                s.damages_found as f64
            }),
            ("shard_damages_repaired", "Damaged ranges mended from the source", None, |s| {
                s.damages_repaired as f64
            }),
        ];
        for (name, help, unit, value) in families {
            let samples = self.answering().map(|(labels, stats)| (labels, value(stats)));
            counters(out, name, help, unit, samples)?;
        }
        let errors = self.answering().flat_map(|(labels, stats)| {
            stats.errors.iter().map(move |(kind, count)| {
                let mut labels = labels.clone();
                labels.push(("kind", (*kind).to_owned()));
                (labels, *count as f64)
            })
        });
        counters(out, "shard_errors", "Errors by kind", None, errors)
    }

    fn shard_gauges(&self, out: &mut DescriptorEncoder<'_>) -> Result {
        let up = self
            .shards
            .iter()
            .enumerate()
            .map(|(shard, stats)| (shard_label(shard), f64::from(u8::from(stats.is_some()))));
        gauges(out, "shard_up", "1 if the shard answers", None, up)?;
        let verified = self
            .answering()
            .filter_map(|(labels, stats)| Some((labels, stats.verified_at_ms? as f64 / 1000.0)));
        let help = "When all that is stored was last verified, since the epoch; absent when not \
                    since start";
        gauges(out, "shard_verified_at", help, Some(Unit::Seconds), verified)?;
        type Gauge = (&'static str, &'static str, fn(&ShardStats) -> u64);
        let families: [Gauge; 3] = [
            ("shard_memory_budget", "Memory the shard may use", |s| s.memory_budget),
            ("shard_memory_used", "Memory the shard uses", |s| s.memory_used),
            ("shard_memory_peak", "The most it has used", |s| s.memory_peak),
        ];
        for (name, help, value) in families {
            let samples = self.answering().map(|(labels, stats)| (labels, value(stats) as f64));
            gauges(out, name, help, Some(Unit::Bytes), samples)?;
        }
        Ok(())
    }

    fn answering(&self) -> impl Iterator<Item = (Labels, &ShardStats)> {
        let shards = self.shards.iter().enumerate();
        shards.filter_map(|(shard, stats)| Some((shard_label(shard), stats.as_ref()?)))
    }
}

fn topics_of(link: &LinkView) -> impl Iterator<Item = &crate::controller::status::TopicView> {
    link.topics.iter().flatten()
}

fn shard_label(shard: usize) -> Labels {
    vec![("shard", shard.to_string())]
}

fn labelled(link: &LinkView, more: &[(&'static str, &str)]) -> Labels {
    let mut labels = vec![("link", link.name.clone())];
    labels.extend(more.iter().map(|(name, value)| (*name, (*value).to_owned())));
    labels
}

fn lags(out: &mut DescriptorEncoder<'_>, of: &str, totals: &[(Labels, &Totals)]) -> Result {
    let known = |value: fn(&Totals) -> Option<f64>| {
        totals.iter().filter_map(move |(labels, totals)| Some((labels.clone(), value(totals)?)))
    };
    let records = known(|totals| totals.lag_records.map(|lag| lag as f64));
    let help = "Records the copy lacks, where known; absent when unknown";
    gauges(out, &format!("{of}_lag_records"), help, None, records)?;
    let seconds = known(|totals| totals.lag_seconds);
    let help = "Time since the copy last had all of the source, the worst partition's";
    gauges(out, &format!("{of}_lag"), help, Some(Unit::Seconds), seconds)?;
    let unknown = known(|totals| Some(totals.lag_unknown_partitions as f64));
    let help = "Partitions whose lag is not known";
    gauges(out, &format!("{of}_lag_unknown_partitions"), help, None, unknown)
}

fn gauges(
    out: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    unit: Option<Unit>,
    samples: impl IntoIterator<Item = (Labels, f64)>,
) -> Result {
    let family = out.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?;
    each(family, samples, |encoder, value| ConstGauge::new(value).encode(encoder))
}

fn counters(
    out: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    unit: Option<Unit>,
    samples: impl IntoIterator<Item = (Labels, f64)>,
) -> Result {
    let family = out.encode_descriptor(name, help, unit.as_ref(), MetricType::Counter)?;
    each(family, samples, |encoder, value| ConstCounter::new(value).encode(encoder))
}

fn each(
    mut family: MetricEncoder<'_>,
    samples: impl IntoIterator<Item = (Labels, f64)>,
    write: impl Fn(MetricEncoder<'_>, f64) -> std::result::Result<(), Error>,
) -> Result {
    for (labels, value) in samples {
        write(family.encode_family(&labels)?, value)?;
    }
    Ok(())
}
