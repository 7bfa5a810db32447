//! The executor: one per pinned core, nothing shared.
//!
//! A shard's code is ordinary `async` Rust. It awaits *operations* ([`op::Op`]) that a
//! [`driver::Driver`] performs: the real one drives an io_uring ([`run`]), the other is a
//! seeded simulator ([`sim`]) with simulated disks, sockets and clock that runs the very same code.
//!
//! How data passes through:
//!
//! 1. [`memory`] hands out [`Lease`]s (unique, writable) from one arena taken at start. A lease
//!    freezes, at any byte, into a [`Slice`] (shared, immutable).
//! 2. An operation *owns* what the kernel may touch: a receive owns its leases, a write owns its
//!    slices, every operation on a file holds the file. Dropping the future orphans the operation;
//!    its memory is freed when its own completion arrives, never earlier.
//! 3. [`executor`] polls tasks in fair shares, hands their operations to the driver, and turns
//!    the driver's completions into wakes.
//!
//! Wakers work from any thread, so any runtime-agnostic channel can feed a shard. One ring wakes
//! another by a message (`IORING_OP_MSG_RING`) that leaves with its next turn, at the latest when
//! it ends: a task must not block its thread to wait for the answer. Other threads ring an eventfd.
//!
//! Everything is bounded: operations by slots, memory by the arena, tasks' turns by polls.
//!
//! This crate knows nothing of Kafka.

pub mod driver;
pub mod executor;
mod file;
mod flusher;
pub mod fs;
mod helper;
pub mod memory;
pub mod op;
pub mod sim;
mod socket;
mod task;
mod time;
mod timer;
mod uring;

pub use executor::{
    Config, Share, Stats, Task, run, spawn, stats, thread_cpu, to_its_end, yield_now,
};
pub use file::{File, OpenOptions};
pub use memory::{BLOCK, Class, Gather, Lease, MemoryUse, Slice, lease, memory, try_lease};
pub use socket::{Address, Listener, SocketWatch, Stream};
pub use time::{Elapsed, Instant, now, random, sleep, sleep_until, timeout, wall_ms};
pub use uring::{return_freed_memory, trim_freed_memory};

#[cfg(test)]
mod tests;
