//! The demo's two processes: the source and the node. Each ends with its handle.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use source::{ChildConfig, parse_addresses};

use super::{DemoError, POLL, STEP_LIMIT, node_config};
use crate::controller::status::NodeView;

/// The hidden command that runs the source.
pub const SOURCE_COMMAND: &str = "embedded-source";

fn io(doing: &str) -> impl FnOnce(std::io::Error) -> DemoError {
    let doing = doing.to_owned();
    move |source| DemoError::Io { doing, source }
}

fn this_binary() -> Result<Command, DemoError> {
    Ok(Command::new(std::env::current_exe().map_err(io("this program's own path"))?))
}

/// The embedded source. It also ends when its standard input does, so it cannot outlive us.
pub struct Source {
    child: Child,
    pub address: SocketAddr,
}

impl Source {
    pub fn start(config: &ChildConfig, folder: &Path) -> Result<Source, DemoError> {
        let log = File::create(folder.join("source.log")).map_err(io("the source's log"))?;
        let mut child = this_binary()?
            .args([SOURCE_COMMAND, &config.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .map_err(io("starting the source"))?;
        let stdout = child.stdout.take().expect("its output is piped");
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).map_err(io("the source's first line"))?;
        let address = parse_addresses(&line).and_then(|all| all.first().copied());
        match address {
            Some(address) => Ok(Source { child, address }),
            None => {
                let _ = child.kill();
                let _ = child.wait();
                Err(DemoError::Process(format!("the source did not start: {line:?}")))
            }
        }
    }

    /// Kills it as a disaster would.
    pub fn kill(mut self) -> Result<(), DemoError> {
        self.child.kill().map_err(io("killing the source"))?;
        self.child.wait().map(drop).map_err(io("the source's end"))
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A node, run and asked as an operator would.
pub struct Node {
    child: Option<Child>,
    socket: PathBuf,
    log: PathBuf,
}

impl Node {
    pub fn start(folder: &Path, source: SocketAddr) -> Result<Node, DemoError> {
        let config = folder.join("understudy.toml");
        std::fs::write(&config, node_config(folder, source)).map_err(io("the configuration"))?;
        let log = folder.join("node.log");
        let output = File::create(&log).map_err(io("the node's log"))?;
        let child = this_binary()?
            .args(["run", "--config"])
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(output.try_clone().map_err(io("the node's log"))?)
            .stderr(output)
            .spawn()
            .map_err(io("starting the node"))?;
        let mut node = Node { child: Some(child), socket: folder.join("admin.sock"), log };
        let begun = Instant::now();
        loop {
            if let Some(status) = node.ended()? {
                return Err(node.died(status));
            }
            if node.socket.exists() && node.status().is_ok_and(|view| view.ready) {
                return Ok(node);
            }
            if begun.elapsed() > STEP_LIMIT {
                return Err(node.timed_out("the node to be ready", STEP_LIMIT));
            }
            std::thread::sleep(POLL);
        }
    }

    /// Runs a command of the product against the node; what it printed.
    pub fn command(&self, words: &[&str]) -> Result<String, DemoError> {
        let output = this_binary()?
            .args(words)
            .arg("--socket")
            .arg(&self.socket)
            .stdin(Stdio::null())
            .output()
            .map_err(io("running a command"))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(DemoError::Process(format!("understudy {}: {}", words.join(" "), said.trim())))
    }

    /// What the node says of itself.
    pub fn status(&self) -> Result<NodeView, DemoError> {
        let text = self.command(&["status", "--json"])?;
        serde_json::from_str(&text)
            .map_err(|error| DemoError::Process(format!("the status is not understood: {error}")))
    }

    /// Asks it to stop, as a service manager does, and waits.
    pub fn stop(mut self) -> Result<(), DemoError> {
        let child = self.child.as_mut().expect("it runs");
        let pid = Pid::from_raw(child.id().cast_signed());
        kill(pid, Signal::SIGTERM).map_err(|errno| io("stopping the node")(errno.into()))?;
        let status = child.wait().map_err(io("the node's end"))?;
        self.child = None;
        if status.success() { Ok(()) } else { Err(self.died(status)) }
    }

    pub fn timed_out(&self, what: &'static str, limit: Duration) -> DemoError {
        DemoError::TimedOut { what, limit, log: self.log.clone() }
    }

    fn ended(&mut self) -> Result<Option<ExitStatus>, DemoError> {
        match &mut self.child {
            Some(child) => child.try_wait().map_err(io("the node's state")),
            None => Ok(None),
        }
    }

    /// What its log says at the end is the reason.
    fn died(&self, status: ExitStatus) -> DemoError {
        const LINES: usize = 5;
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let last = &lines[lines.len().saturating_sub(LINES)..];
        DemoError::Process(format!("the node ended ({status}):\n{}", last.join("\n")))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
