//! What campaigns found once, each by itself.

use std::cell::Cell;
use std::time::Duration;

use ring::sim::{ExecutorId, Faults, Machine, Simulation};
use ring::{BLOCK, Class, Config, Share};

use super::repair::Origin;
use super::simulated::{batch, compare, live, settings, simulated_store};
use super::*;
use crate::boot::slot_path;
use crate::names::{EPOCHS_FILE, METADATA_FILE};
use crate::verify::Verifier;

fn batches(range: std::ops::Range<i64>) -> Vec<u8> {
    range.flat_map(batch).collect()
}

/// Runs one life, takes the power, lets `between` do its worst, runs another.
fn two_lives(
    first: impl Future + 'static,
    between: impl FnOnce(&mut Simulation),
    second: impl Future<Output = ()> + 'static,
) {
    let mut sim = Simulation::new(9, Faults::none());
    let executor = live(&mut sim, first);
    sim.crash(executor);
    between(&mut sim);
    let last = sim.executor(Config::small());
    sim.run_on(last, second);
}

/// Sealing frees memory: it must not wait for more than a block of it.
#[test]
fn sealing_goes_on_with_hardly_any_memory() {
    let mut sim = Simulation::new(2, Faults::none());
    let executor = sim.executor(Config::small());
    sim.run_on(executor, async move {
        let store = simulated_store().await;
        let small = LogSettings { segment_bytes: 200_000, ..settings() };
        let (log, _) = open(&store, small).await;
        respond(&log, &testing::run(0..60, 4000), 10_000).unwrap();
        assert!(log.inner.borrow().closing.len() == 1, "a segment waits to be sealed");
        let hog = || ring::try_lease(BLOCK, Class::Control);
        let mut hogged: Vec<_> = std::iter::from_fn(hog).collect();
        hogged.truncate(hogged.len() - 3);
        let flushed = ring::timeout(Duration::from_secs(60), log.flush()).await;
        assert_eq!(flushed.expect("in time").unwrap().flushed.0.offset, 60);
        drop(hogged);
        store.close().await;
    });
}

/// A power loss may leave the slot that was being written torn, or unreadable.
#[test]
fn one_bad_checkpoint_slot_keeps_nothing_down() {
    for slot in 0..2 {
        for readable in [false, true] {
            let life = async move {
                let store = simulated_store().await;
                let (log, _) = open(&store, settings()).await;
                for base in (0..60).step_by(10) {
                    respond(&log, &batches(base..base + 10), 3000).unwrap();
                    log.flush().await.unwrap();
                }
            };
            let damage = |sim: &mut Simulation| {
                let path = slot_path(Path::new("/data"), 0, slot);
                sim.disk(Machine::FIRST, |disk| match readable {
                    true => disk.flip_bit(&path, 60, 3),
                    false => disk.spoil(&path, 0..8),
                });
            };
            two_lives(life, damage, async {
                let store = simulated_store().await;
                let (log, recovered) = open(&store, settings()).await;
                assert_eq!(recovered.corrupt, None);
                assert_eq!(recovered.positions.received.0.offset, 60);
                compare(&log, 60).await;
            });
        }
    }
}

/// The visible start becomes durable by itself, without another record.
#[test]
fn a_log_start_that_moved_survives_a_power_loss() {
    let life = async move {
        let store = simulated_store().await;
        let (log, _) = open(&store, settings()).await;
        respond(&log, &batches(0..30), 3000).unwrap();
        log.flush().await.unwrap();
        ring::sleep(Duration::from_secs(1)).await;
        log.advance_start(25);
        ring::sleep(Duration::from_secs(1)).await;
    };
    two_lives(life, |_| {}, async {
        let store = simulated_store().await;
        let (log, recovered) = open(&store, settings()).await;
        assert_eq!(recovered.corrupt, None);
        assert_eq!(log.positions().log_start_offset, 25);
        assert_eq!(log.positions().received.0.offset, 30);
    });
}

