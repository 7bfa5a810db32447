//! Carrying verbs out, in an order that a crash at any step leaves re-runnable.

use super::link::{Health, Link};
use super::observe;
use super::records::{self, End, TopicRecord};
use super::store::StoreError;
use super::{records::LinkRecord, wall_ms};
use crate::states::{Answer, Decision, LinkMode, TopicState, Verb, decide_link, decide_topic};
use serde::{Deserialize, Serialize};
use shards::control::{Command, Sealed};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use storage::boot::shrink_reserve;
use storage::metadata::Change;

/// With so much free, a failover needs no reserve.
const FREE_BYTES_ENOUGH: u64 = 64 << 20;
/// What of a reserve is kept from the logs, for the metadata store to record the failover.
const RESERVE_BYTES_FOR_THE_STORE: u64 = 4 << 20;

/// What a person asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What to do.
    pub verb: Verb,
    /// These topics; `None` = the whole link.
    pub topics: Option<Vec<String>>,
    /// Say what would happen, change nothing.
    pub dry_run: bool,
    /// `delete` what is live.
    pub force: bool,
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// Done, or with `dry_run`, would be done.
    Done,
    /// It was so already.
    Unchanged,
    /// Not allowed in this state; nothing changed.
    Refused,
    /// There is no such thing.
    NotFound,
    /// Allowed, but it could not be carried out; running it again is safe.
    Failed,
}

/// The answer to a verb.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// How it ended.
    pub ending: Ending,
    /// Stable code.
    pub code: String,
    /// For people.
    pub reason: String,
    /// Nothing was changed because only a preview was asked for.
    pub dry_run: bool,
    /// Steps taken, or to be taken, in order.
    pub steps: Vec<String>,
    /// Topic by topic; empty for verbs on a link alone.
    pub topics: Vec<TopicOutcome>,
}

/// What a verb did to one topic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicOutcome {
    /// The topic.
    pub topic: String,
    /// Stable code.
    pub code: String,
    /// For people.
    pub reason: String,
    /// Where its partitions ended, after failover.
    pub ends: Vec<End>,
}

impl Outcome {
    fn new(ending: Ending, answer: Answer, dry_run: bool) -> Self {
        let Answer { code, reason } = answer;
        Outcome { ending, code, reason, dry_run, steps: Vec::new(), topics: Vec::new() }
    }

    fn failed(code: &str, error: impl std::fmt::Display) -> Self {
        let reason = format!("{error}; nothing is half done, run it again");
        Outcome::new(Ending::Failed, Answer::new(code, reason), false)
    }
}

impl From<StoreError> for Outcome {
    fn from(error: StoreError) -> Self {
        Outcome::failed("store_failed", error)
    }
}

impl Link {
    /// Decides and carries out. Verbs of one link take turns.
    ///
    /// The caller must see to it that the future is not dropped halfway: each step is re-runnable,
    /// but the person would have no answer.
    pub async fn carry(&self, request: &Request) -> Outcome {
        let _turn = self.turn.lock().await;
        let outcome = match &request.topics {
            Some(topics) => self.carry_topics(topics, request).await,
            None => self.carry_link(request).await,
        };
        let outcome = outcome.unwrap_or_else(|failed| failed);
        if !request.dry_run {
            let (link, verb) = (&**self.name(), request.verb.name());
            tracing::info!(link, verb, code = outcome.code, reason = outcome.reason, "verb");
        }
        outcome
    }

