//! `lag`: from a batch's birth at the source to its bytes on our disk.
//!
//! The source grows in batches evenly spaced, so that each batch's time of birth is known: the
//! moment the source began, which it prints, and arithmetic. It grows only when the node has had
//! time to start, so that nothing is to be caught up with, and only for so long: the disk's free
//! space, and what the probe can look at, bound what a run writes. A probe waits for the birth of a
//! batch of partition 0 and then reads, past the page cache, the last block of the place where
//! the batch must appear in the copy's segment, again and again until it is no longer zero. What
//! it finds is that the batch was received, checked and written: what a consumer of the copy
//! could read. Each look and the rest before it take some 0.2 ms, and the clock was read just
//! before the source began: so the figure errs on the high side, by 0.1 to 0.4 ms. Which batches
//! are probed is known beforehand, so that those count, too, that are born while one is late.
//!
//! The ceiling is the disk's own: just before each run a bare writer ([`Paced`]) writes batches of
//! the same births into as many fresh files, and what it waits for is a write's end.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use source::{Growth, TopicSpec};

use super::grid::{Grid, Stages, best};
use super::{BATCH_BYTES, Bench, growing};
use crate::Outcome;
use crate::bare::Paced;
use crate::cli::Options;
use crate::conditions::{FileState, load_average};
use crate::folder::free_bytes;
use crate::process::monotonic;
use crate::progress::Progress;
use crate::replica::{GIB, RATE, Replica, Running, Window};
use crate::report::{Goal, Panel, Report, Row};
use crate::sample::Sample;

pub const BENCH: Bench = Bench {
    name: "lag",
    line: "ms from a batch's birth to its bytes on disk, at 10, 50 and 90 % of the ceiling",
    runs: 3,
    needs_product: true,
    run,
};

const PARTITIONS: i32 = 16;
const BLOCK: usize = 4096;
/// The probe looks at the first segment only; before this position no segment rolls.
const POSITION_MAX: u64 = 900 << 20;
/// What stays free on the disk.
const RESERVE_BYTES: u64 = 4 << 30;
/// From the source's start to its first batch: time for the node to start. The longer one is for
/// a machine on which the node came too late.
const GROWS_AFTER_MS: [u64; 2] = [3000, 20_000];
const P99: &str = "p99 ms";
const BATCH_LIMIT: Duration = Duration::from_secs(60);
/// Between two looks at the same batch. Prepared space is read without any I/O: a probe that never
/// rested would keep the source, with which it shares a core, from answering.
const LOOK_AGAIN: Duration = Duration::from_micros(50);
/// The least between the births of two batches that are probed, so that the probe stays a small
/// load.
const PAUSE: Duration = Duration::from_millis(4);

fn run(bench: &Bench, options: &Options) -> Outcome<Report> {
    let time = Duration::from_secs(options.unless_quick(8, 1));
    let shares: &[(u32, bool)] = options.unless_quick(
        &[(10, false), (50, false), (50, true), (90, false)],
        &[(10, false), (50, true)],
    );
    let load = format!(
        "a source growing at a share of the ceiling's rate in {PARTITIONS} partitions, batches of \
         64 KiB evenly spaced; with a trickle: beside it 100 partitions of 200 B/s; up to {} s or \
         {} MiB per partition and run; one shard, 256 MiB",
        time.as_secs(),
        position_max(options)? >> 20
    );
    let ceiling = format!(
        "for rates, {}; for lag, a bare writer on one ring: the same births into {PARTITIONS} \
         prepared files, the same bounds of size and depth, a flush each second",
        Grid::describe()
    );
    let mut report = bench.report(options, &load, &ceiling)?;
    let mut progress = Progress::new(options.runs * (2 * shares.len() + 2));
    let mut grid = Grid::new(options, options.unless_quick(1 << 30, 128 << 20))?;
    grid.add(Stages::Pipe, FileState::Fresh, 2)?;
    for _ in 0..options.runs {
        grid.round(|what| progress.next(what))?;
    }
    let ceiling = best(grid.rows(), FileState::Fresh, RATE)?.median(RATE)?;
    drop(grid);

    let mut rows: Vec<[Row; 2]> = Vec::new();
    for (percent, trickle) in shares {
        let beside = if *trickle { " + trickle" } else { "" };
        let name = format!("{percent} % of {ceiling:.2} GiB/s{beside}");
        let bare = Row::new(format!("{name}, bare writer"), FileState::Fresh);
        rows.push([Row::new(name, FileState::Fresh), bare]);
    }
    for _ in 0..options.runs {
        for ((percent, trickle), [row, bare]) in shares.iter().zip(&mut rows) {
            let rate = ceiling * GIB * f64::from(*percent) / 100.0;
            progress.next(&bare.name);
            push(bare, &bare_writer(rate, time, options)?.run()?);
            progress.next(&row.name);
            let mut lags = Sample::default();
            for grows_after_ms in GROWS_AFTER_MS {
                if lags.0.is_empty() {
                    lags = once(rate, *trickle, (time, grows_after_ms), options)?;
                }
            }
            if lags.0.is_empty() {
                return Err("no batch was probed: the first segment was full too soon".into());
            }
            push(row, &lags);
        }
    }
    progress.end();
    for ((percent, _), [row, bare]) in shares.iter().zip(&rows) {
        let goal = (*percent == 50).then_some(Goal::AtMost(4.0));
        report.state(&format!("p99 ms at {}", row.name), row.median(P99)?, goal);
        report.compare(&format!("× that of the {}", bare.name), P99, row, bare, None)?;
    }
    report.rows = rows.into_iter().flatten().collect();
    report.panels = vec![
        Panel { unit: "p50 ms".into(), line: None },
        Panel { unit: P99.into(), line: Some((4.0, "goal at 50 %".into())) },
    ];
    report.notes.push(
        "lag of partition 0, from the batch's birth by the source's own arithmetic until the \
         probe's direct read finds its last block; read so often, it errs by 0.1 to 0.4 ms on the \
         high side; of each 4 ms one batch. Of bare writers, all batches"
            .into(),
    );
    report.busy[1] = load_average();
    Ok(report)
}