/// Where nothing has come yet, the first batch may begin below where the log does; a restart before
/// it came changes nothing about that.
#[test]
fn a_batch_across_the_start_is_taken_after_a_restart_too() {
    let settings = || LogSettings { start_offset_if_new: 12, ..settings() };
    let life = async move {
        let store = simulated_store().await;
        let (log, _) = open(&store, settings()).await;
        log.flush().await.unwrap();
    };
    two_lives(life, |_| {}, async move {
        let store = simulated_store().await;
        let (log, _) = open(&store, settings()).await;
        assert_eq!(log.positions().received.0.offset, 12);
        respond(&log, &Shape { records: 5, ..Shape::at(10) }.bytes(), 1000).unwrap();
        assert_eq!(log.positions().received.0.offset, 15);
        assert_eq!(log.positions().log_start_offset, 12);
        store.close().await;
    });
}

/// The checkpoint says that the empty log goes on at 115, and its first batch begins at 111. Torn
/// by a power loss, at whatever moment, it does not pass for one that was flushed.
#[test]
fn a_torn_first_segment_across_the_start_was_never_flushed() {
    let settings = || LogSettings { start_offset_if_new: 115, ..settings() };
    let mut torn = 0;
    for seed in 1..100 {
        let mut sim = Simulation::new(seed, Faults::default());
        let executor = live(&mut sim, async move {
            let store = simulated_store().await;
            let (log, _) = open(&store, settings()).await;
            log.flush().await.unwrap();
            let large = |base| Shape { records: 10, body: 70_000, ..Shape::at(base) }.bytes();
            respond(&log, &[large(111), large(121)].concat(), 131).unwrap();
            assert_eq!(log.inner.borrow().active.base, 121);
            (store, log)
        });
        sim.run_for(Duration::from_micros(seed * 700));
        sim.crash(executor);
        let last = sim.executor(Config::small());
        let (end, torn_bytes) = sim.run_on(last, async move {
            let store = simulated_store().await;
            let (log, recovered) = open(&store, settings()).await;
            assert_eq!(recovered.corrupt, None, "seed {seed}");
            (log.positions().received.0.offset, recovered.torn_bytes)
        });
        assert!([115, 121, 131].contains(&end), "seed {seed}: {end}");
        torn += u32::from(torn_bytes > 0);
    }
    assert!(torn > 0, "no power loss came while the first segment was being written");
}

/// What was reported lost at the source stays a gap over a restart, and its end may lie in a batch.
#[test]
fn a_gap_is_not_forgotten_in_a_restart() {
    let life = async move {
        let store = simulated_store().await;
        let (log, _) = open(&store, settings()).await;
        respond(&log, &batches(0..20), 3000).unwrap();
        log.advance_start(70);
        log.flush().await.unwrap();
    };
    two_lives(life, |_| {}, async {
        let store = simulated_store().await;
        let (log, recovered) = open(&store, settings()).await;
        assert_eq!(recovered.positions.received.0.offset, 70);
        let old = respond(&log, &Shape { records: 5, ..Shape::at(60) }.bytes(), 1000);
        assert!(matches!(old, Err(AppendError::OffsetBelowExpected { .. })), "{old:?}");
        respond(&log, &Shape { records: 5, epoch: 1, ..Shape::at(68) }.bytes(), 1000).unwrap();
        assert_eq!(log.positions().received.0.offset, 73);
        store.close().await;
    });
}

/// Several segments, and the last checkpoint in the middle of one: what lies before it is not read.
#[test]
fn a_start_reads_what_lies_above_the_checkpoint_of_many_segments() {
    let life = async move {
        let store = simulated_store().await;
        let (log, _) = open(&store, settings()).await;
        respond(&log, &batches(0..200), 3000).unwrap();
        log.flush().await.unwrap();
        // Seals count as saved side files with the flush after them.
        log.flush().await.unwrap();
        assert!(log.inner.borrow().sealed.len() > 4);
    };
    two_lives(life, |_| {}, async {
        let store = simulated_store().await;
        let (log, recovered) = open(&store, settings()).await;
        let end = recovered.positions.received.0;
        assert_eq!(end.offset, 200);
        assert!(end.segment > 0 && recovered.scanned_bytes <= end.bytes, "{recovered:?}");
        compare(&log, 200).await;
    });
}

