//! The seeded simulator: whole worlds of executors, disks, network and clocks on one thread.
//!
//! A [`Simulation`] holds machines (each a disk and any number of executors) and the network
//! between them. The code under test runs unchanged: the same executor, tasks, files and sockets,
//! over a [`Driver`](crate::driver::Driver) that performs operations in the simulated world. One
//! seed decides everything that may vary: which executor runs next, which ready task, when and in
//! which order operations end, what fails ([`Faults`]), what a power loss keeps. The same seed
//! gives the same run, and every failure prints it.
//!
//! ```
//! # use ring::sim::{Faults, Simulation};
//! # use ring::{Config, File, OpenOptions, Share, fs};
//! let mut sim = Simulation::new(42, Faults::default());
//! let shard = sim.executor(Config::small());
//! let task = sim.spawn_on(shard, Share::Replicate, async {
//!     fs::create_dir_all("/data").await.expect("a folder");
//!     fs::replace("/data/name", b"first".to_vec()).await.expect("written");
//!     fs::write("/data/name", b"second".to_vec()).await.expect("written, not flushed");
//! });
//! sim.run_until(|_| task.is_finished());
//! sim.crash(shard); // the machine loses its power
//! let again = sim.executor(Config::small());
//! let kept = sim.run_on(again, async { fs::read("/data/name", 100).await.expect("there") });
//! assert!(kept == b"first" || kept == b"second" || kept.is_empty()); // cut, not yet written
//! ```
//!
//! [`for_seeds`] runs a test for many seeds, or for the one in `RING_SEED`. A world costs little:
//! an arena's pages are taken when they are touched; thousands of runs a minute are usual.
//!
//! # What it can find
//!
//! - Wrong order of writes, flushes, renames and cuts: a crash keeps any sectors of what was not
//!   flushed, and a prefix of the metadata journal ([`disk`] says exactly what and why).
//! - Code that takes a failed or short operation for a full one; that forgets an error of a flush.
//! - Use of memory an operation still owns: a read's or receive's memory is filled with a pattern
//!   when it is submitted and written when it completes; a write's bytes are taken at completion
//!   and must be those of its submission. All of it is ordinary Rust, so Miri watches every access.
//! - Races of a dropped future with its completion; wrong wake-ups; starvation; livelock
//!   ([`Faults::steps_max`]); deadlock (nothing left to happen).
//! - Lost peers: resets, half-open silence, partitions, slow readers, refused calls.
//!
//! # What it cannot find
//!
//! - Data races and lock order: there is one thread. Other threads cannot take part.
//! - Errors in the real driver ([`run`](crate::run)'s own tests are for those), in the kernel, in
//!   file systems. The disk is a model; `namespace` changes reach it in journal order, which holds
//!   for ext4 and XFS, not for every file system.
//! - Code that iterates a `HashMap` with a random state, reads the real clock or real random
//!   numbers: it makes runs differ for the same seed.
//! - How long anything really takes.

use std::future::Future;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use crate::driver::Wait;
use crate::executor::{Config, Executor, Share, Task, spawn};
use crate::memory::{Arena, MemoryUse};
use crate::time::Instant;

mod calls;
pub mod disk;
mod driver;
mod faults;
mod files;
mod happened;
mod network;
mod world;

pub use disk::Disk;
use driver::{SilentBell, SimDriver};
pub use faults::{ClockFaults, DiskFaults, Faults, NetworkFaults, Random};
pub use happened::{Accident, Happened};
use world::{SharedWorld, World};

/// Names one executor of a simulation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExecutorId(pub(crate) usize);

/// Names one machine of a simulation: a disk, a power switch, a place in the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Machine(pub(crate) usize);

impl Machine {
    /// The machine every simulation has.
    pub const FIRST: Self = Self(0);
}

/// What an executor held when it had stopped.
#[derive(Clone, Copy, Debug)]
pub struct Left {
    /// Its arena.
    pub memory: MemoryUse,
    /// Open files and sockets.
    pub descriptors: usize,
}

