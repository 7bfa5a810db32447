//! Reads a file from one end to the other at the device's speed: past the page cache, in large
//! aligned pieces, the next on its way while one is looked at.
//!
//! What a page cache holds is what the kernel believes; after a failed flush, or a power loss that
//! was none for the kernel, only the device knows. And a recovery that fills the cache with bytes
//! nobody reads again takes memory from those who serve.
//!
//! Memory comes from the budget: one piece is waited for, the second is taken only while there is
//! plenty. Where a piece cannot be read it is asked for again block by block, so that an error is
//! that of a block, and all before it is given.

use std::collections::VecDeque;
use std::io;
use std::ops::{Deref, Range};
use std::path::Path;

use ring::{BLOCK, Class, File, Lease, OpenOptions, Share, Slice, Task};

use crate::limits::{READS_AHEAD, SCAN_BYTES};

const BLOCK_BYTES: u64 = BLOCK as u64;

/// A file that is being read.
pub struct ReadAhead {
    file: File,
    /// The next byte to give.
    at: u64,
    /// The next byte to ask for; a whole block.
    ask: u64,
    end: u64,
    flights: VecDeque<Flight>,
    /// To be read before what is in flight, in pieces of so many bytes.
    again: Option<(Range<u64>, usize)>,
    spare: Vec<Lease>,
}

struct Flight {
    range: Range<u64>,
    task: Task<(io::Result<usize>, Lease)>,
}

/// Bytes that follow those given before.
pub struct Piece {
    lease: Lease,
    bytes: Range<usize>,
    /// Where in the file the lease begins, and how much of it was read.
    start: u64,
    read: usize,
}

impl Piece {
    /// Where in the file lies all that was read with it: from the start of a block to the end of
    /// one, or of the file.
    pub fn blocks(&self) -> Range<u64> {
        self.start..self.start + self.read as u64
    }

    /// The bytes there.
    pub fn into_blocks(self) -> Slice {
        self.lease.freeze(self.read).0
    }
}

impl Deref for Piece {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.lease[self.bytes.clone()]
    }
}

impl ReadAhead {
    /// Opens a file, to be read from byte `from` to byte `to`, or to its end.
    ///
    /// # Errors
    /// As `open(2)`.
    pub async fn open(path: &Path, from: u64, to: u64) -> io::Result<ReadAhead> {
        let file = File::open(path, OpenOptions::READ.direct()).await?;
        Ok(ReadAhead {
            file,
            at: from,
            ask: from / BLOCK_BYTES * BLOCK_BYTES,
            end: to,
            flights: VecDeque::new(),
            again: None,
            spare: Vec::new(),
        })
    }

    /// The next bytes; none at the end.
    ///
    /// # Errors
    /// The first byte that was not given yet cannot be read.
    pub async fn next(&mut self) -> io::Result<Option<Piece>> {
        loop {
            if self.at >= self.end {
                return Ok(None);
            }
            let (range, (result, lease), alone) = match self.again.take() {
                Some((range, bytes)) => {
                    let lease = self.lease(bytes.min(block_bytes(&range))).await;
                    let lease = cut(lease, bytes.min(block_bytes(&range)));
                    (range.clone(), self.file.read_at(range.start, lease).await, bytes == BLOCK)
                }
                None => {
                    self.ask_ahead().await;
                    let Some(flight) = self.flights.pop_front() else { return Ok(None) };
                    (flight.range, flight.task.await, false)
                }
            };
            let bytes = match result {
                Ok(0) => return Ok(None),
                Ok(bytes) => bytes as u64,
                Err(error) if alone => return Err(error),
                Err(_) => {
                    self.again = Some((range, BLOCK));
                    self.spare.push(lease);
                    continue;
                }
            };
            let read = range.start + bytes;
            if !bytes.is_multiple_of(BLOCK_BYTES) {
                self.end = self.end.min(read); // the file's last block
            } else if read < range.end {
                let piece = if alone { BLOCK } else { SCAN_BYTES };
                self.again = Some((read..range.end, piece));
            }
            let skip = self.at.saturating_sub(range.start);
            let until = read.min(self.end);
            self.at = until;
            let given = skip as usize..(until.saturating_sub(range.start)) as usize;
            let (start, read) = (range.start, bytes as usize);
            return Ok(Some(Piece { lease, bytes: given, start, read }));
        }
    }

    /// Gives a piece's memory back for the next.
    pub fn recycle(&mut self, piece: Piece) {
        if piece.lease.len() >= SCAN_BYTES {
            self.spare.push(piece.lease);
        }
    }

