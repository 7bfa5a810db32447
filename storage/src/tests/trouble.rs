//! A full disk, a crash behind a sealed segment, a barrier while the end is cut back.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::time::Duration;

use ring::Config;
use ring::sim::{Faults, Simulation, for_seeds};

use super::crash::snapshot;
use super::simulated::{batch, compare, settings, simulated_store};
use super::*;
use crate::checkpoint::Replay;
use crate::index;
use crate::scan::scan;

/// Every entry of every offset index names a batch, and none is missing in between.
async fn check_indexes(log: &Log) {
    for entry in ring::fs::read_dir(log.folder()).await.unwrap() {
        let name = entry.name.into_string().unwrap();
        let Some(base) = name.strip_suffix(".index") else { continue };
        let base: i64 = base.parse().unwrap();
        let path = log.folder().join(Kind::Log.name(base));
        let mut batches = BTreeSet::new();
        let from = Replay::segment_start(base, None, false);
        scan(&path, &from, u64::MAX, |found| {
            batches.insert((found.position, found.batch.last_offset - base));
            true
        })
        .await;
        let bytes = ring::fs::read(log.folder().join(&name), 1 << 20).await.unwrap();
        let mut before = 0;
        for entry in index::read_offsets(&bytes) {
            let (at, offset) = (u64::from(entry.position.get()), entry.relative_offset.get());
            assert!(batches.contains(&(at, i64::from(offset))), "{name}: {entry:?}");
            assert!(at > before, "{name}: {entry:?} after {before}");
            before = at;
        }
    }
}

async fn fill(full: Rc<Cell<u32>>, room: Rc<Cell<bool>>) {
    let store = simulated_store().await;
    let (log, _) = open(&store, settings()).await;
    while !room.get() {
        match log.state() {
            LogState::Healthy => {
                let next = log.positions().received.0.offset;
                let bytes: Vec<u8> = (next..next + 5).flat_map(batch).collect();
                if has_room(&log, bytes.len()) {
                    respond(&log, &bytes, 3000).unwrap();
                } else {
                    full.set(full.get() + 1);
                }
                ring::sleep(Duration::from_micros(1000 + ring::random() % 5000)).await;
            }
            LogState::DiskFull => {
                full.set(full.get() + 1);
                ring::sleep(Duration::from_millis(100)).await;
            }
            other => panic!("{other:?}"),
        }
    }
    let mut tries = 0;
    while log.state() == LogState::DiskFull {
        ring::sleep(Duration::from_millis(100)).await;
        tries += 1;
        assert!(tries < 100, "it stays full: {:?} {}", log.positions(), log.has_job());
    }
    tries = 0;
    while !has_room(&log, 100_000) {
        ring::sleep(Duration::from_millis(100)).await;
        tries += 1;
        assert!(tries < 100, "{:?} {:?} {:?}", log.state(), ring::memory(), log.positions());
    }
    let next = log.positions().received.0.offset;
    respond(&log, &(next..next + 40).flat_map(batch).collect::<Vec<u8>>(), 3000).unwrap();
    let flushed = ring::timeout(Duration::from_secs(100), log.flush()).await;
    flushed.expect("room").unwrap();
    store.close().await;
    compare(&log, next + 40).await;
    check_indexes(&log).await;
    drop((log, store));
    let store = simulated_store().await;
    let (log, recovered) = open(&store, settings()).await;
    assert_eq!((recovered.corrupt, recovered.positions.received.0.offset), (None, next + 40));
    compare(&log, next + 40).await;
    store.close().await;
}

#[test]
fn a_full_disk_is_waited_for_and_spoils_nothing() {
    for_seeds(1, 60, |seed| {
        let mut sim = Simulation::new(seed, Faults::default());
        let machine = sim.machine();
        let bytes = 100_000 + sim.random_below(300_000);
        sim.disk(machine, |disk| disk.set_capacity(bytes));
        let (full, room) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(false)));
        let executor = sim.executor_on(machine, Config::small());
        let task = fill(Rc::clone(&full), Rc::clone(&room));
        let task = sim.spawn_on(executor, ring::Share::Replicate, task);
        sim.run_until(|_| full.get() > 0);
        let before = sim.steps();
        sim.run_for(Duration::from_secs(5));
        let steps = sim.steps() - before;
        assert!(steps < 20_000, "{steps} steps in five seconds of waiting for room");
        sim.disk(machine, |disk| disk.set_capacity(1 << 40));
        room.set(true);
        sim.run_until(|_| task.is_finished());
    });
}

