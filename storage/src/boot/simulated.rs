//! The same on an executor's own file calls, for machines that exist only in a simulation.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::{
    BASE, Base, Boot, BootError, CHECKPOINT, Directory, Inner, Ledger, Merged, base_of,
    dead_folders, is_checkpoint, keep_found, merge_files, read_slot,
};
use crate::inventory::FoundPartition;
use crate::limits::CONTROL_FILE_BYTES_MAX;
use crate::names::{self, LogId, METADATA_FILE, OWN_FOLDER};
use crate::volume::is_full;

impl Boot {
    /// As [`Boot::prepare`], on this thread's executor and without a lock: a simulated machine has
    /// one process.
    pub async fn prepare_simulated(data_dirs: &[PathBuf]) -> Result<Boot, BootError> {
        let (mut found, mut partitions, mut count) = (Vec::new(), Vec::new(), 0);
        for (index, path) in data_dirs.iter().enumerate() {
            let io = |source| BootError::Io { path: path.clone(), source };
            ring::fs::create_dir_all(path.join(OWN_FOLDER)).await.map_err(io)?;
            let before = partitions.len();
            list(index, path, &mut partitions).await?;
            let here = &partitions[before..];
            let merged = read_checkpoints(path, !here.is_empty()).await?;
            let (mut entries, boot, lost) = merged;
            keep_found(&mut entries, lost, here.iter());
            count = count.max(boot);
            found.push((path.clone(), entries, lost));
        }
        count += 1;
        let mut directories = Vec::new();
        for (path, entries, lost) in found {
            let ledger = Ledger::new(&entries);
            let base = base_of(entries, count);
            let base = match write_base(&path, base.encode()).await {
                Ok(()) => Base::Written,
                Err(error) if is_full(&error) => Base::Missing(base),
                Err(source) => return Err(BootError::Io { path, source }),
            };
            let _ = remove_dead(&path).await;
            let base = Mutex::new(base);
            directories.push(Arc::new(Directory { path, boot: count, lost, ledger, base }));
        }
        partitions.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(Boot(Arc::new(Inner { count, directories, partitions, _locks: Vec::new() })))
    }
}

/// As `std::fs::remove_dir_all`, two levels deep.
async fn remove_dead(data_dir: &Path) -> io::Result<()> {
    let dead = dead_folders(data_dir);
    for folder in ring::fs::read_dir(&dead).await? {
        let folder = dead.join(folder.name);
        for entry in ring::fs::read_dir(&folder).await? {
            ring::fs::remove_file(folder.join(entry.name)).await?;
        }
        ring::fs::remove_dir(folder).await?;
    }
    Ok(())
}

async fn list(
    data_dir: usize,
    path: &Path,
    partitions: &mut Vec<FoundPartition>,
) -> Result<(), BootError> {
    for link in folders(path).await? {
        if link.starts_with('.') || names::check_name("link", &link).is_err() {
            continue;
        }
        for folder in folders(&path.join(&link)).await? {
            let Some((topic, partition)) = names::parse_folder(&folder) else { continue };
            let dir = path.join(&link).join(&folder);
            let id = LogId { link: link.as_str().into(), topic: topic.into(), partition };
            let text = ring::fs::read(dir.join(METADATA_FILE), CONTROL_FILE_BYTES_MAX).await.ok();
            let text = text.and_then(|bytes| String::from_utf8(bytes).ok());
            let topic_id = text.as_deref().and_then(names::parse_metadata);
            let io = |source| BootError::Io { path: dir.clone(), source };
            let files = ring::fs::read_dir(&dir).await.map_err(io)?;
            let bytes = files.iter().map(|file| file.len).sum();
            partitions.push(FoundPartition { id, topic_id, data_dir, dir, bytes });
        }
    }
    Ok(())
}

async fn folders(path: &Path) -> Result<Vec<String>, BootError> {
    let io = |source| BootError::Io { path: path.to_owned(), source };
    let entries = ring::fs::read_dir(path).await.map_err(io)?;
    let folders = entries.into_iter().filter(|entry| entry.is_dir);
    Ok(folders.filter_map(|entry| entry.name.into_string().ok()).collect())
}

async fn read_checkpoints(data_dir: &Path, has_partitions: bool) -> Result<Merged, BootError> {
    let own = data_dir.join(OWN_FOLDER);
    let io = |source| BootError::Io { path: own.clone(), source };
    let mut files = Vec::new();
    for entry in ring::fs::read_dir(&own).await.map_err(io)? {
        let name = entry.name.into_string().unwrap_or_default();
        if is_checkpoint(&name) {
            let bytes = ring::fs::read(own.join(&name), CONTROL_FILE_BYTES_MAX).await;
            files.push(read_slot(name, bytes));
        }
    }
    Ok(merge_files(files, has_partitions))
}

/// As its namesake, also for a shard that makes up for it later.
pub(super) async fn write_base(data_dir: &Path, bytes: Vec<u8>) -> io::Result<()> {
    let own = data_dir.join(OWN_FOLDER);
    ring::fs::replace(own.join(BASE), bytes).await?;
    for entry in ring::fs::read_dir(&own).await? {
        let name = entry.name.into_string().unwrap_or_default();
        if name.starts_with(CHECKPOINT) && name != BASE {
            ring::fs::remove_file(own.join(&name)).await?;
        }
    }
    Ok(())
}
