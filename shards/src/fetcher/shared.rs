//! What a link and the task of one of its connections share: partitions that come and go, and how
//! the connection stands.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

use ring::{Instant, SocketWatch};

use crate::limits::CARRYING_BYTES;
use crate::partition::Partition;

/// What kind of traffic a connection carries. Partitions at their end never wait behind those
/// that are far behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Partitions at or near the source's end.
    Tail,
    /// Partitions far behind; one of several connections.
    Backfill(usize),
}

/// What the link and the fetcher's task share.
pub struct FetcherShared {
    pub broker: i32,
    pub kind: Kind,
    pub(super) changes: RefCell<Vec<Change>>,
    waker: Cell<Option<Waker>>,
    hurried: Cell<bool>,
    /// When the last answer came.
    pub heard: Cell<Option<Instant>>,
    /// Since when it waits for memory.
    pub starved: Cell<Option<Instant>>,
    pub connected: Cell<bool>,
    /// The open socket, to see it closed and what arrives on it.
    pub socket: Cell<Option<SocketWatch>>,
    /// All that had arrived on it at the last look, in bytes.
    arrived: Cell<u64>,
}

pub(super) enum Change {
    Add(Rc<Partition>, u64),
    Remove(u64),
}

impl FetcherShared {
    pub fn new(broker: i32, kind: Kind) -> Rc<Self> {
        Rc::new(Self {
            broker,
            kind,
            changes: RefCell::default(),
            waker: Cell::default(),
            hurried: Cell::new(false),
            heard: Cell::new(None),
            starved: Cell::new(None),
            connected: Cell::new(false),
            socket: Cell::new(None),
            arrived: Cell::new(0),
        })
    }

    /// Gives a partition to this fetcher.
    pub fn add(self: &Rc<Self>, partition: &Rc<Partition>) {
        let term = partition.hand_to(Some(Rc::clone(self)));
        self.push(Change::Add(Rc::clone(partition), term));
    }

    /// Takes a partition away; nothing more is appended to it from here on.
    pub fn remove(&self, partition: &Partition) {
        partition.hand_to(None);
        self.push(Change::Remove(partition.uid));
    }

    fn push(&self, change: Change) {
        self.changes.borrow_mut().push(change);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// The source was just heard of: a pause after a failed connection ends.
    pub fn try_at_once(&self) {
        if !self.connected.get() {
            self.hurried.set(true);
            if let Some(waker) = self.waker.take() {
                waker.wake();
            }
        }
    }

    /// What arrived on its connection since the last look, in bytes.
    pub fn arrived(&self) -> u64 {
        let socket = self.socket.take();
        let all = socket.as_ref().map_or(0, SocketWatch::arrived_bytes);
        self.socket.set(socket);
        all.saturating_sub(self.arrived.replace(all))
    }

    /// Whether, at the last look, more had arrived than it takes to begin.
    pub fn carries(&self) -> bool {
        self.arrived.get() >= CARRYING_BYTES
    }

    pub(super) async fn changed(&self) {
        poll_fn(|context| {
            if self.hurried.take() || !self.changes.borrow().is_empty() {
                return Poll::Ready(());
            }
            self.waker.set(Some(context.waker().clone()));
            Poll::Pending
        })
        .await;
    }
}
