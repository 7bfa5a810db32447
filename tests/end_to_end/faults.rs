//! What breaks.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::compare::Equal;
use tests::dump::Gaps;
use tests::image::Image;
use tests::understudy::{LINK, Partition, Understudy};
use tests::{Outcome, install};

use crate::stage::{Stage, ensure};

/// After so many kills in a row it is stopped cleanly, and compared.
const KILLS_IN_A_ROW: usize = 10;

/// `kill -9` under load at random moments, at boot too: nothing that was reported flushed is lost,
/// no byte differs, no partition is in trouble. `UNDERSTUDY_KILLS` says how often.
pub fn killed_under_load(stage: &mut Stage) -> Outcome {
    let rounds = std::env::var("UNDERSTUDY_KILLS").ok().and_then(|n| n.parse().ok());
    let rounds: usize = rounds.unwrap_or(100);
    let topic = "killed";
    let load = json!({"partitions": 3, "records_per_second": 5_000, "codec": "zstd"});
    stage.load.create(topic, 3, 3, &[("segment.bytes", "1048576")])?;
    stage.load.begin(topic, load)?;
    let mut copy = Understudy::start("killed", &stage.cluster, &[topic])?;
    let mut random = seeded();
    let (mut starts, mut comparing) = (Vec::new(), Duration::ZERO);
    for round in 0..rounds {
        let told = copy.wait_until("three partitions", |all| all.len() == 3)?;
        std::thread::sleep(Duration::from_millis(random() % 700));
        let told = copy.status().unwrap_or(told);
        copy.kill();
        if round % 4 == 3 {
            copy.spawn()?;
            std::thread::sleep(Duration::from_millis(random() % 150));
            copy.kill();
        }
        let started = Instant::now();
        copy.launch()?;
        starts.push(started.elapsed());
        let back = copy.wait_until("all partitions to be there", |all| {
            all.len() == told.len() && all.iter().all(|p| p.flushed.is_some())
        })?;
        for partition in &told {
            let now = back.iter().find(|p| p.partition == partition.partition);
            ensure(now.is_some_and(|p| p.flushed >= partition.flushed), || {
                format!("round {round}: killed at {partition:?}, back at {now:?}")
            })?;
        }
        let trouble = back.iter().find(|p| matches!(p.state.as_str(), "FAULTED" | "CORRUPT"));
        ensure(trouble.is_none(), || format!("round {round}: back with {trouble:?}"))?;
        if (round + 1).is_multiple_of(KILLS_IN_A_ROW) {
            let begun = Instant::now();
            copy.stop()?;
            let so_far = equal_so_far(stage, &copy, topic)?;
            comparing += begun.elapsed();
            if (round + 1).is_multiple_of(100) {
                eprintln!("  round {}: {so_far:?}, {}", round + 1, spread(&mut starts));
            }
            copy.launch()?;
        }
    }
    stage.load.stop(topic)?;
    eprintln!("  {rounds} kills; {}; comparing took {comparing:?}", spread(&mut starts));
    stage.prove(&mut copy, &[topic], Gaps::None).map(drop)
}

/// What a stopped copy has of a topic that still grows is what the leaders have there.
fn equal_so_far(stage: &Stage, copy: &Understudy, topic: &str) -> Outcome<Equal> {
    let mut all = Equal::default();
    for (partition, leader) in stage.load.describe(topic)?.leaders.iter().enumerate() {
        let image = Image::read(&copy.partition_dir(topic, partition))?;
        let leader = leader.ok_or("a partition without a leader")?;
        let dir = stage.cluster.partition_dir(leader, topic, partition);
        // Its last batch may be half written just now.
        let original = tests::wait_for("the leader's log", Duration::from_secs(10), || {
            Ok(Image::read(&dir)
                .ok()
                .filter(|original| original.end_offset() >= image.end_offset()))
        })?;
        let equal = tests::compare::equal(&original, &image, 0..image.end_offset())?;
        all.batches += equal.batches;
        all.bytes += equal.bytes;
    }
    Ok(all)
}

