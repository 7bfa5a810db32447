//! Exponential back-off with jitter: how long to wait before trying again.
//!
//! Sans-I/O: the caller brings the randomness and does the waiting.

use std::time::Duration;

/// The first wait, before jitter.
pub const FIRST: Duration = Duration::from_secs(1);
/// The longest wait, before jitter.
pub const LONGEST: Duration = Duration::from_secs(300);
/// Each wait is moved by up to this many percent, up or down, so that many waiters spread out.
pub const JITTER_PERCENT: u64 = 20;

/// Doubling waits from [`FIRST`] to [`LONGEST`], each with [`JITTER_PERCENT`] of jitter.
#[derive(Debug, Clone, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Starts with no failure counted.
    pub fn new() -> Backoff {
        Backoff::default()
    }

    /// Counts one more failure and says how long to wait. `random` is any uniform 64-bit number.
    pub fn failed(&mut self, random: u64) -> Duration {
        let doubled = FIRST.saturating_mul(1 << self.failures.min(16));
        self.failures = self.failures.saturating_add(1);
        let base_ms = doubled.min(LONGEST).as_millis() as u64;
        let spread_ms = base_ms * JITTER_PERCENT / 100;
        Duration::from_millis(base_ms - spread_ms + random % (2 * spread_ms + 1))
    }

    /// Something worked: the next failure waits [`FIRST`] again.
    pub fn succeeded(&mut self) {
        self.failures = 0;
    }

    /// Failures since the last success.
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn waits_double_within_jitter_and_stay_bounded(
            randoms in prop::collection::vec(any::<u64>(), 1..40),
        ) {
            let mut backoff = Backoff::new();
            for (n, random) in randoms.into_iter().enumerate() {
                let base_ms = (1000u64 << n.min(20)).min(300_000);
                let wait_ms = backoff.failed(random).as_millis() as u64;
                prop_assert!(wait_ms >= base_ms * 80 / 100, "{n}: {wait_ms}");
                prop_assert!(wait_ms <= base_ms * 120 / 100, "{n}: {wait_ms}");
            }
            backoff.succeeded();
            prop_assert!(backoff.failed(0) == Duration::from_millis(800));
        }
    }
}
