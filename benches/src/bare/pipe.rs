//! Receive → CRC → direct write in one thread, by hand on one ring: the best an engineer gets
//! out of this kernel and disk without a product around it.
//!
//! A fixed number of buffers goes round: one receives (MSG_WAITALL into the whole buffer), then its
//! batches are checked, then it is written where it belongs in the file and is free again. The
//! stages may be left out one by one, which gives bare receive and bare write. After the clock has
//! stopped the file is read back and every byte compared.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use serde::{Deserialize, Serialize};

use super::{BATCH_BYTES, content};
use crate::Outcome;
use crate::conditions::FileState;
use crate::process::Process;
use crate::serving::first_line;

/// The hidden command that runs a job; its argument is the job as JSON.
pub const COMMAND: &str = "bare-pipe";
const HUGE_PAGE_BYTES: usize = 2 << 20;
const LIMIT: Duration = Duration::from_secs(300);
/// Where a batch keeps its CRC-32C, which covers what follows.
const CRC_AT: usize = source::CRC_COVERS_FROM - 4;

/// What one pipe does.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Job {
    /// The core it is pinned to.
    pub core: usize,
    /// Where bytes come from; without, buffers are written as they are.
    pub from: Option<SocketAddr>,
    /// Whether each batch's CRC is checked.
    pub check: bool,
    /// The file written to.
    pub file: Option<PathBuf>,
    /// Its state: growing and fresh files are made anew, others must be there.
    pub files: FileState,
    /// Size of a buffer, of a receive and of a write.
    pub block_bytes: usize,
    /// Number of buffers.
    pub depth: usize,
    /// How much in all, a multiple of the block.
    pub bytes: u64,
}

/// What it took.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Spent {
    /// By the wall clock.
    pub seconds: f64,
    /// In this code.
    pub user_seconds: f64,
    /// In the kernel.
    pub system_seconds: f64,
    /// Calls of io_uring_enter(2); 0 if they were not counted.
    #[serde(default)]
    pub enters: u64,
}

impl Job {
    /// Runs it as a child process and waits for what it took.
    ///
    /// # Errors
    /// The child fails: its message went to standard error.
    pub fn run(&self) -> Outcome<Spent> {
        let job = serde_json::to_string(self)?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args([COMMAND, &job]).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut process = Process::start(&mut command)?;
        let line = first_line(&mut process)?;
        process.wait(LIMIT)?;
        Ok(serde_json::from_str(&line)?)
    }
}

/// The child's whole life.
///
/// # Errors
/// Anything that would make the number a lie: a short write, a wrong CRC, a different byte.
pub fn run_child(job: &str) -> Outcome {
    let job: Job = serde_json::from_str(job)?;
    if !core_affinity::set_for_current(core_affinity::CoreId { id: job.core }) {
        return Err(format!("cannot run on core {}", job.core).into());
    }
    let spent = Pipe::new(&job)?.run()?;
    if let (Some(file), Some(_)) = (&job.file, job.from) {
        compare(file, job.bytes)?;
    }
    println!("{}", serde_json::to_string(&spent)?);
    Ok(())
}

/// Makes a file whose every block has been written.
///
/// # Errors
/// The disk does not take it.
pub fn prepare_overwritten(path: &Path, bytes: u64) -> Outcome {
    let file = fresh(path, bytes)?;
    let zeros = Buffers::new(1 << 20, 1)?;
    for at in (0..bytes).step_by(1 << 20) {
        file.write_all_at(zeros.block(0), at)?;
    }
    Ok(file.sync_all()?)
}

fn empty(path: &Path) -> Outcome<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).custom_flags(libc::O_DIRECT);
    Ok(options.open(path)?)
}

/// A new file with all its space prepared.
pub(super) fn fresh(path: &Path, bytes: u64) -> Outcome<File> {
    let file = empty(path)?;
    nix::fcntl::fallocate(&file, nix::fcntl::FallocateFlags::empty(), 0, bytes.cast_signed())?;
    Ok(file)
}

/// Reads the file back, past the page cache.
///
/// # Errors
/// A byte is not the sender's.
pub fn compare(path: &Path, bytes: u64) -> Outcome {
    let expected = content();
    let file = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path)?;
    let mut buffer = Buffers::new(1 << 20, 1)?;
    for at in (0..bytes).step_by(1 << 20) {
        file.read_exact_at(buffer.block_mut(0), at)?;
        let start = (at % expected.len() as u64) as usize;
        if buffer.block(0) != &expected[start..start + (1 << 20)] {
            return Err(format!("{}: not what was sent, near {at}", path.display()).into());
        }
    }
    Ok(())
}

