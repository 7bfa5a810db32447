//! Carrying verbs out, in an order that a crash at any step leaves re-runnable.

mod deletion;
mod failover;
mod keeping;

use super::link::{Health, Link};
use super::observe;
use super::records::{End, TopicRecord};
use super::status::SEALED_ONLY;
use super::store::StoreError;
use crate::states::{
    Answer, Decision, LinkMode, TopicState, Verb, decide_deleting, decide_link, decide_topic,
};
use crate::words::count;
use keeping::LinkChange;
use serde::{Deserialize, Serialize};
use shards::control::{Command, PartitionState, PartitionStatus};
use std::collections::HashSet;
use std::sync::Arc;

/// What a person asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What to do.
    pub verb: Verb,
    /// These topics; `None` = the whole link.
    pub topics: Option<Vec<String>>,
    /// Say what would happen, change nothing.
    pub dry_run: bool,
    /// `delete` what is live; `failover` though logs cannot be used.
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
        let reason = format!("{error}; what was done before that stays done: run it again");
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
        if self.is_retired() {
            let reason = format!("link {} was taken out, or the node is stopping", self.name());
            let answer = Answer::new("link_gone", reason);
            return Outcome::new(Ending::Failed, answer, request.dry_run);
        }
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
        // A topic whose files are half gone is none any more, and keeps nothing else waiting.
        let states: Vec<(String, TopicState)> = {
            let state = self.state.borrow();
            let kept = state.topics.iter().filter(|(_, topic)| !topic.record.deleting);
            kept.map(|(name, topic)| (name.clone(), topic.record.state)).collect()
        };
        let dry_run = request.dry_run;
        let decided = decide_link(self.name(), self.mode(), &states, request.verb, request.force);
        let answer = match decided {
            Decision::Refuse(answer) => return Ok(Outcome::new(Ending::Refused, answer, dry_run)),
            Decision::Nothing(answer) => {
                // What was decided may not have reached every shard, when it was.
                match request.verb {
                    _ if dry_run => {}
                    Verb::Pause => self.silence().await?,
                    Verb::Resume => self.speak().await,
                    Verb::Delete => self.let_go().await?,
                    Verb::Failover => {}
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
                    {
                        // What was known of the source is old: who led, and which cluster it was.
                        let mut state = self.state.borrow_mut();
                        (state.health, state.barred) = (Health::Unknown, true);
                    }
                    self.speak().await;
                }
            }
            Verb::Failover => {
                let live: Vec<String> = states
                    .into_iter()
                    .filter(|(_, state)| state.is_live())
                    .map(|(name, _)| name)
                    .collect();
                self.fail_over(&live, true, false, &mut outcome).await?;
            }
            Verb::Delete => {
                outcome.steps = vec![
                    "write DELETED".to_owned(),
                    "close every socket to the source and every file".to_owned(),
                    format!("the files of {} stay where they are", count(states.len(), "topic")),
                ];
                if !dry_run {
                    self.set_mode(LinkMode::Deleted, Vec::new()).await?;
                    self.let_go().await?;
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
        // What is asked for twice is done once.
        let mut seen = HashSet::new();
        for name in names {
            let known = self.state.borrow().topics.get(name).map(|topic| {
                let record = &topic.record;
                (record.state, record.deleting)
            });
            let Some((state, deleting)) = known else {
                let reason = format!("link {} has no topic {name}", self.name());
                let answer = Answer::new("topic_not_found", reason);
                return Ok(Outcome::new(Ending::NotFound, answer, dry_run));
            };
            let decided = match deleting {
                true => decide_deleting(name, verb),
                false => decide_topic(name, state, verb, request.force),
            };
            let answer = match decided {
                Decision::Do(answer) => {
                    if seen.insert(name) {
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
        if verb == Verb::Failover && !request.force {
            let begun = |name: &&String| {
                self.state.borrow().topics[*name].record.state == TopicState::FailingOver
            };
            let fresh: Vec<String> = todo.iter().filter(|name| !begun(name)).cloned().collect();
            if let Some(answer) = self.refuse_failed_logs(&fresh).await {
                return Ok(Outcome::new(Ending::Refused, answer, dry_run));
            }
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
            match verb {
                _ if dry_run => {}
                Verb::Pause => self.stop_fetching(names).await?,
                Verb::Resume => self.fetch_again(names).await?,
                Verb::Failover | Verb::Delete => {}
            }
            return Ok(outcome);
        }
        match verb {
            Verb::Pause => self.pause_topics(&todo, &mut outcome).await?,
            Verb::Resume => self.resume_topics(&todo, &mut outcome).await?,
            Verb::Failover => self.fail_over(&todo, false, request.force, &mut outcome).await?,
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
        self.stop_fetching(names).await
    }

    async fn stop_fetching(&self, names: &[String]) -> Result<(), Outcome> {
        let paused = self.shared.shards.pause(self.name(), Some(shared(names))).await;
        paused.map_err(|error| Outcome::failed("shard_failed", error))
    }

    async fn resume_topics(&self, names: &[String], outcome: &mut Outcome) -> Result<(), Outcome> {
        outcome.steps = vec!["write ACTIVE".to_owned(), "fetch again".to_owned()];
        if outcome.dry_run {
            return Ok(());
        }
        self.set_topics(names, TopicState::Active, LinkChange::None).await?;
        self.fetch_again(names).await
    }

    async fn fetch_again(&self, names: &[String]) -> Result<(), Outcome> {
        self.open_refused(Some(names)).await;
        let (link, topics) = (self.name(), shared(names));
        let command = || Command::Resume { link: link.clone(), topics: Some(topics.clone()) };
        self.shared.shards.broadcast(command).await;
        self.refresh_soon();
        // What a failover that failed has sealed stays so: that is not to be called copied.
        let statuses = self.shared.shards.status(Some(self.name().clone())).await;
        let all = statuses.iter().flatten().flat_map(|status| &status.partitions);
        let sealed = |one: &&PartitionStatus| {
            one.state == PartitionState::Sealed && names.iter().any(|name| **name == *one.key.topic)
        };
        match all.filter(sealed).map(|one| &one.key).next() {
            Some(key) => Err(Outcome::failed("sealed", format!("{key}: {SEALED_ONLY}"))),
            None => Ok(()),
        }
    }

    /// Nothing goes to the source any more: neither from control nor from a shard.
    pub(super) async fn silence(&self) -> Result<(), Outcome> {
        self.close_source().await;
        let paused = self.shared.shards.pause(self.name(), None).await;
        paused.map_err(|error| Outcome::failed("shard_failed", error))
    }

    async fn let_go(&self) -> Result<(), Outcome> {
        self.silence().await?;
        self.release_all().await;
        Ok(())
    }

    /// Shards fetch once the source has said that it is the one; while it is, at once.
    async fn speak(&self) {
        self.open_refused(None).await;
        let barred = self.state.borrow().barred;
        if !barred {
            self.open_gate().await;
        }
        self.refresh_soon();
    }
}

fn shared(names: &[String]) -> Vec<Arc<str>> {
    names.iter().map(|name| Arc::from(name.as_str())).collect()
}

/// A topic id as it is shown, if there is one.
pub(super) fn shown_id(record: &TopicRecord) -> Option<String> {
    record.topic_id.map(observe::shown)
}
