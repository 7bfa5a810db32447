//! `records`: sizes of records and batches. Understudy looks at batches, not into them: their
//! number counts, that of records should not.

use super::{Bench, backlog_of};
use crate::Outcome;
use crate::cli::Options;
use crate::conditions::{FileState, load_average};
use crate::progress::Progress;
use crate::replica::{CPU, Replica, Window};
use crate::report::{Panel, Report, Row};

pub const BENCH: Bench = Bench {
    name: "records",
    line: "records of 100 B, 1 KiB and 100 KiB, in small and large batches, at full speed",
    runs: 3,
    needs_product: true,
    run,
};

/// Name, bytes of a batch, records in it.
const SHAPES: [(&str, usize, usize); 6] = [
    ("100 B × 40", 4 << 10, 40),
    ("100 B × 10,000", 1 << 20, 10_000),
    ("1 KiB × 4", 4 << 10, 4),
    ("1 KiB × 1,000", 1 << 20, 1000),
    ("100 KiB × 1", 100 << 10, 1),
    ("100 KiB × 10", 1 << 20, 10),
];

fn run(bench: &Bench, options: &Options) -> Outcome<Report> {
    let bytes: u64 = options.unless_quick(2 << 30, 128 << 20);
    let load = format!(
        "{} MiB waiting in 16 partitions, records × records per batch; one shard, 256 MiB",
        bytes >> 20
    );
    let mut report = bench.report(options, &load, "the cheapest shape of the same run")?;
    let shapes = SHAPES.into_iter().map(|(name, batch_bytes, records)| {
        let topic = backlog_of(16, bytes, batch_bytes, records);
        let replica = Replica::new(vec![topic], Window::Backlog { skip: 0.05 });
        (Row::new(name, FileState::Fresh), replica)
    });
    let mut rows: Vec<(Row, Replica)> = shapes.collect();
    let mut progress = Progress::new(rows.len() * options.runs);
    for _ in 0..options.runs {
        for (row, replica) in &mut rows {
            progress.next(&row.name);
            replica.measure(options)?.add_to(row);
        }
    }
    progress.end();
    report.rows = rows.into_iter().map(|(row, _)| row).collect();
    let medians: Outcome<Vec<f64>> = report.rows.iter().map(|row| row.median(CPU)).collect();
    let cheapest = medians?.into_iter().fold(f64::INFINITY, f64::min);
    report.panels =
        vec![Panel { unit: CPU.into(), line: Some((cheapest, "cheapest shape".into())) }];
    report.busy[1] = load_average();
    Ok(report)
}
