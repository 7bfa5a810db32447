//! Where the source's logs begin, once it has deleted records of them.
//!
//! What lies below a log's visible start is hidden for good, and its files go. So a log start that
//! a fetch tells is followed only as far as the source says the same when it is asked for it.

use std::rc::Rc;
use std::time::Duration;

use net::questions::EARLIEST;
use net::{Connection, NetError};

use super::Fetcher;
use super::checking::list_offsets;
use crate::limits::CHECKS_PER_REQUEST;
use crate::partition::Partition;

/// How soon a source is asked again.
const EVERY: Duration = Duration::from_secs(1);

impl Fetcher {
    /// Follows the log starts that were told since the last look. A source that says two things is
    /// asked again: what was true is not told again of a log that gets no records.
    pub(super) async fn follow_starts(
        &mut self,
        connection: &mut Connection,
    ) -> Result<(), NetError> {
        let now = ring::now();
        if self.started.is_empty() || self.starts_asked_at.is_some_and(|at| now - at < EVERY) {
            return Ok(());
        }
        self.starts_asked_at = Some(now);
        let mut started = std::mem::take(&mut self.started);
        started.sort_unstable();
        started.dedup();
        let later = |key: u32| Some((key, self.owned(key).filter(|p| p.begins_later())?));
        let started: Vec<(u32, Rc<Partition>)> = started.into_iter().filter_map(later).collect();
        for some in started.chunks(CHECKS_PER_REQUEST) {
            let partitions: Vec<_> = some.iter().map(|(_, p)| Rc::clone(p)).collect();
            let starts = list_offsets(connection, &partitions, EARLIEST).await?;
            for ((key, partition), start) in some.iter().zip(starts) {
                match start {
                    Ok(start) => {
                        partition.follow_start(start);
                        self.started.push(*key);
                    }
                    Err(code) => self.question_refused(*key, code),
                }
            }
        }
        Ok(())
    }
}
