//! Fetching: what to ask for, and how the answer is taken apart while it arrives.
//!
//! A [`FetchSession`] turns "these partitions, from these offsets" into requests that name only
//! what changed (KIP-227). A [`ResponseParser`] reads heads and says how many record bytes follow.
//! A [`RecordSink`] owns those bytes. All three are sans-I/O; [`crate::Connection::fetch`] joins
//! them to a socket.

mod request;
mod response;
mod session;
mod sink;

pub use response::{
    EpochEnd, Event, LeaderNow, ParseError, PartitionHead, PartitionTail, ResponseHead,
    ResponseParser, TopicRef,
};
pub use session::{Asked, FetchLimits, FetchSession, Found, TopicName, Verdict, Wanted};
pub use sink::{End, Flow, RecordSink, Take};
