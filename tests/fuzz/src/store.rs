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

/// A store file that was changed at some places: where (three bytes), and to what (a run). The
/// first byte says whether it gets a checksum that fits. What was written is found, or damage is;
/// no more is allocated than the file's length allows for; and what opens can be written to.
pub fn store(bytes: &[u8]) {
    let folder = tempfile::tempdir_in(in_memory()).expect("a temporary folder");
    let path = folder.path().join("metadata.store");
    let mut file = STORE.clone();
    let mut input = Input::new(bytes);
    let is_forged = input.take::<1>()[0] & 1 == 1;
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
    if is_forged {
        forge(&mut file);
    }
    std::fs::write(&path, &file).expect("a file");
    let Ok(mut store) = memory::bounded(file.len(), || MetadataStore::open(&path)) else {
        assert_ne!(file, *STORE, "what was written is refused");
        return;
    };
    let mut pairs = store.load();
    assert!(is_forged || pairs == stored(), "{} records that were never stored", pairs.len());
    assert!(pairs.is_sorted_by(|one, other| one.0 < other.0));
    let last = Change { key: "\u{10ffff}".to_owned(), value: Some(vec![7]) };
    store.commit(std::slice::from_ref(&last)).expect("a commit");
    drop(store);
    pairs.retain(|(key, _)| *key != last.key);
    pairs.push((last.key, vec![7]));
    pairs.sort();
    assert_eq!(MetadataStore::open(&path).expect("the same store").load(), pairs);
}

/// Gives a file the checksum of what it says it has.
fn forge(file: &mut [u8]) {
    let Some(length) = file.get(24..32) else { return };
    let length = u64::from_le_bytes(length.try_into().expect("eight bytes"));
    let Some(end) = usize::try_from(length).ok().and_then(|bytes| bytes.checked_add(40)) else {
        return;
    };
    if let Some(body) = file.get(40..end) {
        let checksum = ::storage::crc::crc64(&[&file[..32], body]);
        file[32..40].copy_from_slice(&checksum.to_le_bytes());
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
    let path = folder.path().join("metadata.store");
    let mut store = MetadataStore::open(&path).expect("a new store");
    for (key, value) in stored() {
        store.commit(&[Change { key, value: Some(value) }]).expect("a commit");
    }
    drop(store);
    // Little of the room that is kept for more.
    let mut file = std::fs::read(&path).expect("the file");
    file.truncate(2048);
    file
});

/// In the order of their keys, in which they were committed.
fn stored() -> Vec<(String, Vec<u8>)> {
    crate::seeds::stored_pairs()
}
