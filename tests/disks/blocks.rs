//! What a device holds, and what a power cut leaves of it.

use std::sync::Arc;

/// The smallest unit a device writes whole, bytes.
const SECTOR: usize = 512;
const BLOCK: usize = 4096;

/// A device's bytes; blocks never written are zeros and take no memory. A clone is cheap.
#[derive(Clone, Debug)]
pub struct Blocks(Vec<Option<Arc<[u8; BLOCK]>>>);

impl Blocks {
    /// A device of zeros. The size is a multiple of 4,096 bytes.
    pub fn new(bytes: u64) -> Blocks {
        assert_eq!(bytes % BLOCK as u64, 0, "whole blocks");
        Blocks(vec![None; (bytes / BLOCK as u64) as usize])
    }

    /// Its size.
    pub fn bytes(&self) -> u64 {
        (self.0.len() * BLOCK) as u64
    }

    /// Reads; shorter at the end of the device.
    pub fn read(&self, at: u64, length: usize) -> Vec<u8> {
        let length = length.min(self.bytes().saturating_sub(at) as usize);
        let mut bytes = vec![0; length];
        let mut done = 0;
        while done < length {
            let (block, within) = place(at + done as u64);
            let now = (BLOCK - within).min(length - done);
            if let Some(block) = &self.0[block] {
                bytes[done..done + now].copy_from_slice(&block[within..within + now]);
            }
            done += now;
        }
        bytes
    }

    /// Where these bytes stand, in one block and at the start of a sector.
    pub fn find(&self, bytes: &[u8]) -> Option<u64> {
        self.0.iter().enumerate().find_map(|(index, block)| {
            let block = block.as_ref()?;
            let mut starts = (0..=BLOCK - bytes.len()).step_by(SECTOR);
            let within = starts.find(|at| block[*at..].starts_with(bytes))?;
            Some((index * BLOCK + within) as u64)
        })
    }

    /// Writes; false beyond the end of the device.
    pub fn write(&mut self, at: u64, bytes: &[u8]) -> bool {
        if at.saturating_add(bytes.len() as u64) > self.bytes() {
            return false;
        }
        let mut done = 0;
        while done < bytes.len() {
            let (block, within) = place(at + done as u64);
            let now = (BLOCK - within).min(bytes.len() - done);
            let block = self.0[block].get_or_insert_with(|| Arc::new([0; BLOCK]));
            Arc::make_mut(block)[within..within + now].copy_from_slice(&bytes[done..done + now]);
            done += now;
        }
        true
    }
}

fn place(at: u64) -> (usize, usize) {
    ((at / BLOCK as u64) as usize, (at % BLOCK as u64) as usize)
}

/// A device with a volatile cache, as disks have: what was written since the last flush may be on
/// it or not, sector by sector.
#[derive(Debug)]
pub struct Cached {
    stable: Blocks,
    current: Blocks,
    unflushed: Vec<(u64, Vec<u8>)>,
    /// Flushes so far.
    pub flushes: u64,
}

/// What a cut leaves of the writes since the last flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// None of them.
    Nothing,
    /// All of them: the cut as a process's death would be, with the page cache lost.
    Everything,
    /// Whole writes, drawn by lot.
    Writes,
    /// Single sectors, drawn by lot.
    Sectors,
}

impl Cut {
    /// Every kind.
    pub const ALL: [Cut; 4] = [Cut::Sectors, Cut::Nothing, Cut::Writes, Cut::Everything];
}

impl Cached {
    /// A device that holds these bytes, all of them safe.
    pub fn new(bytes: Blocks) -> Cached {
        Cached { stable: bytes.clone(), current: bytes, unflushed: Vec::new(), flushes: 0 }
    }

    /// Reads what was written last.
    pub fn read(&self, at: u64, length: usize) -> Vec<u8> {
        self.current.read(at, length)
    }

    /// Writes into the cache; false beyond the end of the device.
    pub fn write(&mut self, at: u64, bytes: &[u8]) -> bool {
        let possible = self.current.write(at, bytes);
        if possible {
            self.unflushed.push((at, bytes.to_vec()));
        }
        possible
    }

    /// Everything written so far is safe.
    pub fn flush(&mut self) {
        self.stable = self.current.clone();
        self.unflushed.clear();
        self.flushes += 1;
    }

    /// Its size.
    pub fn bytes(&self) -> u64 {
        self.current.bytes()
    }

    /// Writes that no flush covers yet.
    pub fn unflushed(&self) -> usize {
        self.unflushed.len()
    }

    /// What is left when the power goes now. Of writes to one sector, any may be the last that
    /// reached it.
    pub fn cut(&self, cut: Cut, random: &mut impl FnMut() -> u64) -> Blocks {
        let mut left = self.stable.clone();
        for (at, bytes) in &self.unflushed {
            match cut {
                Cut::Nothing => {}
                Cut::Everything => {
                    left.write(*at, bytes);
                }
                Cut::Writes => {
                    if random().is_multiple_of(2) {
                        left.write(*at, bytes);
                    }
                }
                Cut::Sectors if *at < BLOCK as u64 => {
                    // ext4's superblock is two sectors under one checksum, and is looked at before
                    // the journal: half a one is a file system that no mount takes.
                    if random().is_multiple_of(2) {
                        left.write(*at, bytes);
                    }
                }
                Cut::Sectors => {
                    for (index, sector) in bytes.chunks(SECTOR).enumerate() {
                        if random().is_multiple_of(2) {
                            left.write(at + (index * SECTOR) as u64, sector);
                        }
                    }
                }
            }
        }
        left
    }
}
