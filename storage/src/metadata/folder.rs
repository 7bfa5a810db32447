//! The folder that the snapshots lie in, behind the few operations that a commit is made of: tests
//! lose power between any two of them.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, FallocateFlags, RenameFlags, fallocate, renameat2};

/// Files by name.
pub trait Folder {
    /// An open file.
    type File: Read;

    /// A file to be read, and its length in bytes; `None` when there is none.
    fn open(&self, name: &str) -> io::Result<Option<(Self::File, u64)>>;

    /// Writes over the beginning of a file, which is made if there is none, and flushes it. What
    /// lies behind stays.
    fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()>;

    /// Sees to it that so many bytes of a file can be written whatever else becomes of the disk.
    fn reserve(&self, name: &str, bytes: u64) -> io::Result<()>;

    /// Gives a file another name; a file that has that name is gone.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Two files change names in one step.
    fn exchange(&self, one: &str, other: &str) -> io::Result<()>;

    /// Makes the names durable.
    fn sync(&self) -> io::Result<()>;
}

/// A real one, locked (flock) as long as this lives.
pub struct Directory {
    path: PathBuf,
    handle: File,
}

impl Directory {
    /// Locks it.
    ///
    /// # Errors
    /// `None` when another process has it.
    pub fn lock(path: &Path) -> Result<Directory, Option<io::Error>> {
        let handle = File::open(path).map_err(Some)?;
        match handle.try_lock() {
            Ok(()) => Ok(Directory { path: path.to_owned(), handle }),
            Err(TryLockError::WouldBlock) => Err(None),
            Err(TryLockError::Error(error)) => Err(Some(error)),
        }
    }

    fn for_writing(&self, name: &str) -> io::Result<File> {
        File::options().create(true).truncate(false).write(true).open(self.path.join(name))
    }
}

impl Folder for Directory {
    type File = File;

    fn open(&self, name: &str) -> io::Result<Option<(File, u64)>> {
        match File::open(self.path.join(name)) {
            Ok(file) => {
                let bytes = file.metadata()?.len();
                Ok(Some((file, bytes)))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let file = self.for_writing(name)?;
        file.write_all_at(bytes, 0)?;
        file.sync_data()
    }

    fn reserve(&self, name: &str, bytes: u64) -> io::Result<()> {
        let file = self.for_writing(name)?;
        let before = file.metadata()?.len();
        let bytes = bytes.max(before);
        if let Err(error) = fallocate(&file, FallocateFlags::empty(), 0, bytes.cast_signed()) {
            // Of what a full disk has left nothing is taken in vain.
            file.set_len(before)?;
            return Err(error.into());
        }
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path.join(from), self.path.join(to))
    }

    fn exchange(&self, one: &str, other: &str) -> io::Result<()> {
        let (one, other) = (self.path.join(one), self.path.join(other));
        Ok(renameat2(AT_FDCWD, &one, AT_FDCWD, &other, RenameFlags::RENAME_EXCHANGE)?)
    }

    fn sync(&self) -> io::Result<()> {
        self.handle.sync_all()
    }
}
