//! What control and the shards say to each other: commands one way, events and snapshots back.
//!
//! Plain data over bounded channels. A command is idempotent; its reply may be dropped. The control
//! thread owns what is decided (which partition lives where, in which mode); a shard owns what is
//! observed (positions, states of partitions, counters).

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use uuid::Uuid;

/// One partition of one link.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PartitionKey {
    /// Link name.
    pub link: Arc<str>,
    /// Topic name.
    pub topic: Arc<str>,
    /// Partition number.
    pub partition: i32,
}

/// To a shard.
#[derive(Debug)]
pub enum Command {
    /// A link's settings; before its first `Assign`, and again when a reload changes them.
    Link {
        /// Link name.
        link: Arc<str>,
        /// Its settings.
        settings: LinkSettings,
    },
    /// Open or create logs here. The reply comes when they are open, one result per partition.
    Assign {
        /// The partitions.
        partitions: Vec<Assign>,
        /// In the order asked.
        reply: oneshot::Sender<Vec<Result<(), String>>>,
    },
    /// Who leads what; the full picture for a link.
    Leaders {
        /// Link name.
        link: Arc<str>,
        /// The cluster.
        view: Arc<ClusterView>,
    },
    /// Stop fetching these topics (`None` = close the link's gate). The reply comes when nothing is
    /// in flight and, for a whole link, every socket to the source is closed.
    Pause {
        /// Link name.
        link: Arc<str>,
        /// Which topics.
        topics: Option<Vec<Arc<str>>>,
        /// Done.
        reply: oneshot::Sender<()>,
    },
    /// Undo `Pause` of the same scope, or `Hold` of a topic. Opening the link's gate leaves topics
    /// that are paused for themselves paused.
    Resume {
        /// Link name.
        link: Arc<str>,
        /// Which topics.
        topics: Option<Vec<Arc<str>>>,
    },
    /// Stop fetching for good and flush. Works with the source dead and the link paused.
    Seal {
        /// Link name.
        link: Arc<str>,
        /// Which topics.
        topics: Vec<Arc<str>>,
        /// What is flushed, per partition.
        reply: oneshot::Sender<Vec<Sealed>>,
    },
    /// A condition control has seen: stop fetching and show it.
    Hold {
        /// Link name.
        link: Arc<str>,
        /// The topic.
        topic: Arc<str>,
        /// Stable code.
        code: String,
        /// For people.
        reason: String,
    },
    /// Close the log and forget the partition; with `files`, remove its folder too.
    Release {
        /// The partitions.
        partitions: Vec<PartitionKey>,
        /// Whether the folder goes.
        files: bool,
        /// In the order asked.
        reply: oneshot::Sender<Vec<Result<(), String>>>,
    },
    /// A snapshot for status and metrics.
    Status {
        /// One link, or all.
        link: Option<Arc<str>>,
        /// The snapshot.
        reply: oneshot::Sender<ShardStatus>,
    },
    /// Clean stop: sockets closed, logs flushed, sealed and cut; the thread ends.
    Stop {
        /// Done.
        reply: oneshot::Sender<()>,
    },
}

/// A link's settings as shards need them.
#[derive(Clone, Debug, PartialEq)]
pub struct LinkSettings {
    /// Where a partition without a copy starts.
    pub start: crate::config::Start,
    /// Bytes per second for this shard.
    pub rate_limit: Option<u64>,
    /// Connections for records, this shard's share.
    pub connections_max: u32,
    /// Whether a diverged copy may be cut back.
    pub allow_truncation: bool,
    /// What to do when the source starts beyond our end.
    pub on_source_gap: crate::config::OnSourceGap,
    /// How long records deleted at the source stay.
    pub undo_window: Duration,
    /// Largest batch accepted.
    pub batch_bytes_max: u32,
    /// What the source calls us.
    pub client_id: String,
}

/// One partition to open.
#[derive(Clone, Debug, PartialEq)]
pub struct Assign {
    /// Which.
    pub key: PartitionKey,
    /// The source's id of the topic; sources before 2.8 have none.
    pub topic_id: Option<Uuid>,
    /// The data folder it lives in.
    pub data_dir: PathBuf,
    /// What to do with it.
    pub mode: Mode,
}

/// What a shard does with a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Copy it.
    Replicate,
    /// Open, do not fetch.
    Paused,
    /// Open, flush, never fetch.
    Sealed,
    /// Open, do not fetch, show this.
    Held {
        /// Stable code.
        code: String,
        /// For people.
        reason: String,
    },
}

/// The source cluster as control last saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterView {
    /// Brokers, by id.
    pub brokers: Vec<BrokerView>,
    /// The link's topics.
    pub topics: Vec<TopicView>,
}

/// One broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerView {
    /// Its id.
    pub id: i32,
    /// Its advertised name.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// The name resolved; empty when it does not resolve.
    pub addresses: Vec<SocketAddr>,
}

