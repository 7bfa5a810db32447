//! The life of links and topics: which verb is allowed in which state, and what it leads to.
//!
//! Pure decisions; `controller` carries them out. Every pair of state and verb has an answer with a
//! stable code and a reason, and repeating a verb that has been carried out changes nothing.
//!
//! ```text
//!            pause              failover                     (flushed, durable)
//!   ACTIVE ◄───────► PAUSED ──────────────► FAILING_OVER ───────────────────► FAILED_OVER
//!     │ ▲   resume                ▲
//!     ▼ │ resume                  │ failover
//!   FAULTED ──────────────────────┘
//! ```
//!
//! `FAILING_OVER` is durable before anything is changed, and from then on nothing is ever fetched
//! over the copy again. There is no way back from `FAILED_OVER` but to delete the topic.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A topic's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum TopicState {
    /// Copied as the source grows.
    Active,
    /// A person stopped it; the copy stays.
    Paused,
    /// Something no retry can mend; waits for a person.
    Faulted,
    /// Failover has begun and will be finished, whatever happens.
    FailingOver,
    /// The copy is on its own for good.
    FailedOver,
}

impl TopicState {
    /// Every state, for metrics and tests.
    pub const ALL: [TopicState; 5] = [
        TopicState::Active,
        TopicState::Paused,
        TopicState::Faulted,
        TopicState::FailingOver,
        TopicState::FailedOver,
    ];

    /// The state as it is shown.
    pub fn name(self) -> &'static str {
        match self {
            TopicState::Active => "ACTIVE",
            TopicState::Paused => "PAUSED",
            TopicState::Faulted => "FAULTED",
            TopicState::FailingOver => "FAILING_OVER",
            TopicState::FailedOver => "FAILED_OVER",
        }
    }

    /// Whether the topic still follows, or could follow, the source.
    pub fn is_live(self) -> bool {
        self != TopicState::FailedOver
    }
}

/// What was decided about a link; durable. That its source is away is observed, not decided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum LinkMode {
    /// It runs.
    #[default]
    Active,
    /// Nothing at all goes to the source.
    Paused,
    /// It is gone as soon as the configuration file no longer declares it.
    Deleted,
}

/// A link's state as it is shown: what was decided and what is observed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LinkState {
    /// The source answers.
    Active,
    /// A person stopped it.
    Paused,
    /// The source does not answer, or is not the one expected.
    Unavailable,
    /// A person deleted it.
    Deleted,
}

impl LinkState {
    /// Every state, for metrics and tests.
    pub const ALL: [LinkState; 4] =
        [LinkState::Active, LinkState::Paused, LinkState::Unavailable, LinkState::Deleted];

    /// The state as it is shown.
    pub fn name(self) -> &'static str {
        match self {
            LinkState::Active => "ACTIVE",
            LinkState::Paused => "PAUSED",
            LinkState::Unavailable => "UNAVAILABLE",
            LinkState::Deleted => "DELETED",
        }
    }
}

/// What a person may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verb {
    /// Stop copying; keep everything.
    Pause,
    /// Go on copying.
    Resume,
    /// Cut the copy loose from the source, for good.
    Failover,
    /// Forget it.
    Delete,
}

impl Verb {
    /// Every verb.
    pub const ALL: [Verb; 4] = [Verb::Pause, Verb::Resume, Verb::Failover, Verb::Delete];

    /// The verb as it stands in paths and commands.
    pub fn name(self) -> &'static str {
        match self {
            Verb::Pause => "pause",
            Verb::Resume => "resume",
            Verb::Failover => "failover",
            Verb::Delete => "delete",
        }
    }
}

/// A stable code and a reason for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Stable, snake_case; scripts may rely on it.
    pub code: String,
    /// For people; may change.
    pub reason: String,
}

impl Answer {
    /// Builds an answer.
    pub fn new(code: &str, reason: impl Into<String>) -> Self {
        Answer { code: code.to_owned(), reason: reason.into() }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.reason, self.code)
    }
}

/// What a verb comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Allowed: carry it out.
    Do(Answer),
    /// It is so already: 200, nothing changes.
    Nothing(Answer),
    /// 409, nothing changes.
    Refuse(Answer),
}

