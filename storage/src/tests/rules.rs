//! Rules that are easy to take out and hard to miss: each test here fails without its rule.

use std::cell::Cell;
use std::time::Duration;

use proptest::prelude::*;
use ring::sim::{Faults, Machine, Simulation, for_seeds};
use ring::{Class, Config, File, OpenOptions, Share};

use super::crash::snapshot;
use super::simulated::{batch, live, settings, simulated_store};
use super::*;
use crate::check::{Bounds, Checker};
use crate::names::{EPOCHS_FILE, PREPARED_FILE};
use crate::segment::{Segment, Urge};

/// A disk that takes its time, so that much happens between the beginning and the end of a flush.
fn slow() -> Faults {
    let mut faults = Faults::none();
    faults.disk.delay = Duration::from_millis(1)..Duration::from_millis(20);
    faults
}

/// Appends for ever and notes every flushed end the moment it is told.
pub async fn grow(told: Rc<Cell<i64>>) {
    let store = simulated_store().await;
    let (log, _) = open(&store, settings()).await;
    let watched = Rc::clone(&log);
    let watch = async move {
        loop {
            let seen = watched.changed.count();
            told.set(told.get().max(watched.positions().flushed.0.offset));
            watched.changed.after(seen).await;
        }
    };
    ring::spawn(Share::Serve, watch).detach();
    loop {
        let next = log.positions().received.0.offset;
        respond(&log, &(next..next + 3).flat_map(batch).collect::<Vec<u8>>(), 3000).unwrap();
        ring::sleep(Duration::from_millis(ring::random() % 10)).await;
    }
}

/// `flushed` is raised only when the flush that covers it has returned.
#[test]
fn what_is_told_to_be_flushed_is_so_in_that_moment() {
    for_seeds(1, 60, |seed| {
        let mut sim = Simulation::new(seed, slow());
        let told = Rc::new(Cell::new(0));
        let executor = sim.executor(Config::small());
        sim.spawn_on(executor, Share::Replicate, grow(Rc::clone(&told))).detach();
        for _ in 0..1 + seed % 6 {
            let before = told.get();
            sim.run_until(|_| told.get() > before);
        }
        sim.crash(executor);
        let told = told.get();
        let last = sim.executor(Config::small());
        sim.run_on(last, async move {
            let store = simulated_store().await;
            let (_, recovered) = open(&store, settings()).await;
            let end = recovered.positions.received.0.offset;
            assert!(end >= told, "{told} was told to be flushed, {end} is there");
            store.close().await;
        });
    });
}

/// What is recovered after eight batches were flushed, the power went, and bit 3 of a byte of one
/// of them turned over.
fn recovered_with_a_bit_turned(seed: u64, base: i64, byte: u64) -> Recovered {
    let mut sim = Simulation::new(seed, slow());
    let executor = live(&mut sim, async {
        let store = simulated_store().await;
        let (log, _) = open(&store, settings()).await;
        respond(&log, &(0..8).flat_map(batch).collect::<Vec<u8>>(), 3000).unwrap();
        assert_eq!(log.flush().await.unwrap().flushed.0.offset, 8);
        (store, log)
    });
    sim.crash(executor);
    let path = id(0).folder(Path::new("/data")).join(Kind::Log.name(0));
    let at = (0..base).map(|base| batch(base).len() as u64).sum::<u64>() + byte;
    sim.disk(Machine::FIRST, |disk| disk.flip_bit(&path, at, 3));
    let last = sim.executor(Config::small());
    sim.run_on(last, async move {
        let store = simulated_store().await;
        let (_, recovered) = open(&store, settings()).await;
        store.close().await;
        recovered
    })
}

/// An explicit flush returns only when the checkpoint that says so is on the device, too: damage
/// found after that is damage, and not the torn end of a write.
#[test]
fn after_a_flush_bad_bytes_are_damage_and_never_cut() {
    for_seeds(1, 30, |seed| {
        let recovered = recovered_with_a_bit_turned(seed, 6, 30);
        let corrupt = recovered.corrupt.expect("damage below what was flushed");
        assert_eq!(corrupt.offsets, 6..8);
        assert_eq!(recovered.torn_bytes, 0);
    });
}

/// No checksum covers a base offset: the last one turned upwards would pass for a gap, and the
/// records that went with it never be asked for.
#[test]
fn a_last_batch_that_ends_elsewhere_than_what_was_flushed_is_damage() {
    let recovered = recovered_with_a_bit_turned(1, 7, 7);
    let corrupt = recovered.corrupt.expect("the last batch begins at 15 now");
    assert_eq!((corrupt.offsets, &*corrupt.reason), (7..8, "offsets have changed"));
}

