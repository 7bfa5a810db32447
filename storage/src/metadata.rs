//! The metadata store: the small durable state of the node, in one embedded database file.
//!
//! What must be atomic across partitions is one transaction here; Kafka's small text files and
//! everything else on disk are derived. Values are JSON, so that an operator can read a dump; every
//! value carries only fields with defaults, so that an older file is read by newer code.
//!
//! Blocking: a commit waits for the device. It is called from a thread of its own, never from a
//! shard and never from the thread that answers the admin socket.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use uuid::Uuid;

/// The version of the tables; another one is refused.
pub const SCHEMA_VERSION: u32 = 1;
/// The most memory the database's cache takes.
pub const CACHE_BYTES_MAX: usize = 8 << 20;

const NODE: Table = TableDefinition::new("node");
const LINKS: Table = TableDefinition::new("links");
/// Keyed `link/topic`: neither name can hold a slash.
const TOPICS: Table = TableDefinition::new("topics");

type Table = TableDefinition<'static, &'static str, &'static [u8]>;

/// Why the store did not do what it was asked.
#[derive(Debug, Error)]
pub enum MetadataError {
    /// Opening failed: missing rights, another process, damage.
    #[error("metadata store {path}: {source}")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: redb::Error,
    },
    /// The database failed.
    #[error("metadata store: {0}")]
    Database(#[from] redb::Error),
    /// A value is not what it should be.
    #[error("metadata store: the value of {key} is unreadable: {source}")]
    Value {
        /// Table and key.
        key: String,
        /// Why.
        source: serde_json::Error,
    },
    /// Written by other code.
    #[error("metadata store has schema version {found}, this program knows {SCHEMA_VERSION}")]
    Schema {
        /// In the file.
        found: u32,
    },
    /// The change was refused by whoever made it; nothing was written.
    #[error("refused: {0}")]
    Refused(String),
}

/// Who this node is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Chosen at the first start, never changed.
    pub id: Uuid,
    /// See [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// When the store was created, ms since the epoch.
    pub created_ms: i64,
}

/// What happens to a link at run time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum LinkState {
    /// Replicating.
    #[default]
    Active,
    /// Nothing goes to the source.
    Paused,
    /// The source does not answer.
    Unavailable,
}

/// A link's durable state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LinkRecord {
    /// Its state.
    pub state: LinkState,
    /// Why, for people.
    pub reason: Option<String>,
    /// Since when, ms since the epoch.
    pub since_ms: i64,
    /// The source's cluster id as first seen; another one is another cluster.
    pub cluster_id: Option<String>,
    /// The cluster id the copy is served under.
    pub own_cluster_id: Option<Uuid>,
    /// Sync tasks that are paused on their own.
    pub paused_tasks: Vec<String>,
    /// Digest of the configuration the link was last started with.
    pub configuration_digest: Option<String>,
}

/// What happens to a topic at run time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "SCREAMING_SNAKE_CASE")]
pub enum TopicState {
    /// Replicating.
    #[default]
    Active,
    /// Nothing of it is fetched.
    Paused,
    /// Something no retry can mend.
    Faulted {
        /// What.
        reason: String,
    },
    /// A planned switch is under way.
    Promoting,
    /// Switched as planned.
    Promoted,
    /// The copy is becoming writable; nothing is ever fetched over it again.
    FailingOver,
    /// The copy is writable.
    FailedOver,
}

impl TopicState {
    /// From here on local data is the only truth: nothing is fetched over it.
    pub fn is_final(&self) -> bool {
        matches!(self, TopicState::Promoted | TopicState::FailingOver | TopicState::FailedOver)
    }
}

/// Where a partition stood when its topic failed over: divergence is computed from this pair alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MirrorEnd {
    /// The offset after the last mirrored record.
    pub end_offset: i64,
    /// The last mirrored leader epoch.
    pub leader_epoch: Option<i32>,
    /// The epoch advertised to clients from then on.
    pub advertised_epoch: i32,
}

/// A topic's durable state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TopicRecord {
    /// Its state.
    #[serde(flatten)]
    pub state: TopicState,
    /// Since when, ms since the epoch.
    pub since_ms: i64,
    /// The source's topic id as first seen.
    pub topic_id: Option<Uuid>,
    /// Partitions as last seen; they never decrease.
    pub partitions: i32,
    /// Set when it failed over.
    pub mirror_ends: BTreeMap<i32, MirrorEnd>,
}

/// The store.
pub struct MetadataStore {
    database: Database,
}

