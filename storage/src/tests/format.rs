//! What Kafka's own tool checks of a closed folder, checked here.

use super::*;
use crate::check::{Bounds, Checker};
use crate::index;

/// Every index entry agrees with the log, every segment is whole, no file is foreign.
pub fn check(dir: &Path) {
    let folder = id(0).folder(dir);
    let names = |suffix: &str| {
        let mut names: Vec<PathBuf> = fs::read_dir(&folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|e| e == suffix))
            .collect();
        names.sort();
        names
    };
    for path in names("log") {
        let bytes = fs::read(&path).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap();
        let base: i64 = name[..20].parse().unwrap();
        let mut checker = Checker::new(base, None, 0, Bounds::local(1 << 30));
        let (mut rest, mut batches) = (&bytes[..], Vec::new());
        while !rest.is_empty() {
            let at = bytes.len() - rest.len();
            let fed = checker.feed(rest).unwrap();
            batches.push((at as u64, fed.batch.expect("a whole batch")));
            rest = &rest[fed.consumed..];
        }
        let offsets = fs::read(path.with_extension("index")).unwrap_or_default();
        assert_eq!(offsets.len() % 8, 0);
        let mut at_least = 0;
        for entry in index::read_offsets(&offsets) {
            let position = u64::from(entry.position.get());
            let found = batches.iter().find(|(at, _)| *at == position);
            let (_, batch) = found.expect("a batch begins there");
            assert_eq!(batch.last_offset - base, i64::from(entry.relative_offset.get()));
            assert!(position >= at_least);
            at_least = position + 1;
        }
        // Not only right, but all there.
        if let Some((last, _)) = batches.last() {
            let indexed = index::read_offsets(&offsets).last().map_or(0, |e| e.position.get());
            assert!(last - u64::from(indexed) <= 4096 + 5000, "{last} is far from {indexed}");
        }
        let times = fs::read(path.with_extension("timeindex")).unwrap_or_default();
        assert_eq!(times.len() % 12, 0);
        let times = index::read_times(&times);
        assert!(times.windows(2).all(|w| w[0].timestamp.get() < w[1].timestamp.get()));
        for entry in times {
            let offset = base + i64::from(entry.relative_offset.get());
            let (_, batch) = batches.iter().find(|(_, b)| b.last_offset == offset).unwrap();
            assert_eq!(batch.max_timestamp, entry.timestamp.get());
        }
        let max = batches.iter().map(|(_, batch)| batch.max_timestamp).max();
        assert_eq!(times.last().map(|entry| entry.timestamp.get()), max);
    }
}

#[test]
fn a_closed_folder_is_what_kafka_accepts() {
    let dir = disk();
    let path = dir.path().to_owned();
    run(async move {
        let store = store(&path).await;
        let settings = LogSettings { segment_bytes: 100_000, ..LogSettings::default() };
        let (log, _) = open(&store, settings).await;
        for round in 0..12 {
            let mut bytes = testing::run(round * 100..round * 100 + 30, 700);
            let base = round * 100 + 40;
            for (i, transactional) in [(0, true), (2, true), (4, true)] {
                let shape = Shape {
                    records: 2,
                    producer: Some((round + i, 0, 0)),
                    attributes: if transactional { 0x10 } else { 0 },
                    ..Shape::at(base + i)
                };
                bytes.extend(shape.bytes());
            }
            bytes.extend(testing::marker(base + 6, 0, round, 0, true));
            bytes.extend(testing::marker(base + 7, 0, round + 2, 0, false));
            bytes.extend(testing::marker(base + 8, 0, round + 4, 0, true));
            respond(&log, &bytes, 5000).unwrap();
            assert_eq!(log.positions().last_stable_offset, base + 9);
        }
        store.close().await;
        check(&path);
        let folder = id(0).folder(&path);
        let mut aborted = 0;
        for entry in fs::read_dir(&folder).unwrap() {
            let file = entry.unwrap().path();
            let bytes = fs::read(&file).unwrap();
            match file.extension().and_then(|e| e.to_str()) {
                Some("txnindex") => aborted += index::read_aborted(&bytes).len(),
                Some("snapshot") => {
                    crate::producers::Producers::decode(&bytes).unwrap();
                }
                _ => {}
            }
        }
        assert_eq!(aborted, 24);
        let epochs = fs::read_to_string(folder.join("leader-epoch-checkpoint")).unwrap();
        assert_eq!(epochs, "0\n1\n0 0\n");
    });
}