/// A new log's first batch moves it below where it was opened, while a flush is under way that has
/// noted the old place.
#[test]
fn a_flush_that_began_before_the_first_batch_vouches_for_nothing() {
    let mut sim = Simulation::new(3, Faults::none());
    let executor = sim.executor(Config::small());
    sim.run_on(executor, async {
        let store = simulated_store().await;
        let settings = LogSettings { start_offset_if_new: 12, ..settings() };
        let (log, _) = open(&store, settings).await;
        let before = log.before_flush();
        respond(&log, &Shape { records: 5, ..Shape::at(10) }.bytes(), 1000).unwrap();
        let place = log.raise_flushed(&before);
        log.show_flushed(before.generation, place);
        let positions = log.flush().await.unwrap();
        assert_eq!(positions.flushed.0, positions.received.0);
        assert_eq!(positions.flushed.0.offset, 15);
        store.close().await;
    });
}

/// A power loss may leave what lies beside the batches unreadable: it is made anew as if garbled.
#[test]
fn what_cannot_be_read_beside_the_batches_is_made_anew() {
    let folder = || id(0).folder(Path::new("/data"));
    let files = [
        folder().join(EPOCHS_FILE),
        folder().join(METADATA_FILE),
        folder().join(Kind::Index.name(0)),
        folder().join(Kind::TimeIndex.name(0)),
        id(0).seal_folder(Path::new("/data")).join(Kind::Seal.name(0)),
    ];
    let settings = || LogSettings { topic_id: Some([7; 16]), ..settings() };
    for file in files {
        let life = async move {
            let store = simulated_store().await;
            let (log, _) = open(&store, settings()).await;
            respond(&log, &batches(0..60), 3000).unwrap();
            store.close().await;
        };
        let spoil = |sim: &mut Simulation| {
            sim.disk(Machine::FIRST, |disk| disk.spoil(&file, 0..8));
        };
        two_lives(life, spoil, async move {
            let store = simulated_store().await;
            let (log, recovered) = open(&store, settings()).await;
            assert_eq!(recovered.corrupt, None);
            assert_eq!(log.inner.borrow().epochs.entries(), [(0, 0), (1, 50)]);
            compare(&log, 60).await;
            store.close().await;
        });
    }
}

/// No checksum covers a batch's epoch and base offset: of the last one, which the source is asked
/// for, they have to be what the checkpoint says, or it looks like another log's.
#[test]
fn a_last_batch_that_is_not_what_was_flushed_is_damage() {
    for byte in [0, 7, 12, 15, 30] {
        let life = async move {
            let store = simulated_store().await;
            let (log, _) = open(&store, settings()).await;
            respond(&log, &batches(0..60), 3000).unwrap();
            store.close().await;
        };
        let turn = move |sim: &mut Simulation| {
            sim.disk(Machine::FIRST, |disk| {
                let files = disk.files(id(0).folder(Path::new("/data"))).unwrap().into_iter();
                let logs = files.filter(|(path, _)| path.extension().is_some_and(|e| e == "log"));
                let (path, bytes) = logs.max().unwrap();
                disk.flip_bit(&path, bytes - batch(59).len() as u64 + byte, 1);
            });
        };
        two_lives(life, turn, async move {
            let store = simulated_store().await;
            let (log, recovered) = open(&store, settings()).await;
            let corrupt = recovered.corrupt.expect("damage");
            assert_eq!(corrupt.offsets, 59..60, "byte {byte}");
            let mended = Origin::simulated(60).mend_all(&log, &Verifier::new(0)).await;
            assert!(mended.is_ok(), "byte {byte}: {mended:?}");
            assert_eq!(log.state(), LogState::Healthy);
            store.close().await;
            compare(&log, 60).await;
        });
    }
}

/// A log with these records flushed, and then a life in which the next flush fails, to its end.
fn fail_a_flush(
    sim: &mut Simulation,
    settings: LogSettings,
    records: std::ops::Range<i64>,
    then: impl AsyncFnOnce(Rc<Store>, Rc<Log>) + 'static,
) -> ExecutorId {
    let executor = sim.executor(Config::small());
    let (flushed, failing) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(false)));
    let (told, may) = (Rc::clone(&flushed), Rc::clone(&failing));
    let life = sim.spawn_on(executor, Share::Replicate, async move {
        let store = simulated_store().await;
        let (log, _) = open(&store, settings).await;
        respond(&log, &batches(records), 3000).unwrap();
        log.flush().await.unwrap();
        told.set(true);
        while !may.get() {
            ring::sleep(Duration::from_millis(1)).await;
        }
        then(store, log).await;
    });
    sim.run_until(|_| flushed.get());
    sim.disk(Machine::FIRST, |disk| disk.fail_flushes(1));
    failing.set(true);
    sim.run_until(|_| life.is_finished());
    executor
}

