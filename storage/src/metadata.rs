//! The metadata store: the small durable state of the node, whole in one file.
//!
//! Keys and values are the caller's. What must be atomic across links, topics and partitions is one
//! [`MetadataStore::commit`]: after any crash all of it is there or none.
//!
//! A commit writes the whole state anew (some MB at 10,000 topics, and commits are as rare as
//! orders and new topics) into a spare file, flushes it, and lets it change names with the current
//! one ([`snapshots`]). So the file that counts is never written to: no crash can tear it, and
//! whatever is wrong in it ([`image`]) is damage, which is told and never guessed around. The spare
//! has its room beforehand: a commit works on a full disk.
//!
//! Blocking: a commit waits for the device. It is called from a thread of its own, never from a
//! shard and never from the thread that answers the admin socket.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

mod folder;
mod image;
mod snapshots;
#[cfg(test)]
mod tests;

pub use image::Damage;

use folder::Directory;
use snapshots::Snapshots;

/// Keys and values.
pub type Pairs = Vec<(String, Vec<u8>)>;

/// One record to write or to remove.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Its key.
    pub key: String,
    /// Its value; `None` removes it.
    pub value: Option<Vec<u8>>,
}

/// Why the store cannot be used.
#[derive(Debug, Error)]
pub enum MetadataError {
    /// Its file or folder cannot be read or written.
    #[error("the metadata store {path} cannot be {what}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// Another process has it.
    #[error("the metadata store {0} is in use by another process")]
    Locked(PathBuf),
    /// The file is not as it was written.
    #[error("the metadata store {path} is damaged: {damage}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        damage: Damage,
    },
    /// Written by other code.
    #[error("the metadata store {path} has format {found}, this program knows format {known}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What it says.
        found: u32,
        /// What it should say.
        known: u32,
    },
    /// Only the database that earlier programs kept is there.
    #[error(
        "the metadata store {path} is not there, but {former}, which an earlier version of this \
         program wrote and this one cannot read: run that version, or begin with a new data \
         directory"
    )]
    Former {
        /// The file.
        path: PathBuf,
        /// What is there instead.
        former: PathBuf,
    },
    /// There was a store here, and its file is gone.
    #[error("the metadata store {0} is missing")]
    Missing(PathBuf),
    /// More than a store is made for.
    #[error("the metadata store {path} would have {bytes} bytes, more than {bytes_max}")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// All records together.
        bytes: u64,
        /// The limit.
        bytes_max: u64,
    },
    /// A commit failed in its last step, and so did taking it back.
    #[error(
        "the metadata store {0} takes no commit any more: of the last one, which failed, nobody \
         can say whether it would be found after a power loss; a restart decides it"
    )]
    Undecided(PathBuf),
}

/// An open store. Its folder is locked: a second process is refused.
pub struct MetadataStore(Snapshots<Directory>);

impl MetadataStore {
    /// Opens the store, or makes an empty one where there has never been one.
    ///
    /// # Errors
    /// When the file is damaged, in use, of another format, gone, or cannot be made.
    pub fn open(path: &Path) -> Result<MetadataStore, MetadataError> {
        MetadataStore::locked(path, Snapshots::open)
    }

    /// Opens the store that must be there, since what it tells of is.
    ///
    /// # Errors
    /// When the file is damaged, in use, of another format, or gone.
    pub fn open_existing(path: &Path) -> Result<MetadataStore, MetadataError> {
        MetadataStore::locked(path, Snapshots::open_existing)
    }

    fn locked(
        path: &Path,
        open: impl FnOnce(Directory, &Path) -> Result<Snapshots<Directory>, MetadataError>,
    ) -> Result<MetadataStore, MetadataError> {
        let folder = path.parent().unwrap_or(Path::new("."));
        let directory = Directory::lock(folder).map_err(|error| match error {
            Some(source) => MetadataError::Io { path: path.to_owned(), what: "locked", source },
            None => MetadataError::Locked(path.to_owned()),
        })?;
        open(directory, path).map(MetadataStore)
    }

    /// Everything stored, in the order of the keys.
    pub fn load(&self) -> Pairs {
        let owned = |(key, value): (&str, &[u8])| (key.to_owned(), value.to_vec());
        self.0.image().records().map(owned).collect()
    }

    /// One durable transaction.
    ///
    /// # Errors
    /// When it did not become durable; then nothing of it counts.
    pub fn commit(&mut self, changes: &[Change]) -> Result<(), MetadataError> {
        self.0.commit(changes)
    }
}
