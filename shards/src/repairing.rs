//! Damage to what is stored: looked for in the background, and mended with what the source has.
//!
//! One pass over all logs begins soon after the start, then one every so often. A damaged partition
//! stays what it is, and its tail is replicated as before; the damaged offsets are named in its
//! state. One task per link, on a connection of its own, fetches damaged ranges again, one
//! partition after another. Nothing is fetched for a partition that control has paused, held or
//! sealed: what was failed over is never overwritten with records of the source. A log that a start
//! found corrupt goes on without what the source has deleted meanwhile ([`forgetting`]).

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use net::backoff::Backoff;
use net::{Connection, NetError};
use ring::{Instant, Share, SocketWatch, Task};
use storage::log::{AppendLimits, Log, LogState};
use storage::recovery::Corrupt;
use storage::repair::{Repair, RepairError, plan};
use storage::verify::Verifier;

use crate::control::{Event, Mode, VerifySettings};
use crate::limits::{
    EMPTY_REPAIR_ANSWERS_MAX, PARTITION_BYTES_MAX, REOPENED_LOOK, REPAIR_ROUNDS_MAX, REQUEST_LIMIT,
};
use crate::link::Link;
use crate::partition::{Leader, Partition};
use crate::shard::Shard;
use asking::{KIND, ask, hear, session_of, wanted};
use forgetting::forget;

mod asking;
mod forgetting;
mod gathering;

/// What a partition knows of its own repair.
#[derive(Default)]
pub struct RepairNote {
    backoff: Backoff,
    /// Why the last try ended without success.
    pub reason: Option<String>,
    /// When it is tried again.
    pub retry_at: Option<Instant>,
}

/// A link's repairs.
#[derive(Default)]
pub struct Repairs {
    waiting: RefCell<BTreeMap<u64, Rc<Partition>>>,
    running: RefCell<Option<Running>>,
}

struct Running {
    shared: Rc<Shared>,
    _task: Task<()>,
}

#[derive(Default)]
struct Shared {
    done: Cell<bool>,
    socket: Cell<Option<SocketWatch>>,
    connected: Cell<bool>,
}

/// Why a partition was not repaired.
enum Failure {
    /// Nothing to be had from this source now: kept and named.
    Gone(String),
    /// The source says that it has no such offset.
    OutOfRange(i64),
    /// Later, perhaps.
    Later(String),
    /// The log is no more as it was when the damage was found: its segment was sealed, or is gone.
    Changed(String),
}

impl Failure {
    fn reason(self) -> String {
        match self {
            Failure::Gone(reason) | Failure::Later(reason) | Failure::Changed(reason) => reason,
            Failure::OutOfRange(offset) => {
                format!("the source no longer has it: offset {offset} is out of its range")
            }
        }
    }
}

impl From<NetError> for Failure {
    fn from(error: NetError) -> Self {
        Failure::Later(error.to_string())
    }
}

impl From<RepairError> for Failure {
    fn from(error: RepairError) -> Self {
        match error {
            RepairError::Gone(_) => Failure::Gone(error.to_string()),
            RepairError::Changed => Failure::Changed(error.to_string()),
            error => Failure::Later(error.to_string()),
        }
    }
}

/// Reads all stored bytes again and again, partition by partition.
pub async fn verify_all(shard: Rc<Shard>, settings: VerifySettings) {
    let verifier = Rc::clone(&shard.verifier);
    verifier.set_rate(settings.bytes_per_second);
    ring::sleep(settings.first_after).await;
    loop {
        for partition in shard.partitions() {
            verify_one(&shard, &partition, &verifier).await;
        }
        shard.counters.verified_at_ms.set(Some(ring::wall_ms()));
        tracing::info!(
            shard = shard.config.index,
            bytes = verifier.bytes(),
            "stored bytes were verified"
        );
        rest(&shard, &verifier, settings.every).await;
    }
}

/// Between two passes only logs that were opened again are read: before, not all of them was known.
async fn rest(shard: &Shard, verifier: &Verifier, every: Duration) {
    let until = ring::now() + every;
    while ring::now() < until {
        let left = until - ring::now();
        ring::sleep(left.min(REOPENED_LOOK)).await;
        for partition in shard.reopened.take() {
            verify_one(shard, &partition, verifier).await;
        }
    }
}

