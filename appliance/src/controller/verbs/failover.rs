//! Failover: every step durable before the next, so that a crash at any of them can be run again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use shards::control::{FaultCode, PartitionState, Sealed};
use storage::boot::shrink_reserve;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::keeping::LinkChange;
use super::{Outcome, TopicOutcome, shared};
use crate::controller::link::Link;
use crate::controller::records::End;
use crate::controller::store::StoreError;
use crate::controller::wall_ms;
use crate::states::{Answer, TopicState};
use crate::words::count;

/// With so much free, a failover needs no reserve.
const FREE_BYTES_ENOUGH: u64 = 64 << 20;
/// What of a reserve is kept from the logs, for the metadata store to record the failover.
const RESERVE_BYTES_FOR_THE_STORE: u64 = 4 << 20;

/// How long a reserve may take to be freed.
const FREEING_PATIENCE: Duration = Duration::from_secs(5);

/// Failed partitions named in a refusal.
const FAILED_NAMED_MAX: usize = 3;

impl Link {
    /// Partitions whose logs cannot be used now: a failover would end them at what is known to be
    /// flushed, or at nothing. That is for a person to want.
    pub(super) async fn refuse_failed_logs(&self, names: &[String]) -> Option<Answer> {
        let mut failed = BTreeSet::new();
        {
            let state = self.state.borrow();
            for name in names {
                let refused = state.topics[name].refused.iter();
                failed.extend(refused.map(|(number, why)| (name.clone(), *number, why.clone())));
            }
        }
        let statuses = self.shared.shards.status(Some(self.name().clone())).await;
        for partition in statuses.iter().flatten().flat_map(|status| &status.partitions) {
            let topic = partition.key.topic.to_string();
            let unusable = partition.unopened
                || partition.state == PartitionState::Faulted(FaultCode::LocalLog);
            if unusable && names.contains(&topic) {
                let why = partition.reason.clone().unwrap_or_default();
                failed.insert((topic, partition.key.partition, why));
            }
        }
        if failed.is_empty() {
            return None;
        }
        let named: Vec<String> = failed
            .iter()
            .take(FAILED_NAMED_MAX)
            .map(|(topic, number, why)| format!("{topic}-{number} ({why})"))
            .collect();
        let more = match failed.len() - named.len() {
            0 => String::new(),
            count => format!(" and {count} more"),
        };
        let reason = format!(
            "the logs of {}{more} cannot be used now; they are opened again by themselves, and at \
             once when the topic is resumed. To fail over with what was flushed of them, force \
             it, or fail over all of the link",
            named.join(", ")
        );
        Some(Answer::new("log_failed", reason))
    }

    /// Stop fetching → flush barrier → FAILING_OVER with every end, durable → FAILED_OVER, durable.
    pub(super) async fn fail_over(
        &self,
        names: &[String],
        whole: bool,
        force: bool,
        outcome: &mut Outcome,
    ) -> Result<(), Outcome> {
        let partitions: usize = {
            let state = self.state.borrow();
            names.iter().map(|name| state.topics[name].shards.len()).sum()
        };
        outcome.steps = vec![
            format!(
                "stop fetching {} ({}) for good",
                count(names.len(), "topic"),
                count(partitions, "partition")
            ),
            "flush them".to_owned(),
            "write FAILING_OVER with the last offset and epoch of every partition".to_owned(),
            "write FAILED_OVER".to_owned(),
        ];
        if whole {
            outcome.steps.push("the link is PAUSED: nothing new is discovered".to_owned());
        }
        if outcome.dry_run {
            return Ok(());
        }
        let fresh: Vec<String> = {
            let state = self.state.borrow();
            let begun = |name: &String| state.topics[name].record.state == TopicState::FailingOver;
            names.iter().filter(|name| !begun(name)).cloned().collect()
        };
        // Those whose failover had begun keep the ends that were written then.
        self.free_reserve(RESERVE_BYTES_FOR_THE_STORE).await;
        let mut ends = self.seal(&fresh, whole || force).await.map_err(sealed_already)?;
        self.free_reserve(0).await;
        let change = if whole { LinkChange::Pause } else { LinkChange::None };
        self.store_topics(&fresh, change, |name, record| {
            record.become_state(TopicState::FailingOver, None, wall_ms());
            record.ends = ends.remove(name).unwrap_or_default();
        })
        .await
        .map_err(|error| sealed_already(error.into()))?;
        if whole {
            self.silence().await?;
        }
        self.set_topics(names, TopicState::FailedOver, LinkChange::None).await?;
        let state = self.state.borrow();
        outcome.topics.retain(|topic| !names.contains(&topic.topic));
        for name in names {
            let ends = state.topics[name].record.ends.clone();
            let (code, reason) = match ends.iter().filter(|end| end.error.is_some()).count() {
                0 => ("failed_over", format!("topic {name} has failed over")),
                bad => (
                    "failed_over_with_errors",
                    format!(
                        "topic {name} has failed over; {bad} partitions could not be flushed \
                             and end where they were flushed last"
                    ),
                ),
            };
            let (topic, code) = (name.clone(), code.to_owned());
            outcome.topics.push(TopicOutcome { topic, code, reason, ends });
        }
        Ok(())
    }

