//! How many connections to one broker are worth having, and what belongs on them, sans-I/O.
//!
//! A connection carries at most a window of the transport per round trip, and idles for a round
//! trip between two answers: the next offset is unknown until the last batch has arrived. On a
//! long link only more connections help. How many, the link does not say: they are multiplied for
//! as long as each brings its part. Once it brings less, the wire is full: more of them only wait
//! for one another, so only as many stay as those bytes need. A number that was found is tried
//! anew now and then, from below and from above: what fewer connections carry as well, fewer
//! carry. Partitions at their end share one connection; only those far behind get more, up to a
//! limit, and never more than there are such partitions.
//!
//! What counts is what reaches the sockets, not what was taken from them: where an answer takes
//! seconds, whole answers would show nothing for seconds.

use crate::limits::{
    FETCH_BYTES_FIRST, FETCH_BYTES_MAX, FETCH_BYTES_MIN, PARTITION_BYTES_MAX,
    PARTITION_BYTES_OF_FEW_MAX,
};
use std::time::Duration;

/// What one interval showed of the backfill connections to a broker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interval {
    /// Partitions far behind.
    pub backfilling: usize,
    /// What arrived on their connections, in bytes.
    pub bytes: u64,
    /// Every partition is on the connection it belongs on, and all of these carry something.
    pub settled: bool,
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
    /// For how long at most the intervals show nothing yet: sessions begin, windows open.
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
    /// So many are known to be too few.
    few: usize,
}

/// The mean of the last few intervals. A window that opens once per round trip, and the pauses
/// between answers, show in a single interval now more, now less.
#[derive(Debug, Default)]
struct Rate {
    last: [u64; REMEMBERED],
    intervals: usize,
}