fn push(row: &mut Row, lags: &Sample) {
    row.push("least ms", lags.min());
    for p in [50.0, 90.0, 99.0, 99.9] {
        row.push(&format!("p{p} ms"), lags.percentile(p));
    }
    row.push("most ms", lags.max());
    row.push("batches", lags.0.len() as f64);
}

/// Seconds between two batches of one partition.
fn interval(rate: f64) -> f64 {
    let seconds = BATCH_BYTES as f64 / (rate / f64::from(PARTITIONS));
    // The source counts in whole nanoseconds.
    Duration::from_secs_f64(seconds).as_nanos() as f64 / 1e9
}

fn bare_writer(rate: f64, time: Duration, options: &Options) -> Outcome<Paced> {
    let interval = interval(rate);
    let batches = (time.as_secs_f64() / interval) as u64;
    Ok(Paced {
        core: options.data_core(),
        folder: options.folder.join("paced"),
        files: PARTITIONS.unsigned_abs() as usize,
        interval,
        batches: batches.clamp(1, position_max(options)? / BATCH_BYTES as u64),
    })
}

/// How far each partition grows.
fn position_max(options: &Options) -> Outcome<u64> {
    let free = free_bytes(&options.folder)?.saturating_sub(RESERVE_BYTES);
    let each = free / u64::from(PARTITIONS.unsigned_abs());
    // In whole MiB, so that two runs on one disk have the same conditions, mostly.
    match POSITION_MAX.min(each) >> 20 {
        0..16 => Err("too little free space for this bench".into()),
        mib => Ok(mib << 20),
    }
}

fn once(
    rate: f64,
    trickle: bool,
    (time, grows_after_ms): (Duration, u64),
    options: &Options,
) -> Outcome<Sample> {
    let position_max = position_max(options)?;
    let mut load = growing(PARTITIONS, rate, BATCH_BYTES).growing_after(grows_after_ms);
    load.growth.batches_max = position_max / BATCH_BYTES as u64;
    let mut topics = vec![load];
    if trickle {
        let beside = TopicSpec::new("trickle", 100, 0).with_batches(2, 200, 1);
        topics.push(beside.with_growth(Growth::rate(200.0)));
    }
    let replica = Replica::new(topics, Window::Steady { time });
    let mut running = replica.start(options)?;
    replica.catch_up(&mut running)?;
    let segment = running.setup.link_dir().join("load-0").join("00000000000000000000.log");
    let core = options.source_core();
    let lags = std::thread::scope(|scope| {
        let probe = scope.spawn(|| {
            core_affinity::set_for_current(core_affinity::CoreId { id: core });
            probe(&running, &segment, (rate, position_max), time).map_err(|error| error.to_string())
        });
        probe.join().map_err(|_| "the probe panicked")?
    })?;
    running.finish()?;
    Ok(Sample(lags))
}

/// Lags of batches of partition 0, ms; none if the first segment was full before the first look.
fn probe(
    running: &Running,
    segment: &Path,
    (rate, position_max): (f64, u64),
    time: Duration,
) -> Outcome<Vec<f64>> {
    let file = await_file(segment)?;
    let interval = interval(rate);
    let step = (PAUSE.as_secs_f64() / interval).ceil() as u64;
    let begun = running.source.grows_from;
    let until = begun.max(monotonic()?) + time.as_secs_f64();
    let mut block = AlignedBlock([0; BLOCK]);
    let mut lags = Vec::new();
    let first = ((monotonic()? - begun) / interval).ceil().max(1.0) as u64;
    for ordinal in (first..).step_by(step as usize) {
        let birth = begun + ordinal as f64 * interval;
        let end = ordinal * BATCH_BYTES as u64;
        if birth > until || end > position_max {
            break;
        }
        let wait = birth - monotonic()?;
        if wait > 0.0 {
            std::thread::sleep(Duration::from_secs_f64(wait));
        }
        let limit = Instant::now() + BATCH_LIMIT;
        while !is_there(&file, end, &mut block)? {
            if Instant::now() > limit {
                return Err(format!("the batch that ends at {end} does not come").into());
            }
            std::thread::sleep(LOOK_AGAIN);
        }
        lags.push((monotonic()? - birth) * 1e3);
    }
    Ok(lags)
}

/// Opens the segment when the first batch has made it.
fn await_file(segment: &Path) -> Outcome<File> {
    let limit = Instant::now() + BATCH_LIMIT;
    loop {
        match OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(segment) {
            Ok(file) => return Ok(file),
            Err(error) if error.kind() != ErrorKind::NotFound || Instant::now() > limit => {
                return Err(format!("{}: {error}", segment.display()).into());
            }
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}

#[repr(align(4096))]
struct AlignedBlock([u8; BLOCK]);

/// Whether the block before `end` holds anything: prepared space reads as zeros.
fn is_there(file: &File, end: u64, block: &mut AlignedBlock) -> Outcome<bool> {
    let bytes = file.read_at(&mut block.0, end - BLOCK as u64)?;
    Ok(bytes == BLOCK && block.0.iter().any(|byte| *byte != 0))
}
