//! The executor: polls tasks in fair shares, hands operations to the driver, turns completions,
//! timers and messages from other threads into wakes.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::driver::{Address, Bell, Counters, Driver, Wait};
use crate::memory::{Arena, BLOCK};
use crate::op::{Done, HelpReply, Op, Token};
use crate::task::{TaskId, waker};
use crate::time::Instant;
use crate::timer::{TimerKey, Timers};
use crate::uring::Uring;

mod current;
mod flights;
mod inbox;
mod join;
mod tasks;

pub(crate) use current::{cancel_timer, close, leave_line, orphan, wake, with_current};
pub use join::{Task, spawn, to_its_end};

use current::CURRENT;
use flights::{Ended, Flights};
use inbox::Inbox;
use tasks::{TaskFuture, Tasks};

/// What an executor is made of.
#[derive(Clone, Debug)]
pub struct Config {
    /// Bytes of the arena: all memory that I/O may touch.
    pub arena_bytes: usize,
    /// The largest single lease in bytes; a power of two.
    pub lease_bytes_max: usize,
    /// Touch all memory at start, so that no page fault is taken later.
    pub touch_memory: bool,
    /// Operations in flight at once; further ones wait for a slot.
    pub operations_max: u32,
    /// Kernel workers for what io_uring cannot do without blocking.
    pub io_workers_max: u32,
    /// The processors these workers may use; empty: as the kernel likes.
    pub io_worker_cores: Vec<usize>,
    /// How long a stop may wait for operations the kernel still holds.
    pub drain_limit: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            arena_bytes: 256 << 20,
            lease_bytes_max: 4 << 20,
            touch_memory: true,
            operations_max: 4096,
            io_workers_max: 4,
            io_worker_cores: Vec::new(),
            drain_limit: Duration::from_secs(30),
        }
    }
}

impl Config {
    /// Refuses what cannot be.
    fn check(&self) -> io::Result<()> {
        let refuse = |message: &str| {
            Err(io::Error::new(io::ErrorKind::InvalidInput, format!("executor: {message}")))
        };
        if !(1..=OPERATIONS_MAX).contains(&self.operations_max) {
            return refuse("operations_max must be within 1..=32768 (io_uring's largest ring)");
        }
        let lease = self.lease_bytes_max;
        if !lease.is_power_of_two() || !(BLOCK..=LEASE_BYTES_MAX).contains(&lease) {
            return refuse("lease_bytes_max must be a power of two within 4 KiB..=1 GiB");
        }
        Ok(())
    }

    /// For tests: 32 MiB, not touched.
    pub fn small() -> Self {
        Self { arena_bytes: 32 << 20, touch_memory: false, operations_max: 256, ..Self::default() }
    }
}

/// Which kind of work a task does. Each kind gets its part of the polls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// Pulling from sources and writing.
    Replicate,
    /// Answering clients.
    Serve,
    /// Everything that can wait.
    Background,
}

/// Half of what a completion queue may hold.
const OPERATIONS_MAX: u32 = 32_768;
/// No lease crosses the bounds of a registered buffer.
const LEASE_BYTES_MAX: usize = crate::uring::REGISTERED_RANGE;

/// Polls per round, by share: background gets its turn, but a small one.
const POLLS_PER_ROUND: [usize; 3] = [64, 64, 16];
/// Task time after which the driver gets a turn, whatever is ready.
const TASK_TIME_MAX: Duration = Duration::from_micros(200);
/// How often the clock is looked at between polls.
const POLLS_PER_CLOCK: usize = 8;

/// What an executor did since it started.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    /// What its driver did.
    pub driver: Counters,
    /// Polls of tasks.
    pub polls: u64,
    /// Tasks alive.
    pub tasks: usize,
    /// Operations in flight.
    pub operations: usize,
    /// Whether the kernel let the arena be registered; if not (`RLIMIT_MEMLOCK`), every direct
    /// read and write pins its pages anew, which costs processor time and nothing else.
    pub registered: bool,
}

