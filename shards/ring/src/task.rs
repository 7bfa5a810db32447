//! Wakers without counts or allocations: a waker is three numbers in a pointer.
//!
//! It names an executor, a slot and a generation. Waked on its own thread it queues the task; from
//! another thread it goes through that executor's inbox. A stale waker matches nothing, or wakes
//! a task for no reason, which is harmless.
//!
//! Unsafe code lives here: the waker's table of functions.
#![allow(unsafe_code)]

use std::task::{RawWaker, RawWakerVTable, Waker};

/// Names one task of one executor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskId {
    /// Which executor of this process.
    pub executor: u16,
    /// Index into its tasks. 24 bits.
    pub slot: u32,
    /// Counts the slot's uses. 24 bits.
    pub generation: u32,
}

pub const GENERATIONS: u32 = 1 << 24;
pub const SLOTS: usize = 1 << 24;

impl TaskId {
    pub fn pack(self) -> u64 {
        u64::from(self.executor) << 48 | u64::from(self.slot) << 24 | u64::from(self.generation)
    }

    pub fn unpack(word: u64) -> Self {
        Self {
            executor: (word >> 48) as u16,
            slot: (word >> 24) as u32 & (GENERATIONS - 1),
            generation: word as u32 & (GENERATIONS - 1),
        }
    }
}

const _: () = assert!(size_of::<*const ()>() == size_of::<u64>(), "a waker needs 64 bits");

static TABLE: RawWakerVTable = RawWakerVTable::new(clone, wake, wake, drop_nothing);

pub fn waker(task: TaskId) -> Waker {
    let data = std::ptr::without_provenance(task.pack() as usize);
    // SAFETY: the data pointer is never dereferenced, only read back as a number; all functions of
    // the table are safe for any number and from any thread; there is nothing to free.
    unsafe { Waker::from_raw(RawWaker::new(data, &TABLE)) }
}

unsafe fn clone(data: *const ()) -> RawWaker {
    RawWaker::new(data, &TABLE)
}

unsafe fn wake(data: *const ()) {
    crate::executor::wake(TaskId::unpack(data.addr() as u64));
}

unsafe fn drop_nothing(_: *const ()) {}
