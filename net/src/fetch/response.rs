//! The streaming parser of fetch responses, versions 4 to 18.
//!
//! It is fed the bytes of one response frame, from its length on, in pieces of any size, and
//! answers with one [`Event`] at a time. It keeps at most a few dozen bytes of its own: a field cut
//! in two waits for its rest. When a partition's head is complete it says how many record bytes
//! follow; those the caller takes itself, from the same pieces or straight from the socket, and
//! reports with [`ResponseParser::took`].
//!
//! Nothing is allocated, whatever the bytes say. Every length is checked against what is left of
//! the frame, so the work done is bounded by the bytes that arrive.

mod fields;

use crate::codes::ErrorCode;
use crate::frame::{self, FrameError};
use crate::limits::TOPIC_NAME_BYTES_MAX;
use fields::Fields;
use uuid::Uuid;

/// First version with a top-level error code and a session id.
pub(super) const SESSIONS_SINCE: i16 = 7;
/// First version whose lengths are varints and whose structs end in tagged fields.
const FLEXIBLE_SINCE: i16 = 12;
/// First version that names topics by id.
pub(super) const TOPIC_IDS_SINCE: i16 = 13;

/// What stands at the top of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ResponseHead {
    /// For how long the source wants to hear nothing from us, in milliseconds.
    pub throttle_time_ms: i32,
    /// Concerns the whole request.
    pub error_code: ErrorCode,
    /// The fetch session; 0 when there is none.
    pub session_id: i32,
}

/// A topic, as the response names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TopicRef<'a> {
    /// Before version 13.
    Name(&'a str),
    /// From version 13 on.
    Id(Uuid),
}

/// What stands in front of a partition's records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartitionHead {
    /// The partition's number.
    pub partition: i32,
    /// Concerns this partition alone.
    pub error_code: ErrorCode,
    /// One past the last offset that consumers may read; -1 with an error.
    pub high_watermark: i64,
    /// Before it all transactions are decided; -1 when not told.
    pub last_stable_offset: i64,
    /// The first offset there is; -1 when not told.
    pub log_start_offset: i64,
    /// Another replica that the source would rather have us read from; -1 when none.
    pub preferred_read_replica: i32,
    /// How many bytes of records follow.
    pub records_bytes: usize,
}

/// Where an epoch ends in the source's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EpochEnd {
    /// The largest epoch at or below the one we fetched last.
    pub epoch: i32,
    /// Where it ends.
    pub end_offset: i64,
}

/// Who leads a partition, told with a refusal (KIP-951).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaderNow {
    /// The broker; -1 when unknown.
    pub leader: i32,
    /// Its epoch; -1 when unknown.
    pub epoch: i32,
}

/// What stands behind a partition's records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PartitionTail {
    /// The source's log and ours part here: no records came.
    pub diverging_epoch: Option<EpochEnd>,
    /// The leader, when it is another one than was asked.
    pub current_leader: Option<LeaderNow>,
}

/// What the parser found next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    /// All bytes given are used up; more are needed.
    More,
    /// The top of the response.
    Head(ResponseHead),
    /// The partitions that follow belong to this topic.
    Topic(TopicRef<'a>),
    /// A partition; its records follow.
    Partition(PartitionHead),
    /// So many record bytes come next, which the caller has to take.
    Records(usize),
    /// The partition is complete.
    PartitionEnd(PartitionTail),
    /// The response is complete, and so is its frame.
    End,
}

/// A response that cannot be one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Its length or its correlation id.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A field reaches beyond the end of the frame.
    #[error("{what} of {bytes} bytes where {left} are left of the frame")]
    PastEnd {
        /// Which field.
        what: &'static str,
        /// Its claimed length, in bytes.
        bytes: usize,
        /// What is left of the frame, in bytes.
        left: usize,
    },
    /// A length that is negative, null where it may not be, or no varint.
    #[error("impossible length of {0}")]
    BadLength(&'static str),
    /// A topic name of more than [`TOPIC_NAME_BYTES_MAX`] bytes, or not UTF-8.
    #[error("a topic name that no topic can have")]
    BadTopicName,
    /// A tagged field that is too short for what it should hold.
    #[error("tagged field {0} is too short")]
    BadTag(u32),
    /// Bytes remain behind the last field.
    #[error("{0} bytes behind the end of the response")]
    Trailing(usize),
}

