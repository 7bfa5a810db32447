//! Whole runs: seeds, deadlocks, livelocks, virtual time.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use super::*;

/// A run's trace: everything the seed may decide.
fn trace(seed: u64) -> Vec<String> {
    let log: Rc<RefCell<Vec<String>>> = Rc::default();
    let mut sim = Simulation::new(seed, Faults::harsh());
    let executors = [sim.executor(tiny()), sim.executor(tiny())];
    let tasks: Vec<_> = (0..6)
        .map(|n| {
            let log = Rc::clone(&log);
            sim.spawn_on(executors[n % 2], Share::Replicate, async move {
                let path = format!("/file-{n}");
                let file =
                    File::open(&path, OpenOptions::READ_WRITE.direct()).await.expect("opens");
                for at in 0..5 {
                    let written = file.write_at(at * 4096, block(n as u8).await).await;
                    let flushed = file.sync_data().await;
                    sleep(Duration::from_nanos(random() % 1_000_000)).await;
                    let line = format!("{n} {at} {written:?} {flushed:?} {:?}", now());
                    log.borrow_mut().push(line);
                }
            })
        })
        .collect();
    sim.run_until(|_| tasks.iter().all(Task::is_finished));
    log.take()
}

#[test]
fn a_seed_decides_everything() {
    let mut different = 0;
    for seed in 0..SEEDS.min(20) {
        let first = trace(seed);
        assert_eq!(first, trace(seed));
        different += usize::from(first != trace(seed + 1));
    }
    assert!(different > 0);
}

#[test]
#[should_panic(expected = "a deadlock")]
fn nothing_left_to_happen_is_a_deadlock() {
    Simulation::new(1, Faults::none()).run(std::future::pending::<()>());
}

#[test]
#[should_panic(expected = "seed 7")]
fn a_livelock_names_its_seed() {
    let faults = Faults { steps_max: 1000, ..Faults::none() };
    Simulation::new(7, faults).run(async {
        loop {
            sleep(Duration::from_millis(1)).await;
        }
    });
}

#[test]
fn time_is_virtual() {
    let mut sim = Simulation::new(3, Faults::default());
    let day = Duration::from_secs(86_400);
    let (slept, wall_ms) = sim.run(async move {
        let (before, wall) = (now(), wall_ms());
        sleep(day).await;
        (now() - before, wall_ms() - wall)
    });
    assert!(slept >= day && slept < day + Duration::from_secs(10));
    assert!(wall_ms >= 86_400_000);
}

#[test]
fn the_wall_clock_jumps_alone() {
    let mut sim = Simulation::new(3, Faults::none());
    let shard = sim.executor(tiny());
    let (before, wall) = sim.enter(shard, || (now(), wall_ms()));
    sim.jump_wall_clock(-3_600_000);
    let (after, jumped) = sim.enter(shard, || (now(), wall_ms()));
    assert!(after >= before && jumped < wall - 3_500_000);
}

#[test]
fn executors_of_one_world_talk_through_any_channel() {
    for_seeds(0, SEEDS, |seed| {
        let mut sim = Simulation::new(seed, Faults::default());
        let (sender, mut receiver) = tokio::sync::mpsc::channel(2);
        let executors: Vec<_> = (0..4).map(|_| sim.executor(tiny())).collect();
        for executor in &executors {
            let sender = sender.clone();
            sim.spawn_on(*executor, Share::Replicate, async move {
                for n in 0..20_u64 {
                    sender.send(n).await.expect("it listens");
                }
            })
            .detach();
        }
        drop(sender);
        let sum = sim.run_on(executors[0], async move {
            let mut sum = 0;
            while let Some(n) = receiver.recv().await {
                sum += n;
            }
            sum
        });
        assert_eq!(sum, 4 * 190);
    });
}

#[test]
fn memory_that_outlives_its_process_is_noticed() {
    let mut sim = Simulation::new(5, Faults::none());
    let shard = sim.executor(tiny());
    let held = sim.run_on(shard, async { lease(4096, Class::Control).await });
    assert_eq!(sim.arenas_of_the_dead(), 0, "nobody is dead");
    sim.kill(shard);
    assert_eq!(sim.arenas_of_the_dead(), 1);
    drop(held);
    assert_eq!(sim.arenas_of_the_dead(), 0);
}

#[test]
fn a_pending_reads_memory_holds_no_sense() {
    let mut sim = Simulation::new(11, Faults::none());
    sim.disk(Machine::FIRST, |disk| disk.write_file("/data", &[9; 4096])).expect("room");
    sim.run(async {
        let file = File::open("/data", OpenOptions::READ).await.expect("opens");
        let used = memory().used;
        let pending = timeout(Duration::ZERO, file.read_at(0, lease(4096, Class::Control).await));
        assert_eq!(pending.await.err(), Some(Elapsed));
        assert!(memory().used > used, "an orphaned read keeps its memory");
        while memory().used > used {
            sleep(Duration::from_micros(50)).await;
        }
        // The pages come back as the read left them: written when it ended, not before.
        let reused = lease(4096, Class::Control).await;
        assert!(reused.iter().all(|byte| *byte == 9));
    });
}
