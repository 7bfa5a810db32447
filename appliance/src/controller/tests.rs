//! The controller against shards, sources and stores that do as they are told.

use super::*;
use crate::config::Config;
use crate::shard_port::{
    Command, Mode, PartitionKey, PartitionState, PartitionStatus, Sealed, ShardStatus,
};
use crate::states::{TopicState, Verb};
use source::{LocalFuture, Source, SourceBroker, SourceCluster, SourcePartition, SourceTopic};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use store::Backend;
use uuid::Uuid;

/// Memory that survives the controller, with a switch to fail the nth commit from now.
#[derive(Clone, Default)]
struct Disk(Arc<Mutex<DiskState>>);

#[derive(Default)]
struct DiskState {
    records: BTreeMap<String, Vec<u8>>,
    commits: usize,
    fail_after: Option<usize>,
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
struct Kafka(Rc<KafkaState>);

#[derive(Default)]
struct KafkaState {
    cluster: RefCell<Option<SourceCluster>>,
    clients: Cell<usize>,
    asked: Cell<usize>,
    hangs: Cell<bool>,
}

struct Client(Kafka);

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
    fn answer(&self, topics: Vec<SourceTopic>) {
        let brokers = vec![SourceBroker { id: 1, host: "127.0.0.1".into(), port: 9092 }];
        let cluster_id = Some("cluster-a".to_owned());
        *self.0.cluster.borrow_mut() = Some(SourceCluster { cluster_id, brokers, topics });
    }

    fn die(&self) {
        *self.0.cluster.borrow_mut() = None;
    }
}

fn topic(name: &str, id: u128, partitions: i32) -> SourceTopic {
    let partitions = (0..partitions)
        .map(|partition| SourcePartition { partition, leader: Some(1), leader_epoch: 3 })
        .collect();
    SourceTopic { name: name.into(), id: Some(Uuid::from_u128(id)), error: None, partitions }
}

/// A shard that remembers what it was told.
#[derive(Clone, Default)]
struct Shard(Rc<ShardState>);

#[derive(Default)]
struct ShardState {
    partitions: RefCell<BTreeMap<PartitionKey, Mode>>,
    gate_closed: Cell<bool>,
    leaders: Cell<usize>,
    mute: Cell<bool>,
    files_removed: RefCell<Vec<PartitionKey>>,
}

impl Shard {
    fn modes(&self, topic: &str) -> Vec<Mode> {
        let partitions = self.0.partitions.borrow();
        partitions.iter().filter(|(key, _)| *key.topic == *topic).map(|(_, m)| m.clone()).collect()
    }

    fn set(&self, topics: &Option<Vec<Arc<str>>>, mode: &Mode) {
        for (key, known) in self.0.partitions.borrow_mut().iter_mut() {
            if topics.as_ref().is_some_and(|topics| topics.contains(&key.topic)) {
                *known = mode.clone();
            }
        }
    }

    async fn run(self, mut commands: mpsc::Receiver<Command>) {
        while let Some(command) = commands.recv().await {
            if self.0.mute.get() {
                continue;
            }
            self.obey(command);
        }
    }

