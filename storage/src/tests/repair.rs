//! Damage to what was written long ago: found by reading it again, mended with what the source
//! still has, or kept and named.

use std::cell::RefCell;
use std::os::unix::fs::FileExt;

use proptest::prelude::*;
use ring::{Class, Slice};

use super::simulated::{self, batch, compare, simulated_store};
use super::*;
use crate::names::OWN_FOLDER;
use crate::recovery::Corrupt;
use crate::repair::{Repair, RepairError, plan};
use crate::verify::Verifier;
use ring::sim::{Faults, Simulation, for_seeds};
use ring::{File, Gather, OpenOptions};

mod alone;
mod cached;
mod cuts;
mod doubtful;
mod forgotten;
mod gone;
mod holes;
mod sealing;
mod torn;
mod unreadable;

/// What the source holds: each batch with its base and next offset.
#[derive(Clone, Default)]
pub struct Origin {
    batches: Vec<(i64, i64, Vec<u8>)>,
}

impl Origin {
    /// Adds a batch.
    pub fn push(&mut self, shape: &Shape) -> Vec<u8> {
        let bytes = shape.bytes();
        self.batches.push((shape.base, shape.base + i64::from(shape.records), bytes.clone()));
        bytes
    }

    /// Adds a batch of one record.
    pub fn push_bytes(&mut self, base: i64, bytes: Vec<u8>) -> Vec<u8> {
        self.batches.push((base, base + 1, bytes.clone()));
        bytes
    }

    /// What the simulated source sends.
    pub fn simulated(end: i64) -> Origin {
        Origin { batches: (0..end).map(|base| (base, base + 1, batch(base))).collect() }
    }

    /// An answer from `offset` on, of about `most` bytes, its last batch cut short.
    async fn answer(&self, offset: i64, most: usize) -> Vec<Slice> {
        let mut bytes = Vec::new();
        for (_, _, batch) in self.batches.iter().filter(|batch| batch.1 > offset) {
            let room =
                if bytes.is_empty() { batch.len() } else { most.saturating_sub(bytes.len()) };
            bytes.extend_from_slice(&batch[..room.min(batch.len())]);
        }
        let mut slices = Vec::new();
        for piece in bytes.chunks(10_000) {
            let mut lease = ring::lease(piece.len(), Class::Records).await;
            lease[..piece.len()].copy_from_slice(piece);
            slices.push(lease.freeze(piece.len()).0);
        }
        slices
    }

    /// Fetches one range again.
    async fn mend(
        &self,
        log: &Rc<Log>,
        damage: Corrupt,
        verifier: &Verifier,
    ) -> Result<(), RepairError> {
        let mut repair = Repair::begin(log, damage).await?;
        while let Some(offset) = repair.next_offset() {
            let records = self.answer(offset, 30_000).await;
            if repair.take(&records, LIMITS).await? == 0 && repair.next_offset() == Some(offset) {
                return Err(RepairError::Gone("the source ends".to_owned()));
            }
        }
        repair.finish(verifier, || true).await
    }

    /// Repairs everything that is known to be damaged.
    pub async fn mend_all(&self, log: &Rc<Log>, verifier: &Verifier) -> Result<(), RepairError> {
        for _ in 0..1000 {
            let Some(damage) = plan(log, verifier, |_| true).await?.into_iter().next() else {
                return Ok(());
            };
            self.mend(log, damage, verifier).await?;
        }
        panic!("it is never whole: {:?}", log.damages());
    }
}

/// A closed log of several sealed segments and one that goes on.
fn closed_log(dir: &Path, sizes: &[usize]) -> Origin {
    let made = Rc::new(RefCell::new(Origin::default()));
    let (path, sizes, to) = (dir.to_owned(), sizes.to_vec(), Rc::clone(&made));
    run(async move { *to.borrow_mut() = make_log(&path, &sizes).await });
    made.take()
}

async fn make_log(dir: &Path, sizes: &[usize]) -> Origin {
    let store = store(dir).await;
    let (log, _) = open(&store, settings()).await;
    let mut origin = Origin::default();
    for (base, &body) in sizes.iter().enumerate() {
        let epoch = (base / 20) as i32;
        let bytes = origin.push(&Shape { body, epoch, ..Shape::at(base as i64) });
        respond(&log, &bytes, 5000).unwrap();
    }
    log.flush().await.unwrap();
    store.close().await;
    origin
}

/// What the shards wrote down of all logs is gone.
fn lose_checkpoints(dir: &Path) {
    for entry in fs::read_dir(dir.join(OWN_FOLDER)).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name().to_string_lossy().starts_with("checkpoint-") {
            fs::remove_file(entry.path()).unwrap();
        }
    }
}

