//! The text of `understudy tune`: the machine, what was chosen and why, and what to change.

use crate::plan::Plan;
use crate::{Finding, Severity, Topology};
use std::fmt::Write;

/// Writes the report for people.
pub fn text(topology: &Topology, plan: &Plan, findings: &[Finding]) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = machine(&mut out, topology);
    let _ = choice(&mut out, plan);
    let _ = host(&mut out, findings);
    out
}

fn machine(out: &mut String, topology: &Topology) -> std::fmt::Result {
    let cores = topology.usable_cores();
    writeln!(out, "Machine")?;
    writeln!(
        out,
        "  CPUs       {} usable of {} online ({} physical cores){}",
        topology.usable.len(),
        topology.cpus.len(),
        cores.len(),
        match topology.offline.is_empty() {
            true => String::new(),
            false => format!(", {} switched off", topology.offline),
        }
    )?;
    for node in &topology.nodes {
        let memory = node.memory_bytes.map_or("memory unknown".to_owned(), bytes);
        writeln!(out, "  node {:<5} CPUs {}, {memory}", node.id, node.cpus)?;
    }
    let cache = |size: Option<u64>| size.map_or("unknown".to_owned(), bytes);
    writeln!(out, "  caches     L2 {}, L3 {}", cache(topology.l2_bytes), cache(topology.l3_bytes))?;
    let limits = &topology.limits;
    if let Some(cpus) = &limits.cpus {
        writeln!(out, "  cpuset     {cpus}")?;
    }
    if let Some(cores) = limits.cpu_quota_cores {
        writeln!(out, "  CPU quota  {cores} cores")?;
    }
    if let Some(limit) = limits.memory_bytes {
        writeln!(out, "  memory     limited to {}", bytes(limit))?;
    }
    Ok(())
}

fn choice(out: &mut String, plan: &Plan) -> std::fmt::Result {
    writeln!(out, "\nChosen")?;
    for reason in &plan.reasons {
        writeln!(out, "  {reason}")?;
    }
    for (index, shard) in plan.shards.iter().enumerate() {
        let place = match shard.cpu {
            Some(cpu) => format!("CPU {cpu}, node {}", shard.node),
            None => "not pinned".to_owned(),
        };
        writeln!(out, "  shard {index:<4} {place}, {}", bytes(shard.memory_bytes))?;
    }
    for (node, shards, memory) in plan.memory_per_node() {
        writeln!(out, "  node {node:<5} {} for {shards} shards", bytes(memory))?;
    }
    if !plan.idle.is_empty() {
        writeln!(out, "  left alone {}", plan.idle)?;
    }
    Ok(())
}

fn host(out: &mut String, findings: &[Finding]) -> std::fmt::Result {
    writeln!(out, "\nHost")?;
    for finding in findings {
        let mark = match finding.severity {
            Severity::Error => "ERROR",
            Severity::Warning => "warn ",
            Severity::Info => "ok   ",
        };
        writeln!(out, "  {mark} {:<14} {} [{}]", finding.check, finding.what, finding.measured)?;
        if !finding.change.is_empty() {
            writeln!(out, "        change: {}", finding.change)?;
        }
    }
    Ok(())
}

/// A size as people write it: whole units where they fit.
pub fn bytes(size: u64) -> String {
    const UNITS: [(&str, u64); 4] =
        [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    for (unit, scale) in UNITS {
        if size >= scale {
            return match size.is_multiple_of(scale) {
                true => format!("{} {unit}", size / scale),
                false => format!("{:.1} {unit}", size as f64 / scale as f64),
            };
        }
    }
    format!("{size} B")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Cores, Profile, plan};
    use crate::topology::tests::Tree;

    #[test]
    fn the_report_names_machine_choice_and_remedy() {
        let topology = Tree::new(&[(0, &[0]), (1, &[1]), (1, &[2])]).read();
        let plan = plan(&topology, Profile::Dedicated, &Cores::Auto, 1 << 30).expect("a plan");
        let finding = Finding {
            check: "io_uring",
            severity: Severity::Error,
            what: "io_uring is switched off".to_owned(),
            measured: "2".to_owned(),
            change: "sysctl -w kernel.io_uring_disabled=0".to_owned(),
        };
        let text = text(&topology, &plan, &[finding]);
        for expected in [
            "3 usable of 3 online (3 physical cores)",
            "node 1     CPUs 1-2, 16 GiB",
            "shard 0    CPU 1, node 1, 512 MiB",
            "ERROR io_uring",
            "change: sysctl -w kernel.io_uring_disabled=0",
        ] {
            assert!(text.contains(expected), "`{expected}` is missing in:\n{text}");
        }
    }

    #[test]
    fn sizes_read_well() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(2 << 30), "2 GiB");
        assert_eq!(bytes(3 << 29), "1.5 GiB");
    }
}
