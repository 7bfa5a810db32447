//! Damage that opening finds, and whose records the source has deleted since: the log goes on
//! behind it, whatever a crash leaves, unless a visible offset would be lost.

use ring::Config;
use ring::sim::Machine;

use super::simulated::{live, settings as small};
use super::*;
use crate::boot::slot_path;
use crate::checkpoint::Replay;
use crate::crc;
use crate::scan::scan;

pub(super) const END: i64 = 100;

pub(super) fn data() -> &'static Path {
    Path::new("/data")
}

pub(super) fn batches(range: std::ops::Range<i64>) -> Vec<u8> {
    range.flat_map(batch).collect()
}

/// Where the batch at an offset begins in a segment.
pub(super) fn position(segment: i64, offset: i64) -> u64 {
    batches(segment..offset).len() as u64
}

pub(super) fn file(segment: i64) -> PathBuf {
    id(0).folder(data()).join(Kind::Log.name(segment))
}

/// The bases of the segments, in order.
pub(super) fn bases(sim: &mut Simulation) -> Vec<i64> {
    let files = sim.disk(Machine::FIRST, |disk| disk.files(id(0).folder(data())).unwrap());
    let logs = files.into_iter().map(|file| file.0);
    let logs = logs.filter(|path| path.extension().is_some_and(|extension| extension == "log"));
    let base = |path: PathBuf| path.file_stem().unwrap().to_str().unwrap().parse().unwrap();
    let mut bases: Vec<i64> = logs.map(base).collect();
    bases.sort();
    bases
}

/// A log of 100 flushed batches, whose process was killed: some of it is read at the next start.
pub(super) fn flushed(sim: &mut Simulation) -> Vec<i64> {
    let first = live(sim, async {
        let store = simulated_store().await;
        let (log, _) = open(&store, small()).await;
        respond(&log, &batches(0..END), 3000).unwrap();
        log.flush().await.unwrap();
        log.flush().await.unwrap();
        (store, log)
    });
    sim.crash(first);
    bases(sim)
}

pub(super) fn spoil_batch(sim: &mut Simulation, segment: i64, offset: i64) {
    let at = position(segment, offset) + 40;
    sim.disk(Machine::FIRST, |disk| disk.flip_bit(file(segment), at, 3));
}

/// What stands in the segments from `start` on is what was appended, without a hole.
async fn compare_from(log: &Log, start: i64, end: i64) {
    let mut next = start;
    let folder = ring::fs::read_dir(log.folder()).await.unwrap();
    let names = folder.into_iter().filter_map(|entry| entry.name.into_string().ok());
    let mut names: Vec<String> = names.filter(|name| name.ends_with(".log")).collect();
    names.sort();
    for (index, name) in names.iter().enumerate() {
        let behind = names.get(index + 1).map_or(i64::MAX, |name| name[..20].parse().unwrap());
        if behind <= start {
            continue;
        }
        let path = log.folder().join(name);
        let base: i64 = name[..20].parse().unwrap();
        let bytes = ring::fs::size(&path).await.unwrap();
        let mut from = Replay::segment_start(base, None, false);
        from.place.bytes = if next > base { position(base, next) } else { 0 };
        scan(&path, &from, bytes, |found| {
            assert_eq!(found.batch.base_offset, next);
            assert_eq!(found.file_crc, crc::crc32c(&batch(next)), "batch {next} differs");
            next += 1;
            true
        })
        .await;
    }
    assert_eq!(next, end);
}

