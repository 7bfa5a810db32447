//! One thing about queues.

use std::collections::VecDeque;

/// Takes the first element if it is due.
pub fn pop_if<T>(queue: &mut VecDeque<T>, due: impl FnOnce(&T) -> bool) -> Option<T> {
    if due(queue.front()?) { queue.pop_front() } else { None }
}
