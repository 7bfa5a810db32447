//! What the source's metadata means for a topic we know. Pure comparison.

use super::records::TopicRecord;
use super::source::SourceTopic;
use crate::states::TopicState;
use shards::control::FaultCode;
use uuid::Uuid;

/// Answers in a row that must leave a topic out before it counts as deleted, or partitions of it
/// before they count as gone: a broker that has just started may not know all yet, and one that
/// hears late of what is new answers as the cluster was before.
pub const MISSING_ANSWERS: u32 = 3;

/// What must change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observation {
    /// Nothing.
    Same,
    /// The source has begun to give ids.
    LearnId(Uuid),
    /// So many partitions now; more than we know.
    Grown(usize),
    /// Stop and wait for a person.
    Fault {
        /// Stable code.
        code: FaultCode,
        /// For people.
        reason: String,
    },
    /// The topic is there again, and is the same.
    Back,
}

/// Compares a topic's record with what the source says; `seen` is `None` when the source no longer
/// lists it, `missing` how many answers in a row left it or partitions of it out, this one
/// included.
pub fn observe(
    name: &str,
    record: &TopicRecord,
    seen: Option<&SourceTopic>,
    missing: u32,
) -> Observation {
    // The only fault that mends itself.
    let gone = record.state == TopicState::Faulted && fault_code(record) == FaultCode::TopicDeleted;
    // A paused topic is judged when it is resumed, other faults when a person has looked.
    if record.state != TopicState::Active && !gone {
        return Observation::Same;
    }
    let Some(seen) = seen else {
        if gone || missing < MISSING_ANSWERS {
            return Observation::Same;
        }
        return Observation::Fault {
            code: FaultCode::TopicDeleted,
            reason: format!(
                "the source no longer lists topic {name}: it was deleted, or our right to describe \
                 it was taken. The copy is kept"
            ),
        };
    };
    if seen.error.is_some() {
        return Observation::Same;
    }
    match (record.topic_id, seen.id) {
        (Some(ours), Some(theirs)) if ours != theirs => {
            return Observation::Fault {
                code: FaultCode::TopicRecreated,
                reason: format!(
                    "topic {name} was deleted and created again at the source: our copy is of id \
                     {}, the source has id {}. The copy is kept; fail it over to keep it for good, \
                     or force its deletion to begin a new one",
                    shown(ours),
                    shown(theirs)
                ),
            };
        }
        (None, Some(theirs)) => return Observation::LearnId(theirs),
        _ => {}
    }
    let (ours, theirs) = (record.partitions.len(), seen.partitions.len());
    if theirs < ours {
        if missing < MISSING_ANSWERS {
            return Observation::Same;
        }
        return Observation::Fault {
            code: FaultCode::PartitionsDecreased,
            reason: format!(
                "topic {name} has {theirs} partitions at the source and {ours} here, which only a \
                 topic created anew can have"
            ),
        };
    }
    match (gone, theirs > ours) {
        (true, _) => Observation::Back,
        (false, true) => Observation::Grown(theirs),
        (false, false) => Observation::Same,
    }
}

/// The fault a record names. What control writes is one of three.
pub fn fault_code(record: &TopicRecord) -> FaultCode {
    let known =
        [FaultCode::TopicRecreated, FaultCode::TopicDeleted, FaultCode::PartitionsDecreased];
    let named = known.into_iter().find(|code| record.code.as_deref() == Some(code.name()));
    named.unwrap_or(FaultCode::LocalLog)
}

