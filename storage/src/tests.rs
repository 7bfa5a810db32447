//! The whole log on the real ring and a real file system.

use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use tempfile::TempDir;

use crate::boot::Boot;
use crate::check::AppendError;
use crate::log::{AppendLimits, Log, LogError, LogSettings, LogState};
use crate::names::{Kind, LogId, OWN_FOLDER};
use crate::open::Recovered;
use crate::store::{Store, StoreConfig};
use crate::testing::{self, Shape};

mod beside;
mod crash;
mod format;
mod found;
mod lowered;
mod matrix;
mod owners;
mod paced;
pub mod repair;
mod rules;
mod sides;
mod simulated;
mod transactions;
mod trouble;
mod undo;
mod unnamed;

/// A data directory on a file system with direct I/O; /tmp is often memory.
pub fn disk() -> TempDir {
    tempfile::tempdir_in("/var/tmp").unwrap()
}

pub fn id(partition: i32) -> LogId {
    LogId { link: "prod".into(), topic: "orders".into(), partition }
}

pub fn run<F: Future<Output = ()> + 'static>(test: F) {
    ring::run(ring::Config::small(), test).unwrap();
}

pub async fn store(dir: &Path) -> Rc<Store> {
    let boot = Boot::prepare(&[dir.to_owned()]).unwrap();
    Store::open(StoreConfig::new(0, boot)).await.unwrap()
}

pub async fn open(store: &Store, settings: LogSettings) -> (Rc<Log>, Recovered) {
    store.open_log(id(0), settings).await.unwrap()
}

pub const LIMITS: AppendLimits = AppendLimits { high_watermark: i64::MAX, leader_epoch: -1 };

/// One response, received in pieces of at most `piece` bytes.
pub fn respond(log: &Log, bytes: &[u8], piece: usize) -> Result<(), AppendError> {
    log.begin(LIMITS);
    let result = receive(log, bytes, piece);
    log.end().unwrap();
    result
}

/// Whether a fetch of so many bytes would be asked for now: as a shard decides it, half the memory
/// at most is for records, and a batch larger than that is tried alone.
pub fn has_room(log: &Log, bytes: usize) -> bool {
    let memory = ring::memory();
    let alone = memory.used < memory.total / 4;
    log.state() == LogState::Healthy && (memory.used + bytes <= memory.total / 2 || alone)
}

fn receive(log: &Log, bytes: &[u8], piece: usize) -> Result<(), AppendError> {
    let mut rest = bytes;
    while !rest.is_empty() {
        let mut lease = log.lend(rest.len()).expect("memory");
        let count = rest.len().min(lease.len()).min(piece);
        lease[..count].copy_from_slice(&rest[..count]);
        rest = &rest[count..];
        log.filled(lease, count)?;
    }
    Ok(())
}

/// All segment bytes of a closed log, in order.
pub fn read_log(dir: &Path) -> Vec<u8> {
    let folder = id(0).folder(dir);
    let mut names: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "log"))
        .collect();
    names.sort();
    names.iter().flat_map(|path| fs::read(path).unwrap()).collect()
}

#[test]
fn more_logs_than_are_closed_at_once_are_all_closed() {
    let dir = disk();
    let path = dir.path().to_owned();
    run(async move {
        let many = 2 * crate::limits::CLOSES_AT_ONCE as i32 + 3;
        let store = store(&path).await;
        for partition in 0..many {
            let (log, _) = store.open_log(id(partition), LogSettings::default()).await.unwrap();
            respond(&log, &testing::run(0..3, 50 + partition as usize), 1 << 20).unwrap();
        }
        store.close().await;
        drop(store);
        let store = self::store(&path).await;
        for partition in 0..many {
            let opened = store.open_log(id(partition), LogSettings::default()).await.unwrap();
            let (log, recovered) = opened;
            let end = log.positions().flushed.0.offset;
            assert_eq!((end, recovered.scanned_bytes), (3, 0), "partition {partition}");
        }
        store.close().await;
    });
}

