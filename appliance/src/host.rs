//! This host as `tuning` sees it, held against a configuration.

use crate::admin::Tune;
use crate::config::{Config, ShardsConfig};
use std::path::{Path, PathBuf};
use tuning::checks::{self, Needs, ProcessLimits};
use tuning::plan::{Plan, PlanError};
use tuning::topology::TopologyError;
use tuning::{Finding, Severity, Topology, report};

/// What was found and chosen.
#[derive(Debug)]
pub struct Host {
    /// The machine.
    pub topology: Topology,
    /// The choice.
    pub plan: Plan,
    /// Worst first.
    pub findings: Vec<Finding>,
}

/// Why nothing can be chosen.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The machine cannot be read.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// The wishes cannot be met.
    #[error(transparent)]
    Plan(#[from] PlanError),
}

/// Looks at the host for this configuration; `partitions` already on its disks.
///
/// # Errors
/// When the machine cannot be read or the wishes cannot be met.
pub fn look(
    shards: &ShardsConfig,
    data_dirs: &[PathBuf],
    partitions: u64,
) -> Result<Host, HostError> {
    let topology = Topology::of_this_machine()?;
    let plan = tuning::plan::plan(&topology, shards.profile, &shards.cores, shards.memory_bytes)?;
    let needs = Needs { data_dirs, partitions, memory_bytes: shards.memory_bytes };
    let findings = checks::check(Path::new("/"), ProcessLimits::of_this_process(), &needs);
    Ok(Host { topology, plan, findings })
}

impl Host {
    /// The worst finding's severity.
    pub fn worst(&self) -> Severity {
        self.findings.iter().map(|finding| finding.severity).max().unwrap_or(Severity::Info)
    }

    /// For the admin socket and `understudy tune`.
    pub fn tune(&self) -> Tune {
        let finding = |finding: &Finding| {
            serde_json::to_value(finding).expect("findings have string keys only")
        };
        Tune {
            text: report::text(&self.topology, &self.plan, &self.findings),
            shard_cpus: self.plan.shards.iter().map(|shard| shard.cpu).collect(),
            housekeeping: self.plan.housekeeping.to_string(),
            findings: self.findings.iter().map(finding).collect(),
        }
    }
}

/// The answer of `understudy tune --config`.
pub fn tune(config: &Config) -> Tune {
    described(look(&config.shards, &config.node.data_dirs, 0))
}

/// The answer of `understudy tune` where no node runs: the defaults.
pub fn tune_without_config() -> Tune {
    described(look(&ShardsConfig::default(), &[], 0))
}

fn described(host: Result<Host, HostError>) -> Tune {
    match host {
        Ok(host) => host.tune(),
        Err(error) => Tune {
            text: format!("{error}\n"),
            shard_cpus: Vec::new(),
            housekeeping: String::new(),
            findings: vec![serde_json::json!({
                "check": "plan",
                "severity": "error",
                "what": error.to_string(),
                "measured": "",
                "change": "[shards] in the configuration",
            })],
        },
    }
}