    /// On a full disk: room for what has come but is not written, and then for the record of it.
    async fn free_reserve(&self, left_bytes: u64) {
        let dirs: Vec<PathBuf> =
            self.shared.placement.borrow().dirs().map(Path::to_owned).collect();
        // On a thread of its own: where names are resolved, all may be waiting for a resolver that
        // is as dead as the source.
        let (done, freed) = oneshot::channel::<()>();
        let free = move || {
            for dir in dirs {
                let free = nix::sys::statvfs::statvfs(&dir)
                    .map_or(0, |found| found.blocks_available() * found.fragment_size());
                if free < FREE_BYTES_ENOUGH
                    && let Err(error) = shrink_reserve(&dir, left_bytes)
                {
                    tracing::warn!(%error, dir = %dir.display(), "the reserve cannot be freed");
                }
            }
            drop(done);
        };
        match std::thread::Builder::new().name("reserve".to_owned()).spawn(free) {
            // Nothing is sent: it ends, or it has died. A disk that hangs gives nothing back.
            Ok(_) => drop(timeout(FREEING_PATIENCE, freed).await),
            Err(error) => tracing::warn!(%error, "the reserve cannot be freed"),
        }
    }

    /// Where they end. What a disk that hangs may still make safe is given up only if it is so
    /// `urgent`.
    async fn seal(
        &self,
        names: &[String],
        urgent: bool,
    ) -> Result<BTreeMap<String, Vec<End>>, Outcome> {
        let mut ends: BTreeMap<String, Vec<End>> = BTreeMap::new();
        if names.is_empty() {
            return Ok(ends);
        }
        let sealed = self.shared.shards.seal(self.name(), &shared(names)).await;
        let sealed = sealed.map_err(|error| Outcome::failed("flush_barrier_failed", error))?;
        if let Some(Sealed { key, error, .. }) = sealed.iter().find(|one| one.hung && !urgent) {
            let why = error.as_deref().unwrap_or_default();
            let error = format!(
                "{key}: {why}; to end it where it was flushed last, force it, or fail over all of \
                 the link"
            );
            return Err(Outcome::failed("flush_barrier_failed", error));
        }
        for Sealed { key, end_offset, last_epoch, error, .. } in sealed {
            let end = End { partition: key.partition, end_offset, last_epoch, error };
            ends.entry(key.topic.to_string()).or_default().push(end);
        }
        let state = self.state.borrow();
        for name in names {
            let topic = &state.topics[name];
            let expected = topic.shards.len();
            let known = ends.entry(name.clone()).or_default();
            // What no shard could open has nothing to flush, and keeps nothing else from failing
            // over.
            for (&partition, reason) in &topic.refused {
                if known.iter().all(|end| end.partition != partition) {
                    let error = Some(reason.clone());
                    known.push(End { partition, end_offset: None, last_epoch: None, error });
                }
            }
            known.sort_by_key(|end| end.partition);
            let complete = known.iter().map(|end| end.partition).eq(0..expected as i32);
            if !complete {
                let error = format!(
                    "topic {name} has {expected} partitions, the shards sealed {}",
                    known.len()
                );
                return Err(Outcome::failed("flush_barrier_failed", error));
            }
        }
        Ok(ends)
    }

    /// After a restart: failovers that had begun are ended.
    pub(in super::super) async fn finish_failovers(&self) -> Result<(), StoreError> {
        let begun = self.names(|record| record.state == TopicState::FailingOver);
        if begun.is_empty() {
            return Ok(());
        }
        tracing::warn!(link = &**self.name(), topics = begun.len(), "finishing a failover begun");
        self.set_topics(&begun, TopicState::FailedOver, LinkChange::None).await
    }
}

/// A shard that was told to seal never goes back by itself, though nothing of it is written.
fn sealed_already(failed: Outcome) -> Outcome {
    let reason = format!(
        "{}: what is sealed is fetched no more until then, or until the node is started again",
        failed.reason
    );
    Outcome { reason, ..failed }
}
