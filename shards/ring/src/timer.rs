//! Timers: a heap of deadlines. Cancelled ones are skipped, and swept out when they are many.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::task::Waker;

use crate::time::Instant;

/// Names one timer; a stale key matches nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TimerKey {
    slot: u32,
    generation: u32,
}

#[derive(Default)]
pub struct Timers {
    heap: BinaryHeap<Reverse<(Instant, TimerKey)>>,
    entries: Vec<Entry>,
    free: Vec<u32>,
}

struct Entry {
    generation: u32,
    waker: Option<Waker>,
}

impl Timers {
    pub fn add(&mut self, at: Instant, waker: Waker) -> TimerKey {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.entries.push(Entry { generation: 0, waker: None });
            u32::try_from(self.entries.len() - 1).expect("fewer than 2^32 timers")
        });
        let entry = &mut self.entries[slot as usize];
        entry.waker = Some(waker);
        let key = TimerKey { slot, generation: entry.generation };
        self.heap.push(Reverse((at, key)));
        key
    }

    /// Replaces the waker of a timer that has not fired.
    pub fn update(&mut self, key: TimerKey, waker: &Waker) {
        let entry = &mut self.entries[key.slot as usize];
        if entry.generation == key.generation {
            entry.waker = Some(waker.clone());
        }
    }

    pub fn cancel(&mut self, key: TimerKey) {
        if self.take(key).is_some() && self.heap.len() > 4 * self.live() + 64 {
            let entries = &self.entries;
            self.heap.retain(|Reverse((_, key))| {
                entries[key.slot as usize].generation == key.generation
            });
        }
    }

    /// The earliest deadline; perhaps one of a cancelled timer.
    pub fn next(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }

    /// Takes the waker of one timer that is due.
    pub fn pop_due(&mut self, now: Instant) -> Option<Waker> {
        while let Some(Reverse((at, key))) = self.heap.peek().copied() {
            if at > now {
                return None;
            }
            self.heap.pop();
            if let Some(waker) = self.take(key) {
                return Some(waker);
            }
        }
        None
    }

    fn live(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    fn take(&mut self, key: TimerKey) -> Option<Waker> {
        let entry = &mut self.entries[key.slot as usize];
        if entry.generation != key.generation {
            return None;
        }
        entry.generation = entry.generation.wrapping_add(1);
        self.free.push(key.slot);
        entry.waker.take()
    }
}
