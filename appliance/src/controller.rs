//! Link control: what is copied, in which state, and what the shards are told.
//!
//! Everything here runs on the control thread's one executor, so state is in `RefCell`s that are
//! never borrowed over an await. Reading (status, metrics) never waits for a verb; verbs of one
//! link take turns. What is decided is durable before it is done, but for failover, where the copy
//! is flushed before the decision, which names its end, is written.

pub mod link;
pub mod observe;
pub mod placement;
pub mod records;
pub mod shards;
pub mod source;
pub mod status;
pub mod store;
mod verbs;

pub use link::Link;
pub use verbs::{Ending, Outcome, Request, TopicOutcome};

use crate::config::{Config, LinkConfig};
use crate::reload::{self, Change as ReloadChange, LinkFacts, Reload};
use crate::states::LinkMode;
use ::shards::control::Event;
use placement::Placement;
use records::{LinkRecord, Stored, TopicRecord};
use shards::Shards;
use source::Connector;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};
use store::{Store, StoreError};
use tokio::sync::mpsc;

/// What every link needs.
pub struct Shared {
    /// The data shards.
    pub shards: Shards,
    /// The metadata store.
    pub store: Store,
    /// Makes clients of sources.
    pub connector: Box<dyn Connector>,
    /// Who has how many partitions.
    pub placement: RefCell<Placement>,
}

/// All links.
pub struct Controller {
    shared: Rc<Shared>,
    config: RefCell<Config>,
    links: RefCell<BTreeMap<String, Rc<Link>>>,
    /// What is stored of links that are not declared; a link of that name finds it again.
    dormant: RefCell<BTreeMap<String, Dormant>>,
    last_reload: RefCell<Option<Reload>>,
    events: RefCell<BTreeMap<&'static str, u64>>,
    booted: Cell<bool>,
}

/// What is stored of a link that is not declared.
#[derive(Default)]
struct Dormant {
    record: Option<LinkRecord>,
    topics: BTreeMap<String, TopicRecord>,
}

impl Controller {
    /// Puts links together from the file and the store; nothing runs yet.
    pub fn new(shared: Shared, config: Config, stored: Stored) -> Rc<Self> {
        let mut dormant: BTreeMap<String, Dormant> = BTreeMap::new();
        for (link, topic, record) in stored.topics {
            dormant.entry(link).or_default().topics.insert(topic, record);
        }
        for (link, record) in stored.links {
            dormant.entry(link).or_default().record = Some(record);
        }
        let shared = Rc::new(shared);
        let mut links = BTreeMap::new();
        for declared in &config.links {
            let Dormant { record, topics } = dormant.remove(&declared.name).unwrap_or_default();
            let link = Link::new(shared.clone(), declared.clone(), record, topics);
            links.insert(declared.name.clone(), link);
        }
        Rc::new(Controller {
            shared,
            config: RefCell::new(config),
            links: RefCell::new(links),
            dormant: RefCell::new(dormant),
            last_reload: RefCell::default(),
            events: RefCell::default(),
            booted: Cell::new(false),
        })
    }

    /// Hands every known partition to its shard, finishes what a crash interrupted, and starts the
    /// links' tasks. Works with every source dead.
    pub async fn boot(&self) {
        self.look_at_undeclared().await;
        for link in self.links() {
            link.boot().await;
            link.start();
        }
        self.booted.set(true);
    }

    /// Links that the file does not name: one that a person deleted is gone now; of any other
    /// nothing is copied, which a reload would have refused.
    async fn look_at_undeclared(&self) {
        let mut gone = Vec::new();
        for (name, dormant) in self.dormant.borrow_mut().iter_mut() {
            if dormant.record.as_ref().is_some_and(|record| record.mode == LinkMode::Deleted) {
                dormant.record = None;
                gone.push(records::remove_link(name));
                continue;
            }
            let live = dormant.topics.values().filter(|topic| topic.state.is_live()).count();
            if live > 0 {
                let link = name;
                tracing::warn!(
                    link,
                    live,
                    "the file does not name this link: its topics are kept \
                     and not copied"
                );
            }
        }
        if let Err(error) = self.shared.store.commit(gone).await {
            tracing::error!(%error, "links that were deleted are not forgotten");
        }
    }

    /// Whether [`Controller::boot`] has ended well.
    pub fn is_booted(&self) -> bool {
        self.booted.get()
    }

    /// All links, by name.
    pub fn links(&self) -> Vec<Rc<Link>> {
        self.links.borrow().values().cloned().collect()
    }

    /// One link.
    pub fn link(&self, name: &str) -> Option<Rc<Link>> {
        self.links.borrow().get(name).cloned()
    }

