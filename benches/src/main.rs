//! Benchmarks of Understudy, each beside a ceiling measured in the same run.
//!
//! `cargo run --release -p benches -- list` shows what there is. A bench states its load, its
//! ceiling, the machine, the state of the files and the number of runs, prints one table of medians
//! with their spread, and writes it as JSON and as a plot. What is measured runs in processes of
//! its own: the product's release binary on the first core, the source or bare sender on the last.
//! This process only starts, asks and compares.
//!
//! What a copy holds is checked, byte for byte, against the source at the end of every run.

mod bare;
mod cli;
mod conditions;
mod folder;
mod node;
mod peers;
mod plot;
mod process;
mod progress;
mod proof;
mod proxy;
mod replica;
mod report;
mod runs;
mod sample;
mod serving;

/// What went wrong, as a sentence.
type Failure = Box<dyn std::error::Error>;
/// The outcome of a step.
type Outcome<T = ()> = Result<T, Failure>;

fn main() -> std::process::ExitCode {
    cli::main()
}
