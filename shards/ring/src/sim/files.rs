//! What executors do with their machine's disk: operations on files, and the requests to the two
//! helper threads each executor has, each first come, first served.

use std::io;

use super::ExecutorId;
use super::disk::Inode;
use super::happened::Accident;
use super::world::{Descriptor, Event, Flight, Kind, OpKey, World, concatenate, failure};
use crate::file::OpenOptions;
use crate::memory::BLOCK;
use crate::op::{Done, HelpReply, HelpRequest, Op};

impl World {
    pub fn disk_nanos(&mut self) -> u64 {
        let nanos = self.random.nanos(&self.faults.disk.delay);
        let slow = self.random.chance(self.faults.disk.slow_ppm);
        if slow { nanos * 100 } else { nanos }
    }

    /// A file, and the unit in which its transfers may be short.
    fn file(&self, number: i32) -> (Inode, usize) {
        match self.descriptors.get(&number).map(|d| d.kind) {
            Some(Kind::File { inode, direct: true, .. }) => (inode, BLOCK),
            Some(Kind::File { inode, .. }) => (inode, 512),
            other => panic!("descriptor {number} is {other:?}, not a file"),
        }
    }

    pub fn end_disk(&mut self, key: OpKey) {
        let Some(mut flight) = self.operations.remove(&key) else { return };
        let result = self.perform_on_disk(key.executor, &mut flight);
        self.operations.insert(key, flight);
        self.finish(key, result);
    }

    pub fn perform_on_disk(
        &mut self,
        executor: ExecutorId,
        flight: &mut Flight,
    ) -> io::Result<u32> {
        let machine = self.machine(executor).0;
        let faults = self.faults.disk.clone();
        match &mut flight.op {
            Op::Read { file, at, into } => {
                let (inode, unit) = self.file(file.number());
                if self.random.chance(faults.read_error_ppm) {
                    self.happened.count(Accident::FailedRead);
                    return failure(libc::EIO);
                }
                let take = self.shorten(into.len(), unit);
                let direct = unit == BLOCK;
                let bytes = self.disks[machine].read_as(inode, direct, *at, &mut into[..take])?;
                Ok(bytes as u32)
            }
            Op::Write { file, at, from } => {
                let (inode, unit) = self.file(file.number());
                if self.random.chance(faults.write_error_ppm) {
                    self.happened.count(Accident::FailedWrite);
                    return failure(libc::EIO);
                }
                let bytes = concatenate(from);
                let take = self.shorten(bytes.len(), unit);
                let written = self.disks[machine].write(inode, *at, &bytes[..take])?;
                Ok(written as u32)
            }
            Op::Allocate { file, at, len } => {
                let (inode, _) = self.file(file.number());
                self.disks[machine].allocate(inode, *at, *len).map(|()| 0)
            }
            Op::Truncate { file, len } => {
                let (inode, _) = self.file(file.number());
                self.disks[machine].truncate(inode, *len);
                Ok(0)
            }
            Op::SyncData { file } => {
                let fail = self.random.chance(faults.flush_error_ppm);
                let descriptor = self.descriptors.get_mut(&file.number());
                let Some(Descriptor { kind: Kind::File { inode, errors_seen, .. }, .. }) =
                    descriptor
                else {
                    panic!("a flush of something that is no file");
                };
                let fault = fail.then_some(&mut self.random);
                self.disks[machine].flush_file(*inode, flight.stamp, errors_seen, fault)?;
                Ok(0)
            }
            other => unreachable!("{other:?} is not the disk's"),
        }
    }

    /// A transfer may be short, by whole units.
    fn shorten(&mut self, len: usize, unit: usize) -> usize {
        let units = len / unit;
        if units > 1 && self.random.chance(self.faults.disk.short_ppm) {
            self.happened.count(Accident::ShortTransfer);
            return unit * (1 + self.random.index(units - 1));
        }
        len
    }

    // Helper threads.

    pub fn ask(&mut self, key: OpKey, request: HelpRequest) {
        let queue = usize::from(matches!(request, HelpRequest::SyncFilesystem(_)));
        let process = &mut self.executors[key.executor.0];
        process.helped += 1;
        process.helpers[queue].push_back((key.token, request, 0));
        if process.helpers[queue].len() == 1 {
            self.begin_help(key.executor, queue);
        }
    }

