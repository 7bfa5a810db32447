//! Before a partition is fetched: where it begins, and whether it still is what we know.
//!
//! What a source says here is held against the rest of what it says. Where that contradicts itself
//! nothing begins, moves or is cut: the partition says why, and asks again after pauses that grow.

mod cutting;
mod out_of_range;

use std::collections::BTreeMap;
use std::rc::Rc;

use net::fetch::Wanted;
use net::questions::{EARLIEST, EpochQuestion, LATEST, OffsetQuestion};
use net::{Api, Connection, ErrorCode, NetError};
use storage::log::Log;

use super::Fetcher;
use crate::check::{AskedEpoch, Comparison, Epochs, SourceLog, judge_epochs};
use crate::control::Start;
use crate::limits::CHECKS_PER_REQUEST;
use crate::partition::Partition;
use crate::sink::Stage;

/// A source that never ends its chain of older epochs is not asked for ever.
const EPOCH_STEPS_MAX: usize = 64;

impl Fetcher {
    /// Brings fresh members to where they can be fetched.
    pub(super) async fn check_fresh(
        &mut self,
        connection: &mut Connection,
    ) -> Result<(), NetError> {
        while !self.fresh.is_empty() {
            let count = self.fresh.len().min(CHECKS_PER_REQUEST);
            let keys: Vec<u32> = self.fresh.drain(..count).collect();
            let checked = self.check_some(connection, &keys).await;
            if checked.is_err() {
                self.fresh.extend(keys);
            }
            checked?;
            self.apply_changes();
        }
        Ok(())
    }

    async fn check_some(
        &mut self,
        connection: &mut Connection,
        keys: &[u32],
    ) -> Result<(), NetError> {
        // Whatever kept a partition from being asked for may have been its end, and another the
        // next of its name: what came in between tells, or its records do. Nor does its id tell
        // that a broker has come back from a backup, which ends every connection to it.
        let by_id = self.asks_by_id(connection);
        for member in keys.iter().filter_map(|key| self.member(*key)) {
            if !by_id || !member.partition.is_known_since(self.connected_at) {
                member.partition.set_unchecked(true);
            }
        }
        self.begin_new(connection, keys).await?;
        let unchecked: Vec<u32> = keys
            .iter()
            .copied()
            .filter(|key| self.member(*key).is_some_and(|m| m.partition.unchecked()))
            .collect();
        let parted = self.compare_epochs(connection, &unchecked).await?;
        for key in keys {
            self.start_member(*key, parted.get(key).copied());
        }
        Ok(())
    }

    /// Asks for the member's records, or first for its last batch to compare. That the source's
    /// epochs part from ours, and where, is believed once the last batch is seen to be another.
    pub(super) fn start_member(&mut self, key: u32, parted: Option<i64>) {
        let Some(partition) = self.owned(key) else { return };
        let Some(Some(member)) = self.members.get_mut(key as usize) else { return };
        let Some(log) = partition.log() else { return };
        match log.last_batch() {
            Some(last) if partition.unchecked() => {
                let wanted = Wanted {
                    fetch_offset: last.base_offset,
                    last_fetched_epoch: -1,
                    leader_epoch: partition.leader.get().map_or(-1, |leader| leader.epoch),
                    max_bytes: i32::try_from(last.bytes).unwrap_or(i32::MAX),
                };
                member.stage = Stage::Comparing(Box::new(Comparison::new(last, parted)));
                self.session.want(key, wanted);
                self.watch_answer(key);
            }
            None if let Some(common_end) = parted => self.look_at_cut(key, common_end),
            _ => {
                partition.set_unchecked(false);
                partition.asked_anew(ring::wall_ms());
                member.stage = Stage::Appending;
                self.want(key);
            }
        }
    }

    /// New partitions: the source says where they begin, then their logs are made.
    async fn begin_new(
        &mut self,
        connection: &mut Connection,
        keys: &[u32],
    ) -> Result<(), NetError> {
        let new: Vec<(u32, Rc<Partition>)> = keys
            .iter()
            .filter_map(|key| Some((*key, Rc::clone(&self.member(*key)?.partition))))
            .filter(|(_, partition)| partition.log().is_none())
            .collect();
        if new.is_empty() {
            return Ok(());
        }
        let partitions: Vec<_> = new.iter().map(|(_, partition)| Rc::clone(partition)).collect();
        let beginnings = self.beginnings(connection, &partitions).await?;
        let mut opening = Vec::new();
        for ((key, partition), beginning) in new.into_iter().zip(beginnings) {
            match beginning {
                Ok(Beginning { log, offset }) if !log.holds(offset) => {
                    let reason = format!("{log}; the copy cannot begin at offset {offset}");
                    self.wait_and_retry(key, reason);
                }
                Ok(Beginning { offset, .. }) => {
                    let link = Rc::clone(&self.link);
                    opening.push((
                        key,
                        ring::spawn(ring::Share::Replicate, async move {
                            link.open_log(&partition, offset).await
                        }),
                    ));
                }
                Err(code) => self.question_refused(key, code),
            }
        }
        for (key, opened) in opening {
            if let Err(reason) = opened.await {
                self.wait_and_retry(key, reason);
            }
        }
        Ok(())
    }

