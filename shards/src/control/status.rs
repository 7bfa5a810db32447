//! What a shard says of itself when it is asked: partitions, their states and counters.

use std::sync::Arc;

use super::PartitionKey;

/// A shard's snapshot.
#[derive(Clone, Debug, Default)]
pub struct ShardStatus {
    /// Its partitions.
    pub partitions: Vec<PartitionStatus>,
    /// Its counters.
    pub stats: ShardStats,
    /// Open connections to the source, by link.
    pub connections: Vec<(Arc<str>, u32)>,
}

/// One partition's snapshot. Offsets are next offsets: one past the last record.
#[derive(Clone, Debug)]
pub struct PartitionStatus {
    /// Which.
    pub key: PartitionKey,
    /// Its state.
    pub state: PartitionState,
    /// Its log is there, and there is no room on the disk to open it: its positions are not known.
    pub unopened: bool,
    /// Why, when there is something to say.
    pub reason: Option<String>,
    /// When this state began, in milliseconds since the epoch.
    pub since_ms: i64,
    /// When it is tried again.
    pub retry_at_ms: Option<i64>,
    /// The first offset readers see.
    pub log_start: i64,
    /// In memory, checked.
    pub received: i64,
    /// Handed to the disk.
    pub written: i64,
    /// Safe from power loss.
    pub flushed: i64,
    /// Up to where the source's records are committed: it does not go back for a leader that says
    /// less for a moment.
    pub high_watermark: i64,
    /// The source's log start as last heard; `None`: not heard since start.
    pub source_start: Option<i64>,
    /// The source's high watermark as last heard; `None`: not heard since start.
    pub source_end: Option<i64>,
    /// Where the source's records end: its high watermark, or less when its log was found to end
    /// with a gap. What is not written below is the lag.
    pub source_records_end: Option<i64>,
    /// The latest time of which we know that we had all the source had then. The lag in seconds
    /// is now minus this; it grows while the source is away.
    pub caught_up_at_ms: Option<i64>,
    /// Record bytes received since start.
    pub bytes_received: u64,
    /// Offsets passed since start (gaps count as passed).
    pub records_received: u64,
    /// Who leads it at the source.
    pub leader: Option<i32>,
    /// That leader's epoch.
    pub leader_epoch: Option<i32>,
}

/// What a partition is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PartitionState {
    /// Its log is open; it has not been compared with the source yet.
    Starting,
    /// It follows the source.
    Active,
    /// Not fetched, by order.
    Paused,
    /// The source cannot be asked now; it will be again, at a known time.
    Retrying,
    /// The disk has no room. Nothing is fetched until it has.
    DiskFull,
    /// There is no memory for records. Nothing is fetched until there is.
    MemoryShort,
    /// A person has to decide.
    Faulted(FaultCode),
    /// Bytes that were safe on disk are not what they were.
    Corrupt,
    /// Failing over or failed over: never fetched again.
    Sealed,
}

impl PartitionState {
    /// The state's stable name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Starting => "STARTING",
            Self::Active => "ACTIVE",
            Self::Paused => "PAUSED",
            Self::Retrying => "RETRYING",
            Self::DiskFull => "DISK_FULL",
            Self::MemoryShort => "MEMORY_SHORT",
            Self::Faulted(_) => "FAULTED",
            Self::Corrupt => "CORRUPT",
            Self::Sealed => "SEALED",
        }
    }
}

/// Why a partition waits for a person.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaultCode {
    /// The topic was deleted and made anew under another id.
    TopicRecreated,
    /// The topic is gone at the source.
    TopicDeleted,
    /// The topic has fewer partitions than before.
    PartitionsDecreased,
    /// The source's log and ours hold different records at the same offsets.
    Diverged,
    /// The source's log starts beyond our end.
    SourceGap,
    /// A batch larger than the configured maximum.
    BatchTooLarge,
    /// A batch whose checksum is wrong, again and again.
    CorruptBatch,
    /// A batch whose header cannot be right, again and again.
    BadBatch,
    /// The source refuses us this topic.
    Denied,
    /// The source cannot read its own records.
    SourceDamaged,
    /// The local log cannot be used.
    LocalLog,
}

impl FaultCode {
    /// The code's stable name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::TopicRecreated => "topic_recreated",
            Self::TopicDeleted => "topic_deleted",
            Self::PartitionsDecreased => "partitions_decreased",
            Self::Diverged => "diverged",
            Self::SourceGap => "source_gap",
            Self::BatchTooLarge => "batch_too_large",
            Self::CorruptBatch => "corrupt_batch",
            Self::BadBatch => "bad_batch",
            Self::Denied => "denied",
            Self::SourceDamaged => "source_damaged",
            Self::LocalLog => "local_log",
        }
    }
}

/// A shard's counters since it started.
#[derive(Clone, Debug, Default)]
pub struct ShardStats {
    /// Record bytes received from sources.
    pub bytes_received: u64,
    /// Bytes written to logs.
    pub bytes_written: u64,
    /// Offsets passed.
    pub records: u64,
    /// Fetch requests answered.
    pub fetches: u64,
    /// File system flushes.
    pub flushes: u64,
    /// CPU time of the shard's thread, in nanoseconds.
    pub cpu_ns: u64,
    /// Time inside `io_uring_enter`, waiting included, in nanoseconds.
    pub enter_ns: u64,
    /// Of that, time when nothing was waited for.
    pub enter_busy_ns: u64,
    /// Calls of `io_uring_enter`.
    pub enters: u64,
    /// The memory budget in bytes.
    pub memory_budget: u64,
    /// Of that, lent out now.
    pub memory_used: u64,
    /// Of that, the most ever lent out.
    pub memory_peak: u64,
    /// Stored bytes read again, to be verified.
    pub bytes_verified: u64,
    /// When all that is stored was last verified; `None`: not since start.
    pub verified_at_ms: Option<i64>,
    /// Damaged ranges that verifying has found.
    pub damages_found: u64,
    /// Damaged ranges mended from the source.
    pub damages_repaired: u64,
    /// Errors by kind.
    pub errors: Vec<(&'static str, u64)>,
}
