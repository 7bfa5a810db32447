//! The log on the simulator: power losses that keep any sectors of what was not flushed.

use std::cell::{Cell, RefCell};

use ring::sim::{ExecutorId, Faults, Machine, Simulation, for_seeds};
use ring::{Config, Share};

use super::*;
use crate::checkpoint::Replay;
use crate::crc;
use crate::recovery::Stopped;
use crate::scan::scan;

/// What the world outside knows of the log, across crashes.
#[derive(Default)]
struct Known {
    /// Everything below was reported flushed.
    flushed: Cell<i64>,
    /// The next offset the source has sent.
    sent: Cell<i64>,
    failures: Cell<u32>,
    started: Cell<bool>,
    torn: RefCell<u64>,
}

pub fn settings() -> LogSettings {
    LogSettings { segment_bytes: 40_000, ..LogSettings::default() }
}

/// The batch at an offset; everything about it follows from the offset.
pub fn batch(base: i64) -> Vec<u8> {
    let body = (base * 7919 % 3000) as usize;
    let producer = (base % 3 == 0).then_some((base % 5, 0, base as i32));
    Shape { body, epoch: (base / 50) as i32, producer, ..Shape::at(base) }.bytes()
}

pub async fn simulated_store() -> Rc<Store> {
    let boot = Boot::prepare_simulated(&[PathBuf::from("/data")]).await.unwrap();
    let mut config = StoreConfig::new(0, boot);
    config.flush_interval = std::time::Duration::from_millis(20);
    Store::open(config).await.unwrap()
}

/// Lets a life come to its end; what it leaves is kept as it is until the power goes.
pub fn live(sim: &mut Simulation, life: impl Future + 'static) -> ExecutorId {
    let executor = sim.executor(Config::small());
    let ended = Rc::new(Cell::new(false));
    let ends = Rc::clone(&ended);
    let task = async move {
        let _kept = life.await;
        ends.set(true);
        std::future::pending::<()>().await;
    };
    sim.spawn_on(executor, Share::Replicate, task).detach();
    sim.run_until(|_| ended.get());
    executor
}

/// Opens the log and holds it against what is known.
async fn reopen(store: &Store, known: &Known) -> Rc<Log> {
    let (log, recovered) = open(store, settings()).await;
    assert_eq!(recovered.corrupt, None);
    let end = log.positions().received.0.offset;
    let flushed = known.flushed.get();
    assert!(end >= flushed, "recovered to {end}, but {flushed} was reported flushed");
    assert!(end <= known.sent.get());
    *known.torn.borrow_mut() += recovered.torn_bytes;
    compare(&log, end).await;
    known.flushed.set(end.min(log.positions().flushed.0.offset).max(flushed));
    log
}

/// Every batch of every segment is the one that was sent, none is missing.
pub async fn compare(log: &Log, end: i64) {
    let mut next = 0;
    let mut names: Vec<String> = ring::fs::read_dir(log.folder())
        .await
        .unwrap()
        .into_iter()
        .filter_map(|entry| entry.name.into_string().ok())
        .filter(|name| name.ends_with(".log"))
        .collect();
    names.sort();
    for name in names {
        let path = log.folder().join(&name);
        let base: i64 = name[..20].parse().unwrap();
        let bytes = ring::fs::size(&path).await.unwrap();
        let from = Replay::segment_start(base, None, false);
        let scanned = scan(&path, &from, bytes, |found| {
            assert_eq!(found.batch.base_offset, next);
            assert_eq!(found.file_crc, crc::crc32c(&batch(next)), "batch {next} differs");
            next += 1;
            true
        })
        .await;
        assert!(matches!(scanned.stopped, Stopped::End | Stopped::Zeros), "{scanned:?}");
    }
    assert_eq!(next, end);
}

/// Notes every flushed end the moment it is told.
async fn watch(log: Rc<Log>, known: Rc<Known>) {
    loop {
        let seen = log.changed.count();
        let flushed = log.positions().flushed.0.offset;
        known.flushed.set(known.flushed.get().max(flushed));
        log.changed.after(seen).await;
    }
}

