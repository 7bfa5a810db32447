//! The seam: what performs operations. The real ring is one driver, the simulator the other.

use std::io;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::op::{Done, Op, Token};
use crate::time::Instant;

/// How long a turn may wait for something to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Not at all: tasks are ready.
    No,
    /// Until then, or for ever.
    Until(Option<Instant>),
}

/// Performs the operations of one executor. All calls come from the executor's thread.
pub trait Driver {
    /// Starts an operation. Its completion arrives in a later [`Driver::turn`].
    fn submit(&mut self, token: Token, op: Op);

    /// Asks that an operation end early. Its own completion still arrives.
    fn cancel(&mut self, token: Token);

    /// Opens a listening socket on an address at once. Rare, and it never blocks.
    ///
    /// # Errors
    /// What `bind(2)` and `listen(2)` say.
    fn listen(&mut self, address: &Address) -> io::Result<(RawFd, Address)>;

    /// Closes a descriptor that no operation holds any more.
    fn close(&mut self, descriptor: RawFd);

    /// No more bytes will be sent on this socket, and none will be received.
    fn shutdown(&mut self, descriptor: RawFd);

    /// Bytes that have arrived on a TCP connection since it stands, received or not; 0 of anything
    /// else.
    fn arrived_bytes(&self, descriptor: RawFd) -> u64;

    /// Submits what is queued, waits as told, and collects completions.
    ///
    /// # Errors
    /// Only what makes the whole executor useless.
    fn turn(&mut self, wait: Wait, done: &mut Vec<(Token, Done)>) -> io::Result<()>;

    /// A clock that never goes back.
    fn now(&self) -> Instant;

    /// Milliseconds since the epoch; may jump.
    fn wall_ms(&self) -> i64;

    /// A random number.
    fn random(&mut self) -> u64;

    /// Which of `ready` tasks runs next; the ring says 0, the simulator draws.
    fn pick(&mut self, ready: usize) -> usize;

    /// Descriptors or operations still held by the kernel.
    fn in_flight(&self) -> usize;

    /// What the driver did so far.
    fn counters(&self) -> Counters;

    /// Wakes another executor, at the latest with the next turn.
    fn wake(&mut self, bell: &Arc<dyn Bell>) {
        bell.ring();
    }

    /// Whether the arena is registered with the kernel.
    fn is_registered(&self) -> bool {
        false
    }

    /// Whether its descriptors are not the process's.
    fn is_simulated(&self) -> bool {
        false
    }
}

/// Wakes an executor from any thread.
pub trait Bell: Send + Sync {
    /// Ends its wait, now or the next one.
    fn ring(&self);

    /// Its ring, for messages from others' (`IORING_OP_MSG_RING`).
    fn ring_descriptor(&self) -> Option<RawFd> {
        None
    }
}

/// Where a socket listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// TCP.
    Tcp(std::net::SocketAddr),
    /// A Unix stream socket at a path.
    Unix(PathBuf),
}

/// What a driver did since it started.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    /// Calls of `io_uring_enter`.
    pub enters: u64,
    /// Time inside them, waiting included.
    pub enter_time: Duration,
    /// Time inside them when nothing was waited for.
    pub enter_busy_time: Duration,
    /// Operations completed.
    pub completions: u64,
    /// Operations that went to a helper thread.
    pub helped: u64,
    /// Wakes sent to other rings as messages, without a system call of their own.
    pub messages: u64,
}
