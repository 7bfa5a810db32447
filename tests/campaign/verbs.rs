//! What a person orders while the worlds run: topics and the link paused and resumed, topics failed
//! over, topics deleted. The orders go to the shards as control gives them; what control would have
//! written down before or after is kept in [`Standing`].

use std::sync::Arc;

use shards::control::*;
use tokio::sync::oneshot::{self, error::TryRecvError};

use crate::control::{self, link};
use crate::world::World;

/// What is written down of a topic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    /// It follows the source.
    #[default]
    Followed,
    /// By order it does not.
    Paused,
    /// It never will again.
    FailedOver,
    /// Its files have to go; when they have, it begins anew.
    Deleting,
    /// Control saw at the source what a person has to look at.
    Held(FaultCode),
}

impl Standing {
    /// How its partitions are to be kept.
    pub fn mode(self) -> Mode {
        match self {
            Standing::Followed => Mode::Replicate,
            Standing::Paused => Mode::Paused,
            Standing::FailedOver | Standing::Deleting => Mode::Sealed,
            Standing::Held(code) => Mode::Held {
                state: PartitionState::Faulted(code),
                reason: format!("the source's metadata: {}", code.name()),
            },
        }
    }
}

/// An order that not every shard has carried out yet.
pub struct Order {
    /// `None`: the whole link.
    topic: Option<Arc<str>>,
    answers: Answers,
}

enum Answers {
    Pause(Vec<oneshot::Receiver<()>>),
    Seal(Vec<oneshot::Receiver<Vec<Sealed>>>, Vec<Sealed>),
    Delete(Vec<oneshot::Receiver<Vec<Result<(), Refused>>>>, bool),
}

impl World {
    /// One order, drawn by lot.
    pub fn order(&mut self) {
        let topics: Vec<Arc<str>> = self.standing.keys().cloned().collect();
        let topic = Arc::clone(&topics[self.lot.index(topics.len())]);
        let busy = |order: &Order| order.topic.as_ref().is_none_or(|other| *other == topic);
        if self.orders.iter().any(busy) || !self.shards.iter_mut().all(|s| s.is_assigned()) {
            return;
        }
        let live = matches!(self.standing[&topic], Standing::Followed | Standing::Paused);
        let held = matches!(self.standing[&topic], Standing::Held(_));
        match self.lot.below(10) {
            3..6 if held => self.resume(Some(topic)),
            7 if held => self.fail_over(topic),
            0..3 if live => self.pause(Some(topic)),
            3..6 if self.standing[&topic] == Standing::Paused => self.resume(Some(topic)),
            6 if self.link_paused => self.resume(None),
            6 if self.orders.is_empty() => self.pause(None),
            7 if live => self.fail_over(topic),
            8 => self.delete(topic),
            _ => {}
        }
    }

    fn pause(&mut self, topic: Option<Arc<str>>) {
        match &topic {
            Some(topic) => {
                self.standing.insert(Arc::clone(topic), Standing::Paused);
                self.tally.count("topic paused");
            }
            None => {
                self.link_paused = true;
                self.tally.count("link paused");
            }
        }
        self.trace(|| format!("pause {topic:?}"));
        let topics = topic.clone().map(|topic| vec![topic]);
        let answers = self.ask_all(|reply| {
            let topics = topics.clone();
            Command::Pause { link: link(), topics, reply }
        });
        self.orders.push(Order { topic, answers: Answers::Pause(answers) });
    }

    pub fn resume(&mut self, topic: Option<Arc<str>>) {
        self.trace(|| format!("resume {topic:?}"));
        match &topic {
            Some(topic) => {
                self.standing.insert(Arc::clone(topic), Standing::Followed);
                self.models_of(topic).for_each(|model| model.stands = None);
                self.tally.count("topic resumed");
            }
            None => {
                self.link_paused = false;
                self.link_silent = false;
                self.models.values_mut().for_each(|model| model.stands = None);
                self.tally.count("link resumed");
            }
        }
        for shard in &self.shards {
            let topics = topic.clone().map(|topic| vec![topic]);
            shard.tell(Command::Resume { link: link(), topics });
        }
    }

    /// The failover of one topic: its ends are written down when every shard has flushed.
    fn fail_over(&mut self, topic: Arc<str>) {
        self.trace(|| format!("fail over {topic}"));
        let answers = self.ask_all(|reply| {
            let topics = vec![Arc::clone(&topic)];
            Command::Seal { link: link(), topics, reply }
        });
        let answers = Answers::Seal(answers, Vec::new());
        self.orders.push(Order { topic: Some(topic), answers });
    }

    /// Has the files of a topic go, whatever it is doing.
    pub fn delete(&mut self, topic: Arc<str>) {
        self.trace(|| format!("delete {topic}"));
        self.standing.insert(Arc::clone(&topic), Standing::Deleting);
        self.models_of(&topic).for_each(|model| model.forget());
        let mine = |owner: usize| {
            let of_it = self.owners.iter().filter(|(key, _)| key.topic == topic);
            of_it.filter(|(_, of)| **of == owner).map(|(key, _)| key.clone()).collect::<Vec<_>>()
        };
        let mut answers = Vec::new();
        for (index, shard) in self.shards.iter().enumerate() {
            let (reply, answer) = oneshot::channel();
            shard.tell(Command::Delete { partitions: mine(index), reply });
            answers.push(answer);
        }
        let answers = Answers::Delete(answers, true);
        self.orders.push(Order { topic: Some(topic), answers });
    }

