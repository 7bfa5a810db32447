//! The requests besides Fetch: ApiVersions, Metadata, ListOffsets, OffsetForLeaderEpoch.
//!
//! Requests are read by hand, as a test peer must survive any bytes; answers are encoded by the
//! `kafka-protocol` crate, except for the two oldest versions of OffsetForLeaderEpoch, which it
//! does not know.

use crate::cluster::{State, Topic};
use crate::fault::Fault;
use crate::log::PartitionLog;
use crate::session::TopicKey;
use crate::wire::{Malformed, Reader, Response};
use bytes::BytesMut;
use kafka_protocol::ResponseError as E;
use kafka_protocol::messages::api_versions_response::ApiVersion;
use kafka_protocol::messages::list_offsets_response::{
    ListOffsetsPartitionResponse, ListOffsetsTopicResponse,
};
use kafka_protocol::messages::metadata_response::{
    MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use kafka_protocol::messages::offset_for_leader_epoch_response::{
    EpochEndOffset, OffsetForLeaderTopicResult,
};
use kafka_protocol::messages::{
    ApiKey, ApiVersionsResponse, BrokerId, ListOffsetsResponse, MetadataResponse,
    OffsetForLeaderEpochResponse, TopicName,
};
use kafka_protocol::protocol::{Encodable, StrBytes};
use std::time::Instant;
use uuid::Uuid;

/// ListOffsets: timestamps with a meaning of their own.
const LATEST: i64 = -1;
const EARLIEST: i64 = -2;
const MAX_TIMESTAMP: i64 = -3;
const EARLIEST_LOCAL: i64 = -4;

/// Which versions of which requests the source admits to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versions {
    ranges: Vec<(ApiKey, i16, i16)>,
}

impl Versions {
    /// Everything the source knows, about what Apache Kafka 4 offers.
    pub fn newest() -> Versions {
        let ranges = vec![
            (ApiKey::Fetch, 4, 18),
            (ApiKey::ListOffsets, 1, 10),
            (ApiKey::Metadata, 0, 13),
            (ApiKey::ApiVersions, 0, 4),
            (ApiKey::OffsetForLeaderEpoch, 0, 4),
        ];
        Versions { ranges }
    }

    /// What Apache Kafka 2.1 offers: no topic ids, no flexible versions.
    pub fn kafka_2_1() -> Versions {
        Versions::newest()
            .up_to(ApiKey::Fetch, 10)
            .up_to(ApiKey::ListOffsets, 4)
            .up_to(ApiKey::Metadata, 7)
            .up_to(ApiKey::ApiVersions, 2)
            .up_to(ApiKey::OffsetForLeaderEpoch, 2)
    }

    /// The same, but of this request no newer version than `max`.
    pub fn up_to(mut self, api: ApiKey, max: i16) -> Versions {
        for (key, _, highest) in &mut self.ranges {
            if *key == api {
                *highest = max.min(*highest);
            }
        }
        self.ranges.retain(|(_, min, max)| min <= max);
        self
    }

    pub(crate) fn offers(&self, api_key: i16, version: i16) -> bool {
        let offered = |(key, min, max): &(ApiKey, i16, i16)| {
            *key as i16 == api_key && (*min..=*max).contains(&version)
        };
        self.ranges.iter().any(offered)
    }
}

/// Whether a request of this key and version has compact strings and tagged fields.
pub(crate) fn is_flexible(api_key: i16, version: i16) -> bool {
    match ApiKey::try_from(api_key) {
        Ok(ApiKey::Fetch) => version >= 12,
        Ok(ApiKey::ListOffsets) => version >= 6,
        Ok(ApiKey::Metadata) => version >= 9,
        Ok(ApiKey::ApiVersions) => version >= 3,
        Ok(ApiKey::OffsetForLeaderEpoch) => version >= 4,
        _ => false,
    }
}

/// Answers ApiVersions; a version that is not offered gets error 35 in the oldest form.
pub(crate) fn api_versions(response: &mut Response, versions: &Versions, version: i16) {
    let offered = |(key, min, max): &(ApiKey, i16, i16)| {
        ApiVersion::default()
            .with_api_key(*key as i16)
            .with_min_version(*min)
            .with_max_version(*max)
    };
    let all = versions.ranges.iter();
    let (error, version, keys) = match versions.offers(ApiKey::ApiVersions as i16, version) {
        true => (0, version, all.map(offered).collect()),
        false => {
            let own = all.filter(|range| range.0 == ApiKey::ApiVersions);
            (E::UnsupportedVersion.code(), 0, own.map(offered).collect())
        }
    };
    encode(
        response,
        &ApiVersionsResponse::default().with_error_code(error).with_api_keys(keys),
        version,
    );
}

