//! Repairs, and what else may be at a log's files or end at the same time: workers, cuts, other
//! repairs, flushes that fail, a stop.

use std::cell::Cell;
use std::time::Duration;

use ring::sim::Machine;
use ring::{Config, Share};

use super::simulated::live;
use super::*;

/// A store that flushes when it is asked to.
async fn idle_store() -> Rc<Store> {
    let boot = Boot::prepare_simulated(&[PathBuf::from("/data")]).await.unwrap();
    let flush_interval = Duration::from_secs(3600);
    Store::open(StoreConfig { flush_interval, ..StoreConfig::new(0, boot) }).await.unwrap()
}

fn batches(range: std::ops::Range<i64>) -> Vec<u8> {
    range.flat_map(batch).collect()
}

/// A closed log of 70 records in segments of 40,000 bytes.
fn made(sim: &mut Simulation) {
    let first = live(sim, async {
        let store = simulated_store().await;
        let (log, _) = open(&store, simulated::settings()).await;
        respond(&log, &batches(0..70), 3000).unwrap();
        store.close().await;
    });
    sim.kill(first);
}

fn first_segment() -> PathBuf {
    id(0).folder(Path::new("/data")).join(Kind::Log.name(0))
}

/// A repair of the only damage, with all that it needs.
async fn gathered(log: &Rc<Log>) -> Repair {
    let damages = log.damages();
    assert_eq!(damages.len(), 1, "{damages:?}");
    let mut repair = Repair::begin(log, damages[0].clone()).await.unwrap();
    while let Some(offset) = repair.next_offset() {
        let records = Origin::simulated(70).answer(offset, 30_000).await;
        assert!(repair.take(&records, LIMITS).await.unwrap() > 0);
    }
    repair
}

async fn finish(repair: Repair) -> Result<(), RepairError> {
    repair.finish(&Verifier::new(0), || true).await
}

/// Opens the log whose first segment has been hurt, and finds that.
async fn found_damaged() -> (Rc<Store>, Rc<Log>) {
    let store = idle_store().await;
    let (log, _) = open(&store, simulated::settings()).await;
    assert_eq!(log.verify(&Verifier::new(0)).await, 1);
    assert!(log.is_open());
    (store, log)
}

#[test]
fn a_repair_writes_nothing_while_another_is_at_the_files_nor_to_what_that_has_cut() {
    let mut sim = Simulation::new(5, Faults::none());
    made(&mut sim);
    let at = batches(0..10).len() as u64 + 40;
    sim.disk(Machine::FIRST, |disk| disk.flip_bit(first_segment(), at, 3));
    let executor = sim.executor(Config::small());
    sim.run_on(executor, async {
        let (store, log) = found_damaged().await;
        let read = async || ring::fs::read(first_segment(), 1 << 20).await.unwrap();
        let hurt = read().await;
        let refused = gathered(&log).await.finish(&Verifier::new(0), || false).await;
        assert!(matches!(refused, Err(RepairError::Changed)), "{refused:?}");
        let repair = gathered(&log).await;
        // As a worker does.
        log.flags.working.set(true);
        let finishing = ring::spawn(Share::Background, finish(repair));
        ring::sleep(Duration::from_secs(60)).await;
        let cut = Rc::clone(&log);
        let cutting = ring::spawn(Share::Background, async move { cut.truncate_to(5).await });
        let (again, damage) = (Rc::clone(&log), log.damages()[0].clone());
        let beginning =
            ring::spawn(
                Share::Background,
                async move { Repair::begin(&again, damage).await.err() },
            );
        ring::sleep(Duration::from_secs(60)).await;
        let ended = [finishing.is_finished(), cutting.is_finished(), beginning.is_finished()];
        assert_eq!(ended, [false; 3], "it waits");
        assert!(read().await == hurt, "nothing is written");
        log.flags.working.set(false);
        log.changed.notify();
        cutting.await.unwrap();
        let finished = finishing.await;
        let given_up =
            matches!(finished, Err(RepairError::Changed | RepairError::Log(LogError::Busy)));
        assert!(given_up, "{finished:?}");
        assert!(matches!(beginning.await, Some(RepairError::Changed) | None));
        // What is known of the damage was clipped by the cut.
        log.verify(&Verifier::new(0)).await;
        assert!(!log.is_damaged());
        compare(&log, 5).await;
        store.close().await;
    });
}

