//! The bare paced writer: what lag the disk alone would give.
//!
//! Batches are born as the embedded source makes them: at even times, file after file. They are
//! written as soon as they are born, by the product's own rule: so many writes in flight per file
//! and in all, and what was born of a file while all were taken goes out together, up to 1 MiB.
//! One ring, one thread, one core; direct writes from registered memory into fresh files with all
//! their space prepared; a second thread flushes the file system as often as the product does.
//! Nothing is received, checked or remembered.
#![allow(unsafe_code)]

use std::fs::{self, File};
use std::io::{self, BufReader};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode};
use serde::{Deserialize, Serialize};

use super::pipe::{Buffers, fresh};
use super::{BATCH_BYTES, content};
use crate::Outcome;
use crate::process::Process;
use crate::sample::Sample;

/// The hidden command that runs a job; its argument is the job as JSON.
pub const COMMAND: &str = "bare-paced-writer";
/// As in the product's limits.
const WRITES_IN_FLIGHT_MAX: usize = 32;
const WRITES_PER_FILE_MAX: usize = 8;
const WRITE_BYTES_MAX: usize = 1 << 20;
/// The product's default.
const FLUSH_INTERVAL: Duration = Duration::from_secs(1);
const LIMIT: Duration = Duration::from_secs(120);

/// What one writer does.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Paced {
    /// The core it is pinned to.
    pub core: usize,
    /// Made for its files, and removed.
    pub folder: PathBuf,
    /// How many files.
    pub files: usize,
    /// Seconds between two batches of one file.
    pub interval: f64,
    /// How many batches each file gets.
    pub batches: u64,
}

impl Paced {
    /// Runs it as a child process; ms from each batch's birth to the end of its write.
    ///
    /// # Errors
    /// The child fails: its message went to standard error.
    pub fn run(&self) -> Outcome<Sample> {
        let job = serde_json::to_string(self)?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args([COMMAND, &job]).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut process = Process::start(&mut command)?;
        let output = process.child().stdout.take().ok_or("the child's output is not piped")?;
        let lags = serde_json::from_reader(BufReader::new(output));
        process.wait(LIMIT)?;
        Ok(lags?)
    }
}

/// The child's whole life.
///
/// # Errors
/// The disk does not take it.
pub fn run_child(job: &str) -> Outcome {
    let job: Paced = serde_json::from_str(job)?;
    fs::create_dir_all(&job.folder)?;
    let lags = lags(&job);
    fs::remove_dir_all(&job.folder)?;
    // What the disk has to do about removed files, it does before the next row.
    nix::unistd::syncfs(File::open(job.folder.parent().ok_or("a folder of its own")?)?)?;
    println!("{}", serde_json::to_string(&lags?)?);
    Ok(())
}

fn lags(job: &Paced) -> Outcome<Vec<f64>> {
    let bytes = job.batches * BATCH_BYTES as u64;
    let files: Outcome<Vec<File>> =
        (0..job.files).map(|file| fresh(&job.folder.join(file.to_string()), bytes)).collect();
    let folder = File::open(&job.folder)?;
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let flusher = scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                std::thread::park_timeout(FLUSH_INTERVAL);
                nix::unistd::syncfs(&folder)?;
            }
            Ok::<_, nix::Error>(())
        });
        // Here, so that the flusher may run on any core, as the product's may.
        core_affinity::set_for_current(core_affinity::CoreId { id: job.core });
        let lags = Writer::new(job, files?).and_then(Writer::run);
        ended.store(true, Ordering::Relaxed);
        flusher.thread().unpark();
        flusher.join().map_err(|_| "the flusher panicked")??;
        lags
    })
}

/// One file's batches: how many were sent, and how many writes are under way.
#[derive(Clone, Default)]
struct Progress {
    sent: u64,
    writes: usize,
}

struct Writer<'a> {
    job: &'a Paced,
    /// Dropped before the memory: the ring's end is the end of all operations.
    ring: IoUring,
    files: Vec<File>,
    memory: Buffers,
    progress: Vec<Progress>,
    /// Writes under way by number: file, first batch, batches.
    writes: Vec<Option<(usize, u64, u64)>>,
    begun: Instant,
    lags: Vec<f64>,
}

