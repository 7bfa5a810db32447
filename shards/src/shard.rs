//! A shard: its thread, its executor, its partitions, and the commands that steer it.

mod ending;
mod opening;
mod status;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::thread;

use ring::{Share, SocketWatch, Task, spawn};
use storage::store::{Store, StoreConfig};
use storage::verify::Verifier;
use thiserror::Error;
use tokio::sync::mpsc;

use crate::budget::Budget;
use crate::control::{Command, Event, LinkSettings, Mode, PartitionKey, ShardConfig};
use crate::limits::{COMMANDS_WAITING_MAX, LOGS_AT_ONCE, MAINTENANCE_INTERVAL, POOL_INTERVAL};
use crate::link::Link;
use crate::partition::{Condition, Partition};
use crate::repairing::verify_all;

/// Why a shard could not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// No thread could be had.
    #[error("cannot start the thread of shard {shard}: {}", why_not_started(source))]
    Thread {
        /// Which shard.
        shard: u16,
        /// Why.
        source: io::Error,
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
                Err(error) => Err(format!("shard {index}: {}", why_not_started(&error))),
            }
        })
        .map_err(|source| StartError::Thread { shard: index, source })?;
    Ok(ShardHandle { index, commands, thread })
}

/// Why an executor or its thread cannot be had, and which limit to raise.
fn why_not_started(error: &io::Error) -> String {
    let advice = match error.kind() {
        io::ErrorKind::WouldBlock => {
            "; no more threads: raise the limit of processes (TasksMax=, ulimit -u)"
        }
        io::ErrorKind::OutOfMemory => {
            "; no more memory to lock: raise LimitMEMLOCK= (ulimit -l), or set less in [shards]"
        }
        io::ErrorKind::PermissionDenied => {
            "; io_uring is not allowed here: see kernel.io_uring_disabled and seccomp rules"
        }
        _ => "",
    };
    format!("its io_uring or a thread of it: {error}{advice}")
}

/// What all of a shard's links and partitions share.
pub struct Shard {
    pub config: ShardConfig,
    pub budget: Rc<Budget>,
    pub counters: Counters,
    pub events: mpsc::Sender<Event>,
    pub verifier: Rc<Verifier>,
    verifying: RefCell<Option<Task<()>>>,
    /// Partitions whose logs were opened again after a repair.
    pub reopened: RefCell<Vec<Rc<Partition>>>,
    store: Rc<Store>,
    links: RefCell<BTreeMap<Arc<str>, Rc<Link>>>,
    partitions: RefCell<BTreeMap<PartitionKey, Rc<Partition>>>,
    uids: Cell<u64>,
    /// Failed logs that are being opened again.
    reopening: Cell<usize>,
}