/// Parses one response. See the module.
#[derive(Debug)]
pub struct ResponseParser {
    version: i16,
    correlation_id: i32,
    frame_bytes_max: usize,
    state: State,
    fields: Fields,
    name: [u8; TOPIC_NAME_BYTES_MAX],
    name_bytes: usize,
    name_filled: usize,
    topics: usize,
    partitions: usize,
    aborted: usize,
    partition: PartitionHead,
    tail: PartitionTail,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Length,
    Correlation,
    HeaderTags,
    Head,
    Topics,
    TopicNext,
    TopicNameBytes,
    Partitions,
    PartitionNext,
    Inside(Part),
    TopicTags,
    TopTags,
    Done,
}

/// Where inside of a partition, behind the fields it begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Aborted,
    AbortedNext,
    AbortedTags,
    PreferredReplica,
    RecordsBytes,
    Records(usize),
    Tags,
}

/// Leaves the step, to come back to it, when the input ends inside of the field.
macro_rules! need {
    ($field:expr) => {
        match $field? {
            Some(field) => field,
            None => return Ok(Progress::More),
        }
    };
}

impl ResponseParser {
    /// A parser for the answer to one request. `version` must be one we speak (4 to 18).
    pub fn new(version: i16, correlation_id: i32, frame_bytes_max: usize) -> ResponseParser {
        assert!(crate::Api::Fetch.spoken().contains(&version), "fetch version {version}");
        ResponseParser {
            version,
            correlation_id,
            frame_bytes_max,
            state: State::Length,
            fields: Fields::new(version >= FLEXIBLE_SINCE, frame::LENGTH_BYTES),
            name: [0; TOPIC_NAME_BYTES_MAX],
            name_bytes: 0,
            name_filled: 0,
            topics: 0,
            partitions: 0,
            aborted: 0,
            partition: NO_PARTITION,
            tail: PartitionTail::default(),
        }
    }

    /// Bytes of the frame that have not been consumed (or taken) yet. Before the frame's length
    /// has been read: what is left of that.
    pub fn frame_left(&self) -> usize {
        self.fields.left()
    }

