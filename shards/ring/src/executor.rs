//! The executor: polls tasks in fair shares, hands operations to the driver, turns completions,
//! timers and messages from other threads into wakes.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::driver::{Address, Counters, Driver, Wait};
use crate::memory::Arena;
use crate::op::{Done, HelpReply, Op, Token};
use crate::task::{GENERATIONS, SLOTS, TaskId, waker};
use crate::time::Instant;
use crate::timer::{TimerKey, Timers};
use crate::uring::Uring;

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
}

/// One executor.
pub(crate) struct Executor {
    id: u16,
    arena: Rc<Arena>,
    driver: RefCell<Box<dyn Driver>>,
    tasks: RefCell<Tasks>,
    ready: [RefCell<VecDeque<TaskId>>; 3],
    flights: RefCell<Flights>,
    timers: RefCell<Timers>,
    inbox: Arc<Inbox>,
    arrivals: RefCell<Vec<(Token, Done)>>,
    polls: Cell<u64>,
}

/// Where other threads leave wakes for an executor.
pub(crate) struct Inbox {
    wakes: Mutex<Vec<TaskId>>,
    filled: AtomicBool,
    bell: Box<dyn Fn() + Send + Sync>,
}

impl Inbox {
    fn push(&self, task: TaskId) {
        self.wakes.lock().unwrap_or_else(PoisonError::into_inner).push(task);
        if !self.filled.swap(true, Ordering::AcqRel) {
            (self.bell)();
        }
    }
}

static EXECUTORS: RwLock<Vec<Option<Arc<Inbox>>>> = RwLock::new(Vec::new());

thread_local! {
    static CURRENT: RefCell<Option<Rc<Executor>>> = const { RefCell::new(None) };
}

/// Runs `root` on a real ring on this thread, until it ends; then stops every other task and waits
/// for the operations the kernel still holds.
///
/// # Errors
/// When the ring cannot be set up: io_uring switched off (`kernel.io_uring_disabled`), the kernel
/// too old, no memory; or when operations did not end within the drain limit (their memory is
/// then never reused).
pub fn run<T: 'static>(config: Config, root: impl Future<Output = T> + 'static) -> io::Result<T> {
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

/// Starts a task.
///
/// # Panics
/// Outside an executor.
pub fn spawn<T: 'static>(share: Share, future: impl Future<Output = T> + 'static) -> Task<T> {
    let join = Rc::new(Join { value: Cell::new(None), waker: Cell::new(None) });
    let theirs = Rc::clone(&join);
    let future = Box::pin(async move {
        let value = future.await;
        theirs.value.set(Some(value));
        if let Some(waker) = theirs.waker.take() {
            waker.wake();
        }
    });
    Task { id: Some(with_current(|executor| executor.spawn(share, future))), join }
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

/// A running task and, awaited, its value. Dropping it stops the task; [`Task::detach`] lets it run.
#[must_use = "dropping a task stops it"]
pub struct Task<T> {
    id: Option<TaskId>,
    join: Rc<Join<T>>,
}

struct Join<T> {
    value: Cell<Option<T>>,
    waker: Cell<Option<Waker>>,
}

impl<T> Task<T> {
    /// Lets the task run on by itself.
    pub fn detach(mut self) {
        self.id = None;
    }

    /// Whether the value is there.
    pub fn is_finished(&self) -> bool {
        let value = self.join.value.take();
        let finished = value.is_some();
        self.join.value.set(value);
        finished
    }

    pub(crate) fn take(&self) -> Option<T> {
        self.join.value.take()
    }
}

impl<T> Future for Task<T> {
    type Output = T;
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        match self.join.value.take() {
            Some(value) => Poll::Ready(value),
            None => {
                self.join.waker.set(Some(context.waker().clone()));
                Poll::Pending
            }
        }
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            try_with_current(|executor| executor.cancel_task(id));
        }
    }
}

impl<T> std::fmt::Debug for Task<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Task({:?})", self.id)
    }
}

