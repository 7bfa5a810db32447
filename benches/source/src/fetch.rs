//! Fetch, versions 4 to 18: reads what is asked, waits for data, writes the answer.
//!
//! Reading finds for each partition only a batch and a number of bytes; the records become
//! pieces of shared memory when the answer is written. The rules are a broker's: the size limits
//! with their first-batch exception (KIP-74), epochs and divergence (KIP-320, KIP-595), sessions
//! (KIP-227), topic ids (KIP-516), new leaders told with the error (KIP-951).

use crate::cluster::{Shared, State};
use crate::fault::Fault;
use crate::fetch_answer::{Answer, apply_faults, write, write_error};
use crate::log::PartitionLog;
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
}

/// Settings of a broker that concern Fetch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FetchSettings {
    /// A broker's own limit on an answer, bytes.
    pub bytes_max: i32,
    /// Whether answers may end within a batch, as a broker's do.
    pub partial_batches: bool,
}

/// The source is stopping, and the request gets no answer.
#[derive(Debug)]
pub(crate) struct Stopping;

/// A Fetch request that has been read, its changes taken into its session.
#[derive(Debug)]
pub(crate) struct Pending {
    version: i16,
    request: FetchRequest,
    context: FetchContext,
    by_topic_id: bool,
    began: Instant,
}

/// What a look at the wanted partitions came to.
pub(crate) enum Look {
    /// The answer is written.
    Written,
    /// There is not enough yet; partitions that grow by themselves do so next then.
    NotYet(Option<Instant>),
}

/// Reads one Fetch request.
pub(crate) fn open(
    state: &mut State,
    broker: usize,
    version: i16,
    mut request: Reader<'_>,
) -> Result<Pending, Malformed> {
    let (request, session) = read_request(&mut request, version)?;
    let began = Instant::now();
    let by_topic_id = session.by_topic_id;
    let context = state.brokers[broker].sessions.open(session, began);
    Ok(Pending { version, request, context, by_topic_id, began })
}

/// Waits until there is enough, or the request's time is over, and writes the answer.
pub(crate) fn wait(
    shared: &Shared,
    settings: FetchSettings,
    broker: usize,
    pending: &Pending,
    response: &mut Response,
) -> Result<(), Stopping> {
    let deadline = pending.began + pending.request.wait_max;
    let mut state = shared.lock();
    loop {
        let now = Instant::now();
        match pending.look(&mut state, settings, broker, now >= deadline, response) {
            Look::Written => return Ok(()),
            Look::NotYet(growth) => {
                let until = growth.map_or(deadline, |at| at.min(deadline));
                state = shared.wait(state, until);
            }
        }
        if state.stopping {
            return Err(Stopping);
        }
    }
}

impl Pending {
    /// How many bytes the answer may have.
    pub fn bytes_max(&self) -> i32 {
        self.request.bytes_max
    }

    /// How long the request wants to wait.
    pub fn wait_max(&self) -> Duration {
        self.request.wait_max
    }

    /// Writes the answer if there is enough to say, or the time is over.
    pub fn look(
        &self,
        state: &mut State,
        settings: FetchSettings,
        broker: usize,
        time_over: bool,
        response: &mut Response,
    ) -> Look {
        let Pending { version, request, context, by_topic_id, began } = self;
        let (wanted, only_news) = match context {
            FetchContext::Sessionless(wanted) | FetchContext::Full(wanted) => (wanted, false),
            FetchContext::Incremental { wanted, .. } => (wanted, true),
            FetchContext::Error(error) => {
                write_error(response, *version, session_error(*error), 0);
                return Look::Written;
            }
        };
        let found = read(state, settings, broker, request, wanted, only_news, Instant::now());
        if !(wanted.is_empty() || found.ready || time_over) {
            return Look::NotYet(found.next_growth);
        }
        let mut answers = found.answers;
        if !state.faults.is_empty() {
            apply_faults(state, broker, &mut answers);
        }
        let told = || -> Vec<Wanted> { answers.iter().map(Answer::told).collect() };
        let sessions = &mut state.brokers[broker].sessions;
        let session_id = match context {
            FetchContext::Full(_) if *version >= 7 => sessions.create(told(), *by_topic_id, *began),
            FetchContext::Incremental { session_id, next_epoch, .. } => {
                if !sessions.told(*session_id, *next_epoch, &told()) {
                    let error = session_error(SessionError::InvalidEpoch);
                    write_error(response, *version, error, *session_id);
                    return Look::Written;
                }
                *session_id
            }
            _ => 0,
        };
        write(response, *version, state, &answers, session_id, request.read_committed);
        Look::Written
    }
}

