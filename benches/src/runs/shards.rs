//! `shards`: whether more cores cost more CPU per byte.

use super::{Bench, backlog};
use crate::Outcome;
use crate::cli::Options;
use crate::conditions::{FileState, load_average};
use crate::progress::Progress;
use crate::replica::{CPU, Replica, Window};
use crate::report::{Goal, Panel, Report, Row};

pub const BENCH: Bench = Bench {
    name: "shards",
    line: "CPU per GiB of 1, 2 and 4 shards, as many as there are cores, at full speed",
    runs: 3,
    needs_product: true,
    run,
};

fn run(bench: &Bench, options: &Options) -> Outcome<Report> {
    let bytes: u64 = options.unless_quick(4 << 30, 256 << 20);
    let load = format!("{} MiB waiting in 16 partitions; 128 MiB per shard", bytes >> 20);
    let mut report = bench.report(options, &load, "one shard, in the same run")?;
    let cores = report.conditions.cores;
    let mut rows = Vec::new();
    for shards in [1usize, 2, 4] {
        if shards > cores {
            let note = format!("{shards} shards need {shards} cores; here are {cores}");
            report.notes.push(note);
            continue;
        }
        let mut replica = Replica::new(vec![backlog(16, bytes)], Window::Backlog { skip: 0.05 });
        replica.cores = format!("0-{}", shards - 1);
        replica.memory_mib = 128 * shards as u64;
        rows.push((Row::new(format!("{shards} shards"), FileState::Fresh), replica));
    }
    let mut progress = Progress::new(rows.len() * options.runs);
    for _ in 0..options.runs {
        for (row, replica) in &mut rows {
            progress.next(&row.name);
            replica.measure(options)?.add_to(row);
        }
    }
    progress.end();
    for (row, _) in rows.iter().skip(1) {
        let name = format!("× the CPU per GiB: {} against 1", row.name);
        let goal = row.name.starts_with('4').then_some(Goal::AtMost(1.1));
        report.compare(&name, CPU, row, &rows[0].0, goal)?;
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
