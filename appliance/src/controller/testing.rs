//! Shards, a source and a store that do as they are told, and a controller over them.

use super::source::{
    LocalFuture, Source, SourceBroker, SourceCluster, SourcePartition, SourceTopic,
};
use super::*;
use crate::config::Config;
use crate::states::{TopicState, Verb};
use ::shards::control::{
    Command, Mode, PartitionKey, PartitionState, PartitionStatus, Refused, Sealed, ShardStatus,
};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use storage::metadata::Change;
use store::Backend;
use uuid::Uuid;

/// Memory that survives the controller, with a switch to fail the nth commit from now.
#[derive(Clone, Default)]
pub(crate) struct Disk(pub(crate) Arc<Mutex<DiskState>>);

#[derive(Default)]
pub(crate) struct DiskState {
    pub(crate) records: BTreeMap<String, Vec<u8>>,
    pub(crate) commits: usize,
    pub(crate) fail_after: Option<usize>,
}

impl Backend for Disk {
    fn load(&mut self) -> Result<Vec<(String, Vec<u8>)>, String> {
        let disk = self.0.lock().expect("lock");
        Ok(disk.records.iter().map(|(key, value)| (key.clone(), value.clone())).collect())
    }

    fn commit(&mut self, changes: &[Change]) -> Result<(), String> {
        let mut disk = self.0.lock().expect("lock");
        if let Some(left) = &mut disk.fail_after {
            if *left == 0 {
                return Err("no room".to_owned());
            }
            *left -= 1;
        }
        disk.commits += 1;
        for change in changes {
            match &change.value {
                Some(value) => disk.records.insert(change.key.clone(), value.clone()),
                None => disk.records.remove(&change.key),
            };
        }
        Ok(())
    }
}

/// What the source answers, and how many clients of it have sockets open.
#[derive(Clone, Default)]
pub(crate) struct Kafka(pub(crate) Rc<KafkaState>);

#[derive(Default)]
pub(crate) struct KafkaState {
    pub(crate) cluster: RefCell<Option<SourceCluster>>,
    pub(crate) clients: Cell<usize>,
    pub(crate) asked: Cell<usize>,
    pub(crate) hangs: Cell<bool>,
}

pub(crate) struct Client(Kafka);

impl Drop for Client {
    fn drop(&mut self) {
        self.0.0.clients.set(self.0.0.clients.get() - 1);
    }
}

impl Source for Client {
    fn metadata(&mut self) -> LocalFuture<'_, Result<SourceCluster, String>> {
        let kafka = self.0.clone();
        Box::pin(async move {
            kafka.0.asked.set(kafka.0.asked.get() + 1);
            if kafka.0.hangs.get() {
                std::future::pending::<()>().await;
            }
            kafka.0.cluster.borrow().clone().ok_or("connection refused".to_owned())
        })
    }
}

impl Connector for Kafka {
    fn source(&self, _: &LinkConfig) -> Box<dyn Source> {
        self.0.clients.set(self.0.clients.get() + 1);
        Box::new(Client(self.clone()))
    }
}

impl Kafka {
    pub(crate) fn answer(&self, topics: Vec<SourceTopic>) {
        let brokers = vec![SourceBroker { id: 1, host: "127.0.0.1".into(), port: 9092 }];
        let cluster_id = Some("cluster-a".to_owned());
        *self.0.cluster.borrow_mut() = Some(SourceCluster { cluster_id, brokers, topics });
    }

    pub(crate) fn die(&self) {
        *self.0.cluster.borrow_mut() = None;
    }
}

pub(crate) fn topic(name: &str, id: u128, partitions: i32) -> SourceTopic {
    let partitions = (0..partitions)
        .map(|partition| SourcePartition { partition, leader: Some(1), leader_epoch: 3 })
        .collect();
    SourceTopic { name: name.into(), id: Some(Uuid::from_u128(id)), error: None, partitions }
}

/// A shard that remembers what it was told.
#[derive(Clone, Default)]
pub(crate) struct Shard(pub(crate) Rc<ShardState>);

#[derive(Default)]
pub(crate) struct ShardState {
    pub(crate) partitions: RefCell<BTreeMap<PartitionKey, Mode>>,
    pub(crate) gate_closed: Cell<bool>,
    pub(crate) leaders: Cell<usize>,
    pub(crate) mute: Cell<bool>,
    /// It takes no command out of its queue.
    pub(crate) stuck: Cell<bool>,
    /// The disk of this partition number does not answer.
    pub(crate) hung: Cell<Option<i32>>,
    /// It cannot remove the files of this partition number.
    pub(crate) undeletable: Cell<Option<i32>>,
    pub(crate) sick: Cell<bool>,
    /// Its logs have failed.
    pub(crate) failed: Cell<bool>,
    pub(crate) retried: Cell<usize>,
    pub(crate) files_removed: RefCell<Vec<PartitionKey>>,
}

