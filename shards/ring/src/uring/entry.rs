//! One operation in flight: what the kernel reads of it, how its submission is built, and what its
//! completion means.
//!
//! A submission points into its entry and into the memory that the entry's operation owns. Both
//! stay where they are until the completion has come.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use io_uring::types::Fd;
use io_uring::{opcode, squeue};
use smallvec::SmallVec;

use super::system;
use crate::memory::Slice;
use crate::op::{Done, Op};

/// One registered buffer covers so much of the arena.
pub const REGISTERED_RANGE: usize = 1 << 30;
/// From so many bytes on, a receive of all of them waits in the socket until they are there: one
/// wake, one completion and one long copy instead of many small ones.
const LOW_WATER_BYTES_MIN: usize = 64 << 10;
/// No more than this is waited for in the socket: its buffer must have room for it and for more.
const LOW_WATER_BYTES_MAX: usize = 1 << 20;
/// `IORING_RECVSEND_POLL_FIRST`: no try before the socket says that enough has come.
const POLL_FIRST: u16 = 1;
/// More pieces than the kernel takes at once make a short transfer (`IOV_MAX`).
const VECTORS_MAX: usize = 1024;

/// An operation in flight and what its submission points to.
pub struct Entry {
    pub op: Option<Op>,
    pub generation: u32,
    /// A socket not yet connected.
    pub socket: Option<OwnedFd>,
    /// What a receive of all has got so far.
    pub received: usize,
    /// It was cancelled: what it has got is not gone on with.
    pub cancelled: bool,
    vectors: SmallVec<[libc::iovec; 8]>,
    message: libc::msghdr,
    address: libc::sockaddr_storage,
}

/// Which addresses are registered with the ring as fixed buffers.
pub struct Registered {
    pub base: usize,
    pub len: usize,
    pub registered: bool,
}

impl Entry {
    pub fn empty() -> Self {
        // SAFETY: both are plain C structures for which all zeros is a valid value.
        let (message, address) = unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        let vectors = SmallVec::new();
        Self {
            op: None,
            generation: 0,
            socket: None,
            received: 0,
            cancelled: false,
            vectors,
            message,
            address,
        }
    }

    /// The submission for what is left of a receive of all that has got `result`, if it goes on.
    pub fn go_on(&mut self, arena: &Registered, result: i32) -> Option<squeue::Entry> {
        let Some(Op::Receive { into, all: true, .. }) = &self.op else { return None };
        let room: usize = into.iter().flatten().map(|lease| lease.len()).sum();
        self.received += usize::try_from(result).unwrap_or(0);
        if result <= 0 || self.received >= room || self.cancelled {
            return None;
        }
        // Should that fail, then what has come is the result.
        self.build(arena).ok()
    }

