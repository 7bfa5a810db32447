//! One link as one shard sees it: its settings, the cluster's picture, and which fetcher serves
//! which partition.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use net::rate_limit::RateLimit;
use net::{ConnectOptions, Connection, NetError};
use ring::{Share, SocketWatch, Task};
use storage::verify::Verifier;
use tokio::sync::mpsc;

use crate::budget::{Budget, Reserved, Sharer};
use crate::control::{ClusterView, Event, FaultCode, LinkSettings};
use crate::fetcher::{Fetcher, FetcherShared, Kind};
use crate::limits::{
    BACKFILL_BYTES, BACKLOG_BYTES, BACKLOG_SHARE_BYTES_MIN, CONNECT_LIMIT, POOL_INTERVAL,
    RATE_ANSWER_TIME, REQUEST_LIMIT,
};
use crate::partition::{Condition, Leader, Partition};
use crate::pool::{Interval, Pool};
use crate::repairing::Repairs;
use crate::shard::Shard;

/// One link's part of a shard.
pub struct Link {
    pub name: Arc<str>,
    shard: Rc<Shard>,
    settings: RefCell<LinkSettings>,
    paused: Cell<bool>,
    view: RefCell<Arc<ClusterView>>,
    /// Who leads what, by topic and partition.
    leaders: RefCell<HashMap<(Arc<str>, i32), Leader>>,
    partitions: RefCell<BTreeMap<u64, Rc<Partition>>>,
    brokers: RefCell<BTreeMap<i32, BrokerPool>>,
    /// Partitions that are tried again at a time they know.
    retries: RefCell<BTreeMap<u64, Rc<Partition>>>,
    /// Damage to be mended.
    pub repairs: Repairs,
    rate: RefCell<Option<RateLimit>>,
    backfill_rate: RefCell<Option<RateLimit>>,
    stale_told: Cell<Option<ring::Instant>>,
    /// Counts changes of which connection a partition belongs on.
    placement: Cell<u64>,
}

/// The connections to one broker.
#[derive(Default)]
struct BrokerPool {
    fetchers: BTreeMap<Kind, (Rc<FetcherShared>, Task<()>)>,
    pool: Pool,
}

/// What the partitions on a broker's tail connection lack, in all and each.
#[derive(Default)]
struct Behind<'a> {
    bytes: u64,
    partitions: Vec<(u64, &'a Rc<Partition>)>,
}

/// Another rate: what was spent under the old one stays spent, and a change brings no burst.
fn change_rate(limit: &RefCell<Option<RateLimit>>, before: Option<u64>, after: Option<u64>) {
    if before == after {
        return;
    }
    let now_ns = ring::now().as_nanos();
    let owed = limit.borrow().as_ref().map_or(Duration::ZERO, |limit| limit.delay(now_ns));
    *limit.borrow_mut() = after.map(|rate| {
        let mut limit = RateLimit::new(rate, rate, now_ns);
        let owed_bytes = owed.as_secs_f64() * before.unwrap_or(0) as f64;
        limit.spend(now_ns, rate.saturating_add(owed_bytes as u64));
        limit
    });
}

/// Metadata is not asked for again sooner than this.
const STALE_INTERVAL: Duration = Duration::from_millis(100);

impl Link {
    pub fn new(name: Arc<str>, shard: Rc<Shard>, settings: LinkSettings) -> Rc<Self> {
        let link = Rc::new(Self {
            name,
            shard,
            settings: RefCell::new(settings.clone()),
            paused: Cell::new(false),
            view: RefCell::default(),
            leaders: RefCell::default(),
            partitions: RefCell::default(),
            brokers: RefCell::default(),
            retries: RefCell::default(),
            repairs: Repairs::default(),
            rate: RefCell::default(),
            backfill_rate: RefCell::default(),
            stale_told: Cell::default(),
            placement: Cell::new(0),
        });
        // A burst of one second: fetches come in pieces of megabytes.
        let now_ns = ring::now().as_nanos();
        let limit = |rate: Option<u64>| rate.map(|rate| RateLimit::new(rate, rate, now_ns));
        *link.rate.borrow_mut() = limit(settings.rate_limit);
        *link.backfill_rate.borrow_mut() = limit(settings.backfill_rate_limit);
        link
    }

