//! The source as a process of its own.
//!
//! A parent starts itself again with one argument, [`ChildConfig`] as text, and calls
//! [`run_child`] there. The child prints its brokers' addresses as its first line, separated by
//! commas, and ends when its standard input does: so it never outlives the parent, however that
//! ends. The parent therefore gives it a pipe as standard input and holds the other end.
//!
//! The text is a list of `key=value`, separated by blanks. Keys before the first `topic` concern
//! the source: `brokers`, `port` (of the first; the others follow), `core` (which all threads are
//! pinned to), `cluster_id`, `sessions_max`, `connections_max`, `partial_batches`, `seed`. Each
//! `topic=NAME` begins a topic: `partitions`, `seed`, `batch_bytes`, `batch_records`,
//! `ring_bytes`, `backlog` (batches per partition), `rate` (bytes a second per partition),
//! `batches_max`, `grows_after_ms`, `base_ms`, `step_us`, `first_offset`, `leader_epoch`.

use crate::server::{Config, Handle, ServeError, serve};
use crate::topic::{Content, TopicSpec};
use std::fmt::{self, Display};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::str::FromStr;

/// A child's configuration. Its text form is made by `to_string` and read by `parse`.
#[derive(Clone, Debug, PartialEq)]
pub struct ChildConfig {
    /// Number of brokers.
    pub brokers: u16,
    /// Port of the first broker; 0 takes free ones for all.
    pub port: u16,
    /// The processor that every thread is pinned to.
    pub core: Option<usize>,
    /// The cluster's id, without blanks.
    pub cluster_id: String,
    /// As [`Config::sessions_max`].
    pub sessions_max: usize,
    /// As [`Config::connections_max`].
    pub connections_max: usize,
    /// As [`Config::partial_batches`].
    pub partial_batches: bool,
    /// As [`Config::seed`].
    pub seed: u64,
    /// Topics of generated content, names without blanks.
    pub topics: Vec<TopicSpec>,
}

impl Default for ChildConfig {
    fn default() -> Self {
        let config = Config::loopback(1);
        ChildConfig {
            brokers: 1,
            port: 0,
            core: None,
            cluster_id: config.cluster_id,
            sessions_max: config.sessions_max,
            connections_max: config.connections_max,
            partial_batches: config.partial_batches,
            seed: config.seed,
            topics: Vec::new(),
        }
    }
}

