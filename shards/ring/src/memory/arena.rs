//! The arena: one mapping, its buddy allocator, counts per chunk, and who waits for memory.
//!
//! Unsafe code lives here: turning a handle's range into bytes.
#![allow(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::task::Waker;

use super::buddy::Buddy;
use super::map::Map;
use super::{BLOCK, Class, Lease};

/// The memory of one executor.
pub struct Arena {
    map: Map,
    buddy: RefCell<Buddy>,
    /// Handles per chunk, and its order, at the chunk's first block.
    chunks: Vec<Chunk>,
    lease_bytes_max: usize,
    reserve: usize,
    used: Cell<usize>,
    peak: Cell<usize>,
    lines: [RefCell<Line>; 2],
}

struct Chunk {
    handles: Cell<u32>,
    order: Cell<u8>,
}

#[derive(Default)]
struct Line {
    next_ticket: u64,
    waiting: VecDeque<(u64, Waker)>,
}

/// How much of an arena is in use, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryUse {
    /// The arena's size.
    pub total: usize,
    /// Lent out now.
    pub used: usize,
    /// The most that was ever lent out.
    pub peak: usize,
}

/// A place in a class's line; given up when the waiting future is dropped.
pub(super) struct Place<'a> {
    pub arena: &'a Rc<Arena>,
    pub class: Class,
    pub ticket: Cell<Option<u64>>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.get() {
            self.arena.leave(self.class, ticket);
        }
    }
}

impl Arena {
    /// An arena of `bytes` (rounded down to whole largest leases, at least one).
    ///
    /// # Errors
    /// What `mmap(2)` says.
    pub fn new(bytes: usize, lease_bytes_max: usize, touch: bool) -> io::Result<Rc<Self>> {
        assert!(lease_bytes_max.is_power_of_two() && lease_bytes_max >= BLOCK);
        let bytes = (bytes / lease_bytes_max).max(1) * lease_bytes_max;
        let blocks = u32::try_from(bytes / BLOCK).map_err(|_| {
            io::Error::new(io::ErrorKind::InvalidInput, "an arena holds at most 16 TiB")
        })?;
        let map = Map::new(bytes, lease_bytes_max)?;
        if touch {
            map.populate();
        }
        let chunk = || Chunk { handles: Cell::new(0), order: Cell::new(0) };
        Ok(Rc::new(Self {
            map,
            buddy: RefCell::new(Buddy::new(blocks, order_of(lease_bytes_max))),
            chunks: (0..blocks).map(|_| chunk()).collect(),
            lease_bytes_max,
            reserve: bytes / 16,
            used: Cell::new(0),
            peak: Cell::new(0),
            lines: [RefCell::default(), RefCell::default()],
        }))
    }

    /// Memory now, or `None`; see [`super::try_lease`].
    ///
    /// # Panics
    /// If `bytes` exceeds the largest lease.
    pub fn try_lease(self: &Rc<Self>, bytes: usize, class: Class) -> Option<Lease> {
        let size = bytes.max(BLOCK).next_power_of_two();
        assert!(size <= self.lease_bytes_max, "a lease of {bytes} bytes is more than the arena's");
        let limit = match class {
            Class::Records => self.map.len() - self.reserve,
            Class::Control => self.map.len(),
        };
        if self.used.get() + size > limit {
            return None;
        }
        let order = order_of(size);
        let first = self.buddy.borrow_mut().take(order)?;
        let chunk = &self.chunks[first as usize];
        assert_eq!(chunk.handles.get(), 0, "a free chunk had handles");
        chunk.handles.set(1);
        chunk.order.set(order);
        self.used.set(self.used.get() + size);
        self.peak.set(self.peak.get().max(self.used.get()));
        Some(Lease::whole_chunk(Rc::clone(self), first, first as usize * BLOCK, size))
    }

