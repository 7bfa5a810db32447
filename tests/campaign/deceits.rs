//! Lies in what a source answers beside its records: where logs begin and end, where leader epochs
//! end, who leads, which topics there are. All of them are drawn from numbers of their own, so that
//! worlds without them stay what they were.

use shards::control::*;
use source::{Fault, Target};

use crate::model::StartLie;
use crate::world::World;

/// A lie about the cluster, told a few times.
#[derive(Clone, Debug)]
pub enum FalseView {
    /// Another broker leads.
    Leader(PartitionKey, Option<i32>),
    /// Another epoch is the leader's.
    Epoch(PartitionKey, i32),
    /// There is no such topic.
    NoTopic(PartitionKey),
    /// So many partitions more, or fewer.
    Partitions(PartitionKey, i32),
    /// There are no brokers.
    NoBrokers,
    /// No topics at all.
    NoTopics,
}

/// What a source may answer instead of what it was asked.
const CODES: [i16; 20] =
    [-1, 1, 2, 3, 5, 6, 7, 9, 14, 29, 35, 42, 43, 56, 74, 75, 78, 87, 100, 999];

impl World {
    /// One lie about a partition, or about the cluster.
    pub fn deceive(&mut self, key: &PartitionKey) {
        let target = Target::partition(key.topic.to_string(), key.partition);
        let times = 1 + self.guile.below(6);
        if self.plan.trouble.starts && self.guile.below(8) == 0 {
            return self.deceive_start(key, times);
        }
        let (fault, kind) = match self.guile.below(12) {
            0 => (self.offsets(key, true, false), "lie: log start"),
            1 => (self.offsets(key, false, true), "lie: log end"),
            2 => (self.offsets(key, true, true), "lie: log start and end"),
            drawn @ (3 | 4 | 7) => {
                let epoch = self.false_epoch(key);
                let end_offset = self.false_offset(key);
                match drawn {
                    7 => (Fault::Diverging { epoch, end_offset }, "lie: diverging epoch"),
                    _ => (Fault::EpochEnd { epoch, end_offset }, "lie: epoch end"),
                }
            }
            drawn @ (5 | 8) => {
                let code = CODES[self.guile.index(CODES.len())];
                match drawn {
                    5 => (Fault::RefuseQuestions(code), "lie: question refused"),
                    _ => (Fault::ErrorCode(code), "lie: fetch refused"),
                }
            }
            6 => {
                let other = [0, 1, 2, -1, 77][self.guile.index(5)];
                (Fault::AnswerAs(other), "lie: answer as another partition's")
            }
            _ => return self.deceive_control(key),
        };
        if !self.may_be_asked(key, &fault) {
            return;
        }
        self.trace(|| format!("{key} lies {times} times: {fault:?}"));
        self.cluster.inject(target.clone(), fault, Some(times));
        self.tally.count(kind);
        // Questions are asked for a reason.
        if self.guile.coin() {
            let times = 1 + self.guile.below(3);
            self.cluster.inject(target, Fault::ErrorCode(1), Some(times));
            self.tally.count("lie: out of range");
        }
    }

    fn deceive_control(&mut self, key: &PartitionKey) {
        let (key, brokers) = (key.clone(), self.brokers.len() as u64);
        let (lie, kind) = match self.guile.below(8) {
            0 | 1 => {
                let leader = self.guile.below(brokers + 2) as i32 - 1;
                (FalseView::Leader(key, (leader >= 0).then_some(leader)), "lie: leader")
            }
            2 | 3 => (FalseView::Epoch(key.clone(), self.false_epoch(&key)), "lie: leader epoch"),
            4 => (FalseView::NoTopic(key), "lie: no topic"),
            5 | 6 => {
                let by = self.guile.below(4) as i32 - 2;
                (FalseView::Partitions(key, by), "lie: partitions")
            }
            _ if self.guile.coin() => (FalseView::NoBrokers, "lie: no brokers"),
            _ => (FalseView::NoTopics, "lie: no topics"),
        };
        self.trace(|| format!("metadata lies: {lie:?}"));
        self.false_view = Some((lie, 1 + self.guile.below(4) as u32));
        self.tally.count(kind);
        self.tell_leaders();
    }

