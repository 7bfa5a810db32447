//! Members below the source's end of which its answers bring nothing.
//!
//! A log may end with a gap: the high watermark says more than there are records. Then a source
//! that was asked for everything and held the answer has none, or passes over the partition again
//! and again though there was room. So does one that keeps records in a remote tier (KIP-405), as
//! long as it has not got them from there: where its own disk begins tells the two apart.

use std::rc::Rc;
use std::time::Duration;

use net::connection::FetchOutcome;
use net::fetch::Verdict;
use net::questions::EARLIEST_LOCAL;
use net::{Api, Connection, NetError};

use super::Fetcher;
use super::checking::list_offsets;
use crate::check::Compared;
use crate::limits::{HELD_ANSWER_MIN, PASSED_OVER_MAX};
use crate::partition::Partition;
use crate::sink::Stage;

/// First version of ListOffsets in which a source can be asked where its own disk begins.
const LOCAL_STARTS_SINCE: i16 = 8;

impl Fetcher {
    /// Finds the members that an answer, or several in a row, was silent about though it had room.
    pub(super) fn find_silent(&mut self, answer: &FetchOutcome, asked: usize, spent: Duration) {
        for key in &self.outcome.bare {
            self.below_end.note(*key);
        }
        let good = matches!(answer.verdict, Verdict::Good | Verdict::Restarted);
        if self.below_end.is_empty() || !good || !answer.in_step || !answer.throttle.is_zero() {
            return;
        }
        let none = answer.records_bytes == 0 && self.outcome.troubles.is_empty();
        let held = none && spent >= HELD_ANSWER_MIN;
        let roomy = (1..asked as u64 / 2).contains(&answer.records_bytes);
        let mut silent = Vec::new();
        if roomy {
            silent = self.below_end.passed_over(PASSED_OVER_MAX);
        }
        if held {
            silent.extend(self.below_end.take());
        }
        let just_came = |key: &u32| {
            self.outcome.compared.contains(key)
                || self.outcome.stepped.iter().any(|(stepped, _)| stepped == key)
        };
        let asked = |key: u32| Some((key, self.session.wanted(key)?.fetch_offset));
        self.silent = silent.into_iter().filter(|key| !just_came(key)).filter_map(asked).collect();
    }

    /// What the silence about them means, if they are asked for as they were.
    pub(super) async fn settle_silent(
        &mut self,
        connection: &mut Connection,
    ) -> Result<(), NetError> {
        let silent = std::mem::take(&mut self.silent);
        let asked: Vec<(u32, Rc<Partition>, i64)> = silent
            .into_iter()
            .filter_map(|(key, offset)| {
                let partition = self.owned(key)?;
                let wanted = self.session.wanted(key)?;
                (wanted.fetch_offset == offset).then_some((key, partition, offset))
            })
            .collect();
        if asked.is_empty() {
            return Ok(());
        }
        let newest = connection.versions().newest(Api::ListOffsets);
        let mut starts = vec![None; asked.len()];
        if newest.is_some_and(|newest| newest >= LOCAL_STARTS_SINCE) {
            let partitions: Vec<_> = asked.iter().map(|(_, p, _)| Rc::clone(p)).collect();
            let answers = list_offsets(connection, &partitions, EARLIEST_LOCAL).await?;
            // One that cannot tell has no remote tier.
            starts = answers.into_iter().map(Result::ok).collect();
        }
        for ((key, partition, offset), start) in asked.into_iter().zip(starts) {
            let is_remote = start.is_some_and(|start| offset < start);
            let appending =
                matches!(self.member(key).map(|member| &member.stage), Some(Stage::Appending));
            match (appending, is_remote) {
                (true, true) => self.below_end.note(key),
                (true, false) => self.has_no_records(key, &partition, offset),
                (false, _) => self.unanswered(key, offset, is_remote),
            }
        }
        Ok(())
    }

    fn has_no_records(&mut self, key: u32, partition: &Rc<Partition>, offset: i64) {
        if self.owned(key).is_some()
            && let Some(log) = partition.log()
            && offset == log.positions().received.0.offset
        {
            partition.note_bare(ring::now());
            self.move_if_due(partition);
        }
    }

    /// Looks from now on whether the source says anything of what was asked of a member. Of what it
    /// has not committed it says nothing in a session.
    pub(super) fn watch_answer(&mut self, key: u32) {
        self.silent.retain(|(silent, _)| *silent != key);
        self.below_end.forget(key);
        self.below_end.note(key);
    }

    /// A source that was asked for a batch neither sends it nor says why.
    fn unanswered(&mut self, key: u32, offset: i64, is_remote: bool) {
        if is_remote {
            let reason = format!("the source has offset {offset} in its remote tier, and is slow");
            self.wait_and_retry(key, reason);
        } else if self.is_looking_at_cut(key) {
            // Of what it does not call committed it says nothing.
            self.settle_cut(key, Compared::NotYet);
        } else if self.ends_with_a_gap(key) {
            self.settle_comparison(key, Compared::Gone);
        } else {
            self.wait_and_retry(key, format!("the source sends nothing of offset {offset}"));
        }
    }

    /// Whether what the source calls committed goes beyond the copy whose last batch it does not
    /// send: its cleaner took that, and all behind it.
    fn ends_with_a_gap(&self, key: u32) -> bool {
        let Some(Some(member)) = self.members.get(key as usize) else { return false };
        let Some(log) = member.partition.log() else { return false };
        let ours = log.positions().received.0.offset;
        let comparing = matches!(member.stage, Stage::Comparing(_));
        comparing && member.partition.source_end().is_some_and(|end| end >= ours)
    }
}
