//! The end of a log was lowered, and whoever lowered it could not say so: the log is not cut there
//! before a durable checkpoint says where it ends.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use ring::sim::{ExecutorId, Faults, Machine, Simulation};
use ring::{Config, Share};

use super::simulated::{batch, compare, settings};
use super::*;

const END: i64 = 100;
const CUT: i64 = 57;

/// Two shards over the same directory, which flush only when they are asked to.
async fn shards() -> [Rc<Store>; 2] {
    let boot = Boot::prepare_simulated(&[PathBuf::from("/data")]).await.unwrap();
    let open = async |shard| {
        let mut config = StoreConfig::new(shard, boot.clone());
        config.flush_interval = Duration::from_secs(3600);
        Store::open(config).await.unwrap()
    };
    [open(0).await, open(1).await]
}

/// The bytes of a log's segments, as they can be read.
fn bytes(sim: &Simulation) -> u64 {
    let folder = id(0).folder(Path::new("/data"));
    let files = sim.disk(Machine::FIRST, |disk| disk.files(&folder).unwrap());
    let logs = files.into_iter().filter(|(path, _)| path.extension().is_some_and(|e| e == "log"));
    logs.map(|(_, bytes)| bytes).sum()
}

/// A life in which a log is cut back on a device that fails, and closed. Then, once `again` says
/// so, it is opened in the shard of this number; what came of that is in `outcome`.
fn live_to_a_cut_that_fails(
    sim: &mut Simulation,
    shard: usize,
    again: Rc<Cell<bool>>,
    outcome: Rc<RefCell<Option<Result<(), LogError>>>>,
) -> ExecutorId {
    let (flushed, failing) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(false)));
    let (told, may) = (Rc::clone(&flushed), Rc::clone(&failing));
    let closed = Rc::new(Cell::new(false));
    let closes = Rc::clone(&closed);
    let wait = async |flag: &Cell<bool>| {
        while !flag.get() {
            ring::sleep(Duration::from_micros(10)).await;
        }
    };
    let executor = sim.executor(Config::small());
    let life = async move {
        let stores = shards().await;
        let (log, _) = open(&stores[0], settings()).await;
        respond(&log, &(0..END).flat_map(batch).collect::<Vec<u8>>(), 3000).unwrap();
        log.flush().await.unwrap();
        told.set(true);
        wait(&may).await;
        log.truncate_to(CUT).await.unwrap_err();
        let _ = log.close().await;
        closes.set(true);
        wait(&again).await;
        let opened = stores[shard].open_log(id(0), settings()).await;
        *outcome.borrow_mut() = Some(opened.map(drop));
        std::future::pending::<()>().await;
    };
    sim.spawn_on(executor, Share::Replicate, life).detach();
    sim.run_until(|_| flushed.get());
    let mut faults = Faults::none();
    (faults.disk.write_error_ppm, faults.disk.flush_error_ppm) = (1_000_000, 1_000_000);
    sim.set_faults(faults);
    failing.set(true);
    sim.run_until(|_| closed.get());
    executor
}

/// After a power loss the log is whole, and ends at the cut or behind it.
fn is_whole_after_a_power_loss(sim: &mut Simulation, executor: ExecutorId) -> i64 {
    sim.crash(executor);
    let last = sim.executor(Config::small());
    sim.run_on(last, async move {
        let [store, _] = shards().await;
        let (log, recovered) = open(&store, settings()).await;
        assert_eq!(recovered.corrupt, None);
        let end = log.positions().received.0.offset;
        assert!((CUT..=END).contains(&end), "{end}");
        compare(&log, end).await;
        end
    })
}

/// The device is well again, and the power goes in the moment the files are cut: a checkpoint says
/// so, also where the log has passed to another shard.
#[test]
fn where_a_log_is_to_end_is_durable_before_its_files_are_cut() {
    for shard in 0..2 {
        for seed in 1..20 {
            let mut sim = Simulation::new(seed, Faults::none());
            let (again, outcome) = (Rc::new(Cell::new(false)), Rc::default());
            let may = Rc::clone(&again);
            let executor = live_to_a_cut_that_fails(&mut sim, shard, may, outcome);
            let before = bytes(&sim);
            sim.set_faults(Faults::none());
            again.set(true);
            sim.run_until(|sim| bytes(sim) < before);
            assert_eq!(is_whole_after_a_power_loss(&mut sim, executor), CUT);
        }
    }
}

/// The device still fails: the log is not opened, and nothing of it is cut.
#[test]
fn a_log_whose_lowered_end_cannot_be_made_durable_is_not_opened() {
    for shard in 0..2 {
        let mut sim = Simulation::new(1, Faults::none());
        let (again, outcome) = (Rc::new(Cell::new(false)), Rc::new(RefCell::new(None)));
        let (may, tells) = (Rc::clone(&again), Rc::clone(&outcome));
        let executor = live_to_a_cut_that_fails(&mut sim, shard, may, tells);
        let before = bytes(&sim);
        again.set(true);
        sim.run_until(|_| outcome.borrow().is_some());
        let refused = outcome.take().unwrap();
        let failed = matches!(refused, Err(LogError::State(LogState::Failed(_))));
        assert!(failed, "{refused:?}");
        assert_eq!(bytes(&sim), before);
        sim.set_faults(Faults::none());
        assert_eq!(is_whole_after_a_power_loss(&mut sim, executor), END);
    }
}
