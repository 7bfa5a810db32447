//! What a seed's world is like: drawn once, before it begins.
//!
//! Kinds of trouble are switched on or off as a whole per seed: a world with everything at once
//! would never get far enough for any one of them to matter.

use std::time::Duration;

use ring::sim::{Faults, Random};
use shards::control::{LinkSettings, OnSourceGap, Start};
use source::{Content, Growth, Record, TopicSpec};

/// Worlds of these seeds have orders in them, half of them.
pub const VERBS_FROM: u64 = 20_000;
/// In worlds of these seeds sources lie about more than their records, in a third of them, and
/// topics are deleted and created again, in a third of them, too.
pub const DECEITS_FROM: u64 = 700_000;
/// Worlds of these seeds whose source lies so also lie in fetches about where logs begin.
pub const STARTS_FROM: u64 = 850_000;

/// A world's settings.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Brokers of the source.
    pub brokers: usize,
    /// Its topics.
    pub topics: Vec<TopicSpec>,
    /// A source before topic ids and flexible versions.
    pub old_source: bool,
    /// Fetch sessions a broker keeps.
    pub sessions_max: usize,
    /// Restarts before the end.
    pub rounds: u64,
    /// The longest a round lasts.
    pub round_ms_max: u64,
    /// Memory of each shard.
    pub memory_bytes: usize,
    /// How long a written byte waits for its flush.
    pub flush_interval: Duration,
    /// When segments roll.
    pub segment_bytes: u32,
    /// The link's settings.
    pub settings: LinkSettings,
    /// What goes wrong with disk, network and clock while it runs.
    pub faults: Faults,
    /// Kinds of trouble.
    pub trouble: Trouble,
}

/// Kinds of trouble, switched as a whole.
#[derive(Clone, Copy, Debug)]
pub struct Trouble {
    /// Reads, writes and flushes fail.
    pub bad_disk: bool,
    /// The disk gets full.
    pub full_disk: bool,
    /// Bits below the flushed position turn.
    pub flipped_bits: bool,
    /// Leaders without the latest records are elected.
    pub unclean: bool,
    /// Records are deleted at the source.
    pub trims: bool,
    /// The high watermark lags, and goes back.
    pub watermarks: bool,
    /// Leaders move, brokers die.
    pub brokers: bool,
    /// Answers of one partition are wrong.
    pub lies: bool,
    /// Frames are wrong.
    pub frames: bool,
    /// The wall clock jumps.
    pub clock: bool,
    /// A person orders this and that.
    pub verbs: bool,
    /// Answers about offsets, epochs and the cluster are wrong.
    pub deceits: bool,
    /// And those to fetches about where logs begin.
    pub starts: bool,
    /// Topics are deleted at the source and created again.
    pub recreated: bool,
}

impl Plan {
    /// The plan of a seed.
    pub fn draw(seed: u64) -> Plan {
        let mut random = Random::new(seed ^ 0x0075_6e64_6572_7374);
        let random = &mut random;
        // Of numbers of its own: older worlds stay what they were.
        let mut guile = Random::new(seed ^ 0x6775_696c_6500);
        let mut trouble = Trouble {
            bad_disk: random.below(4) == 0,
            full_disk: random.below(5) == 0,
            flipped_bits: random.below(5) == 0,
            unclean: random.below(3) == 0,
            trims: random.below(3) == 0,
            watermarks: random.below(4) == 0,
            brokers: random.coin(),
            lies: random.below(4) == 0,
            frames: random.below(4) == 0,
            clock: random.below(4) == 0,
            verbs: seed >= VERBS_FROM && Random::new(seed ^ 0x7665_7262).coin(),
            deceits: guile.below(3) == 0 && seed >= DECEITS_FROM,
            starts: false,
            recreated: guile.below(3) == 0 && seed >= DECEITS_FROM,
        };
        trouble.starts = trouble.deceits && seed >= STARTS_FROM;
        let mut faults = Faults::default();
        if random.coin() {
            let harsh = Faults::harsh();
            faults.network = harsh.network;
        }
        if trouble.bad_disk {
            faults.disk.read_error_ppm = 1_000;
            faults.disk.write_error_ppm = 5_000;
            faults.disk.flush_error_ppm = 20_000;
            faults.disk.torn_unreadable_ppm = 1_000;
        }
        if random.below(3) == 0 {
            faults.disk.delay = Duration::from_micros(50)..Duration::from_millis(30);
        }
        faults.steps_max = u64::MAX;
        if seed >= VERBS_FROM && faults.network.accept_error_ppm > 0 {
            faults.network.accept_error_ppm = 100_000;
        }
        let topics = 1 + random.below(3);
        Plan {
            brokers: 1 + random.index(3),
            topics: (0..topics).map(|index| topic(index, random)).collect(),
            old_source: random.below(4) == 0,
            sessions_max: if random.below(4) == 0 { 1 } else { 1000 },
            rounds: 1 + random.below(4),
            round_ms_max: if random.coin() { 300 } else { 3_000 },
            memory_bytes: (8 << 20) << random.below(3),
            flush_interval: Duration::from_millis(2 + random.below(150)),
            segment_bytes: [20_000, 60_000, 300_000, 1 << 20][random.index(4)],
            settings: LinkSettings {
                start: if random.below(6) == 0 { Start::Latest } else { Start::Earliest },
                rate_limit: None,
                backfill_rate_limit: None,
                connections_max: 1 + random.below(4) as u32,
                allow_truncation: random.coin(),
                on_source_gap: match random.coin() {
                    true => OnSourceGap::Continue,
                    false => OnSourceGap::Fault,
                },
                undo_window: Duration::from_secs(3600),
                batch_bytes_max: 2 << 20,
            },
            faults,
            trouble,
        }
    }
}

fn topic(index: u64, random: &mut Random) -> TopicSpec {
    let backlog = random.below(40);
    let partitions = 1 + random.below(3) as i32;
    let name = format!("topic{index}");
    let seed = random.below(1000);
    let mut topic = TopicSpec::new(name, partitions, backlog);
    if let Content::Generated { ring_bytes, .. } = &mut topic.content {
        *ring_bytes = 256 << 10;
    }
    topic = match random.below(6) {
        0 => topic.with_batches(seed, 150, 1),
        1 | 2 => topic.with_batches(seed, 3_000, 5),
        3 => topic.with_batches(seed, 70_000, 20),
        4 => {
            let batches = (0..30).map(|_| records(random)).collect();
            TopicSpec { content: Content::Records(batches), ..topic }
        }
        _ => {
            let growth = Growth::backlog(0);
            TopicSpec { content: Content::Given, growth, ..topic }
        }
    };
    topic.first_offset = if random.below(3) == 0 { random.below(100_000).cast_signed() } else { 0 };
    topic.leader_epoch = random.below(5) as i32;
    topic
}

/// The records of one batch, of any size.
pub fn records(random: &mut Random) -> Vec<Record> {
    let count = 1 + random.below(8);
    let most = [20, 200, 2_000, 20_000][random.index(4)];
    let record = |_| {
        let bytes = random.below(most) as usize;
        let mut value = vec![0; bytes];
        let mut word = random.draw();
        for byte in &mut value {
            word = word.rotate_left(9).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            *byte = word as u8;
        }
        Record { value: Some(value), ..Record::default() }
    };
    (0..count).map(record).collect()
}
