//! What the control thread and a shard say to each other: plain data that moves between threads.
//!
//! Every command is idempotent, and none waits behind a slow source. A reply whose receiver is gone
//! is dropped.

mod cluster;
mod status;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use storage::boot::Boot;
use tokio::sync::oneshot;
use uuid::Uuid;

pub use cluster::{Broker, ClusterView, PartitionView, TopicView};
pub use status::{FaultCode, PartitionState, PartitionStatus, ShardStats, ShardStatus};

/// How a shard is made.
#[derive(Clone, Debug)]
pub struct ShardConfig {
    /// Which shard this is, from 0.
    pub index: u16,
    /// The shard's part of the memory budget, in bytes.
    pub memory_bytes: usize,
    /// The locked data directories and what was found in them.
    pub boot: Boot,
    /// The longest a written byte waits for a flush.
    pub flush_interval: Duration,
    /// How we name ourselves to a source.
    pub client_id: String,
    /// Processors the kernel's helpers may use; empty: any.
    pub helper_cores: Vec<usize>,
    /// How long a clean stop may take.
    pub stop_limit: Duration,
}

/// Names a partition everywhere.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PartitionKey {
    /// The link it belongs to.
    pub link: Arc<str>,
    /// Its topic.
    pub topic: Arc<str>,
    /// Its number.
    pub partition: i32,
}

impl fmt::Display for PartitionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}-{}", self.link, self.topic, self.partition)
    }
}

/// What control asks of a shard.
#[derive(Debug)]
pub enum Command {
    /// A link's settings: before its first [`Command::Assign`], and when a reload changed them.
    Link {
        /// Which link.
        link: Arc<str>,
        /// Its settings.
        settings: LinkSettings,
    },
    /// Open or create logs and, unless told otherwise, replicate. Answered when the logs are open.
    Assign {
        /// Which.
        partitions: Vec<Assign>,
        /// One answer each, in order.
        reply: oneshot::Sender<Vec<Result<(), Refused>>>,
    },
    /// Who leads what and where the brokers are, for all partitions of the link.
    Leaders {
        /// Which link.
        link: Arc<str>,
        /// The whole picture.
        view: Arc<ClusterView>,
    },
    /// Stop fetching, at once: a later [`Command::Resume`] undoes it, whether or not this was
    /// answered. Answered when nothing more will be appended and, for a whole link, every socket
    /// to the source that was open is closed.
    Pause {
        /// Which link.
        link: Arc<str>,
        /// Which topics; `None`: the whole link.
        topics: Option<Vec<Arc<str>>>,
        /// Done.
        reply: oneshot::Sender<()>,
    },
    /// Fetch again; faulted partitions try anew. Named topics are also freed of a
    /// [`Command::Hold`] and of a pause of their own.
    Resume {
        /// Which link.
        link: Arc<str>,
        /// Which topics; `None`: the link, and every topic not paused by itself.
        topics: Option<Vec<Arc<str>>>,
    },
    /// The barrier of a failover: stop fetching for good and flush. Works with the source dead.
    Seal {
        /// Which link.
        link: Arc<str>,
        /// Which topics.
        topics: Vec<Arc<str>>,
        /// What is flushed, for each partition this shard owns of them.
        reply: oneshot::Sender<Vec<Sealed>>,
    },
    /// What control saw of a whole topic (deleted, recreated, fewer partitions): stop fetching and
    /// show this.
    Hold {
        /// Which link.
        link: Arc<str>,
        /// Which topic.
        topic: Arc<str>,
        /// The state to show.
        state: PartitionState,
        /// Why.
        reason: String,
    },
    /// Flush, seal and close; the files stay.
    Release {
        /// Which.
        partitions: Vec<PartitionKey>,
        /// Done.
        reply: oneshot::Sender<()>,
    },
    /// As [`Command::Release`], and the folder goes.
    Delete {
        /// Which.
        partitions: Vec<PartitionKey>,
        /// One answer each, in order.
        reply: oneshot::Sender<Vec<Result<(), Refused>>>,
    },
    /// A snapshot for status and metrics.
    Status {
        /// Which link; `None`: all.
        link: Option<Arc<str>>,
        /// The snapshot.
        reply: oneshot::Sender<ShardStatus>,
    },
    /// Read stored bytes again, in the background, and repair what has changed. Replaces what was
    /// said before; begins anew.
    Verify(VerifySettings),
    /// Close sockets, flush, seal and cut live segments, end the thread.
    Stop {
        /// Done.
        reply: oneshot::Sender<()>,
    },
}

