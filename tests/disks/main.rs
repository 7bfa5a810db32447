//! Disks that fail: the release binary on file systems whose devices are files served from here,
//! so that power can go, space run out and I/O fail, on a real kernel.
//!
//! ```text
//! node ── ext4 or XFS ── loop device ── FUSE ── a device with a cache, in this process
//! ```
//!
//! Needs root, FUSE and loop devices, and fails without them. Everything is mounted in a mount
//! namespace of its own, so that nothing stays behind, whatever ends the tests. `cargo test -p
//! tests --test disks -- NAME` runs those whose name contains NAME.

mod blocks;
mod damage;
mod full;
mod fuse;
mod hung;
mod limits;
mod power;
mod stage;
mod volume;

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use libtest_mimic::{Arguments, Trial};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use tests::Outcome;

type Scenario = (&'static str, fn() -> Outcome);

const SCENARIOS: &[Scenario] = &[
    ("power_cut_on_ext4", power::power_cut_on_ext4),
    ("power_cut_on_xfs", power::power_cut_on_xfs),
    ("failing_device", power::failing_device),
    ("flushed_is_on_the_device", power::flushed_is_on_the_device),
    ("full_while_preparing", full::full_while_preparing),
    ("full_while_writing", full::full_while_writing),
    ("failover_on_a_full_disk", full::failover_on_a_full_disk),
    ("damaged_partition_files", damage::partition_files),
    ("bit_below_the_flushed_end", damage::bit_below_the_flushed_end),
    ("unreadable_sectors", damage::unreadable_sectors),
    ("damaged_own_files", damage::own_files),
    ("second_process_is_refused", limits::second_process_is_refused),
    ("unusable_data_folders", limits::unusable_data_folders),
    ("few_descriptors", limits::few_descriptors),
    ("few_threads", limits::few_threads),
    ("little_locked_memory", limits::little_locked_memory),
    ("stopped_at_any_moment", limits::stopped_at_any_moment),
    ("stop_on_a_hung_disk", hung::stop_has_a_limit),
    ("crowded_admin_socket", limits::crowded_admin_socket),
];

fn main() {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    // Before any thread: each has the namespace of the one that made it.
    let apart = apart();
    let trials = SCENARIOS.iter().map(|&(name, scenario)| {
        let apart = apart.clone();
        Trial::test(name, move || {
            apart?;
            let started = std::time::Instant::now();
            scenario()?;
            eprintln!("{name}: {:.1} s", stage::seconds(started));
            Ok(())
        })
    });
    libtest_mimic::run(&arguments, trials.collect()).exit();
}

/// Mounts made from here on are ours alone.
fn apart() -> Outcome {
    let told = |what: &str, e: nix::Error| format!("{what}: {e}; these tests need root");
    unshare(CloneFlags::CLONE_NEWNS).map_err(|e| told("a mount namespace of our own", e))?;
    let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, flags, None::<&str>)
        .map_err(|e| told("make all mounts private", e))?;
    hold_mounts()
}

/// Has another process be the last to leave the namespace, when its pipe to this one is closed. A
/// process leaves its namespace before its files are closed: left by this one last, the file
/// systems would be written out to devices that nobody serves any more, for ever.
fn hold_mounts() -> Outcome {
    let mut holder = Command::new("cat");
    // In a group of its own: a signal to ours is not for it.
    holder.stdin(Stdio::piped()).stdout(Stdio::null()).process_group(0);
    let holder = holder.spawn().map_err(|e| format!("start cat: {e}"))?;
    // The pipe stays open as long as this process lives.
    std::mem::forget(holder);
    Ok(())
}
