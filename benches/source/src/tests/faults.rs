//! Every fault does what it says, and nothing else.

use super::client::{Ask, Client, ask, fetch_one, fetch_request, partitions, records};
use crate::{Cluster, Config, Fault, Handle, Target, TopicSpec, serve};
use bytes::Bytes;
use kafka_protocol::messages::{ApiVersionsRequest, MetadataRequest};
use kafka_protocol::records::RecordBatchDecoder;
use std::io::{ErrorKind, Read};
use std::time::Duration;

fn start() -> (Handle, Cluster, Client) {
    let spec = TopicSpec::new("orders", 2, 10).with_batches(11, 1000, 10);
    let source = serve(Config::loopback(1).with_topic(spec)).unwrap();
    let client = Client::connect(source.addresses()[0]);
    let cluster = source.cluster();
    (source, cluster, client)
}

fn asked(partition: i32) -> Ask {
    ask("orders", TopicSpec::topic_id("orders", 0), partition, 30)
}

/// The records of both partitions from offset 30 on, the first under a fault.
fn under(fault: Fault) -> (Bytes, Vec<u8>) {
    let (_source, cluster, mut client) = start();
    cluster.inject(Target::partition("orders", 0), fault, Some(1));
    let response = client.ask(&fetch_request(13, &[asked(0), asked(1)]), 13);
    let all = partitions(&response);
    assert_eq!(cluster.faults_applied(), 1);
    let neighbour = cluster.log("orders", 1).unwrap().bytes(30..100);
    assert_eq!(records(all[1]), neighbour, "the neighbour suffers nothing");
    let truth = cluster.log("orders", 0).unwrap().bytes(30..100);
    assert_eq!(records(&fetch_one(&mut client, 13, asked(0))), truth, "once and no more");
    (records(all[0]), truth)
}

fn base_offsets(records: &[u8]) -> Vec<i64> {
    records.chunks(1000).map(|b| i64::from_be_bytes(b[..8].try_into().unwrap())).collect()
}

fn is_valid(records: &[u8]) -> bool {
    RecordBatchDecoder::decode_all(&mut Bytes::copy_from_slice(records)).is_ok()
}

#[test]
fn bits_are_flipped_under_the_crc_and_beside_it() {
    for (byte, valid) in [(500, false), (21, false), (17, false), (3, true), (15, true)] {
        let (found, truth) = under(Fault::FlipBit { byte, bit: 2 });
        assert_eq!(found[byte], truth[byte] ^ 4);
        assert_eq!(found.iter().zip(&truth).filter(|(a, b)| a != b).count(), 1);
        assert_eq!(is_valid(&found), valid, "byte {byte}");
    }
    let (found, _) = under(Fault::FlipBit { byte: 1 << 30, bit: 0 });
    assert!(!is_valid(&found));
}

#[test]
fn batches_are_repeated_swapped_dropped_and_moved() {
    let bases = |fault| {
        let found = under(fault).0;
        assert!(is_valid(&found));
        base_offsets(&found)
    };
    assert_eq!(bases(Fault::RepeatBatch), [30, 30, 40, 50, 60, 70, 80, 90]);
    assert_eq!(bases(Fault::ReorderBatches), [40, 30, 50, 60, 70, 80, 90]);
    assert_eq!(bases(Fault::DropBatch), [40, 50, 60, 70, 80, 90]);
    assert_eq!(bases(Fault::ShiftOffsets(-5)), [25, 35, 45, 55, 65, 75, 85]);
}

#[test]
fn lengths_lie() {
    for length in [-1, 0, 7, i32::MAX, i32::MIN] {
        let (found, truth) = under(Fault::BatchLength(length));
        assert_eq!(found[8..12], length.to_be_bytes());
        assert_eq!((&found[..8], &found[12..]), (&truth[..8], &truth[12..]));
    }
    let (cut, truth) = under(Fault::CutRecords(70));
    assert_eq!(cut, truth[..70]);
    // The length in front of the records: the answer can no longer be taken apart.
    for (length, version) in [(-7, 11), (3, 11), (i32::MAX, 11), (-7, 13), (3, 13), (i32::MAX, 13)]
    {
        let (_source, cluster, mut client) = start();
        cluster.inject(Target::partition("orders", 0), Fault::RecordsLength(length), Some(1));
        let request = fetch_request(version, &[asked(0)]);
        assert!(client.try_ask(&request, version).is_err(), "{length} in version {version}");
        assert!(client.try_ask(&request, version).is_ok(), "once and no more");
    }
}

#[test]
fn epochs_go_back_in_batches_and_in_metadata() {
    let (_source, cluster, mut client) = start();
    for _ in 0..5 {
        cluster.bump_leader_epoch("orders", 0).unwrap();
    }
    cluster.append("orders", 0, 1).unwrap();
    let at_end = Ask { offset: 100, ..asked(0) };
    let epochs = |client: &mut Client| {
        let batch = records(&fetch_one(client, 13, at_end.clone()));
        assert!(is_valid(&batch));
        let topic = client.ask(&MetadataRequest::default().with_topics(None), 12).topics;
        (i32::from_be_bytes(batch[12..16].try_into().unwrap()), topic[0].partitions[0].leader_epoch)
    };
    assert_eq!(epochs(&mut client), (5, 5));
    cluster.inject(Target::partition("orders", 0), Fault::LeaderEpochBack(2), None);
    assert_eq!(epochs(&mut client), (3, 3));
    cluster.clear_faults();
    assert_eq!(epochs(&mut client), (5, 5));
}