/// Blocks in huge pages where the host gives them.
pub(super) struct Buffers {
    memory: *mut u8,
    mapped_bytes: usize,
    block_bytes: usize,
}

impl Buffers {
    pub(super) fn new(block_bytes: usize, depth: usize) -> Outcome<Buffers> {
        let mapped_bytes = (block_bytes * depth).next_multiple_of(HUGE_PAGE_BYTES);
        let layout = std::alloc::Layout::from_size_align(mapped_bytes, HUGE_PAGE_BYTES)?;
        // SAFETY: the layout is not empty; the advice concerns memory that was just allocated.
        let memory = unsafe {
            let memory = std::alloc::alloc(layout);
            libc::madvise(memory.cast(), mapped_bytes, libc::MADV_HUGEPAGE);
            if !memory.is_null() {
                memory.write_bytes(0, mapped_bytes);
            }
            memory
        };
        match memory.is_null() {
            true => Err("no memory for the buffers".into()),
            false => Ok(Buffers { memory, mapped_bytes, block_bytes }),
        }
    }

    pub(super) fn at(&self, block: usize) -> *mut u8 {
        assert!((block + 1) * self.block_bytes <= self.mapped_bytes, "a block of ours");
        self.memory.wrapping_add(block * self.block_bytes)
    }

    fn block(&self, block: usize) -> &[u8] {
        // SAFETY: the block lies within the allocation, which was zeroed. Callers look at blocks
        // that no operation of the kernel writes to.
        unsafe { std::slice::from_raw_parts(self.at(block), self.block_bytes) }
    }

    pub(super) fn block_mut(&mut self, block: usize) -> &mut [u8] {
        // SAFETY: as above, and `self` is borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.at(block), self.block_bytes) }
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        let layout = std::alloc::Layout::from_size_align(self.mapped_bytes, HUGE_PAGE_BYTES);
        // SAFETY: the layout is the one it was allocated with.
        unsafe { std::alloc::dealloc(self.memory, layout.expect("it was valid before")) };
    }
}

const RECEIVE: u64 = 1 << 32;

struct Pipe<'a> {
    job: &'a Job,
    /// Dropped before the buffers: the ring's end is the end of all operations.
    ring: IoUring,
    stream: Option<TcpStream>,
    file: Option<File>,
    registered: bool,
    buffers: Buffers,
    free: VecDeque<usize>,
    /// The buffer that receives, and how much it has.
    receiving: Option<(usize, usize)>,
    asked: u64,
    done: u64,
    enters: u64,
}

impl<'a> Pipe<'a> {
    fn new(job: &'a Job) -> Outcome<Pipe<'a>> {
        let block = job.block_bytes as u64;
        let whole = job.block_bytes.is_multiple_of(BATCH_BYTES) && job.bytes.is_multiple_of(block);
        if !whole || job.depth == 0 {
            return Err("blocks hold whole batches, and the whole is whole blocks".into());
        }
        let ring: IoUring =
            IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(64)?;
        let buffers = Buffers::new(job.block_bytes, job.depth)?;
        let vectors: Vec<libc::iovec> = (0..job.depth)
            .map(|b| libc::iovec { iov_base: buffers.at(b).cast(), iov_len: job.block_bytes })
            .collect();
        // SAFETY: the buffers outlive the ring: `Pipe` drops its fields in order.
        let registered = unsafe { ring.submitter().register_buffers(&vectors) }.is_ok();
        let file = match (&job.file, job.files) {
            (None, _) => None,
            (Some(path), FileState::Growing) => Some(empty(path)?),
            (Some(path), FileState::Fresh) => Some(fresh(path, job.bytes)?),
            (Some(path), _) => {
                Some(OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(path)?)
            }
        };
        let stream = job.from.map(TcpStream::connect).transpose()?;
        Ok(Pipe {
            job,
            ring,
            stream,
            file,
            registered,
            free: (0..job.depth).collect(),
            buffers,
            receiving: None,
            asked: 0,
            done: 0,
            enters: 0,
        })
    }

    fn run(mut self) -> Outcome<Spent> {
        let before = getrusage(UsageWho::RUSAGE_SELF)?;
        let begun = Instant::now();
        while self.done < self.job.bytes {
            self.feed();
            match self.ring.submit_and_wait(1) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => drop(result?),
            }
            self.enters += 1;
            while let Some(entry) = self.next_completion() {
                let result = entry.result();
                if result < 0 {
                    return Err(io::Error::from_raw_os_error(-result).into());
                }
                self.completed(entry.user_data(), result as usize)?;
            }
        }
        let seconds = begun.elapsed().as_secs_f64();
        let after = getrusage(UsageWho::RUSAGE_SELF)?;
        let micro = |time: nix::sys::time::TimeVal| time.num_microseconds() as f64 / 1e6;
        Ok(Spent {
            seconds,
            user_seconds: micro(after.user_time() - before.user_time()),
            system_seconds: micro(after.system_time() - before.system_time()),
            enters: self.enters,
        })
    }

