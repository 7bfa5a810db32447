//! Which version of which API to use with a peer (KIP-35, KIP-511).
//!
//! The first request on every connection is ApiVersions. It is asked in version 3; a peer that
//! does not know that version answers with UNSUPPORTED_VERSION in the form of version 0, and is
//! asked again in version 0, which every Kafka understands.

use crate::codes::ErrorCode;
use crate::error::{DecodeError, NetError};
use crate::messages;
use bytes::Bytes;
use kafka_protocol::messages::{ApiVersionsRequest, ApiVersionsResponse};
use kafka_protocol::protocol::StrBytes;
use std::fmt;
use std::ops::RangeInclusive;

/// The APIs a source client uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Api {
    /// Records.
    Fetch,
    /// Offsets by time; log start and end.
    ListOffsets,
    /// Brokers, topics, partitions, leaders.
    Metadata,
    /// This negotiation.
    ApiVersions,
    /// Where a leader epoch ended.
    OffsetForLeaderEpoch,
}

/// How many there are.
const APIS: usize = 5;

impl Api {
    /// All of them.
    pub const ALL: [Api; APIS] =
        [Api::Fetch, Api::ListOffsets, Api::Metadata, Api::ApiVersions, Api::OffsetForLeaderEpoch];

    /// Kafka's number for the API.
    pub const fn key(self) -> i16 {
        match self {
            Api::Fetch => 1,
            Api::ListOffsets => 2,
            Api::Metadata => 3,
            Api::ApiVersions => 18,
            Api::OffsetForLeaderEpoch => 23,
        }
    }

    /// The versions we speak. Their lower ends are what Kafka 2.1 has: Fetch since it filters by
    /// isolation level, Metadata since it can be asked without creating topics,
    /// OffsetForLeaderEpoch since consumers may ask it.
    pub const fn spoken(self) -> RangeInclusive<i16> {
        match self {
            Api::Fetch => 4..=18,
            Api::ListOffsets => 1..=10,
            Api::Metadata => 4..=13,
            Api::ApiVersions => 0..=3,
            Api::OffsetForLeaderEpoch => 2..=4,
        }
    }
}

impl fmt::Display for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What a peer offers, for the APIs we use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Versions {
    offered: [Option<(i16, i16)>; APIS],
}

impl Versions {
    /// The newest version that both sides speak; `None` when there is none.
    pub fn newest(&self, api: Api) -> Option<i16> {
        let (low, high) = self.offered(api)?;
        let ours = api.spoken();
        let newest = high.min(*ours.end());
        (newest >= low.max(*ours.start())).then_some(newest)
    }

    /// As [`Versions::newest`], with an error that names both sides' versions.
    pub(crate) fn agreed(&self, api: Api, peer: &str) -> Result<i16, NetError> {
        self.newest(api).ok_or_else(|| {
            let theirs = match self.offered(api) {
                Some((low, high)) => format!("versions {low} to {high}"),
                None => "no version".to_owned(),
            };
            let ours = format!("{} to {}", api.spoken().start(), api.spoken().end());
            NetError::Unsupported { peer: peer.to_owned(), api, theirs, ours }
        })
    }

    /// The lowest and highest version the peer offers.
    pub fn offered(&self, api: Api) -> Option<(i16, i16)> {
        self.offered[api as usize]
    }

    /// The first API we need (all but ApiVersions) without a common version, if there is one.
    pub fn missing(&self) -> Option<Api> {
        Api::ALL.into_iter().find(|api| *api != Api::ApiVersions && self.newest(*api).is_none())
    }

    fn from_response(response: &ApiVersionsResponse) -> Versions {
        let mut versions = Versions::default();
        for api in Api::ALL {
            let row = response.api_keys.iter().find(|row| row.api_key == api.key());
            versions.offered[api as usize] = row.map(|row| (row.min_version, row.max_version));
        }
        versions
    }
}

/// The negotiation, one step per answer.
#[derive(Debug)]
pub struct Negotiation {
    version: i16,
}

/// What follows from an answer.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// The peer's versions are known.
    Done(Versions),
    /// Ask again, in the version now due.
    Again,
}

/// A negotiation that came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum NegotiationError {
    /// The answer is not understood.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The peer refuses to say.
    #[error("ApiVersions was answered with {0}")]
    Refused(ErrorCode),
}

impl Negotiation {
    /// Starts with version 3.
    pub fn start() -> Negotiation {
        Negotiation { version: *Api::ApiVersions.spoken().end() }
    }

    /// The version due next.
    pub fn version(&self) -> i16 {
        self.version
    }

