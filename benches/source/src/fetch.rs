//! Fetch, versions 4 to 18: reads what is asked, waits for data, writes the answer.
//!
//! Reading finds for each partition only a batch and a number of bytes; the records become
//! pieces of shared memory when the answer is written. The rules are a broker's: the size limits
//! with their first-batch exception (KIP-74), epochs and divergence (KIP-320, KIP-595), sessions
//! (KIP-227), topic ids (KIP-516), new leaders told with the error (KIP-951).

use crate::cluster::{Shared, State, Topic};
use crate::fault::{Fault, false_records};
use crate::log::BatchAt;
use crate::session::{FetchContext, SessionError, SessionRequest, TopicKey, Wanted};
use crate::wire::{Malformed, Reader, Response};
use kafka_protocol::ResponseError as E;
use std::time::{Duration, Instant};

/// The longest a fetch may wait, whatever it asks for.
const WAIT_MAX: Duration = Duration::from_secs(600);

#[derive(Debug)]
struct FetchRequest {
    wait_max: Duration,
    bytes_min: i32,
    bytes_max: i32,
    read_committed: bool,
    session: SessionRequest,
}

/// Settings of a broker that concern Fetch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FetchSettings {
    /// A broker's own limit on an answer, bytes.
    pub bytes_max: i32,
    /// Whether answers may end within a batch, as a broker's do.
    pub partial_batches: bool,
}

/// What is found out about one partition.
#[derive(Debug)]
struct Answer {
    wanted: Wanted,
    error: i16,
    high_watermark: i64,
    log_start: i64,
    diverging: Option<(i32, i64)>,
    /// (leader, epoch), where the error says that it changed.
    current_leader: Option<(usize, i32)>,
    first: Option<BatchAt>,
    bytes: usize,
    lie: Lie,
}

/// What a fault makes of an answer.
#[derive(Debug, Default)]
struct Lie {
    records: Option<Vec<u8>>,
    records_length: Option<i32>,
    partition: Option<i32>,
}

/// The source is stopping, and the request gets no answer.
#[derive(Debug)]
pub(crate) struct Stopping;

/// Answers one Fetch request.
pub(crate) fn answer(
    shared: &Shared,
    settings: FetchSettings,
    broker: usize,
    version: i16,
    mut request: Reader<'_>,
    response: &mut Response,
) -> Result<Result<(), Stopping>, Malformed> {
    let request = read_request(&mut request, version)?;
    let began = Instant::now();
    let deadline = began + request.wait_max;
    let by_topic_id = request.session.by_topic_id;

    let mut state = shared.lock();
    let context = state.brokers[broker].sessions.open(request.session.clone(), began);
    let (wanted, only_news) = match &context {
        FetchContext::Sessionless(wanted) | FetchContext::Full(wanted) => (wanted, false),
        FetchContext::Incremental { wanted, .. } => (wanted, true),
        FetchContext::Error(error) => {
            write_error(response, version, session_error(*error), 0);
            return Ok(Ok(()));
        }
    };
    let mut answers = loop {
        let now = Instant::now();
        let found = read(&mut state, settings, broker, &request, wanted, only_news, now);
        if wanted.is_empty() || found.ready || now >= deadline {
            break found.answers;
        }
        let until = found.next_growth.map_or(deadline, |at| at.min(deadline));
        state = shared.wait(state, until);
        if state.stopping {
            return Ok(Err(Stopping));
        }
    };
    let state = &mut *state;
    if !state.faults.is_empty() {
        apply_faults(state, settings, broker, &mut answers);
    }
    let told = || -> Vec<Wanted> { answers.iter().map(|a| a.wanted.clone()).collect() };
    let sessions = &mut state.brokers[broker].sessions;
    let session_id = match context {
        FetchContext::Full(_) if version >= 7 => sessions.create(told(), by_topic_id, began),
        FetchContext::Incremental { session_id, next_epoch, .. } => {
            if !sessions.told(session_id, next_epoch, &told()) {
                let error = session_error(SessionError::InvalidEpoch);
                write_error(response, version, error, session_id);
                return Ok(Ok(()));
            }
            session_id
        }
        _ => 0,
    };
    write(response, version, state, &answers, session_id, request.read_committed);
    Ok(Ok(()))
}

