//! The executor that this thread runs: how everything else finds it.
//!
//! What belongs to an executor names it by its serial, so that a handle that outlives it touches
//! no other.

use std::cell::RefCell;
use std::rc::Rc;

use super::Executor;
use super::inbox::Inbox;
use crate::op::Token;
use crate::task::TaskId;
use crate::timer::TimerKey;

thread_local! {
    pub(super) static CURRENT: RefCell<Option<Rc<Executor>>> = const { RefCell::new(None) };
}

/// Calls into the executor this thread runs.
pub(crate) fn with_current<R>(call: impl FnOnce(&Executor) -> R) -> R {
    try_with_current(call).expect("called on a thread that runs no executor")
}

pub(super) fn try_with_current<R>(call: impl FnOnce(&Executor) -> R) -> Option<R> {
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
    if local != Some(true)
        && let Some(inbox) = Inbox::of(task.executor)
        && let Some(bell) = inbox.push(task)
    {
        // From ring to ring without a system call of its own, if this thread has a ring at hand.
        if try_with_current(|executor| executor.wake_other(bell)) != Some(true) {
            bell.ring();
        }
    }
}

/// Closes a descriptor, by the current executor's driver if it is of its kind.
pub(crate) fn close(descriptor: i32, simulated: bool) {
    let closed = try_with_current(|executor| {
        let mine = executor.simulated == simulated;
        if mine {
            executor.driver.borrow_mut().close(descriptor);
        }
        mine
    });
    if closed != Some(true) && !simulated {
        crate::uring::close_descriptor(descriptor);
    }
}

/// Calls into the current executor if it is that one.
pub(super) fn try_with<R>(serial: u64, call: impl FnOnce(&Executor) -> R) -> Option<R> {
    try_with_current(|executor| (executor.serial == serial).then(|| call(executor))).flatten()
}

pub(crate) fn orphan(serial: u64, token: Token) {
    try_with(serial, |executor| executor.orphan(token));
}

pub(crate) fn leave_line(serial: u64, ticket: u64) {
    try_with(serial, |executor| executor.flights.borrow_mut().leave(ticket));
}

pub(crate) fn cancel_timer(serial: u64, key: TimerKey) {
    try_with(serial, |executor| executor.timers.borrow_mut().cancel(key));
}