/// Answers Metadata.
pub(crate) fn metadata(
    state: &mut State,
    broker: usize,
    version: i16,
    r: &mut Reader<'_>,
    response: &mut Response,
) -> Result<(), Malformed> {
    let asked = read_metadata_topics(r, version)?;
    let now = Instant::now();
    let topics = match asked {
        None => {
            let slots: Vec<usize> = state.slot_by_name.values().copied().collect();
            slots.into_iter().filter_map(|slot| topic_metadata(state, broker, slot, now)).collect()
        }
        Some(keys) => {
            let mut topics = Vec::with_capacity(keys.len());
            for key in keys {
                let known = state.slot_of(&key, None);
                let known = known.and_then(|slot| topic_metadata(state, broker, slot, now));
                topics.push(known.unwrap_or_else(|| unknown_topic(key)));
            }
            topics
        }
    };
    let up = state.brokers.iter().enumerate().filter(|(_, broker)| broker.up);
    let brokers = up.clone().map(|(index, broker)| {
        MetadataResponseBroker::default()
            .with_node_id(BrokerId(index as i32))
            .with_host(StrBytes::from_string(broker.address.ip().to_string()))
            .with_port(i32::from(broker.address.port()))
    });
    let controller = up.clone().map(|(index, _)| index as i32).next().unwrap_or(-1);
    let answer = MetadataResponse::default()
        .with_brokers(brokers.collect())
        .with_cluster_id(Some(StrBytes::from_string(state.cluster_id.clone())))
        .with_controller_id(BrokerId(controller))
        .with_topics(topics);
    encode(response, &answer, version);
    Ok(())
}

fn read_metadata_topics(
    r: &mut Reader<'_>,
    version: i16,
) -> Result<Option<Vec<TopicKey>>, Malformed> {
    let Some(count) = r.array_length()? else { return Ok(None) };
    if version == 0 && count == 0 {
        return Ok(None);
    }
    let mut keys = Vec::new();
    for _ in 0..count {
        let id = if version >= 10 { r.uuid()? } else { Uuid::nil() };
        let name = if version >= 10 { r.nullable_string()? } else { Some(r.string()?) };
        keys.push(match name {
            Some(name) if id.is_nil() => TopicKey::Name(name.into()),
            _ => TopicKey::Id(id),
        });
        r.skip_tags()?;
    }
    Ok(Some(keys))
}

fn topic_metadata(
    state: &mut State,
    broker: usize,
    slot: usize,
    now: Instant,
) -> Option<MetadataResponseTopic> {
    let topic: &mut Topic = state.topics.get_mut(slot)?.as_mut()?;
    let name = topic.name.clone();
    let mut partitions = Vec::with_capacity(topic.partitions());
    for index in 0..topic.partitions() as i32 {
        let partition = topic.partition(index, now)?;
        let epoch_back = |fault: &Fault| matches!(fault, Fault::LeaderEpochBack(_));
        let lie = state.faults.of_partition(broker, &name, index, epoch_back);
        let back = match lie {
            Some((_, Fault::LeaderEpochBack(back))) => back,
            _ => 0,
        };
        let replicas: Vec<BrokerId> = vec![BrokerId(partition.leader as i32)];
        let up = state.brokers[partition.leader].up;
        let answer = MetadataResponsePartition::default()
            .with_partition_index(index)
            .with_leader_epoch(partition.log.leader_epoch() - back)
            .with_replica_nodes(replicas.clone());
        partitions.push(match up {
            true => answer.with_leader_id(replicas[0]).with_isr_nodes(replicas),
            false => answer
                .with_error_code(E::LeaderNotAvailable.code())
                .with_leader_id(BrokerId(-1))
                .with_offline_replicas(replicas),
        });
    }
    let internal = matches!(&*name, "__consumer_offsets" | "__transaction_state");
    let answer = MetadataResponseTopic::default()
        .with_name(Some(topic_name(&name)))
        .with_topic_id(topic.id)
        .with_is_internal(internal)
        .with_partitions(partitions);
    Some(answer)
}

fn unknown_topic(key: TopicKey) -> MetadataResponseTopic {
    let answer = MetadataResponseTopic::default();
    match key {
        TopicKey::Name(name) => answer
            .with_error_code(E::UnknownTopicOrPartition.code())
            .with_name(Some(topic_name(&name))),
        TopicKey::Id(id) => {
            answer.with_error_code(E::UnknownTopicId.code()).with_topic_id(id).with_name(None)
        }
    }
}