/// Appends, waits and flushes until the power goes.
async fn append_and_watch(known: Rc<Known>) {
    let store = simulated_store().await;
    let log = reopen(&store, &known).await;
    ring::spawn(Share::Serve, watch(Rc::clone(&log), Rc::clone(&known))).detach();
    loop {
        match ring::random() % 8 {
            0..4 => {
                let mut next = log.positions().received.0.offset;
                let count = ring::random() % 20;
                let mut bytes = Vec::new();
                for _ in 0..count {
                    bytes.extend(batch(next));
                    next += 1;
                }
                if !bytes.is_empty() && has_room(&log, bytes.len()) {
                    // Sent is what may be there, whatever the log has come to.
                    known.sent.set(known.sent.get().max(next));
                    let piece = 1 + ring::random() as usize % 8000;
                    respond(&log, &bytes, piece).unwrap();
                }
            }
            4..6 => ring::sleep(std::time::Duration::from_micros(ring::random() % 30_000)).await,
            6 => {
                let positions = log.flush().await.unwrap();
                known.flushed.set(known.flushed.get().max(positions.flushed.0.offset));
            }
            _ => ring::yield_now().await,
        }
    }
}

#[test]
fn power_losses_take_nothing_that_was_flushed() {
    for_seeds(1, 60, |seed| {
        let mut sim = Simulation::new(seed, Faults::default());
        let known = Rc::new(Known::default());
        for _ in 0..5 {
            let executor = sim.executor(Config::small());
            let task =
                sim.spawn_on(executor, Share::Replicate, append_and_watch(Rc::clone(&known)));
            let time = std::time::Duration::from_micros(1 + sim.random_below(400_000));
            sim.run_for(time);
            assert!(!task.is_finished());
            sim.crash(executor);
        }
        let last = sim.executor(Config::small());
        let known_at_end = Rc::clone(&known);
        sim.run_on(last, async move {
            let store = simulated_store().await;
            let log = reopen(&store, &known_at_end).await;
            let end = log.positions().received.0.offset;
            respond(&log, &batch(end), 1000).unwrap();
            log.flush().await.unwrap();
            store.close().await;
            compare(&log, end + 1).await;
        });
    });
}

/// As [`live`], with a device that fails now and then: a failed log is opened again.
async fn live_on_bad_disk(known: Rc<Known>) {
    let store = simulated_store().await;
    known.started.set(true);
    loop {
        let (log, recovered) = match store.open_log(id(0), settings()).await {
            Ok(opened) => opened,
            Err(LogError::Io { .. } | LogError::State(LogState::Failed(_))) => continue,
            Err(error) => panic!("{error}"),
        };
        if recovered.corrupt.is_none() {
            let end = recovered.positions.received.0.offset;
            let flushed = known.flushed.get();
            assert!(end >= flushed, "recovered to {end}, but {flushed} was reported flushed");
            assert!(end <= known.sent.get());
        }
        while log.state() == LogState::Healthy {
            let next = log.positions().received.0.offset;
            let bytes: Vec<u8> = (next..next + 5).flat_map(batch).collect();
            if has_room(&log, bytes.len()) {
                known.sent.set(known.sent.get().max(next + 5));
                respond(&log, &bytes, 2000).unwrap();
            }
            match log.flush().await {
                Ok(positions) => {
                    known.flushed.set(known.flushed.get().max(positions.flushed.0.offset));
                }
                Err(LogError::State(_)) => known.failures.set(known.failures.get() + 1),
                Err(error) => panic!("{error}"),
            }
        }
        let _ = log.close().await;
    }
}

