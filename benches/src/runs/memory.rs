//! `memory`: whether the budget is one.

use std::time::Duration;

use super::{Bench, backlog, growing};
use crate::Outcome;
use crate::cli::Options;
use crate::conditions::{FileState, load_average};
use crate::progress::Progress;
use crate::replica::{Replica, Window};
use crate::report::{Goal, Panel, Report, Row};

pub const BENCH: Bench = Bench {
    name: "memory",
    line: "peak resident memory over the configured budget, at full speed and with many partitions",
    runs: 3,
    needs_product: true,
    run,
};

const OVER: &str = "MiB over budget";
/// What the design allows beside the budget.
const ALLOWED_MIB: f64 = 64.0;

fn run(bench: &Bench, options: &Options) -> Outcome<Report> {
    let bytes: u64 = options.unless_quick(4 << 30, 256 << 20);
    let many = options.unless_quick(10_000, 500);
    let load = format!(
        "16 partitions with {} MiB waiting, and {many} partitions growing at 64 MiB/s in all; one \
         shard",
        bytes >> 20
    );
    let mut report = bench.report(options, &load, "the budget, shards.memory")?;
    let mut rows = Vec::new();
    for memory_mib in [64, 256] {
        let full = Replica::new(vec![backlog(16, bytes)], Window::Backlog { skip: 0.05 });
        let topic = growing(many, f64::from(64 << 20), 4 << 10).with_ring_bytes(1 << 20);
        let time = Duration::from_secs(options.unless_quick(10, 1));
        let wide = Replica::new(vec![topic], Window::Steady { time });
        for (what, mut replica) in
            [("16 partitions, full speed".to_owned(), full), (format!("{many} partitions"), wide)]
        {
            replica.memory_mib = memory_mib;
            let row = Row::new(format!("{what}, {memory_mib} MiB"), FileState::None);
            rows.push((row, replica));
        }
    }
    let mut progress = Progress::new(rows.len() * options.runs);
    for _ in 0..options.runs {
        for (row, replica) in &mut rows {
            progress.next(&row.name);
            let peak_mib =
                replica.measure(options)?.peak_resident_bytes as f64 / f64::from(1 << 20);
            row.push("peak MiB", peak_mib);
            row.push(OVER, peak_mib - replica.memory_mib as f64);
        }
    }
    progress.end();
    report.rows = rows.into_iter().map(|(row, _)| row).collect();
    let worst = report.rows.iter().filter_map(|row| row.sample(OVER)).map(|s| s.max());
    let worst = worst.fold(f64::NEG_INFINITY, f64::max);
    report.state("MiB over budget, the worst", worst, Some(Goal::AtMost(ALLOWED_MIB)));
    report.panels = vec![Panel { unit: OVER.into(), line: Some((ALLOWED_MIB, "allowed".into())) }];
    report.notes.push(
        "peak = VmHWM of the process from its start to the end of the window; a budget that was \
         never needed in full makes it negative"
            .into(),
    );
    report.busy[1] = load_average();
    Ok(report)
}
