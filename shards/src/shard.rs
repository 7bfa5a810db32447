//! A shard: its thread, its executor, its partitions, and the commands that steer it.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use ring::{Share, spawn};
use storage::log::{Log, LogError, LogSettings, LogState};
use storage::names::LogId;
use storage::position::Positions;
use storage::store::{Store, StoreConfig};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use crate::budget::Budget;
use crate::control::{
    Assign, Command, Event, LinkSettings, Mode, PartitionKey, Refused, Sealed, ShardConfig,
    ShardStats, ShardStatus,
};
use crate::limits::{
    COMMANDS_WAITING_MAX, FULL_DISK_PATIENCE, MAINTENANCE_INTERVAL, OPENS_AT_ONCE, POOL_INTERVAL,
};
use crate::link::Link;
use crate::partition::{Condition, Partition};

/// Why a shard could not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// No thread could be had.
    #[error("cannot start the thread of shard {shard}: {source}")]
    Thread {
        /// Which shard.
        shard: u16,
        /// Why.
        source: std::io::Error,
    },
}

/// A running shard, as control holds it.
#[derive(Debug)]
pub struct ShardHandle {
    /// Which shard.
    pub index: u16,
    /// Where commands go.
    pub commands: mpsc::Sender<Command>,
    /// Ends when the shard has stopped; the error is why it could not go on.
    pub thread: thread::JoinHandle<Result<(), String>>,
}

/// Starts a shard on a thread of its own. `on_thread` runs there first (to pin it to a core).
///
/// # Errors
/// When no thread can be had. What goes wrong later ends the thread with an error.
pub fn start(
    config: ShardConfig,
    on_thread: impl FnOnce() + Send + 'static,
    events: mpsc::Sender<Event>,
) -> Result<ShardHandle, StartError> {
    let index = config.index;
    let (commands, inbox) = mpsc::channel(COMMANDS_WAITING_MAX);
    let thread = thread::Builder::new()
        .name(format!("shard-{index}"))
        .spawn(move || {
            on_thread();
            let executor = ring::Config {
                arena_bytes: config.memory_bytes,
                io_worker_cores: config.helper_cores.clone(),
                drain_limit: config.stop_limit,
                ..ring::Config::default()
            };
            match ring::run(executor, run(config, events, inbox)) {
                Ok(result) => result,
                Err(error) => Err(format!("shard {index}: its io_uring failed: {error}")),
            }
        })
        .map_err(|source| StartError::Thread { shard: index, source })?;
    Ok(ShardHandle { index, commands, thread })
}

/// What all of a shard's links and partitions share.
pub struct Shard {
    pub config: ShardConfig,
    pub budget: Rc<Budget>,
    pub counters: Counters,
    pub events: mpsc::Sender<Event>,
    store: Rc<Store>,
    /// Logs that are on disk.
    existing: RefCell<HashSet<LogId>>,
    links: RefCell<BTreeMap<Arc<str>, Rc<Link>>>,
    partitions: RefCell<BTreeMap<PartitionKey, Rc<Partition>>>,
    uids: Cell<u64>,
}

/// Plain counters of this shard.
#[derive(Default)]
pub struct Counters {
    pub fetches: Cell<u64>,
    pub bytes_received: Cell<u64>,
    errors: RefCell<HashMap<&'static str, u64>>,
}

impl Counters {
    pub fn error(&self, kind: &'static str) {
        *self.errors.borrow_mut().entry(kind).or_default() += 1;
    }
}

/// A shard's root task; public so that a simulator can run it.
///
/// # Errors
/// When its store cannot be opened.
pub async fn run(
    config: ShardConfig,
    events: mpsc::Sender<Event>,
    mut inbox: mpsc::Receiver<Command>,
) -> Result<(), String> {
    let index = config.index;
    let mut settings = StoreConfig::new(index, config.boot.clone());
    settings.flush_interval = config.flush_interval;
    let store = Store::open(settings).await.map_err(|error| format!("shard {index}: {error}"))?;
    let existing = config.boot.partitions().iter().map(|found| found.id.clone()).collect();
    let shard = Rc::new(Shard {
        config,
        budget: Rc::default(),
        counters: Counters::default(),
        events,
        store,
        existing: RefCell::new(existing),
        links: RefCell::default(),
        partitions: RefCell::default(),
        uids: Cell::new(0),
    });
    let _maintenance = spawn(Share::Background, Rc::clone(&shard).maintain());
    while let Some(command) = inbox.recv().await {
        match command {
            Command::Stop { reply } => {
                shard.stop().await;
                let _ = reply.send(());
                return Ok(());
            }
            command => Rc::clone(&shard).obey(command),
        }
    }
    shard.stop().await; // control is gone
    Ok(())
}

