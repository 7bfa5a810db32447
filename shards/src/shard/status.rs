//! What a shard says of itself.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::Shard;
use crate::control::{ShardStats, ShardStatus};
use crate::partition::Partition;

impl Shard {
    pub(super) fn status(&self, only: Option<&Arc<str>>) -> ShardStatus {
        let partitions = self.partitions.borrow();
        let wanted = |p: &&Rc<Partition>| only.is_none_or(|link| p.key.link == *link);
        let links = self.links.borrow();
        ShardStatus {
            partitions: partitions.values().filter(wanted).map(|p| p.status()).collect(),
            stats: self.stats(),
            connections: links.values().map(|l| (Arc::clone(&l.name), l.connections())).collect(),
        }
    }

    fn stats(&self) -> ShardStats {
        let executor = ring::stats();
        let memory = ring::memory();
        let (mut bytes_written, mut flushes) = (0, 0);
        for volume in self.store.stats().volumes {
            bytes_written += volume.counters.write_bytes;
            flushes += volume.counters.flushes;
        }
        let mut errors: Vec<_> =
            self.counters.errors.borrow().iter().map(|(kind, count)| (*kind, *count)).collect();
        errors.sort_unstable();
        ShardStats {
            bytes_received: self.counters.bytes_received.get(),
            bytes_written,
            records: self.partitions.borrow().values().map(|p| p.records()).sum(),
            fetches: self.counters.fetches.get(),
            flushes,
            cpu_ns: ring::thread_cpu().as_nanos() as u64,
            enter_ns: executor.driver.enter_time.as_nanos() as u64,
            enter_busy_ns: executor.driver.enter_busy_time.as_nanos() as u64,
            enters: executor.driver.enters,
            memory_budget: memory.total as u64,
            memory_used: memory.used as u64,
            memory_peak: memory.peak as u64,
            bytes_verified: self.verifier.bytes(),
            verified_at_ms: self.counters.verified_at_ms.get(),
            damages_found: self.counters.damages_found.get(),
            damages_repaired: self.counters.damages_repaired.get(),
            errors,
        }
    }
}

/// How much of its time this core slept since the last look.
#[derive(Default)]
pub(super) struct Load {
    at: ring::Instant,
    slept: Duration,
}

impl Load {
    /// Whether the core slept less than a tenth of the time: more connections would not help it.
    pub(super) fn is_busy(&mut self) -> bool {
        let now = Load { at: ring::now(), slept: slept() };
        let past = std::mem::replace(self, now);
        self.slept.saturating_sub(past.slept) * 10 < self.at - past.at
    }
}

/// Time inside `io_uring_enter` with something to wait for.
fn slept() -> Duration {
    let driver = ring::stats().driver;
    driver.enter_time.saturating_sub(driver.enter_busy_time)
}
