//! A log that no durable checkpoint has named, of several segments, after a flush that failed in a
//! process that could not say so: that a segment is sealed does not say that it is on the device.

use std::cell::Cell;
use std::time::Duration;

use ring::sim::{ExecutorId, Faults, Machine, Simulation, for_seeds};
use ring::{Config, Share};

use super::simulated::{batch, compare, live, settings, simulated_store};
use super::*;
use crate::position::Place;

const END: i64 = 75;

fn batches(range: std::ops::Range<i64>) -> Vec<u8> {
    range.flat_map(batch).collect()
}

/// It flushes only when it is asked to.
async fn idle_store() -> Rc<Store> {
    let boot = Boot::prepare_simulated(&[PathBuf::from("/data")]).await.unwrap();
    let mut config = StoreConfig::new(0, boot);
    config.flush_interval = Duration::from_secs(3600);
    Store::open(config).await.unwrap()
}

/// Lets a life go on until it is ready, the disk `fail`, and `then` take its course.
fn fail_then(
    sim: &mut Simulation,
    fail: impl FnOnce(&mut Simulation),
    until: impl Future<Output = Rc<Log>> + 'static,
    then: impl AsyncFnOnce(Rc<Log>) + 'static,
) -> ExecutorId {
    let (ready, failing) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(false)));
    let (told, may) = (Rc::clone(&ready), Rc::clone(&failing));
    let executor = sim.executor(Config::small());
    let life = sim.spawn_on(executor, Share::Replicate, async move {
        let log = until.await;
        told.set(true);
        while !may.get() {
            ring::sleep(Duration::from_millis(1)).await;
        }
        then(log).await;
    });
    sim.run_until(|_| ready.get());
    fail(sim);
    failing.set(true);
    sim.run_until(|_| life.is_finished());
    sim.set_faults(Faults::none());
    executor
}

/// Records for several segments, of which nothing is flushed when the process is killed.
fn live_to_a_first_flush_that_fails(sim: &mut Simulation) {
    let fail = |sim: &mut Simulation| {
        let mut faults = Faults::none();
        (faults.disk.write_error_ppm, faults.disk.flush_error_ppm) = (1_000_000, 1_000_000);
        sim.set_faults(faults);
    };
    let fill = async {
        let store = idle_store().await;
        let (log, _) = open(&store, settings()).await;
        respond(&log, &batches(0..END), 3000).unwrap();
        log.write_out().await.unwrap();
        assert!(log.inner.borrow().sealed.len() > 1);
        std::mem::forget(store);
        log
    };
    let executor = fail_then(sim, fail, fill, async |log| {
        log.flush().await.unwrap_err();
    });
    sim.kill(executor);
}

/// Opens the log after the power is back: nothing of what was told is lost.
fn holds_what_was_told(sim: &mut Simulation, told: i64) {
    let executor = sim.executor(Config::small());
    sim.run_on(executor, async move {
        let store = simulated_store().await;
        let (log, recovered) = open(&store, settings()).await;
        assert_eq!(recovered.corrupt, None, "{told} was told to be flushed");
        let end = log.positions().received.0.offset;
        assert!(end >= told, "recovered to {end}, but {told} was told to be flushed");
        compare(&log, end).await;
        store.close().await;
    });
}

#[test]
fn what_no_checkpoint_has_named_counts_as_flushed_only_when_it_is_flushed() {
    let several = Rc::new(Cell::new(0));
    for_seeds(1, 30, |seed| {
        let mut sim = Simulation::new(seed, Faults::none());
        live_to_a_first_flush_that_fails(&mut sim);
        let (told, flushes) = (Rc::new(Cell::new(0)), seed % 2 == 0);
        let (tells, counts) = (Rc::clone(&told), Rc::clone(&several));
        let second = live(&mut sim, async move {
            let store = idle_store().await;
            let (log, _) = open(&store, settings()).await;
            counts.set(counts.get() + u32::from(!log.inner.borrow().sealed.is_empty()));
            let positions = log.positions();
            assert_eq!(positions.flushed.0, Place::default(), "{:?}", positions.received);
            assert_eq!(log.entry().last_epoch, None);
            if flushes {
                log.flush().await.unwrap();
                assert_eq!(log.positions().flushed.0, positions.received.0);
            }
            tells.set(log.positions().flushed.0.offset);
            (store, log)
        });
        sim.crash(second);
        holds_what_was_told(&mut sim, told.get());
    });
    assert!(several.get() > 10, "only {} times were sealed segments there", several.get());
}

/// The flush that would have made them safe fails, too: none of it is kept, and what comes again in
/// its place is on the device when it is said to be.
#[test]
fn of_what_no_checkpoint_has_named_a_failed_flush_leaves_nothing() {
    for_seeds(1, 30, |seed| {
        let mut sim = Simulation::new(seed, Faults::none());
        live_to_a_first_flush_that_fails(&mut sim);
        let told = Rc::new(Cell::new(0));
        let tells = Rc::clone(&told);
        let kept = Rc::new(std::cell::RefCell::new(None));
        let keeps = Rc::clone(&kept);
        let read = async move {
            let store = idle_store().await;
            let (log, _) = open(&store, settings()).await;
            *keeps.borrow_mut() = Some(store);
            log
        };
        let again = async move |log: Rc<Log>| {
            log.flush().await.unwrap_err();
            let _ = log.close().await;
            let store = kept.take().unwrap();
            let (log, recovered) = open(&store, settings()).await;
            assert_eq!(recovered.corrupt, None);
            let positions = log.positions();
            assert_eq!((positions.received.0, positions.flushed.0), Default::default());
            respond(&log, &batches(0..END), 3000).unwrap();
            tells.set(log.flush().await.unwrap().flushed.0.offset);
            *kept.borrow_mut() = Some(store);
        };
        let fail = |sim: &mut Simulation| {
            sim.disk(Machine::FIRST, |disk| disk.fail_flushes(1));
        };
        let second = fail_then(&mut sim, fail, read, again);
        sim.crash(second);
        assert_eq!(told.get(), END);
        holds_what_was_told(&mut sim, END);
    });
}
