//! The layout of fetch requests, versions 4 to 18.

use super::response::TOPIC_IDS_SINCE;
use super::session::{FetchLimits, TopicName, Wanted};
use crate::frame::put_varint;

/// What stands in front of the topics.
pub fn put_top(out: &mut Vec<u8>, version: i16, limits: &FetchLimits, id: i32, epoch: i32) {
    const CONSUMER: i32 = -1;
    const READ_UNCOMMITTED: u8 = 0;
    if version <= 14 {
        out.extend_from_slice(&CONSUMER.to_be_bytes());
    }
    out.extend_from_slice(&limits.max_wait_ms.to_be_bytes());
    out.extend_from_slice(&limits.min_bytes.to_be_bytes());
    out.extend_from_slice(&limits.max_bytes.to_be_bytes());
    out.push(READ_UNCOMMITTED);
    if version >= 7 {
        out.extend_from_slice(&id.to_be_bytes());
        out.extend_from_slice(&epoch.to_be_bytes());
    }
}

/// A topic's name or id, as the version has it.
pub fn put_topic(out: &mut Vec<u8>, version: i16, topic: TopicName<'_>) {
    if version >= TOPIC_IDS_SINCE {
        out.extend_from_slice(topic.id.as_bytes());
    } else {
        put_text(out, version, topic.name);
    }
}

/// A partition that is wanted.
pub fn put_partition(out: &mut Vec<u8>, version: i16, partition: i32, wanted: &Wanted) {
    out.extend_from_slice(&partition.to_be_bytes());
    if version >= 9 {
        out.extend_from_slice(&wanted.leader_epoch.to_be_bytes());
    }
    out.extend_from_slice(&wanted.fetch_offset.to_be_bytes());
    if version >= 12 {
        out.extend_from_slice(&wanted.last_fetched_epoch.to_be_bytes());
    }
    if version >= 5 {
        // The start of the asker's log: only the source's own followers have one to tell.
        out.extend_from_slice(&(-1i64).to_be_bytes());
    }
    out.extend_from_slice(&wanted.max_bytes.to_be_bytes());
    put_no_tags(out, version);
}

/// A string.
pub fn put_text(out: &mut Vec<u8>, version: i16, text: &str) {
    if version >= 12 {
        put_varint(out, text.len() as u32 + 1);
    } else {
        out.extend_from_slice(&(text.len() as i16).to_be_bytes());
    }
    out.extend_from_slice(text.as_bytes());
}

/// How many elements an array has.
pub fn put_count(out: &mut Vec<u8>, version: i16, count: usize) {
    if version >= 12 {
        put_varint(out, count as u32 + 1);
    } else {
        out.extend_from_slice(&(count as i32).to_be_bytes());
    }
}

/// The end of a struct, where the version has tagged fields.
pub fn put_no_tags(out: &mut Vec<u8>, version: i16) {
    if version >= 12 {
        out.push(0);
    }
}