    /// The submission for `self.op`. It points into `self`, which must not be freed before the
    /// completion.
    pub fn build(&mut self, arena: &Registered) -> io::Result<squeue::Entry> {
        self.vectors.clear();
        let op = self.op.as_mut().expect("an operation to build");
        Ok(match op {
            Op::Read { file, at, into } => {
                let (pointer, len) = (into.pointer(), length(into.len()));
                let fd = Fd(file.number());
                match arena.index(pointer.addr()) {
                    Some(index) => {
                        opcode::ReadFixed::new(fd, pointer, len, index).offset(*at).build()
                    }
                    None => opcode::Read::new(fd, pointer, len).offset(*at).build(),
                }
            }
            Op::Write { file, at, from } => {
                let fd = Fd(file.number());
                if let [slice] = &from[..] {
                    let (pointer, len) = (slice.pointer(), length(slice.len()));
                    match arena.index(pointer.addr()) {
                        Some(index) => {
                            opcode::WriteFixed::new(fd, pointer, len, index).offset(*at).build()
                        }
                        None => opcode::Write::new(fd, pointer, len).offset(*at).build(),
                    }
                } else {
                    self.vectors.extend(from.iter().take(VECTORS_MAX).map(slice_vector));
                    let count = length(self.vectors.len());
                    opcode::Writev::new(fd, self.vectors.as_ptr(), count).offset(*at).build()
                }
            }
            Op::Allocate { file, at, len } => {
                opcode::Fallocate::new(Fd(file.number()), *len).offset(*at).build()
            }
            Op::Truncate { file, len } => opcode::Ftruncate::new(Fd(file.number()), *len).build(),
            Op::SyncData { file } => opcode::Fsync::new(Fd(file.number()))
                .flags(io_uring::types::FsyncFlags::DATASYNC)
                .build(),
            Op::Connect { address } => {
                let socket = system::stream_socket(address)?;
                let len = system::write_address(address, &mut self.address)?;
                let fd = Fd(socket.as_raw_fd());
                self.socket = Some(socket);
                opcode::Connect::new(fd, (&raw const self.address).cast(), len).build()
            }
            Op::Accept { socket } => {
                let null = std::ptr::null_mut();
                opcode::Accept::new(Fd(socket.number()), null, std::ptr::null_mut())
                    .flags(libc::SOCK_CLOEXEC)
                    .build()
            }
            Op::Receive { socket, into, all } => {
                let mut skip = self.received;
                for lease in into.iter_mut().flatten() {
                    let had = skip.min(lease.len());
                    skip -= had;
                    if had < lease.len() {
                        let rest = lease.pointer().wrapping_add(had);
                        self.vectors.push(vector(rest, lease.len() - had));
                    }
                }
                let bytes: usize = self.vectors.iter().map(|vector| vector.iov_len).sum();
                let waits = *all && bytes >= LOW_WATER_BYTES_MIN;
                let low_water = if waits { bytes.min(LOW_WATER_BYTES_MAX) } else { 1 };
                if socket.low_water.get() != low_water {
                    system::set_low_water(socket.number(), low_water)?;
                    socket.low_water.set(low_water);
                }
                let flags = if *all && !waits { libc::MSG_WAITALL } else { 0 };
                let fd = Fd(socket.number());
                match self.vectors[..] {
                    [only] if !waits => {
                        opcode::Recv::new(fd, only.iov_base.cast(), length(only.iov_len))
                            .flags(flags)
                            .build()
                    }
                    _ => {
                        let message = message(&mut self.message, &mut self.vectors);
                        opcode::RecvMsg::new(fd, message)
                            .ioprio(if waits { POLL_FIRST } else { 0 })
                            .flags(flags.cast_unsigned())
                            .build()
                    }
                }
            }
            Op::Send { socket, from } => {
                self.vectors.extend(from.iter().take(VECTORS_MAX).map(slice_vector));
                let message = message(&mut self.message, &mut self.vectors);
                opcode::SendMsg::new(Fd(socket.number()), message)
                    .flags(libc::MSG_NOSIGNAL.cast_unsigned())
                    .build()
            }
            Op::Help(_) => unreachable!("helpers do not go through the ring"),
        })
    }
}

impl Registered {
    /// The registered buffer that holds an address. A lease lies wholly in one: its chunk is
    /// aligned to its own size, which is at most that of a buffer.
    fn index(&self, address: usize) -> Option<u16> {
        let inside = self.registered && (self.base..self.base + self.len).contains(&address);
        inside.then(|| ((address - self.base) / REGISTERED_RANGE) as u16)
    }
}

/// What a completion means for its operation.
pub fn finish(entry: &mut Entry, result: i32) -> Done {
    let op = entry.op.take();
    let socket = entry.socket.take();
    entry.vectors.clear();
    // What came before the stream's end, or an error, comes first; a receive after it is told.
    let result = match i32::try_from(entry.received) {
        Ok(received) if received > 0 => received,
        _ => result,
    };
    let result = match (result, socket) {
        (..0, _) => Err(io::Error::from_raw_os_error(-result)),
        (_, Some(socket)) => Ok(std::os::fd::IntoRawFd::into_raw_fd(socket).cast_unsigned()),
        (_, None) => Ok(result.cast_unsigned()),
    };
    if let (Ok(number), Some(Op::Accept { .. })) = (&result, &op) {
        system::set_no_delay(number.cast_signed());
    }
    Done { result, reply: None, op }
}

pub fn vector(pointer: *mut u8, len: usize) -> libc::iovec {
    libc::iovec { iov_base: pointer.cast(), iov_len: len }
}

fn slice_vector(slice: &Slice) -> libc::iovec {
    vector(slice.pointer().cast_mut(), slice.len())
}

fn message(
    message: &mut libc::msghdr,
    vectors: &mut SmallVec<[libc::iovec; 8]>,
) -> *mut libc::msghdr {
    message.msg_iov = vectors.as_mut_ptr();
    message.msg_iovlen = vectors.len() as _;
    message
}

fn length(len: usize) -> u32 {
    u32::try_from(len).expect("one operation moves less than 4 GiB")
}
