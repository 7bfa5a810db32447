//! Where things lie: `<data>/<link>/<topic>-<partition>/` in Kafka's names, and our own files in
//! `<data>/.understudy/`, outside every folder a Kafka broker might be given.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;

/// The folder of our own files in every data directory.
pub const OWN_FOLDER: &str = ".understudy";
/// Kafka's file of leader epochs.
pub const EPOCHS_FILE: &str = "leader-epoch-checkpoint";
/// Kafka's file of the topic id.
pub const METADATA_FILE: &str = "partition.metadata";
/// Ends the name of a segment's file that is prepared but has no base offset yet.
pub const PREPARED_FILE: &str = "next.prepared";
/// Records fetched again for a damaged range, beside the seals, until they are complete.
pub const REPAIR_FILE: &str = "repair.staged";

/// A partition of a link's topic. The names are shared: the same log stands in many tables.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogId {
    /// The link: a virtual cluster.
    pub link: Arc<str>,
    /// The topic.
    pub topic: Arc<str>,
    /// The partition.
    pub partition: i32,
}

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}-{}", self.link, self.topic, self.partition)
    }
}

/// A name that may not become a folder.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{what} name {name:?} is not 1 to 249 of a-z A-Z 0-9 . _ - (and not . or ..)")]
pub struct NameError {
    /// "link" or "topic".
    pub what: &'static str,
    /// The name.
    pub name: String,
}

impl LogId {
    /// Refuses what could leave the data directory: both names come from outside.
    pub fn check(&self) -> Result<(), NameError> {
        check_name("topic", &self.topic)?;
        check_name("link", &self.link)?;
        if self.link.starts_with('.') || self.partition < 0 {
            return Err(NameError { what: "link", name: self.to_string() });
        }
        Ok(())
    }

    /// The partition's folder.
    pub fn folder(&self, data_dir: &Path) -> PathBuf {
        data_dir.join(&*self.link).join(format!("{}-{}", self.topic, self.partition))
    }

    /// The folder of the partition's seals.
    pub fn seal_folder(&self, data_dir: &Path) -> PathBuf {
        data_dir
            .join(OWN_FOLDER)
            .join("seals")
            .join(&*self.link)
            .join(format!("{}-{}", self.topic, self.partition))
    }
}

/// Kafka's rule for topic names; links follow it too.
pub fn check_name(what: &'static str, name: &str) -> Result<(), NameError> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let good =
        (1..=249).contains(&name.len()) && name != "." && name != ".." && name.chars().all(legal);
    if good { Ok(()) } else { Err(NameError { what, name: name.to_owned() }) }
}

/// A file of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Record batches.
    Log,
    /// Offset index.
    Index,
    /// Time index.
    TimeIndex,
    /// Aborted transactions.
    TxnIndex,
    /// Producer state up to the offset in the name.
    Snapshot,
    /// Our seal.
    Seal,
}

impl Kind {
    /// Every kind, in the order in which a segment's files go. Its seal is the first: one without
    /// its segment is damage, and would be held against a later segment of that base.
    pub const ALL: [Kind; 6] =
        [Kind::Seal, Kind::Log, Kind::Index, Kind::TimeIndex, Kind::TxnIndex, Kind::Snapshot];

    /// The suffix, without the dot.
    pub fn suffix(self) -> &'static str {
        match self {
            Kind::Log => "log",
            Kind::Index => "index",
            Kind::TimeIndex => "timeindex",
            Kind::TxnIndex => "txnindex",
            Kind::Snapshot => "snapshot",
            Kind::Seal => "seal",
        }
    }

    /// The file's name for an offset: twenty digits.
    pub fn name(self, offset: i64) -> String {
        format!("{offset:020}.{}", self.suffix())
    }
}

/// Reads a file name back. None for what is not ours.
pub fn parse_file(name: &str) -> Option<(i64, Kind)> {
    let (digits, suffix) = name.split_once('.')?;
    if digits.len() != 20 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let kind = Kind::ALL.into_iter().find(|kind| kind.suffix() == suffix)?;
    Some((digits.parse().ok()?, kind))
}

