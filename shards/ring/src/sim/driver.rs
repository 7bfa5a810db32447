//! The simulator's driver: one executor's window on the world.

use std::io;
use std::os::fd::RawFd;

use super::ExecutorId;
use super::world::{OpKey, SharedWorld};
use crate::driver::{Address, Bell, Counters, Driver, Wait};
use crate::op::{Done, Op, Token};
use crate::time::Instant;

pub struct SimDriver {
    world: SharedWorld,
    executor: ExecutorId,
}

impl SimDriver {
    pub fn new(world: SharedWorld, executor: ExecutorId) -> Self {
        Self { world, executor }
    }

    fn key(&self, token: Token) -> OpKey {
        OpKey { executor: self.executor, token }
    }
}

impl Driver for SimDriver {
    fn submit(&mut self, token: Token, op: Op) {
        self.world.borrow_mut().submit(self.key(token), op);
    }

    fn cancel(&mut self, token: Token) {
        self.world.borrow_mut().cancel(self.key(token));
    }

    fn listen(&mut self, address: &Address) -> io::Result<(RawFd, Address)> {
        self.world.borrow_mut().listen(self.executor, address)
    }

    fn close(&mut self, descriptor: RawFd) {
        self.world.borrow_mut().close(descriptor);
    }

    fn shutdown(&mut self, descriptor: RawFd) {
        self.world.borrow_mut().shutdown(descriptor);
    }

    fn arrived_bytes(&self, descriptor: RawFd) -> u64 {
        self.world.borrow_mut().arrived_bytes(descriptor)
    }

    /// Never waits: the simulation decides when to run whom. Completions come in any order, and
    /// some come only the next time.
    fn turn(&mut self, _wait: Wait, done: &mut Vec<(Token, Done)>) -> io::Result<()> {
        let mut world = self.world.borrow_mut();
        let world = &mut *world;
        world.process_due();
        let process = &mut world.executors[self.executor.0];
        process.enters += 1;
        let mut left = process.done.len();
        while left > 0 {
            let pick = world.random.index(left);
            if world.random.below(8) == 0 {
                left -= 1;
                process.done.swap(pick, left);
                continue;
            }
            done.push(process.done.swap_remove(pick));
            left = left.min(process.done.len());
        }
        Ok(())
    }

    /// Looking at the clock takes a moment: a task that never ends its turn is seen to.
    fn now(&self) -> Instant {
        let mut world = self.world.borrow_mut();
        let nanos = world.random.below(2_000);
        world.advance(nanos);
        world.now()
    }

    fn wall_ms(&self) -> i64 {
        let world = self.world.borrow();
        world.wall_offset_ms + (world.now().as_nanos() / 1_000_000).cast_signed()
    }

    fn random(&mut self) -> u64 {
        self.world.borrow_mut().random.draw()
    }

    fn pick(&mut self, ready: usize) -> usize {
        self.world.borrow_mut().random.index(ready)
    }

    fn in_flight(&self) -> usize {
        self.world.borrow().in_flight(self.executor)
    }

    fn is_simulated(&self) -> bool {
        true
    }

    fn counters(&self) -> Counters {
        let world = self.world.borrow();
        let process = &world.executors[self.executor.0];
        Counters {
            enters: process.enters,
            completions: process.completions,
            helped: process.helped,
            // Work takes no time here: all of it passes in waits.
            enter_time: world.now().since(Instant::default()),
            ..Counters::default()
        }
    }
}

/// The simulation looks into every inbox by itself.
pub struct SilentBell;

impl Bell for SilentBell {
    fn ring(&self) {}
}
