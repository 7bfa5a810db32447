//! Fetches a topic from a real source to its end and says what that cost.
//!
//! `cargo run --release -p net --example fetch -- localhost:9092 TOPIC [FETCH_BYTES]`
//!
//! Then asks where the partitions' logs and their first epochs end. All partitions have to be led
//! by one broker. Batches are walked by their heads, so that the end is known; nothing is kept.

use net::control::{ControlClient, ControlOptions, Topics};
use net::fetch::{
    End, FetchLimits, FetchSession, Flow, PartitionHead, RecordSink, Take, TopicName, Wanted,
};
use net::questions::{EARLIEST, EpochQuestion, LATEST, OffsetQuestion};
use net::{ConnectOptions, Connection};
use ring::{Class, Lease};
use std::collections::HashMap;
use std::error::Error;
use std::time::Instant;

/// Where a batch's length, last offset delta and leader epoch stand, and how long its head is.
const HEAD_BYTES: usize = 61;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [server, topic, rest @ ..] = &arguments[..] else {
        return Err("usage: fetch SERVER TOPIC [FETCH_BYTES]".into());
    };
    let fetch_bytes: i32 = rest.first().map_or(Ok(1 << 20), |text| text.parse())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (cluster, address) = runtime.block_on(async {
        let mut control = ControlClient::new(vec![server.clone()], ControlOptions::default());
        let cluster = control.metadata(Topics::Named(&[topic]), true).await?;
        println!("{} is {:?}", control.peer().unwrap_or("?"), cluster.cluster_id);
        println!("{:?}", control.versions());
        let first = cluster.topics.first().and_then(|found| found.partitions.first());
        let leader = first.ok_or("no such topic")?.leader.ok_or("nobody leads it")?;
        let broker = cluster.broker(leader).ok_or("no broker")?.server();
        let address = tokio::net::lookup_host(broker).await?.next().ok_or("no address")?;
        Ok::<_, Box<dyn Error>>((cluster, address))
    })?;
    let config = ring::Config { arena_bytes: 64 << 20, ..ring::Config::default() };
    let found = cluster.topics[0].clone();
    let fetched = ring::run(config, async move {
        let mut connection = Connection::connect(address, ConnectOptions::default()).await?;
        let mut session = FetchSession::new();
        let name = TopicName { name: &found.name, id: found.id.unwrap_or_default() };
        let mut walk = Walk { logs: HashMap::new(), now: 0 };
        for row in &found.partitions {
            let key = row.partition as u32;
            session.add(key, name, row.partition);
            session.want(key, wanted(0, fetch_bytes));
            walk.logs.insert(key, Log::default());
        }
        let limits = FetchLimits { max_wait_ms: 500, min_bytes: 1, max_bytes: 64 << 20 };
        let (started, mut bytes) = (Instant::now(), 0);
        loop {
            let outcome = connection.fetch(&mut session, &limits, &mut walk).await?;
            assert!(outcome.in_step, "{outcome:?}");
            bytes += outcome.records_bytes;
            for (&key, log) in &walk.logs {
                session.want(key, wanted(log.next, fetch_bytes));
            }
            if walk.logs.values().all(|log| log.next >= log.high_watermark) {
                break;
            }
        }
        report(&walk, bytes, started, &connection);
        for row in &found.partitions {
            let (topic, partition, leader_epoch) = (&found.name, row.partition, row.leader_epoch);
            let question = OffsetQuestion { topic, partition, leader_epoch, timestamp: EARLIEST };
            let latest = OffsetQuestion { timestamp: LATEST, ..question };
            let ends = [
                connection.list_offsets(&[question]).await?,
                connection.list_offsets(&[latest]).await?,
            ];
            let epoch = EpochQuestion { topic, partition, leader_epoch, epoch: 0 };
            let epoch_end = connection.epoch_ends(&[epoch]).await?;
            println!("partition {partition}: {ends:?}, epoch 0 ends: {epoch_end:?}");
            assert_eq!(ends[1], [Ok(walk.logs[&(partition as u32)].next)]);
        }
        Ok::<_, net::NetError>(())
    })?;
    Ok(fetched?)
}

fn wanted(fetch_offset: i64, max_bytes: i32) -> Wanted {
    Wanted { fetch_offset, last_fetched_epoch: -1, leader_epoch: -1, max_bytes }
}

fn report(walk: &Walk, bytes: u64, started: Instant, connection: &Connection) {
    let seconds = started.elapsed().as_secs_f64();
    let batches: u64 = walk.logs.values().map(|log| log.batches).sum();
    let end: i64 = walk.logs.values().map(|log| log.next).sum();
    let mib = bytes as f64 / (1 << 20) as f64;
    println!("{mib:.1} MiB in {seconds:.2} s, {batches} batches, end offsets add up to {end}");
    println!("{:?}", connection.counters());
}

/// Walks the batches of all partitions.
struct Walk {
    logs: HashMap<u32, Log>,
    now: u32,
}

#[derive(Default)]
struct Log {
    next: i64,
    high_watermark: i64,
    batches: u64,
    head: Vec<u8>,
    /// Bytes of the current batch behind its head that have not come.
    body: usize,
}

impl Walk {
    fn walk(&mut self, mut bytes: &[u8]) {
        let log = self.logs.get_mut(&self.now).expect("a partition of ours");
        while !bytes.is_empty() {
            if log.head.len() < HEAD_BYTES {
                let more = bytes.len().min(HEAD_BYTES - log.head.len());
                log.head.extend_from_slice(&bytes[..more]);
                bytes = &bytes[more..];
                if log.head.len() < HEAD_BYTES {
                    return;
                }
                let length = log.head[8..12].try_into().expect("four bytes");
                log.body = i32::from_be_bytes(length) as usize + 12 - HEAD_BYTES;
            }
            let skipped = bytes.len().min(log.body);
            log.body -= skipped;
            bytes = &bytes[skipped..];
            if log.body > 0 {
                return;
            }
            let base = i64::from_be_bytes(log.head[..8].try_into().expect("eight bytes"));
            let delta = i32::from_be_bytes(log.head[23..27].try_into().expect("four bytes"));
            assert!(base >= log.next, "offsets go back");
            log.next = base + i64::from(delta) + 1;
            log.batches += 1;
            log.head.clear();
        }
    }
}

impl RecordSink for Walk {
    fn partition(&mut self, key: u32, head: &PartitionHead) -> Take {
        assert!(head.error_code.is_none(), "{head:?}");
        self.now = key;
        let log = self.logs.get_mut(&key).expect("a partition of ours");
        log.high_watermark = head.high_watermark;
        Take::Records
    }

    fn lend(&mut self, remaining: usize) -> Option<Lease> {
        let bytes = remaining.min(512 << 10);
        Some(ring::try_lease(bytes, Class::Records)?.split(bytes).0)
    }

    fn filled(&mut self, lease: Lease, bytes: usize) -> Flow {
        self.walk(&lease[..bytes]);
        Flow::Continue
    }

    fn copy_in(&mut self, bytes: &[u8]) -> (usize, Flow) {
        self.walk(bytes);
        (bytes.len(), Flow::Continue)
    }

    async fn memory(&mut self, _bytes: usize) {}

    fn end(&mut self, _end: End) {
        // A fetch may end inside of a batch: that one comes whole the next time.
        let log = self.logs.get_mut(&self.now).expect("a partition of ours");
        log.head.clear();
        log.body = 0;
    }
}