/// Splits a partition's folder name at its last dash.
pub fn parse_folder(name: &str) -> Option<(&str, i32)> {
    let (topic, partition) = name.rsplit_once('-')?;
    let plain = partition.bytes().all(|b| b.is_ascii_digit()) && !partition.is_empty();
    let canonical = partition.len() == 1 || !partition.starts_with('0');
    if !plain || !canonical || check_name("topic", topic).is_err() {
        return None;
    }
    Some((topic, partition.parse().ok()?))
}

/// The text of `partition.metadata`, as `PartitionMetadataFile` writes it (KIP-516).
pub fn format_metadata(topic_id: [u8; 16]) -> String {
    format!("version: 0\ntopic_id: {}\n", format_topic_id(topic_id))
}

/// Reads the topic id from a `partition.metadata`.
pub fn parse_metadata(text: &str) -> Option<[u8; 16]> {
    let mut lines = text.lines();
    if lines.next()?.trim() != "version: 0" {
        return None;
    }
    parse_topic_id(lines.next()?.strip_prefix("topic_id:")?.trim())
}

const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// A topic id as Kafka prints it: base64 for URLs, without padding, 22 characters.
pub fn format_topic_id(id: [u8; 16]) -> String {
    let mut text = String::with_capacity(22);
    for group in id.chunks(3) {
        let mut bits = [0; 4];
        bits[1..=group.len()].copy_from_slice(group);
        let bits = u32::from_be_bytes(bits);
        for i in 0..=group.len() {
            text.push(char::from(BASE64[(bits >> (18 - 6 * i)) as usize & 63]));
        }
    }
    text
}

/// Reads a topic id as Kafka prints it.
pub fn parse_topic_id(text: &str) -> Option<[u8; 16]> {
    if text.len() != 22 {
        return None;
    }
    let mut value = 0u128;
    for (i, byte) in text.bytes().enumerate() {
        let digit = BASE64.iter().position(|&b| b == byte)? as u128;
        // 22 digits are 132 bits: the last four must be zero.
        value = if i < 21 { value << 6 | digit } else { value << 2 | digit >> 4 };
        if i == 21 && digit & 15 != 0 {
            return None;
        }
    }
    Some(value.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn file_names_are_kafkas() {
        assert_eq!(Kind::Log.name(42), "00000000000000000042.log");
        assert_eq!(parse_file("00000000000000000042.timeindex"), Some((42, Kind::TimeIndex)));
        for foreign in ["42.log", "00000000000000000042.lo", "0000000000000000004x.log", "x"] {
            assert_eq!(parse_file(foreign), None);
        }
    }

    #[test]
    fn folders_split_at_the_last_dash() {
        assert_eq!(parse_folder("a-b-12"), Some(("a-b", 12)));
        for foreign in ["a", "a-", "a-01", "-1", "a-x", "a b-1", "..-1x"] {
            assert_eq!(parse_folder(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn names_cannot_leave_the_data_directory() {
        let id = |link: &str, topic: &str| LogId {
            link: link.into(),
            topic: topic.into(),
            partition: 0,
        };
        assert!(id("prod", "orders").check().is_ok());
        for (link, topic) in
            [("..", "t"), ("a/b", "t"), ("l", "../t"), ("l", ""), (".understudy", "t"), ("", "t")]
        {
            assert!(id(link, topic).check().is_err(), "{link} {topic}");
        }
    }

    #[test]
    fn topic_ids_print_as_kafka_prints_them() {
        // The metadata topic's well-known id is one in the low bits.
        let mut id = [0; 16];
        id[15] = 1;
        assert_eq!(format_topic_id(id), "AAAAAAAAAAAAAAAAAAAAAQ");
        assert_eq!(parse_metadata(&format_metadata(id)), Some(id));
        assert_eq!(parse_metadata("version: 1\ntopic_id: x"), None);
    }

    proptest! {
        #[test]
        fn topic_ids_come_back(id in any::<[u8; 16]>()) {
            prop_assert_eq!(parse_topic_id(&format_topic_id(id)), Some(id));
        }
    }
}
