//! Fetch sessions against a model, and over the wire.

use super::client::{Client, ask, fetch_request, partitions, records};
use crate::session::{
    FetchContext, SessionCache, SessionError, SessionRequest, TopicKey, Wanted, next_epoch,
};
use crate::{Config, TopicSpec, serve};
use kafka_protocol::ResponseError as E;
use kafka_protocol::messages::fetch_request::ForgottenTopic;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const EVICT_AFTER: Duration = Duration::from_secs(100);
const SESSIONS_MAX: usize = 3;

/// One request of a client that may get anything wrong.
#[derive(Clone, Debug)]
enum Step {
    Full { close: bool, wanted: Vec<(i32, i64)> },
    Incremental { epoch_off: i32, wanted: Vec<(i32, i64)>, forgotten: Vec<i32>, wrong_kind: bool },
    Tick(u64),
}

fn wanted_list() -> impl Strategy<Value = Vec<(i32, i64)>> {
    proptest::collection::vec((0i32..6, 0i64..100), 0..5)
}

fn step() -> impl Strategy<Value = (usize, Step)> {
    let incremental = (
        prop_oneof![9 => Just(0), 1 => -1i32..2],
        wanted_list(),
        proptest::collection::vec(0i32..6, 0..4),
        proptest::bool::weighted(0.05),
    );
    let one = prop_oneof![
        2 => (any::<bool>(), wanted_list())
            .prop_map(|(close, wanted)| Step::Full { close, wanted }),
        6 => incremental.prop_map(|(epoch_off, wanted, forgotten, wrong_kind)| {
            Step::Incremental { epoch_off, wanted, forgotten, wrong_kind }
        }),
        1 => (1u64..150).prop_map(Step::Tick),
    ];
    (0usize..5, one)
}

fn wanted(partition: i32, fetch_offset: i64) -> Wanted {
    Wanted {
        topic: TopicKey::Name("t".into()),
        partition,
        fetch_offset,
        current_leader_epoch: -1,
        last_fetched_epoch: -1,
        bytes_max: 1,
        slot: None,
        told_high_watermark: -1,
        told_log_start: -1,
    }
}

/// What a client believes of its session: its id, the next epoch, and all it wants.
#[derive(Clone, Debug, Default)]
struct Belief {
    id: i32,
    epoch: i32,
    partitions: BTreeMap<i32, i64>,
}

impl Belief {
    fn request(&self, epoch: i32, list: &BTreeMap<i32, i64>) -> SessionRequest {
        SessionRequest {
            session_id: self.id,
            epoch,
            by_topic_id: false,
            wanted: list.iter().map(|(p, o)| wanted(*p, *o)).collect(),
            forgotten: vec![],
        }
    }

    fn full(
        &mut self,
        cache: &mut SessionCache,
        now: Instant,
        close: bool,
        list: BTreeMap<i32, i64>,
    ) -> Result<(), TestCaseError> {
        let request = self.request(if close { -1 } else { 0 }, &list);
        let asked = request.wanted.clone();
        let context = cache.open(request, now);
        *self = Belief::default();
        if close {
            prop_assert_eq!(context, FetchContext::Sessionless(asked));
            return Ok(());
        }
        prop_assert_eq!(context, FetchContext::Full(asked.clone()));
        let id = cache.create(asked, false, now);
        if id != 0 {
            *self = Belief { id, epoch: 1, partitions: list };
        }
        Ok(())
    }

    fn incremental(
        &mut self,
        cache: &mut SessionCache,
        now: Instant,
        (epoch_off, wrong_kind): (i32, bool),
        list: BTreeMap<i32, i64>,
        forgotten: &[i32],
    ) -> Result<(), TestCaseError> {
        let mut request = self.request(self.epoch.max(1) + epoch_off, &list);
        if request.epoch <= 0 {
            return Ok(());
        }
        request.by_topic_id = wrong_kind;
        request.forgotten = forgotten.iter().map(|p| (TopicKey::Name("t".into()), *p)).collect();
        let context = cache.open(request, now);
        if self.id == 0 || context == FetchContext::Error(SessionError::IdNotFound) {
            prop_assert_eq!(context, FetchContext::Error(SessionError::IdNotFound));
            *self = Belief::default();
            return Ok(());
        }
        if epoch_off != 0 {
            prop_assert_eq!(context, FetchContext::Error(SessionError::InvalidEpoch));
            return Ok(());
        }
        if wrong_kind {
            prop_assert_eq!(context, FetchContext::Error(SessionError::TopicIdError));
            return Ok(());
        }
        self.partitions.extend(list);
        self.partitions.retain(|p, _| !forgotten.contains(p));
        if self.partitions.is_empty() {
            prop_assert!(matches!(context, FetchContext::Sessionless(_)));
            *self = Belief::default();
            return Ok(());
        }
        let FetchContext::Incremental { session_id, next_epoch, wanted } = context else {
            panic!("{context:?}")
        };
        prop_assert_eq!((session_id, next_epoch), (self.id, self.epoch + 1));
        self.epoch += 1;
        let has: BTreeMap<i32, i64> =
            wanted.iter().map(|w| (w.partition, w.fetch_offset)).collect();
        prop_assert_eq!(has.len(), wanted.len());
        prop_assert_eq!(&has, &self.partitions);
        // The answer tells of the first: its turn comes last now.
        prop_assert!(cache.told(session_id, next_epoch, &wanted[..1]));
        Ok(())
    }
}

