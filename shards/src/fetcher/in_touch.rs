//! Topics that are asked for by name could be made anew unseen while nobody asks for them.
//!
//! Under a rate limit an answer may be followed by a long pause: several connections share the
//! limit, and one batch may be larger than what it allows in seconds. To compare all last batches
//! after each would cost more than the pause was for, and make the next one longer. So the source
//! is asked for the ends of its logs meanwhile, which brings no records: it refuses a topic that is
//! gone, and one that is there anew has another end.

use std::rc::Rc;
use std::time::Duration;

use net::questions::LATEST;
use net::{Connection, NetError};

use super::Fetcher;
use super::checking::list_offsets;
use crate::limits::{CHECKS_PER_REQUEST, OUT_OF_TOUCH_AFTER};
use crate::partition::Partition;
use crate::sink::{Member, Stage};

/// How often: so that an answer that takes its time still comes soon enough.
const ASKED_EVERY: Duration = OUT_OF_TOUCH_AFTER.checked_div(2).expect("two is not zero");

impl Fetcher {
    /// Waits until the rate limit allows another answer, or a member has to be looked at first.
    pub(super) async fn wait_for_rate(
        &mut self,
        connection: &mut Connection,
    ) -> Result<(), NetError> {
        if self.recheck_until.is_some() {
            return Ok(());
        }
        let (link, kind) = (Rc::clone(&self.link), self.shared.kind);
        while ring::timeout(ASKED_EVERY, link.wait_for_rate(kind)).await.is_err() {
            if !self.asks_by_id(connection) {
                self.ask_after(connection).await?;
            }
            if !self.fresh.is_empty() || self.session.wanted_count() == 0 {
                break;
            }
        }
        Ok(())
    }

    /// Asks the source whether the members' logs are there, and end no earlier than they did.
    async fn ask_after(&mut self, connection: &mut Connection) -> Result<(), NetError> {
        let owned = |key: &u32| Some((*key, self.owned(*key)?));
        let members: Vec<(u32, Rc<Partition>)> = self.by_uid.values().filter_map(owned).collect();
        for some in members.chunks(CHECKS_PER_REQUEST) {
            let partitions: Vec<_> = some.iter().map(|(_, p)| Rc::clone(p)).collect();
            let ends = list_offsets(connection, &partitions, LATEST).await?;
            for ((key, partition), end) in some.iter().zip(ends) {
                match end {
                    Err(code) => self.question_refused(*key, code),
                    Ok(end) if partition.source_end().is_some_and(|known| end < known) => {
                        self.session.unwant(*key);
                        self.fresh.push(*key);
                    }
                    Ok(_) => {}
                }
            }
        }
        self.answered_at = ring::now();
        Ok(())
    }

    /// Whether topics that are asked for by name could have been made anew unseen, since the last
    /// answer is too long ago.
    pub(super) fn is_out_of_touch(&self, connection: &Connection) -> bool {
        let apart = ring::now() - self.answered_at;
        apart > OUT_OF_TOUCH_AFTER && self.recheck_until.is_none() && !self.asks_by_id(connection)
    }

    /// Whether the next answer goes on where the last batches were compared after a long pause.
    /// Until it has come nothing waits for the rate: that would be the next long pause.
    pub(super) fn is_rechecked(&self) -> bool {
        let comparing = |member: &Member| matches!(member.stage, Stage::Comparing(_));
        self.recheck_until.is_some_and(|until| {
            ring::now() > until || !self.members.iter().flatten().any(comparing)
        })
    }
}
