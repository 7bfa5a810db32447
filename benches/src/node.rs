//! The product's release binary as a child process, used as an operator would: a configuration
//! file, the admin socket, signals.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::Outcome;
use crate::process::Process;

/// The one link's name.
pub const LINK: &str = "bench";
const ANSWER_LIMIT: Duration = Duration::from_secs(120);
/// Longer than the configured `stop_timeout`: many partitions on a busy disk take their time.
const STOP_LIMIT: Duration = Duration::from_secs(320);

/// How a node is set up.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The binary.
    pub program: PathBuf,
    /// Its folder: configuration, log, socket and data.
    pub folder: PathBuf,
    /// `shards.cores`: one shard each.
    pub cores: String,
    /// `shards.memory`, MiB.
    pub memory_mib: u64,
    /// Connections per broker.
    pub connections_max: u32,
}

/// A running node, killed when dropped.
pub struct Node {
    process: Process,
    setup: Setup,
}

impl Setup {
    /// Writes the configuration. The folder is made if it is not there.
    ///
    /// # Errors
    /// The folder cannot be written to.
    pub fn write(&self, source: SocketAddr) -> Outcome {
        fs::create_dir_all(self.folder.join("data"))?;
        let text = format!(
            "[node]\nid = 1\ndata_dirs = [{data:?}]\nadmin_socket = {socket:?}\n\
             metrics = \"127.0.0.1:0\"\nstop_timeout = \"300s\"\n\n\
             [shards]\ncores = \"{cores}\"\nmemory = \"{memory}MiB\"\n\n\
             [[link]]\nname = \"{LINK}\"\nbootstrap_servers = [\"{source}\"]\n\
             start = \"earliest\"\nmetadata_interval = \"1s\"\n\
             connections_max = {connections}\n",
            data = self.folder.join("data"),
            socket = self.socket(),
            cores = self.cores,
            memory = self.memory_mib,
            connections = self.connections_max,
        );
        Ok(fs::write(self.config(), text)?)
    }

    /// Where the link's logs lie.
    pub fn link_dir(&self) -> PathBuf {
        self.folder.join("data").join(LINK)
    }

    /// Starts the node; it is not ready yet.
    ///
    /// # Errors
    /// The binary cannot be started.
    pub fn start(&self) -> Outcome<Node> {
        let log = File::options().create(true).append(true).open(self.log())?;
        let _ = fs::remove_file(self.socket());
        let mut command = Command::new(&self.program);
        command.args(["run", "--config"]).arg(self.config()).stdin(Stdio::null());
        command.stdout(log.try_clone()?).stderr(log);
        Ok(Node { process: Process::start(&mut command)?, setup: self.clone() })
    }

    fn config(&self) -> PathBuf {
        self.folder.join("understudy.toml")
    }

    fn log(&self) -> PathBuf {
        self.folder.join("node.log")
    }

    /// Where its admin socket is. A socket's path is short (108 bytes); a clone's may be long.
    pub fn socket(&self) -> PathBuf {
        std::env::temp_dir().join(format!("understudy-bench-{}.sock", std::process::id()))
    }
}

impl Node {
    /// The process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// What the node says of itself.
    ///
    /// # Errors
    /// It does not answer.
    pub fn status(&self) -> Outcome<Value> {
        self.ask("GET", "/v1/status", "")
    }

    /// Asks the admin socket; anything but 200 is an error.
    ///
    /// # Errors
    /// It does not answer, or refuses.
    pub fn ask(&self, method: &str, path: &str, body: &str) -> Outcome<Value> {
        let mut stream = UnixStream::connect(self.setup.socket())?;
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
             content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        )?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let head_end = answer.windows(4).position(|w| w == b"\r\n\r\n").ok_or("no HTTP answer")?;
        let body = &answer[head_end + 4..];
        if !answer.starts_with(b"HTTP/1.1 200") {
            return Err(format!("{method} {path}: {}", String::from_utf8_lossy(body)).into());
        }
        Ok(serde_json::from_slice(body)?)
    }

    /// Polls the status until it holds. The node's log ends the message when it never does.
    ///
    /// # Errors
    /// The node ends, or the time is over.
    pub fn wait_for(
        &mut self,
        what: &str,
        poll: Duration,
        limit: Duration,
        mut holds: impl FnMut(&Value) -> bool,
    ) -> Outcome<Value> {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.process.child().try_wait()? {
                return Err(format!("the node ended ({status}):\n{}", self.last_words()).into());
            }
            if let Ok(view) = self.status()
                && holds(&view)
            {
                return Ok(view);
            }
            if begun.elapsed() > limit {
                let seconds = limit.as_secs();
                let words = self.last_words();
                return Err(format!("waited {seconds} s for {what}; log:\n{words}").into());
            }
            std::thread::sleep(poll);
        }
    }

    /// Stops it cleanly.
    ///
    /// # Errors
    /// It ends otherwise.
    pub fn stop(&mut self) -> Outcome {
        self.process.signal(Signal::SIGTERM)?;
        let ended = self.process.wait(STOP_LIMIT);
        ended.map_err(|error| format!("{error}\n{}", self.last_words()).into())
    }

    /// Kills it.
    ///
    /// # Errors
    /// It has ended before.
    pub fn kill(&mut self) -> Outcome {
        self.process.signal(Signal::SIGKILL)?;
        self.process.child().wait()?;
        Ok(())
    }

    fn last_words(&self) -> String {
        let log = fs::read_to_string(self.setup.log()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(6)..].join("\n")
    }
}

/// Finds the binary: as named, or built now from this workspace in release mode.
///
/// # Errors
/// It does not build.
pub fn program(named: Option<&Path>) -> Outcome<PathBuf> {
    if let Some(path) = named {
        return Ok(fs::canonicalize(path).map_err(|e| format!("{}: {e}", path.display()))?);
    }
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    eprintln!("building the release binary");
    let mut build = Command::new(cargo);
    build.args(["build", "--release", "-p", "understudy", "--bin", "understudy"]);
    build.args(["--message-format", "json-render-diagnostics"]).current_dir(workspace);
    let output = build.stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        return Err("the release binary does not build".into());
    }
    let lines = String::from_utf8(output.stdout)?;
    lines
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter_map(|message| message["executable"].as_str().map(PathBuf::from))
        .find(|path| path.file_name().is_some_and(|name| name == "understudy"))
        .ok_or_else(|| "cargo names no binary `understudy`".into())
}
