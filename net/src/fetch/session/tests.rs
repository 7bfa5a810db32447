//! The session against a model of the source: whatever happens, after every request that arrives
//! the source's picture is exactly what is wanted.

use super::*;
use bytes::Bytes;
use kafka_protocol::messages::FetchRequest;
use kafka_protocol::protocol::Decodable;
use proptest::prelude::*;
use std::collections::BTreeMap;

const LIMITS: FetchLimits = FetchLimits { max_wait_ms: 500, min_bytes: 1, max_bytes: 1 << 20 };

fn id_of(topic: u8, with_ids: bool) -> Uuid {
    if with_ids { Uuid::from_u128(0x1000 + u128::from(topic)) } else { Uuid::nil() }
}

fn wanted(fetch_offset: i64) -> Wanted {
    Wanted { fetch_offset, last_fetched_epoch: 3, leader_epoch: 4, max_bytes: 1000 }
}

/// Offset and bytes by topic (as the wire names it) and partition.
type Picture = BTreeMap<(String, i32), (i64, i32)>;

/// A source with at most one session.
#[derive(Default)]
struct Model {
    session: Option<(i32, i32, Picture)>,
    next_id: i32,
    full: bool,
}

impl Model {
    /// Applies a request as KIP-227 says. `Err` is an error code; `Ok` the picture to answer from.
    fn apply(&mut self, request: &FetchRequest, version: i16) -> Result<(i32, Picture), i16> {
        let name = |name: &str, id: Uuid| {
            if version >= 13 { id.to_string() } else { name.to_owned() }
        };
        let mut listed = Picture::new();
        for topic in &request.topics {
            for row in &topic.partitions {
                let key = (name(&topic.topic, topic.topic_id), row.partition);
                let value = (row.fetch_offset, row.partition_max_bytes);
                assert!(listed.insert(key, value).is_none(), "a partition is named twice");
            }
        }
        let mut forgotten = Vec::new();
        for topic in &request.forgotten_topics_data {
            for partition in &topic.partitions {
                let key = (name(&topic.topic, topic.topic_id), *partition);
                assert!(!listed.contains_key(&key), "both wanted and forgotten");
                forgotten.push(key);
            }
        }
        if version < 7 {
            return Ok((0, listed));
        }
        if request.session_epoch == 0 {
            if self.session.as_ref().is_some_and(|session| session.0 == request.session_id) {
                self.session = None;
            }
            assert!(forgotten.is_empty());
            if self.full {
                return Ok((0, listed));
            }
            self.next_id += 1;
            self.session = Some((self.next_id, 1, listed.clone()));
            return Ok((self.next_id, listed));
        }
        match &mut self.session {
            Some((id, epoch, picture)) if *id == request.session_id => {
                if *epoch != request.session_epoch {
                    return Err(71);
                }
                *epoch += 1;
                picture.extend(listed);
                for key in forgotten {
                    assert!(picture.remove(&key).is_some(), "forgets what was never asked");
                }
                Ok((*id, picture.clone()))
            }
            _ => Err(70),
        }
    }
}

fn ask(session: &mut FetchSession, newest: i16) -> (Asked, i16, FetchRequest) {
    let mut body = Vec::new();
    let version = session.version(newest);
    let asked = session.encode(newest, &LIMITS, &mut body);
    let mut bytes = Bytes::from(body);
    let request = FetchRequest::decode(&mut bytes, version).unwrap();
    assert!(bytes.is_empty(), "the oracle leaves {} bytes", bytes.len());
    assert_eq!((request.replica_id.0, request.isolation_level), (-1, 0));
    assert_eq!((request.max_wait_ms, request.min_bytes), (500, 1));
    for row in request.topics.iter().flat_map(|topic| &topic.partitions) {
        assert_eq!(row.log_start_offset, -1);
        assert_eq!(row.current_leader_epoch, if version >= 9 { 4 } else { -1 });
        assert_eq!(row.last_fetched_epoch, if version >= 12 { 3 } else { -1 });
    }
    let count = request.topics.iter().map(|topic| topic.partitions.len()).sum::<usize>();
    assert_eq!(count, asked.wanted);
    (asked, version, request)
}

fn good(session_id: i32) -> ResponseHead {
    ResponseHead { session_id, ..ResponseHead::default() }
}

fn failed(code: i16) -> ResponseHead {
    ResponseHead { error_code: ErrorCode(code), ..ResponseHead::default() }
}

#[derive(Debug, Clone)]
enum Do {
    Add(u8, u8),
    Remove(u8, u8),
    Want(u8, u8, i64),
    Unwant(u8, u8),
    Ask,
    AskAnswerLost,
    AskRequestLost,
    Evict,
    CacheFull(bool),
}

fn doing() -> impl Strategy<Value = Do> {
    let which = || (0u8..4, 0u8..4);
    prop_oneof![
        3 => which().prop_map(|(t, p)| Do::Add(t, p)),
        1 => which().prop_map(|(t, p)| Do::Remove(t, p)),
        5 => (which(), 0i64..3).prop_map(|((t, p), at)| Do::Want(t, p, at)),
        2 => which().prop_map(|(t, p)| Do::Unwant(t, p)),
        5 => Just(Do::Ask),
        1 => Just(Do::AskAnswerLost),
        1 => Just(Do::AskRequestLost),
        1 => Just(Do::Evict),
        1 => any::<bool>().prop_map(Do::CacheFull),
    ]
}

