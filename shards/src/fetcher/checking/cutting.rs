//! Before a copy is cut: whether the source's log parts from it where the source says so.
//!
//! What says so are leader epochs, which are asked for by name; and one answer cuts nothing. So the
//! source is asked for its records at the place of the cut, as all records are asked for, and by
//! the topic id if it tells one. Of another leader epoch than ours they are others. If what the
//! source calls committed ends exactly there, two answers agree.

use net::fetch::Wanted;

use crate::check::{Compared, Comparison, Decision, decide_cut, epoch_at};
use crate::control::{Event, FaultCode};
use crate::fetcher::Fetcher;
use crate::limits::PARTITION_BYTES_MAX;
use crate::sink::Stage;

impl Fetcher {
    /// The source is said to have lost what we have from this offset on: what it has there is
    /// asked for. What it has deleted, and what we never had, cannot be compared.
    pub(in crate::fetcher) fn look_at_cut(&mut self, key: u32, common_end: i64) {
        let Some(partition) = self.owned(key) else { return };
        let Some(log) = partition.log() else { return };
        let positions = log.positions();
        let ours = positions.received.0.offset;
        // If the source ends before the copy begins, all that there is to see is where they part.
        let begun = positions.log_start_offset;
        let begun = partition.source_end().filter(|end| begun < *end).map_or(0, |_| begun);
        let at = common_end.max(partition.source_start().unwrap_or(0)).max(begun);
        let Some(last) = positions.last_epoch.filter(|_| !self.is_looking_at_cut(key)) else {
            let reason = format!(
                "the source says that its leader epochs part from the copy's at offset \
                 {common_end}, the copy goes to {ours}; but that its records from there on are \
                 out of range"
            );
            return self.wait_and_retry(key, reason);
        };
        let epoch = epoch_at(at, last, |epoch| log.end_offset_for_epoch(epoch));
        let Some(Some(member)) = self.members.get_mut(key as usize) else { return };
        member.stage = Stage::Comparing(Box::new(Comparison::of_cut(at, epoch, common_end)));
        let wanted = Wanted {
            fetch_offset: at,
            last_fetched_epoch: -1,
            leader_epoch: partition.leader.get().map_or(-1, |leader| leader.epoch),
            max_bytes: PARTITION_BYTES_MAX,
        };
        self.session.want(key, wanted);
        self.watch_answer(key);
    }

    pub(in crate::fetcher) fn is_looking_at_cut(&self, key: u32) -> bool {
        match self.member(key).map(|member| &member.stage) {
            Some(Stage::Comparing(comparison)) => comparison.is_of_cut(),
            _ => false,
        }
    }

    /// What the source has at the place of the cut.
    pub(in crate::fetcher) fn settle_cut(&mut self, key: u32, compared: Compared) {
        let Some(partition) = self.owned(key) else { return };
        let Some(Stage::Comparing(comparison)) = self.member(key).map(|member| &member.stage)
        else {
            return;
        };
        let (at, parted) = (comparison.offset(), comparison.parted());
        let (Some(common_end), Some(log)) = (parted, partition.log()) else { return };
        let said = format!(
            "the source says that its leader epochs part from the copy's at offset {common_end}, \
             the copy goes to {}",
            log.positions().received.0.offset
        );
        match decide_cut(compared, common_end, partition.source_end()) {
            Decision::Diverged { common_end } => self.diverged(key, common_end),
            Decision::Contradiction { .. } => {
                let reason =
                    format!("{said}; but at offset {at} it has records of the copy's epoch");
                self.wait_and_retry(key, reason);
            }
            _ => {
                let reason = format!("{said}; waiting for what it has at offset {at}");
                self.wait_and_retry(key, reason);
            }
        }
    }

    /// The source lost records we have.
    fn diverged(&mut self, key: u32, common_end: i64) {
        let Some(partition) = self.owned(key) else { return };
        let Some(log) = partition.log() else { return };
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
}
