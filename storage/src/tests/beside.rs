//! What lies beside the batches and cannot be told from those at the end alone: leader epochs, and
//! the producers at a segment's start. Lost or garbled they are made anew from all batches.

use super::*;
use crate::names::{EPOCHS_FILE, METADATA_FILE};
use crate::{index, names};

/// How a file is hurt.
pub type Hurt = fn(&Path);

pub const HURTS: [(&str, Hurt); 5] = [
    ("missing", |path| fs::remove_file(path).unwrap()),
    ("emptied", |path| fs::write(path, "").unwrap()),
    ("cut", |path| {
        let bytes = fs::read(path).unwrap();
        fs::write(path, &bytes[..bytes.len() - 3]).unwrap();
    }),
    ("a bit turned", |path| {
        let mut bytes = fs::read(path).unwrap();
        bytes[2] ^= 0x10;
        fs::write(path, bytes).unwrap();
    }),
    ("garbled", |path| {
        let bytes = fs::read(path).unwrap();
        fs::write(path, vec![0xa5; bytes.len()]).unwrap();
    }),
];

fn settings() -> LogSettings {
    LogSettings { segment_bytes: 5000, ..LogSettings::default() }
}

fn batch(base: i64) -> Vec<u8> {
    Shape { body: 900, epoch: (base / 7) as i32, ..Shape::at(base) }.bytes()
}

/// The first batch of a transaction; a segment's worth of others follows.
fn transaction(base: i64) -> Vec<u8> {
    let shape = Shape { producer: Some((42, 0, 0)), attributes: 0x10, epoch: 9, ..Shape::at(base) };
    shape.bytes()
}

/// Runs a test in a folder of its own for every way to hurt a file.
fn for_each_hurt(test: impl AsyncFn(PathBuf, &'static str, Hurt) + Copy + 'static) {
    for (name, hurt) in HURTS {
        let dir = disk();
        let path = dir.path().to_owned();
        run(async move { test(path, name, hurt).await });
    }
}

/// What was made anew is there: another start reads nothing.
async fn is_read_once(path: &Path, name: &str) {
    let store = store(path).await;
    let (_, recovered) = open(&store, settings()).await;
    assert_eq!(recovered.scanned_bytes, 0, "{name}: read again, and again");
    store.close().await;
}

#[test]
fn epochs_are_made_anew_from_all_batches() {
    for_each_hurt(async |path, name, hurt| {
        let store = store(&path).await;
        let (log, _) = open(&store, settings()).await;
        respond(&log, &(0..40).flat_map(batch).collect::<Vec<_>>(), 4000).unwrap();
        let epochs = log.inner.borrow().epochs.clone();
        assert_eq!(epochs.entries().len(), 6);
        store.close().await;
        drop((log, store));
        let file = id(0).folder(&path).join(EPOCHS_FILE);
        let text = fs::read(&file).unwrap();
        hurt(&file);
        let store = self::store(&path).await;
        let (log, recovered) = open(&store, settings()).await;
        assert_eq!(recovered.corrupt, None, "{name}");
        assert_eq!(log.inner.borrow().epochs, epochs, "{name}");
        store.close().await;
        drop((log, store));
        assert_eq!(fs::read(&file).unwrap(), text, "{name}");
        is_read_once(&path, name).await;
    });
}

#[test]
fn producers_are_made_anew_from_all_batches() {
    for_each_hurt(async |path, name, hurt| {
        let store = store(&path).await;
        let (log, _) = open(&store, settings()).await;
        let mut bytes: Vec<u8> = (60..70).flat_map(batch).collect();
        bytes.extend(transaction(70));
        bytes.extend(
            (71..80).flat_map(|base| Shape { body: 900, epoch: 9, ..Shape::at(base) }.bytes()),
        );
        respond(&log, &bytes, 4000).unwrap();
        assert_eq!(log.positions().last_stable_offset, 70);
        store.close().await;
        drop((log, store));
        let kind = |entry: fs::DirEntry| {
            let file = entry.path();
            file.extension().is_some_and(|ending| ending == "snapshot").then_some(file)
        };
        let folder = fs::read_dir(id(0).folder(&path)).unwrap();
        let snapshots: Vec<_> = folder.filter_map(|entry| kind(entry.unwrap())).collect();
        assert!(snapshots.len() > 2, "{snapshots:?}");
        snapshots.iter().for_each(|file| hurt(file));
        let store = self::store(&path).await;
        let (log, recovered) = open(&store, settings()).await;
        assert_eq!(recovered.corrupt, None, "{name}");
        assert_eq!(log.positions().last_stable_offset, 70, "{name}");
        respond(&log, &testing::marker(80, 9, 42, 0, true), 4000).unwrap();
        assert_eq!(log.positions().last_stable_offset, 81);
        let base = log.positions().received.0.segment;
        store.close().await;
        drop((log, store));
        let aborted = fs::read(id(0).folder(&path).join(Kind::TxnIndex.name(base))).unwrap();
        let aborted = index::read_aborted(&aborted)[0];
        assert_eq!((aborted.first_offset.get(), aborted.producer_id.get()), (70, 42));
        is_read_once(&path, name).await;
    });
}

#[test]
fn whose_a_log_is_stands_in_the_checkpoint_too() {
    for_each_hurt(async |path, name, hurt| {
        let with = |byte| LogSettings { topic_id: Some([byte; 16]), ..settings() };
        let store = store(&path).await;
        let (log, _) = open(&store, with(1)).await;
        respond(&log, &testing::run(0..3, 100), 4000).unwrap();
        store.close().await;
        drop((log, store));
        let file = id(0).folder(&path).join(METADATA_FILE);
        let text = fs::read(&file).unwrap();
        hurt(&file);
        let store = self::store(&path).await;
        let other = store.open_log(id(0), with(2)).await;
        assert!(matches!(other, Err(LogError::TopicId { .. })), "{name}");
        let (log, recovered) = open(&store, LogSettings { topic_id: None, ..settings() }).await;
        assert_eq!((recovered.corrupt, log.topic_id()), (None, Some([1; 16])), "{name}");
        assert_eq!(recovered.positions.received.0.offset, 3);
        store.close().await;
        assert_eq!(fs::read(&file).unwrap(), text, "{name}");
    });
}

#[test]
fn a_folder_that_a_crash_left_alone_is_nobodys() {
    let dir = disk();
    let path = dir.path().to_owned();
    run(async move {
        let folder = id(0).folder(&path);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(METADATA_FILE), names::format_metadata([1; 16])).unwrap();
        let store = store(&path).await;
        let with = LogSettings { topic_id: Some([2; 16]), ..settings() };
        let (log, recovered) = open(&store, with).await;
        assert!(recovered.new);
        respond(&log, &testing::run(0..3, 100), 4000).unwrap();
        store.close().await;
        let text = fs::read_to_string(folder.join(METADATA_FILE)).unwrap();
        assert_eq!(names::parse_metadata(&text), Some([2; 16]));
    });
}