    fn obey(&self, command: Command) {
        match command {
            Command::Assign { partitions, reply } => {
                let results = partitions.iter().map(|_| Ok(())).collect();
                let opened = partitions.into_iter().map(|assign| (assign.key, assign.mode));
                self.0.partitions.borrow_mut().extend(opened);
                let _ = reply.send(results);
            }
            Command::Pause { topics, reply, .. } => {
                self.0.gate_closed.set(self.0.gate_closed.get() || topics.is_none());
                self.set(&topics, &Mode::Paused);
                let _ = reply.send(());
            }
            Command::Resume { topics, .. } => {
                self.0.gate_closed.set(self.0.gate_closed.get() && topics.is_some());
                self.set(&topics, &Mode::Replicate);
            }
            Command::Hold { topic, code, reason, .. } => {
                self.set(&Some(vec![topic]), &Mode::Held { code, reason });
            }
            Command::Seal { topics, reply, .. } => {
                self.set(&Some(topics.clone()), &Mode::Sealed);
                let partitions = self.0.partitions.borrow();
                let sealed = partitions.keys().filter(|key| topics.contains(&key.topic));
                let end = |key: &PartitionKey| Sealed {
                    key: key.clone(),
                    end_offset: 100 + i64::from(key.partition),
                    last_epoch: Some(3),
                    error: None,
                };
                let _ = reply.send(sealed.map(end).collect());
            }
            Command::Release { partitions, files, reply } => {
                let results = partitions.iter().map(|_| Ok(())).collect();
                for key in partitions {
                    self.0.partitions.borrow_mut().remove(&key);
                    if files {
                        self.0.files_removed.borrow_mut().push(key);
                    }
                }
                let _ = reply.send(results);
            }
            Command::Leaders { .. } => self.0.leaders.set(self.0.leaders.get() + 1),
            Command::Status { reply, .. } => drop(reply.send(self.status())),
            Command::Stop { reply } => drop(reply.send(())),
            Command::Link { .. } => {}
        }
    }

    fn status(&self) -> ShardStatus {
        let status = |key: &PartitionKey| PartitionStatus {
            key: key.clone(),
            state: PartitionState::Active,
            code: None,
            reason: None,
            since_ms: 0,
            retry_at_ms: None,
            log_start: 0,
            received: 10,
            written: 9,
            flushed: 5,
            source_end: (key.partition == 0).then_some(12),
            caught_up_at_ms: (key.partition == 0).then(|| wall_ms() - 1500),
            bytes_received: 1000,
            leader: Some(1),
        };
        let partitions = self.0.partitions.borrow().keys().map(status).collect();
        ShardStatus { partitions, ..Default::default() }
    }
}

struct House {
    disk: Disk,
    kafka: Kafka,
    shards: Vec<Shard>,
    controller: Rc<Controller>,
}

fn config(more: &str) -> Config {
    let text = format!(
        "[node]\ndata_dirs = [\"/a\", \"/b\"]\n[[link]]\nname = \"prod\"\n\
         bootstrap_servers = [\"k:1\"]\nmetadata_interval = \"100ms\"\n{more}"
    );
    Config::parse(&text, Path::new("t")).unwrap_or_else(|error| panic!("{error}"))
}

async fn house(disk: Disk, kafka: Kafka, more: &str) -> House {
    let mut shards = Vec::new();
    let mut senders = Vec::new();
    for _ in 0..2 {
        let (sender, commands) = mpsc::channel(64);
        let shard = Shard::default();
        tokio::task::spawn_local(shard.clone().run(commands));
        shards.push(shard);
        senders.push(sender);
    }
    let config = config(more);
    let (store, _thread) = Store::start(disk.clone()).expect("thread");
    let stored = records::decode(store.load().await.expect("load")).expect("records");
    let shared = Shared {
        shards: Shards::new(senders),
        store,
        connector: Box::new(kafka.clone()),
        placement: RefCell::new(Placement::new(2, &config.node.data_dirs)),
        client_id: "understudy-1".to_owned(),
    };
    let controller = Controller::new(shared, config, stored);
    controller.boot().await.expect("boot");
    House { disk, kafka, shards, controller }
}

impl House {
    fn link(&self) -> Rc<Link> {
        self.controller.link("prod").expect("declared")
    }

    fn state(&self, topic: &str) -> Option<TopicState> {
        let link = self.link();
        let state = link.state.borrow();
        state.topics.get(topic).map(|topic| topic.record.state)
    }

    fn code(&self, topic: &str) -> Option<String> {
        self.link().state.borrow().topics[topic].record.code.clone()
    }

    fn modes(&self, topic: &str) -> Vec<Mode> {
        self.shards.iter().flat_map(|shard| shard.modes(topic)).collect()
    }

