//! A shard against the embedded source, steered as control would.

#![allow(dead_code, reason = "each test program uses its own part")]

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use shards::ShardHandle;
use shards::control::*;
use source::{Handle, PartitionLog, TopicSpec};
use storage::boot::Boot;
use tempfile::TempDir;
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

/// Nothing here takes longer, on any machine, unless it hangs.
const PATIENCE: Duration = Duration::from_secs(60);
pub const LINK: &str = "prod";

/// One shard, its data directory, and the source it follows.
pub struct Rig {
    pub source: Handle,
    pub folder: Arc<TempDir>,
    shard: Option<ShardHandle>,
    events: mpsc::Receiver<Event>,
    pub seen: Vec<Event>,
    topics: Vec<(Arc<str>, i32)>,
    ids: bool,
    leaders: HashMap<(Arc<str>, i32), usize>,
    pub settings: LinkSettings,
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

impl Rig {
    /// Starts a shard that follows these topics of the source.
    pub fn new(source: Handle, topics: &[&TopicSpec], settings: LinkSettings) -> Rig {
        Rig::with_ids(true, source, topics, settings)
    }

    /// The same, with a source before 2.8, which has no topic ids.
    pub fn without_ids(source: Handle, topics: &[&TopicSpec], settings: LinkSettings) -> Rig {
        Rig::with_ids(false, source, topics, settings)
    }

    fn with_ids(ids: bool, source: Handle, topics: &[&TopicSpec], settings: LinkSettings) -> Rig {
        let folder = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
        let topics = topics.iter().map(|t| (Arc::from(t.name.as_str()), t.partitions)).collect();
        let (_, events) = mpsc::channel(1);
        let mut rig = Rig {
            source,
            folder: Arc::new(folder),
            shard: None,
            events,
            seen: Vec::new(),
            topics,
            ids,
            leaders: HashMap::new(),
            settings,
        };
        rig.start();
        rig
    }

    /// Starts the shard on what its directory holds.
    pub fn start(&mut self) {
        let boot = Boot::prepare(&[self.folder.path().to_owned()]).expect("a data directory");
        let (events, theirs) = mpsc::channel(1024);
        self.events = theirs;
        let config = ShardConfig {
            index: 0,
            memory_bytes: 64 << 20,
            boot,
            flush_interval: Duration::from_millis(200),
            client_id: "understudy-test".into(),
            helper_cores: Vec::new(),
            stop_limit: Duration::from_secs(20),
        };
        self.shard = Some(shards::start(config, || {}, events).expect("a thread"));
        self.tell(Command::Link { link: LINK.into(), settings: self.settings.clone() });
        self.tell_leaders();
        self.assign(Mode::Replicate);
    }

    pub fn assign(&self, mode: Mode) {
        let assigns = self.keys().into_iter().map(|key| {
            let topic_id = self.topic_id(&key.topic);
            Assign {
                key,
                topic_id,
                data_dir: self.folder.path().to_owned(),
                mode: mode.clone(),
                segment_bytes: 1 << 20,
                segment_ms: i64::MAX,
            }
        });
        let partitions = assigns.collect();
        let answers = self.ask(|reply| Command::Assign { partitions, reply });
        assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    }

    /// Stops the shard cleanly.
    pub fn stop(&mut self) {
        self.ask(|reply| Command::Stop { reply });
        let shard = self.shard.take().expect("it runs");
        shard.thread.join().expect("no panic").expect("a clean stop");
    }

    pub fn keys(&self) -> Vec<PartitionKey> {
        let all = self.topics.iter().flat_map(|(topic, partitions)| {
            (0..*partitions).map(|partition| PartitionKey {
                link: LINK.into(),
                topic: Arc::clone(topic),
                partition,
            })
        });
        all.collect()
    }

    fn topic_id(&self, topic: &str) -> Option<Uuid> {
        self.source.cluster().topic_id(topic).ok().filter(|_| self.ids)
    }

    pub fn tell(&self, command: Command) {
        let shard = self.shard.as_ref().expect("it runs");
        shard.commands.blocking_send(command).expect("the shard listens");
    }

    pub fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> T {
        let (reply, answer) = oneshot::channel();
        self.tell(command(reply));
        answer.blocking_recv().expect("the shard answers")
    }

