//! Where `net` and `storage` meet: the records of an answer go into the logs of their partitions.

use std::rc::Rc;

use net::ErrorCode;
use net::fetch::{End, EpochEnd, Flow, PartitionHead, RecordSink, Take};
use ring::{Class, Lease};
use storage::check::{AppendError, Bounds};
use storage::limits::BATCH_BYTES_MAX;
use storage::log::{AppendLimits, Log, LogState};

use crate::check::{Comparison, SourceLog};
use crate::control::Start;
use crate::limits::COMPARE_LEASE_BYTES;
use crate::partition::Partition;

/// One partition of a fetcher, under the key its session knows.
pub struct Member {
    pub partition: Rc<Partition>,
    pub term: u64,
    pub stage: Stage,
    /// The offset from which its records were asked for last.
    pub asked: i64,
}

/// What the records of a member's part of an answer are for.
pub enum Stage {
    /// They go into the log.
    Appending,
    /// The first of them is compared with our last batch, or with what we have at the place of a
    /// cut. Apart, since there are thousands of members and few are compared.
    Comparing(Box<Comparison>),
    /// They are skipped: whether the source's log begins here, beyond our end or our last batch, is
    /// what counts.
    Stepping {
        /// Where it is said to begin.
        to: i64,
        /// Where the source's epochs part from ours, if they say so.
        parted: Option<i64>,
    },
}

/// What a source said when it was asked for what its log is said to begin with.
#[derive(Clone, Copy, Debug)]
pub struct Stepped {
    /// Where that is.
    pub to: i64,
    /// What it says now.
    pub theirs: SourceLog,
}

/// What one answer said and did, partition by partition; cleared and used again.
#[derive(Default)]
pub struct Outcome {
    /// Partitions whose position moved, by key.
    pub moved: Vec<u32>,
    /// Partitions that were named without records below the source's end.
    pub bare: Vec<u32>,
    /// Partitions whose last batch has been compared.
    pub compared: Vec<u32>,
    /// Partitions whose log was found to begin beyond our end, or not.
    pub stepped: Vec<(u32, Stepped)>,
    /// Partitions of which the source is said to have deleted records.
    pub started: Vec<u32>,
    /// Empty copies that begin beyond where the source's log does, and where that is.
    pub begun_late: Vec<(u32, i64)>,
    /// Partitions with trouble.
    pub troubles: Vec<(u32, Trouble)>,
}

impl Outcome {
    pub fn clear(&mut self) {
        self.moved.clear();
        self.bare.clear();
        self.compared.clear();
        self.stepped.clear();
        self.started.clear();
        self.begun_late.clear();
        self.troubles.clear();
    }
}

/// What went wrong with one partition of an answer.
#[derive(Debug)]
pub enum Trouble {
    /// The source refuses it.
    Code(ErrorCode),
    /// The source's log parts from ours: its end offset for that epoch.
    Diverging(EpochEnd),
    /// What it sent was not taken.
    Append {
        /// Why.
        error: AppendError,
        /// Where the answer's records began.
        began_at: i64,
    },
}

impl Trouble {
    /// See [`contradicts_itself`].
    pub fn contradicts_itself(&self) -> bool {
        matches!(self, Trouble::Append { error, began_at } if contradicts_itself(error, *began_at))
    }
}

/// Whether an answer went back to an offset that it had passed over itself.
pub fn contradicts_itself(error: &AppendError, began_at: i64) -> bool {
    use AppendError::OffsetBelowExpected;
    matches!(error, OffsetBelowExpected { base_offset, .. } if *base_offset >= began_at)
}

/// Whether a copy without records is to hold the source's log from its start on, and begins beyond
/// that: whoever said where to begin did not say where the source's log begins.
fn is_begun_late(log: &Log, start: Start, source_start: i64) -> bool {
    let begun = log.positions().log_start_offset;
    start == Start::Earliest
        && (0..begun).contains(&source_start)
        && log.last_batch().is_none()
        && !log.is_damaged()
}

