//! A simulated disk with a journaling file system on it, as ext4 (`data=ordered`) and XFS behave.
//!
//! - **Data**: content is kept by 512-byte sectors in layers ([`sectors`]): what reads see, what
//!   the device surely holds, and every version in between. A power loss keeps, per sector, any one
//!   of the versions since the last flush or the flushed one, and never a mix of bytes within one.
//! - **Metadata**: creates, removals, renames and lengths go into a journal ([`namespace`]). A
//!   power loss keeps a *prefix* of it: both file systems log metadata in order and write whole
//!   transactions. What is finer in reality (an fsync of one file commits the running
//!   transaction) is modelled at its weakest: a flush of a file commits the journal only as far as
//!   the last change that concerns this file.
//! - **Ordered data**: a write that extended a file reaches the device before the longer length
//!   does: neither file system ever shows bytes nobody wrote. Within the old length, and within
//!   allocated space, nothing is ordered; space never written reads as zeros.
//! - **Flushes** cover what was *completed* when the flush was asked for. A failed flush leaves its
//!   pages clean: later flushes succeed without them, reads may see either state, and the error is
//!   reported once per descriptor (`errseq_t`), so one who does not look never learns of it.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::Path;

use super::happened::{Accident, Happened};
use crate::file::OpenOptions;
use crate::memory::BLOCK;
use crate::op::DirEntry;

mod broken;
mod flushing;
mod namespace;
mod sectors;

pub use namespace::Inode;
use namespace::{Change, Namespace, ROOT, error};
use sectors::Sectors;

/// One machine's disk.
pub struct Disk {
    seen: Namespace,
    durable: Namespace,
    journal: VecDeque<(u64, Change)>,
    files: BTreeMap<Inode, Content>,
    next_inode: Inode,
    stamp: u64,
    capacity_bytes: u64,
    allocated_bytes: u64,
    /// Flushes that failed so far, as `syncfs` counts them.
    errors: u64,
    fail_flushes: u32,
    happened: Happened,
}

#[derive(Default)]
struct Content {
    sectors: Sectors,
    allocated: u64,
    open: u32,
    /// Flushes that failed so far and concerned this file.
    errors: u64,
}

impl Disk {
    pub(super) fn new(capacity_bytes: u64) -> Self {
        let seen = Namespace::new();
        Self {
            durable: seen.clone(),
            seen,
            journal: VecDeque::new(),
            files: BTreeMap::new(),
            next_inode: ROOT + 1,
            stamp: 0,
            capacity_bytes,
            allocated_bytes: 0,
            errors: 0,
            fail_flushes: 0,
            happened: Happened::default(),
        }
    }

    /// The point up to which a flush asked for now reaches.
    pub(super) fn stamp(&self) -> u64 {
        self.stamp
    }

    fn tick(&mut self) -> u64 {
        self.stamp += 1;
        self.stamp
    }

    fn log(&mut self, change: Change) {
        let stamp = self.tick();
        self.seen.apply(&change);
        self.journal.push_back((stamp, change));
    }

    fn content(&mut self, inode: Inode) -> &mut Content {
        self.files.get_mut(&inode).expect("an open or named file is kept")
    }

    fn file(&self, path: &Path) -> io::Result<Inode> {
        let inode = self.seen.find(path)?;
        if self.seen.is_dir(inode) { Err(error(libc::EISDIR)) } else { Ok(inode) }
    }