/// What `verb` means for a topic in `state`. `force` matters to `delete` alone.
pub fn decide_topic(topic: &str, state: TopicState, verb: Verb, force: bool) -> Decision {
    use Decision::{Do, Nothing, Refuse};
    use TopicState::{Active, FailedOver, FailingOver, Faulted, Paused};
    let refuse = |code, what: &str| Refuse(Answer::new(code, format!("topic {topic} {what}")));
    let accept = |code, what: &str| Do(Answer::new(code, format!("topic {topic} {what}")));
    let nothing = |code, what: &str| Nothing(Answer::new(code, format!("topic {topic} {what}")));
    match (verb, state) {
        (Verb::Pause, Active) => accept("paused", "is no longer copied; its copy stays"),
        (Verb::Pause, Paused) => nothing("already_paused", "is paused already"),
        (Verb::Pause, Faulted) => {
            refuse("topic_faulted", "is FAULTED: nothing of it is fetched; resume tries it again")
        }
        (Verb::Resume, Active) => nothing(
            "already_active",
            "is being copied already; partitions in trouble are tried again",
        ),
        (Verb::Resume, Paused) => accept("resumed", "is copied again"),
        (Verb::Resume, Faulted) => accept("resumed", "is tried again"),
        (Verb::Failover, Active | Paused | Faulted) => {
            accept("failed_over", "is cut loose from the source at its flushed end")
        }
        (Verb::Failover, FailingOver) => accept("failed_over", "finishes the failover begun"),
        (Verb::Failover, FailedOver) => nothing("already_failed_over", "has failed over already"),
        (Verb::Pause | Verb::Resume | Verb::Delete, FailingOver) => refuse(
            "topic_failing_over",
            "is FAILING_OVER, which is finished first: run failover again",
        ),
        (Verb::Pause | Verb::Resume, FailedOver) => refuse(
            "topic_failed_over",
            "has FAILED_OVER and no longer follows the source: there is no way back but a new copy",
        ),
        (Verb::Delete, Active | Paused | Faulted) if !force => refuse(
            "topic_live",
            &format!(
                "is {} and not failed over: fail it over first, or force the deletion",
                state.name()
            ),
        ),
        (Verb::Delete, Active | Paused | Faulted | FailedOver) => {
            accept("deleted", "and its files are removed")
        }
    }
}

/// What `verb` means for a topic whose deletion has begun and could not be finished: some of its
/// files may be gone, and the next start removes the others.
pub fn decide_deleting(topic: &str, verb: Verb) -> Decision {
    match verb {
        Verb::Delete => {
            let reason = format!("topic {topic} and its files are removed");
            Decision::Do(Answer::new("deleted", reason))
        }
        Verb::Pause | Verb::Resume | Verb::Failover => {
            let reason = format!(
                "topic {topic} is being deleted, which is not undone: run delete again, or it is \
                 finished at the next start"
            );
            Decision::Refuse(Answer::new("topic_deleting", reason))
        }
    }
}