/// Answers ListOffsets.
pub(crate) fn list_offsets(
    state: &mut State,
    broker: usize,
    version: i16,
    r: &mut Reader<'_>,
    response: &mut Response,
) -> Result<(), Malformed> {
    r.i32()?; // Replica id.
    if version >= 2 {
        r.i8()?; // Isolation: no transaction is ever open, so both levels see the same.
    }
    let now = Instant::now();
    let mut topics = Vec::new();
    for _ in 0..r.array_length()?.ok_or(Malformed)? {
        let name = r.string()?;
        let mut partitions = Vec::new();
        for _ in 0..r.array_length()?.ok_or(Malformed)? {
            let partition = r.i32()?;
            let epoch = if version >= 4 { r.i32()? } else { -1 };
            let timestamp = r.i64()?;
            r.skip_tags()?;
            let found = match find(state, broker, name, partition, epoch, now) {
                Ok(log) => offset_for(log, timestamp, version),
                Err(error) => Err(error),
            };
            let found = found.map(|(time, offset, epoch)| {
                let lie = offset_lie(state, broker, name, partition, timestamp);
                (time, lie.unwrap_or(offset), epoch)
            });
            let told = told_index(state, broker, name, partition);
            let answer = ListOffsetsPartitionResponse::default().with_partition_index(told);
            if let Some(code) = refusal(state, broker, name, partition) {
                partitions.push(answer.with_error_code(code));
                continue;
            }
            partitions.push(match found {
                Ok((timestamp, offset, epoch)) => answer
                    .with_timestamp(timestamp)
                    .with_offset(offset)
                    .with_leader_epoch(if version >= 4 { epoch } else { -1 }),
                Err(error) => answer.with_error_code(error.code()),
            });
        }
        r.skip_tags()?;
        let answer = ListOffsetsTopicResponse::default().with_name(topic_name(name));
        topics.push(answer.with_partitions(partitions));
    }
    encode(response, &ListOffsetsResponse::default().with_topics(topics), version);
    Ok(())
}

/// Whether a fault refuses to answer a question about a partition, and how; counted.
fn refusal(state: &mut State, broker: usize, name: &str, partition: i32) -> Option<i16> {
    let suits = |fault: &Fault| matches!(fault, Fault::RefuseQuestions(_));
    match state.faults.of_partition(broker, name, partition, suits)? {
        (index, Fault::RefuseQuestions(code)) => {
            state.faults.count(&[index]);
            Some(code)
        }
        _ => None,
    }
}

/// Under which index a partition is answered for; a fault that makes it another one is counted.
fn told_index(state: &mut State, broker: usize, name: &str, partition: i32) -> i32 {
    let suits = |fault: &Fault| matches!(fault, Fault::AnswerAs(_));
    match state.faults.of_partition(broker, name, partition, suits) {
        Some((index, Fault::AnswerAs(other))) => {
            state.faults.count(&[index]);
            other
        }
        _ => partition,
    }
}

/// What a fault makes of the offset that is asked for; counted.
fn offset_lie(
    state: &mut State,
    broker: usize,
    name: &str,
    partition: i32,
    timestamp: i64,
) -> Option<i64> {
    let lie = |fault: &Fault| match (timestamp, fault) {
        (EARLIEST, Fault::Offsets { earliest, .. }) => *earliest,
        (LATEST, Fault::Offsets { latest, .. }) => *latest,
        (EARLIEST_LOCAL, Fault::LocalStart(offset)) => Some(*offset),
        (0.., Fault::OffsetForTime(offset)) => Some(*offset),
        _ => None,
    };
    let suits = |fault: &Fault| lie(fault).is_some();
    let (index, fault) = state.faults.of_partition(broker, name, partition, suits)?;
    state.faults.count(&[index]);
    lie(&fault)
}

