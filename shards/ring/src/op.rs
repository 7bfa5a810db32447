//! Operations: what a task may ask of its driver, each owning all that the kernel may touch.
//!
//! A task awaits [`perform`]; the operation travels into the driver and comes back, with its
//! buffers, inside [`Done`]. A future dropped in flight leaves its operation to the driver, which
//! keeps it until the completion arrives.

use std::cell::Cell;
use std::ffi::OsString;
use std::future::poll_fn;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::task::Poll;

use crate::driver::Address;
use crate::executor::with_current;
use crate::file::OpenOptions;
use crate::memory::{Gather, Lease};

/// Names one operation in flight. A stale token matches nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token {
    /// Index into the table of operations.
    pub slot: u32,
    /// Counts the slot's uses.
    pub generation: u32,
}

/// A file or socket of the driver. It is closed when the last handle and the last operation that
/// holds it are gone.
#[derive(Debug)]
pub struct Handle {
    number: i32,
    simulated: bool,
    /// `SO_RCVLOWAT` of a socket, as the driver last set it.
    pub(crate) low_water: Cell<usize>,
}

impl Handle {
    /// Takes over an open descriptor of the current executor's driver.
    pub(crate) fn adopt(number: i32) -> Rc<Self> {
        let simulated = with_current(|executor| executor.is_simulated());
        Rc::new(Self { number, simulated, low_water: Cell::new(1) })
    }

    /// The descriptor's number.
    pub fn number(&self) -> i32 {
        self.number
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        crate::executor::close(self.number, self.simulated);
    }
}

/// What a driver can do.
#[derive(Debug)]
pub enum Op {
    /// Read into the whole lease from byte `at`; may be short.
    Read {
        /// From where.
        file: Rc<Handle>,
        /// Byte position.
        at: u64,
        /// Filled from its start.
        into: Lease,
    },
    /// Write all slices, one behind another, from byte `at`; may be short.
    Write {
        /// To where.
        file: Rc<Handle>,
        /// Byte position.
        at: u64,
        /// What.
        from: Gather,
    },
    /// `fallocate(2)` mode 0: space that reads as zero, extending the file.
    Allocate {
        /// Which file.
        file: Rc<Handle>,
        /// Byte position.
        at: u64,
        /// Bytes.
        len: u64,
    },
    /// `ftruncate(2)`.
    Truncate {
        /// Which file.
        file: Rc<Handle>,
        /// New length in bytes.
        len: u64,
    },
    /// `fdatasync(2)`.
    SyncData {
        /// Which file.
        file: Rc<Handle>,
    },
    /// Open a connection; the result is a descriptor.
    Connect {
        /// Whom to call.
        address: Address,
    },
    /// Wait for a connection; the result is a descriptor.
    Accept {
        /// The listening socket.
        socket: Rc<Handle>,
    },
    /// Receive into the leases in order; 0 is the end of the stream.
    Receive {
        /// From where.
        socket: Rc<Handle>,
        /// Filled in order.
        into: [Option<Lease>; 2],
        /// Wait until all are full (`MSG_WAITALL`); the stream's end or an error cuts it short.
        all: bool,
    },
    /// Send the slices in order; may be short.
    Send {
        /// To where.
        socket: Rc<Handle>,
        /// What.
        from: Gather,
    },
    /// What would block, done by a helper thread.
    Help(HelpRequest),
}

/// Work for a helper thread: the file system's namespace, small files, flushes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HelpRequest {
    /// Open a file.
    Open(PathBuf, OpenOptions),
    /// A file's length.
    Size(PathBuf),
    /// Make a directory and its parents.
    CreateDirAll(PathBuf),
    /// List a directory.
    ReadDir(PathBuf),
    /// Rename, replacing the target.
    Rename(PathBuf, PathBuf),
    /// Remove a file.
    RemoveFile(PathBuf),
    /// Remove an empty directory.
    RemoveDir(PathBuf),
    /// `fsync(2)` of a directory.
    SyncDir(PathBuf),
    /// `syncfs(2)` of the file system that holds the path.
    SyncFilesystem(PathBuf),
    /// Bytes an unprivileged process may still take on that file system.
    FreeBytes(PathBuf),
    /// A whole small file; longer than the bound is an error.
    ReadSmall(PathBuf, usize),
    /// Write a whole small file.
    WriteSmall(PathBuf, Vec<u8>),
    /// Write a small file beside, flush it, and rename it over.
    ReplaceSmall(PathBuf, Vec<u8>),
}

/// What a helper thread answers.
#[derive(Debug)]
pub enum HelpReply {
    /// Done, nothing to say.
    Nothing,
    /// An open descriptor.
    Descriptor(i32),
    /// A number.
    Number(u64),
    /// A file's contents.
    Bytes(Vec<u8>),
    /// A directory's entries, in no order.
    Entries(Vec<DirEntry>),
}

/// One entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DirEntry {
    /// The name alone.
    pub name: OsString,
    /// Whether it is a directory.
    pub is_dir: bool,
    /// Length in bytes, of a file.
    pub len: u64,
}

/// An operation's end.
#[derive(Debug)]
pub struct Done {
    /// Bytes moved, or a descriptor, by kind.
    pub result: io::Result<u32>,
    /// What a helper answered.
    pub reply: Option<HelpReply>,
    /// The operation, with its buffers; `None` when the driver did not start it.
    pub op: Option<Op>,
}

/// Performs one operation.
///
/// Dropping the future before it is done orphans the operation: it still runs to its end, and its
/// memory stays taken until then. Receives, accepts and connects are also cancelled, for they
/// might never end.
pub(crate) async fn perform(op: Op) -> Done {
    let serial = with_current(|executor| executor.serial());
    let mut flight = Flight { op: Some(op), token: None, ticket: None, serial };
    poll_fn(move |context| {
        with_current(|executor| {
            assert_eq!(executor.serial(), flight.serial, "an operation of another executor");
            if let Some(token) = flight.token {
                return match executor.take_done(token, context.waker()) {
                    Some(done) => {
                        flight.token = None;
                        Poll::Ready(done)
                    }
                    None => Poll::Pending,
                };
            }
            let op = flight.op.take().expect("not polled after it was done");
            match executor.submit(op, context.waker(), &mut flight.ticket) {
                Ok(token) => flight.token = Some(token),
                Err(op) => flight.op = Some(op), // every slot is taken: woken when one is free
            }
            Poll::Pending
        })
    })
    .await
}

struct Flight {
    op: Option<Op>,
    token: Option<Token>,
    /// Its place in the line for a slot.
    ticket: Option<u64>,
    serial: u64,
}

impl Drop for Flight {
    fn drop(&mut self) {
        if let Some(token) = self.token {
            crate::executor::orphan(self.serial, token);
        }
        if let Some(ticket) = self.ticket {
            crate::executor::leave_line(self.serial, ticket);
        }
    }
}

impl Op {
    /// Whether it may never end by itself, so that dropping its future should cancel it.
    pub(crate) fn may_wait_forever(&self) -> bool {
        matches!(
            self,
            Op::Receive { .. } | Op::Accept { .. } | Op::Connect { .. } | Op::Send { .. }
        )
    }
}