/// How long starts took.
fn spread(starts: &mut [Duration]) -> String {
    starts.sort();
    let at = |part: usize| starts.get(starts.len() * part / 100).or(starts.last());
    let ms = |part: usize| at(part).map_or(0, Duration::as_millis);
    let (half, most, all) = (ms(50), ms(99), ms(100));
    format!("starts took {half} ms (median), {most} ms (99 of 100), {all} ms (the slowest)")
}

/// Numbers from a seed, which is printed; `UNDERSTUDY_SEED` repeats one.
fn seeded() -> impl FnMut() -> u64 {
    let given = std::env::var("UNDERSTUDY_SEED").ok().and_then(|n| n.parse().ok());
    let mut state: u64 = given.unwrap_or_else(|| u64::from(std::process::id()));
    eprintln!("  UNDERSTUDY_SEED={state}");
    move || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    }
}

/// Each broker in turn killed and started again while producers write: leaders move, epochs rise.
pub fn broker_killed_while_producing(stage: &mut Stage) -> Outcome {
    let topics = ["moving-idempotent", "moving-transactional"];
    for topic in topics {
        stage.load.create(topic, 3, 3, &[])?;
    }
    let mut copy = Understudy::start("moving", &stage.cluster, &["moving-*"])?;
    stage.load.begin(
        topics[0],
        json!({"partitions": 3, "records_per_second": 2_000, "idempotent": true}),
    )?;
    stage.load.begin(
        topics[1],
        json!({
            "partitions": 3, "records_per_second": 2_000, "transactional_id": "moving",
            "abort_percent": 30, "tolerant": true,
        }),
    )?;
    for id in stage.cluster.ids() {
        stage.load.await_more(topics[0], 4_000)?;
        stage.cluster.kill(id);
        stage.load.await_more(topics[0], 8_000)?;
        stage.cluster.restart(id)?;
        whole(stage, &topics)?;
    }
    let mut told = Value::Null;
    for topic in topics {
        told = stage.load.stop(topic)?;
    }
    let both = told["committed"].as_u64() > Some(20) && told["aborted"].as_u64() > Some(10);
    ensure(both, || format!("few transactions ended: {told}"))?;
    whole(stage, &topics)?;
    let originals = stage.prove(&mut copy, &topics, Gaps::None)?;
    let epochs = originals.iter().map(|o| {
        let first = o.image.batches.first().map(|b| b.leader_epoch);
        let last = o.image.batches.last().map(|b| b.leader_epoch);
        last > first
    });
    ensure(epochs.filter(|rose| *rose).count() > 2, || "the leaders have not moved".into())
}

/// Waits until all copies of these topics are in sync.
fn whole(stage: &Stage, topics: &[&str]) -> Outcome {
    tests::wait_for("all copies to be in sync", Duration::from_secs(90), || {
        for topic in topics {
            let Ok(described) = stage.load.describe(topic) else { return Ok(None) };
            let in_sync = described.in_sync.iter().zip(&described.replicas);
            if in_sync.into_iter().any(|(in_sync, all)| in_sync.len() != all.len()) {
                return Ok(None);
            }
        }
        Ok(Some(()))
    })
}

