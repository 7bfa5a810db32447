//! Why an offset was out of the source's range, and what follows from it.
//!
//! A follower of Kafka's own takes the leader's word: it cuts its log to the leader's end, or
//! begins anew at its start (`fetchOffsetAndTruncate`). Here one answer moves nothing: a log end
//! below ours needs leader epochs that part from ours, too, our last batch out of range or another
//! one there, and other records where it is to be cut; a log start beyond ours needs a fetch that
//! finds it.

use std::rc::Rc;

use net::codes::Meaning;
use net::fetch::Wanted;
use net::questions::{EARLIEST, LATEST};
use net::{Connection, ErrorCode, NetError};

use super::list_offsets;
use crate::check::{Compared, OutOfRange, SourceLog, classify};
use crate::control::{Event, FaultCode, OnSourceGap, Start};
use crate::fetcher::Fetcher;
use crate::partition::Partition;
use crate::sink::{Stage, Stepped};

impl Fetcher {
    /// Finds out why offsets were out of range, from the leader that said so.
    pub(in crate::fetcher) async fn classify_out_of_range(
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
            let theirs = match (start, end) {
                (Ok(start), Ok(end)) => SourceLog { start, end },
                (Err(code), _) | (_, Err(code)) => {
                    self.question_refused(key, code);
                    continue;
                }
            };
            let Some(log) = partition.log() else { continue };
            if theirs.is_possible() {
                partition.heard(theirs.start, theirs.end);
            }
            match classify(log.positions().received.0.offset, theirs) {
                OutOfRange::Senseless => {
                    let reason = format!("{theirs}, which makes no sense");
                    self.wait_and_retry(key, reason);
                }
                OutOfRange::InRange => self.in_range(key, theirs),
                OutOfRange::Gap { source_start } => self.step_to(key, source_start, None),
                OutOfRange::BeyondEnd => beyond.push((key, theirs)),
            }
        }
        let keys: Vec<u32> = beyond.iter().map(|(key, _)| *key).collect();
        let parted = self.compare_epochs(connection, &keys).await?;
        for (key, theirs) in beyond {
            match parted.get(&key).copied() {
                Some(common_end) if self.is_comparing(key) => self.look_at_cut(key, common_end),
                Some(common_end) => self.compare_last(key, common_end),
                None => self.ends_below(key, theirs),
            }
        }
        Ok(())
    }

    /// Whether it was what is compared that was out of range.
    fn is_comparing(&self, key: u32) -> bool {
        matches!(self.member(key).map(|member| &member.stage), Some(Stage::Comparing(_)))
    }

    /// The source is said to have lost what we have: our last batch is looked at there, or found to
    /// be out of range as well, before anything is cut.
    fn compare_last(&mut self, key: u32, common_end: i64) {
        if let Some(partition) = self.owned(key) {
            partition.set_unchecked(true);
            self.start_member(key, Some(common_end));
        }
    }

    /// The source does not answer a question about a partition. Unlike a fetch a question has no
    /// offset that could be out of range.
    pub(in crate::fetcher) fn question_refused(&mut self, key: u32, code: ErrorCode) {
        match code.meaning() {
            Meaning::OffsetOutOfRange => {
                self.wait_and_retry(key, format!("the source answered {code}"));
            }
            _ => self.settle_code(key, code),
        }
    }

    /// The range has moved, or the source contradicts itself. It may also be another log by now,
    /// that has grown past our end since: nothing is taken before our last batch was compared.
    fn in_range(&mut self, key: u32, theirs: SourceLog) {
        let Some(partition) = self.owned(key) else { return };
        let (asked, parted) = match self.member(key).map(|member| &member.stage) {
            Some(Stage::Comparing(comparison)) => (comparison.offset(), comparison.parted()),
            _ => (partition.log().map_or(0, |log| log.positions().received.0.offset), None),
        };
        if asked < theirs.start && !self.is_looking_at_cut(key) {
            // Our last batch was deleted there.
            return self.step_to(key, theirs.start, parted);
        }
        partition.set_unchecked(true);
        let reason = format!("the source says that offset {asked} is out of range; and {theirs}");
        self.wait_and_retry(key, reason);
    }

    /// The source's log ends below ours, and its epochs agree: a new leader has not caught up with
    /// what the old one showed. Or it is another log, which may have grown past our end by the
    /// next look.
    fn ends_below(&mut self, key: u32, theirs: SourceLog) {
        let Some(partition) = self.owned(key) else { return };
        let Some(log) = partition.log() else { return };
        let ours = log.positions().received.0.offset;
        partition.set_unchecked(true);
        let empty = log.last_batch().is_none() && !log.is_damaged();
        if empty && partition.count_repeated() > 1 {
            // It was begun where the source never was, and there is nothing in it to be lost.
            let start = match self.link.settings().start {
                Start::Latest => theirs.end,
                Start::Earliest | Start::TimestampMs(_) => theirs.start,
            };
            partition.forget_failures();
            return self.cut(key, start, None, None);
        }
        let end = theirs.end;
        let reason =
            format!("the source's end, {end}, is below the copy's, {ours}; waiting for it");
        self.wait_and_retry(key, reason);
    }

    /// The source's log is said to begin beyond our end, or our last batch. It is looked at there
    /// before anything follows from that.
    fn step_to(&mut self, key: u32, to: i64, parted: Option<i64>) {
        let Some(partition) = self.owned(key) else { return };
        let Some(Some(member)) = self.members.get_mut(key as usize) else { return };
        if let Stage::Stepping { to: before, .. } = member.stage {
            let reason = format!(
                "the source says that its log begins at offset {to}; but {before}, where it was \
                 said to begin, is out of range"
            );
            return self.wait_and_retry(key, reason);
        }
        member.stage = Stage::Stepping { to, parted };
        let wanted = Wanted {
            fetch_offset: to,
            last_fetched_epoch: -1,
            leader_epoch: partition.leader.get().map_or(-1, |leader| leader.epoch),
            max_bytes: 1,
        };
        self.session.want(key, wanted);
        self.watch_answer(key);
    }

    /// What the source says there.
    pub(in crate::fetcher) fn settle_step(&mut self, key: u32, stepped: Stepped) {
        let Some(partition) = self.owned(key) else { return };
        let Some(log) = partition.log() else { return };
        let Stepped { to, theirs } = stepped;
        let ours = log.positions().received.0.offset;
        let there = theirs.start <= to && to <= theirs.end;
        let last = log.last_batch().map_or(ours, |last| last.base_offset);
        if there && last < theirs.start && theirs.start <= ours {
            return self.settle_comparison(key, Compared::Gone);
        }
        if !there || theirs.start <= ours {
            let reason = format!(
                "the source says that offset {ours} is out of range and its log begins at {to}; \
                 and {theirs}"
            );
            return self.wait_and_retry(key, reason);
        }
        let source_start = theirs.start;
        let lost =
            Event::SourceGap { key: partition.key.clone(), lost_from: ours, lost_to: source_start };
        self.link.tell(lost);
        match self.link.settings().on_source_gap {
            OnSourceGap::Fault => {
                let to = source_start - 1;
                let lost = format!("offsets {ours} to {to} were deleted at the source");
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
