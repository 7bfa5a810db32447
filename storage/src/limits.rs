//! Every bound of this crate, in one place.

use std::time::Duration;

/// Kafka writes an index entry when more than this many bytes passed since the last one.
pub const INDEX_INTERVAL_BYTES: u64 = 4096;
/// Kafka's default for an index file's size: a segment rolls before it would grow beyond.
pub const INDEX_BYTES_MAX: usize = 10 << 20;
/// The largest segment: positions must fit the index's 32 bits with room for one more batch.
pub const SEGMENT_BYTES_MAX: u64 = 1 << 30;
/// The largest batch any setting may allow.
pub const BATCH_BYTES_MAX: u32 = 512 << 20;

/// Bytes ready that make a write go out at once.
pub const WRITE_BYTES_TRIGGER: u64 = 64 << 10;
/// The longest a ready byte waits for company.
pub const WRITE_DELAY_US: u64 = 1000;
/// The most one write operation carries.
pub const WRITE_BYTES_MAX: u64 = 1 << 20;
/// Pieces in one write operation.
pub const WRITE_PIECES_MAX: usize = 32;
/// Writes in flight per data directory, of one shard. Below common `nr_requests`: beyond it
/// submission blocks.
pub const WRITES_IN_FLIGHT_MAX: usize = 32;
/// Writes in flight per partition.
pub const WRITES_PER_LOG_MAX: usize = 8;

/// Bytes on their way to a data directory's device, of one shard, before more are received: what a
/// fast device has finished within 7 ms. Beyond, memory comes back too cold from it: with 32 MiB
/// and more each byte took a fifth more of a processor's time (benches/RESULTS.md, 1b57deb).
pub const AHEAD_BYTES_MAX: u64 = 16 << 20;
/// A device that has finished no write for so long is not waited for.
pub const STANDSTILL: Duration = Duration::from_millis(5);

/// The smallest append buffer.
pub const CHUNK_BYTES_MIN: usize = 4096;
/// The largest append buffer: as much as one fetch brings of one partition, so that it is one
/// receive and one write.
pub const CHUNK_BYTES_MAX: usize = 1 << 20;

/// The first step of prepared space: what an idle partition takes on disk.
pub const SPACE_BYTES_MIN: u64 = 16 << 10;
/// The largest step of prepared space.
pub const SPACE_BYTES_MAX: u64 = 32 << 20;

/// A segment that has grown so far gets its successor's file prepared.
pub const PREPARE_AHEAD_BYTES: u64 = 64 << 20;

/// Index entries of a log held in memory before they are saved (8 + 12 bytes each): a save costs
/// some system calls on other threads, so with few logs it is left to `SAVE_BYTES`.
pub const INDEX_ENTRIES_PENDING: usize = 8192;
/// The same of all logs of a volume: where they are many, each may hold less.
pub const INDEX_ENTRIES_IN_ALL: usize = 512 << 10;
/// But no less than this, or saving them would cost more than what is saved.
pub const INDEX_ENTRIES_PENDING_MIN: usize = 32;
/// Appended bytes after which the side files are saved again, which bounds what a recovery reads.
pub const SAVE_BYTES: u64 = 64 << 20;

/// Logs closed at once when a store is.
pub const CLOSES_AT_ONCE: usize = 32;
/// Background workers per data directory.
pub const BACKGROUND_WORKERS: usize = 4;
/// A seal keeps one checksum for so many bytes.
pub const SEAL_STRIDE_BYTES: u64 = 1 << 20;
/// A recovery reads in pieces of this size: from here on a device does not get faster.
pub const SCAN_BYTES: usize = 1 << 20;
/// Pieces of one file on their way at once.
pub const READS_AHEAD: usize = 2;
/// Stored bytes are read again, to be verified, in pieces of this size.
pub const VERIFY_BYTES: usize = 256 << 10;
/// How long verifying waits while memory is short or the disk is busy.
pub const VERIFY_BUSY_PAUSE: Duration = Duration::from_millis(50);
/// It goes on after so many pauses: a disk that is always busy is verified, too.
pub const VERIFY_BUSY_PAUSES_MAX: usize = 100;
/// Small control files above this size are not believed.
pub const CONTROL_FILE_BYTES_MAX: usize = 64 << 20;
/// Producers that sent nothing for this long are forgotten, as Kafka does by default.
pub const PRODUCER_IDLE_MS: i64 = 24 * 60 * 60 * 1000;
/// Kept free on disk beside the logs, so that a failover can be recorded on a full disk.
pub const RESERVE_FILE_BYTES: u64 = 16 << 20;
