//! Flushes of a simulated disk, those that fail too, and what is left when the power goes.

use std::io;
use std::path::Path;

use super::Disk;
use super::namespace::{Change, Inode, error};
use crate::memory::BLOCK;
use crate::sim::faults::Random;
use crate::sim::happened::Accident;

impl Disk {
    /// Flushes one file as of `until`, or fails to; `seen_errors` is the descriptor's own count.
    pub(in crate::sim) fn flush_file(
        &mut self,
        inode: Inode,
        until: u64,
        seen_errors: &mut u64,
        fault: Option<&mut Random>,
    ) -> io::Result<()> {
        let forced = self.forced_failure();
        if let Some(random) = fault {
            self.abandon_file(inode, until, random);
        } else if forced {
            self.abandon_file(inode, until, &mut Random::new(self.stamp));
        } else {
            self.content(inode).sectors.flush(until);
            self.commit_for(inode, until);
        }
        let errors = self.content(inode).errors;
        if std::mem::replace(seen_errors, errors) < errors {
            return Err(error(libc::EIO));
        }
        Ok(())
    }

    fn abandon_file(&mut self, inode: Inode, until: u64, random: &mut Random) {
        let content = self.content(inode);
        content.sectors.abandon(until, random);
        content.errors += 1;
        self.errors += 1;
        self.happened.count(Accident::FailedFlush);
    }

    /// Flush errors a descriptor opened on this file now would not be told of.
    pub(in crate::sim) fn errors_of(&self, inode: Inode) -> u64 {
        self.files[&inode].errors
    }

    /// Flushes a directory as of `until`.
    pub(in crate::sim) fn flush_dir(
        &mut self,
        path: &Path,
        until: u64,
        fail: bool,
    ) -> io::Result<()> {
        let dir = self.seen.find(path)?;
        if self.forced_failure() || fail {
            self.happened.count(Accident::FailedFlush);
            return Err(error(libc::EIO));
        }
        self.commit_for(dir, until);
        Ok(())
    }

    /// Flushes everything as of `until`; `seen_errors` is the caller's own count.
    pub(in crate::sim) fn flush_filesystem(
        &mut self,
        until: u64,
        seen_errors: &mut u64,
        fault: Option<&mut Random>,
    ) -> io::Result<()> {
        if self.forced_failure() || fault.is_some() {
            self.happened.count(Accident::FailedFlush);
            let mut own = Random::new(self.stamp);
            let random = fault.unwrap_or(&mut own);
            for content in self.files.values_mut() {
                content.errors += u64::from(content.sectors.abandon(until, random));
            }
            self.errors += 1;
        } else {
            self.flush_all(until);
        }
        if std::mem::replace(seen_errors, self.errors) < self.errors {
            return Err(error(libc::EIO));
        }
        Ok(())
    }

    fn forced_failure(&mut self) -> bool {
        let forced = self.fail_flushes > 0;
        self.fail_flushes -= u32::from(forced);
        forced
    }

    pub(super) fn flush_all(&mut self, until: u64) {
        for content in self.files.values_mut() {
            content.sectors.flush(until);
        }
        self.commit(until);
        self.sweep();
    }

    /// Commits the journal as far as the last change that concerns `inode`.
    fn commit_for(&mut self, inode: Inode, until: u64) {
        let concerned =
            |(stamp, change): &&(u64, Change)| *stamp <= until && change.concerns(inode);
        if let Some(last) = self.journal.iter().rev().find(concerned).map(|(stamp, _)| *stamp) {
            self.commit(last);
        }
    }

    fn commit(&mut self, until: u64) {
        while self.journal.front().is_some_and(|(stamp, _)| *stamp <= until) {
            let (stamp, change) = self.journal.pop_front().expect("just seen");
            self.durable.apply(&change);
            let Change::Length { inode, cut, data, .. } = change else { continue };
            let Some(content) = self.files.get_mut(&inode) else { continue };
            if cut {
                content.sectors.commit_cut(stamp);
            } else {
                content.sectors.commit_extension(data, stamp);
            }
        }
    }

    /// The power went. What is left becomes what is seen.
    pub(in crate::sim) fn crash(&mut self, unreadable_ppm: u32, random: &mut Random) {
        let kept = match random.below(4) {
            0 => 0,
            1 => self.journal.len(),
            _ => random.index(self.journal.len() + 1),
        };
        if kept > 0 {
            self.commit(self.journal[kept - 1].0);
        }
        self.journal.clear();
        self.seen = self.durable.clone();
        for content in self.files.values_mut() {
            content.open = 0;
        }
        self.sweep();
        for (inode, content) in &mut self.files {
            let len = self.seen.len(*inode);
            self.happened += content.sectors.crash(len, unreadable_ppm, random);
            content.allocated = len.next_multiple_of(BLOCK as u64);
        }
        self.count_space();
    }
}
