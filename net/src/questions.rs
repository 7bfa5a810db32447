//! Questions a shard asks the leaders of its partitions, many partitions at a time: offsets by
//! time (ListOffsets) and ends of leader epochs (OffsetForLeaderEpoch, KIP-101, KIP-320).

use std::collections::HashMap;

use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::offset_for_leader_epoch_request::{
    OffsetForLeaderPartition, OffsetForLeaderTopic,
};
use kafka_protocol::messages::{
    BrokerId, ListOffsetsRequest, ListOffsetsResponse, OffsetForLeaderEpochRequest,
    OffsetForLeaderEpochResponse, TopicName,
};
use kafka_protocol::protocol::StrBytes;

use crate::codes::ErrorCode;
use crate::connection::Connection;
use crate::error::NetError;
use crate::fetch::EpochEnd;

/// Asks for the log start offset.
pub const EARLIEST: i64 = -2;
/// Asks for the high watermark.
pub const LATEST: i64 = -1;

/// Asks for the first offset on the source's own disk; before it is its remote tier (KIP-405).
pub const EARLIEST_LOCAL: i64 = -4;

/// Which offset is asked for.
#[derive(Clone, Copy, Debug)]
pub struct OffsetQuestion<'a> {
    /// The topic's name.
    pub topic: &'a str,
    /// The partition.
    pub partition: i32,
    /// The leader epoch we believe in; −1: unknown.
    pub leader_epoch: i32,
    /// Milliseconds since the epoch, or [`EARLIEST`], [`LATEST`] or [`EARLIEST_LOCAL`].
    pub timestamp: i64,
}

/// Which epoch's end is asked for.
#[derive(Clone, Copy, Debug)]
pub struct EpochQuestion<'a> {
    /// The topic's name.
    pub topic: &'a str,
    /// The partition.
    pub partition: i32,
    /// The leader epoch we believe in; −1: unknown.
    pub leader_epoch: i32,
    /// The epoch.
    pub epoch: i32,
}

/// A source that leaves a partition out of its answer has not answered for it.
const UNANSWERED: ErrorCode = ErrorCode(-1);
/// We are a consumer, not a replica.
const CONSUMER: BrokerId = BrokerId(-1);

