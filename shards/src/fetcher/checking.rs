//! Before a partition is fetched: where it begins, and whether it still is what we know.

use std::rc::Rc;

use net::fetch::Wanted;
use net::questions::{EARLIEST, EpochQuestion, LATEST, OffsetQuestion};
use net::{Api, Connection, ErrorCode, NetError};
use storage::log::Log;

use super::Fetcher;
use crate::check::{Compared, Comparison, Epochs, OutOfRange, classify, judge_epochs};
use crate::control::{Event, FaultCode, OnSourceGap, Start};
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
        self.begin_new(connection, keys).await?;
        let unchecked: Vec<u32> = keys
            .iter()
            .copied()
            .filter(|key| self.member(*key).is_some_and(|m| m.partition.unchecked()))
            .collect();
        self.compare_epochs(connection, &unchecked).await?;
        for key in keys {
            self.start_member(*key);
        }
        Ok(())
    }

    /// Asks for the member's records, or first for its last batch to compare.
    fn start_member(&mut self, key: u32) {
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
                member.stage = Stage::Comparing(Box::new(Comparison::new(last)));
                self.session.want(key, wanted);
            }
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
        let timestamp = match self.link.settings().start {
            Start::Earliest => EARLIEST,
            Start::Latest => LATEST,
            Start::TimestampMs(ms) => ms.max(0),
        };
        let partitions: Vec<_> = new.iter().map(|(_, partition)| Rc::clone(partition)).collect();
        let mut starts = list_offsets(connection, &partitions, timestamp).await?;
        if timestamp >= 0 {
            // No record is that young: begin at the end.
            let late: Vec<usize> = (0..starts.len()).filter(|at| starts[*at] == Ok(-1)).collect();
            let theirs: Vec<_> = late.iter().map(|at| Rc::clone(&partitions[*at])).collect();
            let ends = list_offsets(connection, &theirs, LATEST).await?;
            for (at, end) in late.into_iter().zip(ends) {
                starts[at] = end;
            }
        }
        let mut opening = Vec::new();
        for ((key, partition), start) in new.into_iter().zip(starts) {
            match start {
                Ok(offset) => {
                    let link = Rc::clone(&self.link);
                    opening.push((
                        key,
                        ring::spawn(ring::Share::Replicate, async move {
                            link.open_log(&partition, offset.max(0)).await
                        }),
                    ));
                }
                Err(code) => self.settle_code(key, code),
            }
        }
        for (key, opened) in opening {
            if let Err(reason) = opened.await {
                self.wait_and_retry(key, reason);
            }
        }
        Ok(())
    }

    /// Compares the ends of our last epochs with the source's.
    async fn compare_epochs(
        &mut self,
        connection: &mut Connection,
        keys: &[u32],
    ) -> Result<(), NetError> {
        if connection.versions().newest(Api::OffsetForLeaderEpoch).is_none() {
            return Ok(());
        }
        let mut asking: Vec<EpochCheck> = Vec::new();
        for key in keys {
            let Some(member) = self.member(*key) else { continue };
            let Some(log) = member.partition.log() else { continue };
            let positions = log.positions();
            if let Some(epoch) = positions.last_epoch {
                let end = positions.received.0.offset;
                let partition = Rc::clone(&member.partition);
                asking.push(EpochCheck { key: *key, partition, log, epoch, end });
            }
        }
        for _ in 0..EPOCH_STEPS_MAX {
            if asking.is_empty() {
                return Ok(());
            }
            let questions: Vec<EpochQuestion<'_>> = asking
                .iter()
                .map(|EpochCheck { partition, epoch, .. }| EpochQuestion {
                    topic: &partition.key.topic,
                    partition: partition.key.partition,
                    leader_epoch: partition.leader.get().map_or(-1, |leader| leader.epoch),
                    epoch: *epoch,
                })
                .collect();
            let answers = connection.epoch_ends(&questions).await?;
            drop(questions);
            let mut again = Vec::new();
            for (check, answer) in asking.into_iter().zip(answers) {
                let EpochCheck { key, partition, log, epoch, end } = check;
                let theirs = match answer {
                    Ok(theirs) => (theirs.epoch, theirs.end_offset),
                    Err(code) => {
                        self.settle_code(key, code);
                        continue;
                    }
                };
                let ours = (log.positions().log_start_offset, end);
                match judge_epochs(epoch, ours, theirs, |epoch| log.end_offset_for_epoch(epoch)) {
                    Epochs::Agree => {}
                    Epochs::Diverged { common_end } => {
                        self.diverged(key, &partition, &log, common_end);
                    }
                    Epochs::Older { epoch, common_end } => {
                        again.push(EpochCheck { key, partition, log, epoch, end: common_end });
                    }
                }
            }
            asking = again;
        }
        for EpochCheck { key, .. } in asking {
            self.wait_and_retry(key, "the source's leader epochs make no sense".to_owned());
        }
        Ok(())
    }

    /// The source lost records we have.
    fn diverged(&mut self, key: u32, partition: &Rc<Partition>, log: &Log, common_end: i64) {
        let end = log.positions().received.0.offset;
        if !self.link.settings().allow_truncation {
            let reason = format!(
                "the source's log parts from the copy at offset {common_end}, the copy goes to \
                 {end}: the source lost these records. allow_truncation cuts them off here too"
            );
            self.fault(key, FaultCode::Diverged, reason);
            return;
        }
        let name = partition.key.clone();
        let event = Event::Truncated { key: name, from: common_end, to: end };
        self.cut(key, common_end, None, Some(event));
    }

    /// Finds out why offsets were out of range, from the leader that said so.
    pub(super) async fn classify_out_of_range(
        &mut self,
        connection: &mut Connection,
    ) -> Result<(), NetError> {
        let keys = std::mem::take(&mut self.out_of_range);
        let asking: Vec<(u32, Rc<Partition>)> = keys
            .iter()
            .filter_map(|key| Some((*key, Rc::clone(&self.member(*key)?.partition))))
            .collect();
        if asking.is_empty() {
            return Ok(());
        }
        let partitions: Vec<_> = asking.iter().map(|(_, p)| Rc::clone(p)).collect();
        let starts = list_offsets(connection, &partitions, EARLIEST).await?;
        let ends = list_offsets(connection, &partitions, LATEST).await?;
        let mut beyond = Vec::new();
        for ((key, partition), (start, end)) in asking.into_iter().zip(starts.into_iter().zip(ends))
        {
            let (start, end) = match (start, end) {
                (Ok(start), Ok(end)) => (start, end),
                (Err(code), _) | (_, Err(code)) => {
                    self.settle_code(key, code);
                    continue;
                }
            };
            partition.heard(start, end);
            let Some(log) = partition.log() else { continue };
            let ours = log.positions().received.0.offset;
            match classify(ours, start, end) {
                OutOfRange::InRange => self.in_range(key, start, end),
                OutOfRange::Gap { source_start } => {
                    self.source_gap(key, &partition, &log, source_start);
                }
                OutOfRange::BeyondEnd => beyond.push((key, end)),
            }
        }
        let keys: Vec<u32> = beyond.iter().map(|(key, _)| *key).collect();
        self.compare_epochs(connection, &keys).await?;
        for (key, end) in beyond {
            let Some(partition) = self.owned(key) else { continue }; // cut, or waiting for a person
            let Some(log) = partition.log() else { continue };
            let ours = log.positions().received.0.offset;
            // Its epochs agree: the new leader has not caught up with what the old one showed. Or
            // it is another log, which may have grown past our end by the next look.
            partition.set_unchecked(true);
            let reason =
                format!("the source's end, {end}, is below the copy's, {ours}; waiting for it");
            self.wait_and_retry(key, reason);
        }
        Ok(())
    }

    /// The range has moved, or the source contradicts itself. It may also be another log by now,
    /// that has grown past our end since: nothing is taken before our last batch was compared.
    fn in_range(&mut self, key: u32, source_start: i64, source_end: i64) {
        let Some(partition) = self.owned(key) else { return };
        let asked = match self.member(key).map(|member| &member.stage) {
            Some(Stage::Comparing(comparison)) => comparison.ours().base_offset,
            _ => partition.log().map_or(0, |log| log.positions().received.0.offset),
        };
        if asked < source_start {
            // Our last batch was deleted there.
            return self.settle_comparison(key, Compared::Gone);
        }
        partition.set_unchecked(true);
        let reason = format!(
            "the source says that offset {asked} is out of range, and that its log goes from \
             {source_start} to {source_end}"
        );
        self.wait_and_retry(key, reason);
    }

    /// The source no longer has what comes next.
    fn source_gap(&mut self, key: u32, partition: &Rc<Partition>, log: &Log, source_start: i64) {
        let ours = log.positions().received.0.offset;
        let lost =
            Event::SourceGap { key: partition.key.clone(), lost_from: ours, lost_to: source_start };
        self.link.tell(lost);
        let lost = format!("offsets {ours} to {} were deleted at the source", source_start - 1);
        match self.link.settings().on_source_gap {
            OnSourceGap::Fault => {
                let reason = format!("{lost} before they were copied");
                self.fault(key, FaultCode::SourceGap, reason);
            }
            OnSourceGap::Continue => {
                log.advance_start(source_start);
                // Of what comes there nothing can be compared.
                self.settle_comparison(key, Compared::Gone);
            }
        }
    }
}

/// An epoch of ours whose end is asked for.
struct EpochCheck {
    key: u32,
    partition: Rc<Partition>,
    log: Rc<Log>,
    epoch: i32,
    /// Where the epoch ends here.
    end: i64,
}

async fn list_offsets(
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
