//! A log over whatever lies on its disk: opened, appended to, flushed, closed, and opened again, on
//! the simulator. What no parser alone meets is met here: the numbers that a start reads become
//! places, indexes, epochs and producers that an append goes on from.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ::storage::batch::{CHECKED_FROM, LEGACY_CHECKED_FROM};
use ::storage::boot::{Boot, slot_path};
use ::storage::check::{Bounds, Checker};
use ::storage::checkpoint::Checkpoint;
use ::storage::crc;
use ::storage::limits::BATCH_BYTES_MAX;
use ::storage::log::{AppendLimits, Log, LogSettings, LogState};
use ::storage::names::{
    EPOCHS_FILE, Kind, LogId, METADATA_FILE, PREPARED_FILE, REPAIR_FILE, parse_file,
};
use ::storage::open::Recovered;
use ::storage::position::Positions;
use ::storage::store::{Store, StoreConfig};
use ring::sim::{Disk, Faults, Machine, Simulation};

use crate::input::Input;
use crate::memory;
use crate::seeds::batch_of_epoch;
use crate::storage::{with_checksum, with_checksums};

const DATA: &str = "/data";
const FILES_MAX: u8 = 12;
/// What a world, its two lives and their logs may hold, whatever the input: tables of fixed size,
/// and the disk's sectors twice.
const BASE_BYTES: usize = 1 << 19;
/// The topic id in the seeds' checkpoints.
pub const TOPIC_ID: [u8; 16] = [7; 16];

/// What the input asks for.
#[derive(Clone, Copy)]
struct Flags(u8);

impl Flags {
    fn keeps_batch_checksums(self) -> bool {
        self.0 & 1 != 0
    }

    fn keeps_own_checksums(self) -> bool {
        self.0 & 2 != 0
    }

    fn has_topic_id(self) -> bool {
        self.0 & 4 != 0
    }

    fn loses_power(self) -> bool {
        self.0 & 8 != 0
    }

    fn has_small_segments(self) -> bool {
        self.0 & 16 != 0
    }

    /// Else there is one that knows of no log.
    fn lost_checkpoints(self) -> bool {
        self.0 & 32 != 0
    }

    fn settings(self) -> LogSettings {
        LogSettings {
            topic_id: self.has_topic_id().then_some(TOPIC_ID),
            segment_bytes: if self.has_small_segments() { 4096 } else { 1 << 20 },
            ..LogSettings::default()
        }
    }
}

/// What a life of the log came to.
struct Life {
    recovered: Recovered,
    state: LogState,
    /// When it was open.
    opened: Positions,
    /// At its end, if a batch was appended and flushed.
    flushed: Option<Positions>,
}

/// The log whose seeds' checkpoints are right.
pub fn id() -> LogId {
    LogId { link: "prod".into(), topic: "orders".into(), partition: 0 }
}

/// Flags, then files: which, the offset in its name, its bytes. Nothing panics or hangs; what is
/// healthy takes a batch; and what is not said to be corrupt, by those who can know, is made only
/// of whole batches, and opens again as it was.
pub fn open(bytes: &[u8]) {
    memory::within(BASE_BYTES + memory::FACTOR * bytes.len(), || {
        let mut sim = Simulation::new(1, Faults::none());
        let mut input = Input::new(bytes);
        let flags = Flags(input.byte());
        // What says that bytes were flushed is believed: they are not read at a start.
        let believed = sim.disk(Machine::FIRST, |disk| lay(disk, flags, &mut input));
        let before = sim.disk(Machine::FIRST, |disk| segments(disk));
        let Some(first) = live(&mut sim, flags, flags.loses_power()) else { return };
        let after = sim.disk(Machine::FIRST, |disk| segments(disk));
        if first.recovered.corrupt.is_some() {
            assert!(before == after, "damage changed something: {:?}", first.recovered);
        }
        let healthy = first.state == LogState::Healthy;
        if healthy && !believed {
            let end = first.flushed.as_ref().unwrap_or(&first.opened).received.0.offset;
            assert_eq!(whole_batches(&after).unwrap_or(end), end, "{first:?}");
        }
        let Some(second) = live(&mut sim, flags, false) else {
            assert!(!healthy || believed, "it does not open again: {first:?}");
            return;
        };
        if healthy && !believed {
            assert_eq!(second.state, LogState::Healthy, "{first:?}, then {second:?}");
            let kept = second.opened.received.0.offset;
            let wanted = first.flushed.as_ref().map_or(kept, |end| end.flushed.0.offset);
            assert_eq!(kept, wanted, "{first:?}, then {second:?}");
        }
    });
}

