//! Topics that are deleted at the source and created again under the same name, with other records:
//! more, fewer, or as many.
//!
//! A source with topic ids may do so at any moment. One without is asked by name: that it is
//! another log can be known only if something interrupts the asking, and something does: the
//! topic is away until somebody noticed, or every connection is lost, or nobody is there to ask.

use std::sync::Arc;
use std::time::Duration;

use ring::Instant;
use shards::control::*;
use source::{Content, PartitionLog, TopicSpec};

use crate::control::link;
use crate::model::Model;
use crate::world::World;

/// By then nothing is shown any more that was so before.
const SHOWN_BY_THEN: Duration = Duration::from_millis(500);

/// A topic that is not at the source now.
pub struct Gone {
    since: Instant,
    /// Its logs as they were, by partition.
    pub logs: Vec<PartitionLog>,
}

impl World {
    /// Whether a topic is not at the source now.
    pub fn is_gone(&self, topic: &str) -> bool {
        self.gone.contains_key(topic)
    }

    /// Deletes a topic at the source, or creates it again, or both at once.
    pub fn recreate(&mut self) {
        let index = self.guile.index(self.plan.topics.len());
        let topic: Arc<str> = self.plan.topics[index].name.as_str().into();
        if self.is_gone(&topic) {
            if self.is_noticed(&topic) {
                self.create_topic(&topic);
            }
            return;
        }
        let at_once = self.guile.coin();
        if !at_once || !self.plan.old_source || self.shards.is_empty() {
            self.delete_topic(&topic);
            if at_once {
                self.create_topic(&topic);
            }
            return;
        }
        let up = |world: &World, broker: usize| world.brokers[broker].1.is_some();
        let up: Vec<usize> = (0..self.brokers.len()).filter(|broker| up(self, *broker)).collect();
        up.iter().for_each(|broker| self.stop_broker(*broker, false));
        self.delete_topic(&topic);
        self.create_topic(&topic);
        up.iter().for_each(|broker| self.start_broker(*broker));
    }

    /// Every topic is there again.
    pub fn create_gone(&mut self) {
        for topic in self.gone.keys().cloned().collect::<Vec<_>>() {
            self.create_topic(&topic);
        }
    }

    /// Whether none of a topic's partitions is fetched any more, since its source refused it.
    fn is_noticed(&self, topic: &str) -> bool {
        if !self.plan.old_source || self.shards.is_empty() {
            return true;
        }
        let fetched = |status: &PartitionStatus| {
            *status.key.topic == *topic
                && matches!(status.state, PartitionState::Active | PartitionState::Corrupt)
        };
        let last = || self.shards.iter().map(|shard| shard.last.as_ref());
        let known = last().all(|last| last.is_some());
        let statuses = last().flatten().flat_map(|last| &last.partitions);
        self.sim.now() - self.gone[topic].since >= SHOWN_BY_THEN
            && known
            && !statuses.into_iter().any(fetched)
    }

    fn delete_topic(&mut self, topic: &Arc<str>) {
        let keys = self.models.keys().filter(|key| key.topic == *topic).cloned();
        let logs = keys.map(|key| self.log(&key)).collect();
        self.cluster.delete_topic(topic).expect("it is there");
        self.gone.insert(Arc::clone(topic), Gone { since: self.sim.now(), logs });
        self.trace(|| format!("{topic} is deleted at the source"));
        self.tally.count("topic deleted at the source");
    }

    fn create_topic(&mut self, topic: &Arc<str>) {
        let Some(gone) = self.gone.remove(topic) else { return };
        let at = self.plan.topics.iter().position(|spec| *spec.name == **topic);
        let at = at.expect("it was there");
        let spec = self.another(self.plan.topics[at].clone(), &gone.logs[0]);
        self.cluster.add_topic(spec.clone()).expect("a possible topic");
        self.plan.topics[at] = spec;
        for (partition, before) in gone.logs.into_iter().enumerate() {
            let partition = partition as i32;
            let key = PartitionKey { link: link(), topic: Arc::clone(topic), partition };
            self.leaders.insert(key.clone(), partition as usize % self.brokers.len());
            let most = before.end_offset();
            self.models.get_mut(&key).expect("it is known").recreated = true;
            let kind = self.guile.below(4);
            while self.is_given(&key) && kind > 0 && self.guile.below(12) > 0 {
                if kind == 1 && self.log(&key).end_offset() >= most {
                    break;
                }
                self.grow(&key);
            }
            let now = self.log(&key).end_offset();
            self.tally.count(match now.cmp(&most) {
                std::cmp::Ordering::Less => "recreated with fewer records",
                std::cmp::Ordering::Equal => "recreated with as many records",
                std::cmp::Ordering::Greater => "recreated with more records",
            });
            let may_cut = self.plan.old_source;
            let allowed = self.settings.allow_truncation;
            let model = self.models.get_mut(&key).expect("it is known");
            model.recreated(before, may_cut);
            if may_cut && allowed && model.sealed.is_none() {
                // Its epochs may part as those of a source that lost its log's end.
                model.allow_cuts();
            }
        }
        self.trace(|| format!("{topic} is created again: {:?}", self.plan.topics[at].growth));
    }

    /// A topic of the same name and other records.
    fn another(&mut self, mut spec: TopicSpec, before: &PartitionLog) -> TopicSpec {
        let records = (before.end_offset() - spec.first_offset).unsigned_abs();
        // Kafka begins anew at 0; a model begins anywhere below the copy as well.
        if self.guile.below(3) > 0 {
            spec.first_offset = 0;
        }
        spec.leader_epoch = match self.guile.below(3) {
            0 => self.guile.below(5) as i32,
            _ => 0,
        };
        let per_batch = match &mut spec.content {
            Content::Generated { seed, batch_records, .. } => {
                *seed += 1_000 + self.guile.below(1_000);
                *batch_records as u64
            }
            Content::Records(batches) => {
                *batches = (0..30).map(|_| crate::plan::records(&mut self.guile)).collect();
                4
            }
            Content::Given => return spec,
        };
        let reach = records / per_batch.max(1);
        let offset = (spec.first_offset == 0).then(|| before.end_offset().unsigned_abs());
        let same = offset.map_or(reach, |end| end / per_batch.max(1)).min(400);
        spec.growth.backlog_batches = match self.guile.below(6) {
            0 => 0,
            1 => self.guile.below(1 + same),
            2 | 3 => same,
            4 => same + 1,
            _ => same + self.guile.below(60),
        };
        spec
    }

    /// What is in a copy of a log that is no more must be all of it that was flushed.
    pub fn check_old_copy(&mut self, status: &PartitionStatus) -> Result<(), String> {
        let log = self.log(&status.key);
        let model: &mut Model = self.models.get_mut(&status.key).expect("it is known");
        let (floor, key) = (model.floor, &status.key);
        if status.state == PartitionState::Corrupt || status.unopened {
            return Ok(());
        }
        if status.received < floor {
            return Err(format!("{key}: {floor} was flushed before it was recreated: {status:?}"));
        }
        let compared = self
            .sim
            .disk(ring::sim::Machine::FIRST, |disk| model.compare(disk, &log, floor, false))
            .map_err(|error| format!("of a log that is no more: {error} ({status:?})"))?;
        if compared.next < floor && compared.bytes > 0 {
            return Err(format!("{key}: {floor} was flushed, it ends at {}", compared.end));
        }
        self.tally.bytes += compared.bytes;
        self.tally.comparisons += 1;
        Ok(())
    }
}