proptest! {
    /// Five clients share a cache of three. Whoever has a session gets exactly the partitions it
    /// asked for; whoever lost it is told so, and nobody loses one while there is room or while
    /// it is young.
    #[test]
    fn sessions_do_what_a_model_says(steps in proptest::collection::vec(step(), 1..60)) {
        let mut cache = SessionCache::new(SESSIONS_MAX, EVICT_AFTER, 5);
        let mut clients = vec![Belief::default(); 5];
        let began = Instant::now();
        let mut now = began;
        for (client, step) in steps {
            match step {
                Step::Tick(seconds) => now += Duration::from_secs(seconds),
                Step::Full { close, wanted } => {
                    let list = wanted.into_iter().collect();
                    clients[client].full(&mut cache, now, close, list)?;
                }
                Step::Incremental { epoch_off, wanted, forgotten, wrong_kind } => {
                    let list = wanted.into_iter().collect();
                    let wrong = (epoch_off, wrong_kind);
                    clients[client].incremental(&mut cache, now, wrong, list, &forgotten)?;
                }
            }
            prop_assert!(cache.len() <= SESSIONS_MAX);
            if now - began <= EVICT_AFTER {
                let holders = clients.iter().filter(|belief| belief.id != 0).count();
                prop_assert_eq!(cache.len(), holders, "nobody was evicted yet");
            }
        }
    }

    /// Whoever was answered goes to the end; everybody else keeps his order.
    #[test]
    fn turns_go_round(told in proptest::collection::vec(0usize..6, 1..30)) {
        let mut cache = SessionCache::new(1, EVICT_AFTER, 5);
        let now = Instant::now();
        let mut order: Vec<i32> = (0..6).collect();
        let id = cache.create(order.iter().map(|p| wanted(*p, 0)).collect(), true, now);
        for (epoch, at) in (1..).zip(told) {
            let request = SessionRequest {
                session_id: id, epoch, by_topic_id: true, wanted: vec![], forgotten: vec![],
            };
            let FetchContext::Incremental { next_epoch, wanted, .. } = cache.open(request, now)
            else { panic!("the session is there") };
            let found: Vec<i32> = wanted.iter().map(|w| w.partition).collect();
            prop_assert_eq!(&found, &order);
            prop_assert!(cache.told(id, next_epoch, &wanted[at..=at]));
            let moved = order.remove(at);
            order.push(moved);
        }
    }
}

#[test]
fn caches_make_room_by_age_and_size() {
    let mut cache = SessionCache::new(2, EVICT_AFTER, 1);
    let began = Instant::now();
    let two = || vec![wanted(0, 0), wanted(1, 0)];
    let small = cache.create(vec![wanted(0, 0)], false, began);
    let big = cache.create(two(), false, began);
    assert!(small != 0 && big != 0);
    assert_eq!(cache.create(two(), false, began + EVICT_AFTER), 0, "both are young");
    let later = began + EVICT_AFTER + Duration::from_secs(1);
    let incremental = |session_id, epoch| SessionRequest {
        session_id,
        epoch,
        by_topic_id: false,
        wanted: vec![],
        forgotten: vec![],
    };
    for id in [small, big] {
        assert!(matches!(cache.open(incremental(id, 1), later), FetchContext::Incremental { .. }));
    }
    // Both are in use and old: the smaller goes, and only for one that is not smaller still.
    assert_eq!(cache.create(vec![], false, later), 0);
    assert_ne!(cache.create(two(), false, later), 0);
    let gone = FetchContext::Error(SessionError::IdNotFound);
    assert_eq!(cache.open(incremental(small, 2), later), gone);
    assert!(matches!(cache.open(incremental(big, 2), later), FetchContext::Incremental { .. }));
}

#[test]
fn epochs_go_round() {
    assert_eq!([next_epoch(0), next_epoch(1), next_epoch(i32::MAX), next_epoch(-1)], [1, 2, 1, -1]);
}

