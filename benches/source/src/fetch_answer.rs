//! What a Fetch answer says, and how it is written.
//!
//! An [`Answer`] is what was found out about one partition: errors, offsets, and which bytes of
//! its log are to be sent. Writing it turns those bytes into pieces of shared memory.

use crate::cluster::State;
use crate::fault::{Fault, false_records};
use crate::log::BatchAt;
use crate::session::{TopicKey, Wanted};
use crate::wire::Response;
use kafka_protocol::ResponseError as E;
use std::time::Instant;

/// What is found out about one partition.
#[derive(Debug)]
pub(crate) struct Answer<'a> {
    pub wanted: &'a Wanted,
    /// Where its topic is.
    pub slot: Option<usize>,
    pub error: i16,
    pub high_watermark: i64,
    pub log_start: i64,
    /// Epoch and end offset of the last epoch that both sides have.
    pub diverging: Option<(i32, i64)>,
    /// (leader, epoch), where the error says that it changed.
    pub current_leader: Option<(usize, i32)>,
    pub first: Option<BatchAt>,
    pub bytes: usize,
    lie: Lie,
}

/// What a fault makes of an answer.
#[derive(Debug, Default)]
struct Lie {
    records: Option<Vec<u8>>,
    records_length: Option<i32>,
    partition: Option<i32>,
}

impl<'a> Answer<'a> {
    /// Nothing is known yet.
    pub fn new(wanted: &'a Wanted, slot: Option<usize>) -> Answer<'a> {
        Answer {
            wanted,
            slot,
            error: 0,
            high_watermark: -1,
            log_start: -1,
            diverging: None,
            current_leader: None,
            first: None,
            bytes: 0,
            lie: Lie::default(),
        }
    }

    pub fn failed(mut self, error: E) -> Answer<'a> {
        self.error = error.code();
        self
    }

    /// Whether an incremental session is to be told.
    pub fn is_news(&self) -> bool {
        self.error != 0
            || self.bytes > 0
            || self.diverging.is_some()
            || self.high_watermark != self.wanted.told_high_watermark
            || self.log_start != self.wanted.told_log_start
    }

    /// What the session remembers. An error leaves −1, so that the partition is told anew once
    /// the error is gone.
    pub fn told(&self) -> Wanted {
        Wanted {
            slot: self.slot,
            told_high_watermark: self.high_watermark,
            told_log_start: self.log_start,
            ..self.wanted.clone()
        }
    }
}