#[test]
fn whoever_wants_the_files_waits_for_a_repair_that_writes() {
    let mut seen = 0;
    for_seeds(1, 20, |seed| {
        let mut sim = Simulation::new(seed, Faults::none());
        made(&mut sim);
        let at = batches(0..10).len() as u64 + 40;
        sim.disk(Machine::FIRST, |disk| disk.flip_bit(first_segment(), at, 3));
        let executor = sim.executor(Config::small());
        let halfway = Rc::new(Cell::new(0));
        let counted = Rc::clone(&halfway);
        sim.run_on(executor, async move {
            let (store, log) = found_damaged().await;
            let before = ring::fs::read(first_segment(), 1 << 20).await.unwrap();
            let finishing = ring::spawn(Share::Background, finish(gathered(&log).await));
            while !finishing.is_finished() {
                let busy = log.flags.working.get();
                let now = ring::fs::read(first_segment(), 1 << 20).await.unwrap();
                if log.is_damaged() && now != before && log.flags.working.get() {
                    assert!(busy, "it has begun to write with the workers away");
                    counted.set(1);
                }
                ring::sleep(Duration::from_micros(ring::random() % 40)).await;
            }
            finishing.await.unwrap();
            assert!(!log.is_damaged());
            log.flush().await.unwrap();
            compare(&log, 70).await;
            store.close().await;
        });
        seen += halfway.get();
    });
    assert!(seen > 0, "never seen while it wrote");
}

#[test]
fn a_repair_that_another_has_followed_writes_nothing() {
    let mut sim = Simulation::new(5, Faults::none());
    made(&mut sim);
    sim.disk(Machine::FIRST, |disk| disk.lose_file(first_segment()).unwrap());
    let executor = sim.executor(Config::small());
    sim.run_on(executor, async {
        let store = idle_store().await;
        let (log, _) = open(&store, simulated::settings()).await;
        log.verify(&Verifier::new(0)).await;
        let first = gathered(&log).await;
        let mut second = Repair::begin(&log, log.damages()[0].clone()).await.unwrap();
        let records = Origin::simulated(70).answer(0, 5_000).await;
        assert!(second.take(&records, LIMITS).await.unwrap() > 0);
        assert!(matches!(finish(first).await, Err(RepairError::Changed)));
        assert!(!ring::fs::exists(first_segment()).await.unwrap(), "no part of it has its name");
        finish(gathered(&log).await).await.unwrap();
        assert!(!log.is_damaged());
        compare(&log, 70).await;
        store.close().await;
    });
}

/// A log of which 30 records are flushed and 70 written, in one segment. While it is read anew, as
/// `work` has it done, a flush fails.
fn flush_fails_while_it_is_read(
    seed: u64,
    hurt: bool,
    work: impl AsyncFnOnce(Rc<Log>) + 'static,
) -> bool {
    let settings = || LogSettings { segment_bytes: 1 << 20, ..LogSettings::default() };
    let mut sim = Simulation::new(seed, Faults::none());
    let shared = Rc::new(RefCell::new(None::<(Rc<Store>, Rc<Log>)>));
    let (ended, begins) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(false)));
    let (slot, ends, begun) = (Rc::clone(&shared), Rc::clone(&ended), Rc::clone(&begins));
    let executor = sim.executor(Config::small());
    sim.spawn_on(executor, Share::Replicate, async move {
        let store = idle_store().await;
        let (log, _) = open(&store, settings()).await;
        respond(&log, &batches(0..30), 3000).unwrap();
        log.flush().await.unwrap();
        respond(&log, &batches(30..70), 3000).unwrap();
        log.write_out().await.unwrap();
        *slot.borrow_mut() = Some((Rc::clone(&store), Rc::clone(&log)));
        while !begun.get() {
            ring::sleep(Duration::from_millis(1)).await;
        }
        work(log).await;
        ends.set(true);
        std::future::pending::<()>().await;
    })
    .detach();
    sim.run_until(|_| shared.borrow().is_some());
    let at = batches(0..10).len() as u64 + 40;
    if hurt {
        sim.disk(Machine::FIRST, |disk| disk.flip_bit(first_segment(), at, 3));
    }
    begins.set(true);
    let (store, log) = shared.borrow().clone().unwrap();
    let reads = || log.inner.borrow().generation > 0;
    sim.run_until(|_| reads());
    sim.run_for(Duration::from_micros(sim.random_below(8_000)));
    let swapped = Rc::new(Cell::new(None));
    let (tells, watched) = (Rc::clone(&swapped), Rc::clone(&log));
    sim.disk(Machine::FIRST, |disk| disk.fail_flushes(1));
    sim.spawn_on(executor, Share::Background, async move {
        let busy = |log: &Log| log.inner.borrow().mending || log.inner.borrow().truncating;
        let before = busy(&watched);
        store.flush().await;
        tells.set(Some(before && busy(&watched)));
    })
    .detach();
    sim.run_until(|_| ended.get() && swapped.get().is_some());
    let failed = matches!(log.state(), LogState::Failed(_));
    assert!(failed, "seed {seed}: {:?} after a failed flush", log.state());
    assert!(log.entry().suspect);
    swapped.get() == Some(true)
}

