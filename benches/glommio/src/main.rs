//! The bare pipe once more: receive → CRC → direct write on one core, with glommio's executor,
//! sockets and files.
//!
//! `benches` starts it with a job as its one argument, the same JSON that its own pipe reads, and
//! reads what it took from its standard output. A reader receives block after block; a task per
//! block writes it; a semaphore bounds the blocks under way. `benches` compares the file.

use std::error::Error;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Instant;

use futures_lite::AsyncReadExt;
use glommio::io::{DmaFile, OpenOptions};
use glommio::net::TcpStream;
use glommio::sync::Semaphore;
use glommio::{LocalExecutorBuilder, Placement};
use serde::{Deserialize, Serialize};

type Outcome<T> = Result<T, Box<dyn Error>>;

/// A batch, and where its CRC-32C stands: over all that follows it.
const BATCH_BYTES: usize = 64 << 10;
const CRC_AT: usize = 17;
const CRC_COVERS_FROM: usize = 21;

/// What is to be done.
#[derive(Deserialize)]
struct Job {
    core: usize,
    from: SocketAddr,
    file: PathBuf,
    /// `fresh`, or written before.
    files: String,
    block_bytes: usize,
    depth: usize,
    bytes: u64,
}

/// What it took.
#[derive(Serialize)]
struct Spent {
    seconds: f64,
    user_seconds: f64,
    system_seconds: f64,
}

fn main() -> Outcome<()> {
    let job = std::env::args().nth(1).ok_or("one argument: the job")?;
    let job: Job = serde_json::from_str(&job)?;
    let executor = LocalExecutorBuilder::new(Placement::Fixed(job.core))
        .io_memory((job.depth + 2) * job.block_bytes * 2)
        .make()?;
    let spent = executor.run(run(job))?;
    println!("{}", serde_json::to_string(&spent)?);
    Ok(())
}

async fn run(job: Job) -> Outcome<Spent> {
    let file = Rc::new(open(&job).await?);
    let mut stream = TcpStream::connect(job.from).await?;
    let under_way = Rc::new(Semaphore::new(job.depth as u64));
    let mut writes = Vec::new();
    let before = cpu_seconds()?;
    let begun = Instant::now();
    for at in (0..job.bytes).step_by(job.block_bytes) {
        let permit = under_way.acquire_static_permit(1).await?;
        let mut block = file.alloc_dma_buffer(job.block_bytes);
        stream.read_exact(block.as_bytes_mut()).await?;
        check(block.as_bytes())?;
        let file = Rc::clone(&file);
        let write = glommio::spawn_local(async move {
            let written = file.write_at(block, at).await;
            drop(permit);
            written
        });
        writes.push(write.detach());
    }
    for write in writes {
        let written = write.await.ok_or("a write was cancelled")??;
        if written != job.block_bytes {
            return Err(format!("a write of {written} bytes").into());
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    let after = cpu_seconds()?;
    Ok(Spent { seconds, user_seconds: after.0 - before.0, system_seconds: after.1 - before.1 })
}

async fn open(job: &Job) -> Outcome<DmaFile> {
    let mut options = OpenOptions::new();
    options.write(true);
    if job.files != "fresh" {
        return Ok(options.dma_open(&job.file).await?);
    }
    let file = options.create(true).truncate(true).dma_open(&job.file).await?;
    file.pre_allocate(job.bytes, false).await?;
    Ok(file)
}

/// Checks every batch of a block.
fn check(block: &[u8]) -> Outcome<()> {
    for batch in block.chunks_exact(BATCH_BYTES) {
        let written = u32::from_be_bytes(batch[CRC_AT..CRC_COVERS_FROM].try_into()?);
        let covered = &batch[CRC_COVERS_FROM..];
        let found = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, covered);
        if found != u64::from(written) {
            return Err("a batch's CRC is wrong".into());
        }
    }
    Ok(())
}

/// Seconds of CPU of the whole process: its own code, the kernel.
fn cpu_seconds() -> Outcome<(f64, f64)> {
    // SAFETY: a `rusage` is numbers, for which zero is a value; the call writes to it alone.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        if libc::getrusage(libc::RUSAGE_SELF, &raw mut usage) != 0 {
            return Err(std::io::Error::last_os_error().into());
        }
        usage
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    Ok((seconds(usage.ru_utime), seconds(usage.ru_stime)))
}
