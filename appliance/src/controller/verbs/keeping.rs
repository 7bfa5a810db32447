//! What verbs write down: durable first, then known in memory.

use storage::metadata::Change;

use crate::controller::link::Link;
use crate::controller::records::{self, LinkRecord, TopicRecord};
use crate::controller::store::StoreError;
use crate::controller::wall_ms;
use crate::states::{LinkMode, TopicState};

/// What becomes of the link in the same transaction.
pub(super) enum LinkChange {
    None,
    Pause,
}

impl Link {
    pub(super) fn names(&self, wanted: impl Fn(&TopicRecord) -> bool) -> Vec<String> {
        let state = self.state.borrow();
        let topics = state.topics.iter().filter(|(_, topic)| wanted(&topic.record));
        topics.map(|(name, _)| name.clone()).collect()
    }

    pub(super) async fn set_topics(
        &self,
        names: &[String],
        to: TopicState,
        link: LinkChange,
    ) -> Result<(), StoreError> {
        self.store_topics(names, link, |_, record| record.become_state(to, None, wall_ms())).await
    }

    /// One transaction; memory follows only when it is durable.
    pub(super) async fn store_topics(
        &self,
        names: &[String],
        link: LinkChange,
        mut change: impl FnMut(&str, &mut TopicRecord),
    ) -> Result<(), StoreError> {
        let records: Vec<(String, TopicRecord)> = {
            let state = self.state.borrow();
            let changed = names.iter().map(|name| {
                let mut record = state.topics[name].record.clone();
                change(name, &mut record);
                (name.clone(), record)
            });
            changed.collect()
        };
        let topic =
            |(name, record): &(String, TopicRecord)| records::set_topic(self.name(), name, record);
        let changes = records.iter().map(topic).collect();
        match link {
            LinkChange::Pause => self.set_mode(LinkMode::Paused, changes).await?,
            LinkChange::None => self.shared.store.commit(changes).await?,
        }
        let mut state = self.state.borrow_mut();
        for (name, record) in records {
            if let Some(topic) = state.topics.get_mut(&name) {
                topic.record = record;
            }
        }
        Ok(())
    }

    pub(super) async fn set_mode(
        &self,
        mode: LinkMode,
        mut with: Vec<Change>,
    ) -> Result<(), StoreError> {
        let known = self.state.borrow().record.clone();
        let since_ms = if known.mode == mode { known.since_ms } else { wall_ms() };
        let record = LinkRecord { mode, since_ms, ..known };
        with.push(records::set_link(self.name(), &record));
        self.shared.store.commit(with).await?;
        self.state.borrow_mut().record = record;
        Ok(())
    }
}
