//! One replication, measured: a source, a node, what the node spent, and the proof of its copy.

use std::collections::HashMap;
use std::fs;
use std::time::{Duration, Instant};

use serde_json::Value;
use source::{ChildConfig, TopicSpec};

use crate::Outcome;
use crate::cli::Options;
use crate::node::{LINK, Node, Setup};
use crate::process::Cpu;
use crate::proof;
use crate::proxy::{Link, Proxy};
use crate::report::Row;
use crate::serving::Source;

pub const GIB: f64 = (1u64 << 30) as f64;
/// The quantities of a row, by the names that stand above the table's columns.
pub const RATE: &str = "GiB/s";
pub const CPU: &str = "CPU-s/GiB";
pub const USER: &str = "user s/GiB";
pub const SYSTEM: &str = "system s/GiB";
const CATCH_UP_LIMIT: Duration = Duration::from_secs(90);
const COPY_LIMIT: Duration = Duration::from_secs(600);
/// This part of a wire, over such a time, counts as full.
const NEARLY_FULL: f64 = 0.9;
const JUDGED: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(500);

/// What is replicated and how.
#[derive(Clone, Debug)]
pub struct Replica {
    /// At the source.
    pub topics: Vec<TopicSpec>,
    /// `shards.cores` of the node.
    pub cores: String,
    /// Memory budget of the node, MiB.
    pub memory_mib: u64,
    /// Connections that carry records.
    pub connections_max: u32,
    /// What a proxy puts between the two.
    pub link: Option<Link>,
    /// When the clock runs.
    pub window: Window,
    /// Records that nine of ten partitions have before a steady window begins: their files are
    /// there then, and have grown a few times.
    pub begun_records: i64,
}

/// Which part of a replication is measured.
#[derive(Clone, Copy, Debug)]
pub enum Window {
    /// From this share of a backlog received to all of it written.
    Backlog {
        /// Share of the bytes that pass before the clock starts.
        skip: f64,
    },
    /// So long, after a growing source was caught up with.
    Steady {
        /// How long.
        time: Duration,
    },
    /// A backlog that is not waited for: so long, after so long.
    Part {
        /// Before the clock starts.
        after: Duration,
        /// How long.
        time: Duration,
    },
}

/// What was measured.
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    /// Record bytes within the window; through a proxy, with the answers' heads.
    pub bytes: u64,
    /// Length of the window.
    pub seconds: f64,
    /// All threads of the node, within the window.
    pub cpu: Cpu,
    /// All threads of the source.
    pub source_cpu: Cpu,
    /// Context switches of the node: given up, taken away.
    pub switches: (u64, u64),
    /// The node's largest resident set over its life.
    pub peak_resident_bytes: u64,
    /// Open connections that carry records, at the window's end.
    pub connections: u64,
    /// Seconds from the first connection to where the wire between the two was nearly full; none
    /// if there is no wire, or it never was before the window.
    pub full_after_seconds: Option<f64>,
}

/// A moment of a running node and its source.
struct Moment {
    at: Instant,
    cpu: Cpu,
    source_cpu: Cpu,
    switches: (u64, u64),
    received_bytes: u64,
    connections: u64,
}

/// A replication under way.
pub struct Running {
    /// The source.
    pub source: Source,
    /// The node.
    pub node: Node,
    /// How it was set up.
    pub setup: Setup,
    proxy: Option<Proxy>,
    topics: Vec<TopicSpec>,
}

impl Replica {
    /// 16 partitions or whatever the topics have, on the first core, 256 MiB.
    pub fn new(topics: Vec<TopicSpec>, window: Window) -> Replica {
        Replica {
            topics,
            cores: "0".into(),
            memory_mib: 256,
            connections_max: 8,
            link: None,
            window,
            begun_records: 0,
        }
    }

    /// Runs it all: source, node, the window, the proof. Leaves nothing on disk.
    ///
    /// # Errors
    /// A step fails, or the copy differs.
    pub fn measure(&self, options: &Options) -> Outcome<Figures> {
        let mut running = self.start(options)?;
        let mut full_after_seconds = None;
        let (before, after) = self.watch(&mut running, &mut full_after_seconds)?;
        let peak_resident_bytes = running.node.process().peak_resident_bytes()?;
        running.finish()?;
        Ok(Figures {
            bytes: after.received_bytes - before.received_bytes,
            seconds: (after.at - before.at).as_secs_f64(),
            cpu: after.cpu.since(before.cpu),
            source_cpu: after.source_cpu.since(before.source_cpu),
            switches: (
                after.switches.0.saturating_sub(before.switches.0),
                after.switches.1.saturating_sub(before.switches.1),
            ),
            peak_resident_bytes,
            connections: after.connections,
            full_after_seconds,
        })
    }