fn settings() -> LogSettings {
    LogSettings { segment_bytes: 60_000, ..LogSettings::default() }
}

/// The log files, in order.
fn segments(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(id(0).folder(dir)).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
    paths.sort();
    paths
}

/// Turns bits over; at least one in the first byte.
fn spoil(path: &Path, at: u64, masks: &[u8]) {
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let mut bytes = vec![0; masks.len()];
    let have = file.read_at(&mut bytes, at).unwrap();
    for (byte, mask) in bytes[..have].iter_mut().zip(masks) {
        *byte ^= mask;
    }
    file.write_all_at(&bytes[..have], at).unwrap();
    file.sync_all().unwrap();
}

#[test]
fn a_bit_in_a_sealed_segment_is_found_and_mended_beside_the_live_log() {
    let dir = disk();
    let path = dir.path().to_owned();
    let mut origin = closed_log(&path, &[1000; 200]);
    run(async move {
        let whole = read_log(&path);
        spoil(&segments(&path)[1], 7_777, &[0x10]);
        let store = store(&path).await;
        let (log, recovered) = open(&store, settings()).await;
        assert_eq!(recovered.corrupt, None, "a start reads none of it");
        let verifier = Verifier::new(0);
        assert_eq!(log.verify(&verifier).await, 1);
        assert!(verifier.bytes() >= whole.len() as u64);
        let damages = log.damages();
        assert_eq!(damages.len(), 1, "{damages:?}");
        assert!(damages[0].bytes.contains(&7_777));
        // Its tail goes on.
        assert_eq!(log.state(), LogState::Healthy);
        let more = origin.push(&Shape { epoch: 10, ..Shape::at(200) });
        respond(&log, &more, 1000).unwrap();
        assert_eq!(log.verify(&verifier).await, 0, "it is known");
        origin.mend_all(&log, &verifier).await.unwrap();
        assert!(!log.is_damaged());
        log.verify(&verifier).await;
        assert!(!log.is_damaged());
        store.close().await;
        assert_eq!(read_log(&path), [whole, more].concat());
    });
}

#[test]
fn what_the_source_has_otherwise_is_not_written() {
    let dir = disk();
    let path = dir.path().to_owned();
    let origin = closed_log(&path, &[1000; 200]);
    run(async move {
        let victim = segments(&path)[1].clone();
        spoil(&victim, 7_777, &[0x10]);
        let spoilt = fs::read(&victim).unwrap();
        let first: i64 = victim.file_stem().unwrap().to_str().unwrap().parse().unwrap();
        let store = store(&path).await;
        let (log, _) = open(&store, settings()).await;
        let verifier = Verifier::new(0);
        log.verify(&verifier).await;
        // The same offsets and lengths, other records; batches cleaned away; written together.
        let mut replaced = origin.clone();
        let base = first + 3;
        replaced.batches[base as usize].2 =
            Shape { body: 1000, fill: 99, epoch: (base / 20) as i32, ..Shape::at(base) }.bytes();
        let mut cleaned = origin.clone();
        cleaned.batches.remove(base as usize);
        let mut retained = origin.clone();
        retained.batches.drain(..base as usize);
        let mut joined = origin.clone();
        joined.batches[base as usize].1 += 1;
        joined.batches[base as usize].2 =
            Shape { records: 2, body: 1000, epoch: (base / 20) as i32, ..Shape::at(base) }.bytes();
        joined.batches.remove(base as usize + 1);
        let gone = Origin::default();
        for other in [replaced, cleaned, retained, joined, gone] {
            let error = other.mend_all(&log, &verifier).await.unwrap_err();
            assert!(matches!(error, RepairError::Gone(_)), "{error}");
            assert!(log.is_damaged());
            assert_eq!(fs::read(&victim).unwrap(), spoilt);
        }
        origin.mend_all(&log, &verifier).await.unwrap();
        assert!(!log.is_damaged());
        store.close().await;
    });
}