    pub fn set_settings(&self, settings: LinkSettings) {
        let before = self.settings.replace(settings.clone());
        change_rate(&self.rate, before.rate_limit, settings.rate_limit);
        let backfill = (before.backfill_rate_limit, settings.backfill_rate_limit);
        change_rate(&self.backfill_rate, backfill.0, backfill.1);
    }

    pub fn settings(&self) -> LinkSettings {
        self.settings.borrow().clone()
    }

    pub fn client_id(&self) -> &str {
        &self.shard.config.client_id
    }

    /// Takes a partition in and lets it be fetched, if its mode says so.
    pub fn add(self: &Rc<Self>, partition: &Rc<Partition>) {
        self.partitions.borrow_mut().insert(partition.uid, Rc::clone(partition));
        self.place(partition);
    }

    /// Takes a partition out; nothing more is appended to it.
    pub fn remove(&self, partition: &Partition) {
        self.detach(partition);
        self.partitions.borrow_mut().remove(&partition.uid);
        self.retries.borrow_mut().remove(&partition.uid);
        self.repairs.remove(partition);
    }

    /// Whether a partition is one of the link's.
    pub fn has(&self, partition: &Partition) -> bool {
        self.partitions.borrow().contains_key(&partition.uid)
    }

    pub fn partitions(&self) -> Vec<Rc<Partition>> {
        self.partitions.borrow().values().cloned().collect()
    }

    /// Takes in who leads what, and moves partitions to their new leaders.
    pub fn set_view(self: &Rc<Self>, view: Arc<ClusterView>) {
        let mut leaders = self.leaders.borrow_mut();
        leaders.clear();
        for topic in &view.topics {
            for partition in &topic.partitions {
                if let Some(broker) = partition.leader {
                    let key = (Arc::clone(&topic.topic), partition.partition);
                    leaders.insert(key, Leader { broker, epoch: partition.leader_epoch });
                }
            }
        }
        drop(leaders);
        *self.view.borrow_mut() = view;
        for pool in self.brokers.borrow().values() {
            pool.fetchers.values().for_each(|(shared, _)| shared.try_at_once());
        }
        let now_ms = ring::wall_ms();
        for partition in self.partitions() {
            partition.leader_known(now_ms);
            self.place(&partition);
        }
        self.forget_departed();
    }

    /// Brokers that have left the cluster and lead nothing need no connections.
    fn forget_departed(&self) {
        let fetched = |partition: &Rc<Partition>| Some(partition.fetcher()?.broker);
        let mut wanted: HashSet<i32> =
            self.partitions.borrow().values().filter_map(fetched).collect();
        wanted.extend(self.view.borrow().brokers.iter().map(|broker| broker.id));
        self.brokers.borrow_mut().retain(|id, _| wanted.contains(id));
    }

    /// Where a broker is: its name for messages, and its addresses.
    pub fn addresses(&self, broker: i32) -> (String, Vec<SocketAddr>) {
        let view = self.view.borrow();
        match view.brokers.iter().find(|b| b.id == broker) {
            Some(b) => (format!("{}:{}", b.host, b.port), b.addresses.clone()),
            None => (format!("broker {broker}"), Vec::new()),
        }
    }