    fn ask_all<T>(
        &self,
        command: impl Fn(oneshot::Sender<T>) -> Command,
    ) -> Vec<oneshot::Receiver<T>> {
        let ask = |shard: &control::Shard| {
            let (reply, answer) = oneshot::channel();
            shard.tell(command(reply));
            answer
        };
        self.shards.iter().map(ask).collect()
    }

    fn models_of(&mut self, topic: &str) -> impl Iterator<Item = &mut crate::model::Model> {
        self.models.iter_mut().filter(move |(key, _)| *key.topic == *topic).map(|(_, m)| m)
    }

    /// Takes in what shards have answered; what is answered by all of them is done.
    pub fn take_answers(&mut self) -> Result<(), String> {
        for mut order in std::mem::take(&mut self.orders) {
            match order.answers.all() {
                true => self.done(order)?,
                false => self.orders.push(order),
            }
        }
        Ok(())
    }

    fn done(&mut self, order: Order) -> Result<(), String> {
        match (order.topic, order.answers) {
            (None, _) => self.link_silent = self.link_paused,
            (Some(topic), Answers::Pause(_)) => {
                // From here on nothing is appended: what the next status says stays.
                if self.standing[&topic] == Standing::Paused {
                    self.models_of(&topic).for_each(|model| model.stands = Some(i64::MAX));
                }
            }
            (Some(topic), Answers::Seal(_, sealed)) => {
                self.standing.insert(Arc::clone(&topic), Standing::FailedOver);
                self.tally.count("topic failed over");
                for Sealed { key, end_offset, error, .. } in sealed {
                    self.trace(|| format!("{key} failed over at {end_offset:?}, {error:?}"));
                    let model = self.models.get_mut(&key).expect("it is known");
                    let end = end_offset.filter(|_| error.is_none());
                    if end.is_some_and(|end| end < model.floor) {
                        let floor = model.floor;
                        return Err(format!("{key}: sealed at {end:?}, {floor} was flushed"));
                    }
                    model.seal(end);
                }
                // A log that could not be opened is not spoken of, and is sealed from now on, too.
                let unopened = self.models_of(&topic).filter(|model| model.sealed.is_none());
                unopened.for_each(|model| model.seal(None));
            }
            (Some(topic), Answers::Delete(_, gone)) => {
                let trouble = self.plan.trouble;
                if !gone && !self.stopping && !trouble.bad_disk && !trouble.full_disk {
                    return Err(format!("{topic}: not deleted on a good disk"));
                }
                if gone {
                    self.begin_anew(topic);
                } else {
                    self.tally.count("deletion refused");
                }
            }
        }
        Ok(())
    }

    /// The topic is still at the source: control finds it again, and some shard gets it.
    fn begin_anew(&mut self, topic: Arc<str>) {
        self.tally.count("topic deleted");
        self.standing.insert(Arc::clone(&topic), Standing::Followed);
        self.models_of(&topic).for_each(|model| model.forget());
        self.missing.remove(&topic);
        if !self.is_gone(&topic) {
            let id = self.topic_id(&topic);
            self.known.insert(Arc::clone(&topic), id);
        }
        for last in self.shards.iter_mut().filter_map(|shard| shard.last.as_mut()) {
            last.partitions.retain(|partition| partition.key.topic != topic);
        }
        let keys: Vec<_> = self.owners.keys().filter(|key| key.topic == topic).cloned().collect();
        let mut assigns: Vec<Vec<Assign>> = self.shards.iter().map(|_| Vec::new()).collect();
        for key in keys {
            let owner = self.lot.index(self.shards.len());
            assigns[owner].push(self.assign(&key));
            self.owners.insert(key, owner);
        }
        for (shard, assigns) in self.shards.iter_mut().zip(assigns) {
            if !assigns.is_empty() {
                shard.assign(assigns);
            }
        }
        if self.telling {
            self.tell_leaders();
        }
    }

    /// The process has ended: what was not answered was not done.
    pub fn forget_orders(&mut self) {
        self.orders.clear();
        self.link_silent = false;
        for model in self.models.values_mut() {
            model.stands = None;
        }
    }

    /// Everything is followed again but what has failed over.
    pub fn resume_all(&mut self) {
        if self.link_paused {
            self.resume(None);
        }
        for topic in self.standing.keys().cloned().collect::<Vec<_>>() {
            if self.standing[&topic] == Standing::Paused {
                self.resume(Some(topic));
            }
        }
    }
}

impl Answers {
    /// Whether all have come. One that will never come leaves the order as it is.
    fn all(&mut self) -> bool {
        match self {
            Answers::Pause(waiting) => {
                waiting.retain_mut(|answer| answer.try_recv().is_err());
                waiting.is_empty()
            }
            Answers::Seal(waiting, sealed) => {
                waiting.retain_mut(|answer| match answer.try_recv() {
                    Ok(more) => {
                        sealed.extend(more);
                        false
                    }
                    Err(TryRecvError::Empty | TryRecvError::Closed) => true,
                });
                waiting.is_empty()
            }
            Answers::Delete(waiting, gone) => {
                waiting.retain_mut(|answer| match answer.try_recv() {
                    Ok(all) => {
                        *gone &= all.iter().all(Result::is_ok);
                        false
                    }
                    Err(TryRecvError::Empty | TryRecvError::Closed) => true,
                });
                waiting.is_empty()
            }
        }
    }
}