impl Shard {
    /// Does what can be done at once, and starts what takes time.
    fn obey(self: Rc<Self>, command: Command) {
        match command {
            Command::Link { link, settings } => self.set_link(link, settings),
            Command::Leaders { link, view } => {
                if let Some(link) = self.link(&link) {
                    link.set_view(view);
                }
            }
            Command::Resume { link, topics } => self.resume(&link, topics.as_deref()),
            Command::Hold { link, topic, state, reason } => {
                let mode = Mode::Held { state, reason };
                for partition in self.of_topics(&link, Some(&[topic])) {
                    self.set_mode(&partition, mode.clone());
                }
            }
            Command::Status { link, reply } => {
                let _ = reply.send(self.status(link.as_ref()));
            }
            Command::Assign { partitions, reply } => {
                spawn(Share::Background, self.assign(partitions, reply)).detach();
            }
            Command::Pause { link, topics, reply } => {
                spawn(Share::Background, self.pause(link, topics, reply)).detach();
            }
            Command::Seal { link, topics, reply } => {
                spawn(Share::Background, self.seal(link, topics, reply)).detach();
            }
            Command::Release { partitions, reply } => {
                spawn(Share::Background, async move {
                    for key in partitions {
                        if let Some(log) = self.take_out(&key)
                            && let Err(error) = log.close().await
                        {
                            tracing::warn!("{key}: closing its log: {error}");
                        }
                    }
                    let _ = reply.send(());
                })
                .detach();
            }
            Command::Delete { partitions, reply } => {
                spawn(Share::Background, self.delete(partitions, reply)).detach();
            }
            Command::Stop { .. } => unreachable!("the root task stops"),
        }
    }

    fn link(&self, name: &Arc<str>) -> Option<Rc<Link>> {
        self.links.borrow().get(name).cloned()
    }

    fn set_link(self: &Rc<Self>, name: Arc<str>, settings: LinkSettings) {
        match self.link(&name) {
            Some(link) => {
                let (batch_bytes_max, undo_window) =
                    (settings.batch_bytes_max, settings.undo_window);
                link.set_settings(settings);
                for log in link.partitions().iter().filter_map(|partition| partition.log()) {
                    log.set_limits(batch_bytes_max, undo_window);
                }
            }
            None => {
                let link = Link::new(Arc::clone(&name), Rc::clone(self), settings);
                self.links.borrow_mut().insert(name, link);
            }
        }
    }

    fn of_topics(&self, link: &Arc<str>, topics: Option<&[Arc<str>]>) -> Vec<Rc<Partition>> {
        let Some(link) = self.link(link) else { return Vec::new() };
        let mut partitions = link.partitions();
        if let Some(topics) = topics {
            let topics: HashSet<&Arc<str>> = topics.iter().collect();
            partitions.retain(|p| topics.contains(&p.key.topic));
        }
        partitions
    }

    fn set_mode(&self, partition: &Rc<Partition>, mode: Mode) {
        partition.set_mode(mode, ring::wall_ms());
        if let Some(link) = self.link(&partition.key.link) {
            link.place(partition);
        }
    }

    async fn assign(
        self: Rc<Self>,
        partitions: Vec<Assign>,
        reply: oneshot::Sender<Vec<Result<(), Refused>>>,
    ) {
        let mut answers = Vec::with_capacity(partitions.len());
        let mut waiting = partitions.into_iter();
        loop {
            let some: Vec<_> = waiting.by_ref().take(OPENS_AT_ONCE).collect();
            if some.is_empty() {
                break;
            }
            let opening: Vec<_> = some
                .into_iter()
                .map(|assign| spawn(Share::Background, Rc::clone(&self).assign_one(assign)))
                .collect();
            for task in opening {
                answers.push(task.await);
            }
        }
        let _ = reply.send(answers);
    }

    async fn assign_one(self: Rc<Self>, assign: Assign) -> Result<(), Refused> {
        let Some(link) = self.link(&assign.key.link) else {
            return Err(Refused { reason: format!("link {} is not known", assign.key.link) });
        };
        if let Some(known) = { self.partitions.borrow().get(&assign.key).cloned() } {
            self.set_mode(&known, assign.mode);
            return Ok(());
        }
        self.uids.set(self.uids.get() + 1);
        let partition = Partition::new(self.uids.get(), assign, ring::wall_ms());
        self.partitions.borrow_mut().insert(partition.key.clone(), Rc::clone(&partition));
        if let Err(reason) = self.open_log(&partition, None, &link.settings()).await {
            self.partitions.borrow_mut().remove(&partition.key);
            return Err(Refused { reason });
        }
        link.add(&partition);
        Ok(())
    }

