//! What a number was measured under. Numbers of different conditions are not compared.

use std::fmt;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::Outcome;

/// How the files that were written had been prepared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileState {
    /// Nothing allocated ahead: each write makes the file longer.
    Growing,
    /// Allocated but never written: the file system marks extents as written on the way.
    Fresh,
    /// Written before: overwriting changes no metadata.
    Overwritten,
    /// No file is written.
    None,
}

/// The machine and everything else that must be equal before two numbers may be compared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Conditions {
    /// CPU model as the kernel names it.
    pub cpu: String,
    /// Logical CPUs.
    pub cores: usize,
    /// Kernel release.
    pub kernel: String,
    /// Type and options of the file system written to.
    pub file_system: String,
    /// Optimised or not.
    pub build: String,
    /// What is sent and how.
    pub load: String,
    /// What bounds the numbers.
    pub ceiling: String,
    /// Repetitions of every row.
    pub runs: usize,
    /// A shortened run: shows that it works, not how fast.
    pub quick: bool,
}

/// Two numbers that may not be compared.
#[derive(Debug)]
pub struct Incomparable(pub String);

impl fmt::Display for Incomparable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not compared: {}", self.0)
    }
}

impl std::error::Error for Incomparable {}

impl fmt::Display for FileState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FileState::Growing => "growing",
            FileState::Fresh => "fresh",
            FileState::Overwritten => "overwritten",
            FileState::None => "-",
        })
    }
}

impl Conditions {
    /// Looks at this machine.
    ///
    /// # Errors
    /// The folder's file system is not to be found.
    pub fn here(
        folder: &Path,
        load: &str,
        ceiling: &str,
        runs: usize,
        quick: bool,
    ) -> Outcome<Conditions> {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name"));
        let cpu = model.map_or("unknown", |rest| rest.trim_start_matches([' ', '\t', ':']));
        Ok(Conditions {
            cpu: cpu.to_owned(),
            cores: core_affinity::get_core_ids().map_or(1, |cores| cores.len()),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            file_system: file_system(folder)?,
            build: if cfg!(debug_assertions) { "debug" } else { "release" }.to_owned(),
            load: load.to_owned(),
            ceiling: ceiling.to_owned(),
            runs,
            quick,
        })
    }

    /// Refuses what differs, naming it.
    ///
    /// # Errors
    /// When anything but the number of runs differs.
    pub fn comparable(&self, other: &Conditions) -> Result<(), Incomparable> {
        let (ours, theirs) = (self.named(), other.named());
        for ((what, ours), (_, theirs)) in ours.iter().zip(&theirs) {
            if ours != theirs {
                return Err(Incomparable(format!("{what} is {ours:?} here, {theirs:?} there")));
            }
        }
        Ok(())
    }

    fn named(&self) -> [(&'static str, String); 8] {
        [
            ("the CPU", self.cpu.clone()),
            ("the number of cores", self.cores.to_string()),
            ("the kernel", self.kernel.clone()),
            ("the file system", self.file_system.clone()),
            ("the build", self.build.clone()),
            ("the load", self.load.clone()),
            ("the ceiling", self.ceiling.clone()),
            ("quick", self.quick.to_string()),
        ]
    }
}

/// Type and options of the mount that holds a folder.
fn file_system(folder: &Path) -> Outcome<String> {
    let folder = fs::canonicalize(folder)?;
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let mut best: Option<(usize, String)> = None;
    for line in mounts.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let [_, point, kind, options, ..] = fields[..] else { continue };
        let depth = Path::new(point).components().count();
        let nearer = best.as_ref().is_none_or(|(most, _)| depth >= *most);
        if folder.starts_with(point) && nearer {
            best = Some((depth, format!("{kind} ({options})")));
        }
    }
    best.map(|(_, text)| text).ok_or_else(|| "the folder lies on no mount".into())
}

/// The load averages: how busy others keep the machine.
pub fn load_average() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn different_conditions_are_refused() {
        let one = Conditions::here(Path::new("."), "a load", "a ceiling", 3, false);
        let one = one.expect("this machine");
        let mut other = one.clone();
        other.runs = 5;
        assert!(one.comparable(&other).is_ok(), "more runs are no other conditions");
        other.kernel = "0.1".into();
        let refused = one.comparable(&other).expect_err("another kernel").to_string();
        assert!(refused.contains("the kernel"), "{refused}");
    }
}