#[test]
fn what_is_appended_is_on_disk_byte_for_byte() {
    let dir = disk();
    let path = dir.path().to_owned();
    run(async move {
        let store = store(&path).await;
        let (log, recovered) = open(&store, LogSettings::default()).await;
        assert!(recovered.new);
        let mut sent = Vec::new();
        for (start, body, piece) in
            [(0, 30, 7), (100, 900, 5000), (200, 9000, 3000), (300, 20_000, 1 << 20)]
        {
            let bytes = testing::run(start..start + 50, body);
            respond(&log, &bytes, piece).unwrap();
            sent.extend(bytes);
        }
        let positions = log.flush().await.unwrap();
        assert_eq!(positions.flushed.0.offset, 350);
        assert_eq!(positions.flushed.0.bytes, sent.len() as u64);
        assert_eq!(positions.received.0, positions.flushed.0);
        assert_eq!(log.last_batch().unwrap().last_offset, 349);
        let last = log.last_batch();
        store.close().await;
        assert_eq!(read_log(&path), sent);
        drop((log, store));

        let store = self::store(&path).await;
        let (log, recovered) = open(&store, LogSettings::default()).await;
        assert_eq!(recovered.scanned_bytes, 0, "a clean stop leaves nothing to scan");
        assert_eq!(recovered.positions.flushed.0.offset, 350);
        assert_eq!(log.last_batch(), last);
        assert_eq!(log.state(), LogState::Healthy);
        let more = testing::run(350..360, 70);
        respond(&log, &more, 64).unwrap();
        sent.extend(more);
        store.close().await;
        assert_eq!(read_log(&path), sent);
    });
}

#[test]
fn segments_roll_and_every_byte_stays() {
    let dir = disk();
    let path = dir.path().to_owned();
    run(async move {
        let settings = LogSettings { segment_bytes: 50_000, ..LogSettings::default() };
        let store = store(&path).await;
        let (log, _) = open(&store, settings.clone()).await;
        let mut sent = Vec::new();
        for round in 0..20 {
            let bytes = testing::run(round * 40..round * 40 + 40, 1000);
            respond(&log, &bytes, 10_000).unwrap();
            sent.extend(bytes);
            if round % 5 == 0 {
                log.flush().await.unwrap();
            }
        }
        store.close().await;
        assert_eq!(read_log(&path), sent);
        let seals = fs::read_dir(id(0).seal_folder(&path)).unwrap().count();
        assert!(seals > 10, "{seals} seals");
        drop((log, store));

        let store = self::store(&path).await;
        let (log, recovered) = open(&store, settings).await;
        assert_eq!(recovered.scanned_bytes, 0);
        assert_eq!(recovered.positions.received.0.offset, 800);
        // The segment that was open before the restart is sealed with checksums of all its bytes.
        let bytes = testing::run(800..840, 1000);
        respond(&log, &bytes, 10_000).unwrap();
        sent.extend(bytes);
        store.close().await;
        assert_eq!(read_log(&path), sent);
        for file in fs::read_dir(id(0).seal_folder(&path)).unwrap() {
            let seal = crate::seal::Seal::decode(&fs::read(file.unwrap().path()).unwrap()).unwrap();
            let segment = fs::read(id(0).folder(&path).join(Kind::Log.name(seal.base))).unwrap();
            assert_eq!(seal.bytes, segment.len() as u64);
            assert_eq!(seal.crc, crate::crc::crc32c(&segment));
        }
    });
}

