//! A disk that answers no more: what waits for it waits, and a stop does not wait for ever.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use source::{Growth, TopicSpec};
use tests::understudy::Understudy;
use tests::{Outcome, process, wait_for};

use crate::stage::{Source, ensure};
use crate::volume::{Kind, Volume};

const TOPIC: &str = "hung";
/// Many times the limit that the configuration sets, and far below systemd's.
const LATE: Duration = Duration::from_secs(30);

/// SIGTERM while no write to the disk ends: the stop gives up at `node.stop_timeout`, says so, and
/// the process ends with a failure as soon as the kernel lets it. What was flushed is there.
pub fn stop_has_a_limit() -> Outcome {
    let growth = Growth { backlog_batches: 20, batches_max: 900, bytes_per_second: 4e6 };
    let source = Source::start(&[TopicSpec::new(TOPIC, 3, 20).with_growth(growth)])?;
    let kind = Kind::Ext4;
    let volume = Volume::mount(kind, TOPIC, kind.make(kind.bytes_min() + (256 << 20))?)?;
    let data = volume.path().join("data");
    let mut node = Understudy::at(TOPIC, source.bootstrap(), Some(&data), &[TOPIC])?;
    let limited = node.configuration()?.replacen("[node]\n", "[node]\nstop_timeout = \"2s\"\n", 1);
    node.configure(&limited)?;
    node.launch()?;
    node.wait_until("some of it", |all| all.len() == 3 && all.iter().all(|p| p.flushed > Some(0)))?;

    let frozen = Frozen::new(volume.path())?;
    let told = node.wait_until("records that wait for the disk", |all| {
        all.iter().all(|p| p.received > p.written && p.flushed > Some(0))
    })?;
    node.process().ok_or("it does not run")?.signal(Signal::SIGTERM);
    wait_for("the stop to give up", LATE, || {
        let said = fs::read_to_string(node.log()).map_err(|e| e.to_string())?;
        Ok(said.contains("the clean stop did not end in time").then_some(()))
    })?;
    drop(frozen);
    let status = node.wait_ended()?;
    ensure(status.code() == Some(1), || format!("{status}\n{}", node.log_tail()))?;

    source.holds(&node, &told)?;
    node.launch()?;
    source.prove(&mut node)?;
    drop(volume.unmount()?);
    Ok(())
}

/// A file system whose writes wait, until this is dropped (`FIFREEZE`, fsfreeze(8)).
struct Frozen(PathBuf);

impl Frozen {
    fn new(path: &Path) -> Outcome<Frozen> {
        process::run("fsfreeze", Command::new("fsfreeze").arg("--freeze").arg(path))?;
        Ok(Frozen(path.to_owned()))
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let mut thaw = Command::new("fsfreeze");
        if let Err(error) = process::run("fsfreeze", thaw.arg("--unfreeze").arg(&self.0)) {
            eprintln!("{}: {error}", self.0.display());
        }
    }
}
