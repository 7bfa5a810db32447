//! A folder with one file in it, `device`, whose every read, write and flush comes here.
//!
//! The kernel's FUSE protocol, the little of it that a loop device needs (fuse(4),
//! `include/uapi/linux/fuse.h`). The file is opened with direct I/O, so nothing of it lies in the
//! host's page cache: what the loop device has completed is what [`Device`] has been told.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tests::Outcome;

use crate::blocks::{Blocks, Cached, Cut};

const WRITE_BYTES_MAX: u32 = 1 << 20;
const ROOT: u64 = 1;
const FILE: u64 = 2;
const HEAD_BYTES: usize = 40;
/// In front of the data of a write.
const WRITE_HEAD_BYTES: usize = 40;

/// What the device refuses with EIO.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Refused {
    /// Reads of what was written before.
    pub reads: bool,
    /// Writes.
    pub writes: bool,
    /// Flushes.
    pub flushes: bool,
}

/// A file that stands for a disk, for as long as this value lives.
#[derive(Debug)]
pub struct Device {
    state: Arc<Mutex<State>>,
    folder: PathBuf,
    server: Option<std::thread::JoinHandle<()>>,
}

#[derive(Debug)]
struct State {
    cached: Cached,
    refused: Refused,
    /// Bytes that cannot be read until they are written again.
    spoiled: Vec<Range<u64>>,
    refusals: u64,
}

impl Device {
    /// Mounts `folder` with a device that holds these bytes.
    ///
    /// # Errors
    /// There is no FUSE here, or no right to mount.
    pub fn start(folder: &Path, bytes: Blocks) -> Outcome<Device> {
        let told = |what: &str, e: &dyn std::fmt::Display| format!("{what}: {e}");
        fs::create_dir_all(folder).map_err(|e| told("the device's folder", &e))?;
        let channel = File::options().read(true).write(true).open("/dev/fuse");
        let channel =
            channel.map_err(|e| told("/dev/fuse is needed for a device of our own", &e))?;
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", channel.as_raw_fd());
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("understudy-device"), folder, Some("fuse"), flags, Some(options.as_str()))
            .map_err(|e| told("mount a FUSE folder (this needs root)", &e))?;
        let cached = Cached::new(bytes);
        let (refused, spoiled) = (Refused::default(), Vec::new());
        let state = State { cached, refused, spoiled, refusals: 0 };
        let state = Arc::new(Mutex::new(state));
        let served = Arc::clone(&state);
        let server = std::thread::Builder::new()
            .name("device".into())
            .spawn(move || serve(channel, &served))
            .map_err(|e| told("a thread for the device", &e))?;
        Ok(Device { state, folder: folder.to_owned(), server: Some(server) })
    }

    /// The file that stands for the disk.
    pub fn path(&self) -> PathBuf {
        self.folder.join("device")
    }

    /// What is left when the power goes at this moment, and how many writes no flush covered.
    pub fn cut(&self, cut: Cut, random: &mut impl FnMut() -> u64) -> (Blocks, usize) {
        let state = lock(&self.state);
        (state.cached.cut(cut, random), state.cached.unflushed())
    }

    /// Changes what is refused from now on.
    pub fn refuse(&self, refused: Refused) {
        lock(&self.state).refused = refused;
    }

    /// These bytes cannot be read any more (EIO) until they are written again, as on a disk whose
    /// medium has worn out.
    pub fn spoil(&self, bytes: Range<u64>) {
        lock(&self.state).spoiled.push(bytes);
    }

    /// How often something was refused.
    pub fn refusals(&self) -> u64 {
        lock(&self.state).refusals
    }

    /// How often the device was flushed.
    pub fn flushes(&self) -> u64 {
        lock(&self.state).cached.flushes
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = umount2(&self.folder, MntFlags::MNT_DETACH);
        if let Some(server) = self.server.take() {
            // The kernel ends the conversation when the last user of the file is gone. If one is
            // left, the thread stays with it.
            for _ in 0..200 {
                if server.is_finished() {
                    let _ = server.join();
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
        }
        let _ = fs::remove_dir(&self.folder);
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn serve(mut channel: File, state: &Mutex<State>) {
    let mut request = vec![0; WRITE_BYTES_MAX as usize + (64 << 10)];
    loop {
        let bytes = match channel.read(&mut request) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) if error.raw_os_error() == Some(Errno::ENOENT as i32) => continue,
            Err(_) => return,
        };
        let request = Request(&request[..bytes]);
        let Some(answer) = answer(&request, state) else { continue };
        let (error, body) = match answer {
            Ok(body) => (0, body),
            Err(errno) => (-(errno as i32), Vec::new()),
        };
        let mut reply = Vec::with_capacity(16 + body.len());
        reply.extend(((16 + body.len()) as u32).to_ne_bytes());
        reply.extend(error.to_ne_bytes());
        reply.extend(request.u64(8).to_ne_bytes());
        reply.extend(body);
        // The one who asked may have gone.
        let _ = channel.write(&reply);
    }
}

struct Request<'a>(&'a [u8]);

impl Request<'_> {
    fn u32(&self, at: usize) -> u32 {
        u32::from_ne_bytes(self.0[at..at + 4].try_into().expect("four bytes"))
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_ne_bytes(self.0[at..at + 8].try_into().expect("eight bytes"))
    }
}

