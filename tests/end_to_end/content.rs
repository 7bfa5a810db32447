//! What may stand in a log.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tests::compare::equal;
use tests::dump::{self, Gaps};
use tests::image::{Batch, Image};
use tests::understudy::{LINK, Understudy};
use tests::{Outcome, install, wait_for};

use crate::stage::{Original, Stage, ensure};

/// The measure itself: replicas of Kafka's own are equal and accepted, damaged ones are not.
pub fn kafka_agrees_with_itself(stage: &mut Stage) -> Outcome {
    let topic = "itself";
    let created = stage.load.create(topic, 2, 3, &[("segment.bytes", "1048576")])?;
    stage.load.produce(topic, json!({"records": 20_000, "partitions": 2, "codec": "lz4"}))?;
    for original in stage.originals(topic)? {
        ensure(original.image.segments() > 1, || "no segment was rolled".into())?;
        let batches = original.image.batches.len();
        for node in &created.replicas[original.partition] {
            let dir = stage.cluster.partition_dir(*node, topic, original.partition);
            let found = wait_for("a replica to be whole", Duration::from_secs(20), || {
                let image = Image::read(&dir)?;
                Ok((image.end_offset() == original.offsets.end).then_some(image))
            })?;
            let same = equal(&original.image, &found, 0..i64::MAX)?;
            ensure(same.batches == batches, || format!("{same:?} of {batches}"))?;
        }
    }
    let node = 3;
    stage.cluster.stop(node)?;
    let dir = stage.cluster.partition_dir(node, topic, 0);
    let judged = judge_damage(stage, &dir);
    stage.cluster.restart(node)?;
    judged
}

/// Kafka's tool accepts a stopped broker's files, and none of them with one bit changed.
fn judge_damage(stage: &Stage, dir: &Path) -> Outcome {
    let image = Image::read(dir)?;
    let accepted = dump::check(&stage.installed, &[dir.to_owned()], Gaps::None)?;
    ensure(accepted.batches == image.batches.len(), || format!("{accepted:?}"))?;
    // In the records of a batch, in an index's second position, in a time index's second timestamp.
    for (file, at) in [("log", 1_000), ("index", 14), ("timeindex", 18)] {
        let name = format!("{:020}.{file}", image.first_offset().unwrap_or(0));
        let told = |e: std::io::Error| format!("{name}: {e}");
        let good = fs::read(dir.join(&name)).map_err(told)?;
        let mut bad = good.clone();
        bad[at] ^= 1;
        fs::write(dir.join(&name), &bad).map_err(told)?;
        let judged = dump::check(&stage.installed, &[dir.to_owned()], Gaps::None);
        fs::write(dir.join(&name), &good).map_err(told)?;
        ensure(judged.is_err(), || format!("{name} was accepted with byte {at} changed"))?;
    }
    Ok(())
}

/// Plain and four codecs, with headers, null keys and null values; segments that roll at the
/// source.
pub fn codecs_headers_and_nulls(stage: &mut Stage) -> Outcome {
    let codecs = ["none", "gzip", "snappy", "lz4", "zstd"];
    let topics: Vec<String> = codecs.iter().map(|codec| format!("codec-{codec}")).collect();
    write_codecs(stage, &codecs, &topics)?;
    let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
    let mut copy = Understudy::start("codecs", &stage.cluster, &["codec-*"])?;
    let originals = stage.prove(&mut copy, &topics, Gaps::None)?;
    for original in &originals {
        let codec = codecs.iter().position(|c| original.topic.ends_with(c)).unwrap_or(9) as i16;
        all_are(original, "of its codec", |b| b.codec() == codec)?;
    }
    Ok(())
}

fn write_codecs(stage: &Stage, codecs: &[&str], topics: &[String]) -> Outcome {
    let copies = stage.cluster.ids().count();
    for (codec, topic) in codecs.iter().zip(topics) {
        stage.load.create(topic, 3, copies, &[("segment.bytes", "1048576")])?;
        let many = json!({
            "records": 30_000, "partitions": 3, "codec": codec, "headers": true, "nulls": true,
        });
        stage.load.produce(topic, many)?;
        let told =
            stage.load.call("count", json!({"topic": topic, "isolation": "read_uncommitted"}))?;
        ensure(told["records"] == 30_000, || format!("{topic}: {told}"))?;
        for what in ["null_keys", "null_values", "with_headers"] {
            ensure(told[what].as_u64() > Some(1000), || format!("{topic}: {what} in {told}"))?;
        }
    }
    Ok(())
}

