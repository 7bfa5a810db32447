//! Which CPUs carry data and which keep house, and how much memory each shard gets.
//!
//! A data core runs one shard and nothing else of ours; the control thread, the flushers and the
//! metadata store stay on housekeeping CPUs. Logical CPUs that share a physical core with a data
//! core are left idle when the plan is ours to choose: a busy sibling takes up to half the core.

use crate::{CpuSet, Topology};
use std::fmt;
use std::str::FromStr;

/// Smallest memory a shard can work with: append buffers of a few busy partitions.
pub const SHARD_MEMORY_BYTES_MIN: u64 = 64 << 20;

/// Shard memory is a whole number of huge pages.
pub const HUGE_PAGE_BYTES: u64 = 2 << 20;

/// How much of the machine is ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// A developer's machine: one shard, pinned nowhere.
    Dev,
    /// Other programs run here too: half of the physical cores.
    Shared,
    /// The machine is ours: every physical core but one.
    Dedicated,
    /// `Dev` on one core, else `Shared`; never the whole machine unasked.
    Auto,
}

/// Which CPUs carry data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cores {
    /// The profile decides.
    Auto,
    /// Exactly these logical CPUs, one shard each.
    List(CpuSet),
}

/// One data shard's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardPlace {
    /// The CPU it is pinned to; `None` = not pinned.
    pub cpu: Option<usize>,
    /// NUMA node of that CPU; memory is touched first by the pinned thread, so it lies there.
    pub node: usize,
    /// The shard's share of the memory budget.
    pub memory_bytes: u64,
}

/// What was chosen and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The profile in force; never `Auto`.
    pub profile: Profile,
    /// Data shards in order of their index.
    pub shards: Vec<ShardPlace>,
    /// CPUs for everything else. May overlap the data cores where there are too few.
    pub housekeeping: CpuSet,
    /// Usable CPUs left alone: siblings of data cores, or not ours by the profile.
    pub idle: CpuSet,
    /// One sentence per decision, in order.
    pub reasons: Vec<String>,
}

/// Why no plan can be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The list names CPUs that cannot be used.
    #[error("shards.cores names CPU {cpus}, which {why}; usable here: {usable}")]
    CpusUnusable {
        /// The CPUs at fault.
        cpus: CpuSet,
        /// What is wrong with them.
        why: &'static str,
        /// CPUs that may be named.
        usable: CpuSet,
    },
    /// The list is empty.
    #[error("shards.cores is an empty list: name CPUs (\"2-9\") or write \"auto\"")]
    NoCores,
    /// The budget does not reach.
    #[error(
        "shards.memory is {memory_bytes} bytes for {shards} shards; each needs at least \
         {SHARD_MEMORY_BYTES_MIN}: raise shards.memory to {needed} or name fewer shards.cores"
    )]
    TooLittleMemory {
        /// The configured budget.
        memory_bytes: u64,
        /// Shards it has to serve.
        shards: usize,
        /// The least that would do.
        needed: u64,
    },
}

/// Chooses cores and splits the memory budget.
///
/// # Errors
/// When named CPUs cannot be used or the budget is too small for the number of shards.
pub fn plan(
    topology: &Topology,
    profile: Profile,
    cores: &Cores,
    memory_bytes: u64,
) -> Result<Plan, PlanError> {
    let mut reasons = Vec::new();
    let profile = resolve(topology, profile, &mut reasons);
    let (data, pinned) = match cores {
        Cores::List(list) => (named(topology, list, &mut reasons)?, true),
        Cores::Auto => choose(topology, profile, &mut reasons),
    };
    let share = memory_bytes / data.len() as u64 / HUGE_PAGE_BYTES * HUGE_PAGE_BYTES;
    if share < SHARD_MEMORY_BYTES_MIN {
        let needed = SHARD_MEMORY_BYTES_MIN * data.len() as u64;
        return Err(PlanError::TooLittleMemory { memory_bytes, shards: data.len(), needed });
    }
    let shards: Vec<ShardPlace> = data
        .iter()
        .map(|cpu| ShardPlace {
            cpu: pinned.then_some(cpu),
            node: topology.cpu(cpu).map_or(0, |cpu| cpu.node),
            memory_bytes: share,
        })
        .collect();
    let housekeeping = keep_house(topology, &data, pinned, &mut reasons);
    let mut idle = topology.usable.difference(&housekeeping);
    if pinned {
        idle = idle.difference(&data);
    }
    Ok(Plan { profile, shards, housekeeping, idle, reasons })
}

impl Plan {
    /// Memory per NUMA node: (node, shards there, bytes).
    pub fn memory_per_node(&self) -> Vec<(usize, usize, u64)> {
        let mut nodes: Vec<(usize, usize, u64)> = Vec::new();
        for shard in &self.shards {
            match nodes.iter_mut().find(|(node, _, _)| *node == shard.node) {
                Some((_, shards, bytes)) => {
                    *shards += 1;
                    *bytes += shard.memory_bytes;
                }
                None => nodes.push((shard.node, 1, shard.memory_bytes)),
            }
        }
        nodes.sort_unstable();
        nodes
    }
}