#[test]
fn a_full_disk_does_not_keep_a_store_from_closing() {
    let mut sim = Simulation::new(7, Faults::default());
    let machine = sim.machine();
    sim.disk(machine, |disk| disk.set_capacity(200_000));
    let (full, room) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(false)));
    let executor = sim.executor_on(machine, Config::small());
    let seen = Rc::clone(&full);
    let task = async move {
        let store = simulated_store().await;
        let (log, _) = open(&store, settings()).await;
        while log.state() == LogState::Healthy {
            let next = log.positions().received.0.offset;
            respond(&log, &(next..next + 5).flat_map(batch).collect::<Vec<u8>>(), 3000).unwrap();
            ring::sleep(Duration::from_millis(3)).await;
        }
        seen.set(1);
        store.close().await;
        room.set(true);
    };
    let task = sim.spawn_on(executor, ring::Share::Replicate, task);
    sim.run_until(|_| full.get() > 0);
    sim.run_for(Duration::from_secs(30));
    assert!(task.is_finished(), "the store waits for room");
}

#[test]
fn an_epoch_that_began_in_a_sealed_segment_survives_a_crash() {
    let (live, copy) = (disk(), disk());
    let (from, to) = (live.path().to_owned(), copy.path().to_owned());
    run(async move {
        let settings = LogSettings { segment_bytes: 20_000, ..LogSettings::default() };
        let store = store(&from).await;
        let (log, _) = open(&store, settings.clone()).await;
        let epoch_of = |base: i64| if base < 15 { 1 } else { 2 };
        for base in 0..30 {
            let bytes = Shape { body: 1000, epoch: epoch_of(base), ..Shape::at(base) }.bytes();
            respond(&log, &bytes, 4000).unwrap();
        }
        log.flush().await.unwrap();
        assert_eq!(log.end_offset_for_epoch(1), Some((1, 15)));
        snapshot(&from, &to);
        let crashed = self::store(&to).await;
        let (recovered, _) = open(&crashed, settings).await;
        assert_eq!(recovered.positions().received.0.offset, 30);
        assert_eq!(recovered.end_offset_for_epoch(1), Some((1, 15)));
        crashed.close().await;
        store.close().await;
    });
}

#[test]
fn a_flush_waits_until_the_end_has_been_cut_back() {
    let dir = disk();
    let path = dir.path().to_owned();
    run(async move {
        let store = store(&path).await;
        let (log, _) = open(&store, LogSettings::default()).await;
        respond(&log, &testing::run(0..100, 1000), 4000).unwrap();
        log.flush().await.unwrap();
        let cutting = Rc::clone(&log);
        let cut = ring::spawn(ring::Share::Replicate, async move { cutting.truncate_to(60).await });
        while log.positions().flushed.0.offset == 100 {
            ring::yield_now().await;
        }
        let positions = log.flush().await.unwrap();
        assert_eq!((positions.flushed.0.offset, positions.received.0.offset), (60, 60));
        cut.await.unwrap();
        store.close().await;
    });
}

/// Whoever closes a log does not wait for records that a cut has taken meanwhile, and a cut that
/// was about to begin leaves a closed log alone.
#[test]
fn a_close_and_a_cut_that_meet_both_end() {
    const CUT: i64 = 57;
    let (cuts, busy) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    for_seeds(1, 200, |seed| {
        let mut sim = Simulation::new(seed, Faults::none());
        let executor = sim.executor(Config::small());
        let (cuts, busy) = (Rc::clone(&cuts), Rc::clone(&busy));
        sim.run_on(executor, async move {
            let store = simulated_store().await;
            let (log, _) = open(&store, settings()).await;
            respond(&log, &(0..80).flat_map(batch).collect::<Vec<u8>>(), 3000).unwrap();
            log.flush().await.unwrap();
            respond(&log, &(80..85).flat_map(batch).collect::<Vec<u8>>(), 3000).unwrap();
            let cutting = Rc::clone(&log);
            let cut = async move { cutting.truncate_to(CUT).await };
            let cut = ring::spawn(ring::Share::Replicate, cut);
            ring::sleep(Duration::from_micros(ring::random() % 3000)).await;
            let closed = ring::timeout(Duration::from_secs(60), log.close()).await;
            closed.expect("it ends").unwrap();
            let end = match ring::timeout(Duration::from_secs(60), cut).await.expect("it ends") {
                Ok(()) => {
                    cuts.set(cuts.get() + 1);
                    CUT
                }
                Err(_) => {
                    busy.set(busy.get() + 1);
                    85
                }
            };
            drop(log);
            let (log, recovered) = open(&store, settings()).await;
            assert_eq!((recovered.corrupt, recovered.positions.received.0.offset), (None, end));
            compare(&log, end).await;
            store.close().await;
        });
    });
    assert!(cuts.get() > 0 && busy.get() > 0, "{} cuts, {} left", cuts.get(), busy.get());
}

