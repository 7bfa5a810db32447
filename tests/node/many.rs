//! Many topics at once.

use source::TopicSpec;
use tests::Outcome;
use tests::understudy::{LINK, Understudy};

use crate::stage::{Source, ensure};

/// All topics but one are deleted at the source in one moment: each says so, the copies stay, the
/// one that is left goes on. Then a person deletes them here, in one verb: all files are gone.
/// `UNDERSTUDY_TOPICS` says how many.
pub fn deleted_at_once() -> Outcome {
    let count = std::env::var("UNDERSTUDY_TOPICS").ok().and_then(|n| n.parse().ok());
    let count: usize = count.unwrap_or(500);
    let name = |index: usize| format!("many-{index:05}");
    let small = |name: String| {
        TopicSpec::new(name, 1, 2).with_batches(3, 2_000, 4).with_ring_bytes(16 << 10)
    };
    let mut topics: Vec<TopicSpec> = (0..count).map(|index| small(name(index))).collect();
    topics.push(small("left".into()));
    let source = Source::start(&topics)?;
    let mut node = Understudy::at("many", source.bootstrap(), None, &["*"])?;
    node.launch()?;
    let all_there = |all: &[tests::understudy::Partition]| {
        all.len() == count + 1 && all.iter().all(|p| p.flushed == Some(8))
    };
    node.wait_until("all topics to be there", all_there)?;
    for index in 0..count {
        source.cluster().delete_topic(&name(index)).map_err(|e| e.to_string())?;
    }
    let gone = node.wait_until("all to be told as deleted", |all| {
        let told = all.iter().filter(|p| p.topic != "left");
        let named = |p: &tests::understudy::Partition| p.state == "FAULTED";
        told.clone().count() == count && told.clone().all(named)
    })?;
    let told = gone.iter().find(|p| p.topic != "left").ok_or("nothing was told")?;
    eprintln!("  {count} topics: {} {}", told.state, told.code);
    source.cluster().append("left", 0, 3).map_err(|e| e.to_string())?;
    node.wait_caught_up("left", &source.ends("left")?)?;
    let kept = (0..count).all(|index| node.partition_dir(&name(index), 0).exists());
    ensure(kept, || "a copy went with its source".into())?;

    let names: Vec<String> = (0..count).map(name).collect();
    node.verb(&["delete", LINK, "--force", "--topics", &names.join(",")])?;
    let left = names.iter().filter(|topic| node.partition_dir(topic, 0).exists()).count();
    ensure(left == 0, || format!("{left} folders are left"))?;
    node.kill();
    node.launch()?;
    node.wait_until("one topic", |all| all.len() == 1 && all[0].state == "ACTIVE")?;
    node.stop()?;
    let folder = node.partition_dir("left", 0);
    let end = source.compare("left", 0, &folder)?;
    ensure(Some(&end) == source.ends("left")?.first(), || format!("it ends at {end}"))
}