    /// What every link shares.
    pub fn shared(&self) -> &Shared {
        &self.shared
    }

    /// The configuration in force.
    pub fn config(&self) -> Config {
        self.config.borrow().clone()
    }

    /// What the last reload came to.
    pub fn last_reload(&self) -> Option<Reload> {
        self.last_reload.borrow().clone()
    }

    /// Events from shards since start, by kind.
    pub fn event_counts(&self) -> BTreeMap<&'static str, u64> {
        self.events.borrow().clone()
    }

    /// Follows the shards' events until their senders are gone.
    pub async fn follow_events(self: Rc<Self>, mut events: mpsc::Receiver<Event>) {
        while let Some(event) = events.recv().await {
            let kind = self.handle_event(event);
            *self.events.borrow_mut().entry(kind).or_default() += 1;
        }
    }

    pub(crate) fn handle_event(&self, event: Event) -> &'static str {
        match event {
            Event::MetadataStale { link } => {
                if let Some(link) = self.link(&link) {
                    link.leaders_moved();
                }
                "metadata_stale"
            }
            Event::SourceGap { key, lost_from, lost_to } => {
                tracing::warn!(
                    link = &*key.link,
                    topic = &*key.topic,
                    partition = key.partition,
                    lost_from,
                    lost_to,
                    "the source deleted records before they were copied"
                );
                "source_gap"
            }
            Event::Fault { key, code, reason } => {
                tracing::error!(
                    link = &*key.link,
                    topic = &*key.topic,
                    partition = key.partition,
                    code = code.name(),
                    reason,
                    "a partition stopped"
                );
                "fault"
            }
            Event::Damaged { key, from, to, reason } => {
                tracing::error!(
                    link = &*key.link,
                    topic = &*key.topic,
                    partition = key.partition,
                    from,
                    to,
                    reason,
                    "stored bytes have changed; they are fetched again if the source has them"
                );
                "damaged"
            }
            Event::Repaired { key, from, to } => {
                tracing::info!(
                    link = &*key.link,
                    topic = &*key.topic,
                    partition = key.partition,
                    from,
                    to,
                    "damaged offsets were fetched again and are whole"
                );
                "repaired"
            }
            Event::Truncated { key, from, to } => {
                tracing::warn!(
                    link = &*key.link,
                    topic = &*key.topic,
                    partition = key.partition,
                    from,
                    to,
                    "records the source had lost were cut off here too"
                );
                "truncated"
            }
        }
    }

    /// Applies a changed file as far as it is safe; what is refused is named and stays as it was.
    ///
    /// # Errors
    /// When the metadata store fails; what was applied before stays applied.
    pub async fn reload(&self, new: Config) -> Result<Reload, StoreError> {
        let old = self.config();
        let facts = |name: &str| self.link(name).map_or_else(LinkFacts::default, |l| l.facts());
        let reload = reload::compare(&old, &new, facts);
        for change in &reload.changes {
            let (name, now) = match change {
                ReloadChange::Add(config) => {
                    self.add_link(config.clone()).await;
                    (&config.name, Some(config))
                }
                ReloadChange::Update(config) => {
                    if let Some(link) = self.link(&config.name) {
                        link.update(config.clone()).await;
                    }
                    (&config.name, Some(config))
                }
                ReloadChange::Remove(name) => {
                    self.remove_link(name).await?;
                    (name, None)
                }
            };
            // One by one: what is applied is not applied again when a later one fails.
            let mut applied = self.config.borrow_mut();
            applied.links.retain(|link| link.name != *name);
            applied.links.extend(now.cloned());
        }
        *self.last_reload.borrow_mut() = Some(reload.clone());
        Ok(reload)
    }

    async fn add_link(&self, config: LinkConfig) {
        let name = config.name.clone();
        let Dormant { record, topics } =
            self.dormant.borrow_mut().remove(&name).unwrap_or_default();
        let link = Link::new(self.shared.clone(), config, record, topics);
        self.links.borrow_mut().insert(name, link.clone());
        link.boot().await;
        link.start();
    }

    async fn remove_link(&self, name: &str) -> Result<(), StoreError> {
        let Some(link) = self.link(name) else { return Ok(()) };
        self.shared.store.commit(vec![records::remove_link(name)]).await?;
        self.links.borrow_mut().remove(name);
        let topics = link.retire().await;
        self.dormant.borrow_mut().insert(name.to_owned(), Dormant { record: None, topics });
        Ok(())
    }
}

/// Wall clock in milliseconds since 1970.
pub fn wall_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Whether a link in this mode may talk to its source.
fn may_talk(mode: LinkMode) -> bool {
    mode == LinkMode::Active
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
