//! A task and its value: what [`spawn`] gives, to await, to let run, or to stop by dropping
//! it; and [`to_its_end`], which nobody stops.

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use super::Share;
use super::current::{try_with, with_current};
use crate::task::TaskId;

/// A running task and, awaited, its value. Dropping it stops the task; [`Task::detach`] lets it
/// run.
#[must_use = "dropping a task stops it"]
pub struct Task<T> {
    id: Option<TaskId>,
    serial: u64,
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
            try_with(self.serial, |executor| executor.cancel_task(id));
        }
    }
}

impl<T> std::fmt::Debug for Task<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Task({:?})", self.id)
    }
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
    let (serial, id) = with_current(|executor| (executor.serial, executor.spawn(share, future)));
    Task { id: Some(id), serial, join }
}

/// Runs `work` in a task of its own, which comes to its end also when whoever waits here is gone.
///
/// # Panics
/// Outside an executor.
pub async fn to_its_end<T: 'static>(share: Share, work: impl Future<Output = T> + 'static) -> T {
    let mut waited_for = LeftRunning(Some(spawn(share, work)));
    waited_for.0.as_mut().expect("it is there until it is dropped").await
}

/// A task that whoever drops this leaves running.
struct LeftRunning<T>(Option<Task<T>>);

impl<T> Drop for LeftRunning<T> {
    fn drop(&mut self) {
        self.0.take().into_iter().for_each(Task::detach);
    }
}
