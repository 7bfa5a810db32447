//! A world: a source cluster, a machine that copies it, and what happens to both.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ring::sim::{ExecutorId, Faults, Machine, Random, Simulation};
use ring::{Config, Share};
use shards::control::*;
use source::{Cluster, Desk, PartitionLog};
use storage::boot::Boot;
use tokio::sync::{mpsc, oneshot};

use crate::brokers::{self, SharedMischief};
use crate::control::{self, Shard, link};
use crate::deceits::FalseView;
use crate::model::{DATA, Model};
use crate::plan::Plan;
use crate::recreated::Gone;
use crate::tally::Tally;
use crate::verbs::{Order, Standing};

/// Everything of one seed.
pub struct World {
    /// The simulated machines, disks, network and clocks.
    pub sim: Simulation,
    /// What was drawn for it.
    pub plan: Plan,
    /// The hand that moves the source.
    pub cluster: Cluster,
    /// What must be there.
    pub models: BTreeMap<PartitionKey, Model>,
    /// The shards, when the process lives.
    pub shards: Vec<Shard>,
    /// Counts.
    pub tally: Tally,
    /// Who leads what.
    pub leaders: BTreeMap<PartitionKey, usize>,
    /// The brokers' executors, when they live.
    pub brokers: Vec<(Machine, Option<ExecutorId>)>,
    /// How frames are spoiled.
    pub mischief: SharedMischief,
    /// The link's settings now.
    pub settings: LinkSettings,
    /// What is written down of each topic.
    pub standing: BTreeMap<Arc<str>, Standing>,
    /// A clean stop is under way: what is flushed then may not be known to be.
    pub stopping: bool,
    /// The link is paused, by order.
    pub link_paused: bool,
    /// And has nothing open to the source any more.
    pub link_silent: bool,
    /// Orders under way.
    pub orders: Vec<Order>,
    /// Which shard has which partition.
    pub owners: BTreeMap<PartitionKey, usize>,
    /// Random numbers for orders: others are not touched by them.
    pub lot: Random,
    /// The same for lies, and for topics that are created again.
    pub guile: Random,
    /// A lie about the cluster, and how often it is told yet.
    pub false_view: Option<(FalseView, u32)>,
    /// Topics that are not at the source now.
    pub gone: BTreeMap<Arc<str>, Gone>,
    /// By topic: the id that is written down.
    pub known: BTreeMap<Arc<str>, Option<uuid::Uuid>>,
    /// By topic: answers in a row that left it out.
    pub missing: BTreeMap<Arc<str>, u32>,
    /// Whether anybody may be told who leads.
    pub telling: bool,
    /// Whether errors of the disk were possible in this process's life.
    pub bad_disk: bool,
    tracing: bool,
    desk: Desk,
    events: Option<mpsc::Receiver<Event>>,
    pub old_view: Arc<ClusterView>,
    turn: usize,
    grown: u64,
}

impl World {
    /// The world of a seed, before anything runs.
    pub fn new(seed: u64) -> World {
        let plan = Plan::draw(seed);
        let mut sim = Simulation::new(seed, quiet());
        let config = source::Config {
            listen: (0..plan.brokers).map(brokers::address).collect(),
            topics: plan.topics.clone(),
            sessions_max: plan.sessions_max,
            versions: match plan.old_source {
                true => source::Versions::kafka_2_1(),
                false => source::Versions::newest(),
            },
            ..source::Config::loopback(plan.brokers)
        };
        let desk = Desk::new(config).expect("a possible source");
        let mut models = BTreeMap::new();
        let mut leaders = BTreeMap::new();
        for topic in &plan.topics {
            for partition in 0..topic.partitions {
                let name: Arc<str> = topic.name.as_str().into();
                let key = PartitionKey { link: link(), topic: name, partition };
                leaders.insert(key.clone(), partition as usize % plan.brokers);
                models.insert(key.clone(), Model::new(key));
            }
        }
        let brokers = (0..plan.brokers).map(|_| (sim.machine(), None)).collect();
        let mut world = World {
            cluster: desk.cluster(),
            settings: plan.settings.clone(),
            standing: models
                .keys()
                .map(|key| (Arc::clone(&key.topic), Standing::Followed))
                .collect(),
            stopping: false,
            link_paused: false,
            link_silent: false,
            orders: Vec::new(),
            owners: BTreeMap::new(),
            lot: Random::new(seed ^ 0x6f72_6465_7273),
            guile: Random::new(seed ^ 0x6465_6365_6974),
            false_view: None,
            gone: BTreeMap::new(),
            known: BTreeMap::new(),
            missing: BTreeMap::new(),
            models,
            leaders,
            brokers,
            shards: Vec::new(),
            tally: Tally::default(),
            mischief: SharedMischief::default(),
            telling: false,
            bad_disk: false,
            tracing: std::env::var("UNDERSTUDY_TRACE").is_ok(),
            desk,
            events: None,
            old_view: Arc::default(),
            turn: 0,
            grown: 0,
            sim,
            plan,
        };
        (0..world.brokers.len()).for_each(|broker| world.start_broker(broker));
        for topic in world.standing.keys().cloned().collect::<Vec<_>>() {
            let id = world.topic_id(&topic);
            world.known.insert(topic, id);
        }
        world
    }