/// Why a child could not run.
#[derive(Debug, thiserror::Error)]
pub enum ChildError {
    /// The configuration's text makes no sense.
    #[error("embedded source: {0}")]
    Config(String),
    /// The source could not start.
    #[error("embedded source")]
    Serve(#[from] ServeError),
    /// The addresses could not be printed, or standard input not be read.
    #[error("embedded source: standard input or output")]
    Stdio(#[from] io::Error),
}

/// Serves until standard input ends.
pub fn run_child(config: &str) -> Result<(), ChildError> {
    run_child_saying(config, |_| String::new())
}

/// The same, with what the parent is to know of the source before the addresses, on the same line.
pub fn run_child_saying(
    config: &str,
    say: impl FnOnce(&Handle) -> String,
) -> Result<(), ChildError> {
    let config: ChildConfig = config.parse()?;
    if let Some(core) = config.core
        && !core_affinity::set_for_current(core_affinity::CoreId { id: core })
    {
        return Err(ChildError::Config(format!("cannot run on core {core}")));
    }
    let handle = serve(config.server_config()?)?;
    let addresses: Vec<String> = handle.addresses().iter().map(ToString::to_string).collect();
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{}{}", say(&handle), addresses.join(","))?;
    stdout.flush()?;
    drop(stdout);

    let mut ignored = [0; 256];
    let mut stdin = io::stdin().lock();
    loop {
        match stdin.read(&mut ignored) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Reads the addresses out of a child's first line.
pub fn parse_addresses(line: &str) -> Option<Vec<SocketAddr>> {
    line.trim().split(',').map(|address| address.parse().ok()).collect()
}

impl ChildConfig {
    fn server_config(self) -> Result<Config, ChildError> {
        let mut config = Config::loopback(0);
        for broker in 0..self.brokers {
            let port = match self.port {
                0 => Some(0),
                port => port.checked_add(broker),
            };
            let port = port.ok_or_else(|| ChildError::Config("ports above 65535".into()))?;
            config.listen.push(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        }
        config.cluster_id = self.cluster_id;
        config.sessions_max = self.sessions_max;
        config.connections_max = self.connections_max;
        config.partial_batches = self.partial_batches;
        config.seed = self.seed;
        config.topics = self.topics;
        Ok(config)
    }
}

impl FromStr for ChildConfig {
    type Err = ChildError;

    fn from_str(text: &str) -> Result<Self, ChildError> {
        let mut config = ChildConfig::default();
        for pair in text.split_ascii_whitespace() {
            let (key, value) = pair
                .split_once('=')
                .ok_or_else(|| ChildError::Config(format!("{pair:?} is not key=value")))?;
            match (key, config.topics.last_mut()) {
                ("topic", _) => config.topics.push(TopicSpec::new(value, 1, 0)),
                (_, Some(topic)) => set_of_topic(topic, key, value)?,
                (_, None) => set_of_source(&mut config, key, value)?,
            }
        }
        Ok(config)
    }
}

fn set_of_source(config: &mut ChildConfig, key: &str, value: &str) -> Result<(), ChildError> {
    match key {
        "brokers" => config.brokers = number(key, value)?,
        "port" => config.port = number(key, value)?,
        "core" => config.core = Some(number(key, value)?),
        "cluster_id" => config.cluster_id = value.into(),
        "sessions_max" => config.sessions_max = number(key, value)?,
        "connections_max" => config.connections_max = number(key, value)?,
        "partial_batches" => config.partial_batches = number(key, value)?,
        "seed" => config.seed = number(key, value)?,
        _ => return Err(ChildError::Config(format!("unknown key {key:?}"))),
    }
    Ok(())
}

fn set_of_topic(topic: &mut TopicSpec, key: &str, value: &str) -> Result<(), ChildError> {
    let Content::Generated { seed, batch_bytes, batch_records, ring_bytes } = &mut topic.content
    else {
        unreachable!("topics of a child's text are generated")
    };
    match key {
        "partitions" => topic.partitions = number(key, value)?,
        "seed" => *seed = number(key, value)?,
        "batch_bytes" => *batch_bytes = number(key, value)?,
        "batch_records" => *batch_records = number(key, value)?,
        "ring_bytes" => *ring_bytes = number(key, value)?,
        "backlog" => topic.growth.backlog_batches = number(key, value)?,
        "rate" => topic.growth.bytes_per_second = number(key, value)?,
        "batches_max" => topic.growth.batches_max = number(key, value)?,
        "grows_after_ms" => topic.grows_after_ms = number(key, value)?,
        "base_ms" => topic.timestamps.base_ms = number(key, value)?,
        "step_us" => topic.timestamps.step_us = number(key, value)?,
        "first_offset" => topic.first_offset = number(key, value)?,
        "leader_epoch" => topic.leader_epoch = number(key, value)?,
        _ => return Err(ChildError::Config(format!("unknown key {key:?} of a topic"))),
    }
    Ok(())
}

fn number<T: FromStr>(key: &str, value: &str) -> Result<T, ChildError> {
    value.parse().map_err(|_| ChildError::Config(format!("{key}={value:?} makes no sense")))
}

impl Display for ChildConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "brokers={} port={} ", self.brokers, self.port)?;
        if let Some(core) = self.core {
            write!(f, "core={core} ")?;
        }
        write!(f, "cluster_id={} sessions_max={} ", self.cluster_id, self.sessions_max)?;
        write!(f, "connections_max={} ", self.connections_max)?;
        write!(f, "partial_batches={} seed={}", self.partial_batches, self.seed)?;
        for topic in &self.topics {
            write!(f, " topic={} partitions={}", topic.name, topic.partitions)?;
            if let Content::Generated { seed, batch_bytes, batch_records, ring_bytes } =
                &topic.content
            {
                write!(f, " seed={seed} batch_bytes={batch_bytes}")?;
                write!(f, " batch_records={batch_records} ring_bytes={ring_bytes}")?;
            }
            let (growth, times) = (&topic.growth, &topic.timestamps);
            write!(f, " backlog={} rate={}", growth.backlog_batches, growth.bytes_per_second)?;
            write!(f, " batches_max={} base_ms={}", growth.batches_max, times.base_ms)?;
            write!(f, " grows_after_ms={}", topic.grows_after_ms)?;
            write!(f, " step_us={} first_offset={}", times.step_us, topic.first_offset)?;
            write!(f, " leader_epoch={}", topic.leader_epoch)?;
        }
        Ok(())
    }
}
