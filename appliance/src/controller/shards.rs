//! The shards as control sees them: queues to send commands to, answers gathered in bounded time.

use shards::control::{Assign, Command, PartitionKey, Sealed, ShardStatus};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

/// How long a failover waits for the flush barrier. A disk that takes longer is broken.
const SEAL_TIMEOUT: Duration = Duration::from_secs(30);
/// How long opening logs may take: recovery scans what lies above the last checkpoint.
const ASSIGN_TIMEOUT: Duration = Duration::from_secs(600);
/// How long closing sockets or logs may take.
const PAUSE_TIMEOUT: Duration = Duration::from_secs(30);
/// Partitions deleted in one go: more would outlast the answer.
const DELETED_AT_ONCE: usize = 256;
/// How long a status waits; a shard that does not answer is left out.
const STATUS_TIMEOUT: Duration = Duration::from_secs(2);

/// A shard did not do as told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShardError {
    /// Its thread has ended.
    #[error("shard {0} has ended")]
    Gone(usize),
    /// It did not answer in time.
    #[error("shard {0} did not answer within {1:?}")]
    Late(usize, Duration),
}

/// Queues to all shards.
#[derive(Clone)]
pub struct Shards {
    senders: Vec<mpsc::Sender<Command>>,
}

impl Shards {
    /// # Panics
    /// Without a shard.
    pub fn new(senders: Vec<mpsc::Sender<Command>>) -> Self {
        assert!(!senders.is_empty(), "at least one shard");
        Shards { senders }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.senders.len()
    }

    /// Sends to every shard, without waiting for effects.
    pub async fn broadcast(&self, command: impl Fn() -> Command) {
        for sender in &self.senders {
            // A dead shard is reported by its own event.
            let _ = sender.send(command()).await;
        }
    }

    /// Opens partitions; the results come in the order of `assigns`.
    pub async fn assign(&self, assigns: Vec<(usize, Assign)>) -> Vec<Result<(), String>> {
        let total = assigns.len();
        let mut by_shard: Vec<Vec<(usize, Assign)>> = vec![Vec::new(); self.count()];
        for (position, (shard, assign)) in assigns.into_iter().enumerate() {
            by_shard[shard].push((position, assign));
        }
        let mut results: Vec<Result<(), String>> = vec![Ok(()); total];
        let mut waiting = Vec::new();
        for (shard, group) in by_shard.into_iter().enumerate().filter(|(_, g)| !g.is_empty()) {
            let (positions, partitions): (Vec<usize>, Vec<Assign>) = group.into_iter().unzip();
            let (reply, answer) = oneshot::channel();
            let _ = self.senders[shard].send(Command::Assign { partitions, reply }).await;
            waiting.push((shard, positions, answer));
        }
        let deadline = Instant::now() + ASSIGN_TIMEOUT;
        for (shard, positions, answer) in waiting {
            let answers = wait(shard, answer, deadline, ASSIGN_TIMEOUT).await;
            for (index, position) in positions.into_iter().enumerate() {
                results[position] = match &answers {
                    Ok(answers) => match answers.get(index) {
                        Some(Err(refused)) => Err(refused.reason.clone()),
                        _ => Ok(()),
                    },
                    Err(error) => Err(error.to_string()),
                };
            }
        }
        results
    }

    /// Stops fetching; see [`Command::Pause`].
    ///
    /// # Errors
    /// When a shard does not confirm.
    pub async fn pause(
        &self,
        link: &Arc<str>,
        topics: Option<Vec<Arc<str>>>,
    ) -> Result<(), ShardError> {
        self.ask(PAUSE_TIMEOUT, |reply| Command::Pause {
            link: link.clone(),
            topics: topics.clone(),
            reply,
        })
        .await
        .map(drop)
    }

    /// The flush barrier; see [`Command::Seal`].
    ///
    /// # Errors
    /// When a shard does not confirm: then nothing is known of its partitions.
    pub async fn seal(
        &self,
        link: &Arc<str>,
        topics: &[Arc<str>],
    ) -> Result<Vec<Sealed>, ShardError> {
        let answers = self
            .ask(SEAL_TIMEOUT, |reply| Command::Seal {
                link: link.clone(),
                topics: topics.to_vec(),
                reply,
            })
            .await?;
        Ok(answers.into_iter().flatten().collect())
    }

    /// Closes partitions; their files stay.
    ///
    /// # Errors
    /// When a shard does not confirm.
    pub async fn release(&self, partitions: Vec<(usize, PartitionKey)>) -> Result<(), ShardError> {
        let deadline = Instant::now() + PAUSE_TIMEOUT;
        let mut waiting = Vec::new();
        for (shard, partitions) in self.by_shard(partitions) {
            let (reply, answer) = oneshot::channel();
            let _ = self.senders[shard].send(Command::Release { partitions, reply }).await;
            waiting.push((shard, answer));
        }
        for (shard, answer) in waiting {
            wait(shard, answer, deadline, PAUSE_TIMEOUT).await?;
        }
        Ok(())
    }