    async fn verb(&self, verb: Verb, topics: Option<&[&str]>) -> Outcome {
        self.ask(verb, topics, false, false).await
    }

    async fn ask(&self, verb: Verb, topics: Option<&[&str]>, dry: bool, force: bool) -> Outcome {
        let topics = topics.map(|names| names.iter().map(|name| (*name).to_owned()).collect());
        self.link().carry(&Request { verb, topics, dry_run: dry, force }).await
    }

    /// Until the source has been asked `more` times again and the answers have been taken in.
    async fn rounds(&self, more: usize) {
        let wanted = self.kafka.0.asked.get() + more;
        while self.kafka.0.asked.get() < wanted {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let link = self.link();
        let _turn = link.turn.lock().await;
    }

    /// The process is gone; disk and source stay.
    async fn crash(self, more: &str) -> House {
        house(self.disk.clone(), Kafka(self.kafka.0.clone()), more).await
    }
}

/// Runs on virtual time; the store's thread is real, so time is held while it works.
fn run<F: Future<Output = ()>>(test: F) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    tokio::task::LocalSet::new().block_on(&runtime, test);
}

async fn copied() -> House {
    let kafka = Kafka::default();
    kafka.answer(vec![topic("orders", 1, 3), topic("users", 2, 1), topic("__internal", 3, 1)]);
    let house = house(Disk::default(), kafka, "").await;
    house.rounds(2).await;
    house
}

#[test]
fn topics_are_discovered_spread_and_replicated() {
    run(async {
        let house = copied().await;
        assert_eq!(house.modes("orders"), vec![Mode::Replicate; 3]);
        assert_eq!(house.modes("__internal"), Vec::<Mode>::new());
        let counts: Vec<usize> =
            house.shards.iter().map(|shard| shard.0.partitions.borrow().len()).collect();
        assert_eq!(counts, [2, 2]);
        assert_eq!(house.link().shown().0.name(), "ACTIVE");
        assert_eq!(house.shards[0].0.leaders.get(), 1, "unchanged leaders are not sent again");
    });
}

#[test]
fn partitions_are_added_and_topics_that_change_identity_are_faulted() {
    run(async {
        let house = copied().await;
        house.kafka.answer(vec![topic("orders", 1, 5), topic("users", 9, 1)]);
        house.rounds(2).await;
        assert_eq!(house.modes("orders"), vec![Mode::Replicate; 5]);
        assert_eq!(house.state("users"), Some(TopicState::Faulted));
        assert_eq!(house.code("users").as_deref(), Some("topic_recreated"));
        assert!(
            matches!(&house.modes("users")[..], [Mode::Held { code, .. }] if code == "topic_recreated")
        );
        house.kafka.answer(vec![topic("users", 9, 1)]);
        house.rounds(5).await;
        assert_eq!(house.code("orders").as_deref(), Some("topic_deleted"));
        house.kafka.answer(vec![topic("orders", 1, 5)]);
        house.rounds(2).await;
        assert_eq!(house.state("orders"), Some(TopicState::Active), "it was only hidden");
    });
}

#[test]
fn a_dead_source_makes_the_link_unavailable_with_reason_and_retry() {
    run(async {
        let house = copied().await;
        house.kafka.die();
        house.rounds(2).await;
        let (state, code, reason, _) = house.link().shown();
        assert_eq!((state.name(), code.as_deref()), ("UNAVAILABLE", Some("source_unreachable")));
        assert_eq!(reason.as_deref(), Some("connection refused"));
        assert_eq!(house.state("orders"), Some(TopicState::Active));
    });
}

