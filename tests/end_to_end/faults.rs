//! What breaks.

use serde_json::{Value, json};
use tests::Outcome;
use tests::dump::Gaps;
use tests::image::Image;
use tests::understudy::{LINK, Understudy};

use crate::stage::{Stage, ensure};

/// `kill -9` under load, again and again: nothing that was reported flushed is lost, no byte
/// differs.
pub fn killed_under_load(stage: &mut Stage) -> Outcome {
    let topic = "killed";
    stage.load.create(topic, 3, 3, &[("segment.bytes", "1048576")])?;
    stage
        .load
        .begin(topic, json!({"partitions": 3, "records_per_second": 5_000, "codec": "zstd"}))?;
    let mut copy = Understudy::start("killed", &stage.cluster, &[topic])?;
    let mut flushed = 0;
    for _ in 0..5 {
        stage.load.await_more(topic, 3_000)?;
        let told = copy.wait_until("records to come", |all| {
            !all.is_empty() && all.iter().all(|p| p.flushed > Some(flushed))
        })?;
        copy.kill();
        copy.launch()?;
        let back = copy.wait_until("all partitions to be there", |all| all.len() == told.len())?;
        for partition in &told {
            let now = back.iter().find(|p| p.partition == partition.partition);
            ensure(now.is_some_and(|p| p.flushed >= partition.flushed), || {
                format!("killed at {partition:?}, back at {now:?}")
            })?;
            flushed = flushed.max(partition.flushed.unwrap_or(0));
        }
    }
    stage.load.stop(topic)?;
    stage.prove(&mut copy, &[topic], Gaps::None).map(drop)
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
    tests::wait_for("all copies to be in sync", std::time::Duration::from_secs(90), || {
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
    tests::wait_for("the stale copy to lead", std::time::Duration::from_secs(60), || {
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
