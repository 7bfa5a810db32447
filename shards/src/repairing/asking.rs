//! What a repair asks the leader: one partition, over its own connection, in a session of its own.

use std::rc::Rc;
use std::time::Duration;

use net::Connection;
use net::fetch::{FetchLimits, FetchSession, TopicName, Wanted};
use uuid::Uuid;

use super::Failure;
use super::gathering::Gathering;
use crate::fetcher::Kind;
use crate::limits::{FETCH_WAIT_MS, HEARD_BYTES_MAX};
use crate::link::Link;
use crate::partition::Partition;

/// Whether the source has records at an offset now. Those of ours that cannot be read from there on
/// are not given up before.
pub(super) async fn hear(
    link: &Rc<Link>,
    partition: &Partition,
    offset: i64,
    connection: &mut Connection,
) -> Result<(), Failure> {
    // It may have lost them together with us, and get them again.
    let later = |failure: Failure| Failure::Later(failure.reason());
    let heard = listen(link, partition, offset, connection).await.map_err(later)?;
    if heard.empty || heard.high_watermark <= offset {
        return Err(Failure::Later(format!("the source has no records at {offset} now")));
    }
    Ok(())
}

/// What a source says when it is asked for an offset.
pub(super) struct Heard {
    pub empty: bool,
    pub high_watermark: i64,
    /// Negative: not told.
    pub log_start: i64,
}

/// Asks for a little at an offset. No records of it are kept.
pub(super) async fn listen(
    link: &Rc<Link>,
    partition: &Partition,
    offset: i64,
    connection: &mut Connection,
) -> Result<Heard, Failure> {
    let mut session = session_of(partition);
    let leader_epoch = link.leader(partition).map_or(-1, |leader| leader.epoch);
    let _sharer = link.share_memory();
    link.wait_for_rate(KIND).await;
    let reserved = link.reserve(HEARD_BYTES_MAX).await;
    let max_bytes = i32::try_from(reserved.bytes()).unwrap_or(i32::MAX);
    let wanted = wanted(offset, leader_epoch, max_bytes);
    let (gathering, _) = ask(link, &mut session, wanted, connection).await?;
    let empty = gathering.pieces.iter().all(|piece| piece.is_empty());
    let Gathering { high_watermark, log_start, .. } = gathering;
    Ok(Heard { empty, high_watermark, log_start })
}

pub(super) fn session_of(partition: &Partition) -> FetchSession {
    let mut session = FetchSession::new();
    let id = partition.topic_id.unwrap_or(Uuid::nil());
    session.add(KEY, TopicName { name: &partition.key.topic, id }, partition.key.partition);
    session
}

pub(super) fn wanted(fetch_offset: i64, leader_epoch: i32, max_bytes: i32) -> Wanted {
    Wanted { fetch_offset, last_fetched_epoch: -1, leader_epoch, max_bytes }
}

/// One request; its records, and for how long the source wants to be left alone.
pub(super) async fn ask(
    link: &Rc<Link>,
    session: &mut FetchSession,
    wanted: Wanted,
    connection: &mut Connection,
) -> Result<(Gathering, Duration), Failure> {
    let (offset, max_bytes) = (wanted.fetch_offset, wanted.max_bytes);
    session.want(KEY, wanted);
    let limits = FetchLimits { max_wait_ms: FETCH_WAIT_MS, min_bytes: 1, max_bytes };
    let mut gathering = Gathering::default();
    let answer = connection.fetch(session, &limits, &mut gathering).await?;
    link.count_fetch(answer.records_bytes, KIND);
    gathering.judge(offset)?;
    Ok((gathering, answer.throttle))
}

const KEY: u32 = 0;
/// Not in the way of what is new.
pub(super) const KIND: Kind = Kind::Backfill(0);
