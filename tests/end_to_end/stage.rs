//! What the scenarios share: the cluster, its client, and the act they all end with.

use std::time::Duration;

use serde_json::json;
use tests::compare::{Equal, equal};
use tests::dump::{self, Gaps};
use tests::image::Image;
use tests::install::{self, Installed};
use tests::kafka::Cluster;
use tests::load::Load;
use tests::understudy::Understudy;
use tests::{Outcome, wait_for};

/// A cluster and a client of it.
pub struct Stage {
    pub installed: Installed,
    pub cluster: Cluster,
    pub load: Load,
}

/// One partition of the source as it stood at some moment.
pub struct Original {
    pub topic: String,
    pub partition: usize,
    /// First offset and high watermark, as the source gives them to a client.
    pub offsets: std::ops::Range<i64>,
    /// The leader's files.
    pub image: Image,
}

impl Stage {
    /// Three nodes of today's Kafka.
    pub fn set() -> Outcome<Stage> {
        let installed = install::install()?;
        // Built before brokers compete with the compiler for the cores.
        tests::understudy::binary()?;
        Stage::of(&installed, install::KAFKA, "kafka4", 3)
    }

    /// Any number of nodes of any version.
    pub fn of(
        installed: &Installed,
        version: &'static str,
        name: &str,
        nodes: usize,
    ) -> Outcome<Stage> {
        let cluster = Cluster::start(installed, version, name, nodes)?;
        let load = Load::start(installed, name, &cluster.bootstrap())?;
        let stage = Stage { installed: installed.clone(), cluster, load };
        wait_for("all brokers to be known", Duration::from_secs(60), || {
            let brokers = stage.load.call("brokers", json!({}))?;
            Ok((brokers["ids"].as_array().map(Vec::len) == Some(nodes)).then_some(()))
        })?;
        Ok(stage)
    }

    /// After a scenario that failed: no producer runs, every node does.
    pub fn tidy(&mut self) -> Outcome {
        self.cluster.heal()?;
        self.load.call("stop-all", json!({})).map(drop)
    }

    /// Reads the leader's files of every partition of a topic, once they hold all that clients may
    /// see.
    pub fn originals(&self, topic: &str) -> Outcome<Vec<Original>> {
        wait_for(&format!("leaders of {topic} to hold their end"), Duration::from_secs(60), || {
            let described = self.load.describe(topic)?;
            let offsets = self.load.offsets(topic)?;
            let mut originals = Vec::new();
            for (partition, (leader, offsets)) in described.leaders.iter().zip(offsets).enumerate()
            {
                let Some(leader) = leader else { return Ok(None) };
                let dir = self.cluster.partition_dir(*leader, topic, partition);
                // A cleaner may take a file away just now: then look again.
                let Ok(image) = Image::read(&dir) else { return Ok(None) };
                if image.end_offset() != offsets.end {
                    return Ok(None);
                }
                originals.push(Original { topic: topic.to_owned(), partition, offsets, image });
            }
            Ok(Some(originals))
        })
    }

    /// The act they end with: caught up, cleanly stopped, equal in every byte, accepted by Kafka's
    /// tool. Returns the originals.
    pub fn prove(
        &self,
        copy: &mut Understudy,
        topics: &[&str],
        gaps: Gaps,
    ) -> Outcome<Vec<Original>> {
        let mut originals = Vec::new();
        for topic in topics {
            let these = self.originals(topic)?;
            let ends: Vec<i64> = these.iter().map(|o| o.offsets.end).collect();
            copy.wait_caught_up(topic, &ends)?;
            originals.extend(these);
        }
        copy.stop()?;
        self.prove_stopped(copy, &originals, gaps)?;
        Ok(originals)
    }

    /// As [`Stage::prove`], of a process that has been stopped.
    pub fn prove_stopped(
        &self,
        copy: &Understudy,
        originals: &[Original],
        gaps: Gaps,
    ) -> Outcome<Equal> {
        let mut all = Equal::default();
        for original in originals {
            let compared = prove_equal(copy, original)
                .map_err(|e| format!("{}-{}: {e}", original.topic, original.partition))?;
            all.batches += compared.batches;
            all.bytes += compared.bytes;
        }
        let dirs = dump::partition_dirs(&copy.link_dir())?;
        let accepted = dump::check(&self.installed, &dirs, gaps)?;
        eprintln!(
            "  {} partitions equal: {} batches, {} bytes; {} files accepted",
            originals.len(),
            all.batches,
            all.bytes,
            accepted.files
        );
        Ok(all)
    }
}

fn prove_equal(copy: &Understudy, original: &Original) -> Outcome<Equal> {
    let image = Image::read(&copy.partition_dir(&original.topic, original.partition))?;
    if image.zero_tail != 0 {
        return Err(format!("after a clean stop {} prepared bytes are left", image.zero_tail));
    }
    let end = original.offsets.end;
    if image.end_offset() != end {
        return Err(format!("the copy ends at {}, the source at {end}", image.end_offset()));
    }
    equal(&original.image, &image, original.offsets.start..i64::MAX)
}

/// Fails with these words unless it holds.
pub fn ensure(holds: bool, words: impl FnOnce() -> String) -> Outcome {
    if holds { Ok(()) } else { Err(words()) }
}
