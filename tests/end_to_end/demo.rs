//! The main job in one command, without a Kafka.

use std::fs;

use tests::kafka::run_dir;
use tests::understudy::binary;
use tests::{Outcome, process};

use crate::stage::ensure;

/// It ends well, says that every byte is equal, and leaves neither a file nor a process.
pub fn leaves_a_proof_and_nothing_else() -> Outcome {
    let dir = run_dir("demo")?;
    let mut command = process::mortal(binary()?);
    command.args(["demo", "--size", "256MiB", "--dir"]).arg(&dir);
    let said = process::run("understudy demo", &mut command)?;
    ensure(said.contains("every byte equals"), || format!("no proof in:\n{said}"))?;
    let left = fs::read_dir(&dir).map_err(|e| format!("{}: {e}", dir.display()))?.count();
    ensure(left == 0, || format!("{left} entries are left in {}", dir.display()))?;
    for process in fs::read_dir("/proc").map_err(|e| e.to_string())?.flatten() {
        let arguments = fs::read(process.path().join("cmdline")).unwrap_or_default();
        let arguments = String::from_utf8_lossy(&arguments).replace('\0', " ");
        let ours = arguments.contains(&*dir.to_string_lossy());
        ensure(!ours, || format!("left running: {arguments}"))?;
    }
    fs::remove_dir(&dir).map_err(|e| format!("{}: {e}", dir.display()))
}
