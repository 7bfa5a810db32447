//! Those that replicate a real Kafka, one after the other: Understudy, Kafka's own follower,
//! MirrorMaker 2, and a consumer that only reads.
//!
//! The source is a broker whose data lies in memory (tmpfs), so that no disk of its own is in the
//! way; whoever writes does so on the disk that is measured. Each gets the same: the same topic,
//! page cache that was written and freed just before, nothing else running but the idle node that
//! later follows. Each is proven, the follower as the product byte for byte.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;
use tests::compare::equal;
use tests::image::Image;
use tests::install::{self, Installed};
use tests::kafka::{self, Cluster, Settings};
use tests::load::Load;
use tests::process::Process;

use crate::Outcome;
use crate::cli::Options;
use crate::folder::Folder;
use crate::process::{Cpu, cpu_of, io_of, peak_resident_bytes_of, threads_cpu_of};
use crate::replica::{self, Replica, Window};

/// Partitions of the topic.
pub const PARTITIONS: usize = 16;
/// Bytes of a record's value.
pub const VALUE_BYTES: u64 = 1000;
/// How much a producer's batch, a follower's fetch and a consumer's fetch of a partition hold.
pub const BATCH_BYTES: u64 = 64 << 10;
const FETCH_BYTES: u64 = 1 << 20;
const TOPIC: &str = "load";
const LEADER: usize = 1;
const FOLLOWER: usize = 2;
/// What one of them may take: with less than a hundredth of a quiet machine they end.
const LIMIT: Duration = Duration::from_secs(240);
const POLL: Duration = Duration::from_millis(10);
/// Of so little a partition a fetch brings one batch and no more (KIP-74).
const SMALL_FETCH_BYTES: u64 = 1 << 10;
/// The source is warm when it spends less than this on compiling for each reader, CPU-s/GiB, or
/// has been read so often by both.
const COMPILING_MAX: f64 = 0.02;
const WARMING_ROUNDS_MAX: usize = 3;
/// What Kafka's own start script gives a JVM.
const JAVA: [&str; 4] =
    ["-server", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20", "-XX:InitiatingHeapOccupancyPercent=35"];

/// The source, full, and what is installed.
pub struct Peers<'a> {
    options: &'a Options,
    installed: Installed,
    cluster: Cluster,
    load: Load,
    records: u64,
    bytes: u64,
    /// Where the source's data lies, removed at the end; the cluster ends before.
    memory: Folder,
}

/// What one of them took.
#[derive(Clone, Debug)]
pub struct Taken {
    /// From the first hundredth of the bytes to the last.
    pub whole: Span,
    /// The second half of the bytes.
    pub warm: Span,
    /// Largest resident sets, bytes, in the order of the processes watched.
    pub peak_resident_bytes: Vec<u64>,
}

/// A stretch of time.
#[derive(Clone, Debug)]
pub struct Span {
    /// Log bytes that passed.
    pub bytes: u64,
    /// How long.
    pub seconds: f64,
    /// CPU of each process watched.
    pub cpu: Vec<Cpu>,
    /// CPU of the source.
    pub source: BrokerCpu,
}

/// CPU time of a broker by what its threads do, seconds.
#[derive(Clone, Copy, Debug)]
pub struct BrokerCpu {
    /// All of it.
    pub total: f64,
    /// Threads that serve requests: of the network, of the log.
    pub serving: f64,
    /// What went into compiling its own code.
    pub compiling: f64,
}

impl BrokerCpu {
    fn of(id: u32) -> Outcome<BrokerCpu> {
        Ok(BrokerCpu {
            total: cpu_of(id)?.total,
            serving: threads_cpu_of(id, &["data-plane-kafk"])?,
            compiling: threads_cpu_of(id, &["C1 CompilerThre", "C2 CompilerThre"])?,
        })
    }

    fn since(self, earlier: BrokerCpu) -> BrokerCpu {
        BrokerCpu {
            total: self.total - earlier.total,
            serving: self.serving - earlier.serving,
            // A compiler's thread that has ended takes its count with it.
            compiling: (self.compiling - earlier.compiling).max(0.0),
        }
    }
}

struct Moment {
    at: Instant,
    bytes: u64,
    cpu: Vec<Cpu>,
    source: BrokerCpu,
}

impl Moment {
    fn until(&self, later: &Moment) -> Span {
        Span {
            bytes: later.bytes - self.bytes,
            seconds: (later.at - self.at).as_secs_f64(),
            cpu: self.cpu.iter().zip(&later.cpu).map(|(a, b)| b.since(*a)).collect(),
            source: later.source.since(self.source),
        }
    }
}

