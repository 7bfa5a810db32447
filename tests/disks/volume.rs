//! A file system on a device of our own: made once per kind, mounted, cut, mounted again.

use std::path::{Path, PathBuf};
use std::process::Command;

use tests::{Outcome, process, wait_for, work_dir};

use crate::blocks::Blocks;
use crate::fuse::Device;

/// Which file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// ext4.
    Ext4,
    /// XFS.
    Xfs,
}

impl Kind {
    /// Its name as mount(8) has it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Ext4 => "ext4",
            Kind::Xfs => "xfs",
        }
    }

    /// The smallest size its tool makes, and a little more, bytes.
    pub fn bytes_min(self) -> u64 {
        match self {
            Kind::Ext4 => 64 << 20,
            Kind::Xfs => 320 << 20,
        }
    }

    /// A device of this size with an empty file system on it.
    ///
    /// # Errors
    /// Its tool is missing and cannot be installed, or fails.
    pub fn make(self, bytes: u64) -> Outcome<Blocks> {
        let (tool, package, options): (_, _, &[&str]) = match self {
            Kind::Ext4 => ("mkfs.ext4", "e2fsprogs", &["-q", "-F", "-E", "nodiscard", "-m", "0"]),
            Kind::Xfs => ("mkfs.xfs", "xfsprogs", &["-q", "-f", "-K"]),
        };
        if process::run(tool, process::mortal("which").arg(tool)).is_err() {
            let mut install = process::mortal("apt-get");
            process::run("apt-get install", install.args(["install", "-y", "-q", package]))?;
        }
        let device = Device::start(&folder("making"), Blocks::new(bytes))?;
        process::run(tool, process::mortal(tool).args(options).arg(device.path()))?;
        Ok(device.cut(crate::blocks::Cut::Everything, &mut || 0).0)
    }
}

/// A mounted file system on a device of ours.
#[derive(Debug)]
pub struct Volume {
    /// What it lies on.
    pub device: Device,
    point: PathBuf,
}

impl Volume {
    /// Mounts a device with these bytes; the file system repairs itself from its journal.
    ///
    /// # Errors
    /// No loop device can be had, or the file system does not mount.
    pub fn mount(kind: Kind, name: &str, bytes: Blocks) -> Outcome<Volume> {
        let device = Device::start(&folder(&format!("{name}-device")), bytes)?;
        let point = folder(name);
        std::fs::create_dir_all(&point).map_err(|e| format!("{}: {e}", point.display()))?;
        let mut mount = Command::new("mount");
        mount.args(["-o", "loop", "-t", kind.name()]).arg(device.path()).arg(&point);
        process::run("mount -o loop (this needs root and a free loop device)", &mut mount)?;
        Ok(Volume { device, point })
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.point
    }

    /// Mounts it anew with other options, as `ro`.
    ///
    /// # Errors
    /// As mount(8) says.
    pub fn remount(&self, options: &str) -> Outcome {
        let mut mount = Command::new("mount");
        mount.args(["-o", &format!("remount,{options}")]).arg(&self.point);
        process::run("mount -o remount", &mut mount).map(drop)
    }

    /// Takes it away in order; what the device then holds is given back.
    ///
    /// # Errors
    /// It stays in use.
    pub fn unmount(self) -> Outcome<Blocks> {
        // In a process of its own: should this one be killed meanwhile, none of its threads waits
        // for the device that it serves itself, and so it can end.
        wait_for("the file system to be left", std::time::Duration::from_secs(10), || {
            let output = process::run_any("umount", Command::new("umount").arg(&self.point))?;
            match output.status.success() {
                true => Ok(Some(())),
                false if output.stderr.contains("busy") => Ok(None),
                false => Err(output.stderr),
            }
        })?;
        Ok(self.device.cut(crate::blocks::Cut::Everything, &mut || 0).0)
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let _ = process::run_any("umount", Command::new("umount").arg("-l").arg(&self.point));
        let _ = std::fs::remove_dir(&self.point);
    }
}

/// A place to mount something on. Mounts are seen by this process and its children alone, and end
/// with them.
fn folder(name: &str) -> PathBuf {
    work_dir().join("run").join(format!("disk-{name}.{}", std::process::id()))
}