#[test]
fn no_memory_for_a_new_segment_makes_no_hole() {
    let dir = disk();
    let path = dir.path().to_owned();
    run(async move {
        let store = store(&path).await;
        let settings = LogSettings { segment_bytes: 20_000, ..LogSettings::default() };
        let (log, _) = open(&store, settings).await;
        respond(&log, &testing::run(0..3, 5000), 10_000).unwrap();
        let batch = testing::run(3..4, 5000);
        log.begin(LIMITS);
        let mut lease = log.lend(batch.len()).expect("memory");
        let count = batch.len().min(lease.len());
        lease[..count].copy_from_slice(&batch[..count]);
        let hog = || ring::try_lease(ring::BLOCK, ring::Class::Control);
        let mut hogged: Vec<_> = std::iter::from_fn(hog).collect();
        let mut result = log.filled(lease, count);
        if result.is_ok() {
            // The batch did not fit one lease: its rest finds no memory at all, or a last chunk.
            result = log.copy_in(&batch[count..]).map(drop);
        }
        assert_eq!(result, Err(AppendError::NoMemory));
        log.end().unwrap();
        assert_eq!(log.positions().received.0.offset, 3);
        hogged.clear();
        respond(&log, &testing::run(3..8, 5000), 10_000).unwrap();
        store.close().await;
        assert_eq!(read_log(&path), testing::run(0..8, 5000));
    });
}

#[test]
fn a_bad_batch_is_refused_and_what_was_before_it_kept() {
    let dir = disk();
    let path = dir.path().to_owned();
    run(async move {
        let store = store(&path).await;
        let (log, _) = open(&store, LogSettings::default()).await;
        let good = testing::run(0..3, 500);
        let mut bytes = testing::run(0..5, 500);
        let at = good.len() + 300;
        bytes[at] ^= 1;
        let result = respond(&log, &bytes, 100);
        let position = good.len() as u64;
        assert_eq!(result, Err(AppendError::CrcMismatch { base_offset: 3, position }));
        assert_eq!(log.positions().received.0.offset, 3);
        // The next response brings it whole, and a torn batch behind it.
        let mut bytes = testing::run(3..6, 500);
        bytes.truncate(bytes.len() - 10);
        respond(&log, &bytes, 77).unwrap();
        assert_eq!(log.positions().received.0.offset, 5);
        store.close().await;
        assert_eq!(read_log(&path), testing::run(0..5, 500));
    });
}

#[test]
fn batches_larger_than_a_chunk_and_larger_than_allowed() {
    let dir = disk();
    let path = dir.path().to_owned();
    run(async move {
        let store = store(&path).await;
        let settings = LogSettings { batch_bytes_max: 4 << 20, ..LogSettings::default() };
        let (log, _) = open(&store, settings).await;
        let large = Shape { body: 3 << 20, ..Shape::at(0) }.bytes();
        respond(&log, &large, 1 << 20).unwrap();
        let small = testing::run(1..2, 100);
        respond(&log, &small, 1 << 20).unwrap();
        let over = Shape { body: 4 << 20, ..Shape::at(2) }.bytes();
        let result = respond(&log, &over, 1 << 20);
        assert!(matches!(result, Err(AppendError::BatchTooLarge { base_offset: 2, .. })));
        store.close().await;
        assert_eq!(read_log(&path), [large, small].concat());
        assert!(ring::memory().used <= ring::BLOCK, "{:?}", ring::memory());
    });
}

#[test]
fn a_lost_connection_leaves_the_log_usable() {
    let dir = disk();
    let path = dir.path().to_owned();
    run(async move {
        let store = store(&path).await;
        let (log, _) = open(&store, LogSettings::default()).await;
        let bytes = testing::run(0..20, 700);
        for cut in [10, 761, 800, 5000] {
            log.begin(LIMITS);
            let skip = log.positions().received.0.bytes as usize;
            receive(&log, &bytes[skip..skip + cut], 400).unwrap();
            // The lease is never given back: its operation still owns it.
            drop(log.lend(100));
        }
        let skip = log.positions().received.0.bytes as usize;
        respond(&log, &bytes[skip..], 400).unwrap();
        store.close().await;
        assert_eq!(read_log(&path), bytes);
    });
}

