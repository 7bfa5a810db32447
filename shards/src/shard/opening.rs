//! Opening logs: when partitions are assigned, when the source has said where a new one begins, and
//! again after they failed.

use std::cell::RefCell;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use ring::{Share, spawn};
use storage::log::{Log, LogError, LogSettings, LogState};
use storage::names::LogId;
use storage::open::Recovered;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::{Shard, a_few_at_once};
use crate::control::{Assign, LinkSettings, PartitionKey, Refused};
use crate::limits::{LOGS_AT_ONCE, OPENING_LIMIT, OPENING_LOOK};
use crate::partition::Partition;

/// Somebody is opening a partition's log: who wants it closed or deleted waits for the end of it.
struct Opening<'a>(&'a Partition);

impl<'a> Opening<'a> {
    fn begin(partition: &'a Partition) -> Self {
        partition.opening.set(partition.opening.get() + 1);
        Self(partition)
    }
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        self.0.opening.set(self.0.opening.get() - 1);
    }
}

/// Why a log is not open.
pub struct OpenError {
    /// For people.
    pub reason: String,
    /// It can be opened when there is room on its disk.
    no_room: bool,
}

impl Shard {
    /// Whoever waits hears in time which are open by then; the others are opened all the same.
    pub(super) async fn assign(
        self: Rc<Self>,
        partitions: Vec<Assign>,
        reply: oneshot::Sender<Vec<Result<(), Refused>>>,
    ) {
        let late = || {
            let reason = format!(
                "its log is still being opened after {} s; that goes on",
                OPENING_LIMIT.as_secs()
            );
            Err(Refused { reason })
        };
        let opened: Vec<_> = partitions.iter().map(|_| None).collect();
        let opened = Rc::new(RefCell::new(opened));
        let opening = |(at, assign)| {
            let (shard, opened) = (Rc::clone(&self), Rc::clone(&opened));
            async move {
                let result = shard.assign_one(assign).await;
                opened.borrow_mut()[at] = Some(result);
            }
        };
        let all = a_few_at_once(partitions.into_iter().enumerate().collect(), opening);
        let mut all = pin!(all);
        let in_time = ring::timeout(OPENING_LIMIT, all.as_mut()).await;
        let answer: Vec<_> =
            opened.borrow_mut().iter_mut().map(|one| one.take().unwrap_or_else(late)).collect();
        let _ = reply.send(answer);
        if in_time.is_err() {
            all.await;
        }
    }

    async fn assign_one(self: Rc<Self>, assign: Assign) -> Result<(), Refused> {
        let Some(link) = self.link(&assign.key.link) else {
            return Err(Refused { reason: format!("link {} is not known", assign.key.link) });
        };
        if let Some(known) = { self.partitions.borrow().get(&assign.key).cloned() } {
            // One that is asked for by name goes on so until the next start, though the source has
            // begun to tell ids since.
            if known.topic_id.is_some() && known.topic_id != assign.topic_id {
                let id = |id: Option<Uuid>| id.map_or("none".to_owned(), |id| id.to_string());
                let (open, wanted) = (id(known.topic_id), id(assign.topic_id));
                let key = &assign.key;
                let reason =
                    format!("{key} is open under topic id {open}, and wanted under {wanted}");
                return Err(Refused { reason });
            }
            self.set_mode(&known, assign.mode);
            return Ok(());
        }
        self.uids.set(self.uids.get() + 1);
        // A session cannot ask for one topic by name and by id.
        let topic_id = assign.topic_id.filter(|_| !self.asks_by_name(&assign.key));
        let partition = Partition::new(self.uids.get(), assign, topic_id, ring::wall_ms());
        self.partitions.borrow_mut().insert(partition.key.clone(), Rc::clone(&partition));
        let opened = match self.open_log(&partition, None, &link.settings()).await {
            // It is opened when there is room.
            Err(OpenError { no_room: true, .. }) => {
                partition.unopened.set(true);
                Ok(())
            }
            opened => opened,
        };
        if !self.owns(&partition) {
            let reason = format!("{} was taken away while it was opened", partition.key);
            return Err(Refused { reason });
        }
        if let Err(error) = opened {
            self.partitions.borrow_mut().remove(&partition.key);
            return Err(Refused { reason: error.reason });
        }
        link.add(&partition);
        link.repairs.add_if_damaged(&partition);
        Ok(())
    }

