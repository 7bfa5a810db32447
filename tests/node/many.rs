//! Many topics at once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use source::TopicSpec;
use tests::understudy::{LINK, Partition, Understudy};
use tests::{Outcome, wait_for};

use crate::stage::{Source, ensure};

const LEFT: &str = "left";
const COUNT: usize = 10_000;
/// With fewer than that nothing is shown, unless they are asked for.
const COUNT_MIN: usize = 5_000;
/// What a node has open beside one file of each partition, and more.
const FILES_BESIDE: usize = 2_048;

/// All topics but one are deleted at the source in one moment, and the node is stopped as soon as
/// it says so of the first: each is told, the copies stay, the one that is left goes on. Then a
/// person deletes half of them here, in one verb, while others ask how it stands: their files are
/// gone. In the midst of the other half the node is stopped again: it stops cleanly, and ends what
/// was begun when it is back. `UNDERSTUDY_TOPICS` says how many, ten thousand unless told, or fewer
/// where no more files may be open.
pub fn deleted_at_once() -> Outcome {
    let wanted = std::env::var("UNDERSTUDY_TOPICS").ok().and_then(|n| n.parse().ok());
    let wanted: usize = wanted.unwrap_or(COUNT);
    let files = open_files_max()?;
    let count = wanted.min(files.saturating_sub(FILES_BESIDE));
    eprintln!("  {count} topics of {wanted}; {files} files may be open");
    ensure(count > 0 && count >= wanted.min(COUNT_MIN), || {
        format!("{files} open files are too few for {wanted} topics: raise `ulimit -Hn`")
    })?;
    let names: Vec<String> = (0..count).map(|index| format!("many-{index:05}")).collect();
    let small =
        |name: &str| TopicSpec::new(name, 1, 2).with_batches(3, 2_000, 4).with_ring_bytes(16 << 10);
    let topics: Vec<TopicSpec> =
        names.iter().map(String::as_str).chain([LEFT]).map(small).collect();
    let source = Source::start(&topics)?;
    let mut node = Understudy::at("many", source.bootstrap(), None, &["*"])?;
    node.launch()?;
    node.wait_until("all topics to be there", |all| {
        all.len() == count + 1 && all.iter().all(|p| p.flushed == Some(8))
    })?;
    deleted_at_the_source(&source, &mut node, &names)?;
    let (first, rest) = names.split_at(count / 2);
    deleted_by_a_verb(&node, first)?;
    stopped_while_deleting(&mut node, rest)?;
    node.launch()?;
    node.wait_until("one topic", |all| all.len() == 1 && all[0].state == "ACTIVE")?;
    ensure(there(&node, &names) == 0, || "folders are left".into())?;
    node.stop()?;
    let end = source.compare(LEFT, 0, &node.partition_dir(LEFT, 0))?;
    ensure(Some(&end) == source.ends(LEFT)?.first(), || format!("it ends at {end}"))
}

/// A clean stop in the midst of it, and again from the start: all are told, none of them is gone.
fn deleted_at_the_source(source: &Source, node: &mut Understudy, names: &[String]) -> Outcome {
    for name in names {
        source.cluster().delete_topic(name).map_err(|e| e.to_string())?;
    }
    let told = |p: &&Partition| p.state == "FAULTED" && p.code == "topic_deleted";
    node.wait_until("one to be told as deleted", |all| all.iter().any(|p| told(&p)))?;
    node.stop()?;
    node.launch()?;
    node.wait_until("all to be told as deleted", |all| {
        all.iter().filter(told).filter(|p| p.topic != LEFT).count() == names.len()
    })?;
    source.cluster().append(LEFT, 0, 3).map_err(|e| e.to_string())?;
    node.wait_caught_up(LEFT, &source.ends(LEFT)?)?;
    ensure(there(node, names) == names.len(), || "a copy went with its source".into())
}

/// Others are answered all the while.
fn deleted_by_a_verb(node: &Understudy, names: &[String]) -> Outcome {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let asking = scope.spawn(|| -> Outcome<usize> {
            let mut in_the_midst = 0;
            while !done.load(Ordering::Relaxed) {
                let before = there(node, names);
                node.status()?;
                in_the_midst += usize::from(before < names.len() && there(node, names) > 0);
            }
            Ok(in_the_midst)
        });
        let deleted = node.verb(&["delete", LINK, "--force", "--topics", &names.join(",")]);
        done.store(true, Ordering::Relaxed);
        let answered = asking.join().map_err(|_| "asking panicked".to_owned())??;
        eprintln!("  {answered} answers while {} topics were deleted", names.len());
        deleted?;
        // Of few there is no midst.
        let many = names.len() >= COUNT_MIN / 2;
        ensure(answered > 0 || !many, || "nobody was answered meanwhile".into())
    })?;
    let left = there(node, names);
    ensure(left == 0, || format!("{left} folders are left"))
}

/// SIGTERM as soon as the first folder is gone.
fn stopped_while_deleting(node: &mut Understudy, names: &[String]) -> Outcome {
    let deletion = node.verb_aside(&["delete", LINK, "--force", "--topics", &names.join(",")])?;
    wait_for("the first folder to go", Duration::from_secs(60), || {
        Ok((there(node, names) < names.len()).then_some(()))
    })?;
    node.stop()?;
    // It had no answer, or it was done before.
    let answer = deletion.join().map_err(|_| "the verb panicked".to_owned())?;
    let left = there(node, names);
    eprintln!("  stopped with {left} of {} folders left", names.len());
    ensure(answer.is_err() || left == 0, || format!("{left} folders are left: {answer:?}"))
}

/// How many of them have a folder.
fn there(node: &Understudy, names: &[String]) -> usize {
    names.iter().filter(|topic| node.partition_dir(topic, 0).exists()).count()
}

/// The hard limit, which a node makes its own (proc_pid_limits(5)).
fn open_files_max() -> Outcome<usize> {
    let limits = std::fs::read_to_string("/proc/self/limits").map_err(|e| e.to_string())?;
    let files = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    match files.and_then(|line| line.split_whitespace().nth(1)) {
        Some("unlimited") => Ok(usize::MAX),
        hard => hard.and_then(|hard| hard.parse().ok()).ok_or(limits),
    }
}
