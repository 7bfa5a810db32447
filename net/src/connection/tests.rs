//! Connections against a server thread that plays answers encoded by `kafka-protocol`.

use super::*;
use crate::codes::ErrorCode;
use crate::fetch::{
    End, EpochEnd, FetchLimits, FetchSession, Flow, PartitionHead, PartitionTail, RecordSink, Take,
    TopicName, Verdict, Wanted,
};
use crate::testing::{Asked, Reply, encoded, framed, serve, serve_all};
use kafka_protocol::messages::api_versions_response::ApiVersion;
use kafka_protocol::messages::fetch_response::{
    EpochEndOffset, FetchableTopicResponse, PartitionData,
};
use kafka_protocol::messages::{
    ApiVersionsResponse, FetchResponse, MetadataRequest, MetadataResponse,
};
use kafka_protocol::protocol::StrBytes;
use std::net::TcpListener;
use uuid::Uuid;

const TOPIC: Uuid = Uuid::from_u128(77);
const LIMITS: FetchLimits = FetchLimits { max_wait_ms: 10, min_bytes: 1, max_bytes: 1 << 24 };

/// Deterministic record bytes.
fn noise(seed: usize, bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at * 31 + at / 251 + seed * 7) as u8).collect()
}

/// One topic with a partition per size.
fn response(version: i16, session_id: i32, sizes: &[usize]) -> FetchResponse {
    let partitions = sizes.iter().enumerate().map(|(number, &bytes)| {
        PartitionData::default()
            .with_partition_index(number as i32)
            .with_high_watermark(1000 + number as i64)
            .with_records(Some(Bytes::from(noise(number, bytes))))
    });
    let topic = FetchableTopicResponse::default().with_partitions(partitions.collect());
    let topic = if version >= 13 {
        topic.with_topic_id(TOPIC)
    } else {
        topic.with_topic(StrBytes::from_static_str("t").into())
    };
    let session_id = if version >= 7 { session_id } else { 0 };
    FetchResponse::default().with_session_id(session_id).with_responses(vec![topic])
}

fn session(partitions: usize) -> FetchSession {
    let mut session = FetchSession::new();
    for number in 0..partitions {
        session.add(number as u32, TopicName { name: "t", id: TOPIC }, number as i32);
        let wanted =
            Wanted { fetch_offset: 5, last_fetched_epoch: -1, leader_epoch: 0, max_bytes: 1 << 20 };
        session.want(number as u32, wanted);
    }
    session
}

/// Takes records into vectors, lending at most `lend_max` bytes at a time.
struct Collect {
    taken: Vec<Taken>,
    lend_max: usize,
    /// Every so manieth call for memory finds none; 0: never.
    starve: usize,
    calls: usize,
    skip: Option<u32>,
    skip_rest: Option<u32>,
    lent: usize,
    memory_comes_after: Duration,
    /// Whether it was asked if more may come.
    paced: bool,
}

#[derive(Debug)]
struct Taken {
    key: u32,
    head: PartitionHead,
    records: Vec<u8>,
    end: Option<End>,
}

impl Collect {
    fn new() -> Collect {
        Collect {
            taken: Vec::new(),
            lend_max: 100_000,
            starve: 0,
            calls: 0,
            skip: None,
            skip_rest: None,
            lent: 0,
            memory_comes_after: Duration::ZERO,
            paced: false,
        }
    }

    fn starved(&mut self) -> bool {
        self.calls += 1;
        self.starve > 0 && self.calls.is_multiple_of(self.starve)
    }

    fn add(&mut self, bytes: &[u8]) -> Flow {
        let taken = self.taken.last_mut().expect("a partition");
        taken.records.extend_from_slice(bytes);
        let rest = self.skip_rest == Some(taken.key);
        if rest { Flow::SkipRest } else { Flow::Continue }
    }
}

impl RecordSink for Collect {
    fn partition(&mut self, key: u32, head: &PartitionHead) -> Take {
        if let Some(before) = self.taken.last() {
            assert!(before.end.is_some(), "a partition begins before another has ended");
        }
        self.taken.push(Taken { key, head: *head, records: Vec::new(), end: None });
        if self.skip == Some(key) { Take::Skip } else { Take::Records }
    }

    async fn keep_pace(&mut self) {
        self.paced = true;
    }

    fn lend(&mut self, remaining: usize) -> Option<Lease> {
        assert!(std::mem::take(&mut self.paced), "more comes without asking");
        if self.starved() {
            return None;
        }
        self.lent += 1;
        let bytes = remaining.min(self.lend_max);
        Some(ring::try_lease(bytes, Class::Records)?.split(bytes).0)
    }

    fn filled(&mut self, lease: Lease, bytes: usize) -> Flow {
        self.add(&lease[..bytes])
    }