impl MetadataStore {
    /// Opens the store, or creates it with a new node id. The file is locked while it is open.
    pub fn open(path: &Path, now_ms: i64) -> Result<MetadataStore, MetadataError> {
        let opened = Database::builder().set_cache_size(CACHE_BYTES_MAX).create(path);
        let database = opened.map_err(|source| MetadataError::Open {
            path: path.to_owned(),
            source: source.into(),
        })?;
        let store = MetadataStore { database };
        store.write(|change| {
            let Some(node) = change.get::<NodeRecord>(NODE, "node")? else {
                let id = Uuid::new_v4();
                let node = NodeRecord { id, schema_version: SCHEMA_VERSION, created_ms: now_ms };
                return change.put(NODE, "node", &node);
            };
            let found = node.schema_version;
            if found == SCHEMA_VERSION { Ok(()) } else { Err(MetadataError::Schema { found }) }
        })?;
        Ok(store)
    }

    /// Who this node is.
    pub fn node(&self) -> Result<NodeRecord, MetadataError> {
        let node = self.get(NODE, "node")?;
        node.ok_or_else(|| MetadataError::Refused("the store has no node record".to_owned()))
    }

    /// A link's state, if it has any.
    pub fn link(&self, link: &str) -> Result<Option<LinkRecord>, MetadataError> {
        self.get(LINKS, link)
    }

    /// All links.
    pub fn links(&self) -> Result<BTreeMap<String, LinkRecord>, MetadataError> {
        self.range(LINKS, "")
    }

    /// A topic's state, if it has any.
    pub fn topic(&self, link: &str, topic: &str) -> Result<Option<TopicRecord>, MetadataError> {
        self.get(TOPICS, &topic_key(link, topic))
    }

    /// All topics of a link.
    pub fn topics(&self, link: &str) -> Result<BTreeMap<String, TopicRecord>, MetadataError> {
        self.range(TOPICS, &topic_key(link, ""))
    }

    /// Makes changes in one transaction: all of them are durable when this returns, or, after an
    /// error, none.
    pub fn write<T>(
        &self,
        make: impl FnOnce(&Change) -> Result<T, MetadataError>,
    ) -> Result<T, MetadataError> {
        let transaction = self.database.begin_write().map_err(redb::Error::from)?;
        let change = Change { transaction };
        // All tables exist from the first transaction on.
        change.transaction.open_table(LINKS).map_err(redb::Error::from)?;
        change.transaction.open_table(TOPICS).map_err(redb::Error::from)?;
        let made = make(&change)?;
        change.transaction.commit().map_err(redb::Error::from)?;
        Ok(made)
    }

    fn get<T: DeserializeOwned>(&self, of: Table, key: &str) -> Result<Option<T>, MetadataError> {
        let read = self.database.begin_read().map_err(redb::Error::from)?;
        get(&read.open_table(of).map_err(redb::Error::from)?, key)
    }

    /// All values whose keys begin with `prefix`, by the rest of their keys.
    fn range<T: DeserializeOwned>(
        &self,
        of: Table,
        prefix: &str,
    ) -> Result<BTreeMap<String, T>, MetadataError> {
        let read = self.database.begin_read().map_err(redb::Error::from)?;
        let table = read.open_table(of).map_err(redb::Error::from)?;
        let mut values = BTreeMap::new();
        for row in table.range(prefix..).map_err(redb::Error::from)? {
            let (key, value) = row.map_err(redb::Error::from)?;
            let Some(rest) = key.value().strip_prefix(prefix) else { break };
            values.insert(rest.to_owned(), parse(key.value(), value.value())?);
        }
        Ok(values)
    }
}

/// A transaction in progress.
pub struct Change {
    transaction: redb::WriteTransaction,
}

impl Change {
    /// A link as it stands in this transaction.
    pub fn link(&self, link: &str) -> Result<Option<LinkRecord>, MetadataError> {
        self.get(LINKS, link)
    }

    /// Sets a link's state.
    pub fn put_link(&self, link: &str, record: &LinkRecord) -> Result<(), MetadataError> {
        self.put(LINKS, link, record)
    }

    /// Forgets a link and all its topics.
    pub fn remove_link(&self, link: &str) -> Result<(), MetadataError> {
        self.remove(LINKS, link)?;
        let mut topics = self.transaction.open_table(TOPICS).map_err(redb::Error::from)?;
        let prefix = topic_key(link, "");
        topics.retain(|key, _| !key.starts_with(&prefix)).map_err(redb::Error::from)?;
        Ok(())
    }

    /// A topic as it stands in this transaction.
    pub fn topic(&self, link: &str, topic: &str) -> Result<Option<TopicRecord>, MetadataError> {
        self.get(TOPICS, &topic_key(link, topic))
    }

