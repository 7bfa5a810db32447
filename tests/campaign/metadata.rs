//! What control sees of the source, and tells the shards: who leads what, and which topics there
//! are. The picture may be old, or a lie ([`crate::deceits`]); what control makes of a topic that
//! is gone, or another one by its id, is what the appliance makes of it (`controller::observe`).

use std::sync::Arc;

use shards::control::*;

use crate::brokers;
use crate::control::link;
use crate::verbs::Standing;
use crate::world::World;

/// Answers in a row that leave a topic out before it counts as deleted.
const MISSING_ANSWERS: u32 = 3;

impl World {
    /// Tells every shard who leads what, or, rarely, who led before.
    pub fn tell_leaders(&mut self) {
        let mut view = self.view();
        self.lie_about(&mut view);
        self.observe(&view);
        let view = Arc::new(view);
        let old = std::mem::replace(&mut self.old_view, Arc::clone(&view));
        let told = if self.once_in(20) && !old.topics.is_empty() { old } else { view };
        for shard in &self.shards {
            shard.tell(Command::Leaders { link: link(), view: Arc::clone(&told) });
        }
    }

    fn view(&self) -> ClusterView {
        let there = self.plan.topics.iter().filter(|topic| !self.is_gone(&topic.name));
        let topics = there.map(|topic| {
            let name: Arc<str> = topic.name.as_str().into();
            let partitions = (0..topic.partitions).map(|partition| {
                let key = PartitionKey { link: link(), topic: Arc::clone(&name), partition };
                let leader = self.leaders[&key];
                let up = self.brokers[leader].1.is_some();
                let leader_epoch = self.log(&key).leader_epoch();
                PartitionView { partition, leader: up.then_some(leader as i32), leader_epoch }
            });
            TopicView {
                partitions: partitions.collect(),
                topic_id: self.topic_id(&topic.name),
                topic: name,
            }
        });
        let broker = |id: usize| Broker {
            id: id as i32,
            host: format!("broker-{id}"),
            port: 9092,
            addresses: vec![brokers::address(id)],
        };
        ClusterView {
            topics: topics.collect(),
            brokers: (0..self.brokers.len()).map(broker).collect(),
        }
    }

    /// The topic's id as the source says it now, if it has ids.
    pub fn topic_id(&self, topic: &str) -> Option<uuid::Uuid> {
        let id = self.cluster.topic_id(topic).ok();
        id.filter(|_| !self.plan.old_source)
    }

    /// Holds topics that are gone, another one by their id, or of fewer partitions; lets those go
    /// on that are there again.
    fn observe(&mut self, view: &ClusterView) {
        for (topic, standing) in self.standing.clone() {
            let gone = standing == Standing::Held(FaultCode::TopicDeleted);
            if self.link_paused || standing != Standing::Followed && !gone {
                continue;
            }
            let Some(seen) = view.topics.iter().find(|seen| seen.topic == topic) else {
                let missing = self.missing.entry(Arc::clone(&topic)).or_default();
                *missing += 1;
                if !gone && *missing >= MISSING_ANSWERS {
                    self.hold(topic, FaultCode::TopicDeleted);
                }
                continue;
            };
            self.missing.remove(&topic);
            if !seen
                .partitions
                .iter()
                .map(|seen| seen.partition)
                .eq(0..seen.partitions.len() as i32)
            {
                continue;
            }
            let ours = self.models.keys().filter(|key| key.topic == topic).count();
            if self.known[&topic].is_some() && self.known[&topic] != seen.topic_id {
                self.hold(topic, FaultCode::TopicRecreated);
            } else if seen.partitions.len() < ours {
                self.hold(topic, FaultCode::PartitionsDecreased);
            } else if gone {
                self.resume(Some(topic));
            }
        }
    }

    fn hold(&mut self, topic: Arc<str>, code: FaultCode) {
        self.trace(|| format!("hold {topic} {}", code.name()));
        self.standing.insert(Arc::clone(&topic), Standing::Held(code));
        let Mode::Held { state, reason } = Standing::Held(code).mode() else { return };
        for shard in &self.shards {
            let (topic, reason) = (Arc::clone(&topic), reason.clone());
            shard.tell(Command::Hold { link: link(), topic, state, reason });
        }
        self.tally.count(match code {
            FaultCode::TopicRecreated => "held: another topic id",
            FaultCode::TopicDeleted => "held: topic gone",
            _ => "held: fewer partitions",
        });
    }
}
