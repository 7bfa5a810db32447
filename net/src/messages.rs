//! The control messages a source client sends: which versions we speak, and the layout of each
//! answer, by which its lengths are proven before `kafka-protocol` decodes it.

use crate::error::{DecodeError, NetError};
use crate::frame::{self, RequestHead};
use crate::guard::{self, Kind, Layout, Tag, always, since, within};
use crate::versions::Api;
use bytes::Bytes;
use kafka_protocol::messages::{
    ApiVersionsRequest, ListOffsetsRequest, MetadataRequest, OffsetForLeaderEpochRequest,
};
use kafka_protocol::protocol::{Decodable, HeaderVersion, Request};

/// A request whose answer fits into memory and is decoded as a whole.
pub trait ControlRequest: Request {
    /// Which API it belongs to.
    const API: Api;
    /// How its answer is laid out.
    const ANSWER: &'static Layout;
}

const fn plain(flexible_since: i16, fields: &'static [guard::Field]) -> Layout {
    Layout { flexible_since, fields, tags: &[] }
}

impl ControlRequest for ApiVersionsRequest {
    const API: Api = Api::ApiVersions;
    const ANSWER: &'static Layout = &API_VERSIONS;
}

static API_VERSIONS: Layout = Layout {
    flexible_since: 3,
    fields: &[
        always(Kind::Fixed(2)), // error code
        always(Kind::Structs(&plain(3, &[always(Kind::Fixed(6))]))),
        since(1, Kind::Fixed(4)), // throttle time
    ],
    tags: &[
        Tag { tag: 0, kind: Kind::Structs(&FEATURE) }, // supported
        Tag { tag: 1, kind: Kind::Fixed(8) },          // epoch of the finalized ones
        Tag { tag: 2, kind: Kind::Structs(&FEATURE) }, // finalized
        Tag { tag: 3, kind: Kind::Fixed(1) },          // migration ready
    ],
};

static FEATURE: Layout = plain(3, &[always(Kind::Text), always(Kind::Fixed(4))]);

impl ControlRequest for MetadataRequest {
    const API: Api = Api::Metadata;
    const ANSWER: &'static Layout = &METADATA;
}

static METADATA: Layout = plain(
    9,
    &[
        since(3, Kind::Fixed(4)), // throttle time
        always(Kind::Structs(&METADATA_BROKER)),
        since(2, Kind::Text),     // cluster id
        since(1, Kind::Fixed(4)), // controller
        always(Kind::Structs(&METADATA_TOPIC)),
        within(8, 10, Kind::Fixed(4)), // authorized operations on the cluster
        since(13, Kind::Fixed(2)),     // error code
    ],
);

static METADATA_BROKER: Layout = plain(
    9,
    &[
        always(Kind::Fixed(4)), // node id
        always(Kind::Text),     // host
        always(Kind::Fixed(4)), // port
        since(1, Kind::Text),   // rack
    ],
);

static METADATA_TOPIC: Layout = plain(
    9,
    &[
        always(Kind::Fixed(2)),     // error code
        always(Kind::Text),         // name
        since(10, Kind::Fixed(16)), // topic id
        since(1, Kind::Fixed(1)),   // is internal
        always(Kind::Structs(&METADATA_PARTITION)),
        since(8, Kind::Fixed(4)), // authorized operations on the topic
    ],
);

static METADATA_PARTITION: Layout = plain(
    9,
    &[
        always(Kind::Fixed(10)),   // error code, partition, leader
        since(7, Kind::Fixed(4)),  // leader epoch
        always(Kind::Fixeds(4)),   // replicas
        always(Kind::Fixeds(4)),   // in sync
        since(5, Kind::Fixeds(4)), // offline
    ],
);

impl ControlRequest for ListOffsetsRequest {
    const API: Api = Api::ListOffsets;
    const ANSWER: &'static Layout = &LIST_OFFSETS;
}

static LIST_OFFSETS: Layout =
    plain(6, &[since(2, Kind::Fixed(4)), always(Kind::Structs(&LIST_OFFSETS_TOPIC))]);

static LIST_OFFSETS_TOPIC: Layout = plain(
    6,
    &[
        always(Kind::Text),
        always(Kind::Structs(&plain(
            6,
            // partition, error code, timestamp, offset; then the leader epoch
            &[always(Kind::Fixed(22)), since(4, Kind::Fixed(4))],
        ))),
    ],
);

impl ControlRequest for OffsetForLeaderEpochRequest {
    const API: Api = Api::OffsetForLeaderEpoch;
    const ANSWER: &'static Layout = &EPOCH_END;
}

static EPOCH_END: Layout =
    plain(4, &[since(2, Kind::Fixed(4)), always(Kind::Structs(&EPOCH_END_TOPIC))]);

static EPOCH_END_TOPIC: Layout = plain(
    4,
    &[
        always(Kind::Text),
        // error code, partition, leader epoch, end offset
        always(Kind::Structs(&plain(4, &[always(Kind::Fixed(18))]))),
    ],
);

/// Writes a whole control request, length included, into `out`, whose capacity is reused.
pub fn encode_request<R: ControlRequest>(
    out: &mut Vec<u8>,
    request: &R,
    version: i16,
    correlation_id: i32,
    client_id: &str,
) -> Result<(), NetError> {
    let head = RequestHead {
        api_key: R::KEY,
        api_version: version,
        header_version: R::header_version(version),
        correlation_id,
        client_id,
    };
    frame::begin_request(out, head);
    request.encode(out, version).map_err(|e| NetError::Unsendable {
        api: R::API,
        version,
        reason: e.to_string(),
    })?;
    frame::finish_request(out);
    Ok(())
}

/// Decodes the answer to a control request out of a whole frame (without its length).
pub fn decode_answer<R: ControlRequest>(
    frame: &Bytes,
    version: i16,
    correlation_id: i32,
) -> Result<R::Response, DecodeError> {
    let header_version = R::Response::header_version(version);
    let body = frame::response_body(frame, header_version, correlation_id)?;
    decode_body::<R>(frame.slice_ref(body), version)
}

/// Decodes the body of an answer, after its lengths have been proven.
pub fn decode_body<R: ControlRequest>(
    mut body: Bytes,
    version: i16,
) -> Result<R::Response, DecodeError> {
    guard::check(R::ANSWER, version, &body)?;
    R::Response::decode(&mut body, version).map_err(|e| DecodeError::Content(e.to_string()))
}

#[cfg(test)]
mod tests;