/// Timestamp, offset and leader epoch for what ListOffsets asks; −1 where there is nothing.
fn offset_for(log: &PartitionLog, timestamp: i64, version: i16) -> Result<(i64, i64, i32), E> {
    let start = log.log_start();
    let at = |offset| log.batch_at(offset).map_or(log.leader_epoch(), |b| b.leader_epoch);
    match timestamp {
        LATEST => Ok((-1, log.high_watermark(), log.leader_epoch())),
        EARLIEST => Ok((-1, start, at(start))),
        EARLIEST_LOCAL if version >= 8 => Ok((-1, start, at(start))),
        MAX_TIMESTAMP if version < 7 => Err(E::UnsupportedVersion),
        ..MAX_TIMESTAMP => Err(E::UnsupportedVersion),
        MAX_TIMESTAMP | 0.. => {
            let batch = match timestamp {
                MAX_TIMESTAMP => log.batch_with_max_timestamp(),
                timestamp => log.batch_for_timestamp(timestamp),
            };
            // Batches are found whole: the offset is that of the first record in reach.
            let batch = batch.filter(|b| b.base_offset.max(start) < log.high_watermark());
            Ok(batch.map_or((-1, -1, -1), |b| {
                (b.max_timestamp_ms, b.base_offset.max(start), b.leader_epoch)
            }))
        }
    }
}

/// Answers OffsetForLeaderEpoch.
pub(crate) fn offset_for_leader_epoch(
    state: &mut State,
    broker: usize,
    version: i16,
    r: &mut Reader<'_>,
    response: &mut Response,
) -> Result<(), Malformed> {
    if version >= 3 {
        r.i32()?; // Replica id.
    }
    let now = Instant::now();
    let mut topics = Vec::new();
    for _ in 0..r.array_length()?.ok_or(Malformed)? {
        let name = r.string()?;
        let mut partitions = Vec::new();
        for _ in 0..r.array_length()?.ok_or(Malformed)? {
            let partition = r.i32()?;
            let current_epoch = if version >= 2 { r.i32()? } else { -1 };
            let epoch = r.i32()?;
            r.skip_tags()?;
            let told = told_index(state, broker, name, partition);
            let answer = EpochEndOffset::default().with_partition(told);
            if let Some(code) = refusal(state, broker, name, partition) {
                partitions.push(answer.with_error_code(code));
                continue;
            }
            let found = find(state, broker, name, partition, current_epoch, now)
                .map(|log| log.end_offset_for_epoch(epoch));
            partitions.push(match found {
                Ok(truth) => {
                    let of_epochs = |fault: &Fault| matches!(fault, Fault::EpochEnd { .. });
                    let lie = state.faults.of_partition(broker, name, partition, of_epochs);
                    let (epoch, end_offset) = match lie {
                        Some((index, Fault::EpochEnd { epoch, end_offset })) => {
                            state.faults.count(&[index]);
                            (epoch, end_offset)
                        }
                        _ => truth,
                    };
                    answer.with_leader_epoch(epoch).with_end_offset(end_offset)
                }
                Err(error) => answer.with_error_code(error.code()),
            });
        }
        r.skip_tags()?;
        let answer = OffsetForLeaderTopicResult::default().with_topic(topic_name(name));
        topics.push(answer.with_partitions(partitions));
    }
    if version >= 2 {
        encode(response, &OffsetForLeaderEpochResponse::default().with_topics(topics), version);
        return Ok(());
    }
    response.i32(topics.len() as i32);
    for topic in topics {
        response.string(&topic.topic);
        response.i32(topic.partitions.len() as i32);
        for answer in topic.partitions {
            response.i16(answer.error_code);
            response.i32(answer.partition);
            if version >= 1 {
                response.i32(answer.leader_epoch);
            }
            response.i64(answer.end_offset);
        }
    }
    Ok(())
}

/// A partition that this broker leads, at the epoch that the client knows, if it names one.
fn find<'a>(
    state: &'a mut State,
    broker: usize,
    name: &str,
    partition: i32,
    current_epoch: i32,
    now: Instant,
) -> Result<&'a PartitionLog, E> {
    let slot = state.slot_by_name.get(name).copied();
    let topic = slot.and_then(|slot| state.topics[slot].as_mut());
    let partition = topic.and_then(|topic| topic.partition(partition, now));
    let partition = partition.ok_or(E::UnknownTopicOrPartition)?;
    let epoch = partition.log.leader_epoch();
    match current_epoch {
        e if e > epoch => Err(E::UnknownLeaderEpoch),
        e if e >= 0 && e < epoch => Err(E::FencedLeaderEpoch),
        _ if partition.leader != broker => Err(E::NotLeaderOrFollower),
        _ => Ok(&partition.log),
    }
}

fn topic_name(name: &str) -> TopicName {
    TopicName(StrBytes::from_string(name.to_owned()))
}

fn encode(response: &mut Response, message: &impl Encodable, version: i16) {
    let mut body = BytesMut::new();
    message.encode(&mut body, version).expect("the source sets no field its version lacks");
    response.bytes(&body);
}
