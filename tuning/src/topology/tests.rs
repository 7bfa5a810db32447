//! Trees as machines show them, written out small.

use super::*;
use tempfile::TempDir;

/// A sysfs tree below a temporary folder.
pub(crate) struct Tree(pub(crate) TempDir);

impl Tree {
    /// `cores` is one entry per physical core: (node, its logical CPUs).
    pub(crate) fn new(cores: &[(usize, &[usize])]) -> Self {
        let tree = Tree(tempfile::tempdir().expect("temporary folder"));
        let all: CpuSet = cores.iter().flat_map(|(_, cpus)| cpus.iter().copied()).collect();
        tree.write("sys/devices/system/cpu/online", &all.to_string());
        tree.write("sys/devices/system/cpu/present", &all.to_string());
        let mut nodes: BTreeMap<usize, CpuSet> = BTreeMap::new();
        for (node, cpus) in cores {
            let siblings: CpuSet = cpus.iter().copied().collect();
            for cpu in *cpus {
                let folder = format!("sys/devices/system/cpu/cpu{cpu}");
                tree.write(&format!("{folder}/topology/core_cpus_list"), &siblings.to_string());
                for (index, level, kind, size) in
                    [(0, 1, "Data", "48K"), (1, 2, "Unified", "2048K"), (2, 3, "Unified", "32768K")]
                {
                    let cache = format!("{folder}/cache/index{index}");
                    tree.write(&format!("{cache}/level"), &level.to_string());
                    tree.write(&format!("{cache}/type"), kind);
                    tree.write(&format!("{cache}/size"), size);
                }
                nodes.entry(*node).or_default().insert(*cpu);
            }
        }
        let ids: CpuSet = nodes.keys().copied().collect();
        tree.write("sys/devices/system/node/online", &ids.to_string());
        for (node, cpus) in nodes {
            let folder = format!("sys/devices/system/node/node{node}");
            tree.write(&format!("{folder}/cpulist"), &cpus.to_string());
            let meminfo =
                format!("Node {node} MemTotal:       16777216 kB\nNode {node} MemFree: 1 kB");
            tree.write(&format!("{folder}/meminfo"), &meminfo);
        }
        tree
    }

    /// One core per CPU, one node.
    pub(crate) fn flat(cpus: usize) -> Self {
        let ids: Vec<[usize; 1]> = (0..cpus).map(|id| [id]).collect();
        let cores: Vec<(usize, &[usize])> = ids.iter().map(|id| (0, id.as_slice())).collect();
        Tree::new(&cores)
    }

    pub(crate) fn write(&self, path: &str, text: &str) {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().expect("parent")).expect("folder");
        fs::write(path, format!("{text}\n")).expect("file");
    }

    pub(crate) fn read(&self) -> Topology {
        Topology::read(self.0.path(), &everything()).expect("a readable tree")
    }
}

fn everything() -> CpuSet {
    (0..1024).collect()
}

fn set(list: &str) -> CpuSet {
    list.parse().expect("a list")
}

#[test]
fn one_node_with_threads() {
    let topology = Tree::new(&[(0, &[0, 4]), (0, &[1, 5]), (0, &[2, 6]), (0, &[3, 7])]).read();
    assert_eq!(topology.nodes.len(), 1);
    assert_eq!(topology.nodes[0].memory_bytes, Some(16 << 30));
    assert_eq!(topology.cpu(5).expect("online").core, 1);
    assert_eq!(topology.cpu(5).expect("online").siblings, set("1,5"));
    assert_eq!(topology.usable_cores(), [set("0,4"), set("1,5"), set("2,6"), set("3,7")]);
    assert_eq!((topology.l2_bytes, topology.l3_bytes), (Some(2 << 20), Some(32 << 20)));
}

#[test]
fn two_and_four_nodes() {
    let two = Tree::new(&[(0, &[0]), (1, &[1]), (0, &[2]), (1, &[3])]).read();
    assert_eq!(
        two.nodes.iter().map(|node| node.cpus.to_string()).collect::<Vec<_>>(),
        ["0,2", "1,3"]
    );
    assert_eq!(two.cpu(3).expect("online").node, 1);
    let four = Tree::new(&[(0, &[0]), (1, &[1]), (2, &[2]), (3, &[3])]).read();
    assert_eq!(four.nodes.len(), 4);
}