async fn verify_one(shard: &Shard, partition: &Rc<Partition>, verifier: &Verifier) {
    let Some(log) = partition.log() else { return };
    let found = log.verify(verifier).await;
    if let Some(link) = shard.link(&partition.key.link) {
        found_damages(&link, partition, &log, found);
    }
}

/// Names the damage in the segment at `base`, which keeps a log from being cut: it is mended first.
pub async fn verify_segment(link: &Link, partition: &Rc<Partition>, base: i64) {
    let Some(log) = partition.log() else { return };
    let found = log.verify_segment(base, &link.verifier()).await;
    found_damages(link, partition, &log, found);
}

/// So many ranges are newly known to be damaged.
fn found_damages(link: &Link, partition: &Rc<Partition>, log: &Log, found: usize) {
    link.repairs.add_if_damaged(partition);
    if found == 0 {
        return;
    }
    link.count_damages(found);
    link.count_error("damage");
    for Corrupt { offsets, reason, .. } in log.damages() {
        let key = partition.key.clone();
        link.tell(Event::Damaged { key, from: offsets.start, to: offsets.end, reason });
    }
}

impl Repairs {
    /// A partition with damage is repaired when its turn comes.
    pub fn add_if_damaged(&self, partition: &Rc<Partition>) {
        if !partition.log().is_some_and(|log| log.is_damaged()) {
            return;
        }
        partition.repair.borrow_mut().retry_at = Some(ring::now());
        self.waiting.borrow_mut().insert(partition.uid, Rc::clone(partition));
    }

    /// The same, unless its damage is known here already.
    pub fn notice(&self, partition: &Rc<Partition>) {
        let doubted = partition.log().is_some_and(|log| log.has_doubted());
        if doubted || !self.waiting.borrow().contains_key(&partition.uid) {
            self.add_if_damaged(partition);
        }
    }

    /// The partition is no longer one of the link's.
    pub fn remove(&self, partition: &Partition) {
        self.waiting.borrow_mut().remove(&partition.uid);
    }

    /// Open connections.
    pub fn connections(&self) -> u32 {
        self.running.borrow().as_ref().is_some_and(|running| running.shared.connected.get()) as u32
    }

    /// Stops, and hands over the socket that is closing.
    pub fn stop(&self) -> Option<SocketWatch> {
        self.running.take().and_then(|running| running.shared.socket.take())
    }

    /// Begins with the first partition whose time has come, if none is being repaired.
    pub fn run_due(&self, link: &Rc<Link>) {
        if self.waiting.borrow().is_empty() {
            return;
        }
        if self.running.borrow().as_ref().is_some_and(|running| !running.shared.done.get()) {
            return;
        }
        let now = ring::now();
        let due = |partition: &&Rc<Partition>| {
            let retry_at = partition.repair.borrow().retry_at;
            partition.mode() == Mode::Replicate && retry_at.is_some_and(|at| at <= now)
        };
        let Some(partition) = self.waiting.borrow().values().find(due).cloned() else { return };
        let shared = Rc::new(Shared::default());
        let task =
            ring::spawn(Share::Background, repair(Rc::clone(link), partition, Rc::clone(&shared)));
        *self.running.borrow_mut() = Some(Running { shared, _task: task });
    }
}

async fn repair(link: Rc<Link>, partition: Rc<Partition>, shared: Rc<Shared>) {
    let repaired = repair_partition(&link, &partition, &shared).await;
    shared.connected.set(false);
    let mut note = partition.repair.borrow_mut();
    match repaired {
        Ok(()) => {
            *note = RepairNote::default();
            link.repairs.remove(&partition);
        }
        // Also what the source does not have: it may have lied, or not have committed it yet.
        Err(failure) => {
            let reason = failure.reason();
            if note.reason.as_ref() != Some(&reason) {
                tracing::warn!(partition = %partition.key, reason, "damage is kept");
            }
            let pause = note.backoff.failed(ring::random());
            note.reason = Some(reason);
            note.retry_at = Some(ring::now() + pause);
        }
    }
    shared.done.set(true);
}

