//! A real Kafka on loopback, on free ports: KRaft, each node broker and controller at once; before
//! it, brokers and one ZooKeeper.
//!
//! A cluster's files lie in a folder of its own below `tests/.kafka/run`, which goes when the
//! cluster is dropped; the nodes' logs stay in `tests/.kafka/logs` until the next run.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::install::{Installed, KAFKA_2};
use crate::process::{self, Process};
use crate::{Outcome, crate_dir, wait_for, work_dir};

/// A JVM on two busy cores takes its time.
const READY: Duration = Duration::from_secs(120);

/// How a cluster's nodes run, where it matters.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Words for the JVM of every node.
    pub java: Vec<String>,
    /// Lines of `server.properties` that come last, so that they win.
    pub properties: String,
    /// Where each node keeps its data; without, in the cluster's own folder.
    pub data_dirs: Vec<PathBuf>,
}

impl Default for Settings {
    /// Short lives on few cores: the quick compiler and the quiet collector start soonest.
    fn default() -> Settings {
        let java = ["-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"];
        Settings {
            java: java.map(str::to_owned).to_vec(),
            properties: String::new(),
            data_dirs: Vec::new(),
        }
    }
}

/// A cluster of one or three nodes, numbered from 1.
#[derive(Debug)]
pub struct Cluster {
    installed: Installed,
    version: &'static str,
    settings: Settings,
    name: String,
    dir: PathBuf,
    nodes: Vec<Node>,
    zookeeper: Option<ZooKeeper>,
    starts: u32,
}

#[derive(Debug)]
struct ZooKeeper {
    port: u16,
    _process: Process,
}

#[derive(Debug)]
struct Node {
    broker_port: u16,
    controller_port: u16,
    process: Option<Process>,
}

impl Cluster {
    /// Formats and starts a cluster and waits until every node is ready.
    ///
    /// # Errors
    /// A node does not come up; the end of its log is in the message.
    pub fn start(
        installed: &Installed,
        version: &'static str,
        name: &str,
        nodes: usize,
    ) -> Outcome<Cluster> {
        Cluster::start_with(installed, version, name, nodes, Settings::default())
    }

    /// The same, with nodes that are to run otherwise.
    ///
    /// # Errors
    /// As [`Cluster::start`].
    pub fn start_with(
        installed: &Installed,
        version: &'static str,
        name: &str,
        nodes: usize,
        settings: Settings,
    ) -> Outcome<Cluster> {
        let dir = run_dir(name)?;
        let nodes = (0..nodes)
            .map(|_| {
                let (broker_port, controller_port) = (free_port()?, free_port()?);
                Ok(Node { broker_port, controller_port, process: None })
            })
            .collect::<Outcome<Vec<_>>>()?;
        let mut cluster = Cluster {
            installed: installed.clone(),
            version,
            settings,
            name: name.to_owned(),
            dir,
            nodes,
            zookeeper: None,
            starts: 0,
        };
        if version == KAFKA_2 {
            cluster.zookeeper = Some(cluster.start_zookeeper()?);
        }
        cluster.configure()?;
        if cluster.zookeeper.is_none() {
            cluster.format()?;
        }
        for id in cluster.ids() {
            cluster.launch(id)?;
        }
        for id in cluster.ids() {
            cluster.wait_ready(id)?;
        }
        Ok(cluster)
    }

    /// The addresses of all brokers, as a client's bootstrap list.
    pub fn bootstrap(&self) -> String {
        self.bootstrap_servers().join(",")
    }

    /// The same, one by one.
    pub fn bootstrap_servers(&self) -> Vec<String> {
        self.nodes.iter().map(|n| format!("127.0.0.1:{}", n.broker_port)).collect()
    }

    /// The node ids.
    pub fn ids(&self) -> std::ops::RangeInclusive<usize> {
        1..=self.nodes.len()
    }

    /// The process of a node that runs.
    pub fn process_id(&self, id: usize) -> Option<u32> {
        self.nodes[id - 1].process.as_ref().map(Process::id)
    }

    /// The folder of one partition on one node.
    pub fn partition_dir(&self, id: usize, topic: &str, partition: usize) -> PathBuf {
        self.log_dir(id).join(format!("{topic}-{partition}"))
    }

    /// `kill -9`.
    pub fn kill(&mut self, id: usize) {
        self.nodes[id - 1].process = None;
    }

    /// A clean stop, as an administrator does it.
    ///
    /// # Errors
    /// The node does not end.
    pub fn stop(&mut self, id: usize) -> Outcome {
        if let Some(mut process) = self.nodes[id - 1].process.take() {
            process.signal(Signal::SIGTERM);
            process.wait(Duration::from_secs(60))?;
        }
        Ok(())
    }

