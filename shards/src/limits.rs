//! Every bound of this crate, in one place.

use std::time::Duration;

/// Logs opened, closed or deleted at once, when a command names many.
pub const LOGS_AT_ONCE: usize = 32;
/// Partitions compared with the source by one request.
pub const CHECKS_PER_REQUEST: usize = 512;
/// How long a source may hold a fetch that finds nothing new, in milliseconds.
pub const FETCH_WAIT_MS: i32 = 500;
/// How much one fetch may bring, in bytes: bounds what a connection holds in memory.
pub const FETCH_BYTES_MAX: usize = 16 << 20;
/// How much one fetch brings at least, when memory is short or the link slow.
pub const FETCH_BYTES_MIN: usize = 256 << 10;
/// How much the first fetch of a connection may bring, before anything is known of the link: on a
/// long one more would take seconds, in which no partition can go to another connection.
pub const FETCH_BYTES_FIRST: usize = FETCH_BYTES_MIN;
/// How much one fetch may bring of one partition, in bytes.
pub const PARTITION_BYTES_MAX: i32 = 1 << 20;
/// The same on a backfill connection of few partitions: with less of each, answers would be small
/// and many, and each costs the source as much as some hundred KiB do.
pub const PARTITION_BYTES_OF_FEW_MAX: i32 = 4 << 20;
/// How long a connection attempt may take.
pub const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// How long a request may take beyond the time it asked the source to wait.
pub const REQUEST_LIMIT: Duration = Duration::from_secs(30);
/// How long a pause is when no partition of a connection can be asked for now.
pub const IDLE_PAUSE: Duration = Duration::from_millis(20);
/// An answer without any records that took so long was held by the source, which looked for some.
pub const HELD_ANSWER_MIN: Duration = Duration::from_millis(FETCH_WAIT_MS as u64 / 2);
/// A partition below the source's end that so many answers in a row passed over, though there was
/// room in them, has no more records there: brokers serve those first that had to wait.
pub const PASSED_OVER_MAX: u32 = 16;
/// A connection that has waited so long for memory says so.
pub const STARVED_AFTER: Duration = Duration::from_secs(2);
/// A source that says for so long that less is committed than it once said, is followed: twice the
/// time a new leader may need to hear of its followers (replica.lag.time.max.ms).
pub const HIGH_WATERMARK_PATIENCE: Duration = Duration::from_secs(60);
/// How long whoever assigns partitions waits at most for their logs; control waits 600 s.
pub const OPENING_LIMIT: Duration = Duration::from_secs(590);
/// How soon a log that is being opened is looked at again by who wants it closed or deleted.
pub const OPENING_LOOK: Duration = Duration::from_millis(5);
/// Same-kind failures of one partition in a row before a person is asked.
pub const BAD_BATCHES_MAX: u32 = 5;
/// How often the pool of connections is reconsidered.
pub const POOL_INTERVAL: Duration = Duration::from_millis(500);
/// A connection on which less than this has arrived may have brought no records yet.
pub const CARRYING_BYTES: u64 = 16 << 10;
/// A partition so many bytes behind is backfill.
pub const BACKFILL_BYTES: u64 = 8 << 20;
/// When all partitions on the tail connection to a broker together lack so much, they are backfill,
/// too, although none of them is far behind by itself.
pub const BACKLOG_BYTES: u64 = 4 * BACKFILL_BYTES;
/// Those of them, that is, that lack so much.
pub const BACKLOG_SHARE_BYTES_MIN: u64 = 16 << 10;
/// How long an answer to the tail connection should take to arrive: its partitions wait for one
/// another.
pub const TAIL_ANSWER_TARGET: Duration = Duration::from_millis(500);
/// How long one to a backfill connection should.
pub const BACKFILL_ANSWER_TARGET: Duration = Duration::from_secs(2);
/// Under a rate limit an answer brings no more than the limit allows in this time.
pub const RATE_ANSWER_TIME: Duration = Duration::from_millis(500);
/// A source that is asked by topic name and was not asked for so long, for want of rate or memory,
/// may have other topics of these names by now: no request was there to be refused.
pub const OUT_OF_TOUCH_AFTER: Duration = Duration::from_secs(5);
/// Commands waiting for a shard.
pub const COMMANDS_WAITING_MAX: usize = 256;
/// Memory lent for records that are only compared, in bytes.
pub const COMPARE_LEASE_BYTES: usize = 64 << 10;
/// The part of the arena that fetches may reserve; the rest holds idle tails and bounce blocks.
pub const RESERVABLE_PERCENT: usize = 75;
/// How often waiting partitions are looked at.
pub const MAINTENANCE_INTERVAL: Duration = Duration::from_millis(100);
/// The least from one request of a tail connection to the next, while its answers are small: asked
/// for one by one, batches cost both sides more than their records do.
pub const TAIL_INTERVAL: Duration = Duration::from_micros(500);
/// An answer so large needs no such pause, whatever was asked for.
pub const LARGE_ANSWER_BYTES: u64 = 512 << 10;
/// An answer without progress that took longer than this was held by the source, as it should.
pub const FRUITLESS_ANSWER_MAX: Duration = Duration::from_millis(50);
/// So many answers at once without progress cost nothing: partitions come and go, high watermarks
/// move.
pub const FRUITLESS_ANSWERS_FREE: u32 = 16;
/// Each further one costs a pause longer by this.
pub const FRUITLESS_PAUSE: Duration = Duration::from_millis(2);
/// The longest of these pauses.
pub const FRUITLESS_PAUSE_MAX: Duration = Duration::from_millis(250);
/// How soon a log that was opened again is read.
pub const REOPENED_LOOK: Duration = Duration::from_secs(1);
/// Answers without a record of a damaged range, before the source counts as not having it.
pub const EMPTY_REPAIR_ANSWERS_MAX: u32 = 3;
/// Rounds of looking for damage and mending it within one try.
pub const REPAIR_ROUNDS_MAX: usize = 64;
/// So much is asked for to see whether a source has anything at an offset.
pub const HEARD_BYTES_MAX: usize = 64 << 10;
/// How long a failover waits for room on a full disk, before it ends with what could be written.
pub const FULL_DISK_PATIENCE: Duration = Duration::from_secs(10);
/// How long a failover waits for a partition's disk at all: less than control waits for the shard,
/// so that one disk that hangs keeps no partition on another from failing over.
pub const SEAL_PATIENCE: Duration = Duration::from_secs(25);