#[test]
fn another_cluster_at_the_address_is_refused() {
    run(async {
        let house = copied().await;
        let good = house.kafka.0.cluster.borrow().clone();
        house.kafka.0.cluster.borrow_mut().as_mut().expect("set").cluster_id = Some("evil".into());
        house.rounds(2).await;
        let (state, code, reason, _) = house.link().shown();
        assert_eq!((state.name(), code.as_deref()), ("UNAVAILABLE", Some("cluster_id_changed")));
        let reason = reason.expect("a reason");
        assert!(reason.contains("cluster-a") && reason.contains("evil"), "{reason}");
        assert!(house.shards[0].0.gate_closed.get(), "nothing is fetched from it");
        *house.kafka.0.cluster.borrow_mut() = good;
        house.rounds(2).await;
        assert_eq!(house.link().shown().0.name(), "ACTIVE");
        assert!(!house.shards[0].0.gate_closed.get());
    });
}

#[test]
fn a_paused_link_is_silent_and_stays_so_over_a_restart() {
    run(async {
        let house = copied().await;
        assert_eq!(house.verb(Verb::Pause, None).await.code, "paused");
        assert_eq!(house.verb(Verb::Pause, None).await.code, "already_paused");
        assert_eq!(house.kafka.0.clients.get(), 0, "no client, no socket");
        assert!(house.shards.iter().all(|shard| shard.0.gate_closed.get()));
        let asked = house.kafka.0.asked.get();
        let house = house.crash("").await;
        assert_eq!(house.link().shown().0.name(), "PAUSED");
        assert!(house.shards.iter().all(|shard| shard.0.gate_closed.get()));
        assert_eq!(house.kafka.0.asked.get(), asked, "the source heard nothing");
        assert_eq!(house.verb(Verb::Resume, None).await.code, "resumed");
        house.rounds(1).await;
        assert!(house.shards.iter().all(|shard| !shard.0.gate_closed.get()));
    });
}

