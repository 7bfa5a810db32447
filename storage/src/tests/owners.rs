//! Logs that pass from one shard to another, and what each shard's checkpoints say of them.

use std::cell::Cell;
use std::time::Duration;

use ring::sim::{Faults, Simulation};
use ring::{Config, Share};

use super::simulated::{batch, compare, settings};
use super::*;

fn batches(range: std::ops::Range<i64>) -> Vec<u8> {
    range.flat_map(batch).collect()
}

/// Two shards over the same directories.
async fn shards() -> [Rc<Store>; 2] {
    let boot = Boot::prepare_simulated(&[PathBuf::from("/data")]).await.unwrap();
    let open = async |shard| {
        let mut config = StoreConfig::new(shard, boot.clone());
        config.flush_interval = Duration::from_millis(20);
        Store::open(config).await.unwrap()
    };
    [open(0).await, open(1).await]
}

/// Runs one life that ends with a power loss as soon as it says so, then opens the log again.
fn crash_and_reopen<L, F>(life: L, check: fn(&Recovered))
where
    L: Fn([Rc<Store>; 2], Rc<Cell<bool>>) -> F + Copy + 'static,
    F: Future<Output = ()>,
{
    for seed in 1..20 {
        let mut sim = Simulation::new(seed, Faults::none());
        let executor = sim.executor(Config::small());
        let ready = Rc::new(Cell::new(false));
        let done = Rc::clone(&ready);
        let task = async move {
            life(shards().await, done).await;
            std::future::pending::<()>().await;
        };
        sim.spawn_on(executor, Share::Replicate, task).detach();
        sim.run_until(|_| ready.get());
        sim.crash(executor);
        let last = sim.executor(Config::small());
        sim.run_on(last, async move {
            let [store, _] = shards().await;
            let (_, recovered) = open(&store, settings()).await;
            check(&recovered);
        });
    }
}

#[test]
fn a_log_made_again_is_not_held_against_the_one_before_it() {
    crash_and_reopen(
        |[one, other]: [Rc<Store>; 2], ready: Rc<Cell<bool>>| async move {
            let (log, _) = open(&one, settings()).await;
            respond(&log, &batches(0..60), 3000).unwrap();
            for _ in 0..5 {
                log.flush().await.unwrap();
            }
            log.delete().await.unwrap();
            let (log, recovered) = open(&other, settings()).await;
            assert!(recovered.new);
            respond(&log, &batches(0..3), 3000).unwrap();
            log.write_out().await.unwrap();
            ready.set(true);
        },
        |recovered| {
            assert_eq!(recovered.corrupt, None);
            assert!(recovered.positions.received.0.offset <= 3);
        },
    );
}

#[test]
fn of_two_shards_the_later_owner_is_believed() {
    crash_and_reopen(
        |[one, other]: [Rc<Store>; 2], ready: Rc<Cell<bool>>| async move {
            let (log, _) = open(&one, settings()).await;
            respond(&log, &batches(0..60), 3000).unwrap();
            for _ in 0..9 {
                // The other one's checkpoints are never so many.
                log.flush().await.unwrap();
            }
            log.close().await.unwrap();
            let (log, recovered) = open(&other, settings()).await;
            assert_eq!(recovered.positions.flushed.0.offset, 60);
            log.truncate_to(10).await.unwrap();
            one.flush().await;
            ready.set(true);
        },
        |recovered| {
            assert_eq!(recovered.corrupt, None);
            assert_eq!(recovered.positions.received.0.offset, 10);
        },
    );
}

#[test]
fn a_log_is_open_in_one_shard_at_a_time() {
    let mut sim = Simulation::new(3, Faults::none());
    let executor = sim.executor(Config::small());
    sim.run_on(executor, async move {
        let [one, other] = shards().await;
        let (log, _) = open(&one, settings()).await;
        let refused = other.open_log(id(0), settings()).await;
        assert!(matches!(refused, Err(LogError::Open)));
        respond(&log, &batches(0..5), 3000).unwrap();
        log.close().await.unwrap();
        // Closing a second time is nobody's business any more.
        let (moved, recovered) = open(&other, settings()).await;
        let _ = log.close().await;
        assert_eq!(recovered.positions.received.0.offset, 5);
        assert!(matches!(one.open_log(id(0), settings()).await, Err(LogError::Open)));
        moved.close().await.unwrap();
        let other_topic = LogSettings { topic_id: Some([1; 16]), ..settings() };
        let (log, _) = open(&one, other_topic.clone()).await;
        assert_eq!(log.positions().received.0.offset, 5);
        log.close().await.unwrap();
        // An opening that fails gives the log back.
        let wrong = LogSettings { topic_id: Some([2; 16]), ..settings() };
        assert!(matches!(other.open_log(id(0), wrong).await, Err(LogError::TopicId { .. })));
        let (log, recovered) = open(&one, other_topic).await;
        assert_eq!(recovered.positions.flushed.0.offset, 5);
        log.close().await.unwrap();
    });
}

