//! The proof: every byte on disk against what the source must have served.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use source::{Expected, TopicSpec};

use super::DemoError;
use crate::controller::status::NodeView;

const READ_BYTES: usize = 1 << 20;

/// What was compared, all of it equal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Proof {
    /// Bytes of segments.
    pub bytes: u64,
    /// Record batches.
    pub batches: u64,
    /// Partitions.
    pub partitions: usize,
}

/// Compares all segments of a link, after a clean stop, with the topics' descriptions; and where
/// each ends with what the failover reported.
///
/// # Errors
/// At the first difference, naming partition, offset and byte.
pub fn compare(
    data_dir: &Path,
    link: &str,
    topics: &[TopicSpec],
    failed_over: &NodeView,
) -> Result<Proof, DemoError> {
    let mut proof = Proof::default();
    for topic in topics {
        let expected = Expected::new(topic)
            .map_err(|error| DemoError::Process(format!("topic {}: {error}", topic.name)))?;
        for partition in 0..topic.partitions {
            let end_offset = reported_end(failed_over, link, &topic.name, partition)?;
            let name = format!("{}-{partition}", topic.name);
            let different = |what: String| DemoError::Different(format!("{name}: {what}"));
            let log = expected.log(partition, end_offset);
            let mut comparison = log.compare_from(topic.first_offset);
            let folder = data_dir.join(link).join(&name);
            for segment in segments(&folder).map_err(io(&folder))? {
                let mut file = File::open(&segment).map_err(io(&segment))?;
                let mut buffer = vec![0; READ_BYTES];
                loop {
                    let bytes = file.read(&mut buffer).map_err(io(&segment))?;
                    if bytes == 0 {
                        break;
                    }
                    let compared = comparison.feed(&buffer[..bytes]);
                    compared.map_err(|error| different(error.to_string()))?;
                }
            }
            if !comparison.is_at_batch_end() || comparison.offset() != end_offset {
                let ends = comparison.offset();
                let what = format!("ends at offset {ends}, the failover reported {end_offset}");
                return Err(different(what));
            }
            proof.bytes += comparison.compared_bytes();
            let below_end = log.batches_from(topic.first_offset);
            proof.batches += below_end.take_while(|b| b.base_offset < end_offset).count() as u64;
            proof.partitions += 1;
        }
    }
    Ok(proof)
}

fn reported_end(
    view: &NodeView,
    link: &str,
    topic: &str,
    partition: i32,
) -> Result<i64, DemoError> {
    let links = view.links.iter().filter(|l| l.name == link);
    let mut topics = links.flat_map(|l| l.topics.iter().flatten());
    let found = topics.find(|t| t.name == topic);
    let end = found.and_then(|t| t.ends.iter().find(|end| end.partition == partition));
    end.and_then(|end| end.end_offset).ok_or_else(|| {
        DemoError::Process(format!("the failover reported no end of {topic}-{partition}"))
    })
}

/// The segment files, in order of their base offsets: their names are as long as each other.
fn segments(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut segments = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "log") {
            segments.push(path);
        }
    }
    segments.sort();
    Ok(segments)
}

fn io(path: &Path) -> impl Fn(io::Error) -> DemoError {
    let doing = path.display().to_string();
    move |source| DemoError::Io { doing: doing.clone(), source }
}
