//! What the control group grants this process: CPUs, CPU time and memory, in both versions.

use crate::CpuSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Limits from cgroup v1 or v2; `None` means none is set.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CgroupLimits {
    /// CPUs the cpuset controller allows.
    pub cpus: Option<CpuSet>,
    /// CPU time granted, in cores (1.5 = one and a half).
    pub cpu_quota_cores: Option<f64>,
    /// Memory limit, the smallest on the way up.
    pub memory_bytes: Option<u64>,
}

/// v1 says "no limit" with a number near 2^63; anything this large is none.
const MEMORY_UNLIMITED_BYTES: u64 = 1 << 60;

impl CgroupLimits {
    /// Reads the limits of the process that `<root>/proc/self/cgroup` describes.
    pub fn read(root: &Path) -> Self {
        let membership = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
        let mounts = root.join("sys/fs/cgroup");
        let mut limits = CgroupLimits::default();
        for line in membership.lines() {
            let mut fields = line.splitn(3, ':');
            let (Some(_), Some(controllers), Some(path)) =
                (fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            if controllers.is_empty() {
                // The unified hierarchy is mounted beside the v1 controllers on hybrid hosts.
                for mount in [mounts.clone(), mounts.join("unified")] {
                    limits.read_v2(&mount, path);
                }
            }
            for controller in controllers.split(',') {
                limits.read_v1(&mounts, controllers, controller, path);
            }
        }
        limits
    }

    fn read_v2(&mut self, mount: &Path, path: &str) {
        for folder in lineage(mount, path) {
            self.narrow_cpus(read(&folder, "cpuset.cpus.effective"));
            if let Some(text) = read(&folder, "cpu.max")
                && let Some((quota, period)) = text.trim().split_once(' ')
            {
                self.narrow_quota(quota.parse().ok(), period.parse().ok());
            }
            self.narrow_memory(read(&folder, "memory.max"));
        }
    }

    fn read_v1(&mut self, mounts: &Path, joint: &str, controller: &str, path: &str) {
        // Controllers that share a hierarchy are mounted under their joint name, often with a link.
        let mount = [controller, joint]
            .iter()
            .map(|name| mounts.join(name))
            .find(|mount| mount.is_dir())
            .unwrap_or_else(|| mounts.join(controller));
        for folder in lineage(&mount, path) {
            match controller {
                "cpuset" => {
                    let effective = read(&folder, "cpuset.effective_cpus")
                        .or_else(|| read(&folder, "cpuset.cpus"));
                    self.narrow_cpus(effective);
                }
                "cpu" => {
                    let number = |file| read(&folder, file)?.trim().parse::<f64>().ok();
                    self.narrow_quota(number("cpu.cfs_quota_us"), number("cpu.cfs_period_us"));
                }
                "memory" => self.narrow_memory(read(&folder, "memory.limit_in_bytes")),
                _ => {}
            }
        }
    }

    fn narrow_cpus(&mut self, list: Option<String>) {
        let Some(cpus) = list.and_then(|list| list.parse::<CpuSet>().ok()) else { return };
        if cpus.is_empty() {
            return;
        }
        self.cpus = Some(match self.cpus.take() {
            Some(known) => known.intersection(&cpus),
            None => cpus,
        });
    }

    fn narrow_quota(&mut self, quota_us: Option<f64>, period_us: Option<f64>) {
        let (Some(quota_us), Some(period_us)) = (quota_us, period_us) else { return };
        if quota_us <= 0.0 || period_us <= 0.0 {
            return;
        }
        let cores = quota_us / period_us;
        self.cpu_quota_cores = Some(self.cpu_quota_cores.map_or(cores, |known| known.min(cores)));
    }

    fn narrow_memory(&mut self, limit: Option<String>) {
        let Some(bytes) = limit.and_then(|text| text.trim().parse::<u64>().ok()) else { return };
        if bytes < MEMORY_UNLIMITED_BYTES {
            self.memory_bytes = Some(self.memory_bytes.map_or(bytes, |known| known.min(bytes)));
        }
    }
}

fn read(folder: &Path, file: &str) -> Option<String> {
    fs::read_to_string(folder.join(file)).ok()
}

/// The group's folder and all above it up to the mount. In a container the path may name a group
/// that the mount does not show: then only the mount's own root is left, which is the group itself.
fn lineage(mount: &Path, path: &str) -> Vec<PathBuf> {
    let path = Path::new(path.trim_start_matches('/'));
    path.ancestors().map(|part| mount.join(part)).filter(|folder| folder.is_dir()).collect()
}
