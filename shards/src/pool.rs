//! How many connections to one broker are worth having, and what belongs on them, sans-I/O.
//!
//! A connection carries at most a window of the transport per round trip, and idles for a round
//! trip between two answers: the next offset is unknown until the last batch has arrived. On a
//! long link only more connections help. How many, the link does not say: they are doubled for as
//! long as that brings more bytes. Once it brings fewer than there are connections for, the wire
//! is full: more of them only wait for one another, so only as many stay as those bytes need. A
//! number that was found is tried anew now and then, from below and from above: what fewer
//! connections carry as well, fewer carry. Partitions at their end share one connection; only
//! those far behind get more, up to a limit, and never more than there are such partitions.

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
    /// Another number is being tried.
    trial: Option<Trial>,
    /// The next trial is of fewer connections.
    down: bool,
    /// By how much the next growth multiplies.
    factor: usize,
    /// What arrived since the connections settled.
    rate: Rate,
    /// Intervals that show nothing yet: sessions begin, windows open.
    settling: u32,
    /// Intervals before another number is tried, and how many after the next try in vain.
    wait: u32,
    patience: u32,
}

/// Where a trial came from: so many connections brought so much per interval.
#[derive(Clone, Copy, Debug)]
struct Trial {
    from: usize,
    bytes: u64,
}

/// The mean of the last few intervals. Answers are large and long under way: a single interval
/// shows now more of them, now fewer.
#[derive(Debug, Default)]
struct Rate {
    last: [u64; JUDGED],
    intervals: usize,
}

/// Two connections fill each other's gaps on a short link.
const LEAST: usize = 2;
const SETTLING: u32 = 10;
const SETTLED: u32 = 1;
/// Intervals that are judged together.
const JUDGED: usize = 4;
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
            self.rate.add(seen.bytes);
            match self.trial {
                Some(trial) if trial.from < before => self.judge_growth(trial),
                Some(trial) => self.judge_shrinking(trial, most),
                None if self.wait > 0 => self.wait -= 1,
                None => {}
            }
            if self.trial.is_none() && self.wait == 0 && self.settling == 0 {
                self.try_another(most, seen.busy);
            }
        }
        self.connections != before
    }

    /// Tries more connections, or fewer.
    fn try_another(&mut self, most: usize, busy: bool) {
        let from = self.connections;
        let trial = Trial { from, bytes: self.rate.mean() };
        if self.down && from > LEAST {
            if self.rate.is_known() {
                self.trial = Some(trial);
                self.set(fewer(from));
            }
        } else if from >= most {
            self.in_vain(true);
        } else if !busy {
            self.trial = Some(trial);
            self.set((from * self.factor).min(most));
        }
    }

    /// Whether more connections were worth it: a tenth more bytes is. What a full wire leaves idle
    /// goes again.
    fn judge_growth(&mut self, trial: Trial) {
        let (seen, now) = (u128::from(self.rate.mean()), self.connections as u128);
        let (was, from) = (u128::from(trial.bytes), trial.from as u128);
        // Every connection brought nearly its part: the end is far.
        let far = seen * from * 100 >= was * now * 85;
        if !far && !self.rate.is_known() {
            return;
        }
        self.trial = None;
        if seen * 10 <= was * 11 {
            self.set(trial.from);
            return self.in_vain(true);
        }
        self.patience = PATIENCE_MIN;
        self.factor = if far { 4 } else { 2 };
        // So many carry as much, and a quarter more.
        let enough = (from * seen * 5).div_ceil((was * 4).max(1));
        if !far && enough < now {
            self.trial = Some(Trial { from: self.connections, bytes: self.rate.mean() });
            self.set(enough as usize);
        }
    }

    /// Whether fewer connections do: if they bring all but a twentieth.
    fn judge_shrinking(&mut self, trial: Trial, most: usize) {
        if !self.rate.is_known() {
            return;
        }
        self.trial = None;
        let seen = self.rate.mean();
        if u128::from(seen) * 20 < u128::from(trial.bytes) * 19 {
            self.set(trial.from.min(most));
            return self.in_vain(false);
        }
        self.down = true;
        self.patience = PATIENCE_MIN;
        if self.connections > LEAST {
            // Held against the same bytes: many small losses would be a large one.
            let bytes = trial.bytes.max(seen);
            self.trial = Some(Trial { from: self.connections, bytes });
            self.set(fewer(self.connections));
        }
    }

    fn in_vain(&mut self, down_next: bool) {
        self.down = down_next;
        self.factor = 2;
        self.wait = self.patience;
        self.patience = (self.patience * 2).min(PATIENCE_MAX);
    }

    fn set(&mut self, connections: usize) {
        self.connections = connections;
        self.settling = SETTLING;
        self.rate = Rate::default();
    }
}

