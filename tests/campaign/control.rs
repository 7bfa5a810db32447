//! Who steers the shards in place of the control thread: tells them who leads, hears their events,
//! asks for their status, and holds every answer against what must be.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use ring::sim::ExecutorId;
use shards::control::*;
use tokio::sync::{mpsc, oneshot};

use crate::model::Model;

/// The only link.
pub const LINK: &str = "prod";

/// What a shard answered when it was told to take partitions.
type Assigned = Vec<Result<(), Refused>>;

/// One running shard.
pub struct Shard {
    /// Where it runs.
    pub executor: ExecutorId,
    /// Where commands go.
    pub commands: mpsc::Sender<Command>,
    /// Its root task; dropped with it.
    pub root: ring::Task<()>,
    /// How that ended.
    pub ended: Rc<RefCell<String>>,
    /// A question under way, and whether all logs were open when it was asked.
    status: Option<(bool, oneshot::Receiver<ShardStatus>)>,
    /// What it said of itself last.
    pub last: Option<ShardStatus>,
    assigned: Option<(Vec<PartitionKey>, oneshot::Receiver<Assigned>)>,
    /// Partitions that it would not open: why.
    pub refused: Vec<(PartitionKey, String)>,
}

impl Shard {
    /// A shard that has just been started.
    pub fn new(
        executor: ExecutorId,
        commands: mpsc::Sender<Command>,
        root: ring::Task<()>,
        ended: Rc<RefCell<String>>,
    ) -> Shard {
        let (status, last, assigned, refused) = (None, None, None, Vec::new());
        Shard { executor, commands, root, ended, status, last, assigned, refused }
    }

    /// Sends a command; a full queue forgets it, as a control thread may be late.
    pub fn tell(&self, command: Command) {
        let _ = self.commands.try_send(command);
    }

    /// Asks it to take partitions.
    pub fn assign(&mut self, partitions: Vec<Assign>) {
        let (reply, answer) = oneshot::channel();
        let keys = partitions.iter().map(|assign| assign.key.clone()).collect();
        self.tell(Command::Assign { partitions, reply });
        self.assigned = Some((keys, answer));
    }

    /// Whether it has opened, or refused, all it was told to take.
    pub fn is_assigned(&mut self) -> bool {
        let Some((keys, answer)) = &mut self.assigned else { return true };
        let Ok(answers) = answer.try_recv() else { return false };
        let refused = keys
            .iter()
            .zip(answers)
            .filter_map(|(key, answer)| answer.err().map(|refused| (key.clone(), refused.reason)));
        self.refused.retain(|(key, _)| !keys.contains(key));
        self.refused.extend(refused);
        self.assigned = None;
        true
    }

    /// Asks for its status, and takes in what it answered before. `silent`: nothing may be open to
    /// the source.
    pub fn look(
        &mut self,
        models: &mut BTreeMap<PartitionKey, Model>,
        silent: bool,
    ) -> Result<bool, String> {
        let mut news = false;
        if let Some((opened, mut answer)) = self.status.take() {
            match answer.try_recv() {
                Ok(status) => {
                    check_status(&status, opened, models)?;
                    let sockets: u32 = status.connections.iter().map(|(_, count)| count).sum();
                    if silent && sockets > 0 {
                        return Err(format!("the link is paused, and has {sockets} sockets open"));
                    }
                    if opened {
                        self.last = Some(status);
                    }
                    news = true;
                }
                Err(oneshot::error::TryRecvError::Empty) => {
                    self.status = Some((opened, answer));
                    return Ok(false);
                }
                Err(oneshot::error::TryRecvError::Closed) => {}
            }
        }
        let (reply, answer) = oneshot::channel();
        self.tell(Command::Status { link: None, reply });
        let opened = self.is_assigned();
        self.status = Some((opened, answer));
        Ok(news)
    }
}

fn check_status(
    status: &ShardStatus,
    opened: bool,
    models: &mut BTreeMap<PartitionKey, Model>,
) -> Result<(), String> {
    let stats = &status.stats;
    if stats.memory_peak > stats.memory_budget || stats.memory_used > stats.memory_peak {
        return Err(format!("memory beyond its budget: {stats:?}"));
    }
    for partition in &status.partitions {
        let PartitionStatus { key, state, received, written, flushed, log_start, .. } = partition;
        let local =
            matches!(state, PartitionState::Faulted(FaultCode::LocalLog) | PartitionState::Corrupt);
        let begun = received >= log_start || local;
        if !(received >= written && written >= flushed && begun) {
            return Err(format!("{key}: positions out of order: {partition:?}"));
        }
        let named = matches!(
            state,
            PartitionState::Retrying
                | PartitionState::Faulted(_)
                | PartitionState::Corrupt
                | PartitionState::DiskFull
        );
        if named && partition.reason.is_none() {
            return Err(format!("{key}: {} without a reason", state.name()));
        }
        if !opened {
            continue; // what is not open yet shows no positions
        }
        let model = models.get_mut(key).expect("every partition has its model");
        // A failed log shows only what was flushed: opened again, it has what the device has.
        if *state != PartitionState::Faulted(FaultCode::LocalLog) {
            model.received(*received, *log_start)?;
        }
        // Of a damaged log the positions say what is believed; its bytes are looked at elsewhere.
        // One that is being cut shows where its segment begins, for a moment.
        let cut = !model.open_cuts.is_empty();
        let settled = *state != PartitionState::Corrupt && !cut;
        if *received < model.floor && settled {
            let floor = model.floor;
            return Err(format!("{key}: {received} received, {floor} was flushed: {partition:?}"));
        }
        if *state != PartitionState::Corrupt {
            model.reported(*flushed, *log_start)?;
        }
    }
    Ok(())
}

/// Spreads partitions over shards.
pub fn share_of(index: usize, shards: usize, turn: usize) -> usize {
    (index + turn) % shards
}

/// How a partition is to be kept.
pub fn assign(
    key: &PartitionKey,
    topic_id: Option<uuid::Uuid>,
    segment_bytes: u32,
    mode: Mode,
) -> Assign {
    Assign {
        key: key.clone(),
        topic_id,
        data_dir: crate::model::DATA.into(),
        mode,
        segment_bytes,
        segment_ms: i64::MAX,
    }
}

/// The link's name, to be sent.
pub fn link() -> Arc<str> {
    LINK.into()
}
