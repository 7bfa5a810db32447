//! What happens to topics and to the process while it copies.

use serde_json::json;
use tests::Outcome;
use tests::dump::Gaps;
use tests::image::Image;
use tests::load::Topic;
use tests::understudy::{LINK, Partition, Understudy};

use crate::stage::{Stage, ensure};

/// The source's start moves while the copy runs and before another copy starts, into the middle of
/// batches.
pub fn delete_records_moves_the_start(stage: &mut Stage) -> Outcome {
    let topic = "trimmed";
    stage.load.create(topic, 2, 3, &[("segment.bytes", "1048576")])?;
    let some = json!({"records": 20_000, "partitions": 2});
    stage.load.produce(topic, some.clone())?;
    let mut early = Understudy::start("trimmed-early", &stage.cluster, &[topic])?;
    let whole = stage.originals(topic)?;
    let ends: Vec<i64> = whole.iter().map(|o| o.offsets.end).collect();
    early.wait_caught_up(topic, &ends)?;
    for (partition, before) in [(0, 3_333), (1, 7_000)] {
        let request = json!({"topic": topic, "partition": partition, "before": before});
        let told = stage.load.call("delete-records", request)?;
        ensure(told["low_watermark"] == before, || format!("{told}"))?;
    }
    stage.load.produce(topic, some)?;
    let originals = stage.prove(&mut early, &[topic], Gaps::None)?;
    let starts: Vec<i64> = originals.iter().map(|o| o.offsets.start).collect();
    ensure(starts == [3_333, 7_000], || format!("the source starts at {starts:?}"))?;
    // What the source threw away is kept for a while, as it was.
    for original in whole {
        let image = Image::read(&early.partition_dir(topic, original.partition))?;
        tests::compare::equal(&original.image, &image, original.offsets)?;
    }
    let mut late = Understudy::start("trimmed-late", &stage.cluster, &[topic])?;
    stage.prove(&mut late, &[topic], Gaps::None)?;
    Ok(())
}

