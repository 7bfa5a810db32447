//! The embedded source as a child process on a core of its own.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use source::{ChildConfig, parse_addresses, run_child};

use crate::Outcome;
use crate::process::{Process, monotonic};

/// The hidden command that runs it; its argument is its configuration.
pub const COMMAND: &str = "embedded-source";

/// The source, killed when dropped.
pub struct Source {
    process: Process,
    /// Where its broker listens.
    pub address: SocketAddr,
    /// CLOCK_MONOTONIC right before its topics began to grow, seconds.
    pub begun: f64,
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
        Ok(Source { process, address, begun: clock.parse()? })
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

/// The child's whole life: the clock, then what [`run_child`] prints.
///
/// # Errors
/// As [`run_child`].
pub fn run(config: &str) -> Outcome {
    print!("{:.6} ", monotonic()?);
    Ok(run_child(config)?)
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
