//! A verb's outcome in words.

use crate::controller::{Ending, Outcome};
use std::fmt::Write;

/// Ends of partitions shown at most; `--json` has them all.
const ENDS_SHOWN: usize = 40;

/// The outcome for people.
pub fn outcome(link: &str, outcome: &Outcome) -> String {
    let mut out = String::new();
    let (before, after) = match (outcome.ending, outcome.dry_run) {
        (Ending::Done, true) => ("would be done", " Nothing was changed."),
        (Ending::Done, false) => ("done", ""),
        (Ending::Unchanged, _) => ("nothing to do", ""),
        (Ending::Refused, _) => ("refused", " Nothing was changed."),
        (Ending::NotFound, _) => ("not found", ""),
        (Ending::Failed, _) => ("failed", ""),
    };
    // Writing to a String cannot fail.
    let _ = writeln!(out, "{link}: {before}: {} ({}).{after}", outcome.reason, outcome.code);
    for (number, step) in outcome.steps.iter().enumerate() {
        let _ = writeln!(out, "  {}. {step}", number + 1);
    }
    if outcome.topics.len() > 1 {
        for topic in &outcome.topics {
            let _ = writeln!(out, "  {}: {} ({})", topic.topic, topic.reason, topic.code);
        }
    }
    let ends = outcome.topics.iter().flat_map(|t| t.ends.iter().map(move |end| (&t.topic, end)));
    let total = ends.clone().count();
    for (topic, end) in ends.take(ENDS_SHOWN) {
        let epoch = end.last_epoch.map_or("none".to_owned(), |epoch| epoch.to_string());
        let trouble = end.error.as_ref().map_or(String::new(), |error| format!(", {error}"));
        let partition = end.partition;
        let offset = end.end_offset.map_or("an unknown offset".to_owned(), |at| at.to_string());
        let _ = writeln!(out, "  {topic}-{partition} ends at {offset}, epoch {epoch}{trouble}");
    }
    if total > ENDS_SHOWN {
        let _ = writeln!(out, "  … and {} more; --json has them all", total - ENDS_SHOWN);
    }
    out
}