/// Two connections fill each other's gaps on a short link.
const LEAST: usize = 2;
const SETTLING_MAX: u32 = 20;
/// Intervals that are judged together, at least and at most.
const JUDGED: usize = 6;
const REMEMBERED: usize = 16;
/// So many show that every connection brings its part.
const JUDGED_SOON: usize = 2;
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
            // Partitions come to new connections between two answers of the old ones. Some may
            // never come: a broker need not take every call.
            self.settling = if seen.settled { 0 } else { self.settling - 1 };
        } else {
            self.rate.add(seen.bytes);
            match self.trial {
                Some(trial) if trial.from < before => self.judge_growth(trial),
                Some(trial) => self.judge_shrinking(trial, most),
                None if self.rate.has_fallen() => {
                    // Another way to the source, or others on it: what was found holds no more.
                    self.rate = Rate::default();
                    (self.wait, self.down, self.patience) = (0, false, PATIENCE_MIN);
                }
                None => self.wait = self.wait.saturating_sub(1),
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
        let trial = Trial { from, bytes: self.rate.mean(), few: 0 };
        if self.down && from > LEAST {
            if self.rate.is_known() {
                self.trial = Some(trial);
                self.set(from - (from / 8).max(1));
            }
        } else if from >= most {
            self.in_vain(true);
        } else if !busy && self.rate.intervals >= JUDGED_SOON {
            self.trial = Some(trial);
            self.set((from * self.factor).min(most));
        }
    }

    /// Whether more connections were worth it. What a full wire leaves idle goes again.
    fn judge_growth(&mut self, trial: Trial) {
        let (seen, now) = (u128::from(self.rate.mean()), self.connections as u128);
        let (was, from) = (u128::from(trial.bytes), trial.from as u128);
        // Every connection brought nearly its part: the end is far.
        let far = seen * from * 100 >= was * now * 85;
        let judged = if far { JUDGED_SOON } else { JUDGED };
        if self.rate.intervals < judged {
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
        let few = (from * seen).div_ceil(was.max(1));
        let enough = (few * 5).div_ceil(4);
        if !far && enough < now {
            let (from, bytes) = (self.connections, self.rate.mean());
            self.trial = Some(Trial { from, bytes, few: few as usize });
            self.set(enough as usize);
        }
    }

    /// Whether fewer connections do: if they bring all but a twentieth. Then fewer still may do;
    /// else some number in between.
    fn judge_shrinking(&mut self, mut trial: Trial, most: usize) {
        if !self.rate.is_known() {
            return;
        }
        // As many as it came from may be more than are allowed by now.
        trial.from = trial.from.min(most);
        let (seen, now) = (self.rate.mean(), self.connections);
        let enough = u128::from(seen) * 20 >= u128::from(trial.bytes) * 19;
        let next = if enough {
            // Held against the same bytes: many small losses would be a large one.
            trial = Trial { from: now, bytes: trial.bytes.max(seen), ..trial };
            (now - now / 4).max(LEAST)
        } else {
            trial.few = now;
            now.midpoint(trial.from)
        };
        if next < trial.from && next * 8 > trial.few * 9 {
            self.trial = Some(trial);
            return self.set(next);
        }
        self.trial = None;
        if !enough {
            self.set(trial.from);
        }
        self.in_vain(false);
    }

    fn in_vain(&mut self, down_next: bool) {
        self.down = down_next;
        self.factor = 2;
        self.wait = self.patience;
        self.patience = (self.patience * 2).min(PATIENCE_MAX);
    }

    fn set(&mut self, connections: usize) {
        self.connections = connections;
        self.settling = SETTLING_MAX;
        self.rate = Rate::default();
    }
}

impl Rate {
    fn add(&mut self, bytes: u64) {
        self.last[self.intervals % REMEMBERED] = bytes;
        self.intervals += 1;
    }

    fn mean(&self) -> u64 {
        self.mean_of(REMEMBERED)
    }

    /// Of the last so many, or as many as there are.
    fn mean_of(&self, intervals: usize) -> u64 {
        let count = self.intervals.min(intervals);
        let last = (self.intervals - count..self.intervals).map(|at| self.last[at % REMEMBERED]);
        let bytes = last.fold(0u64, u64::saturating_add);
        bytes.checked_div(count as u64).unwrap_or(0)
    }

    /// The last of them brought far less than all of them.
    fn has_fallen(&self) -> bool {
        let (last, all) = (self.mean_of(JUDGED), self.mean());
        self.intervals >= REMEMBERED && u128::from(last) * 4 < u128::from(all) * 3
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

impl Default for FetchSize {
    /// On a connection of which nothing is known.
    fn default() -> Self {
        Self { bytes: FETCH_BYTES_FIRST }
    }
}

impl FetchSize {
    /// What to ask for next, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// What to ask for next on one of many connections, in bytes: up to a quarter less, by chance.
    /// Connections that began together would pause together between their answers, and with them
    /// the wire.
    pub fn bytes_of_many(&self, random: u64) -> usize {
        self.bytes - random as usize % (self.bytes / 4)
    }

    /// How much to ask for of each of so many partitions on one of many connections, in bytes: an
    /// answer should be filled though they are few.
    pub fn bytes_of_each(&self, partitions: usize) -> i32 {
        let share = i32::try_from(self.bytes / partitions.max(1)).unwrap_or(i32::MAX);
        share.clamp(PARTITION_BYTES_MAX, PARTITION_BYTES_OF_FEW_MAX)
    }

    /// An answer of `got` bytes to a request for `asked` took so long to arrive; it should take
    /// `target`.
    pub fn answered(&mut self, asked: usize, got: u64, spent: Duration, target: Duration) {
        let full = got.saturating_mul(8) >= asked as u64 * 7;
        if spent > target {
            self.bytes = (self.bytes / 2).max(FETCH_BYTES_MIN);
        } else if full && spent < target / 2 {
            self.bytes = (self.bytes * 2).min(FETCH_BYTES_MAX);
        }
    }
}

#[cfg(test)]
mod tests;