/// Takes one answer's records.
pub struct Sink<'a> {
    members: &'a mut [Option<Member>],
    outcome: &'a mut Outcome,
    /// Where copies of this link begin.
    start: Start,
    /// Whose part of the answer this is.
    key: u32,
    now: Now,
}

/// What happens to the records at hand.
enum Now {
    Nothing,
    Appending(Appending),
    /// The bytes are compared; the lease holds those that are of no interest.
    Comparing,
}

struct Appending {
    partition: Rc<Partition>,
    log: Rc<Log>,
    term: u64,
    failed: bool,
    before: i64,
    records_bytes: usize,
}

impl Appending {
    /// The partition has another owner by now: its log is not ours to touch.
    fn is_lost(&self) -> bool {
        self.failed || !self.partition.appends_for(self.term)
    }
}

impl<'a> Sink<'a> {
    pub fn new(members: &'a mut [Option<Member>], outcome: &'a mut Outcome, start: Start) -> Self {
        Self { members, outcome, start, key: 0, now: Now::Nothing }
    }

    fn append(&mut self, head: &PartitionHead) -> Take {
        let member = self.members[self.key as usize].as_ref().expect("it was just there");
        let partition = &member.partition;
        let Some(log) = partition.log() else { return Take::Skip };
        if partition.term() != member.term {
            return Take::Skip;
        }
        let before = log.positions().received.0.offset;
        // One that was cut back since is not continued by what comes.
        if log.state() != LogState::Healthy || member.asked != before {
            let error = AppendError::NotHealthy;
            self.outcome.troubles.push((self.key, Trouble::Append { error, began_at: before }));
            return Take::Skip;
        }
        if is_begun_late(&log, self.start, head.log_start_offset) {
            self.outcome.begun_late.push((self.key, head.log_start_offset));
            return Take::Skip;
        }
        // A source that claims to start beyond what it just let us ask for, or beyond what it says
        // is committed, is not believed.
        let begun = log.positions().log_start_offset;
        if head.log_start_offset > begun && head.log_start_offset <= before.min(head.high_watermark)
        {
            self.outcome.started.push(self.key);
        }
        if head.records_bytes == 0 {
            log.set_high_watermark(head.high_watermark);
            partition.note_lag(ring::now());
            match partition.is_caught_up() {
                true => partition.forget_failures(),
                false => self.outcome.bare.push(self.key),
            }
            return Take::Skip;
        }
        if !partition.begin_append(member.term) {
            return Take::Skip;
        }
        log.begin(AppendLimits {
            high_watermark: head.high_watermark,
            leader_epoch: partition.leader.get().map_or(-1, |leader| leader.epoch),
        });
        log.expect(head.records_bytes);
        self.now = Now::Appending(Appending {
            before,
            partition: Rc::clone(partition),
            log,
            term: member.term,
            failed: false,
            records_bytes: head.records_bytes,
        });
        Take::Records
    }

    /// Whether the source's batch has come is known by its high watermark: no bytes where there
    /// must be some only means that the answer was full.
    fn compare(&mut self, head: &PartitionHead) -> Take {
        let member = self.members[self.key as usize].as_mut().expect("it was just there");
        let Stage::Comparing(comparison) = &mut member.stage else { return Take::Skip };
        let leader = member.partition.leader.get();
        comparison.begin(Bounds {
            high_watermark: head.high_watermark,
            leader_epoch: leader.map_or(-1, |leader| leader.epoch),
            batch_bytes_max: BATCH_BYTES_MAX,
        });
        self.now = Now::Comparing;
        if head.records_bytes > 0 {
            return Take::Records;
        }
        if head.high_watermark <= comparison.offset() {
            comparison.is_not_yet();
        }
        Take::Skip
    }