    /// Sets a topic's state.
    pub fn put_topic(
        &self,
        link: &str,
        topic: &str,
        record: &TopicRecord,
    ) -> Result<(), MetadataError> {
        self.put(TOPICS, &topic_key(link, topic), record)
    }

    /// Forgets a topic.
    pub fn remove_topic(&self, link: &str, topic: &str) -> Result<(), MetadataError> {
        self.remove(TOPICS, &topic_key(link, topic))
    }

    fn get<T: DeserializeOwned>(&self, of: Table, key: &str) -> Result<Option<T>, MetadataError> {
        get(&self.transaction.open_table(of).map_err(redb::Error::from)?, key)
    }

    fn put<T: Serialize>(&self, of: Table, key: &str, value: &T) -> Result<(), MetadataError> {
        let bytes = serde_json::to_vec(value)
            .map_err(|source| MetadataError::Value { key: key.to_owned(), source })?;
        let mut table = self.transaction.open_table(of).map_err(redb::Error::from)?;
        table.insert(key, bytes.as_slice()).map_err(redb::Error::from)?;
        Ok(())
    }

    fn remove(&self, of: Table, key: &str) -> Result<(), MetadataError> {
        let mut table = self.transaction.open_table(of).map_err(redb::Error::from)?;
        table.remove(key).map_err(redb::Error::from)?;
        Ok(())
    }
}

fn topic_key(link: &str, topic: &str) -> String {
    format!("{link}/{topic}")
}

fn get<T: DeserializeOwned>(
    table: &impl ReadableTable<&'static str, &'static [u8]>,
    key: &str,
) -> Result<Option<T>, MetadataError> {
    let value = table.get(key).map_err(redb::Error::from)?;
    value.map(|value| parse(key, value.value())).transpose()
}

fn parse<T: DeserializeOwned>(key: &str, value: &[u8]) -> Result<T, MetadataError> {
    serde_json::from_slice(value)
        .map_err(|source| MetadataError::Value { key: key.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(state: TopicState) -> TopicRecord {
        TopicRecord { state, partitions: 3, ..TopicRecord::default() }
    }

    #[test]
    fn what_was_written_is_there_after_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metadata.redb");
        let store = MetadataStore::open(&path, 7).unwrap();
        let node = store.node().unwrap();
        let mut failed_over = record(TopicState::FailedOver);
        let end = MirrorEnd { end_offset: 9, leader_epoch: Some(2), advertised_epoch: 102 };
        failed_over.mirror_ends.insert(1, end);
        let faulted = record(TopicState::Faulted { reason: "topic recreated".to_owned() });
        let link = LinkRecord { cluster_id: Some("c".to_owned()), ..LinkRecord::default() };
        store
            .write(|change| {
                change.put_link("prod", &link)?;
                change.put_topic("prod", "a", &failed_over)?;
                change.put_topic("prod", "b", &faulted)?;
                change.put_topic("prod-2", "a", &record(TopicState::Paused))
            })
            .unwrap();
        assert!(matches!(MetadataStore::open(&path, 7), Err(MetadataError::Open { .. })));
        drop(store);
        let store = MetadataStore::open(&path, 8).unwrap();
        assert_eq!(store.node().unwrap(), node);
        assert_eq!(store.link("prod").unwrap(), Some(link));
        let topics = store.topics("prod").unwrap();
        assert_eq!(topics.into_values().collect::<Vec<_>>(), [failed_over, faulted]);
        assert_eq!(store.topics("pro").unwrap().len(), 0);
        store.write(|change| change.remove_link("prod")).unwrap();
        assert_eq!(store.links().unwrap().len(), 0);
        assert_eq!(store.topics("prod").unwrap().len(), 0);
        assert_eq!(store.topics("prod-2").unwrap().len(), 1);
    }

    #[test]
    fn a_refused_change_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = MetadataStore::open(&dir.path().join("m"), 0).unwrap();
        let result: Result<(), _> = store.write(|change| {
            change.put_topic("l", "t", &record(TopicState::FailingOver))?;
            Err(MetadataError::Refused("no".to_owned()))
        });
        assert!(matches!(result, Err(MetadataError::Refused(_))));
        assert_eq!(store.topic("l", "t").unwrap(), None);
    }

    #[test]
    fn another_schema_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m");
        let store = MetadataStore::open(&path, 0).unwrap();
        let mut node = store.node().unwrap();
        node.schema_version = 9;
        store.write(|change| change.put(NODE, "node", &node)).unwrap();
        drop(store);
        let result = MetadataStore::open(&path, 0);
        assert!(matches!(result, Err(MetadataError::Schema { found: 9 })));
    }
}