#[test]
fn a_log_may_start_inside_a_batch() {
    let dir = disk();
    let path = dir.path().to_owned();
    run(async move {
        let store = store(&path).await;
        let settings = LogSettings { start_offset_if_new: 12, ..LogSettings::default() };
        let (log, _) = open(&store, settings.clone()).await;
        let bytes = Shape { records: 5, ..Shape::at(10) }.bytes();
        respond(&log, &bytes, 1000).unwrap();
        assert_eq!(log.positions().log_start_offset, 12);
        assert_eq!(log.positions().received.0.offset, 15);
        log.flush().await.unwrap();
        store.close().await;
        assert!(id(0).folder(&path).join(Kind::Log.name(10)).exists());
        drop((log, store));
        let store = self::store(&path).await;
        let (log, recovered) = open(&store, settings).await;
        assert_eq!(recovered.corrupt, None);
        assert_eq!(log.positions().log_start_offset, 12);
        assert_eq!(log.positions().received.0.offset, 15);
        store.close().await;
    });
}

#[test]
fn truncation_cuts_at_a_batch_and_appending_goes_on() {
    let dir = disk();
    let path = dir.path().to_owned();
    run(async move {
        let store = store(&path).await;
        let settings = LogSettings { segment_bytes: 20_000, ..LogSettings::default() };
        let (log, _) = open(&store, settings.clone()).await;
        let batch = |base: i64, epoch| {
            let shape =
                Shape { records: 2, body: 900, epoch, fill: epoch as u8, ..Shape::at(base) };
            shape.bytes()
        };
        let bytes: Vec<u8> = (0..50).flat_map(|i| batch(i * 2, i as i32 / 10)).collect();
        respond(&log, &bytes, 4000).unwrap();
        log.flush().await.unwrap();
        assert_eq!(log.end_offset_for_epoch(2), Some((2, 60)));
        for (to, end) in [(99, 98), (81, 80), (60, 60), (45, 44)] {
            log.truncate_to(to).await.unwrap();
            assert_eq!(log.positions().received.0.offset, end, "truncated to {to}");
            assert_eq!(log.positions().flushed.0.offset.min(end), log.positions().flushed.0.offset);
        }
        assert_eq!(log.positions().last_epoch, Some(2));
        assert_eq!(log.end_offset_for_epoch(9), Some((2, 44)));
        let more: Vec<u8> = (22..60).flat_map(|i| batch(i * 2, 7)).collect();
        respond(&log, &more, 4000).unwrap();
        store.close().await;
        let mut wanted = bytes[..22 * 961].to_vec();
        wanted.extend(more);
        assert_eq!(read_log(&path), wanted);
        drop((log, store));
        let store = self::store(&path).await;
        let (log, recovered) = open(&store, settings).await;
        assert_eq!(recovered.corrupt, None);
        assert_eq!(log.positions().received.0.offset, 120);
        assert_eq!(log.end_offset_for_epoch(3), Some((2, 44)));
        log.truncate_to(0).await.unwrap();
        assert_eq!(log.positions().received.0.offset, 0);
        respond(&log, &batch(0, 1), 4000).unwrap();
        store.close().await;
        assert_eq!(read_log(&path), batch(0, 1));
    });
}

#[test]
fn the_visible_start_moves_at_once_and_files_go_after_the_window() {
    let dir = disk();
    let path = dir.path().to_owned();
    run(async move {
        let store = store(&path).await;
        let settings = LogSettings { segment_bytes: 10_000, ..LogSettings::default() };
        let (log, _) = open(&store, settings.clone()).await;
        log.set_limits(settings.batch_bytes_max, std::time::Duration::ZERO);
        let bytes = testing::run(0..50, 1000);
        respond(&log, &bytes, 4000).unwrap();
        log.flush().await.unwrap();
        let first = id(0).folder(&path).join(Kind::Log.name(0));
        assert!(first.exists());
        log.advance_start(25);
        assert_eq!(log.positions().log_start_offset, 25);
        while first.exists() {
            ring::sleep(std::time::Duration::from_millis(20)).await;
        }
        // A start beyond the end is a gap.
        log.advance_start(70);
        assert_eq!(log.positions().received.0.offset, 70);
        let result = respond(&log, &testing::run(60..61, 10), 4000);
        assert!(matches!(result, Err(AppendError::OffsetBelowExpected { .. })));
        respond(&log, &testing::run(75..80, 1000), 4000).unwrap();
        log.flush().await.unwrap();
        store.close().await;
        drop((log, store));
        let store = self::store(&path).await;
        let (log, recovered) = open(&store, settings).await;
        assert_eq!(recovered.corrupt, None);
        assert_eq!(log.positions().log_start_offset, 70);
        assert_eq!(log.positions().received.0.offset, 80);
        store.close().await;
    });
}