/// What `verb` means for a link in `mode` whose topics are in these states. `failover` of a link is
/// decided topic by topic and only refused here where there is no link to speak of.
pub fn decide_link(
    link: &str,
    mode: LinkMode,
    topics: &[(String, TopicState)],
    verb: Verb,
    force: bool,
) -> Decision {
    use Decision::{Do, Nothing, Refuse};
    let accept = |code, what: &str| Do(Answer::new(code, format!("link {link} {what}")));
    let nothing = |code, what: &str| Nothing(Answer::new(code, format!("link {link} {what}")));
    let refuse = |code, what: &str| Refuse(Answer::new(code, format!("link {link} {what}")));
    match (verb, mode) {
        (Verb::Delete, LinkMode::Deleted) => nothing("already_deleted", "is deleted already"),
        (_, LinkMode::Deleted) => refuse(
            "link_deleted",
            "is deleted: take it out of the configuration file, or give a new link another name",
        ),
        (Verb::Pause, LinkMode::Active) => {
            accept("paused", "is paused: nothing goes to the source, no socket is open")
        }
        (Verb::Pause, LinkMode::Paused) => nothing("already_paused", "is paused already"),
        (Verb::Resume, LinkMode::Active) => {
            nothing("already_active", "is running already; partitions in trouble are tried again")
        }
        (Verb::Resume, LinkMode::Paused) => accept("resumed", "is running again"),
        (Verb::Failover, _) => {
            let open = topics.iter().any(|(_, state)| state.is_live());
            match (open, topics.is_empty()) {
                (true, _) => accept("failed_over", "and its topics are cut loose from the source"),
                (false, false) => nothing("already_failed_over", "has failed over already"),
                (false, true) => refuse("no_topics", "has no topic to fail over yet"),
            }
        }
        (Verb::Delete, _) => {
            if let Some((topic, _)) =
                topics.iter().find(|(_, state)| *state == TopicState::FailingOver)
            {
                let what = format!("has topic {topic} FAILING_OVER: run failover again first");
                return refuse("topic_failing_over", &what);
            }
            let live: Vec<&(String, TopicState)> =
                topics.iter().filter(|(_, state)| state.is_live()).collect();
            match live.first() {
                Some((topic, state)) if !force => refuse(
                    "topics_live",
                    &format!(
                        "has {} topics that have not failed over (first: {topic}, {}): fail over \
                         first, or force the deletion",
                        live.len(),
                        state.name()
                    ),
                ),
                _ => accept("deleted", "is forgotten; the files of its topics stay"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the matrix must say, letter by letter: a = accept, n = nothing to do, r = refuse.
    /// Columns in the order of `TopicState::ALL`.
    const TOPIC_MATRIX: [(Verb, bool, &str); 5] = [
        (Verb::Pause, false, "anrrr"),
        (Verb::Resume, false, "naarr"),
        (Verb::Failover, false, "aaaan"),
        (Verb::Delete, false, "rrrra"),
        (Verb::Delete, true, "aaara"),
    ];

    fn letter(decision: &Decision) -> char {
        match decision {
            Decision::Do(_) => 'a',
            Decision::Nothing(_) => 'n',
            Decision::Refuse(_) => 'r',
        }
    }

    fn answer(decision: &Decision) -> &Answer {
        let (Decision::Do(answer) | Decision::Nothing(answer) | Decision::Refuse(answer)) =
            decision;
        answer
    }

    #[test]
    fn every_topic_state_answers_every_verb() {
        for (verb, force, expected) in TOPIC_MATRIX {
            let decisions: Vec<Decision> = TopicState::ALL
                .iter()
                .map(|state| decide_topic("orders", *state, verb, force))
                .collect();
            let letters: String = decisions.iter().map(letter).collect();
            assert_eq!(letters, expected, "{verb:?} force={force}");
            for decision in &decisions {
                let Answer { code, reason } = answer(decision);
                assert!(code.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{code}");
                assert!(reason.contains("orders"), "{reason}");
            }
        }
    }

    #[test]
    fn force_changes_nothing_but_delete() {
        for state in TopicState::ALL {
            for verb in [Verb::Pause, Verb::Resume, Verb::Failover] {
                let [plain, forced] =
                    [false, true].map(|force| decide_topic("t", state, verb, force));
                assert_eq!(plain, forced);
            }
        }
    }

    #[test]
    fn every_link_mode_answers_every_verb() {
        let modes = [LinkMode::Active, LinkMode::Paused, LinkMode::Deleted];
        let topics = |states: &[TopicState]| -> Vec<(String, TopicState)> {
            states.iter().map(|state| (format!("t-{}", state.name()), *state)).collect()
        };
        let over = topics(&[TopicState::FailedOver]);
        let live = topics(&[TopicState::FailedOver, TopicState::Paused]);
        let halfway = topics(&[TopicState::FailingOver]);
        type Case<'a> = (Verb, bool, &'a [(String, TopicState)], &'a str);
        let cases: [Case<'_>; 12] = [
            (Verb::Pause, false, &live, "anr"),
            (Verb::Resume, false, &live, "nar"),
            (Verb::Failover, false, &live, "aar"),
            (Verb::Failover, false, &halfway, "aar"),
            (Verb::Failover, false, &over, "nnr"),
            (Verb::Failover, false, &[], "rrr"),
            (Verb::Delete, false, &live, "rrn"),
            (Verb::Delete, true, &live, "aan"),
            (Verb::Delete, false, &over, "aan"),
            (Verb::Delete, false, &[], "aan"),
            (Verb::Delete, false, &halfway, "rrn"),
            (Verb::Delete, true, &halfway, "rrn"),
        ];
        for (verb, force, topics, expected) in cases {
            let letters: String = modes
                .iter()
                .map(|mode| letter(&decide_link("prod", *mode, topics, verb, force)))
                .collect();
            assert_eq!(letters, expected, "{verb:?} force={force} {topics:?}");
        }
    }

    #[test]
    fn a_refused_delete_names_the_topic_in_the_way() {
        let topics = [("orders".to_owned(), TopicState::Active)];
        let refused = decide_link("prod", LinkMode::Active, &topics, Verb::Delete, false);
        assert!(answer(&refused).reason.contains("orders, ACTIVE"), "{refused:?}");
    }
}