/// Puts the input's files on the disk. Whether any of them may say what was flushed.
fn lay(disk: &mut Disk, flags: Flags, input: &mut Input<'_>) -> bool {
    let data = Path::new(DATA);
    let (folder, seals) = (id().folder(data), id().seal_folder(data));
    let slot = slot_path(data, 0, 0);
    let mut put = |path: PathBuf, bytes: &[u8]| {
        disk.make_dir(path.parent().expect("a folder")).expect("a folder");
        disk.write_file(path, bytes).expect("room");
    };
    if !flags.lost_checkpoints() {
        put(slot_path(data, 0, 1), &Checkpoint { boot: 1, ..Checkpoint::default() }.encode());
    }
    let mut believed = false;
    for _ in 0..input.byte() % FILES_MAX {
        let (which, base) = (input.byte(), input.long() & i64::MAX);
        let bytes = input.run();
        let own = |at, length| own(flags, bytes, at, length);
        match which % 16 {
            1 => put(folder.join(Kind::Index.name(base)), bytes),
            2 => put(folder.join(Kind::TimeIndex.name(base)), bytes),
            3 => put(folder.join(Kind::TxnIndex.name(base)), bytes),
            4 => {
                let bytes = match flags.keeps_own_checksums() {
                    true => bytes.to_vec(),
                    false => with_checksum(bytes, 2, crc::crc32c, true),
                };
                put(folder.join(Kind::Snapshot.name(base)), &bytes);
            }
            5 => {
                believed = true;
                put(seals.join(Kind::Seal.name(base)), &own(8, None));
            }
            6 => put(folder.join(EPOCHS_FILE), bytes),
            7 => put(folder.join(METADATA_FILE), bytes),
            8 => {
                believed = true;
                put(slot.clone(), &own(8, Some(32)));
            }
            9 => put(folder.join(PREPARED_FILE), bytes),
            10 => put(seals.join(REPAIR_FILE), bytes),
            _ => {
                let bytes = match flags.keeps_batch_checksums() {
                    true => bytes.to_vec(),
                    false => with_checksums(bytes),
                };
                put(folder.join(Kind::Log.name(base)), &bytes);
            }
        }
    }
    believed
}

/// A file of our own, its checksum put right, and its length where it has one.
fn own(flags: Flags, bytes: &[u8], checksum_at: usize, length_at: Option<usize>) -> Vec<u8> {
    if flags.keeps_own_checksums() {
        return bytes.to_vec();
    }
    let mut bytes = bytes.to_vec();
    if let Some(at) = length_at
        && bytes.len() >= at + 8
    {
        let body_bytes = (bytes.len() - at - 8) as u64;
        bytes[at..at + 8].copy_from_slice(&body_bytes.to_le_bytes());
    }
    with_checksum(&bytes, checksum_at, crc::crc32, false)
}

/// One life of a process. None: the log could not be opened, with an error that names why.
fn live(sim: &mut Simulation, flags: Flags, loses_power: bool) -> Option<Life> {
    let shard = sim.executor(ring::Config::small());
    let life = sim.run_on(shard, async move {
        let boot = Boot::prepare_simulated(&[DATA.into()]).await.expect("a readable folder");
        let store = Store::open(StoreConfig::new(0, boot)).await.expect("a good disk");
        let (log, recovered) = store.open_log(id(), flags.settings()).await.ok()?;
        let (opened, state) = (log.positions(), log.state());
        let ordered = opened.received.0 >= opened.written.0 && opened.written.0 >= opened.flushed.0;
        assert!(ordered, "{opened:?}");
        let flushed = match state {
            LogState::Healthy => append(&log).await,
            _ => None,
        };
        if !loses_power {
            store.close().await;
        }
        Some(Life { recovered, state, opened, flushed })
    });
    match loses_power {
        true => sim.crash(shard),
        false => drop(sim.stop(shard)),
    }
    life
}

/// One more batch, with the highest epoch there is. None: there is no offset left for it.
async fn append(log: &Log) -> Option<Positions> {
    let next = log.positions().received.0.offset;
    let batch = batch_of_epoch(next, i32::MAX);
    log.begin(AppendLimits { high_watermark: i64::MAX, leader_epoch: -1 });
    let taken = log.copy_in(&batch);
    let ended = log.end();
    if next == i64::MAX {
        assert!(taken.is_err(), "no offset follows it");
        return None;
    }
    assert_eq!(taken.as_ref().ok(), Some(&batch.len()), "at {next}: {taken:?}");
    ended.expect("a healthy log");
    let flushed = log.flush().await.expect("a good disk");
    assert_eq!((flushed.received.0.offset, flushed.flushed.0.offset), (next + 1, next + 1));
    Some(flushed)
}

/// The bytes of every segment.
fn segments(disk: &Disk) -> BTreeMap<i64, Vec<u8>> {
    let files = disk.files(id().folder(Path::new(DATA))).unwrap_or_default();
    let segment = |(path, _): (PathBuf, u64)| {
        let (base, kind) = parse_file(path.file_name()?.to_str()?)?;
        (kind == Kind::Log).then(|| Some((base, disk.read_file(&path)?)))?
    };
    files.into_iter().filter_map(segment).collect()
}

/// Holds every byte to be one of a batch whose checksum is right, or of space that was prepared at
/// the end; offsets only grow. Where the last one ends.
fn whole_batches(segments: &BTreeMap<i64, Vec<u8>>) -> Option<i64> {
    let mut end = None;
    for (base, bytes) in segments {
        let expected = end.unwrap_or(0).max(0);
        let mut checker = Checker::new(expected, None, 0, Bounds::local(BATCH_BYTES_MAX));
        let mut rest = &bytes[..];
        while rest.iter().any(|byte| *byte != 0) {
            let fed = checker.feed(rest).unwrap_or_else(|error| panic!("in {base}: {error}"));
            let batch = fed.batch.unwrap_or_else(|| panic!("part of a batch in {base}"));
            let own = rest.split_off(..batch.bytes as usize).expect("it was just read");
            let crc = match batch.magic {
                2 => crc::crc32c(&own[CHECKED_FROM..]),
                _ => crc::crc32(&own[LEGACY_CHECKED_FROM..]),
            };
            assert_eq!(crc, batch.crc);
            assert!(batch.base_offset >= *base || end.is_none(), "{batch:?} lies in {base}");
            end = Some(batch.next_offset());
        }
    }
    end
}

impl std::fmt::Debug for Life {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}, {:?}, {:?}", self.state, self.opened, self.flushed)
    }
}
