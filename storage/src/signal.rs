//! A condition to wait for, within one executor: whoever changes state notifies, whoever waits
//! looks again.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::task::{Poll, Waker};

/// Wakes every waiter. Notifications are counted, so one between look and wait is not lost.
#[derive(Default)]
pub struct Signal {
    count: Cell<u64>,
    waiters: RefCell<Vec<Waker>>,
}

impl Signal {
    /// Something changed.
    pub fn notify(&self) {
        self.count.set(self.count.get() + 1);
        for waker in self.waiters.take() {
            waker.wake();
        }
    }

    /// The notifications so far; to be taken *before* looking at the state.
    pub fn count(&self) -> u64 {
        self.count.get()
    }

    /// Waits until there were more notifications than `seen`.
    pub async fn after(&self, seen: u64) {
        poll_fn(|context| {
            if self.count.get() > seen {
                return Poll::Ready(());
            }
            let mut waiters = self.waiters.borrow_mut();
            if !waiters.iter().any(|w| w.will_wake(context.waker())) {
                waiters.push(context.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }
}
