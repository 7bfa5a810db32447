//! The machine as sysfs tells it: logical CPUs, physical cores, NUMA nodes, caches.

use crate::{CgroupLimits, CpuSet};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// One logical CPU that is online.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// The kernel's number.
    pub id: usize,
    /// Physical core: all logical CPUs with the same number share one. Numbered from 0 in order of
    /// their lowest CPU; sysfs `core_id` repeats across packages, so it is not used as it stands.
    pub core: usize,
    /// Logical CPUs of the same physical core, itself included, online ones only.
    pub siblings: CpuSet,
    /// NUMA node; 0 where the kernel knows none.
    pub node: usize,
}

/// One NUMA node that has CPUs online.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// The kernel's number.
    pub id: usize,
    /// Online CPUs of the node.
    pub cpus: CpuSet,
    /// Memory of the node; `None` where the kernel does not say.
    pub memory_bytes: Option<u64>,
}

/// The machine, and what of it this process may use.
#[derive(Clone, Debug, PartialEq)]
pub struct Topology {
    /// Online CPUs, ascending.
    pub cpus: Vec<Cpu>,
    /// CPUs that are present but switched off.
    pub offline: CpuSet,
    /// NUMA nodes with CPUs, ascending.
    pub nodes: Vec<Node>,
    /// Level-2 cache of one core.
    pub l2_bytes: Option<u64>,
    /// Level-3 cache as one core sees it.
    pub l3_bytes: Option<u64>,
    /// What the control group grants.
    pub limits: CgroupLimits,
    /// CPUs this process may use: online, within the cpuset and the affinity mask.
    pub usable: CpuSet,
    /// CPUs the kernel's scheduler leaves alone (`isolcpus`), which make the best data cores.
    pub isolated: CpuSet,
}

/// sysfs does not look like a Linux machine's.
#[derive(Debug, thiserror::Error)]
pub enum TopologyError {
    /// A file without which nothing can be said is missing.
    #[error("cannot read {path}: {source}")]
    Unreadable {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// A file does not hold what the kernel documents.
    #[error("{path} holds `{text}`, which is no CPU list")]
    Garbled {
        /// The file.
        path: String,
        /// Its content.
        text: String,
    },
    /// Cpuset and affinity mask exclude every CPU that is online.
    #[error("no CPU is usable: online {online}, affinity mask {affinity}, cpuset {cpuset}")]
    NothingUsable {
        /// CPUs online.
        online: CpuSet,
        /// The process's mask.
        affinity: CpuSet,
        /// The control group's CPUs, or "unlimited".
        cpuset: String,
    },
}

impl Topology {
    /// Reads the machine below `root` (`/` outside tests). `affinity` is the process's mask.
    ///
    /// # Errors
    /// When the list of CPUs online cannot be read or nothing is left to use. Everything else has a
    /// fallback: virtual machines and containers hide caches, nodes and even the core's topology.
    pub fn read(root: &Path, affinity: &CpuSet) -> Result<Self, TopologyError> {
        let cpu_root = root.join("sys/devices/system/cpu");
        let online = cpu_list(&cpu_root.join("online"))?;
        let present = cpu_list(&cpu_root.join("present")).unwrap_or_else(|_| online.clone());
        let nodes = read_nodes(root, &online);
        let cpus = read_cpus(&cpu_root, &online, &nodes);
        let limits = CgroupLimits::read(root);
        let mut usable = online.intersection(affinity);
        if let Some(cpuset) = &limits.cpus {
            usable = usable.intersection(cpuset);
        }
        if usable.is_empty() {
            let cpuset = limits.cpus.map_or("unlimited".to_owned(), |cpus| cpus.to_string());
            let affinity = affinity.clone();
            return Err(TopologyError::NothingUsable { online, affinity, cpuset });
        }
        let first = usable.first().expect("not empty");
        Ok(Topology {
            cpus,
            offline: present.difference(&online),
            nodes,
            l2_bytes: cache_bytes(&cpu_root, first, 2),
            l3_bytes: cache_bytes(&cpu_root, first, 3),
            limits,
            usable,
            isolated: cpu_list(&cpu_root.join("isolated")).unwrap_or_default(),
        })
    }