    /// Closes partitions and removes their folders. Failures come with their key.
    pub async fn delete(
        &self,
        partitions: Vec<(usize, PartitionKey)>,
    ) -> Vec<(PartitionKey, String)> {
        let mut failures = Vec::new();
        for some in partitions.chunks(DELETED_AT_ONCE) {
            self.delete_some(some.to_vec(), &mut failures).await;
        }
        failures
    }

    async fn delete_some(
        &self,
        partitions: Vec<(usize, PartitionKey)>,
        failures: &mut Vec<(PartitionKey, String)>,
    ) {
        let mut waiting = Vec::new();
        for (shard, keys) in self.by_shard(partitions) {
            let (reply, answer) = oneshot::channel();
            let command = Command::Delete { partitions: keys.clone(), reply };
            let _ = self.senders[shard].send(command).await;
            waiting.push((shard, keys, answer));
        }
        let deadline = Instant::now() + PAUSE_TIMEOUT;
        for (shard, keys, answer) in waiting {
            match wait(shard, answer, deadline, PAUSE_TIMEOUT).await {
                Ok(results) => {
                    for (key, result) in keys.into_iter().zip(results) {
                        failures.extend(result.err().map(|refused| (key, refused.reason)));
                    }
                }
                Err(error) => failures.extend(keys.into_iter().map(|k| (k, error.to_string()))),
            }
        }
    }

    fn by_shard(&self, keys: Vec<(usize, PartitionKey)>) -> Vec<(usize, Vec<PartitionKey>)> {
        let mut by_shard: Vec<Vec<PartitionKey>> = vec![Vec::new(); self.count()];
        for (shard, key) in keys {
            by_shard[shard].push(key);
        }
        by_shard.into_iter().enumerate().filter(|(_, keys)| !keys.is_empty()).collect()
    }

    /// Snapshots by shard; a shard that does not answer in time is absent.
    pub async fn status(&self, link: Option<Arc<str>>) -> Vec<Option<ShardStatus>> {
        let mut waiting = Vec::new();
        let deadline = Instant::now() + STATUS_TIMEOUT;
        for sender in &self.senders {
            let (reply, answer) = oneshot::channel();
            // A full queue means a shard that does not come round: do not wait for it.
            let sent = sender.try_send(Command::Status { link: link.clone(), reply });
            waiting.push(sent.ok().map(|()| answer));
        }
        let mut statuses = Vec::new();
        for (shard, answer) in waiting.into_iter().enumerate() {
            statuses.push(match answer {
                Some(answer) => wait(shard, answer, deadline, STATUS_TIMEOUT).await.ok(),
                None => None,
            });
        }
        statuses
    }

    /// Clean stop of all shards within `limit`; the ones that did not make it are named.
    pub async fn stop(&self, limit: Duration) -> Result<(), ShardError> {
        self.ask(limit, |reply| Command::Stop { reply }).await.map(drop)
    }

    /// Sends to all first and waits then, so that they work at the same time, and so that one
    /// that does not listen, or is gone, keeps nothing from the others.
    async fn ask<T>(
        &self,
        limit: Duration,
        command: impl Fn(oneshot::Sender<T>) -> Command,
    ) -> Result<Vec<T>, ShardError> {
        let deadline = Instant::now() + limit;
        let (mut waiting, mut full, mut failed) = (Vec::new(), Vec::new(), None);
        for (shard, sender) in self.senders.iter().enumerate() {
            let (reply, answer) = oneshot::channel();
            match sender.try_send(command(reply)) {
                Ok(()) => {}
                Err(TrySendError::Full(command)) => full.push((shard, command)),
                Err(TrySendError::Closed(_)) => drop(failed.get_or_insert(ShardError::Gone(shard))),
            }
            waiting.push((shard, answer));
        }
        for (shard, command) in full {
            if timeout_at(deadline, self.senders[shard].send(command)).await.is_err() {
                failed.get_or_insert(ShardError::Late(shard, limit));
            }
        }
        let mut answers = Vec::new();
        for (shard, answer) in waiting {
            match wait(shard, answer, deadline, limit).await {
                Ok(answer) => answers.push(answer),
                Err(error) => drop(failed.get_or_insert(error)),
            }
        }
        failed.map_or(Ok(answers), Err)
    }
}

async fn wait<T>(
    shard: usize,
    answer: oneshot::Receiver<T>,
    deadline: Instant,
    limit: Duration,
) -> Result<T, ShardError> {
    match timeout_at(deadline, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(_)) => Err(ShardError::Gone(shard)),
        Err(_) => Err(ShardError::Late(shard, limit)),
    }
}