    async fn carry_link(&self, request: &Request) -> Result<Outcome, Outcome> {
        let states: Vec<(String, TopicState)> = {
            let state = self.state.borrow();
            state.topics.iter().map(|(name, t)| (name.clone(), t.record.state)).collect()
        };
        let dry_run = request.dry_run;
        let decided = decide_link(self.name(), self.mode(), &states, request.verb, request.force);
        let answer = match decided {
            Decision::Refuse(answer) => return Ok(Outcome::new(Ending::Refused, answer, dry_run)),
            Decision::Nothing(answer) => {
                if request.verb == Verb::Resume && !dry_run {
                    self.speak().await;
                }
                return Ok(Outcome::new(Ending::Unchanged, answer, dry_run));
            }
            Decision::Do(answer) => answer,
        };
        let mut outcome = Outcome::new(Ending::Done, answer, dry_run);
        match request.verb {
            Verb::Pause => {
                outcome.steps = vec![
                    "write PAUSED".to_owned(),
                    "stop fetching and close every socket to the source".to_owned(),
                ];
                if !dry_run {
                    self.set_mode(LinkMode::Paused, Vec::new()).await?;
                    self.silence().await?;
                }
            }
            Verb::Resume => {
                outcome.steps = vec!["write ACTIVE".to_owned(), "ask the source".to_owned()];
                if !dry_run {
                    self.set_mode(LinkMode::Active, Vec::new()).await?;
                    // What was known of the source is old.
                    self.state.borrow_mut().health = Health::Unknown;
                    self.speak().await;
                }
            }
            Verb::Failover => {
                let live: Vec<String> = states
                    .into_iter()
                    .filter(|(_, state)| state.is_live())
                    .map(|(name, _)| name)
                    .collect();
                self.fail_over(&live, true, &mut outcome).await?;
            }
            Verb::Delete => {
                outcome.steps = vec![
                    "write DELETED".to_owned(),
                    "close every socket to the source and every file".to_owned(),
                    format!("the files of {} topics stay where they are", states.len()),
                ];
                if !dry_run {
                    self.set_mode(LinkMode::Deleted, Vec::new()).await?;
                    self.silence().await?;
                    self.release_all().await;
                }
            }
        }
        Ok(outcome)
    }

    async fn carry_topics(&self, names: &[String], request: &Request) -> Result<Outcome, Outcome> {
        let (verb, dry_run) = (request.verb, request.dry_run);
        if self.mode() == LinkMode::Deleted {
            let answer = Answer::new("link_deleted", format!("link {} is deleted", self.name()));
            return Ok(Outcome::new(Ending::Refused, answer, dry_run));
        }
        let mut todo = Vec::new();
        let mut topics = Vec::new();
        let mut refused = None;
        for name in names {
            let state = self.state.borrow().topics.get(name).map(|topic| topic.record.state);
            let Some(state) = state else {
                let reason = format!("link {} has no topic {name}", self.name());
                let answer = Answer::new("topic_not_found", reason);
                return Ok(Outcome::new(Ending::NotFound, answer, dry_run));
            };
            let answer = match decide_topic(name, state, verb, request.force) {
                Decision::Do(answer) => {
                    if !todo.contains(name) {
                        todo.push(name.clone());
                    }
                    answer
                }
                Decision::Nothing(answer) => answer,
                Decision::Refuse(answer) => {
                    refused.get_or_insert(answer.clone());
                    answer
                }
            };
            let Answer { code, reason } = answer;
            topics.push(TopicOutcome { topic: name.clone(), code, reason, ends: Vec::new() });
        }
        let first = topics.first().map(|topic| Answer::new(&topic.code, topic.reason.clone()));
        let first = first.unwrap_or_else(|| Answer::new("no_topics", "no topic is named"));
        if let Some(answer) = refused {
            // All or nothing: what was asked for together is done together.
            let mut outcome = Outcome::new(Ending::Refused, answer, dry_run);
            outcome.topics = topics;
            return Ok(outcome);
        }
        let ending = if todo.is_empty() { Ending::Unchanged } else { Ending::Done };
        let done = topics.iter().find(|topic| todo.contains(&topic.topic));
        let answer = match (done, todo.len()) {
            (Some(only), 1) => Answer::new(&only.code, only.reason.clone()),
            (Some(one), count) => Answer::new(&one.code, format!("{count} topics")),
            (None, _) => first,
        };
        let mut outcome = Outcome::new(ending, answer, dry_run);
        outcome.topics = topics;
        if todo.is_empty() {
            if verb == Verb::Resume && !dry_run {
                self.fetch_again(names).await;
            }
            return Ok(outcome);
        }
        match verb {
            Verb::Pause => self.pause_topics(&todo, &mut outcome).await?,
            Verb::Resume => self.resume_topics(&todo, &mut outcome).await?,
            Verb::Failover => self.fail_over(&todo, false, &mut outcome).await?,
            Verb::Delete => self.delete_topics(&todo, &mut outcome).await?,
        }
        Ok(outcome)
    }

    async fn pause_topics(&self, names: &[String], outcome: &mut Outcome) -> Result<(), Outcome> {
        outcome.steps = vec!["write PAUSED".to_owned(), "stop fetching".to_owned()];
        if outcome.dry_run {
            return Ok(());
        }
        self.set_topics(names, TopicState::Paused, LinkChange::None).await?;
        let paused = self.shared.shards.pause(self.name(), Some(shared(names))).await;
        paused.map_err(|error| Outcome::failed("shard_failed", error))
    }