/// One executor.
pub(crate) struct Executor {
    /// Its inbox's number; used again when it is gone.
    id: u16,
    /// Never used again: what belongs to another executor is told by it.
    serial: u64,
    simulated: bool,
    arena: Rc<Arena>,
    driver: RefCell<Box<dyn Driver>>,
    tasks: RefCell<Tasks>,
    ready: [RefCell<VecDeque<TaskId>>; 3],
    flights: RefCell<Flights>,
    timers: RefCell<Timers>,
    inbox: Arc<Inbox>,
    arrivals: RefCell<Vec<(Token, Done)>>,
    polls: Cell<u64>,
    /// Whose turn it is among the shares, and how many polls of it are left.
    round: Cell<(usize, usize)>,
}

static SERIALS: AtomicU64 = AtomicU64::new(0);

/// Runs `root` on a real ring on this thread, until it ends; then stops every other task and waits
/// for the operations the kernel still holds.
///
/// # Errors
/// When the ring cannot be set up: io_uring switched off (`kernel.io_uring_disabled`), the kernel
/// too old, no memory; or when operations did not end within the drain limit (their memory is
/// then never reused).
pub fn run<T: 'static>(config: Config, root: impl Future<Output = T> + 'static) -> io::Result<T> {
    config.check()?;
    let arena = Arena::new(config.arena_bytes, config.lease_bytes_max, config.touch_memory)?;
    let (driver, bell) = Uring::new(&config, &arena)?;
    let executor = Executor::new(Box::new(driver), arena, config.operations_max, bell);
    executor.enter(|| {
        let root = spawn(Share::Background, root);
        let result = loop {
            executor.run_ready();
            if let Some(value) = root.take() {
                break value;
            }
            executor.turn(executor.wait())?;
        };
        executor.stop(config.drain_limit)?;
        Ok(result)
    })
}

