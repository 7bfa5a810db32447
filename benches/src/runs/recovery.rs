//! `recovery`: how long a start takes over a log that is there already, after a clean stop and
//! after kill -9 in the middle of writing.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Bench, backlog};
use crate::Outcome;
use crate::cli::Options;
use crate::conditions::{FileState, load_average};
use crate::progress::Progress;
use crate::replica::{Replica, Running, Window, all_partitions, is_written, received_bytes};
use crate::report::{Panel, Report, Row};

pub const BENCH: Bench = Bench {
    name: "recovery",
    line: "from start to all logs open, over 1 and 10 GiB, after a clean stop and after kill -9",
    runs: 3,
    needs_product: true,
    run,
};

const OPEN: &str = "s to all logs open";
const CPU: &str = "CPU-s until then";
const LIMIT: Duration = Duration::from_secs(600);
const POLL: Duration = Duration::from_millis(2);

fn run(bench: &Bench, options: &Options) -> Outcome<Report> {
    let sizes: &[u64] = options.unless_quick(&[1 << 30, 10 << 30], &[128 << 20]);
    let load = "16 partitions, batches of 64 KiB, really written, not sparse; page cache as the \
                copy left it; the source is up; one shard, 256 MiB";
    let mut report = bench.report(options, load, "none")?;
    let mut rows = Vec::new();
    for bytes in sizes {
        let row = |after: &str| {
            Row::new(format!("{} MiB, after {after}", bytes >> 20), FileState::Overwritten)
        };
        rows.push((*bytes, row("kill -9"), row("a clean stop")));
    }
    let mut progress = Progress::new(rows.len() * options.runs);
    for _ in 0..options.runs {
        for (bytes, killed, stopped) in &mut rows {
            progress.next(&format!("{} MiB", *bytes >> 20));
            once(*bytes, options, killed, stopped)?;
        }
    }
    progress.end();
    report.rows = rows.into_iter().flat_map(|(_, killed, stopped)| [killed, stopped]).collect();
    report.panels = vec![Panel { unit: OPEN.into(), line: None }];
    report.notes.push(
        "100 GiB is not measured: scaled, a clean start reads the same few files per partition, \
         and after kill -9 only what lies behind the last checkpoint is read"
            .into(),
    );
    report.busy[1] = load_average();
    Ok(report)
}

fn once(bytes: u64, options: &Options, killed: &mut Row, stopped: &mut Row) -> Outcome {
    let replica = Replica::new(vec![backlog(16, bytes)], Window::Backlog { skip: 0.0 });
    let total = replica.backlog_bytes()?;
    let mut running = replica.start(options)?;
    running.await_written(total / 100 * 98, total)?;
    running.node.kill()?;
    restart(&mut running, replica.partitions(), killed)?;

    let whole = |view: &Value| is_written(view) && no_lag(view);
    running.node.wait_for("the rest", Duration::from_millis(20), LIMIT, whole)?;
    running.node.stop()?;
    restart(&mut running, replica.partitions(), stopped)?;
    let proven = running.finish()?;
    match proven == total {
        true => Ok(()),
        false => Err(format!("{proven} bytes were proven, {total} were there").into()),
    }
}

/// Starts the node again and takes the time until every partition knows where it ends.
fn restart(running: &mut Running, partitions: usize, row: &mut Row) -> Outcome {
    let begun = Instant::now();
    running.node = running.setup.start()?;
    let open = |view: &Value| {
        all_partitions(view).filter(|(_, p)| p["written"].is_i64()).count() == partitions
    };
    let view = running.node.wait_for("all logs", POLL, LIMIT, open)?;
    row.push(OPEN, begun.elapsed().as_secs_f64());
    row.push(CPU, running.node.process().cpu()?.total);
    row.push("MiB fetched by then", received_bytes(&view) as f64 / f64::from(1 << 20));
    Ok(())
}

fn no_lag(view: &Value) -> bool {
    all_partitions(view).all(|(_, p)| p["lag_records"] == 0)
}
