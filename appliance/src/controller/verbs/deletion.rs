//! Deletion of topics: marked first, so that a crash stops it as little as a slow disk.

use std::collections::HashSet;

use super::Outcome;
use super::keeping::LinkChange;
use crate::controller::link::Link;
use crate::controller::records;
use crate::controller::store::StoreError;
use crate::words::count;

/// Ten thousand may fail at once, for one reason: so many are named.
const NAMED_MAX: usize = 10;

impl Link {
    pub(super) async fn delete_topics(
        &self,
        names: &[String],
        outcome: &mut Outcome,
    ) -> Result<(), Outcome> {
        let (partitions, again) = {
            let state = self.state.borrow();
            let partitions: usize = names.iter().map(|name| state.topics[name].shards.len()).sum();
            let covered = |name: &&String| state.config.topics.covers(name);
            (partitions, names.iter().filter(covered).count())
        };
        outcome.steps = vec![
            "write that they are being deleted".to_owned(),
            format!("stop fetching and remove the files of {}", count(partitions, "partition")),
            "forget them".to_owned(),
        ];
        if again > 0 {
            outcome.steps.push(format!(
                "{again} of them are covered by the link's filters: while the source has them, a \
                 new copy begins"
            ));
        }
        if outcome.dry_run {
            return Ok(());
        }
        self.store_topics(names, LinkChange::None, |_, record| record.deleting = true).await?;
        self.finish_deletions().await?;
        let left = self.names(|record| record.deleting);
        if left.is_empty() {
            return Ok(());
        }
        let some = left[..left.len().min(NAMED_MAX)].join(", ");
        let more = match left.len().saturating_sub(NAMED_MAX) {
            0 => String::new(),
            more => format!(" and {more} more topics"),
        };
        Err(Outcome::failed("files_remain", format!("files of {some}{more} could not go")))
    }

    /// Removes the files and records of topics marked so, at once or after a restart.
    pub(in super::super) async fn finish_deletions(&self) -> Result<(), StoreError> {
        let marked = self.names(|record| record.deleting);
        if marked.is_empty() {
            return Ok(());
        }
        // A shard knows nothing of what it could not open, files included.
        self.open_refused(Some(&marked)).await;
        let (owned, unopened) = {
            let state = self.state.borrow();
            let (mut owned, mut unopened) = (Vec::new(), Vec::new());
            for name in &marked {
                let topic = &state.topics[name];
                for (shard, key) in self.owned(name, topic) {
                    match topic.refused.get(&key.partition) {
                        None => owned.push((shard, key)),
                        Some(reason) => unopened.push((key, reason.clone())),
                    }
                }
            }
            (owned, unopened)
        };
        let mut failures = self.shared.shards.delete(owned).await;
        failures.extend(unopened);
        for (key, error) in failures.iter().take(NAMED_MAX) {
            let (link, topic, partition) = (&*key.link, &*key.topic, key.partition);
            tracing::error!(link, topic, partition, error, "files could not be removed");
        }
        if let more @ 1.. = failures.len().saturating_sub(NAMED_MAX) {
            tracing::error!(link = &**self.name(), more, "more files could not be removed");
        }
        let failed: HashSet<&str> = failures.iter().map(|(key, _)| &*key.topic).collect();
        let gone: Vec<String> =
            marked.into_iter().filter(|name| !failed.contains(name.as_str())).collect();
        let changes = gone.iter().map(|name| records::remove_topic(self.name(), name)).collect();
        self.shared.store.commit(changes).await?;
        let mut state = self.state.borrow_mut();
        let mut placement = self.shared.placement.borrow_mut();
        for name in gone {
            let Some(topic) = state.topics.remove(&name) else { continue };
            for (shard, dir) in topic.shards.iter().zip(&topic.record.partitions) {
                placement.leave(*shard, dir);
            }
        }
        drop((state, placement));
        self.refresh_soon();
        Ok(())
    }
}