    /// Opens a partition's log. Without a `start` only one that is there already: where a new one
    /// begins, the source has to say first.
    pub async fn open_log(
        &self,
        partition: &Partition,
        start: Option<i64>,
        link: &LinkSettings,
    ) -> Result<(), String> {
        let assign = &partition.assign;
        let id = LogId {
            link: assign.key.link.to_string(),
            topic: assign.key.topic.to_string(),
            partition: assign.key.partition,
        };
        let exists = self.existing.borrow().contains(&id);
        if !exists && start.is_none() {
            return Ok(());
        }
        let data_dir = self.config.boot.data_dirs().position(|dir| dir == assign.data_dir);
        let Some(data_dir) = data_dir else {
            return Err(format!("{} is no data directory", assign.data_dir.display()));
        };
        let settings = LogSettings {
            topic_id: assign.topic_id.map(Uuid::into_bytes),
            data_dir,
            segment_bytes: u64::from(assign.segment_bytes),
            segment_ms: assign.segment_ms,
            batch_bytes_max: link.batch_bytes_max,
            undo_window: link.undo_window,
            start_offset_if_new: start.unwrap_or(0),
        };
        match self.store.open_log(id.clone(), settings).await {
            Ok((log, recovered)) => {
                if recovered.torn_bytes > 0 || recovered.corrupt.is_some() {
                    tracing::warn!(partition = %partition.key, ?recovered, "recovered");
                }
                self.existing.borrow_mut().insert(id);
                partition.set_log(Some(log));
                Ok(())
            }
            Err(error) => Err(format!("{}: {error}", partition.key)),
        }
    }

    async fn pause(
        self: Rc<Self>,
        link: Arc<str>,
        topics: Option<Vec<Arc<str>>>,
        reply: oneshot::Sender<()>,
    ) {
        match &topics {
            None => {
                if let Some(link) = self.link(&link) {
                    link.pause().await;
                }
            }
            Some(_) => {
                for partition in self.of_topics(&link, topics.as_deref()) {
                    if matches!(partition.mode(), Mode::Replicate | Mode::Held { .. }) {
                        self.set_mode(&partition, Mode::Paused);
                    }
                }
            }
        }
        let _ = reply.send(());
    }

    fn resume(&self, name: &Arc<str>, topics: Option<&[Arc<str>]>) {
        let Some(link) = self.link(name) else { return };
        for partition in self.of_topics(name, topics) {
            if topics.is_some() {
                partition.set_mode(Mode::Replicate, ring::wall_ms());
            }
            // What runs well goes on as it does; everything else begins anew.
            if partition.fetcher().is_none() || partition.condition() != Condition::Fine {
                partition.clear(ring::wall_ms());
            }
        }
        match topics {
            None => link.resume(),
            Some(_) => self.of_topics(name, topics).iter().for_each(|p| link.place(p)),
        }
    }

    async fn seal(
        self: Rc<Self>,
        link: Arc<str>,
        topics: Vec<Arc<str>>,
        reply: oneshot::Sender<Vec<Sealed>>,
    ) {
        let partitions = self.of_topics(&link, Some(&topics));
        for partition in &partitions {
            self.set_mode(partition, Mode::Sealed);
        }
        let flushing: Vec<_> = partitions
            .into_iter()
            .map(|partition| {
                spawn(Share::Replicate, async move {
                    let key = partition.key.clone();
                    let Some(log) = partition.log() else {
                        return Sealed { key, end_offset: 0, last_epoch: None, error: None };
                    };
                    let flushed = flush_if_possible(&log).await;
                    let positions = log.positions();
                    Sealed {
                        key,
                        end_offset: positions.flushed.0.offset,
                        last_epoch: positions.last_epoch,
                        error: flushed.err().map(|error| error.to_string()),
                    }
                })
            })
            .collect();
        let mut sealed = Vec::with_capacity(flushing.len());
        for task in flushing {
            sealed.push(task.await);
        }
        let _ = reply.send(sealed);
    }

    async fn delete(
        self: Rc<Self>,
        partitions: Vec<PartitionKey>,
        reply: oneshot::Sender<Vec<Result<(), Refused>>>,
    ) {
        let mut answers = Vec::with_capacity(partitions.len());
        for key in partitions {
            let deleted = match self.take_out(&key) {
                Some(log) => {
                    self.existing.borrow_mut().remove(log.id());
                    log.delete().await.map_err(|error| error.to_string())
                }
                None => Ok(()),
            };
            answers.push(deleted.map_err(|reason| Refused { reason: format!("{key}: {reason}") }));
        }
        // Or a power loss would bring back what a person was told is gone.
        if !self.store.flush().await {
            let reason = || "the device failed to make the removal durable".to_owned();
            answers.iter_mut().for_each(|answer| *answer = Err(Refused { reason: reason() }));
        }
        let _ = reply.send(answers);
    }

