//! ApiVersions, Metadata, ListOffsets and OffsetForLeaderEpoch in every version, and what the
//! hand on the source does to their answers.

use super::client::{Client, ask, fetch_one, topic_name};
use crate::{Config, Handle, Timestamps, TopicSpec, Versions, serve};
use bytes::Buf;
use kafka_protocol::ResponseError as E;
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::offset_for_leader_epoch_request::{
    OffsetForLeaderPartition, OffsetForLeaderTopic,
};
use kafka_protocol::messages::{
    ApiKey, ApiVersionsRequest, BrokerId, ListOffsetsRequest, MetadataRequest, MetadataResponse,
    OffsetForLeaderEpochRequest,
};
use kafka_protocol::protocol::StrBytes;
use std::io::Read;

fn spec() -> TopicSpec {
    let mut spec = TopicSpec::new("orders", 4, 100).with_batches(11, 2000, 10);
    spec.timestamps = Timestamps { base_ms: 5_000, step_us: 2_000_000 };
    spec
}

fn start(brokers: usize) -> (Handle, Client) {
    let source = serve(Config::loopback(brokers).with_topic(spec())).unwrap();
    let client = Client::connect(source.addresses()[0]);
    (source, client)
}

#[test]
fn api_versions_are_told_in_every_version() {
    let (_source, mut client) = start(1);
    for version in 0..=4 {
        let mut request = ApiVersionsRequest::default();
        if version >= 3 {
            request = request
                .with_client_software_name(StrBytes::from_static_str("test"))
                .with_client_software_version(StrBytes::from_static_str("1"));
        }
        let response = client.ask(&request, version);
        let fetch = response.api_keys.iter().find(|api| api.api_key == 1).unwrap();
        assert_eq!((fetch.min_version, fetch.max_version), (4, 18));
        assert_eq!((response.error_code, response.api_keys.len()), (0, 5));
    }
    // Version 99: error 35, in version 0, with ApiVersions' own range and nothing else.
    client.send_frame(&[0, 18, 0, 99, 0, 0, 0, 5, 0xff, 0xff]);
    let frame = client.frame().unwrap();
    assert_eq!(frame[..], [0, 0, 0, 5, 0, 35, 0, 0, 0, 1, 0, 18, 0, 0, 0, 4]);
}

#[test]
fn metadata_is_told_in_every_version() {
    let (source, mut client) = start(3);
    let id = source.cluster().topic_id("orders").unwrap();
    source.cluster().bump_leader_epoch("orders", 2).unwrap();
    for version in 0..=13 {
        // All topics: null, and in version 0, which has no null, none.
        let topics = if version == 0 { Some(vec![]) } else { None };
        let all = MetadataRequest::default().with_topics(topics);
        let response: MetadataResponse = client.ask(&all, version);
        assert_eq!(response.brokers.len(), 3);
        for (broker, address) in response.brokers.iter().zip(source.addresses()) {
            assert_eq!((&*broker.host, broker.port), ("127.0.0.1", i32::from(address.port())));
        }
        assert_eq!(response.cluster_id.is_some(), version >= 2);
        let topic = &response.topics[0];
        assert_eq!((response.topics.len(), topic.error_code), (1, 0));
        assert_eq!(topic.topic_id, if version >= 10 { id } else { uuid::Uuid::nil() });
        let leaders: Vec<i32> = topic.partitions.iter().map(|p| p.leader_id.0).collect();
        assert_eq!(leaders, [0, 1, 2, 0]);
        assert_eq!(topic.partitions[2].leader_epoch, if version >= 7 { 1 } else { -1 });

        let absent = MetadataRequestTopic::default().with_name(Some(topic_name("absent")));
        let some = MetadataRequest::default().with_topics(Some(vec![absent]));
        let response: MetadataResponse = client.ask(&some, version);
        assert_eq!(response.topics.len(), 1);
        assert_eq!(response.topics[0].error_code, E::UnknownTopicOrPartition.code());
        assert_eq!(response.topics[0].name, Some(topic_name("absent")));
        if version >= 1 {
            let none = MetadataRequest::default().with_topics(Some(vec![]));
            assert_eq!(client.ask(&none, version).topics, []);
        }
    }
    for version in 12..=13 {
        let by_id = |id| {
            let topic = MetadataRequestTopic::default().with_name(None).with_topic_id(id);
            MetadataRequest::default().with_topics(Some(vec![topic]))
        };
        let known = &client.ask(&by_id(id), version).topics[0];
        assert_eq!(known.name, Some(topic_name("orders")));
        let other = TopicSpec::topic_id("orders", 1);
        let unknown = &client.ask(&by_id(other), version).topics[0];
        assert_eq!((unknown.error_code, unknown.topic_id), (E::UnknownTopicId.code(), other));
    }
}

