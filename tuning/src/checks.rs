//! Can this host serve? Each check measures one thing and names the setting to change.
//!
//! Everything is read below a root path, so that tests decide what the host looks like; only the
//! probe for direct I/O touches the disk, with one file of one block in the data folder.

use nix::sys::resource::{Resource, getrlimit};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use serde::Serialize;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// `IORING_SETUP_DEFER_TASKRUN` and `SINGLE_ISSUER` came with 6.0 and 6.1.
const KERNEL_MIN: (u32, u32) = (6, 1);
/// Log and its indexes, held open while a partition is being written.
const FILES_PER_PARTITION: u64 = 4;
/// Held open of every partition, for as long as it is there.
const FILES_PER_IDLE_PARTITION: u64 = 1;
/// Sockets, rings, the metadata store and the libraries'.
const FILES_BESIDE_PARTITIONS: u64 = 1_024;
/// `CAP_IPC_LOCK` of capability.h: memory locking is not limited.
const CAP_IPC_LOCK: u32 = 14;
const BLOCK: usize = 4096;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// As it should be, or worth knowing.
    Info,
    /// Works, but slower or for fewer partitions than it could.
    Warning,
    /// Understudy cannot run here.
    Error,
}

/// One measured fact about the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Stable name of the check, snake_case.
    pub check: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What was found, in a sentence.
    pub what: String,
    /// The value measured.
    pub measured: String,
    /// The setting to change; empty when nothing needs changing.
    pub change: String,
}

/// What is going to run on the host.
#[derive(Clone, Debug)]
pub struct Needs<'a> {
    /// Data folders.
    pub data_dirs: &'a [PathBuf],
    /// Partitions already in them, or expected.
    pub partitions: u64,
    /// The data path's memory budget.
    pub memory_bytes: u64,
}

/// Limits of this process, as plain numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessLimits {
    /// Hard limit of open files.
    pub open_files: u64,
    /// Hard limit of locked memory.
    pub locked_memory_bytes: u64,
}

impl ProcessLimits {
    /// This process's hard limits.
    pub fn of_this_process() -> Self {
        let hard = |resource| getrlimit(resource).map_or(0, |(_, hard)| hard);
        ProcessLimits {
            open_files: hard(Resource::RLIMIT_NOFILE),
            locked_memory_bytes: hard(Resource::RLIMIT_MEMLOCK),
        }
    }
}

/// Runs every check below `root` (`/` outside tests); worst findings first.
pub fn check(root: &Path, limits: ProcessLimits, needs: &Needs<'_>) -> Vec<Finding> {
    let mut findings = vec![kernel(root), io_uring(root), huge_pages(root)];
    findings.push(open_files(limits, needs));
    findings.push(locked_memory(root, limits, needs));
    findings.extend(memory(root, needs));
    for dir in needs.data_dirs {
        findings.push(data_dir(dir));
    }
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    findings
}

fn finding(
    check: &'static str,
    severity: Severity,
    what: impl Into<String>,
    measured: impl Into<String>,
    change: impl Into<String>,
) -> Finding {
    Finding { check, severity, what: what.into(), measured: measured.into(), change: change.into() }
}

fn kernel(root: &Path) -> Finding {
    let release = fs::read_to_string(root.join("proc/sys/kernel/osrelease")).unwrap_or_default();
    let release = release.trim();
    let mut numbers = release.split(|byte: char| !byte.is_ascii_digit());
    let mut next = || numbers.next().and_then(|part| part.parse::<u32>().ok());
    let (major, minor) = KERNEL_MIN;
    match (next(), next()) {
        (Some(a), Some(b)) if (a, b) >= KERNEL_MIN => {
            finding("kernel", Severity::Info, "the kernel is new enough", release, "")
        }
        (Some(_), Some(_)) => finding(
            "kernel",
            Severity::Error,
            format!("the kernel is older than {major}.{minor}: its io_uring lacks DEFER_TASKRUN"),
            release,
            format!("boot a kernel {major}.{minor} or newer"),
        ),
        _ => finding(
            "kernel",
            Severity::Warning,
            "the kernel's version cannot be read from /proc/sys/kernel/osrelease",
            release,
            format!("make sure that it is {major}.{minor} or newer"),
        ),
    }
}