fn read_request(r: &mut Reader<'_>, version: i16) -> Result<FetchRequest, Malformed> {
    if version <= 14 {
        r.i32()?; // Replica id; from version 15 a tagged field.
    }
    let wait_ms = r.i32()?;
    let bytes_min = r.i32()?;
    let bytes_max = r.i32()?;
    let read_committed = r.i8()? == 1;
    let (session_id, epoch) = if version >= 7 { (r.i32()?, r.i32()?) } else { (0, -1) };
    let by_topic_id = version >= 13;
    let topic_key = |r: &mut Reader<'_>| match by_topic_id {
        true => Ok(TopicKey::Id(r.uuid()?)),
        false => Ok(TopicKey::Name(r.string()?.into())),
    };

    let mut wanted = Vec::new();
    for _ in 0..r.array_length()?.ok_or(Malformed)? {
        let topic = topic_key(r)?;
        for _ in 0..r.array_length()?.ok_or(Malformed)? {
            let partition = r.i32()?;
            let current_leader_epoch = if version >= 9 { r.i32()? } else { -1 };
            let fetch_offset = r.i64()?;
            let last_fetched_epoch = if version >= 12 { r.i32()? } else { -1 };
            if version >= 5 {
                r.i64()?; // A follower's log start.
            }
            let bytes_max = r.i32()?;
            r.skip_tags()?;
            wanted.push(Wanted {
                topic: topic.clone(),
                partition,
                fetch_offset,
                current_leader_epoch,
                last_fetched_epoch,
                bytes_max,
                slot: None,
                told_high_watermark: -1,
                told_log_start: -1,
            });
        }
        r.skip_tags()?;
    }
    let mut forgotten = Vec::new();
    if version >= 7 {
        for _ in 0..r.array_length()?.ok_or(Malformed)? {
            let topic = topic_key(r)?;
            for _ in 0..r.array_length()?.ok_or(Malformed)? {
                forgotten.push((topic.clone(), r.i32()?));
            }
            r.skip_tags()?;
        }
    }
    if version >= 11 {
        r.string()?; // The reader's rack.
    }
    r.skip_tags()?;
    let wait_ms = u64::try_from(wait_ms).unwrap_or(0);
    Ok(FetchRequest {
        wait_max: Duration::from_millis(wait_ms).min(WAIT_MAX),
        bytes_min,
        bytes_max,
        read_committed,
        session: SessionRequest { session_id, epoch, by_topic_id, wanted, forgotten },
    })
}

struct Found {
    answers: Vec<Answer>,
    ready: bool,
    next_growth: Option<Instant>,
}

/// Looks at every partition in turn, and stops nobody's turn for another's error.
fn read(
    state: &mut State,
    settings: FetchSettings,
    broker: usize,
    request: &FetchRequest,
    wanted: &[Wanted],
    only_news: bool,
    now: Instant,
) -> Found {
    let mut left = usize::try_from(request.bytes_max.min(settings.bytes_max)).unwrap_or(0);
    let bytes_min = usize::try_from(request.bytes_min).unwrap_or(0).min(left);
    let mut found = Found { answers: Vec::new(), ready: false, next_growth: None };
    let mut bytes = 0;
    for wanted in wanted {
        let mut answer = read_partition(state, settings, broker, wanted, left, bytes == 0, now);
        let news = answer.error != 0
            || answer.bytes > 0
            || answer.diverging.is_some()
            || answer.high_watermark != wanted.told_high_watermark
            || answer.log_start != wanted.told_log_start;
        found.ready |= answer.error != 0 || answer.diverging.is_some();
        left = left.saturating_sub(answer.bytes);
        bytes += answer.bytes;
        let topic = answer.wanted.slot.and_then(|slot| state.topics[slot].as_ref());
        let next = topic.and_then(|topic| topic.next_growth(wanted.partition));
        found.next_growth = [found.next_growth, next].into_iter().flatten().min();
        let mut faulty = false;
        if let (false, Some(topic)) = (state.faults.is_empty(), topic) {
            let partition = wanted.partition;
            let of_head = |fault: &Fault| !fault.is_of_records();
            let fault = state.faults.of_partition(broker, &topic.name, partition, of_head);
            faulty = fault.is_some();
            let at_once = |fault: &Fault| matches!(fault, Fault::Empty | Fault::ErrorCode(_));
            found.ready |= fault.is_some_and(|(_, fault)| at_once(&fault));
        }
        if news || faulty || !only_news {
            answer.wanted.told_high_watermark =
                if answer.error == 0 { answer.high_watermark } else { -1 };
            answer.wanted.told_log_start = answer.log_start;
            found.answers.push(answer);
        }
    }
    found.ready |= bytes >= bytes_min;
    found
}

