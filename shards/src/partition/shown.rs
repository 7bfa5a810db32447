//! What a partition shows of itself: its state in one word, the reason, and when it is tried again.

use ring::Instant;
use storage::log::LogState;

use super::{Condition, Partition};
use crate::control::{FaultCode, Mode, PartitionState, PartitionStatus};
use crate::limits::STARVED_AFTER;

impl Partition {
    /// The snapshot for status and metrics.
    pub fn status(&self) -> PartitionStatus {
        let (now, now_ms) = (ring::now(), ring::wall_ms());
        // Clocks jump: times are kept on one that does not, and told on the wall's.
        let on_wall = |at: Instant| match at > now {
            true => now_ms.saturating_add((at - now).as_millis() as i64),
            false => now_ms.saturating_sub((now - at).as_millis() as i64),
        };
        let (state, reason, retry_at_ms) = self.shown(now, on_wall);
        let source = self.source.get();
        let heard = self.fetcher.borrow().as_ref().and_then(|fetcher| fetcher.heard.get());
        // In an incremental session silence means that nothing changed: a partition that had all
        // still has all, as of the last answer on its connection.
        let caught_up_at = match source.caught_up {
            true => source.caught_up_at.max(heard),
            false => source.caught_up_at,
        };
        let positions = self.log().map(|log| log.positions());
        PartitionStatus {
            key: self.key.clone(),
            state,
            unopened: self.unopened.get(),
            reason,
            since_ms: self.since_ms.get(),
            retry_at_ms,
            log_start: positions.map_or(0, |p| p.log_start_offset),
            received: positions.map_or(0, |p| p.received.0.offset),
            written: positions.map_or(0, |p| p.written.0.offset),
            flushed: positions.map_or(0, |p| p.flushed.0.offset),
            high_watermark: positions.map_or(0, |p| p.high_watermark),
            source_start: source.start,
            source_end: source.end,
            source_records_end: source.records_end(self.received()),
            caught_up_at_ms: caught_up_at.map(on_wall),
            bytes_received: self.bytes_received.get(),
            records_received: self.records_received.get(),
            leader: self.leader.get().map(|leader| leader.broker),
            leader_epoch: self.leader.get().map(|leader| leader.epoch),
        }
    }

    /// The damaged offsets in words, if there are any.
    pub fn damage(&self) -> Option<String> {
        let damages = self.log().filter(|log| log.is_damaged())?.damages();
        let first = damages.first()?;
        let mut reason = format!(
            "bytes that were safe on disk have changed: offsets {} to {}, segment {}, bytes {:?}: \
             {}",
            first.offsets.start, first.offsets.end, first.segment, first.bytes, first.reason
        );
        if damages.len() > 1 {
            reason += &format!("; and {} more ranges", damages.len() - 1);
        }
        if self.mode() == Mode::Sealed {
            reason += "; cut loose from the source, it is not mended any more";
        } else if let Some(why) = &self.repair.borrow().reason {
            reason += &format!("; not repaired: {why}");
        }
        let start = self.log().map_or(0, |log| log.positions().log_start_offset);
        if damages.iter().all(|damage| damage.offsets.end <= start) {
            reason += &format!(
                "; all of it lies below the log start, {start}, where nobody reads, and goes with \
                 its segment"
            );
        }
        Some(reason)
    }

    /// When a repair that was tried in vain is tried again.
    fn repair_retry_at(&self) -> Option<Instant> {
        let note = self.repair.borrow();
        note.retry_at.filter(|_| note.reason.is_some() && self.mode() != Mode::Sealed)
    }

    /// Its connection has waited long for memory.
    fn is_starved(&self, now: Instant) -> bool {
        let waits = self.fetcher.borrow().as_ref().and_then(|fetcher| fetcher.starved.get());
        waits.is_some_and(|since| now - since >= STARVED_AFTER)
    }

    fn shown(
        &self,
        now: Instant,
        on_wall: impl Fn(Instant) -> i64,
    ) -> (PartitionState, Option<String>, Option<i64>) {
        let (state, reason, retry_at_ms) = self.shown_but_damage(now, &on_wall);
        let Some(mut damage) = self.damage() else { return (state, reason, retry_at_ms) };
        // What keeps its tail from going on is said, too.
        let goes_on = matches!(state, PartitionState::Starting | PartitionState::Active);
        if !goes_on && state != PartitionState::Sealed {
            damage += &format!("; besides, it is {}", state.name());
            damage += &reason.map_or(String::new(), |reason| format!(": {reason}"));
        }
        (PartitionState::Corrupt, Some(damage), self.repair_retry_at().map(on_wall))
    }

    fn shown_but_damage(
        &self,
        now: Instant,
        on_wall: impl Fn(Instant) -> i64,
    ) -> (PartitionState, Option<String>, Option<i64>) {
        match (self.log().map(|log| log.state()), self.mode()) {
            (Some(LogState::Failed(mut reason)), _) => {
                let reopening = self.reopening.borrow();
                if let Some(trouble) = &reopening.trouble {
                    reason += &format!("; it cannot be opened again: {trouble}");
                }
                let retry_at_ms = reopening.at.map(on_wall);
                return (PartitionState::Faulted(FaultCode::LocalLog), Some(reason), retry_at_ms);
            }
            (_, Mode::Sealed) => return (PartitionState::Sealed, None, None),
            (_, Mode::Held { state, reason }) => return (state, Some(reason), None),
            (_, Mode::Paused) => return (PartitionState::Paused, None, None),
            (None, Mode::Replicate) if self.unopened.get() => {
                let reason = "no room on the disk to open its log; it is opened when there is";
                return (PartitionState::DiskFull, Some(reason.to_owned()), None);
            }
            (Some(LogState::DiskFull), Mode::Replicate) => {
                let reason = "no room on the disk; fetching goes on when there is".to_owned();
                return (PartitionState::DiskFull, Some(reason), None);
            }
            (
                Some(LogState::Healthy | LogState::Closed | LogState::Corrupt(_)) | None,
                Mode::Replicate,
            ) => {}
        }
        match self.condition() {
            Condition::Faulted { code, reason } => {
                (PartitionState::Faulted(code), Some(reason), None)
            }
            Condition::Waiting { reason, retry_at }
            | Condition::SourceAway { reason, retry_at } => {
                (PartitionState::Retrying, Some(reason), Some(on_wall(retry_at)))
            }
            Condition::NoLeader { reason, retry_at } => {
                (PartitionState::Retrying, Some(reason), retry_at.map(on_wall))
            }
            Condition::Fine if self.is_starved(now) => {
                (PartitionState::MemoryShort, Some(crate::budget::shortage()), None)
            }
            Condition::Fine if self.unchecked.get() || self.fetcher.borrow().is_none() => {
                (PartitionState::Starting, None, None)
            }
            Condition::Fine => (PartitionState::Active, None, None),
        }
    }
}