#[test]
fn a_first_segment_that_is_missing_is_damage() {
    let dir = disk();
    let path = dir.path().to_owned();
    run(async move {
        let store = store(&path).await;
        let settings = LogSettings { segment_bytes: 10_000, ..LogSettings::default() };
        let (log, _) = open(&store, settings.clone()).await;
        respond(&log, &testing::run(0..50, 1000), 4000).unwrap();
        store.close().await;
        drop((log, store));
        fs::remove_file(id(0).folder(&path).join(Kind::Log.name(0))).unwrap();
        let store = self::store(&path).await;
        let (log, _) = open(&store, settings).await;
        let LogState::Corrupt(corrupt) = log.state() else { panic!("{:?}", log.state()) };
        assert_eq!((corrupt.segment, corrupt.offsets.start), (0, 0));
        assert!((1..50).contains(&corrupt.offsets.end), "{corrupt:?}");
        store.close().await;
    });
}

#[test]
fn idle_partitions_are_cheap() {
    let dir = disk();
    let path = dir.path().to_owned();
    run(async move {
        let store = store(&path).await;
        let mut logs = Vec::new();
        for partition in 0..300 {
            let (log, _) = store.open_log(id(partition), LogSettings::default()).await.unwrap();
            let bytes = testing::run(0..3, 30_000);
            while !has_room(&log, bytes.len()) {
                // The disk pushes back.
                ring::sleep(std::time::Duration::from_millis(1)).await;
            }
            respond(&log, &bytes, 50_000).unwrap();
            logs.push(log);
        }
        for log in &logs {
            log.flush().await.unwrap();
        }
        assert!(ring::memory().used <= logs.len() * ring::BLOCK, "{:?}", ring::memory());
        let tasks = ring::stats().tasks;
        assert!(tasks < 20, "{tasks} tasks for idle partitions");
        store.close().await;
    });
}

#[test]
fn another_incarnation_of_the_topic_is_refused() {
    let dir = disk();
    let path = dir.path().to_owned();
    run(async move {
        let store = store(&path).await;
        let with = |byte| LogSettings { topic_id: Some([byte; 16]), ..LogSettings::default() };
        let (log, _) = open(&store, with(1)).await;
        let again = store.open_log(id(0), with(1)).await;
        assert!(matches!(again, Err(LogError::Open)));
        respond(&log, &testing::run(0..3, 100), 4000).unwrap();
        log.close().await.unwrap();
        let other = store.open_log(id(0), with(2)).await;
        assert!(matches!(other, Err(LogError::TopicId { .. })));
        let (log, recovered) = open(&store, with(1)).await;
        assert_eq!(recovered.positions.received.0.offset, 3);
        log.delete().await.unwrap();
        assert!(!id(0).folder(&path).exists());
        let (log, recovered) = open(&store, with(2)).await;
        assert!(recovered.new);
        assert_eq!(log.topic_id(), Some([2; 16]));
        store.close().await;
    });
}

#[test]
fn a_second_process_is_refused() {
    let dir = disk();
    let one = Boot::prepare(&[dir.path().to_owned()]).unwrap();
    let two = Boot::prepare(&[dir.path().to_owned()]);
    assert!(matches!(two, Err(crate::boot::BootError::Locked(_))));
    drop(one);
    let three = Boot::prepare(&[dir.path().to_owned()]).unwrap();
    assert_eq!(three.count(), 2);
    assert!(dir.path().join(OWN_FOLDER).join("reserve").exists());
}
