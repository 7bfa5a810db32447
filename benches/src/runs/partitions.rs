//! `partitions`: what it costs that the same bytes come in many small streams.

use std::time::Duration;

use super::{Bench, growing};
use crate::Outcome;
use crate::cli::Options;
use crate::conditions::{FileState, load_average};
use crate::progress::Progress;
use crate::replica::{CPU, GIB, Replica, Window};
use crate::report::{Goal, Panel, Report, Row};

pub const BENCH: Bench = Bench {
    name: "partitions",
    line: "CPU per GiB of 16, 1,000 and 10,000 partitions, in chunks of 64 KiB and of 4 KiB",
    runs: 3,
    needs_product: true,
    run,
};

/// Size of a chunk, and the rate of all partitions together, MiB/s: the same for all numbers of
/// partitions, below what the largest number manages.
const CHUNKS: [(usize, f64); 2] = [(64 << 10, 256.0), (4 << 10, 32.0)];
/// Batches that a partition has before its bytes count: what is measured is replication, not how
/// thousands of files are made.
const BEGUN_BATCHES: i64 = 6;

fn run(bench: &Bench, options: &Options) -> Outcome<Report> {
    let counts: &[i32] = options.unless_quick(&[16, 1000, 10_000], &[16, 500]);
    let time = Duration::from_secs(options.unless_quick(10, 1));
    let slower = options.unless_quick(1.0, 0.25);
    let described: Vec<String> = CHUNKS
        .iter()
        .map(|(bytes, mib)| format!("{} KiB at {} MiB/s", bytes >> 10, mib * slower))
        .collect();
    let load = format!(
        "a source that grows at a steady rate, one batch here, one batch there: {}; one shard, \
         256 MiB; {} s after the source was caught up with and partitions had {BEGUN_BATCHES} \
         batches",
        described.join(", "),
        time.as_secs()
    );
    let mut report = bench.report(options, &load, "16 partitions with the same chunks and rate")?;
    let mut rows = Vec::new();
    for (chunk_bytes, mib) in CHUNKS {
        for count in counts {
            let name = format!("{count} partitions, {} KiB", chunk_bytes >> 10);
            let topic = growing(*count, mib * slower * f64::from(1 << 20), chunk_bytes);
            let topic = topic.with_ring_bytes(1 << 20);
            let mut replica = Replica::new(vec![topic], Window::Steady { time });
            replica.begun_records = BEGUN_BATCHES * (chunk_bytes >> 10).max(1) as i64;
            rows.push((chunk_bytes, Row::new(name, FileState::Fresh), replica));
        }
    }
    let mut progress = Progress::new(rows.len() * options.runs);
    for _ in 0..options.runs {
        for (_, row, replica) in &mut rows {
            progress.next(&row.name);
            let figures = replica.measure(options)?;
            figures.add_to(row);
            let gib = figures.bytes as f64 / GIB;
            row.push("switches/GiB", (figures.switches.0 + figures.switches.1) as f64 / gib);
            row.push("source CPU-s/GiB", figures.source_cpu.total / gib);
        }
    }
    progress.end();
    for (chunk_bytes, _) in CHUNKS {
        let alike: Vec<&Row> = rows
            .iter()
            .filter(|(bytes, ..)| *bytes == chunk_bytes)
            .map(|(_, row, _)| row)
            .collect();
        let (few, many) = (alike[0], alike[alike.len() - 1]);
        let goal = (chunk_bytes == 64 << 10 && !options.quick).then_some(Goal::AtMost(1.5));
        let name = format!("× the CPU per GiB: {} against {}", many.name, few.name);
        report.compare(&name, CPU, many, few, goal)?;
    }
    let few = rows[0].1.median(CPU)?;
    report.panels = vec![Panel { unit: CPU.into(), line: Some((few, rows[0].1.name.clone())) }];
    report.rows = rows.into_iter().map(|(_, row, _)| row).collect();
    report.notes.push(
        "the rate is the source's, not what the node could do; each window holds one status \
         request, some tens of ms of CPU with 10,000 partitions"
            .into(),
    );
    report.busy[1] = load_average();
    Ok(report)
}
