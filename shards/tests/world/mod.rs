//! A shard and its source on the simulator: links of any length, disks that fail, clocks that jump,
//! and the same run again from the same seed.

#![allow(dead_code, reason = "each test program uses its own part")]

use std::cell::Cell;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ring::sim::{ExecutorId, Faults, Machine, Simulation};
use ring::{Address, Class, Config, Gather, Listener, Share, Stream};
use shards::control::*;
use source::{Cluster, Desk, Fault, Reply, Target, TopicSpec, Versions};
use storage::boot::Boot;
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

pub const DATA: &str = "/data";
pub const LINK: &str = "prod";
const PIECE_BYTES: usize = 64 << 10;
/// How soon a broker that holds a fetch looks again.
const LOOK: Duration = Duration::from_micros(200);

/// What fetches allow their answers, from when the broker hears of them until it has answered.
#[derive(Default)]
pub struct Allowed {
    bytes: Cell<usize>,
    bytes_peak: Cell<usize>,
}

/// One fetch's part of it, given back on drop.
struct Allowance(Rc<Allowed>, usize);

/// One broker, one shard.
pub struct World {
    pub sim: Simulation,
    pub cluster: Cluster,
    pub settings: LinkSettings,
    pub executor: ExecutorId,
    boot: Boot,
    commands: mpsc::Sender<Command>,
    events: mpsc::Receiver<Event>,
    /// What it told, but for stale metadata.
    pub seen: Vec<Event>,
    topics: Vec<TopicSpec>,
    /// Whether the source tells topic ids.
    ids: bool,
    /// The most connections seen.
    pub connections_peak: u32,
    allowed: Rc<Allowed>,
}

impl Allowed {
    fn take(allowed: &Rc<Allowed>, bytes_max: i32) -> Allowance {
        let bytes = usize::try_from(bytes_max).expect("a limit that is not negative");
        allowed.bytes.set(allowed.bytes.get() + bytes);
        allowed.bytes_peak.set(allowed.bytes_peak.get().max(allowed.bytes.get()));
        Allowance(Rc::clone(allowed), bytes)
    }
}

impl Drop for Allowance {
    fn drop(&mut self) {
        self.0.bytes.set(self.0.bytes.get() - self.1);
    }
}

pub fn settings() -> LinkSettings {
    LinkSettings {
        start: Start::Earliest,
        rate_limit: None,
        backfill_rate_limit: None,
        connections_max: 4,
        allow_truncation: false,
        on_source_gap: OnSourceGap::Fault,
        undo_window: Duration::from_secs(3600),
        batch_bytes_max: 4 << 20,
    }
}

fn address() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::new(10, 0, 0, 1), 9092))
}

impl World {
    /// A world in which the shard already follows these topics.
    pub fn new(
        faults: Faults,
        topics: &[TopicSpec],
        settings: LinkSettings,
        memory_bytes: usize,
    ) -> World {
        World::with_source(Versions::newest(), &[], faults, topics, settings, memory_bytes)
    }

    /// One whose source lies from the start.
    pub fn lying(lies: &[(Target, Fault)], topics: &[TopicSpec], settings: LinkSettings) -> World {
        let (versions, faults) = (Versions::newest(), Faults::none());
        World::with_source(versions, lies, faults, topics, settings, 16 << 20)
    }

    /// One whose source is older than topic ids.
    pub fn before_ids(topics: &[TopicSpec], settings: LinkSettings) -> World {
        let versions = Versions::kafka_2_1();
        World::with_source(versions, &[], Faults::none(), topics, settings, 16 << 20)
    }

    fn with_source(
        versions: Versions,
        lies: &[(Target, Fault)],
        faults: Faults,
        topics: &[TopicSpec],
        settings: LinkSettings,
        memory_bytes: usize,
    ) -> World {
        let ids = versions == Versions::newest();
        let mut sim = Simulation::new(7, Faults::none());
        let config = source::Config {
            listen: vec![address()],
            topics: topics.to_vec(),
            versions,
            ..source::Config::loopback(1)
        };
        let desk = Desk::new(config).expect("a possible source");
        let cluster = desk.cluster();
        for (target, lie) in lies {
            cluster.inject(target.clone(), lie.clone(), None);
        }
        let machine = sim.machine();
        let broker = sim.executor_on(machine, memory(64 << 20));
        let allowed = Rc::new(Allowed::default());
        sim.spawn_on(broker, Share::Serve, serve(desk, Rc::clone(&allowed))).detach();
        let (executor, boot, commands, events) = start_shard(&mut sim, faults, memory_bytes);
        let topics = topics.to_vec();
        let connections_peak = 0;
        let mut world = World {
            sim,
            cluster,
            settings,
            executor,
            boot,
            commands,
            events,
            seen: Vec::new(),
            topics,
            ids,
            connections_peak,
            allowed,
        };
        world.link();
        world
    }

    fn link(&mut self) {
        self.tell(Command::Link { link: LINK.into(), settings: self.settings.clone() });
        self.tell_leaders();
        self.assign(64 << 20);
    }