/// A quarter fewer, for a trial.
fn fewer(connections: usize) -> usize {
    (connections - (connections / 4).max(1)).max(LEAST)
}

impl Rate {
    fn add(&mut self, bytes: u64) {
        self.last[self.intervals % JUDGED] = bytes;
        self.intervals += 1;
    }

    fn mean(&self) -> u64 {
        let intervals = self.intervals.min(JUDGED);
        let bytes = self.last.iter().fold(0u64, |sum, bytes| sum.saturating_add(*bytes));
        bytes.checked_div(intervals as u64).unwrap_or(0)
    }

    /// Enough was seen to go by.
    fn is_known(&self) -> bool {
        self.intervals >= JUDGED
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
        settle(&mut pool, 1, 122, 24, 256);
        assert!(pool.connections() >= 122, "{}", pool.connections());
        let mut pool = Pool::default();
        settle(&mut pool, 1, 1_000_000, 16, 16);
        assert_eq!(pool.connections(), 15);
    }

    /// A wire with a queue before it: whatever is under way beyond a round trip's worth of the
    /// wire waits, and a crowd of connections makes the wire idle in between. Intervals show now
    /// more, now less of it.
    struct Wire {
        /// Per interval, in bytes.
        bytes: f64,
        /// Connections that fill it.
        filled_by: f64,
        random: u64,
        owed: f64,
    }

    impl Wire {
        fn new(filled_by: f64, seed: u64) -> Wire {
            Wire { bytes: 62e6, filled_by, random: seed, owed: 0.0 }
        }

        fn interval(&mut self, connections: usize) -> Interval {
            let of_wire = connections as f64 / self.filled_by;
            let crowding = 1.0 - 0.03 * (of_wire - 1.0).clamp(0.0, 8.0);
            self.owed += self.bytes * of_wire.min(1.0) * crowding;
            self.random = self.random.wrapping_mul(6364136223846793005).wrapping_add(1);
            // An answer that is under way counts in the next interval.
            let arrived = self.owed * (0.88 + 0.12 * (self.random >> 40) as f64 / 16_777_216.0);
            self.owed -= arrived;
            let carrying = connections;
            Interval { backfilling: 1000, bytes: arrived as u64, carrying, busy: false }
        }
    }

    #[test]
    fn a_full_wire_gets_no_more_connections_than_fill_it() {
        for seed in 0..50 {
            for filled_by in [3.0, 7.0, 25.0, 60.0] {
                let (mut wire, mut pool) = (Wire::new(filled_by, seed), Pool::default());
                let mut many = 0;
                for interval in 0..400 {
                    let seen = wire.interval(pool.connections());
                    pool.consider(&seen, 256);
                    let share = pool.connections() as f64 / filled_by;
                    many += u32::from(interval >= 60 && !(0.7..=2.5).contains(&share));
                }
                assert!(many <= 60, "{seed}, {filled_by}: {} for {many}", pool.connections());
            }
        }
    }

    #[test]
    fn too_many_connections_are_taken_back() {
        let (mut pool, mut short) = (Pool::default(), Wire::new(25.0, 1));
        settle(&mut pool, 1, 1_000_000, 40, 256);
        let before = pool.connections();
        for _ in 0..200 {
            let seen = short.interval(pool.connections());
            pool.consider(&seen, 256);
        }
        assert!(before > 128 && pool.connections() <= 60, "{before} → {}", pool.connections());
    }

    #[test]
    fn new_connections_are_judged_when_they_carry_something() {
        let mut pool = Pool::default();
        let (mut carrying, mut most) = (0, 0);
        for round in 0..40 {
            // It takes three intervals until a new connection has its partitions.
            if round % 4 == 3 {
                carrying = pool.connections();
            }
            let bytes = carrying as u64 * 10;
            pool.consider(&Interval { backfilling: 100, bytes, carrying, busy: false }, 65);
            most = most.max(pool.connections());
        }
        assert_eq!(most, 64);
        assert!(pool.connections() >= 48, "{}", pool.connections());
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