/// A power loss at any moment of a deletion leaves a whole log or none; none, once the flush behind
/// it has returned, which is what an answer waits for.
#[test]
fn a_deletion_that_is_cut_short_leaves_all_or_nothing() {
    let (mut whole, mut none, mut answered) = (0, 0, 0);
    for seed in 1..100 {
        let mut sim = Simulation::new(seed, Faults::none());
        let executor = sim.executor(Config::small());
        let (ready, durable) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(false)));
        let (done, told) = (Rc::clone(&ready), Rc::clone(&durable));
        let task = async move {
            let [store, _] = shards().await;
            let (log, _) = open(&store, settings()).await;
            respond(&log, &batches(0..90), 3000).unwrap();
            log.flush().await.unwrap();
            done.set(true);
            log.delete().await.unwrap();
            told.set(store.flush().await);
            std::future::pending::<()>().await;
        };
        sim.spawn_on(executor, Share::Replicate, task).detach();
        sim.run_until(|_| ready.get());
        sim.run_for(Duration::from_micros(sim.random_below(20_000)));
        sim.crash(executor);
        let last = sim.executor(Config::small());
        let end = Rc::new(Cell::new(0));
        let found = Rc::clone(&end);
        sim.run_on(last, async move {
            let [store, _] = shards().await;
            let (log, recovered) = open(&store, settings()).await;
            assert_eq!(recovered.corrupt, None);
            let end = recovered.positions.received.0.offset;
            compare(&log, end).await;
            assert!(
                ring::fs::read_dir("/data/.understudy/deleted").await.is_ok_and(|l| l.is_empty())
                    || !ring::fs::exists("/data/.understudy/deleted").await.unwrap()
            );
            found.set(end);
        });
        match (end.get(), durable.get()) {
            (0, true) => answered += 1,
            (0, false) => none += 1,
            (90, false) => whole += 1,
            (other, told) => panic!("seed {seed}: {other} of 90; told to be gone: {told}"),
        }
    }
    let all_met = whole > 5 && none > 5 && answered > 5;
    assert!(all_met, "{whole} whole, {none} gone, {answered} gone as was told");
}

/// On a full disk there may be no room for the folder that a deletion needs.
#[test]
fn the_folder_of_what_is_deleted_is_empty_after_a_start_and_stays() {
    let folder = disk();
    let dead = crate::boot::dead_folders(folder.path());
    fs::create_dir_all(dead.join("1-0-1")).unwrap();
    fs::write(dead.join("1-0-1/00000000000000000000.log"), "left by a crash").unwrap();
    Boot::prepare(&[folder.path().to_owned()]).unwrap();
    assert_eq!(fs::read_dir(&dead).unwrap().count(), 0);
}

/// Somebody may still be at work on a log when the store is dropped: a worker of a full disk's, a
/// write that waits. A process that ends then leaves nothing behind.
#[test]
fn a_store_that_is_gone_lists_no_log_any_more() {
    for steps in 0..40 {
        let mut sim = Simulation::new(steps, Faults::none());
        let executor = sim.executor(Config::small());
        let gone = Rc::new(Cell::new(false));
        let seen = Rc::clone(&gone);
        let life = async move {
            let [store, _] = shards().await;
            let (log, _) = open(&store, settings()).await;
            respond(&log, &batches(0..30), 3000).unwrap();
            log.flush().await.unwrap();
            drop(store);
            respond(&log, &batches(30..60), 3000).unwrap();
            seen.set(true);
            std::future::pending::<()>().await;
        };
        sim.spawn_on(executor, Share::Replicate, life).detach();
        sim.run_until(|_| gone.get());
        (0..steps).for_each(|_| assert!(sim.step()));
        sim.kill(executor);
        assert_eq!(sim.arenas_of_the_dead(), 0, "after {steps} steps");
    }
}
