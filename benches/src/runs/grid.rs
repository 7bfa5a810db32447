//! The fixed grid of bare pipes: the ceiling is the best of it.

use std::path::PathBuf;

use crate::Outcome;
use crate::bare::sender::Sender;
use crate::bare::{Job, Spent, glommio, pipe};
use crate::cli::Options;
use crate::conditions::FileState;
use crate::replica::{CPU, GIB, RATE, SYSTEM, USER};
use crate::report::Row;

/// Sizes and numbers of buffers. Those that fit a core's second-level cache are cheapest, more of
/// them give more throughput.
const GEOMETRIES: [(usize, usize); 6] =
    [(128 << 10, 8), (256 << 10, 8), (256 << 10, 16), (512 << 10, 4), (1 << 20, 3), (1 << 20, 8)];
const ENTERS: &str = "enters/GiB";

/// The grid with its sender, round after round.
pub struct Grid {
    sender: Sender,
    core: usize,
    bytes: u64,
    fresh: PathBuf,
    overwritten: PathBuf,
    /// A row per job.
    rows: Vec<(Row, Job)>,
    /// The peer's program, and its rows; or why there is none.
    glommio: Option<Result<PathBuf, String>>,
    peers: Vec<(Row, Job)>,
    folder: PathBuf,
}

/// What of the path a job takes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Stages {
    Write,
    Receive,
    Pipe,
}

impl Grid {
    /// Starts the sender. `bytes` pass through each pipe.
    pub fn new(options: &Options, bytes: u64) -> Outcome<Grid> {
        Ok(Grid {
            sender: Sender::start(options.source_core())?,
            core: options.data_core(),
            bytes,
            fresh: options.folder.join("fresh"),
            overwritten: options.folder.join("overwritten"),
            rows: Vec::new(),
            glommio: options.glommio.clone(),
            peers: Vec::new(),
            folder: options.folder.clone(),
        })
    }

    /// What is said of the grid in a report.
    pub fn describe() -> &'static str {
        "the best of six bare pipes, receive → CRC-32C → O_DIRECT write of one file by raw \
         io_uring in one thread, for CPU and rate each, fed by a bare sender on the other core"
    }

    /// Adds the whole grid of a stage.
    pub fn add(&mut self, stages: Stages, files: FileState, geometries: usize) -> Outcome {
        if files == FileState::Overwritten && !self.overwritten.exists() {
            pipe::prepare_overwritten(&self.overwritten, self.bytes)?;
        }
        for (block_bytes, depth) in GEOMETRIES.iter().rev().take(geometries).copied() {
            let name = match stages {
                Stages::Write => "write",
                Stages::Receive => "receive",
                Stages::Pipe => "pipe",
            };
            let file = match files {
                FileState::Growing | FileState::Fresh => Some(self.fresh.clone()),
                FileState::Overwritten => Some(self.overwritten.clone()),
                FileState::None => None,
            };
            let job = Job {
                core: self.core,
                from: (stages != Stages::Write).then_some(self.sender.address),
                check: stages == Stages::Pipe,
                file,
                files,
                block_bytes,
                depth,
                bytes: self.bytes / block_bytes as u64 * block_bytes as u64,
            };
            let geometry = format!("{} KiB × {depth}", block_bytes >> 10);
            let peer = stages == Stages::Pipe && files != FileState::Growing;
            if peer && self.glommio.is_some() {
                let row = Row::new(format!("glommio {geometry}"), files);
                self.peers.push((row, job.clone()));
            }
            self.rows.push((Row::new(format!("{name} {geometry}"), files), job));
        }
        Ok(())
    }

    /// How many jobs a round has.
    pub fn len(&self) -> usize {
        self.rows.len() + self.peers.len()
    }

    /// Runs every job once, so that drifting conditions hit all alike.
    pub fn round(&mut self, mut say: impl FnMut(&str)) -> Outcome {
        for (row, job) in &mut self.rows {
            say(&format!("{} ({})", row.name, row.files));
            let spent = job.run()?;
            add(row, job, spent);
            if matches!(job.files, FileState::Growing | FileState::Fresh) {
                std::fs::remove_file(&self.fresh)?;
            }
        }
        for (row, job) in &mut self.peers {
            say(&format!("{} ({})", row.name, row.files));
            let Some(program) = &self.glommio else { continue };
            let ran = program.clone().map_err(Into::into);
            match ran.and_then(|program| glommio::run(&program, job, &self.folder)) {
                Ok(spent) => add(row, job, spent),
                Err(error) => row.does = format!("did not run: {error}"),
            }
            if job.files == FileState::Fresh {
                let _ = std::fs::remove_file(&self.fresh);
            }
        }
        Ok(())
    }

    /// The rows.
    pub fn rows(&self) -> impl Iterator<Item = &Row> {
        self.rows.iter().chain(&self.peers).map(|(row, _)| row)
    }
}

fn add(row: &mut Row, job: &Job, spent: Spent) {
    let gib = job.bytes as f64 / GIB;
    row.push(RATE, gib / spent.seconds);
    row.push(CPU, (spent.user_seconds + spent.system_seconds) / gib);
    row.push(USER, spent.user_seconds / gib);
    row.push(SYSTEM, spent.system_seconds / gib);
    if spent.enters > 0 {
        row.push(ENTERS, spent.enters as f64 / gib);
    }
}

/// The row with the best median: of whole pipes alone.
pub fn best<'a>(
    rows: impl Iterator<Item = &'a Row>,
    files: FileState,
    unit: &str,
) -> Outcome<&'a Row> {
    let pipes = rows.filter(|row| row.files == files && row.name.starts_with("pipe "));
    let sign = if unit == RATE { -1.0 } else { 1.0 };
    let value = |row: &Row| row.median(unit).map_or(f64::INFINITY, |median| sign * median);
    let best = pipes.min_by(|a, b| value(a).total_cmp(&value(b)));
    best.ok_or_else(|| "no pipe was measured in that file state".into())
}
