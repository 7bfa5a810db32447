//! Indexes and seals, each hurt in every way: what a start and a verifying pass leave behind is
//! byte for byte what was there, and readers are told of the same aborted transactions.

use std::collections::BTreeMap;

use super::beside::{HURTS, Hurt};
use super::crash::snapshot;
use super::repair::Origin;
use super::*;
use crate::index;
use crate::verify::Verifier;

const KINDS: [Kind; 4] = [Kind::Index, Kind::TimeIndex, Kind::TxnIndex, Kind::Seal];
const END: i64 = 95;

/// Every file of a log, and its bytes.
type Files = BTreeMap<PathBuf, Vec<u8>>;

/// Twenty batches fill a segment.
fn settings() -> LogSettings {
    LogSettings { segment_bytes: 17_480, ..LogSettings::default() }
}

/// The batch at an offset. In each segment one transaction begins and is aborted, one is committed,
/// and one begins that is aborted in the next.
fn batch(base: i64) -> Vec<u8> {
    let (segment, at) = (base / 20, base % 20);
    let begin = |producer| {
        let shape = Shape { body: 900, attributes: 0x10, ..Shape::at(base) };
        Shape { producer: Some((producer, 0, 0)), ..shape }.bytes()
    };
    match at {
        2 => begin(100 + segment),
        6 => testing::marker(base, 0, 100 + segment, 0, true),
        7 => begin(200 + segment),
        9 => testing::marker(base, 0, 200 + segment, 0, false),
        12 if segment > 0 => testing::marker(base, 0, 299 + segment, 0, true),
        15 => begin(300 + segment),
        _ => Shape { body: 900, ..Shape::at(base) }.bytes(),
    }
}

/// What readers must be told: producer, first, last and last stable offset of each that is aborted.
fn aborted() -> Vec<(i64, i64, i64, i64)> {
    let mut aborted = vec![(100, 2, 6, 7)];
    for segment in 1..5 {
        let base = segment * 20;
        aborted.push((100 + segment, base + 2, base + 6, base - 5));
        aborted.push((299 + segment, base - 5, base + 12, base + 13));
    }
    aborted
}

/// What the indexes say of it.
fn told(files: &Files) -> Vec<(i64, i64, i64, i64)> {
    let is_one = |path: &Path| path.extension().is_some_and(|ending| ending == "txnindex");
    let indexes = files.iter().filter(|(path, _)| is_one(path));
    let entries = indexes.flat_map(|(_, bytes)| index::read_aborted(bytes)).map(|entry| {
        let (first, last) = (entry.first_offset.get(), entry.last_offset.get());
        (entry.producer_id.get(), first, last, entry.last_stable_offset.get())
    });
    entries.collect()
}

fn files(dir: &Path) -> Files {
    let folders = [id(0).folder(dir), id(0).seal_folder(dir)];
    let entries = folders.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten();
    let paths = entries.map(|entry| entry.unwrap().path());
    let named = |path: PathBuf| (path.strip_prefix(dir).unwrap().to_owned(), fs::read(&path));
    paths.map(named).map(|(name, bytes)| (name, bytes.unwrap())).collect()
}

/// A closed log: four sealed segments, and one in which appending goes on.
async fn closed_log(path: &Path) -> Files {
    let store = store(path).await;
    let (log, _) = open(&store, settings()).await;
    respond(&log, &(0..END).flat_map(batch).collect::<Vec<_>>(), 4000).unwrap();
    store.close().await;
    let files = files(path);
    assert_eq!(told(&files), aborted());
    files
}

/// One file of one segment, hurt in one way; or with it what its producers were made of, too.
struct Case {
    kind: Kind,
    base: i64,
    manner: &'static str,
    hurt: Hurt,
    snapshot_too: bool,
}

impl Case {
    fn all(bases: &[i64]) -> Vec<Case> {
        let mut cases = Vec::new();
        for &base in bases {
            let kinds = KINDS.into_iter().filter(|&kind| kind != Kind::Seal || base < 80);
            for (kind, (manner, hurt)) in kinds.flat_map(|kind| HURTS.map(|hurt| (kind, hurt))) {
                let one = |snapshot_too| Case { kind, base, manner, hurt, snapshot_too };
                cases.push(one(false));
                cases.extend((base > 0).then(|| one(true)));
            }
        }
        cases
    }

