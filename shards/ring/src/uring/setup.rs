//! Setting a ring up, and saying plainly why it cannot be done.
#![allow(unsafe_code)]

use std::io;

use io_uring::{IoUring, Probe, opcode};

use super::{REGISTERED_RANGE, Registered, SUBMISSIONS_MAX, system, vector};
use crate::executor::Config;
use crate::memory::Arena;

/// A ring of one thread, whose completions arrive only when it asks for them.
pub fn ring(config: &Config) -> io::Result<IoUring> {
    let submissions = SUBMISSIONS_MAX.min(config.operations_max.next_power_of_two());
    let completions = (2 * config.operations_max).next_power_of_two();
    let ring: IoUring = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .setup_submit_all()
        .setup_cqsize(completions.max(2 * submissions))
        .dontfork()
        .build(submissions)
        .map_err(explain)?;
    ring.submitter().register_iowq_max_workers(&mut [config.io_workers_max; 2])?;
    if !config.io_worker_cores.is_empty() {
        let set = system::processor_set(&config.io_worker_cores);
        ring.submitter().register_iowq_aff(&set)?;
    }
    Ok(ring)
}

/// What to do about an error of `io_uring_setup(2)`.
pub fn explain(error: io::Error) -> io::Error {
    let advice = match error.raw_os_error() {
        Some(libc::EPERM) => {
            "io_uring is not permitted: set kernel.io_uring_disabled=0 (sysctl), and let the \
             container's seccomp profile permit io_uring_setup, io_uring_enter, io_uring_register"
        }
        Some(libc::ENOSYS) => {
            "this kernel has no io_uring, or a seccomp profile hides it: Linux 6.1 or newer with \
             CONFIG_IO_URING is needed"
        }
        Some(libc::EINVAL) => {
            "this kernel's io_uring is too old: Linux 6.1 or newer is needed \
             (IORING_SETUP_DEFER_TASKRUN)"
        }
        Some(libc::ENOMEM) => {
            "no memory for the ring: raise the memory lock limit (LimitMEMLOCK, ulimit -l) or the \
             cgroup's memory, or have fewer operations in flight"
        }
        Some(libc::EMFILE | libc::ENFILE) => {
            "no file descriptor for the ring: raise LimitNOFILE (ulimit -n)"
        }
        _ => "the ring cannot be set up",
    };
    io::Error::new(error.kind(), format!("{advice}: {error}"))
}

/// Whether this kernel can truncate through the ring (Linux 6.9).
pub fn can_truncate(ring: &IoUring) -> bool {
    let mut probe = Probe::new();
    let known = ring.submitter().register_probe(&mut probe).is_ok();
    known && probe.is_supported(opcode::Ftruncate::CODE)
}

/// Registers the arena in a few large ranges; without permission to lock memory, not at all.
pub fn register(ring: &IoUring, arena: &Arena) -> Registered {
    let (base, len) = arena.range();
    let ranges: Vec<libc::iovec> = (0..len)
        .step_by(REGISTERED_RANGE)
        .map(|at| vector(base.wrapping_add(at), REGISTERED_RANGE.min(len - at)))
        .collect();
    // SAFETY: the ranges are mapped memory that outlives the ring: the driver keeps the arena.
    let registered = unsafe { ring.submitter().register_buffers(&ranges) }.is_ok();
    Registered { base: base.addr(), len, registered }
}
