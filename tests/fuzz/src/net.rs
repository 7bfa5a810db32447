//! What a source sends: fetch responses, control responses, frames.

use crate::canonical::is_canonical;
use crate::input::{Input, Pieces};
use crate::memory;
use ::net::control::ClusterMetadata;
use ::net::fetch::{Event, ParseError, PartitionHead, PartitionTail, ResponseParser, TopicRef};
use ::net::limits::UNKNOWN_TAGS_MAX;
use ::net::messages::{self, ControlRequest};
use ::net::versions::{Negotiation, Step};
use ::net::{frame, guard};
use bytes::Bytes;
use kafka_protocol::messages::{
    ApiVersionsRequest, FetchResponse, ListOffsetsRequest, MetadataRequest,
    OffsetForLeaderEpochRequest,
};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion};

/// The id of the request that is answered.
const CORRELATION_ID: i32 = 7;
/// The largest frame accepted here.
const FRAME_BYTES_MAX: usize = 1 << 20;
/// What the decoder keeps of a tagged field unknown to it, at most: a map node of its own.
const UNKNOWN_TAG_BYTES: usize = 640;

/// Version, flags, where to cut; then a frame from its length on. Flag 1 leaves length and
/// correlation id as they are, else they are put right.
pub fn fetch_response(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let spoken = ::net::Api::Fetch.spoken();
    let version = spoken.start() + i16::from(input.byte()) % (spoken.end() - spoken.start() + 1);
    let (raw, cuts) = (input.byte() & 1 != 0, u16::from_be_bytes(input.take()));
    let mut frame = input.rest().to_vec();
    if !raw && frame.len() >= 8 {
        let length = (frame.len() - frame::LENGTH_BYTES) as i32;
        frame[..4].copy_from_slice(&length.to_be_bytes());
        frame[4..8].copy_from_slice(&CORRELATION_ID.to_be_bytes());
    }
    memory::none(|| walk(version, [&frame[..]].into_iter(), |_| {}).is_ok());
    let mut whole = Seen::default();
    let ended = walk(version, [&frame[..]].into_iter(), |event| whole.note(event));
    let mut cut = Seen::default();
    let ended_cut = walk(version, Pieces::new(&frame, cuts), |event| cut.note(event));
    assert_eq!((&whole, ended), (&cut, ended_cut), "cuts change what is read");
    if ended == Ok(true) {
        compare(version, &frame, &whole);
    }
}

/// What an input says, apart from where it is cut.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    heads: Vec<String>,
    partitions: Vec<(PartitionHead, Option<PartitionTail>)>,
    records: usize,
}

impl Seen {
    fn note(&mut self, event: Event<'_>) {
        match event {
            Event::Head(head) => self.heads.push(format!(
                "{} {} {}",
                head.throttle_time_ms, head.error_code.0, head.session_id
            )),
            Event::Topic(TopicRef::Name(name)) => self.heads.push(name.to_owned()),
            Event::Topic(TopicRef::Id(id)) => self.heads.push(id.to_string()),
            Event::Partition(head) => self.partitions.push((head, None)),
            Event::Records(bytes) => self.records += bytes,
            Event::PartitionEnd(tail) => {
                self.partitions.last_mut().expect("it began").1 = Some(tail);
            }
            Event::More | Event::End => {}
        }
    }
}

/// Feeds a parser; true when the response came to its end. Record bytes are taken as they come.
fn walk<'a>(
    version: i16,
    pieces: impl Iterator<Item = &'a [u8]>,
    mut seen: impl FnMut(Event<'_>),
) -> Result<bool, ParseError> {
    let mut parser = ResponseParser::new(version, CORRELATION_ID, FRAME_BYTES_MAX);
    for mut piece in pieces {
        // A piece is used up, or the parser stops: every event but a few consumes.
        let mut events_left = 16 + 4 * piece.len();
        while events_left > 0 {
            events_left -= 1;
            let due = match parser.next(&mut piece)? {
                Event::More => break,
                Event::End => return Ok(true),
                Event::Records(bytes) => bytes,
                event => {
                    seen(event);
                    continue;
                }
            };
            assert!(due <= parser.frame_left());
            let taken = due.min(piece.len());
            if taken == 0 {
                break;
            }
            seen(Event::Records(taken));
            piece = &piece[taken..];
            parser.took(taken);
        }
        assert!(events_left > 0, "events without end");
    }
    // The end of a frame needs no further byte.
    let mut nothing = &[][..];
    loop {
        match parser.next(&mut nothing)? {
            Event::End => return Ok(true),
            Event::More | Event::Records(_) => return Ok(false),
            event => seen(event),
        }
    }
}