fn resolve(topology: &Topology, profile: Profile, reasons: &mut Vec<String>) -> Profile {
    if profile != Profile::Auto {
        reasons.push(format!("profile {profile}: as configured"));
        return profile;
    }
    let cores = topology.usable_cores().len();
    let quota = topology.limits.cpu_quota_cores;
    if cores < 2 || quota.is_some_and(|quota| quota < 2.0) {
        let why = match quota {
            Some(quota) => format!("{cores} physical cores, CPU time for {quota} of them"),
            None => format!("{cores} physical core"),
        };
        reasons.push(format!("profile dev: {why}"));
        return Profile::Dev;
    }
    reasons.push(format!(
        "profile shared: {cores} physical cores, and nothing says that they are all ours \
         (set shards.profile = \"dedicated\" to take them)"
    ));
    Profile::Shared
}

fn named(
    topology: &Topology,
    list: &CpuSet,
    reasons: &mut Vec<String>,
) -> Result<CpuSet, PlanError> {
    let online: CpuSet = topology.cpus.iter().map(|cpu| cpu.id).collect();
    let refuse = |cpus: CpuSet, why| match cpus.is_empty() {
        true => Ok(()),
        false => Err(PlanError::CpusUnusable { cpus, why, usable: topology.usable.clone() }),
    };
    if list.is_empty() {
        return Err(PlanError::NoCores);
    }
    let dark = list.difference(&online);
    refuse(dark.intersection(&topology.offline), "is switched off")?;
    refuse(dark, "does not exist")?;
    refuse(list.difference(&topology.usable), "the cpuset or affinity mask excludes")?;
    reasons.push(format!("data cores {list}: as configured"));
    let shared = list.len() - cores_of(topology, list);
    if shared > 0 {
        reasons.push(format!("{shared} of them share a physical core with another: half as fast"));
    }
    Ok(list.clone())
}

fn cores_of(topology: &Topology, cpus: &CpuSet) -> usize {
    topology.usable_cores().iter().filter(|core| !core.intersection(cpus).is_empty()).count()
}

/// The profile's data cores: one logical CPU per physical core, and whether shards are pinned.
fn choose(topology: &Topology, profile: Profile, reasons: &mut Vec<String>) -> (CpuSet, bool) {
    let cores = topology.usable_cores();
    let firsts = |cores: &[CpuSet]| cores.iter().filter_map(CpuSet::first).collect::<CpuSet>();
    if profile == Profile::Dev {
        reasons.push("one shard, not pinned: the scheduler may move it".to_owned());
        return (firsts(&cores[..1]), false);
    }
    let isolated: Vec<CpuSet> = cores
        .iter()
        .filter(|core| !core.intersection(&topology.isolated).is_empty())
        .cloned()
        .collect();
    if !isolated.is_empty() && isolated.len() < cores.len() {
        let data = firsts(&isolated);
        reasons.push(format!("data cores {data}: the kernel keeps them isolated (isolcpus)"));
        return (data, true);
    }
    let quota = topology.limits.cpu_quota_cores.map_or(usize::MAX, |quota| quota as usize);
    let wanted = match profile {
        Profile::Dedicated => cores.len() - 1,
        _ => cores.len() / 2,
    };
    let count = wanted.min(quota.saturating_sub(1)).max(1);
    // The lowest cores serve interrupts on most machines: data takes the others.
    let data = firsts(&cores[cores.len() - count..]);
    reasons.push(match profile {
        Profile::Dedicated => format!("data cores {data}: every physical core but the first"),
        _ => format!("data cores {data}: the upper half of {} physical cores", cores.len()),
    });
    if count < wanted {
        reasons.push(format!("fewer than the profile's {wanted}: the CPU quota is {quota} cores"));
    }
    (data, true)
}

fn keep_house(
    topology: &Topology,
    data: &CpuSet,
    pinned: bool,
    reasons: &mut Vec<String>,
) -> CpuSet {
    if !pinned {
        reasons.push(format!("housekeeping {}: shared with the shard", topology.usable));
        return topology.usable.clone();
    }
    let siblings: CpuSet = topology
        .cpus
        .iter()
        .filter(|cpu| data.contains(cpu.id))
        .flat_map(|cpu| cpu.siblings.iter())
        .collect();
    let free = topology.usable.difference(&siblings).difference(&topology.isolated);
    let chosen = match free.is_empty() {
        true => topology.usable.difference(data),
        false => free,
    };
    if chosen.is_empty() {
        reasons.push(format!(
            "housekeeping {}: no CPU is left beside the data cores, so control work takes turns \
             with them",
            topology.usable
        ));
        return topology.usable.clone();
    }
    reasons.push(format!("housekeeping {chosen}: what the data cores leave"));
    chosen
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Profile::Dev => "dev",
            Profile::Shared => "shared",
            Profile::Dedicated => "dedicated",
            Profile::Auto => "auto",
        })
    }
}