/// Repairs all damage of a partition that can be. What the source no longer has does not keep the
/// rest from it, nor does what is damaged otherwise by now, which is looked for again. Of a log
/// that is corrupt what it no longer has is forgotten, or waited for until it can be.
async fn repair_partition(
    link: &Rc<Link>,
    partition: &Rc<Partition>,
    shared: &Shared,
) -> Result<(), Failure> {
    let Some(log) = partition.log() else { return Ok(()) };
    let verifier = link.verifier();
    let mut connection = None;
    let (mut gone, mut changed, mut waits) = (None, None, None);
    while let Some(base) = log.take_doubted() {
        verify_segment(link, partition, base).await;
    }
    // A log that is opened again may tell of more.
    for _ in 0..REPAIR_ROUNDS_MAX {
        let damages = match look(link, partition, &log, &verifier, None).await {
            Err(RepairError::Unreadable(offset)) => {
                let mut made = connect(link, partition, shared).await?;
                hear(link, partition, offset, &mut made).await?;
                connection = Some(made);
                look(link, partition, &log, &verifier, Some(offset)).await?
            }
            looked => looked?,
        };
        if damages.is_empty() {
            return Ok(());
        }
        let (mut mended, before) = (0, changed.take());
        waits = None;
        for damage in damages {
            if connection.is_none() {
                connection = Some(connect(link, partition, shared).await?);
            }
            let connection = connection.as_mut().expect("just made");
            let (segment, end) = (damage.segment, damage.offsets.end);
            match mend(link, partition, &log, damage, connection).await {
                Ok(()) => mended += 1,
                Err(Failure::OutOfRange(offset)) if !log.is_open() => {
                    let forgotten = forget(link, partition, &log, offset..end, connection).await;
                    if let Err(failure) = forgotten {
                        waits = Some(failure.reason());
                        continue;
                    }
                    mended += 1;
                    break;
                }
                Err(failure @ Failure::OutOfRange(_)) => gone = Some(failure.reason()),
                Err(Failure::Gone(reason)) => gone = Some(reason),
                Err(Failure::Changed(reason)) if partition.mode() == Mode::Replicate => {
                    verify_segment(link, partition, segment).await;
                    changed = Some(reason);
                }
                Err(later) => return Err(later),
            }
        }
        if mended == 0 && (changed.is_none() || before.is_some()) {
            break;
        }
    }
    if let Some(reason) = changed.or(waits) {
        return Err(Failure::Later(reason));
    }
    Err(Failure::Gone(gone.unwrap_or_else(|| "it is damaged again and again".to_owned())))
}

/// What is damaged now. The log may be opened again here, and cut where it cannot be read and the
/// source was `heard`, which comes to its end whatever becomes of this task.
async fn look(
    link: &Rc<Link>,
    partition: &Rc<Partition>,
    log: &Rc<Log>,
    verifier: &Rc<Verifier>,
    heard: Option<i64>,
) -> Result<Vec<Corrupt>, RepairError> {
    let (link, partition) = (Rc::clone(link), Rc::clone(partition));
    let (log, verifier) = (Rc::clone(log), Rc::clone(verifier));
    let looking = async move {
        let was_corrupt = matches!(log.state(), LogState::Corrupt(_));
        let replicates = || partition.mode() == Mode::Replicate;
        let may_cut = |offset| heard == Some(offset) && replicates();
        let damages = plan(&log, &verifier, may_cut).await;
        if was_corrupt && log.is_open() {
            goes_on(&link, &partition);
        }
        damages
    };
    ring::to_its_end(Share::Background, looking).await
}

/// A log that was corrupt is open.
fn goes_on(link: &Rc<Link>, partition: &Rc<Partition>) {
    partition.clear(ring::wall_ms());
    link.place(partition);
    link.reopened(partition);
}

/// A connection to the leader, as the repair's own.
async fn connect(
    link: &Rc<Link>,
    partition: &Partition,
    shared: &Shared,
) -> Result<Connection, Failure> {
    let Some(Leader { broker, .. }) = link.leader(partition) else {
        return Err(Failure::Later("the source names no leader for it".to_owned()));
    };
    let connection = link.connect(broker).await?;
    shared.socket.set(Some(connection.watch()));
    shared.connected.set(true);
    Ok(connection)
}