/// How stored bytes are verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerifySettings {
    /// How many bytes per second a shard reads for it at most; 0: as fast as it can.
    pub bytes_per_second: u64,
    /// When the first pass begins.
    pub first_after: Duration,
    /// How long it rests after a pass.
    pub every: Duration,
}

/// How a link is replicated, as far as shards need to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkSettings {
    /// Where a new partition begins.
    pub start: Start,
    /// Bytes per second for this shard; `None`: unlimited.
    pub rate_limit: Option<u64>,
    /// The same for partitions that are far behind, in addition.
    pub backfill_rate_limit: Option<u64>,
    /// Connections to one broker at most.
    pub connections_max: u32,
    /// Whether records the source lost may be cut off here too.
    pub allow_truncation: bool,
    /// What to do when the source's log starts beyond our end.
    pub on_source_gap: OnSourceGap,
    /// How long files below the log start are kept.
    pub undo_window: Duration,
    /// The largest batch taken, in bytes.
    pub batch_bytes_max: u32,
}

/// Where a new partition begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// At the source's log start.
    Earliest,
    /// At the source's end.
    Latest,
    /// At the first record of this time or later (milliseconds since the epoch); if there is
    /// none, at the source's end.
    TimestampMs(i64),
}

/// What to do when the source's log starts beyond our end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnSourceGap {
    /// Report the lost range and go on behind it.
    Continue,
    /// Wait for a person.
    Fault,
}

/// One partition to own.
#[derive(Clone, Debug)]
pub struct Assign {
    /// Which.
    pub key: PartitionKey,
    /// The topic's id at the source; `None` when the source has none.
    pub topic_id: Option<Uuid>,
    /// The data directory its folder is in, or is to be created in.
    pub data_dir: PathBuf,
    /// What to do with it.
    pub mode: Mode,
    /// Roll a segment at this size, in bytes.
    pub segment_bytes: u32,
    /// Roll a segment at this age, in milliseconds.
    pub segment_ms: i64,
}

/// What to do with a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Follow the source.
    Replicate,
    /// Open, but not fetched.
    Paused,
    /// Failing over or failed over: open, never fetched again.
    Sealed,
    /// Held by control, see [`Command::Hold`].
    Held {
        /// The state to show.
        state: PartitionState,
        /// Why.
        reason: String,
    },
}

/// Why a command was refused for one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// In words.
    pub reason: String,
}

/// Where a sealed partition ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// Which.
    pub key: PartitionKey,
    /// The next offset after what is flushed; `None`: nothing ever came, or its log cannot be
    /// used and nothing is known of it.
    pub end_offset: Option<i64>,
    /// The epoch of its last batch.
    pub last_epoch: Option<i32>,
    /// Why the flush failed, if it did.
    pub error: Option<String>,
    /// It may still be flushed: its disk takes longer than anybody can wait.
    pub hung: bool,
}

/// What a shard tells control unasked. The channel is bounded; what does not fit is said again
/// later or is in the status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The picture of the cluster is old.
    MetadataStale {
        /// Of which link.
        link: Arc<str>,
    },
    /// The source no longer has records that we never got.
    SourceGap {
        /// Where.
        key: PartitionKey,
        /// The first lost offset.
        lost_from: i64,
        /// One past the last lost offset.
        lost_to: i64,
    },
    /// A partition waits for a person.
    Fault {
        /// Which.
        key: PartitionKey,
        /// Its stable code.
        code: FaultCode,
        /// In words.
        reason: String,
    },
    /// Stored bytes are not what they were.
    Damaged {
        /// Where.
        key: PartitionKey,
        /// The first damaged offset.
        from: i64,
        /// One past the last damaged offset.
        to: i64,
        /// What was seen.
        reason: String,
    },
    /// A damaged range was fetched again and is whole.
    Repaired {
        /// Where.
        key: PartitionKey,
        /// The first offset.
        from: i64,
        /// One past the last offset.
        to: i64,
    },
    /// Records the source had lost were cut off here too.
    Truncated {
        /// Where.
        key: PartitionKey,
        /// The first offset cut off.
        from: i64,
        /// One past the last offset cut off.
        to: i64,
    },
}
