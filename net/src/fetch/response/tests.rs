//! The parser against the oracle: the same content for every response, in every version, however
//! it is cut; and damaged bytes never panic and never yield more than they hold.

use super::*;
use bytes::Bytes;
use kafka_protocol::messages::FetchResponse;
use kafka_protocol::messages::fetch_response::{
    AbortedTransaction, EpochEndOffset, FetchableTopicResponse, LeaderIdAndEpoch, NodeEndpoint,
    PartitionData, SnapshotId,
};
use kafka_protocol::protocol::{Decodable, Encodable, StrBytes};
use proptest::prelude::*;
use std::collections::BTreeMap;

const CORRELATION: i32 = 0x1234_5678;
const FRAME_MAX: usize = 1 << 24;

/// What a response says, as far as we read it.
#[derive(Debug, PartialEq, Default)]
struct Content {
    head: ResponseHead,
    partitions: Vec<(String, PartitionHead, Vec<u8>, PartitionTail)>,
}

fn tags(version: i16) -> BoxedStrategy<BTreeMap<i32, Bytes>> {
    if version < 12 {
        return Just(BTreeMap::new()).boxed();
    }
    let body = prop::collection::vec(any::<u8>(), 0..300).prop_map(Bytes::from);
    prop::collection::btree_map(100i32..40_000, body, 0..3).boxed()
}

fn partition(version: i16) -> impl Strategy<Value = PartitionData> {
    let aborted = (any::<i64>(), tags(version)).prop_map(|(offset, tags)| {
        AbortedTransaction::default().with_first_offset(offset).with_unknown_tagged_fields(tags)
    });
    let fixed = (any::<i32>(), any::<i16>(), any::<[i64; 3]>(), any::<i32>());
    let records = prop::option::of(prop::collection::vec(any::<u8>(), 0..400));
    let lists = (prop::option::of(prop::collection::vec(aborted, 0..4)), records);
    let tail = (any::<[bool; 3]>(), any::<i32>(), any::<i64>(), tags(version));
    (fixed, lists, tail).prop_map(move |(fixed, (aborted, records), (has, epoch, offset, tags))| {
        let (number, code, [high, stable, start], replica) = fixed;
        let mut data = PartitionData::default()
            .with_partition_index(number)
            .with_error_code(code)
            .with_high_watermark(high)
            .with_last_stable_offset(stable)
            .with_log_start_offset(if version >= 5 { start } else { -1 })
            .with_aborted_transactions(aborted)
            .with_preferred_read_replica(if version >= 11 { replica } else { -1 }.into())
            .with_records(records.map(Bytes::from))
            .with_unknown_tagged_fields(tags.clone());
        if version >= 12 && has[0] {
            let end = EpochEndOffset::default().with_epoch(epoch).with_end_offset(offset);
            data.diverging_epoch = end.with_unknown_tagged_fields(tags.clone());
        }
        if version >= 12 && has[1] {
            let leader = LeaderIdAndEpoch::default().with_leader_epoch(epoch);
            data.current_leader = leader.with_leader_id(replica.into());
        }
        if version >= 12 && has[2] {
            data.snapshot_id = SnapshotId::default().with_end_offset(offset).with_epoch(epoch);
        }
        data
    })
}

fn response(version: i16) -> impl Strategy<Value = FetchResponse> {
    let partitions = prop::collection::vec(partition(version), 0..4);
    let topic = ("[a-z.]{1,60}", any::<u128>(), partitions, tags(version)).prop_map(
        move |(name, id, partitions, tags)| {
            let topic = FetchableTopicResponse::default()
                .with_partitions(partitions)
                .with_unknown_tagged_fields(tags);
            if version >= 13 {
                topic.with_topic_id(Uuid::from_u128(id))
            } else {
                topic.with_topic(StrBytes::from_string(name).into())
            }
        },
    );
    let top = (any::<i32>(), any::<i16>(), any::<i32>(), any::<bool>(), tags(version));
    (top, prop::collection::vec(topic, 0..4)).prop_map(move |(top, topics)| {
        let (throttle, code, session, endpoints, tags) = top;
        let mut response = FetchResponse::default()
            .with_throttle_time_ms(throttle)
            .with_responses(topics)
            .with_unknown_tagged_fields(tags);
        if version >= 7 {
            response = response.with_error_code(code).with_session_id(session);
        }
        if version >= 16 && endpoints {
            let endpoint = NodeEndpoint::default().with_host(StrBytes::from_static_str("host"));
            response = response.with_node_endpoints(vec![endpoint; 3]);
        }
        response
    })
}