/// A cut below all that a log has, whose flush fails: what is left of the segments is no record,
/// and not where the log goes on.
#[test]
fn a_cut_below_all_records_that_fails_leaves_no_hole() {
    let settings = || LogSettings { start_offset_if_new: 100, ..settings() };
    let mut sim = Simulation::new(9, Faults::none());
    let executor = fail_a_flush(&mut sim, settings(), 100..130, async |_, log| {
        log.truncate_to(70).await.expect_err("the flush fails");
    });
    sim.crash(executor);
    let last = sim.executor(Config::small());
    sim.run_on(last, async move {
        let store = simulated_store().await;
        let (log, recovered) = open(&store, settings()).await;
        assert_eq!(recovered.corrupt, None);
        let positions = log.positions();
        assert_eq!((positions.log_start_offset, positions.received.0.offset), (70, 70));
        respond(&log, &batches(70..75), 3000).unwrap();
        assert_eq!(log.positions().received.0.offset, 75);
        store.close().await;
    });
}

/// A failed flush takes a segment that began behind a gap. The seal before it was written when that
/// gap was believed, and is not where the log goes on: the source may have told a lie, and what
/// lies there would never be asked for.
#[test]
fn a_gap_that_a_failed_flush_took_is_asked_for_again() {
    let settings =
        || LogSettings { segment_bytes: batches(0..30).len() as u64, ..LogSettings::default() };
    let mut sim = Simulation::new(9, Faults::none());
    fail_a_flush(&mut sim, settings(), 0..30, async move |store, log| {
        respond(&log, &batch(45), 3000).unwrap();
        log.flush().await.expect_err("it fails");
        let sealed = ring::fs::exists(log.path(Kind::Seal, 0)).await.unwrap();
        assert!(sealed, "it names the segment at 45");
        let _ = log.close().await;
        let (log, recovered) = open(&store, settings()).await;
        assert_eq!((log.state(), recovered.corrupt), (LogState::Healthy, None));
        let positions = log.positions();
        assert_eq!((positions.received.0.offset, positions.written.0.offset), (30, 30));
        respond(&log, &batches(30..35), 3000).unwrap();
        log.flush().await.unwrap();
        store.close().await;
        compare(&log, 35).await;
    });
}

/// The bases of the segments that a log has files of.
async fn bases(log: &Log) -> Vec<i64> {
    let entries = ring::fs::read_dir(log.folder()).await.unwrap();
    let parsed = entries.iter().filter_map(|entry| crate::names::parse_file(entry.name.to_str()?));
    let mut bases: Vec<i64> =
        parsed.filter(|(_, kind)| *kind == Kind::Log).map(|(base, _)| base).collect();
    bases.sort_unstable();
    bases
}