    /// The shard dies, `meanwhile` happens to its disk, and another begins in its place.
    pub fn restart(&mut self, meanwhile: impl FnOnce(&mut Simulation)) {
        self.sim.kill(self.executor);
        meanwhile(&mut self.sim);
        let started = start_shard(&mut self.sim, Faults::none(), 16 << 20);
        (self.executor, self.boot, self.commands, self.events) = started;
        self.link();
    }

    /// From now on another shard of the same process is meant; the one before runs on.
    pub fn other_shard(&mut self) {
        let started = run_shard(&mut self.sim, 1, self.boot.clone(), 16 << 20);
        let before;
        (self.executor, before, self.events) = {
            let (executor, commands, events) = started;
            (executor, std::mem::replace(&mut self.commands, commands), events)
        };
        // Its end would be the shard's.
        std::mem::forget(before);
        self.tell(Command::Link { link: LINK.into(), settings: self.settings.clone() });
        self.tell_leaders();
    }

    /// Gives it all partitions, with segments of so many bytes.
    pub fn assign(&mut self, segment_bytes: u32) {
        self.assign_in_mode(segment_bytes, &Mode::Replicate);
    }

    pub fn assign_in_mode(&mut self, segment_bytes: u32, mode: &Mode) {
        let mut partitions = Vec::new();
        for topic in &self.topics {
            for partition in 0..topic.partitions {
                partitions.push(Assign {
                    key: self.key(&topic.name, partition),
                    topic_id: self.topic_id(&topic.name),
                    data_dir: PathBuf::from(DATA),
                    mode: mode.clone(),
                    segment_bytes,
                    segment_ms: i64::MAX,
                });
            }
        }
        let answers = self.ask(|reply| Command::Assign { partitions, reply });
        assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    }

    /// From now on this is what the source has of a topic.
    pub fn follow(&mut self, topic: TopicSpec) {
        self.topics.retain(|known| known.name != topic.name);
        self.topics.push(topic);
    }

    fn topic_id(&self, topic: &str) -> Option<Uuid> {
        self.cluster.topic_id(topic).ok().filter(|_| self.ids)
    }

    pub fn key(&self, topic: &str, partition: i32) -> PartitionKey {
        PartitionKey { link: LINK.into(), topic: topic.into(), partition }
    }

    pub fn tell(&self, command: Command) {
        self.commands.try_send(command).expect("room for a command");
    }

    pub fn resume(&self, topic: &str) {
        self.tell(Command::Resume { link: LINK.into(), topics: Some(vec![topic.into()]) });
    }

    /// Pauses the topic, and lets it go on after something has been done.
    pub fn pause_and_resume(&mut self, topic: &str, between: impl FnOnce(&World)) {
        let topics = Some(vec![topic.into()]);
        self.ask(|reply| Command::Pause { link: LINK.into(), topics, reply });
        between(self);
        self.resume(topic);
    }