impl<'a> Writer<'a> {
    fn new(job: &'a Paced, files: Vec<File>) -> Outcome<Writer<'a>> {
        let ring: IoUring =
            IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(64)?;
        let mut memory = Buffers::new(WRITE_BYTES_MAX, 1)?;
        memory.block_mut(0).copy_from_slice(&content()[..WRITE_BYTES_MAX]);
        let vector = libc::iovec { iov_base: memory.at(0).cast(), iov_len: WRITE_BYTES_MAX };
        // SAFETY: the memory outlives the ring: `Writer` drops its fields in order.
        unsafe { ring.submitter().register_buffers(&[vector]) }?;
        Ok(Writer {
            job,
            ring,
            progress: vec![Progress::default(); files.len()],
            files,
            memory,
            writes: vec![None; WRITES_IN_FLIGHT_MAX],
            begun: Instant::now(),
            lags: Vec::with_capacity(job.files * job.batches as usize),
        })
    }

    fn run(mut self) -> Outcome<Vec<f64>> {
        self.begun = Instant::now();
        let step = self.job.interval / self.job.files as f64;
        while self.lags.len() < self.job.files * self.job.batches as usize {
            let now = self.begun.elapsed().as_secs_f64();
            for file in 0..self.files.len() {
                self.write_born(file, now);
            }
            let next = (now / step).floor() * step + step;
            let wait = Duration::from_secs_f64((next - now).max(0.0));
            let until = Timespec::new().sec(wait.as_secs()).nsec(wait.subsec_nanos());
            let arguments = SubmitArgs::new().timespec(&until);
            match self.ring.submitter().submit_with_args(1, &arguments) {
                Err(error) if matches!(error.raw_os_error(), Some(libc::ETIME | libc::EINTR)) => {}
                result => drop(result?),
            }
            self.completed()?;
        }
        Ok(self.lags)
    }

    /// When a file's batch is born, in seconds since the beginning; the first is number 1.
    fn birth(&self, file: usize, number: u64) -> f64 {
        (number as f64 - file as f64 / self.job.files as f64) * self.job.interval
    }

    /// How many of a file's batches are born.
    fn born(&self, file: usize, now: f64) -> u64 {
        let born = now / self.job.interval + file as f64 / self.job.files as f64;
        (born as u64).min(self.job.batches)
    }

    /// Starts the writes of what is born of a file, as far as they may.
    fn write_born(&mut self, file: usize, now: f64) {
        let born = self.born(file, now);
        while self.progress[file].sent < born && self.progress[file].writes < WRITES_PER_FILE_MAX {
            let Some(free) = self.writes.iter().position(Option::is_none) else { return };
            let first = self.progress[file].sent;
            let batches = (born - first).min((WRITE_BYTES_MAX / BATCH_BYTES) as u64);
            self.progress[file].sent += batches;
            self.progress[file].writes += 1;
            self.writes[free] = Some((file, first, batches));
            let descriptor = Fd(self.files[file].as_raw_fd());
            let bytes = batches as u32 * BATCH_BYTES as u32;
            let entry = opcode::WriteFixed::new(descriptor, self.memory.at(0), bytes, 0)
                .offset(first * BATCH_BYTES as u64)
                .build();
            // SAFETY: the memory is registered, outlives the ring and is only read from; the files
            // live as long as the writer.
            let pushed = unsafe { self.ring.submission().push(&entry.user_data(free as u64)) };
            pushed.expect("the queue has more places than there are writes");
        }
    }

    fn completed(&mut self) -> Outcome {
        let now = self.begun.elapsed().as_secs_f64();
        while let Some(entry) = { self.ring.completion().next() } {
            let number = entry.user_data() as usize;
            let (file, first, batches) = self.writes[number].take().expect("a write under way");
            let written = usize::try_from(entry.result())
                .map_err(|_| io::Error::from_raw_os_error(-entry.result()))?;
            if written != batches as usize * BATCH_BYTES {
                return Err(format!("a write of {written} bytes").into());
            }
            self.progress[file].writes -= 1;
            for batch in first + 1..=first + batches {
                self.lags.push((now - self.birth(file, batch)) * 1e3);
            }
        }
        Ok(())
    }
}
