//! Fetches: the session's request out, the answer parsed and handed to a sink while it arrives.

use super::{Connection, LENGTH_BYTES, Pace};
use crate::error::NetError;
use crate::fetch::{
    Asked, End, Event, FetchLimits, FetchSession, Flow, Found, ParseError, RecordSink,
    ResponseParser, Take, Verdict,
};
use crate::frame::{self, FrameError, RequestHead};
use crate::limits::{COPY_BYTES_MAX, FETCH_RESPONSE_BYTES_MAX, HEAD_BYTES, OVERSHOOT_BYTES};
use crate::versions::Api;
use kafka_protocol::messages::FetchRequest;
use kafka_protocol::protocol::HeaderVersion;
use std::time::Duration;

/// What a fetch brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FetchOutcome {
    /// What the answer as a whole says.
    pub verdict: Verdict,
    /// The answer named what was asked for and nothing else. If not, the session starts over.
    pub in_step: bool,
    /// What was asked.
    pub asked: Asked,
    /// Partitions in the answer, asked for or not.
    pub partitions: usize,
    /// Bytes of records in the answer, taken or skipped.
    pub records_bytes: u64,
    /// For how long the source wants to hear nothing from us.
    pub throttle: Duration,
}

/// Where the answer's parsing stands.
struct Answer {
    parser: ResponseParser,
    /// The part of the head buffer that is not parsed yet.
    at: usize,
    filled: usize,
    pace: Pace,
    /// Since when the sink has had no memory.
    starved_since: Option<ring::Instant>,
    topic: Option<u32>,
    /// The sink has been given this partition and not its end.
    open: bool,
    /// The records at hand are not wanted.
    skip: bool,
    record_sets: usize,
    outcome: FetchOutcome,
}

impl Connection {
    /// Asks for what the session wants and hands the answer to the sink, partition by partition.
    ///
    /// On an error the session starts over by itself with the next request (after
    /// [`FetchSession::moved`], if that goes to another broker).
    ///
    /// # Errors
    /// Any [`NetError`] but `Decode` and `Refused`: what the source says of the request as a whole
    /// is in [`FetchOutcome::verdict`].
    pub async fn fetch<S: RecordSink>(
        &mut self,
        session: &mut FetchSession,
        limits: &FetchLimits,
        sink: &mut S,
    ) -> Result<FetchOutcome, NetError> {
        let newest = self.version(Api::Fetch)?;
        let version = session.version(newest);
        self.begin()?;
        let head = RequestHead {
            api_key: Api::Fetch.key(),
            api_version: version,
            header_version: FetchRequest::header_version(version),
            correlation_id: self.correlation_id,
            client_id: &self.options.client_id,
        };
        frame::begin_request(&mut self.request, head);
        let asked = session.encode(newest, limits, &mut self.request);
        frame::finish_request(&mut self.request);
        self.send_request().await?;
        let max_wait = Duration::from_millis(limits.max_wait_ms.max(0) as u64);
        let mut answer = Answer {
            parser: ResponseParser::new(version, self.correlation_id, FETCH_RESPONSE_BYTES_MAX),
            at: 0,
            filled: 0,
            pace: Pace::start(&self.options, max_wait),
            starved_since: None,
            topic: None,
            open: false,
            skip: true,
            record_sets: 0,
            outcome: FetchOutcome {
                verdict: Verdict::Good,
                in_step: true,
                asked,
                partitions: 0,
                records_bytes: 0,
                throttle: Duration::ZERO,
            },
        };
        let result = self.receive_answer(&mut answer, version, session, sink).await;
        if result.is_err() && answer.open {
            sink.end(End::CutShort);
        }
        result?;
        self.broken = false;
        let Answer { outcome, record_sets, .. } = answer;
        if record_sets > 0 {
            let mean_bytes = outcome.records_bytes / record_sets as u64;
            self.large_records = mean_bytes > COPY_BYTES_MAX as u64;
        }
        Ok(outcome)
    }

    async fn receive_answer<S: RecordSink>(
        &mut self,
        answer: &mut Answer,
        version: i16,
        session: &mut FetchSession,
        sink: &mut S,
    ) -> Result<(), NetError> {
        loop {
            let head = self.head.as_ref().expect("the head buffer is at home");
            let mut input = &head[answer.at..answer.filled];
            let event = answer.parser.next(&mut input);
            answer.at = answer.filled - input.len();
            match event.map_err(|e| self.unparsed(version, e))? {
                Event::More => {
                    let large = self.large_records;
                    let window = if large { OVERSHOOT_BYTES } else { HEAD_BYTES };
                    self.refill(answer, window).await?;
                }
                Event::Head(head) => {
                    let throttle_ms = head.throttle_time_ms.max(0) as u64;
                    answer.outcome.throttle = Duration::from_millis(throttle_ms);
                    answer.outcome.verdict = session.begin_response(&head);
                }
                Event::Topic(topic) => answer.topic = session.find_topic(topic),
                Event::Partition(head) => {
                    answer.outcome.partitions += 1;
                    answer.outcome.records_bytes += head.records_bytes as u64;
                    answer.record_sets += usize::from(head.records_bytes > 0);
                    answer.skip = true;
                    // With a refusal of the whole, what follows belongs to no session.
                    if answer.outcome.verdict == Verdict::Good
                        && let Found::Key(key) = session.find(answer.topic, head.partition)
                    {
                        answer.open = true;
                        answer.skip = sink.partition(key, &head) == Take::Skip;
                    }
                }
                Event::Records(left) => self.records(answer, left, sink).await?,
                Event::PartitionEnd(tail) => {
                    if std::mem::take(&mut answer.open) {
                        sink.end(End::Complete(tail));
                    }
                }
                Event::End => break,
            }
        }
        if answer.at < answer.filled {
            return Err(self.unparsed(version, ParseError::Frame(FrameError::Unasked)));
        }
        if answer.outcome.verdict == Verdict::Good {
            answer.outcome.in_step = session.end_response();
        }
        Ok(())
    }