fn run(steps: &[Do], newest: i16, with_ids: bool) {
    let (mut session, mut model) = (FetchSession::new(), Model::default());
    let mut expected = BTreeMap::<(u8, u8), Option<i64>>::new();
    let key = |topic: u8, partition: u8| u32::from(topic) * 16 + u32::from(partition);
    for step in steps.iter().chain([&Do::CacheFull(false), &Do::Ask, &Do::Ask, &Do::Ask]) {
        match *step {
            Do::Add(t, p) => {
                expected.entry((t, p)).or_insert_with(|| {
                    let name = format!("topic-{t}");
                    let id = id_of(t, with_ids);
                    session.add(key(t, p), TopicName { name: &name, id }, p.into());
                    None
                });
            }
            Do::Remove(t, p) => {
                if expected.remove(&(t, p)).is_some() {
                    session.remove(key(t, p));
                }
            }
            Do::Want(t, p, at) => {
                if let Some(state) = expected.get_mut(&(t, p)) {
                    *state = Some(at);
                    session.want(key(t, p), wanted(at));
                }
            }
            Do::Unwant(t, p) => {
                if let Some(state) = expected.get_mut(&(t, p)) {
                    *state = None;
                    session.unwant(key(t, p));
                }
            }
            Do::AskRequestLost => drop(ask(&mut session, newest)),
            Do::AskAnswerLost => {
                let (_, version, request) = ask(&mut session, newest);
                let _ = model.apply(&request, version);
            }
            Do::Evict => model.session = None,
            Do::CacheFull(full) => model.full = full,
            Do::Ask => {
                let (_, version, request) = ask(&mut session, newest);
                match model.apply(&request, version) {
                    Err(code) => {
                        let verdict = session.begin_response(&failed(code));
                        assert_eq!(verdict, Verdict::Restarted);
                    }
                    Ok((id, picture)) => {
                        answer(&mut session, id, &picture, &expected, version, key);
                    }
                }
            }
        }
        let count = expected.values().filter(|state| state.is_some()).count();
        assert_eq!(session.wanted_count(), count);
    }
    assert_eq!(session.established(), newest >= 7);
}

/// Answers with everything in the source's picture, which has to be what is wanted.
fn answer(
    session: &mut FetchSession,
    id: i32,
    picture: &Picture,
    expected: &BTreeMap<(u8, u8), Option<i64>>,
    version: i16,
    key: impl Fn(u8, u8) -> u32,
) {
    assert_eq!(session.begin_response(&good(id)), Verdict::Good);
    let name = |topic: u8| match version {
        13.. => id_of(topic, true).to_string(),
        _ => format!("topic-{topic}"),
    };
    let want: Picture = expected
        .iter()
        .filter_map(|(&(t, p), state)| Some(((name(t), p.into()), ((*state)?, 1000))))
        .collect();
    assert_eq!(*picture, want);
    for (&(t, p), state) in expected {
        if state.is_none() {
            continue;
        }
        let name = format!("topic-{t}");
        let by_id = TopicRef::Id(id_of(t, true));
        let topic = session.find_topic(if version >= 13 { by_id } else { TopicRef::Name(&name) });
        assert_eq!(session.find(topic, p.into()), Found::Key(key(t, p)));
    }
    assert!(session.end_response());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]
    #[test]
    fn the_source_knows_what_is_wanted(
        steps in prop::collection::vec(doing(), 0..60), newest in 4i16..=18, with_ids: bool,
    ) {
        run(&steps, newest, with_ids);
    }
}

fn established(partitions: i32) -> FetchSession {
    let mut session = FetchSession::new();
    for partition in 0..partitions {
        session.add(partition as u32, TopicName { name: "t", id: id_of(1, true) }, partition);
        session.want(partition as u32, wanted(0));
    }
    assert!(ask(&mut session, 17).0.full);
    assert_eq!(session.begin_response(&good(9)), Verdict::Good);
    assert!(session.end_response());
    session
}

#[test]
fn requests_cost_what_changed_and_keep_their_buffers() {
    let mut session = established(10_000);
    let mut body = Vec::with_capacity(1 << 20);
    for round in 0..3 {
        for key in 0..100 {
            session.want(key * 7, wanted(100 + round));
        }
        for key in 0..50 {
            // Touched and put back: nothing to tell.
            session.unwant(key * 7 + 1);
            session.want(key * 7 + 1, wanted(0));
        }
        body.clear();
        let asked = session.encode(17, &LIMITS, &mut body);
        assert_eq!(asked, Asked { full: false, wanted: 100, forgotten: 0 });
        assert!(body.len() < 5_000, "{}", body.len());
        let capacity = session.dirty.capacity();
        assert!((100..1_000_000).contains(&capacity));
        assert_eq!(session.begin_response(&good(9)), Verdict::Good);
        assert!(session.end_response());
        assert_eq!(session.dirty.capacity(), capacity);
    }
}