    /// Starts source and node.
    ///
    /// # Errors
    /// One does not start.
    pub fn start(&self, options: &Options) -> Outcome<Running> {
        let config = ChildConfig {
            core: Some(options.source_core()),
            topics: self.topics.clone(),
            connections_max: 4096,
            sessions_max: 4096,
            ..ChildConfig::default()
        };
        let source = Source::start(&config)?;
        let proxy = self.link.map(|link| Proxy::start(source.address, link)).transpose()?;
        let setup = self.setup(options);
        let _ = fs::remove_dir_all(&setup.folder);
        let address = proxy.as_ref().map_or(source.address, Proxy::address);
        setup.write(address)?;
        let node = setup.start()?;
        Ok(Running { source, node, setup, proxy, topics: self.topics.clone() })
    }

    /// The node's configuration.
    pub fn setup(&self, options: &Options) -> Setup {
        Setup {
            program: options.program.clone(),
            folder: options.folder.join("node"),
            cores: self.cores.clone(),
            memory_mib: self.memory_mib,
            connections_max: self.connections_max,
        }
    }

    fn watch(
        &self,
        running: &mut Running,
        full_after_seconds: &mut Option<f64>,
    ) -> Outcome<(Moment, Moment)> {
        let many = self.partitions() > 256;
        let poll = Duration::from_millis(if many { 250 } else { 10 });
        match self.window {
            Window::Backlog { skip } => {
                let total = self.backlog_bytes()?;
                let first = (total as f64 * skip) as u64;
                running.await_written(first, total)?;
                let enough = |view: &Value| received_bytes(view) >= first;
                running.node.wait_for("the first bytes", poll, COPY_LIMIT, enough)?;
                let before = running.moment()?;
                running.await_written(total / 10 * 9, total)?;
                let ends = |view: &Value| received_bytes(view) >= total && is_written(view);
                running.node.wait_for("the copy", poll, COPY_LIMIT, ends)?;
                let mut after = running.moment()?;
                // What is compared again at a restart counts as received, too.
                after.received_bytes = after.received_bytes.min(total);
                Ok((before, after))
            }
            Window::Steady { time } => {
                self.catch_up(running)?;
                let before = running.moment()?;
                std::thread::sleep(time);
                Ok((before, running.moment()?))
            }
            Window::Part { after, time } => {
                let some = |view: &Value| view["links"][0]["connections"].as_u64() > Some(0);
                running.node.wait_for("a connection", poll, COPY_LIMIT, some)?;
                *full_after_seconds = running.watch_filling(after, self.link);
                let before = running.moment()?;
                std::thread::sleep(time);
                Ok((before, running.moment()?))
            }
        }
    }

    /// Waits until the node is where its growing source is, or nearly.
    ///
    /// # Errors
    /// It never gets there: the source grows faster than the node copies.
    pub fn catch_up(&self, running: &mut Running) -> Outcome {
        let partitions = self.partitions();
        let caught_up = |view: &Value| {
            let near = |p: &Value| p["lag_records"].as_i64().is_some_and(|lag| lag <= 256);
            let begun = |p: &Value| p["received"].as_i64() >= Some(self.begun_records);
            all_partitions(view).filter(|(_, p)| near(p) && begun(p)).count() >= partitions / 10 * 9
        };
        let poll = Duration::from_millis(250);
        running.node.wait_for("the source's end", poll, CATCH_UP_LIMIT, caught_up)?;
        Ok(())
    }

    /// All topics' partitions.
    pub fn partitions(&self) -> usize {
        self.topics.iter().map(|topic| topic.partitions.unsigned_abs() as usize).sum()
    }

    /// Bytes that wait at the source.
    ///
    /// # Errors
    /// A topic is not generated.
    pub fn backlog_bytes(&self) -> Outcome<u64> {
        let mut total = 0;
        for topic in &self.topics {
            let source::Content::Generated { batch_bytes, .. } = topic.content else {
                return Err("only generated topics are measured".into());
            };
            let each = topic.growth.backlog_batches * batch_bytes as u64;
            total += each * u64::from(topic.partitions.unsigned_abs());
        }
        Ok(total)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.setup.socket());
    }
}

impl Running {
    /// Waits, without asking the node anything, until it has written about so much.
    ///
    /// # Errors
    /// It ends first, or never gets there.
    pub fn await_written(&mut self, bytes: u64, total: u64) -> Outcome {
        let begun = Instant::now();
        let pause = Duration::from_millis(2);
        while self.node.process().written_bytes()? < bytes.min(total) {
            if self.node.process().cpu().is_err() || begun.elapsed() > COPY_LIMIT {
                return Err("the node does not write".into());
            }
            std::thread::sleep(pause);
        }
        Ok(())
    }