/// Idempotent and transactional producers, three of ten transactions aborted, one left open.
pub fn idempotent_and_transactional(stage: &mut Stage) -> Outcome {
    let topics = ["txn-idempotent", "txn-aborts", "txn-open"];
    let mut copy = Understudy::new("txn", &stage.cluster, &["txn-*"])?;
    write_transactions(stage, &topics)?;
    copy.launch()?;
    let originals = stage.prove(&mut copy, &topics, Gaps::None)?;
    for original in &originals {
        all_are(original, "from a producer with an id", |b| b.producer_id >= 0)?;
        let markers = original.image.count(Batch::control);
        ensure(markers > 0 || original.topic == topics[0], || {
            format!("{}-{} has no markers", original.topic, original.partition)
        })?;
    }
    let finish = |id: &str| json!({"transactional_id": id, "commit": true});
    stage.load.call("finish", finish("left-open"))?;
    // And on from there: the marker of the open transaction comes to a copy that was stopped before
    // it.
    copy.launch()?;
    stage.prove(&mut copy, &topics, Gaps::None).map(drop)
}

fn write_transactions(stage: &Stage, topics: &[&str; 3]) -> Outcome {
    let copies = stage.cluster.ids().count();
    for topic in topics {
        stage.load.create(topic, 2, copies, &[("segment.bytes", "1048576")])?;
    }
    stage.load.produce(
        topics[0],
        json!({"records": 20_000, "partitions": 2, "idempotent": true, "codec": "lz4"}),
    )?;
    let done = stage.load.produce(
        topics[1],
        json!({
            "records": 20_000, "partitions": 2, "transactional_id": "aborting",
            "records_per_transaction": 100, "abort_percent": 30,
        }),
    )?;
    ensure(done["aborted"] == 60 && done["committed"] == 140, || format!("{done}"))?;
    let count = |isolation: &str| -> Outcome<Value> {
        let asked = json!({"topic": topics[1], "isolation": isolation});
        stage.load.call("count", asked).map(|mut told| told["records"].take())
    };
    let (all, committed) = (count("read_uncommitted")?, count("read_committed")?);
    ensure(all == 20_000 && committed == 14_000, || format!("{committed} of {all} committed"))?;
    stage.load.produce(
        topics[2],
        json!({
            "records": 1_050, "partitions": 2, "transactional_id": "left-open",
            "records_per_transaction": 100, "leave_open": true,
        }),
    )?;
    Ok(())
}

/// A topic whose cleaner is eager.
const COMPACTED: &[(&str, &str)] = &[
    ("cleanup.policy", "compact"),
    ("segment.bytes", "1048576"),
    ("segment.ms", "5000"),
    ("min.cleanable.dirty.ratio", "0.01"),
];

/// Records whose keys come again and again.
fn some(seed: u32) -> Value {
    json!({
        "records": 25_000, "keys": 4_000, "value_bytes": 150, "nulls": false, "codec": "none",
        "batch_bytes": 4096, "seed": seed,
    })
}

/// A compacted topic, copied before its cleaner ran and again after it.
pub fn compacted_with_gaps(stage: &mut Stage) -> Outcome {
    let topic = "compacted";
    let waiting = "9000000000000000";
    let configs = [COMPACTED, &[("min.compaction.lag.ms", waiting)]].concat();
    stage.load.create(topic, 1, 3, &configs)?;
    stage.load.produce(topic, some(1))?;
    let mut before = Understudy::start("compacted-before", &stage.cluster, &[topic])?;
    let originals = stage.prove(&mut before, &[topic], Gaps::None)?;
    ensure(originals[0].image.gaps() == 0, || "cleaned too early".into())?;

    stage.load.call("alter", json!({"topic": topic, "configs": {"min.compaction.lag.ms": "0"}}))?;
    stage.load.produce(topic, some(2))?;
    let full = originals[0].image.bytes();
    wait_for("the cleaner to leave gaps", Duration::from_secs(90), || {
        let now = stage.originals(topic)?;
        let image = &now[0].image;
        let thinned = image.count(Batch::thinned);
        Ok((image.gaps() > 0 && thinned > 10 && image.bytes() < full * 2).then_some(()))
    })?;
    stage
        .load
        .call("alter", json!({"topic": topic, "configs": {"min.compaction.lag.ms": waiting}}))?;
    settled(stage, topic)?;
    let mut after = Understudy::start("compacted-after", &stage.cluster, &[topic])?;
    let originals = stage.prove(&mut after, &[topic], Gaps::Allowed)?;
    let image = &originals[0].image;
    ensure(image.gaps() > 0, || "no gaps".into())?;
    eprintln!("  {} gaps, {} thinned batches", image.gaps(), image.count(Batch::thinned));
    Ok(())
}

