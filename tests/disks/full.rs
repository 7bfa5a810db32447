//! Full disks: fetching pauses and says so, goes on when there is room, and a failover still works.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use source::{Growth, TopicSpec};
use tests::Outcome;
use tests::understudy::{LINK, Partition, Understudy};

use crate::stage::{Source, ensure};
use crate::volume::{Kind, Volume};

const TOPIC: &str = "full";

fn is_full(all: &[Partition]) -> bool {
    all.iter().any(|p| p.state == "DISK_FULL" && !p.reason.is_empty())
}

/// The space that is prepared ahead of the records runs out: DISK_FULL with its reason; with room
/// again everything comes.
pub fn full_while_preparing() -> Outcome {
    for kind in [Kind::Ext4, Kind::Xfs] {
        let source = Source::start(&[TopicSpec::new(TOPIC, 3, 250)])?;
        let name = format!("preparing-{}", kind.name());
        let size = kind.bytes_min() + (64 << 20);
        let volume = Volume::mount(kind, &name, kind.make(size)?)?;
        let ballast = volume.path().join("ballast");
        // Room for the reserve and less than half of the records.
        leave_free(&ballast, volume.path(), 36 << 20)?;
        let data = volume.path().join("data");
        let mut node = Understudy::at(&name, source.bootstrap(), Some(&data), &[TOPIC])?;
        node.launch()?;
        node.wait_until("the disk to be full", is_full)?;
        fs::remove_file(&ballast).map_err(|e| e.to_string())?;
        let records = source.prove(&mut node)?;
        eprintln!("  {}: DISK_FULL, then {records} records", kind.name());
        drop(volume.unmount()?);
    }
    Ok(())
}

/// Somebody else fills the disk to the last block while records come: nothing ends, nothing
/// differs; with room again everything comes.
pub fn full_while_writing() -> Outcome {
    for kind in [Kind::Ext4, Kind::Xfs] {
        let (source, volume, mut node) = filled(kind, "writing")?;
        fs::remove_file(volume.path().join("ballast")).map_err(|e| e.to_string())?;
        let records = source.prove(&mut node)?;
        eprintln!("  {}: DISK_FULL, then {records} records", kind.name());
        drop(volume.unmount()?);
    }
    Ok(())
}

/// The source dies while the disk is full to the last block: the failover works all the same, and
/// a restart on the full disk changes nothing.
pub fn failover_on_a_full_disk() -> Outcome {
    for kind in [Kind::Ext4, Kind::Xfs] {
        let (source, volume, mut node) = filled(kind, "reserve")?;
        source.leave()?;
        let over = |all: &[Partition]| all.iter().all(|p| p.state == "FAILED_OVER");
        node.verb(&["failover", LINK, "--all"])
            .map_err(|e| format!("{}: {e}\n{}", kind.name(), node.log_tail()))?;
        let told = node.wait_until("the link to be failed over", over)?;
        node.stop()?;
        node.launch()?;
        node.wait_until("the link to be failed over still", over)?;
        node.stop()?;
        source.holds(&node, &told)?;
        drop(volume.unmount()?);
    }
    Ok(())
}

/// A node that copies a growing source, and a ballast that takes every block that is left.
fn filled(kind: Kind, name: &str) -> Outcome<(Source, Volume, Understudy)> {
    let topic = TopicSpec::new(TOPIC, 3, 20).with_growth(Growth {
        backlog_batches: 20,
        batches_max: 900,
        bytes_per_second: 4e6,
    });
    let source = Source::start(&[topic])?;
    let name = format!("{name}-{}", kind.name());
    let size = kind.bytes_min() + (192 << 20);
    let volume = Volume::mount(kind, &name, kind.make(size)?)?;
    let data = volume.path().join("data");
    let mut node = Understudy::at(&name, source.bootstrap(), Some(&data), &[TOPIC])?;
    node.launch()?;
    node.wait_until("some of it", |all| all.len() == 3 && all.iter().all(|p| p.flushed > Some(0)))?;
    let ballast = volume.path().join("ballast");
    leave_free(&ballast, volume.path(), 0)?;
    let told = node.wait_until("the disk to be full", is_full)?;
    fill(&ballast)?;
    let wrong = told.iter().find(|p| ["FAULTED", "CORRUPT"].contains(&p.state.as_str()));
    ensure(wrong.is_none(), || format!("{wrong:?}\n{}", node.log_tail()))?;
    Ok((source, volume, node))
}

/// Makes a file that leaves so many bytes free, or, with 0, none at all.
fn leave_free(ballast: &Path, folder: &Path, free: u64) -> Outcome {
    let told = |e: &dyn std::fmt::Display| format!("{}: {e}", ballast.display());
    let now = nix::sys::statvfs::statvfs(folder).map_err(|e| told(&e))?;
    let bytes = (now.blocks_available() * now.fragment_size()).saturating_sub(free);
    let file = File::create(ballast).map_err(|e| told(&e))?;
    let flags = nix::fcntl::FallocateFlags::empty();
    // Some of what is available goes to the file's own extents, and into the node's files.
    let mut bytes = bytes.cast_signed();
    while bytes > 0 && nix::fcntl::fallocate(&file, flags, 0, bytes).is_err() {
        bytes -= 1 << 20;
    }
    if free == 0 { fill(ballast) } else { Ok(()) }
}

/// Writes to the end of a file until nothing fits.
fn fill(ballast: &Path) -> Outcome {
    let mut file = File::options()
        .append(true)
        .open(ballast)
        .map_err(|e| format!("{}: {e}", ballast.display()))?;
    while file.write_all(&[7; 4096]).and_then(|()| file.sync_data()).is_ok() {}
    Ok(())
}