/// Holds a response that was accepted against another decoder, where that one accepts it.
fn compare(version: i16, frame: &[u8], seen: &Seen) {
    let length = i32::from_be_bytes(frame[..4].try_into().expect("a length")) as usize;
    let body = &frame[4..4 + length];
    let header_version = FetchResponse::header_version(version);
    let body = frame::response_body(body, header_version, CORRELATION_ID).expect("accepted");
    if version >= 12 && !is_canonical(version, body) {
        return;
    }
    // From 16 on a tagged array is decoded whose length nothing has proven; the rest is alike.
    let mut rest = Bytes::copy_from_slice(body);
    let Ok(theirs) = FetchResponse::decode(&mut rest, version.min(15)) else { return };
    let mut again = Vec::new();
    if theirs.encode(&mut again, version.min(15)).is_err() || again != body {
        return;
    }
    assert!(rest.is_empty(), "the other decoder leaves {} bytes", rest.len());
    let mut heads =
        vec![format!("{} {} {}", theirs.throttle_time_ms, theirs.error_code, theirs.session_id)];
    let mut partitions = Vec::new();
    let mut records = 0;
    for topic in &theirs.responses {
        heads.push(if version >= 13 {
            topic.topic_id.to_string()
        } else {
            topic.topic.0.to_string()
        });
        for p in &topic.partitions {
            let bytes = p.records.as_ref().map_or(0, Bytes::len);
            records += bytes;
            partitions.push((
                (p.partition_index, p.error_code, p.high_watermark, p.last_stable_offset),
                (p.log_start_offset, p.preferred_read_replica.0, bytes),
                (p.diverging_epoch.epoch, p.diverging_epoch.end_offset),
                (p.current_leader.leader_id.0, p.current_leader.leader_epoch),
            ));
        }
    }
    let ours = seen.partitions.iter().map(|(head, tail)| {
        let tail = tail.expect("an end");
        let epoch = tail.diverging_epoch.map_or((-1, -1), |end| (end.epoch, end.end_offset));
        let leader = tail.current_leader.map_or((-1, -1), |now| (now.leader, now.epoch));
        (
            (head.partition, head.error_code.0, head.high_watermark, head.last_stable_offset),
            (head.log_start_offset, head.preferred_read_replica, head.records_bytes),
            epoch,
            leader,
        )
    });
    assert_eq!(seen.heads, heads);
    assert_eq!(ours.collect::<Vec<_>>(), partitions);
    assert_eq!(seen.records, records);
}

/// What the decoder may take for an answer whose lengths were proven.
fn control_bytes_max(message: &[u8]) -> usize {
    // Every unknown tagged field takes two bytes at least.
    let tags = UNKNOWN_TAGS_MAX.min(message.len() / 2);
    memory::BASE_BYTES + memory::FACTOR * message.len() + tags * UNKNOWN_TAG_BYTES
}

/// Version and flags, then a body; flag 1: a whole frame without its length.
fn control<R: ControlRequest>(bytes: &[u8]) -> Option<R::Response>
where
    R::Response: PartialEq + std::fmt::Debug,
{
    let mut input = Input::new(bytes);
    let spoken = R::API.spoken();
    let version = spoken.start() + i16::from(input.byte()) % (spoken.end() - spoken.start() + 1);
    let mut frame = Vec::new();
    if input.byte() & 1 == 0 {
        frame.extend_from_slice(&CORRELATION_ID.to_be_bytes());
        frame.extend((R::Response::header_version(version) >= 1).then_some(0));
    }
    frame.extend_from_slice(input.rest());
    let bytes_max = control_bytes_max(&frame);
    let frame = Bytes::from(frame);
    let decoded =
        memory::within(bytes_max, || messages::decode_answer::<R>(&frame, version, CORRELATION_ID));
    let response = decoded.ok()?;
    // What was read is what it would write. Tagged fields with numbers beyond 31 bits are negative
    // to it, and it writes them wrongly.
    let mut again = Vec::new();
    if !format!("{response:?}").contains("unknown_tagged_fields: {-")
        && response.encode(&mut again, version).is_ok()
        && let Ok(again) = messages::decode_body::<R>(again.into(), version)
    {
        assert_eq!(again, response);
    }
    Some(response)
}

/// Metadata, through to what the product makes of it.
pub fn metadata(bytes: &[u8]) {
    if let Some(response) = control::<MetadataRequest>(bytes) {
        let Ok(cluster) = memory::bounded(bytes.len(), || ClusterMetadata::from_response(response))
        else {
            return;
        };
        for topic in &cluster.topics {
            let legal = |c: u8| c.is_ascii_alphanumeric() || b"._-".contains(&c);
            assert!(topic.name.bytes().all(legal) && !["", ".", ".."].contains(&&*topic.name));
            assert!(topic.partitions.iter().all(|p| p.partition >= 0));
        }
    }
}

/// ListOffsets.
pub fn list_offsets(bytes: &[u8]) {
    control::<ListOffsetsRequest>(bytes);
}

/// OffsetForLeaderEpoch.
pub fn epoch_ends(bytes: &[u8]) {
    control::<OffsetForLeaderEpochRequest>(bytes);
}

/// ApiVersions: an answer by itself, and two answers to a negotiation.
pub fn api_versions(bytes: &[u8]) {
    control::<ApiVersionsRequest>(bytes);
    let mut input = Input::new(bytes);
    let first = Bytes::copy_from_slice(input.run());
    let second = Bytes::copy_from_slice(input.rest());
    let bytes_max = control_bytes_max(bytes);
    memory::within(bytes_max, || {
        let mut negotiation = Negotiation::start();
        if let Ok(Step::Again) = negotiation.answer(first) {
            assert_eq!(negotiation.version(), 0);
            let step = negotiation.answer(second);
            assert!(!matches!(step, Ok(Step::Again)), "asked for ever");
        }
    });
}

/// Lengths, heads and varints.
pub fn frames(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let (flags, prefix) = (input.byte(), input.take());
    memory::none(|| {
        if let Ok(length) = frame::response_length(prefix, FRAME_BYTES_MAX) {
            assert!((4..=FRAME_BYTES_MAX).contains(&length));
        }
        let body = input.rest();
        let header_version = i16::from(flags & 1);
        let id = body.first_chunk().map_or(0, |id| i32::from_be_bytes(*id));
        let expected = if flags & 2 == 0 { id } else { CORRELATION_ID };
        if let Ok(rest) = frame::response_body(body, header_version, expected) {
            assert!(body.ends_with(rest) && id == expected);
        }
    });
    let mut rest = input.rest();
    if let Ok(value) = guard::varint(&mut rest) {
        let mut again = Vec::new();
        frame::put_varint(&mut again, value);
        assert_eq!(guard::varint(&mut &again[..]), Ok(value));
        assert!(again.len() <= input.rest().len() - rest.len());
    }
}