impl<'a> Peers<'a> {
    /// Installs what is missing, starts the source and fills it.
    ///
    /// # Errors
    /// Nothing can be fetched, or Kafka does not run.
    pub fn start(options: &'a Options, bytes: u64) -> Outcome<Peers<'a>> {
        let installed = install::install()?;
        let shared = Path::new("/dev/shm");
        let memory = Folder::make(if shared.is_dir() { shared } else { &options.folder })?;
        let settings = Settings {
            java: java("1g"),
            properties: format!("num.replica.fetchers=4\nreplica.fetch.max.bytes={FETCH_BYTES}\n"),
            data_dirs: vec![memory.0.join("source"), options.folder.join("follower")],
        };
        let cluster = Cluster::start_with(&installed, install::KAFKA, "bench", 2, settings)?;
        let load = Load::start(&installed, "bench", &cluster.bootstrap())?;
        let assignment = vec![[LEADER]; PARTITIONS];
        load.call("create", json!({"topic": TOPIC, "assignment": assignment}))?;
        let records = bytes / (VALUE_BYTES + 20);
        let parameters = json!({
            "partitions": PARTITIONS, "records": records, "value_bytes": VALUE_BYTES,
            "same_size": true, "batch_bytes": BATCH_BYTES.to_string(), "linger_ms": "50",
        });
        load.begin(TOPIC, parameters)?;
        let mut peers = Peers { options, installed, cluster, load, records, bytes: 0, memory };
        peers.await_filled()?;
        Ok(peers)
    }

    fn await_filled(&mut self) -> Outcome {
        let begun = Instant::now();
        loop {
            let ends = self.load.offsets(TOPIC)?;
            let have: i64 = ends.iter().map(|range| range.end).sum();
            if have.cast_unsigned() >= self.records {
                self.load.stop(TOPIC)?;
                let dirs: Vec<PathBuf> =
                    (0..PARTITIONS).map(|p| self.cluster.partition_dir(LEADER, TOPIC, p)).collect();
                self.bytes = log_bytes(&dirs);
                return Ok(());
            }
            if begun.elapsed() > LIMIT {
                return Err(format!("the source took {have} of {} records", self.records).into());
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Log bytes that wait at the source.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether the source's data lies in memory.
    pub fn in_memory(&self) -> bool {
        !self.memory.0.starts_with(&self.options.folder)
    }

    /// Lets the source serve until its JVM has compiled what that takes: it runs for minutes here
    /// and for months elsewhere. Compiling is a matter of how many requests came, and those that
    /// are measured ask little and get much, so that first all is read in small pieces; then both
    /// that only read do so in turn. What the source spent for the product and the consumer in
    /// each round, CPU-s/GiB.
    ///
    /// # Errors
    /// One of them fails.
    pub fn warm(&self) -> Outcome<Vec<[f64; 2]>> {
        self.consume(SMALL_FETCH_BYTES)?;
        let mut rounds = Vec::new();
        let most = self.options.unless_quick(WARMING_ROUNDS_MAX, 1);
        while rounds.len() < most {
            let spans = [self.understudy()?.warm, self.consumer()?.warm];
            let gib = spans.each_ref().map(|span| span.bytes as f64 / replica::GIB);
            rounds.push([0, 1].map(|reader| spans[reader].source.total / gib[reader]));
            let is_warm =
                |reader: usize| spans[reader].source.compiling / gib[reader] <= COMPILING_MAX;
            if is_warm(0) && is_warm(1) {
                break;
            }
        }
        Ok(rounds)
    }

    /// The product: its own process alone.
    ///
    /// # Errors
    /// It fails, or its copy differs.
    pub fn understudy(&self) -> Outcome<Taken> {
        self.prepare_memory()?;
        let setup = Replica::new(Vec::new(), Window::Backlog { skip: 0.0 }).setup(self.options);
        let servers = self.cluster.bootstrap_servers();
        let address = servers.first().ok_or("the source has no address")?.parse()?;
        setup.write(address)?;
        let mut node = setup.start()?;
        let (id, total) = (node.process().id(), self.bytes);
        let taken = self.follow(&[id], || {
            let written = io_of(id, "write_bytes:")?;
            if written < total / 100 * 99 {
                return Ok(written);
            }
            let view = node.status()?;
            let received = replica::received_bytes(&view);
            Ok(if replica::is_written(&view) { received } else { received.min(total - 1) })
        })?;
        let poll = Duration::from_millis(100);
        node.wait_for("the flush", poll, LIMIT, replica::is_flushed)?;
        node.stop()?;
        self.prove(|partition| setup.link_dir().join(format!("{TOPIC}-{partition}")))?;
        fs::remove_dir_all(&setup.folder)?;
        let _ = fs::remove_file(setup.socket());
        Ok(taken)
    }

    /// A broker of the same cluster that is told to keep copies: its own process alone.
    ///
    /// # Errors
    /// It fails, or its copy differs.
    pub fn follower(&self) -> Outcome<Taken> {
        self.prepare_memory()?;
        let id = self.cluster.process_id(FOLLOWER).ok_or("the follower does not run")?;
        let dir = |partition| self.cluster.partition_dir(FOLLOWER, TOPIC, partition);
        let dirs: Vec<PathBuf> = (0..PARTITIONS).map(dir).collect();
        self.load.call("reassign", json!({"topic": TOPIC, "nodes": [LEADER, FOLLOWER]}))?;
        let taken = self.follow(&[id], || Ok(log_bytes(&dirs)))?;
        self.prove(dir)?;
        self.load.call("reassign", json!({"topic": TOPIC, "nodes": [LEADER]}))?;
        tests::wait_for("the follower's files to go", LIMIT, || {
            Ok((log_bytes(&dirs) == 0).then_some(()))
        })?;
        Ok(taken)
    }

    /// MirrorMaker 2 in its dedicated mode, and then the broker it writes to.
    ///
    /// # Errors
    /// It fails, or its target lacks records.
    pub fn mirror_maker(&self) -> Outcome<Taken> {
        let class_path = self.installed.mirror_maker()?;
        let data = self.options.folder.join("target");
        let settings = Settings { java: java("1g"), data_dirs: vec![data], ..Settings::default() };
        let target = Cluster::start_with(&self.installed, install::KAFKA, "target", 1, settings)?;
        let its_load = Load::start(&self.installed, "target", &target.bootstrap())?;
        self.prepare_memory()?;
        let config = self.options.folder.join("mirror.properties");
        fs::write(&config, mirror_properties(&self.cluster.bootstrap(), &target.bootstrap()))?;
        let mut command = kafka::java(&class_path, &java("2g"));
        command.arg("org.apache.kafka.connect.mirror.MirrorMaker").arg(&config);
        let log = self.options.folder.join("mirror.log");
        let mut mirror = Process::start("MirrorMaker", &mut command, &log, false)?;
        let broker = target.process_id(1).ok_or("the target does not run")?;
        let name = format!("source.{TOPIC}");
        let dirs: Vec<PathBuf> =
            (0..PARTITIONS).map(|p| target.partition_dir(1, &name, p)).collect();
        // Its batches are its own, so that their bytes are not quite those of the source.
        let total = self.bytes / 1000 * 995;
        let taken = self.follow(&[mirror.id(), broker], || {
            let bytes = log_bytes(&dirs);
            if bytes >= total && self.has_all(&its_load, &name)? {
                return Ok(self.bytes);
            }
            if let Some(status) = mirror.ended()? {
                return Err(format!("MirrorMaker ended: {status}\n{}", mirror.log_tail()).into());
            }
            Ok(bytes.min(self.bytes - 1))
        });
        let taken = taken.map_err(|error| format!("{error}\n{}", mirror.log_tail()))?;
        mirror.signal(Signal::SIGTERM);
        mirror.wait(LIMIT)?;
        Ok(taken)
    }

    /// The consumer of Kafka's own measuring tool, which throws away what it reads.
    ///
    /// # Errors
    /// It fails.
    pub fn consumer(&self) -> Outcome<Taken> {
        self.consume(FETCH_BYTES)
    }

    /// The same, asking for so much of a partition at a time.
    fn consume(&self, fetch_bytes: u64) -> Outcome<Taken> {
        let mut command = kafka::java(&self.installed.kafka(install::KAFKA), &java("512m"));
        let (servers, records) = (self.cluster.bootstrap(), self.records.to_string());
        command.arg("org.apache.kafka.tools.ConsumerPerformance");
        command.args(["--bootstrap-server", &servers, "--topic", TOPIC, "--num-records", &records]);
        command.args(["--fetch-size", &fetch_bytes.to_string(), "--timeout", "60000"]);
        command.args(["--show-detailed-stats", "--hide-header", "--reporting-interval", "50"]);
        let log = self.options.folder.join("consumer.log");
        let mut consumer = Process::start("ConsumerPerformance", &mut command, &log, false)?;
        let id = consumer.id();
        let said = || fs::read_to_string(&log).unwrap_or_default();
        let taken = self.follow(&[id], || {
            if has_ended(id)? {
                return Ok(self.bytes);
            }
            // time, thread, MB, MB/s, records, …
            let records =
                said().lines().rev().find_map(|line| line.split(", ").nth(4)?.parse().ok());
            let share = records.unwrap_or(0.0) / self.records as f64;
            Ok((share * self.bytes as f64) as u64)
        });
        let taken = taken.map_err(|error| format!("{error}\n{}", said()))?;
        let status = consumer.wait(LIMIT)?;
        match status.success() && !said().contains("before consuming") {
            true => Ok(taken),
            false => Err(format!("the consumer lacks records: {}", said()).into()),
        }
    }

    /// Watches until all bytes have passed.
    fn follow(
        &self,
        processes: &[u32],
        mut passed: impl FnMut() -> Outcome<u64>,
    ) -> Outcome<Taken> {
        let source = self.cluster.process_id(LEADER).ok_or("the source does not run")?;
        let moment = |bytes: u64| -> Outcome<Moment> {
            let cpu: Outcome<Vec<Cpu>> = processes.iter().map(|id| cpu_of(*id)).collect();
            Ok(Moment { at: Instant::now(), bytes, cpu: cpu?, source: BrokerCpu::of(source)? })
        };
        let begun = Instant::now();
        let mut peaks = vec![0; processes.len()];
        let mut marks = vec![moment(0)?];
        let due = [self.bytes / 100, self.bytes / 2, self.bytes];
        while marks.len() <= due.len() {
            let bytes = passed()?;
            for (peak, id) in peaks.iter_mut().zip(processes) {
                // Who has just ended has none any more.
                *peak = peak_resident_bytes_of(*id).unwrap_or(*peak);
            }
            if bytes >= due[marks.len() - 1] {
                marks.push(moment(bytes.min(self.bytes))?);
                continue;
            }
            if begun.elapsed() > LIMIT {
                let seconds = LIMIT.as_secs();
                return Err(format!("{bytes} of {} bytes in {seconds} s", self.bytes).into());
            }
            std::thread::sleep(POLL);
        }
        // A small load may pass between two looks.
        let end = marks.pop().ok_or("nothing was seen")?;
        let from = |mark: usize| {
            let known = marks[..=mark].iter().rev().find(|moment| moment.bytes < end.bytes);
            known.unwrap_or(&marks[0]).until(&end)
        };
        Ok(Taken { whole: from(1), warm: from(2), peak_resident_bytes: peaks })
    }

    /// First touch of memory is dear on some hosts: all that write to the page cache find pages
    /// that were in use a moment ago.
    fn prepare_memory(&self) -> Outcome {
        let path = self.options.folder.join("pages");
        let mut file = File::create(&path)?;
        let piece = vec![1; 1 << 20];
        for _ in 0..(self.bytes >> 20) + 512 {
            file.write_all(&piece)?;
        }
        Ok(fs::remove_file(&path)?)
    }

    fn has_all(&self, load: &Load, topic: &str) -> Outcome<bool> {
        let ends = load.offsets(topic)?;
        let have: i64 = ends.iter().map(|range| range.end).sum();
        Ok(have.cast_unsigned() >= self.records)
    }

    /// Compares every batch of a copy with the source's.
    fn prove(&self, copy: impl Fn(usize) -> PathBuf) -> Outcome {
        for partition in 0..PARTITIONS {
            let ours = Image::read(&copy(partition))?;
            let theirs = Image::read(&self.cluster.partition_dir(LEADER, TOPIC, partition))?;
            equal(&theirs, &ours, 0..i64::MAX)?;
        }
        Ok(())
    }
}

/// Whether a child has ended that nobody has waited for yet.
fn has_ended(id: u32) -> Outcome<bool> {
    let text = fs::read_to_string(format!("/proc/{id}/stat"))?;
    Ok(text.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z')))
}

fn java(heap: &str) -> Vec<String> {
    let mut words = vec![format!("-Xms{heap}"), format!("-Xmx{heap}")];
    words.extend(JAVA.map(str::to_owned));
    words
}

fn log_bytes(dirs: &[PathBuf]) -> u64 {
    let files = dirs.iter().filter_map(|dir| fs::read_dir(dir).ok()).flatten().flatten();
    let logs = files.filter(|file| file.path().extension().is_some_and(|e| e == "log"));
    logs.filter_map(|file| Some(file.metadata().ok()?.len())).sum()
}

/// One direction, one topic, large fetches and batches, nothing of its side work.
fn mirror_properties(source: &str, target: &str) -> String {
    format!(
        "clusters = source, target
source.bootstrap.servers = {source}
target.bootstrap.servers = {target}
source->target.enabled = true
target->source.enabled = false
source->target.topics = {TOPIC}
tasks.max = 2
replication.factor = 1
checkpoints.topic.replication.factor = 1
heartbeats.topic.replication.factor = 1
offset-syncs.topic.replication.factor = 1
offset-syncs.topic.location = target
config.storage.replication.factor = 1
offset.storage.replication.factor = 1
status.storage.replication.factor = 1
emit.heartbeats.enabled = false
emit.checkpoints.enabled = false
sync.topic.acls.enabled = false
source.consumer.auto.offset.reset = earliest
source.consumer.max.partition.fetch.bytes = {FETCH_BYTES}
source.consumer.max.poll.records = 2000
target.producer.batch.size = {BATCH_BYTES}
target.producer.linger.ms = 20
target.producer.buffer.memory = 67108864
"
    )
}