    /// Takes some of the record bytes that come next, `left` of them being left.
    async fn records<S: RecordSink>(
        &mut self,
        answer: &mut Answer,
        left: usize,
        sink: &mut S,
    ) -> Result<(), NetError> {
        let ready = left.min(answer.filled - answer.at);
        if ready == 0 && (answer.skip || left <= COPY_BYTES_MAX) {
            // Behind the last of a large record set come more of them: those are not for copying.
            let large = self.large_records && !answer.skip;
            let window = if large { left + OVERSHOOT_BYTES } else { HEAD_BYTES };
            return self.refill(answer, window).await;
        }
        if answer.skip {
            answer.at += ready;
            answer.parser.took(ready);
            return Ok(());
        }
        if ready == 0 {
            return self.receive_records(answer, left, sink).await;
        }
        let head = self.head.as_ref().expect("the head buffer is at home");
        let (copied, flow) = sink.copy_in(&head[answer.at..answer.at + ready]);
        assert!(copied <= ready, "copied {copied} of {ready} bytes");
        self.counters.copied_bytes += copied as u64;
        answer.at += copied;
        answer.parser.took(copied);
        answer.skip = flow == Flow::SkipRest;
        if copied < ready && !answer.skip {
            return self.wait_for_memory(answer, ready - copied, sink).await;
        }
        answer.starved_since = None;
        Ok(())
    }

    /// Receives records into memory of the sink, and what follows them into the head buffer.
    async fn receive_records<S: RecordSink>(
        &mut self,
        answer: &mut Answer,
        left: usize,
        sink: &mut S,
    ) -> Result<(), NetError> {
        let begun = ring::now();
        sink.keep_pace().await;
        answer.pace.excused += ring::now().since(begun);
        let Some(lease) = sink.lend(left) else {
            return self.wait_for_memory(answer, left, sink).await;
        };
        answer.starved_since = None;
        let room = lease.len();
        assert!((1..=left).contains(&room), "lent {room} for {left} bytes");
        // Never more than the frame holds, so that the receive may wait until all of it is there.
        let behind = answer.parser.frame_left() - left;
        // A record set that begins within a block ends a little behind the memory lent for it.
        let rest = left - room;
        let window = if rest <= COPY_BYTES_MAX { rest + behind.min(OVERSHOOT_BYTES) } else { 0 };
        let receive = self.receive(Some(lease), window, Api::Fetch, &mut answer.pace);
        let (bytes, lease) = receive.await?;
        let lease = lease.expect("the records' lease comes back");
        let records = bytes.min(room);
        answer.at = 0;
        answer.filled = bytes - records;
        answer.parser.took(records);
        answer.skip = sink.filled(lease, records) == Flow::SkipRest;
        Ok(())
    }

    /// Fills the head buffer anew; all of it has been parsed.
    async fn refill(&mut self, answer: &mut Answer, window: usize) -> Result<(), NetError> {
        debug_assert_eq!(answer.at, answer.filled);
        (answer.at, answer.filled) = (0, 0);
        answer.filled = self.receive_head(window, Api::Fetch, &mut answer.pace).await?;
        Ok(())
    }

    /// Waits until it is worth asking the sink again for memory for so many bytes.
    async fn wait_for_memory<S: RecordSink>(
        &mut self,
        answer: &mut Answer,
        bytes: usize,
        sink: &mut S,
    ) -> Result<(), NetError> {
        self.counters.memory_waits += 1;
        let limit = self.options.memory_limit;
        let now = ring::now();
        let again = answer.starved_since.is_some();
        let starved = now.since(*answer.starved_since.get_or_insert(now));
        let waited = ring::timeout(limit.saturating_sub(starved), sink.memory(bytes)).await;
        if again {
            // The sink was wrongly hopeful: there is memory, but not what it needs.
            ring::sleep(HOPEFUL_PAUSE).await;
        }
        answer.pace.excused += ring::now().since(now);
        if waited.is_err() || starved >= limit {
            return Err(NetError::NoMemory { peer: self.peer.clone(), bytes, limit });
        }
        Ok(())
    }

    fn unparsed(&self, version: i16, source: ParseError) -> NetError {
        NetError::Fetch { peer: self.peer.clone(), version, source }
    }
}

/// How long a sink is left alone whose memory came and did not do.
const HOPEFUL_PAUSE: Duration = Duration::from_millis(1);

const _: () = assert!(OVERSHOOT_BYTES > LENGTH_BYTES);
