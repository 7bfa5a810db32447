//! Data folders that were in use before. One that is empty now is a disk that is not mounted: the
//! copy would begin anew below its mount point, and a failover would end with nothing of what is on
//! the disk.
//!
//! The first folder needs no mark: the metadata store itself lies in it.

use super::BootError;
use crate::controller::records;
use crate::controller::store::Store;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use storage::names::OWN_FOLDER;

/// Says that a folder is in use.
const MARK: &str = "in-use";

/// Whether a folder has been in use, whatever the metadata store says.
pub fn is_marked(dir: &Path) -> bool {
    mark_of(dir).exists()
}

/// Holds the folders against those that were in use before, and marks new ones.
///
/// # Errors
/// When one that was in use is not marked any more.
pub async fn recognise(
    store: &Store,
    known: &BTreeSet<String>,
    dirs: &[PathBuf],
) -> Result<(), BootError> {
    let mut fresh = Vec::new();
    for dir in dirs.iter().skip(1) {
        let real = fs::canonicalize(dir).unwrap_or_else(|_| dir.clone());
        let name = real.to_string_lossy().into_owned();
        match (is_marked(dir), known.contains(&name)) {
            (true, true) => {}
            (false, true) => return Err(BootError::DataDirLost(dir.clone())),
            (marked, false) => match if marked { Ok(()) } else { mark(dir) } {
                Ok(()) => fresh.push(records::set_data_dir(&name)),
                Err(error) => {
                    tracing::warn!(%error, dir = %dir.display(), "the folder cannot be marked");
                }
            },
        }
    }
    // On a full disk the next start does it.
    if let Err(error) = store.commit(fresh).await {
        tracing::warn!(%error, "that a data folder is in use cannot be noted");
    }
    Ok(())
}

fn mark_of(dir: &Path) -> PathBuf {
    dir.join(OWN_FOLDER).join(MARK)
}

/// Durable before the store knows of it.
fn mark(dir: &Path) -> io::Result<()> {
    File::create(mark_of(dir))?.sync_all()?;
    File::open(dir.join(OWN_FOLDER))?.sync_all()?;
    File::open(dir)?.sync_all()
}