/// One topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicView {
    /// Its name.
    pub topic: Arc<str>,
    /// Its id.
    pub topic_id: Option<Uuid>,
    /// Its partitions.
    pub partitions: Vec<PartitionView>,
}

/// One partition's leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionView {
    /// Partition number.
    pub partition: i32,
    /// Broker id; `None` while there is no leader.
    pub leader: Option<i32>,
    /// Leader epoch; -1 unknown.
    pub leader_epoch: i32,
}

/// Where a sealed partition ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// Which.
    pub key: PartitionKey,
    /// Next offset after what is flushed.
    pub end_offset: i64,
    /// Epoch of the last record.
    pub last_epoch: Option<i32>,
    /// The flush failed; `end_offset` is what had been flushed before.
    pub error: Option<String>,
}

/// From a shard, unasked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// What we know of the cluster no longer holds.
    MetadataStale {
        /// Link name.
        link: Arc<str>,
    },
    /// The source deleted records before we had them.
    SourceGap {
        /// Which partition.
        key: PartitionKey,
        /// First lost offset.
        lost_from: i64,
        /// First offset that is not lost.
        lost_to: i64,
    },
    /// A partition stopped.
    Fault {
        /// Which partition.
        key: PartitionKey,
        /// Stable code.
        code: String,
        /// For people.
        reason: String,
    },
    /// A shard died.
    Died {
        /// Which shard.
        shard: u16,
        /// Why.
        reason: String,
    },
}

/// A shard's snapshot.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ShardStatus {
    /// Its partitions.
    pub partitions: Vec<PartitionStatus>,
    /// Its counters.
    pub stats: ShardStats,
    /// Sockets open to each link's source.
    pub connections: Vec<(Arc<str>, u32)>,
}

/// A partition as its shard sees it. Positions are next offsets.
#[derive(Clone, Debug, PartialEq)]
pub struct PartitionStatus {
    /// Which.
    pub key: PartitionKey,
    /// Its state.
    pub state: PartitionState,
    /// Stable code of the trouble.
    pub code: Option<String>,
    /// For people.
    pub reason: Option<String>,
    /// When this state began, wall clock.
    pub since_ms: i64,
    /// When it is tried again, wall clock.
    pub retry_at_ms: Option<i64>,
    /// First offset of the copy.
    pub log_start: i64,
    /// Received and checked.
    pub received: i64,
    /// Written to the file system.
    pub written: i64,
    /// Durable.
    pub flushed: i64,
    /// The source's high watermark when last heard.
    pub source_end: Option<i64>,
    /// Latest time for which we know that the copy had all of the source.
    pub caught_up_at_ms: Option<i64>,
    /// Record bytes since the shard started.
    pub bytes_received: u64,
    /// Broker it is fetched from.
    pub leader: Option<i32>,
}

/// A partition's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PartitionState {
    /// Its log is being opened or compared with the source.
    Starting,
    /// Copied.
    Active,
    /// Stopped by a person.
    Paused,
    /// In trouble; tried again at a known time.
    Retrying,
    /// The disk has no room.
    DiskFull,
    /// Waits for a person.
    Faulted,
    /// Durable bytes are damaged.
    Corrupt,
    /// Never fetched again.
    Sealed,
}

impl PartitionState {
    /// Every state, for metrics.
    pub const ALL: [PartitionState; 8] = [
        PartitionState::Starting,
        PartitionState::Active,
        PartitionState::Paused,
        PartitionState::Retrying,
        PartitionState::DiskFull,
        PartitionState::Faulted,
        PartitionState::Corrupt,
        PartitionState::Sealed,
    ];

    /// The state as it is shown.
    pub fn name(self) -> &'static str {
        match self {
            PartitionState::Starting => "STARTING",
            PartitionState::Active => "ACTIVE",
            PartitionState::Paused => "PAUSED",
            PartitionState::Retrying => "RETRYING",
            PartitionState::DiskFull => "DISK_FULL",
            PartitionState::Faulted => "FAULTED",
            PartitionState::Corrupt => "CORRUPT",
            PartitionState::Sealed => "SEALED",
        }
    }
}

/// A shard's counters since its start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShardStats {
    /// Record bytes received.
    pub bytes_received: u64,
    /// Bytes written to data files.
    pub bytes_written: u64,
    /// Records received, counted by offsets.
    pub records: u64,
    /// Fetch responses.
    pub fetches: u64,
    /// Flushes.
    pub flushes: u64,
    /// CPU time of the shard's thread.
    pub cpu_ns: u64,
    /// Time inside io_uring_enter.
    pub enter_ns: u64,
    /// Memory it may use.
    pub memory_budget: u64,
    /// Memory it uses.
    pub memory_used: u64,
    /// The most it has used.
    pub memory_peak: u64,
    /// Errors by kind.
    pub errors: Vec<(&'static str, u64)>,
}
