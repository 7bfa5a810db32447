//! The undo window: what the source has deleted stays for as long as was promised, and no longer.

use std::cell::Cell;
use std::time::Duration;

use ring::sim::{ExecutorId, Faults, Machine, Simulation};
use ring::{Config, Share};

use super::simulated::{batch, live, simulated_store};
use super::*;

const WINDOW: Duration = Duration::from_secs(3600);
const MINUTE: Duration = Duration::from_secs(60);

fn settings() -> LogSettings {
    LogSettings { undo_window: WINDOW, ..simulated::settings() }
}

/// A log of several sealed segments whose visible start has just moved to its last records.
fn live_with_a_start_that_moved(sim: &mut Simulation) -> ExecutorId {
    live(sim, async {
        let store = simulated_store().await;
        let (log, _) = open(&store, settings()).await;
        respond(&log, &(0..100).flat_map(batch).collect::<Vec<u8>>(), 3000).unwrap();
        log.flush().await.unwrap();
        log.advance_start(99);
        assert_eq!(log.positions().log_start_offset, 99);
        (store, log)
    })
}

/// The base offsets of the segments whose files are there.
fn bases(sim: &Simulation) -> Vec<String> {
    let folder = id(0).folder(Path::new("/data"));
    let files = sim.disk(Machine::FIRST, |disk| disk.files(&folder).unwrap());
    let names = files.into_iter().map(|(path, _)| path);
    let logs = names.filter(|path| path.extension().is_some_and(|e| e == "log"));
    logs.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect()
}

/// Nothing is gone just before the window ends, and just after it all that lies below the start.
fn is_kept_for_the_window(sim: &mut Simulation, before: &[String]) {
    sim.run_for(WINDOW - MINUTE);
    assert_eq!(bases(sim), before, "files went within the window");
    sim.run_for(2 * MINUTE);
    assert_eq!(bases(sim), before[before.len() - 1..], "files stayed beyond the window");
}

#[test]
fn files_below_the_start_stay_for_the_window_and_go_after_it() {
    let mut sim = Simulation::new(1, Faults::none());
    live_with_a_start_that_moved(&mut sim);
    let before = bases(&sim);
    assert!(before.len() > 2, "{before:?}");
    is_kept_for_the_window(&mut sim, &before);
}

#[test]
fn a_wall_clock_that_jumps_neither_shortens_nor_prolongs_the_window() {
    const DAY_MS: i64 = 24 * 3_600_000;
    for jump_ms in [400 * DAY_MS, -400 * DAY_MS] {
        let mut sim = Simulation::new(2, Faults::none());
        live_with_a_start_that_moved(&mut sim);
        let before = bases(&sim);
        sim.jump_wall_clock(jump_ms);
        is_kept_for_the_window(&mut sim, &before);
    }
}

/// No clock is trusted over a restart: files may stay longer, never shorter.
#[test]
fn a_start_begins_the_window_anew() {
    let mut sim = Simulation::new(3, Faults::none());
    let first = live_with_a_start_that_moved(&mut sim);
    let before = bases(&sim);
    sim.run_for(WINDOW - MINUTE);
    sim.kill(first);
    live(&mut sim, async {
        let store = simulated_store().await;
        let (log, _) = open(&store, settings()).await;
        assert_eq!(log.positions().log_start_offset, 99);
        (store, log)
    });
    is_kept_for_the_window(&mut sim, &before);
}

