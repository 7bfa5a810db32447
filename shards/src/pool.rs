//! How many connections to one broker are worth having, and what belongs on them, sans-I/O.
//!
//! A connection carries at most a window of the transport per round trip, and idles for a round
//! trip between two answers: the next offset is unknown until the last batch has arrived. On a
//! long link only more connections help. How many, the link does not say: they are doubled for as
//! long as that brings more bytes, and what a doubling did not bring is taken back. Partitions at
//! their end share one connection; only those far behind get more, up to a limit, and never more
//! than there are such partitions.

use crate::limits::{FETCH_BYTES_FIRST, FETCH_BYTES_MAX, FETCH_BYTES_MIN};
use std::time::Duration;

/// What one interval showed of the backfill connections to a broker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interval {
    /// Partitions far behind.
    pub backfilling: usize,
    /// What arrived for them, in bytes.
    pub bytes: u64,
    /// Connections on which anything arrived.
    pub carrying: usize,
    /// The core had hardly any time left: more connections would not help it.
    pub busy: bool,
}

/// The number of backfill connections to one broker, and how it was found.
#[derive(Debug, Default)]
pub struct Pool {
    connections: usize,
    /// The last growth, until it is known what it brought.
    grown: Option<Grown>,
    /// By how much the next growth multiplies.
    factor: usize,
    /// Intervals that show nothing yet: sessions begin, windows open.
    settling: u32,
    /// Intervals before growing is tried again, and how many after the next try in vain.
    wait: u32,
    patience: u32,
}

#[derive(Debug)]
struct Grown {
    from: usize,
    bytes: u64,
}

/// Two connections fill each other's gaps on a short link.
const LEAST: usize = 2;
const SETTLING: u32 = 10;
const SETTLED: u32 = 1;
const PATIENCE_MIN: u32 = 20;
const PATIENCE_MAX: u32 = 600;

impl Pool {
    /// Connections worth having now.
    pub fn connections(&self) -> usize {
        self.connections
    }

    /// Considers one more interval; true when the number changed.
    pub fn consider(&mut self, seen: &Interval, connections_max: usize) -> bool {
        let most = seen.backfilling.min(connections_max.saturating_sub(1).max(1));
        let before = self.connections;
        if most == 0 {
            *self = Pool::default();
        } else if before == 0 || before > most {
            *self = Pool { patience: PATIENCE_MIN, factor: 2, ..Pool::default() };
            self.set(if before == 0 { most.min(LEAST) } else { most });
        } else if self.settling > 0 {
            // New connections get their partitions between two answers of the old ones. What they
            // bring shows when all of them carry something, which may never be.
            self.settling -= 1;
            if seen.carrying >= before {
                self.settling = self.settling.min(SETTLED);
            }
        } else {
            self.judge(seen);
            if self.wait > 0 {
                self.wait -= 1;
            } else if before < most && !seen.busy {
                self.grown = Some(Grown { from: before, bytes: seen.bytes });
                self.set((before * self.factor).min(most));
            }
        }
        self.connections != before
    }

    /// Whether the last growth was worth it: a tenth more is.
    fn judge(&mut self, seen: &Interval) {
        let Some(grown) = self.grown.take() else { return };
        if seen.bytes.saturating_mul(10) < grown.bytes.saturating_mul(11) {
            self.set(grown.from);
            self.wait = self.patience;
            self.patience = (self.patience * 2).min(PATIENCE_MAX);
            self.factor = 2;
            return;
        }
        self.patience = PATIENCE_MIN;
        // Twice the connections brought nearly twice the bytes: the end is far.
        let far = seen.bytes.saturating_mul(10) >= grown.bytes.saturating_mul(17);
        self.factor = if far { 4 } else { 2 };
    }

    fn set(&mut self, connections: usize) {
        self.connections = connections;
        self.settling = SETTLING;
    }
}

/// What so many records of this size are, in bytes.
pub fn missing_bytes(lag: i64, bytes_per_record: u64) -> u64 {
    u64::try_from(lag).unwrap_or(0).saturating_mul(bytes_per_record)
}

/// How much one fetch of a connection asks for: what arrives in the time an answer should take.
/// A short link soon gets the most there is; on a long one an answer stays short enough for
/// neighbours and for changes to come between.
#[derive(Debug)]
pub struct FetchSize {
    bytes: usize,
}

impl FetchSize {
    /// On a connection of which nothing is known.
    pub fn new() -> Self {
        Self { bytes: FETCH_BYTES_FIRST }
    }