    /// Opens a partition's log. Without a `start` only one that is there already: where a new one
    /// begins, the source has to say first.
    pub async fn open_log(
        &self,
        partition: &Partition,
        start: Option<i64>,
        link: &LinkSettings,
    ) -> Result<(), OpenError> {
        let assign = &partition.assign;
        let id = LogId {
            link: Arc::clone(&assign.key.link),
            topic: Arc::clone(&assign.key.topic),
            partition: assign.key.partition,
        };
        // Only the disk knows: another shard may have made it or deleted it since the start.
        if start.is_none() {
            match ring::fs::exists(id.folder(&assign.data_dir)).await {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                Err(error) => {
                    let reason = format!("{}: looking for its log: {error}", partition.key);
                    return Err(OpenError { reason, no_room: false });
                }
            }
        }
        let Some(data_dir) = self.data_dir(partition) else {
            let reason = format!("{} is no data directory", assign.data_dir.display());
            return Err(OpenError { reason, no_room: false });
        };
        let settings = LogSettings {
            topic_id: assign.topic_id.map(Uuid::into_bytes),
            data_dir,
            segment_bytes: u64::from(assign.segment_bytes),
            segment_ms: assign.segment_ms,
            batch_bytes_max: link.batch_bytes_max,
            undo_window: link.undo_window,
            start_offset_if_new: start.unwrap_or(0),
            only_existing: start.is_none(),
        };
        // Whoever waited for its source, or for its turn, may have lost it meanwhile: the log would
        // be nobody's, and stay open. From here on who takes it away waits.
        if !self.owns(partition) {
            let reason = format!("{} was taken away before it was opened", partition.key);
            return Err(OpenError { reason, no_room: false });
        }
        let _opening = Opening::begin(partition);
        match self.store.open_log(id, settings).await {
            Ok((log, recovered)) => {
                tell(partition, &recovered);
                partition.unopened.set(false);
                partition.set_log(Some(log));
                Ok(())
            }
            Err(LogError::Absent) => {
                partition.unopened.set(false);
                partition.set_log(None);
                Ok(())
            }
            Err(LogError::State(LogState::DiskFull)) => {
                let reason = format!("{}: no room on the disk to open its log", partition.key);
                Err(OpenError { reason, no_room: true })
            }
            Err(error) => {
                let reason = format!("{}: {error}", partition.key);
                Err(OpenError { reason, no_room: false })
            }
        }
    }

    /// Whether another partition of the same topic is asked for by name.
    fn asks_by_name(&self, key: &PartitionKey) -> bool {
        let number = |partition| PartitionKey { partition, ..key.clone() };
        let partitions = self.partitions.borrow();
        let mut of_topic = partitions.range(number(i32::MIN)..=number(i32::MAX));
        of_topic.any(|(_, partition)| partition.topic_id.is_none())
    }

    /// The number of a partition's data directory.
    fn data_dir(&self, partition: &Partition) -> Option<usize> {
        self.config.boot.data_dirs().position(|dir| dir == partition.assign.data_dir)
    }

    /// Whether a partition is still one of the shard's.
    fn owns(&self, partition: &Partition) -> bool {
        let partitions = self.partitions.borrow();
        partitions.get(&partition.key).is_some_and(|known| known.uid == partition.uid)
    }

