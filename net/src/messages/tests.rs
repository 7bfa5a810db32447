//! The layouts against the oracle: whatever `kafka-protocol` encodes passes the guard, and what
//! passes the guard never makes its decoder fail on a length.

use super::*;
use crate::guard::GuardError;
use kafka_protocol::messages::api_versions_response::{ApiVersion, SupportedFeatureKey};
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
    ApiVersionsResponse, ListOffsetsResponse, MetadataResponse, OffsetForLeaderEpochResponse,
};
use kafka_protocol::protocol::{Encodable, StrBytes};
use proptest::prelude::*;
use std::collections::BTreeMap;

fn text() -> impl Strategy<Value = StrBytes> {
    "[a-z.]{0,20}".prop_map(StrBytes::from_string)
}

/// Tagged fields that no version knows.
fn tags(version: i16, flexible: i16) -> BoxedStrategy<BTreeMap<i32, Bytes>> {
    if version < flexible {
        return Just(BTreeMap::new()).boxed();
    }
    let body = prop::collection::vec(any::<u8>(), 0..200).prop_map(Bytes::from);
    prop::collection::btree_map(100i32..40_000, body, 0..3).boxed()
}

fn api_versions(version: i16) -> impl Strategy<Value = ApiVersionsResponse> {
    let row = (any::<[i16; 3]>(), tags(version, 3)).prop_map(|([key, low, high], tags)| {
        ApiVersion::default()
            .with_api_key(key)
            .with_min_version(low)
            .with_max_version(high)
            .with_unknown_tagged_fields(tags)
    });
    let feature = text().prop_map(|name| SupportedFeatureKey::default().with_name(name));
    let rows = prop::collection::vec(row, 0..5);
    (rows, prop::collection::vec(feature, 0..3), tags(version, 3)).prop_map(
        move |(rows, features, tags)| {
            let response = ApiVersionsResponse::default().with_api_keys(rows);
            if version < 3 {
                return response;
            }
            response
                .with_supported_features(features)
                .with_finalized_features_epoch(7)
                .with_zk_migration_ready(true)
                .with_unknown_tagged_fields(tags)
        },
    )
}

fn metadata(version: i16) -> impl Strategy<Value = MetadataResponse> {
    let broker = (any::<i32>(), text(), any::<bool>()).prop_map(|(id, host, rack)| {
        let rack = rack.then(|| StrBytes::from_static_str("r"));
        MetadataResponseBroker::default().with_node_id(id.into()).with_host(host).with_rack(rack)
    });
    let replicas = || prop::collection::vec(any::<i32>().prop_map(Into::into), 0..4);
    let partition = (any::<i32>(), replicas(), replicas(), tags(version, 9)).prop_map(
        |(id, all, isr, tags)| {
            MetadataResponsePartition::default()
                .with_partition_index(id)
                .with_replica_nodes(all)
                .with_isr_nodes(isr)
                .with_unknown_tagged_fields(tags)
        },
    );
    let topic = (text(), prop::collection::vec(partition, 0..4), tags(version, 9)).prop_map(
        |(name, partitions, tags)| {
            MetadataResponseTopic::default()
                .with_name(Some(name.into()))
                .with_partitions(partitions)
                .with_unknown_tagged_fields(tags)
        },
    );
    let lists = (prop::collection::vec(broker, 0..4), prop::collection::vec(topic, 0..4));
    (lists, prop::option::of(text()), tags(version, 9)).prop_map(
        |((brokers, topics), cluster, tags)| {
            MetadataResponse::default()
                .with_brokers(brokers)
                .with_topics(topics)
                .with_cluster_id(cluster)
                .with_unknown_tagged_fields(tags)
        },
    )
}

fn list_offsets(version: i16) -> impl Strategy<Value = ListOffsetsResponse> {
    let partition = (any::<i32>(), any::<i64>(), tags(version, 6)).prop_map(|(id, at, tags)| {
        ListOffsetsPartitionResponse::default()
            .with_partition_index(id)
            .with_offset(at)
            .with_unknown_tagged_fields(tags)
    });
    let topic = (text(), prop::collection::vec(partition, 0..4)).prop_map(|(name, partitions)| {
        ListOffsetsTopicResponse::default().with_name(name.into()).with_partitions(partitions)
    });
    prop::collection::vec(topic, 0..4)
        .prop_map(|topics| ListOffsetsResponse::default().with_topics(topics))
}

fn epoch_ends(version: i16) -> impl Strategy<Value = OffsetForLeaderEpochResponse> {
    let partition = (any::<i32>(), any::<i64>(), tags(version, 4)).prop_map(|(id, at, tags)| {
        EpochEndOffset::default()
            .with_partition(id)
            .with_end_offset(at)
            .with_unknown_tagged_fields(tags)
    });
    let topic = (text(), prop::collection::vec(partition, 0..4)).prop_map(|(name, partitions)| {
        OffsetForLeaderTopicResult::default().with_topic(name.into()).with_partitions(partitions)
    });
    prop::collection::vec(topic, 0..4)
        .prop_map(|topics| OffsetForLeaderEpochResponse::default().with_topics(topics))
}