fn io_uring(root: &Path) -> Finding {
    let path = root.join("proc/sys/kernel/io_uring_disabled");
    let change = "sysctl -w kernel.io_uring_disabled=0";
    match fs::read_to_string(path).unwrap_or_default().trim() {
        "2" => finding(
            "io_uring",
            Severity::Error,
            "io_uring is switched off for everybody",
            "kernel.io_uring_disabled = 2",
            change,
        ),
        "1" => finding(
            "io_uring",
            Severity::Warning,
            "io_uring is for members of one group only",
            "kernel.io_uring_disabled = 1",
            format!("{change}, or set kernel.io_uring_group to the group Understudy runs under"),
        ),
        value => finding("io_uring", Severity::Info, "io_uring is switched on", value, ""),
    }
}

fn huge_pages(root: &Path) -> Finding {
    let path = root.join("sys/kernel/mm/transparent_hugepage/enabled");
    let text = fs::read_to_string(path).unwrap_or_default();
    let chosen = text.split_whitespace().find(|word| word.starts_with('[')).unwrap_or("unknown");
    let measured = format!("transparent_hugepage/enabled = {chosen}");
    match chosen {
        "[always]" | "[madvise]" => {
            finding("huge_pages", Severity::Info, "the arena may use huge pages", measured, "")
        }
        _ => finding(
            "huge_pages",
            Severity::Warning,
            "the arena lies on small pages, which costs TLB misses",
            measured,
            "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
        ),
    }
}

fn open_files(limits: ProcessLimits, needs: &Needs<'_>) -> Finding {
    let wanted = needs.partitions * FILES_PER_PARTITION + FILES_BESIDE_PARTITIONS;
    let measured = format!("RLIMIT_NOFILE = {} (hard)", limits.open_files);
    let change = format!("LimitNOFILE={} in the unit, or `ulimit -Hn`", wanted.max(1 << 20));
    if limits.open_files < FILES_BESIDE_PARTITIONS {
        let what = "too few files may be open to run at all";
        return finding("open_files", Severity::Error, what, measured, change);
    }
    let room = (limits.open_files - FILES_BESIDE_PARTITIONS) / FILES_PER_PARTITION;
    if limits.open_files < wanted {
        // A node that has grown past what is good must still be able to start again.
        let idle = needs.partitions * FILES_PER_IDLE_PARTITION + FILES_BESIDE_PARTITIONS;
        let severity = if limits.open_files < idle { Severity::Error } else { Severity::Warning };
        let what = format!("enough for {room} partitions; there are {}", needs.partitions);
        return finding("open_files", severity, what, measured, change);
    }
    let what = format!("enough for {room} partitions");
    finding("open_files", Severity::Info, what, measured, "")
}

fn locked_memory(root: &Path, limits: ProcessLimits, needs: &Needs<'_>) -> Finding {
    let limit = limits.locked_memory_bytes;
    let exempt = effective_capabilities(root) & (1 << CAP_IPC_LOCK) != 0;
    let measured = match (limit, exempt) {
        (_, true) => "CAP_IPC_LOCK: not limited".to_owned(),
        (u64::MAX, _) => "RLIMIT_MEMLOCK = unlimited".to_owned(),
        _ => format!("RLIMIT_MEMLOCK = {limit} bytes (hard)"),
    };
    if exempt || limit >= needs.memory_bytes {
        let what = "all buffers can be registered with io_uring";
        return finding("locked_memory", Severity::Info, what, measured, "");
    }
    finding(
        "locked_memory",
        Severity::Warning,
        "too low to register the buffers with io_uring: they work unregistered, at more CPU",
        measured,
        "LimitMEMLOCK=infinity in the unit, or the capability CAP_IPC_LOCK",
    )
}

