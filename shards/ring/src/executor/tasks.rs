//! The tasks of an executor.

use std::future::Future;
use std::pin::Pin;

use super::Share;
use crate::task::{GENERATIONS, SLOTS, TaskId};

/// What a task runs.
pub type TaskFuture = Pin<Box<dyn Future<Output = ()>>>;

/// The tasks: a slab, its free slots reused under a new generation.
#[derive(Default)]
pub struct Tasks {
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
    Idle(TaskFuture),
    Polled,
    PolledAndCancelled,
}

impl Tasks {
    pub fn insert(&mut self, share: Share, future: TaskFuture) -> (u32, u32) {
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
    pub fn queue(&mut self, id: TaskId) -> Option<Share> {
        let entry = self.get(id)?;
        (!std::mem::replace(&mut entry.queued, true)).then_some(entry.share)
    }

    pub fn begin_poll(&mut self, id: TaskId) -> Option<TaskFuture> {
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
    pub fn end_poll(&mut self, id: TaskId, future: TaskFuture, ended: bool) -> Option<TaskFuture> {
        let entry = self.get(id).expect("a polled task keeps its slot");
        if ended || matches!(entry.state, TaskState::PolledAndCancelled) {
            self.release(id.slot);
            return Some(future);
        }
        entry.state = TaskState::Idle(future);
        None
    }

    pub fn cancel(&mut self, id: TaskId) -> Option<TaskFuture> {
        let entry = self.get(id)?;
        match std::mem::replace(&mut entry.state, TaskState::PolledAndCancelled) {
            TaskState::Idle(future) => {
                self.release(id.slot);
                Some(future)
            }
            _ => None,
        }
    }

    /// Takes out one task that is not being polled, looking from slot `from` on; and where it was.
    pub fn pop_from(&mut self, from: usize) -> Option<(usize, TaskFuture)> {
        let idle = |entry: &TaskSlot| matches!(entry.state, TaskState::Idle(_));
        let slot = from + self.slots.get(from..)?.iter().position(idle)?;
        match std::mem::replace(&mut self.slots[slot].state, TaskState::Free) {
            TaskState::Idle(future) => {
                self.release(slot as u32);
                Some((slot, future))
            }
            _ => unreachable!("just seen idle"),
        }
    }

    fn release(&mut self, slot: u32) {
        let entry = &mut self.slots[slot as usize];
        entry.state = TaskState::Free;
        entry.generation = (entry.generation + 1) % GENERATIONS;
        self.free.push(slot);
    }

    pub fn live(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}
