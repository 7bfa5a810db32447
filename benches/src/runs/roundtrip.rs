//! `roundtrip`: a long link. A connection carries a window per round trip; only more connections
//! help.

use std::time::Duration;

use super::{Bench, backlog};
use crate::Outcome;
use crate::cli::Options;
use crate::conditions::{FileState, load_average};
use crate::folder::free_bytes;
use crate::progress::Progress;
use crate::proxy::Link;
use crate::replica::{GIB, RATE, Replica, Window};
use crate::report::{Goal, Panel, Report, Row};

pub const BENCH: Bench = Bench {
    name: "roundtrip",
    line: "0 to 200 ms away, through a proxy with 1 MiB under way per connection",
    runs: 1,
    needs_product: true,
    run,
};

const WINDOW_BYTES: usize = 1 << 20;
const CONNECTIONS_MAX: u32 = 256;
const PARTITIONS: i32 = 256;
/// 1 Gbit/s.
const WIRE: f64 = 125e6;
const OF_THE_WIRE: &str = "of the wire";
const CONNECTIONS: &str = "connections";
const OF_WINDOWS: &str = "of open windows";
/// What the fastest rows may write, and what stays free beside it.
const BACKLOG_BYTES_MAX: u64 = 24 << 30;
const RESERVE_BYTES: u64 = 4 << 30;

/// Wire and round trip of each row, the nearest of each wire first.
const LINKS: [(Option<f64>, u64); 6] = [
    (Some(WIRE), 0),
    (Some(WIRE), 20),
    (Some(WIRE), 100),
    (Some(WIRE), 200),
    (None, 0),
    (None, 100),
];
const LINKS_QUICK: [(Option<f64>, u64); 3] = [(Some(WIRE), 0), (Some(WIRE), 5), (None, 0)];

fn run(bench: &Bench, options: &Options) -> Outcome<Report> {
    let links: &[(Option<f64>, u64)] = options.unless_quick(&LINKS, &LINKS_QUICK);
    let after = Duration::from_millis(options.unless_quick(20_000, 300));
    let time = Duration::from_millis(options.unless_quick(5000, 300));
    let free = free_bytes(&options.folder)?.saturating_sub(RESERVE_BYTES);
    let waiting = BACKLOG_BYTES_MAX.min(free);
    let load = format!(
        "{} GiB waiting in {PARTITIONS} partitions, at most {CONNECTIONS_MAX} connections, one \
         shard; {} ms measured after {} ms in which connections may be added (a tenth of that at \
         0 ms); a window of {} KiB per connection",
        waiting >> 30,
        time.as_millis(),
        after.as_millis(),
        WINDOW_BYTES >> 10
    );
    let ceiling = "the rate over the same wire at 0 ms, and the wire";
    let mut report = bench.report(options, &load, ceiling)?;
    let mut rows: Vec<Row> =
        links.iter().map(|(wire, ms)| Row::new(name(*wire, *ms), FileState::Fresh)).collect();
    let mut progress = Progress::new(rows.len() * options.runs);
    for _ in 0..options.runs {
        for ((wire, ms), row) in links.iter().zip(&mut rows) {
            progress.next(&row.name);
            let after = if *ms == 0 { after / 10 } else { after };
            let topic = backlog(PARTITIONS, waiting);
            let mut replica = Replica::new(vec![topic], Window::Part { after, time });
            replica.connections_max = CONNECTIONS_MAX;
            let round_trip = Duration::from_millis(*ms);
            let (window_bytes, bytes_per_second) = (WINDOW_BYTES, *wire);
            replica.link = Some(Link { round_trip, window_bytes, bytes_per_second });
            let figures = replica.measure(options)?;
            let rate = figures.bytes as f64 / figures.seconds;
            row.push(RATE, rate / GIB);
            row.push(CONNECTIONS, figures.connections as f64);
            if let Some(wire) = wire {
                row.push(OF_THE_WIRE, rate / wire);
            }
            if *ms > 0 {
                let each = WINDOW_BYTES as f64 / round_trip.as_secs_f64();
                row.push(OF_WINDOWS, rate / (each * figures.connections.max(1) as f64));
            }
        }
    }
    progress.end();
    judge(&mut report, links, &rows)?;
    report.rows = rows;
    report.notes.push(
        "without a wire the rate is that of the proxy's threads, which share the cores with \
         source and node: it shows how far connections are added, not what the product could do, \
         and has no goal"
            .into(),
    );
    report.busy[1] = load_average();
    Ok(report)
}

fn name(wire: Option<f64>, ms: u64) -> String {
    let wire = if wire.is_some() { "1 Gbit/s" } else { "no wire" };
    format!("{wire}, {ms} ms")
}

fn judge(report: &mut Report, links: &[(Option<f64>, u64)], rows: &[Row]) -> Outcome {
    for ((wire, ms), row) in links.iter().zip(rows).filter(|((_, ms), _)| *ms > 0) {
        let Some(at) = links.iter().position(|link| *link == (*wire, 0)) else { continue };
        let goal = (wire.is_some() && *ms == 100).then_some(Goal::AtLeast(0.9));
        let what = format!("× the rate: {} against 0 ms", row.name);
        report.compare(&what, RATE, row, &rows[at], goal)?;
    }
    report.panels = vec![
        Panel { unit: RATE.into(), line: Some((WIRE / GIB, "1 Gbit/s".into())) },
        Panel { unit: CONNECTIONS.into(), line: None },
    ];
    Ok(())
}