    fn next_completion(&mut self) -> Option<cqueue::Entry> {
        self.ring.completion().next()
    }

    /// Gives every idle stage something to do.
    fn feed(&mut self) {
        let block = self.job.block_bytes as u64;
        if self.stream.is_none() {
            while self.asked < self.job.bytes
                && let Some(buffer) = self.free.pop_front()
            {
                self.write(buffer, self.asked);
                self.asked += block;
            }
        } else if self.receiving.is_none()
            && self.asked < self.job.bytes
            && let Some(buffer) = self.free.pop_back()
        {
            // The buffer that was free last is the warmest.
            self.receive(buffer, 0);
        }
    }

    fn completed(&mut self, user_data: u64, bytes: usize) -> Outcome {
        let buffer = (user_data & u64::from(u32::MAX)) as usize;
        if user_data & RECEIVE == 0 {
            if bytes != self.job.block_bytes {
                return Err(format!("a write of {bytes} bytes").into());
            }
            self.free.push_back(buffer);
            self.done += bytes as u64;
            return Ok(());
        }
        if bytes == 0 {
            return Err("the sender went away".into());
        }
        let (_, have) = self.receiving.take().expect("a receive was under way");
        if have + bytes < self.job.block_bytes {
            self.receive(buffer, have + bytes);
            return Ok(());
        }
        if self.job.check {
            check(self.buffers.block(buffer))?;
        }
        let at = self.asked;
        self.asked += self.job.block_bytes as u64;
        match self.file {
            Some(_) => self.write(buffer, at),
            None => {
                self.free.push_back(buffer);
                self.done += self.job.block_bytes as u64;
            }
        }
        Ok(())
    }

    fn receive(&mut self, buffer: usize, have: usize) {
        let stream = self.stream.as_ref().expect("a pipe that receives has a stream");
        let to = self.buffers.at(buffer).wrapping_add(have);
        let length = (self.job.block_bytes - have) as u32;
        let entry = opcode::Recv::new(types::Fd(stream.as_raw_fd()), to, length)
            .flags(libc::MSG_WAITALL)
            .build()
            .user_data(RECEIVE | buffer as u64);
        self.receiving = Some((buffer, have));
        self.push(&entry);
    }

    fn write(&mut self, buffer: usize, at: u64) {
        let file = self.file.as_ref().expect("a pipe that writes has a file");
        let descriptor = types::Fd(file.as_raw_fd());
        let (from, length) = (self.buffers.at(buffer), self.job.block_bytes as u32);
        let entry = match self.registered {
            true => {
                opcode::WriteFixed::new(descriptor, from, length, buffer as u16).offset(at).build()
            }
            false => opcode::Write::new(descriptor, from, length).offset(at).build(),
        };
        self.push(&entry.user_data(buffer as u64));
    }

    fn push(&mut self, entry: &squeue::Entry) {
        // SAFETY: the memory is a block of `buffers`, which outlives the ring, and is in the hands
        // of this one operation until its completion: `free` and `receiving` see to that. Stream
        // and file outlive the operation, too: the loop ends when nothing is under way.
        let pushed = unsafe { self.ring.submission().push(entry) };
        pushed.expect("the queue has more places than there are buffers");
    }
}

/// Checks every batch of a block.
fn check(block: &[u8]) -> Outcome {
    for batch in block.chunks_exact(BATCH_BYTES) {
        let (head, covered) = batch.split_at(source::CRC_COVERS_FROM);
        let written = u32::from_be_bytes(head[CRC_AT..].try_into()?);
        if source::crc32c(covered) != written {
            return Err("a batch's CRC is wrong".into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flipped_bit_is_found() {
        let mut block = content()[..2 * BATCH_BYTES].to_vec();
        check(&block).expect("as it was made");
        block[BATCH_BYTES + 5000] ^= 1;
        assert!(check(&block).is_err());
    }
}