    /// Opens a log for which there was no room before; whoever has to have it now asks for this.
    pub(super) async fn open_if_unopened(&self, partition: &Partition) -> Result<(), String> {
        while partition.opening.get() > 0 {
            ring::sleep(OPENING_LOOK).await;
        }
        if !partition.unopened.get() {
            return Ok(());
        }
        let link = self.link(&partition.key.link);
        let link = link.ok_or_else(|| format!("link {} is not known", partition.key.link))?;
        let opened = self.open_log(partition, None, &link.settings()).await;
        opened.map_err(|error| error.reason)
    }

    /// Sealing a segment reads again what was written before the start: what it finds damaged is
    /// mended as other damage is.
    fn notice_damage(&self, partition: &Rc<Partition>) {
        if partition.log().is_some_and(|log| log.is_damaged())
            && let Some(link) = self.link(&partition.key.link)
        {
            link.repairs.notice(partition);
        }
    }

    /// Logs that failed are opened again when their time has come: what made them fail may be over.
    /// So are those for which there was no room, once there is.
    pub(super) fn reopen_failed(self: &Rc<Self>) {
        let now = ring::now();
        for partition in self.partitions.borrow().values() {
            if !partition.wants_reopening() {
                self.notice_damage(partition);
                continue;
            }
            if !partition.reopening.borrow_mut().is_due(now, ring::random()) {
                continue;
            }
            let full = |dir| self.store.is_full(dir);
            if partition.unopened.get() && self.data_dir(partition).is_some_and(full) {
                continue;
            }
            if self.reopening.get() >= LOGS_AT_ONCE {
                return;
            }
            self.reopening.set(self.reopening.get() + 1);
            partition.reopening.borrow_mut().running = true;
            let (shard, partition) = (Rc::clone(self), Rc::clone(partition));
            spawn(Share::Background, async move {
                shard.reopen(&partition).await;
                shard.reopening.set(shard.reopening.get() - 1);
            })
            .detach();
        }
    }

    async fn reopen(&self, partition: &Rc<Partition>) {
        let Some(link) = self.link(&partition.key.link) else { return };
        let _opening = Opening::begin(partition);
        let occupied = partition.occupy();
        link.place(partition);
        // It says why it failed; that is known. Afterwards nothing writes to its files.
        if let Some(failed) = partition.log() {
            let _ = failed.close().await;
        }
        let reopened = self.open_log(partition, None, &link.settings()).await;
        let reopened = reopened.map_err(|error| error.reason);
        drop(occupied);
        match &reopened {
            Ok(()) => {
                tracing::info!(partition = %partition.key, "its log is open again");
                partition.clear(ring::wall_ms());
            }
            Err(reason) => tracing::warn!(reason, "a failed log cannot be opened again"),
        }
        partition.reopening.borrow_mut().tried(reopened, ring::now(), ring::random());
        if self.owns(partition) {
            link.repairs.add_if_damaged(partition);
            link.place(partition);
        }
    }

    /// Forgets a partition; its log, to be closed or deleted.
    pub(super) async fn take_out(&self, key: &PartitionKey) -> Option<Rc<Log>> {
        let partition = self.partitions.borrow_mut().remove(key)?;
        if let Some(link) = self.link(&key.link) {
            link.remove(&partition);
        }
        // What is being opened would otherwise stay behind, open and nobody's.
        while partition.opening.get() > 0 {
            ring::sleep(OPENING_LOOK).await;
        }
        let log = partition.log();
        partition.set_log(None);
        log
    }
}

/// What the recovery of a log found, where that is not the usual.
fn tell(partition: &Partition, recovered: &Recovered) {
    let (key, positions) = (&partition.key, &recovered.positions);
    if let Some(damage) = &recovered.corrupt {
        tracing::error!(partition = %key, %damage, "stored bytes are damaged; they are kept");
    }
    if recovered.torn_bytes > 0 || recovered.removed_segments > 0 {
        tracing::warn!(
            partition = %key,
            log_end_offset = positions.received.0.offset,
            flushed_offset = positions.flushed.0.offset,
            cut_bytes = recovered.torn_bytes,
            removed_segments = recovered.removed_segments,
            "what a crash left behind the last whole batch was not flushed; it is fetched again"
        );
    }
}
