//! The metadata store: the small durable state of the node, in one embedded database file (redb).
//!
//! Keys and values are the caller's. What must be atomic across links, topics and partitions is one
//! [`MetadataStore::commit`]: after any crash all of it is there or none.
//!
//! Blocking: a commit waits for the device. It is called from a thread of its own, never from a
//! shard and never from the thread that answers the admin socket.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};
use thiserror::Error;

/// redb's cache would otherwise take up to a gigabyte.
const CACHE_BYTES: usize = 16 << 20;
/// Key and value of every record.
const RECORDS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("records");
/// What the records mean, in one row.
const SCHEMA: TableDefinition<'_, &str, u32> = TableDefinition::new("schema");
/// Raised whenever older code would misread what newer code writes.
const SCHEMA_VERSION: u32 = 1;

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
    /// Damaged, locked by another process, or it cannot be made.
    #[error("the metadata store {path} cannot be used: {source}")]
    Database {
        /// The file.
        path: PathBuf,
        /// What the database says.
        source: redb::Error,
    },
    /// The database went astray in a garbled file.
    #[error("the metadata store {path} is damaged: {what}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What the database stumbled over.
        what: String,
    },
    /// Written by other code.
    #[error(
        "the metadata store {path} has schema version {found}, this program knows {SCHEMA_VERSION}"
    )]
    Schema {
        /// The file.
        path: PathBuf,
        /// What it says.
        found: u32,
    },
}

/// An open store. The file is locked: a second process is refused.
pub struct MetadataStore {
    database: Database,
    path: PathBuf,
}

impl MetadataStore {
    /// Opens the store, or makes an empty one.
    ///
    /// # Errors
    /// When the file is damaged, locked, of another schema, or cannot be made.
    pub fn open(path: &Path) -> Result<MetadataStore, MetadataError> {
        let path = path.to_owned();
        let wrong = |source: redb::Error| MetadataError::Database { path: path.clone(), source };
        // redb reads pages on trust and panics where a garbled one leads it: so every checksum is
        // verified before anything is read, and a panic on the way is damage like any other.
        let opened = catch_unwind(AssertUnwindSafe(|| open_verified(&path)));
        let opened = opened.map_err(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let what = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked");
            MetadataError::Damaged { path: path.clone(), what: what.to_owned() }
        })?;
        match opened.map_err(wrong)? {
            (database, SCHEMA_VERSION) => Ok(MetadataStore { database, path }),
            (_, found) => Err(MetadataError::Schema { path, found }),
        }
    }

    /// Everything stored, by key.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn load(&self) -> Result<Pairs, MetadataError> {
        self.read().map_err(|source| self.wrong(source))
    }

    /// One durable transaction.
    ///
    /// # Errors
    /// When it did not become durable; then nothing of it counts.
    pub fn commit(&self, changes: &[Change]) -> Result<(), MetadataError> {
        self.write(changes).map_err(|source| self.wrong(source))
    }

    fn wrong(&self, source: redb::Error) -> MetadataError {
        MetadataError::Database { path: self.path.clone(), source }
    }

    fn read(&self) -> Result<Pairs, redb::Error> {
        let transaction = self.database.begin_read()?;
        let table = transaction.open_table(RECORDS)?;
        let mut pairs = Pairs::new();
        for entry in table.iter()? {
            let (key, value) = entry?;
            pairs.push((key.value().to_owned(), value.value().to_vec()));
        }
        Ok(pairs)
    }

    fn write(&self, changes: &[Change]) -> Result<(), redb::Error> {
        let mut transaction = self.database.begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
        // Else a commit that rots later is taken for one that was torn, and silently taken back.
        transaction.set_two_phase_commit(true);
        {
            let mut table = transaction.open_table(RECORDS)?;
            for change in changes {
                match &change.value {
                    Some(value) => drop(table.insert(change.key.as_str(), value.as_slice())?),
                    None => drop(table.remove(change.key.as_str())?),
                }
            }
        }
        transaction.commit()?;
        Ok(())
    }
}

