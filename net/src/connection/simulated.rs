//! Fetches in simulated worlds: short and late receives, resets, silence, refused calls, a source
//! that forgets sessions or has no room for them, a sink without memory. Whatever happens, every
//! byte handed over is the right one, and in the end all have come.

use super::{ConnectOptions, Connection};
use crate::codes::ErrorCode;
use crate::fetch::{
    End, FetchLimits, FetchSession, Flow, PartitionHead, RecordSink, Take, TopicName, Verdict,
    Wanted,
};
use crate::testing::{Asked, api_versions, encoded, framed};
use bytes::Bytes;
use kafka_protocol::messages::FetchRequest;
use kafka_protocol::messages::fetch_response::{FetchableTopicResponse, PartitionData};
use kafka_protocol::messages::{FetchResponse, RequestHeader};
use kafka_protocol::protocol::{Decodable, HeaderVersion, StrBytes};
use ring::sim::{Faults, Simulation};
use ring::{Address, Class, Config, Lease, Listener, Share, Stream};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;
use uuid::Uuid;

const TOPIC: TopicName<'static> = TopicName { name: "t", id: Uuid::from_u128(77) };
const PARTITIONS: u32 = 6;
/// Offsets are positions in a stream of bytes here; each partition is read up to this one.
const TARGET: i64 = 150_000;
const HIGH_WATERMARK: i64 = 1 << 40;
const FETCH_BYTES: i32 = 100_000;

/// The byte at a position of a partition.
fn byte(partition: i32, position: i64) -> u8 {
    (position * 31 + position / 253 + i64::from(partition) * 101) as u8
}

fn one_in(chance: u64) -> bool {
    ring::random().is_multiple_of(chance)
}

/// A source's memory, which outlives its connections.
#[derive(Default)]
struct Broker {
    /// By id: the epoch that is due, and fetch offsets by partition.
    sessions: BTreeMap<i32, (i32, BTreeMap<i32, i64>)>,
    last_id: i32,
}

impl Broker {
    fn answer(&mut self, request: &FetchRequest, version: i16) -> FetchResponse {
        if one_in(20) {
            self.sessions.clear();
        }
        let rows = request.topics.iter().flat_map(|topic| &topic.partitions);
        let named: BTreeMap<i32, i64> = rows.map(|row| (row.partition, row.fetch_offset)).collect();
        let refused = |code| FetchResponse::default().with_error_code(code);
        let (id, wanted) = if version < 7 || request.session_epoch == 0 {
            self.sessions.remove(&request.session_id);
            let roomless = version < 7 || one_in(8);
            let id = if roomless { 0 } else { self.last_id + 1 };
            if !roomless {
                self.last_id = id;
                self.sessions.insert(id, (1, named.clone()));
            }
            (id, named)
        } else {
            let id = request.session_id;
            let Some((epoch, wanted)) = self.sessions.get_mut(&id) else { return refused(70) };
            if *epoch != request.session_epoch {
                return refused(71);
            }
            *epoch += 1;
            wanted.extend(named);
            let forgotten = request.forgotten_topics_data.iter().flat_map(|t| &t.partitions);
            let forgotten: Vec<&i32> = forgotten.collect();
            wanted.retain(|partition, _| !forgotten.contains(&partition));
            (id, wanted.clone())
        };
        let rows = wanted.iter().map(|(&partition, &offset)| records(partition, offset));
        let topic = FetchableTopicResponse::default().with_partitions(rows.collect());
        let topic = match version {
            13.. => topic.with_topic_id(TOPIC.id),
            _ => topic.with_topic(StrBytes::from_static_str(TOPIC.name).into()),
        };
        FetchResponse::default().with_session_id(id).with_responses(vec![topic])
    }
}