    /// Starts a node that was killed or stopped, and waits until it is ready.
    ///
    /// # Errors
    /// It does not come up.
    pub fn restart(&mut self, id: usize) -> Outcome {
        assert!(self.nodes[id - 1].process.is_none(), "node {id} runs");
        self.launch(id)?;
        self.wait_ready(id)
    }

    /// Starts every node that does not run.
    ///
    /// # Errors
    /// One does not come up.
    pub fn heal(&mut self) -> Outcome {
        for id in self.ids() {
            if self.nodes[id - 1].process.is_none() {
                self.restart(id)?;
            }
        }
        Ok(())
    }

    fn start_zookeeper(&self) -> Outcome<ZooKeeper> {
        let port = free_port()?;
        let config = self.dir.join("zookeeper.properties");
        let properties = format!(
            "dataDir={}
clientPort={port}
clientPortAddress=127.0.0.1
admin.enableServer=false
",
            self.dir.join("zookeeper").display()
        );
        fs::write(&config, properties).map_err(|e| format!("{}: {e}", config.display()))?;
        let mut command = self.java(&["-Xmx128m".into(), "-XX:TieredStopAtLevel=1".into()]);
        command.arg("org.apache.zookeeper.server.ZooKeeperServerMain").arg(&config);
        let log = self.log(&format!("{}-zookeeper", self.name))?;
        // Brokers wait for it by themselves.
        let process = Process::start("ZooKeeper", &mut command, &log, false)?;
        Ok(ZooKeeper { port, _process: process })
    }

    fn configure(&self) -> Outcome {
        for id in self.ids() {
            let node_dir = self.node_dir(id);
            fs::create_dir_all(&node_dir).map_err(|e| format!("{}: {e}", node_dir.display()))?;
            fs::write(self.config(id), self.properties(id))
                .map_err(|e| format!("{}: {e}", node_dir.display()))?;
        }
        Ok(())
    }

    fn format(&self) -> Outcome {
        let cluster_id = cluster_id();
        let mut formats = Vec::new();
        for id in self.ids() {
            let mut command = self.java(&["-Xmx64m".into(), "-XX:TieredStopAtLevel=1".into()]);
            command.args(["kafka.tools.StorageTool", "format", "-t", &cluster_id, "-c"]);
            command.arg(self.config(id));
            let log = self.dir.join(format!("format-{id}.log"));
            formats.push(Process::start("StorageTool", &mut command, &log, false)?);
        }
        for mut format in formats {
            let status = format.wait(Duration::from_secs(120))?;
            if !status.success() {
                return Err(format!("StorageTool: {status}\n{}", format.log_tail()));
            }
        }
        Ok(())
    }

    fn launch(&mut self, id: usize) -> Outcome {
        self.starts += 1;
        let log = self.log(&format!("{}-node{id}-start{}", self.name, self.starts))?;
        let mut command = self.java(&self.settings.java);
        command.arg("kafka.Kafka").arg(self.config(id));
        let process = Process::start(&format!("node {id}"), &mut command, &log, false)?;
        self.nodes[id - 1].process = Some(process);
        Ok(())
    }

    fn wait_ready(&mut self, id: usize) -> Outcome {
        let process = self.nodes[id - 1].process.as_mut().ok_or("the node does not run")?;
        wait_for(&format!("node {id} of {} to be ready", self.name), READY, || {
            if let Some(status) = process.ended()? {
                return Err(format!("node {id} ended: {status}\n{}", process.log_tail()));
            }
            let log = fs::read_to_string(process.log()).unwrap_or_default();
            let before_kraft = format!("[KafkaServer id={id}] started");
            let ready = log.contains("Kafka Server started") || log.contains(&before_kraft);
            Ok(ready.then_some(()))
        })
    }

    fn log(&self, name: &str) -> Outcome<PathBuf> {
        let logs = work_dir().join("logs");
        fs::create_dir_all(&logs).map_err(|e| format!("{}: {e}", logs.display()))?;
        Ok(logs.join(format!("{name}.log")))
    }

    fn java(&self, words: &[String]) -> Command {
        java(&self.installed.kafka(self.version), words)
    }

    fn node_dir(&self, id: usize) -> PathBuf {
        self.dir.join(format!("node{id}"))
    }

    fn log_dir(&self, id: usize) -> PathBuf {
        let given = self.settings.data_dirs.get(id - 1).cloned();
        given.unwrap_or_else(|| self.node_dir(id).join("data"))
    }