impl Shard {
    pub(crate) fn modes(&self, topic: &str) -> Vec<Mode> {
        let partitions = self.0.partitions.borrow();
        partitions.iter().filter(|(key, _)| *key.topic == *topic).map(|(_, m)| m.clone()).collect()
    }

    pub(crate) fn set(&self, topics: &Option<Vec<Arc<str>>>, mode: &Mode) {
        for (key, known) in self.0.partitions.borrow_mut().iter_mut() {
            let named = topics.as_ref().is_some_and(|topics| topics.contains(&key.topic));
            if named && *known != Mode::Sealed {
                *known = mode.clone();
            }
        }
    }

    pub(crate) async fn run(self, mut commands: mpsc::Receiver<Command>) {
        while let Some(command) = commands.recv().await {
            while self.0.stuck.get() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            if self.0.mute.get() {
                continue;
            }
            self.obey(command);
        }
    }

    pub(crate) fn obey(&self, command: Command) {
        match command {
            Command::Assign { partitions, reply } => {
                let sick = self.0.sick.get();
                let refused = || Err(Refused { reason: "no data directory".to_owned() });
                let results = partitions.iter().map(|_| if sick { refused() } else { Ok(()) });
                let _ = reply.send(results.collect());
                let opened = partitions.into_iter().filter(|_| !sick);
                let opened = opened.map(|assign| (assign.key, assign.mode));
                self.0.partitions.borrow_mut().extend(opened);
            }
            Command::Pause { topics, reply, .. } => {
                self.0.gate_closed.set(self.0.gate_closed.get() || topics.is_none());
                self.set(&topics, &Mode::Paused);
                let _ = reply.send(());
            }
            Command::Resume { topics, .. } => {
                self.0.gate_closed.set(self.0.gate_closed.get() && topics.is_some());
                self.set(&topics, &Mode::Replicate);
                if topics.is_none() {
                    self.0.retried.set(self.0.retried.get() + 1);
                    for mode in self.0.partitions.borrow_mut().values_mut() {
                        if matches!(mode, Mode::Held { .. }) {
                            *mode = Mode::Replicate;
                        }
                    }
                }
            }
            Command::Hold { topic, state, reason, .. } => {
                self.set(&Some(vec![topic]), &Mode::Held { state, reason });
            }
            Command::Seal { link, topics, reply } => {
                self.set(&Some(topics.clone()), &Mode::Sealed);
                let partitions = self.0.partitions.borrow();
                let sealed =
                    partitions.keys().filter(|key| key.link == link && topics.contains(&key.topic));
                let hangs = |key: &PartitionKey| self.0.hung.get() == Some(key.partition);
                let end = |key: &PartitionKey| Sealed {
                    key: key.clone(),
                    end_offset: Some(100 + i64::from(key.partition)),
                    last_epoch: Some(3),
                    error: hangs(key).then(|| "its disk does not answer".to_owned()),
                    hung: hangs(key),
                };
                let _ = reply.send(sealed.map(end).collect());
            }
            Command::Release { partitions, reply } => {
                let gone = |key: &PartitionKey| partitions.contains(key);
                self.0.partitions.borrow_mut().retain(|key, _| !gone(key));
                let _ = reply.send(());
            }
            Command::Delete { partitions, reply } => {
                let gone = |key: &PartitionKey| partitions.contains(key);
                self.0.partitions.borrow_mut().retain(|key, _| !gone(key));
                let stays = |key: &PartitionKey| self.0.undeletable.get() == Some(key.partition);
                let answer = |key: &PartitionKey| match stays(key) {
                    true => Err(Refused { reason: "not permitted".to_owned() }),
                    false => Ok(()),
                };
                let _ = reply.send(partitions.iter().map(answer).collect());
                let removed = partitions.into_iter().filter(|key| !stays(key));
                self.0.files_removed.borrow_mut().extend(removed);
            }
            Command::Leaders { .. } => self.0.leaders.set(self.0.leaders.get() + 1),
            Command::Status { reply, .. } => drop(reply.send(self.status())),
            Command::Stop { reply } => drop(reply.send(())),
            Command::Link { .. } | Command::Verify(_) => {}
        }
    }

