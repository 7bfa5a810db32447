//! What tests may look at on a simulated disk, and break.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::Disk;
use crate::sim::happened::Happened;

impl Disk {
    /// A file's bytes, as a read would see them.
    pub fn read_file(&self, path: impl AsRef<Path>) -> Option<Vec<u8>> {
        let inode = self.file(path.as_ref()).ok()?;
        let mut bytes = vec![0; self.seen.len(inode) as usize];
        self.files[&inode].sectors.read(0, &mut bytes);
        Some(bytes)
    }

    /// Puts a file there, flushed; its directory must be there.
    ///
    /// # Errors
    /// As `open(2)` and `write(2)`.
    pub fn write_file(&mut self, path: impl AsRef<Path>, bytes: &[u8]) -> io::Result<()> {
        self.write_small(path.as_ref(), bytes)?;
        self.flush_all(self.stamp);
        Ok(())
    }

    /// Makes a directory and its parents, flushed.
    ///
    /// # Errors
    /// As `mkdir(2)`.
    pub fn make_dir(&mut self, path: impl AsRef<Path>) -> io::Result<()> {
        self.create_dir_all(path.as_ref())?;
        self.flush_all(self.stamp);
        Ok(())
    }

    /// Removes a file, flushed.
    ///
    /// # Errors
    /// As `unlink(2)`.
    pub fn lose_file(&mut self, path: impl AsRef<Path>) -> io::Result<()> {
        self.remove_file(path.as_ref())?;
        self.flush_all(self.stamp);
        Ok(())
    }

    /// Cuts or extends a file, flushed.
    ///
    /// # Errors
    /// As `truncate(2)`.
    pub fn cut_file(&mut self, path: impl AsRef<Path>, len: u64) -> io::Result<()> {
        let inode = self.file(path.as_ref())?;
        self.truncate(inode, len);
        self.flush_all(self.stamp);
        Ok(())
    }

    /// Every file below a directory, with its length, in order.
    ///
    /// # Errors
    /// As `readdir(3)`.
    pub fn files(&self, below: impl AsRef<Path>) -> io::Result<Vec<(PathBuf, u64)>> {
        let mut found = Vec::new();
        for entry in self.read_dir(below.as_ref())? {
            let path = below.as_ref().join(&entry.name);
            match entry.is_dir {
                true => found.extend(self.files(path)?),
                false => found.push((path, entry.len)),
            }
        }
        Ok(found)
    }

    /// Turns one bit of a file, in every layer.
    ///
    /// # Panics
    /// If there is no such file.
    pub fn flip_bit(&mut self, path: impl AsRef<Path>, at: u64, bit: u8) {
        let inode = self.file(path.as_ref()).expect("a file to break");
        self.content(inode).sectors.flip(at, bit);
    }

    /// Turns one bit of a file on the device; until it is written again, or the power goes, only
    /// direct reads show it.
    ///
    /// # Panics
    /// If there is no such file.
    pub fn rot_bit(&mut self, path: impl AsRef<Path>, at: u64, bit: u8) {
        let inode = self.file(path.as_ref()).expect("a file to break");
        self.content(inode).sectors.rot(at, bit);
    }

    /// Makes the sectors of a byte range unreadable (EIO) until they are written again.
    ///
    /// # Panics
    /// If there is no such file.
    pub fn spoil(&mut self, path: impl AsRef<Path>, range: Range<u64>) {
        let inode = self.file(path.as_ref()).expect("a file to break");
        self.content(inode).sectors.spoil(range);
    }

    /// Lets the next flushes fail.
    pub fn fail_flushes(&mut self, count: u32) {
        self.fail_flushes = count;
    }

    /// Changes the disk's size: small enough, and it is full.
    pub fn set_capacity(&mut self, bytes: u64) {
        self.capacity_bytes = bytes;
    }

    /// Bytes not yet allocated.
    pub fn free_bytes(&self) -> u64 {
        self.capacity_bytes.saturating_sub(self.allocated_bytes)
    }

    /// What went wrong on it so far.
    pub(in crate::sim) fn happened(&self) -> Happened {
        self.happened
    }

    /// Whether anything seen would not surely survive a power loss.
    pub fn is_dirty(&self) -> bool {
        !self.journal.is_empty() || self.files.values().any(|file| file.sectors.is_dirty())
    }
}
