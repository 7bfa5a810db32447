//! A token bucket in bytes per second, for the traffic of a link.
//!
//! How many bytes a fetch brings is known only afterwards, so the bucket may go into debt: spend
//! what arrived, then wait until the debt is paid before asking for more. Sans-I/O: the caller
//! brings the clock, in nanoseconds from any fixed point.

use std::time::Duration;

const NANOS: u128 = 1_000_000_000;

/// Bytes per second, averaged; bursts up to a fixed number of bytes pass at once.
#[derive(Debug, Clone)]
pub struct RateLimit {
    bytes_per_second: u64,
    burst_bytes: u64,
    /// Nanoseconds (of the caller's clock) at which the bucket is, or was, exactly empty: later
    /// than now means debt, earlier means credit.
    empty_at: u128,
}

impl RateLimit {
    /// A full bucket. Panics when `bytes_per_second` is 0: pausing is not a rate.
    pub fn new(bytes_per_second: u64, burst_bytes: u64, now_ns: u64) -> RateLimit {
        assert!(bytes_per_second > 0, "a rate limit of 0 bytes per second");
        // An offset of one burst keeps the sum positive at a clock that starts at 0.
        let mut limit = RateLimit { bytes_per_second, burst_bytes, empty_at: 0 };
        limit.empty_at = limit.clock(now_ns) - limit.burst_ns();
        limit
    }

    /// Takes `bytes` that have arrived out of the bucket, into debt if need be.
    pub fn spend(&mut self, now_ns: u64, bytes: u64) {
        let oldest = self.clock(now_ns) - self.burst_ns();
        self.empty_at = self.empty_at.max(oldest) + self.worth_ns(bytes);
    }

    /// How long to wait until the debt is paid; zero when there is none.
    pub fn delay(&self, now_ns: u64) -> Duration {
        let debt_ns = self.empty_at.saturating_sub(self.clock(now_ns));
        Duration::from_nanos(debt_ns.min(u64::MAX as u128) as u64)
    }

    /// What the rate allows in so long a time, in bytes.
    pub fn bytes_in(&self, time: Duration) -> u64 {
        let bytes = u128::from(self.bytes_per_second) * time.as_nanos() / NANOS;
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }

    fn clock(&self, now_ns: u64) -> u128 {
        now_ns as u128 + self.burst_ns()
    }

    fn burst_ns(&self) -> u128 {
        self.worth_ns(self.burst_bytes)
    }

    fn worth_ns(&self, bytes: u64) -> u128 {
        bytes as u128 * NANOS / self.bytes_per_second as u128
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_burst_passes_and_debt_waits() {
        let mut limit = RateLimit::new(1_000, 500, 0);
        limit.spend(0, 500);
        assert_eq!(limit.delay(0), Duration::ZERO);
        limit.spend(0, 1_000);
        assert_eq!(limit.delay(0), Duration::from_secs(1));
        assert_eq!(limit.delay(400_000_000), Duration::from_millis(600));
        // Credit never grows beyond the burst, however long nothing was spent.
        limit.spend(1_000_000_000_000, 1_500);
        assert_eq!(limit.delay(1_000_000_000_000), Duration::from_secs(1));
    }

    proptest! {
        #[test]
        fn never_faster_than_the_rate(
            rate in 1_000u64..1_000_000_000, burst in 0u64..1 << 20,
            spends in prop::collection::vec((0u64..1 << 22, 0u64..1_000_000), 1..50),
        ) {
            let (mut limit, mut now, mut total) = (RateLimit::new(rate, burst, 0), 0u64, 0u64);
            for (bytes, idle) in spends {
                now += limit.delay(now).as_nanos() as u64 + idle;
                limit.spend(now, bytes);
                total += bytes;
                let done = now + limit.delay(now).as_nanos() as u64;
                let allowed = burst as f64 + rate as f64 * done as f64 / 1e9;
                prop_assert!(total as f64 <= allowed + 100.0 + rate as f64 * 1e-6);
            }
        }
    }
}