    fn copy_in(&mut self, bytes: &[u8]) -> (usize, Flow) {
        let copied = if self.starved() { bytes.len() / 2 } else { bytes.len() };
        (copied, self.add(&bytes[..copied]))
    }

    async fn memory(&mut self, _bytes: usize) {
        ring::sleep(self.memory_comes_after).await;
    }

    fn end(&mut self, end: End) {
        let last = self.taken.last_mut().expect("a partition");
        assert!(last.end.replace(end).is_none(), "two ends");
    }
}

fn on_ring<T: 'static>(root: impl Future<Output = T> + 'static) -> T {
    ring::run(ring::Config::small(), root).expect("the executor runs")
}

async fn connect(address: SocketAddr) -> Connection {
    Connection::connect(address, ConnectOptions::default()).await.expect("connects")
}

const COMPLETE: Option<End> =
    Some(End::Complete(PartitionTail { diverging_epoch: None, current_leader: None }));

/// Every version, small and large record sets, answers in one piece and in many.
#[test]
fn records_arrive_whole_in_every_version() {
    let sizes = [0, 1, 300, 20_000, 0, 65_536, 400_000, 16_384, 16_385, 5];
    for version in 4..=18 {
        for piece in [usize::MAX, 4093, 997] {
            let reply = move |asked: &Asked| {
                assert_eq!(asked.version, version);
                Reply::Body(encoded(&response(version, 9, &sizes), version))
            };
            let address = serve(version, piece, reply);
            on_ring(async move {
                let mut connection = connect(address).await;
                let mut session = session(sizes.len());
                // The second round is one with a session and knows that records are large.
                for round in 0..2 {
                    let mut sink = Collect::new();
                    let fetched = connection.fetch(&mut session, &LIMITS, &mut sink).await;
                    let outcome = fetched.expect("fetches");
                    assert_eq!((outcome.verdict, outcome.in_step), (Verdict::Good, true));
                    assert_eq!(outcome.partitions, sizes.len());
                    assert_eq!(outcome.records_bytes, sizes.iter().sum::<usize>() as u64);
                    assert_eq!(outcome.asked.full, round == 0 || version < 7);
                    for (number, (taken, &bytes)) in sink.taken.iter().zip(&sizes).enumerate() {
                        assert_eq!(taken.key, number as u32);
                        assert_eq!(taken.head.high_watermark, 1000 + number as i64);
                        assert!(taken.records == noise(number, bytes), "partition {number}");
                        assert_eq!(taken.end, COMPLETE);
                    }
                    assert_eq!(sink.taken.len(), sizes.len());
                }
            });
        }
    }
}

#[test]
fn large_record_sets_cost_few_receives_and_few_copies() {
    let sizes = [1 << 20; 4];
    let address =
        serve(17, usize::MAX, move |_| Reply::Body(encoded(&response(17, 9, &sizes), 17)));
    on_ring(async move {
        let mut connection = connect(address).await;
        let mut session = session(4);
        let mut sink = Collect::new();
        sink.lend_max = 1 << 20;
        connection.fetch(&mut session, &LIMITS, &mut sink).await.expect("fetches");
        let before = connection.counters();
        sink.lent = 0;
        connection.fetch(&mut session, &LIMITS, &mut sink).await.expect("fetches");
        let after = connection.counters();
        assert!(after.copied_bytes - before.copied_bytes <= 5 * 4096);
        assert_eq!(sink.lent, 4);
        // One for the head, one for each record set, perhaps one for the end.
        let receives = after.receives - before.receives;
        assert!((5..=6).contains(&receives), "{receives} receives");
        assert_eq!(after.requests - before.requests, 1);
    });
}

#[test]
fn a_sink_without_memory_is_waited_for() {
    let sizes = [300, 200_000, 70_000];
    let address = serve(12, 5000, move |_| Reply::Body(encoded(&response(12, 9, &sizes), 12)));
    on_ring(async move {
        let mut connection = connect(address).await;
        let mut sink = Collect::new();
        (sink.starve, sink.lend_max) = (2, 10_000);
        connection.fetch(&mut session(3), &LIMITS, &mut sink).await.expect("fetches");
        for (number, (taken, bytes)) in sink.taken.iter().zip(sizes).enumerate() {
            assert!(taken.records == noise(number, bytes), "partition {number}");
        }
        assert!(connection.counters().memory_waits > 5);
    });
}

