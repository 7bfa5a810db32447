//! Writes what a recovery reads above the flushed place once more, as it was read.
//!
//! It may be that a flush failed before the process died. Then what was written can be read for as
//! long as the machine runs, here or in whatever lies below us, and yet no later flush brings it to
//! the device: it counts as clean. The process that saw the failure may have had no time, or no
//! working device, to say so. So nothing that is only read counts as written: the blocks whose
//! batches were checked are written from the memory they were checked in, and the next flush
//! vouches for these writes. They repeat the bytes that are there; torn, they change nothing.

use std::io;
use std::ops::Range;
use std::path::Path;

use ring::{BLOCK, File, OpenOptions};

use crate::read_ahead::Piece;
use crate::work::write_all;

const EXISTING: OpenOptions = OpenOptions { create: false, ..OpenOptions::READ_WRITE };

/// A file that is being read, and above a certain byte written.
pub struct WriteAgain<'a> {
    path: &'a Path,
    above: u64,
    file: Option<File>,
}

impl<'a> WriteAgain<'a> {
    /// The file is known to be on the device up to byte `above`.
    pub fn above(path: &'a Path, above: u64) -> WriteAgain<'a> {
        WriteAgain { path, above, file: None }
    }

    /// Writes the blocks of a piece that hold bytes above that one and below `end`. Gives the piece
    /// back if there are none.
    ///
    /// # Errors
    /// As `open(2)` and `write(2)`.
    pub async fn write(&mut self, piece: Piece, end: u64) -> io::Result<Option<Piece>> {
        let block = BLOCK as u64;
        let Range { start, end: read_to } = piece.blocks();
        let first = (self.above / block * block).max(start);
        let last = end.min(read_to).next_multiple_of(block).min(read_to);
        if end <= self.above || last <= first {
            return Ok(Some(piece));
        }
        let blocks = piece.into_blocks();
        let within =
            |from: u64, to: u64| blocks.slice((from - start) as usize..(to - start) as usize);
        let whole = last / block * block;
        if whole > first {
            let file = match &self.file {
                Some(file) => file,
                None => self.file.insert(File::open(self.path, EXISTING.direct()).await?),
            };
            write_all(file, first, within(first, whole)).await?;
        }
        if last > whole {
            // A file that ends within a block keeps its length.
            let file = File::open(self.path, EXISTING).await?;
            write_all(&file, whole, within(whole, last)).await?;
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use ring::sim::{Faults, Machine, Simulation, for_seeds};
    use ring::{Config, Share};

    use super::*;
    use crate::read_ahead::ReadAhead;

    const PATH: &str = "/data/file";

    /// Writes a file whose flush fails, reads it, and writes what it read again.
    async fn lose_and_write_again(bytes: Vec<u8>, above: u64, end: u64) -> Vec<u8> {
        let file = File::open(PATH, OpenOptions::READ_WRITE).await.unwrap();
        let mut lease = ring::lease(bytes.len(), ring::Class::Control).await;
        lease[..bytes.len()].copy_from_slice(&bytes);
        let slice = lease.freeze(bytes.len()).0;
        write_all(&file, 0, slice).await.unwrap();
        file.sync_data().await.unwrap_err();
        let mut reader = ReadAhead::open(Path::new(PATH), 0, u64::MAX).await.unwrap();
        let mut all = Vec::new();
        let mut again = WriteAgain::above(Path::new(PATH), above);
        while let Some(piece) = reader.next().await.unwrap() {
            all.extend_from_slice(&piece);
            again.write(piece, end).await.unwrap();
        }
        file.sync_data().await.unwrap();
        all
    }

    #[test]
    fn what_a_failed_flush_left_is_on_the_device_and_the_file_as_long_as_it_was() {
        for_seeds(1, 60, |seed| {
            let mut faults = Faults::none();
            faults.disk.short_ppm = 300_000;
            let mut sim = Simulation::new(seed, faults);
            let len = 1 + sim.random_below(60_000);
            let (above, end) = (sim.random_below(len), 1 + sim.random_below(2 * len));
            let bytes: Vec<u8> = (0..len).map(|at| (at % 251) as u8 | 1).collect();
            sim.disk(Machine::FIRST, |disk| {
                disk.make_dir("/data").unwrap();
                disk.fail_flushes(1);
            });
            let executor = sim.executor(Config::small());
            let read = Rc::new(RefCell::new(Vec::new()));
            let seen = Rc::clone(&read);
            let task = sim.spawn_on(executor, Share::Replicate, async move {
                *seen.borrow_mut() = lose_and_write_again(bytes, above, end).await;
            });
            sim.run_until(|_| task.is_finished());
            sim.crash(executor);
            let left = sim.disk(Machine::FIRST, |disk| disk.read_file(PATH).unwrap());
            let read = read.borrow();
            assert_eq!((left.len(), read.len()), (len as usize, len as usize));
            let safe = above as usize..end.clamp(above, len) as usize;
            assert!(left[safe.clone()] == read[safe.clone()], "{safe:?} of {len} bytes");
        });
    }
}
