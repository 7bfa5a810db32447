//! The durable state of links and topics: small JSON values under readable keys.
//!
//! What is written here survives power loss; all changes of one verb go into one transaction.

use crate::states::{LinkMode, TopicState};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::PathBuf;
use storage::metadata::Change;
use uuid::Uuid;

/// A link, under `link/<name>`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkRecord {
    /// What was decided.
    pub mode: LinkMode,
    /// When, wall clock.
    pub since_ms: i64,
    /// The source's cluster id as first seen.
    pub cluster_id: Option<String>,
}

/// A topic, under `topic/<link>/<topic>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicRecord {
    /// The source's id of the topic.
    pub topic_id: Option<Uuid>,
    /// Data folder of each partition, by number.
    pub partitions: Vec<PathBuf>,
    /// Its state.
    pub state: TopicState,
    /// Stable code of the trouble.
    pub code: Option<String>,
    /// For people.
    pub reason: Option<String>,
    /// When this state began, wall clock.
    pub since_ms: i64,
    /// Where the copy ended when failover began; empty before.
    pub ends: Vec<End>,
    /// Its files are being removed, which a crash must not stop.
    #[serde(default)]
    pub deleting: bool,
}

/// Where one partition of a failed-over topic ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// Partition number.
    pub partition: i32,
    /// Next offset: the first the source did not give us. Unknown when its log cannot be opened,
    /// and for a partition of which nothing ever came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_offset: Option<i64>,
    /// Epoch of the last record.
    pub last_epoch: Option<i32>,
    /// What went wrong while flushing, if anything.
    pub error: Option<String>,
}

impl TopicRecord {
    /// Sets the state and when it began.
    pub fn become_state(&mut self, state: TopicState, why: Option<(&str, &str)>, now_ms: i64) {
        self.state = state;
        self.code = why.map(|(code, _)| code.to_owned());
        self.reason = why.map(|(_, reason)| reason.to_owned());
        self.since_ms = now_ms;
    }
}

/// Writes a link's record.
pub fn set_link(name: &str, record: &LinkRecord) -> Change {
    Change { key: link_key(name), value: Some(encode(record)) }
}

/// Forgets a link.
pub fn remove_link(name: &str) -> Change {
    Change { key: link_key(name), value: None }
}

/// Writes a topic's record.
pub fn set_topic(link: &str, topic: &str, record: &TopicRecord) -> Change {
    Change { key: topic_key(link, topic), value: Some(encode(record)) }
}

/// Forgets a topic.
pub fn remove_topic(link: &str, topic: &str) -> Change {
    Change { key: topic_key(link, topic), value: None }
}

/// Notes that a data folder is in use, under `data_dir/<its path>`.
pub fn set_data_dir(path: &str) -> Change {
    Change { key: format!("{DATA_DIR}{path}"), value: Some(encode(&())) }
}

const DATA_DIR: &str = "data_dir/";

fn link_key(name: &str) -> String {
    format!("link/{name}")
}

fn topic_key(link: &str, topic: &str) -> String {
    format!("topic/{link}/{topic}")
}

fn encode(record: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(record).expect("records have string keys only")
}

/// Everything that was stored, sorted out.
#[derive(Debug, Default)]
pub struct Stored {
    /// Links by name.
    pub links: Vec<(String, LinkRecord)>,
    /// (link, topic, record)
    pub topics: Vec<(String, String, TopicRecord)>,
    /// Data folders that were in use.
    pub data_dirs: BTreeSet<String>,
}

/// A stored value that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("the metadata store's record `{key}` cannot be read: {cause}")]
pub struct BadRecord {
    /// Its key.
    pub key: String,
    /// Why.
    pub cause: String,
}

/// Sorts stored pairs out.
///
/// # Errors
/// On the first record that is not one of ours.
pub fn decode(pairs: Vec<(String, Vec<u8>)>) -> Result<Stored, BadRecord> {
    let mut stored = Stored::default();
    for (key, value) in pairs {
        let bad = |cause: String| BadRecord { key: key.clone(), cause };
        let json = |error: serde_json::Error| bad(error.to_string());
        if let Some(dir) = key.strip_prefix(DATA_DIR) {
            stored.data_dirs.insert(dir.to_owned());
            continue;
        }
        let parts: Vec<&str> = key.splitn(3, '/').collect();
        match parts.as_slice() {
            ["link", name] => stored
                .links
                .push(((*name).to_owned(), serde_json::from_slice(&value).map_err(json)?)),
            ["topic", link, topic] => stored.topics.push((
                (*link).to_owned(),
                (*topic).to_owned(),
                serde_json::from_slice(&value).map_err(json)?,
            )),
            _ => return Err(bad("the key is of no kind known here".to_owned())),
        }
    }
    Ok(stored)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_writing_and_reading() {
        let link = LinkRecord { mode: LinkMode::Paused, since_ms: 7, cluster_id: Some("c".into()) };
        let topic = TopicRecord {
            topic_id: Some(Uuid::from_u128(5)),
            partitions: vec!["/a".into(), "/b".into()],
            state: TopicState::FailingOver,
            code: None,
            reason: None,
            since_ms: 9,
            ends: vec![End { partition: 0, end_offset: Some(3), last_epoch: Some(1), error: None }],
            deleting: false,
        };
        let pairs = [set_link("prod", &link), set_topic("prod", "a.b", &topic)]
            .map(|change| (change.key, change.value.expect("a value")));
        let stored = decode(pairs.to_vec()).expect("our own records");
        assert_eq!(stored.links, [("prod".to_owned(), link)]);
        assert_eq!(stored.topics, [("prod".to_owned(), "a.b".to_owned(), topic)]);
    }

    #[test]
    fn foreign_records_are_errors() {
        for (key, value) in [("link/x", "{"), ("other", "{}"), ("topic/x", "{}")] {
            let error = decode(vec![(key.to_owned(), value.as_bytes().to_vec())]);
            assert!(error.expect_err("not ours").to_string().contains(key));
        }
    }
}
