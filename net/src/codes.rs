//! Kafka's error codes, as a source may answer them, and what each means to a replica.
//!
//! Source of names and numbers: the error table of the Kafka protocol guide.

use std::fmt;

/// An error code from the wire; 0 is success.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct ErrorCode(pub i16);

/// What an error code asks of us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meaning {
    /// No error.
    Success,
    /// The same request may work later; nothing else has to change.
    Retry,
    /// Our picture of the cluster is old: who leads, which topics there are, which ids they have.
    RefreshMetadata,
    /// The fetch session is gone or out of step: start a new one.
    RestartSession,
    /// The offset lies outside of the source's log: find out why before anything is done.
    OffsetOutOfRange,
    /// Our leader epoch is older than the source's: refresh metadata, then compare logs.
    EpochFenced,
    /// Rights are missing; a person has to grant them.
    Denied,
    /// The source cannot read or trust its own records.
    SourceDamaged,
    /// The request itself is wrong or not understood; trying again cannot help.
    Refused,
}

struct Row {
    code: i16,
    name: &'static str,
    meaning: Meaning,
}

const fn row(code: i16, name: &'static str, meaning: Meaning) -> Row {
    Row { code, name, meaning }
}

/// Sorted by code.
const TABLE: &[Row] = &[
    row(-1, "UNKNOWN_SERVER_ERROR", Meaning::Retry),
    row(0, "NONE", Meaning::Success),
    row(1, "OFFSET_OUT_OF_RANGE", Meaning::OffsetOutOfRange),
    row(2, "CORRUPT_MESSAGE", Meaning::SourceDamaged),
    row(3, "UNKNOWN_TOPIC_OR_PARTITION", Meaning::RefreshMetadata),
    row(4, "INVALID_FETCH_SIZE", Meaning::Refused),
    row(5, "LEADER_NOT_AVAILABLE", Meaning::RefreshMetadata),
    row(6, "NOT_LEADER_OR_FOLLOWER", Meaning::RefreshMetadata),
    row(7, "REQUEST_TIMED_OUT", Meaning::Retry),
    row(8, "BROKER_NOT_AVAILABLE", Meaning::RefreshMetadata),
    row(9, "REPLICA_NOT_AVAILABLE", Meaning::RefreshMetadata),
    row(13, "NETWORK_EXCEPTION", Meaning::RefreshMetadata),
    row(14, "COORDINATOR_LOAD_IN_PROGRESS", Meaning::Retry),
    row(15, "COORDINATOR_NOT_AVAILABLE", Meaning::Retry),
    row(16, "NOT_COORDINATOR", Meaning::Retry),
    row(17, "INVALID_TOPIC_EXCEPTION", Meaning::Refused),
    row(29, "TOPIC_AUTHORIZATION_FAILED", Meaning::Denied),
    row(30, "GROUP_AUTHORIZATION_FAILED", Meaning::Denied),
    row(31, "CLUSTER_AUTHORIZATION_FAILED", Meaning::Denied),
    row(33, "UNSUPPORTED_SASL_MECHANISM", Meaning::Refused),
    row(34, "ILLEGAL_SASL_STATE", Meaning::Refused),
    row(35, "UNSUPPORTED_VERSION", Meaning::Refused),
    row(41, "NOT_CONTROLLER", Meaning::RefreshMetadata),
    row(42, "INVALID_REQUEST", Meaning::Refused),
    row(43, "UNSUPPORTED_FOR_MESSAGE_FORMAT", Meaning::Refused),
    row(44, "POLICY_VIOLATION", Meaning::Refused),
    row(54, "SECURITY_DISABLED", Meaning::Refused),
    row(56, "KAFKA_STORAGE_ERROR", Meaning::RefreshMetadata),
    row(58, "SASL_AUTHENTICATION_FAILED", Meaning::Denied),
    row(70, "FETCH_SESSION_ID_NOT_FOUND", Meaning::RestartSession),
    row(71, "INVALID_FETCH_SESSION_EPOCH", Meaning::RestartSession),
    row(72, "LISTENER_NOT_FOUND", Meaning::RefreshMetadata),
    row(73, "TOPIC_DELETION_DISABLED", Meaning::Refused),
    row(74, "FENCED_LEADER_EPOCH", Meaning::EpochFenced),
    row(75, "UNKNOWN_LEADER_EPOCH", Meaning::Retry),
    row(76, "UNSUPPORTED_COMPRESSION_TYPE", Meaning::Refused),
    row(78, "OFFSET_NOT_AVAILABLE", Meaning::Retry),
    row(87, "INVALID_RECORD", Meaning::SourceDamaged),
    row(89, "THROTTLING_QUOTA_EXCEEDED", Meaning::Retry),
    row(100, "UNKNOWN_TOPIC_ID", Meaning::RefreshMetadata),
    row(103, "INCONSISTENT_TOPIC_ID", Meaning::RefreshMetadata),
    row(106, "FETCH_SESSION_TOPIC_ID_ERROR", Meaning::RestartSession),
    row(109, "OFFSET_MOVED_TO_TIERED_STORAGE", Meaning::OffsetOutOfRange),
    row(129, "REBOOTSTRAP_REQUIRED", Meaning::RefreshMetadata),
];