    async fn resume_topics(&self, names: &[String], outcome: &mut Outcome) -> Result<(), Outcome> {
        outcome.steps = vec!["write ACTIVE".to_owned(), "fetch again".to_owned()];
        if outcome.dry_run {
            return Ok(());
        }
        self.set_topics(names, TopicState::Active, LinkChange::None).await?;
        self.fetch_again(names).await;
        Ok(())
    }

    async fn fetch_again(&self, names: &[String]) {
        self.open_refused(Some(names)).await;
        let (link, topics) = (self.name(), shared(names));
        let command = || Command::Resume { link: link.clone(), topics: Some(topics.clone()) };
        self.shared.shards.broadcast(command).await;
        self.refresh_soon();
    }

    /// Stop fetching → flush barrier → FAILING_OVER with every end, durable → FAILED_OVER, durable.
    async fn fail_over(
        &self,
        names: &[String],
        whole: bool,
        outcome: &mut Outcome,
    ) -> Result<(), Outcome> {
        let partitions: usize = {
            let state = self.state.borrow();
            names.iter().map(|name| state.topics[name].shards.len()).sum()
        };
        outcome.steps = vec![
            format!("stop fetching {} topics ({partitions} partitions) for good", names.len()),
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
        let mut ends = self.seal(&fresh).await?;
        self.free_reserve(0).await;
        let change = if whole { LinkChange::Pause } else { LinkChange::None };
        self.store_topics(&fresh, change, |name, record| {
            record.become_state(TopicState::FailingOver, None, wall_ms());
            record.ends = ends.remove(name).unwrap_or_default();
        })
        .await?;
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
        let freed = tokio::task::spawn_blocking(move || {
            for dir in dirs {
                let free = nix::sys::statvfs::statvfs(&dir)
                    .map_or(0, |found| found.blocks_available() * found.fragment_size());
                if free < FREE_BYTES_ENOUGH
                    && let Err(error) = shrink_reserve(&dir, left_bytes)
                {
                    tracing::warn!(%error, dir = %dir.display(), "the reserve cannot be freed");
                }
            }
        });
        if let Err(error) = freed.await {
            tracing::warn!(%error, "the reserve cannot be freed");
        }
    }

    async fn seal(&self, names: &[String]) -> Result<BTreeMap<String, Vec<End>>, Outcome> {
        let mut ends: BTreeMap<String, Vec<End>> = BTreeMap::new();
        if names.is_empty() {
            return Ok(ends);
        }
        let sealed = self.shared.shards.seal(self.name(), &shared(names)).await;
        let sealed = sealed.map_err(|error| Outcome::failed("flush_barrier_failed", error))?;
        for Sealed { key, end_offset, last_epoch, error } in sealed {
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
                    known.push(End { partition, end_offset: 0, last_epoch: None, error });
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
    pub(super) async fn finish_failovers(&self) -> Result<(), StoreError> {
        let begun = self.names(|record| record.state == TopicState::FailingOver);
        if begun.is_empty() {
            return Ok(());
        }
        tracing::warn!(link = &**self.name(), topics = begun.len(), "finishing a failover begun");
        self.set_topics(&begun, TopicState::FailedOver, LinkChange::None).await
    }

    async fn delete_topics(&self, names: &[String], outcome: &mut Outcome) -> Result<(), Outcome> {
        let (partitions, again) = {
            let state = self.state.borrow();
            let partitions: usize = names.iter().map(|name| state.topics[name].shards.len()).sum();
            let covered = |name: &&String| state.config.topics.covers(name);
            (partitions, names.iter().filter(covered).count())
        };
        outcome.steps = vec![
            "write that they are being deleted".to_owned(),
            format!("stop fetching and remove the files of {partitions} partitions"),
            "forget them".to_owned(),
        ];
        if again > 0 {
            outcome.steps.push(format!(
                "{again} of them are covered by the link's filters: while the source has them, a \
                 new copy begins"
            ));
        }
        if outcome.dry_run {
            return Ok(());
        }
        self.store_topics(names, LinkChange::None, |_, record| record.deleting = true).await?;
        self.finish_deletions().await?;
        let left = self.names(|record| record.deleting);
        if left.is_empty() {
            return Ok(());
        }
        Err(Outcome::failed("files_remain", format!("files of {} could not go", left.join(", "))))
    }

    /// Removes the files and records of topics marked so, at once or after a restart.
    pub(super) async fn finish_deletions(&self) -> Result<(), StoreError> {
        let marked = self.names(|record| record.deleting);
        if marked.is_empty() {
            return Ok(());
        }
        let owned = {
            let state = self.state.borrow();
            let keys = marked.iter().flat_map(|name| self.owned(name, &state.topics[name]));
            keys.collect::<Vec<_>>()
        };
        let failures = self.shared.shards.delete(owned).await;
        for (key, error) in &failures {
            let (link, topic, partition) = (&*key.link, &*key.topic, key.partition);
            tracing::error!(link, topic, partition, error, "files could not be removed");
        }
        let gone: Vec<String> = marked
            .into_iter()
            .filter(|name| !failures.iter().any(|(key, _)| *key.topic == **name))
            .collect();
        let changes = gone.iter().map(|name| records::remove_topic(self.name(), name)).collect();
        self.shared.store.commit(changes).await?;
        let mut state = self.state.borrow_mut();
        let mut placement = self.shared.placement.borrow_mut();
        for name in gone {
            let Some(topic) = state.topics.remove(&name) else { continue };
            for (shard, dir) in topic.shards.iter().zip(&topic.record.partitions) {
                placement.leave(*shard, dir);
            }
        }
        drop((state, placement));
        self.refresh_soon();
        Ok(())
    }

    fn names(&self, wanted: impl Fn(&TopicRecord) -> bool) -> Vec<String> {
        let state = self.state.borrow();
        let topics = state.topics.iter().filter(|(_, topic)| wanted(&topic.record));
        topics.map(|(name, _)| name.clone()).collect()
    }

    async fn set_topics(
        &self,
        names: &[String],
        to: TopicState,
        link: LinkChange,
    ) -> Result<(), StoreError> {
        self.store_topics(names, link, |_, record| record.become_state(to, None, wall_ms())).await
    }

    /// One transaction; memory follows only when it is durable.
    async fn store_topics(
        &self,
        names: &[String],
        link: LinkChange,
        mut change: impl FnMut(&str, &mut TopicRecord),
    ) -> Result<(), StoreError> {
        let records: Vec<(String, TopicRecord)> = {
            let state = self.state.borrow();
            let changed = names.iter().map(|name| {
                let mut record = state.topics[name].record.clone();
                change(name, &mut record);
                (name.clone(), record)
            });
            changed.collect()
        };
        let topic =
            |(name, record): &(String, TopicRecord)| records::set_topic(self.name(), name, record);
        let changes = records.iter().map(topic).collect();
        match link {
            LinkChange::Pause => self.set_mode(LinkMode::Paused, changes).await?,
            LinkChange::None => self.shared.store.commit(changes).await?,
        }
        let mut state = self.state.borrow_mut();
        for (name, record) in records {
            if let Some(topic) = state.topics.get_mut(&name) {
                topic.record = record;
            }
        }
        Ok(())
    }

    async fn set_mode(&self, mode: LinkMode, mut with: Vec<Change>) -> Result<(), StoreError> {
        let known = self.state.borrow().record.clone();
        let since_ms = if known.mode == mode { known.since_ms } else { wall_ms() };
        let record = LinkRecord { mode, since_ms, ..known };
        with.push(records::set_link(self.name(), &record));
        self.shared.store.commit(with).await?;
        self.state.borrow_mut().record = record;
        Ok(())
    }

    /// Nothing goes to the source any more: neither from control nor from a shard.
    async fn silence(&self) -> Result<(), Outcome> {
        self.close_source().await;
        let paused = self.shared.shards.pause(self.name(), None).await;
        paused.map_err(|error| Outcome::failed("shard_failed", error))
    }

    async fn speak(&self) {
        self.open_refused(None).await;
        self.open_gate().await;
        self.refresh_soon();
    }
}

enum LinkChange {
    None,
    Pause,
}

fn shared(names: &[String]) -> Vec<Arc<str>> {
    names.iter().map(|name| Arc::from(name.as_str())).collect()
}

/// A topic id as it is shown, if there is one.
pub(super) fn shown_id(record: &TopicRecord) -> Option<String> {
    record.topic_id.map(observe::shown)
}
