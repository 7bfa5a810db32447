//! After an answer: what each partition's part of it means.

use std::rc::Rc;

use net::connection::FetchOutcome;
use net::fetch::{EpochEnd, Verdict};
use net::{ErrorCode, codes::Meaning};
use storage::check::AppendError;
use storage::limits::BATCH_BYTES_MAX;
use storage::log::{Log, LogError};

use super::{Fetcher, Kind};
use crate::check::{Compared, Decision, decide};
use crate::control::{Event, FaultCode};
use crate::limits::BAD_BATCHES_MAX;
use crate::partition::Partition;
use crate::repairing::verify_segment;
use crate::sink::{Stage, Trouble, contradicts_itself};

impl Fetcher {
    /// Settles an answer, complete or (`None`) cut short.
    pub(super) fn settle(&mut self, answer: Option<&FetchOutcome>) {
        let now_ms = ring::wall_ms();
        if let Some(answer) = answer {
            self.shared.heard.set(Some(ring::now()));
            self.backoff.succeeded();
            self.link.count_fetch(answer.records_bytes, self.shared.kind);
            match answer.verdict {
                Verdict::Good | Verdict::Restarted => {}
                Verdict::RefreshMetadata => self.link.metadata_stale(),
                Verdict::Refused(code) => self.refused(code),
            }
        }
        let mut outcome = std::mem::take(&mut self.outcome);
        for key in outcome.compared.drain(..) {
            if let Some(Stage::Comparing(comparison)) = self.member(key).map(|m| &m.stage)
                && let Some(compared) = comparison.result()
            {
                self.settle_comparison(key, compared);
            }
        }
        for (key, stepped) in outcome.stepped.drain(..) {
            self.settle_step(key, stepped);
        }
        self.started.append(&mut outcome.started);
        for (key, start) in outcome.begun_late.drain(..) {
            self.begin_earlier(key, start);
        }
        for key in outcome.moved.drain(..) {
            // What is about to be taken back was no progress.
            let taken_back = |(troubled, trouble): &(u32, Trouble)| {
                *troubled == key && trouble.contradicts_itself()
            };
            if !outcome.troubles.iter().any(taken_back) {
                self.settle_progress(key, now_ms);
            }
        }
        for (key, trouble) in outcome.troubles.drain(..) {
            self.settle_trouble(key, trouble);
        }
        self.outcome = outcome;
    }

    /// A partition that has fallen far behind, or is behind no longer, goes to another connection.
    pub(super) fn move_if_due(&self, partition: &Rc<Partition>) {
        let moves = match self.shared.kind {
            Kind::Tail => partition.is_far_behind(None),
            Kind::Backfill(_) => partition.is_caught_up(),
        };
        if moves {
            partition.backfill.set(self.shared.kind == Kind::Tail);
            self.link.place(partition);
        }
    }

    /// Looks from now on whether there are records between our end and the source's.
    fn watch_end(&mut self, key: u32, partition: &Partition) {
        if partition.is_caught_up() {
            self.below_end.forget(key);
        } else {
            // Records have come: from now on it counts anew.
            self.below_end.forget(key);
            self.below_end.note(key);
        }
    }

    fn settle_progress(&mut self, key: u32, now_ms: i64) {
        let Some(partition) = self.owned(key) else { return };
        partition.succeeded(now_ms);
        partition.known(self.asked_at);
        partition.contradicted.set(0);
        self.watch_end(key, &partition);
        self.want(key);
        self.move_if_due(&partition);
    }

    pub(super) fn settle_comparison(&mut self, key: u32, compared: Compared) {
        if self.is_looking_at_cut(key) {
            return self.settle_cut(key, compared);
        }
        let Some(partition) = self.owned(key) else { return };
        let Some(Some(member)) = self.members.get_mut(key as usize) else { return };
        let parted = match std::mem::replace(&mut member.stage, Stage::Appending) {
            Stage::Comparing(comparison) => comparison.parted(),
            Stage::Stepping { parted, .. } => parted,
            Stage::Appending => None,
        };
        let ours = partition.log().map_or(0, |log| log.positions().received.0.offset);
        let last = partition.log().and_then(|log| log.last_batch());
        let records_end = last.map_or(ours, |last| last.last_offset + 1);
        match decide(compared, parted, records_end) {
            Decision::LeaveGap { common_end } => self.cut(key, common_end, None, None),
            Decision::Contradiction { common_end } => {
                let reason = format!(
                    "the source says that its leader epochs part from the copy's at offset \
                     {common_end}, the copy goes to {ours}; but it has the copy's last batch"
                );
                self.wait_and_retry(key, reason);
            }
            Decision::Diverged { common_end } => self.look_at_cut(key, common_end),
            Decision::Wait => {
                let reason = format!(
                    "what the source calls committed ends before the copy's last batch, the copy \
                     goes to {ours}; waiting for it"
                );
                self.wait_and_retry(key, reason);
            }
            Decision::GoOn => {
                partition.set_unchecked(false);
                partition.known(self.asked_at);
                partition.asked_anew(ring::wall_ms());
                // An idle partition may not be mentioned again: what was heard has to serve.
                partition.note_lag(ring::now());
                self.started.push(key);
                self.watch_end(key, &partition);
                self.want(key);
            }
            Decision::Another => {
                let reason = format!(
                    "the source holds other records than the copy before offset {ours}: the topic \
                     was recreated, or its log was replaced"
                );
                self.fault(key, FaultCode::Diverged, reason);
            }
        }
    }

