//! How far receiving may run ahead of writing.
//!
//! Memory that was written to the device a moment ago is still in the processor's caches; what
//! lies behind a long queue of writes is not, and then every byte that is received costs a fetch
//! from main memory before it is overwritten. So as long as the device takes what it is given,
//! only a few MiB wait for it, however large the memory is. A device that stands still is
//! something else: then all the memory there is keeps the source going.

use std::cell::Cell;

use crate::limits::{AHEAD_BYTES_MAX, STANDSTILL};
use crate::signal::Signal;

/// What is being written, in bytes.
#[derive(Default)]
pub struct Pace {
    bytes: Cell<u64>,
    ended: Signal,
    /// No write has ended for a while.
    stands_still: Cell<bool>,
}

impl Pace {
    /// A write of so many bytes begins.
    pub fn begin(&self, bytes: u64) {
        self.bytes.set(self.bytes.get() + bytes);
    }

    /// A write of so many bytes has ended, well or not.
    pub fn end(&self, bytes: u64) {
        self.bytes.set(self.bytes.get() - bytes);
        self.stands_still.set(false);
        self.ended.notify();
    }

    /// Waits while more than [`AHEAD_BYTES_MAX`] are on their way to the device, counting those
    /// that wait for a write to begin, unless no write ends at all.
    pub async fn keep(&self, waiting: impl Fn() -> u64) {
        while !self.stands_still.get() {
            let seen = self.ended.count();
            if self.bytes.get() + waiting() <= AHEAD_BYTES_MAX {
                return;
            }
            if ring::timeout(STANDSTILL, self.ended.after(seen)).await.is_err() {
                self.stands_still.set(true);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;
    use std::time::Duration;

    use ring::sim::{Faults, Simulation};
    use ring::{Share, spawn};

    use super::*;

    const PART: u64 = AHEAD_BYTES_MAX / 4;
    /// A look costs a little of the simulated processor's time.
    const AT_ONCE: Duration = Duration::from_micros(100);

    async fn elapsed(pace: &Pace, waiting: u64) -> Duration {
        let begun = ring::now();
        pace.keep(|| waiting).await;
        ring::now().since(begun)
    }

    #[test]
    fn what_comes_waits_for_a_write_but_not_for_a_device_that_stands_still() {
        Simulation::new(7, Faults::none()).run(async {
            let pace = Rc::new(Pace::default());
            (0..4).for_each(|_| pace.begin(PART));
            assert!(elapsed(&pace, 0).await < AT_ONCE, "that many may be on their way");
            let writer = Rc::clone(&pace);
            let writes = spawn(Share::Replicate, async move {
                for _ in 0..3 {
                    ring::sleep(STANDSTILL / 2).await;
                    writer.end(PART);
                }
            });
            let waited = elapsed(&pace, 3 * PART).await;
            assert!(waited >= STANDSTILL / 2 * 3, "{waited:?}: went on with too much ahead");
            writes.await;
            let waited = elapsed(&pace, 4 * PART).await;
            assert!((STANDSTILL..2 * STANDSTILL).contains(&waited), "{waited:?}");
            assert!(elapsed(&pace, 4 * PART).await < AT_ONCE, "it stands still");
            pace.begin(PART);
            pace.end(PART);
            let waited = elapsed(&pace, 4 * PART).await;
            assert!(waited >= STANDSTILL, "it goes again: {waited:?}");
        });
    }
}