/// The limit is for finding memory once: an answer may wait for memory longer than that in all.
#[test]
fn waiting_for_memory_starts_anew_with_every_progress() {
    let address = serve(12, 5000, |_| Reply::Body(encoded(&response(12, 9, &[140_000]), 12)));
    on_ring(async move {
        let memory_limit = Duration::from_millis(500);
        let options = ConnectOptions { memory_limit, ..Default::default() };
        let mut connection = Connection::connect(address, options).await.expect("connects");
        let mut sink = Collect::new();
        (sink.starve, sink.lend_max) = (2, 500);
        sink.memory_comes_after = Duration::from_millis(8);
        let since = ring::now();
        connection.fetch(&mut session(1), &LIMITS, &mut sink).await.expect("fetches");
        assert!(ring::now().since(since) > memory_limit, "too quick to show anything");
        assert!(sink.taken[0].records == noise(0, 140_000));
    });
}

#[test]
fn a_sink_that_never_has_memory_costs_the_connection() {
    let address = serve(12, 5000, |_| Reply::Body(encoded(&response(12, 9, &[50_000]), 12)));
    on_ring(async move {
        let options =
            ConnectOptions { memory_limit: Duration::from_millis(20), ..Default::default() };
        let mut connection = Connection::connect(address, options).await.expect("connects");
        let mut sink = Collect::new();
        sink.starve = 1;
        let failed = connection.fetch(&mut session(1), &LIMITS, &mut sink).await;
        assert!(matches!(failed, Err(NetError::NoMemory { .. })), "{failed:?}");
        assert_eq!(sink.taken[0].end, Some(End::CutShort));
        assert!(connection.is_broken());
    });
}

#[test]
fn what_is_not_wanted_is_received_and_forgotten() {
    let sizes = [100_000, 300_000, 90_000, 10];
    let address =
        serve(17, usize::MAX, move |_| Reply::Body(encoded(&response(17, 9, &sizes), 17)));
    on_ring(async move {
        let mut connection = connect(address).await;
        let mut sink = Collect::new();
        (sink.skip, sink.skip_rest) = (Some(1), Some(2));
        // The fourth partition is none of ours.
        let mut session = session(3);
        let fetched = connection.fetch(&mut session, &LIMITS, &mut sink).await;
        let outcome = fetched.expect("fetches");
        assert!(!outcome.in_step && !session.established());
        assert_eq!(sink.taken.len(), 3);
        assert!(sink.taken[0].records == noise(0, 100_000));
        assert!(sink.taken[1].records.is_empty());
        let first = &sink.taken[2].records;
        assert!(!first.is_empty() && noise(2, 90_000).starts_with(first));
        assert!(sink.taken.iter().all(|taken| taken.end == COMPLETE));
        assert!(!connection.is_broken());
    });
}

#[test]
fn divergence_comes_with_the_end() {
    let address = serve(17, usize::MAX, |_| {
        let mut answer = response(17, 9, &[0]);
        let diverging = EpochEndOffset::default().with_epoch(3).with_end_offset(44);
        answer.responses[0].partitions[0].diverging_epoch = diverging;
        Reply::Body(encoded(&answer, 17))
    });
    on_ring(async move {
        let mut sink = Collect::new();
        let mut connection = connect(address).await;
        connection.fetch(&mut session(1), &LIMITS, &mut sink).await.expect("fetches");
        let Some(End::Complete(tail)) = sink.taken[0].end else { panic!("no end") };
        assert_eq!(tail.diverging_epoch, Some(EpochEnd { epoch: 3, end_offset: 44 }));
    });
}

#[test]
fn a_lost_session_is_begun_again() {
    let mut answers = [(71, 0), (0, 10)].into_iter();
    let address = serve(17, usize::MAX, move |_| {
        let (code, id) = answers.next().expect("two requests");
        let mut answer = response(17, id, &[10]);
        if code != 0 {
            answer.responses.clear();
        }
        Reply::Body(encoded(&answer.with_error_code(code), 17))
    });
    on_ring(async move {
        let mut connection = connect(address).await;
        let mut session = session(1);
        let mut sink = Collect::new();
        let fetched = connection.fetch(&mut session, &LIMITS, &mut sink).await;
        assert_eq!(fetched.expect("an answer").verdict, Verdict::Restarted);
        assert!(sink.taken.is_empty());
        let outcome = connection.fetch(&mut session, &LIMITS, &mut sink).await.expect("fetches");
        assert_eq!((outcome.verdict, outcome.asked.full), (Verdict::Good, true));
        assert!(session.established());
    });
}

