//! The ends of partitions: sealed for a failover, released, deleted.

use std::rc::Rc;
use std::sync::Arc;

use ring::{Share, spawn};
use storage::log::{Log, LogError, LogState};
use storage::position::Positions;
use tokio::sync::oneshot;

use super::{Shard, a_few_at_once};
use crate::control::{Mode, PartitionKey, Refused, Sealed};
use crate::limits::{FULL_DISK_PATIENCE, SEAL_PATIENCE};
use crate::partition::Partition;

impl Shard {
    pub(super) async fn seal(
        self: Rc<Self>,
        link: Arc<str>,
        topics: Vec<Arc<str>>,
        reply: oneshot::Sender<Vec<Sealed>>,
    ) {
        for partition in self.all_of_topics(&link, &topics) {
            self.set_mode(&partition, Mode::Sealed);
        }
        let partitions = self.of_topics(&link, Some(&topics));
        let flushing: Vec<_> = partitions
            .into_iter()
            .map(|partition| {
                let shard = Rc::clone(&self);
                spawn(Share::Replicate, async move {
                    let sealing = ring::timeout(SEAL_PATIENCE, shard.seal_one(&partition));
                    sealing.await.unwrap_or_else(|_| hangs(&partition))
                })
            })
            .collect();
        let mut sealed = Vec::with_capacity(flushing.len());
        for task in flushing {
            sealed.push(task.await);
        }
        let _ = reply.send(sealed);
    }

    async fn seal_one(&self, partition: &Partition) -> Sealed {
        let key = partition.key.clone();
        let nothing = Sealed { key, end_offset: None, last_epoch: None, error: None, hung: false };
        // A failover has freed the reserve of a full disk.
        if let Err(reason) = self.open_if_unopened(partition).await {
            return Sealed { error: Some(reason), ..nothing };
        }
        let Some(log) = partition.log() else { return nothing };
        let flushed = flush_if_possible(&log).await;
        let positions = log.positions();
        let error = flushed.err().map(|error| error.to_string());
        Sealed {
            end_offset: Some(positions.flushed.0.offset),
            last_epoch: positions.last_epoch,
            error: partition.damage().or(error),
            ..nothing
        }
    }

    pub(super) async fn release(
        self: Rc<Self>,
        partitions: Vec<PartitionKey>,
        reply: oneshot::Sender<()>,
    ) {
        a_few_at_once(partitions, |key| Rc::clone(&self).release_one(key)).await;
        let _ = reply.send(());
    }

    async fn release_one(self: Rc<Self>, key: PartitionKey) {
        if let Some(log) = self.take_out(&key).await
            && let Err(error) = log.close().await
        {
            tracing::warn!("{key}: closing its log: {error}");
        }
    }

    pub(super) async fn delete(
        self: Rc<Self>,
        partitions: Vec<PartitionKey>,
        reply: oneshot::Sender<Vec<Result<(), Refused>>>,
    ) {
        let mut answers = a_few_at_once(partitions, |key| Rc::clone(&self).delete_one(key)).await;
        // Or a power loss would bring back what a person was told is gone.
        if !self.store.flush().await {
            let reason = || NOT_DURABLE.to_owned();
            answers.iter_mut().for_each(|answer| *answer = Err(Refused { reason: reason() }));
        }
        let _ = reply.send(answers);
    }

    async fn delete_one(self: Rc<Self>, key: PartitionKey) -> Result<(), Refused> {
        let partition = self.partitions.borrow().get(&key).cloned();
        let Some(partition) = partition else { return Ok(()) };
        let opened = self.open_if_unopened(&partition).await;
        opened.map_err(|reason| Refused { reason })?;
        let Some(log) = self.take_out(&key).await else { return Ok(()) };
        if let Err(error) = log.delete().await {
            let reason = format!("{key}: {error}");
            // Or nobody would know of what is left, and the next order would say that all is gone.
            partition.set_log(Some(log));
            self.partitions.borrow_mut().insert(key, partition);
            return Err(Refused { reason });
        }
        Ok(())
    }
}

const NOT_DURABLE: &str = "its removal could not be made durable: the disk failed or is full, or \
                           the node is stopping; delete it again";

/// What is known of a partition whose disk does not answer.
fn hangs(partition: &Partition) -> Sealed {
    let positions = partition.log().map(|log| log.positions());
    Sealed {
        key: partition.key.clone(),
        end_offset: positions.map(|positions| positions.flushed.0.offset),
        last_epoch: positions.and_then(|positions| positions.last_epoch),
        error: Some(format!("its disk does not answer within {SEAL_PATIENCE:?}")),
        hung: true,
    }
}

/// Flushes what has come; on a disk that stays full, what could be written is all there is.
async fn flush_if_possible(log: &Log) -> Result<Positions, LogError> {
    loop {
        match ring::timeout(FULL_DISK_PATIENCE, log.flush()).await {
            Ok(flushed) => return flushed,
            Err(_) if log.state() == LogState::DiskFull => {
                return Err(LogError::State(LogState::DiskFull));
            }
            Err(_) => {}
        }
    }
}
