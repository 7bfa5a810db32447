//! A running node: its threads, sockets and tasks, and how they end.

use super::{BootError, dirs};
use crate::admin::{self, Admin, Guard, Rights};
use crate::config::Config;
use crate::controller::placement::Placement;
use crate::controller::records::{self, Stored, TopicRecord};
use crate::controller::shards::Shards;
use crate::controller::store::Store;
use crate::controller::{Controller, Shared};
use crate::host::{self, Host};
use crate::kafka::Kafka;
use crate::metrics;
use crate::reload::Reload;
use nix::sched::{CpuSet as Mask, sched_setaffinity};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::Pid;
use sd_notify::NotifyState;
use shards::control::{Command, Event, ShardConfig};
use std::cell::RefCell;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;
use storage::boot::Boot;
use storage::inventory::FoundPartition;
use storage::metadata::{MetadataError, MetadataStore};
use storage::names::OWN_FOLDER;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tuning::Severity;

/// Events that may wait for control.
const EVENTS_MAX: usize = 1024;
/// How often counters are kept to tell rates, and shards are looked after.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(5);
/// How long shards may take to come up.
const SHARD_START_TIMEOUT: Duration = Duration::from_secs(120);
/// How often it is looked whether a shard's thread has ended.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);
/// The longest a written byte waits for a flush: what power loss may cost.
const FLUSH_INTERVAL: Duration = Duration::from_secs(1);
/// The metadata store's file, beside the first data folder's checkpoints.
const METADATA: &str = "metadata.store";

/// Everything that runs.
pub struct Node {
    controller: Rc<Controller>,
    admin: Rc<Admin>,
    threads: RefCell<Vec<shards::ShardHandle>>,
    store_thread: Option<std::thread::JoinHandle<()>>,
    tasks: Vec<JoinHandle<()>>,
    socket: Option<Guard>,
    stop_timeout: Duration,
}

impl Node {
    /// Takes the data folders, starts threads and opens sockets. Nothing is replicated yet.
    pub async fn start(config: &Config) -> Result<Node, BootError> {
        let dirs = &config.node.data_dirs;
        for dir in dirs {
            make_data_dir(dir)?;
        }
        let data = Boot::prepare(dirs)?;
        raise_limits();
        // Before there are threads that allocate much.
        shards::return_freed_memory();
        let found = data.partitions();
        let host = host::look(&config.shards, dirs, found.len() as u64)?;
        judge(&host)?;
        let (store, store_thread, stored) = open_store(dirs, found).await?;
        dirs::recognise(&store, &stored.data_dirs, dirs).await?;
        let stored = found_elsewhere(stored, found, dirs);
        keep_house(&host);
        let (events, inbox) = mpsc::channel(EVENTS_MAX);
        let threads = start_shards(config, &data, &host, &events)?;
        let senders = threads.iter().map(|thread| thread.commands.clone()).collect();
        let shared = Shared {
            shards: Shards::new(senders),
            store,
            connector: Box::new(Kafka { client_id: client_id(config) }),
            placement: RefCell::new(Placement::new(threads.len(), dirs)),
        };
        let controller = Controller::new(shared, config.clone(), stored);
        let rights = Rights::new(config.node.admin_group.as_deref())
            .map_err(|error| BootError::Listen(error.to_string()))?;
        let admin = Admin::new(host.tune(), rights);
        admin.attach(controller.clone());
        let mut node = Node {
            controller: controller.clone(),
            admin,
            threads: RefCell::new(threads),
            store_thread: Some(store_thread),
            tasks: Vec::new(),
            socket: None,
            stop_timeout: config.node.stop_timeout,
        };
        node.tasks.push(tokio::task::spawn_local(controller.follow_events(inbox)));
        node.listen(config).await?;
        Ok(node)
    }

    async fn listen(&mut self, config: &Config) -> Result<(), BootError> {
        let node = &config.node;
        let group = Rights::new(node.admin_group.as_deref()).ok().and_then(|rights| rights.group());
        let (listener, guard) = admin::bind(&node.admin_socket, node.admin_socket_mode, group)
            .map_err(|error| BootError::Listen(error.to_string()))?;
        self.socket = Some(guard);
        self.tasks.push(tokio::task::spawn_local(self.admin.clone().listen(listener)));
        if let Some(address) = node.metrics {
            let listener = TcpListener::bind(address).await.map_err(|error| {
                let change = "set node.metrics to a free address, or leave it out";
                BootError::Listen(format!("cannot serve metrics on {address}: {error}; {change}"))
            })?;
            self.tasks
                .push(tokio::task::spawn_local(metrics::listen(listener, self.admin.clone())));
            tracing::info!("metrics on http://{address}/metrics");
        }
        tracing::info!("admin socket {}", node.admin_socket.display());
        Ok(())
    }