    fn step(&mut self, to: i64, head: &PartitionHead) -> Take {
        // Before version 5 it is only said by not refusing the offset.
        let start = if head.log_start_offset < 0 { to } else { head.log_start_offset };
        let theirs = SourceLog { start, end: head.high_watermark };
        self.outcome.stepped.push((self.key, Stepped { to, theirs }));
        Take::Skip
    }

    fn failed(&mut self, error: AppendError) -> Flow {
        if let Now::Appending(appending) = &mut self.now {
            appending.failed = true;
            let trouble = Trouble::Append { error, began_at: appending.before };
            self.outcome.troubles.push((self.key, trouble));
        }
        Flow::SkipRest
    }

    /// Hands these bytes to the comparison; whether more are needed.
    fn keep(&mut self, bytes: &[u8]) -> Flow {
        let Some(comparison) = self.comparison() else { return Flow::SkipRest };
        match comparison.take(bytes) {
            Ok(true) => Flow::Continue,
            Ok(false) => Flow::SkipRest,
            Err(error) => {
                let began_at = comparison.offset();
                self.outcome.troubles.push((self.key, Trouble::Append { error, began_at }));
                Flow::SkipRest
            }
        }
    }

    fn comparison(&mut self) -> Option<&mut Comparison> {
        match &mut self.members.get_mut(self.key as usize)?.as_mut()?.stage {
            Stage::Comparing(comparison) => Some(comparison),
            Stage::Appending | Stage::Stepping { .. } => None,
        }
    }

    fn finish(&mut self) {
        match std::mem::replace(&mut self.now, Now::Nothing) {
            Now::Nothing => {}
            Now::Comparing => {
                if self.comparison().is_some_and(|comparison| comparison.result().is_some()) {
                    self.outcome.compared.push(self.key);
                }
            }
            Now::Appending(appending) => self.finish_append(&appending),
        }
    }

    fn finish_append(&mut self, appending: &Appending) {
        let Appending { partition, log, before, records_bytes, .. } = appending;
        if !partition.appends_for(appending.term) {
            return;
        }
        if let Err(error) = partition.end_append()
            && !appending.failed
        {
            self.outcome.troubles.push((self.key, Trouble::Append { error, began_at: *before }));
        }
        let after = log.positions().received.0.offset;
        if after > *before {
            partition.count(after.abs_diff(*before), *records_bytes as u64);
            self.outcome.moved.push(self.key);
        }
        partition.note_lag(ring::now());
    }
}

impl RecordSink for Sink<'_> {
    fn partition(&mut self, key: u32, head: &PartitionHead) -> Take {
        self.key = key;
        let Some(Some(member)) = self.members.get(key as usize) else { return Take::Skip };
        if head.error_code != ErrorCode::NONE {
            self.outcome.troubles.push((key, Trouble::Code(head.error_code)));
            return Take::Skip;
        }
        member.partition.heard(head.log_start_offset, head.high_watermark);
        match member.stage {
            Stage::Appending => self.append(head),
            Stage::Comparing(_) => self.compare(head),
            Stage::Stepping { to, .. } => self.step(to, head),
        }
    }

    async fn keep_pace(&mut self) {
        if let Now::Appending(appending) = &self.now {
            appending.log.keep_pace().await;
        }
    }

    fn lend(&mut self, remaining: usize) -> Option<Lease> {
        if let Now::Appending(appending) = &self.now
            && !appending.is_lost()
        {
            let lease = appending.log.lend(remaining);
            if lease.is_some() || appending.log.is_open() {
                return lease;
            }
            // It failed meanwhile. To wait for it would be to keep its neighbours waiting.
            self.failed(AppendError::NotHealthy);
        }
        let bytes = remaining.min(COMPARE_LEASE_BYTES);
        Some(ring::try_lease(bytes, Class::Control)?.split(bytes).0)
    }

    fn filled(&mut self, lease: Lease, bytes: usize) -> Flow {
        match &self.now {
            Now::Nothing => Flow::SkipRest,
            Now::Comparing => self.keep(&lease[..bytes]),
            Now::Appending(appending) if appending.is_lost() => Flow::SkipRest,
            Now::Appending(appending) => match appending.log.filled(lease, bytes) {
                Ok(_) => Flow::Continue,
                Err(error) => self.failed(error),
            },
        }
    }

    fn copy_in(&mut self, bytes: &[u8]) -> (usize, Flow) {
        match &self.now {
            Now::Nothing => (bytes.len(), Flow::SkipRest),
            Now::Comparing => (bytes.len(), self.keep(bytes)),
            Now::Appending(appending) if appending.is_lost() => (bytes.len(), Flow::SkipRest),
            Now::Appending(appending) => match appending.log.copy_in(bytes) {
                Ok(copied) => (copied, Flow::Continue),
                Err(error) => (bytes.len(), self.failed(error)),
            },
        }
    }

    async fn memory(&mut self, bytes: usize) {
        drop(ring::lease(bytes.min(ring::BLOCK), Class::Records).await);
    }

    fn end(&mut self, end: End) {
        if let End::Complete(tail) = end
            && let Some(diverging) = tail.diverging_epoch
        {
            self.outcome.troubles.push((self.key, Trouble::Diverging(diverging)));
        }
        self.finish();
    }
}

