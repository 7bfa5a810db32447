//! What a request names: everything that is wanted, or what has changed.

use super::{Asked, FetchSession, NONE, Phase, Slot, Topic};
use crate::fetch::request::{put_count, put_no_tags, put_partition, put_topic};

impl FetchSession {
    pub(super) fn encode_full(&mut self, version: i16, out: &mut Vec<u8>) -> Asked {
        self.settle_dirty(|_| {});
        for slot in &mut self.slots {
            slot.sent = None;
        }
        let listed = |slots: &[Slot], topic: &Topic| {
            topic.partitions.iter().filter(|&&(_, s)| slots[s as usize].wanted.is_some()).count()
        };
        let rotation = self.rotation;
        self.rotation = rotation.wrapping_add(1);
        let start = if self.topics.is_empty() { 0 } else { rotation % self.topics.len() };
        let in_turn = (start..self.topics.len()).chain(0..start);
        let topics = in_turn.clone().filter(|&at| listed(&self.slots, &self.topics[at]) > 0);
        put_count(out, version, topics.count());
        let mut wanted = 0;
        for at in in_turn {
            let topic = &self.topics[at];
            let count = listed(&self.slots, topic);
            if count == 0 {
                continue;
            }
            put_topic(out, version, topic.called());
            put_count(out, version, count);
            let first = rotation % topic.partitions.len();
            let (head, tail) = topic.partitions.split_at(first);
            for &(partition, slot) in tail.iter().chain(head) {
                let slot = &mut self.slots[slot as usize];
                if let Some(want) = slot.wanted {
                    put_partition(out, version, partition, &want);
                    slot.sent = Some(want);
                }
            }
            put_no_tags(out, version);
            wanted += count;
        }
        if version >= 7 {
            put_count(out, version, 0); // nothing to forget
        }
        Asked { full: true, wanted, forgotten: 0 }
    }

    pub(super) fn encode_changes(&mut self, version: i16, out: &mut Vec<u8>) -> Asked {
        let mut forget = std::mem::take(&mut self.forget);
        self.settle_dirty(|slot| forget.push(slot));
        let mut changed = std::mem::take(&mut self.dirty);
        self.put_groups(version, &mut changed, out, |slot, out| {
            let want = slot.wanted.expect("wanted and changed");
            put_partition(out, version, slot.partition, &want);
            slot.sent = Some(want);
        });
        self.put_groups(version, &mut forget, out, |slot, out| {
            out.extend_from_slice(&slot.partition.to_be_bytes());
            slot.sent = None;
        });
        let asked = Asked { full: false, wanted: changed.len(), forgotten: forget.len() };
        for &slot in &forget {
            if self.slots[slot as usize].key == NONE {
                self.free(slot);
            }
        }
        changed.clear();
        forget.clear();
        (self.dirty, self.forget) = (changed, forget);
        asked
    }

    /// Unmarks everything. What is wanted and differs from what was sent stays in `self.dirty`;
    /// what was sent and is not wanted goes to `forget`; removed partitions that the source does
    /// not know of are freed. With a full request nothing that was sent matters any more.
    fn settle_dirty(&mut self, mut forget: impl FnMut(u32)) {
        let full = matches!(self.phase, Phase::Full { .. });
        let mut dirty = std::mem::take(&mut self.dirty);
        dirty.retain(|&at| {
            let slot = &mut self.slots[at as usize];
            slot.dirty = false;
            match (slot.wanted, slot.sent) {
                (Some(wanted), sent) => !full && sent != Some(wanted),
                (None, Some(_)) if !full => {
                    forget(at);
                    false
                }
                (None, _) => {
                    if slot.key == NONE {
                        self.free(at);
                    }
                    false
                }
            }
        });
        self.dirty = dirty;
    }

    /// Writes an array of topics, each with an array of those of its partitions that are `listed`.
    fn put_groups(
        &mut self,
        version: i16,
        listed: &mut [u32],
        out: &mut Vec<u8>,
        mut put: impl FnMut(&mut Slot, &mut Vec<u8>),
    ) {
        listed.sort_unstable_by_key(|&at| {
            let slot = &self.slots[at as usize];
            (slot.topic, slot.partition)
        });
        let topic_of = |slots: &[Slot], at: u32| slots[at as usize].topic;
        let groups = listed.chunk_by(|&a, &b| topic_of(&self.slots, a) == topic_of(&self.slots, b));
        put_count(out, version, groups.count());
        let mut rest = &*listed;
        while let Some(&first) = rest.first() {
            let topic = topic_of(&self.slots, first);
            let count = rest.iter().take_while(|&&at| topic_of(&self.slots, at) == topic).count();
            let (group, others) = rest.split_at(count);
            put_topic(out, version, self.topics[topic as usize].called());
            put_count(out, version, count);
            for &at in group {
                put(&mut self.slots[at as usize], out);
            }
            put_no_tags(out, version);
            rest = others;
        }
    }
}