/// A world, run from one seed. See the module's text.
pub struct Simulation {
    seed: u64,
    world: SharedWorld,
    executors: Vec<Seat>,
    steps: u64,
    steps_max: u64,
}

struct Seat {
    executor: Option<Rc<Executor>>,
    arena: Weak<Arena>,
    paused_until: Instant,
}

impl Simulation {
    /// A world with one machine and no executor yet.
    pub fn new(seed: u64, faults: Faults) -> Self {
        let steps_max = faults.steps_max;
        let world = World::new(seed, faults);
        Self { seed, world, executors: Vec::new(), steps: 0, steps_max }
    }

    /// The seed it runs from.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Steps so far.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// One more machine.
    pub fn machine(&mut self) -> Machine {
        self.world.borrow_mut().add_machine()
    }

    /// A new executor on [`Machine::FIRST`].
    pub fn executor(&mut self, config: Config) -> ExecutorId {
        self.executor_on(Machine::FIRST, config)
    }

    /// A new executor; its machine has power from now on.
    ///
    /// # Panics
    /// If there is no memory for its arena.
    pub fn executor_on(&mut self, machine: Machine, config: Config) -> ExecutorId {
        let id = self.world.borrow_mut().add_executor(machine);
        let arena = Arena::new(config.arena_bytes, config.lease_bytes_max, false);
        let driver = Box::new(SimDriver::new(Rc::clone(&self.world), id));
        let arena = arena.expect("memory for an arena");
        let bell = Arc::new(SilentBell);
        let seat = Seat {
            arena: Rc::downgrade(&arena),
            executor: Some(Executor::new(driver, arena, config.operations_max, bell)),
            paused_until: Instant::default(),
        };
        self.executors.push(seat);
        id
    }

