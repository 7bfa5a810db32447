//! The proof at the end of every run: each byte on disk against what the source must have served.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use source::{Expected, TopicSpec};

use crate::Outcome;

const READ_BYTES: usize = 1 << 20;

/// Compares a link's logs, after a clean stop, with their topics. `ends` are the offsets the node
/// reported by topic and partition. Returns the bytes compared, all of them equal.
///
/// # Errors
/// At the first difference, naming partition, offset and byte.
pub fn compare(
    link_dir: &Path,
    topics: &[TopicSpec],
    ends: &HashMap<(String, i32), i64>,
) -> Outcome<u64> {
    let mut compared_bytes = 0;
    let mut buffer = vec![0; READ_BYTES];
    for topic in topics {
        let expected = Expected::new(topic)?;
        for partition in 0..topic.partitions {
            let name = format!("{}-{partition}", topic.name);
            let end = ends.get(&(topic.name.clone(), partition));
            let end = *end.ok_or_else(|| format!("{name}: the node did not report its end"))?;
            let log = expected.log(partition, end);
            let mut comparison = log.compare_from(topic.first_offset);
            let mut segments = Vec::new();
            for entry in fs::read_dir(link_dir.join(&name))? {
                let path = entry?.path();
                if path.extension().is_some_and(|extension| extension == "log") {
                    segments.push(path);
                }
            }
            segments.sort();
            for segment in segments {
                let mut file = File::open(&segment)?;
                loop {
                    let bytes = file.read(&mut buffer)?;
                    if bytes == 0 {
                        break;
                    }
                    let fed = comparison.feed(&buffer[..bytes]);
                    fed.map_err(|error| format!("{name}: {error}"))?;
                }
            }
            if !comparison.is_at_batch_end() || comparison.offset() != end {
                let found = comparison.offset();
                return Err(format!("{name} ends at {found}, the node reported {end}").into());
            }
            compared_bytes += comparison.compared_bytes();
        }
    }
    Ok(compared_bytes)
}