    /// A new connection to a broker, at whichever of its addresses answers.
    pub async fn connect(&self, broker: i32) -> Result<Connection, NetError> {
        let (peer, addresses) = self.addresses(broker);
        let mut last = NetError::Connect {
            peer,
            source: std::io::Error::new(
                std::io::ErrorKind::AddrNotAvailable,
                "its address is not known",
            ),
        };
        for address in addresses {
            let options = ConnectOptions {
                client_id: self.client_id().to_owned(),
                connect_limit: CONNECT_LIMIT,
                idle_limit: REQUEST_LIMIT,
                ..ConnectOptions::default()
            };
            match Connection::connect(address, options).await {
                Ok(connection) => return Ok(connection),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Gives a partition to the fetcher that should have it, if any should.
    pub fn place(self: &Rc<Self>, partition: &Rc<Partition>) {
        if !self.partitions.borrow().contains_key(&partition.uid) {
            return; // it was released meanwhile
        }
        if self.paused.get() || !partition.wants_fetching() {
            self.detach(partition);
            return;
        }
        let leader = self.leader(partition);
        let before = partition.leader.replace(leader);
        // Without ids, only its records tell a recreated topic from the one we know; and whoever
        // leads it next may have lost some.
        if before.is_some() && before != leader && partition.topic_id.is_none() {
            partition.set_unchecked(true);
        }
        let Some(Leader { broker, .. }) = leader else {
            self.detach(partition);
            let reason = match self.view.borrow().brokers.is_empty() {
                true => "the source has not said yet who leads it",
                false => "the source names no leader for it",
            };
            partition.no_leader(reason.to_owned(), ring::wall_ms());
            return;
        };
        let kind = self.kind(broker, partition);
        if let Some(fetcher) = partition.fetcher()
            && fetcher.broker == broker
            && fetcher.kind == kind
            && before == leader
        {
            return;
        }
        self.detach(partition);
        self.fetcher(broker, kind).add(partition);
    }

    /// Who leads a partition, as control last said.
    pub fn leader(&self, partition: &Partition) -> Option<Leader> {
        let key = (Arc::clone(&partition.key.topic), partition.key.partition);
        self.leaders.borrow().get(&key).copied()
    }

    fn kind(&self, broker: i32, partition: &Partition) -> Kind {
        if !partition.backfill.get() {
            return Kind::Tail;
        }
        let mut brokers = self.brokers.borrow_mut();
        let connections = brokers.entry(broker).or_default().pool.connections().max(1);
        Kind::Backfill((partition.uid % connections as u64) as usize)
    }

    fn fetcher(self: &Rc<Self>, broker: i32, kind: Kind) -> Rc<FetcherShared> {
        let mut brokers = self.brokers.borrow_mut();
        let pool = brokers.entry(broker).or_default();
        let (shared, _) = pool.fetchers.entry(kind).or_insert_with(|| {
            let shared = FetcherShared::new(broker, kind);
            let fetcher = Fetcher::new(Rc::clone(self), Rc::clone(&shared));
            let task = ring::spawn(Share::Replicate, fetcher.run());
            (shared, task)
        });
        Rc::clone(shared)
    }

    fn detach(&self, partition: &Partition) {
        if let Some(fetcher) = partition.fetcher() {
            fetcher.remove(partition);
        }
    }

    /// Stops everything that talks to the source, and returns its sockets, which are closing.
    pub fn pause(&self) -> Vec<SocketWatch> {
        self.paused.set(true);
        for partition in self.partitions() {
            self.detach(&partition);
        }
        let pools = std::mem::take(&mut *self.brokers.borrow_mut());
        let mut sockets: Vec<_> = pools
            .values()
            .flat_map(|pool| pool.fetchers.values())
            .filter_map(|(shared, _)| shared.socket.take())
            .collect();
        drop(pools); // and with them the tasks: each drops its connection
        sockets.extend(self.repairs.stop());
        sockets
    }

    pub fn resume(self: &Rc<Self>) {
        self.paused.set(false);
        for partition in self.partitions() {
            self.place(&partition);
        }
    }

    /// Connections open now.
    pub fn connections(&self) -> u32 {
        let brokers = self.brokers.borrow();
        let fetchers = brokers.values().flat_map(|pool| pool.fetchers.values());
        let fetching = fetchers.filter(|(shared, _)| shared.connected.get()).count() as u32;
        fetching + self.repairs.connections()
    }

    /// Looks at a partition again when its time comes, if it is still one of ours.
    pub fn retry_later(&self, partition: &Rc<Partition>) {
        if self.partitions.borrow().contains_key(&partition.uid) {
            self.retries.borrow_mut().insert(partition.uid, Rc::clone(partition));
        }
    }

    /// What was read again, on behalf of all links of the shard.
    pub fn verifier(&self) -> Rc<Verifier> {
        Rc::clone(&self.shard.verifier)
    }

    /// A corrupt log was opened again: its segments behind the damage are to be verified.
    pub fn reopened(&self, partition: &Rc<Partition>) {
        self.shard.reopened.borrow_mut().push(Rc::clone(partition));
    }

    pub fn count_damages(&self, found: usize) {
        let counted = &self.shard.counters.damages_found;
        counted.set(counted.get() + found as u64);
    }

    pub fn count_repair(&self) {
        let counted = &self.shard.counters.damages_repaired;
        counted.set(counted.get() + 1);
    }

    /// Damage whose time has come is fetched again.
    pub fn repair_due(self: &Rc<Self>) {
        if !self.paused.get() {
            self.repairs.run_due(self);
        }
    }

    /// Partitions whose time has come are tried again.
    pub fn retry_due(self: &Rc<Self>) {
        let now = ring::now();
        let waiting = self.retries.take();
        for (uid, partition) in waiting {
            partition.retry_due(now);
            match partition.condition() {
                Condition::Waiting { .. } | Condition::NoLeader { retry_at: Some(_), .. } => {
                    self.retries.borrow_mut().insert(uid, partition);
                }
                _ => self.place(&partition),
            }
        }
    }

    /// Reconsiders what is backfill, and how many connections carry it. `busy`: this core had
    /// hardly any time left. The fetchers follow between two answers.
    pub fn adjust_pools(&self, busy: bool) {
        let most = self.settings.borrow().connections_max as usize;
        let mut changed = false;
        let mut seen = self.arrivals(busy);
        let mut tail: HashMap<i32, Behind<'_>> = HashMap::new();
        let partitions = self.partitions.borrow();
        let received = partitions.values().map(|p| p.bytes()).sum::<u64>();
        let usual = received.checked_div(partitions.values().map(|p| p.records()).sum());
        for partition in partitions.values() {
            let Some(fetcher) = partition.fetcher() else { continue };
            if !partition.backfill.get() {
                let missing = partition.missing_bytes(usual);
                let behind = tail.entry(fetcher.broker).or_default();
                behind.bytes = behind.bytes.saturating_add(missing);
                if missing >= BACKLOG_SHARE_BYTES_MIN {
                    behind.partitions.push((missing, partition));
                }
            }
            if partition.backfill.get() {
                let seen = seen.entry(fetcher.broker).or_default();
                seen.backfilling += 1;
                let at_home = fetcher.kind == self.kind(fetcher.broker, partition);
                seen.settled &= at_home && fetcher.carries();
            }
        }
        for (broker, behind) in tail {
            // Many that lack a little are a backlog, too.
            let backlog = behind.bytes >= BACKLOG_BYTES;
            for (missing, partition) in behind.partitions {
                if backlog || missing >= BACKFILL_BYTES {
                    partition.backfill.set(true);
                    seen.entry(broker).or_default().backfilling += 1;
                    changed = true;
                }
            }
        }
        for (broker, connections) in self.brokers.borrow_mut().iter_mut() {
            let seen = seen.remove(broker).unwrap_or_default();
            changed |= connections.pool.consider(&seen, most);
        }
        if changed {
            self.placement.set(self.placement.get() + 1);
        }
    }

    /// What arrived on the backfill connections since the last look, by broker.
    fn arrivals(&self, busy: bool) -> HashMap<i32, Interval> {
        let brokers = self.brokers.borrow();
        let arrivals = brokers.iter().map(|(broker, connections)| {
            let fetchers = connections.fetchers.values().map(|(shared, _)| shared);
            let backfill = fetchers.filter(|shared| shared.kind != Kind::Tail);
            let bytes = backfill.map(|shared| shared.arrived()).sum();
            (*broker, Interval { backfilling: 0, bytes, settled: true, busy })
        });
        arrivals.collect()
    }

    /// Changes when a partition may belong on another connection.
    pub fn placement(&self) -> u64 {
        self.placement.get()
    }

    /// One more connection shares the memory for fetches.
    pub fn share_memory(&self) -> Sharer {
        Budget::share(&self.shard.budget)
    }

    /// Memory for one fetch, waiting for it.
    pub async fn reserve(&self, bytes_max: usize) -> Reserved {
        Budget::reserve(&self.shard.budget, bytes_max).await
    }

    /// The rate limits that hold for such traffic.
    fn limits(&self, kind: Kind) -> impl Iterator<Item = &RefCell<Option<RateLimit>>> {
        let backfill = (kind != Kind::Tail).then_some(&self.backfill_rate);
        std::iter::once(&self.rate).chain(backfill)
    }

    /// Waits until the link's rate limit allows another fetch.
    pub async fn wait_for_rate(&self, kind: Kind) {
        loop {
            let now_ns = ring::now().as_nanos();
            let delay = |rate: &RefCell<Option<RateLimit>>| {
                rate.borrow().as_ref().map(|rate| rate.delay(now_ns))
            };
            let pause = self.limits(kind).filter_map(delay).max().unwrap_or(Duration::ZERO);
            if pause.is_zero() {
                return;
            }
            ring::sleep(pause.min(POOL_INTERVAL)).await;
        }
    }

    /// How much one answer may bring under the rate limits: what they allow in a while. More would
    /// be paid for with a long pause, in which nothing is heard of any partition.
    pub fn answer_bytes_max(&self, kind: Kind) -> u64 {
        let allowed = self.limits(kind).filter_map(|limit| {
            limit.borrow().as_ref().map(|limit| limit.bytes_in(RATE_ANSWER_TIME))
        });
        allowed.min().unwrap_or(u64::MAX).max(1)
    }

    pub fn count_fetch(&self, bytes: u64, kind: Kind) {
        self.shard.counters.fetches.set(self.shard.counters.fetches.get() + 1);
        let counted = &self.shard.counters.bytes_received;
        counted.set(counted.get() + bytes);
        let now_ns = ring::now().as_nanos();
        for limit in self.limits(kind) {
            if let Some(limit) = limit.borrow_mut().as_mut() {
                limit.spend(now_ns, bytes);
            }
        }
    }

    pub fn count_error(&self, kind: &'static str) {
        self.shard.counters.error(kind);
    }

    /// Tells control that the picture of the cluster is old; not all the time.
    pub fn metadata_stale(&self) {
        let now = ring::now();
        if self.stale_told.get().is_some_and(|told| now - told < STALE_INTERVAL) {
            return;
        }
        self.stale_told.set(Some(now));
        self.tell(Event::MetadataStale { link: Arc::clone(&self.name) });
    }

    pub fn faulted(&self, partition: &Partition, code: FaultCode, reason: String) {
        self.count_error("fault");
        self.tell(Event::Fault { key: partition.key.clone(), code, reason });
    }

    /// Tells control; when its queue is full, the status still says it.
    pub fn tell(&self, event: Event) {
        if let Err(mpsc::error::TrySendError::Full(_)) = self.shard.events.try_send(event) {
            self.count_error("event not told");
        }
    }

    /// Makes a new partition's log.
    pub async fn open_log(&self, partition: &Partition, start: i64) -> Result<(), String> {
        let opened = self.shard.open_log(partition, Some(start), &self.settings()).await;
        opened.map_err(|error| error.reason)
    }
}
