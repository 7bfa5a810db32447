//! How many connections to one broker are worth having, sans-I/O.
//!
//! A broker serves one request per connection at a time, and the next offset is unknown until the
//! last batch has arrived: one connection idles for a round trip between answers. Partitions at
//! their end share one connection; those far behind get more, as many as it takes to fill the
//! link, up to a limit, and never more than there are such partitions.

use std::time::Duration;

/// What one interval showed of the backfill connections to a broker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interval {
    /// Partitions far behind.
    pub backfilling: usize,
    /// Connections they share now.
    pub connections: usize,
    /// Time their connections waited for an answer's first byte.
    pub waiting: Duration,
    /// Time they received.
    pub receiving: Duration,
}

/// Two connections fill each other's gaps on a short link.
const LEAST: usize = 2;

/// How many backfill connections to have next.
pub fn connections_wanted(seen: &Interval, connections_max: usize) -> usize {
    let most = seen.backfilling.min(connections_max.saturating_sub(1).max(1));
    if seen.connections == 0 {
        return most.min(LEAST);
    }
    // Waiting more than a third of the time: the round trip, not the bandwidth, is the limit.
    let hungry = seen.waiting > seen.receiving / 2;
    let wanted = if hungry { seen.connections * 2 } else { seen.connections };
    wanted.clamp(LEAST.min(most), most)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(
        backfilling: usize,
        connections: usize,
        waiting_ms: u64,
        receiving_ms: u64,
    ) -> Interval {
        Interval {
            backfilling,
            connections,
            waiting: Duration::from_millis(waiting_ms),
            receiving: Duration::from_millis(receiving_ms),
        }
    }

    #[test]
    fn no_partition_behind_needs_no_connection() {
        assert_eq!(connections_wanted(&seen(0, 4, 100, 0), 16), 0);
    }

    #[test]
    fn a_short_link_stays_at_two() {
        assert_eq!(connections_wanted(&seen(100, 0, 0, 0), 16), 2);
        assert_eq!(connections_wanted(&seen(100, 2, 10, 490), 16), 2);
        assert_eq!(connections_wanted(&seen(1, 2, 10, 490), 16), 1);
    }

    #[test]
    fn a_long_link_grows_to_the_limit() {
        assert_eq!(connections_wanted(&seen(100, 2, 400, 100), 16), 4);
        assert_eq!(connections_wanted(&seen(100, 12, 400, 100), 16), 15);
        assert_eq!(connections_wanted(&seen(3, 2, 400, 100), 16), 3);
    }
}