#[test]
fn a_failing_device_loses_nothing_that_was_flushed() {
    let (mut failures, mut seeds) = (0, 0);
    for_seeds(1, 40, |seed| {
        seeds += 1;
        let mut faults = Faults::default();
        faults.disk.write_error_ppm = 10_000;
        faults.disk.flush_error_ppm = 30_000;
        faults.disk.read_error_ppm = 2_000;
        let mut sim = Simulation::new(seed, Faults::default());
        let known = Rc::new(Known::default());
        for _ in 0..4 {
            let executor = sim.executor(Config::small());
            let task =
                sim.spawn_on(executor, Share::Replicate, live_on_bad_disk(Rc::clone(&known)));
            // The start itself is spared: a node that cannot read its own folder does not start.
            known.started.set(false);
            sim.run_until(|_| known.started.get());
            sim.set_faults(faults.clone());
            sim.run_for(std::time::Duration::from_micros(sim.random_below(300_000)));
            assert!(!task.is_finished());
            sim.set_faults(Faults::default());
            match sim.random_below(2) {
                0 => sim.kill(executor),
                _ => sim.crash(executor),
            }
        }
        failures += known.failures.get();
        let last = sim.executor(Config::small());
        let known_at_end = Rc::clone(&known);
        sim.run_on(last, async move {
            let store = simulated_store().await;
            let log = reopen(&store, &known_at_end).await;
            assert_eq!(log.state(), LogState::Healthy);
            store.close().await;
        });
    });
    assert!(failures >= seeds / 4, "only {failures} failures met");
}

/// A life on a device that fails a flush, and then takes not even the word that its logs are
/// suspect. The process is killed with 30 records flushed and 70 written.
fn live_to_a_failed_flush(sim: &mut Simulation, seed: u64) {
    let (written, failing) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(false)));
    let (told, wanted) = (Rc::clone(&written), Rc::clone(&failing));
    let executor = sim.executor(Config::small());
    let life = sim.spawn_on(executor, Share::Replicate, async move {
        let boot = Boot::prepare_simulated(&[PathBuf::from("/data")]).await.unwrap();
        let mut config = StoreConfig::new(0, boot);
        config.flush_interval = std::time::Duration::from_secs(3600);
        let store = Store::open(config).await.unwrap();
        let (log, _) = open(&store, settings()).await;
        respond(&log, &(0..30).flat_map(batch).collect::<Vec<u8>>(), 3000).unwrap();
        log.flush().await.unwrap();
        respond(&log, &(30..70).flat_map(batch).collect::<Vec<u8>>(), 3000).unwrap();
        log.write_out().await.unwrap();
        // What a flush loses that is told to fail depends on how much was written before it.
        for _ in 0..seed {
            ring::fs::write("/data/other", vec![0]).await.unwrap();
        }
        told.set(true);
        while !wanted.get() {
            ring::sleep(std::time::Duration::from_millis(1)).await;
        }
        log.flush().await.unwrap_err();
    });
    sim.run_until(|_| written.get());
    let mut faults = Faults::none();
    faults.disk.write_error_ppm = 1_000_000;
    sim.set_faults(faults);
    sim.disk(Machine::FIRST, |disk| disk.fail_flushes(1));
    failing.set(true);
    sim.run_until(|_| life.is_finished());
    sim.set_faults(Faults::none());
    sim.kill(executor);
}

/// What a failed flush lost may be read for as long as the machine runs; no later flush writes it.
#[test]
fn what_is_read_above_the_flushed_place_is_written_again_before_it_counts_as_flushed() {
    let whole = Rc::new(Cell::new(0));
    for_seeds(1, 40, |seed| {
        let mut sim = Simulation::new(seed, Faults::none());
        live_to_a_failed_flush(&mut sim, seed);
        let flushed = Rc::new(Cell::new(0));
        let told = Rc::clone(&flushed);
        let second = live(&mut sim, async move {
            let store = simulated_store().await;
            let (log, recovered) = open(&store, settings()).await;
            assert_eq!(recovered.corrupt, None);
            told.set(log.flush().await.unwrap().flushed.0.offset);
            (store, log)
        });
        sim.crash(second);
        whole.set(whole.get() + u32::from(flushed.get() == 70));
        let last = sim.executor(Config::small());
        sim.run_on(last, async move {
            let store = simulated_store().await;
            let (log, recovered) = open(&store, settings()).await;
            assert_eq!(recovered.corrupt, None);
            let (end, flushed) = (log.positions().received.0.offset, flushed.get());
            assert!(end >= flushed, "recovered to {end}, but {flushed} was told to be flushed");
            compare(&log, end).await;
            store.close().await;
        });
    });
    assert!(whole.get() > 4, "only {} times was all of it there to be read", whole.get());
}