/// Opens the damaged log, tells it what the source has deleted, and has it go on from `from`: more
/// is appended, a crash, opened again, more, a clean stop, opened again.
pub(super) fn goes_on(sim: &mut Simulation, start: i64, from: i64) {
    let second = live(sim, async move {
        let store = simulated_store().await;
        let (log, recovered) = open(&store, small()).await;
        assert!(recovered.corrupt.is_some(), "nothing of it is hidden yet");
        assert!(log.forget_below(start).await.unwrap());
        assert_eq!(log.state(), LogState::Healthy);
        let positions = log.positions();
        assert_eq!((positions.log_start_offset, positions.received.0.offset), (start, from));
        respond(&log, &batches(from..from + 20), 3000).unwrap();
        log.flush().await.unwrap();
        compare_from(&log, start, from + 20).await;
        (store, log)
    });
    sim.crash(second);
    let third = live(sim, async move {
        let store = simulated_store().await;
        let (log, recovered) = open(&store, small()).await;
        assert_eq!(recovered.corrupt, None);
        let positions = log.positions();
        assert_eq!((positions.log_start_offset, positions.received.0.offset), (start, from + 20));
        compare_from(&log, start, from + 20).await;
        assert_eq!(log.last_batch().unwrap().last_offset, from + 19);
        respond(&log, &batches(from + 20..from + 40), 3000).unwrap();
        store.close().await;
    });
    sim.kill(third);
    let last = sim.executor(Config::small());
    sim.run_on(last, async move {
        let store = simulated_store().await;
        let (log, recovered) = open(&store, small()).await;
        assert_eq!(recovered.corrupt, None);
        assert_eq!(log.positions().received.0.offset, from + 40);
        compare_from(&log, start, from + 40).await;
        // Retention takes the damage with its segment.
        log.set_limits(1 << 20, std::time::Duration::ZERO);
        log.advance_start(from + 30);
        while log.is_damaged() {
            ring::sleep(std::time::Duration::from_millis(100)).await;
        }
        store.close().await;
    });
}

#[test]
fn a_batch_below_the_start_in_the_segment_that_goes_on_is_stepped_over() {
    for unreadable in [false, true] {
        let mut sim = Simulation::new(3, Faults::none());
        let last = *flushed(&mut sim).last().unwrap();
        let at = position(last, last + 4) + 40;
        match unreadable {
            true => sim.disk(Machine::FIRST, |disk| disk.spoil(file(last), at..at + 1)),
            false => spoil_batch(&mut sim, last, last + 4),
        }
        // Whichever batches share the block.
        goes_on(&mut sim, last + 8, END);
    }
}

#[test]
fn a_missing_segment_below_the_start_is_not_missed() {
    for missing in 0..3 {
        let mut sim = Simulation::new(3, Faults::none());
        let bases = flushed(&mut sim);
        assert!(bases.len() > 3);
        sim.disk(Machine::FIRST, |disk| disk.lose_file(file(bases[missing])).unwrap());
        goes_on(&mut sim, bases[missing + 1], END);
    }
}

#[test]
fn a_segment_cut_short_below_the_start_is_passed_over() {
    let mut sim = Simulation::new(3, Faults::none());
    let bases = flushed(&mut sim);
    let kept = position(bases[1], bases[1] + 3) + 100;
    sim.disk(Machine::FIRST, |disk| disk.cut_file(file(bases[1]), kept).unwrap());
    goes_on(&mut sim, bases[2] + 1, END);
}

#[test]
fn what_lost_checkpoints_leave_below_the_start_is_forgotten() {
    for hurt in 0..2 {
        let mut sim = Simulation::new(3, Faults::none());
        let bases = flushed(&mut sim);
        let offset = bases[hurt] + 3;
        spoil_batch(&mut sim, bases[hurt], offset);
        sim.disk(Machine::FIRST, |disk| {
            for slot in 0..2 {
                disk.flip_bit(slot_path(data(), 0, slot), 60, 3);
            }
        });
        goes_on(&mut sim, offset + 1, END);
    }
}

/// Nothing of the segment that goes on can be used, and all of it lies below the start.
#[test]
fn a_segment_that_goes_on_and_is_all_damaged_is_followed_by_a_new_one() {
    for missing in [false, true] {
        let mut sim = Simulation::new(3, Faults::none());
        let last = *flushed(&mut sim).last().unwrap();
        sim.disk(Machine::FIRST, |disk| match missing {
            true => disk.lose_file(file(last)).unwrap(),
            false => (last..END).for_each(|offset| {
                disk.flip_bit(file(last), position(last, offset) + 40, 3);
            }),
        });
        goes_on(&mut sim, END, END);
    }
}