/// Whatever the source sends that is no answer ends in an error, with the open partition closed,
/// and the connection refuses to go on.
#[test]
fn lies_cost_the_connection() {
    type Lie = fn(&Asked) -> Reply;
    let lies: [(&str, Lie); 6] = [
        ("another correlation id", |asked| {
            let asked = Asked { correlation_id: asked.correlation_id + 1, ..*asked };
            Reply::Raw(framed(&asked, &encoded(&response(17, 9, &[10]), 17)))
        }),
        ("an overlong frame", |_| Reply::Raw(i32::MAX.to_be_bytes().to_vec())),
        ("a negative length", |_| Reply::Raw((-1i32).to_be_bytes().to_vec())),
        ("half an answer", |asked| {
            let mut bytes = framed(asked, &encoded(&response(17, 9, &[100_000]), 17));
            bytes.truncate(60_000);
            Reply::RawAndClose(bytes)
        }),
        ("an answer with something behind it", |asked| {
            let mut bytes = framed(asked, &encoded(&response(17, 9, &[10]), 17));
            bytes.push(0);
            Reply::Raw(bytes)
        }),
        ("nothing", |_| Reply::Silence),
    ];
    for (what, lie) in lies {
        let address = serve(17, usize::MAX, lie);
        on_ring(async move {
            let options =
                ConnectOptions { idle_limit: Duration::from_millis(300), ..Default::default() };
            let mut connection = Connection::connect(address, options).await.expect("connects");
            let (mut session, mut sink) = (session(1), Collect::new());
            let failed = connection.fetch(&mut session, &LIMITS, &mut sink).await;
            let error = failed.expect_err(what);
            assert!(error.retriable(), "{what}: {error}");
            assert!(sink.taken.iter().all(|taken| taken.end.is_some()), "{what}");
            let again = connection.fetch(&mut session, &LIMITS, &mut sink).await;
            assert!(matches!(again, Err(NetError::Broken { .. })), "{what}: {again:?}");
        });
    }
}

#[test]
fn a_dropped_fetch_breaks_the_connection_and_restarts_the_session() {
    let address = serve(17, usize::MAX, |_| Reply::Silence);
    on_ring(async move {
        let mut connection = connect(address).await;
        let (mut session, mut sink) = (session(1), Collect::new());
        let fetch = connection.fetch(&mut session, &LIMITS, &mut sink);
        assert!(ring::timeout(Duration::from_millis(20), fetch).await.is_err());
        assert!(connection.is_broken() && !session.established());
        assert!(matches!(
            connection.request(&MetadataRequest::default()).await,
            Err(NetError::Broken { .. })
        ));
    });
}

#[test]
fn control_messages_come_and_go() {
    let address = serve(17, 7, |asked| {
        assert_eq!((asked.api_key, asked.version), (3, 13));
        let answer = MetadataResponse::default()
            .with_cluster_id(Some(StrBytes::from_static_str("cluster")))
            .with_controller_id(3.into());
        Reply::Body(encoded(&answer, 13))
    });
    on_ring(async move {
        let mut connection = connect(address).await;
        for _ in 0..3 {
            let answer = connection.request(&MetadataRequest::default()).await.expect("answers");
            assert_eq!(answer.cluster_id.as_deref(), Some("cluster"));
        }
        assert_eq!(connection.counters().requests, 4);
    });
}

#[test]
fn old_brokers_are_asked_twice_for_their_versions() {
    let address = serve_all(usize::MAX, |asked| {
        assert_eq!(asked.api_key, 18);
        let row = ApiVersion::default().with_api_key(1).with_max_version(10);
        let answer = ApiVersionsResponse::default();
        let answer = match asked.version {
            0 => answer.with_api_keys(vec![row]),
            _ => answer.with_error_code(35),
        };
        Reply::Body(encoded(&answer, 0))
    });
    on_ring(async move {
        let mut connection = connect(address).await;
        assert_eq!(connection.versions().newest(Api::Fetch), Some(10));
        let error = connection.request(&MetadataRequest::default()).await.expect_err("refuses");
        assert!(error.to_string().contains("serves Metadata in no version"), "{error}");
        assert!(!error.retriable() && !connection.is_broken());
    });
}

#[test]
fn a_peer_that_never_says_its_versions_is_given_up() {
    let address = serve_all(usize::MAX, |_| Reply::Silence);
    on_ring(async move {
        let connect_limit = Duration::from_millis(50);
        let options = ConnectOptions { connect_limit, ..Default::default() };
        let error = Connection::connect(address, options).await.expect_err("silence");
        let agreeing = "agreeing on versions";
        assert!(matches!(error, NetError::TimedOut { doing, .. } if doing == agreeing), "{error}");
    });
}

#[test]
fn nobody_there_is_a_connect_error() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    drop(listener);
    on_ring(async move {
        let failed = Connection::connect(address, ConnectOptions::default()).await;
        let error = failed.expect_err("nobody listens");
        assert!(matches!(error, NetError::Connect { .. }), "{error}");
        assert!(error.to_string().contains(&address.to_string()));
        assert_eq!(ErrorCode::NONE.to_string(), "NONE (0)");
    });
}