fn read_partition(
    state: &mut State,
    settings: FetchSettings,
    broker: usize,
    wanted: &Wanted,
    left: usize,
    first_of_answer: bool,
    now: Instant,
) -> Answer {
    let mut answer = Answer {
        wanted: wanted.clone(),
        error: 0,
        high_watermark: -1,
        log_start: -1,
        diverging: None,
        current_leader: None,
        first: None,
        bytes: 0,
        lie: Lie::default(),
    };
    answer.wanted.slot = state.slot_of(&wanted.topic, wanted.slot);
    let topic = answer.wanted.slot.and_then(|slot| state.topics[slot].as_mut());
    let by_id = matches!(wanted.topic, TopicKey::Id(_));
    let partition = match topic.map(|topic: &mut Topic| topic.partition(wanted.partition, now)) {
        Some(Some(partition)) => partition,
        None if by_id => return answer.failed(E::UnknownTopicId),
        _ => return answer.failed(E::UnknownTopicOrPartition),
    };
    let log = &partition.log;
    let epoch = log.leader_epoch();
    if wanted.current_leader_epoch >= 0 && wanted.current_leader_epoch < epoch {
        answer.current_leader = Some((partition.leader, epoch));
        return answer.failed(E::FencedLeaderEpoch);
    }
    if wanted.current_leader_epoch > epoch {
        return answer.failed(E::UnknownLeaderEpoch);
    }
    if partition.leader != broker {
        answer.current_leader = Some((partition.leader, epoch));
        return answer.failed(E::NotLeaderOrFollower);
    }
    let offset = wanted.fetch_offset;
    let start = log.log_start();
    if wanted.last_fetched_epoch >= 0 {
        let (end_epoch, end_offset) = log.end_offset_for_epoch(wanted.last_fetched_epoch);
        if end_epoch < 0 || offset < start {
            return answer.failed(E::OffsetOutOfRange);
        }
        if end_epoch < wanted.last_fetched_epoch || end_offset < offset {
            answer.diverging = Some((end_epoch, end_offset));
        }
    }
    if answer.diverging.is_none() && !(start..=log.end_offset()).contains(&offset) {
        return answer.failed(E::OffsetOutOfRange);
    }
    answer.high_watermark = log.high_watermark();
    answer.log_start = start;
    if answer.diverging.is_some() || offset >= answer.high_watermark {
        return answer;
    }
    let Some(first) = log.batch_at(offset) else { return answer };
    let available = log.position_of(answer.high_watermark).saturating_sub(first.position) as usize;
    let asked = usize::try_from(wanted.bytes_max).unwrap_or(0).min(left);
    let limit = if first_of_answer { asked.max(first.bytes) } else { asked };
    let mut bytes = available.min(limit);
    if !settings.partial_batches && bytes < available {
        let mut sizes = log.batches_from(first.base_offset).map(|batch| batch.bytes);
        let mut whole = 0;
        while let Some(next) = sizes.next().filter(|next| whole + next <= bytes) {
            whole += next;
        }
        bytes = whole;
    }
    // As a broker does, nothing rather than less than one batch.
    if bytes >= first.bytes {
        answer.first = Some(first);
        answer.bytes = bytes;
    }
    answer
}

impl Answer {
    fn failed(mut self, error: E) -> Answer {
        self.error = error.code();
        self
    }
}

fn apply_faults(state: &mut State, settings: FetchSettings, broker: usize, answers: &mut [Answer]) {
    for answer in answers {
        let Some(slot) = answer.wanted.slot else { continue };
        let Some(topic) = state.topics[slot].as_mut() else { continue };
        let now = Instant::now();
        let suits = |fault: &Fault| !fault.is_of_records() || answer.first.is_some();
        let name = topic.name.clone();
        let found = state.faults.of_partition(broker, &name, answer.wanted.partition, suits);
        let Some((index, fault)) = found else { continue };
        match fault {
            Fault::HighWatermark(at) => answer.high_watermark = at,
            Fault::Empty => (answer.first, answer.bytes) = (None, 0),
            Fault::WrongPartition(partition) => answer.lie.partition = Some(partition),
            Fault::ErrorCode(code) => {
                answer.error = code;
                (answer.first, answer.bytes) = (None, 0);
                (answer.high_watermark, answer.log_start) = (-1, -1);
            }
            _ => {
                let other = match fault {
                    Fault::OtherPartition { partition, .. } => {
                        topic.partition(partition, now).map(|other| other.log.clone())
                    }
                    _ => None,
                };
                let Some(first) = answer.first else { continue };
                let Some(partition) = topic.partition(answer.wanted.partition, now) else {
                    continue;
                };
                let bytes_max = answer.bytes.min(settings.bytes_max as usize);
                let records =
                    false_records(&fault, &partition.log, other.as_ref(), &first, bytes_max);
                let Some(records) = records else { continue };
                answer.lie.records = Some(records);
                if let Fault::RecordsLength(length) = fault {
                    answer.lie.records_length = Some(length);
                }
            }
        }
        state.faults.count(&[index]);
    }
}

