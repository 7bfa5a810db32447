//! Helper threads: what would block the executor's thread runs here.
//!
//! Two per executor, so that a slow flush does not hold up an open: one for the namespace and small
//! files, one for flushes (which shares its flushes with those of other executors:
//! [`crate::flusher`]). Requests come over a channel; answers go into a list, and a bell rings.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::IntoRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use crate::driver::Bell;
use crate::file::OpenOptions;
use crate::flusher::Memberships;
use crate::op::{DirEntry, HelpReply, HelpRequest, Token};

type Answers = Arc<Mutex<Vec<(Token, io::Result<HelpReply>)>>>;

/// The helpers of one executor. They end with it.
pub struct Helpers {
    /// One for the namespace, one for flushes.
    threads: [Helper; 2],
    answers: Answers,
    waiting: usize,
}

struct Helper {
    queue: Option<Sender<(Token, HelpRequest)>>,
    thread: Option<JoinHandle<()>>,
}

impl Helpers {
    /// Starts both threads. `bell` rings after every answer.
    pub fn start(bell: Arc<dyn Bell>) -> io::Result<Self> {
        let answers = Answers::default();
        let namespace = start("helper", Arc::clone(&answers), Arc::clone(&bell))?;
        let flush = start("flusher", Arc::clone(&answers), bell)?;
        Ok(Self { threads: [namespace, flush], answers, waiting: 0 })
    }

    /// Hands a request over. The executor's slots bound how many wait.
    pub fn send(&mut self, token: Token, request: HelpRequest) {
        self.waiting += 1;
        let flush = matches!(request, HelpRequest::SyncFilesystem(_));
        let queue = self.threads[usize::from(flush)].queue.as_ref();
        let sent = queue.expect("closed only at the end").send((token, request));
        sent.expect("a helper lives as long as its executor");
    }

    /// Answers that have come.
    pub fn collect(&mut self) -> Vec<(Token, io::Result<HelpReply>)> {
        if self.waiting == 0 {
            return Vec::new();
        }
        let answers =
            std::mem::take(&mut *self.answers.lock().unwrap_or_else(PoisonError::into_inner));
        self.waiting -= answers.len();
        answers
    }

    /// Requests without an answer yet.
    pub fn waiting(&self) -> usize {
        self.waiting
    }
}

impl Drop for Helpers {
    fn drop(&mut self) {
        for helper in &mut self.threads {
            drop(helper.queue.take());
            // With a request in hand it may hang, as its disk does; then it ends by itself.
            if let Some(thread) = helper.thread.take().filter(|_| self.waiting == 0) {
                let _ = thread.join();
            }
        }
    }
}

fn start(name: &str, answers: Answers, bell: Arc<dyn Bell>) -> io::Result<Helper> {
    let (queue, receiver): (_, Receiver<(Token, HelpRequest)>) = channel();
    let thread = thread::Builder::new().name(name.into()).spawn(move || {
        let mut memberships = Memberships::default();
        for (token, request) in receiver {
            let answer = answer(request, &mut memberships);
            answers.lock().unwrap_or_else(PoisonError::into_inner).push((token, answer));
            bell.ring();
        }
    })?;
    Ok(Helper { queue: Some(queue), thread: Some(thread) })
}

fn answer(request: HelpRequest, memberships: &mut Memberships) -> io::Result<HelpReply> {
    let nothing = |()| HelpReply::Nothing;
    match request {
        HelpRequest::Open(path, options) => open(&path, options),
        HelpRequest::Size(path) => fs::metadata(path).map(|m| HelpReply::Number(m.len())),
        HelpRequest::CreateDirAll(path) => fs::create_dir_all(path).map(nothing),
        HelpRequest::ReadDir(path) => read_dir(&path),
        HelpRequest::Rename(from, to) => fs::rename(from, to).map(nothing),
        HelpRequest::RemoveFile(path) => fs::remove_file(path).map(nothing),
        HelpRequest::RemoveDir(path) => fs::remove_dir(path).map(nothing),
        HelpRequest::SyncDir(path) => File::open(path)?.sync_all().map(nothing),
        HelpRequest::SyncFilesystem(path) => memberships.flush(&path).map(nothing),
        HelpRequest::FreeBytes(path) => crate::uring::free_bytes(&path).map(HelpReply::Number),
        HelpRequest::ReadSmall(path, bytes_max) => read_small(&path, bytes_max),
        HelpRequest::WriteSmall(path, bytes) => fs::write(path, bytes).map(nothing),
        HelpRequest::ReplaceSmall(path, bytes) => replace_small(&path, &bytes).map(nothing),
    }
}

fn open(path: &Path, how: OpenOptions) -> io::Result<HelpReply> {
    let file = fs::OpenOptions::new()
        .read(how.read)
        .write(how.write)
        .create(how.create)
        .create_new(how.create_new)
        .truncate(how.truncate)
        .custom_flags(if how.direct { libc::O_DIRECT } else { 0 })
        .open(path)?;
    Ok(HelpReply::Descriptor(file.into_raw_fd()))
}

fn read_dir(path: &Path) -> io::Result<HelpReply> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        let (is_dir, len) = (metadata.is_dir(), metadata.len());
        entries.push(DirEntry { name: entry.file_name(), is_dir, len });
    }
    Ok(HelpReply::Entries(entries))
}

fn read_small(path: &Path, bytes_max: usize) -> io::Result<HelpReply> {
    let mut bytes = Vec::new();
    File::open(path)?.take(bytes_max as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > bytes_max {
        let message = format!("{} is longer than {bytes_max} bytes", path.display());
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    Ok(HelpReply::Bytes(bytes))
}

fn replace_small(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let mut file = File::create(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => Ok(()),
    }
}