#[test]
fn sessions_tell_only_news() {
    let spec = TopicSpec::new("orders", 3, 10).with_batches(11, 1000, 10);
    let mut config = Config::loopback(1).with_topic(spec);
    config.sessions_max = 1;
    let source = serve(config).unwrap();
    let cluster = source.cluster();
    let id = cluster.topic_id("orders").unwrap();
    let mut client = Client::connect(source.addresses()[0]);
    for version in [7, 12, 13, 18] {
        cluster.forget_sessions(0).unwrap();
        let end = cluster.log("orders", 0).unwrap().end_offset();
        let all = [ask("orders", id, 0, end), ask("orders", id, 1, 100), ask("orders", id, 2, 100)];
        let full = client.ask(&fetch_request(version, &all).with_session_epoch(0), version);
        let session = full.session_id;
        assert!(session != 0 && partitions(&full).len() == 3);
        let next = |epoch| {
            let none = fetch_request(version, &[]);
            none.with_session_id(session).with_session_epoch(epoch)
        };
        // No news.
        let answer = client.ask(&next(1), version);
        assert_eq!((answer.error_code, answer.session_id, answer.responses.len()), (0, session, 0));
        // News of one, at the offset that the session knows.
        cluster.append("orders", 0, 2).unwrap();
        let answer = client.ask(&next(2), version);
        let told = partitions(&answer);
        assert_eq!((told.len(), told[0].partition_index, told[0].high_watermark), (1, 0, end + 20));
        assert_eq!(records(told[0]), cluster.log("orders", 0).unwrap().bytes(end..end + 20));
        // The partition is forgotten, another's log start moves.
        let mut forget = ForgottenTopic::default().with_partitions(vec![0]);
        forget = match version {
            13.. => forget.with_topic_id(id),
            _ => forget.with_topic(super::client::topic_name("orders")),
        };
        let start = cluster.log("orders", 2).unwrap().log_start() + 1;
        cluster.delete_records("orders", 2, start).unwrap();
        let answer = client.ask(&next(3).with_forgotten_topics_data(vec![forget]), version);
        let told = partitions(&answer);
        assert_eq!((told.len(), told[0].partition_index, told[0].log_start_offset), (1, 2, start));
        // Wrong epoch, wrong session, and no room for a second one.
        let answer = client.ask(&next(3), version);
        assert_eq!(answer.error_code, E::InvalidFetchSessionEpoch.code());
        let mut other = Client::connect(source.addresses()[0]);
        let full = other.ask(&fetch_request(version, &all).with_session_epoch(0), version);
        assert_eq!((full.session_id, partitions(&full).len()), (0, 3));
        assert_eq!(cluster.sessions(0), Ok(1));
        let wrong = next(4).with_session_id(session ^ 1);
        assert_eq!(client.ask(&wrong, version).error_code, E::FetchSessionIdNotFound.code());
        // Names and ids do not mix.
        let mixed = if version >= 13 { 12 } else { 13 };
        let request = fetch_request(mixed, &[]).with_session_id(session).with_session_epoch(4);
        let code = client.ask(&request, mixed).error_code;
        assert_eq!(code, E::FetchSessionTopicIdError.code());
        // The session ends.
        let closed = client.ask(&next(-1), version);
        assert_eq!((closed.error_code, cluster.sessions(0)), (0, Ok(0)));
        cluster.bump_leader_epoch("orders", 2).unwrap();
    }
}

#[test]
fn errors_are_told_until_they_go_and_then_the_partition_again() {
    let spec = TopicSpec::new("orders", 2, 10).with_batches(11, 1000, 10);
    let source = serve(Config::loopback(2).with_topic(spec)).unwrap();
    let cluster = source.cluster();
    let id = cluster.topic_id("orders").unwrap();
    let mut client = Client::connect(source.addresses()[0]);
    let all = [ask("orders", id, 0, 100), ask("orders", id, 1, 100)];
    let full = client.ask(&fetch_request(13, &all).with_session_epoch(0), 13);
    let mut epoch = 0;
    let mut told = |client: &mut Client| -> Vec<(i32, i16)> {
        epoch += 1;
        let request = fetch_request(13, &[]).with_session_id(full.session_id);
        let answer = client.ask(&request.with_session_epoch(epoch), 13);
        partitions(&answer).iter().map(|p| (p.partition_index, p.error_code)).collect()
    };
    let not_leader = E::NotLeaderOrFollower.code();
    assert_eq!(told(&mut client), [(1, not_leader)]);
    assert_eq!(told(&mut client), [(1, not_leader)]);
    cluster.move_leader("orders", 1, 0).unwrap();
    assert_eq!(told(&mut client), [(1, 0)]);
    assert_eq!(told(&mut client), []);
    cluster.delete_topic("orders").unwrap();
    let gone = E::UnknownTopicId.code();
    assert_eq!(told(&mut client), [(0, gone), (1, gone)]);
}