impl Drop for Sink<'_> {
    /// A connection that is dropped in the middle of an answer leaves the log in order.
    fn drop(&mut self) {
        self.finish();
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::Duration;

    use storage::boot::Boot;
    use storage::log::LogSettings;
    use storage::names::LogId;
    use storage::store::{Store, StoreConfig};

    use super::*;
    use crate::control::{Assign, Mode, PartitionKey};

    fn assign(data_dir: PathBuf) -> Assign {
        let key = PartitionKey { link: "l".into(), topic: "t".into(), partition: 0 };
        let (segment_bytes, segment_ms) = (1 << 20, i64::MAX);
        Assign { key, topic_id: None, data_dir, mode: Mode::Replicate, segment_bytes, segment_ms }
    }

    #[test]
    fn a_log_that_fails_in_the_middle_of_an_answer_is_not_waited_for() {
        let folder = tempfile::tempdir_in("/var/tmp").expect("a folder");
        let path = folder.path().to_owned();
        let test = async move {
            let boot = Boot::prepare(std::slice::from_ref(&path)).expect("a data directory");
            let store = Store::open(StoreConfig::new(0, boot)).await.expect("a store");
            let id = LogId { link: "l".into(), topic: "t".into(), partition: 0 };
            let (log, _) = store.open_log(id, LogSettings::default()).await.expect("a log");
            let partition = Partition::new(1, assign(path), None, 0);
            partition.set_log(Some(Rc::clone(&log)));
            let (term, stage) = (partition.hand_to(None), Stage::Appending);
            let mut members = [Some(Member { partition, term, stage, asked: 0 })];
            let mut outcome = Outcome::default();
            let mut sink = Sink::new(&mut members, &mut outcome, Start::Earliest);
            let head = PartitionHead {
                partition: 0,
                error_code: ErrorCode::NONE,
                high_watermark: 10,
                last_stable_offset: 10,
                log_start_offset: 0,
                preferred_read_replica: -1,
                records_bytes: 30_000,
            };
            assert_eq!(sink.partition(0, &head), Take::Records);
            let lease = sink.lend(30_000).expect("the log's memory");
            assert_eq!(sink.filled(lease, 5), Flow::Continue);
            ring::timeout(Duration::from_secs(10), log.delete())
                .await
                .expect("time")
                .expect("gone");
            let lease = sink.lend(29_995).expect("memory to skip with");
            assert_eq!(sink.filled(lease, 100), Flow::SkipRest);
            drop(sink);
            assert!(matches!(outcome.troubles[..], [(0, Trouble::Append { .. })]));
            store.close().await;
        };
        ring::run(ring::Config::small(), test).expect("a ring");
    }
}
