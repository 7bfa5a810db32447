//! A whole node against a source in this process: what needs neither a Kafka nor a disk of our own.
//!
//! `cargo test -p tests --test node -- NAME` runs those whose name contains NAME.

mod many;
mod reload;
#[path = "../disks/stage.rs"]
#[allow(dead_code, reason = "each test program uses its own part")]
mod stage;
mod start_up;

use libtest_mimic::{Arguments, Trial};
use tests::Outcome;

type Scenario = (&'static str, fn() -> Outcome);

const SCENARIOS: &[Scenario] = &[
    ("start_up_reads_little", start_up::reads_little),
    ("reloaded_while_it_runs", reload::reloaded_while_it_runs),
    ("many_topics_deleted_at_once", many::deleted_at_once),
];

fn main() {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let trials = SCENARIOS.iter().map(|&(name, scenario)| {
        Trial::test(name, move || {
            let started = std::time::Instant::now();
            scenario()?;
            eprintln!("{name}: {:.1} s", stage::seconds(started));
            Ok(())
        })
    });
    libtest_mimic::run(&arguments, trials.collect()).exit();
}
