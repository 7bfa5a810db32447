//! What the machine is, what of it Understudy takes, and whether the host can serve.
//!
//! Three steps, each plain data for the next: [`Topology`] is read from sysfs below a root path, so
//! that recorded trees test it; [`plan`] turns it and the operator's wishes into data cores,
//! housekeeping cores and memory per shard; [`checks`] measures the host against what the data path
//! needs and answers with findings that name the setting to change. [`report`] prints all three.
//!
//! Nothing here changes the machine but [`pin_current_thread`].

pub mod checks;
mod cpu_set;
mod limits;
mod pin;
pub mod plan;
pub mod report;
pub mod topology;

pub use checks::{Finding, Severity};
pub use cpu_set::{CpuSet, ParseCpuSetError};
pub use limits::CgroupLimits;
pub use pin::{affinity, pin_current_thread};
pub use plan::{Cores, Plan, Profile};
pub use topology::Topology;