    /// Lets it run for so long; after how many seconds the wire was nearly full, if it was.
    fn watch_filling(&self, time: Duration, link: Option<Link>) -> Option<f64> {
        let begun = Instant::now();
        let wire = link.and_then(|link| link.bytes_per_second);
        let (Some(wire), Some(proxy)) = (wire, &self.proxy) else {
            std::thread::sleep(time);
            return None;
        };
        let mut seen: Vec<(f64, u64)> = Vec::new();
        let mut full_after = None;
        while begun.elapsed() < time {
            std::thread::sleep(LOOK.min(time.saturating_sub(begun.elapsed())));
            let now = begun.elapsed().as_secs_f64();
            let bytes = proxy.delivered_bytes();
            let earlier = seen.iter().rfind(|(at, _)| now - at >= JUDGED.as_secs_f64());
            let is_full =
                |(at, had): &(f64, u64)| (bytes - had) as f64 >= wire * NEARLY_FULL * (now - at);
            if full_after.is_none() && earlier.is_some_and(is_full) {
                full_after = earlier.map(|(at, _)| *at);
            }
            seen.push((now, bytes));
        }
        full_after
    }

    fn moment(&self) -> Outcome<Moment> {
        let view = self.node.status()?;
        Ok(Moment {
            at: Instant::now(),
            cpu: self.node.process().cpu()?,
            source_cpu: self.source.process().cpu()?,
            switches: self.node.process().switches()?,
            // Through a slow proxy an answer takes long, and the node counts whole answers.
            received_bytes: match &self.proxy {
                Some(proxy) => proxy.delivered_bytes(),
                None => received_bytes(&view),
            },
            connections: view["links"][0]["connections"].as_u64().unwrap_or(0),
        })
    }

    /// Takes the source away, stops the node, proves the copy, removes it. Bytes proven equal.
    ///
    /// # Errors
    /// A step fails, or the copy differs.
    pub fn finish(mut self) -> Outcome<u64> {
        self.source.kill()?;
        // What is still on its way through a proxy comes first.
        drop(self.proxy.take());
        let apart = |view: &Value| view["links"][0]["connections"].as_u64() == Some(0);
        let poll = Duration::from_millis(100);
        self.node.wait_for("the end of its connections", poll, COPY_LIMIT, apart)?;
        self.finish_alone()
    }

    /// The same where the source is gone already.
    ///
    /// # Errors
    /// A step fails, or the copy differs.
    pub fn finish_alone(mut self) -> Outcome<u64> {
        drop(self.proxy.take());
        let poll = Duration::from_millis(100);
        let view = self.node.wait_for("the flush", poll, COPY_LIMIT, is_flushed)?;
        self.node.stop()?;
        let proven_bytes = proof::compare(&self.setup.link_dir(), &self.topics, &ends(&view))?;
        fs::remove_dir_all(&self.setup.folder)?;
        Ok(proven_bytes)
    }
}

impl Figures {
    /// Adds this run to a row: rate and CPU per GiB.
    pub fn add_to(&self, row: &mut Row) {
        let gib = self.bytes as f64 / GIB;
        let (user, system) = self.cpu.split();
        row.push(RATE, gib / self.seconds);
        row.push(CPU, self.cpu.total / gib);
        row.push(USER, user / gib);
        row.push(SYSTEM, system / gib);
    }
}

/// All partitions of the link by topic.
pub fn all_partitions(view: &Value) -> impl Iterator<Item = (&str, &Value)> {
    let links = view["links"].as_array().into_iter().flatten();
    let ours = links.filter(|link| link["name"] == LINK);
    let topics = ours.flat_map(|link| link["topics"].as_array().into_iter().flatten());
    topics.flat_map(|topic| {
        let name = topic["name"].as_str().unwrap_or("");
        topic["partitions"].as_array().into_iter().flatten().map(move |p| (name, p))
    })
}

/// Record bytes that all shards have received.
pub fn received_bytes(view: &Value) -> u64 {
    let shards = view["shards"].as_array().into_iter().flatten();
    shards.filter_map(|shard| shard["received_bytes"].as_u64()).sum()
}

/// Whether what was received is written, of every partition.
pub fn is_written(view: &Value) -> bool {
    all_partitions(view).all(|(_, p)| p["written"].is_i64() && p["written"] == p["received"])
}

/// Whether what was received survives power loss, of every partition.
pub fn is_flushed(view: &Value) -> bool {
    all_partitions(view).all(|(_, p)| p["flushed"].is_i64() && p["flushed"] == p["received"])
}

/// Where each partition's copy ends.
pub fn ends(view: &Value) -> HashMap<(String, i32), i64> {
    all_partitions(view)
        .filter_map(|(topic, p)| {
            let number = i32::try_from(p["partition"].as_i64()?).ok()?;
            Some(((topic.to_owned(), number), p["flushed"].as_i64()?))
        })
        .collect()
}
