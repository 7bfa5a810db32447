//! When a partition's log is opened again.

use net::backoff::{self, Backoff};
use ring::Instant;

/// When a log that failed, or could not be opened, is opened again.
#[derive(Default)]
pub struct Reopening {
    backoff: Backoff,
    /// The next try; `None` until the failure is seen.
    pub(super) at: Option<Instant>,
    /// A try is under way.
    pub running: bool,
    /// When the last try succeeded.
    done: Option<Instant>,
    /// Why the last try did not.
    pub(super) trouble: Option<String>,
}

impl Reopening {
    /// Whether to try now. The first look at a failure only sets the time.
    pub fn is_due(&mut self, now: Instant, random: u64) -> bool {
        let Some(at) = self.at else {
            // One that was fine for long begins anew.
            if self.done.is_some_and(|done| now - done > backoff::LONGEST) {
                self.backoff.succeeded();
            }
            self.at = Some(now + self.backoff.failed(random));
            return false;
        };
        !self.running && at <= now
    }

    /// A person wants it at once.
    pub fn hurry(&mut self, now: Instant) {
        self.backoff.succeeded();
        self.at = Some(now);
    }

    /// A try has ended.
    pub fn tried(&mut self, result: Result<(), String>, now: Instant, random: u64) {
        self.running = false;
        self.trouble = result.err();
        if self.trouble.is_some() {
            self.at = Some(now + self.backoff.failed(random));
        } else {
            (self.at, self.done) = (None, Some(now));
        }
    }
}
