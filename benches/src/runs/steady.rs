//! `steady`: what it costs to be at the source's end and to stay there, by the rate at which the
//! source grows. A backlog is paid for by the byte; here it is also the requests that cost, of
//! which a tail connection begins so many a second and no more.

use std::time::Duration;

use super::{BATCH_BYTES, Bench, growing};
use crate::Outcome;
use crate::cli::Options;
use crate::conditions::{FileState, load_average};
use crate::progress::Progress;
use crate::replica::{CPU, GIB, RATE, Replica, Window};
use crate::report::{Panel, Report, Row};

pub const BENCH: Bench = Bench {
    name: "steady",
    line: "cores to stay at the end of a source that grows by 1 to 1,024 MiB/s",
    runs: 1,
    needs_product: true,
    run,
};

const PARTITIONS: i32 = 16;
const CORES: &str = "cores";
const SOURCE_CORES: &str = "source cores";

fn run(bench: &Bench, options: &Options) -> Outcome<Report> {
    let rates: &[u32] = options.unless_quick(&[1, 16, 64, 256, 512, 1024], &[4, 16]);
    let time = Duration::from_secs(options.unless_quick(10, 1));
    let load = format!(
        "a source growing evenly in {PARTITIONS} partitions, batches of {} KiB; {} s after it was \
         caught up with; one shard, 256 MiB",
        BATCH_BYTES >> 10,
        time.as_secs()
    );
    let mut report = bench.report(options, &load, "none")?;
    let mut rows: Vec<(Row, f64)> = rates
        .iter()
        .map(|mib| (Row::new(format!("{mib} MiB/s"), FileState::Fresh), f64::from(*mib)))
        .collect();
    let mut progress = Progress::new(rows.len() * options.runs);
    for _ in 0..options.runs {
        for (row, mib) in &mut rows {
            progress.next(&row.name);
            let load = growing(PARTITIONS, *mib * f64::from(1 << 20), BATCH_BYTES);
            let figures = Replica::new(vec![load], Window::Steady { time }).measure(options)?;
            let gib = figures.bytes as f64 / GIB;
            row.push(RATE, gib / figures.seconds);
            row.push(CORES, figures.cpu.total / figures.seconds);
            row.push(SOURCE_CORES, figures.source_cpu.total / figures.seconds);
            row.push(CPU, figures.cpu.total / gib);
            let switches = (figures.switches.0 + figures.switches.1) as f64;
            row.push("switches/s", switches / figures.seconds);
        }
    }
    progress.end();
    report.panels =
        vec![Panel { unit: CORES.into(), line: None }, Panel { unit: CPU.into(), line: None }];
    report.rows = rows.into_iter().map(|(row, _)| row).collect();
    report.busy[1] = load_average();
    Ok(report)
}
