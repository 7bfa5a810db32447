//! Fetch answers in every version, their limits and their errors.

use super::client::{Ask, Client, ask, fetch_one, fetch_request, partitions, records};
use crate::{Config, Content, Expected, Growth, TopicSpec, serve};
use kafka_protocol::ResponseError as E;
use kafka_protocol::messages::ApiVersionsRequest;
use std::io::ErrorKind;

fn spec() -> TopicSpec {
    TopicSpec::new("orders", 4, 100).with_batches(11, 2000, 10)
}

#[test]
fn every_version_serves_the_expected_bytes() {
    let source = serve(Config::loopback(1).with_topic(spec())).unwrap();
    let id = source.cluster().topic_id("orders").unwrap();
    let expected = Expected::new(&spec()).unwrap();
    let mut client = Client::connect(source.addresses()[0]);
    for version in 4..=18 {
        let asks: Vec<Ask> = (0..4).map(|p| ask("orders", id, p, 30 * i64::from(p))).collect();
        let response = client.ask(&fetch_request(version, &asks), version);
        assert_eq!((response.error_code, response.session_id), (0, 0));
        assert_eq!(response.responses.len(), 1, "a topic's partitions stand together");
        let topic = &response.responses[0];
        match version {
            13.. => assert_eq!(topic.topic_id, id),
            _ => assert_eq!(&*topic.topic.0, "orders"),
        }
        for (ask, data) in asks.iter().zip(partitions(&response)) {
            assert_eq!((data.partition_index, data.error_code), (ask.partition, 0));
            assert_eq!((data.high_watermark, data.last_stable_offset), (1000, 1000));
            assert_eq!(data.log_start_offset, if version >= 5 { 0 } else { -1 });
            assert_eq!(records(data), expected.bytes(ask.partition, ask.offset..1000));
        }
    }
}

#[test]
fn limits_are_a_brokers() {
    let source = serve(Config::loopback(1).with_topic(spec())).unwrap();
    let id = source.cluster().topic_id("orders").unwrap();
    let mut client = Client::connect(source.addresses()[0]);
    let sizes = |client: &mut Client, partition_max, bytes_max| -> Vec<usize> {
        let one = |p| Ask { bytes_max: partition_max, ..ask("orders", id, p, 5) };
        let request = fetch_request(12, &[one(0), one(1), one(2)]).with_max_bytes(bytes_max);
        let response = client.ask(&request, 12);
        partitions(&response).iter().map(|data| records(data).len()).collect()
    };
    // The partition's limit cuts within a batch; less than one batch is nothing at all, except
    // that the first partition with data always gets its first batch.
    assert_eq!(sizes(&mut client, 5000, 1 << 20), [5000, 5000, 5000]);
    assert_eq!(sizes(&mut client, 1999, 1 << 20), [2000, 0, 0]);
    assert_eq!(sizes(&mut client, 0, 1 << 20), [2000, 0, 0]);
    assert_eq!(sizes(&mut client, 5000, 8000), [5000, 3000, 0]);
    assert_eq!(sizes(&mut client, 5000, 6000), [5000, 0, 0]);
    assert_eq!(sizes(&mut client, 5000, 0), [2000, 0, 0]);
    drop(source);

    let mut config = Config::loopback(1).with_topic(spec());
    config.partial_batches = false;
    config.fetch_bytes_max = 10_000;
    let source = serve(config).unwrap();
    let mut client = Client::connect(source.addresses()[0]);
    assert_eq!(sizes(&mut client, 5000, 1 << 20), [4000, 4000, 2000], "the broker's own limit");
    assert_eq!(sizes(&mut client, 5000, 7999), [4000, 2000, 0]);
    assert_eq!(sizes(&mut client, 1 << 20, 1 << 20), [10_000, 0, 0]);
}

