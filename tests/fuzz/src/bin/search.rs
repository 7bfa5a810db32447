//! Runs libFuzzer on every target, or on those named, one after the other:
//!
//! ```text
//! cargo run -p fuzz --bin search -- 600                  # seconds for each target
//! cargo run -p fuzz --bin search -- 600 batches segment  # for these
//! ```
//!
//! It needs a nightly toolchain and `cargo install cargo-fuzz`. What the search finds worth keeping
//! stays in `target/fuzz/corpus` for the next run; an input that does harm lies in
//! `target/fuzz/artifacts`, and belongs into `tests/fuzz/corpus` once it is mended.

use fuzz::{TARGETS, Target, corpus_dir};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// The longest input that is tried, in bytes.
const INPUT_BYTES_MAX: usize = 4096;

fn main() -> io::Result<ExitCode> {
    let mut arguments = std::env::args().skip(1);
    let Some(seconds) = arguments.next().and_then(|text| text.parse::<u64>().ok()) else {
        eprintln!("usage: search SECONDS [TARGET]…");
        return Ok(ExitCode::from(2));
    };
    let mut targets: Vec<&Target> = Vec::new();
    for name in arguments {
        let Some(target) = fuzz::find(&name) else {
            eprintln!("no target is called {name}");
            return Ok(ExitCode::from(2));
        };
        targets.push(target);
    }
    if targets.is_empty() {
        targets.extend(TARGETS);
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/fuzz");
    std::fs::create_dir_all(&folder)?;
    let folder = folder.canonicalize()?;
    let binary = build(&folder)?;
    println!("{:<16}{:>8}{:>14}{:>10}  result", "target", "seconds", "executions", "edges");
    let mut sound = true;
    for target in targets {
        sound &= search(&binary, &folder, target, seconds)?;
    }
    Ok(if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Builds the searching binary and returns its path.
fn build(folder: &Path) -> io::Result<PathBuf> {
    let status = Command::new("cargo")
        .args(["+nightly", "fuzz", "build", "any", "--sanitizer", "none"])
        .args(["--features", "libfuzzer", "--fuzz-dir", env!("CARGO_MANIFEST_DIR")])
        .arg("--target-dir")
        .arg(folder)
        // Linking across crates would take minutes and find no more.
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16")
        .status()?;
    if !status.success() {
        return Err(io::Error::other("cargo fuzz build failed"));
    }
    for triple in std::fs::read_dir(folder)? {
        let binary = triple?.path().join("release/any");
        if binary.is_file() {
            return Ok(binary);
        }
    }
    Err(io::Error::other("cargo fuzz built nothing"))
}

/// Searches for so many seconds; false when harm was found.
fn search(binary: &Path, folder: &Path, target: &Target, seconds: u64) -> io::Result<bool> {
    let (corpus, artifacts) =
        (folder.join("corpus").join(target.name), folder.join("artifacts").join(target.name));
    std::fs::create_dir_all(&corpus)?;
    std::fs::create_dir_all(&artifacts)?;
    let log = folder.join(format!("{}.log", target.name));
    let status = Command::new(binary)
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-max_len={INPUT_BYTES_MAX}"))
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .args(["-print_final_stats=1", "-timeout=10", "-rss_limit_mb=1024", "-use_value_profile=1"])
        .args([&corpus, &corpus_dir(target)])
        .env("UNDERSTUDY_FUZZ_TARGET", target.name)
        .stderr(File::create(&log)?)
        .stdout(std::process::Stdio::null())
        .status()?;
    let said = String::from_utf8_lossy(&std::fs::read(&log)?).into_owned();
    let executions = last_after(&said, "stat::number_of_executed_units:");
    let edges = last_after(&said, "cov:");
    let result = match status.success() {
        true => "sound".to_owned(),
        false => format!("HARM, see {}", log.display()),
    };
    println!("{:<16}{seconds:>8}{executions:>14}{edges:>10}  {result}", target.name);
    Ok(status.success())
}

/// The word behind the last `label`.
fn last_after<'s>(text: &'s str, label: &str) -> &'s str {
    text.rsplit_once(label).and_then(|(_, rest)| rest.split_whitespace().next()).unwrap_or("-")
}