/// An unclean election loses records that we have: FAULTED with both offsets named; with the link's
/// leave to truncate, cut to exactly the common point, and equal again.
pub fn unclean_election(stage: &mut Stage) -> Outcome {
    let topic = "unclean";
    let request = json!({
        "topic": topic, "assignment": [[1, 2]],
        "configs": {"min.insync.replicas": "1", "unclean.leader.election.enable": "true"},
    });
    stage.load.call("create", request)?;
    let some =
        |records: u32, acks: &str| json!({"records": records, "acks": acks, "seed": records});
    stage.load.produce(topic, some(1_000, "all"))?;
    let mut copy = Understudy::start("unclean", &stage.cluster, &[topic])?;
    copy.wait_caught_up(topic, &[1_000])?;
    stage.cluster.kill(2);
    stage.load.produce(topic, some(1_500, "1"))?;
    copy.wait_caught_up(topic, &[2_500])?;
    stage.cluster.kill(1);
    stage.cluster.restart(2)?;
    // Elected of itself or by us: the topic allows it.
    tests::wait_for("the stale copy to lead", Duration::from_secs(60), || {
        let elect = json!({"topic": topic, "partition": 0, "unclean": true});
        let _ = stage.load.call("elect", elect);
        Ok(stage.load.describe(topic).is_ok_and(|t| t.leaders == [Some(2)]).then_some(()))
    })?;
    stage.load.produce(topic, some(700, "1"))?;
    stage.cluster.restart(1)?;
    whole(stage, &[topic])?;
    let originals = stage.originals(topic)?;
    ensure(originals[0].offsets.end == 1_700, || format!("{:?}", originals[0].offsets))?;

    let faulted = copy.wait_until("the divergence to be FAULTED", |all| {
        all.iter().any(|p| p.state == "FAULTED")
    })?;
    let reason = &faulted[0].reason;
    let named = |offset: &str| reason.replace([',', '_'], "").contains(offset);
    ensure(named("1000") && named("2500"), || format!("not both offsets: {reason}"))?;
    copy.stop()?;
    let image = Image::read(&copy.partition_dir(topic, 0))?;
    ensure(image.end_offset() == 2_500, || format!("cut to {}", image.end_offset()))?;

    copy.set("allow_truncation", "true")?;
    copy.launch()?;
    copy.verb(&["resume", LINK])?;
    stage.prove(&mut copy, &[topic], Gaps::None).map(drop)
}

/// Records gone from the source before they came to us: by policy the exact range is named and the
/// partition FAULTED, or the copy goes on behind the gap.
pub fn lost_before_it_came(stage: &mut Stage) -> Outcome {
    let topic = "lost";
    stage.load.create(topic, 1, 3, &[])?;
    let some = json!({"records": 1_000});
    stage.load.produce(topic, some.clone())?;
    let mut copy = Understudy::new("lost", &stage.cluster, &[topic])?;
    copy.set("on_source_gap", "\"fault\"")?;
    copy.launch()?;
    copy.wait_caught_up(topic, &[1_000])?;
    copy.stop()?;
    stage.load.produce(topic, some)?;
    stage.load.call("delete-records", json!({"topic": topic, "partition": 0, "before": 1_500}))?;
    copy.launch()?;
    let faulted =
        copy.wait_until("the gap to be FAULTED", |all| all.iter().any(|p| p.state == "FAULTED"))?;
    let reason = faulted[0].reason.replace([',', '_'], "");
    let last = reason.contains("1500") || reason.contains("1499");
    ensure(reason.contains("1000") && last, || format!("not the lost range: {reason}"))?;
    copy.stop()?;
    copy.set("on_source_gap", "\"continue\"")?;
    copy.launch()?;
    copy.verb(&["resume", LINK])?;
    stage.prove(&mut copy, &[topic], Gaps::Allowed).map(drop)
}

/// The source dies and does not come back: failed over in one verb, twice is once, and a restart
/// changes nothing. Then another cluster is found at the source's address: a live link refuses it.
pub fn failover_with_the_source_dead(stage: &mut Stage) -> Outcome {
    let mut source = Stage::of(&stage.installed, install::KAFKA_3, "dying", 1)?;
    let topics = ["fo-one", "fo-two"];
    for topic in topics {
        source.load.create(topic, 2, 1, &[])?;
        source.load.produce(topic, json!({"records": 4_000, "partitions": 2}))?;
    }
    let mut copy = Understudy::start("failover", &source.cluster, &["fo-*"])?;
    let mut originals = Vec::new();
    for topic in topics {
        originals.extend(source.originals(topic)?);
        copy.wait_caught_up(topic, &[2_000, 2_000])?;
    }
    source.cluster.kill(1);
    let over = |all: &[Partition]| all.len() == 4 && all.iter().all(|p| p.state == "FAILED_OVER");
    copy.verb(&["failover", LINK, "--all", "--dry-run"])?;
    ensure(!over(&copy.status()?), || "a dry run has failed over".into())?;
    for _ in 0..2 {
        copy.verb(&["failover", LINK, "--all"])?;
        copy.wait_until("the link to be failed over", over)?;
    }
    copy.stop()?;
    copy.launch()?;
    copy.wait_until("the link to be failed over still", over)?;
    copy.stop()?;
    stage.prove_stopped(&copy, &originals, Gaps::None).map(drop)
}

