//! Answers of a source, encoded by `kafka-protocol`.

use bytes::Bytes;
use kafka_protocol::messages::api_versions_response::{ApiVersion, SupportedFeatureKey};
use kafka_protocol::messages::fetch_response::{
    AbortedTransaction, EpochEndOffset, FetchableTopicResponse, LeaderIdAndEpoch, PartitionData,
};
use kafka_protocol::messages::list_offsets_response::{
    ListOffsetsPartitionResponse, ListOffsetsTopicResponse,
};
use kafka_protocol::messages::metadata_response::{
    MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use kafka_protocol::messages::offset_for_leader_epoch_response::{
    EpochEndOffset as EpochEnd, OffsetForLeaderTopicResult,
};
use kafka_protocol::messages::{
    ApiVersionsResponse, BrokerId, FetchResponse, ListOffsetsResponse, MetadataResponse,
    OffsetForLeaderEpochResponse, TopicName,
};
use kafka_protocol::protocol::{Encodable, HeaderVersion, StrBytes};
use uuid::Uuid;

use ::net::Api;

fn text(text: &'static str) -> StrBytes {
    StrBytes::from_static_str(text)
}

/// One seed for each version we speak: version, flags, body.
fn every_version(api: Api, message: impl Fn(i16) -> Vec<u8>) -> Vec<Vec<u8>> {
    let spoken = api.spoken();
    let first = *spoken.start();
    spoken.map(|version| [&[(version - first) as u8, 0][..], &message(version)].concat()).collect()
}

fn encoded(message: &impl Encodable, version: i16) -> Vec<u8> {
    let mut out = Vec::new();
    message.encode(&mut out, version).expect("encodes");
    out
}

pub fn fetch_responses() -> Vec<Vec<u8>> {
    let spoken = Api::Fetch.spoken();
    let first = *spoken.start();
    let mut seeds = Vec::new();
    for version in spoken {
        let mut frame = vec![0; 8];
        frame.extend((FetchResponse::header_version(version) >= 1).then_some(0));
        frame.extend(encoded(&fetch_response(version), version));
        let seed = [&[(version - first) as u8, 0, 1, version as u8][..], &frame].concat();
        seeds.push(seed);
    }
    seeds
}

fn fetch_response(version: i16) -> FetchResponse {
    let mut faulty = PartitionData::default().with_partition_index(3).with_error_code(6);
    if version >= 12 {
        let leader = LeaderIdAndEpoch::default().with_leader_id(BrokerId(2)).with_leader_epoch(8);
        let end = EpochEndOffset::default().with_epoch(4).with_end_offset(90);
        faulty = faulty.with_current_leader(leader).with_diverging_epoch(end);
    }
    let aborted = AbortedTransaction::default().with_first_offset(10);
    let full = PartitionData::default()
        .with_partition_index(1)
        .with_high_watermark(100)
        .with_last_stable_offset(99)
        .with_aborted_transactions(Some(vec![aborted]))
        .with_records(Some(Bytes::from_static(&[9; 40])));
    let topic = FetchableTopicResponse::default().with_partitions(vec![full, faulty]);
    let topic = if version >= 13 {
        topic.with_topic_id(Uuid::from_u128(77))
    } else {
        topic.with_topic(TopicName(text("orders")))
    };
    FetchResponse::default().with_throttle_time_ms(5).with_responses(vec![topic])
}

pub fn api_versions() -> Vec<Vec<u8>> {
    let rows = [(1, 4, 18), (2, 1, 11), (3, 0, 13), (18, 0, 4), (23, 2, 4)];
    let rows = rows.map(|(key, low, high)| {
        ApiVersion::default().with_api_key(key).with_min_version(low).with_max_version(high)
    });
    every_version(Api::ApiVersions, |version| {
        let mut answer = ApiVersionsResponse::default().with_api_keys(rows.to_vec());
        if version >= 3 {
            let feature =
                SupportedFeatureKey::default().with_name(text("kraft.version")).with_max_version(1);
            answer = answer.with_supported_features(vec![feature]);
        }
        encoded(&answer, version)
    })
}

pub fn metadata() -> Vec<Vec<u8>> {
    every_version(Api::Metadata, |version| {
        let broker = MetadataResponseBroker::default()
            .with_node_id(BrokerId(2))
            .with_host(text("kafka-2"))
            .with_port(9092)
            .with_rack(Some(text("a")));
        let partition = MetadataResponsePartition::default()
            .with_partition_index(1)
            .with_leader_id(BrokerId(2))
            .with_replica_nodes(vec![BrokerId(2), BrokerId(3)])
            .with_isr_nodes(vec![BrokerId(2)]);
        let topic = MetadataResponseTopic::default()
            .with_name(Some(TopicName(text("orders"))))
            .with_partitions(vec![partition]);
        let answer = MetadataResponse::default()
            .with_cluster_id(Some(text("cluster")))
            .with_controller_id(BrokerId(2))
            .with_brokers(vec![broker])
            .with_topics(vec![topic]);
        encoded(&answer, version)
    })
}

pub fn list_offsets() -> Vec<Vec<u8>> {
    every_version(Api::ListOffsets, |version| {
        let partition =
            ListOffsetsPartitionResponse::default().with_partition_index(1).with_offset(5);
        let topic = ListOffsetsTopicResponse::default()
            .with_name(TopicName(text("orders")))
            .with_partitions(vec![partition]);
        encoded(&ListOffsetsResponse::default().with_topics(vec![topic]), version)
    })
}

pub fn epoch_ends() -> Vec<Vec<u8>> {
    every_version(Api::OffsetForLeaderEpoch, |version| {
        let end = EpochEnd::default().with_partition(1).with_leader_epoch(4).with_end_offset(90);
        let topic = OffsetForLeaderTopicResult::default()
            .with_topic(TopicName(text("orders")))
            .with_partitions(vec![end]);
        encoded(&OffsetForLeaderEpochResponse::default().with_topics(vec![topic]), version)
    })
}

/// Flags, a length, a head with one tagged field, a body.
pub fn frames() -> Vec<Vec<u8>> {
    vec![
        vec![0, 0, 0, 0, 9, 0, 0, 0, 7, 1, 2, 3],
        vec![3, 0, 0, 0, 9, 0, 0, 0, 7, 1, 5, 2, 1, 1, 3],
        vec![1, 0, 0, 0, 4, 0xff, 0xff, 0xff, 0xff, 0x0f],
    ]
}
