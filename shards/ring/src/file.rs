//! Files: positioned reads and writes over leases and slices.

use std::io;
use std::path::Path;
use std::rc::Rc;

use crate::fs::help;
use crate::memory::{BLOCK, Gather, Lease};
use crate::op::{Handle, HelpReply, HelpRequest, Op, perform};

/// How to open a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenOptions {
    /// For reading.
    pub read: bool,
    /// For writing.
    pub write: bool,
    /// Create it if it is not there.
    pub create: bool,
    /// Fail if it is there.
    pub create_new: bool,
    /// Direct I/O: addresses, lengths and positions in multiples of [`BLOCK`].
    pub direct: bool,
    /// Cut it to nothing.
    pub truncate: bool,
}

impl OpenOptions {
    /// For reading alone.
    pub const READ: Self = Self {
        read: true,
        write: false,
        create: false,
        create_new: false,
        direct: false,
        truncate: false,
    };

    /// For reading and writing, created if need be.
    pub const READ_WRITE: Self = Self { write: true, create: true, ..Self::READ };

    /// The same past the page cache.
    #[must_use]
    pub const fn direct(self) -> Self {
        Self { direct: true, ..self }
    }
}

/// An open file; cheap to clone. It closes when the last clone and the last operation are gone.
#[derive(Clone, Debug)]
pub struct File {
    handle: Rc<Handle>,
    direct: bool,
}

impl File {
    /// Opens a file.
    ///
    /// # Errors
    /// As `open(2)`.
    pub async fn open(path: impl AsRef<Path>, options: OpenOptions) -> io::Result<Self> {
        match help(HelpRequest::Open(path.as_ref().to_owned(), options)).await? {
            HelpReply::Descriptor(number) => {
                Ok(Self { handle: Handle::adopt(number), direct: options.direct })
            }
            other => unreachable!("open answered {other:?}"),
        }
    }

    /// Reads into the lease from byte `at`; gives the lease back. May be short; 0 is the end.
    ///
    /// # Errors
    /// As `pread(2)`.
    pub async fn read_at(&self, at: u64, into: Lease) -> (io::Result<usize>, Lease) {
        if self.direct {
            assert_aligned("read", at, into.address(), into.len());
        }
        let done = perform(Op::Read { file: Rc::clone(&self.handle), at, into }).await;
        match done.op {
            Some(Op::Read { into, .. }) => (done.result.map(|bytes| bytes as usize), into),
            other => unreachable!("a read came back as {other:?}"),
        }
    }

    /// Writes all slices, one behind another, from byte `at`. May be short.
    ///
    /// # Errors
    /// As `pwritev(2)`.
    ///
    /// # Panics
    /// On a direct file, if a slice's address or length or the position is not a whole block.
    pub async fn write_at(&self, at: u64, from: Gather) -> io::Result<usize> {
        if self.direct {
            for slice in &from {
                assert_aligned("write", at, slice.address(), slice.len());
            }
        }
        let done = perform(Op::Write { file: Rc::clone(&self.handle), at, from }).await;
        done.result.map(|bytes| bytes as usize)
    }

    /// Prepares space that reads as zero; extends the file.
    ///
    /// # Errors
    /// As `fallocate(2)`.
    pub async fn allocate(&self, at: u64, len: u64) -> io::Result<()> {
        let op = Op::Allocate { file: Rc::clone(&self.handle), at, len };
        perform(op).await.result.map(drop)
    }

    /// Cuts or extends the file.
    ///
    /// # Errors
    /// As `ftruncate(2)`.
    pub async fn truncate(&self, len: u64) -> io::Result<()> {
        let op = Op::Truncate { file: Rc::clone(&self.handle), len };
        perform(op).await.result.map(drop)
    }

    /// Waits until the file's bytes are on the device.
    ///
    /// # Errors
    /// As `fdatasync(2)`.
    pub async fn sync_data(&self) -> io::Result<()> {
        perform(Op::SyncData { file: Rc::clone(&self.handle) }).await.result.map(drop)
    }
}

fn assert_aligned(what: &str, at: u64, address: usize, len: usize) {
    assert!(
        at.is_multiple_of(BLOCK as u64)
            && address.is_multiple_of(BLOCK)
            && len.is_multiple_of(BLOCK),
        "a direct {what} of {len} bytes at {at} from {address:#x} is not whole blocks"
    );
}