/// What is left of it before the damage may be compared with nothing: neither it nor its epoch is
/// what the log ended with. And what was told stays, with no other flush in between.
#[test]
fn of_a_log_whose_end_is_forgotten_nothing_is_known_but_where_it_goes_on() {
    for missing in [false, true] {
        let mut sim = Simulation::new(3, Faults::none());
        let last = *flushed(&mut sim).last().unwrap();
        sim.disk(Machine::FIRST, |disk| match missing {
            true => disk.lose_file(file(last)).unwrap(),
            false => disk.flip_bit(file(last), position(last, END - 1) + 40, 3),
        });
        for (tells, flush_interval) in [(true, 3600), (false, 1)] {
            let life = live(&mut sim, async move {
                let boot = Boot::prepare_simulated(&[data().to_owned()]).await.unwrap();
                let flush_interval = std::time::Duration::from_secs(flush_interval);
                let config = StoreConfig { flush_interval, ..StoreConfig::new(0, boot) };
                let store = Store::open(config).await.unwrap();
                let (log, _) = open(&store, small()).await;
                assert_eq!(log.state() == LogState::Healthy, !tells);
                assert!(!tells || log.forget_below(END).await.unwrap());
                let positions = log.positions();
                assert_eq!((positions.last_epoch, log.last_batch()), (None, None));
                assert_eq!((positions.received.0.segment, positions.received.0.bytes), (END, 0));
                (store, log)
            });
            sim.crash(life);
        }
    }
}

/// Whatever moment the power goes at.
#[test]
fn a_crash_while_it_is_forgotten_changes_nothing() {
    let mut after = 0;
    for seed in 1..60 {
        let mut sim = Simulation::new(seed, Faults::none());
        let bases = flushed(&mut sim);
        let last = *bases.last().unwrap();
        let (hurt, start) = match seed % 3 {
            0 => (last + 1, last + 2),
            1 => (END - 1, END),
            _ => (last, END),
        };
        spoil_batch(&mut sim, last, hurt);
        let second = sim.executor(Config::small());
        sim.spawn_on(second, ring::Share::Replicate, async move {
            let store = simulated_store().await;
            let (log, _) = open(&store, small()).await;
            log.forget_below(start).await.unwrap();
            respond(&log, &batches(END..END + 5), 3000).unwrap();
            log.flush().await.unwrap();
            std::future::pending::<()>().await;
        })
        .detach();
        sim.run_for(std::time::Duration::from_micros(seed * 400));
        sim.crash(second);
        let moved = Rc::new(std::cell::Cell::new(false));
        let told = Rc::clone(&moved);
        let third = live(&mut sim, async move {
            let store = simulated_store().await;
            let (log, recovered) = open(&store, small()).await;
            let moved = log.positions().log_start_offset == start;
            assert_eq!(recovered.corrupt.is_none(), moved, "seed {seed}: {recovered:?}");
            assert!(moved || log.forget_below(start).await.unwrap());
            assert_eq!(log.state(), LogState::Healthy);
            let end = log.positions().received.0.offset;
            assert!((END..=END + 5).contains(&end), "seed {seed}: {end}");
            respond(&log, &batches(end..END + 20), 3000).unwrap();
            store.close().await;
            told.set(moved);
        });
        after += u32::from(moved.get());
        sim.crash(third);
        let fourth = sim.executor(Config::small());
        sim.run_on(fourth, async move {
            let store = simulated_store().await;
            let (log, recovered) = open(&store, small()).await;
            assert_eq!(recovered.corrupt, None);
            assert_eq!(log.positions().log_start_offset, start);
            compare_from(&log, start, END + 20).await;
            store.close().await;
        });
    }
    assert!((10..50).contains(&after), "{after} of 59 crashes came after it was durable");
}

/// What readers may ask for is not given up.
#[test]
fn damage_that_reaches_the_visible_start_stays() {
    let mut sim = Simulation::new(3, Faults::none());
    let bases = flushed(&mut sim);
    let last = *bases.last().unwrap();
    spoil_batch(&mut sim, last, last + 2);
    let before = sim.disk(Machine::FIRST, |disk| disk.read_file(file(last)).unwrap());
    for start in [last, last + 1, last + 2] {
        let life = live(&mut sim, async move {
            let store = simulated_store().await;
            let (log, _) = open(&store, small()).await;
            assert!(log.forget_below(start).await.unwrap());
            let LogState::Corrupt(corrupt) = log.state() else { panic!("{:?}", log.state()) };
            assert_eq!(corrupt.offsets.start, last + 2);
            assert_eq!(log.positions().log_start_offset, start);
            (store, log)
        });
        sim.crash(life);
        let after = sim.disk(Machine::FIRST, |disk| disk.read_file(file(last)).unwrap());
        assert!(before == after, "nothing is changed");
    }
    // Behind it, the source's start lies where nothing was copied: that is a gap, not told here.
    let end = sim.executor(Config::small());
    sim.run_on(end, async move {
        let store = simulated_store().await;
        let (log, _) = open(&store, small()).await;
        assert!(log.forget_below(END + 100).await.unwrap());
        assert_eq!(log.positions().log_start_offset, END);
        assert_eq!(log.positions().received.0.offset, END);
        assert!(!log.forget_below(END + 100).await.unwrap(), "it is open");
        store.close().await;
    });
}

