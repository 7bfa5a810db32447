//! The file system's namespace, small control files, and flushes. All done by a helper thread, for
//! all of them may block; none belongs on the data path.

use std::io;
use std::path::Path;

pub use crate::op::DirEntry;
use crate::op::{HelpReply, HelpRequest, Op, perform};

pub(crate) async fn help(request: HelpRequest) -> io::Result<HelpReply> {
    let done = perform(Op::Help(request)).await;
    done.result?;
    Ok(done.reply.expect("a helper answers"))
}

macro_rules! done {
    ($request:expr) => {
        help($request).await.map(drop)
    };
}

/// Makes a directory and its parents; fine if it is there.
///
/// # Errors
/// As `mkdir(2)`.
pub async fn create_dir_all(path: impl AsRef<Path>) -> io::Result<()> {
    done!(HelpRequest::CreateDirAll(path.as_ref().to_owned()))
}

/// A directory's entries, sorted by name.
///
/// # Errors
/// As `readdir(3)`.
pub async fn read_dir(path: impl AsRef<Path>) -> io::Result<Vec<DirEntry>> {
    match help(HelpRequest::ReadDir(path.as_ref().to_owned())).await? {
        HelpReply::Entries(mut entries) => {
            entries.sort();
            Ok(entries)
        }
        other => unreachable!("read_dir answered {other:?}"),
    }
}

/// Renames, replacing the target.
///
/// # Errors
/// As `rename(2)`.
pub async fn rename(from: impl AsRef<Path>, to: impl AsRef<Path>) -> io::Result<()> {
    done!(HelpRequest::Rename(from.as_ref().to_owned(), to.as_ref().to_owned()))
}

/// Removes a file.
///
/// # Errors
/// As `unlink(2)`.
pub async fn remove_file(path: impl AsRef<Path>) -> io::Result<()> {
    done!(HelpRequest::RemoveFile(path.as_ref().to_owned()))
}

/// Removes an empty directory.
///
/// # Errors
/// As `rmdir(2)`.
pub async fn remove_dir(path: impl AsRef<Path>) -> io::Result<()> {
    done!(HelpRequest::RemoveDir(path.as_ref().to_owned()))
}

/// Waits until a directory's entries are on the device.
///
/// # Errors
/// As `fsync(2)`.
pub async fn sync_dir(path: impl AsRef<Path>) -> io::Result<()> {
    done!(HelpRequest::SyncDir(path.as_ref().to_owned()))
}

/// Waits until everything written to the file system that holds `path` is on the device.
///
/// # Errors
/// As `syncfs(2)`: also an error of any earlier write-back since the path was first synced.
pub async fn sync_filesystem(path: impl AsRef<Path>) -> io::Result<()> {
    done!(HelpRequest::SyncFilesystem(path.as_ref().to_owned()))
}

/// Bytes still free for an unprivileged process.
///
/// # Errors
/// As `statvfs(3)`.
pub async fn free_bytes(path: impl AsRef<Path>) -> io::Result<u64> {
    number(HelpRequest::FreeBytes(path.as_ref().to_owned())).await
}

/// A file's length in bytes.
///
/// # Errors
/// As `stat(2)`.
pub async fn size(path: impl AsRef<Path>) -> io::Result<u64> {
    number(HelpRequest::Size(path.as_ref().to_owned())).await
}

/// Whether something is there.
///
/// # Errors
/// As `stat(2)`, but for "not found".
pub async fn exists(path: impl AsRef<Path>) -> io::Result<bool> {
    match size(path).await {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

async fn number(request: HelpRequest) -> io::Result<u64> {
    match help(request).await? {
        HelpReply::Number(number) => Ok(number),
        other => unreachable!("a question for a number was answered {other:?}"),
    }
}

/// A whole small file.
///
/// # Errors
/// As `open(2)` and `read(2)`; `InvalidData` when it is longer than `bytes_max`.
pub async fn read(path: impl AsRef<Path>, bytes_max: usize) -> io::Result<Vec<u8>> {
    match help(HelpRequest::ReadSmall(path.as_ref().to_owned(), bytes_max)).await? {
        HelpReply::Bytes(bytes) => Ok(bytes),
        other => unreachable!("read answered {other:?}"),
    }
}

/// Writes a whole small file, creating or replacing it in place. Not flushed.
///
/// # Errors
/// As `open(2)` and `write(2)`.
pub async fn write(path: impl AsRef<Path>, bytes: Vec<u8>) -> io::Result<()> {
    done!(HelpRequest::WriteSmall(path.as_ref().to_owned(), bytes))
}

/// Replaces a small file so that after any crash it holds either the old bytes or the new: written
/// beside, flushed, renamed over, and the directory flushed.
///
/// # Errors
/// As the calls it makes.
pub async fn replace(path: impl AsRef<Path>, bytes: Vec<u8>) -> io::Result<()> {
    done!(HelpRequest::ReplaceSmall(path.as_ref().to_owned(), bytes))
}
