//! Which partitions lie in the data directories. Blocking; called before the shards start.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;

use crate::names::{self, LogId, METADATA_FILE};

/// A partition found on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundPartition {
    /// Link, topic, partition.
    pub id: LogId,
    /// The topic id in `partition.metadata`, if there is one.
    pub topic_id: Option<[u8; 16]>,
    /// Index of the data directory.
    pub data_dir: usize,
    /// The partition's folder.
    pub dir: PathBuf,
    /// Bytes of all its files.
    pub bytes: u64,
}

/// Why the listing failed.
#[derive(Debug, Error)]
pub enum InventoryError {
    /// A folder could not be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The folder or file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The same partition in two data directories: which one is the log?
    #[error("{id} lies in two data directories, {first} and {second}; move one away")]
    Twice {
        /// The partition.
        id: LogId,
        /// One place.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
}

/// Lists every `<data>/<link>/<topic>-<partition>/`, sorted by id. What has other names is not ours
/// and is left alone.
pub fn inventory(data_dirs: &[PathBuf]) -> Result<Vec<FoundPartition>, InventoryError> {
    let mut all = Vec::new();
    for (data_dir, path) in data_dirs.iter().enumerate() {
        for link in folders(path)? {
            let (Some(name), link) = (file_name(&link), &link) else { continue };
            if name.starts_with('.') || names::check_name("link", name).is_err() {
                continue;
            }
            let name: Arc<str> = name.into();
            for folder in folders(link)? {
                let parsed = file_name(&folder).and_then(names::parse_folder);
                let Some((topic, partition)) = parsed else { continue };
                let id = LogId { link: Arc::clone(&name), topic: topic.into(), partition };
                all.push(found(id, data_dir, folder)?);
            }
        }
    }
    all.sort_by(|a, b| a.id.cmp(&b.id));
    for pair in all.windows(2) {
        if pair[0].id == pair[1].id {
            return Err(InventoryError::Twice {
                id: pair[0].id.clone(),
                first: pair[0].dir.clone(),
                second: pair[1].dir.clone(),
            });
        }
    }
    Ok(all)
}

fn found(id: LogId, data_dir: usize, dir: PathBuf) -> Result<FoundPartition, InventoryError> {
    let mut bytes = 0;
    for file in fs::read_dir(&dir).map_err(|source| io_error(&dir, source))? {
        let length = file.and_then(|file| file.metadata()).map(|metadata| metadata.len());
        bytes += length.map_err(|source| io_error(&dir, source))?;
    }
    let metadata = fs::read_to_string(dir.join(METADATA_FILE)).ok();
    let topic_id = metadata.as_deref().and_then(names::parse_metadata);
    Ok(FoundPartition { id, topic_id, data_dir, dir, bytes })
}

fn folders(path: &Path) -> Result<Vec<PathBuf>, InventoryError> {
    let mut folders = Vec::new();
    for entry in fs::read_dir(path).map_err(|source| io_error(path, source))? {
        let entry = entry.map_err(|source| io_error(path, source))?;
        if entry.file_type().map_err(|source| io_error(path, source))?.is_dir() {
            folders.push(entry.path());
        }
    }
    Ok(folders)
}

fn file_name(path: &Path) -> Option<&str> {
    path.file_name()?.to_str()
}

fn io_error(path: &Path, source: io::Error) -> InventoryError {
    InventoryError::Io { path: path.to_owned(), source }
}
