//! Kafka's own opinion of the copy: `kafka-dump-log` over every file of it.
//!
//! The tool ends with status 0 whatever it finds, so its words are read. Three runs: logs with
//! `--deep-iteration` (every record of every batch decoded), indexes against their logs, and
//! indexes by the check that makes a broker rebuild them (`--index-sanity-check`). Time indexes of
//! long logs have the last of these alone: the tool reads the log from its start for every entry.

use std::path::{Path, PathBuf};

use crate::image::{Image, names};
use crate::install::{Installed, KAFKA};
use crate::{Outcome, crate_dir, process};

/// A single argument may be 128 KiB long (execve(2)).
const LIST_BYTES_MAX: usize = 100_000;

/// Longer logs have too many entries in their time indexes, and too much to read for each: beyond
/// this it takes minutes, at ten times as much hours.
const TIMED_LOG_BYTES_MAX: u64 = 32 << 20;

/// Whether offsets may be missing from a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gaps {
    /// As in a log that no cleaner has seen.
    None,
    /// As in a compacted one.
    Allowed,
}

/// What the tool accepted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Accepted {
    /// Files dumped.
    pub files: usize,
    /// Batches whose checksum and records it found good.
    pub batches: usize,
}

/// Dumps every log, index, snapshot and transaction index in these partitions' folders.
///
/// # Errors
/// Whatever the tool complains of; or it saw fewer batches than are there; or a file is of a kind
/// that has no place there.
pub fn check(installed: &Installed, partitions: &[PathBuf], gaps: Gaps) -> Outcome<Accepted> {
    let mut logs = Vec::new();
    let mut indexes = Vec::new();
    let mut others = Vec::new();
    let mut batches = 0;
    for dir in partitions {
        batches += Image::read(dir)?.batches.len();
        for name in names(dir)? {
            let path = dir.join(&name);
            match path.extension().and_then(|e| e.to_str()) {
                Some("log") => logs.push(path),
                Some("index" | "timeindex") => indexes.push(path),
                Some("txnindex" | "snapshot") => others.push(path),
                _ => {}
            }
        }
    }
    if logs.is_empty() {
        return Err(format!("no log at all in {partitions:?}"));
    }
    for log in &logs {
        for index in ["index", "timeindex"].map(|e| log.with_extension(e)) {
            if !index.exists() {
                return Err(format!("{} is missing", index.display()));
            }
        }
    }
    let mut accepted = Accepted::default();
    for list in in_lists(&logs) {
        let good = dump(installed, &["--deep-iteration"], list, gaps)?;
        accepted.batches += good;
        accepted.files += list.len();
    }
    let (against_logs, by_themselves): (Vec<PathBuf>, Vec<PathBuf>) =
        indexes.iter().cloned().partition(|index| !is_timed_long(index));
    if !by_themselves.is_empty() {
        eprintln!("  {} time indexes of long logs not held against them", by_themselves.len());
    }
    for list in in_lists(&against_logs) {
        dump(installed, &[], list, Gaps::None)?;
    }
    for list in in_lists(&indexes) {
        dump(installed, &["--index-sanity-check"], list, Gaps::None)?;
        accepted.files += list.len();
    }
    for list in in_lists(&others) {
        dump(installed, &[], list, Gaps::None)?;
        accepted.files += list.len();
    }
    if accepted.batches != batches {
        return Err(format!("kafka-dump-log saw {} of {batches} batches", accepted.batches));
    }
    Ok(accepted)
}

fn is_timed_long(index: &Path) -> bool {
    let bytes = index.with_extension("log").metadata().map_or(0, |log| log.len());
    index.extension().is_some_and(|e| e == "timeindex") && bytes > TIMED_LOG_BYTES_MAX
}

fn in_lists(files: &[PathBuf]) -> impl Iterator<Item = &[PathBuf]> {
    let longest = files.iter().map(|f| f.as_os_str().len() + 1).max().unwrap_or(1);
    files.chunks((LIST_BYTES_MAX / longest).max(1))
}

/// One run of the tool. Returns how many batches it found valid.
fn dump(installed: &Installed, options: &[&str], files: &[PathBuf], gaps: Gaps) -> Outcome<usize> {
    let list: Vec<String> = files.iter().map(|f| f.display().to_string()).collect();
    let logging = crate_dir().join("kafka/log4j2.properties");
    let mut java = process::mortal("java");
    java.args(["-Xmx512m", "-XX:+UseSerialGC", "-Dunderstudy.log=WARN"])
        .arg(format!("-Dlog4j2.configurationFile={}", logging.display()))
        .args(["-cp", &installed.kafka(KAFKA), "org.apache.kafka.tools.DumpLogSegments"])
        .args(options)
        .args(["--files", &list.join(",")]);
    let output = process::run_any("kafka-dump-log", &mut java)?;
    let told = |what: &str| {
        let shown: Vec<&str> = list.iter().map(String::as_str).take(3).collect();
        format!("kafka-dump-log {options:?} on {} files ({shown:?}…): {what}", list.len())
    };
    if !output.status.success() {
        return Err(told(&format!("{}\n{}", output.status, output.stderr)));
    }
    if let Some(complaint) = complaint(&output.stderr, gaps) {
        return Err(told(&format!("{complaint}\n{}", output.stderr)));
    }
    let mut batches = 0;
    let mut dumped = 0;
    let mut file = "";
    for line in output.stdout.lines() {
        if let Some(name) = line.strip_prefix("Dumping ") {
            dumped += 1;
            file = name;
        } else if line.contains(" isvalid: true") {
            batches += 1;
        } else if line.contains(" isvalid: false") || line.contains("invalid bytes") {
            return Err(told(&format!("{file}: {line}")));
        }
    }
    if dumped != files.len() {
        return Err(told(&format!("only {dumped} files were dumped")));
    }
    Ok(batches)
}

/// The first line on standard error that means trouble. All of them do but for gaps where gaps are
/// due, and for one that is none: the tool says of a log that starts above 0 that "-1 is followed
/// by" its start.
fn complaint(stderr: &str, gaps: Gaps) -> Option<&str> {
    stderr.lines().filter(|line| !line.trim().is_empty()).find(|line| {
        let heading = line.starts_with("Non-consecutive offsets in");
        let pair = line.contains(" is followed by ");
        let start = line.trim_start().starts_with("-1 is followed by ");
        !(heading || start || pair && gaps == Gaps::Allowed)
    })
}

/// The folders of partitions in a link's folder.
///
/// # Errors
/// It cannot be read.
pub fn partition_dirs(link: &Path) -> Outcome<Vec<PathBuf>> {
    let is_partition = |name: &String| {
        name.rsplit_once('-').is_some_and(|(_, number)| number.parse::<u32>().is_ok())
    };
    Ok(names(link)?.iter().filter(|n| is_partition(n)).map(|n| link.join(n)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_trouble_only_where_there_are_none_to_be() {
        let gap = "Non-consecutive offsets in /a/0.log\n  3 is followed by 7\n";
        assert_eq!(complaint(gap, Gaps::None), Some("  3 is followed by 7"));
        assert_eq!(complaint(gap, Gaps::Allowed), None);
        let start = "Non-consecutive offsets in /a/7.log\n  -1 is followed by 7\n";
        assert_eq!(complaint(start, Gaps::None), None);
        let more = format!("{gap}Mismatches in :/a/0.index\n  Index offset: 3, log offset: 4\n");
        assert_eq!(complaint(&more, Gaps::Allowed), Some("Mismatches in :/a/0.index"));
        assert_eq!(complaint("\n", Gaps::None), None);
    }
}
