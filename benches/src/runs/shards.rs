//! `shards`: whether more cores cost more CPU per byte.
//!
//! The source takes the last core. Where the last shard has to share it, a shard alone on that core
//! says what the sharing costs; what two shards cost beyond the mean of one here and one there is
//! for being two.

use super::{Bench, backlog};
use crate::Outcome;
use crate::cli::Options;
use crate::conditions::{FileState, load_average};
use crate::progress::Progress;
use crate::replica::{CPU, GIB, Replica, Window};
use crate::report::{Goal, Panel, Report, Row};

pub const BENCH: Bench = Bench {
    name: "shards",
    line: "CPU per GiB of 1, 2 and 4 shards, as many as there are cores, at full speed",
    runs: 3,
    needs_product: true,
    run,
};

/// The row of one shard that shares its core with the source.
const BESIDE: &str = "1 shards, beside the source";

fn run(bench: &Bench, options: &Options) -> Outcome<Report> {
    let bytes: u64 = options.unless_quick(4 << 30, 256 << 20);
    let load = format!("{} MiB waiting in 16 partitions; 128 MiB per shard", bytes >> 20);
    let mut report = bench.report(options, &load, "one shard, in the same run")?;
    let cores = report.conditions.cores;
    let mut rows = Vec::new();
    let mut add = |name: String, cores: String, shards: u64| {
        let mut replica = Replica::new(vec![backlog(16, bytes)], Window::Backlog { skip: 0.05 });
        (replica.cores, replica.memory_mib) = (cores, 128 * shards);
        rows.push((Row::new(name, FileState::Fresh), replica));
    };
    for shards in [1usize, 2, 4] {
        if shards > cores {
            let note = format!("{shards} shards need {shards} cores; here are {cores}");
            report.notes.push(note);
            continue;
        }
        add(format!("{shards} shards"), format!("0-{}", shards - 1), shards as u64);
        if shards == 1 && cores == 2 {
            add(BESIDE.into(), "1".into(), 1);
        }
    }
    let mut progress = Progress::new(rows.len() * options.runs);
    for _ in 0..options.runs {
        for (row, replica) in &mut rows {
            progress.next(&row.name);
            let figures = replica.measure(options)?;
            figures.add_to(row);
            let gib = figures.bytes as f64 / GIB;
            let (given_up, taken) = figures.switches;
            row.push("switches/GiB", (given_up + taken) as f64 / gib);
            row.push("source CPU-s/GiB", figures.source_cpu.total / gib);
        }
    }
    progress.end();
    for (row, _) in rows.iter().skip(1) {
        let name = format!("× the CPU per GiB: {} against 1", row.name);
        let goal = row.name.starts_with('4').then_some(Goal::AtMost(1.1));
        report.compare(&name, CPU, row, &rows[0].0, goal)?;
    }
    if let [(one, _), (beside, _), (two, _), ..] = &rows[..]
        && beside.name == BESIDE
    {
        let mean = (one.median(CPU)? + beside.median(CPU)?) / 2.0;
        let name = "× the CPU per GiB: 2 shards against the mean of 1 on either core";
        report.state(name, two.median(CPU)? / mean, None);
    }
    if rows.iter().any(|(row, _)| row.name == format!("{cores} shards")) {
        let note = "the source is on the last core, which the last shard shares with it";
        report.notes.push(note.into());
    }
    let one = rows[0].0.median(CPU)?;
    report.panels = vec![Panel { unit: CPU.into(), line: Some((one, "1 shard".into())) }];
    report.rows = rows.into_iter().map(|(row, _)| row).collect();
    report.busy[1] = load_average();
    Ok(report)
}
