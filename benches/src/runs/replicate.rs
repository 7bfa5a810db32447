//! `replicate`: the product at full speed, beside the bare pipe of the same run.

use super::grid::{Grid, Stages, best};
use super::{Bench, backlog};
use crate::Outcome;
use crate::cli::Options;
use crate::conditions::{FileState, load_average};
use crate::progress::Progress;
use crate::replica::{CPU, GIB, RATE, Replica, Window};
use crate::report::{Goal, Panel, Report, Row};

pub const BENCH: Bench = Bench {
    name: "replicate",
    line: "16 partitions at full speed: GiB/s and CPU, against the best bare pipe",
    runs: 5,
    needs_product: true,
    run,
};

fn run(bench: &Bench, options: &Options) -> Outcome<Report> {
    let bytes: u64 = options.unless_quick(4 << 30, 256 << 20);
    let load = format!(
        "{} MiB waiting in 16 partitions, batches of 64 KiB, 1 to 4 MiB per partition and fetch, \
         from the embedded source on the other core; one shard, 256 MiB of memory",
        bytes >> 20
    );
    let mut report = bench.report(options, &load, Grid::describe())?;
    let mut grid = Grid::new(options, options.unless_quick(2 << 30, 128 << 20))?;
    grid.add(Stages::Pipe, FileState::Fresh, options.unless_quick(6, 2))?;
    let replica = Replica::new(vec![backlog(16, bytes)], Window::Backlog { skip: 0.05 });
    let mut ours = Row::new("understudy", FileState::Fresh);
    let mut source = Row::new("its source", FileState::None);
    let mut progress = Progress::new((grid.len() + 1) * options.runs);
    for _ in 0..options.runs {
        grid.round(|what| progress.next(what))?;
        progress.next("understudy");
        let figures = replica.measure(options)?;
        figures.add_to(&mut ours);
        let gib = figures.bytes as f64 / GIB;
        ours.push("switches/GiB", (figures.switches.0 + figures.switches.1) as f64 / gib);
        source.push(CPU, figures.source_cpu.total / gib);
    }
    progress.end();
    let cheapest = best(grid.rows(), FileState::Fresh, CPU)?;
    let fastest = best(grid.rows(), FileState::Fresh, RATE)?;
    let at_most = Some(Goal::AtMost(1.25));
    let name = format!("× the CPU per GiB of {}", cheapest.name);
    report.compare(&name, CPU, &ours, cheapest, at_most)?;
    let name = format!("× the rate of {}", fastest.name);
    report.compare(&name, RATE, &ours, fastest, Some(Goal::AtLeast(0.95)))?;
    report.panels = vec![
        Panel { unit: CPU.into(), line: Some((cheapest.median(CPU)?, "ceiling".into())) },
        Panel { unit: RATE.into(), line: Some((fastest.median(RATE)?, "ceiling".into())) },
    ];
    report.rows = vec![ours, source];
    report.rows.extend(grid.rows().cloned());
    report.notes.push(
        "the clock runs from 5 % received to all written; CPU is of all threads of the process; \
         every copy was compared with the source, byte for byte, after a clean stop"
            .into(),
    );
    report.busy[1] = load_average();
    Ok(report)
}
