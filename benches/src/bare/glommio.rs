//! The same pipe on glommio, a program of its own outside the workspace: built when it is asked
//! for, since it compiles a vendored liburing.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::pipe::{self, Job, Spent};
use crate::Outcome;
use crate::process::Process;

const LIMIT: Duration = Duration::from_secs(120);

/// Builds it, in release mode.
///
/// # Errors
/// It does not build; why is on standard error.
pub fn program() -> Outcome<PathBuf> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let target = workspace.join("target/glommio");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    eprintln!("building the pipe on glommio");
    let mut build = Command::new(cargo);
    build.args(["build", "--release", "--locked", "--manifest-path"]);
    build.arg(workspace.join("benches/glommio/Cargo.toml")).arg("--target-dir").arg(&target);
    match build.status()?.success() {
        true => Ok(fs::canonicalize(target.join("release/glommio-pipe"))?),
        false => Err("benches/glommio does not build here".into()),
    }
}

/// Runs a job, and compares what it wrote.
///
/// # Errors
/// What the program said, or how its file differs.
pub fn run(program: &Path, job: &Job, folder: &Path) -> Outcome<Spent> {
    let (said, complained) = (folder.join("glommio.out"), folder.join("glommio.err"));
    let mut command = Command::new(program);
    command.arg(serde_json::to_string(job)?).stdin(Stdio::null());
    command.stdout(File::create(&said)?).stderr(File::create(&complained)?);
    let ended = Process::start(&mut command)?.wait(LIMIT);
    if let Err(error) = ended {
        let words = fs::read_to_string(&complained)?;
        let last = words.lines().rfind(|line| !line.trim().is_empty());
        return Err(last.map_or_else(|| error.to_string(), str::to_owned).into());
    }
    let spent = serde_json::from_str(&fs::read_to_string(&said)?)?;
    let file = job.file.as_ref().ok_or("a pipe has a file")?;
    pipe::compare(file, job.bytes)?;
    Ok(spent)
}