#[test]
fn what_was_not_asked_for_restarts_the_session() {
    let topic = TopicRef::Id(id_of(1, true));
    type Answer = fn(&mut FetchSession, Option<u32>) -> Found;
    let strange: [Answer; 4] = [
        |session, topic| session.find(topic, 99),
        |session, _| session.find(None, 0),
        |session, topic| session.find(topic, 1), // not wanted any more
        |session, topic| {
            assert_eq!(session.find(topic, 0), Found::Key(0));
            session.find(topic, 0) // twice
        },
    ];
    for find in strange {
        let mut session = established(2);
        session.unwant(1);
        assert_eq!(ask(&mut session, 17).0, Asked { full: false, wanted: 0, forgotten: 1 });
        assert_eq!(session.begin_response(&good(9)), Verdict::Good);
        let topic = session.find_topic(topic);
        assert_eq!(find(&mut session, topic), Found::NotAsked);
        assert!(!session.end_response());
        let (asked, _, request) = ask(&mut session, 17);
        assert!(asked.full);
        assert_eq!((request.session_id, request.session_epoch), (9, 0));
    }
    assert_eq!(established(1).find_topic(TopicRef::Name("other")), None);
    assert_eq!(established(1).find_topic(TopicRef::Id(id_of(2, true))), None);
}

#[test]
fn another_session_id_restarts() {
    let mut session = established(1);
    ask(&mut session, 17);
    assert_eq!(session.begin_response(&good(10)), Verdict::Good);
    assert!(!session.end_response());
    assert!(ask(&mut session, 17).0.full);
}

#[test]
fn errors_say_what_to_do() {
    for (code, verdict, closes) in [
        (70, Verdict::Restarted, 0),
        (71, Verdict::Restarted, 9),
        (106, Verdict::Restarted, 9),
        (100, Verdict::RefreshMetadata, 9),
        (103, Verdict::RefreshMetadata, 9),
        (31, Verdict::Refused(ErrorCode(31)), 9),
    ] {
        let mut session = established(1);
        ask(&mut session, 17);
        assert_eq!(session.begin_response(&failed(code)), verdict);
        let (asked, _, request) = ask(&mut session, 17);
        assert!(asked.full);
        assert_eq!((request.session_id, request.session_epoch), (closes, 0), "{code}");
    }
}

#[test]
fn a_topic_without_id_brings_names_back_and_starts_over() {
    let mut session = established(1);
    session.add(5, TopicName { name: "old", id: Uuid::nil() }, 0);
    session.want(5, wanted(0));
    assert_eq!(session.version(17), 12);
    let (asked, version, request) = ask(&mut session, 17);
    assert_eq!((asked.full, asked.wanted, version), (true, 2, 12));
    assert_eq!((request.session_id, request.session_epoch), (9, 0));
    assert_eq!(session.begin_response(&good(10)), Verdict::Good);
    assert!(session.end_response());
    session.remove(5);
    // Told by name first; then ids again, in a session of their own.
    assert_eq!(ask(&mut session, 17).1, 12);
    assert_eq!(session.begin_response(&good(10)), Verdict::Good);
    assert!(session.end_response());
    let (asked, version, _) = ask(&mut session, 17);
    assert_eq!((asked.full, version), (true, 17));
}

#[test]
fn a_recreated_topic_is_asked_for_by_its_new_id_alone() {
    for newest in [10, 17] {
        let mut session = established(1);
        session.add(1, TopicName { name: "t", id: id_of(2, true) }, 0);
        session.want(1, wanted(0));
        assert_eq!((session.wanted(0), session.wanted_count()), (None, 1));
        session.remove(0);
        let (asked, _, request) = ask(&mut session, newest);
        assert_eq!(asked, Asked { full: true, wanted: 1, forgotten: 0 });
        assert_eq!(request.topics.len(), 1);
        if newest >= 13 {
            assert_eq!(request.topics[0].topic_id, id_of(2, true));
        }
    }
}

#[test]
fn a_source_that_has_become_too_old_for_sessions_is_asked_for_everything() {
    let mut session = established(2);
    assert_eq!(ask(&mut session, 6).0, Asked { full: true, wanted: 2, forgotten: 0 });
}

#[test]
fn full_requests_rotate() {
    let mut session = FetchSession::new();
    for key in 0..6u32 {
        let name = format!("t{}", key / 3);
        session.add(key, TopicName { name: &name, id: Uuid::nil() }, (key % 3) as i32);
        session.want(key, wanted(0));
    }
    let mut firsts = Vec::new();
    for _ in 0..6 {
        let (asked, _, request) = ask(&mut session, 6);
        assert_eq!((asked.full, asked.wanted), (true, 6));
        let topic = &request.topics[0];
        firsts.push((topic.topic.to_string(), topic.partitions[0].partition));
        assert_eq!(session.begin_response(&good(0)), Verdict::Good);
        assert!(session.end_response());
    }
    firsts.sort();
    firsts.dedup();
    assert_eq!(firsts.len(), 6, "{firsts:?}");
}
