//! What a topic of the source looks like: its name, its batches, how fast it grows.

use crate::payload::PayloadRing;
use crate::record_batch::{
    BatchFields, Random, Record, encode_batch, generated_batch, generated_batch_bytes_min,
    record_sizes,
};
use std::time::Duration;
use uuid::Uuid;

/// Most batches a topic prepares.
const RING_BATCHES_MAX: usize = 1 << 16;
/// Largest batch a topic may have, bytes.
const BATCH_BYTES_MAX: usize = 64 << 20;
/// Longest backlog of a partition, bytes; it is never held in memory.
const LOG_BYTES_MAX: u64 = 1 << 60;
/// Most memory a topic's prepared batches may take, bytes.
const RING_BYTES_MAX: usize = 1 << 30;

/// A topic, described so that the same description always gives the same bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct TopicSpec {
    /// The topic's name.
    pub name: String,
    /// Number of partitions.
    pub partitions: i32,
    /// What the batches hold.
    pub content: Content,
    /// What is there at the start, and what comes later.
    pub growth: Growth,
    /// How long after the source's start growth over time begins, ms.
    pub grows_after_ms: u64,
    /// Timestamps of the batches.
    pub timestamps: Timestamps,
    /// Offset of the first batch of every partition.
    pub first_offset: i64,
    /// Leader epoch at the start.
    pub leader_epoch: i32,
}

/// What a topic's batches hold.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// Random bytes: all batches have the same size and number of records.
    Generated {
        /// Everything is drawn from this number and the topic's name.
        seed: u64,
        /// Size of each batch with its header, bytes.
        batch_bytes: usize,
        /// Records in each batch.
        batch_records: usize,
        /// Memory for distinct batches, bytes; they repeat after that, under other offsets and
        /// timestamps. At least one batch is made.
        ring_bytes: usize,
    },
    /// The records of each batch, given; the batches repeat in this order.
    Records(Vec<Vec<Record>>),
    /// Nothing but what [`crate::Cluster::append_batches`] puts there.
    Given,
}

/// How a partition's log grows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Growth {
    /// Batches per partition that are there from the start.
    pub backlog_batches: u64,
    /// Bytes a second that each partition grows by afterwards, in whole batches evenly spaced.
    pub bytes_per_second: f64,
    /// Growth over time ends when a partition has had this many batches in all.
    pub batches_max: u64,
}

impl Growth {
    /// All there from the start, and no growth over time.
    pub fn backlog(batches: u64) -> Growth {
        Growth { backlog_batches: batches, bytes_per_second: 0.0, batches_max: u64::MAX }
    }

    /// Empty at the start, growing at a rate per partition.
    pub fn rate(bytes_per_second: f64) -> Growth {
        Growth { backlog_batches: 0, bytes_per_second, batches_max: u64::MAX }
    }

    /// As [`Growth::rate`], the rate of all partitions of a topic together.
    pub fn rate_in_all(bytes_per_second: f64, partitions: i32) -> Growth {
        Growth::rate(bytes_per_second / f64::from(partitions.max(1)))
    }

    /// Time between two batches of one partition.
    pub(crate) fn interval(&self, batch_bytes: u64) -> Option<Duration> {
        (self.bytes_per_second > 0.0).then(|| {
            let seconds = batch_bytes as f64 / self.bytes_per_second;
            Duration::from_secs_f64(seconds.clamp(1e-9, 1e9))
        })
    }
}

/// Timestamps of batches: those of one partition rise evenly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timestamps {
    /// Timestamp of the first batch, ms since 1970. Those of partition p are p mod 1000 ms later.
    pub base_ms: i64,
    /// Step from batch to batch, µs; 0 gives all the same.
    pub step_us: u64,
}

impl Timestamps {
    pub(crate) fn of(&self, ordinal: u64) -> i64 {
        self.base_ms.saturating_add((ordinal.saturating_mul(self.step_us) / 1000).cast_signed())
    }
}

impl Default for Timestamps {
    fn default() -> Self {
        Timestamps { base_ms: 1_700_000_000_000, step_us: 1000 }
    }
}

/// A description that no topic can be made from.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("topic {topic:?}: {reason}")]
pub struct TopicError {
    /// The topic's name.
    pub topic: String,
    /// What is wrong with its description.
    pub reason: String,
}

impl TopicSpec {
    /// A topic of generated batches of 64 KiB with 64 records each, 4 MiB of them distinct, and
    /// a backlog of so many batches per partition.
    pub fn new(name: impl Into<String>, partitions: i32, backlog_batches: u64) -> TopicSpec {
        TopicSpec {
            name: name.into(),
            partitions,
            content: Content::Generated {
                seed: 1,
                batch_bytes: 64 << 10,
                batch_records: 64,
                ring_bytes: 4 << 20,
            },
            growth: Growth::backlog(backlog_batches),
            grows_after_ms: 0,
            timestamps: Timestamps::default(),
            first_offset: 0,
            leader_epoch: 0,
        }
    }

    /// The same topic with other batches of generated content.
    pub fn with_batches(mut self, seed: u64, batch_bytes: usize, batch_records: usize) -> Self {
        let ring_bytes = match self.content {
            Content::Generated { ring_bytes, .. } => ring_bytes,
            Content::Records(_) | Content::Given => 4 << 20,
        };
        self.content = Content::Generated { seed, batch_bytes, batch_records, ring_bytes };
        self
    }

    /// The same topic with so much memory for distinct batches of generated content. Where topics
    /// are thousands, a few KiB each are wise.
    pub fn with_ring_bytes(mut self, bytes: usize) -> Self {
        if let Content::Generated { ring_bytes, .. } = &mut self.content {
            *ring_bytes = bytes;
        }
        self
    }

