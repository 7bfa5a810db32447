//! Memory for fetches: reserved before records are asked for, so that what arrives has a place.
//!
//! A response is bounded by what its request allowed. The sum of what is reserved and what is
//! already lent out stays below the arena's part for records: a slow disk, whose writes hold
//! memory, so pushes back on the fetch. The reserve is also why nothing deadlocks: memory that is
//! lent comes back when a write ends, which needs no further memory for records.
//!
//! A fetch that waits at the source holds its part all the while. So each connection is given no
//! more than its share, and whoever finds too little stands in line: one that has just been served
//! comes after those that wait.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use crate::limits::{FETCH_BYTES_MIN, RESERVABLE_PERCENT};

/// What a shard's fetches may hold.
#[derive(Default)]
pub struct Budget {
    reserved: Cell<usize>,
    /// Connections that fetch.
    sharers: Cell<usize>,
    line: RefCell<VecDeque<u64>>,
    tickets: Cell<u64>,
}

/// A connection that fetches; on drop the others' shares grow.
pub struct Sharer(Rc<Budget>);

/// A place in the line, given up on drop.
struct Place<'a> {
    budget: &'a Budget,
    ticket: u64,
}

/// A part of the budget, given back on drop.
pub struct Reserved {
    budget: Rc<Budget>,
    bytes: usize,
}

impl Budget {
    /// One more connection takes part.
    pub fn share(budget: &Rc<Budget>) -> Sharer {
        budget.sharers.set(budget.sharers.get() + 1);
        Sharer(Rc::clone(budget))
    }

    /// Reserves up to `bytes_max` or a fair share, at least a little, waiting in line until there
    /// is so much.
    pub async fn reserve(budget: &Rc<Budget>, bytes_max: usize) -> Reserved {
        let place = budget.stand_in_line();
        loop {
            let ahead = place.ahead();
            let bytes = budget.available().min(budget.fair_share(bytes_max));
            if ahead == 0 && bytes >= FETCH_BYTES_MIN.min(bytes_max) {
                budget.reserved.set(budget.reserved.get() + bytes);
                return Reserved { budget: Rc::clone(budget), bytes };
            }
            ring::sleep(LOOK_AGAIN * (ahead as u32 + 1)).await;
        }
    }

    fn stand_in_line(&self) -> Place<'_> {
        let ticket = self.tickets.get();
        self.tickets.set(ticket + 1);
        self.line.borrow_mut().push_back(ticket);
        Place { budget: self, ticket }
    }

    /// While an answer arrives, what has come of it is reserved and lent out: it counts twice. With
    /// larger shares half of the connections would wait for the other half.
    fn fair_share(&self, bytes_max: usize) -> usize {
        let share = reservable() / (2 * self.sharers.get()).max(1);
        share.max(FETCH_BYTES_MIN).min(bytes_max)
    }

    fn available(&self) -> usize {
        reservable().saturating_sub(ring::memory().used).saturating_sub(self.reserved.get())
    }
}

/// How soon the first in line looks again; those behind it later.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

fn reservable() -> usize {
    ring::memory().total / 100 * RESERVABLE_PERCENT
}

/// Why fetches wait for memory, and what to do about it.
pub fn shortage() -> String {
    let memory = ring::memory();
    let needed = (memory.used + FETCH_BYTES_MIN) / RESERVABLE_PERCENT * 100;
    format!(
        "no memory for records: {} of this shard's {} KiB are held by the ends of idle logs (a \
         block each) and by records not yet written, and fetches wait; set memory in [shards] so \
         that each shard has more than {} KiB, or use more shards",
        memory.used >> 10,
        memory.total >> 10,
        needed >> 10
    )
}

impl Place<'_> {
    fn ahead(&self) -> usize {
        let line = self.budget.line.borrow();
        line.iter().position(|ticket| *ticket == self.ticket).expect("it stands in line")
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.budget.line.borrow_mut().retain(|ticket| *ticket != self.ticket);
    }
}

impl Drop for Sharer {
    fn drop(&mut self) {
        self.0.sharers.set(self.0.sharers.get() - 1);
    }
}

impl Reserved {
    /// How much.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.budget.reserved.set(self.budget.reserved.get() - self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ring::{Config, run, timeout};

    #[test]
    fn what_is_reserved_by_one_is_asked_for_by_no_other() {
        let reserving = async {
            let budget = Rc::new(Budget::default());
            let everything = Budget::reserve(&budget, usize::MAX).await;
            assert_eq!(everything.bytes(), reservable());
            let more = Budget::reserve(&budget, usize::MAX);
            let waited = timeout(Duration::from_millis(20), more).await;
            assert!(waited.is_err(), "the same memory was reserved twice");
            drop(everything);
            // What the logs hold is not free either.
            let held = ring::lease(64 << 10, ring::Class::Records).await;
            let rest = Budget::reserve(&budget, usize::MAX).await;
            assert_eq!(rest.bytes(), reservable() - held.len());
        };
        run(Config::small(), reserving).expect("an executor");
    }

    #[test]
    fn all_that_share_receive_at_once() {
        let receiving = async {
            let budget = Rc::new(Budget::default());
            let sharers: Vec<_> = (0..4).map(|_| Budget::share(&budget)).collect();
            let (mut held, mut answers) = (Vec::new(), Vec::new());
            for _ in &sharers {
                let reserving = Budget::reserve(&budget, usize::MAX);
                let reserved = timeout(Duration::from_secs(10), reserving).await;
                let reserved = reserved.expect("its share, though the others' answers are here");
                let mut missing = reserved.bytes();
                while missing > 0 {
                    let bytes = missing.min(256 << 10);
                    held.push(ring::lease(bytes, ring::Class::Records).await);
                    missing -= bytes;
                }
                answers.push(reserved);
            }
        };
        run(Config { arena_bytes: 16 << 20, ..Config::small() }, receiving).expect("an executor");
    }
}