/// Plain counters of this shard.
#[derive(Default)]
pub struct Counters {
    pub fetches: Cell<u64>,
    pub bytes_received: Cell<u64>,
    pub verified_at_ms: Cell<Option<i64>>,
    pub damages_found: Cell<u64>,
    pub damages_repaired: Cell<u64>,
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
    let shard = Rc::new(Shard {
        config,
        budget: Rc::default(),
        counters: Counters::default(),
        events,
        verifier: Rc::new(Verifier::new(0)),
        verifying: RefCell::default(),
        reopened: RefCell::default(),
        store,
        links: RefCell::default(),
        partitions: RefCell::default(),
        uids: Cell::new(0),
        reopening: Cell::new(0),
    });
    let _end = End(Rc::clone(&shard));
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

/// The end of a shard, also of one whose root task is dropped in the midst of it.
struct End(Rc<Shard>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.let_go();
    }
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
                for partition in self.all_of_topics(&link, &[topic]) {
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
                // At once: a resume that follows is not to be overtaken.
                let closing = self.pause(&link, topics.as_deref());
                let closed = async move {
                    for socket in closing {
                        socket.closed().await;
                    }
                    let _ = reply.send(());
                };
                spawn(Share::Background, closed).detach();
            }
            Command::Seal { link, topics, reply } => {
                spawn(Share::Background, self.seal(link, topics, reply)).detach();
            }
            Command::Release { partitions, reply } => {
                spawn(Share::Background, self.release(partitions, reply)).detach();
            }
            Command::Delete { partitions, reply } => {
                spawn(Share::Background, self.delete(partitions, reply)).detach();
            }
            Command::Verify(settings) => {
                let task = spawn(Share::Background, verify_all(Rc::clone(&self), settings));
                *self.verifying.borrow_mut() = Some(task);
            }
            Command::Stop { .. } => unreachable!("the root task stops"),
        }
    }

    pub fn partitions(&self) -> Vec<Rc<Partition>> {
        self.partitions.borrow().values().cloned().collect()
    }

    pub fn link(&self, name: &Arc<str>) -> Option<Rc<Link>> {
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
        let Some(known) = self.link(link) else { return Vec::new() };
        let Some(topics) = topics else { return known.partitions() };
        let mut found = self.all_of_topics(link, topics);
        found.retain(|partition| known.has(partition));
        found
    }

    /// Those that are still being opened, too: what is decided meanwhile holds for them.
    fn all_of_topics(&self, link: &Arc<str>, topics: &[Arc<str>]) -> Vec<Rc<Partition>> {
        let partitions = self.partitions.borrow();
        let mut found = Vec::new();
        for topic in topics.iter().collect::<BTreeSet<_>>() {
            let key = |partition| PartitionKey {
                link: Arc::clone(link),
                topic: Arc::clone(topic),
                partition,
            };
            let all = partitions.range(key(i32::MIN)..=key(i32::MAX)).map(|(_, p)| p);
            found.extend(all.cloned());
        }
        found
    }

    fn set_mode(&self, partition: &Rc<Partition>, mode: Mode) {
        partition.set_mode(mode, ring::wall_ms());
        if let Some(link) = self.link(&partition.key.link) {
            link.place(partition);
        }
    }

    /// Returns the sockets that are closing.
    fn pause(&self, name: &Arc<str>, topics: Option<&[Arc<str>]>) -> Vec<SocketWatch> {
        let Some(topics) = topics else {
            return self.link(name).map(|link| link.pause()).unwrap_or_default();
        };
        for partition in self.all_of_topics(name, topics) {
            if matches!(partition.mode(), Mode::Replicate | Mode::Held { .. }) {
                self.set_mode(&partition, Mode::Paused);
            }
        }
        Vec::new()
    }

    fn resume(self: &Rc<Self>, name: &Arc<str>, topics: Option<&[Arc<str>]>) {
        let Some(link) = self.link(name) else { return };
        for partition in topics.map_or_else(Vec::new, |topics| self.all_of_topics(name, topics)) {
            partition.set_mode(Mode::Replicate, ring::wall_ms());
        }
        for partition in self.of_topics(name, topics) {
            link.repairs.add_if_damaged(&partition);
            // What runs well goes on as it does; everything else begins anew.
            if partition.fetcher().is_none() || partition.condition() != Condition::Fine {
                partition.clear(ring::wall_ms());
            }
            if partition.wants_reopening() {
                partition.reopening.borrow_mut().hurry(ring::now());
            }
        }
        self.reopen_failed();
        match topics {
            None => link.resume(),
            Some(_) => self.of_topics(name, topics).iter().for_each(|p| link.place(p)),
        }
    }

    /// Looks after what waits: retries, and how many connections are worth having.
    async fn maintain(self: Rc<Self>) {
        let every = (POOL_INTERVAL.as_millis() / MAINTENANCE_INTERVAL.as_millis()).max(1);
        let mut load = status::Load::default();
        for round in 1u128.. {
            ring::sleep(MAINTENANCE_INTERVAL).await;
            let adjust = round.is_multiple_of(every);
            let busy = adjust && load.is_busy();
            if adjust {
                self.reopen_failed();
                self.follow_lower_ends();
            }
            let links: Vec<_> = self.links.borrow().values().cloned().collect();
            for link in links {
                link.retry_due();
                link.repair_due();
                if adjust {
                    link.adjust_pools(busy);
                }
            }
        }
    }

    fn follow_lower_ends(&self) {
        let now = ring::now();
        self.partitions.borrow().values().for_each(|partition| partition.follow_lower_end(now));
    }

    /// Stops fetching, closes every log, and then the store.
    async fn stop(&self) {
        drop(self.verifying.take());
        self.reopened.take();
        let links: Vec<_> = self.links.borrow().values().cloned().collect();
        for link in links {
            for socket in link.pause() {
                socket.closed().await;
            }
        }
        self.store.close().await;
        self.let_go();
    }

    /// Links point back here: without this the shard, and the lock on its directories, leaks.
    fn let_go(&self) {
        let links = self.links.take();
        drop((links, self.partitions.take(), self.verifying.take()));
    }
}

/// Does the same with many logs, a few of them at a time; what came of each, in order.
async fn a_few_at_once<I, T: 'static, F: Future<Output = T> + 'static>(
    all: Vec<I>,
    work: impl Fn(I) -> F,
) -> Vec<T> {
    let mut done = Vec::with_capacity(all.len());
    let mut waiting = all.into_iter().map(work);
    loop {
        let running: Vec<_> =
            waiting.by_ref().take(LOGS_AT_ONCE).map(|one| spawn(Share::Background, one)).collect();
        if running.is_empty() {
            return done;
        }
        for task in running {
            done.push(task.await);
        }
    }
}