    /// This machine, as the calling thread may use it.
    ///
    /// # Errors
    /// As [`Topology::read`].
    pub fn of_this_machine() -> Result<Self, TopologyError> {
        Topology::read(Path::new("/"), &crate::affinity())
    }

    /// The online CPU of that number.
    pub fn cpu(&self, id: usize) -> Option<&Cpu> {
        self.cpus.iter().find(|cpu| cpu.id == id)
    }

    /// Usable logical CPUs grouped by physical core, cores in ascending order.
    pub fn usable_cores(&self) -> Vec<CpuSet> {
        let mut cores: BTreeMap<usize, CpuSet> = BTreeMap::new();
        for cpu in self.cpus.iter().filter(|cpu| self.usable.contains(cpu.id)) {
            cores.entry(cpu.core).or_default().insert(cpu.id);
        }
        cores.into_values().collect()
    }
}

fn cpu_list(path: &Path) -> Result<CpuSet, TopologyError> {
    let text = fs::read_to_string(path)
        .map_err(|source| TopologyError::Unreadable { path: path.display().to_string(), source })?;
    text.parse().map_err(|_| TopologyError::Garbled {
        path: path.display().to_string(),
        text: text.trim().chars().take(80).collect(),
    })
}

fn read_nodes(root: &Path, online: &CpuSet) -> Vec<Node> {
    let folder = root.join("sys/devices/system/node");
    let ids = cpu_list(&folder.join("online")).unwrap_or_default();
    let mut nodes: Vec<Node> = ids
        .iter()
        .filter_map(|id| {
            let folder = folder.join(format!("node{id}"));
            let cpus = cpu_list(&folder.join("cpulist")).ok()?.intersection(online);
            let memory_bytes = node_memory_bytes(&folder.join("meminfo"));
            // Nodes of memory alone (CXL, high-bandwidth memory) hold no shard.
            (!cpus.is_empty()).then_some(Node { id, cpus, memory_bytes })
        })
        .collect();
    if nodes.is_empty() {
        nodes.push(Node { id: 0, cpus: online.clone(), memory_bytes: None });
    }
    nodes
}

/// `Node 0 MemTotal:       32768 kB`
fn node_memory_bytes(path: &Path) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.contains("MemTotal:"))?;
    let kib: u64 = line.split_whitespace().rev().nth(1)?.parse().ok()?;
    kib.checked_mul(1024)
}

fn read_cpus(cpu_root: &Path, online: &CpuSet, nodes: &[Node]) -> Vec<Cpu> {
    let mut core_of_first: BTreeMap<usize, usize> = BTreeMap::new();
    let siblings_of = |id: usize| {
        let topology = cpu_root.join(format!("cpu{id}/topology"));
        let list = cpu_list(&topology.join("core_cpus_list"))
            .or_else(|_| cpu_list(&topology.join("thread_siblings_list")))
            .unwrap_or_default()
            .intersection(online);
        match list.contains(id) {
            true => list,
            false => [id].into_iter().collect(),
        }
    };
    online
        .iter()
        .map(|id| {
            let siblings = siblings_of(id);
            let first = siblings.first().expect("holds the CPU itself");
            let next = core_of_first.len();
            let core = *core_of_first.entry(first).or_insert(next);
            let node = nodes.iter().find(|node| node.cpus.contains(id)).map_or(0, |node| node.id);
            Cpu { id, core, siblings, node }
        })
        .collect()
}

fn cache_bytes(cpu_root: &Path, cpu: usize, level: u32) -> Option<u64> {
    let folder = cpu_root.join(format!("cpu{cpu}/cache"));
    (0..8).find_map(|index| {
        let folder = folder.join(format!("index{index}"));
        let read = |file: &str| fs::read_to_string(folder.join(file)).ok();
        let fits = read("level")?.trim().parse() == Ok(level);
        let holds_data = read("type").is_none_or(|kind| kind.trim() != "Instruction");
        if !(fits && holds_data) {
            return None;
        }
        let size = read("size")?;
        let kib: u64 = size.trim().strip_suffix('K')?.parse().ok()?;
        kib.checked_mul(1024)
    })
}

#[cfg(test)]
pub(crate) mod tests;
