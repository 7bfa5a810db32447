//! Directories and lengths: what a journaling file system logs.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::ops::Range;
use std::path::{Component, Path};

/// Names a file or directory of a disk.
pub type Inode = u64;
/// The directory `/`.
pub const ROOT: Inode = 1;

/// One state of the namespace.
#[derive(Clone, Debug)]
pub struct Namespace {
    directories: BTreeMap<Inode, BTreeMap<OsString, Inode>>,
    lengths: BTreeMap<Inode, u64>,
}

/// One logged change.
#[derive(Clone, Debug)]
pub enum Change {
    /// A new file or directory.
    Create { dir: Inode, name: OsString, inode: Inode, is_dir: bool },
    /// A name is gone, and what it named.
    Remove { dir: Inode, name: OsString },
    /// A name moved, replacing what was there.
    Rename { from: (Inode, OsString), to: (Inode, OsString) },
    /// Another length. A write that extends a file names the sectors it wrote: their data
    /// reaches the device before this change does.
    Length { inode: Inode, len: u64, cut: bool, data: Range<u64> },
}

impl Change {
    /// Whether a flush of this inode must wait for the change.
    pub fn concerns(&self, wanted: Inode) -> bool {
        match self {
            Change::Create { dir, inode, .. } => *inode == wanted || *dir == wanted,
            Change::Remove { dir, .. } => *dir == wanted,
            Change::Rename { from, to } => from.0 == wanted || to.0 == wanted,
            Change::Length { inode, .. } => *inode == wanted,
        }
    }
}

pub fn error(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}

impl Namespace {
    pub fn new() -> Self {
        let directories = BTreeMap::from([(ROOT, BTreeMap::new())]);
        Self { directories, lengths: BTreeMap::new() }
    }

    pub fn apply(&mut self, change: &Change) {
        match change {
            Change::Create { dir, name, inode, is_dir } => {
                if *is_dir {
                    self.directories.insert(*inode, BTreeMap::new());
                } else {
                    self.lengths.insert(*inode, 0);
                }
                self.entries(*dir).insert(name.clone(), *inode);
            }
            Change::Remove { dir, name } => {
                let inode = self.entries(*dir).remove(name).expect("a logged name is there");
                self.directories.remove(&inode);
            }
            Change::Rename { from, to } => {
                let inode = self.entries(from.0).remove(&from.1).expect("a logged name is there");
                if let Some(replaced) = self.entries(to.0).insert(to.1.clone(), inode) {
                    self.directories.remove(&replaced);
                }
            }
            // A file without a name keeps its length while it is open.
            Change::Length { inode, len, .. } => {
                self.lengths.insert(*inode, *len);
            }
        }
    }

    fn entries(&mut self, dir: Inode) -> &mut BTreeMap<OsString, Inode> {
        self.directories.get_mut(&dir).expect("a logged directory is there")
    }

    pub fn is_dir(&self, inode: Inode) -> bool {
        self.directories.contains_key(&inode)
    }

    /// A directory's entries.
    pub fn list(&self, dir: Inode) -> impl Iterator<Item = (&OsStr, Inode)> {
        let entries = self.directories.get(&dir).into_iter().flatten();
        entries.map(|(name, inode)| (name.as_os_str(), *inode))
    }

    /// A file's length.
    pub fn len(&self, inode: Inode) -> u64 {
        self.lengths.get(&inode).copied().unwrap_or(0)
    }

    /// Every file that has a name.
    pub fn files(&self) -> impl Iterator<Item = Inode> {
        let named = self.directories.values().flat_map(|entries| entries.values());
        named.copied().filter(|inode| !self.is_dir(*inode))
    }

    /// Forgets the lengths of files that `keep` does not want.
    pub fn sweep(&mut self, keep: impl Fn(Inode) -> bool) {
        self.lengths.retain(|inode, _| keep(*inode));
    }

    /// What a path names. Relative paths start at the root; there are no links.
    pub fn find(&self, path: &Path) -> io::Result<Inode> {
        let mut at = vec![ROOT];
        for part in path.components() {
            match part {
                Component::ParentDir if at.len() > 1 => drop(at.pop()),
                Component::Normal(name) => {
                    let dir = at[at.len() - 1];
                    let entries = self.directories.get(&dir).ok_or_else(|| error(libc::ENOTDIR))?;
                    at.push(*entries.get(name).ok_or_else(|| error(libc::ENOENT))?);
                }
                _ => {}
            }
        }
        Ok(at[at.len() - 1])
    }

    /// The directory that holds a path's last name, and that name.
    pub fn parent(&self, path: &Path) -> io::Result<(Inode, OsString)> {
        let name = path.file_name().ok_or_else(|| error(libc::EINVAL))?;
        let dir = self.find(path.parent().unwrap_or(Path::new("/")))?;
        if !self.is_dir(dir) {
            return Err(error(libc::ENOTDIR));
        }
        Ok((dir, name.to_owned()))
    }
}