/// Where a block of a segment without a seal reads as zeros.
#[test]
fn zeros_below_the_start_are_stepped_over() {
    let mut sim = Simulation::new(3, Faults::none());
    let base = flushed(&mut sim)[1];
    let lost = position(base, base + 3) as usize..position(base, base + 4) as usize;
    sim.disk(Machine::FIRST, |disk| {
        disk.lose_file(id(0).seal_folder(data()).join(Kind::Seal.name(base))).unwrap();
        let mut bytes = disk.read_file(file(base)).unwrap();
        bytes[lost].fill(0);
        disk.write_file(file(base), &bytes).unwrap();
    });
    goes_on(&mut sim, base + 5, END);
}

/// What cannot be mended any more does not keep the log from going on once the rest is.
#[test]
fn damage_above_the_start_is_mended_beside_what_is_forgotten() {
    for last in [true, false] {
        let mut sim = Simulation::new(3, Faults::none());
        let bases = flushed(&mut sim);
        let base = if last { *bases.last().unwrap() } else { bases[1] };
        if !last {
            let seal = id(0).seal_folder(data()).join(Kind::Seal.name(base));
            sim.disk(Machine::FIRST, |disk| disk.lose_file(seal).unwrap());
        }
        spoil_batch(&mut sim, base, base + 2);
        spoil_batch(&mut sim, base, base + 8);
        let second = live(&mut sim, async move {
            let store = simulated_store().await;
            let (log, _) = open(&store, small()).await;
            assert!(log.forget_below(base + 4).await.unwrap());
            assert!(matches!(log.state(), LogState::Corrupt(_)));
            let mut origin = Origin::simulated(END);
            origin.batches.retain(|batch| batch.0 >= base + 4);
            let verifier = Verifier::new(0);
            let mut mended = 0;
            for damage in plan(&log, &verifier, |_| true).await.unwrap() {
                mended += usize::from(origin.mend(&log, damage, &verifier).await.is_ok());
            }
            assert_eq!((mended, log.state()), (1, LogState::Healthy));
            assert_eq!(log.positions().received.0.offset, END);
            compare_from(&log, base + 4, END).await;
            (store, log)
        });
        sim.crash(second);
        live(&mut sim, async move {
            let store = simulated_store().await;
            let (log, recovered) = open(&store, small()).await;
            assert_eq!(recovered.corrupt, None);
            compare_from(&log, base + 4, END).await;
        });
    }
}

/// It is the same as if it had never been tried, once there is room.
#[test]
fn what_could_not_be_forgotten_for_want_of_room_is_forgotten_later() {
    let mut sim = Simulation::new(3, Faults::none());
    let last = *flushed(&mut sim).last().unwrap();
    spoil_batch(&mut sim, last, last + 2);
    let (step, may) = (Rc::new(std::cell::Cell::new(0)), Rc::new(std::cell::Cell::new(0)));
    let (told, allowed) = (Rc::clone(&step), Rc::clone(&may));
    let executor = sim.executor(Config::small());
    let life = sim.spawn_on(executor, ring::Share::Replicate, async move {
        let wait = async |steps| {
            told.set(steps);
            while allowed.get() < steps {
                ring::sleep(std::time::Duration::from_millis(1)).await;
            }
        };
        let store = simulated_store().await;
        let (log, _) = open(&store, small()).await;
        assert!(matches!(log.state(), LogState::Corrupt(_)));
        wait(1).await;
        let full = log.forget_below(last + 8).await;
        assert!(matches!(full, Err(LogError::State(LogState::DiskFull))), "{full:?}");
        wait(2).await;
        assert!(log.forget_below(last + 8).await.unwrap());
        assert_eq!(log.state(), LogState::Healthy);
        assert_eq!(log.positions().log_start_offset, last + 8);
        store.close().await;
    });
    for (steps, capacity) in [(1, 0), (2, 1 << 40)] {
        sim.run_until(|_| step.get() == steps);
        sim.run_for(std::time::Duration::from_secs(1));
        sim.disk(Machine::FIRST, |disk| disk.set_capacity(capacity));
        may.set(steps);
    }
    sim.run_until(|_| life.is_finished());
}