#[test]
fn garbled_indexes_and_lost_seals_are_made_anew() {
    let dir = disk();
    let path = dir.path().to_owned();
    closed_log(&path, &[3000; 100]);
    let again = path.clone();
    run(async move {
        let whole = read_log(&path);
        let side =
            |segment: usize, extension: &str| segments(&path)[segment].with_extension(extension);
        let files: Vec<PathBuf> = (0..4)
            .flat_map(|segment| ["index", "timeindex"].map(|kind| side(segment, kind)))
            .collect();
        let before: Vec<Vec<u8>> = files.iter().map(|file| fs::read(file).unwrap()).collect();
        spoil(&side(0, "index"), 12, &[1]);
        spoil(&side(1, "timeindex"), 7, &[2]);
        let store = store(&path).await;
        let (log, recovered) = open(&store, settings()).await;
        assert_eq!(recovered.scanned_bytes, 0, "their lengths are right");
        // Gone while the log is live.
        let seals = id(0).seal_folder(&path);
        let name = segments(&path)[2].with_extension("seal");
        fs::remove_file(seals.join(name.file_name().unwrap())).unwrap();
        let verifier = Verifier::new(0);
        assert_eq!(log.verify(&verifier).await, 0);
        assert!(!log.is_damaged());
        let after: Vec<Vec<u8>> = files.iter().map(|file| fs::read(file).unwrap()).collect();
        assert_eq!(after, before);
        let read = verifier.bytes();
        log.verify(&verifier).await;
        assert_eq!(verifier.bytes() - read, whole.len() as u64, "nothing is read twice");
        store.close().await;
        assert_eq!(read_log(&path), whole);
        format::check(&path);
    });
    run(async move {
        let store = store(&again).await;
        let (_, recovered) = open(&store, settings()).await;
        assert_eq!((recovered.scanned_bytes, recovered.corrupt), (0, None));
        store.close().await;
    });
}

#[test]
fn a_garbled_index_that_appending_goes_on_with_is_made_anew_at_the_start() {
    let dir = disk();
    let path = dir.path().to_owned();
    closed_log(&path, &[3000; 90]);
    run(async move {
        for kind in ["index", "timeindex"] {
            let file = segments(&path).last().unwrap().with_extension(kind);
            let before = fs::read(&file).unwrap();
            assert!(before.len() >= 16);
            // Also the bits that leave its entries in order.
            for at in 0..before.len() {
                spoil(&file, at as u64, &[1]);
                let store = store(&path).await;
                let (log, recovered) = open(&store, settings()).await;
                assert!(recovered.scanned_bytes > 0, "{kind}, byte {at}");
                assert_eq!(log.state(), LogState::Healthy);
                store.close().await;
                assert_eq!(fs::read(&file).unwrap(), before, "{kind}, byte {at}");
            }
        }
        format::check(&path);
    });
}

#[test]
fn an_index_garbled_while_appending_goes_on_is_made_anew_once_it_is_sealed() {
    let dir = disk();
    let path = dir.path().to_owned();
    let origin = closed_log(&path, &[3000; 90]);
    run(async move {
        let file = segments(&path).last().unwrap().with_extension("index");
        let store = store(&path).await;
        let (log, _) = open(&store, settings()).await;
        let before = fs::read(&file).unwrap();
        spoil(&file, 7, &[1]);
        for base in origin.batches.len()..130 {
            let shape = Shape { body: 3000, epoch: 9, ..Shape::at(base as i64) };
            respond(&log, &shape.bytes(), 5000).unwrap();
        }
        log.flush().await.unwrap();
        let sealed = segments(&path).last().unwrap().with_extension("index") != file;
        assert!(sealed && fs::read(&file).unwrap()[7] == before[7] ^ 1);
        assert_eq!(log.verify(&Verifier::new(0)).await, 0);
        assert_eq!(fs::read(&file).unwrap()[..before.len()], before);
        store.close().await;
        format::check(&path);
    });
}

#[derive(Clone, Debug)]
enum Damage {
    Bits(Vec<u8>),
    Zeros(usize),
    CutShort,
    Missing,
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        6 => (1u8.., prop::collection::vec(any::<u8>(), 0..3000)).prop_map(|(first, mut rest)| {
            rest.insert(0, first);
            Damage::Bits(rest)
        }),
        2 => (1u8..).prop_map(|mask| Damage::Bits(vec![mask])),
        1 => (1usize..70_000).prop_map(Damage::Zeros),
        1 => Just(Damage::CutShort),
        1 => Just(Damage::Missing),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// One damage of any kind in any place of any segment, done while the log was closed.
    #[test]
    fn any_damage_is_found_and_mended_byte_for_byte(
        sizes in prop::collection::vec(1usize..6000, 40..100),
        segment in any::<prop::sample::Index>(),
        place in any::<prop::sample::Index>(),
        damage in damage(),
    ) {
        let dir = disk();
        let path = dir.path().to_owned();
        let origin = closed_log(&path, &sizes);
        run(async move {
            let whole = read_log(&path);
            let segments = segments(&path);
            let victim = &segments[segment.index(segments.len())];
            let bytes = fs::metadata(victim).unwrap().len();
            let at = place.index(bytes as usize) as u64;
            match &damage {
                Damage::Bits(masks) => spoil(victim, at, masks),
                Damage::Zeros(count) => {
                    let count = (*count).min((bytes - at) as usize);
                    let file = fs::File::options().write(true).open(victim).unwrap();
                    file.write_all_at(&vec![0; count], at).unwrap();
                }
                Damage::CutShort => {
                    fs::File::options().write(true).open(victim).unwrap().set_len(at).unwrap();
                }
                Damage::Missing => fs::remove_file(victim).unwrap(),
            }
            let hurt = read_log(&path) != whole;
            let store = store(&path).await;
            let (log, _) = open(&store, settings()).await;
            let verifier = Verifier::new(0);
            log.verify(&verifier).await;
            assert_eq!(log.is_damaged(), hurt, "{victim:?} {at} {damage:?}");
            origin.mend_all(&log, &verifier).await.unwrap();
            log.verify(&verifier).await;
            assert!(!log.is_damaged(), "{:?}", log.damages());
            assert_eq!(log.state(), LogState::Healthy);
            assert_eq!(log.positions().received.0.offset, sizes.len() as i64);
            store.close().await;
            assert_eq!(read_log(&path), whole);
            format::check(&path);
        });
    }
}