#[derive(Clone, Debug)]
enum Step {
    Append(usize),
    Write(Urge),
    Complete(prop::sample::Index),
}

fn step() -> impl Strategy<Value = Step> {
    let urges = vec![Urge::Enough, Urge::Overdue, Urge::Whole, Urge::All];
    let urge = prop::sample::select(urges);
    prop_oneof![
        4 => (0usize..60_000).prop_map(Step::Append),
        4 => urge.prop_map(Step::Write),
        3 => any::<prop::sample::Index>().prop_map(Step::Complete),
    ]
}

/// Drives a segment's writes and holds each against those in flight and those before it.
async fn write_in_any_order(steps: Vec<Step>) {
    let dir = disk();
    let options = OpenOptions { read: true, write: true, create: true, ..OpenOptions::default() };
    let mut segment = Segment::new(0, 0, None, 0);
    segment.file = Some(File::open(&dir.path().join("segment"), options).await.unwrap());
    segment.space = 1 << 30;
    let bounds = Bounds { high_watermark: i64::MAX, leader_epoch: -1, batch_bytes_max: 1 << 20 };
    let mut checker = Checker::new(0, None, 0, bounds);
    let (mut next, mut sent, mut flying) = (0, Vec::new(), Vec::new());
    for step in steps {
        match step {
            Step::Append(body) => {
                let bytes = Shape { body, ..Shape::at(next) }.bytes();
                let memory = |bytes| ring::try_lease(bytes, Class::Records);
                let mut rest = &bytes[..];
                while let Some(mut lease) = segment.chain.lend(rest.len(), memory) {
                    let count = rest.len().min(lease.len());
                    lease[..count].copy_from_slice(&rest[..count]);
                    rest = &rest[count..];
                    segment.chain.fill(lease, count).unwrap();
                    if rest.is_empty() {
                        break;
                    }
                }
                if !rest.is_empty() {
                    segment.chain.rewind();
                    continue; // no memory, as everything is in flight
                }
                let fed = checker.feed(&bytes).unwrap();
                segment.append(&fed.batch.expect("a whole batch"), None);
                sent.extend(bytes);
                next += 1;
            }
            Step::Write(urge) => {
                let Some(write) = segment.next_write(urge) else { continue };
                let bytes: Vec<u8> = write.pieces.iter().flat_map(|p| p.to_vec()).collect();
                let range = write.at..write.at + bytes.len() as u64;
                assert_eq!((range.start % 4096, range.end % 4096), (0, 0), "whole blocks");
                for (_, other, _) in &flying {
                    let other: &std::ops::Range<u64> = other;
                    let apart = other.end <= range.start || range.end <= other.start;
                    assert!(apart, "{range:?} is written while {other:?} is");
                }
                let known = sent.len().min(range.end as usize);
                let (old, padding) = bytes.split_at(known - range.start as usize);
                assert_eq!(old, &sent[range.start as usize..known]);
                assert!(padding.iter().all(|byte| *byte == 0), "behind the tail are zeros");
                assert!(padding.is_empty() || flying.is_empty(), "a partial block goes alone");
                flying.push((write, range, bytes));
            }
            Step::Complete(index) if !flying.is_empty() => {
                let (write, _, before) = flying.swap_remove(index.index(flying.len()));
                let now: Vec<u8> = write.pieces.iter().flat_map(|p| p.to_vec()).collect();
                assert!(now == before, "what a write reads is frozen until it completes");
                segment.complete(write.flight);
            }
            Step::Complete(_) => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]
    #[test]
    fn no_two_writes_in_flight_overlap_and_none_changes(
        steps in prop::collection::vec(step(), 1..60),
    ) {
        run(write_in_any_order(steps));
    }
}

/// While the source has more, the block that its next answer completes is not written before; but
/// it does not wait for ever either, and at the source's end not at all.
#[test]
fn a_partial_block_waits_for_what_the_source_still_has() {
    let mut sim = Simulation::new(1, Faults::none());
    let executor = sim.executor(Config::small());
    sim.run_on(executor, async {
        let store = simulated_store().await;
        let (log, _) = open(&store, LogSettings::default()).await;
        let respond = |offsets: std::ops::Range<i64>, high_watermark| {
            log.begin(AppendLimits { high_watermark, leader_epoch: -1 });
            receive(&log, &testing::run(offsets, 1000), 1 << 20).unwrap();
            log.end().unwrap();
        };
        let written_within = async |end: i64, limit: Duration| {
            let written = async {
                while log.positions().written.0.offset < end {
                    log.changed.after(log.changed.count()).await;
                }
            };
            ring::timeout(limit, written).await.is_ok()
        };
        let soon = Duration::from_millis(300);
        ring::sleep(soon).await; // away from housekeeping
        respond(0..10, 30);
        assert!(written_within(7, soon).await, "whole blocks wait for nothing");
        assert!(!written_within(10, soon).await, "the source has more");
        respond(10..30, 30);
        assert!(written_within(30, soon).await, "the source's end");
        let bytes = log.volume().counters().write_bytes;
        assert_eq!(bytes, (30u64 * 1061).next_multiple_of(4096), "no block was written twice");
        respond(30..40, 100);
        assert!(!written_within(40, soon).await);
        assert!(written_within(40, Duration::from_secs(2)).await, "for ever");
        store.close().await;
    });
}

/// A file with another partition's batches in it: they have good checksums and offsets that fit.
#[test]
fn what_another_partition_left_in_a_file_never_comes_back() {
    let dir = disk();
    let path = dir.path().to_owned();
    run(async move {
        let settings = LogSettings { segment_bytes: 200_000, ..LogSettings::default() };
        let first = store(&path).await;
        let (log, _) = open(&first, settings.clone()).await;
        respond(&log, &testing::run(0..10, 1000), 5000).unwrap();
        first.close().await;
        drop((log, first));
        let stale = id(0).folder(&path).join(PREPARED_FILE);
        fs::write(&stale, testing::run(1000..1180, 1000)).unwrap();
        let live = store(&path).await;
        let (log, _) = open(&live, settings.clone()).await;
        // Beyond the roll, so that the prepared file is in use.
        for base in (10..220).step_by(5) {
            respond(&log, &testing::run(base..base + 5, 1000), 5000).unwrap();
            log.write_out().await.unwrap();
            log.settle().await;
        }
        let copy = disk();
        snapshot(&path, copy.path());
        live.close().await;
        let active = fs::read(id(0).folder(copy.path()).join(Kind::Log.name(188))).unwrap();
        let tail = 32 * 1061;
        assert!(active.len() > tail, "space is prepared behind the tail");
        assert!(active[tail..].iter().all(|byte| *byte == 0), "and it reads as zeros");
        let crashed = store(copy.path()).await;
        let (_, recovered) = open(&crashed, settings).await;
        assert_eq!(recovered.positions.received.0.offset, 220);
        crashed.close().await;
        assert_eq!(read_log(copy.path()), testing::run(0..220, 1000));
    });
}

/// What is cut off at a recovery is gone for good before anything is appended: a power loss right
/// after does not bring it back behind the new records.
#[test]
fn what_was_cut_is_gone_before_anything_is_appended() {
    let path = id(0).folder(Path::new("/data")).join(Kind::Log.name(0));
    let mut cut = 0;
    for_seeds(1, 60, |seed| {
        let mut sim = Simulation::new(seed, Faults::none());
        let run_until_done =
            |sim: &mut Simulation, batches: std::ops::Range<i64>, flushed: bool| {
                live(sim, async move {
                    let store = simulated_store().await;
                    let wide = LogSettings { segment_bytes: 1 << 20, ..settings() };
                    let (log, _) = open(&store, wide).await;
                    respond(&log, &batches.flat_map(batch).collect::<Vec<u8>>(), 3000).unwrap();
                    match flushed {
                        true => drop(log.flush().await.unwrap()),
                        false => log.write_out().await.unwrap(),
                    }
                    (store, log)
                })
            };
        let first = run_until_done(&mut sim, 0..8, true);
        sim.kill(first);
        let second = run_until_done(&mut sim, 8..30, false);
        sim.kill(second);
        // Torn, as by a power loss; whole batches lie behind it, and all of it reached the device.
        let at = (0..8).map(|base| batch(base).len() as u64).sum::<u64>() + 30;
        let flushing = sim.executor(Config::small());
        sim.run_on(flushing, async { ring::fs::sync_filesystem("/data").await.unwrap() });
        sim.disk(Machine::FIRST, |disk| disk.flip_bit(&path, at, 3));
        let third = run_until_done(&mut sim, 8..9, false);
        sim.crash(third);
        let last = sim.executor(Config::small());
        let end = sim.run_on(last, async move {
            let store = simulated_store().await;
            let wide = LogSettings { segment_bytes: 1 << 20, ..settings() };
            let (log, recovered) = open(&store, wide).await;
            assert_eq!(recovered.corrupt, None);
            let end = log.positions().received.0.offset;
            store.close().await;
            end
        });
        assert!(end <= 9, "the log was cut at 8 and appended to up to 9, but ends at {end}");
        cut += i64::from(end == 9);
    });
    assert!(cut > 0, "no new record ever survived");
}

/// The source's high watermark as last told survives a power loss: readers may have seen what lies
/// below it.
#[test]
fn the_high_watermark_survives_a_power_loss() {
    let mut sim = Simulation::new(5, slow());
    let executor = live(&mut sim, async {
        let store = simulated_store().await;
        let (log, _) = open(&store, settings()).await;
        log.begin(AppendLimits { high_watermark: 50, leader_epoch: -1 });
        let bytes: Vec<u8> = (0..8).flat_map(batch).collect();
        assert_eq!(log.copy_in(&bytes), Ok(bytes.len()));
        log.end().unwrap();
        log.flush().await.unwrap();
        (store, log)
    });
    sim.crash(executor);
    let last = sim.executor(Config::small());
    sim.run_on(last, async move {
        let store = simulated_store().await;
        let (log, recovered) = open(&store, settings()).await;
        assert_eq!(recovered.positions.received.0.offset, 8);
        assert_eq!(log.positions().high_watermark, 50);
        store.close().await;
    });
}

/// While the source is the master nothing is deleted for its age or for want of space: with the
/// source gone it would be the only copy.
#[test]
fn nothing_is_deleted_for_its_age_or_for_room() {
    let mut sim = Simulation::new(11, Faults::default());
    let settings = || LogSettings { undo_window: Duration::ZERO, ..settings() };
    let filled = Rc::new(Cell::new(false));
    let executor = sim.executor(Config::small());
    let done = Rc::clone(&filled);
    let task = async move {
        let store = simulated_store().await;
        let (log, _) = open(&store, settings()).await;
        for base in (0..200).step_by(10) {
            let bytes: Vec<u8> = (base..base + 10).flat_map(batch).collect();
            respond(&log, &bytes, 3000).unwrap();
            log.flush().await.unwrap();
        }
        done.set(true);
        loop {
            let next = log.positions().received.0.offset;
            log.begin(LIMITS);
            // On the full disk it is refused, in the end.
            let _ = log.copy_in(&batch(next));
            let _ = log.end();
            ring::sleep(Duration::from_secs(20)).await;
        }
    };
    sim.spawn_on(executor, Share::Replicate, task).detach();
    sim.run_until(|_| filled.get());
    let folder = id(0).folder(Path::new("/data"));
    let segments = |sim: &mut Simulation| -> Vec<PathBuf> {
        let files = sim.disk(Machine::FIRST, |disk| disk.files(&folder).unwrap());
        let logs = files.into_iter().map(|(path, _)| path);
        logs.filter(|path| path.extension().is_some_and(|e| e == "log")).collect()
    };
    let before = segments(&mut sim);
    assert!(before.len() > 4, "{before:?}");
    sim.jump_wall_clock(400 * 24 * 3_600_000);
    sim.run_for(Duration::from_secs(300));
    sim.disk(Machine::FIRST, |disk| {
        let used = (1 << 40) - disk.free_bytes();
        disk.set_capacity(used);
    });
    sim.run_for(Duration::from_secs(300));
    let after = segments(&mut sim);
    let kept = before.iter().all(|path| after.contains(path));
    assert!(kept, "of {before:?} there are {after:?}");
}

/// Only the epochs of batches are written down: neither that of the leader that answers, nor any
/// of our own.
#[test]
fn only_epochs_of_batches_enter_the_epoch_file() {
    let dir = disk();
    let path = dir.path().to_owned();
    run(async move {
        let store = store(&path).await;
        let (log, _) = open(&store, LogSettings::default()).await;
        for (base, epoch) in [(0, 3), (1, 3), (2, 5)] {
            log.begin(AppendLimits { high_watermark: i64::MAX, leader_epoch: 9 });
            let bytes = Shape { epoch, ..Shape::at(base) }.bytes();
            assert_eq!(log.copy_in(&bytes), Ok(bytes.len()));
            log.end().unwrap();
        }
        log.begin(AppendLimits { high_watermark: i64::MAX, leader_epoch: 12 });
        log.end().unwrap();
        log.flush().await.unwrap();
        assert_eq!(log.end_offset_for_epoch(12), Some((5, 3)));
        store.close().await;
        let text = fs::read_to_string(id(0).folder(&path).join(EPOCHS_FILE)).unwrap();
        assert_eq!(text.split_whitespace().collect::<Vec<_>>(), ["0", "2", "3", "0", "5", "2"]);
    });
}