/// Lets each answer suffer at most one fault.
pub(crate) fn apply_faults(state: &mut State, broker: usize, answers: &mut [Answer<'_>]) {
    for answer in answers {
        let partition = answer.wanted.partition;
        let Some(topic) = answer.slot.and_then(|slot| state.topics[slot].as_mut()) else {
            continue;
        };
        let suits = |fault: &Fault| match fault.is_of_records() {
            true => answer.first.is_some(),
            false => fault.is_of_fetch(),
        };
        let found = state.faults.of_partition(broker, &topic.name, partition, suits);
        let Some((index, fault)) = found else { continue };
        match fault {
            Fault::HighWatermark(at) => answer.high_watermark = at,
            Fault::LogStart(at) => answer.log_start = at,
            Fault::Diverging { epoch, end_offset } => {
                answer.diverging = Some((epoch, end_offset));
                (answer.first, answer.bytes) = (None, 0);
            }
            Fault::Empty => (answer.first, answer.bytes) = (None, 0),
            Fault::WrongPartition(partition) => answer.lie.partition = Some(partition),
            Fault::ErrorCode(code) => {
                answer.error = code;
                (answer.first, answer.bytes) = (None, 0);
                (answer.high_watermark, answer.log_start) = (-1, -1);
            }
            _ => {
                let other = match fault {
                    Fault::OtherPartition { partition, .. } => {
                        topic.partition(partition, Instant::now()).map(|other| other.log.clone())
                    }
                    _ => None,
                };
                let (Some(first), Some(log)) = (answer.first, topic.log(partition)) else {
                    continue;
                };
                let records = false_records(&fault, log, other.as_ref(), &first, answer.bytes);
                let Some(records) = records else { continue };
                answer.lie.records = Some(records);
                if let Fault::RecordsLength(length) = fault {
                    answer.lie.records_length = Some(length);
                }
            }
        }
        state.faults.count(&[index]);
    }
}

/// Writes an answer that holds nothing but an error of the session.
pub(crate) fn write_error(response: &mut Response, version: i16, error: i16, session_id: i32) {
    response.no_tags(); // Of the response header.
    response.i32(0);
    if version >= 7 {
        response.i16(error);
        response.i32(session_id);
    }
    response.length(0);
    response.no_tags();
}

/// Writes everything behind the correlation id.
pub(crate) fn write(
    response: &mut Response,
    version: i16,
    state: &State,
    answers: &[Answer<'_>],
    session_id: i32,
    read_committed: bool,
) {
    response.no_tags(); // Of the response header.
    response.i32(0); // Throttle time.
    if version >= 7 {
        response.i16(0);
        response.i32(session_id);
    }
    let same_topic = |a: &Answer<'_>, b: &Answer<'_>| a.wanted.topic == b.wanted.topic;
    let topics = answers.chunk_by(same_topic).count();
    response.length(topics as i32);
    for answers in answers.chunk_by(same_topic) {
        match &answers[0].wanted.topic {
            TopicKey::Name(name) => response.string(name),
            TopicKey::Id(id) => response.bytes(id.as_bytes()),
        }
        response.length(answers.len() as i32);
        for answer in answers {
            write_partition(response, version, state, answer, read_committed);
        }
        response.no_tags();
    }
    write_end_points(response, version, state, answers);
}

fn write_partition(
    response: &mut Response,
    version: i16,
    state: &State,
    answer: &Answer<'_>,
    read_committed: bool,
) {
    response.i32(answer.lie.partition.unwrap_or(answer.wanted.partition));
    response.i16(answer.error);
    response.i64(answer.high_watermark);
    // No transaction is ever open, so the last stable offset is the high watermark.
    response.i64(answer.high_watermark);
    if version >= 5 {
        response.i64(answer.log_start);
    }
    response.length(if read_committed { 0 } else { -1 }); // Aborted transactions.
    if version >= 11 {
        response.i32(-1); // Preferred read replica.
    }
    write_records(response, state, answer);
    if version >= 12 {
        let leader = answer.current_leader.filter(|_| version >= 16);
        let tags = u32::from(answer.diverging.is_some()) + u32::from(leader.is_some());
        response.unsigned_varint(tags);
        if let Some((epoch, end_offset)) = answer.diverging {
            response.unsigned_varint(0);
            response.unsigned_varint(4 + 8 + 1);
            response.i32(epoch);
            response.i64(end_offset);
            response.no_tags();
        }
        if let Some((leader, epoch)) = leader {
            response.unsigned_varint(1);
            response.unsigned_varint(4 + 4 + 1);
            response.i32(leader as i32);
            response.i32(epoch);
            response.no_tags();
        }
    }
}

fn write_records(response: &mut Response, state: &State, answer: &Answer<'_>) {
    if let Some(records) = &answer.lie.records {
        response.length(answer.lie.records_length.unwrap_or(records.len() as i32));
        response.bytes(records);
        return;
    }
    response.length(answer.bytes as i32);
    let (Some(first), Some(slot)) = (answer.first, answer.slot) else { return };
    let topic = state.topics[slot].as_ref().expect("the lock was held since the topic was read");
    let log = topic.log(answer.wanted.partition).expect("the partition was read just now");
    let mut left = answer.bytes;
    let mut next = Some(first);
    while let Some(batch) = next.filter(|_| left > 0) {
        log.emit(&batch, left, response);
        left -= batch.bytes.min(left);
        next = log.batch_after(&batch);
    }
    debug_assert_eq!(left, 0, "as many bytes as were promised");
}

/// Where the new leaders are (KIP-951).
fn write_end_points(response: &mut Response, version: i16, state: &State, answers: &[Answer<'_>]) {
    if version < 12 {
        return;
    }
    let mut leaders: Vec<usize> =
        answers.iter().filter_map(|a| a.current_leader.map(|(leader, _)| leader)).collect();
    leaders.sort_unstable();
    leaders.dedup();
    if version < 16 || leaders.is_empty() {
        response.no_tags();
        return;
    }
    let mut points = Response::default();
    points.flexible = true;
    points.length(leaders.len() as i32);
    for leader in leaders {
        let address = state.brokers[leader].address;
        points.i32(leader as i32);
        points.string(&address.ip().to_string());
        points.i32(i32::from(address.port()));
        points.unsigned_varint(0); // Rack: null.
        points.no_tags();
    }
    response.unsigned_varint(1);
    response.unsigned_varint(0);
    response.unsigned_varint(points.len() as u32);
    response.bytes(points.as_own());
}
