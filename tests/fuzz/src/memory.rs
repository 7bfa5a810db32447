//! Watches what a parser allocates.
//!
//! The allocator counts, for each thread on its own, bytes that are held and their peak. A block
//! that grows counts twice while it is moved, as it may be in memory.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

#[global_allocator]
static COUNTING: Counting = Counting;

struct Counting;

thread_local! {
    /// Bytes held. Memory may be given back by another thread than took it, so it may be negative.
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

/// Every parser may take so much, whatever its input.
pub const BASE_BYTES: usize = 8 << 10;
/// And so many bytes for each byte of input.
pub const FACTOR: usize = 32;

/// Runs `parse` and panics when it held more than [`BASE_BYTES`] and [`FACTOR`] × `input_bytes`.
pub fn bounded<T>(input_bytes: usize, parse: impl FnOnce() -> T) -> T {
    within(BASE_BYTES + FACTOR * input_bytes, parse)
}

/// Runs `parse` and panics when it ever held more than `bytes_max` beyond what was held before.
pub fn within<T>(bytes_max: usize, parse: impl FnOnce() -> T) -> T {
    let before = HELD.get();
    PEAK.set(before);
    let parsed = parse();
    let bytes = PEAK.get() - before;
    assert!(bytes <= bytes_max as isize, "{bytes} bytes were allocated, {bytes_max} are allowed");
    parsed
}

/// Runs `parse` and panics when it allocated anything.
pub fn none<T>(parse: impl FnOnce() -> T) -> T {
    within(0, parse)
}

fn took(bytes: usize) {
    // While a thread ends its counters are gone; nothing is measured then.
    let _ = HELD.try_with(|held| {
        held.set(held.get() + bytes as isize);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(held.get())));
    });
}

fn gave(bytes: usize) {
    let _ = HELD.try_with(|held| held.set(held.get() - bytes as isize));
}

// SAFETY: every call goes to the system's allocator unchanged; counting allocates nothing, since
// both counters are initialised at compile time and need no destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        took(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        took(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        gave(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_bytes: usize) -> *mut u8 {
        took(new_bytes);
        gave(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(block, layout, new_bytes) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_counted() {
        within(1000, || drop(vec![0u8; 1000]));
        none(|| 1 + 1);
        let over = std::panic::catch_unwind(|| within(999, || vec![0u8; 1000]));
        assert!(over.is_err());
        let grown = std::panic::catch_unwind(|| {
            within(1500, || {
                let mut bytes = vec![0u8; 1000];
                bytes.reserve_exact(100);
                bytes
            })
        });
        assert!(grown.is_err(), "old and new block at once");
    }

    #[test]
    fn a_decoder_that_believes_lengths_is_caught() {
        use kafka_protocol::messages::ApiVersionsResponse;
        use kafka_protocol::protocol::Decodable;
        // No error, and a million rows that do not follow.
        let mut lie = bytes::Bytes::from_static(&[0, 0, 0, 0x10, 0, 0]);
        let decode = std::panic::AssertUnwindSafe(|| {
            bounded(lie.len(), || ApiVersionsResponse::decode(&mut lie, 0).is_ok())
        });
        assert!(std::panic::catch_unwind(decode).is_err());
    }
}