    /// A random number of the world's.
    pub fn below(&self, end: u64) -> u64 {
        self.sim.random_below(end)
    }

    /// Once in so many times.
    pub fn once_in(&self, times: u64) -> bool {
        self.below(times) == 0
    }

    /// Any partition.
    pub fn any_key(&self) -> PartitionKey {
        let index = self.below(self.models.len() as u64) as usize;
        self.models.keys().nth(index).expect("there are partitions").clone()
    }

    /// A partition's log at the source as it stands, or as it was if it is away.
    pub fn log(&self, key: &PartitionKey) -> PartitionLog {
        match self.gone.get(&key.topic) {
            Some(gone) => gone.logs[key.partition as usize].clone(),
            None => self.cluster.log(&key.topic, key.partition).expect("it is there"),
        }
    }

    // The source.

    /// Starts a broker that is down.
    pub fn start_broker(&mut self, broker: usize) {
        let machine = self.brokers[broker].0;
        let executor = self.sim.executor_on(machine, Config::small());
        let mischief = Rc::clone(&self.mischief);
        let serving = brokers::serve(self.desk.clone(), broker, mischief);
        self.sim.spawn_on(executor, Share::Serve, serving).detach();
        self.brokers[broker].1 = Some(executor);
    }

    /// A broker dies, with its machine or alone.
    pub fn stop_broker(&mut self, broker: usize, power: bool) {
        if let Some(executor) = self.brokers[broker].1.take() {
            match power {
                true => self.sim.crash(executor),
                false => self.sim.kill(executor),
            }
            let _ = self.cluster.forget_sessions(broker);
        }
    }

    /// Appends something to a partition.
    pub fn grow(&mut self, key: &PartitionKey) {
        if !self.is_given(key) {
            let batches = 1 + self.below(1 + self.below(30));
            self.cluster.append(&key.topic, key.partition, batches).expect("it grows");
            return;
        }
        for _ in 0..1 + self.below(8) {
            self.grown += 1;
            let log = self.log(key);
            let gap = if self.once_in(4) { self.below(50) } else { 0 };
            // Of another log that has nothing where the copy ends nothing tells but ids.
            let telling = !(self.plan.old_source && self.models[key].recreated);
            let gap = if telling { gap } else { 0 };
            let base = log.end_offset() + gap.cast_signed();
            let batch = given_batch(&self.sim, base, log.leader_epoch(), self.grown);
            let batches = [batch];
            self.cluster
                .append_batches(&key.topic, key.partition, &batches, true)
                .expect("it grows");
        }
    }

    /// Whether a topic has no batches of its own.
    pub fn is_given(&self, key: &PartitionKey) -> bool {
        let spec = self.plan.topics.iter().find(|topic| *topic.name == *key.topic);
        spec.is_some_and(|topic| topic.content == source::Content::Given)
    }

    // The copy.