/// Topics and partitions that come while it runs are found; what is excluded, or internal, is not
/// copied.
pub fn topics_and_partitions_added(stage: &mut Stage) -> Outcome {
    let some = |first: usize, count: usize| {
        let records = 2_000;
        json!({"records": records, "first_partition": first, "partitions": count})
    };
    stage.load.create("added-grows", 2, 3, &[])?;
    stage.load.create("added-not-this", 1, 3, &[])?;
    stage.load.produce("added-grows", some(0, 2))?;
    stage.load.produce("added-not-this", some(0, 1))?;
    let mut copy = Understudy::new("added", &stage.cluster, &[])?;
    copy.set("topics", r#"{ include = ["added-*"], exclude = ["/.*-not-.*/"] }"#)?;
    copy.launch()?;
    let ends = |stage: &Stage, topic: &str| -> Outcome<Vec<i64>> {
        Ok(stage.load.offsets(topic)?.into_iter().map(|o| o.end).collect())
    };
    copy.wait_caught_up("added-grows", &ends(stage, "added-grows")?)?;
    stage.load.call("add-partitions", json!({"topic": "added-grows", "total": 5}))?;
    stage.load.produce("added-grows", some(2, 3))?;
    stage.load.create("added-later", 3, 3, &[])?;
    stage.load.produce("added-later", some(0, 3))?;
    let originals = stage.prove(&mut copy, &["added-grows", "added-later"], Gaps::None)?;
    ensure(originals.len() == 8, || format!("{} partitions", originals.len()))?;
    for dir in tests::dump::partition_dirs(&copy.link_dir())? {
        let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let due = name.starts_with("added-grows-") || name.starts_with("added-later-");
        ensure(due, || format!("{name} was not to be copied"))?;
    }
    Ok(())
}

/// A topic deleted at the source: the state says so, the copy stays, its neighbour goes on.
pub fn topic_deleted_is_kept(stage: &mut Stage) -> Outcome {
    let (topic, neighbour) = ("gone-topic", "gone-neighbour");
    let some = json!({"records": 5_000, "partitions": 2});
    for name in [topic, neighbour] {
        stage.load.create(name, 2, 3, &[])?;
        stage.load.produce(name, some.clone())?;
    }
    let mut copy = Understudy::start("gone", &stage.cluster, &["gone-*"])?;
    let kept = stage.originals(topic)?;
    copy.wait_caught_up(topic, &kept.iter().map(|o| o.offsets.end).collect::<Vec<_>>())?;
    stage.load.call("delete", json!({ "topic": topic }))?;
    let says = |p: &Partition| p.state != "ACTIVE" && p.reason.to_lowercase().contains("deleted");
    copy.wait_until("the state to say that the topic was deleted", |all| {
        let mut mine = all.iter().filter(|p| p.topic == topic).peekable();
        mine.peek().is_some() && mine.all(says)
    })?;
    stage.load.produce(neighbour, some)?;
    stage.prove(&mut copy, &[neighbour], Gaps::None)?;
    stage.prove_stopped(&copy, &kept, Gaps::None)?;
    copy.launch()?;
    copy.wait_until("the state to say so again after a restart", |all| {
        all.iter().filter(|p| p.topic == topic).any(says)
    })?;
    copy.stop()?;
    stage.prove_stopped(&copy, &kept, Gaps::None).map(drop)
}

/// A topic deleted and created again under its name, with more records than before: seen while
/// running, and at a start. The copy of the old one is not touched.
pub fn topic_recreated_is_faulted(stage: &mut Stage) -> Outcome {
    let topics = ["again-running", "again-stopped"];
    let create = |stage: &Stage, topic: &str, records: u32| -> Outcome<Topic> {
        let created = stage.load.create(topic, 1, 3, &[])?;
        stage.load.produce(topic, json!({"records": records, "seed": records}))?;
        Ok(created)
    };
    let mut copy = Understudy::new("again", &stage.cluster, &["again-*"])?;
    let mut old = Vec::new();
    let mut kept = Vec::new();
    for topic in topics {
        old.push(create(stage, topic, 3_000)?);
        kept.extend(stage.originals(topic)?);
    }
    copy.launch()?;
    for topic in topics {
        copy.wait_caught_up(topic, &[3_000])?;
    }
    for (topic, old) in topics.into_iter().zip(old) {
        if topic == topics[1] {
            copy.stop()?;
        }
        stage.load.call("delete", json!({ "topic": topic }))?;
        let new = create(stage, topic, 9_000)?;
        if topic == topics[1] {
            copy.launch()?;
        }
        let names = |reason: &str, t: &Topic| reason.contains(&t.id) || reason.contains(&t.uuid);
        copy.wait_until(&format!("{topic} to be FAULTED with both ids"), |all| {
            all.iter().any(|p| {
                p.topic == topic
                    && p.state == "FAULTED"
                    && names(&p.reason, &old)
                    && names(&p.reason, &new)
            })
        })?;
    }
    copy.stop()?;
    stage.prove_stopped(&copy, &kept, Gaps::None).map(drop)
}

/// Paused under load: no socket to the source is open, no byte comes, not after a restart either.
pub fn pause_and_resume_under_load(stage: &mut Stage) -> Outcome {
    let topics = ["pause-one", "pause-two"];
    for topic in topics {
        stage.load.create(topic, 2, 3, &[])?;
    }
    let mut copy = Understudy::start("pause", &stage.cluster, &["pause-*"])?;
    for topic in topics {
        stage.load.begin(topic, json!({"partitions": 2, "records_per_second": 3_000}))?;
        stage.load.await_more(topic, 2_000)?;
    }
    let servers = stage.cluster.bootstrap_servers();
    let paused = |all: &[Partition]| !all.is_empty() && all.iter().all(|p| p.state == "PAUSED");
    copy.wait_until("records to come", |all| all.iter().all(|p| p.flushed > Some(0)))?;
    ensure(copy.sockets_to(&servers)? > 0, || "no socket is open to the source".into())?;
    for restart in [false, true] {
        copy.verb(&["pause", LINK])?;
        copy.verb(&["pause", LINK])?; // Twice is once.
        if restart {
            copy.stop()?;
            copy.launch()?;
        }
        let before = copy.wait_until("the link to be paused", paused)?;
        ensure(copy.sockets_to(&servers)? == 0, || "paused, and a socket is open".into())?;
        for topic in topics {
            stage.load.await_more(topic, 5_000)?;
        }
        let after = copy.status()?;
        let received = |all: &[Partition]| all.iter().map(|p| p.received).collect::<Vec<_>>();
        ensure(received(&before) == received(&after), || format!("{before:?}\n{after:?}"))?;
        ensure(copy.sockets_to(&servers)? == 0, || "paused, and a socket is open".into())?;
        copy.verb(&["resume", LINK])?;
        copy.wait_until("records to come again", |all| {
            before.iter().all(|b| {
                let same = |p: &&Partition| p.topic == b.topic && p.partition == b.partition;
                all.iter().find(same).is_some_and(|p| p.flushed > b.received)
            })
        })?;
    }
    copy.verb(&["pause", LINK, "--topics", topics[0]])?;
    copy.wait_until("one topic to be paused", |all| {
        all.iter().all(|p| (p.state == "PAUSED") == (p.topic == topics[0]))
    })?;
    for topic in topics {
        stage.load.await_more(topic, 2_000)?;
        stage.load.stop(topic)?;
    }
    copy.verb(&["resume", LINK, "--topics", topics[0]])?;
    stage.prove(&mut copy, &topics, Gaps::None).map(drop)
}

/// Cleanly stopped and started again, again and again, while records come.
pub fn restarted_under_load(stage: &mut Stage) -> Outcome {
    let topic = "restarted";
    stage.load.create(topic, 3, 3, &[("segment.bytes", "1048576")])?;
    stage
        .load
        .begin(topic, json!({"partitions": 3, "records_per_second": 5_000, "codec": "lz4"}))?;
    let mut copy = Understudy::start("restarted", &stage.cluster, &[topic])?;
    let mut reached = 0;
    for _ in 0..4 {
        stage.load.await_more(topic, 5_000)?;
        let now = copy.wait_until("records to come", |all| {
            !all.is_empty() && all.iter().all(|p| p.flushed > Some(reached))
        })?;
        copy.stop()?;
        for partition in now {
            let image = Image::read(&copy.partition_dir(topic, partition.partition))?;
            ensure(Some(image.end_offset()) >= partition.flushed, || {
                format!("{} is less than {partition:?}", image.end_offset())
            })?;
            reached = reached.max(image.end_offset());
        }
        copy.launch()?;
    }
    stage.load.stop(topic)?;
    stage.prove(&mut copy, &[topic], Gaps::None).map(drop)
}

/// A whole cluster with all that the scenarios before left in it, and nothing internal.
pub fn everything_at_once(stage: &mut Stage) -> Outcome {
    let some = json!({"records": 1_000});
    stage.load.create("zz-last", 1, 3, &[])?;
    stage.load.produce("zz-last", some)?;
    let listed = stage.load.call("topics", json!({}))?;
    let names = listed["names"].as_array().into_iter().flatten();
    let topics: Vec<&str> = names.filter_map(serde_json::Value::as_str).collect();
    ensure(topics.contains(&"zz-last"), || format!("{topics:?}"))?;
    let mut copy = Understudy::start("everything", &stage.cluster, &["*"])?;
    let originals = stage.prove(&mut copy, &topics, Gaps::Allowed)?;
    let copied = tests::dump::partition_dirs(&copy.link_dir())?.len();
    ensure(copied == originals.len(), || format!("{copied} partitions of {}", originals.len()))
}