impl ErrorCode {
    /// Success.
    pub const NONE: ErrorCode = ErrorCode(0);
    /// The offset lies outside of the log.
    pub const OFFSET_OUT_OF_RANGE: ErrorCode = ErrorCode(1);
    /// No such topic or partition there.
    pub const UNKNOWN_TOPIC_OR_PARTITION: ErrorCode = ErrorCode(3);
    /// The version asked for is not served.
    pub const UNSUPPORTED_VERSION: ErrorCode = ErrorCode(35);
    /// The session id is not known (any more).
    pub const FETCH_SESSION_ID_NOT_FOUND: ErrorCode = ErrorCode(70);
    /// The session's epoch is not the one expected.
    pub const INVALID_FETCH_SESSION_EPOCH: ErrorCode = ErrorCode(71);
    /// Our leader epoch is older than the source's.
    pub const FENCED_LEADER_EPOCH: ErrorCode = ErrorCode(74);
    /// Our leader epoch is newer than the source's.
    pub const UNKNOWN_LEADER_EPOCH: ErrorCode = ErrorCode(75);
    /// No topic has this id (any more).
    pub const UNKNOWN_TOPIC_ID: ErrorCode = ErrorCode(100);
    /// The topic's id is not the one in the log.
    pub const INCONSISTENT_TOPIC_ID: ErrorCode = ErrorCode(103);
    /// A session mixed requests with and without topic ids.
    pub const FETCH_SESSION_TOPIC_ID_ERROR: ErrorCode = ErrorCode(106);

    /// True for 0.
    pub fn is_none(self) -> bool {
        self.0 == 0
    }

    /// Kafka's name for the code; `None` for one we have not heard of.
    pub fn name(self) -> Option<&'static str> {
        self.find().map(|row| row.name)
    }

    /// What to do about it. A code we have not heard of is retried, with back-off.
    pub fn meaning(self) -> Meaning {
        self.find().map_or(Meaning::Retry, |row| row.meaning)
    }

    /// Whether the same request may succeed later without a person doing anything.
    pub fn retriable(self) -> bool {
        use Meaning::*;
        matches!(self.meaning(), Retry | RefreshMetadata | RestartSession | EpochFenced)
    }

    fn find(self) -> Option<&'static Row> {
        TABLE.binary_search_by_key(&self.0, |row| row.code).ok().map(|at| &TABLE[at])
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => write!(f, "{name} ({})", self.0),
            None => write!(f, "error code {}", self.0),
        }
    }
}

impl fmt::Debug for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kafka_protocol::{ResponseError, error::ParseResponseErrorCode};

    #[test]
    fn the_table_is_sorted_and_agrees_with_the_oracle_on_retrying() {
        assert!(TABLE.windows(2).all(|pair| pair[0].code < pair[1].code));
        for row in TABLE {
            let code = ErrorCode(row.code);
            assert_eq!(code.name(), Some(row.name));
            let Some(oracle) = row.code.err() else { continue };
            if matches!(oracle, ResponseError::Unknown(_)) {
                continue;
            }
            let upper: String = row.name.replace('_', "").to_lowercase();
            assert_eq!(format!("{oracle:?}").to_lowercase(), upper, "{}", row.code);
        }
        assert!(ErrorCode(-1).retriable() && ErrorCode(999).retriable());
        assert!(!ErrorCode(29).retriable() && !ErrorCode(1).retriable());
        assert_eq!(ErrorCode(999).to_string(), "error code 999");
    }
}