/// Waits until the cleaner of the topic's leader, which may no longer touch it, has done with it:
/// it has one thread, and that has cleaned another topic which is younger than the prohibition.
fn settled(stage: &Stage, topic: &str) -> Outcome {
    let other = format!("{topic}-other");
    let configs = [COMPACTED, &[("min.compaction.lag.ms", "0")]].concat();
    stage.load.create(&other, 1, 3, &configs)?;
    let leader = stage.load.describe(topic)?.leaders[0].ok_or("a partition without a leader")?;
    let dir = stage.cluster.partition_dir(leader, &other, 0);
    let mut seed = 0;
    wait_for("the cleaner to come round", Duration::from_secs(90), || {
        // More of it, so that what was there can be rolled and cleaned.
        stage.load.produce(&other, some(seed))?;
        seed += 1;
        Ok(Image::read(&dir).is_ok_and(|image| image.gaps() > 0).then_some(()))
    })
}

/// Records larger than most buffers, plain and compressed, between small ones.
pub fn records_of_two_mebibytes(stage: &mut Stage) -> Outcome {
    let topics = ["large-plain", "large-zstd"];
    for (topic, codec) in topics.into_iter().zip(["none", "zstd"]) {
        stage.load.create(topic, 2, 3, &[("max.message.bytes", "4194304")])?;
        for round in 0..3 {
            let large = json!({
                "records": 6, "partitions": 2, "value_bytes": 2_097_152, "same_size": true,
                "codec": codec, "batch_bytes": 3_000_000, "seed": round,
            });
            stage.load.produce(topic, large)?;
            stage.load.produce(topic, json!({"records": 100, "partitions": 2, "codec": codec}))?;
        }
    }
    let mut copy = Understudy::start("large", &stage.cluster, &["large-*"])?;
    let originals = stage.prove(&mut copy, &topics, Gaps::None)?;
    let large = originals.iter().map(|o| o.image.count(|b| b.length >= 2 << 20)).sum::<usize>();
    ensure(large >= 18, || format!("only {large} batches of 2 MiB"))
}

/// Both timestamp types, and a change from one to the other.
pub fn create_time_and_log_append_time(stage: &mut Stage) -> Outcome {
    let topics = ["time-create", "time-append", "time-both"];
    let append = ("message.timestamp.type", "LogAppendTime");
    stage.load.create(topics[0], 1, 3, &[])?;
    stage.load.create(topics[1], 1, 3, &[append])?;
    stage.load.create(topics[2], 1, 3, &[])?;
    let some = json!({"records": 3_000, "codec": "snappy"});
    for topic in topics {
        stage.load.produce(topic, some.clone())?;
    }
    stage.load.call("alter", json!({"topic": topics[2], "configs": {append.0: append.1}}))?;
    stage.load.produce(topics[2], some)?;
    let told =
        stage.load.call("count", json!({"topic": topics[1], "isolation": "read_uncommitted"}))?;
    ensure(told["timestamp_types"] == json!(["LogAppendTime"]), || format!("{told}"))?;
    let mut copy = Understudy::start("time", &stage.cluster, &["time-*"])?;
    let originals = stage.prove(&mut copy, &topics, Gaps::None)?;
    all_are(&originals[0], "of CreateTime", |b| !b.append_time())?;
    all_are(&originals[1], "of LogAppendTime", Batch::append_time)?;
    let both = originals[2].image.count(Batch::append_time);
    ensure(both > 0 && both < originals[2].image.batches.len(), || "not of both kinds".into())
}