impl Connection {
    /// Offsets by time, one answer for each question, in order; −1 where no record is that young.
    /// A source refuses a partition that is asked about twice in one call.
    ///
    /// # Errors
    /// As [`Connection::request`]; what concerns one partition is in its answer.
    pub async fn list_offsets(
        &mut self,
        questions: &[OffsetQuestion<'_>],
    ) -> Result<Vec<Result<i64, ErrorCode>>, NetError> {
        let response = self.request(&offsets_request(questions)).await?;
        Ok(offset_answers(questions, &response))
    }

    /// Where epochs end in the source's logs, one answer for each question, in order. The answer's
    /// epoch is the largest one the source has at or below the one asked for; −1 for both when it
    /// has none.
    ///
    /// # Errors
    /// As [`Connection::request`]; what concerns one partition is in its answer.
    pub async fn epoch_ends(
        &mut self,
        questions: &[EpochQuestion<'_>],
    ) -> Result<Vec<Result<EpochEnd, ErrorCode>>, NetError> {
        let response = self.request(&epochs_request(questions)).await?;
        Ok(epoch_answers(questions, &response))
    }
}

/// The request that asks for these offsets.
pub(crate) fn offsets_request(questions: &[OffsetQuestion<'_>]) -> ListOffsetsRequest {
    let topics = by_topic(
        questions,
        |q| q.topic,
        |q| {
            ListOffsetsPartition::default()
                .with_partition_index(q.partition)
                .with_current_leader_epoch(q.leader_epoch)
                .with_timestamp(q.timestamp)
        },
    );
    let topics = topics.into_iter().map(|(name, partitions)| {
        ListOffsetsTopic::default().with_name(topic_name(name)).with_partitions(partitions)
    });
    ListOffsetsRequest::default().with_replica_id(CONSUMER).with_topics(topics.collect())
}

/// What a response says to each question.
pub(crate) fn offset_answers(
    questions: &[OffsetQuestion<'_>],
    response: &ListOffsetsResponse,
) -> Vec<Result<i64, ErrorCode>> {
    let mut answers = HashMap::new();
    for topic in &response.topics {
        for p in &topic.partitions {
            let answer = coded(p.error_code).map(|()| p.offset);
            answers.insert((topic.name.0.as_str(), p.partition_index), answer);
        }
    }
    let answer = |q: &OffsetQuestion<'_>| answers.get(&(q.topic, q.partition)).copied();
    questions.iter().map(|q| answer(q).unwrap_or(Err(UNANSWERED))).collect()
}

fn epochs_request(questions: &[EpochQuestion<'_>]) -> OffsetForLeaderEpochRequest {
    let topics = by_topic(
        questions,
        |q| q.topic,
        |q| {
            OffsetForLeaderPartition::default()
                .with_partition(q.partition)
                .with_current_leader_epoch(q.leader_epoch)
                .with_leader_epoch(q.epoch)
        },
    );
    let topics = topics.into_iter().map(|(name, partitions)| {
        OffsetForLeaderTopic::default().with_topic(topic_name(name)).with_partitions(partitions)
    });
    OffsetForLeaderEpochRequest::default().with_replica_id(CONSUMER).with_topics(topics.collect())
}

fn epoch_answers(
    questions: &[EpochQuestion<'_>],
    response: &OffsetForLeaderEpochResponse,
) -> Vec<Result<EpochEnd, ErrorCode>> {
    let mut answers = HashMap::new();
    for topic in &response.topics {
        for p in &topic.partitions {
            let end = EpochEnd { epoch: p.leader_epoch, end_offset: p.end_offset };
            let answer = coded(p.error_code).map(|()| end);
            answers.insert((topic.topic.0.as_str(), p.partition), answer);
        }
    }
    let answer = |q: &EpochQuestion<'_>| answers.get(&(q.topic, q.partition)).copied();
    questions.iter().map(|q| answer(q).unwrap_or(Err(UNANSWERED))).collect()
}

/// Groups questions by topic, as the requests want them.
fn by_topic<'a, Q, P>(
    questions: &'a [Q],
    topic: impl Fn(&'a Q) -> &'a str,
    partition: impl Fn(&'a Q) -> P,
) -> Vec<(&'a str, Vec<P>)> {
    let mut topics: Vec<(&str, Vec<P>)> = Vec::new();
    let mut places: HashMap<&str, usize> = HashMap::new();
    for question in questions {
        let name = topic(question);
        let place = *places.entry(name).or_insert_with(|| {
            topics.push((name, Vec::new()));
            topics.len() - 1
        });
        topics[place].1.push(partition(question));
    }
    topics
}

fn coded(code: i16) -> Result<(), ErrorCode> {
    match ErrorCode(code) {
        ErrorCode::NONE => Ok(()),
        other => Err(other),
    }
}

fn topic_name(name: &str) -> TopicName {
    TopicName(StrBytes::from_string(name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::messages::encode_request;
    use crate::versions::Api;
    use kafka_protocol::messages::list_offsets_response::{
        ListOffsetsPartitionResponse, ListOffsetsTopicResponse,
    };

    const ASKED: [OffsetQuestion<'static>; 3] = [
        OffsetQuestion { topic: "b", partition: 1, leader_epoch: 4, timestamp: LATEST },
        OffsetQuestion { topic: "a", partition: 1, leader_epoch: 4, timestamp: EARLIEST },
        OffsetQuestion { topic: "b", partition: 0, leader_epoch: -1, timestamp: 77 },
    ];

    #[test]
    fn every_version_can_ask() {
        let epochs = [EpochQuestion { topic: "a", partition: 0, leader_epoch: 3, epoch: 2 }];
        let mut out = Vec::new();
        for version in Api::ListOffsets.spoken() {
            encode_request(&mut out, &offsets_request(&ASKED), version, 1, "c").expect("encodes");
        }
        for version in Api::OffsetForLeaderEpoch.spoken() {
            encode_request(&mut out, &epochs_request(&epochs), version, 1, "c").expect("encodes");
        }
    }

    #[test]
    fn answers_stand_in_the_order_of_the_questions() {
        let request = offsets_request(&ASKED);
        let shape = request.topics.iter().map(|t| (t.name.0.as_str(), t.partitions.len()));
        assert_eq!(shape.collect::<Vec<_>>(), [("b", 2), ("a", 1)]);
        let row = |partition, offset, code| {
            ListOffsetsPartitionResponse::default()
                .with_partition_index(partition)
                .with_offset(offset)
                .with_error_code(code)
        };
        let topic = ListOffsetsTopicResponse::default()
            .with_name(topic_name("b"))
            .with_partitions(vec![row(0, 5, 0), row(1, -1, 6), row(9, 1, 0)]);
        let response = ListOffsetsResponse::default().with_topics(vec![topic]);
        let answers = offset_answers(&ASKED, &response);
        assert_eq!(answers, [Err(ErrorCode(6)), Err(UNANSWERED), Ok(5)]);
    }
}