fn effective_capabilities(root: &Path) -> u64 {
    let status = fs::read_to_string(root.join("proc/self/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

fn memory(root: &Path, needs: &Needs<'_>) -> Option<Finding> {
    let meminfo = fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let total = line.split_whitespace().next()?.parse::<u64>().ok()? * 1024;
    let granted = crate::CgroupLimits::read(root).memory_bytes;
    let (limit, name) = match granted {
        Some(granted) if granted < total => (granted, "the control group's memory limit"),
        _ => (total, "the machine's memory"),
    };
    let measured = format!("{name} = {limit} bytes");
    if needs.memory_bytes > limit {
        let what =
            format!("shards.memory asks for {} bytes, more than there are", needs.memory_bytes);
        let change = format!("set shards.memory to at most {}", limit / 4 * 3);
        return Some(finding("memory", Severity::Error, what, measured, change));
    }
    if needs.memory_bytes > limit / 4 * 3 {
        let what = "shards.memory leaves little for everything else";
        let change = format!("set shards.memory to at most {}", limit / 4 * 3);
        return Some(finding("memory", Severity::Warning, what, measured, change));
    }
    Some(finding("memory", Severity::Info, "the memory budget fits", measured, ""))
}

fn data_dir(dir: &Path) -> Finding {
    let shown = dir.display();
    let error = |what: String, measured: String, change: String| {
        finding("data_dir", Severity::Error, what, measured, change)
    };
    match fs::metadata(dir) {
        // The folder itself is made at start, the way to it is not: below a disk that is not
        // mounted that would look like an empty copy.
        Err(cause)
            if cause.kind() == io::ErrorKind::NotFound
                && dir
                    .parent()
                    .is_some_and(|parent| parent == Path::new("") || parent.is_dir()) =>
        {
            let what = format!("the data folder {shown} is made at the first start");
            return finding("data_dir", Severity::Info, what, "not there yet", "");
        }
        Err(cause) => {
            return error(
                format!("the data folder {shown} cannot be used"),
                cause.to_string(),
                format!("mkdir -p {shown}, owned by the user Understudy runs as"),
            );
        }
        Ok(metadata) if !metadata.is_dir() => {
            return error(
                format!("{shown} is not a folder"),
                "a file".to_owned(),
                "name a folder in node.data_dirs".to_owned(),
            );
        }
        Ok(_) => {}
    }
    let is_tmpfs = statfs(dir).is_ok_and(|fs| fs.filesystem_type() == TMPFS_MAGIC);
    match probe_direct_io(dir) {
        Ok(()) if is_tmpfs => finding(
            "data_dir",
            Severity::Warning,
            format!("{shown} is a file system in memory: everything is lost at power-off"),
            "tmpfs",
            "name a folder on a disk in node.data_dirs",
        ),
        Ok(()) => finding(
            "data_dir",
            Severity::Info,
            format!("{shown} takes direct I/O in blocks of {BLOCK}"),
            "O_DIRECT write and read",
            "",
        ),
        Err(cause) if matches!(cause.raw_os_error(), Some(code) if code == nix::libc::EINVAL) => {
            error(
                format!("the file system of {shown} has no direct I/O in blocks of {BLOCK}"),
                cause.to_string(),
                "put node.data_dirs on XFS or ext4".to_owned(),
            )
        }
        // A node whose disk is full has to start: what is there can be read, and failed over.
        Err(cause) if is_full(&cause) => finding(
            "data_dir",
            Severity::Warning,
            format!(
                "{shown} has no room for a block, so it was not tried whether it takes direct I/O"
            ),
            cause.to_string(),
            "make room there: nothing is fetched until there is some",
        ),
        Err(cause) => error(
            format!("nothing can be written to {shown}"),
            cause.to_string(),
            format!("make {shown} writable for the user Understudy runs as"),
        ),
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Writes and reads one block through O_DIRECT, in a file that is gone afterwards.
fn probe_direct_io(dir: &Path) -> io::Result<()> {
    let path = dir.join(format!(".direct-io-probe-{}", std::process::id()));
    let direct = nix::libc::O_DIRECT;
    let result = (|| {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .custom_flags(direct)
            .open(&path)?;
        let mut memory = vec![0u8; 2 * BLOCK];
        let start = memory.as_ptr().align_offset(BLOCK);
        let block = &mut memory[start..start + BLOCK];
        block.fill(0x55);
        if file.write_at(block, 0)? != BLOCK {
            return Err(io::Error::from(io::ErrorKind::WriteZero));
        }
        block.fill(0);
        if file.read_at(block, 0)? != BLOCK || block.iter().any(|byte| *byte != 0x55) {
            return Err(io::Error::other("what was written did not come back"));
        }
        Ok(())
    })();
    let _ = fs::remove_file(path);
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::tests::Tree;

    const ROOMY: ProcessLimits =
        ProcessLimits { open_files: 1 << 20, locked_memory_bytes: u64::MAX };

    fn healthy() -> Tree {
        let tree = Tree::flat(2);
        tree.write("proc/sys/kernel/osrelease", "6.18.44-generic");
        tree.write("proc/sys/kernel/io_uring_disabled", "0");
        tree.write("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never");
        tree.write("proc/meminfo", "MemTotal:       8388608 kB");
        tree
    }

    fn needs(dirs: &[PathBuf]) -> Needs<'_> {
        Needs { data_dirs: dirs, partitions: 100, memory_bytes: 1 << 30 }
    }

    fn one(findings: &[Finding], check: &str) -> Finding {
        let found = findings.iter().find(|finding| finding.check == check);
        found.unwrap_or_else(|| panic!("no finding {check}")).clone()
    }

    #[test]
    fn a_healthy_host_has_no_complaints() {
        let findings = check(healthy().0.path(), ROOMY, &needs(&[]));
        let worst = findings.iter().map(|finding| finding.severity).max();
        assert_eq!(worst, Some(Severity::Info), "{findings:?}");
    }

    #[test]
    fn each_fault_is_named_with_its_setting() {
        let cases = [
            ("proc/sys/kernel/osrelease", "5.15.0-91", "kernel", Severity::Error, "6.1"),
            ("proc/sys/kernel/osrelease", "6.0.19", "kernel", Severity::Error, "6.1"),
            ("proc/sys/kernel/osrelease", "strange", "kernel", Severity::Warning, "6.1"),
            ("proc/sys/kernel/io_uring_disabled", "2", "io_uring", Severity::Error, "=0"),
            ("proc/sys/kernel/io_uring_disabled", "1", "io_uring", Severity::Warning, "group"),
            (
                "sys/kernel/mm/transparent_hugepage/enabled",
                "always madvise [never]",
                "huge_pages",
                Severity::Warning,
                "madvise",
            ),
            ("proc/meminfo", "MemTotal: 524288 kB", "memory", Severity::Error, "shards.memory"),
            ("proc/meminfo", "MemTotal: 1100000 kB", "memory", Severity::Warning, "shards.memory"),
        ];
        for (file, text, name, severity, change) in cases {
            let tree = healthy();
            tree.write(file, text);
            let found = one(&check(tree.0.path(), ROOMY, &needs(&[])), name);
            assert_eq!(found.severity, severity, "{file} = {text}");
            assert!(found.change.contains(change), "{found:?}");
        }
    }

    #[test]
    fn limits_of_the_process_are_held_against_the_needs() {
        let tree = healthy();
        let few = ProcessLimits { open_files: 1_100, locked_memory_bytes: 8 << 20 };
        let findings = check(tree.0.path(), few, &needs(&[]));
        assert_eq!(one(&findings, "open_files").severity, Severity::Error);
        assert!(one(&findings, "open_files").what.contains("enough for 19 partitions"));
        let idle = ProcessLimits { open_files: 1_024 + needs(&[]).partitions, ..few };
        let findings = check(tree.0.path(), idle, &needs(&[]));
        assert_eq!(one(&findings, "open_files").severity, Severity::Warning);
        assert_eq!(one(&findings, "locked_memory").severity, Severity::Warning);
        tree.write("proc/self/status", "Name:\tx\nCapEff:\t0000000000004000");
        let findings = check(tree.0.path(), few, &needs(&[]));
        assert_eq!(one(&findings, "locked_memory").severity, Severity::Info);
    }

    #[test]
    fn data_folders_are_probed() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let file = folder.path().join("file");
        fs::write(&file, "x").expect("file");
        assert_eq!(data_dir(&folder.path().join("new")).severity, Severity::Info);
        assert!(!folder.path().join("new").exists(), "looking changes nothing");
        let missing = folder.path().join("not/there");
        assert_eq!(data_dir(&missing).severity, Severity::Error);
        assert!(data_dir(&missing).change.starts_with("mkdir -p"));
        assert!(data_dir(&file).what.contains("not a folder"));
        let good = data_dir(folder.path());
        assert_ne!(good.severity, Severity::Error, "{good:?}");
        assert_eq!(fs::read_dir(folder.path()).expect("folder").count(), 1, "the probe is gone");
        // procfs: a folder nobody can write to, not even root.
        let sealed = data_dir(Path::new("/proc/self/task"));
        assert_eq!(sealed.severity, Severity::Error);
        assert!(sealed.what.contains("nothing can be written"), "{sealed:?}");
    }
}
