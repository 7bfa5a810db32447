//! `failover`: how long it takes to cut many partitions loose, with the source dead.

use std::time::{Duration, Instant};

use super::{Bench, growing};
use crate::Outcome;
use crate::cli::Options;
use crate::conditions::{FileState, load_average};
use crate::node::LINK;
use crate::progress::Progress;
use crate::replica::{Replica, Window};
use crate::report::{Goal, Panel, Report, Row};

pub const BENCH: Bench = Bench {
    name: "failover",
    line: "10,000 partitions cut loose from a dead source: from the request to the durable answer",
    runs: 3,
    needs_product: true,
    run,
};

const SECONDS: &str = "seconds";

fn run(bench: &Bench, options: &Options) -> Outcome<Report> {
    let counts: &[i32] = options.unless_quick(&[1000, 10_000], &[200]);
    let load = "a source growing at 16 MiB/s in batches of 4 KiB is killed, one second later \
                POST /v1/links/bench/failover is sent; one shard, 256 MiB";
    let mut report = bench.report(options, load, "none")?;
    let mut rows: Vec<(Row, i32)> = counts
        .iter()
        .map(|count| (Row::new(format!("{count} partitions"), FileState::Fresh), *count))
        .collect();
    let mut progress = Progress::new(rows.len() * options.runs);
    for _ in 0..options.runs {
        for (row, count) in &mut rows {
            progress.next(&row.name);
            row.push(SECONDS, once(*count, options)?);
        }
    }
    progress.end();
    let most = rows.last().ok_or("nothing was measured")?;
    let goal = (most.1 == 10_000).then_some(Goal::AtMost(1.0));
    report.state(&format!("seconds for {}", most.0.name), most.0.median(SECONDS)?, goal);
    report.panels = vec![Panel { unit: SECONDS.into(), line: Some((1.0, "goal".into())) }];
    report.rows = rows.into_iter().map(|(row, _)| row).collect();
    report.busy[1] = load_average();
    Ok(report)
}

fn once(count: i32, options: &Options) -> Outcome<f64> {
    let topic = growing(count, f64::from(16 << 20), 4 << 10).with_ring_bytes(1 << 20);
    let replica = Replica::new(vec![topic], Window::Steady { time: Duration::ZERO });
    let mut running = replica.start(options)?;
    replica.catch_up(&mut running)?;
    running.source.kill()?;
    std::thread::sleep(Duration::from_secs(1));
    let begun = Instant::now();
    let body = "{\"dry_run\":false,\"force\":false}";
    running.node.ask("POST", &format!("/v1/links/{LINK}/failover"), body)?;
    let seconds = begun.elapsed().as_secs_f64();
    let view = running.node.status()?;
    let topics = view["links"][0]["topics"].as_array().ok_or("no topics")?;
    if !topics.iter().all(|topic| topic["state"] == "FAILED_OVER") {
        return Err("a topic has not failed over".into());
    }
    running.finish_alone()?;
    Ok(seconds)
}