    /// Where new partitions begin. The log's end is asked for last: whatever happens there
    /// meanwhile, a source that tells the truth names a place within the log.
    async fn beginnings(
        &self,
        connection: &mut Connection,
        partitions: &[Rc<Partition>],
    ) -> Result<Vec<Result<Beginning, ErrorCode>>, NetError> {
        let start = self.link.settings().start;
        let starts = list_offsets(connection, partitions, EARLIEST).await?;
        let times = match start {
            Start::TimestampMs(ms) => list_offsets(connection, partitions, ms.max(0)).await?,
            Start::Earliest | Start::Latest => starts.clone(),
        };
        let ends = list_offsets(connection, partitions, LATEST).await?;
        let beginning = |((earliest, time), end): ((Answer, Answer), Answer)| {
            let log = SourceLog { start: earliest?, end: end? };
            let offset = match (start, time?) {
                (Start::Earliest, _) => log.start,
                // No record is that young: begin at the end.
                (Start::Latest, _) | (Start::TimestampMs(_), -1) => log.end,
                (Start::TimestampMs(_), offset) => offset,
            };
            Ok(Beginning { log, offset })
        };
        Ok(starts.into_iter().zip(times).zip(ends).map(beginning).collect())
    }

    /// Compares the ends of our last epochs with the source's. Whose part, and where.
    pub(super) async fn compare_epochs(
        &mut self,
        connection: &mut Connection,
        keys: &[u32],
    ) -> Result<BTreeMap<u32, i64>, NetError> {
        let mut parted = BTreeMap::new();
        if connection.versions().newest(Api::OffsetForLeaderEpoch).is_none() {
            return Ok(parted);
        }
        let mut asking: Vec<EpochCheck> = Vec::new();
        for key in keys {
            let Some(member) = self.member(*key) else { continue };
            let Some(log) = member.partition.log() else { continue };
            let positions = log.positions();
            if let Some(epoch) = positions.last_epoch {
                let end = positions.received.0.offset;
                let partition = Rc::clone(&member.partition);
                let asked = AskedEpoch { epoch, end, below: None };
                asking.push(EpochCheck { key: *key, partition, log, asked });
            }
        }
        for _ in 0..EPOCH_STEPS_MAX {
            if asking.is_empty() {
                break;
            }
            let questions: Vec<EpochQuestion<'_>> = asking
                .iter()
                .map(|EpochCheck { partition, asked, .. }| EpochQuestion {
                    topic: &partition.key.topic,
                    partition: partition.key.partition,
                    leader_epoch: partition.leader.get().map_or(-1, |leader| leader.epoch),
                    epoch: asked.epoch,
                })
                .collect();
            let answers = connection.epoch_ends(&questions).await?;
            drop(questions);
            let mut again = Vec::new();
            for (check, answer) in asking.into_iter().zip(answers) {
                let EpochCheck { key, partition, log, asked } = check;
                let theirs = match answer {
                    Ok(theirs) => (theirs.epoch, theirs.end_offset),
                    Err(code) => {
                        self.question_refused(key, code);
                        continue;
                    }
                };
                let start = log.positions().log_start_offset;
                let judged =
                    judge_epochs(asked, start, theirs, |epoch| log.end_offset_for_epoch(epoch));
                match judged {
                    Epochs::Agree => {}
                    Epochs::Diverged { common_end } => drop(parted.insert(key, common_end)),
                    Epochs::Senseless => {
                        let (epoch_there, end_there) = theirs;
                        let reason = format!(
                            "the source says that of the epochs up to {} its last is \
                             {epoch_there} and ends at offset {end_there}, which makes no sense",
                            asked.epoch
                        );
                        self.wait_and_retry(key, reason);
                    }
                    Epochs::Older(asked) => {
                        again.push(EpochCheck { key, partition, log, asked });
                    }
                }
            }
            asking = again;
        }
        for EpochCheck { key, .. } in asking {
            self.wait_and_retry(key, "the source's leader epochs make no sense".to_owned());
        }
        Ok(parted)
    }
}

type Answer = Result<i64, ErrorCode>;

/// Where a new partition begins, and what the source says of its log.
struct Beginning {
    log: SourceLog,
    offset: i64,
}

/// An epoch of ours whose end is asked for.
struct EpochCheck {
    key: u32,
    partition: Rc<Partition>,
    log: Rc<Log>,
    asked: AskedEpoch,
}

/// One answer for each partition, in order, from who leads them.
pub async fn list_offsets(
    connection: &mut Connection,
    partitions: &[Rc<Partition>],
    timestamp: i64,
) -> Result<Vec<Result<i64, ErrorCode>>, NetError> {
    if partitions.is_empty() {
        return Ok(Vec::new());
    }
    let questions: Vec<OffsetQuestion<'_>> = partitions
        .iter()
        .map(|partition| OffsetQuestion {
            topic: &partition.key.topic,
            partition: partition.key.partition,
            leader_epoch: partition.leader.get().map_or(-1, |leader| leader.epoch),
            timestamp,
        })
        .collect();
    connection.list_offsets(&questions).await
}