/// Cuts a log back on a device that may fail at any moment of it, opens it again, and goes on.
async fn cut_and_reopen(ready: Rc<Cell<bool>>, failures: Rc<Cell<u32>>) {
    const CUT: i64 = 57;
    let store = simulated_store().await;
    let (log, _) = open(&store, settings()).await;
    respond(&log, &(0..100).flat_map(batch).collect::<Vec<u8>>(), 3000).unwrap();
    log.flush().await.unwrap();
    ready.set(true);
    let cut = log.truncate_to(CUT).await;
    let flushed = log.positions().flushed.0;
    assert!(flushed.offset >= CUT, "{flushed:?} after {cut:?}");
    let mut end = log.positions().received.0.offset;
    let mut log = log;
    // The failure may also meet what comes after the cut.
    loop {
        if log.state() == LogState::Healthy {
            assert!(end >= CUT);
            respond(&log, &(end..end + 9).flat_map(batch).collect::<Vec<u8>>(), 3000).unwrap();
            if log.flush().await.is_ok() {
                break;
            }
        }
        failures.set(failures.get() + u32::from(cut.is_err()));
        assert!(matches!(log.state(), LogState::Failed(_)), "{:?}", log.state());
        let _ = log.close().await;
        let (again, recovered) = open(&store, settings()).await;
        end = recovered.positions.received.0.offset;
        assert!(recovered.corrupt.is_none() && end >= CUT, "{recovered:?} after {cut:?}");
        log = again;
    }
    store.close().await;
    compare(&log, end + 9).await;
}

#[test]
fn a_cut_that_fails_half_way_takes_nothing_that_stays() {
    let failures = Rc::new(Cell::new(0));
    for_seeds(1, 60, |seed| {
        let mut sim = Simulation::new(seed, Faults::default());
        let ready = Rc::new(Cell::new(false));
        let executor = sim.executor(Config::small());
        let task = cut_and_reopen(Rc::clone(&ready), Rc::clone(&failures));
        let task = sim.spawn_on(executor, ring::Share::Replicate, task);
        sim.run_until(|_| ready.get());
        sim.run_for(Duration::from_micros(sim.random_below(20_000)));
        sim.disk(ring::sim::Machine::FIRST, |disk| disk.fail_flushes(1));
        sim.run_for(Duration::from_secs(60));
        assert!(task.is_finished());
    });
    assert!(failures.get() > 10, "only {} cuts failed", failures.get());
}

#[test]
fn a_log_cut_below_its_first_segment_is_empty_and_goes_on_there() {
    let dir = disk();
    let path = dir.path().to_owned();
    run(async move {
        let settings = LogSettings {
            segment_bytes: 10_000,
            start_offset_if_new: 100,
            ..LogSettings::default()
        };
        let store = store(&path).await;
        let (log, _) = open(&store, settings.clone()).await;
        respond(&log, &testing::run(100..150, 1000), 4000).unwrap();
        log.flush().await.unwrap();
        log.truncate_to(40).await.unwrap();
        let positions = log.positions();
        assert_eq!((positions.log_start_offset, positions.received.0.offset), (40, 40));
        assert_eq!((positions.flushed.0.offset, positions.last_epoch), (40, None));
        assert_eq!(log.last_batch(), None);
        respond(&log, &testing::run(40..60, 1000), 4000).unwrap();
        log.flush().await.unwrap();
        store.close().await;
        assert_eq!(read_log(&path), testing::run(40..60, 1000));
        drop((log, store));
        let store = self::store(&path).await;
        let (log, recovered) = open(&store, settings).await;
        assert_eq!(recovered.corrupt, None);
        assert_eq!(log.positions().log_start_offset, 40);
        assert_eq!(log.positions().received.0.offset, 60);
        store.close().await;
    });
}

