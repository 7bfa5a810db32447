//! The scenarios: a real Kafka, the release binary, every byte compared, every file dumped.
//!
//! One after the other: there are two cores, and some of them kill brokers. All but one share a
//! cluster of three nodes, which the first of them starts. `cargo test -p tests --test end_to_end
//! -- NAME` runs those whose name contains NAME.

mod content;
mod demo;
mod faults;
mod lifecycle;
mod stage;

use std::sync::{Arc, OnceLock};

use libtest_mimic::{Arguments, Trial};
use tests::Outcome;

use stage::Stage;

type Scenario = (&'static str, fn(&mut Stage) -> Outcome);

const SCENARIOS: &[Scenario] = &[
    ("kafka_agrees_with_itself", content::kafka_agrees_with_itself),
    ("codecs_headers_and_nulls", content::codecs_headers_and_nulls),
    ("idempotent_and_transactional_with_aborts", content::idempotent_and_transactional),
    ("compacted_with_gaps", content::compacted_with_gaps),
    ("records_of_two_mebibytes", content::records_of_two_mebibytes),
    ("create_time_and_log_append_time", content::create_time_and_log_append_time),
    ("delete_records_moves_the_start", lifecycle::delete_records_moves_the_start),
    ("topics_and_partitions_added", lifecycle::topics_and_partitions_added),
    ("topic_deleted_is_kept", lifecycle::topic_deleted_is_kept),
    ("topic_recreated_is_faulted", lifecycle::topic_recreated_is_faulted),
    ("pause_and_resume_under_load", lifecycle::pause_and_resume_under_load),
    ("restarted_under_load", lifecycle::restarted_under_load),
    ("killed_under_load", faults::killed_under_load),
    ("broker_killed_while_producing", faults::broker_killed_while_producing),
    ("unclean_election", faults::unclean_election),
    ("lost_before_it_came", faults::lost_before_it_came),
    ("everything_at_once", lifecycle::everything_at_once),
    ("another_cluster_is_refused", faults::another_cluster_is_refused),
    ("flipped_bits_are_repaired", faults::flipped_bits_are_repaired),
    ("failover_with_the_source_dead", faults::failover_with_the_source_dead),
    ("kafka_before_four", content::kafka_before_four),
    ("kafka_two_point_one", content::kafka_two_point_one),
];

fn main() {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let shared: Arc<OnceLock<Outcome<std::sync::Mutex<Stage>>>> = Arc::default();
    let mut trials: Vec<Trial> = SCENARIOS
        .iter()
        .map(|&(name, scenario)| {
            let shared = Arc::clone(&shared);
            Trial::test(name, move || {
                let stage = shared.get_or_init(|| Stage::set().map(std::sync::Mutex::new));
                let stage = stage.as_ref().map_err(|e| format!("the stage is not set: {e}"))?;
                // A scenario that panicked says so itself; the stage is for the next to try.
                let mut stage = stage.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                let started = std::time::Instant::now();
                let outcome = scenario(&mut stage);
                if outcome.is_err() {
                    stage.tidy()?;
                }
                outcome?;
                eprintln!("{name}: {:.1} s", started.elapsed().as_secs_f64());
                Ok(())
            })
        })
        .collect();
    // It needs no Kafka, so it comes before the one that is started for the others.
    trials.insert(0, Trial::test("demo", || Ok(demo::leaves_a_proof_and_nothing_else()?)));
    let conclusion = libtest_mimic::run(&arguments, trials);
    // Leaving by `exit` drops nothing: the cluster goes here, with its files.
    drop(shared);
    conclusion.exit();
}
