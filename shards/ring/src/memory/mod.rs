//! The memory of one executor: a fixed arena, lent out in two kinds of handles.
//!
//! A [`Lease`] is unique and writable; it *freezes* at any byte into a [`Slice`], shared and
//! immutable, and the rest stays a lease. So one buffer can at once be filled at its tail, written
//! to disk in its middle and read by others, and no byte a write is reading can change.
//!
//! Chunks come from a buddy allocator ([`buddy`]): powers of two from [`BLOCK`] to the arena's
//! largest lease, aligned to their own size. A chunk is free again when its last handle is gone.
//! Handles belong to one thread; their counts are plain integers.

mod arena;
mod buddy;
mod map;

use std::cell::Cell;
use std::future::poll_fn;
use std::ops::{Deref, DerefMut, Range};
use std::rc::Rc;
use std::task::Poll;

use smallvec::SmallVec;

pub use arena::{Arena, MemoryUse};

use crate::executor::with_current;

/// The unit of memory and of direct I/O, in bytes.
pub const BLOCK: usize = 4096;

/// The pieces of one write or send, in order.
pub type Gather = SmallVec<[Slice; 4]>;

/// What memory is for. Each class waits in its own line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Record data: append buffers. May use all but the reserve.
    Records,
    /// Requests, response heads, bounce blocks: small, short-lived, needed to make progress.
    /// May use everything, so record data can never starve it.
    Control,
}

/// Unique, writable bytes of the arena.
pub struct Lease {
    arena: Rc<Arena>,
    chunk: u32,
    start: usize,
    len: usize,
}

/// Shared, immutable bytes of the arena. Cloning costs one plain increment.
pub struct Slice {
    arena: Rc<Arena>,
    chunk: u32,
    start: usize,
    len: usize,
}

impl Lease {
    pub(crate) fn whole_chunk(arena: Rc<Arena>, chunk: u32, start: usize, len: usize) -> Self {
        Self { arena, chunk, start, len }
    }

    /// Makes the first `filled` bytes immutable; the rest, perhaps empty, stays writable.
    ///
    /// # Panics
    /// If `filled` exceeds the lease.
    pub fn freeze(self, filled: usize) -> (Slice, Lease) {
        let (head, rest) = self.split(filled);
        let slice = Slice {
            arena: Rc::clone(&head.arena),
            chunk: head.chunk,
            start: head.start,
            len: head.len,
        };
        head.arena.retain(head.chunk);
        (slice, rest)
    }

    /// Splits into two leases at `at`; both stay writable.
    ///
    /// # Panics
    /// If `at` exceeds the lease.
    pub fn split(mut self, at: usize) -> (Lease, Lease) {
        assert!(at <= self.len, "split at {at} of a lease of {} bytes", self.len);
        self.arena.retain(self.chunk);
        let rest = Lease {
            arena: Rc::clone(&self.arena),
            chunk: self.chunk,
            start: self.start + at,
            len: self.len - at,
        };
        self.len = at;
        (self, rest)
    }

    /// Joins `next` to this lease when it follows it directly in the same chunk.
    ///
    /// # Errors
    /// Gives `next` back when it does not.
    pub fn try_join(&mut self, next: Lease) -> Result<(), Lease> {
        if next.chunk == self.chunk
            && Rc::ptr_eq(&next.arena, &self.arena)
            && next.start == self.start + self.len
        {
            self.len += next.len;
            return Ok(());
        }
        Err(next)
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is nothing to write into.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The address of the first byte, for alignment checks.
    pub fn address(&self) -> usize {
        self.arena.pointer(self.start).addr()
    }

    pub(crate) fn pointer(&self) -> *mut u8 {
        self.arena.pointer(self.start)
    }
}

impl Deref for Lease {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.arena.bytes(self.start, self.len)
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut [u8] {
        Arena::bytes_mut(self)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.arena.release(self.chunk);
    }
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Lease({}+{})", self.start, self.len)
    }
}

impl Slice {
    /// A part of this slice.
    ///
    /// # Panics
    /// If the range lies outside.
    pub fn slice(&self, range: Range<usize>) -> Slice {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        self.arena.retain(self.chunk);
        Slice {
            arena: Rc::clone(&self.arena),
            chunk: self.chunk,
            start: self.start + range.start,
            len: range.end - range.start,
        }
    }

    /// Extends this slice by `next` when it follows it directly in the same chunk.
    pub fn try_join(&mut self, next: &Slice) -> bool {
        let follows = next.chunk == self.chunk
            && Rc::ptr_eq(&next.arena, &self.arena)
            && next.start == self.start + self.len;
        if follows {
            self.len += next.len;
        }
        follows
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The address of the first byte, for alignment checks.
    pub fn address(&self) -> usize {
        self.pointer().addr()
    }

    pub(crate) fn pointer(&self) -> *const u8 {
        self.arena.pointer(self.start)
    }
}

impl Clone for Slice {
    fn clone(&self) -> Self {
        self.slice(0..self.len)
    }
}

impl Deref for Slice {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.arena.bytes(self.start, self.len)
    }
}

impl Drop for Slice {
    fn drop(&mut self) {
        self.arena.release(self.chunk);
    }
}

impl std::fmt::Debug for Slice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Slice({}+{})", self.start, self.len)
    }
}

/// Memory now, or `None`. The lease is at least `bytes` long (rounded up to a power of two).
///
/// # Panics
/// Outside an executor, or if `bytes` exceeds the arena's largest lease.
pub fn try_lease(bytes: usize, class: Class) -> Option<Lease> {
    with_current(|executor| executor.arena().try_lease(bytes, class))
}

/// Memory, waiting in line for it. See [`try_lease`].
///
/// # Panics
/// Outside an executor, or if `bytes` exceeds the arena's largest lease.
pub async fn lease(bytes: usize, class: Class) -> Lease {
    let arena = with_current(|executor| Rc::clone(executor.arena()));
    let place = arena::Place { arena: &arena, class, ticket: Cell::new(None) };
    poll_fn(|context| match arena.poll_lease(bytes, class, &place.ticket, context.waker()) {
        Some(lease) => Poll::Ready(lease),
        None => Poll::Pending,
    })
    .await
}

/// How much of this executor's arena is in use.
///
/// # Panics
/// Outside an executor.
pub fn memory() -> MemoryUse {
    with_current(|executor| executor.arena().in_use())
}

#[cfg(test)]
mod tests;