    async fn ask_ahead(&mut self) {
        while self.flights.len() < READS_AHEAD && self.ask < self.end {
            let left = self.ask..self.end;
            let wanted = block_bytes(&left).min(SCAN_BYTES);
            let memory = ring::memory();
            let plenty = memory.used + wanted <= memory.total / 2;
            if !self.flights.is_empty() && self.spare.is_empty() && !plenty {
                return;
            }
            let lease = cut(self.lease(wanted).await, wanted);
            let range = self.ask..self.ask + lease.len() as u64;
            self.ask = range.end;
            let (file, start) = (self.file.clone(), range.start);
            let reading = async move { file.read_at(start, lease).await };
            let task = ring::spawn(Share::Background, reading);
            self.flights.push_back(Flight { range, task });
        }
    }

    async fn lease(&mut self, bytes: usize) -> Lease {
        match self.spare.pop() {
            Some(lease) => lease,
            None => lease_of_any_size(bytes).await,
        }
    }
}

/// Memory of so many bytes, or of fewer when there is little: what frees memory (sealing, saving)
/// must not wait for a large piece of it.
pub async fn lease_of_any_size(bytes: usize) -> Lease {
    let mut size = bytes;
    while size > BLOCK {
        if let Some(lease) = ring::try_lease(size, Class::Control) {
            return lease;
        }
        size /= 2;
    }
    ring::lease(BLOCK, Class::Control).await
}

/// A range's length in whole blocks.
fn block_bytes(range: &Range<u64>) -> usize {
    let bytes = (range.end - range.start).min(SCAN_BYTES as u64);
    bytes.next_multiple_of(BLOCK_BYTES) as usize
}

/// No more of it than is to be read.
fn cut(lease: Lease, bytes: usize) -> Lease {
    if lease.len() > bytes { lease.split(bytes).0 } else { lease }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::path::PathBuf;
    use std::rc::Rc;

    use ring::Config;
    use ring::sim::{Faults, Machine, Simulation, for_seeds};

    use super::*;

    async fn read_all(path: &Path, from: u64, to: u64) -> (Vec<u8>, io::Result<()>) {
        let mut all = Vec::new();
        let mut reader = ReadAhead::open(path, from, to).await.unwrap();
        loop {
            match reader.next().await {
                Ok(Some(piece)) => {
                    all.extend_from_slice(&piece);
                    reader.recycle(piece);
                }
                Ok(None) => return (all, Ok(())),
                Err(error) => return (all, Err(error)),
            }
        }
    }

    #[test]
    fn every_byte_comes_once_and_in_order_whatever_the_reads_bring() {
        for_seeds(1, 40, |seed| {
            let mut faults = Faults::default();
            faults.disk.short_ppm = 300_000;
            faults.disk.read_error_ppm = 20_000 * (seed % 2) as u32;
            let mut sim = Simulation::new(seed, faults);
            let len = sim.random_below(5 << 20);
            let bytes: Vec<u8> = (0..len).map(|i| (i * 31 / 7) as u8).collect();
            let path = PathBuf::from("/data/file");
            sim.disk(Machine::FIRST, |disk| {
                disk.make_dir("/data").unwrap();
                disk.write_file("/data/file", &bytes).unwrap();
            });
            let from = sim.random_below(len + 1);
            let to = [len, u64::MAX, from + sim.random_below(len - from + 1)][seed as usize % 3];
            let executor = sim.executor(Config::small());
            sim.run_on(executor, async move {
                let (all, result) = read_all(&path, from, to).await;
                let wanted = &bytes[from as usize..to.min(len) as usize];
                match result {
                    Ok(()) => assert!(all == wanted, "{} of {}", all.len(), wanted.len()),
                    // The second try of a block may have failed, too.
                    Err(_) => assert!(wanted.starts_with(&all)),
                }
            });
        });
    }

    #[test]
    fn what_comes_before_an_unreadable_block_is_given() {
        let mut sim = Simulation::new(4, Faults::none());
        let bytes: Vec<u8> = (0..3u32 << 20).map(|i| (i / 3) as u8).collect();
        sim.disk(Machine::FIRST, |disk| {
            disk.make_dir("/data").unwrap();
            disk.write_file("/data/file", &bytes).unwrap();
            disk.spoil("/data/file", 1_500_000..1_500_001);
        });
        let executor = sim.executor(Config::small());
        let done = Rc::new(Cell::new(false));
        let seen = Rc::clone(&done);
        sim.run_on(executor, async move {
            let (all, result) = read_all(Path::new("/data/file"), 100, u64::MAX).await;
            assert!(result.is_err());
            let block = 1_500_000 / BLOCK * BLOCK;
            assert!(all == bytes[100..block], "{} bytes before {block}", all.len());
            seen.set(true);
        });
        assert!(done.get());
    }
}
