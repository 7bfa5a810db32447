//! Power is lost after every operation of every commit, and every operation fails once.
//!
//! The folder keeps what is durable and what is not yet apart: of what was written and not flushed
//! any of the 512-byte sectors may be there, of the names that changed since the last flush any
//! number, in their order, as a journal has it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{self, Cursor};
use std::path::Path;
use std::rc::Rc;

use super::super::folder::Folder;
use super::super::snapshots::Snapshots;
use super::*;

const SECTOR: usize = 512;
const PATH: &str = "metadata.store";

type Names = BTreeMap<String, usize>;

#[derive(Clone, Default)]
struct Disk {
    names: Names,
    /// As the names were after each change since the last flush of the folder; the first is what is
    /// durable.
    history: Vec<Names>,
    files: Vec<File>,
    /// Which operations fail.
    failures: Vec<Failure>,
    operations: usize,
}

/// One operation fails.
#[derive(Clone, Copy)]
struct Failure {
    /// Which, counted from 1.
    at: usize,
    manner: Manner,
}

#[derive(Clone, Copy, PartialEq)]
enum Manner {
    /// It did not happen.
    Undone,
    /// It happened all the same.
    Done,
    /// The power fails while it happens, and nothing happens after it.
    Dead,
}

#[derive(Clone, Default)]
struct File {
    now: Vec<u8>,
    durable: Vec<u8>,
}

#[derive(Clone, Default)]
struct SimFolder(Rc<RefCell<Disk>>);

impl SimFolder {
    fn act<T>(&self, act: impl FnOnce(&mut Disk) -> T) -> io::Result<T> {
        let mut disk = self.0.borrow_mut();
        disk.operations += 1;
        let here = disk.operations;
        let failure = disk.failures.iter().find(|failure| match failure.manner {
            Manner::Dead => failure.at <= here,
            Manner::Undone | Manner::Done => failure.at == here,
        });
        match failure.map(|failure| (failure.manner, failure.at)) {
            None => Ok(act(&mut disk)),
            Some((manner, at)) => {
                // The power fails in the middle of the operation, not before it.
                if manner == Manner::Done || (manner == Manner::Dead && at == here) {
                    act(&mut disk);
                }
                Err(io::Error::other("the device failed"))
            }
        }
    }

    /// What a loss of power leaves, in one of the ways it may.
    fn after_power_loss(&self, names: usize, seed: u64) -> SimFolder {
        let mut disk = self.0.borrow().clone();
        let history = disk.history.iter().chain([&disk.names]);
        let names = history.clone().nth(names.min(history.count() - 1)).expect("one is durable");
        disk.names = names.clone();
        let mut random = seed;
        for file in &mut disk.files {
            file.tear(|| {
                random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                random >> 63 == 1
            });
        }
        disk.history = vec![disk.names.clone()];
        (disk.failures, disk.operations) = (Vec::new(), 0);
        SimFolder(Rc::new(RefCell::new(disk)))
    }
}

impl File {
    /// Of each sector the old or the new bytes.
    fn tear(&mut self, mut is_new: impl FnMut() -> bool) {
        let bytes = if is_new() { self.now.len() } else { self.durable.len() };
        let mut torn = vec![0; bytes];
        for at in (0..bytes).step_by(SECTOR) {
            let from = if is_new() { &self.now } else { &self.durable };
            let end = bytes.min(at + SECTOR).min(from.len());
            if at < end {
                torn[at..end].copy_from_slice(&from[at..end]);
            }
        }
        *self = File { now: torn.clone(), durable: torn };
    }
}

impl Disk {
    fn rename(&mut self, change: impl FnOnce(&mut Names)) {
        self.history.push(self.names.clone());
        change(&mut self.names);
    }

    fn made(&mut self, name: &str) -> &mut File {
        if !self.names.contains_key(name) {
            let file = self.files.len();
            self.files.push(File::default());
            self.rename(|names| {
                names.insert(name.to_owned(), file);
            });
        }
        &mut self.files[self.names[name]]
    }
}

impl Folder for SimFolder {
    type File = Cursor<Vec<u8>>;

    fn open(&self, name: &str) -> io::Result<Option<(Self::File, u64)>> {
        let disk = self.0.borrow();
        let file = disk.names.get(name).map(|&file| disk.files[file].now.clone());
        Ok(file.map(|bytes| (Cursor::new(bytes.clone()), bytes.len() as u64)))
    }

    fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.act(|disk| {
            let file = disk.made(name);
            file.now.resize(file.now.len().max(bytes.len()), 0);
            file.now[..bytes.len()].copy_from_slice(bytes);
        })?;
        self.act(|disk| {
            let file = disk.made(name);
            file.durable.clone_from(&file.now);
        })
    }

    fn reserve(&self, name: &str, _: u64) -> io::Result<()> {
        self.act(|disk| {
            disk.made(name);
        })
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.act(|disk| {
            disk.rename(|names| {
                let file = names.remove(from).expect("it is there");
                names.insert(to.to_owned(), file);
            });
        })
    }

    fn exchange(&self, one: &str, other: &str) -> io::Result<()> {
        self.act(|disk| {
            disk.rename(|names| {
                let (a, b) = (names[one], names[other]);
                names.insert(one.to_owned(), b);
                names.insert(other.to_owned(), a);
            });
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.act(|disk| disk.history = vec![disk.names.clone()])
    }
}

/// Commits of several sectors, some growing, some shrinking.
fn commits() -> Vec<Vec<Change>> {
    let value = |bytes: usize, fill: &str| fill.repeat(bytes);
    vec![
        vec![set("link/a", "1"), set("topic/a", &value(1500, "a"))],
        vec![set("topic/b", &value(3000, "b"))],
        vec![set("link/a", "2"), Change { key: "topic/a".to_owned(), value: None }],
        vec![set("topic/b", &value(10, "c")), set("topic/c", &value(700, "d"))],
    ]
}

/// What is stored after the first so many of the commits named.
fn after(commits: &[&Vec<Change>]) -> Pairs {
    let mut records = BTreeMap::new();
    for change in commits.iter().flat_map(|commit| commit.iter()) {
        match &change.value {
            Some(value) => drop(records.insert(change.key.clone(), value.clone())),
            None => drop(records.remove(&change.key)),
        }
    }
    records.into_iter().collect()
}

fn pairs(store: &Snapshots<SimFolder>) -> Pairs {
    store.image().records().map(|(key, value)| (key.to_owned(), value.to_vec())).collect()
}

fn open(folder: &SimFolder) -> Result<Snapshots<SimFolder>, MetadataError> {
    Snapshots::open(folder.clone(), Path::new(PATH))
}

fn failing(failures: &[Failure]) -> SimFolder {
    let folder = SimFolder::default();
    folder.0.borrow_mut().failures = failures.to_vec();
    folder
}

/// In each way the power may fail now, what is found is one of `allowed`, and goes on.
fn check_after_power_loss(folder: &SimFolder, allowed: &[Pairs], told: &str) {
    for names in 0..6 {
        for seed in 0..16 {
            let left = folder.after_power_loss(names, seed);
            let found = open(&left);
            let mut store = found.unwrap_or_else(|error| panic!("{told}, {names}.{seed}: {error}"));
            let found = pairs(&store);
            assert!(allowed.contains(&found), "{told}, {names}.{seed}: {} records", found.len());
            store.commit(&[set("more", "x")]).expect("a sound device");
            let again = open(&left.after_power_loss(0, seed)).expect("a whole store");
            assert_eq!(pairs(&again), pairs(&store), "{told}, {names}.{seed}");
        }
    }
}

#[test]
fn a_power_loss_anywhere_leaves_the_last_commit_or_the_one_under_way() {
    let commits = commits();
    let mut points = 0;
    for at in 1.. {
        let folder = failing(&[Failure { at, manner: Manner::Dead }]);
        let mut acknowledged = Vec::new();
        let mut under_way = None;
        if let Ok(mut store) = open(&folder) {
            for commit in &commits {
                match store.commit(commit) {
                    Ok(()) => acknowledged.push(commit),
                    Err(_) => {
                        under_way = Some(commit);
                        break;
                    }
                }
            }
        }
        let mut allowed = vec![after(&acknowledged)];
        if let Some(commit) = under_way {
            acknowledged.push(commit);
            allowed.push(after(&acknowledged));
        }
        check_after_power_loss(&folder, &allowed, &format!("operation {at}"));
        points += 1;
        if folder.0.borrow().operations < at {
            break;
        }
    }
    assert!(points > 15, "{points} points");
}

#[test]
fn a_commit_that_fails_does_not_count_and_the_next_ones_do() {
    let commits = commits();
    for manner in [Manner::Undone, Manner::Done] {
        for at in 1.. {
            let folder = failing(&[Failure { at, manner }]);
            let Ok(mut store) = open(&folder) else { continue };
            let mut acknowledged = Vec::new();
            let mut undecided = false;
            for commit in &commits {
                match store.commit(commit) {
                    Ok(()) => acknowledged.push(commit),
                    Err(MetadataError::Undecided(_)) => assert!(undecided),
                    // Nobody knows whether the files have changed names.
                    Err(MetadataError::Io { what: "replaced", .. }) => {
                        undecided = true;
                        let told = format!("names, operation {at}");
                        let with = [&acknowledged[..], &[commit]].concat();
                        let allowed = [after(&acknowledged), after(&with)];
                        check_after_power_loss(&folder, &allowed, &told);
                    }
                    Err(_) => {}
                }
                assert_eq!(pairs(&store), after(&acknowledged), "operation {at}");
                if !undecided {
                    let told = format!("one failure, operation {at}");
                    check_after_power_loss(&folder, &[after(&acknowledged)], &told);
                }
            }
            if folder.0.borrow().operations < at {
                break;
            }
        }
    }
}

#[test]
fn nothing_is_built_on_a_commit_that_could_not_be_taken_back() {
    let commits = commits();
    let mut stuck = 0;
    for at in 1..40 {
        for manner in [Manner::Undone, Manner::Done] {
            let failures = [Failure { at, manner }, Failure { at: at + 1, manner }];
            let folder = failing(&failures);
            let Ok(mut store) = open(&folder) else { continue };
            let mut acknowledged = Vec::new();
            let mut in_doubt = None;
            for commit in &commits {
                match store.commit(commit) {
                    Ok(()) => acknowledged.push(commit),
                    Err(MetadataError::Undecided(_)) => stuck += 1,
                    Err(_) => in_doubt = in_doubt.or(Some(commit)),
                }
                assert_eq!(pairs(&store), after(&acknowledged));
            }
            let mut allowed = vec![after(&acknowledged)];
            if let (true, Some(commit)) = (store.commit(&[]).is_err(), in_doubt) {
                allowed.push(after(&[&acknowledged[..], &[commit]].concat()));
            }
            check_after_power_loss(&folder, &allowed, &format!("operations {at}, {}", at + 1));
        }
    }
    assert!(stuck > 0, "it never came to that");
}