#[test]
fn a_flush_that_fails_while_a_mended_log_is_read_fails_that_log() {
    let within: u32 = (1..40)
        .map(|seed| {
            u32::from(flush_fails_while_it_is_read(seed, true, async |log| {
                let verifier = Verifier::new(0);
                assert!(log.verify(&verifier).await > 0);
                let _ = Origin::simulated(70).mend_all(&log, &verifier).await;
            }))
        })
        .sum();
    assert!(within > 3, "only {within} flushes failed within");
}

#[test]
fn a_flush_that_fails_while_a_log_is_cut_fails_that_log() {
    let within: u32 = (1..40)
        .map(|seed| {
            u32::from(flush_fails_while_it_is_read(seed, false, async |log| {
                let _ = log.truncate_to(50).await;
            }))
        })
        .sum();
    assert!(within > 3, "only {within} flushes failed within");
}

#[test]
fn a_flush_vouches_for_nothing_of_a_log_that_is_read_anew() {
    let mut sim = Simulation::new(5, Faults::none());
    let executor = sim.executor(Config::small());
    sim.run_on(executor, async {
        let store = idle_store().await;
        let (log, _) = open(&store, simulated::settings()).await;
        respond(&log, &batches(0..30), 3000).unwrap();
        log.write_out().await.unwrap();
        log.alone::<LogError>(async || {
            assert!(log.volume().flush().await);
            assert_eq!(log.positions().flushed.0.offset, 0);
            Ok(())
        })
        .await
        .unwrap();
        // Afterwards it does, though nothing more was written.
        assert_eq!(log.flush().await.unwrap().flushed.0.offset, 30);
        store.close().await;
    });
}

#[test]
fn a_stop_that_ends_a_verification_waits_for_no_index_that_nobody_makes() {
    for_seeds(1, 40, |seed| {
        let mut sim = Simulation::new(seed, Faults::none());
        made(&mut sim);
        let executor = sim.executor(Config::small());
        let ended = Rc::new(Cell::new(false));
        let ends = Rc::clone(&ended);
        sim.spawn_on(executor, Share::Replicate, async move {
            let store = idle_store().await;
            let (log, _) = open(&store, simulated::settings()).await;
            let second = log.inner.borrow().sealed[1].0;
            for base in [0, second] {
                ring::fs::remove_file(log.path(Kind::Seal, base)).await.unwrap();
            }
            let verified = Rc::clone(&log);
            let verifying = ring::spawn(Share::Background, async move {
                verified.verify(&Verifier::new(0)).await;
            });
            let began = ring::now();
            while !log.flags.working.get() {
                ring::sleep(Duration::from_micros(5)).await;
                assert!(ring::now() - began < Duration::from_secs(9), "it makes them anew");
            }
            ring::sleep(Duration::from_micros(ring::random() % 3000)).await;
            drop(verifying);
            store.close().await;
            let seal = log.path(Kind::Seal, 0);
            assert!(ring::fs::exists(&seal).await.unwrap(), "what was begun is made whole");
            ends.set(true);
        })
        .detach();
        sim.run_for(Duration::from_secs(60));
        assert!(ended.get(), "seed {seed}: the store does not close");
        sim.kill(executor);
        let last = sim.executor(Config::small());
        sim.run_on(last, async {
            let store = simulated_store().await;
            let (log, recovered) = open(&store, simulated::settings()).await;
            assert_eq!(recovered.corrupt, None);
            assert_eq!(log.verify(&Verifier::new(0)).await, 0);
            store.close().await;
            compare(&log, 70).await;
        });
    });
}

/// Nobody waits for a pace: a repair that keeps a flush, and so a failover, waiting reads as fast
/// as it can.
#[test]
fn a_flush_does_not_wait_for_paced_reading() {
    let mut sim = Simulation::new(5, Faults::none());
    made(&mut sim);
    let folder = id(0).folder(Path::new("/data"));
    let files = sim.disk(Machine::FIRST, |disk| disk.files(&folder)).unwrap();
    let logs = files.into_iter().map(|(path, _)| path);
    let last = logs.filter(|path| path.extension().is_some_and(|e| e == "log")).max().unwrap();
    sim.disk(Machine::FIRST, |disk| disk.flip_bit(last, 100, 3));
    let executor = sim.executor(Config::small());
    sim.run_on(executor, async {
        let (store, log) = found_damaged().await;
        let repair = gathered(&log).await;
        let finishing = ring::spawn(Share::Background, async move {
            repair.finish(&Verifier::new(10), || true).await
        });
        while !log.inner.borrow().mending {
            ring::sleep(Duration::from_micros(100)).await;
        }
        let begun = ring::now();
        log.flush().await.unwrap();
        assert!(ring::now() - begun < Duration::from_secs(60));
        finishing.await.unwrap();
        store.close().await;
    });
}