    /// What to ask for next, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// An answer of `got` bytes to a request for `asked` took so long to arrive; it should take
    /// `target`.
    pub fn answered(&mut self, asked: usize, got: u64, spent: Duration, target: Duration) {
        let full = got.saturating_mul(8) >= asked as u64 * 7;
        if spent > target {
            self.bytes = (self.bytes / 2).max(FETCH_BYTES_MIN);
        } else if full && spent < target / 3 {
            self.bytes = (self.bytes * 2).min(FETCH_BYTES_MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A link on which every connection carries `each` bytes an interval, and all `most`.
    fn settle(pool: &mut Pool, each: u64, most: u64, intervals: u32, max: usize) {
        for _ in 0..intervals {
            let bytes = (pool.connections() as u64 * each).min(most);
            let carrying = pool.connections();
            pool.consider(&Interval { backfilling: 1000, bytes, carrying, busy: false }, max);
        }
    }

    #[test]
    fn no_partition_behind_needs_no_connection() {
        let mut pool = Pool::default();
        settle(&mut pool, 1, 100, 10, 16);
        pool.consider(&Interval::default(), 16);
        assert_eq!(pool.connections(), 0);
    }

    #[test]
    fn a_short_link_stays_at_two_most_of_the_time() {
        let mut pool = Pool::default();
        let mut at_two = 0;
        for _ in 0..1000 {
            settle(&mut pool, 100, 100, 1, 16);
            at_two += u32::from(pool.connections() == 2);
        }
        assert!(at_two > 960, "{at_two}");
    }

    #[test]
    fn a_long_link_is_filled_within_seconds() {
        let mut pool = Pool::default();
        settle(&mut pool, 1, 122, 16, 256);
        assert!(pool.connections() >= 122, "{}", pool.connections());
        let mut pool = Pool::default();
        settle(&mut pool, 1, 1_000_000, 16, 16);
        assert_eq!(pool.connections(), 15);
    }

    #[test]
    fn new_connections_are_judged_when_they_carry_something() {
        let mut pool = Pool::default();
        let mut carrying = 0;
        for round in 0..40 {
            // It takes three intervals until a new connection has its partitions.
            if round % 4 == 3 {
                carrying = pool.connections();
            }
            let bytes = carrying as u64 * 10;
            pool.consider(&Interval { backfilling: 100, bytes, carrying, busy: false }, 65);
        }
        assert_eq!(pool.connections(), 64);
    }

    #[test]
    fn a_busy_core_is_left_alone() {
        let mut pool = Pool::default();
        for _ in 0..100 {
            pool.consider(&Interval { backfilling: 100, bytes: 1, carrying: 2, busy: true }, 16);
        }
        assert_eq!(pool.connections(), 2);
    }

    #[test]
    fn answers_take_about_as_long_as_they_should() {
        let target = Duration::from_millis(1000);
        for rate in [1 << 20, 10 << 20, 1 << 30u64] {
            let mut size = FetchSize::new();
            for _ in 0..20 {
                let spent = Duration::from_secs_f64(size.bytes() as f64 / rate as f64);
                size.answered(size.bytes(), size.bytes() as u64, spent, target);
            }
            let fits = rate as usize;
            let least = (fits / 4).min(FETCH_BYTES_MAX);
            assert!((least..=fits.max(FETCH_BYTES_MIN)).contains(&size.bytes()), "{rate}");
        }
    }

    #[test]
    fn an_answer_that_brings_little_asks_for_no_more() {
        let mut size = FetchSize::new();
        size.answered(FETCH_BYTES_FIRST, 10, Duration::ZERO, Duration::from_secs(1));
        assert_eq!(size.bytes(), FETCH_BYTES_FIRST);
    }

    #[test]
    fn far_behind_is_a_matter_of_bytes() {
        assert_eq!(missing_bytes(-1, u64::MAX), 0);
        assert_eq!(missing_bytes(1000, 1000), 1_000_000);
        assert_eq!(missing_bytes(i64::MAX, u64::MAX), u64::MAX);
    }

    proptest! {
        #[test]
        fn never_more_than_allowed_and_always_one(
            seen in prop::collection::vec((1usize..50, 0u64..1000, any::<bool>()), 1..200),
            max in 0usize..40,
        ) {
            let mut pool = Pool::default();
            for (backfilling, bytes, busy) in seen {
                let carrying = bytes as usize % 7;
                pool.consider(&Interval { backfilling, bytes, carrying, busy }, max);
                let most = backfilling.min(max.saturating_sub(1).max(1));
                prop_assert!((1..=most).contains(&pool.connections()));
            }
        }
    }
}