    pub(super) fn open(&mut self, path: &Path, how: OpenOptions) -> io::Result<Inode> {
        let inode = match self.file(path) {
            Ok(_) if how.create_new => return Err(error(libc::EEXIST)),
            Ok(inode) => inode,
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) && (how.create || how.create_new) => {
                let (dir, name) = self.seen.parent(path)?;
                let inode = self.next_inode;
                self.next_inode += 1;
                self.files.insert(inode, Content::default());
                self.log(Change::Create { dir, name, inode, is_dir: false });
                inode
            }
            Err(e) => return Err(e),
        };
        if how.truncate {
            self.truncate(inode, 0);
        }
        self.content(inode).open += 1;
        Ok(inode)
    }

    pub(super) fn close(&mut self, inode: Inode) {
        self.content(inode).open -= 1;
        self.sweep();
    }

    /// Drops the bytes of files that have no name, in either layer, and are not open.
    fn sweep(&mut self) {
        let mut named: std::collections::BTreeSet<_> = self.seen.files().collect();
        named.extend(self.durable.files());
        named.extend(self.journal.iter().filter_map(|(_, change)| match change {
            Change::Create { inode, .. } | Change::Length { inode, .. } => Some(*inode),
            _ => None,
        }));
        self.files.retain(|inode, content| content.open > 0 || named.contains(inode));
        self.count_space();
        let files = &self.files;
        self.seen.sweep(|inode| files.contains_key(&inode));
        self.durable.sweep(|inode| files.contains_key(&inode));
    }

    /// Past the page cache, if the file is open for that.
    pub(super) fn read_as(
        &mut self,
        inode: Inode,
        direct: bool,
        at: u64,
        into: &mut [u8],
    ) -> io::Result<usize> {
        let bytes = self.read(inode, at, into)?;
        if direct {
            self.files[&inode].sectors.read_device(at, &mut into[..bytes]);
        }
        Ok(bytes)
    }

    pub(super) fn read(&mut self, inode: Inode, at: u64, into: &mut [u8]) -> io::Result<usize> {
        let len = self.seen.len(inode);
        let bytes = usize::try_from(len.saturating_sub(at)).unwrap_or(0).min(into.len());
        let sectors = &self.files[&inode].sectors;
        if sectors.unreadable(at..at + bytes as u64) {
            self.happened.count(Accident::FailedRead);
            return Err(error(libc::EIO));
        }
        sectors.read(at, &mut into[..bytes]);
        Ok(bytes)
    }

    /// Takes space up to `end`, or as far as the disk holds out.
    fn take_space(&mut self, inode: Inode, end: u64) -> u64 {
        let free = self.free_bytes() / BLOCK as u64 * BLOCK as u64;
        let content = self.content(inode);
        let wanted = end.next_multiple_of(BLOCK as u64);
        let possible = wanted.min(content.allocated + free);
        let more = possible.saturating_sub(content.allocated);
        content.allocated += more;
        let reached = content.allocated.min(end);
        self.allocated_bytes += more;
        reached
    }

    pub(super) fn write(&mut self, inode: Inode, at: u64, bytes: &[u8]) -> io::Result<usize> {
        let end = self.take_space(inode, at + bytes.len() as u64);
        if end <= at && !bytes.is_empty() {
            self.happened.count(Accident::FullDisk);
            return Err(error(libc::ENOSPC));
        }
        let bytes = &bytes[..(end - at) as usize];
        let stamp = self.tick();
        let data = self.content(inode).sectors.write(at, bytes, stamp);
        if end > self.seen.len(inode) {
            let change = Change::Length { inode, len: end, cut: false, data };
            self.seen.apply(&change);
            self.journal.push_back((stamp, change));
        }
        Ok(bytes.len())
    }

    pub(super) fn allocate(&mut self, inode: Inode, at: u64, len: u64) -> io::Result<()> {
        let end = at + len;
        if self.take_space(inode, end) < end {
            self.happened.count(Accident::FullDisk);
            return Err(error(libc::ENOSPC));
        }
        if end > self.seen.len(inode) {
            self.log(Change::Length { inode, len: end, cut: false, data: 0..0 });
        }
        Ok(())
    }

    pub(super) fn truncate(&mut self, inode: Inode, len: u64) {
        let old = self.seen.len(inode);
        let cut = len < old;
        self.log(Change::Length { inode, len, cut, data: 0..0 });
        let stamp = self.stamp;
        let content = self.content(inode);
        if cut {
            content.sectors.cut(len, stamp);
            content.allocated = len.next_multiple_of(BLOCK as u64);
            self.count_space();
        }
    }

    pub(super) fn create_dir_all(&mut self, path: &Path) -> io::Result<()> {
        match self.seen.find(path) {
            Ok(inode) if self.seen.is_dir(inode) => return Ok(()),
            Ok(_) => return Err(error(libc::EEXIST)),
            Err(e) if e.raw_os_error() != Some(libc::ENOENT) => return Err(e),
            Err(_) => {}
        }
        if let Some(parent) = path.parent() {
            self.create_dir_all(parent)?;
        }
        let (dir, name) = self.seen.parent(path)?;
        let inode = self.next_inode;
        self.next_inode += 1;
        self.log(Change::Create { dir, name, inode, is_dir: true });
        Ok(())
    }

    pub(super) fn read_dir(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        let dir = self.seen.find(path)?;
        if !self.seen.is_dir(dir) {
            return Err(error(libc::ENOTDIR));
        }
        let entry = |(name, inode): (&std::ffi::OsStr, Inode)| DirEntry {
            name: name.to_owned(),
            is_dir: self.seen.is_dir(inode),
            len: self.seen.len(inode),
        };
        Ok(self.seen.list(dir).map(entry).collect())
    }

    pub(super) fn size(&self, path: &Path) -> io::Result<u64> {
        self.seen.find(path).map(|inode| self.seen.len(inode))
    }

    pub(super) fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let moved = self.seen.find(from)?;
        let (from, to_parent) = (self.seen.parent(from)?, self.seen.parent(to)?);
        if let Ok(replaced) = self.seen.find(to) {
            match (self.seen.is_dir(moved), self.seen.is_dir(replaced)) {
                _ if moved == replaced => return Ok(()),
                (true, false) => return Err(error(libc::ENOTDIR)),
                (false, true) => return Err(error(libc::EISDIR)),
                (true, true) if self.seen.list(replaced).next().is_some() => {
                    return Err(error(libc::ENOTEMPTY));
                }
                _ => {}
            }
        }
        self.log(Change::Rename { from, to: to_parent });
        self.sweep();
        Ok(())
    }

    pub(super) fn remove_file(&mut self, path: &Path) -> io::Result<()> {
        self.file(path)?;
        let (dir, name) = self.seen.parent(path)?;
        self.log(Change::Remove { dir, name });
        self.sweep();
        Ok(())
    }

    pub(super) fn remove_dir(&mut self, path: &Path) -> io::Result<()> {
        let inode = self.seen.find(path)?;
        if !self.seen.is_dir(inode) {
            return Err(error(libc::ENOTDIR));
        }
        if self.seen.list(inode).next().is_some() {
            return Err(error(libc::ENOTEMPTY));
        }
        let (dir, name) = self.seen.parent(path)?;
        self.log(Change::Remove { dir, name });
        Ok(())
    }

    pub(super) fn read_small(&mut self, path: &Path, bytes_max: usize) -> io::Result<Vec<u8>> {
        let inode = self.file(path)?;
        let len = self.seen.len(inode);
        if len > bytes_max as u64 {
            let message = format!("{} is longer than {bytes_max} bytes", path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        let mut bytes = vec![0; len as usize];
        self.read(inode, 0, &mut bytes).map(|_| bytes)
    }

    pub(super) fn write_small(&mut self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let how = OpenOptions { write: true, create: true, truncate: true, ..Default::default() };
        let inode = self.open(path, how)?;
        let written = self.write(inode, 0, bytes);
        self.close(inode);
        if written? < bytes.len() { Err(error(libc::ENOSPC)) } else { Ok(()) }
    }

    fn count_space(&mut self) {
        self.allocated_bytes = self.files.values().map(|file| file.allocated).sum();
    }
}