/// Opens the database, verifies every page in use, makes the tables; the schema version found.
fn open_verified(path: &Path) -> Result<(Database, u32), redb::Error> {
    let mut database = Database::builder().set_cache_size(CACHE_BYTES).create(path)?;
    if !database.check_integrity()? {
        tracing::warn!(path = %path.display(), "the metadata store was repaired");
    }
    let found = prepare(&database)?;
    Ok((database, found))
}

/// Makes the tables, so that reading never has to ask; the schema version found.
fn prepare(database: &Database) -> Result<u32, redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_two_phase_commit(true);
    transaction.open_table(RECORDS)?;
    let found = {
        let mut schema = transaction.open_table(SCHEMA)?;
        let found = schema.get("version")?.map(|version| version.value());
        if found.is_none() {
            schema.insert("version", SCHEMA_VERSION)?;
        }
        found.unwrap_or(SCHEMA_VERSION)
    };
    transaction.commit()?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(key: &str, value: &str) -> Change {
        Change { key: key.to_owned(), value: Some(value.as_bytes().to_vec()) }
    }

    #[test]
    fn what_is_committed_is_there_after_reopening() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("metadata.redb");
        let store = MetadataStore::open(&path).expect("a new store");
        assert_eq!(store.load().expect("empty"), Vec::new());
        store.commit(&[set("link/a", "1"), set("link/b", "2")]).expect("commit");
        let gone = Change { key: "link/a".to_owned(), value: None };
        store.commit(&[gone, set("link/b", "3")]).expect("commit");
        assert!(MetadataStore::open(&path).is_err(), "a second process is refused");
        drop(store);
        let store = MetadataStore::open(&path).expect("the same store");
        assert_eq!(store.load().expect("records"), [("link/b".to_owned(), b"3".to_vec())]);
    }

    #[test]
    fn another_schema_is_refused() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("metadata.redb");
        let store = MetadataStore::open(&path).expect("a new store");
        let transaction = store.database.begin_write().expect("transaction");
        transaction.open_table(SCHEMA).expect("table").insert("version", 9).expect("row");
        transaction.commit().expect("commit");
        drop(store);
        let Err(error) = MetadataStore::open(&path) else { panic!("written by other code") };
        assert!(error.to_string().contains("version 9"), "{error}");
    }

    #[test]
    fn a_garbled_page_is_damage_and_never_a_panic() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("metadata.redb");
        let store = MetadataStore::open(&path).expect("a new store");
        store.commit(&[set("link/a", "a value that can be found")]).expect("commit");
        drop(store);
        let whole = std::fs::read(&path).expect("the file");
        let value = b"a value that can be found";
        let mut damaged = 0;
        for at in (0..whole.len()).filter(|&at| whole[at..].starts_with(value)) {
            let mut garbled = whole.clone();
            garbled[at] ^= 1;
            std::fs::write(&path, &garbled).expect("garbled");
            damaged += usize::from(MetadataStore::open(&path).is_err());
        }
        assert_eq!(damaged, 1, "the page in use is verified");
        for page in (0..whole.len()).step_by(4096) {
            let mut garbled = whole.clone();
            garbled[page..page + 64].fill(b'x');
            std::fs::write(&path, &garbled).expect("garbled");
            // A page that nothing uses may be garbled without harm.
            if let Ok(store) = MetadataStore::open(&path) {
                assert_eq!(store.load().expect("records").len(), 1);
            }
        }
    }

    #[test]
    fn a_garbled_file_is_an_error_with_its_path() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("metadata.redb");
        std::fs::write(&path, vec![7u8; 100_000]).expect("file");
        let Err(error) = MetadataStore::open(&path) else { panic!("this is no store") };
        assert!(error.to_string().contains("metadata.redb"), "{error}");
    }
}
