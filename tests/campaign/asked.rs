//! Whether every copy has heard from its source since.
//!
//! A copy may be as long as a source that lost its log's end and grew again: that it is another
//! one, it hears with the next answer. An answer that was on its way before tells nothing; the one
//! behind it was asked for afterwards.

use std::collections::BTreeMap;
use std::time::Duration;

use ring::Instant;
use shards::control::{PartitionKey, PartitionState};

use crate::world::World;

/// In which every partition is answered: twice as long as a source may hold a fetch.
const ASKED_AGAIN: Duration = Duration::from_secs(1);
/// In which a connection that went silent is given up, and a new one answered twice.
const SILENT_MAX: Duration = Duration::from_secs(45);
/// The same moment may be told differently by so much, for it is told on another clock.
const SAME_MS: i64 = 2;
/// Answers of which the last was asked for after the first had come.
const ANSWERS: u32 = 2;

/// What was heard since everything was as it should be.
#[derive(Default)]
pub struct Asked {
    since: Option<Instant>,
    /// When the last answer came, and how many did.
    heard: BTreeMap<PartitionKey, (i64, u32)>,
}

impl Asked {
    /// Whether what the source would have said otherwise has been heard.
    pub fn again(&mut self, world: &World) -> bool {
        let now = world.sim.now();
        let waited = now - *self.since.get_or_insert(now);
        if !(world.plan.trouble.unclean || world.plan.trouble.recreated) || waited >= SILENT_MAX {
            return true;
        }
        let shards = world.shards.iter().filter_map(|shard| shard.last.as_ref());
        let mut all = true;
        for status in shards.flat_map(|status| &status.partitions) {
            if status.state != PartitionState::Active {
                continue;
            }
            let at = status.caught_up_at_ms.unwrap_or(i64::MIN);
            let (last, answers) = self.heard.entry(status.key.clone()).or_insert((at, 0));
            if at > last.saturating_add(SAME_MS) {
                (*last, *answers) = (at, *answers + 1);
            }
            all &= *answers >= ANSWERS;
        }
        all && waited >= ASKED_AGAIN
    }
}