#[test]
fn a_core_switched_off_is_named_and_not_used() {
    let tree = Tree::new(&[(0, &[0, 2]), (0, &[1, 3])]);
    tree.write("sys/devices/system/cpu/online", "0-2");
    let topology = tree.read();
    assert_eq!(topology.offline, set("3"));
    assert_eq!(topology.cpu(1).expect("online").siblings, set("1"));
    assert_eq!(topology.usable, set("0-2"));
}

#[test]
fn cgroup_v2_narrows_all_the_way_up() {
    let tree = Tree::flat(8);
    tree.write("proc/self/cgroup", "0::/system.slice/understudy.service");
    tree.write("sys/fs/cgroup/cpuset.cpus.effective", "0-7");
    tree.write("sys/fs/cgroup/system.slice/cpuset.cpus.effective", "2-7");
    tree.write("sys/fs/cgroup/system.slice/memory.max", "8589934592");
    tree.write("sys/fs/cgroup/system.slice/understudy.service/cpuset.cpus.effective", "2-5");
    tree.write("sys/fs/cgroup/system.slice/understudy.service/cpu.max", "150000 100000");
    tree.write("sys/fs/cgroup/system.slice/understudy.service/memory.max", "max");
    let topology = tree.read();
    assert_eq!(topology.usable, set("2-5"));
    assert_eq!(topology.limits.cpu_quota_cores, Some(1.5));
    assert_eq!(topology.limits.memory_bytes, Some(8 << 30));
}

#[test]
fn cgroup_v1_and_a_path_the_mount_hides() {
    let tree = Tree::flat(4);
    tree.write("proc/self/cgroup", "4:memory:/x\n3:cpuset:/docker/abc\n1:cpu,cpuacct:/\n0::/");
    tree.write("sys/fs/cgroup/cpuset/cpuset.effective_cpus", "1-2");
    tree.write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1");
    tree.write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000");
    tree.write("sys/fs/cgroup/memory/x/memory.limit_in_bytes", "9223372036854771712");
    let topology = tree.read();
    assert_eq!(topology.usable, set("1-2"));
    assert_eq!(topology.limits.cpu_quota_cores, None);
    assert_eq!(topology.limits.memory_bytes, None);
}

#[test]
fn the_affinity_mask_counts_and_nothing_left_is_an_error() {
    let tree = Tree::flat(4);
    let topology = Topology::read(tree.0.path(), &set("3")).expect("one CPU");
    assert_eq!(topology.usable, set("3"));
    let error = Topology::read(tree.0.path(), &set("9")).expect_err("nothing usable");
    assert!(error.to_string().contains("affinity mask 9"), "{error}");
}

#[test]
fn a_bare_tree_still_answers() {
    let tree = Tree(tempfile::tempdir().expect("temporary folder"));
    tree.write("sys/devices/system/cpu/online", "0-1");
    let topology = tree.read();
    assert_eq!(topology.nodes, [Node { id: 0, cpus: set("0-1"), memory_bytes: None }]);
    assert_eq!(topology.usable_cores().len(), 2);
    assert_eq!(topology.l2_bytes, None);
}

#[test]
fn garbled_and_missing_files_are_errors_with_their_path() {
    let tree = Tree(tempfile::tempdir().expect("temporary folder"));
    let missing = Topology::read(tree.0.path(), &everything()).expect_err("nothing there");
    assert!(missing.to_string().contains("cpu/online"), "{missing}");
    tree.write("sys/devices/system/cpu/online", "zero");
    let garbled = Topology::read(tree.0.path(), &everything()).expect_err("no list");
    assert!(garbled.to_string().contains("`zero`"), "{garbled}");
}

#[test]
fn this_machine_can_be_read() {
    let topology = Topology::of_this_machine().expect("a Linux machine");
    assert!(!topology.usable.is_empty());
}