#[test]
fn errors_are_a_brokers() {
    let source = serve(Config::loopback(2).with_topic(spec())).unwrap();
    let cluster = source.cluster();
    let id = cluster.topic_id("orders").unwrap();
    let mut client = Client::connect(source.addresses()[0]);
    let error =
        |client: &mut Client, version, what: Ask| fetch_one(client, version, what).error_code;
    let at = |partition, offset| ask("orders", id, partition, offset);
    assert_eq!(error(&mut client, 12, at(0, 1001)), E::OffsetOutOfRange.code());
    assert_eq!(error(&mut client, 12, at(0, -1)), E::OffsetOutOfRange.code());
    assert_eq!(error(&mut client, 12, at(9, 0)), E::UnknownTopicOrPartition.code());
    assert_eq!(error(&mut client, 13, at(9, 0)), E::UnknownTopicOrPartition.code());
    let other = Ask { topic: "absent", id: TopicSpec::topic_id("absent", 0), ..at(0, 0) };
    assert_eq!(error(&mut client, 12, other.clone()), E::UnknownTopicOrPartition.code());
    assert_eq!(error(&mut client, 13, other), E::UnknownTopicId.code());
    assert_eq!(error(&mut client, 12, at(1, 0)), E::NotLeaderOrFollower.code());

    assert_eq!(cluster.move_leader("orders", 1, 0), Ok(1));
    assert_eq!(cluster.bump_leader_epoch("orders", 1), Ok(2));
    assert_eq!(error(&mut client, 12, at(1, 0)), 0);
    let epoch = |epoch| Ask { epoch, ..at(1, 0) };
    assert_eq!(error(&mut client, 12, epoch(1)), E::FencedLeaderEpoch.code());
    assert_eq!(error(&mut client, 12, epoch(2)), 0);
    assert_eq!(error(&mut client, 12, epoch(3)), E::UnknownLeaderEpoch.code());

    cluster.delete_records("orders", 0, 25).unwrap();
    assert_eq!(error(&mut client, 12, at(0, 24)), E::OffsetOutOfRange.code());
    let data = fetch_one(&mut client, 12, at(0, 25));
    assert_eq!((data.error_code, data.log_start_offset), (0, 25));
    assert_eq!(records(&data), cluster.log("orders", 0).unwrap().bytes(25..1000));
}

#[test]
fn new_leaders_are_told_with_the_error() {
    let source = serve(Config::loopback(3).with_topic(spec())).unwrap();
    let id = source.cluster().topic_id("orders").unwrap();
    let mut client = Client::connect(source.addresses()[0]);
    for version in 12..=18 {
        let asks = [ask("orders", id, 1, 0), ask("orders", id, 2, 0)];
        let response = client.ask(&fetch_request(version, &asks), version);
        let leaders: Vec<i32> =
            partitions(&response).iter().map(|data| data.current_leader.leader_id.0).collect();
        assert_eq!(leaders, if version >= 16 { [1, 2] } else { [-1, -1] });
        let ports = response.node_endpoints.iter().map(|node| (node.node_id.0, node.port));
        let known = |broker: usize| (broker as i32, i32::from(source.addresses()[broker].port()));
        let expected = if version >= 16 { vec![known(1), known(2)] } else { vec![] };
        assert_eq!(ports.collect::<Vec<_>>(), expected);
    }
}

#[test]
fn divergence_is_told_by_epoch() {
    let source = serve(Config::loopback(1).with_topic(spec())).unwrap();
    let cluster = source.cluster();
    let id = cluster.topic_id("orders").unwrap();
    assert_eq!(cluster.lose_tail("orders", 0, 705), Ok(1));
    assert_eq!(cluster.append("orders", 0, 50), Ok(1200));
    let mut client = Client::connect(source.addresses()[0]);
    let data = fetch_one(&mut client, 12, Ask { last_epoch: 0, ..ask("orders", id, 0, 1000) });
    assert_eq!((data.error_code, records(&data).len()), (0, 0));
    assert_eq!((data.diverging_epoch.epoch, data.diverging_epoch.end_offset), (0, 700));
    let data = fetch_one(&mut client, 12, Ask { last_epoch: 0, ..ask("orders", id, 0, 700) });
    assert_eq!((data.diverging_epoch.epoch, data.diverging_epoch.end_offset), (-1, -1));
    assert_eq!(records(&data), cluster.log("orders", 0).unwrap().bytes(700..1200));
}

#[test]
fn a_waiting_fetch_is_woken_by_new_data() {
    let empty = spec().with_growth(Growth::backlog(0));
    let source = serve(Config::loopback(1).with_topic(empty)).unwrap();
    let cluster = source.cluster();
    let id = cluster.topic_id("orders").unwrap();
    let mut client = Client::connect(source.addresses()[0]);
    let asks = [ask("orders", id, 0, 0), ask("orders", id, 1, 0)];
    let request = fetch_request(12, &asks).with_max_wait_ms(600_000).with_min_bytes(4000);
    client.send(&request, 12);
    cluster.append("orders", 0, 1).unwrap();
    cluster.append("orders", 1, 1).unwrap();
    // Were it not woken, the client's own time limit would end the test.
    assert!(client.frame().unwrap().len() > 4000);

    // A wait that brings nothing ends by itself.
    let at_end = [ask("orders", id, 0, 10)];
    let response = client.ask(&fetch_request(12, &at_end).with_max_wait_ms(20), 12);
    assert_eq!(records(partitions(&response)[0]).len(), 0);
}