#[test]
fn pause_does_not_wait_for_a_source_that_hangs() {
    run(async {
        let house = copied().await;
        house.kafka.0.hangs.set(true);
        house.link().refresh_soon();
        let asked = house.kafka.0.asked.get();
        while house.kafka.0.asked.get() == asked {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(house.verb(Verb::Pause, None).await.code, "paused");
        assert_eq!(house.kafka.0.clients.get(), 0);
    });
}

#[test]
fn topics_pause_and_resume_alone() {
    run(async {
        let house = copied().await;
        assert_eq!(house.verb(Verb::Pause, Some(&["orders"])).await.code, "paused");
        assert_eq!(house.modes("orders"), vec![Mode::Paused; 3]);
        assert_eq!(house.modes("users"), vec![Mode::Replicate]);
        let house = house.crash("").await;
        assert_eq!(house.modes("orders"), vec![Mode::Paused; 3]);
        assert_eq!(house.verb(Verb::Resume, Some(&["orders"])).await.code, "resumed");
        assert_eq!(house.modes("orders"), vec![Mode::Replicate; 3]);
        let unknown = house.verb(Verb::Pause, Some(&["orders", "nope"])).await;
        assert_eq!((unknown.ending, unknown.code.as_str()), (Ending::NotFound, "topic_not_found"));
        assert_eq!(house.state("orders"), Some(TopicState::Active), "all or nothing");
    });
}

#[test]
fn failover_works_with_the_source_dead_and_the_link_paused() {
    run(async {
        let house = copied().await;
        house.kafka.die();
        house.verb(Verb::Pause, None).await;
        let house = house.crash("").await;
        let outcome = house.verb(Verb::Failover, None).await;
        assert_eq!((outcome.ending, outcome.code.as_str()), (Ending::Done, "failed_over"));
        assert_eq!(outcome.topics.len(), 2);
        let orders = &outcome.topics[0];
        let ends: Vec<i64> = orders.ends.iter().map(|end| end.end_offset).collect();
        assert_eq!((orders.topic.as_str(), ends), ("orders", vec![100, 101, 102]));
        assert_eq!(house.verb(Verb::Failover, None).await.code, "already_failed_over");
        let house = house.crash("").await;
        assert_eq!(house.state("orders"), Some(TopicState::FailedOver));
        assert_eq!(house.modes("orders"), vec![Mode::Sealed; 3], "never fetched again");
        assert_eq!(house.link().shown().0.name(), "PAUSED");
    });
}

#[test]
fn failover_interrupted_at_every_commit_can_be_run_again() {
    for survived in 0..3 {
        run(async move {
            let house = copied().await;
            house.disk.0.lock().expect("lock").fail_after = Some(survived);
            let outcome = house.verb(Verb::Failover, None).await;
            house.disk.0.lock().expect("lock").fail_after = None;
            let house = house.crash("").await;
            let expected = match survived {
                0 => TopicState::Active,
                _ => TopicState::FailedOver,
            };
            assert_eq!(house.state("orders"), Some(expected), "{survived} commits survived");
            assert_eq!(outcome.ending == Ending::Done, survived == 2, "{outcome:?}");
            let again = house.verb(Verb::Failover, None).await;
            assert!(matches!(again.ending, Ending::Done | Ending::Unchanged), "{again:?}");
            assert_eq!(house.state("users"), Some(TopicState::FailedOver));
            let link = house.link();
            let ends = link.state.borrow().topics["orders"].record.ends.len();
            assert_eq!(ends, 3, "the ends are kept");
        });
    }
}

#[test]
fn a_shard_that_does_not_confirm_the_barrier_changes_nothing() {
    run(async {
        let house = copied().await;
        house.shards[1].0.mute.set(true);
        let outcome = house.verb(Verb::Failover, None).await;
        assert_eq!(
            (outcome.ending, outcome.code.as_str()),
            (Ending::Failed, "flush_barrier_failed")
        );
        assert_eq!(house.state("orders"), Some(TopicState::Active));
        house.shards[1].0.mute.set(false);
        assert_eq!(house.verb(Verb::Failover, None).await.ending, Ending::Done);
    });
}

#[test]
fn dry_runs_change_nothing() {
    run(async {
        let house = copied().await;
        let commits = house.disk.0.lock().expect("lock").commits;
        for verb in [Verb::Pause, Verb::Failover, Verb::Delete] {
            for topics in [None, Some(&["orders"][..])] {
                let outcome = house.ask(verb, topics, true, true).await;
                assert_eq!(outcome.ending, Ending::Done, "{outcome:?}");
                assert!(outcome.dry_run && !outcome.steps.is_empty());
            }
        }
        assert_eq!(house.disk.0.lock().expect("lock").commits, commits);
        assert_eq!(house.modes("orders"), vec![Mode::Replicate; 3]);
        assert_eq!(house.link().shown().0.name(), "ACTIVE");
    });
}

#[test]
fn delete_is_refused_while_live_and_removes_files_when_forced() {
    run(async {
        let house = copied().await;
        let refused = house.verb(Verb::Delete, Some(&["orders"])).await;
        assert_eq!((refused.ending, refused.code.as_str()), (Ending::Refused, "topic_live"));
        assert_eq!(house.verb(Verb::Delete, None).await.code, "topics_live");
        house.kafka.answer(vec![topic("users", 2, 1)]);
        let forced = house.ask(Verb::Delete, Some(&["orders"]), false, true).await;
        assert_eq!((forced.ending, forced.code.as_str()), (Ending::Done, "deleted"));
        assert_eq!(house.state("orders"), None);
        let removed: usize =
            house.shards.iter().map(|shard| shard.0.files_removed.borrow().len()).sum();
        assert_eq!(removed, 3);
        let house = house.crash("").await;
        assert_eq!(house.state("orders"), None);
    });
}

#[test]
fn a_deletion_interrupted_is_finished_at_the_next_start() {
    run(async {
        let house = copied().await;
        house.disk.0.lock().expect("lock").fail_after = Some(1);
        let outcome = house.ask(Verb::Delete, Some(&["orders"]), false, true).await;
        assert_eq!(outcome.ending, Ending::Failed);
        house.disk.0.lock().expect("lock").fail_after = None;
        house.kafka.die();
        let house = house.crash("").await;
        assert_eq!(house.state("orders"), None);
    });
}

#[test]
fn a_deleted_link_keeps_files_and_answers_so() {
    run(async {
        let house = copied().await;
        assert_eq!(house.ask(Verb::Delete, None, false, true).await.code, "deleted");
        assert_eq!(house.verb(Verb::Delete, None).await.code, "already_deleted");
        assert_eq!(house.verb(Verb::Resume, None).await.code, "link_deleted");
        assert_eq!(house.verb(Verb::Pause, Some(&["orders"])).await.code, "link_deleted");
        assert_eq!(house.kafka.0.clients.get(), 0);
        assert!(house.shards.iter().all(|shard| shard.0.partitions.borrow().is_empty()));
        assert!(house.shards.iter().all(|shard| shard.0.files_removed.borrow().is_empty()));
    });
}

#[test]
fn reload_adds_updates_removes_and_refuses() {
    run(async {
        let house = copied().await;
        let second = "[[link]]\nname = \"two\"\nbootstrap_servers = [\"z:1\"]\n";
        let both = config(second);
        let reload = house.controller.reload(both.clone()).await.expect("store");
        assert_eq!((reload.changes.len(), reload.refused.len()), (1, 0));
        assert!(house.controller.link("two").is_some());
        let mut without = both;
        without.links.remove(0);
        let reload = house.controller.reload(without.clone()).await.expect("store");
        assert_eq!(reload.refused[0].code, "link_live");
        assert!(house.controller.link("prod").is_some(), "it goes on");
        house.verb(Verb::Failover, None).await;
        let reload = house.controller.reload(without).await.expect("store");
        assert!(reload.refused.is_empty(), "{reload:?}");
        assert!(house.controller.link("prod").is_none());
        let reload = house.controller.reload(config("")).await.expect("store");
        assert_eq!(reload.refused.len(), 0);
        assert_eq!(house.state("orders"), Some(TopicState::FailedOver), "it was not forgotten");
    });
}

#[test]
fn status_tells_known_lag_and_leaves_unknown_out() {
    run(async {
        let house = copied().await;
        let statuses = house.controller.shared().shards.status(None).await;
        let rates = status::Rates::default();
        let snapshot = status::Snapshot::new(&statuses, &rates);
        let node = snapshot.node(&house.controller, status::Depth::Partitions);
        let link = &node.links[0];
        assert_eq!((link.topics_total, link.partitions_total), (2, 4));
        assert_eq!(link.totals.lag_records, Some(6), "two partitions with a known end, 3 each");
        assert_eq!(link.totals.lag_unknown_partitions, 2);
        assert!(link.totals.lag_seconds.is_some_and(|lag| lag >= 1.5));
        let json = serde_json::to_value(&node).expect("JSON");
        let partitions = &json["links"][0]["topics"][0]["partitions"];
        assert_eq!(partitions[0]["lag_records"], 3);
        assert!(partitions[1].get("lag_records").is_none(), "unknown is absent");
        assert!(partitions[1].get("rate_bytes_per_second").is_none());
    });
}

#[test]
fn a_store_that_fails_changes_nothing() {
    run(async {
        let house = copied().await;
        house.disk.0.lock().expect("lock").fail_after = Some(0);
        for (verb, topics) in
            [(Verb::Pause, None), (Verb::Pause, Some(&["orders"][..])), (Verb::Failover, None)]
        {
            let outcome = house.verb(verb, topics).await;
            assert_eq!((outcome.ending, outcome.code.as_str()), (Ending::Failed, "store_failed"));
        }
        assert_eq!(house.state("orders"), Some(TopicState::Active));
        assert_eq!(house.link().shown().0.name(), "ACTIVE");
    });
}