#[test]
fn another_partitions_batch_is_whole_and_wrong() {
    let (found, truth) = under(Fault::OtherPartition { partition: 1, offset: None });
    assert!(is_valid(&found));
    assert_eq!((found.len(), base_offsets(&found)), (1000, vec![30]));
    assert_ne!(found[17..], truth[17..1000]);
    let (found, _) = under(Fault::OtherPartition { partition: 1, offset: Some(77) });
    assert_eq!(base_offsets(&found), [70]);
}

#[test]
fn answers_lie_about_partitions() {
    let (_source, cluster, mut client) = start();
    let target = || Target::partition("orders", 0);
    cluster.inject(target(), Fault::HighWatermark(12), Some(1));
    assert_eq!(fetch_one(&mut client, 13, asked(0)).high_watermark, 12);
    cluster.inject(target(), Fault::WrongPartition(55), Some(1));
    assert_eq!(fetch_one(&mut client, 13, asked(0)).partition_index, 55);
    cluster.inject(target(), Fault::ErrorCode(29), Some(1));
    let data = fetch_one(&mut client, 13, asked(0));
    assert_eq!((data.error_code, data.high_watermark, records(&data).len()), (29, -1, 0));

    // Empty without end: at once, however long the request would wait.
    cluster.inject(target(), Fault::Empty, None);
    for _ in 0..20 {
        let request = fetch_request(13, &[asked(0)]).with_max_wait_ms(600_000);
        let response = client.ask(&request, 13);
        let data = partitions(&response)[0];
        assert_eq!((data.error_code, data.high_watermark, records(data).len()), (0, 100, 0));
    }
    assert_eq!(cluster.faults_applied(), 23);
}

#[test]
fn frames_are_cut_and_connections_closed() {
    let (source, cluster, mut client) = start();
    let whole = {
        client.send(&fetch_request(13, &[asked(0)]), 13);
        client.frame().unwrap().len() + 4
    };
    cluster.inject(Target::fetches(), Fault::HalfFrameThenClose, Some(1));
    client.send(&fetch_request(13, &[asked(0)]), 13);
    let mut rest = Vec::new();
    client.stream.read_to_end(&mut rest).unwrap();
    assert_eq!(rest.len(), whole.div_ceil(2));

    cluster.inject(Target::fetches(), Fault::HalfFrameThenSilence, Some(1));
    let mut client = Client::connect(source.addresses()[0]);
    client.send(&fetch_request(13, &[asked(0)]), 13);
    let mut half = vec![0; whole.div_ceil(2)];
    client.stream.read_exact(&mut half).unwrap();
    assert_silent(&mut client);

    cluster.inject(Target::fetches(), Fault::Close, Some(1));
    let mut client = Client::connect(source.addresses()[0]);
    assert_eq!(client.ask(&ApiVersionsRequest::default(), 0).error_code, 0, "no fetch, no fault");
    client.send(&fetch_request(13, &[asked(0)]), 13);
    assert_eq!(client.stream.read(&mut [0; 9]).unwrap(), 0);
}

#[test]
fn frames_lie_and_answers_stay_away() {
    let (source, cluster, mut client) = start();
    cluster.inject(Target::broker(0), Fault::WrongCorrelationId, Some(1));
    let error = client.try_ask(&fetch_request(13, &[asked(0)]), 13).unwrap_err();
    assert_eq!(error.to_string(), "another correlation id");

    cluster.inject(Target::broker(0), Fault::Garbage, Some(1));
    assert!(client.try_ask(&fetch_request(13, &[asked(0)]), 13).is_err());

    cluster.inject(Target::broker(0), Fault::Delay(Duration::from_millis(1)), Some(1));
    assert_eq!(fetch_one(&mut client, 13, asked(0)).error_code, 0);

    for length in [-1, 3, i32::MAX] {
        cluster.inject(Target::broker(0), Fault::FrameLength(length), Some(1));
        let mut client = Client::connect(source.addresses()[0]);
        client.send(&fetch_request(13, &[asked(0)]), 13);
        let mut found = [0; 4];
        client.stream.read_exact(&mut found).unwrap();
        assert_eq!(found, length.to_be_bytes());
    }
    cluster.inject(Target::broker(0), Fault::NeverAnswer, Some(1));
    client.send(&fetch_request(13, &[asked(0)]), 13);
    assert_silent(&mut client);
    assert_eq!(cluster.faults_applied(), 7);
    // A source with silent connections still stops: the test would hang here otherwise.
    drop(source);
}

fn assert_silent(client: &mut Client) {
    client.stream.set_read_timeout(Some(Duration::from_millis(30))).unwrap();
    let error = client.stream.read(&mut [0; 1]).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut));
}