/// What a partition holds from an offset on: nothing, little, or much.
fn records(partition: i32, offset: i64) -> PartitionData {
    let bytes_max = [0, 300, 20_000, FETCH_BYTES as u64][ring::random() as usize % 4];
    let bytes = if bytes_max == 0 { 0 } else { ring::random() % bytes_max };
    let bytes: Vec<u8> = (0..bytes as i64).map(|at| byte(partition, offset + at)).collect();
    PartitionData::default()
        .with_partition_index(partition)
        .with_high_watermark(HIGH_WATERMARK)
        .with_records(Some(bytes.into()))
}

async fn read_exact(stream: &Stream, bytes: usize) -> Option<Bytes> {
    let mut read = Vec::new();
    while read.len() < bytes {
        let wanted = (bytes - read.len()).min(4096);
        let lease = ring::lease(wanted, Class::Control).await.split(wanted).0;
        let (count, into) = stream.receive([Some(lease), None], false).await;
        let [Some(lease), None] = into else { unreachable!("the lease comes back") };
        match count {
            Ok(0) | Err(_) => return None,
            Ok(count) => read.extend_from_slice(&lease[..count]),
        }
    }
    Some(read.into())
}

async fn serve_connection(stream: Stream, broker: Rc<RefCell<Broker>>, newest: i16) -> Option<()> {
    loop {
        let length = read_exact(&stream, 4).await?;
        let length = i32::from_be_bytes(length[..].try_into().expect("four bytes"));
        let mut request = read_exact(&stream, length as usize).await?;
        let [key, version] =
            [0, 2].map(|at| i16::from_be_bytes(request[at..at + 2].try_into().expect("two")));
        let header = if key == 1 { FetchRequest::header_version(version) } else { 2 };
        let header = RequestHeader::decode(&mut request, header).expect("a header");
        let asked = Asked { api_key: key, version, correlation_id: header.correlation_id };
        let body = if key == 18 {
            api_versions(newest)
        } else {
            let request = FetchRequest::decode(&mut request, version).expect("a fetch");
            encoded(&broker.borrow_mut().answer(&request, version), version)
        };
        for piece in framed(&asked, &body).chunks(64 << 10) {
            let mut lease = ring::lease(piece.len(), Class::Control).await;
            lease[..piece.len()].copy_from_slice(piece);
            stream.send_all([lease.freeze(piece.len()).0].into_iter().collect()).await.ok()?;
        }
    }
}

async fn serve(address: SocketAddr, newest: i16) {
    let listener = Listener::bind(&Address::Tcp(address)).expect("an address");
    let broker = Rc::new(RefCell::new(Broker::default()));
    loop {
        if let Ok(stream) = listener.accept().await {
            let broker = Rc::clone(&broker);
            ring::spawn(Share::Serve, serve_connection(stream, broker, newest)).detach();
        }
    }
}

/// Checks every byte it is handed.
struct Reader {
    positions: Vec<i64>,
    now: Option<u32>,
    handed: usize,
    announced: usize,
    skipping: bool,
}

impl Reader {
    fn take(&mut self, bytes: &[u8]) -> Flow {
        assert!(!self.skipping, "more after the rest was to be skipped");
        let key = self.now.expect("a partition");
        let position = &mut self.positions[key as usize];
        for (at, &found) in bytes.iter().enumerate() {
            assert_eq!(found, byte(key as i32, *position + at as i64), "partition {key}");
        }
        *position += bytes.len() as i64;
        self.handed += bytes.len();
        self.skipping = one_in(32);
        if self.skipping { Flow::SkipRest } else { Flow::Continue }
    }
}

impl RecordSink for Reader {
    fn partition(&mut self, key: u32, head: &PartitionHead) -> Take {
        assert_eq!((self.now.replace(key), head.partition), (None, key as i32));
        assert_eq!((head.high_watermark, head.error_code), (HIGH_WATERMARK, ErrorCode::NONE));
        (self.handed, self.announced) = (0, head.records_bytes);
        self.skipping = one_in(16);
        if self.skipping { Take::Skip } else { Take::Records }
    }