    /// The request due next.
    pub fn request(&self) -> ApiVersionsRequest {
        let request = ApiVersionsRequest::default();
        if self.version < 3 {
            return request;
        }
        request
            .with_client_software_name(StrBytes::from_static_str("understudy"))
            .with_client_software_version(StrBytes::from_static_str(env!("CARGO_PKG_VERSION")))
    }

    /// Takes the body of an answer (its head, which is always of version 0, cut off).
    pub fn answer(&mut self, body: Bytes) -> Result<Step, NegotiationError> {
        let code = match body.first_chunk() {
            Some(code) => ErrorCode(i16::from_be_bytes(*code)),
            None => ErrorCode::NONE,
        };
        if code == ErrorCode::UNSUPPORTED_VERSION && self.version > 0 {
            self.version = 0;
            return Ok(Step::Again);
        }
        let response = messages::decode_body::<ApiVersionsRequest>(body, self.version)?;
        match ErrorCode(response.error_code) {
            ErrorCode::NONE => Ok(Step::Done(Versions::from_response(&response))),
            code => Err(NegotiationError::Refused(code)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kafka_protocol::messages::api_versions_response::ApiVersion;
    use kafka_protocol::protocol::Encodable;

    fn response(rows: &[(i16, i16, i16)]) -> ApiVersionsResponse {
        let row = |&(key, low, high): &(i16, i16, i16)| {
            ApiVersion::default().with_api_key(key).with_min_version(low).with_max_version(high)
        };
        ApiVersionsResponse::default().with_api_keys(rows.iter().map(row).collect())
    }

    fn encoded(response: &ApiVersionsResponse, version: i16) -> Bytes {
        let mut out = Vec::new();
        response.encode(&mut out, version).unwrap();
        out.into()
    }

    /// What Kafka 2.1 offers of the APIs we use.
    const KAFKA_2_1: &[(i16, i16, i16)] =
        &[(1, 0, 10), (2, 0, 4), (3, 0, 7), (18, 0, 2), (23, 0, 2)];
    const KAFKA_4_3: &[(i16, i16, i16)] =
        &[(1, 4, 18), (2, 1, 11), (3, 0, 13), (18, 0, 4), (23, 2, 4)];

    #[test]
    fn a_new_broker_is_understood_at_once() {
        let mut negotiation = Negotiation::start();
        assert_eq!(negotiation.version(), 3);
        let Step::Done(versions) = negotiation.answer(encoded(&response(KAFKA_4_3), 3)).unwrap()
        else {
            panic!("asked again")
        };
        let newest = Api::ALL.map(|api| versions.newest(api));
        assert_eq!(newest, [Some(18), Some(10), Some(13), Some(3), Some(4)]);
        assert_eq!(versions.missing(), None);
    }

    #[test]
    fn an_old_broker_is_asked_again_in_version_0() {
        let mut negotiation = Negotiation::start();
        let refusal = response(&[(18, 0, 2)]).with_error_code(35);
        assert_eq!(negotiation.answer(encoded(&refusal, 0)).unwrap(), Step::Again);
        assert_eq!(negotiation.version(), 0);
        let Step::Done(versions) = negotiation.answer(encoded(&response(KAFKA_2_1), 0)).unwrap()
        else {
            panic!("asked again")
        };
        let newest = Api::ALL.map(|api| versions.newest(api));
        assert_eq!(newest, [Some(10), Some(4), Some(7), Some(2), Some(2)]);
        assert_eq!(versions.missing(), None);
    }

    #[test]
    fn refusing_for_ever_ends() {
        let mut negotiation = Negotiation::start();
        let refusal = encoded(&response(&[]).with_error_code(35), 0);
        assert_eq!(negotiation.answer(refusal.clone()).unwrap(), Step::Again);
        assert!(matches!(
            negotiation.answer(refusal),
            Err(NegotiationError::Refused(ErrorCode::UNSUPPORTED_VERSION))
        ));
    }

    #[test]
    fn versions_without_overlap_are_missing() {
        let rows: &[(i16, i16, i16)] = &[(1, 19, 22), (2, 1, 11), (3, 0, 13), (23, 5, 6)];
        let mut negotiation = Negotiation::start();
        let Step::Done(versions) = negotiation.answer(encoded(&response(rows), 3)).unwrap() else {
            panic!("asked again")
        };
        assert_eq!(versions.newest(Api::Fetch), None);
        assert_eq!(versions.missing(), Some(Api::Fetch));
        assert!(Negotiation::start().answer(Bytes::from_static(&[0])).is_err());
    }
}
