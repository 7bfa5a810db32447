//! The log that is hurt: what it holds, and its files as a stop or a kill leaves them.

use std::collections::BTreeMap;
use std::rc::Rc;

use ring::Config;
use ring::sim::{Faults, Machine, Simulation};

use super::*;

/// The source's end.
pub const END: i64 = 60;
/// The visible start, within the second segment.
pub const START: i64 = 18;

/// How the process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Closed, all flushed.
    Clean,
    /// The same, and a finished segment has no seal.
    Unsealed,
    /// Killed, with batches written behind the last flush.
    Killed,
}

/// A log at rest.
pub struct Made {
    pub ended: Ended,
    /// All files, in order.
    pub files: Vec<(PathBuf, Vec<u8>)>,
    /// All below this was told to be flushed.
    pub flushed: i64,
    /// Base and end of each segment.
    pub segments: Vec<(i64, i64)>,
}

pub fn settings() -> LogSettings {
    LogSettings { segment_bytes: 12_000, topic_id: Some([1; 16]), ..LogSettings::default() }
}

/// Two transactions that are aborted, one that is committed, one that stays open; all but the
/// second across the end of a segment, and the first across the visible start, too.
pub fn batch(base: i64) -> Vec<u8> {
    let epoch = (base / 11) as i32;
    let shape = Shape { epoch, body: 200 + (base * 7919 % 1200) as usize, ..Shape::at(base) };
    let of = |producer| Shape {
        producer: Some((producer, 0, base as i32)),
        attributes: 0x10,
        ..shape.clone()
    };
    match base {
        8 | 10 | 30 => of(7).bytes(),
        20 | 33 => testing::marker(base, epoch, 7, 0, true),
        26 => of(8).bytes(),
        38 => testing::marker(base, epoch, 8, 0, false),
        44 | 58 => of(9).bytes(),
        _ if base % 4 == 1 => Shape { attributes: 0, ..of(5) }.bytes(),
        _ => shape.bytes(),
    }
}

pub fn batches(range: std::ops::Range<i64>) -> Vec<u8> {
    range.flat_map(batch).collect()
}

pub fn data() -> &'static Path {
    Path::new("/data")
}

/// A store that flushes when it is asked to.
pub async fn quiet_store() -> Result<Rc<Store>, String> {
    let boot = Boot::prepare_simulated(&[data().to_owned()]).await;
    let boot = boot.map_err(|error| error.to_string())?;
    let flush_interval = std::time::Duration::from_secs(36_000);
    let config = StoreConfig { flush_interval, ..StoreConfig::new(0, boot) };
    Store::open(config).await.map_err(|error| error.to_string())
}

/// Lives until its result is there, at most ten minutes of its time; then it is killed.
pub fn live<T: 'static, K: 'static>(
    sim: &mut Simulation,
    life: impl Future<Output = (T, K)> + 'static,
) -> T {
    let executor = sim.executor(Config::small());
    let ended = Rc::new(std::cell::RefCell::new(None));
    let ends = Rc::clone(&ended);
    let task = async move {
        let (result, _kept) = life.await;
        *ends.borrow_mut() = Some(result);
        std::future::pending::<()>().await;
    };
    sim.spawn_on(executor, ring::Share::Replicate, task).detach();
    let begun = sim.now();
    while ended.borrow().is_none() {
        assert!(sim.step(), "it hangs: nothing is left to happen");
        assert!(sim.now() - begun < std::time::Duration::from_secs(600), "it hangs");
    }
    sim.kill(executor);
    ended.take().expect("it has ended")
}

pub fn files(sim: &Simulation) -> Vec<(PathBuf, Vec<u8>)> {
    sim.disk(Machine::FIRST, |disk| {
        let names = disk.files(data()).unwrap();
        let read = |(path, _): (PathBuf, u64)| {
            let bytes = disk.read_file(&path).unwrap();
            (path, bytes)
        };
        names.into_iter().map(read).collect()
    })
}

impl Made {
    pub fn new(ended: Ended) -> Made {
        let mut sim = Simulation::new(11, Faults::none());
        let flushed = live(&mut sim, async move {
            let store = quiet_store().await.unwrap();
            let (log, _) = open(&store, settings()).await;
            let flushed = if ended == Ended::Killed { END - 3 } else { END };
            for from in (0..flushed).step_by(10) {
                let to = flushed.min(from + 10);
                respond(&log, &batches(from..to), 3000).unwrap();
                log.flush().await.unwrap();
            }
            log.advance_start(START);
            log.flush().await.unwrap();
            // Both slots of the checkpoint say the same.
            log.flush().await.unwrap();
            if ended == Ended::Killed {
                respond(&log, &batches(flushed..END), 3000).unwrap();
                log.write_out().await.unwrap();
            } else {
                store.close().await;
            }
            (flushed, (store, log))
        });
        let mut files = files(&sim);
        files.retain(|(path, _)| !path.ends_with(PREPARED) && !path.ends_with("lock"));
        let mut bases: Vec<i64> = files.iter().filter_map(|file| base_of(&file.0)).collect();
        bases.sort();
        let ends = bases.iter().skip(1).copied().chain([END]);
        let segments: Vec<(i64, i64)> = bases.iter().copied().zip(ends).collect();
        assert!((4..=5).contains(&segments.len()), "{segments:?}");
        assert!(segments[1].0 < START && START < segments[1].1, "{segments:?}");
        if ended == Ended::Unsealed {
            let seal = id(0).seal_folder(data()).join(Kind::Seal.name(segments[2].0));
            files.retain(|file| file.0 != seal);
        }
        Made { ended, files, flushed, segments }
    }

    /// The files on the disk of a machine that starts.
    pub fn simulation(&self) -> Simulation {
        let sim = Simulation::new(5, Faults { steps_max: 3_000_000, ..Faults::none() });
        sim.disk(Machine::FIRST, |disk| {
            for (path, bytes) in &self.files {
                disk.make_dir(path.parent().unwrap()).unwrap();
                disk.write_file(path, bytes).unwrap();
            }
        });
        sim
    }

    /// Where each batch of a segment lies.
    pub fn places(&self, segment: usize) -> Vec<(i64, std::ops::Range<u64>)> {
        let (from, to) = self.segments[segment];
        let mut at = 0;
        let place = |offset| {
            let start = at;
            at += batch(offset).len() as u64;
            (offset, start..at)
        };
        (from..to).map(place).collect()
    }

    /// The visible, flushed offsets that are not on the disk as they were.
    pub fn hurt(&self, files: &BTreeMap<PathBuf, Vec<u8>>) -> Vec<i64> {
        let mut hurt = Vec::new();
        for (number, (base, _)) in self.segments.iter().enumerate() {
            let path = id(0).folder(data()).join(Kind::Log.name(*base));
            let bytes = files.get(&path).map_or(&[][..], |bytes| bytes);
            for (offset, place) in self.places(number) {
                let have = bytes.get(place.start as usize..place.end as usize);
                if have != Some(&batch(offset)) && (START..self.flushed).contains(&offset) {
                    hurt.push(offset);
                }
            }
        }
        hurt
    }
}

const PREPARED: &str = crate::names::PREPARED_FILE;

/// The base offset of a segment's log file.
pub fn base_of(path: &Path) -> Option<i64> {
    let is_log = path.extension().is_some_and(|extension| extension == "log");
    is_log.then(|| path.file_stem()?.to_str()?.parse().ok()).flatten()
}