    /// Starts the process: finds what the disk holds and starts so many shards, all partitions
    /// assigned and nobody told who leads.
    pub fn start(&mut self, shards: usize, faults: Faults) -> Result<(), String> {
        self.telling = false;
        self.link_silent = self.link_paused;
        self.bad_disk = faults.disk.read_error_ppm > 0;
        // A node that cannot read or write its own folder does not start: the boot itself is
        // spared.
        self.sim.disk(Machine::FIRST, |disk| {
            disk.set_capacity(1 << 40);
            disk.fail_flushes(0);
            if self.plan.trouble.bad_disk {
                // A device that fails again is only sure of what a checkpoint says.
                for model in self.models.values_mut() {
                    model.floor = model.floor.min(model.checkpointed(disk));
                }
            }
        });
        let prepare = || async { Boot::prepare_simulated(&[DATA.into()]).await };
        let boot = self.sim.run(prepare()).map_err(|error| format!("no start: {error}"))?;
        if faults.disk.flush_error_ppm == 0 {
            self.sim.set_faults(faults.clone());
        }
        for (key, model) in &mut self.models {
            if self.standing[&key.topic] == Standing::Deleting {
                model.forget(); // what was said of it before it went
            }
        }
        self.turn += 1;
        let (events, theirs) = mpsc::channel(1024);
        self.events = Some(theirs);
        let keys: Vec<PartitionKey> = self.models.keys().cloned().collect();
        for index in 0..shards {
            let config = ShardConfig {
                index: index as u16,
                memory_bytes: self.plan.memory_bytes,
                boot: boot.clone(),
                flush_interval: self.plan.flush_interval,
                client_id: "campaign".into(),
                helper_cores: Vec::new(),
                stop_limit: Duration::from_secs(20),
            };
            let memory = Config {
                arena_bytes: self.plan.memory_bytes,
                operations_max: 4096,
                ..Config::small()
            };
            let executor = self.sim.executor(memory);
            let (commands, inbox) = mpsc::channel(256);
            let ended = Rc::new(RefCell::new(String::new()));
            let (root, why) = (shards::run(config, events.clone(), inbox), Rc::clone(&ended));
            let root = async move { *why.borrow_mut() = format!("{:?}", root.await) };
            let root = self.sim.spawn_on(executor, Share::Background, root);
            let mut shard = Shard::new(executor, commands, root, ended);
            if faults.disk.flush_error_ppm > 0 {
                self.until_open(&shard)?;
                self.sim.set_faults(faults.clone());
            }
            shard.tell(Command::Link { link: link(), settings: self.settings.clone() });
            if self.link_paused {
                let (reply, _) = oneshot::channel();
                shard.tell(Command::Pause { link: link(), topics: None, reply });
            }
            let mine = keys.iter().enumerate();
            let mine = mine.filter(|(at, _)| control::share_of(*at, shards, self.turn) == index);
            let mine: Vec<&PartitionKey> = mine.map(|(_, key)| key).collect();
            self.owners.extend(mine.iter().map(|key| ((*key).clone(), index)));
            shard.assign(mine.into_iter().map(|key| self.assign(key)).collect());
            self.shards.push(shard);
        }
        for model in self.models.values_mut() {
            model.flushed = 0;
        }
        Ok(())
    }

    /// A shard whose first look at its device fails ends at once, as it must: it is spared.
    fn until_open(&mut self, shard: &Shard) -> Result<(), String> {
        self.sim.set_faults(quiet());
        let (reply, mut answer) = oneshot::channel();
        shard.tell(Command::Status { link: None, reply });
        while answer.try_recv().is_err() {
            self.sim.run_for(Duration::from_millis(1));
            if shard.root.is_finished() {
                return Err(format!("a shard ended at its start: {}", shard.ended.borrow()));
            }
        }
        Ok(())
    }

    /// How a partition is to be kept, as it stands.
    pub fn assign(&self, key: &PartitionKey) -> Assign {
        let mode = self.standing[&key.topic].mode();
        control::assign(key, self.known[&key.topic], self.plan.segment_bytes, mode)
    }

    /// The process is no more; what it had said is heard.
    pub fn end(&mut self, power: bool) -> Result<(), String> {
        self.hear()?;
        self.take_answers()?;
        self.trace(|| format!("end, power lost: {power}"));
        if power {
            if let Some(shard) = self.shards.first() {
                self.sim.crash(shard.executor);
            }
        } else {
            for shard in &self.shards {
                self.sim.kill(shard.executor);
            }
        }
        self.shards.clear();
        self.forget_orders();
        self.events = None;
        match self.sim.arenas_of_the_dead() {
            0 => Ok(()),
            held => Err(format!("{held} dead processes still hold memory")),
        }
    }

    /// Lets time pass in small steps, control having its turn in between.
    pub fn pass(&mut self, time: Duration) -> Result<(), String> {
        for shard in self.shards.iter().filter_map(|shard| shard.last.as_ref()) {
            self.trace(|| format!("{:?} {:?}", shard.stats, shard.connections));
        }
        for p in self.shards.iter().filter_map(|s| s.last.as_ref()).flat_map(|l| &l.partitions) {
            let PartitionStatus { key, log_start, received, written, flushed, reason, .. } = p;
            let name = p.state.name();
            self.trace(|| {
                format!("{key} {name} {log_start}..{received} {written} {flushed} {reason:?}")
            });
        }
        let until = self.sim.now() + time;
        while self.sim.now() < until {
            self.sim.run_for(Duration::from_micros(500 + self.below(15_000)));
            self.control()?;
        }
        Ok(())
    }