fn read_request(
    r: &mut Reader<'_>,
    version: i16,
) -> Result<(FetchRequest, SessionRequest), Malformed> {
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
    let request = FetchRequest {
        wait_max: Duration::from_millis(wait_ms).min(WAIT_MAX),
        bytes_min,
        bytes_max,
        read_committed,
    };
    Ok((request, SessionRequest { session_id, epoch, by_topic_id, wanted, forgotten }))
}

struct Found<'a> {
    answers: Vec<Answer<'a>>,
    /// There is enough to answer at once, or something that must be told at once.
    ready: bool,
    /// When any of the partitions next grows by itself.
    next_growth: Option<Instant>,
}

/// Looks at every partition in turn, and stops nobody's turn for another's error.
fn read<'a>(
    state: &mut State,
    settings: FetchSettings,
    broker: usize,
    request: &FetchRequest,
    wanted: &'a [Wanted],
    only_news: bool,
    now: Instant,
) -> Found<'a> {
    let mut left = usize::try_from(request.bytes_max.min(settings.bytes_max)).unwrap_or(0);
    let bytes_min = usize::try_from(request.bytes_min).unwrap_or(0).min(left);
    let mut found = Found { answers: Vec::new(), ready: false, next_growth: None };
    let mut bytes = 0;
    for wanted in wanted {
        let limit = Limit { bytes: left, whole_first_batch: bytes == 0, settings };
        let answer = read_partition(state, broker, wanted, limit, now);
        found.ready |= answer.error != 0 || answer.diverging.is_some();
        left = left.saturating_sub(answer.bytes);
        bytes += answer.bytes;
        let mut faulty = false;
        if let Some(topic) = answer.slot.and_then(|slot| state.topics[slot].as_ref()) {
            let next = topic.next_growth(wanted.partition);
            found.next_growth = [found.next_growth, next].into_iter().flatten().min();
            if !state.faults.is_empty() {
                let of_head = |fault: &Fault| fault.is_of_fetch() && !fault.is_of_records();
                let (name, partition) = (&topic.name, wanted.partition);
                let fault = state.faults.of_partition(broker, name, partition, of_head);
                faulty = fault.is_some();
                let at_once = |fault: &Fault| matches!(fault, Fault::Empty | Fault::ErrorCode(_));
                found.ready |= fault.is_some_and(|(_, fault)| at_once(&fault));
            }
        }
        if faulty || !only_news || answer.is_news() {
            found.answers.push(answer);
        }
    }
    found.ready |= bytes >= bytes_min;
    found
}

fn read_partition<'a>(
    state: &mut State,
    broker: usize,
    wanted: &'a Wanted,
    limit: Limit,
    now: Instant,
) -> Answer<'a> {
    let slot = state.slot_of(&wanted.topic, wanted.slot);
    let mut answer = Answer::new(wanted, slot);
    let Some(topic) = slot.and_then(|slot| state.topics[slot].as_mut()) else {
        return answer.failed(match wanted.topic {
            TopicKey::Id(_) => E::UnknownTopicId,
            TopicKey::Name(_) => E::UnknownTopicOrPartition,
        });
    };
    let Some(partition) = topic.partition(wanted.partition, now) else {
        return answer.failed(E::UnknownTopicOrPartition);
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
    let (offset, start) = (wanted.fetch_offset, log.log_start());
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
    if answer.diverging.is_none() && offset < answer.high_watermark {
        find_records(&mut answer, log, limit);
    }
    answer
}

/// How much of an answer a partition may fill.
#[derive(Clone, Copy, Debug)]
struct Limit {
    bytes: usize,
    /// Nothing was found yet, so one batch may be larger than any limit.
    whole_first_batch: bool,
    settings: FetchSettings,
}

fn find_records(answer: &mut Answer<'_>, log: &PartitionLog, limit: Limit) {
    let Some(first) = log.batch_at(answer.wanted.fetch_offset) else { return };
    let available = log.position_of(answer.high_watermark).saturating_sub(first.position) as usize;
    let asked = usize::try_from(answer.wanted.bytes_max).unwrap_or(0).min(limit.bytes);
    let most = if limit.whole_first_batch { asked.max(first.bytes) } else { asked };
    let mut bytes = available.min(most);
    if !limit.settings.partial_batches && bytes < available {
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
}

fn session_error(error: SessionError) -> i16 {
    match error {
        SessionError::IdNotFound => E::FetchSessionIdNotFound.code(),
        SessionError::InvalidEpoch => E::InvalidFetchSessionEpoch.code(),
        SessionError::TopicIdError => E::FetchSessionTopicIdError.code(),
    }
}