/// Another cluster answers at the source's addresses: refused, both ids named, nothing touched.
pub fn another_cluster_is_refused(stage: &mut Stage) -> Outcome {
    let topic = "elsewhere";
    let mine = Stage::of(&stage.installed, install::KAFKA_3, "other", 1)?;
    for (place, records) in [(&mine, 1_000), (&*stage, 3_000)] {
        let copies = place.cluster.ids().count();
        place.load.create(topic, 1, copies, &[])?;
        place.load.produce(topic, json!({"records": records, "seed": records}))?;
    }
    let mut copy = Understudy::start("elsewhere", &mine.cluster, &[topic])?;
    copy.wait_caught_up(topic, &[1_000])?;
    let originals = mine.originals(topic)?;
    copy.stop()?;
    copy.source(&stage.cluster)?;
    copy.launch()?;
    let mut ids = Vec::new();
    for place in [&mine, &*stage] {
        let told = place.load.call("brokers", json!({}))?;
        ids.push(told["cluster_id"].as_str().unwrap_or("none").to_owned());
    }
    tests::wait_for("both cluster ids to be named", Duration::from_secs(60), || {
        let said = copy.verb(&["status", "--json"])?;
        Ok(ids.iter().all(|id| said.contains(id)).then_some(()))
    })?;
    copy.stop()?;
    stage.prove_stopped(&copy, &originals, Gaps::None).map(drop)
}

/// Bits turned over in what is stored, after a clean stop: found unasked and fetched again; or,
/// when the source has deleted these records, kept and named.
pub fn flipped_bits_are_repaired(stage: &mut Stage) -> Outcome {
    let topic = "flipped";
    stage.load.create(topic, 2, 3, &[("retention.ms", "-1")])?;
    // A copy's segments span a week at most: three of them.
    for weeks in [8_u64, 4, 0] {
        let age_ms = weeks * 7 * 24 * 3_600_000;
        let some = json!({"records": 8_000, "partitions": 2, "age_ms": age_ms});
        stage.load.produce(topic, some)?;
    }
    let mut copy = Understudy::new("flipped", &stage.cluster, &[topic])?;
    let verify = "[shards]\nverify_rate = \"1GiB\"\nverify_every = \"1s\"";
    copy.configure(&copy.configuration()?.replace("[shards]", verify))?;
    copy.launch()?;
    stage.prove(&mut copy, &[topic], Gaps::None)?;
    let segments = segments(&copy.partition_dir(topic, 0))?;
    let [first, second, last] = &segments[..] else { return Err(format!("{segments:?}")) };
    flip(first, 100_000)?;
    flip(second, 5_000)?;
    flip(last, 700)?;
    copy.launch()?;
    let log = copy.log();
    let repaired = || {
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        said.matches("were fetched again and are whole").count() >= 3
    };
    copy.wait_until("three repairs", |all| all.iter().all(|p| p.state == "ACTIVE") && repaired())?;
    stage.prove(&mut copy, &[topic], Gaps::None)?;

    // Of the segment that stays, the records that go.
    flip(last, 700)?;
    let hurt = std::fs::read(last).map_err(|e| e.to_string())?;
    let request = json!({"topic": topic, "partition": 0, "before": 11_000});
    stage.load.call("delete-records", request)?;
    copy.launch()?;
    let named = copy.wait_until("the damage to be kept and named", |all| {
        all.iter().any(|p| p.state == "CORRUPT" && p.reason.contains("no longer has it"))
    })?;
    ensure(named.iter().any(|p| p.state == "ACTIVE"), || format!("the neighbour: {named:?}"))?;
    copy.stop()?;
    let after = std::fs::read(last).map_err(|e| e.to_string())?;
    ensure(after == hurt, || "what could not be repaired was changed".to_owned())
}

fn segments(folder: &Path) -> Outcome<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).map_err(|e| e.to_string())?;
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
    paths.sort();
    Ok(paths)
}

fn flip(path: &Path, at: u64) -> Outcome {
    let told = |e: std::io::Error| format!("{}: {e}", path.display());
    let file = File::options().read(true).write(true).open(path).map_err(told)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).map_err(told)?;
    file.write_all_at(&[byte[0] ^ 8], at).map_err(told)
}