    /// The same topic growing otherwise.
    pub fn with_growth(mut self, growth: Growth) -> Self {
        self.growth = growth;
        self
    }

    /// The same topic, growing over time only from so long after the source's start.
    pub fn growing_after(mut self, ms: u64) -> Self {
        self.grows_after_ms = ms;
        self
    }

    /// The same topic with timestamps that go with its growth over time: the batch that time
    /// brings next is of `now_ms`, those of the backlog came before at the same rate. Without
    /// growth over time the backlog is one batch a millisecond.
    pub fn with_live_timestamps(mut self, now_ms: i64) -> Self {
        let batch_bytes = match &self.content {
            Content::Generated { batch_bytes, .. } => *batch_bytes as u64,
            Content::Records(_) | Content::Given => 1 << 10,
        };
        let interval = self.growth.interval(batch_bytes).unwrap_or(Duration::from_millis(1));
        let step_us = interval.as_micros().clamp(1, u128::from(u32::MAX)) as u64;
        let backlog_ms = self.growth.backlog_batches.saturating_mul(step_us) / 1000;
        let backlog_ms = i64::try_from(backlog_ms).unwrap_or(i64::MAX);
        let base_ms = now_ms.saturating_sub(backlog_ms).max(0);
        self.timestamps = Timestamps { base_ms, step_us };
        self
    }

    /// The topic id: derived from the name and from how many topics of that name came before.
    pub fn topic_id(name: &str, generation: u64) -> Uuid {
        let mut random = seeded(name, generation);
        let high = u128::from(random.next());
        uuid::Builder::from_random_bytes((high << 64 | u128::from(random.next())).to_be_bytes())
            .into_uuid()
    }

    /// Prepares the batches. `Given` topics have none.
    pub(crate) fn payload_ring(&self) -> Result<Option<PayloadRing>, TopicError> {
        self.check()?;
        let batches = match &self.content {
            Content::Given => return Ok(None),
            Content::Generated { seed, batch_bytes, batch_records, ring_bytes } => {
                let count = (ring_bytes / batch_bytes).clamp(1, RING_BATCHES_MAX);
                let mut seeds = seeded(&self.name, *seed);
                let seeds = std::iter::repeat_with(|| seeds.next());
                seeds
                    .take(count)
                    .filter_map(|seed| generated_batch(seed, *batch_records, *batch_bytes))
                    .collect()
            }
            Content::Records(batches) => {
                let fields = BatchFields::default();
                batches.iter().map(|records| encode_batch(records, &fields)).collect::<Vec<_>>()
            }
        };
        Ok(Some(PayloadRing::new(&batches)))
    }

    fn check(&self) -> Result<(), TopicError> {
        let wrong = |reason: String| Err(TopicError { topic: self.name.clone(), reason });
        if self.name.is_empty() || self.name.len() > 249 {
            return wrong("a name has 1 to 249 bytes".into());
        }
        if !(1..=1_000_000).contains(&self.partitions) {
            return wrong(format!("{} partitions; 1 to 1,000,000 are possible", self.partitions));
        }
        if self.first_offset < 0 || self.leader_epoch < 0 {
            return wrong("first offset and leader epoch are not negative".into());
        }
        if !self.growth.bytes_per_second.is_finite() || self.growth.bytes_per_second < 0.0 {
            return wrong("the rate is a number of bytes a second, 0 or above".into());
        }
        let batch_bytes_max = match &self.content {
            Content::Generated { batch_bytes, .. } => *batch_bytes,
            Content::Records(_) | Content::Given => BATCH_BYTES_MAX,
        };
        let backlog = self.growth.backlog_batches;
        if backlog.saturating_mul(batch_bytes_max as u64) > LOG_BYTES_MAX {
            return wrong(format!("a backlog of {backlog} batches is too long for a log"));
        }
        match &self.content {
            Content::Generated { batch_bytes, batch_records, ring_bytes, .. } => {
                let min = generated_batch_bytes_min((*batch_records).min(BATCH_BYTES_MAX));
                if *batch_records == 0 || *batch_bytes < min || *batch_bytes > BATCH_BYTES_MAX {
                    return wrong(format!(
                        "batches of {batch_bytes} bytes with {batch_records} records; \
                         {min} to {BATCH_BYTES_MAX} bytes are possible"
                    ));
                }
                if record_sizes(*batch_records, *batch_bytes).is_none() {
                    return wrong(format!(
                        "no batch of {batch_records} records has {batch_bytes} bytes; \
                         one byte more or less is possible"
                    ));
                }
                if *ring_bytes > RING_BYTES_MAX {
                    return wrong(format!("{ring_bytes} bytes of distinct batches are too many"));
                }
            }
            Content::Records(batches) => {
                if batches.is_empty() || batches.iter().any(Vec::is_empty) {
                    return wrong("at least one batch, and in each at least one record".into());
                }
                if batches.len() > RING_BATCHES_MAX {
                    return wrong(format!("{} batches are too many", batches.len()));
                }
            }
            Content::Given => {
                if self.growth != Growth::backlog(0) {
                    return wrong("a topic of given batches does not grow by itself".into());
                }
            }
        }
        Ok(())
    }
}

/// Numbers that belong to a name and a seed.
fn seeded(name: &str, seed: u64) -> Random {
    let mut random = Random(seed);
    for byte in name.bytes() {
        random.0 ^= u64::from(byte);
        random.0 = random.next();
    }
    random
}