    /// Consumes from the front of `input` up to the next event. [`Event::More`] means that `input`
    /// is used up; [`Event::Records`] is repeated until [`ResponseParser::took`] accounts for them.
    pub fn next(&mut self, input: &mut &[u8]) -> Result<Event<'_>, ParseError> {
        loop {
            match self.step(input)? {
                Progress::More => return Ok(Event::More),
                Progress::On => {}
                Progress::Topic => return self.topic_event(),
                Progress::Event(event) => return Ok(event),
            }
        }
    }

    /// The caller has taken `bytes` of the records that were announced.
    pub fn took(&mut self, bytes: usize) {
        let State::Inside(Part::Records(records)) = self.state else {
            panic!("no records are due")
        };
        assert!(bytes <= records, "took {bytes} of {records} record bytes");
        self.fields.skip(bytes);
        self.state = State::Inside(Part::Records(records - bytes));
    }

    fn flexible(&self) -> bool {
        self.version >= FLEXIBLE_SINCE
    }

    fn step(&mut self, input: &mut &[u8]) -> Result<Progress, ParseError> {
        self.state = match self.state {
            State::Length => {
                let prefix = need!(self.fields.fixed(input, "length"));
                self.fields.limit(frame::response_length(prefix, self.frame_bytes_max)?);
                State::Correlation
            }
            State::Correlation => {
                let id = i32::from_be_bytes(need!(self.fields.fixed(input, "correlation id")));
                frame::check_correlation(self.correlation_id, id)?;
                if self.flexible() { State::HeaderTags } else { State::Head }
            }
            State::HeaderTags => {
                need!(self.fields.tags(input, |_, _| Ok(())));
                State::Head
            }
            State::Head => {
                let head = need!(self.head(input));
                self.state = State::Topics;
                return Ok(Progress::Event(Event::Head(head)));
            }
            State::Topics => {
                self.topics = need!(self.fields.count(input, "topics"))
                    .ok_or(ParseError::BadLength("topics"))?;
                State::TopicNext
            }
            State::TopicNext if self.topics == 0 => {
                if self.flexible() {
                    State::TopTags
                } else {
                    State::Done
                }
            }
            State::TopicNext => return self.topic_begin(input),
            State::TopicNameBytes => return self.topic_name(input),
            State::Partitions => {
                let count = need!(self.fields.count(input, "partitions"));
                self.partitions = count.ok_or(ParseError::BadLength("partitions"))?;
                State::PartitionNext
            }
            State::PartitionNext if self.partitions == 0 => {
                self.topics -= 1;
                if self.flexible() { State::TopicTags } else { State::TopicNext }
            }
            State::PartitionNext => {
                need!(self.partition_begin(input));
                State::Inside(Part::Aborted)
            }
            State::Inside(part) => return self.inside(part, input),
            State::TopicTags => {
                need!(self.fields.tags(input, |_, _| Ok(())));
                State::TopicNext
            }
            State::TopTags => {
                // Among them (from version 16 on) addresses of new leaders: metadata tells as much.
                need!(self.fields.tags(input, |_, _| Ok(())));
                State::Done
            }
            State::Done if self.fields.left() > 0 => {
                return Err(ParseError::Trailing(self.fields.left()));
            }
            State::Done => return Ok(Progress::Event(Event::End)),
        };
        Ok(Progress::On)
    }

    /// A step inside of a partition.
    fn inside(&mut self, part: Part, input: &mut &[u8]) -> Result<Progress, ParseError> {
        let next = match part {
            Part::Aborted => {
                self.aborted = need!(self.fields.count(input, "aborted transactions")).unwrap_or(0);
                Part::AbortedNext
            }
            Part::AbortedNext if self.aborted == 0 => {
                if self.version >= 11 {
                    Part::PreferredReplica
                } else {
                    Part::RecordsBytes
                }
            }
            Part::AbortedNext => {
                // They are for read_committed; whoever asks read_uncommitted has no use for them.
                need!(self.fields.fixed::<16>(input, "aborted transaction"));
                self.aborted -= 1;
                if self.flexible() { Part::AbortedTags } else { Part::AbortedNext }
            }
            Part::AbortedTags => {
                need!(self.fields.tags(input, |_, _| Ok(())));
                Part::AbortedNext
            }
            Part::PreferredReplica => {
                let replica = need!(self.fields.fixed(input, "preferred replica"));
                self.partition.preferred_read_replica = i32::from_be_bytes(replica);
                Part::RecordsBytes
            }
            Part::RecordsBytes => {
                self.partition.records_bytes =
                    need!(self.fields.count(input, "records")).unwrap_or(0);
                self.state = State::Inside(Part::Records(self.partition.records_bytes));
                return Ok(Progress::Event(Event::Partition(self.partition)));
            }
            Part::Records(0) if self.flexible() => Part::Tags,
            Part::Records(0) => return Ok(self.partition_end()),
            Part::Records(bytes) => return Ok(Progress::Event(Event::Records(bytes))),
            Part::Tags => {
                let tail = &mut self.tail;
                need!(self.fields.tags(input, |number, body| partition_tag(tail, number, body)));
                return Ok(self.partition_end());
            }
        };
        self.state = State::Inside(next);
        Ok(Progress::On)
    }

    fn head(&mut self, input: &mut &[u8]) -> Result<Option<ResponseHead>, ParseError> {
        if self.version < SESSIONS_SINCE {
            let throttle = self.fields.fixed(input, "response head")?;
            return Ok(throttle.map(|throttle| ResponseHead {
                throttle_time_ms: i32::from_be_bytes(throttle),
                ..ResponseHead::default()
            }));
        }
        let bytes = self.fields.fixed::<10>(input, "response head")?;
        Ok(bytes.map(|bytes| ResponseHead {
            throttle_time_ms: i32::from_be_bytes(part(&bytes, 0)),
            error_code: ErrorCode(i16::from_be_bytes(part(&bytes, 4))),
            session_id: i32::from_be_bytes(part(&bytes, 6)),
        }))
    }

    fn topic_begin(&mut self, input: &mut &[u8]) -> Result<Progress, ParseError> {
        if self.version >= TOPIC_IDS_SINCE {
            let Some(id) = self.fields.fixed::<16>(input, "topic id")? else {
                return Ok(Progress::More);
            };
            self.name[..16].copy_from_slice(&id);
            self.state = State::Partitions;
            return Ok(Progress::Topic);
        }
        let bytes = if self.flexible() {
            let Some(length) = self.fields.varint(input, "topic name")? else {
                return Ok(Progress::More);
            };
            length.checked_sub(1).map(|bytes| bytes as usize)
        } else {
            let Some(length) = self.fields.fixed(input, "topic name")? else {
                return Ok(Progress::More);
            };
            usize::try_from(i16::from_be_bytes(length)).ok()
        };
        self.name_bytes = bytes.ok_or(ParseError::BadLength("topic name"))?;
        if self.name_bytes > TOPIC_NAME_BYTES_MAX {
            return Err(ParseError::BadTopicName);
        }
        self.fields.within("topic name", self.name_bytes)?;
        self.name_filled = 0;
        self.state = State::TopicNameBytes;
        Ok(Progress::On)
    }

    fn topic_name(&mut self, input: &mut &[u8]) -> Result<Progress, ParseError> {
        let name = &mut self.name[..self.name_bytes];
        self.name_filled = self.fields.fill(input, name, self.name_filled);
        if self.name_filled < self.name_bytes {
            return Ok(Progress::More);
        }
        self.state = State::Partitions;
        Ok(Progress::Topic)
    }

    fn topic_event(&self) -> Result<Event<'_>, ParseError> {
        if self.version >= TOPIC_IDS_SINCE {
            return Ok(Event::Topic(TopicRef::Id(Uuid::from_bytes(part(&self.name, 0)))));
        }
        let name = std::str::from_utf8(&self.name[..self.name_bytes]);
        Ok(Event::Topic(TopicRef::Name(name.map_err(|_| ParseError::BadTopicName)?)))
    }

    fn partition_begin(&mut self, input: &mut &[u8]) -> Result<Option<()>, ParseError> {
        self.partition = NO_PARTITION;
        self.tail = PartitionTail::default();
        let with_log_start = self.version >= 5;
        let fields = if with_log_start {
            self.fields
                .fixed::<30>(input, "partition")?
                .map(|fields| (part::<22, _>(&fields, 0), Some(part(&fields, 22))))
        } else {
            self.fields.fixed::<22>(input, "partition")?.map(|fields| (fields, None))
        };
        let Some((fields, log_start)) = fields else { return Ok(None) };
        self.partition.partition = i32::from_be_bytes(part(&fields, 0));
        self.partition.error_code = ErrorCode(i16::from_be_bytes(part(&fields, 4)));
        self.partition.high_watermark = i64::from_be_bytes(part(&fields, 6));
        self.partition.last_stable_offset = i64::from_be_bytes(part(&fields, 14));
        self.partition.log_start_offset = log_start.map_or(-1, i64::from_be_bytes);
        Ok(Some(()))
    }

    fn partition_end(&mut self) -> Progress {
        self.partitions -= 1;
        self.state = State::PartitionNext;
        Progress::Event(Event::PartitionEnd(self.tail))
    }
}

