//! `roundtrip`: a long link. A connection carries a window per round trip; only more connections
//! help.

use std::time::Duration;

use super::{Bench, backlog};
use crate::Outcome;
use crate::cli::Options;
use crate::conditions::{FileState, load_average};
use crate::progress::Progress;
use crate::replica::{GIB, RATE, Replica, Window};
use crate::report::{Goal, Panel, Report, Row};

pub const BENCH: Bench = Bench {
    name: "roundtrip",
    line: "0, 20, 100 and 200 ms away, through a proxy with a window of 100 KiB per connection",
    runs: 1,
    needs_product: true,
    run,
};

const WINDOW_BYTES: usize = 100 << 10;
const CONNECTIONS_MAX: u32 = 256;
const PARTITIONS: i32 = 256;

fn run(bench: &Bench, options: &Options) -> Outcome<Report> {
    let trips_ms: &[u64] = options.unless_quick(&[0, 20, 100, 200], &[0, 5]);
    let after = Duration::from_millis(options.unless_quick(20_000, 300));
    let time = Duration::from_millis(options.unless_quick(5000, 300));
    let load = format!(
        "a backlog in {PARTITIONS} partitions, at most {CONNECTIONS_MAX} connections, one shard; \
         {} ms measured after {} ms in which connections may be added (a tenth of that at 0 ms)",
        time.as_millis(),
        after.as_millis()
    );
    let ceiling = "a full window per round trip on all connections allowed, and the rate at 0 ms";
    let mut report = bench.report(options, &load, ceiling)?;
    let mut rows: Vec<(u64, Row)> =
        trips_ms.iter().map(|ms| (*ms, Row::new(format!("{ms} ms"), FileState::Fresh))).collect();
    let mut progress = Progress::new(rows.len() * options.runs);
    for _ in 0..options.runs {
        for (ms, row) in &mut rows {
            progress.next(&row.name);
            let topic = backlog(PARTITIONS, 64 << 30);
            let after = if *ms == 0 { after / 10 } else { after };
            let mut replica = Replica::new(vec![topic], Window::Part { after, time });
            replica.connections_max = CONNECTIONS_MAX;
            replica.proxy = Some((Duration::from_millis(*ms), WINDOW_BYTES));
            let figures = replica.measure(options)?;
            let rate = figures.bytes as f64 / GIB / figures.seconds;
            row.push(RATE, rate);
            row.push("connections", figures.connections as f64);
            if *ms > 0 {
                let per_connection = WINDOW_BYTES as f64 / (*ms as f64 / 1e3) / GIB;
                let all = per_connection * f64::from(CONNECTIONS_MAX);
                row.push("of all windows", rate / all);
                let used = per_connection * figures.connections.max(1) as f64;
                row.push("of open windows", rate / used);
            }
        }
    }
    progress.end();
    let near = rows[0].1.clone();
    for (ms, row) in rows.iter().skip(1) {
        let goal = (*ms == 100).then_some(Goal::AtLeast(0.9));
        report.compare(&format!("× the rate: {ms} ms against 0 ms"), RATE, row, &near, goal)?;
    }
    let fastest = near.median(RATE)?;
    report.panels = vec![Panel { unit: RATE.into(), line: Some((fastest, "0 ms".into())) }];
    report.rows = rows.into_iter().map(|(_, row)| row).collect();
    report.notes.push(
        "the rate at 0 ms is that of the proxy's threads, which share the cores with source and \
         node"
            .into(),
    );
    report.busy[1] = load_average();
    Ok(report)
}