    /// One try of the front of the line; otherwise the waker is kept.
    pub(super) fn poll_lease(
        self: &Rc<Self>,
        bytes: usize,
        class: Class,
        ticket: &Cell<Option<u64>>,
        waker: &Waker,
    ) -> Option<Lease> {
        let at_front = {
            let line = self.line(class).borrow();
            match (ticket.get(), line.waiting.front()) {
                (None, None) => true,
                (Some(mine), Some((first, _))) => mine == *first,
                _ => false,
            }
        };
        if at_front && let Some(lease) = self.try_lease(bytes, class) {
            if let Some(mine) = ticket.take() {
                self.leave(class, mine);
            }
            return Some(lease);
        }
        let mut line = self.line(class).borrow_mut();
        match ticket.get() {
            Some(mine) => {
                let place = line.waiting.iter_mut().find(|(other, _)| *other == mine);
                place.expect("a ticket keeps its place").1.clone_from(waker);
            }
            None => {
                let mine = line.next_ticket;
                line.next_ticket += 1;
                line.waiting.push_back((mine, waker.clone()));
                ticket.set(Some(mine));
            }
        }
        None
    }

    /// Leaves the line; whoever is in front now gets a try.
    fn leave(&self, class: Class, ticket: u64) {
        self.line(class).borrow_mut().waiting.retain(|(other, _)| *other != ticket);
        self.wake_front(class);
    }

    fn line(&self, class: Class) -> &RefCell<Line> {
        &self.lines[class as usize]
    }

    fn wake_front(&self, class: Class) {
        if let Some((_, waker)) = self.line(class).borrow().waiting.front() {
            waker.wake_by_ref();
        }
    }

    /// What is lent out.
    pub fn in_use(&self) -> MemoryUse {
        MemoryUse { total: self.map.len(), used: self.used.get(), peak: self.peak.get() }
    }

    pub(super) fn retain(&self, chunk: u32) {
        let handles = &self.chunks[chunk as usize].handles;
        assert!(handles.get() > 0, "a handle of a free chunk");
        // Forgotten clones could wrap the count and free a chunk that is still in use.
        handles.set(handles.get().checked_add(1).expect("fewer than 2^32 handles of a chunk"));
    }

    pub(super) fn release(&self, chunk: u32) {
        let state = &self.chunks[chunk as usize];
        let handles = state.handles.get();
        assert!(handles > 0, "a handle of a free chunk");
        state.handles.set(handles - 1);
        if handles == 1 {
            let order = state.order.get();
            self.buddy.borrow_mut().give(chunk, order);
            self.used.set(self.used.get() - (BLOCK << order));
            self.wake_front(Class::Control);
            self.wake_front(Class::Records);
        }
    }

    /// The mapping's first byte and length, for registration with the kernel.
    pub(crate) fn range(&self) -> (*mut u8, usize) {
        (self.map.base().as_ptr(), self.map.len())
    }

    pub(super) fn pointer(&self, start: usize) -> *mut u8 {
        assert!(start <= self.map.len());
        // SAFETY: at most one past the end of the mapping.
        unsafe { self.map.base().as_ptr().add(start) }
    }

    pub(super) fn bytes(&self, start: usize, len: usize) -> &[u8] {
        assert!(start + len <= self.map.len());
        // SAFETY: inside the mapping, which is initialised (anonymous memory reads as zero) and
        // lives as long as `self`. Leases never overlap other handles, and slices are never
        // written, so no one writes to these bytes while the reference lives: a lease's own
        // writer needs `&mut Lease`, an operation in flight owns its lease.
        unsafe { std::slice::from_raw_parts(self.pointer(start), len) }
    }

    pub(super) fn bytes_mut(lease: &mut Lease) -> &mut [u8] {
        assert!(lease.start + lease.len <= lease.arena.map.len());
        let pointer = lease.pointer();
        // SAFETY: inside the mapping. A lease's range overlaps no other handle's (split and freeze
        // divide, join only reunites), and `&mut Lease` makes this the only reference from it.
        unsafe { std::slice::from_raw_parts_mut(pointer, lease.len) }
    }
}

fn order_of(bytes: usize) -> u8 {
    debug_assert!(bytes.is_power_of_two() && bytes >= BLOCK);
    (bytes / BLOCK).trailing_zeros() as u8
}