/// The one thing that ends the window sooner: on a full disk what the source has deleted goes
/// before what it still sends. Nothing at or above the visible start does.
#[test]
fn a_full_disk_ends_the_window() {
    let mut sim = Simulation::new(4, Faults::none());
    let (end, full) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(false)));
    let (told, met) = (Rc::clone(&end), Rc::clone(&full));
    let executor = sim.executor(Config::small());
    let task = async move {
        let store = simulated_store().await;
        let (log, _) = open(&store, settings()).await;
        respond(&log, &(0..100).flat_map(batch).collect::<Vec<u8>>(), 3000).unwrap();
        log.flush().await.unwrap();
        log.advance_start(60);
        loop {
            let next = log.positions().received.0.offset;
            told.set(next);
            met.set(met.get() || log.state() == LogState::DiskFull);
            if log.positions().written.0.offset == next && next < 300 {
                respond(&log, &batch(next), 3000).unwrap();
            }
            ring::sleep(Duration::from_secs(1)).await;
        }
    };
    sim.spawn_on(executor, Share::Replicate, task).detach();
    sim.run_until(|_| end.get() >= 100);
    let before = bases(&sim);
    sim.run_for(MINUTE);
    assert!(before.iter().all(|base| bases(&sim).contains(base)), "there is room");
    sim.disk(Machine::FIRST, |disk| {
        let used = (1 << 40) - disk.free_bytes();
        disk.set_capacity(used);
    });
    sim.run_for(10 * MINUTE);
    assert!(full.get(), "the disk was never full");
    let after = bases(&sim);
    let (gone, kept): (Vec<_>, Vec<_>) = before.iter().partition(|base| !after.contains(base));
    let reaches = kept[0].parse::<i64>().unwrap();
    assert!(!gone.is_empty() && reaches <= 60, "gone {gone:?}, kept {kept:?}");
    assert!(before.windows(2).all(|two| two[0] != *kept[0] || two[1].parse::<i64>().unwrap() > 60));
    assert!(end.get() > 160, "it goes on with the room that this made, up to {}", end.get());
}

/// Else a power loss would bring back a visible start of which the records are gone.
#[test]
fn files_stay_until_the_new_start_is_durable() {
    let mut sim = Simulation::new(3, Faults::none());
    let first = live(&mut sim, async {
        let boot = Boot::prepare_simulated(&[PathBuf::from("/data")]).await.unwrap();
        let config = StoreConfig { flush_interval: WINDOW, ..StoreConfig::new(0, boot) };
        let store = Store::open(config).await.unwrap();
        let settings = LogSettings { undo_window: Duration::ZERO, ..settings() };
        let (log, _) = open(&store, settings).await;
        respond(&log, &(0..100).flat_map(batch).collect::<Vec<u8>>(), 3000).unwrap();
        log.flush().await.unwrap();
        log.advance_start(99);
        ring::sleep(MINUTE).await;
        (store, log)
    });
    let before = bases(&sim);
    sim.kill(first);
    let second = live(&mut sim, async move {
        let store = simulated_store().await;
        let settings = LogSettings { undo_window: Duration::ZERO, ..settings() };
        let (log, recovered) = open(&store, settings).await;
        assert_eq!(recovered.corrupt, None);
        let start = log.positions().log_start_offset;
        assert!(start >= before[0].parse().unwrap(), "it begins at {start}, with {before:?}");
        log.advance_start(99);
        log.flush().await.unwrap();
        ring::sleep(MINUTE).await;
        (store, log)
    });
    assert_eq!(bases(&sim).len(), 1);
    sim.kill(second);
}

/// Nor are they waited for where there is no room to make it so.
#[test]
fn files_below_a_start_make_room_for_the_checkpoint_that_says_so() {
    let mut sim = Simulation::new(3, Faults::none());
    let first = live(&mut sim, async {
        let store = simulated_store().await;
        let (log, _) = open(&store, settings()).await;
        respond(&log, &(0..100).flat_map(batch).collect::<Vec<u8>>(), 3000).unwrap();
        store.close().await;
    });
    sim.kill(first);
    let (full, told) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(false)));
    let (is_full, ready) = (Rc::clone(&full), Rc::clone(&told));
    let executor = sim.executor(Config::small());
    let life = sim.spawn_on(executor, Share::Replicate, async move {
        let boot = Boot::prepare_simulated(&[PathBuf::from("/data")]).await.unwrap();
        let config = StoreConfig { flush_interval: MINUTE, ..StoreConfig::new(0, boot) };
        let store = Store::open(config).await.unwrap();
        let (log, _) = open(&store, settings()).await;
        ready.set(true);
        while !is_full.get() {
            ring::sleep(Duration::from_millis(1)).await;
        }
        log.advance_start(99);
        log.flush().await.unwrap_err();
        while log.flush().await.is_err() {
            ring::sleep(Duration::from_secs(1)).await;
        }
    });
    sim.run_until(|_| told.get());
    let before = bases(&sim);
    sim.disk(Machine::FIRST, |disk| {
        let used = (1 << 40) - disk.free_bytes();
        disk.set_capacity(used);
    });
    full.set(true);
    sim.run_for(30 * MINUTE);
    assert!(bases(&sim).len() < before.len(), "{before:?} stay");
    assert!(life.is_finished(), "there is room now");
}