/// Fetches one range again and has it written.
async fn mend(
    link: &Rc<Link>,
    partition: &Rc<Partition>,
    log: &Rc<Log>,
    damage: Corrupt,
    connection: &mut Connection,
) -> Result<(), Failure> {
    let repairing = Rc::clone(log);
    let begun = async move { Repair::begin(&repairing, damage).await };
    let mut repair = ring::to_its_end(Share::Background, begun).await?;
    if partition.topic_id.is_none() && !repair.has_checksum() {
        // A topic made anew may have records of the same lengths at the same offsets.
        let reason = "the source has no topic ids, and no checksum is left to hold its records \
                      against";
        return Err(Failure::Gone(reason.to_owned()));
    }
    gather(link, partition, log, &mut repair, connection).await?;
    // From here on it comes to its end, whatever becomes of the connection.
    let (link, partition) = (Rc::clone(link), Rc::clone(partition));
    let log = Rc::clone(log);
    ring::to_its_end(Share::Background, finish(link, partition, log, repair)).await
}

async fn finish(
    link: Rc<Link>,
    partition: Rc<Partition>,
    log: Rc<Log>,
    repair: Repair,
) -> Result<(), Failure> {
    if partition.mode() != Mode::Replicate {
        return Err(Failure::Later("it is not replicated now".to_owned()));
    }
    let Corrupt { segment, offsets, .. } = repair.damage().clone();
    let alone = !repair.keeps_log_open();
    let unsealed = !alone && !repair.has_checksum();
    if alone && partition.is_occupied() {
        return Err(Failure::Later("its log is being cut or opened again".to_owned()));
    }
    let occupied = alone.then(|| partition.occupy());
    if alone {
        link.place(&partition);
    }
    let verifier = link.verifier();
    let finished = repair.finish(&verifier, || partition.mode() == Mode::Replicate).await;
    drop(occupied);
    if alone && log.is_open() && !partition.is_occupied() {
        goes_on(&link, &partition);
    } else if alone {
        link.place(&partition);
    }
    finished?;
    link.count_repair();
    let key = partition.key.clone();
    link.tell(Event::Repaired { key, from: offsets.start, to: offsets.end });
    if unsealed {
        // What is whole again gets its seal.
        verify_segment(&link, &partition, segment).await;
    }
    Ok(())
}

/// Asks the leader for the offsets of the range until all of it is here.
async fn gather(
    link: &Rc<Link>,
    partition: &Partition,
    log: &Log,
    repair: &mut Repair,
    connection: &mut Connection,
) -> Result<(), Failure> {
    let mut session = session_of(partition);
    let leader_epoch = link.leader(partition).map_or(-1, |leader| leader.epoch);
    let _sharer = link.share_memory();
    let (mut bytes, mut empty) = (PARTITION_BYTES_MAX as usize, 0);
    while let Some(offset) = repair.next_offset() {
        link.wait_for_rate(KIND).await;
        let reserved = link.reserve(bytes).await;
        let max_bytes = i32::try_from(reserved.bytes()).unwrap_or(i32::MAX);
        let wanted = wanted(offset, leader_epoch, max_bytes);
        let (gathering, throttle) = ask(link, &mut session, wanted, connection).await?;
        let whole = gathering.pieces.iter().map(|piece| piece.len()).sum::<usize>();
        let high_watermark = gathering.high_watermark;
        let limits = AppendLimits { high_watermark, leader_epoch };
        let batches = repair.take(&gathering.pieces, limits).await?;
        drop(gathering);
        drop(reserved);
        if batches > 0 || repair.next_offset() != Some(offset) {
            empty = 0;
        } else if whole > 0 && bytes < log.batch_bytes_max() {
            bytes *= 2; // the batch is larger than was asked for
        } else {
            empty += 1;
            if empty >= EMPTY_REPAIR_ANSWERS_MAX {
                let reason = format!("the source no longer has it: no records at {offset}");
                return Err(Failure::Gone(reason));
            }
        }
        ring::sleep(throttle.min(REQUEST_LIMIT)).await;
    }
    Ok(())
}