    /// Moves a partition's leader at the source.
    pub fn move_leader(&mut self, topic: &str, partition: i32, broker: usize) {
        self.source.cluster().move_leader(topic, partition, broker).expect("moves");
        self.leaders.insert((topic.into(), partition), broker);
    }

    /// Says who leads what, as Metadata would.
    pub fn tell_leaders(&self) {
        let cluster = self.source.cluster();
        let brokers = self.source.addresses();
        let topics = self.topics.iter().map(|(topic, partitions)| TopicView {
            topic: Arc::clone(topic),
            topic_id: self.topic_id(topic),
            partitions: (0..*partitions)
                .filter_map(|partition| {
                    let log = cluster.log(topic, partition).ok()?;
                    let default = partition as usize % brokers.len();
                    let key = (Arc::clone(topic), partition);
                    let leader = *self.leaders.get(&key).unwrap_or(&default) as i32;
                    let leader_epoch = log.leader_epoch();
                    Some(PartitionView { partition, leader: Some(leader), leader_epoch })
                })
                .collect(),
        });
        let view = ClusterView {
            brokers: brokers
                .iter()
                .enumerate()
                .map(|(id, address)| Broker {
                    id: id as i32,
                    host: "127.0.0.1".into(),
                    port: address.port(),
                    addresses: vec![*address],
                })
                .collect(),
            topics: topics.collect(),
        };
        self.tell(Command::Leaders { link: LINK.into(), view: Arc::new(view) });
    }

    pub fn status(&self) -> ShardStatus {
        self.ask(|reply| Command::Status { link: None, reply })
    }

    pub fn partition(&self, topic: &str, partition: i32) -> PartitionStatus {
        let status = self.status();
        let mut all = status.partitions.into_iter();
        all.find(|p| &*p.key.topic == topic && p.key.partition == partition).expect("it is known")
    }

    /// Plays control until something holds: answers stale metadata, keeps events.
    pub fn until(&mut self, what: &str, mut holds: impl FnMut(&ShardStatus) -> bool) {
        let begun = Instant::now();
        loop {
            // First, so that what was told before it has been seen.
            let status = self.status();
            while let Ok(event) = self.events.try_recv() {
                if matches!(event, Event::MetadataStale { .. }) {
                    self.tell_leaders();
                } else {
                    self.seen.push(event);
                }
            }
            if holds(&status) {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "{what} never came: {status:#?}\n{:?}", self.seen);
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits until everything the source has is flushed here.
    pub fn until_caught_up(&mut self) {
        let cluster = self.source.cluster();
        self.until("catching up", |status| {
            status.partitions.iter().all(|p| {
                let log = cluster.log(&p.key.topic, p.key.partition).expect("it has it");
                p.flushed == log.high_watermark()
            })
        });
    }

    pub fn log_folder(&self, topic: &str, partition: i32) -> PathBuf {
        self.folder.path().join(LINK).join(format!("{topic}-{partition}"))
    }

    /// The bytes of a cleanly closed copy: its segments, one behind another.
    pub fn copy(&self, topic: &str, partition: i32) -> Vec<u8> {
        let folder = self.log_folder(topic, partition);
        let entries = std::fs::read_dir(folder).expect("a folder");
        let mut segments: Vec<PathBuf> = entries.map(|e| e.expect("an entry").path()).collect();
        segments.retain(|path| path.extension().is_some_and(|e| e == "log"));
        segments.sort();
        segments.iter().flat_map(|path| std::fs::read(path).expect("a segment")).collect()
    }

    /// After a clean stop: every partition holds what the source has, byte for byte.
    pub fn assert_equal(&self) {
        for key in self.keys() {
            let log = self.source.cluster().log(&key.topic, key.partition).expect("it has it");
            assert_same(&key, &self.copy(&key.topic, key.partition), &log);
        }
    }
}

pub fn assert_same(key: &PartitionKey, copy: &[u8], log: &PartitionLog) {
    let mut comparison = log.compare_from(log.log_start());
    if let Err(difference) = comparison.feed(copy) {
        panic!("{key}: {difference}");
    }
    assert!(comparison.is_at_batch_end(), "{key} ends inside a batch");
    assert_eq!(comparison.offset(), log.high_watermark(), "{key} is short");
}
