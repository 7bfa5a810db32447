//! The metadata store's file: redb, one table, one transaction per commit.

use super::records::Change;
use super::store::{Backend, Pairs};
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};
use std::path::Path;

/// redb's cache would otherwise take up to a gigabyte.
const CACHE_BYTES: usize = 16 << 20;
/// Key and value of every record.
const RECORDS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("records");
/// What the records mean, in one row.
const SCHEMA: TableDefinition<'_, &str, u32> = TableDefinition::new("schema");
/// Raised whenever older code would misread what newer code writes.
const SCHEMA_VERSION: u32 = 1;

/// An open store. redb locks the file: a second process is refused.
pub struct Redb(Database);

impl Redb {
    /// Opens the store, or makes an empty one.
    ///
    /// # Errors
    /// When the file is damaged, locked, of another schema, or cannot be made; in words.
    pub fn open(path: &Path) -> Result<Redb, String> {
        let wrong = |error: &dyn std::fmt::Display| {
            format!("the metadata store {} cannot be opened: {error}", path.display())
        };
        let database = Database::builder().set_cache_size(CACHE_BYTES).create(path);
        let database = database.map_err(|error| wrong(&error))?;
        // The table exists from the start, so that reading never has to ask.
        let transaction = database.begin_write().map_err(|error| wrong(&error))?;
        transaction.open_table(RECORDS).map_err(|error| wrong(&error))?;
        {
            let mut schema = transaction.open_table(SCHEMA).map_err(|error| wrong(&error))?;
            let found = schema.get("version").map_err(|error| wrong(&error))?.map(|v| v.value());
            if let Some(other) = found.filter(|found| *found != SCHEMA_VERSION) {
                return Err(wrong(&format_args!(
                    "it has schema version {other}, this program knows {SCHEMA_VERSION}"
                )));
            }
            schema.insert("version", SCHEMA_VERSION).map_err(|error| wrong(&error))?;
        }
        transaction.commit().map_err(|error| wrong(&error))?;
        Ok(Redb(database))
    }

    fn read(&self) -> Result<Pairs, redb::Error> {
        let transaction = self.0.begin_read()?;
        let table = transaction.open_table(RECORDS)?;
        let mut pairs = Pairs::new();
        for entry in table.iter()? {
            let (key, value) = entry?;
            pairs.push((key.value().to_owned(), value.value().to_vec()));
        }
        Ok(pairs)
    }

    fn write(&self, changes: &[Change]) -> Result<(), redb::Error> {
        let mut transaction = self.0.begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
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

impl Backend for Redb {
    fn load(&mut self) -> Result<Pairs, String> {
        self.read().map_err(|error| error.to_string())
    }

    fn commit(&mut self, changes: &[Change]) -> Result<(), String> {
        self.write(changes).map_err(|error| error.to_string())
    }
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
        let mut store = Redb::open(&path).expect("a new store");
        assert_eq!(store.load(), Ok(Vec::new()));
        store.commit(&[set("link/a", "1"), set("link/b", "2")]).expect("commit");
        let gone = Change { key: "link/a".to_owned(), value: None };
        store.commit(&[gone, set("link/b", "3")]).expect("commit");
        assert!(Redb::open(&path).is_err(), "a second process is refused");
        drop(store);
        let mut store = Redb::open(&path).expect("the same store");
        assert_eq!(store.load(), Ok(vec![("link/b".to_owned(), b"3".to_vec())]));
    }

    #[test]
    fn another_schema_is_refused() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("metadata.redb");
        let store = Redb::open(&path).expect("a new store");
        let transaction = store.0.begin_write().expect("transaction");
        transaction.open_table(SCHEMA).expect("table").insert("version", 9).expect("row");
        transaction.commit().expect("commit");
        drop(store);
        let Err(error) = Redb::open(&path) else { panic!("written by other code") };
        assert!(error.contains("version 9"), "{error}");
    }

    #[test]
    fn a_garbled_file_is_an_error_with_its_path() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("metadata.redb");
        std::fs::write(&path, vec![7u8; 100_000]).expect("file");
        let Err(error) = Redb::open(&path) else { panic!("this is no store") };
        assert!(error.contains("metadata.redb"), "{error}");
    }
}