    /// One turn of control.
    pub fn control(&mut self) -> Result<(), String> {
        let stale = self.hear()?;
        if self.telling && (stale && !self.once_in(4) || self.once_in(60)) {
            self.tell_leaders();
        }
        for shard in &mut self.shards {
            if shard.root.is_finished() {
                let Shard { executor, ended, .. } = shard;
                return Err(format!(
                    "the shard on {executor:?} ended by itself: {}",
                    ended.borrow()
                ));
            }
            shard.look(&mut self.models, self.link_silent)?;
        }
        self.take_answers()
    }

    /// Takes in what shards said unasked; whether they want to know who leads.
    fn hear(&mut self) -> Result<bool, String> {
        let mut stale = false;
        while let Some(event) = self.events.as_mut().and_then(|events| events.try_recv().ok()) {
            self.trace(|| format!("{event:?}"));
            match event {
                Event::MetadataStale { .. } => stale = true,
                Event::SourceGap { key, lost_from, lost_to } => {
                    let start = self.log(&key).log_start();
                    let model = self.models.get_mut(&key).expect("it is known");
                    if lost_to > start && model.before.is_empty() {
                        return Err(format!("{key}: lost to {lost_to}, but {start} is there"));
                    }
                    model.gaps.push(lost_from..lost_to);
                    self.tally.gaps += 1;
                }
                Event::Fault { code, .. } => {
                    *self.tally.faulted.entry(code.name()).or_default() += 1
                }
                // The files are what the models are held against.
                Event::Damaged { .. } | Event::Repaired { .. } => {}
                Event::Truncated { key, from, to } => {
                    let settings = &self.settings;
                    let start = self.log(&key).log_start();
                    let model = self.models.get_mut(&key).expect("it is known");
                    if model.sealed.is_some() {
                        return Err(format!("{key}: cut from {to} to {from} after its failover"));
                    }
                    if !settings.allow_truncation {
                        return Err(format!("{key}: cut from {to} to {from} without permission"));
                    }
                    // What lies below the source's start may be of a past it has parted from.
                    let floor = model.floor.min(start);
                    if from < floor && !(from < start && to <= start) {
                        return Err(format!("{key}: cut to {from}, {floor} is common"));
                    }
                    model.flushed = model.flushed.min(from);
                    self.tally.truncations += 1;
                }
            }
        }
        Ok(stale)
    }

    /// Says what happens, if anybody wants to know.
    pub fn trace(&self, say: impl FnOnce() -> String) {
        if self.tracing {
            println!("{:?}: {}", self.sim, say());
        }
    }

    /// Everything that a shard said last of a partition.
    pub fn status(&self, key: &PartitionKey) -> Option<PartitionStatus> {
        let last = self.shards.iter().filter_map(|shard| shard.last.as_ref());
        last.flat_map(|status| &status.partitions).find(|p| p.key == *key).cloned()
    }
}

/// Nothing goes wrong, and nothing takes for ever.
pub fn quiet() -> Faults {
    Faults { steps_max: u64::MAX, ..Faults::default() }
}

fn given_batch(sim: &Simulation, base: i64, leader_epoch: i32, grown: u64) -> Vec<u8> {
    let mut random = Random::new(sim.random_below(u64::MAX));
    let producer = random.below(4) == 0;
    let transactional = producer && random.coin();
    let marker = transactional && random.below(3) == 0;
    let mut records = crate::plan::records(&mut random);
    if marker {
        let key = Some(vec![0, 0, 0, random.coin().into()]);
        records = vec![source::Record { key, value: Some(vec![0; 6]), ..Default::default() }];
    }
    let fields = source::BatchFields {
        base_offset: base,
        leader_epoch,
        attributes: if marker { 0x30 } else { i16::from(transactional) << 4 },
        base_timestamp_ms: 1_700_000_000_000 + grown.cast_signed(),
        producer_id: if producer { random.below(6).cast_signed() } else { -1 },
        producer_epoch: if producer { 0 } else { -1 },
        base_sequence: if producer && !marker { grown as i32 } else { -1 },
    };
    source::encode_batch(&records, &fields)
}