    /// Forgets a partition; its log, to be closed or deleted.
    fn take_out(&self, key: &PartitionKey) -> Option<Rc<Log>> {
        let partition = self.partitions.borrow_mut().remove(key)?;
        if let Some(link) = self.link(&key.link) {
            link.remove(&partition);
        }
        let log = partition.log();
        partition.set_log(None);
        log
    }

    fn status(&self, only: Option<&Arc<str>>) -> ShardStatus {
        let partitions = self.partitions.borrow();
        let wanted = |p: &&Rc<Partition>| only.is_none_or(|link| p.key.link == *link);
        let links = self.links.borrow();
        ShardStatus {
            partitions: partitions.values().filter(wanted).map(|p| p.status()).collect(),
            stats: self.stats(),
            connections: links.values().map(|l| (Arc::clone(&l.name), l.connections())).collect(),
        }
    }

    fn stats(&self) -> ShardStats {
        let executor = ring::stats();
        let memory = ring::memory();
        let (mut bytes_written, mut flushes) = (0, 0);
        for volume in self.store.stats().volumes {
            bytes_written += volume.counters.write_bytes;
            flushes += volume.counters.flushes;
        }
        let mut errors: Vec<_> =
            self.counters.errors.borrow().iter().map(|(kind, count)| (*kind, *count)).collect();
        errors.sort_unstable();
        ShardStats {
            bytes_received: self.counters.bytes_received.get(),
            bytes_written,
            records: self.partitions.borrow().values().map(|p| p.records()).sum(),
            fetches: self.counters.fetches.get(),
            flushes,
            cpu_ns: ring::thread_cpu().as_nanos() as u64,
            enter_ns: executor.driver.enter_time.as_nanos() as u64,
            enter_busy_ns: executor.driver.enter_busy_time.as_nanos() as u64,
            enters: executor.driver.enters,
            memory_budget: memory.total as u64,
            memory_used: memory.used as u64,
            memory_peak: memory.peak as u64,
            errors,
        }
    }

    /// Looks after what waits: retries, and how many connections are worth having.
    async fn maintain(self: Rc<Self>) {
        let every = (POOL_INTERVAL.as_millis() / MAINTENANCE_INTERVAL.as_millis()).max(1);
        let mut load = Load::default();
        for round in 1u128.. {
            ring::sleep(MAINTENANCE_INTERVAL).await;
            let adjust = round.is_multiple_of(every);
            let busy = adjust && load.is_busy();
            let links: Vec<_> = self.links.borrow().values().cloned().collect();
            for link in links {
                link.retry_due();
                if adjust {
                    link.adjust_pools(busy);
                }
            }
        }
    }

    /// Stops fetching, closes every log, and then the store.
    async fn stop(&self) {
        let links: Vec<_> = self.links.borrow().values().cloned().collect();
        for link in links {
            link.pause().await;
        }
        self.store.close().await;
        // Links point back here: without this the shard, and the lock on its directories, leaks.
        self.links.borrow_mut().clear();
        self.partitions.borrow_mut().clear();
    }
}

/// How much of its time this core slept since the last look.
#[derive(Default)]
struct Load {
    at: ring::Instant,
    slept: Duration,
}

impl Load {
    /// Whether the core slept less than a tenth of the time: more connections would not help it.
    fn is_busy(&mut self) -> bool {
        let now = Load { at: ring::now(), slept: slept() };
        let past = std::mem::replace(self, now);
        self.slept.saturating_sub(past.slept) * 10 < self.at - past.at
    }
}

/// Time inside `io_uring_enter` with something to wait for.
fn slept() -> Duration {
    let driver = ring::stats().driver;
    driver.enter_time.saturating_sub(driver.enter_busy_time)
}

/// Flushes what has come; on a disk that stays full, what could be written is all there is.
async fn flush_if_possible(log: &Log) -> Result<Positions, LogError> {
    loop {
        match ring::timeout(FULL_DISK_PATIENCE, log.flush()).await {
            Ok(flushed) => return flushed,
            Err(_) if log.state() == LogState::DiskFull => {
                return Err(LogError::State(LogState::DiskFull));
            }
            Err(_) => {}
        }
    }
}
