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
    line: "0 to 200 ms away, through a proxy with 100 KiB under way per connection",
    runs: 1,
    needs_product: true,
    run,
};

/// What stock brokers send before they wait: `socket.send.buffer.bytes`.
const STOCK_WINDOW: usize = 100 << 10;
const WIDE_WINDOW: usize = 1 << 20;
const CONNECTIONS_MAX: u32 = 256;
const PARTITIONS: i32 = 256;
/// 1 Gbit/s.
const WIRE: f64 = 125e6;
const OF_THE_WIRE: &str = "of the wire";
const CONNECTIONS: &str = "connections";
const FULL_AFTER: &str = "s to 0.9 of the wire";
const OF_WINDOWS: &str = "of open windows";
/// What the fastest rows may write, and what stays free beside it.
const BACKLOG_BYTES_MAX: u64 = 24 << 30;
const RESERVE_BYTES: u64 = 4 << 30;

/// A way from the source to the node.
#[derive(Clone, Copy)]
struct Way {
    /// Bytes per second of all connections together; none: as fast as the proxy is.
    wire: Option<f64>,
    round_trip_ms: u64,
    /// What may be under way on one connection, in bytes.
    window_bytes: usize,
}

const fn way(wire: Option<f64>, round_trip_ms: u64, window_bytes: usize) -> Way {
    Way { wire, round_trip_ms, window_bytes }
}

/// The nearest of each wire first.
const WAYS: [Way; 7] = [
    way(Some(WIRE), 0, STOCK_WINDOW),
    way(Some(WIRE), 20, STOCK_WINDOW),
    way(Some(WIRE), 100, STOCK_WINDOW),
    way(Some(WIRE), 100, WIDE_WINDOW),
    way(Some(WIRE), 200, STOCK_WINDOW),
    way(None, 0, STOCK_WINDOW),
    way(None, 100, STOCK_WINDOW),
];
const WAYS_QUICK: [Way; 3] = [
    way(Some(WIRE), 0, STOCK_WINDOW),
    way(Some(WIRE), 5, STOCK_WINDOW),
    way(None, 0, STOCK_WINDOW),
];

fn run(bench: &Bench, options: &Options) -> Outcome<Report> {
    let ways: &[Way] = options.unless_quick(&WAYS, &WAYS_QUICK);
    let after = Duration::from_millis(options.unless_quick(30_000, 300));
    let time = Duration::from_millis(options.unless_quick(20_000, 300));
    let free = free_bytes(&options.folder)?.saturating_sub(RESERVE_BYTES);
    let waiting = BACKLOG_BYTES_MAX.min(free);
    let load = format!(
        "{} GiB waiting in {PARTITIONS} partitions, at most {CONNECTIONS_MAX} connections, one \
         shard; {:.1} s measured (a quarter of that without a wire), after {:.1} s (a tenth of \
         that at 0 ms) in which the first connections are added, which the rate leaves out",
        waiting >> 30,
        time.as_secs_f64(),
        after.as_secs_f64(),
    );
    let ceiling = "the rate over the same wire at 0 ms, and the wire";
    let mut report = bench.report(options, &load, ceiling)?;
    let mut rows: Vec<Row> =
        ways.iter().map(|way| Row::new(way.name(), FileState::Fresh)).collect();
    let mut progress = Progress::new(rows.len() * options.runs);
    for _ in 0..options.runs {
        for (way, row) in ways.iter().zip(&mut rows) {
            progress.next(&row.name);
            let after = if way.round_trip_ms == 0 { after / 10 } else { after };
            let time = if way.wire.is_none() { time / 4 } else { time };
            let topic = backlog(PARTITIONS, waiting);
            let mut replica = Replica::new(vec![topic], Window::Part { after, time });
            replica.connections_max = CONNECTIONS_MAX;
            let round_trip = Duration::from_millis(way.round_trip_ms);
            let (window_bytes, bytes_per_second) = (way.window_bytes, way.wire);
            replica.link = Some(Link { round_trip, window_bytes, bytes_per_second });
            let figures = replica.measure(options)?;
            let rate = figures.bytes as f64 / figures.seconds;
            row.push(RATE, rate / GIB);
            row.push(CONNECTIONS, figures.connections as f64);
            if let Some(seconds) = figures.full_after_seconds {
                row.push(FULL_AFTER, seconds);
            }
            if let Some(wire) = way.wire {
                row.push(OF_THE_WIRE, rate / wire);
            }
            if way.round_trip_ms > 0 {
                let each = way.window_bytes as f64 / round_trip.as_secs_f64();
                row.push(OF_WINDOWS, rate / (each * figures.connections.max(1) as f64));
            }
        }
    }
    progress.end();
    judge(&mut report, ways, &rows)?;
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

impl Way {
    fn name(&self) -> String {
        let wire = if self.wire.is_some() { "1 Gbit/s" } else { "no wire" };
        let window = if self.window_bytes == STOCK_WINDOW { "" } else { ", windows of 1 MiB" };
        format!("{wire}, {} ms{window}", self.round_trip_ms)
    }
}

fn judge(report: &mut Report, ways: &[Way], rows: &[Row]) -> Outcome {
    for (way, row) in ways.iter().zip(rows).filter(|(way, _)| way.round_trip_ms > 0) {
        let is_near = |near: &Way| near.round_trip_ms == 0 && near.wire == way.wire;
        let Some(near) = ways.iter().position(is_near) else { continue };
        let stock = way.window_bytes == STOCK_WINDOW;
        let judged = way.wire.is_some() && way.round_trip_ms == 100 && stock;
        let goal = judged.then_some(Goal::AtLeast(0.9));
        let what = format!("× the rate: {} against 0 ms", row.name);
        report.compare(&what, RATE, row, &rows[near], goal)?;
    }
    report.panels = vec![
        Panel { unit: RATE.into(), line: Some((WIRE / GIB, "1 Gbit/s".into())) },
        Panel { unit: CONNECTIONS.into(), line: None },
    ];
    Ok(())
}