#[test]
fn a_failed_flush_fails_every_log_and_each_can_be_opened_again() {
    let mut sim = Simulation::new(5, Faults::none());
    let (written, failed) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(false)));
    let (told, wanted) = (Rc::clone(&written), Rc::clone(&failed));
    let executor = sim.executor(Config::small());
    let task = sim.spawn_on(executor, ring::Share::Replicate, async move {
        let boot = Boot::prepare_simulated(&[PathBuf::from("/data")]).await.unwrap();
        let mut config = StoreConfig::new(0, boot);
        config.flush_interval = Duration::from_secs(3600);
        let store = Store::open(config).await.unwrap();
        let mut logs = Vec::new();
        for partition in 0..3 {
            let (log, _) = store.open_log(id(partition), settings()).await.unwrap();
            respond(&log, &(0..30).flat_map(batch).collect::<Vec<u8>>(), 3000).unwrap();
            logs.push(log);
        }
        for log in &logs {
            log.flush().await.unwrap();
        }
        respond(&logs[0], &(30..40).flat_map(batch).collect::<Vec<u8>>(), 3000).unwrap();
        logs[0].write_out().await.unwrap();
        told.set(true);
        while !wanted.get() {
            ring::sleep(Duration::from_millis(1)).await;
        }
        let refused = logs[0].flush().await;
        assert!(matches!(refused, Err(LogError::State(LogState::Failed(_)))), "{refused:?}");
        for log in &logs {
            let LogState::Failed(reason) = log.state() else { panic!("{:?}", log.state()) };
            assert!(reason.contains("flush failed"), "{reason}");
            assert_eq!(log.positions().received.0.offset, 30, "only what was flushed is certain");
            // A flush is not tried again: it would succeed without what was lost.
            assert!(log.flush().await.is_err());
            assert!(log.close().await.is_err());
        }
        for partition in 0..3 {
            let (log, recovered) = store.open_log(id(partition), settings()).await.unwrap();
            assert_eq!(log.state(), LogState::Healthy);
            assert_eq!(recovered.positions.received.0.offset, 30);
            respond(&log, &(30..35).flat_map(batch).collect::<Vec<u8>>(), 3000).unwrap();
            log.flush().await.unwrap();
            compare(&log, 35).await;
        }
        store.close().await;
    });
    sim.run_until(|_| written.get());
    sim.disk(ring::sim::Machine::FIRST, |disk| disk.fail_flushes(1));
    failed.set(true);
    sim.run_until(|_| task.is_finished());
}

/// What was told to be flushed survives a power loss that is followed at once by a failing device,
/// since a durable checkpoint said so before it was told.
#[test]
fn what_was_told_to_be_flushed_survives_a_crash_and_a_failing_device_after_it() {
    for_seeds(1, 40, |seed| {
        let mut faults = Faults::none();
        faults.disk.delay = Duration::from_millis(1)..Duration::from_millis(20);
        let mut sim = Simulation::new(seed, faults);
        let told = Rc::new(Cell::new(0));
        let executor = sim.executor(Config::small());
        sim.spawn_on(executor, ring::Share::Replicate, rules::grow(Rc::clone(&told))).detach();
        for _ in 0..1 + seed % 4 {
            let before = told.get();
            sim.run_until(|_| told.get() > before);
        }
        sim.crash(executor);
        let told = told.get();
        let last = sim.executor(Config::small());
        let opened = Rc::new(Cell::new(false));
        let ready = Rc::clone(&opened);
        let task = sim.spawn_on(last, ring::Share::Replicate, async move {
            let store = simulated_store().await;
            let (log, recovered) = open(&store, settings()).await;
            assert!(recovered.positions.received.0.offset >= told);
            ready.set(true);
            while log.is_open() {
                ring::sleep(Duration::from_millis(1)).await;
            }
            let _ = log.close().await;
            let (_, recovered) = open(&store, settings()).await;
            let end = recovered.positions.received.0.offset;
            assert!(end >= told, "{told} was told to be flushed, {end} is left");
        });
        sim.run_until(|_| opened.get());
        sim.disk(ring::sim::Machine::FIRST, |disk| disk.fail_flushes(1));
        sim.run_until(|_| task.is_finished());
    });
}

