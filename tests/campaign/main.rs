//! Campaigns: the real shards, logs and wire on the simulator, against a source that is known.
//!
//! A seed decides a whole world ([`world`]): a source of one to three brokers, a machine that
//! copies it with one or two shards, and everything that goes wrong between them ([`plan`],
//! [`trouble`]). The world lives some rounds, each ended by a power loss, a kill or a stop
//! ([`run`]); after each start, and at the end in peace, a checker that saw everything holds every
//! byte of the copy against what the source had there, ever ([`model`]). The source lies, about its
//! records ([`trouble`]) and about where they begin and end ([`deceits`]), and has topics deleted
//! and created again ([`recreated`]); what waits for a person is attended to ([`attend`]).
//!
//! `cargo test -p tests --test campaign` runs about a minute, or until every kind of trouble has
//! come up (it counts them, and fails if one never does). `-- --seconds 3600` or `-- --seeds
//! 100000` runs longer, `UNDERSTUDY_SEED=n` one seed, and a failure prints that line.

mod asked;
mod attend;
mod brokers;
mod control;
mod deceits;
mod metadata;
mod model;
mod plan;
mod recreated;
mod run;
mod tally;
mod trouble;
mod verbs;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use ring::sim::Accident;
use tally::Tally;

/// Seeds that once found a bug: a hole when a new segment found no memory; a log start that was not
/// followed; a comparison that waited for what the source had deleted; an unreadable checkpoint
/// slot that kept the node down; sealing that waited for the memory it was to free; an empty
/// log that forgot, in a restart, that its first batch may begin below it; files of a deleted topic
/// that a power loss brought back; what was known of a deleted log held against its successor; a
/// checker that missed records where the source has none, before an empty segment and at its end; a
/// garbled seal left beside a segment that was appended to again; a checker that did not wait until
/// a source of the same length had been asked; a failover that reported an older end, since a flush
/// under way had noted where the log no longer was; side files that could not be read; a turned
/// epoch that passed for divergence; a hidden end in the midst of a batch of a source that had
/// parted; a hole behind a cut that failed; a checker that held deleted records against an empty
/// segment behind them; a log that stayed corrupt for bytes that were never flushed; bytes that a
/// failed flush left readable, told to be flushed by the process after it; a last batch that was
/// turned on its way to be compared, and passed for divergence; a cut that damage stood in the way
/// of; a gap that a failed flush took, at whose end the log went on; a torn first segment that
/// passed for flushed; a base offset that no segment holds; a flush that a stop cut short; an empty
/// segment that was sealed behind one begun below it; a gap behind what the source deleted; a
/// turned base offset that a checker took for another batch's; an answer that was held back; a cut
/// that a checker forgot; what could not be read behind the flushed end; a leader that came after
/// none; a status from before a cut; damage that sealing found, and nobody mended; a log made
/// for a partition that was no more; a turned epoch that was named and never mended; a comparison
/// with what the source had cleaned away; a checker that did not look for what the source deleted
/// behind a gap that was told; a cut that false answers agreed on before the last batch was looked
/// at; a new copy begun behind its source's log start; a log start that one false answer moved; a
/// cut that followed from a false answer while what is committed had truly gone back; damage that
/// one false answer left unmended.
const FOUND: &[u64] = &[
    1012, 1014, 1016, 1030, 1055, 1207, 5010, 20021, 20028, 20096, 30004, 30012, 40076, 40085,
    40132, 60183, 20167, 20330, 20343, 70337, 70456, 80296, 101136, 101891, 102163, 102236, 102695,
    104210, 105882, 106921, 107296, 108552, 104682, 108619, 107775, 110161, 111162, 113389, 113681,
    113959, 130858, 130863, 132389, 140468, 161533, 131412, 160601, 201936, 202334, 204234, 205397,
    206015, 206603, 207341, 207677, 207960, 305838, 401773, 501715, 511296, 530838, 534381, 543570,
    634006, 700020, 700056, 702742, 702948, 811004, 831071, 836632, 838259,
];

/// How long the plain command runs.
const SECONDS: u64 = 60;
/// How many times as long it may go on until every kind of trouble has come up.
const OVERTIME_MAX: u32 = 6;
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
            first: number("first").unwrap_or(plan::STARTS_FROM),
            only: number("seed"),
        }
    }

    /// A campaign that runs for a time also runs until every kind of trouble has come up, within
    /// reason.
    fn goes_on(&self, run: u64, since: Instant, total: &Tally) -> bool {
        match (self.only, self.seeds) {
            (Some(_), _) => false,
            (None, Some(seeds)) => run < seeds,
            (None, None) => {
                let time = Duration::from_secs(self.seconds);
                let late = since.elapsed() > time * OVERTIME_MAX;
                since.elapsed() < time || self.is_whole() && !late && !total.missing().is_empty()
            }
        }
    }

    /// Long enough for everything to come up.
    fn is_whole(&self) -> bool {
        self.only.is_none() && self.seeds.is_none() && self.seconds >= SECONDS
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
    let play = |seed: u64, total: &mut Tally, failures: &mut usize| {
        if *failures >= FAILURES_MAX {
            return;
        }
        let outcome = catch_unwind(AssertUnwindSafe(|| run::run(seed)));
        match outcome {
            Ok(Ok(tally)) => return total.add(&tally),
            Ok(Err(error)) => println!("seed {seed}: {error}"),
            Err(_) => println!("seed {seed}: a panic"),
        }
        println!("UNDERSTUDY_SEED={seed} cargo test -p tests --test campaign");
        *failures += 1;
    };
    if let Some(seed) = wanted.only {
        play(seed, &mut total, &mut failures);
        return report(&total, failures, since);
    }
    FOUND.iter().for_each(|seed| play(*seed, &mut total, &mut failures));
    let mut run = 0;
    while wanted.goes_on(run, since, &total) && failures < FAILURES_MAX {
        play(wanted.first + run, &mut total, &mut failures);
        run += 1;
    }
    let missing = total.missing();
    if wanted.is_whole() && !missing.is_empty() {
        println!("never came up: {}", missing.join(", "));
        failures += 1;
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
    let accidents = Accident::ALL.into_iter();
    let accidents = accidents.map(|kind| format!("{} {}", total.happened.of(kind), kind.name()));
    println!("accidents: {}", accidents.collect::<Vec<_>>().join(", "));
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
