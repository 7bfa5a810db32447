//! `ceiling`: what this machine gives when nothing but the bare path is there.

use super::Bench;
use super::grid::{Grid, Stages, best};
use crate::Outcome;
use crate::cli::Options;
use crate::conditions::{FileState, load_average};
use crate::progress::Progress;
use crate::replica::{CPU, RATE};
use crate::report::{Panel, Report};

pub const BENCH: Bench = Bench {
    name: "ceiling",
    line: "bare write, bare receive, and receive → CRC → write by raw io_uring, one core",
    runs: 5,
    needs_product: false,
    run,
};

/// A file that grows, one allocated ahead, one written before: file systems make a difference.
const STATES: [FileState; 3] = [FileState::Growing, FileState::Fresh, FileState::Overwritten];

fn run(bench: &Bench, options: &Options) -> Outcome<Report> {
    let bytes = options.unless_quick(2 << 30, 128 << 20);
    let geometries = options.unless_quick(6, 2);
    let load = format!(
        "{} MiB through each row; batches of 64 KiB with their CRC, 4 MiB of them distinct, from a \
         bare sender (1 MiB writes of memory to one loopback socket) on the other core",
        bytes >> 20
    );
    let mut report = bench.report(options, &load, "this is the ceiling")?;
    let mut grid = Grid::new(options, bytes)?;
    grid.add(Stages::Receive, FileState::None, geometries)?;
    for (files, geometries) in STATES.iter().zip([geometries.min(3), geometries, geometries]) {
        grid.add(Stages::Write, *files, geometries)?;
        grid.add(Stages::Pipe, *files, geometries)?;
    }
    let mut progress = Progress::new(grid.len() * options.runs);
    for _ in 0..options.runs {
        grid.round(|what| progress.next(what))?;
    }
    progress.end();
    report.rows = grid.rows().cloned().collect();
    for files in STATES {
        for unit in [CPU, RATE] {
            let row = best(grid.rows(), files, unit)?;
            let name = format!("{unit}: the best pipe onto {files} files, {}", row.name);
            report.state(&name, row.median(unit)?, None);
        }
    }
    let fastest = best(grid.rows(), FileState::Fresh, RATE)?.median(RATE)?;
    let cheapest = best(grid.rows(), FileState::Fresh, CPU)?.median(CPU)?;
    report.panels = vec![
        Panel { unit: CPU.into(), line: Some((cheapest, "best pipe, fresh files".into())) },
        Panel { unit: RATE.into(), line: Some((fastest, "best pipe, fresh files".into())) },
    ];
    report.notes.push(
        "every batch's CRC is checked by pipes, and their files are read back and compared when \
         the clock has stopped; writes are not followed by a flush"
            .into(),
    );
    report.notes.push(
        "growing: nothing allocated ahead, each write makes the file longer; fresh: allocated by \
         fallocate, never written, as the product's; overwritten: every block written before"
            .into(),
    );
    report.busy[1] = load_average();
    Ok(report)
}