enum Progress {
    On,
    More,
    Topic,
    Event(Event<'static>),
}

const NO_PARTITION: PartitionHead = PartitionHead {
    partition: -1,
    error_code: ErrorCode::NONE,
    high_watermark: -1,
    last_stable_offset: -1,
    log_start_offset: -1,
    preferred_read_replica: -1,
    records_bytes: 0,
};

/// Tagged fields of a partition: 0 diverging epoch, 1 current leader. (2, the id of a snapshot, is
/// for followers of the metadata log.)
fn partition_tag(tail: &mut PartitionTail, number: u32, body: &[u8]) -> Result<(), ParseError> {
    let needs = |bytes| if body.len() < bytes { Err(ParseError::BadTag(number)) } else { Ok(()) };
    match number {
        0 => {
            needs(12)?;
            tail.diverging_epoch = Some(EpochEnd {
                epoch: i32::from_be_bytes(part(body, 0)),
                end_offset: i64::from_be_bytes(part(body, 4)),
            });
        }
        1 => {
            needs(8)?;
            tail.current_leader = Some(LeaderNow {
                leader: i32::from_be_bytes(part(body, 0)),
                epoch: i32::from_be_bytes(part(body, 4)),
            });
        }
        _ => {}
    }
    Ok(())
}

/// N bytes from `at`; the caller knows that they are there.
fn part<const N: usize, B: AsRef<[u8]> + ?Sized>(bytes: &B, at: usize) -> [u8; N] {
    bytes.as_ref()[at..at + N].try_into().expect("N bytes")
}

#[cfg(test)]
mod tests;