    fn settle_trouble(&mut self, key: u32, trouble: Trouble) {
        match trouble {
            Trouble::Code(code) => self.settle_code(key, code),
            Trouble::Diverging(end) => self.settle_diverging(key, end),
            Trouble::Append { error, began_at } => self.settle_append_error(key, error, began_at),
        }
    }

    /// The source refuses one partition.
    pub(super) fn settle_code(&mut self, key: u32, code: ErrorCode) {
        let Some(partition) = self.owned(key) else { return };
        self.link.count_error("source");
        match code.meaning() {
            Meaning::OffsetOutOfRange => {
                self.session.unwant(key);
                self.out_of_range.push(key);
            }
            Meaning::RefreshMetadata | Meaning::EpochFenced => {
                self.link.metadata_stale();
                let broker = self.shared.broker;
                let reason = format!("broker {broker} answered {code}; asking who leads it now");
                partition.refused_by_leader(reason, ring::random(), ring::wall_ms());
                self.let_go(key);
                self.link.retry_later(&partition);
            }
            _ => self.wait_and_retry(key, format!("the source answered {code}")),
        }
    }

    /// The source's log parts from ours (KIP-595's diverging epoch): ask exactly where.
    fn settle_diverging(&mut self, key: u32, end: EpochEnd) {
        let Some(partition) = self.owned(key) else { return };
        let times = partition.contradicted.get() + 1;
        partition.contradicted.set(times);
        partition.set_unchecked(true);
        if times == 1 {
            self.session.unwant(key);
            self.fresh.push(key);
            return;
        }
        // Its epochs and its records were compared, and agreed.
        let ours = partition.log().map_or(0, |log| log.positions().received.0.offset);
        let reason = format!(
            "the source says that its log parts from the copy at offset {}, epoch {}, the copy \
             goes to {ours}; but its leader epochs and last records are the copy's",
            end.end_offset, end.epoch
        );
        if times > BAD_BATCHES_MAX {
            self.fault(key, FaultCode::Diverged, format!("{reason}; {times} times in a row"));
        } else {
            self.wait_and_retry(key, reason);
        }
    }

    fn settle_append_error(&mut self, key: u32, error: AppendError, began_at: i64) {
        let Some(partition) = self.owned(key) else { return };
        let Some(log) = partition.log() else { return };
        match error {
            AppendError::NoMemory => self.want(key),
            // Its disk was full, and may have room by now: nobody else would ask for it again.
            AppendError::NotHealthy if log.is_open() => self.want(key),
            AppendError::NotHealthy => {
                self.link.repairs.add_if_damaged(&partition);
                self.let_go(key);
            }
            // What is larger than any batch can be is a lie like others.
            AppendError::BatchTooLarge { bytes, .. } if bytes <= u64::from(BATCH_BYTES_MAX) => {
                let advice = "raise batch_bytes_max of the link, then resume";
                self.fault(key, FaultCode::BatchTooLarge, format!("{error}; {advice}"));
            }
            _ if contradicts_itself(&error, began_at) => {
                self.link.count_error("bad batch");
                self.take_back(key, began_at, &error);
            }
            _ => {
                self.link.count_error("bad batch");
                if matches!(error, AppendError::EpochBeyondLeader { .. }) {
                    self.link.metadata_stale();
                }
                if partition.count_repeated() < BAD_BATCHES_MAX {
                    self.wait_and_retry(key, error.to_string());
                } else if let Some(offset) = self.hidden_past(&log, &error) {
                    let (name, to) = (partition.key.clone(), log.positions().received.0.offset);
                    let event = Event::Truncated { key: name, from: offset, to };
                    self.cut(key, offset, Some(to), Some(event));
                } else {
                    let code = match error {
                        AppendError::CrcMismatch { .. } => FaultCode::CorruptBatch,
                        _ => FaultCode::BadBatch,
                    };
                    let reason = format!("{error}, {BAD_BATCHES_MAX} times in a row");
                    self.fault(key, code, reason);
                }
            }
        }
    }