    fn hurt(&self, dir: &Path) {
        let seal = self.kind == Kind::Seal;
        let folder = if seal { id(0).seal_folder(dir) } else { id(0).folder(dir) };
        (self.hurt)(&folder.join(self.kind.name(self.base)));
        if self.snapshot_too {
            (self.hurt)(&id(0).folder(dir).join(Kind::Snapshot.name(self.base)));
        }
    }

    /// Starts, verifies and stops: what is other than it was.
    async fn play(&self, dir: &Path, before: &Files, live: bool) -> Vec<String> {
        if !live {
            self.hurt(dir);
        }
        let store = store(dir).await;
        let (log, recovered) = open(&store, settings()).await;
        assert_eq!((recovered.corrupt, log.state()), (None, LogState::Healthy));
        if live {
            self.hurt(dir);
        }
        let positions = log.positions();
        assert_eq!((positions.received.0.offset, positions.last_stable_offset), (END, END));
        assert_eq!(log.verify(&Verifier::new(0)).await, 0);
        store.close().await;
        let after = files(dir);
        let names = before.keys().chain(after.keys()).collect::<std::collections::BTreeSet<_>>();
        let differ = names.into_iter().filter(|&name| before.get(name) != after.get(name));
        differ.map(|name| name.display().to_string()).collect()
    }
}

fn all_come_back(bases: &'static [i64], live: bool) {
    let dir = disk();
    let path = dir.path().to_owned();
    run(async move {
        let before = closed_log(&path).await;
        let mut wrong = Vec::new();
        for case in Case::all(bases) {
            let copy = disk();
            snapshot(&path, copy.path());
            let differ = case.play(copy.path(), &before, live).await;
            let Case { kind, base, manner, snapshot_too, .. } = case;
            if !differ.is_empty() {
                let also = if snapshot_too { ", its snapshot too" } else { "" };
                wrong.push(format!("{kind:?} of {base} {manner}{also}: {differ:?}"));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    });
}

#[test]
fn indexes_and_seals_hurt_while_it_was_down_are_made_anew_byte_for_byte() {
    all_come_back(&[0, 40, 80], false);
}

#[test]
fn indexes_and_seals_hurt_while_it_runs_are_made_anew_byte_for_byte() {
    all_come_back(&[40], true);
}

/// Where the last batch is not what was flushed, the segment is read from its start after all. What
/// a producer has open at the log's end it had not open there: an older transaction of it that was
/// aborted would pass for committed.
#[test]
fn a_segment_that_is_read_after_its_end_still_tells_what_was_aborted() {
    let dir = disk();
    let path = dir.path().to_owned();
    run(async move {
        let begin = |base| {
            let shape = Shape { body: 900, attributes: 0x10, ..Shape::at(base) };
            Shape { producer: Some((7, 0, 0)), ..shape }
        };
        let mut origin = Origin::default();
        let store = store(&path).await;
        let (log, _) = open(&store, LogSettings::default()).await;
        for base in 0..20 {
            let bytes = match base {
                2 | 15 => origin.push(&begin(base)),
                6 => origin.push_bytes(base, testing::marker(base, 0, 7, 0, true)),
                _ => origin.push(&Shape { body: 900, ..Shape::at(base) }),
            };
            respond(&log, &bytes, 4000).unwrap();
        }
        store.close().await;
        drop((log, store));
        let before = files(&path);
        assert_eq!(told(&before), [(7, 2, 6, 7)]);
        let segment = id(0).folder(&path).join(Kind::Log.name(0));
        let mut bytes = fs::read(&segment).unwrap();
        let last = bytes.len() - Shape { body: 900, ..Shape::at(19) }.bytes().len();
        bytes[last + 15] ^= 1;
        fs::write(&segment, bytes).unwrap();
        let store = super::store(&path).await;
        let (log, recovered) = open(&store, LogSettings::default()).await;
        assert!(recovered.corrupt.is_some(), "its epoch is another");
        origin.mend_all(&log, &Verifier::new(0)).await.unwrap();
        assert_eq!(log.state(), LogState::Healthy);
        assert_eq!(log.open_transactions(), [(15, 7, 0)]);
        store.close().await;
        assert_eq!(told(&files(&path)), told(&before));
    });
}