/// A log that was cut back to nothing has an empty file at 12, and its first batch then begins at
/// 10. The empty file has no place in the log, whenever the power goes.
#[test]
fn an_empty_segment_goes_before_the_first_batch_begins_below_it() {
    let settings = || LogSettings { start_offset_if_new: 12, segment_bytes: 10_000, ..settings() };
    let piece = |base| Shape { records: 5, body: 4000, ..Shape::at(base) }.bytes();
    let (mut began, mut seals) = (0, 0);
    for seed in 1..150 {
        let mut sim = Simulation::new(seed, Faults::default());
        let executor = live(&mut sim, async move {
            let store = simulated_store().await;
            let (log, _) = open(&store, settings()).await;
            respond(&log, &piece(12), 1000).unwrap();
            log.flush().await.unwrap();
            log.truncate_to(14).await.unwrap();
            assert_eq!((log.positions().received.0.offset, bases(&log).await), (12, vec![12]));
            let more: Vec<u8> = (10..60).step_by(5).flat_map(piece).collect();
            respond(&log, &more, 3000).unwrap();
            (store, log)
        });
        sim.run_for(Duration::from_micros(seed * 400));
        sim.crash(executor);
        let last = sim.executor(Config::small());
        let (found, sealed) = sim.run_on(last, async move {
            let store = simulated_store().await;
            let (log, recovered) = open(&store, settings()).await;
            assert_eq!(recovered.corrupt, None, "seed {seed}");
            let end = recovered.positions.received.0.offset;
            let next = if end == 12 { 10 } else { end };
            let more: Vec<u8> = (next..70).step_by(5).flat_map(piece).collect();
            respond(&log, &more, 3000).unwrap();
            assert_eq!(log.flush().await.unwrap().flushed.0.offset, 70);
            store.close().await;
            assert_eq!(bases(&log).await, [10, 20, 30, 40, 50, 60], "seed {seed}");
            let seals = ring::fs::read_dir(log.seal_folder()).await.unwrap().len();
            (end, seals)
        });
        began += u32::from((15..60).contains(&found));
        seals += sealed;
    }
    assert!(began > 0, "no power loss came while the first segments were being written");
    assert_eq!(seals, 149 * 5);
}

/// A power loss took the first records behind a sealed segment, and by now the source's next lie
/// too far off for the segment that was to begin there. It stays in the chain, without records.
#[test]
fn a_segment_that_nothing_came_for_is_no_hole() {
    let settings =
        || LogSettings { segment_bytes: batches(0..30).len() as u64, ..LogSettings::default() };
    let far = 30 + (1 << 32);
    let mut sim = Simulation::new(9, Faults::none());
    fail_a_flush(&mut sim, settings(), 0..30, async move |store, log| {
        respond(&log, &batch(30), 3000).unwrap();
        log.flush().await.expect_err("it fails");
        let _ = log.close().await;
        let (log, _) = open(&store, settings()).await;
        let base = log.inner.borrow().active.base;
        assert_eq!((base, bases(&log).await), (30, vec![0]));
        respond(&log, &batch(far), 3000).unwrap();
        log.flush().await.unwrap();
        let _ = log.close().await;
        let (log, recovered) = open(&store, settings()).await;
        assert_eq!(recovered.corrupt, None);
        assert_eq!(log.positions().received.0.offset, far + 1);
        assert_eq!(bases(&log).await, [0, 30, far]);
        store.close().await;
    });
}

/// A crash left the seal of a segment that was being removed. It speaks of other records than those
/// that come in its place.
#[test]
fn a_seal_without_its_segment_vouches_for_nothing() {
    let mut sim = Simulation::new(9, Faults::none());
    let first = live(&mut sim, async {
        let store = simulated_store().await;
        let small = LogSettings { segment_bytes: 40_000, ..LogSettings::default() };
        let (log, _) = open(&store, small).await;
        respond(&log, &batches(0..70), 3000).unwrap();
        log.flush().await.unwrap();
        let path = log.path(Kind::Seal, 0);
        let seal = ring::fs::read(&path, 1 << 20).await.unwrap();
        log.truncate_to(0).await.unwrap();
        assert!(!ring::fs::exists(log.path(Kind::Log, 0)).await.unwrap());
        ring::fs::write(&path, seal).await.unwrap();
        store.close().await;
    });
    sim.kill(first);
    let second = live(&mut sim, async {
        let store = simulated_store().await;
        let (log, recovered) = open(&store, LogSettings::default()).await;
        assert_eq!((recovered.removed_segments, recovered.corrupt), (0, None));
        for base in 0..60 {
            let other = Shape { body: 1000, epoch: 9, ..Shape::at(base) };
            respond(&log, &other.bytes(), 3000).unwrap();
        }
        log.flush().await.unwrap();
        (store, log)
    });
    sim.kill(second);
    let last = sim.executor(Config::small());
    sim.run_on(last, async move {
        let store = simulated_store().await;
        let (log, recovered) = open(&store, LogSettings::default()).await;
        assert_eq!((log.state(), recovered.corrupt), (LogState::Healthy, None));
        assert_eq!(log.positions().received.0.offset, 60);
        store.close().await;
    });
}