/// A topic id as Kafka's tools print it: base64, URL-safe, unpadded.
pub fn shown(id: Uuid) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let bits = id.as_u128();
    // 22 digits of 6 bits hold 132 bits: the last digit has four zeros behind the id.
    (0..22)
        .map(|digit| {
            let shift = 122 - 6 * digit;
            let value = if shift >= 0 { bits >> shift } else { bits << -shift };
            char::from(ALPHABET[(value & 63) as usize])
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::source::SourcePartition;
    use std::path::PathBuf;

    fn record(id: Option<u128>, partitions: usize, state: TopicState) -> TopicRecord {
        TopicRecord {
            topic_id: id.map(Uuid::from_u128),
            partitions: vec![PathBuf::from("/d"); partitions],
            state,
            code: None,
            reason: None,
            since_ms: 0,
            ends: Vec::new(),
            deleting: false,
        }
    }

    fn topic(id: Option<u128>, partitions: i32) -> SourceTopic {
        let partitions = (0..partitions)
            .map(|partition| SourcePartition { partition, leader: Some(1), leader_epoch: 0 })
            .collect();
        SourceTopic { name: "t".into(), id: id.map(Uuid::from_u128), error: None, partitions }
    }

    fn code(observation: Observation) -> FaultCode {
        match observation {
            Observation::Fault { code, .. } => code,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_active_topic() {
        let active = |id, partitions| record(id, partitions, TopicState::Active);
        let see = |record: &TopicRecord, seen: SourceTopic| observe("t", record, Some(&seen), 0);
        assert_eq!(see(&active(Some(1), 2), topic(Some(1), 2)), Observation::Same);
        assert_eq!(see(&active(Some(1), 2), topic(Some(1), 5)), Observation::Grown(5));
        assert_eq!(see(&active(None, 2), topic(None, 2)), Observation::Same);
        let learnt = see(&active(None, 2), topic(Some(9), 2));
        assert_eq!(learnt, Observation::LearnId(Uuid::from_u128(9)));
        assert_eq!(
            code(observe("t", &active(Some(1), 2), Some(&topic(Some(1), 1)), MISSING_ANSWERS)),
            FaultCode::PartitionsDecreased
        );
        let Observation::Fault { code, reason } = see(&active(Some(1), 1), topic(Some(2), 1))
        else {
            panic!("another id");
        };
        assert_eq!(code, FaultCode::TopicRecreated);
        let [ours, theirs] = [1, 2].map(|id| shown(Uuid::from_u128(id)));
        assert!(reason.contains(&ours) && reason.contains(&theirs), "{reason}");
    }

    #[test]
    fn a_topic_must_be_missing_for_a_while() {
        let active = record(Some(1), 1, TopicState::Active);
        assert_eq!(observe("t", &active, None, 1), Observation::Same);
        assert_eq!(code(observe("t", &active, None, MISSING_ANSWERS)), FaultCode::TopicDeleted);
    }

    #[test]
    fn a_deleted_topic_may_come_back_only_as_itself() {
        let mut gone = record(Some(1), 1, TopicState::Faulted);
        gone.code = Some(FaultCode::TopicDeleted.name().to_owned());
        assert_eq!(observe("t", &gone, None, 9), Observation::Same);
        assert_eq!(observe("t", &gone, Some(&topic(Some(1), 1)), 0), Observation::Back);
        assert_eq!(
            code(observe("t", &gone, Some(&topic(Some(2), 1)), 0)),
            FaultCode::TopicRecreated
        );
    }

    #[test]
    fn what_a_person_decided_is_left_alone() {
        for state in [TopicState::Paused, TopicState::FailingOver, TopicState::FailedOver] {
            let seen = topic(Some(2), 9);
            assert_eq!(observe("t", &record(Some(1), 1, state), Some(&seen), 0), Observation::Same);
            assert_eq!(observe("t", &record(Some(1), 1, state), None, 9), Observation::Same);
        }
        let faulted = record(Some(1), 1, TopicState::Faulted);
        assert_eq!(observe("t", &faulted, Some(&topic(Some(1), 1)), 0), Observation::Same);
    }

    #[test]
    fn ids_look_as_kafka_prints_them() {
        let id: Uuid = "6dd4ac7d-4f75-4f3a-90b3-b4bb05c2d4a2".parse().expect("an id");
        assert_eq!(shown(id), "bdSsfU91TzqQs7S7BcLUog");
    }
}