type Answer = Result<Vec<u8>, Errno>;

/// `None`: no answer is expected.
fn answer(request: &Request<'_>, state: &Mutex<State>) -> Option<Answer> {
    const LOOKUP: u32 = 1;
    const FORGET: u32 = 2;
    const GETATTR: u32 = 3;
    const SETATTR: u32 = 4;
    const OPEN: u32 = 14;
    const READ: u32 = 15;
    const WRITE: u32 = 16;
    const STATFS: u32 = 17;
    const RELEASE: u32 = 18;
    const FSYNC: u32 = 20;
    const FLUSH: u32 = 25;
    const INIT: u32 = 26;
    const OPENDIR: u32 = 27;
    const RELEASEDIR: u32 = 29;
    const INTERRUPT: u32 = 36;
    const DESTROY: u32 = 38;
    const BATCH_FORGET: u32 = 42;
    let node = request.u64(16);
    let size = lock(state).cached.bytes();
    Some(match request.u32(4) {
        INIT => Ok(init()),
        LOOKUP if request.0.get(HEAD_BYTES..) == Some(&b"device\0"[..]) => {
            let mut entry = [FILE, 0, 3600, 3600].map(u64::to_ne_bytes).concat();
            entry.extend([0; 8]);
            entry.extend(attributes(FILE, size));
            Ok(entry)
        }
        LOOKUP => Err(Errno::ENOENT),
        GETATTR | SETATTR => {
            let mut out = 3600_u64.to_ne_bytes().to_vec();
            out.extend([0; 8]);
            out.extend(attributes(node, size));
            Ok(out)
        }
        OPEN | OPENDIR => {
            const DIRECT_IO: u32 = 1;
            let mut out = 7_u64.to_ne_bytes().to_vec();
            out.extend(DIRECT_IO.to_ne_bytes());
            out.extend([0; 4]);
            Ok(out)
        }
        READ => read(state, request),
        WRITE => write(state, request),
        FSYNC => flush(state),
        STATFS => Ok(vec![0; 80]),
        RELEASE | RELEASEDIR | FLUSH | DESTROY => Ok(Vec::new()),
        FORGET | BATCH_FORGET | INTERRUPT => return None,
        _ => Err(Errno::ENOSYS),
    })
}

fn init() -> Vec<u8> {
    const ASYNC_READ: u32 = 1;
    const BIG_WRITES: u32 = 1 << 5;
    const MAX_PAGES: u32 = 1 << 22;
    let mut out = Vec::with_capacity(64);
    out.extend(
        [7_u32, 31, 1 << 20, ASYNC_READ | BIG_WRITES | MAX_PAGES].map(u32::to_ne_bytes).concat(),
    );
    out.extend([16_u16, 12].map(u16::to_ne_bytes).concat());
    out.extend([WRITE_BYTES_MAX, 1].map(u32::to_ne_bytes).concat());
    out.extend(((WRITE_BYTES_MAX / 4096) as u16).to_ne_bytes());
    out.resize(64, 0);
    out
}

fn attributes(node: u64, size: u64) -> Vec<u8> {
    const FOLDER_MODE: u32 = 0o040_755;
    const FILE_MODE: u32 = 0o100_600;
    let (mode, size) = if node == ROOT { (FOLDER_MODE, 0) } else { (FILE_MODE, size) };
    let mut out = [node, size, size / 512, 0, 0, 0].map(u64::to_ne_bytes).concat();
    out.extend([0, 0, 0, mode, 1, 0, 0, 0, 4096, 0].map(u32::to_ne_bytes).concat());
    out
}

fn read(state: &Mutex<State>, request: &Request<'_>) -> Answer {
    let (at, length) = (request.u64(HEAD_BYTES + 8), request.u32(HEAD_BYTES + 16));
    let mut state = lock(state);
    let end = at + u64::from(length);
    let spoiled = state.spoiled.iter().any(|bytes| bytes.start < end && at < bytes.end);
    if state.refused.reads || spoiled {
        state.refusals += 1;
        return Err(Errno::EIO);
    }
    Ok(state.cached.read(at, length as usize))
}

fn write(state: &Mutex<State>, request: &Request<'_>) -> Answer {
    let (at, length) = (request.u64(HEAD_BYTES + 8), request.u32(HEAD_BYTES + 16));
    let data = &request.0[HEAD_BYTES + WRITE_HEAD_BYTES..];
    let mut state = lock(state);
    if state.refused.writes {
        state.refusals += 1;
        return Err(Errno::EIO);
    }
    if data.len() != length as usize || !state.cached.write(at, data) {
        return Err(Errno::EINVAL);
    }
    let end = at + u64::from(length);
    state.spoiled.retain(|bytes| bytes.start < at || end < bytes.end);
    Ok([length, 0].map(u32::to_ne_bytes).concat())
}

fn flush(state: &Mutex<State>) -> Answer {
    let mut state = lock(state);
    if state.refused.flushes {
        state.refusals += 1;
        return Err(Errno::EIO);
    }
    state.cached.flush();
    Ok(Vec::new())
}