fn list_offset(client: &mut Client, version: i16, timestamp: i64) -> (i16, i64, i64, i32) {
    let mut partition = ListOffsetsPartition::default().with_timestamp(timestamp);
    if version >= 4 {
        partition = partition.with_current_leader_epoch(1);
    }
    let topic = ListOffsetsTopic::default()
        .with_name(topic_name("orders"))
        .with_partitions(vec![partition]);
    let request =
        ListOffsetsRequest::default().with_replica_id(BrokerId(-1)).with_topics(vec![topic]);
    let answer = client.ask(&request, version).topics[0].partitions[0].clone();
    (answer.error_code, answer.timestamp, answer.offset, answer.leader_epoch)
}

#[test]
fn offsets_are_listed_in_every_version() {
    let (source, mut client) = start(1);
    let cluster = source.cluster();
    cluster.delete_records("orders", 0, 35).unwrap();
    cluster.bump_leader_epoch("orders", 0).unwrap();
    cluster.append("orders", 0, 10).unwrap();
    for version in 1..=10 {
        let epoch = |epoch| if version >= 4 { epoch } else { -1 };
        assert_eq!(list_offset(&mut client, version, -2), (0, -1, 35, epoch(0)));
        assert_eq!(list_offset(&mut client, version, -1), (0, -1, 1100, epoch(1)));
        // Batch n of partition 0 is of 5 s + n × 2 s.
        assert_eq!(list_offset(&mut client, version, 0), (0, 11_000, 35, epoch(0)));
        assert_eq!(list_offset(&mut client, version, 11_001), (0, 13_000, 40, epoch(0)));
        assert_eq!(list_offset(&mut client, version, 13_000), (0, 13_000, 40, epoch(0)));
        assert_eq!(list_offset(&mut client, version, 223_000), (0, 223_000, 1090, epoch(1)));
        assert_eq!(list_offset(&mut client, version, 223_001), (0, -1, -1, -1));
        let unsupported = (E::UnsupportedVersion.code(), -1, -1, -1);
        let max = if version >= 7 { (0, 223_000, 1090, 1) } else { unsupported };
        assert_eq!(list_offset(&mut client, version, -3), max);
        assert_eq!(list_offset(&mut client, version, -99), unsupported);
    }
}

#[test]
fn ends_of_epochs_are_told_in_every_version() {
    let mut topic = spec();
    topic.leader_epoch = 3;
    let source = serve(Config::loopback(1).with_topic(topic)).unwrap();
    let cluster = source.cluster();
    let mut client = Client::connect(source.addresses()[0]);
    cluster.bump_leader_epoch("orders", 0).unwrap();
    assert_eq!(cluster.bump_leader_epoch("orders", 0), Ok(5));
    cluster.append("orders", 0, 1).unwrap();
    assert_eq!(cluster.bump_leader_epoch("orders", 0), Ok(6));
    let expected = [
        (-1, (-1, -1)),
        (2, (2, 0)),
        (3, (3, 1000)),
        (4, (3, 1000)),
        (5, (5, 1010)),
        (6, (6, 1010)),
        (7, (-1, -1)),
    ];
    for (epoch, end) in expected {
        for version in 2..=4 {
            let partition = OffsetForLeaderPartition::default().with_leader_epoch(epoch);
            let topic = OffsetForLeaderTopic::default()
                .with_topic(topic_name("orders"))
                .with_partitions(vec![partition]);
            let request = OffsetForLeaderEpochRequest::default().with_topics(vec![topic]);
            let answer = client.ask(&request, version).topics[0].partitions[0].clone();
            assert_eq!(
                (answer.error_code, answer.leader_epoch, answer.end_offset),
                (0, end.0, end.1)
            );
        }
        for version in 0..=1u8 {
            let mut request = vec![0, 23, 0, version, 0, 0, 0, 9, 0xff, 0xff, 0, 0, 0, 1, 0, 6];
            request.extend_from_slice(b"orders\0\0\0\x01\0\0\0\0");
            request.extend_from_slice(&i32::to_be_bytes(epoch));
            client.send_frame(&request);
            let mut frame = client.frame().unwrap();
            assert_eq!((frame.get_i32(), frame.get_i32(), frame.get_i16()), (9, 1, 6));
            assert_eq!(frame.split_to(6)[..], *b"orders");
            assert_eq!((frame.get_i32(), frame.get_i16(), frame.get_i32()), (1, 0, 0));
            if version == 1 {
                assert_eq!(frame.get_i32(), end.0);
            }
            assert_eq!((frame.get_i64(), frame.len()), (end.1, 0));
        }
    }
}

#[test]
fn old_brokers_admit_to_old_versions_only() {
    let mut config = Config::loopback(1).with_topic(spec());
    config.versions = Versions::kafka_2_1();
    let source = serve(config).unwrap();
    let mut client = Client::connect(source.addresses()[0]);
    let response = client.ask(&ApiVersionsRequest::default(), 2);
    let max = |key: ApiKey| {
        response.api_keys.iter().find(|api| api.api_key == key as i16).unwrap().max_version
    };
    assert_eq!((max(ApiKey::Fetch), max(ApiKey::Metadata)), (10, 7));
    assert!(client.try_ask(&MetadataRequest::default(), 8).is_err());
}

