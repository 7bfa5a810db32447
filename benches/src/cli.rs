//! The command line: one bench by name, and where its results go.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use argh::FromArgs;

use crate::bare::glommio;
use crate::folder::Folder;
use crate::runs::{self, Bench};
use crate::{Outcome, bare, node, plot, serving};

/// Benchmarks of Understudy, each beside a ceiling measured in the same run.
#[derive(FromArgs)]
struct Arguments {
    /// the bench; `list` shows what there is; `plot` draws an earlier --json anew as --svg
    #[argh(positional)]
    name: String,
    /// write the results as JSON
    #[argh(option)]
    json: Option<PathBuf>,
    /// write the plot
    #[argh(option)]
    svg: Option<PathBuf>,
    /// a shortened run, some seconds: shows that it works, not how fast
    #[argh(switch)]
    quick: bool,
    /// runs per row (default: as the bench says)
    #[argh(option)]
    runs: Option<usize>,
    /// folder on the disk to measure (default: here)
    #[argh(option, default = "PathBuf::from(\".\")")]
    dir: PathBuf,
    /// the binary to measure (default: built now, release mode)
    #[argh(option)]
    understudy: Option<PathBuf>,
    /// build the pipe of benches/glommio, too, and set it beside the bare pipes
    #[argh(switch)]
    glommio: bool,
    /// set the medians against those of an earlier JSON; refused if conditions differ
    #[argh(option)]
    against: Option<PathBuf>,
}

/// What a bench is told.
pub struct Options {
    /// Shortened.
    pub quick: bool,
    /// Runs per row.
    pub runs: usize,
    /// Where files go; removed afterwards.
    pub folder: PathBuf,
    /// The product's binary; empty for benches that need none.
    pub program: PathBuf,
    /// The pipe on glommio, when it is asked for; or why there is none.
    pub glommio: Option<Result<PathBuf, String>>,
}

impl Options {
    /// The core that the product's first shard and bare pipes are pinned to.
    pub fn data_core(&self) -> usize {
        0
    }

    /// The core of whoever sends: the last.
    pub fn source_core(&self) -> usize {
        let cores = core_affinity::get_core_ids().unwrap_or_default();
        cores.iter().map(|core| core.id).max().unwrap_or(0)
    }

    /// The one or the other.
    pub fn unless_quick<T>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }
}

/// Everything `main` does.
pub fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().collect();
    let done = match words.get(1..).unwrap_or_default() {
        [command, core] if command == bare::sender::COMMAND => {
            core.parse().map_err(Into::into).and_then(bare::sender::run)
        }
        [command, job] if command == bare::pipe::COMMAND => bare::pipe::run_child(job),
        [command, job] if command == bare::paced::COMMAND => bare::paced::run_child(job),
        [command, config] if command == serving::COMMAND => serving::run(config),
        _ => run(&argh::from_env()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("benches: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Outcome {
    if arguments.name == "list" {
        for bench in runs::ALL {
            println!("{:<12} {}", bench.name, bench.line);
        }
        return Ok(());
    }
    if arguments.name == "plot" {
        let (Some(json), Some(svg)) = (&arguments.json, &arguments.svg) else {
            return Err("plot wants --json FILE, to read, and --svg FILE, to write".into());
        };
        let text = std::fs::read(json).map_err(|error| format!("{}: {error}", json.display()))?;
        return write(svg, &plot::svg(&serde_json::from_slice(&text)?));
    }
    let named = runs::ALL.iter().find(|bench| bench.name == arguments.name);
    let bench = named.ok_or_else(|| format!("no bench {:?}; try `list`", arguments.name))?;
    let runs = arguments.runs.unwrap_or(if arguments.quick { 1 } else { bench.runs });
    if runs == 0 {
        return Err("--runs is at least 1".into());
    }
    let program = match bench.needs_product {
        true => node::program(arguments.understudy.as_deref())?,
        false => PathBuf::new(),
    };
    let glommio = arguments.glommio.then(|| glommio::program().map_err(|e| e.to_string()));
    let folder = Folder::make(&arguments.dir)?;
    let options =
        Options { quick: arguments.quick, runs, folder: folder.0.clone(), program, glommio };
    report(bench, &options, arguments)
}

fn report(bench: &Bench, options: &Options, arguments: &Arguments) -> Outcome {
    let report = (bench.run)(bench, options)?;
    println!("{}", report.text());
    if let Some(file) = &arguments.json {
        write(file, &serde_json::to_string_pretty(&report)?)?;
    }
    if let Some(file) = &arguments.svg {
        write(file, &plot::svg(&report))?;
    }
    if let Some(file) = &arguments.against {
        println!("{}", report.against(file)?);
    }
    Ok(())
}

fn write(file: &Path, text: &str) -> Outcome {
    std::fs::write(file, text).map_err(|error| format!("{}: {error}", file.display()).into())
}
