//! Memory for fetches: reserved before records are asked for, so that what arrives has a place.
//!
//! A response is bounded by what its request allowed. The sum of what is reserved and what is
//! already lent out stays below the arena's part for records: a slow disk, whose writes hold
//! memory, so pushes back on the fetch. The reserve is also why nothing deadlocks: memory that is
//! lent comes back when a write ends, which needs no further memory for records.

use std::cell::Cell;
use std::rc::Rc;

use ring::Class;

use crate::limits::{FETCH_BYTES_MIN, RESERVABLE_PERCENT};

/// What a shard's fetches may hold.
#[derive(Default)]
pub struct Budget {
    reserved: Cell<usize>,
}

/// A part of the budget, given back on drop.
pub struct Reserved {
    budget: Rc<Budget>,
    bytes: usize,
}

impl Budget {
    /// Reserves up to `bytes_max`, at least a little, waiting until there is so much.
    pub async fn reserve(budget: &Rc<Budget>, bytes_max: usize) -> Reserved {
        loop {
            let bytes = budget.available().min(bytes_max);
            if bytes >= FETCH_BYTES_MIN.min(bytes_max) {
                budget.reserved.set(budget.reserved.get() + bytes);
                return Reserved { budget: Rc::clone(budget), bytes };
            }
            // In line for memory: whoever frees some lets us look again.
            drop(ring::lease(FETCH_BYTES_MIN, Class::Records).await);
            ring::sleep(std::time::Duration::from_millis(1)).await;
        }
    }

    fn available(&self) -> usize {
        let memory = ring::memory();
        let reservable = memory.total / 100 * RESERVABLE_PERCENT;
        reservable.saturating_sub(memory.used).saturating_sub(self.reserved.get())
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