    pub(crate) fn status(&self) -> ShardStatus {
        let status = |(key, mode): (&PartitionKey, &Mode)| PartitionStatus {
            key: key.clone(),
            state: match self.0.failed.get() {
                true => PartitionState::Faulted(::shards::control::FaultCode::LocalLog),
                false if *mode == Mode::Sealed => PartitionState::Sealed,
                false => PartitionState::Active,
            },
            unopened: false,
            reason: self.0.failed.get().then(|| "a write failed".to_owned()),
            since_ms: 0,
            retry_at_ms: None,
            log_start: 0,
            received: 10,
            written: 9,
            flushed: 5,
            high_watermark: 12,
            source_start: None,
            records_received: 10,
            leader_epoch: None,
            source_end: (key.partition == 0).then_some(12),
            source_records_end: (key.partition == 0).then_some(12),
            caught_up_at_ms: (key.partition == 0).then(|| wall_ms() - 1500),
            bytes_received: 1000,
            leader: Some(1),
        };
        let partitions = self.0.partitions.borrow().iter().map(status).collect();
        ShardStatus { partitions, ..Default::default() }
    }
}

pub(crate) struct House {
    pub(crate) disk: Disk,
    pub(crate) kafka: Kafka,
    pub(crate) shards: Vec<Shard>,
    pub(crate) controller: Rc<Controller>,
}

pub(crate) fn config(more: &str) -> Config {
    let text = format!(
        "[node]\ndata_dirs = [\"/a\", \"/b\"]\n[[link]]\nname = \"prod\"\n\
         bootstrap_servers = [\"k:1\"]\nmetadata_interval = \"100ms\"\n{more}"
    );
    Config::parse(&text, Path::new("t")).unwrap_or_else(|error| panic!("{error}"))
}

pub(crate) async fn house(disk: Disk, kafka: Kafka, more: &str) -> House {
    house_of(disk, kafka, config(more)).await
}

pub(crate) async fn house_of(disk: Disk, kafka: Kafka, config: Config) -> House {
    let mut shards = Vec::new();
    let mut senders = Vec::new();
    for _ in 0..2 {
        let (sender, commands) = mpsc::channel(64);
        let shard = Shard::default();
        tokio::task::spawn_local(shard.clone().run(commands));
        shards.push(shard);
        senders.push(sender);
    }
    let (store, _thread) = Store::start(disk.clone()).expect("thread");
    let stored = records::decode(store.load().await.expect("load")).expect("records");
    let shared = Shared {
        shards: Shards::new(senders),
        store,
        connector: Box::new(kafka.clone()),
        placement: RefCell::new(Placement::new(2, &config.node.data_dirs)),
    };
    let controller = Controller::new(shared, config, stored);
    controller.boot().await;
    House { disk, kafka, shards, controller }
}

impl House {
    pub(crate) fn link(&self) -> Rc<Link> {
        self.controller.link("prod").expect("declared")
    }

    pub(crate) fn state(&self, topic: &str) -> Option<TopicState> {
        let link = self.link();
        let state = link.state.borrow();
        state.topics.get(topic).map(|topic| topic.record.state)
    }

    pub(crate) fn code(&self, topic: &str) -> Option<String> {
        self.link().state.borrow().topics[topic].record.code.clone()
    }

    pub(crate) fn modes(&self, topic: &str) -> Vec<Mode> {
        self.shards.iter().flat_map(|shard| shard.modes(topic)).collect()
    }

    pub(crate) async fn verb(&self, verb: Verb, topics: Option<&[&str]>) -> Outcome {
        self.ask(verb, topics, false, false).await
    }

    pub(crate) async fn ask(
        &self,
        verb: Verb,
        topics: Option<&[&str]>,
        dry: bool,
        force: bool,
    ) -> Outcome {
        let topics = topics.map(|names| names.iter().map(|name| (*name).to_owned()).collect());
        self.link().carry(&Request { verb, topics, dry_run: dry, force }).await
    }

    /// Until the source has been asked `more` times again and the answers have been taken in.
    pub(crate) async fn rounds(&self, more: usize) {
        let wanted = self.kafka.0.asked.get() + more;
        while self.kafka.0.asked.get() < wanted {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        drop(self.link().turn.lock().await);
        self.settle().await;
    }

    /// Until the shards have done all they were told: commands are taken in order.
    pub(crate) async fn settle(&self) {
        self.controller.shared().shards.status(None).await;
    }

    /// The process is gone; disk and source stay.
    pub(crate) async fn crash(self, more: &str) -> House {
        house(self.disk.clone(), Kafka(self.kafka.0.clone()), more).await
    }
}

pub(crate) fn run<F: Future<Output = ()>>(test: F) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    tokio::task::LocalSet::new().block_on(&runtime, test);
}

pub(crate) async fn copied() -> House {
    let kafka = Kafka::default();
    kafka.answer(vec![topic("orders", 1, 3), topic("users", 2, 1), topic("__internal", 3, 1)]);
    let house = house(Disk::default(), kafka, "").await;
    house.rounds(2).await;
    house
}