fn session_error(error: SessionError) -> i16 {
    match error {
        SessionError::IdNotFound => E::FetchSessionIdNotFound.code(),
        SessionError::InvalidEpoch => E::InvalidFetchSessionEpoch.code(),
        SessionError::TopicIdError => E::FetchSessionTopicIdError.code(),
    }
}

fn write_error(response: &mut Response, version: i16, error: i16, session_id: i32) {
    response.no_tags(); // Of the response header.
    response.i32(0);
    if version >= 7 {
        response.i16(error);
        response.i32(session_id);
    }
    response.length(0);
    response.no_tags();
}

fn write(
    response: &mut Response,
    version: i16,
    state: &State,
    answers: &[Answer],
    session_id: i32,
    read_committed: bool,
) {
    response.no_tags(); // Of the response header.
    response.i32(0); // Throttle time.
    if version >= 7 {
        response.i16(0);
        response.i32(session_id);
    }
    let same_topic = |a: &Answer, b: &Answer| a.wanted.topic == b.wanted.topic;
    let topics = answers.chunk_by(same_topic).count();
    response.length(topics as i32);
    for answers in answers.chunk_by(same_topic) {
        match &answers[0].wanted.topic {
            TopicKey::Name(name) => response.string(name),
            TopicKey::Id(id) => response.bytes(id.as_bytes()),
        }
        response.length(answers.len() as i32);
        for answer in answers {
            write_partition(response, version, state, answer, read_committed);
        }
        response.no_tags();
    }
    write_end_points(response, version, state, answers);
}

fn write_partition(
    response: &mut Response,
    version: i16,
    state: &State,
    answer: &Answer,
    read_committed: bool,
) {
    response.i32(answer.lie.partition.unwrap_or(answer.wanted.partition));
    response.i16(answer.error);
    response.i64(answer.high_watermark);
    // No transaction is ever open, so the last stable offset is the high watermark.
    response.i64(answer.high_watermark);
    if version >= 5 {
        response.i64(answer.log_start);
    }
    response.length(if read_committed { 0 } else { -1 }); // Aborted transactions.
    if version >= 11 {
        response.i32(-1); // Preferred read replica.
    }
    write_records(response, state, answer);
    if version >= 12 {
        let leader = answer.current_leader.filter(|_| version >= 16);
        let tags = u32::from(answer.diverging.is_some()) + u32::from(leader.is_some());
        response.unsigned_varint(tags);
        if let Some((epoch, end_offset)) = answer.diverging {
            response.unsigned_varint(0);
            response.unsigned_varint(4 + 8 + 1);
            response.i32(epoch);
            response.i64(end_offset);
            response.no_tags();
        }
        if let Some((leader, epoch)) = leader {
            response.unsigned_varint(1);
            response.unsigned_varint(4 + 4 + 1);
            response.i32(leader as i32);
            response.i32(epoch);
            response.no_tags();
        }
    }
}

fn write_records(response: &mut Response, state: &State, answer: &Answer) {
    if let Some(records) = &answer.lie.records {
        response.length(answer.lie.records_length.unwrap_or(records.len() as i32));
        response.bytes(records);
        return;
    }
    response.length(answer.bytes as i32);
    let (Some(first), Some(slot)) = (answer.first, answer.wanted.slot) else { return };
    let topic = state.topics[slot].as_ref().expect("the lock was held since the topic was read");
    let log = topic.log(answer.wanted.partition).expect("the partition was read just now");
    let mut left = answer.bytes;
    let mut next = Some(first);
    while let Some(batch) = next.filter(|_| left > 0) {
        log.emit(&batch, left, response);
        left -= batch.bytes.min(left);
        next = log.batch_after(&batch);
    }
    debug_assert_eq!(left, 0, "as many bytes as were promised");
}

/// Where the new leaders are (KIP-951).
fn write_end_points(response: &mut Response, version: i16, state: &State, answers: &[Answer]) {
    if version < 12 {
        return;
    }
    let mut leaders: Vec<usize> =
        answers.iter().filter_map(|a| a.current_leader.map(|(leader, _)| leader)).collect();
    leaders.sort_unstable();
    leaders.dedup();
    if version < 16 || leaders.is_empty() {
        response.no_tags();
        return;
    }
    let mut points = Response::default();
    points.flexible = true;
    points.length(leaders.len() as i32);
    for leader in leaders {
        let address = state.brokers[leader].address;
        points.i32(leader as i32);
        points.string(&address.ip().to_string());
        points.i32(i32::from(address.port()));
        points.unsigned_varint(0); // Rack: null.
        points.no_tags();
    }
    response.unsigned_varint(1);
    response.unsigned_varint(0);
    response.unsigned_varint(points.len() as u32);
    response.bytes(points.as_own());
}
