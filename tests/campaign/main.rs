//! Campaigns: the real shards, logs and wire on the simulator, against a source that is known.
//!
//! A seed decides a whole world ([`world`]): a source of one to three brokers, a machine that
//! copies it with one or two shards, and everything that goes wrong between them ([`plan`],
//! [`trouble`]). The world lives some rounds, each ended by a power loss, a kill or a stop
//! ([`run`]); after each start, and at the end in peace, a checker that saw everything holds every
//! byte of the copy against what the source had there, ever ([`model`]).
//!
//! `cargo test -p tests --test campaign` runs about a minute. `-- --seconds 3600` or
//! `-- --seeds 100000` runs longer, `UNDERSTUDY_SEED=n` one seed, and a failure prints that line.

mod brokers;
mod control;
mod model;
mod plan;
mod run;
mod tally;
mod trouble;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use tally::Tally;

/// Seeds that once found a bug: a hole when a new segment found no memory; a log start that was not
/// followed; a comparison that waited for what the source had deleted; an unreadable checkpoint
/// slot that kept the node down; sealing that waited for the memory it was to free; an empty
/// log that forgot, in a restart, that its first batch may begin below it.
const FOUND: &[u64] = &[1012, 1014, 1016, 1030, 1055, 1207, 5010];

/// How long the plain command runs.
const SECONDS: u64 = 60;
/// Failures after which a campaign ends.
const FAILURES_MAX: usize = 5;

/// What the command line asks for.
struct Wanted {
    seconds: u64,
    seeds: Option<u64>,
    first: u64,
    only: Option<u64>,
}

impl Wanted {
    fn read() -> Wanted {
        let number = |name: &str| {
            let variable = format!("UNDERSTUDY_{}", name.to_uppercase());
            let text = std::env::args()
                .skip_while(|argument| *argument != format!("--{name}"))
                .nth(1)
                .or_else(|| std::env::var(variable).ok())?;
            Some(text.parse().unwrap_or_else(|_| panic!("--{name} wants a number, not {text}")))
        };
        Wanted {
            seconds: number("seconds").unwrap_or(SECONDS),
            seeds: number("seeds"),
            first: number("first").unwrap_or(1_000),
            only: number("seed"),
        }
    }

    fn goes_on(&self, run: u64, since: Instant) -> bool {
        match (self.only, self.seeds) {
            (Some(_), _) => false,
            (None, Some(seeds)) => run < seeds,
            (None, None) => since.elapsed() < Duration::from_secs(self.seconds),
        }
    }
}

fn main() -> ExitCode {
    // Asked for by other runners; there is one test.
    if std::env::args().any(|argument| argument == "--list") {
        println!("campaign: test");
        return ExitCode::SUCCESS;
    }
    let wanted = Wanted::read();
    let since = Instant::now();
    let (mut total, mut failures) = (Tally::default(), 0);
    let mut play = |seed: u64| {
        if failures >= FAILURES_MAX {
            return;
        }
        let outcome = catch_unwind(AssertUnwindSafe(|| run::run(seed)));
        match outcome {
            Ok(Ok(tally)) => {
                total.add(&tally);
                return;
            }
            Ok(Err(error)) => println!("seed {seed}: {error}"),
            Err(_) => println!("seed {seed}: a panic"),
        }
        println!("UNDERSTUDY_SEED={seed} cargo test -p tests --test campaign");
        failures += 1;
    };
    let mut run = 0;
    match wanted.only {
        Some(seed) => play(seed),
        None => {
            FOUND.iter().for_each(|seed| play(*seed));
            while wanted.goes_on(run, since) {
                play(wanted.first + run);
                run += 1;
            }
        }
    }
    report(&total, failures, since)
}

fn report(total: &Tally, failures: usize, since: Instant) -> ExitCode {
    println!(
        "{} seeds, {} power losses, {} kills, {} stops, {} copies compared, {} MiB, {} steps",
        total.seeds,
        total.crashes,
        total.kills,
        total.stops,
        total.comparisons,
        total.bytes >> 20,
        total.steps
    );
    println!("world: {:?}", total.done);
    println!(
        "copy: {} cuts, {} losses told, {} corrupt, {} logs refused, faults {:?}",
        total.truncations, total.gaps, total.corrupt, total.refused, total.faulted
    );
    let (word, code) = match failures {
        0 => ("ok", ExitCode::SUCCESS),
        _ => ("FAILED", ExitCode::FAILURE),
    };
    println!(
        "test result: {word}. {} passed; {failures} failed; 0 ignored; 0 measured; \
         0 filtered out; finished in {:.2}s",
        total.seeds,
        since.elapsed().as_secs_f64()
    );
    code
}