    pub fn ask<T>(&mut self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> T {
        let (reply, mut answer) = oneshot::channel();
        self.tell(command(reply));
        loop {
            self.sim.run_for(Duration::from_millis(1));
            if let Ok(answer) = answer.try_recv() {
                return answer;
            }
        }
    }

    pub fn tell_leaders(&self) {
        let topic = |spec: &TopicSpec| TopicView {
            topic: spec.name.as_str().into(),
            topic_id: self.topic_id(&spec.name),
            partitions: (0..spec.partitions)
                .filter_map(|partition| {
                    let leader_epoch = self.cluster.log(&spec.name, partition).ok()?.leader_epoch();
                    Some(PartitionView { partition, leader: Some(0), leader_epoch })
                })
                .collect(),
        };
        let broker = Broker {
            id: 0,
            host: "broker".into(),
            port: address().port(),
            addresses: vec![address()],
        };
        let topics = self.topics.iter().map(topic).collect();
        let view = ClusterView { brokers: vec![broker], topics };
        self.tell(Command::Leaders { link: LINK.into(), view: Arc::new(view) });
    }

    pub fn status(&mut self) -> ShardStatus {
        while let Ok(event) = self.events.try_recv() {
            match event {
                Event::MetadataStale { .. } => self.tell_leaders(),
                event => self.seen.push(event),
            }
        }
        let status = self.ask(|reply| Command::Status { link: None, reply });
        let connections: u32 = status.connections.iter().map(|(_, count)| count).sum();
        self.connections_peak = self.connections_peak.max(connections);
        status
    }

    pub fn partition(&mut self, topic: &str, partition: i32) -> PartitionStatus {
        let key = self.key(topic, partition);
        let status = self.status();
        status.partitions.into_iter().find(|p| p.key == key).expect("it is known")
    }

    /// Lets the world run until something holds; how long that took there.
    pub fn until(
        &mut self,
        what: &str,
        limit: Duration,
        mut holds: impl FnMut(&ShardStatus) -> bool,
    ) -> Duration {
        let begun = self.sim.now();
        loop {
            let status = self.status();
            if holds(&status) {
                return self.sim.now() - begun;
            }
            assert!(self.sim.now() - begun < limit, "{what} never came: {status:#?}");
            self.sim.run_for(Duration::from_millis(50));
        }
    }

    /// Lets the world run until the copy has all of the source.
    pub fn until_caught_up(&mut self, limit: Duration) -> Duration {
        let cluster = self.cluster.clone();
        self.until("catching up", limit, |status| {
            status.partitions.iter().all(|p| {
                let log = cluster.log(&p.key.topic, p.key.partition).expect("it has it");
                p.written == log.high_watermark()
            })
        })
    }

    /// Takes the shard's power; whether all of it has gone from memory.
    pub fn crash(&mut self) -> bool {
        self.sim.crash(self.executor);
        loop {
            match self.events.try_recv() {
                Ok(_) => {}
                Err(error) => return error == TryRecvError::Disconnected,
            }
        }
    }

    /// The segments of a partition of `orders`, in order.
    pub fn segments(&self, partition: i32) -> Vec<PathBuf> {
        let folder = PathBuf::from(format!("/data/prod/orders-{partition}"));
        let files = self.sim.disk(self.machine(), |disk| disk.files(&folder)).expect("a folder");
        let mut paths: Vec<PathBuf> = files.into_iter().map(|(path, _)| path).collect();
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
        paths.sort();
        paths
    }

    /// The most bytes that all answers under way at once were allowed together.
    pub fn allowed_bytes_peak(&self) -> usize {
        self.allowed.bytes_peak.get()
    }

    /// The machine the shard runs on.
    pub fn machine(&self) -> Machine {
        Machine::FIRST
    }
}

fn memory(arena_bytes: usize) -> Config {
    Config { arena_bytes, operations_max: 4096, ..Config::small() }
}

type Started = (ExecutorId, Boot, mpsc::Sender<Command>, mpsc::Receiver<Event>);

fn start_shard(sim: &mut Simulation, faults: Faults, memory_bytes: usize) -> Started {
    let boot = sim.run(async { Boot::prepare_simulated(&[DATA.into()]).await });
    sim.set_faults(faults);
    let boot = boot.expect("a data directory");
    let (executor, commands, events) = run_shard(sim, 0, boot.clone(), memory_bytes);
    (executor, boot, commands, events)
}

type Running = (ExecutorId, mpsc::Sender<Command>, mpsc::Receiver<Event>);

fn run_shard(sim: &mut Simulation, index: u16, boot: Boot, memory_bytes: usize) -> Running {
    let config = ShardConfig {
        index,
        memory_bytes,
        boot,
        flush_interval: Duration::from_millis(200),
        client_id: "world".into(),
        helper_cores: Vec::new(),
        stop_limit: Duration::from_secs(20),
    };
    let executor = sim.executor(memory(memory_bytes));
    let (commands, inbox) = mpsc::channel(256);
    let (theirs, events) = mpsc::channel(1024);
    let root = shards::run(config, theirs, inbox);
    sim.spawn_on(executor, Share::Background, async move {
        root.await.expect("the shard runs");
    })
    .detach();
    (executor, commands, events)
}

async fn serve(desk: Desk, allowed: Rc<Allowed>) {
    let listener = Listener::bind(&Address::Tcp(address())).expect("a free address");
    loop {
        let Ok(stream) = listener.accept().await else { continue };
        let (desk, allowed) = (desk.clone(), Rc::clone(&allowed));
        let answering = async move {
            let _ = converse(&desk, &stream, &allowed).await;
        };
        ring::spawn(Share::Serve, answering).detach();
    }
}

async fn converse(desk: &Desk, stream: &Stream, allowed: &Rc<Allowed>) -> io::Result<()> {
    loop {
        let head = receive(stream, 4).await?;
        let length = u32::from_be_bytes(head.try_into().expect("4 bytes"));
        let request = receive(stream, length as usize).await?;
        let mut _allowance = None;
        let answer = match desk.request(0, &request) {
            Reply::Answer(answer) => answer,
            Reply::Close => return Ok(()),
            Reply::Fetch(mut waiting) => {
                _allowance = Some(Allowed::take(allowed, waiting.bytes_max()));
                let until = ring::now() + waiting.wait_max();
                loop {
                    if let Some(answer) = waiting.look(ring::now() >= until) {
                        break answer;
                    }
                    ring::sleep(LOOK).await;
                }
            }
        };
        for piece in answer.chunks(PIECE_BYTES) {
            let mut lease = ring::lease(piece.len(), Class::Control).await;
            lease[..piece.len()].copy_from_slice(piece);
            let (slice, _) = lease.freeze(piece.len());
            stream.send_all(Gather::from_iter([slice])).await?;
        }
    }
}

async fn receive(stream: &Stream, bytes: usize) -> io::Result<Vec<u8>> {
    let mut received = Vec::new();
    while received.len() < bytes {
        let wanted = (bytes - received.len()).min(PIECE_BYTES);
        let (lease, _) = ring::lease(wanted, Class::Control).await.split(wanted);
        let (result, [lease, _]) = stream.receive([Some(lease), None], false).await;
        let count = result?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        received.extend_from_slice(&lease.expect("it comes back")[..count]);
    }
    Ok(received)
}
