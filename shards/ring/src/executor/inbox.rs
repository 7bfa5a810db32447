//! Wakes from outside: where other threads, and other executors, leave them.
//!
//! No wake is lost: who adds one to an inbox that was not marked as filled rings the bell, after
//! marking it. The executor unmarks it before it takes the wakes, and looks at the mark before it
//! waits; a bell rung after that look ends the wait.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use crate::driver::Bell;
use crate::task::TaskId;

/// One executor's inbox.
pub struct Inbox {
    wakes: Mutex<Vec<TaskId>>,
    filled: AtomicBool,
    bell: Arc<dyn Bell>,
}

static EXECUTORS: RwLock<Vec<Option<Arc<Inbox>>>> = RwLock::new(Vec::new());

impl Inbox {
    /// A new executor's inbox and its number in this process.
    pub fn register(bell: Arc<dyn Bell>) -> (Arc<Self>, u16) {
        let inbox =
            Arc::new(Self { wakes: Mutex::default(), filled: AtomicBool::new(false), bell });
        let mut executors = EXECUTORS.write().unwrap_or_else(PoisonError::into_inner);
        let free = executors.iter().position(Option::is_none).unwrap_or(executors.len());
        if free == executors.len() {
            executors.push(None);
        }
        executors[free] = Some(Arc::clone(&inbox));
        (inbox, u16::try_from(free).expect("fewer than 65,536 executors in a process"))
    }

    pub fn remove(number: u16) {
        let mut executors = EXECUTORS.write().unwrap_or_else(PoisonError::into_inner);
        executors[usize::from(number)] = None;
    }

    /// The inbox of an executor that may be gone.
    pub fn of(number: u16) -> Option<Arc<Self>> {
        let executors = EXECUTORS.read().unwrap_or_else(PoisonError::into_inner);
        executors.get(usize::from(number))?.clone()
    }

    /// Leaves a wake; the bell, if it must be rung.
    pub fn push(&self, task: TaskId) -> Option<&Arc<dyn Bell>> {
        let mut wakes = self.wakes.lock().unwrap_or_else(PoisonError::into_inner);
        // The same task woken again and again, by a busy sender, is one wake.
        if wakes.last() != Some(&task) {
            wakes.push(task);
        }
        drop(wakes);
        (!self.filled.swap(true, Ordering::AcqRel)).then_some(&self.bell)
    }

    pub fn is_filled(&self) -> bool {
        self.filled.load(Ordering::Acquire)
    }

    /// Takes what is there.
    pub fn take(&self) -> Vec<TaskId> {
        if !self.filled.swap(false, Ordering::AcqRel) {
            return Vec::new();
        }
        std::mem::take(&mut *self.wakes.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