    fn begin_help(&mut self, executor: ExecutorId, queue: usize) {
        let machine = self.machine(executor);
        let disk = &mut self.disks[machine.0];
        if let Some((_, request, stamp)) = self.executors[executor.0].helpers[queue].front_mut() {
            if let HelpRequest::ReplaceSmall(path, bytes) = request {
                // In two steps, so that a crash may come between them.
                let _ = disk.write_small(&beside(path), bytes);
            }
            *stamp = disk.stamp();
            let delay = self.disk_nanos();
            self.after(delay, Event::Helper(executor, queue));
        }
    }

    pub fn end_help(&mut self, executor: ExecutorId, queue: usize) {
        if !self.executors[executor.0].alive {
            return;
        }
        let front = self.executors[executor.0].helpers[queue].pop_front();
        let (token, request, stamp) = front.expect("a helper works on its front request");
        let answer = self.help(executor, request, stamp);
        let (result, reply) = match answer {
            Ok(reply) => (Ok(0), Some(reply)),
            Err(error) => (Err(error), None),
        };
        self.executors[executor.0].done.push((token, Done { result, reply, op: None }));
        self.begin_help(executor, queue);
    }

    pub fn help(
        &mut self,
        executor: ExecutorId,
        r: HelpRequest,
        stamp: u64,
    ) -> io::Result<HelpReply> {
        let machine = self.machine(executor).0;
        let fail = self.random.chance(self.faults.disk.flush_error_ppm);
        let disk = &mut self.disks[machine];
        let nothing = |()| HelpReply::Nothing;
        match r {
            HelpRequest::Open(path, how) => {
                let inode = disk.open(&path, how)?;
                let errors_seen = disk.errors_of(inode);
                let kind = Kind::File { inode, direct: how.direct, errors_seen };
                Ok(HelpReply::Descriptor(self.add_descriptor(executor, kind)))
            }
            HelpRequest::Size(path) => disk.size(&path).map(HelpReply::Number),
            HelpRequest::CreateDirAll(path) => disk.create_dir_all(&path).map(nothing),
            HelpRequest::ReadDir(path) => disk.read_dir(&path).map(HelpReply::Entries),
            HelpRequest::Rename(from, to) => disk.rename(&from, &to).map(nothing),
            HelpRequest::RemoveFile(path) => disk.remove_file(&path).map(nothing),
            HelpRequest::RemoveDir(path) => disk.remove_dir(&path).map(nothing),
            HelpRequest::SyncDir(path) => disk.flush_dir(&path, stamp, fail).map(nothing),
            HelpRequest::SyncFilesystem(path) => {
                disk.size(&path)?;
                let seen = &mut self.executors[executor.0].errors_seen;
                let fault = fail.then_some(&mut self.random);
                disk.flush_filesystem(stamp, seen, fault).map(nothing)
            }
            HelpRequest::FreeBytes(path) => {
                disk.size(&path)?;
                Ok(HelpReply::Number(disk.free_bytes()))
            }
            HelpRequest::ReadSmall(path, max) => disk.read_small(&path, max).map(HelpReply::Bytes),
            HelpRequest::WriteSmall(path, bytes) => disk.write_small(&path, &bytes).map(nothing),
            HelpRequest::ReplaceSmall(path, bytes) => {
                disk.write_small(&beside(&path), &bytes)?;
                let inode = disk.open(&beside(&path), OpenOptions::READ_WRITE)?;
                let (mut seen, stamp) = (disk.errors_of(inode), disk.stamp());
                let fault = fail.then_some(&mut self.random);
                let flushed = disk.flush_file(inode, stamp, &mut seen, fault);
                disk.close(inode);
                flushed?;
                disk.rename(&beside(&path), &path)?;
                let parent = path.parent().unwrap_or(std::path::Path::new("/"));
                disk.flush_dir(parent, disk.stamp(), false).map(nothing)
            }
        }
    }
}

fn beside(path: &std::path::Path) -> std::path::PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    name.into()
}