#[test]
fn logs_grow_by_time_and_stop_where_they_should() {
    let mut growth = Growth::rate(2_000_000.0);
    growth.backlog_batches = 2;
    growth.batches_max = 12;
    let source = serve(Config::loopback(1).with_topic(spec().with_growth(growth))).unwrap();
    let id = source.cluster().topic_id("orders").unwrap();
    let expected = Expected::new(&spec().with_growth(growth)).unwrap();
    let mut client = Client::connect(source.addresses()[0]);
    let (mut offset, mut copy) = (0, Vec::new());
    while offset < 120 {
        let what = [ask("orders", id, 3, offset)];
        let response = client.ask(&fetch_request(12, &what).with_max_wait_ms(10_000), 12);
        let bytes = records(partitions(&response)[0]);
        copy.extend_from_slice(&bytes);
        offset += bytes.len() as i64 / 2000 * 10;
    }
    assert_eq!(copy, expected.bytes(3, 0..120));
    assert_eq!(source.cluster().log("orders", 3).unwrap().end_offset(), 120);
}

#[test]
fn given_batches_are_served_as_they_are() {
    let mut topic = TopicSpec::new("raw", 1, 0);
    topic.content = Content::Given;
    let source = serve(Config::loopback(1).with_topic(topic)).unwrap();
    let cluster = source.cluster();
    let id = cluster.topic_id("raw").unwrap();
    let mut first = crate::generated_batch(1, 3, 300).unwrap();
    let mut second = crate::generated_batch(2, 5, 400).unwrap();
    assert_eq!(cluster.append_batches("raw", 0, &[first.clone()], false), Ok(3));
    crate::place(&mut first, 0, 0);
    crate::place(&mut second, 10, 0);
    assert_eq!(cluster.append_batches("raw", 0, &[second.clone()], true), Ok(15));
    assert!(cluster.append_batches("raw", 0, &[second.clone()], true).is_err(), "below the end");
    assert!(cluster.append_batches("raw", 0, &[vec![0; 80]], false).is_err());
    let mut client = Client::connect(source.addresses()[0]);
    let data = fetch_one(&mut client, 13, ask("raw", id, 0, 0));
    assert_eq!(records(&data), [first, second.clone()].concat());
    let in_gap = fetch_one(&mut client, 13, ask("raw", id, 0, 7));
    assert_eq!(records(&in_gap), second);
}

#[test]
fn malformed_requests_close_the_connection_and_nothing_else() {
    let source = serve(Config::loopback(1).with_topic(spec())).unwrap();
    let mut random = crate::record_batch::Random(77);
    for round in 0..300u32 {
        let mut client = Client::connect(source.addresses()[0]);
        let mut bytes: Vec<u8> = (0..random.next() % 60).map(|_| random.next() as u8).collect();
        if bytes.len() > 8 {
            // Keys and versions that are known, and lengths that are not to be believed.
            let key = [0, 1, 2, 3, 18, 23][round as usize % 6];
            bytes[..4].copy_from_slice(&[0, key, 0, (round / 6 % 19) as u8]);
            if round % 5 == 0 {
                let tail = bytes.len() - 4;
                bytes[tail..].copy_from_slice(&[0x7f, 0xff, 0xff, 0xff]);
            }
        }
        client.send_frame(&bytes);
        // Whatever comes, it comes: an answer, or the end of the connection.
        client.stream.shutdown(std::net::Shutdown::Write).unwrap();
        while client.frame().is_ok() {}
    }
    let mut client = Client::connect(source.addresses()[0]);
    assert_eq!(client.ask(&ApiVersionsRequest::default(), 0).error_code, 0);
}

#[test]
fn stopping_ends_waiting_fetches() {
    let source = serve(Config::loopback(1).with_topic(spec())).unwrap();
    let id = source.cluster().topic_id("orders").unwrap();
    let mut client = Client::connect(source.addresses()[0]);
    let request = fetch_request(12, &[ask("orders", id, 0, 1000)]).with_max_wait_ms(600_000);
    client.send(&request, 12);
    drop(source);
    // Not the client's own time limit: the connection ended.
    let error = client.frame().unwrap_err().kind();
    assert!(matches!(error, ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset), "{error}");
}