fn versioned() -> impl Strategy<Value = (i16, FetchResponse)> {
    (4i16..=18).prop_flat_map(|version| (Just(version), response(version)))
}

fn frame_of(response: &FetchResponse, version: i16) -> Vec<u8> {
    let mut out = vec![0; 4];
    out.extend_from_slice(&CORRELATION.to_be_bytes());
    if version >= 12 {
        out.extend_from_slice(&[1, 5, 2, 9, 9]); // a tagged field in the header
    }
    response.encode(&mut out, version).unwrap();
    frame::finish_request(&mut out);
    out
}

fn by_oracle(frame: &[u8], version: i16) -> Content {
    let body = &mut Bytes::copy_from_slice(&frame[if version >= 12 { 13 } else { 8 }..]);
    let response = FetchResponse::decode(body, version).unwrap();
    let mut content = Content {
        head: ResponseHead {
            throttle_time_ms: response.throttle_time_ms,
            error_code: ErrorCode(response.error_code),
            session_id: response.session_id,
        },
        partitions: Vec::new(),
    };
    for topic in response.responses {
        let by_id = TopicRef::Id(topic.topic_id);
        let name =
            format!("{:?}", if version >= 13 { by_id } else { TopicRef::Name(&topic.topic) });
        for data in topic.partitions {
            let records = data.records.unwrap_or_default().to_vec();
            let head = PartitionHead {
                partition: data.partition_index,
                error_code: ErrorCode(data.error_code),
                high_watermark: data.high_watermark,
                last_stable_offset: data.last_stable_offset,
                log_start_offset: data.log_start_offset,
                preferred_read_replica: data.preferred_read_replica.0,
                records_bytes: records.len(),
            };
            let (end, leader) = (data.diverging_epoch, data.current_leader);
            let tail = PartitionTail {
                diverging_epoch: (end != EpochEndOffset::default())
                    .then_some(EpochEnd { epoch: end.epoch, end_offset: end.end_offset }),
                current_leader: (leader != LeaderIdAndEpoch::default()).then_some(LeaderNow {
                    leader: leader.leader_id.0,
                    epoch: leader.leader_epoch,
                }),
            };
            content.partitions.push((name.clone(), head, records, tail));
        }
    }
    content
}