impl FromStr for Profile {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "dev" => Ok(Profile::Dev),
            "shared" => Ok(Profile::Shared),
            "dedicated" => Ok(Profile::Dedicated),
            "auto" => Ok(Profile::Auto),
            _ => Err(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::tests::Tree;
    use proptest::prelude::*;

    const GIB: u64 = 1 << 30;

    fn set(list: &str) -> CpuSet {
        list.parse().expect("a list")
    }

    fn data(plan: &Plan) -> CpuSet {
        plan.shards.iter().filter_map(|shard| shard.cpu).collect()
    }

    #[test]
    fn dedicated_leaves_one_core_and_all_siblings() {
        let tree = Tree::new(&[(0, &[0, 4]), (0, &[1, 5]), (1, &[2, 6]), (1, &[3, 7])]);
        let plan = plan(&tree.read(), Profile::Dedicated, &Cores::Auto, 3 * GIB).expect("a plan");
        assert_eq!(data(&plan), set("1-3"));
        assert_eq!(plan.housekeeping, set("0,4"));
        assert_eq!(plan.idle, set("5-7"));
        assert_eq!(plan.memory_per_node(), [(0, 1, GIB), (1, 2, 2 * GIB)]);
    }

    #[test]
    fn auto_is_dev_on_one_core_and_shared_on_more() {
        let one = plan(&Tree::flat(1).read(), Profile::Auto, &Cores::Auto, GIB).expect("a plan");
        assert_eq!((one.profile, data(&one).len(), one.shards.len()), (Profile::Dev, 0, 1));
        let two = plan(&Tree::flat(2).read(), Profile::Auto, &Cores::Auto, GIB).expect("a plan");
        assert_eq!((two.profile, data(&two)), (Profile::Shared, set("1")));
        assert_eq!(two.housekeeping, set("0"));
    }

    #[test]
    fn a_cpu_quota_limits_the_shards() {
        let tree = Tree::flat(8);
        tree.write("proc/self/cgroup", "0::/");
        tree.write("sys/fs/cgroup/cpu.max", "300000 100000");
        let plan = plan(&tree.read(), Profile::Dedicated, &Cores::Auto, GIB).expect("a plan");
        assert_eq!(plan.shards.len(), 2);
        assert!(plan.reasons.iter().any(|reason| reason.contains("quota")));
    }

    #[test]
    fn isolated_cores_are_taken_first() {
        let tree = Tree::flat(4);
        tree.write("sys/devices/system/cpu/isolated", "1-2");
        let plan = plan(&tree.read(), Profile::Shared, &Cores::Auto, GIB).expect("a plan");
        assert_eq!((data(&plan), plan.housekeeping), (set("1-2"), set("0,3")));
    }

    #[test]
    fn a_named_list_is_taken_as_it_is_or_refused_with_the_reason() {
        let tree = Tree::flat(4);
        tree.write("sys/devices/system/cpu/online", "0-2");
        let topology = tree.read();
        let named = |list: &str| {
            plan(&topology, Profile::Shared, &Cores::List(set(list)), GIB)
                .map_err(|error| error.to_string())
        };
        assert_eq!(data(&named("0,2").expect("a plan")), set("0,2"));
        assert!(named("3").expect_err("offline").contains("switched off"));
        assert!(named("1,9").expect_err("absent").contains("CPU 9, which does not exist"));
        assert!(named("").expect_err("empty").contains("empty list"));
        let all = named("0-2").expect("a plan");
        assert_eq!(all.housekeeping, set("0-2"), "nothing is left, so all are shared");
    }

    #[test]
    fn too_little_memory_says_how_much_is_needed() {
        let error = plan(&Tree::flat(8).read(), Profile::Dedicated, &Cores::Auto, GIB / 4)
            .expect_err("seven shards of 36 MiB");
        assert!(error.to_string().contains("raise shards.memory to 469762048"), "{error}");
    }

    proptest! {
        // Each case writes a tree of small files.
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// Whatever the machine: at least one shard, housekeeping is never empty, the budget holds,
        /// and a CPU is in one role only unless the machine is too small.
        #[test]
        fn every_plan_is_sound(cores in 1usize..12, threads in 1usize..3, nodes in 1usize..4,
                               dedicated: bool, gib in 2u64..8) {
            let ids: Vec<Vec<usize>> = (0..cores)
                .map(|core| (0..threads).map(|thread| core + thread * cores).collect())
                .collect();
            let layout: Vec<(usize, &[usize])> =
                ids.iter().enumerate().map(|(core, ids)| (core % nodes, ids.as_slice())).collect();
            let topology = Tree::new(&layout).read();
            let profile = if dedicated { Profile::Dedicated } else { Profile::Auto };
            let plan = plan(&topology, profile, &Cores::Auto, gib * GIB).expect("a plan");
            prop_assert!(!plan.shards.is_empty() && !plan.housekeeping.is_empty());
            let given: u64 = plan.shards.iter().map(|shard| shard.memory_bytes).sum();
            prop_assert!(given <= gib * GIB);
            if cores > 1 {
                prop_assert!(data(&plan).intersection(&plan.housekeeping).is_empty());
            }
        }
    }
}
