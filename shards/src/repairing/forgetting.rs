//! A log that a start found corrupt, and whose damaged records the source has deleted since: they
//! will never come again, and below the source's log start nobody asks for them. The log goes on
//! without them.
//!
//! As everywhere one answer moves nothing. That an offset is out of range is followed by the
//! questions where the source's log begins and ends, and these by a fetch at its beginning that has
//! to say the same. As long as the source still has a part of a damaged range it is waited for.

use std::ops::Range;
use std::rc::Rc;

use net::Connection;
use net::questions::{EARLIEST, LATEST};
use ring::Share;
use storage::log::Log;

use super::asking::listen;
use super::{Failure, goes_on};
use crate::check::SourceLog;
use crate::control::Mode;
use crate::fetcher::list_offsets;
use crate::link::Link;
use crate::partition::Partition;

/// Has a corrupt log follow the source's log start, if that is beyond these damaged offsets, the
/// first of which was out of its range.
pub(super) async fn forget(
    link: &Rc<Link>,
    partition: &Rc<Partition>,
    log: &Rc<Log>,
    damaged: Range<i64>,
    connection: &mut Connection,
) -> Result<(), Failure> {
    let Range { start: asked, end } = damaged;
    let partitions = [Rc::clone(partition)];
    let start = first(list_offsets(connection, &partitions, EARLIEST).await?)?;
    let theirs =
        SourceLog { start, end: first(list_offsets(connection, &partitions, LATEST).await?)? };
    let said = format!("the source says that offset {asked} is out of its range");
    if !theirs.is_possible() || start <= asked {
        return Err(Failure::Later(format!("{said}; and {theirs}")));
    }
    if start < end {
        let reason = format!(
            "the source has deleted a part of it, and its log begins at offset {start}; until that \
             is {end} or beyond, this is waited for, or for what it has to fit"
        );
        return Err(Failure::Later(reason));
    }
    let there = match look(link, partition, start, connection).await {
        Err(Failure::OutOfRange(_)) => {
            let reason = format!("{said}; and {theirs}; but that start is out of it, too");
            return Err(Failure::Later(reason));
        }
        looked => looked?,
    };
    if there.start != start || there.end < start {
        return Err(Failure::Later(format!("{said}; and {theirs}; and then, {there}")));
    }
    let (link, partition, log) = (Rc::clone(link), Rc::clone(partition), Rc::clone(log));
    ring::to_its_end(Share::Background, async move {
        if partition.mode() != Mode::Replicate {
            return Err(Failure::Later("it is not replicated now".to_owned()));
        }
        if partition.is_occupied() {
            return Err(Failure::Later("its log is being cut or opened again".to_owned()));
        }
        let occupied = partition.occupy();
        let forgotten = log.forget_below(start).await;
        drop(occupied);
        if log.is_open() && !partition.is_occupied() {
            goes_on(&link, &partition);
        }
        match forgotten.map_err(|error| Failure::Later(error.to_string()))? {
            true => {
                let key = &partition.key;
                tracing::warn!(partition = %key, start, "goes on without what the source deleted");
                Ok(())
            }
            false => Err(Failure::Later(format!(
                "it follows the source to its log start, {start}, and is damaged still"
            ))),
        }
    })
    .await
}

/// The answer of the only partition.
fn first<T>(answers: Vec<Result<T, net::ErrorCode>>) -> Result<T, Failure> {
    let answer = answers.into_iter().next().expect("one answer for one question");
    answer.map_err(|code| Failure::Later(format!("the source answered {code}")))
}

/// What the source says of its log when it is asked for what that is said to begin with.
async fn look(
    link: &Rc<Link>,
    partition: &Partition,
    start: i64,
    connection: &mut Connection,
) -> Result<SourceLog, Failure> {
    let heard = listen(link, partition, start, connection).await?;
    // Before version 5 it is only said by not refusing the offset.
    let log_start = if heard.log_start < 0 { start } else { heard.log_start };
    Ok(SourceLog { start: log_start, end: heard.high_watermark })
}