#[test]
fn topics_come_go_and_come_again() {
    let (source, mut client) = start(1);
    let cluster = source.cluster();
    let first = cluster.topic_id("orders").unwrap();
    assert!(cluster.add_topic(spec()).is_err(), "it exists");
    cluster.add_partitions("orders", 6).unwrap();
    assert!(cluster.add_partitions("orders", 6).is_err(), "never fewer, never the same");
    let response: MetadataResponse = client.ask(&MetadataRequest::default().with_topics(None), 12);
    assert_eq!(response.topics[0].partitions.len(), 6);
    assert_eq!(fetch_one(&mut client, 13, ask("orders", first, 5, 0)).high_watermark, 1000);

    cluster.delete_topic("orders").unwrap();
    assert!(cluster.delete_topic("orders").is_err());
    let gone = fetch_one(&mut client, 13, ask("orders", first, 5, 0)).error_code;
    assert_eq!(gone, E::UnknownTopicId.code());
    let second = cluster.add_topic(spec()).unwrap();
    assert_ne!(first, second);
    assert_eq!(
        (first, second),
        (TopicSpec::topic_id("orders", 0), TopicSpec::topic_id("orders", 1))
    );
    let gone = fetch_one(&mut client, 13, ask("orders", first, 0, 0)).error_code;
    assert_eq!(gone, E::UnknownTopicId.code());
    assert_eq!(fetch_one(&mut client, 12, ask("orders", first, 0, 0)).error_code, 0);

    cluster.set_cluster_id("another");
    let response: MetadataResponse = client.ask(&MetadataRequest::default().with_topics(None), 12);
    assert_eq!(response.cluster_id.as_deref(), Some("another"));
}

#[test]
fn brokers_stop_start_and_pause() {
    let (source, mut client) = start(2);
    let cluster = source.cluster();
    let id = cluster.topic_id("orders").unwrap();
    let mut other = Client::connect(source.addresses()[1]);
    assert_eq!(fetch_one(&mut other, 13, ask("orders", id, 1, 0)).error_code, 0);
    source.stop_broker(1).unwrap();
    assert_eq!(other.stream.read(&mut [0; 1]).unwrap_or(0), 0, "the connection was cut");
    assert!(std::net::TcpStream::connect(source.addresses()[1]).is_err());
    let response: MetadataResponse = client.ask(&MetadataRequest::default().with_topics(None), 12);
    assert_eq!(response.brokers.len(), 1);
    let orphan = &response.topics[0].partitions[1];
    assert_eq!((orphan.error_code, orphan.leader_id.0), (E::LeaderNotAvailable.code(), -1));
    cluster.move_leader("orders", 1, 0).unwrap();
    assert_eq!(fetch_one(&mut client, 13, ask("orders", id, 1, 0)).error_code, 0);

    source.start_broker(1).unwrap();
    let mut other = Client::connect(source.addresses()[1]);
    let moved = fetch_one(&mut other, 13, ask("orders", id, 1, 0)).error_code;
    assert_eq!(moved, E::NotLeaderOrFollower.code());

    cluster.pause(1).unwrap();
    other.send(&MetadataRequest::default(), 12);
    let wait = std::time::Duration::from_millis(50);
    other.stream.set_read_timeout(Some(wait)).unwrap();
    assert!(other.frame().is_err(), "a paused broker does not answer");
    cluster.resume(1).unwrap();
    other.stream.set_read_timeout(None).unwrap();
    assert!(other.frame().is_ok());

    source.kill_connections(0);
    assert_eq!(client.stream.read(&mut [0; 1]).unwrap_or(0), 0);
}

#[test]
fn more_connections_than_allowed_are_closed() {
    let mut config = Config::loopback(1).with_topic(spec());
    config.connections_max = 2;
    let source = serve(config).unwrap();
    let mut kept: Vec<Client> = (0..2).map(|_| Client::connect(source.addresses()[0])).collect();
    for client in &mut kept {
        client.ask(&MetadataRequest::default(), 12);
    }
    let mut third = Client::connect(source.addresses()[0]);
    assert_eq!(third.stream.read(&mut [0; 1]).unwrap_or(0), 0);
    assert_eq!((source.connections(0), source.connections_accepted()), (2, 2));
}

#[test]
fn held_high_watermarks_hide_what_is_behind_them() {
    let (source, mut client) = start(1);
    let cluster = source.cluster();
    let id = cluster.topic_id("orders").unwrap();
    cluster.hold_high_watermark("orders", 0, Some(500)).unwrap();
    let data = fetch_one(&mut client, 13, ask("orders", id, 0, 480));
    assert_eq!((data.high_watermark, data.records.unwrap().len()), (500, 4000));
    let data = fetch_one(&mut client, 13, ask("orders", id, 0, 700));
    assert_eq!((data.error_code, data.records.unwrap().len()), (0, 0));
    cluster.hold_high_watermark("orders", 0, None).unwrap();
    assert_eq!(fetch_one(&mut client, 13, ask("orders", id, 0, 480)).high_watermark, 1000);
}