    /// Opens every known partition and starts the links.
    pub async fn boot(&self) -> Result<(), BootError> {
        // A shard takes its memory first, which may need a while; or it cannot start at all.
        let deadline = tokio::time::Instant::now() + SHARD_START_TIMEOUT;
        while self.controller.shared().shards.status(None).await.iter().any(Option::is_none) {
            if let Some(error) = self.dead_shard() {
                return Err(error);
            }
            if tokio::time::Instant::now() >= deadline {
                let reason = format!("a shard does not answer within {SHARD_START_TIMEOUT:?}");
                return Err(BootError::Shard(reason));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.controller.boot().await;
        if let Some(error) = self.dead_shard() {
            return Err(error);
        }
        Ok(())
    }

    /// Looks after the shards and tells systemd that we live, until something dies.
    pub async fn watch(&self) -> BootError {
        let mut watchdog = sd_notify::watchdog_enabled().map(|limit| {
            let mut interval = tokio::time::interval(limit / 3);
            interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            interval
        });
        let mut sample = tokio::time::interval(SAMPLE_INTERVAL);
        let mut look = tokio::time::interval(WATCH_INTERVAL);
        loop {
            tokio::select! {
                _ = sample.tick() => {
                    let statuses = self.controller.shared().shards.status(None).await;
                    self.admin.rates.sample(&statuses, crate::controller::wall_ms());
                }
                _ = look.tick() => {
                    if let Some(error) = self.dead_shard() {
                        return error;
                    }
                }
                () = tick(&mut watchdog) => {
                    let statuses = self.controller.shared().shards.status(None).await;
                    // A shard that does not answer is what the watchdog is for.
                    if statuses.iter().all(Option::is_some) {
                        super::notify(&[NotifyState::Watchdog]);
                    }
                }
            }
        }
    }

    fn dead_shard(&self) -> Option<BootError> {
        let mut threads = self.threads.borrow_mut();
        let dead = threads.iter().position(|handle| handle.thread.is_finished())?;
        let handle = threads.remove(dead);
        Some(BootError::Shard(match handle.thread.join() {
            Ok(Ok(())) => format!("shard {} ended unasked", handle.index),
            Ok(Err(reason)) => reason,
            Err(_) => format!("shard {} panicked; its message stands above", handle.index),
        }))
    }

    /// Takes a changed file in.
    pub async fn reload(&self, config: Config) -> Result<Reload, BootError> {
        Ok(self.controller.reload(config).await?)
    }

    /// Ends everything in order, within the limit.
    pub async fn stop(mut self) -> Result<(), BootError> {
        let stopped = tokio::time::timeout(self.stop_timeout, self.stop_shards()).await;
        for task in &self.tasks {
            task.abort();
        }
        drop(self.socket.take());
        match stopped {
            Ok(Ok(())) => tracing::info!("stopped cleanly"),
            Ok(Err(error)) => return Err(error),
            Err(_) => return Err(BootError::StopLate(format!("{:?} are over", self.stop_timeout))),
        }
        // Its thread ends with the last handle to the store; a transaction under way is finished.
        let Node { controller, admin, store_thread, .. } = self;
        drop((controller, admin));
        let finished = |thread: &std::thread::JoinHandle<()>| thread.is_finished();
        for _ in 0..100 {
            if store_thread.as_ref().is_none_or(finished) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    async fn stop_shards(&self) -> Result<(), BootError> {
        for link in self.controller.links() {
            link.close().await;
        }
        let late =
            |error: crate::controller::shards::ShardError| BootError::StopLate(error.to_string());
        self.controller.shared().shards.stop(self.stop_timeout).await.map_err(late)?;
        while !self.threads.borrow().iter().all(|handle| handle.thread.is_finished()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        for handle in self.threads.borrow_mut().drain(..) {
            match handle.thread.join() {
                Ok(Ok(())) => {}
                Ok(Err(reason)) => return Err(BootError::Shard(reason)),
                Err(_) => {
                    let reason = format!("shard {} panicked while stopping", handle.index);
                    return Err(BootError::Shard(reason));
                }
            }
        }
        Ok(())
    }
}

async fn tick(interval: &mut Option<tokio::time::Interval>) {
    match interval {
        Some(interval) => {
            interval.tick().await;
        }
        None => std::future::pending().await,
    }
}

fn client_id(config: &Config) -> String {
    format!("understudy-{}", config.node.id)
}

/// Makes the folder itself, but not the way to it: under a disk that is not mounted, a whole path
/// made anew would look like an empty copy.
fn make_data_dir(dir: &Path) -> Result<(), BootError> {
    match std::fs::create_dir(dir) {
        Err(source) if source.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(BootError::DataDir { dir: dir.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// Soft limits up to the hard ones: what we may have anyway.
fn raise_limits() {
    for resource in [Resource::RLIMIT_NOFILE, Resource::RLIMIT_MEMLOCK] {
        if let Ok((_, hard)) = getrlimit(resource) {
            let _ = setrlimit(resource, hard, hard);
        }
    }
}

fn judge(host: &Host) -> Result<(), BootError> {
    let mut errors = String::new();
    for finding in &host.findings {
        let (what, measured, change) = (&finding.what, &finding.measured, &finding.change);
        match finding.severity {
            Severity::Error => {
                errors.push_str(&format!("  {what} [{measured}]\n    change: {change}\n"));
            }
            Severity::Warning => tracing::warn!(measured, change, "{what}"),
            Severity::Info => tracing::debug!(measured, "{what}"),
        }
    }
    for reason in &host.plan.reasons {
        tracing::info!("{reason}");
    }
    match errors.is_empty() {
        true => Ok(()),
        false => Err(BootError::HostUnfit(errors)),
    }
}

async fn open_store(
    dirs: &[PathBuf],
    found: &[FoundPartition],
) -> Result<(Store, std::thread::JoinHandle<()>, Stored), BootError> {
    let path = dirs[0].join(OWN_FOLDER).join(METADATA);
    let wrong = |error: MetadataError| BootError::Metadata(error.to_string());
    // Without it nobody knows which topics had failed over: fetching over those would destroy the
    // only copy.
    let in_use = !found.is_empty() || dirs.iter().any(|dir| dirs::is_marked(dir));
    let backend = match in_use {
        false => MetadataStore::open(&path),
        true => MetadataStore::open_existing(&path),
    };
    let backend = backend.map_err(|error| match error {
        MetadataError::Missing(_) => BootError::Metadata(format!(
            "{error}, but there was one, and {} partitions are on the disks: bring the store back; \
             to begin anew, move all that is in the data directories away",
            found.len()
        )),
        error => wrong(error),
    })?;
    let stored =
        records::decode(backend.load()).map_err(|error| BootError::Metadata(error.to_string()))?;
    let (store, thread) = Store::start(backend)?;
    Ok((store, thread, stored))
}

/// Folders that a person moved to another data folder are believed where they are.
fn found_elsewhere(mut stored: Stored, found: &[FoundPartition], dirs: &[PathBuf]) -> Stored {
    // The same folder may be written in another way than last time.
    let real = |dir: &PathBuf| std::fs::canonicalize(dir).unwrap_or_else(|_| dir.clone());
    let known: HashMap<PathBuf, &PathBuf> = dirs.iter().map(|dir| (real(dir), dir)).collect();
    let mut written: HashMap<PathBuf, Option<PathBuf>> = HashMap::new();
    let mut records: HashMap<(String, String), &mut TopicRecord> = HashMap::new();
    for (link, topic, record) in &mut stored.topics {
        for dir in &mut record.partitions {
            let now = written
                .entry(dir.clone())
                .or_insert_with(|| known.get(&real(dir)).map(|known| (*known).clone()));
            if let Some(now) = now {
                dir.clone_from(now);
            }
        }
        records.insert((link.clone(), topic.clone()), record);
    }
    for partition in found {
        let id = &partition.id;
        let record = records
            .get_mut(&(id.link.to_string(), id.topic.to_string()))
            .and_then(|record| record.partitions.get_mut(id.partition as usize));
        match record {
            Some(dir) if *dir != dirs[partition.data_dir] => {
                tracing::warn!("{id} is in {} now", partition.dir.display());
                dir.clone_from(&dirs[partition.data_dir]);
            }
            Some(_) => {}
            None => tracing::warn!(
                "{} is no partition of any topic known; it is left alone",
                partition.dir.display()
            ),
        }
    }
    stored
}

/// This thread, and those it starts, stay off the data cores; shards pin themselves afterwards.
fn keep_house(host: &Host) {
    if host.plan.shards.iter().all(|shard| shard.cpu.is_none()) {
        return;
    }
    let mut mask = Mask::new();
    for cpu in host.plan.housekeeping.iter() {
        let _ = mask.set(cpu);
    }
    if let Err(error) = sched_setaffinity(Pid::from_raw(0), &mask) {
        tracing::warn!(%error, "control work cannot be kept off the data cores");
    }
}

fn start_shards(
    config: &Config,
    data: &Boot,
    host: &Host,
    events: &mpsc::Sender<Event>,
) -> Result<Vec<shards::ShardHandle>, BootError> {
    let mut handles = Vec::new();
    for (index, place) in host.plan.shards.iter().enumerate() {
        let shard = ShardConfig {
            index: index as u16,
            memory_bytes: place.memory_bytes as usize,
            boot: data.clone(),
            flush_interval: FLUSH_INTERVAL,
            client_id: client_id(config),
            helper_cores: host.plan.housekeeping.iter().collect(),
            stop_limit: config.node.stop_timeout,
        };
        let cpu = place.cpu;
        let pin = move || {
            if let Some(cpu) = cpu
                && let Err(error) = tuning::pin_current_thread(cpu)
            {
                tracing::warn!(%error, "the shard runs unpinned");
            }
        };
        let handle = shards::start(shard, pin, events.clone())
            .map_err(|error| BootError::Shard(error.to_string()))?;
        if let Some(verify) = config.shards.verify_settings()
            && let Err(error) = handle.commands.try_send(Command::Verify(verify))
        {
            return Err(BootError::Shard(error.to_string()));
        }
        handles.push(handle);
    }
    Ok(handles)
}