    fn lend(&mut self, remaining: usize) -> Option<Lease> {
        assert!(remaining <= self.announced - self.handed && !self.skipping);
        if one_in(8) {
            return None;
        }
        let bytes = remaining.min(1 + ring::random() as usize % 60_000);
        Some(ring::try_lease(bytes, Class::Records)?.split(bytes).0)
    }

    fn filled(&mut self, lease: Lease, bytes: usize) -> Flow {
        self.take(&lease[..bytes])
    }

    fn copy_in(&mut self, bytes: &[u8]) -> (usize, Flow) {
        let copied = if one_in(8) { bytes.len() / 3 } else { bytes.len() };
        (copied, self.take(&bytes[..copied]))
    }

    async fn memory(&mut self, _bytes: usize) {
        ring::sleep(Duration::from_millis(ring::random() % 20)).await;
    }

    fn end(&mut self, end: End) {
        assert!(self.now.take().is_some(), "an end without a beginning");
        let complete = matches!(end, End::Complete(_));
        assert!(!complete || self.skipping || self.handed == self.announced);
    }
}

fn want(session: &mut FetchSession, reader: &Reader) {
    for (key, &fetch_offset) in reader.positions.iter().enumerate() {
        let wanted = Wanted {
            fetch_offset,
            last_fetched_epoch: -1,
            leader_epoch: 0,
            max_bytes: FETCH_BYTES,
        };
        // Now and then there is no memory for a partition.
        match one_in(6) {
            true => session.unwant(key as u32),
            false => session.want(key as u32, wanted),
        }
    }
}

/// Reads everything; returns how often it had to connect.
async fn read_all(address: SocketAddr) -> usize {
    let limits = FetchLimits { max_wait_ms: 100, min_bytes: 1, max_bytes: 1 << 24 };
    let mut session = FetchSession::new();
    (0..PARTITIONS).for_each(|key| session.add(key, TOPIC, key as i32));
    let positions = vec![0; PARTITIONS as usize];
    let mut reader = Reader { positions, now: None, handed: 0, announced: 0, skipping: false };
    let mut connects = 0;
    while reader.positions.iter().any(|&position| position < TARGET) {
        connects += 1;
        let Ok(mut connection) = Connection::connect(address, ConnectOptions::default()).await
        else {
            ring::sleep(Duration::from_millis(100)).await;
            continue;
        };
        while reader.positions.iter().any(|&position| position < TARGET) {
            want(&mut session, &reader);
            let Ok(outcome) = connection.fetch(&mut session, &limits, &mut reader).await else {
                break;
            };
            assert!(outcome.in_step, "{outcome:?}");
            assert!(matches!(outcome.verdict, Verdict::Good | Verdict::Restarted), "{outcome:?}");
        }
        assert!(reader.now.is_none(), "a partition was left open");
    }
    connects
}

fn run(seed: u64, faults: Faults, newest: i16) -> usize {
    let address = SocketAddr::from(([10, 0, 0, 1], 9092));
    let mut sim = Simulation::new(seed, faults);
    let machine = sim.machine();
    let source = sim.executor_on(machine, Config::small());
    sim.spawn_on(source, Share::Serve, serve(address, newest)).detach();
    let shard = sim.executor(Config::small());
    let connects = sim.run_on(shard, read_all(address));
    assert_eq!(sim.stop(shard).memory.used, 0, "memory is left over");
    connects
}

#[test]
fn every_byte_comes_whatever_the_network_does() {
    let mut reconnects = 0;
    for seed in 0..24 {
        let mut faults = if seed % 4 == 0 { Faults::default() } else { Faults::harsh() };
        faults.network.life = Duration::from_millis(1)..Duration::from_millis(500);
        faults.network.reset_ppm *= 3;
        faults.network.silence_ppm *= 3;
        let newest = [4, 6, 10, 12, 17, 18][seed as usize % 6];
        reconnects += run(seed, faults, newest) - 1;
    }
    assert!(reconnects >= 12, "only {reconnects} connections were lost");
}