    /// Starts a task on an executor.
    ///
    /// # Panics
    /// If the executor is dead.
    pub fn spawn_on<T: 'static>(
        &mut self,
        on: ExecutorId,
        share: Share,
        future: impl Future<Output = T> + 'static,
    ) -> Task<T> {
        self.enter(on, || spawn(share, future))
    }

    /// Calls with this executor as the current one.
    ///
    /// # Panics
    /// If the executor is dead.
    pub fn enter<R>(&self, on: ExecutorId, call: impl FnOnce() -> R) -> R {
        let executor = self.executors[on.0].executor.as_ref();
        executor.unwrap_or_else(|| panic!("{} is dead ({self:?})", on.0)).enter(call)
    }

    /// Runs the world until this future, a task of a new executor of the first machine, ends; then
    /// stops that executor.
    pub fn run<T: 'static>(&mut self, root: impl Future<Output = T> + 'static) -> T {
        let executor = self.executor(Config::small());
        let value = self.run_on(executor, root);
        self.stop(executor);
        value
    }

    /// Runs the world until this future, a task of that executor, ends.
    ///
    /// # Panics
    /// As [`Simulation::run_until`].
    pub fn run_on<T: 'static>(
        &mut self,
        on: ExecutorId,
        root: impl Future<Output = T> + 'static,
    ) -> T {
        let task = self.spawn_on(on, Share::Background, root);
        self.run_until(|_| task.is_finished());
        task.take().expect("it is finished")
    }

    /// Runs the world until the condition holds; it is asked before every step.
    ///
    /// # Panics
    /// When nothing is left to happen, or after [`Faults::steps_max`] steps.
    pub fn run_until(&mut self, mut condition: impl FnMut(&Simulation) -> bool) {
        while !condition(self) {
            assert!(self.step(), "a deadlock: nothing is left to happen ({self:?})");
        }
    }

    /// Runs the world for so long of its own time, or until nothing is left to happen.
    pub fn run_for(&mut self, time: Duration) {
        let until = self.now() + time;
        while self.now() < until && self.step() {}
    }

    /// Runs one executor, or lets time pass to whatever is next. False if nothing is.
    ///
    /// # Panics
    /// After [`Faults::steps_max`] steps.
    pub fn step(&mut self) -> bool {
        self.steps += 1;
        assert!(self.steps <= self.steps_max, "a livelock: too many steps ({self:?})");
        self.draw_clock_faults();
        let now = self.now();
        self.world.borrow_mut().process_due();
        let ready: Vec<usize> = (0..self.executors.len())
            .filter(|at| self.executors[*at].paused_until <= now && self.has_work(*at, now))
            .collect();
        if ready.is_empty() {
            return self.pass_time(now);
        }
        let pause = {
            let world = &mut *self.world.borrow_mut();
            world.advance(200 + world.random.clone().below(2_000));
            let picked = ready[world.random.index(ready.len())];
            let paused = world.random.chance(world.faults.clock.pause_ppm);
            world.happened.count_if(Accident::Pause, paused);
            (picked, paused.then(|| Duration::from_nanos(world.random.below(1_000_000_000))))
        };
        match pause {
            (picked, Some(pause)) => self.executors[picked].paused_until = now + pause,
            (picked, None) => self.run_executor(picked),
        }
        true
    }

    fn has_work(&self, at: usize, now: Instant) -> bool {
        let Some(executor) = &self.executors[at].executor else { return false };
        executor.has_ready()
            || executor.has_messages()
            || !self.world.borrow().executors[at].done.is_empty()
            || executor.next_timer().is_some_and(|timer| timer <= now)
    }

    fn run_executor(&mut self, at: usize) {
        let executor = Rc::clone(self.executors[at].executor.as_ref().expect("it has work"));
        executor.enter(|| {
            executor.turn(Wait::No).expect("the simulated driver never fails");
            executor.run_ready();
        });
    }

    /// Nobody has anything to do: on to the next thing that happens.
    fn pass_time(&mut self, now: Instant) -> bool {
        let paused = |seat: &Seat| (seat.paused_until > now).then_some(seat.paused_until);
        let timer = |seat: &Seat| {
            let timer = seat.executor.as_ref()?.next_timer()?;
            Some(timer.max(seat.paused_until))
        };
        let executors = self.executors.iter();
        let next = executors
            .flat_map(|seat| [paused(seat), timer(seat)])
            .chain([self.world.borrow().next_event()])
            .flatten()
            .min();
        if let Some(next) = next {
            self.world.borrow_mut().advance_to(next);
        }
        next.is_some()
    }

    fn draw_clock_faults(&mut self) {
        let world = &mut *self.world.borrow_mut();
        if world.random.chance(world.faults.clock.jump_ppm) {
            world.happened.count(Accident::ClockJump);
            let jump_ms = world.random.below(3_600_000).cast_signed();
            world.wall_offset_ms += if world.random.coin() { jump_ms } else { -jump_ms };
        }
    }

    // Ends and accidents.

    /// Stops an executor as [`run`](crate::run) does at its end: its tasks are dropped, and the
    /// world runs until nothing of it is in flight. What it still holds then is in the hands of
    /// the caller, or leaked.
    ///
    /// # Panics
    /// If it is dead, or if something of it never ends.
    pub fn stop(&mut self, which: ExecutorId) -> Left {
        let executor = self.executors[which.0].executor.clone().expect("a live executor");
        executor.enter(|| executor.drop_tasks());
        self.run_until(|sim| {
            let idle = sim.world.borrow().in_flight(which) == 0;
            idle && !executor.has_ready() && !executor.has_messages()
        });
        let memory = executor.arena().in_use();
        let left = Left { memory, descriptors: self.open_descriptors(which) };
        drop(executor);
        self.bury(which, false);
        left
    }

    /// Kills one process, as `kill -9` does: what it wrote is there, what it had under way may
    /// be, its sockets close. Its machine and its neighbours run on.
    pub fn kill(&mut self, which: ExecutorId) {
        self.bury(which, false);
    }

    /// The machine of this executor loses its power: all its executors die, its disk keeps
    /// what was flushed and any part of the rest, its peers hear nothing. A new executor on this
    /// machine switches it on again.
    pub fn crash(&mut self, which: ExecutorId) {
        let machine = self.world.borrow().machine(which);
        for id in 0..self.executors.len() {
            if self.world.borrow().machine(ExecutorId(id)) == machine {
                self.bury(ExecutorId(id), true);
            }
        }
        let world = &mut *self.world.borrow_mut();
        world.powered[machine.0] = false;
        let unreadable_ppm = world.faults.disk.torn_unreadable_ppm;
        world.disks[machine.0].crash(unreadable_ppm, &mut world.random);
    }

    fn bury(&mut self, which: ExecutorId, power: bool) {
        let Some(executor) = self.executors[which.0].executor.take() else { return };
        let remains = self.world.borrow_mut().kill(which, power);
        executor.enter(|| {
            drop(remains);
            executor.drop_tasks();
        });
    }

    /// Whether an executor is alive.
    pub fn is_alive(&self, which: ExecutorId) -> bool {
        self.executors[which.0].executor.is_some()
    }

    /// How many dead executors' arenas are still there: handles of their memory are in the hands of
    /// the caller, or leaked. A dead process holds no memory.
    pub fn arenas_of_the_dead(&self) -> usize {
        let held = |seat: &&Seat| seat.executor.is_none() && seat.arena.strong_count() > 0;
        self.executors.iter().filter(held).count()
    }

    /// Files and sockets an executor holds open.
    pub fn open_descriptors(&self, which: ExecutorId) -> usize {
        let world = self.world.borrow();
        world.descriptors.values().filter(|descriptor| descriptor.executor == which).count()
    }

    /// The world's clock.
    pub fn now(&self) -> Instant {
        self.world.borrow().now()
    }

    /// A random number of the world's, for choices of the test itself.
    pub fn random_below(&self, end: u64) -> u64 {
        self.world.borrow_mut().random.below(end)
    }

    /// Moves the wall clock; the monotonic clock runs on.
    pub fn jump_wall_clock(&mut self, by_ms: i64) {
        let world = &mut *self.world.borrow_mut();
        world.wall_offset_ms += by_ms;
        world.happened.count(Accident::ClockJump);
    }

    /// Changes what goes wrong from now on.
    pub fn set_faults(&mut self, faults: Faults) {
        self.steps_max = faults.steps_max;
        self.world.borrow_mut().faults = faults;
    }

    /// What has gone wrong so far, on all machines and between them.
    pub fn happened(&self) -> Happened {
        let world = self.world.borrow();
        let mut happened = world.happened;
        world.disks.iter().for_each(|disk| happened += disk.happened());
        happened
    }

    /// Looks at a machine's disk, or breaks it.
    pub fn disk<R>(&self, machine: Machine, call: impl FnOnce(&mut Disk) -> R) -> R {
        call(&mut self.world.borrow_mut().disks[machine.0])
    }

    /// Cuts two machines from each other: nothing arrives any more.
    pub fn cut(&mut self, a: Machine, b: Machine) {
        self.world.borrow_mut().network.cut(a, b);
    }

    /// Joins them again; what was sent meanwhile arrives.
    pub fn mend(&mut self, a: Machine, b: Machine) {
        self.world.borrow_mut().mend(a, b);
    }
}

impl Drop for Simulation {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the simulation failed: {self:?}");
        }
        for id in 0..self.executors.len() {
            self.bury(ExecutorId(id), false);
        }
    }
}

impl std::fmt::Debug for Simulation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let at_ms = self.world.try_borrow().map_or(0, |world| world.now().as_nanos() / 1_000_000);
        write!(f, "seed {}, step {}, at {at_ms} ms", self.seed, self.steps)
    }
}

/// Runs a test for many seeds: `first..first + count`, or only the one in the environment variable
/// `RING_SEED`.
pub fn for_seeds(first: u64, count: u64, mut test: impl FnMut(u64)) {
    match std::env::var("RING_SEED") {
        Ok(seed) => test(seed.parse().expect("RING_SEED is a number")),
        Err(_) => (first..first + count).for_each(test),
    }
}

#[cfg(test)]
mod tests;