/// Encodes, decodes through the guard, and compares; then damages the bytes: whatever happens must
/// be an error or a message, and cut short it must be an error.
fn holds<R: ControlRequest>(
    response: &R::Response,
    version: i16,
    damage: &[(usize, u8)],
) -> Result<(), TestCaseError>
where
    R::Response: std::fmt::Debug + PartialEq,
{
    let mut out = Vec::new();
    response.encode(&mut out, version).unwrap();
    let decoded = decode_body::<R>(Bytes::from(out.clone()), version).unwrap();
    prop_assert_eq!(&decoded, response);
    for cut in 0..out.len() {
        prop_assert!(decode_body::<R>(Bytes::from(out[..cut].to_vec()), version).is_err());
    }
    out.push(0);
    prop_assert!(decode_body::<R>(Bytes::from(out.clone()), version).is_err());
    for (at, value) in damage {
        let at = at % out.len();
        out[at] = *value;
        let _ = decode_body::<R>(Bytes::from(out.clone()), version);
    }
    Ok(())
}

fn damage() -> impl Strategy<Value = Vec<(usize, u8)>> {
    let byte = prop_oneof![Just(0xff), Just(0x7f), Just(0x80), any::<u8>()];
    prop::collection::vec((any::<usize>(), byte), 0..20)
}

fn versioned<S: Strategy>(
    versions: std::ops::RangeInclusive<i16>,
    make: impl Fn(i16) -> S,
) -> impl Strategy<Value = (i16, S::Value)> {
    versions.prop_flat_map(move |version| (Just(version), make(version)))
}

proptest! {
    #[test]
    fn api_versions_hold(
        (version, response) in versioned(0..=3, api_versions), damage in damage(),
    ) {
        holds::<ApiVersionsRequest>(&response, version, &damage)?;
    }

    #[test]
    fn metadata_holds((version, response) in versioned(4..=13, metadata), damage in damage()) {
        holds::<MetadataRequest>(&response, version, &damage)?;
    }

    #[test]
    fn list_offsets_hold(
        (version, response) in versioned(1..=10, list_offsets), damage in damage(),
    ) {
        holds::<ListOffsetsRequest>(&response, version, &damage)?;
    }

    #[test]
    fn epoch_ends_hold((version, response) in versioned(2..=4, epoch_ends), damage in damage()) {
        holds::<OffsetForLeaderEpochRequest>(&response, version, &damage)?;
    }

    #[test]
    fn noise_is_refused_or_decoded(
        bytes in prop::collection::vec(any::<u8>(), 0..400), version in 0i16..14,
    ) {
        let bytes = Bytes::from(bytes);
        let _ = decode_body::<ApiVersionsRequest>(bytes.clone(), version.min(3));
        let _ = decode_body::<MetadataRequest>(bytes.clone(), version.max(4));
        let _ = decode_body::<ListOffsetsRequest>(bytes.clone(), version.clamp(1, 10));
        let _ = decode_body::<OffsetForLeaderEpochRequest>(bytes, version.clamp(2, 4));
    }
}

/// Eight bytes that make the bare decoder reserve gigabytes.
#[test]
fn eight_hostile_bytes_are_refused_before_any_decoder_sees_them() {
    let claim: &[u8] = &[0, 0, 0x7f, 0xff, 0xff, 0xff, 0, 0];
    assert!(matches!(
        guard::check(ApiVersionsRequest::ANSWER, 0, claim),
        Err(GuardError::PastEnd { bytes: 0x7fff_ffff, left: 2 })
    ));
    let compact: &[u8] = &[0, 0, 0xff, 0xff, 0xff, 0xff, 0x0f, 0];
    assert!(matches!(
        guard::check(ApiVersionsRequest::ANSWER, 3, compact),
        Err(GuardError::PastEnd { bytes: 0xffff_fffe, left: 1 })
    ));
    for version in Api::Metadata.spoken() {
        let hostile = [0, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff];
        assert!(guard::check(MetadataRequest::ANSWER, version, &hostile).is_err());
        let hostile = [0, 0, 0, 0, 0xff, 0xff, 0xff, 0x0f];
        assert!(guard::check(MetadataRequest::ANSWER, version, &hostile).is_err());
    }
}

#[test]
fn countless_tagged_fields_are_refused() {
    let mut body = vec![0, 0, 1, 0, 0, 0, 0];
    frame::put_varint(&mut body, 5_000);
    for tag in 0..5_000 {
        frame::put_varint(&mut body, 1_000 + tag);
        body.push(0);
    }
    let refused = guard::check(ApiVersionsRequest::ANSWER, 3, &body);
    assert_eq!(refused, Err(GuardError::TooManyTags));
}

#[test]
fn known_tagged_fields_have_the_size_of_their_content_and_come_once() {
    let epoch = [1, 8, 0, 0, 0, 0, 0, 0, 0, 9];
    let message = |tags: &[u8]| {
        let mut body = vec![0, 0, 1, 0, 0, 0, 0];
        body.extend_from_slice(tags);
        guard::check(ApiVersionsRequest::ANSWER, 3, &body)
    };
    let once: Vec<u8> = [&[1], &epoch[..]].concat();
    assert_eq!(message(&once), Ok(()));
    let twice: Vec<u8> = [&[2], &epoch[..], &epoch[..]].concat();
    assert_eq!(message(&twice), Err(GuardError::BadTag(1)));
    let longer: Vec<u8> = [&[1, 1, 9], &epoch[2..], &[0]].concat();
    assert_eq!(message(&longer), Err(GuardError::BadTag(1)));
}