    /// Makes a lie of a true picture.
    pub fn lie_about(&mut self, view: &mut ClusterView) {
        let Some((lie, times)) = self.false_view.take() else { return };
        let find = |view: &mut ClusterView, key: &PartitionKey| {
            view.topics.iter().position(|topic| topic.topic == key.topic)
        };
        match &lie {
            FalseView::Leader(key, leader) => {
                if let Some(at) = find(view, key) {
                    view.topics[at].partitions[key.partition as usize].leader = *leader;
                }
            }
            FalseView::Epoch(key, epoch) => {
                if let Some(at) = find(view, key) {
                    view.topics[at].partitions[key.partition as usize].leader_epoch = *epoch;
                }
            }
            FalseView::NoTopic(key) => view.topics.retain(|topic| topic.topic != key.topic),
            FalseView::Partitions(key, by) => {
                if let Some(at) = find(view, key) {
                    let partitions = &mut view.topics[at].partitions;
                    let count = partitions.len() as i32 + by;
                    partitions.truncate(usize::try_from(count).unwrap_or(0));
                    for partition in partitions.len() as i32..count {
                        let (leader, leader_epoch) = (Some(0), 0);
                        partitions.push(PartitionView { partition, leader, leader_epoch });
                    }
                }
            }
            FalseView::NoBrokers => view.brokers.clear(),
            FalseView::NoTopics => view.topics.clear(),
        }
        if times > 1 {
            self.false_view = Some((lie, times - 1));
        }
    }

    /// Lies in fetches about where a log begins, unless answers to questions do, too: those that
    /// agree are believed.
    fn deceive_start(&mut self, key: &PartitionKey, times: u64) {
        let start = self.false_offset(key);
        let model = self.models.get_mut(key).expect("it is known");
        if *model.start_lie.get_or_insert(StartLie::Fetched) == StartLie::Fetched {
            let target = Target::partition(key.topic.to_string(), key.partition);
            self.trace(|| format!("{key} lies {times} times: log start {start}"));
            self.cluster.inject(target, Fault::LogStart(start), Some(times));
            self.tally.count("lie: log start of a fetch");
        }
    }

    /// The same for answers to questions.
    fn may_be_asked(&mut self, key: &PartitionKey, fault: &Fault) -> bool {
        // It may be any other partition that is answered for.
        let any = matches!(fault, Fault::AnswerAs(_));
        if !any && !matches!(fault, Fault::Offsets { earliest: Some(_), .. }) {
            return true;
        }
        let keys = self.models.keys().filter(|other| any || *other == key);
        let keys: Vec<PartitionKey> = keys.cloned().collect();
        let free = keys.iter().all(|key| self.models[key].start_lie != Some(StartLie::Fetched));
        for key in keys.iter().filter(|_| free) {
            self.models.get_mut(key).expect("it is known").start_lie = Some(StartLie::Asked);
        }
        free
    }

    fn offsets(&mut self, key: &PartitionKey, earliest: bool, latest: bool) -> Fault {
        let earliest = earliest.then(|| self.false_offset(key));
        let latest = latest.then(|| self.false_offset(key));
        Fault::Offsets { earliest, latest }
    }

    fn false_offset(&mut self, key: &PartitionKey) -> i64 {
        let log = self.log(key);
        let (start, end) = (log.log_start(), log.end_offset());
        let records = (end - start).max(0).unsigned_abs();
        match self.guile.below(10) {
            0 => 0,
            1 => start - 1 - self.guile.below(100).cast_signed(),
            2..5 => start + self.guile.below(records + 1).cast_signed(),
            5 => end - 1,
            6 => end + 1 + self.guile.below(1_000).cast_signed(),
            7 => [-1, -2, -7, i64::MIN][self.guile.index(4)],
            8 => i64::MAX - self.guile.below(2).cast_signed(),
            _ => end,
        }
    }

    fn false_epoch(&mut self, key: &PartitionKey) -> i32 {
        let epoch = self.log(key).leader_epoch();
        match self.guile.below(8) {
            0..3 => epoch,
            3 => epoch + 1 + self.guile.below(3) as i32,
            4 | 5 => epoch - 1 - self.guile.below(3) as i32,
            6 => [-1, i32::MIN][self.guile.index(2)],
            _ => i32::MAX,
        }
    }
}
