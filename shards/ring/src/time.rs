//! The executor's clock: real, or the simulator's.

use std::future::{Future, poll_fn};
use std::ops::{Add, Sub};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use crate::executor::with_current;
use crate::timer::TimerKey;

/// A point on the executor's monotonic clock, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(u64);

impl Instant {
    /// A point so many nanoseconds after the clock's start.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the clock's start.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// The time since an earlier point; zero if it is not earlier.
    pub fn since(self, earlier: Instant) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Instant {
    type Output = Instant;
    fn add(self, rest: Duration) -> Instant {
        Instant(self.0.saturating_add(u64::try_from(rest.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl Sub for Instant {
    type Output = Duration;
    fn sub(self, earlier: Instant) -> Duration {
        self.since(earlier)
    }
}

/// The monotonic clock.
///
/// # Panics
/// Outside an executor, as all functions here.
pub fn now() -> Instant {
    with_current(|executor| executor.now())
}

/// The wall clock, in milliseconds since the epoch. It may jump.
pub fn wall_ms() -> i64 {
    with_current(|executor| executor.wall_ms())
}

/// A random number, from the seed in the simulator.
pub fn random() -> u64 {
    with_current(|executor| executor.random())
}

/// Waits.
pub async fn sleep(duration: Duration) {
    sleep_until(now() + duration).await;
}

/// Waits until a point in time.
pub async fn sleep_until(at: Instant) {
    struct Armed(Option<(u64, TimerKey)>);
    impl Drop for Armed {
        fn drop(&mut self) {
            if let Some((serial, key)) = self.0 {
                crate::executor::cancel_timer(serial, key);
            }
        }
    }
    let mut armed = Armed(None);
    poll_fn(|context| {
        with_current(|executor| {
            if executor.now() >= at {
                return Poll::Ready(());
            }
            match armed.0 {
                Some((serial, key)) => {
                    assert_eq!(executor.serial(), serial, "a timer of another executor");
                    executor.update_timer(key, context.waker());
                }
                None => {
                    let key = executor.add_timer(at, context.waker().clone());
                    armed.0 = Some((executor.serial(), key));
                }
            }
            Poll::Pending
        })
    })
    .await;
}

/// A time limit that ran out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("timed out")]
pub struct Elapsed;

/// Runs a future under a time limit.
///
/// # Errors
/// [`Elapsed`] when the limit came first; the future is dropped.
pub async fn timeout<T>(limit: Duration, future: impl Future<Output = T>) -> Result<T, Elapsed> {
    let mut future = pin!(future);
    let mut limit = pin!(sleep(limit));
    poll_fn(|context| {
        if let Poll::Ready(value) = future.as_mut().poll(context) {
            return Poll::Ready(Ok(value));
        }
        limit.as_mut().poll(context).map(|()| Err(Elapsed))
    })
    .await
}