    fn config(&self, id: usize) -> PathBuf {
        self.node_dir(id).join("server.properties")
    }

    /// Who it is and how it finds the others.
    fn membership(&self, id: usize) -> String {
        let Node { broker_port, controller_port, .. } = self.nodes[id - 1];
        if let Some(zookeeper) = &self.zookeeper {
            return format!(
                "broker.id={id}
zookeeper.connect=127.0.0.1:{}
zookeeper.connection.timeout.ms=60000
listeners=PLAINTEXT://127.0.0.1:{broker_port}",
                zookeeper.port
            );
        }
        let voters: Vec<String> = self
            .ids()
            .zip(&self.nodes)
            .map(|(id, n)| format!("{id}@127.0.0.1:{}", n.controller_port))
            .collect();
        format!(
            "process.roles=broker,controller
node.id={id}
controller.quorum.voters={voters}
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://127.0.0.1:{broker_port},CONTROLLER://127.0.0.1:{controller_port}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
broker.heartbeat.interval.ms=500
broker.session.timeout.ms=4000",
            voters = voters.join(","),
        )
    }

    fn properties(&self, id: usize) -> String {
        let broker_port = self.nodes[id - 1].broker_port;
        let copies = self.nodes.len();
        let in_sync = copies.div_ceil(2);
        format!(
            "{membership}
advertised.listeners=PLAINTEXT://127.0.0.1:{broker_port}
inter.broker.listener.name=PLAINTEXT
log.dirs={data}
auto.create.topics.enable=false
default.replication.factor={copies}
min.insync.replicas={in_sync}
offsets.topic.replication.factor={copies}
offsets.topic.num.partitions=1
transaction.state.log.replication.factor={copies}
transaction.state.log.min.isr={in_sync}
transaction.state.log.num.partitions=2
group.initial.rebalance.delay.ms=0
num.network.threads=2
num.io.threads=4
replica.fetch.max.bytes=8388608
replica.lag.time.max.ms=5000
log.cleaner.backoff.ms=500
log.retention.check.interval.ms=2000
log.segment.delete.delay.ms=1000
{more}",
            more = self.settings.properties,
            membership = self.membership(id),
            data = self.log_dir(id).display(),
        )
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            node.process = None;
        }
        self.zookeeper = None;
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Java with a class path and words of its own, logging to standard error.
pub fn java(class_path: &str, words: &[String]) -> Command {
    let logging = crate_dir().join("kafka");
    let mut java = process::mortal("java");
    java.args(words)
        .arg(format!("-Dlog4j2.configurationFile={}/log4j2.properties", logging.display()))
        .arg(format!("-Dlog4j.configuration=file:{}/log4j.properties", logging.display()))
        .args(["-cp", class_path]);
    java
}

/// An empty folder for one run, whose name no other process has. What dead processes left goes.
///
/// # Errors
/// The folder cannot be made.
pub fn run_dir(name: &str) -> Outcome<PathBuf> {
    let all = work_dir().join("run");
    let dir = all.join(format!("{name}.{}", std::process::id()));
    for entry in fs::read_dir(&all).into_iter().flatten().flatten() {
        let path = entry.path();
        let alive = path
            .extension()
            .and_then(|pid| pid.to_str())
            .is_some_and(|pid| Path::new("/proc").join(pid).exists());
        if !alive {
            let _ = fs::remove_dir_all(path);
        }
    }
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    Ok(dir)
}

/// A port that nobody listens on, below the range from which the kernel takes its own, so that it
/// stays free between a node's lives.
///
/// # Errors
/// There is none.
pub fn free_port() -> Outcome<u16> {
    const FIRST: u16 = 20_000;
    const COUNT: u16 = 12_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = (std::process::id().wrapping_mul(97) % u32::from(COUNT)) as u16;
    for _ in 0..COUNT {
        let port = FIRST + (start + NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    Err("no free port on 127.0.0.1".into())
}

/// 16 bytes in base64url, as Kafka writes a cluster's id.
fn cluster_id() -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut state = std::time::UNIX_EPOCH.elapsed().map_or(0, |d| d.as_nanos() as u64)
        ^ u64::from(std::process::id()) << 40;
    let mut letter = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from(ALPHABET[(state >> 58) as usize])
    };
    let mut id: String = (0..21).map(|_| letter()).collect();
    id.replace_range(0..1, "U"); // A leading dash would read as an option.
    id.push('g'); // The last letter carries two bits only.
    id
}