    /// Where to cut a log of which nothing is visible, when the source's first batch begins below
    /// its end: what lies there is of a past that the source has parted from, or a batch of the
    /// source would end where the log does.
    fn hidden_past(&self, log: &Log, error: &AppendError) -> Option<i64> {
        let AppendError::OffsetBelowExpected { base_offset, .. } = error else { return None };
        let positions = log.positions();
        let hidden = positions.received.0.offset == positions.log_start_offset;
        (hidden && self.link.settings().allow_truncation).then_some(*base_offset)
    }

    /// An answer that goes back within itself lies about its gaps: what looked like one may be a
    /// hole. Nothing of it is believed; the log is cut back to where the answer began.
    fn take_back(&mut self, key: u32, began_at: i64, error: &AppendError) {
        let Some(partition) = self.owned(key) else { return };
        let reason = format!("{error}: the answer contradicts itself, nothing of it is kept");
        if partition.count_repeated() >= BAD_BATCHES_MAX {
            let reason = format!("{reason}, {BAD_BATCHES_MAX} times in a row");
            partition.fault(FaultCode::BadBatch, reason.clone(), ring::wall_ms());
            self.link.faulted(&partition, FaultCode::BadBatch, reason);
        } else {
            partition.failed(reason, ring::random(), ring::wall_ms());
        }
        self.cut(key, began_at, None, None);
    }

    /// A copy without records begins anew where the source's log does.
    fn begin_earlier(&mut self, key: u32, start: i64) {
        let Some(partition) = self.owned(key) else { return };
        let begun = partition.log().map_or(0, |log| log.positions().log_start_offset);
        let reason = format!(
            "the source says that its log begins at offset {start}; the copy, which has no \
             records yet, was begun at {begun}, and begins anew"
        );
        partition.failed(reason, ring::random(), ring::wall_ms());
        self.cut(key, start, None, None);
    }

    /// Cuts a log back, on a task of its own: it must come to its end whatever becomes of this
    /// connection. Nobody fetches the partition meanwhile; afterwards it is looked at again. It
    /// begins at `start` then, if that is given, or where it began, or at the cut.
    pub(super) fn cut(&mut self, key: u32, offset: i64, start: Option<i64>, event: Option<Event>) {
        let Some(partition) = self.owned(key) else { return };
        let Some(log) = partition.log() else { return };
        let occupied = partition.occupy();
        self.let_go(key);
        let link = Rc::clone(&self.link);
        ring::spawn(ring::Share::Replicate, async move {
            let cut = log.truncate_to(offset).await;
            if let Some(start) = start {
                log.advance_start(start);
            }
            partition.set_unchecked(true);
            drop(occupied);
            let now_ms = ring::wall_ms();
            let hidden = match &cut {
                Err(LogError::Damaged { segment, .. }) => Some(*segment),
                _ => None,
            };
            match (cut, event) {
                // The source says so again, and it is cut once what stands in the way is mended.
                (Err(error), Some(_)) if hidden.is_some() => {
                    partition.failed(error.to_string(), ring::random(), now_ms);
                }
                (Err(error), _) => {
                    partition.fault(FaultCode::LocalLog, error.to_string(), now_ms);
                    link.faulted(&partition, FaultCode::LocalLog, error.to_string());
                }
                (Ok(()), Some(event)) => link.tell(event),
                (Ok(()), None) => {}
            }
            if let Some(segment) = hidden {
                verify_segment(&link, &partition, segment).await;
            }
            // Damage that stays may have become known with the cut.
            link.repairs.add_if_damaged(&partition);
            link.retry_later(&partition);
        })
        .detach();
    }

    /// The source refuses the whole request: every partition of it waits.
    fn refused(&mut self, code: ErrorCode) {
        let keys: Vec<u32> = self.by_uid.values().copied().collect();
        for key in keys {
            self.settle_code(key, code);
        }
    }

    pub(super) fn wait_and_retry(&mut self, key: u32, reason: String) {
        let Some(partition) = self.owned(key) else { return };
        partition.failed(reason, ring::random(), ring::wall_ms());
        self.let_go(key);
        self.link.retry_later(&partition);
    }

    pub(super) fn fault(&mut self, key: u32, code: FaultCode, reason: String) {
        let Some(partition) = self.owned(key) else { return };
        partition.fault(code, reason.clone(), ring::wall_ms());
        self.link.faulted(&partition, code, reason);
        self.let_go(key);
    }

    /// The partition is nobody's until the link places it again.
    pub(super) fn let_go(&mut self, key: u32) {
        let Some(member) = self.member(key) else { return };
        let (partition, term) = (Rc::clone(&member.partition), member.term);
        if partition.term() == term {
            partition.hand_to(None);
        }
        self.remove_member(partition.uid);
    }
}
