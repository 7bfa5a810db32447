//! Pinning of the calling thread, and the mask it runs under.

use crate::CpuSet;
use nix::sched::{CpuSet as Mask, sched_getaffinity};
use nix::unistd::Pid;

/// Binds the calling thread to one logical CPU.
///
/// # Errors
/// When the kernel refuses: the CPU is offline, or a cpuset excludes it.
pub fn pin_current_thread(cpu: usize) -> Result<(), PinError> {
    match core_affinity::set_for_current(core_affinity::CoreId { id: cpu }) {
        true => Ok(()),
        false => Err(PinError { cpu }),
    }
}

/// The kernel refused to pin a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the kernel refuses to bind a thread to CPU {cpu}: it is offline or outside the cpuset")]
pub struct PinError {
    /// The CPU asked for.
    pub cpu: usize,
}

/// The CPUs this thread may run on. Ask before pinning.
pub fn affinity() -> CpuSet {
    let Ok(mask) = sched_getaffinity(Pid::from_raw(0)) else { return CpuSet::default() };
    (0..Mask::count()).filter(|cpu| mask.is_set(*cpu).unwrap_or(false)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_thread_may_run_on_that_cpu_only() {
        let cpu = affinity().first().expect("some CPU");
        let inside = std::thread::spawn(move || {
            pin_current_thread(cpu).expect("an allowed CPU");
            affinity()
        });
        assert_eq!(inside.join().expect("thread"), [cpu].into_iter().collect());
        assert_eq!(pin_current_thread(1023), Err(PinError { cpu: 1023 }));
    }
}
