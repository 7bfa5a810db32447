//! The embedded source as a child process on a core of its own.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::Instant;

use nix::sys::signal::Signal;
use source::{ChildConfig, Handle, parse_addresses, run_child_saying};

use crate::Outcome;
use crate::process::{Process, monotonic};

/// The hidden command that runs it; its argument is its configuration.
pub const COMMAND: &str = "embedded-source";

/// The source, killed when dropped.
pub struct Source {
    process: Process,
    /// Where its broker listens.
    pub address: SocketAddr,
    /// CLOCK_MONOTONIC when its first topic begins to grow, seconds.
    pub grows_from: f64,
}

impl Source {
    /// Starts it.
    ///
    /// # Errors
    /// It does not start; its reason went to standard error.
    pub fn start(config: &ChildConfig) -> Outcome<Source> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args([COMMAND, &config.to_string()]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Process::start(&mut command)?;
        let line = first_line(&mut process)?;
        let (clock, addresses) = line.split_once(' ').ok_or("the source said nothing")?;
        let addresses = parse_addresses(addresses).ok_or("the source did not start")?;
        let address = *addresses.first().ok_or("the source has no address")?;
        Ok(Source { process, address, grows_from: clock.parse()? })
    }

    /// The process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Kills it, as a disaster would.
    ///
    /// # Errors
    /// It has ended before.
    pub fn kill(&mut self) -> Outcome {
        self.process.signal(Signal::SIGKILL)?;
        self.process.child().wait()?;
        Ok(())
    }
}

/// The child's whole life: when it begins to grow, then what [`run_child_saying`] prints.
///
/// # Errors
/// As [`run_child_saying`].
pub fn run(config: &str) -> Outcome {
    let config: ChildConfig = config.parse()?;
    let first = config.topics.first().map(|topic| topic.name.clone()).unwrap_or_default();
    let clock = |handle: &Handle| {
        let (now, clock) = (Instant::now(), monotonic().unwrap_or(f64::NAN));
        let from = handle.cluster().grows_from(&first).unwrap_or(now);
        let ahead = from.saturating_duration_since(now).as_secs_f64();
        let ago = now.saturating_duration_since(from).as_secs_f64();
        format!("{:.6} ", clock + ahead - ago)
    };
    Ok(run_child_saying(&config.to_string(), clock)?)
}

/// The first line that a child prints.
///
/// # Errors
/// It ends without.
pub fn first_line(process: &mut Process) -> Outcome<String> {
    let output = process.child().stdout.as_mut().ok_or("the child's output is not piped")?;
    let mut line = String::new();
    BufReader::new(output.take(64 << 10)).read_line(&mut line)?;
    match line.ends_with('\n') {
        true => Ok(line),
        false => Err("a child ended before it said anything".into()),
    }
}