/// Without a free byte the node comes up, shows what it has, and goes on when there is room.
#[test]
fn a_disk_that_is_full_at_the_start_keeps_nothing_from_being_read() {
    for_seeds(1, 20, |seed| {
        let mut sim = Simulation::new(seed, Faults::none());
        let flushed = Rc::new(Cell::new(false));
        let done = Rc::clone(&flushed);
        let executor = sim.executor(Config::small());
        let task = async move {
            let store = simulated_store().await;
            let (log, _) = open(&store, settings()).await;
            respond(&log, &(0..70).flat_map(batch).collect::<Vec<u8>>(), 3000).unwrap();
            log.flush().await.unwrap();
            done.set(true);
            std::future::pending::<()>().await;
        };
        sim.spawn_on(executor, ring::Share::Replicate, task).detach();
        sim.run_until(|_| flushed.get());
        sim.crash(executor);
        let machine = ring::sim::Machine::FIRST;
        sim.disk(machine, |disk| disk.set_capacity(0));
        let (up, room) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(false)));
        let (shown, freed) = (Rc::clone(&up), Rc::clone(&room));
        let last = sim.executor(Config::small());
        let task = sim.spawn_on(last, ring::Share::Replicate, async move {
            let store = simulated_store().await;
            let (log, recovered) = open(&store, settings()).await;
            assert_eq!(recovered.corrupt, None);
            assert_eq!(recovered.positions.received.0.offset, 70);
            assert_eq!(log.state(), LogState::DiskFull);
            let refused = log.flush().await;
            assert!(matches!(refused, Err(LogError::State(LogState::DiskFull))), "{refused:?}");
            compare(&log, 70).await;
            shown.set(true);
            while !freed.get() || log.state() == LogState::DiskFull {
                ring::sleep(Duration::from_millis(10)).await;
            }
            respond(&log, &(70..80).flat_map(batch).collect::<Vec<u8>>(), 3000).unwrap();
            assert_eq!(log.flush().await.unwrap().flushed.0.offset, 80);
            std::future::pending::<()>().await;
        });
        sim.run_until(|_| up.get());
        sim.disk(machine, |disk| disk.set_capacity(1 << 40));
        room.set(true);
        sim.run_for(Duration::from_secs(30));
        assert!(!task.is_finished());
        sim.crash(last);
        let third = sim.executor(Config::small());
        sim.run_on(third, async move {
            let store = simulated_store().await;
            let (log, recovered) = open(&store, settings()).await;
            assert_eq!(recovered.corrupt, None);
            assert_eq!(recovered.positions.received.0.offset, 80);
            compare(&log, 80).await;
        });
    });
}

/// A stop wakes those that wait for a flush; it does not make one of what they wait for.
#[test]
fn a_flush_that_a_stop_cuts_short_does_not_count() {
    let mut sim = Simulation::new(3, Faults::none());
    let executor = sim.executor(Config::small());
    sim.run_on(executor, async {
        let store = simulated_store().await;
        let (log, _) = open(&store, settings()).await;
        let volume = log.volume().clone();
        let flushing = ring::spawn(ring::Share::Background, async move { volume.flush().await });
        ring::yield_now().await;
        log.volume().stop();
        assert!(!flushing.await);
    });
}

/// There is room for the records and none for the checkpoint that would say that they are flushed.
#[test]
fn without_room_for_a_checkpoint_a_log_is_disk_full_until_there_is() {
    let mut sim = Simulation::new(11, Faults::none());
    let (written, room) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(false)));
    let (done, freed) = (Rc::clone(&written), Rc::clone(&room));
    let executor = sim.executor(Config::small());
    let task = sim.spawn_on(executor, ring::Share::Replicate, async move {
        let store = simulated_store().await;
        let (log, _) = open(&store, settings()).await;
        while !has_room(&log, 1000) {
            ring::sleep(Duration::from_millis(1)).await;
        }
        respond(&log, &(0..5).flat_map(batch).collect::<Vec<u8>>(), 3000).unwrap();
        while log.has_job() {
            ring::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(log.positions().flushed.0.offset, 0);
        done.set(true);
        while log.state() == LogState::Healthy {
            ring::sleep(Duration::from_millis(10)).await;
        }
        while !freed.get() {
            assert_eq!(log.state(), LogState::DiskFull);
            assert_eq!(log.positions().flushed.0.offset, 0);
            ring::sleep(Duration::from_millis(10)).await;
        }
        while log.state() == LogState::DiskFull {
            ring::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(log.flush().await.unwrap().flushed.0.offset, 5);
    });
    sim.run_until(|_| written.get());
    let machine = ring::sim::Machine::FIRST;
    sim.disk(machine, |disk| disk.set_capacity(0));
    sim.run_for(Duration::from_secs(30));
    assert!(!task.is_finished());
    sim.disk(machine, |disk| disk.set_capacity(1 << 40));
    room.set(true);
    sim.run_for(Duration::from_secs(30));
    assert!(task.is_finished());
}

/// What a failed log will not write any more is room for others, not only once it is opened again.
#[test]
fn a_log_that_failed_holds_no_memory() {
    let mut sim = Simulation::new(5, Faults::none());
    let executor = sim.executor(Config::small());
    sim.run_on(executor, async {
        let store = simulated_store().await;
        let (log, _) = open(&store, settings()).await;
        let before = ring::memory().used;
        respond(&log, &(0..50).flat_map(batch).collect::<Vec<u8>>(), 3000).unwrap();
        log.fail("for the test");
        log.settle().await;
        assert_eq!(ring::memory().used, before);
        assert_eq!(log.positions().received.0.offset, 0);
        let _ = log.close().await;
        store.close().await;
    });
}