/// Lets others run.
pub async fn yield_now() {
    let mut yielded = false;
    poll_fn(|context| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// What this executor did so far.
///
/// # Panics
/// Outside an executor.
pub fn stats() -> Stats {
    with_current(|executor| executor.stats())
}

/// CPU time this thread has used, user and system.
pub fn thread_cpu() -> Duration {
    crate::uring::thread_cpu()
}

impl Executor {
    pub fn new(
        driver: Box<dyn Driver>,
        arena: Rc<Arena>,
        operations_max: u32,
        bell: Arc<dyn Bell>,
    ) -> Rc<Self> {
        let (inbox, id) = Inbox::register(bell);
        Rc::new(Self {
            id,
            serial: SERIALS.fetch_add(1, Ordering::Relaxed),
            simulated: driver.is_simulated(),
            arena,
            driver: RefCell::new(driver),
            tasks: RefCell::default(),
            ready: Default::default(),
            flights: RefCell::new(Flights::new(operations_max)),
            timers: RefCell::default(),
            inbox,
            arrivals: RefCell::default(),
            polls: Cell::new(0),
            round: Cell::new((0, POLLS_PER_ROUND[0])),
        })
    }

    /// Makes this the thread's current executor while `call` runs.
    pub fn enter<R>(self: &Rc<Self>, call: impl FnOnce() -> R) -> R {
        struct Restore(Option<Rc<Executor>>);
        impl Drop for Restore {
            fn drop(&mut self) {
                let previous = self.0.take();
                CURRENT.with(|current| *current.borrow_mut() = previous);
            }
        }
        let previous = CURRENT.with(|current| current.replace(Some(Rc::clone(self))));
        let _restore = Restore(previous);
        call()
    }

    /// Tells this executor from every other of the process, past ones too.
    pub fn serial(&self) -> u64 {
        self.serial
    }

    pub fn is_simulated(&self) -> bool {
        self.simulated
    }

    pub fn arena(&self) -> &Rc<Arena> {
        &self.arena
    }

    pub fn now(&self) -> Instant {
        self.driver.borrow().now()
    }

    pub fn wall_ms(&self) -> i64 {
        self.driver.borrow().wall_ms()
    }

    pub fn random(&self) -> u64 {
        self.driver.borrow_mut().random()
    }

    pub fn listen(&self, address: &Address) -> io::Result<(i32, Address)> {
        self.driver.borrow_mut().listen(address)
    }

    pub fn shutdown(&self, descriptor: i32) {
        self.driver.borrow_mut().shutdown(descriptor);
    }

    pub fn arrived_bytes(&self, descriptor: i32) -> u64 {
        self.driver.borrow().arrived_bytes(descriptor)
    }

    pub fn add_timer(&self, at: Instant, waker: Waker) -> TimerKey {
        self.timers.borrow_mut().add(at, waker)
    }

    pub fn update_timer(&self, key: TimerKey, waker: &Waker) {
        self.timers.borrow_mut().update(key, waker);
    }

    pub fn next_timer(&self) -> Option<Instant> {
        self.timers.borrow().next()
    }

    pub fn has_ready(&self) -> bool {
        self.ready.iter().any(|queue| !queue.borrow().is_empty())
    }

    /// Whether wakes came from outside.
    pub fn has_messages(&self) -> bool {
        self.inbox.is_filled()
    }

    /// How long the next turn may wait.
    pub fn wait(&self) -> Wait {
        if self.has_ready() { Wait::No } else { Wait::Until(self.next_timer()) }
    }

    fn stats(&self) -> Stats {
        Stats {
            driver: self.driver.borrow().counters(),
            polls: self.polls.get(),
            tasks: self.tasks.borrow().live(),
            operations: self.flights.borrow().live(),
            registered: self.driver.borrow().is_registered(),
        }
    }

    fn spawn(&self, share: Share, future: TaskFuture) -> TaskId {
        let (slot, generation) = self.tasks.borrow_mut().insert(share, future);
        let id = TaskId { executor: self.id, slot, generation };
        self.wake_local(id);
        id
    }

    fn wake_local(&self, id: TaskId) {
        if let Some(share) = self.tasks.borrow_mut().queue(id) {
            self.ready[share as usize].borrow_mut().push_back(id);
        }
    }

    /// Wakes another executor; false if that is not possible now.
    pub fn wake_other(&self, bell: &Arc<dyn Bell>) -> bool {
        let Ok(mut driver) = self.driver.try_borrow_mut() else { return false };
        driver.wake(bell);
        true
    }

    /// Stops a task: its future is dropped now, or after its poll if it is being polled.
    fn cancel_task(&self, id: TaskId) {
        let future = self.tasks.borrow_mut().cancel(id);
        drop(future);
    }

    /// Polls ready tasks, share by share, until none is ready or the driver's turn is due. The
    /// next call goes on where this one stopped: long polls in one share starve no other.
    pub fn run_ready(&self) {
        let until = self.now() + TASK_TIME_MAX;
        let mut since_clock = 0;
        while self.has_ready() {
            let (share, left) = self.round.get();
            match (left > 0).then(|| self.pick(&self.ready[share])).flatten() {
                Some(id) => {
                    self.round.set((share, left - 1));
                    self.poll_task(id);
                }
                None => {
                    let next = (share + 1) % POLLS_PER_ROUND.len();
                    self.round.set((next, POLLS_PER_ROUND[next]));
                    continue;
                }
            }
            since_clock += 1;
            if since_clock == POLLS_PER_CLOCK {
                since_clock = 0;
                if self.now() >= until {
                    return;
                }
            }
        }
    }

    fn pick(&self, queue: &RefCell<VecDeque<TaskId>>) -> Option<TaskId> {
        let mut queue = queue.borrow_mut();
        if queue.len() > 1 {
            let pick = self.driver.borrow_mut().pick(queue.len());
            queue.swap(0, pick);
        }
        queue.pop_front()
    }

    fn poll_task(&self, id: TaskId) {
        let Some(mut future) = self.tasks.borrow_mut().begin_poll(id) else { return };
        self.polls.set(self.polls.get() + 1);
        let waker = waker(id);
        let ended = future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready();
        let over = self.tasks.borrow_mut().end_poll(id, future, ended);
        drop(over); // outside the borrow: dropping a future may call back
    }

    /// Starts an operation, or gives it back when every slot is taken; `ticket` is then its place
    /// in the line.
    #[expect(clippy::result_large_err, reason = "the operation moves, it is not an error's text")]
    pub fn submit(&self, op: Op, waker: &Waker, ticket: &mut Option<u64>) -> Result<Token, Op> {
        let token = self.flights.borrow_mut().begin(&op, waker, ticket);
        let Some(token) = token else { return Err(op) };
        self.driver.borrow_mut().submit(token, op);
        Ok(token)
    }

    /// The operation's end if it has come; otherwise the waker is kept.
    pub fn take_done(&self, token: Token, waker: &Waker) -> Option<Done> {
        self.flights.borrow_mut().take(token, waker)
    }

    fn orphan(&self, token: Token) {
        let (done, cancel) = self.flights.borrow_mut().orphan(token);
        if cancel {
            self.driver.borrow_mut().cancel(token);
        }
        if let Some(done) = done {
            self.discard(done);
        }
    }

    /// Lets go of a result nobody waits for: a descriptor in it must not leak.
    fn discard(&self, done: Done) {
        let descriptor = match (&done.result, &done.reply, &done.op) {
            (_, Some(HelpReply::Descriptor(number)), _) => Some(*number),
            (Ok(number), _, Some(Op::Accept { .. } | Op::Connect { .. })) => {
                Some(number.cast_signed())
            }
            _ => None,
        };
        if let Some(descriptor) = descriptor {
            self.driver.borrow_mut().close(descriptor);
        }
    }

    /// One turn of the driver; completions, messages and timers become wakes.
    pub fn turn(&self, wait: Wait) -> io::Result<()> {
        let wait = if self.inbox.is_filled() { Wait::No } else { wait };
        let mut arrivals = self.arrivals.take();
        self.driver.borrow_mut().turn(wait, &mut arrivals)?;
        for (token, done) in arrivals.drain(..) {
            let ended = self.flights.borrow_mut().complete(token, done);
            match ended {
                Ended::Awaited(waker) => waker.wake(),
                Ended::Orphaned(done) => self.discard(done),
            }
        }
        self.arrivals.replace(arrivals);
        for task in self.inbox.take() {
            self.wake_local(task);
        }
        let now = self.now();
        while let Some(waker) = { self.timers.borrow_mut().pop_due(now) } {
            waker.wake();
        }
        Ok(())
    }

    /// Stops every task, those too that others start while they are dropped, and cancels the
    /// operations of futures that were forgotten instead of dropped.
    pub fn drop_tasks(&self) {
        let mut any = true;
        while std::mem::take(&mut any) {
            let mut from = 0;
            while let Some((slot, future)) = { self.tasks.borrow_mut().pop_from(from) } {
                any = true;
                from = slot + 1;
                drop(future);
            }
        }
        let endless = self.flights.borrow().endless();
        for token in endless {
            self.driver.borrow_mut().cancel(token);
        }
    }

    /// Stops every task, then waits until the kernel holds no operation of ours.
    pub fn stop(&self, limit: Duration) -> io::Result<()> {
        self.drop_tasks();
        let until = self.now() + limit;
        while self.driver.borrow().in_flight() > 0 {
            if self.now() >= until {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "operations did not end: a disk or the kernel hangs",
                ));
            }
            self.turn(Wait::Until(Some(until)))?;
        }
        Ok(())
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        Inbox::remove(self.id);
    }
}