/// Feeds the frame in pieces; takes at most half of the records at hand at a time.
fn by_parser(
    frame: &[u8],
    version: i16,
    pieces: impl Iterator<Item = usize>,
) -> Result<Option<Content>, ParseError> {
    let mut parser = ResponseParser::new(version, CORRELATION, FRAME_MAX);
    let (mut content, mut topic) = (Content::default(), String::new());
    let mut rest = frame;
    for piece in pieces {
        let (mut input, after) = rest.split_at(piece.min(rest.len()));
        rest = after;
        loop {
            match parser.next(&mut input)? {
                Event::More => break,
                Event::Head(head) => content.head = head,
                Event::Topic(found) => topic = format!("{found:?}"),
                Event::Partition(head) => {
                    let tail = PartitionTail::default();
                    content.partitions.push((topic.clone(), head, Vec::new(), tail));
                }
                Event::Records(_) if input.is_empty() => break,
                Event::Records(left) => {
                    let (records, after) = input.split_at(input.len().div_ceil(2).min(left));
                    content.partitions.last_mut().unwrap().2.extend_from_slice(records);
                    input = after;
                    parser.took(records.len());
                }
                Event::PartitionEnd(tail) => content.partitions.last_mut().unwrap().3 = tail,
                Event::End => {
                    assert_eq!(parser.frame_left(), 0);
                    assert_eq!(parser.next(&mut input), Ok(Event::End));
                    return Ok(Some(content));
                }
            }
        }
        assert!(input.is_empty());
        if rest.is_empty() {
            break;
        }
    }
    Ok(None)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]
    #[test]
    fn parses_what_the_oracle_decodes(
        (version, response) in versioned(), pieces in prop::collection::vec(0usize..40, 1..30),
    ) {
        let frame = frame_of(&response, version);
        let oracle = by_oracle(&frame, version);
        let whole = by_parser(&frame, version, std::iter::once(frame.len())).unwrap().unwrap();
        prop_assert_eq!(&whole, &oracle);
        let bytewise = by_parser(&frame, version, std::iter::repeat(1)).unwrap().unwrap();
        prop_assert_eq!(&bytewise, &oracle);
        let pieces = pieces.iter().copied().chain([1]).cycle();
        let cut = by_parser(&frame, version, pieces).unwrap().unwrap();
        prop_assert_eq!(&cut, &oracle);
    }

    #[test]
    fn damage_never_panics_nor_yields_more_than_there_is(
        (version, response) in versioned(),
        damage in prop::collection::vec((any::<usize>(), prop_oneof![
            Just(0xff), Just(0x7f), Just(0x80), Just(0), any::<u8>()]), 1..8),
        piece in 1usize..50,
    ) {
        let mut frame = frame_of(&response, version);
        for (at, value) in damage {
            // The length and the correlation id stay whole, or nothing else would be reached.
            let at = 8 + at % (frame.len() - 8);
            frame[at] = value;
        }
        if let Ok(Some(content)) = by_parser(&frame, version, std::iter::repeat(piece)) {
            let records: usize = content.partitions.iter().map(|partition| partition.2.len()).sum();
            prop_assert!(records <= frame.len());
            prop_assert!(content.partitions.len() <= frame.len());
        }
    }

    #[test]
    fn a_frame_cut_short_is_an_error((version, response) in versioned(), cut in any::<usize>()) {
        let mut frame = frame_of(&response, version);
        frame.truncate(8 + cut % (frame.len() - 8));
        frame::finish_request(&mut frame);
        let parsed = by_parser(&frame, version, std::iter::once(frame.len()));
        prop_assert!(parsed.is_err(), "{:?}", parsed);
    }

    #[test]
    fn noise_ends(bytes in prop::collection::vec(any::<u8>(), 0..600), version in 4i16..=18) {
        let mut frame = vec![0; 4];
        frame.extend_from_slice(&CORRELATION.to_be_bytes());
        frame.extend_from_slice(&bytes);
        frame::finish_request(&mut frame);
        let _ = by_parser(&frame, version, std::iter::repeat(7));
    }
}

#[test]
fn lengths_that_lie_are_errors() {
    let parse = |version: i16, body: &[u8]| {
        let mut frame = vec![0; 4];
        frame.extend_from_slice(&CORRELATION.to_be_bytes());
        frame.extend_from_slice(body);
        frame::finish_request(&mut frame);
        by_parser(&frame, version, std::iter::once(frame.len())).unwrap_err()
    };
    // Version 4: throttle, then 2^31-1 topics.
    let error = parse(4, &[0, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff]);
    assert_eq!(error, ParseError::PastEnd { what: "topics", bytes: 0x7fff_ffff, left: 0 });
    assert_eq!(parse(4, &[0, 0, 0, 0, 0xff, 0xff, 0xff, 0xfe]), ParseError::BadLength("topics"));
    assert_eq!(parse(4, &[0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]), ParseError::BadLength("topics"));
    assert_eq!(parse(4, &[0, 0, 0, 0, 0, 0, 0, 0, 9]), ParseError::Trailing(1));
    let name = [0, 0, 0, 0, 0, 0, 0, 1, 0x01, 0x00, 1, 1];
    assert_eq!(parse(4, &name), ParseError::BadTopicName);
    let not_utf8 = [0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0xff, 0, 0, 0, 0];
    assert_eq!(parse(4, &not_utf8), ParseError::BadTopicName);
    // Version 12: no header tags, throttle, error, session, then a varint of more than 32 bits.
    let mut overlong = vec![0; 11];
    overlong.extend_from_slice(&[0xff, 0xff, 0xff, 0xff, 0x1f]);
    assert_eq!(parse(12, &overlong), ParseError::BadLength("topics"));
}

#[test]
fn another_correlation_id_and_a_foreign_length_are_errors() {
    let feed = |bytes: &[u8]| {
        let mut parser = ResponseParser::new(4, CORRELATION, 1000);
        parser.next(&mut &*bytes).map(|_| ()).unwrap_err()
    };
    let wrong = FrameError::Correlation { expected: CORRELATION, got: 7 };
    assert_eq!(feed(&[0, 0, 0, 12, 0, 0, 0, 7]), ParseError::Frame(wrong));
    let length = FrameError::Length { length: 1001, max: 1000 };
    assert_eq!(feed(&1001i32.to_be_bytes()), ParseError::Frame(length));
}
