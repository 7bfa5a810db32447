//! The metadata store: its records, and the file they lie in.

use crate::input::Input;
use crate::memory;
use ::appliance::controller::records;
use ::storage::metadata::{Change, MetadataStore};
use std::path::Path;

/// Pairs of key and value, each behind its length.
pub fn records(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut pairs = Vec::new();
    while !input.is_empty() {
        let key = String::from_utf8_lossy(input.run()).into_owned();
        pairs.push((key, input.run().to_vec()));
    }
    let count = pairs.len();
    let read = memory::bounded(bytes.len(), || records::decode(pairs));
    if let Ok(stored) = read {
        assert_eq!(stored.links.len() + stored.topics.len(), count);
        let links = stored.links.iter().map(|(name, link)| records::set_link(name, link));
        let topics =
            stored.topics.iter().map(|(link, name, topic)| records::set_topic(link, name, topic));
        let again = links.chain(topics).map(|change| (change.key, change.value.expect("a value")));
        let again = records::decode(again.collect()).expect("our own records");
        assert_eq!((again.links, again.topics), (stored.links, stored.topics));
    }
}

/// A store file that was changed at some places: where (three bytes), and to what (a run).
/// It opens or it does not; it never takes the process down.
pub fn store(bytes: &[u8]) {
    let folder = tempfile::tempdir_in(in_memory()).expect("a temporary folder");
    let path = folder.path().join("metadata.redb");
    let mut file = STORE.clone();
    let mut input = Input::new(bytes);
    while !input.is_empty() {
        let [high, middle, low] = input.take();
        let at = u32::from_be_bytes([0, high, middle, low]) as usize;
        let run = input.run();
        if at + run.len() <= file.len() {
            file[at..at + run.len()].copy_from_slice(run);
        } else if run.is_empty() {
            file.truncate(at);
        }
    }
    std::fs::write(&path, file).expect("a file");
    if let Ok(store) = MetadataStore::open(&path)
        && let Ok(pairs) = store.load()
    {
        // The commit before the last is whole, too: one byte of the file says which one counts.
        let stored = stored();
        let shorter = (0..=stored.len()).any(|count| pairs == stored[..count]);
        assert!(shorter, "{} records that were never stored", pairs.len());
    }
}

/// A file system that costs no disk.
fn in_memory() -> &'static Path {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { memory } else { Path::new("/tmp") }
}

/// A store with records in it.
static STORE: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(|| {
    let folder = tempfile::tempdir_in(in_memory()).expect("a temporary folder");
    let path = folder.path().join("metadata.redb");
    let store = MetadataStore::open(&path).expect("a new store");
    for (key, value) in stored() {
        store.commit(&[Change { key, value: Some(value) }]).expect("a commit");
    }
    drop(store);
    std::fs::read(&path).expect("the file")
});

/// In the order of their keys, in which they were committed.
fn stored() -> Vec<(String, Vec<u8>)> {
    crate::seeds::stored_pairs()
}
