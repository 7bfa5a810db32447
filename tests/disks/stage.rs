//! A source in this process, a node on a folder, and the comparison of the two.

use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use source::{Cluster, Config, Handle, TopicSpec, serve};
use tests::Outcome;
use tests::image::Image;
use tests::understudy::{Partition, Understudy};

/// A source of one broker that a test can take away and bring back.
pub struct Source {
    handle: Handle,
    topics: Vec<(String, i32)>,
}

impl Source {
    /// Starts it with these topics.
    pub fn start(topics: &[TopicSpec]) -> Outcome<Source> {
        let config = topics
            .iter()
            .fold(Config::loopback(1), |config, topic| config.with_topic(topic.clone()));
        let handle = serve(config).map_err(|e| e.to_string())?;
        let topics = topics.iter().map(|topic| (topic.name.clone(), topic.partitions)).collect();
        Ok(Source { handle, topics })
    }

    /// What moves it.
    pub fn cluster(&self) -> Cluster {
        self.handle.cluster()
    }

    /// Its address.
    pub fn bootstrap(&self) -> Vec<String> {
        self.handle.addresses().iter().map(ToString::to_string).collect()
    }

    /// Nobody answers at its address any more.
    pub fn leave(&self) -> Outcome {
        self.handle.stop_broker(0).map_err(|e| e.to_string())?;
        let address = self.handle.addresses()[0];
        ensure(TcpStream::connect(address).is_err(), || format!("{address} still answers"))
    }

    /// It is back.
    pub fn come_back(&self) -> Outcome {
        self.handle.start_broker(0).map_err(|e| e.to_string())
    }

    /// Nothing grows any more.
    pub fn freeze(&self) -> Outcome {
        for (topic, _) in &self.topics {
            self.cluster().freeze_growth(topic).map_err(|e| e.to_string())?;
        }
        Ok(())
    }

    /// Each partition's end.
    pub fn ends(&self, topic: &str) -> Outcome<Vec<i64>> {
        let count = self.topics.iter().find(|(name, _)| name == topic).map_or(0, |(_, n)| *n);
        let end = |partition| Ok(self.cluster().log(topic, partition)?.end_offset());
        (0..count).map(|p| end(p).map_err(|e: source::ControlError| e.to_string())).collect()
    }

    /// Every batch of one partition's copy against the source, byte by byte; its end offset. The
    /// node must not be writing.
    pub fn compare(&self, topic: &str, partition: i32, folder: &Path) -> Outcome<i64> {
        let image = Image::read(folder)?;
        let log = self.cluster().log(topic, partition).map_err(|e| e.to_string())?;
        let mut comparison = log.compare_from(0);
        for batch in &image.batches {
            let bytes = image.bytes_of(batch)?;
            comparison
                .feed(&bytes)
                .map_err(|e| format!("{topic}-{partition}, {}: {e}", image.place(batch)))?;
        }
        ensure(comparison.is_at_batch_end(), || format!("{topic}-{partition} ends in a batch"))?;
        ensure(comparison.offset() == image.end_offset() || image.batches.is_empty(), || {
            format!("{topic}-{partition}: {} compared, {}", comparison.offset(), image.end_offset())
        })?;
        Ok(image.end_offset())
    }

    /// Waits until the node has everything flushed, stops it, and compares everything.
    pub fn prove(&self, node: &mut Understudy) -> Outcome<u64> {
        self.freeze()?;
        for (topic, _) in &self.topics {
            node.wait_caught_up(topic, &self.ends(topic)?)?;
        }
        node.stop()?;
        self.prove_stopped(node)
    }

    /// Compares everything a stopped node has with everything there is; records compared.
    pub fn prove_stopped(&self, node: &Understudy) -> Outcome<u64> {
        let mut records = 0;
        for (topic, partitions) in &self.topics {
            let ends = self.ends(topic)?;
            for partition in 0..*partitions {
                let folder = node.partition_dir(topic, partition as usize);
                let end = self.compare(topic, partition, &folder)?;
                let due = ends[partition as usize];
                ensure(end == due, || format!("{topic}-{partition} ends at {end}, not at {due}"))?;
                records += end.unsigned_abs();
            }
        }
        Ok(records)
    }

    /// Whether every batch that a running or stopped node has is the source's, and nothing that
    /// was told as flushed is missing.
    pub fn holds(&self, node: &Understudy, told: &[Partition]) -> Outcome {
        for partition in told {
            let folder = node.partition_dir(&partition.topic, partition.partition);
            let flushed = partition.flushed.unwrap_or(0);
            if flushed == 0 && !folder.exists() {
                continue;
            }
            let end = self.compare(&partition.topic, partition.partition as i32, &folder)?;
            ensure(end >= flushed, || {
                format!("told to be flushed: {partition:?}; the copy ends at {end}")
            })?;
        }
        Ok(())
    }
}

/// Numbers from a seed, which is printed; `UNDERSTUDY_SEED` repeats one.
pub fn seeded() -> impl FnMut() -> u64 {
    let given = std::env::var("UNDERSTUDY_SEED").ok().and_then(|n| n.parse().ok());
    let mut state: u64 = given.unwrap_or_else(|| u64::from(std::process::id()));
    eprintln!("  UNDERSTUDY_SEED={state}");
    move || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    }
}

/// An error unless it is so.
pub fn ensure(so: bool, otherwise: impl FnOnce() -> String) -> Outcome {
    if so { Ok(()) } else { Err(otherwise()) }
}

/// Sleeps for less than this many milliseconds, drawn by lot.
pub fn pause(random: &mut impl FnMut() -> u64, below_ms: u64) {
    std::thread::sleep(Duration::from_millis(random() % below_ms));
}

/// Seconds since then, for lines of output.
pub fn seconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64()
}