/// Damage of random kinds, durable, on a log that is closed.
async fn hurt_at_random(folder: &Path) {
    let mut names: Vec<String> = ring::fs::read_dir(folder)
        .await
        .unwrap()
        .into_iter()
        .filter_map(|entry| entry.name.into_string().ok())
        .filter(|name| name.ends_with(".log"))
        .collect();
    names.sort();
    for _ in 0..1 + ring::random() % 3 {
        let path = folder.join(&names[ring::random() as usize % names.len()]);
        let Ok(bytes) = ring::fs::size(&path).await else { continue };
        if ring::random().is_multiple_of(4) {
            ring::fs::remove_file(&path).await.unwrap();
            continue;
        }
        let file = File::open(&path, OpenOptions::READ_WRITE).await.unwrap();
        if ring::random().is_multiple_of(4) {
            file.truncate(ring::random() % bytes.max(1)).await.unwrap();
            continue;
        }
        let at = ring::random() % bytes.max(1);
        let (read, lease) = file.read_at(at, ring::lease(4096, Class::Control).await).await;
        let count = read.unwrap().min(1 + ring::random() as usize % 4096);
        let mut lease = lease;
        lease[..count].iter_mut().for_each(|byte| *byte ^= 0x5a);
        let slice = lease.freeze(count).0;
        if count > 0 {
            file.write_at(at, Gather::from_iter([slice])).await.unwrap();
        }
    }
    ring::fs::sync_filesystem("/data").await.unwrap();
}

/// Opens, verifies and mends; whole is whole, whatever came before.
async fn mend_simulated(end: i64) {
    let store = simulated_store().await;
    let (log, _) = open(&store, simulated::settings()).await;
    let verifier = Verifier::new(0);
    log.verify(&verifier).await;
    if !log.is_damaged() {
        compare(&log, end).await;
    }
    let origin = Origin::simulated(end);
    origin.mend_all(&log, &verifier).await.unwrap();
    // What lay behind the damage that a start had found is known only now.
    if log.verify(&verifier).await > 0 {
        origin.mend_all(&log, &verifier).await.unwrap();
    }
    assert_eq!(log.verify(&verifier).await, 0, "{:?}", log.damages());
    assert_eq!(log.state(), LogState::Healthy);
    compare(&log, end).await;
    // It goes on.
    assert_eq!(log.positions().received.0.offset, end);
    store.close().await;
}

#[test]
fn a_power_loss_in_the_middle_of_a_repair_leaves_damage_or_what_is_whole() {
    const END: i64 = 150;
    for_seeds(1, 30, |seed| {
        let mut sim = Simulation::new(seed, Faults::default());
        let machine = sim.machine();
        let first = sim.executor_on(machine, ring::Config::small());
        sim.run_on(first, async {
            let store = simulated_store().await;
            let (log, _) = open(&store, simulated::settings()).await;
            for base in 0..END {
                respond(&log, &batch(base), 4000).unwrap();
            }
            log.flush().await.unwrap();
            store.close().await;
            hurt_at_random(&log.folder()).await;
        });
        for _ in 0..6 {
            let executor = sim.executor_on(machine, ring::Config::small());
            sim.spawn_on(executor, ring::Share::Replicate, mend_simulated(END)).detach();
            let time = std::time::Duration::from_micros(1 + sim.random_below(60_000));
            sim.run_for(time);
            sim.crash(executor);
        }
        let last = sim.executor_on(machine, ring::Config::small());
        sim.run_on(last, mend_simulated(END));
    });
}