/// Calls into the executor this thread runs.
pub(crate) fn with_current<R>(call: impl FnOnce(&Executor) -> R) -> R {
    try_with_current(call).expect("called on a thread that runs no executor")
}

fn try_with_current<R>(call: impl FnOnce(&Executor) -> R) -> Option<R> {
    CURRENT.try_with(|current| current.borrow().as_deref().map(call)).ok().flatten()
}

/// Wakes a task from any thread.
pub(crate) fn wake(task: TaskId) {
    let local = try_with_current(|executor| {
        let mine = executor.id == task.executor;
        if mine {
            executor.wake_local(task);
        }
        mine
    });
    if local != Some(true) {
        let executors = EXECUTORS.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(Some(inbox)) = executors.get(usize::from(task.executor)) {
            inbox.push(task);
        }
    }
}

pub(crate) fn close(descriptor: i32) {
    try_with_current(|executor| executor.driver.borrow_mut().close(descriptor));
}

pub(crate) fn orphan(token: Token) {
    try_with_current(|executor| executor.orphan(token));
}

pub(crate) fn cancel_timer(key: TimerKey) {
    try_with_current(|executor| executor.timers.borrow_mut().cancel(key));
}

impl Executor {
    pub fn new(
        driver: Box<dyn Driver>,
        arena: Rc<Arena>,
        operations_max: u32,
        bell: Box<dyn Fn() + Send + Sync>,
    ) -> Rc<Self> {
        let inbox =
            Arc::new(Inbox { wakes: Mutex::default(), filled: AtomicBool::new(false), bell });
        let mut executors = EXECUTORS.write().unwrap_or_else(PoisonError::into_inner);
        let free = executors.iter().position(Option::is_none).unwrap_or(executors.len());
        if free == executors.len() {
            executors.push(None);
        }
        executors[free] = Some(Arc::clone(&inbox));
        drop(executors);
        Rc::new(Self {
            id: u16::try_from(free).expect("fewer than 65,536 executors in a process"),
            arena,
            driver: RefCell::new(driver),
            tasks: RefCell::default(),
            ready: Default::default(),
            flights: RefCell::new(Flights::new(operations_max)),
            timers: RefCell::default(),
            inbox,
            arrivals: RefCell::default(),
            polls: Cell::new(0),
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
        self.inbox.filled.load(Ordering::Acquire)
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
        }
    }

    fn spawn(&self, share: Share, future: Pin<Box<dyn Future<Output = ()>>>) -> TaskId {
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

    /// Stops a task: its future is dropped now, or after its poll if it is being polled.
    fn cancel_task(&self, id: TaskId) {
        let future = self.tasks.borrow_mut().cancel(id);
        drop(future);
    }

    /// Polls ready tasks, share by share, until none is ready or the driver's turn is due.
    pub fn run_ready(&self) {
        let until = self.now() + TASK_TIME_MAX;
        let mut since_clock = 0;
        while self.has_ready() {
            for (queue, polls) in self.ready.iter().zip(POLLS_PER_ROUND) {
                for _ in 0..polls {
                    let Some(id) = self.pick(queue) else { break };
                    self.poll_task(id);
                    since_clock += 1;
                    if since_clock == POLLS_PER_CLOCK {
                        since_clock = 0;
                        if self.now() >= until {
                            return;
                        }
                    }
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

    /// Starts an operation, or gives it back when every slot is taken.
    #[expect(clippy::result_large_err, reason = "the operation moves, it is not an error's text")]
    pub fn submit(&self, op: Op, waker: &Waker) -> Result<Token, Op> {
        let Some(token) = self.flights.borrow_mut().begin(&op, waker) else { return Err(op) };
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
        let wait = if self.inbox.filled.load(Ordering::Acquire) { Wait::No } else { wait };
        let mut arrivals = self.arrivals.take();
        self.driver.borrow_mut().turn(wait, &mut arrivals)?;
        for (token, done) in arrivals.drain(..) {
            let orphaned = self.flights.borrow_mut().complete(token, done);
            if let Some(done) = orphaned {
                self.discard(done);
            }
        }
        self.arrivals.replace(arrivals);
        if self.inbox.filled.swap(false, Ordering::AcqRel) {
            let wakes = {
                let mut wakes = self.inbox.wakes.lock().unwrap_or_else(PoisonError::into_inner);
                std::mem::take(&mut *wakes)
            };
            for task in wakes {
                self.wake_local(task);
            }
        }
        let now = self.now();
        while let Some(waker) = { self.timers.borrow_mut().pop_due(now) } {
            waker.wake();
        }
        Ok(())
    }

    /// Stops every task, those too that others start while they are dropped.
    pub fn drop_tasks(&self) {
        while let Some(future) = { self.tasks.borrow_mut().pop_any() } {
            drop(future);
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
        let mut executors = EXECUTORS.write().unwrap_or_else(PoisonError::into_inner);
        executors[usize::from(self.id)] = None;
    }
}

/// The tasks: a slab, its free slots reused under a new generation.
#[derive(Default)]
struct Tasks {
    slots: Vec<TaskSlot>,
    free: Vec<u32>,
}

struct TaskSlot {
    generation: u32,
    share: Share,
    state: TaskState,
    queued: bool,
}

enum TaskState {
    Free,
    Idle(Pin<Box<dyn Future<Output = ()>>>),
    Polled,
    PolledAndCancelled,
}

impl Tasks {
    fn insert(&mut self, share: Share, future: Pin<Box<dyn Future<Output = ()>>>) -> (u32, u32) {
        let slot = self.free.pop().unwrap_or_else(|| {
            assert!(self.slots.len() < SLOTS, "more than 2^24 tasks");
            let state = TaskState::Free;
            self.slots.push(TaskSlot { generation: 0, share, state, queued: false });
            (self.slots.len() - 1) as u32
        });
        let entry = &mut self.slots[slot as usize];
        entry.share = share;
        entry.state = TaskState::Idle(future);
        entry.queued = false;
        (slot, entry.generation)
    }

    fn get(&mut self, id: TaskId) -> Option<&mut TaskSlot> {
        let entry = self.slots.get_mut(id.slot as usize)?;
        let alive = entry.generation == id.generation && !matches!(entry.state, TaskState::Free);
        alive.then_some(entry)
    }

    /// Marks a task as queued; its share if it was not yet.
    fn queue(&mut self, id: TaskId) -> Option<Share> {
        let entry = self.get(id)?;
        (!std::mem::replace(&mut entry.queued, true)).then_some(entry.share)
    }

    fn begin_poll(&mut self, id: TaskId) -> Option<Pin<Box<dyn Future<Output = ()>>>> {
        let entry = self.get(id)?;
        entry.queued = false;
        match std::mem::replace(&mut entry.state, TaskState::Polled) {
            TaskState::Idle(future) => Some(future),
            other => {
                entry.state = other;
                None
            }
        }
    }

    /// Puts the future back, or returns it to be dropped.
    fn end_poll(
        &mut self,
        id: TaskId,
        future: Pin<Box<dyn Future<Output = ()>>>,
        ended: bool,
    ) -> Option<Pin<Box<dyn Future<Output = ()>>>> {
        let entry = self.get(id).expect("a polled task keeps its slot");
        if ended || matches!(entry.state, TaskState::PolledAndCancelled) {
            self.release(id.slot);
            return Some(future);
        }
        entry.state = TaskState::Idle(future);
        None
    }

    fn cancel(&mut self, id: TaskId) -> Option<Pin<Box<dyn Future<Output = ()>>>> {
        let entry = self.get(id)?;
        match std::mem::replace(&mut entry.state, TaskState::PolledAndCancelled) {
            TaskState::Idle(future) => {
                self.release(id.slot);
                Some(future)
            }
            _ => None,
        }
    }

    fn pop_any(&mut self) -> Option<Pin<Box<dyn Future<Output = ()>>>> {
        let slot = self.slots.iter().position(|s| matches!(s.state, TaskState::Idle(_)))?;
        let state = std::mem::replace(&mut self.slots[slot].state, TaskState::Free);
        self.release(slot as u32);
        match state {
            TaskState::Idle(future) => Some(future),
            _ => None,
        }
    }

    fn release(&mut self, slot: u32) {
        let entry = &mut self.slots[slot as usize];
        entry.state = TaskState::Free;
        entry.generation = (entry.generation + 1) % GENERATIONS;
        self.free.push(slot);
    }

    fn live(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}

/// The operations in flight, and who waits for a slot.
struct Flights {
    slots: Vec<FlightSlot>,
    free: Vec<u32>,
    max: usize,
    waiting: Vec<Waker>,
}

struct FlightSlot {
    generation: u32,
    cancel: bool,
    state: FlightState,
}

enum FlightState {
    Free,
    Waiting(Waker),
    Orphaned,
    Done(Done),
}

impl Flights {
    fn new(max: u32) -> Self {
        Self { slots: Vec::new(), free: Vec::new(), max: max as usize, waiting: Vec::new() }
    }

    fn begin(&mut self, op: &Op, waker: &Waker) -> Option<Token> {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None if self.slots.len() < self.max => {
                let state = FlightState::Free;
                self.slots.push(FlightSlot { generation: 0, cancel: false, state });
                (self.slots.len() - 1) as u32
            }
            None => {
                self.waiting.push(waker.clone());
                return None;
            }
        };
        let entry = &mut self.slots[slot as usize];
        entry.state = FlightState::Waiting(waker.clone());
        entry.cancel = op.may_wait_forever();
        Some(Token { slot, generation: entry.generation })
    }

    fn get(&mut self, token: Token) -> &mut FlightSlot {
        let entry = &mut self.slots[token.slot as usize];
        assert_eq!(entry.generation, token.generation, "a completion of another operation");
        entry
    }

    fn take(&mut self, token: Token, waker: &Waker) -> Option<Done> {
        let entry = self.get(token);
        match std::mem::replace(&mut entry.state, FlightState::Free) {
            FlightState::Done(done) => {
                self.release(token.slot);
                Some(done)
            }
            FlightState::Waiting(_) => {
                entry.state = FlightState::Waiting(waker.clone());
                None
            }
            FlightState::Free | FlightState::Orphaned => unreachable!("a future owns its flight"),
        }
    }

    /// The result if it is there already, and whether the driver should be asked to cancel.
    fn orphan(&mut self, token: Token) -> (Option<Done>, bool) {
        let entry = self.get(token);
        let cancel = entry.cancel;
        match std::mem::replace(&mut entry.state, FlightState::Orphaned) {
            FlightState::Done(done) => {
                self.release(token.slot);
                (Some(done), false)
            }
            _ => (None, cancel),
        }
    }

    /// Keeps a result for its future, or returns it when nobody waits.
    fn complete(&mut self, token: Token, done: Done) -> Option<Done> {
        let entry = self.get(token);
        match std::mem::replace(&mut entry.state, FlightState::Free) {
            FlightState::Waiting(waker) => {
                entry.state = FlightState::Done(done);
                waker.wake();
                None
            }
            FlightState::Orphaned => {
                self.release(token.slot);
                Some(done)
            }
            FlightState::Free | FlightState::Done(_) => unreachable!("completed twice"),
        }
    }

    fn release(&mut self, slot: u32) {
        let entry = &mut self.slots[slot as usize];
        entry.state = FlightState::Free;
        entry.generation = entry.generation.wrapping_add(1);
        self.free.push(slot);
        // All of them: the first may belong to a future that is gone.
        for waker in self.waiting.drain(..) {
            waker.wake();
        }
    }

    fn live(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}