/// The last Kafka before 4 as source: codecs, transactions, and all of it by its own protocol
/// versions.
pub fn kafka_before_four(stage: &mut Stage) -> Outcome {
    let old = Stage::of(&stage.installed, install::KAFKA_3, "kafka3", 1)?;
    let codecs = ["none", "zstd"];
    let topics = codecs.map(|codec| format!("old-{codec}"));
    write_codecs(&old, &codecs, &topics)?;
    let transactions = ["old-idempotent", "old-aborts", "old-open"];
    write_transactions(&old, &transactions)?;
    let mut all: Vec<&str> = topics.iter().map(String::as_str).collect();
    all.extend(transactions);
    let mut copy = Understudy::start("kafka3", &old.cluster, &["old-*"])?;
    old.prove(&mut copy, &all, Gaps::None).map(drop)
}

/// The oldest Kafka that may be a source, without topic ids: records, transactions, and a failover
/// when it has died.
pub fn kafka_two_point_one(stage: &mut Stage) -> Outcome {
    let mut old = Stage::of(&stage.installed, install::KAFKA_2, "kafka2", 1)?;
    let codecs = ["zstd"];
    let topics = codecs.map(|codec| format!("oldest-{codec}"));
    write_codecs(&old, &codecs, &topics)?;
    let transactions = ["oldest-idempotent", "oldest-aborts", "oldest-open"];
    write_transactions(&old, &transactions)?;
    let mut copy = Understudy::start("kafka2", &old.cluster, &["oldest-*"])?;
    let mut originals = Vec::new();
    for topic in topics.iter().map(String::as_str).chain(transactions) {
        let these = old.originals(topic)?;
        let ends: Vec<i64> = these.iter().map(|o| o.offsets.end).collect();
        copy.wait_caught_up(topic, &ends)?;
        originals.extend(these);
    }
    originals.extend(recreated_without_ids(&old, &mut copy)?);
    old.cluster.kill(1);
    copy.verb(&["failover", LINK, "--all"])?;
    copy.wait_until("the link to be failed over", |all| {
        all.len() == originals.len() && all.iter().all(|p| p.state == "FAILED_OVER")
    })?;
    copy.stop()?;
    stage.prove_stopped(&copy, &originals, Gaps::None).map(drop)
}

/// Topics deleted and made anew with more records than before, where only the records can tell:
/// once while the copy runs, once while it does not. What was copied of them before.
fn recreated_without_ids(old: &Stage, copy: &mut Understudy) -> Outcome<Vec<Original>> {
    let topics = ["oldest-again-running", "oldest-again-stopped"];
    let create = |topic: &str, records: u32| -> Outcome {
        // A broker of then deletes behind its answer: the name stays taken for a while.
        wait_for("the name to be free", Duration::from_secs(60), || {
            Ok(old.load.create(topic, 1, 1, &[]).ok())
        })?;
        old.load.produce(topic, json!({"records": records, "seed": records}))?;
        Ok(())
    };
    let mut kept = Vec::new();
    for topic in topics {
        create(topic, 3_000)?;
        kept.extend(old.originals(topic)?);
    }
    for topic in topics {
        copy.wait_caught_up(topic, &[3_000])?;
    }
    for topic in topics {
        if topic == topics[1] {
            copy.stop()?;
        }
        old.load.call("delete", json!({ "topic": topic }))?;
        create(topic, 9_000)?;
        if topic == topics[1] {
            copy.launch()?;
        }
        copy.wait_until(&format!("{topic} to be FAULTED as another log"), |all| {
            all.iter()
                .any(|p| p.topic == topic && p.state == "FAULTED" && p.reason.contains("recreated"))
        })?;
    }
    Ok(kept)
}

fn all_are(original: &Original, what: &str, such: impl Fn(&Batch) -> bool) -> Outcome {
    let all = original.image.batches.len();
    let such = original.image.count(such);
    ensure(all > 0 && such == all, || {
        format!("{}-{}: {such} of {all} batches are {what}", original.topic, original.partition)
    })
}
