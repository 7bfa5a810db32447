//! One flusher per file system and process: shards that ask for `syncfs(2)` at the same time share
//! a flush.
//!
//! A request is served by a flush that *begins* after it. Who finds none running begins one;
//! who finds one running waits, and all who wait then share the next.
//!
//! `syncfs` reports a write-back error once per descriptor. Here the descriptor is shared, so every
//! member counts for itself which errors it was told of: an error reaches every member once,
//! whoever's flush met it. A member who joins late is told of errors before its time, too: rather
//! one alarm too many than a loss nobody learns of.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};

/// The flushes of one file system.
pub struct Flusher<F = fn() -> io::Result<()>> {
    flush: F,
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Default)]
struct State {
    requests: u64,
    begun: u64,
    ended: u64,
    /// Flushes that failed, and why the last one did.
    errors: u64,
    last_error: i32,
}

/// A boxed flush of a file system, and its flusher.
type Shared = Flusher<Box<dyn Fn() -> io::Result<()> + Send + Sync>>;

/// By device number; gone with the last member.
static FLUSHERS: Mutex<Option<HashMap<u64, Weak<Shared>>>> = Mutex::new(None);

/// One executor's part in the flushers of the file systems it uses.
#[derive(Default)]
pub struct Memberships {
    /// By path, with the errors this member was told of.
    joined: HashMap<PathBuf, (Arc<Shared>, u64)>,
}

impl Memberships {
    /// Flushes the file system that holds `path`, alone or with others.
    ///
    /// # Errors
    /// As `open(2)` and `syncfs(2)`; each error of a flush once per path.
    pub fn flush(&mut self, path: &Path) -> io::Result<()> {
        if !self.joined.contains_key(path) {
            self.joined.insert(path.to_owned(), (join(path)?, 0));
        }
        let (flusher, told) = self.joined.get_mut(path).expect("just joined");
        flusher.flush(told)
    }
}

fn join(path: &Path) -> io::Result<Arc<Shared>> {
    let file = File::open(path)?;
    let device = file.metadata()?.dev();
    let mut flushers = FLUSHERS.lock().unwrap_or_else(PoisonError::into_inner);
    let flushers = flushers.get_or_insert_default();
    flushers.retain(|_, flusher| flusher.strong_count() > 0);
    if let Some(flusher) = flushers.get(&device).and_then(Weak::upgrade) {
        return Ok(flusher);
    }
    let flush = Box::new(move || crate::uring::sync_filesystem(&file));
    let flusher = Arc::new(Flusher::new(flush as Box<_>));
    flushers.insert(device, Arc::downgrade(&flusher));
    Ok(flusher)
}

impl<F: Fn() -> io::Result<()>> Flusher<F> {
    fn new(flush: F) -> Self {
        Self { flush, state: Mutex::default(), ended: Condvar::new() }
    }

    /// Returns when a flush that began after this call has ended.
    fn flush(&self, told: &mut u64) -> io::Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.requests += 1;
        let mine = state.begun + 1;
        while state.ended < mine {
            if state.begun > state.ended {
                state = self.ended.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            state.begun += 1;
            drop(state);
            let result = (self.flush)();
            state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.ended = state.begun;
            if let Err(error) = result {
                state.errors += 1;
                state.last_error = error.raw_os_error().unwrap_or(libc::EIO);
            }
            self.ended.notify_all();
        }
        if std::mem::replace(told, state.errors) < state.errors {
            return Err(io::Error::from_raw_os_error(state.last_error));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::mpsc;

    use super::*;

    /// Flushes that end when the test says so, with what it says.
    struct Gate {
        begun: mpsc::Receiver<()>,
        end: mpsc::Sender<io::Result<()>>,
    }

    fn gated() -> (Arc<Shared>, Gate) {
        let (begin, begun) = mpsc::channel();
        let (end, ends) = mpsc::channel();
        let ends = Mutex::new(ends);
        let flush = move || {
            begin.send(()).expect("the test listens");
            ends.lock().expect("no panic").recv().expect("the test speaks")
        };
        (Arc::new(Flusher::new(Box::new(flush) as Box<_>)), Gate { begun, end })
    }

    #[test]
    fn who_asks_during_a_flush_waits_for_the_next_and_shares_it() {
        let (flusher, gate) = gated();
        let done = Arc::new(AtomicU64::new(0));
        let ask = || {
            let (flusher, done) = (Arc::clone(&flusher), Arc::clone(&done));
            std::thread::spawn(move || {
                flusher.flush(&mut 0).expect("flushes");
                done.fetch_add(1, Ordering::SeqCst);
            })
        };
        let first = ask();
        gate.begun.recv().expect("the first begins");
        let late: Vec<_> = (0..4).map(|_| ask()).collect();
        let state = || flusher.state.lock().expect("no panic");
        while state().requests < 5 {
            std::thread::yield_now();
        }
        gate.end.send(Ok(())).expect("it runs");
        first.join().expect("ends");
        gate.begun.recv().expect("a second begins for those who came late");
        assert_eq!(done.load(Ordering::SeqCst), 1, "the first flush serves nobody who came late");
        gate.end.send(Ok(())).expect("it runs");
        late.into_iter().for_each(|asker| asker.join().expect("ends"));
        assert_eq!(state().begun, 2, "those who came late share one flush");
    }

    #[test]
    fn every_member_is_told_of_an_error_once() {
        let (flusher, gate) = gated();
        let (mut one, mut two) = (0, 0);
        for result in [Ok(()), Err(io::Error::from_raw_os_error(libc::EIO)), Ok(()), Ok(())] {
            gate.end.send(result).expect("it listens");
        }
        flusher.flush(&mut one).expect("flushes");
        flusher.flush(&mut one).expect_err("fails");
        let told = flusher.flush(&mut two).expect_err("another's flush failed");
        assert_eq!(told.raw_os_error(), Some(libc::EIO));
        flusher.flush(&mut two).expect("told once");
    }

    #[test]
    fn paths_of_one_file_system_share_a_flusher() {
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a folder");
        let one = join(folder.path()).expect("joins");
        let two = join(Path::new(env!("CARGO_MANIFEST_DIR"))).expect("joins");
        assert!(Arc::ptr_eq(&one, &two));
        let mut memberships = Memberships::default();
        memberships.flush(folder.path()).expect("flushes");
    }
}
