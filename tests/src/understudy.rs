//! The product's own binary, as an operator runs it: a configuration file, a process, `status
//! --json`, verbs, signals.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::OnceLock;
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::kafka::{Cluster, free_port, run_dir};
use crate::process::{self, Process};
use crate::{Outcome, wait_for, work_dir, workspace_dir};

/// The one link of each test's configuration.
pub const LINK: &str = "prod";

/// From boot to the first answer on the admin socket.
const READY: Duration = Duration::from_secs(30);
/// From SIGTERM to the end of the process.
const STOP: Duration = Duration::from_secs(60);
/// For the copy to reach an offset, or a state.
const REACH: Duration = Duration::from_secs(90);

/// The release binary: `UNDERSTUDY_BIN`, or built from this workspace.
///
/// # Errors
/// It does not build.
pub fn binary() -> Outcome<PathBuf> {
    static BUILT: OnceLock<Outcome<PathBuf>> = OnceLock::new();
    BUILT.get_or_init(build).clone()
}

fn build() -> Outcome<PathBuf> {
    if let Some(path) = std::env::var_os("UNDERSTUDY_BIN") {
        return Ok(PathBuf::from(path));
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    eprintln!("building the release binary");
    let said = process::run(
        "cargo build --release",
        process::mortal(cargo)
            .args(["build", "--release", "--bin", "understudy", "--message-format", "json"])
            .current_dir(workspace_dir()),
    )?;
    said.lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter_map(|message| message["executable"].as_str().map(PathBuf::from))
        .find(|path| path.file_name().is_some_and(|name| name == "understudy"))
        .ok_or_else(|| "cargo names no binary `understudy`".to_owned())
}

/// One node with one data folder and one link, removed when dropped.
#[derive(Debug)]
pub struct Understudy {
    name: String,
    dir: PathBuf,
    data: PathBuf,
    socket: PathBuf,
    bootstrap: Vec<String>,
    metrics_port: u16,
    link_options: Vec<(String, String)>,
    within: Vec<String>,
    process: Option<Process>,
    starts: u32,
}

impl Understudy {
    /// Writes a configuration that copies the topics `include` from `source`, and starts the
    /// process.
    ///
    /// # Errors
    /// It does not come up; the end of its log is in the message.
    pub fn start(name: &str, source: &Cluster, include: &[&str]) -> Outcome<Understudy> {
        let mut understudy = Understudy::new(name, source, include)?;
        understudy.launch()?;
        Ok(understudy)
    }

    /// As [`Understudy::start`], but not started yet.
    ///
    /// # Errors
    /// The folder or the configuration cannot be written.
    pub fn new(name: &str, source: &Cluster, include: &[&str]) -> Outcome<Understudy> {
        Understudy::at(name, source.bootstrap_servers(), None, include)
    }

    /// As [`Understudy::new`], with any source's addresses, and a data folder elsewhere if one is
    /// named.
    ///
    /// # Errors
    /// The folder or the configuration cannot be written.
    pub fn at(
        name: &str,
        bootstrap: Vec<String>,
        data: Option<&Path>,
        include: &[&str],
    ) -> Outcome<Understudy> {
        let dir = run_dir(&format!("understudy-{name}"))?;
        let data = data.map_or_else(|| dir.join("data"), Path::to_owned);
        fs::create_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
        // A Unix socket's path is short (108 bytes), a clone's may be long.
        let socket = std::env::temp_dir().join(format!("{name}-{}.sock", std::process::id()));
        let mut understudy = Understudy {
            name: name.to_owned(),
            dir,
            data,
            socket,
            bootstrap,
            metrics_port: free_port()?,
            link_options: Vec::new(),
            within: Vec::new(),
            process: None,
            starts: 0,
        };
        understudy.set("topics", &format!("{{ include = {include:?} }}"))?;
        understudy.set("start", "\"earliest\"")?;
        understudy.set("metadata_interval", "\"1s\"")?;
        Ok(understudy)
    }

    /// Sets one of the link's options, as TOML, in the file. A running process does not learn of
    /// it.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn set(&mut self, option: &str, value: &str) -> Outcome {
        self.link_options.retain(|(name, _)| name != option);
        self.link_options.push((option.to_owned(), value.to_owned()));
        let options: String =
            self.link_options.iter().map(|(name, value)| format!("{name} = {value}\n")).collect();
        let text = format!(
            "[node]
id = 1
data_dirs = [{data:?}]
admin_socket = {socket:?}
metrics = \"127.0.0.1:{metrics}\"

[shards]
cores = \"auto\"
memory = \"256MiB\"

[[link]]
name = {LINK:?}
bootstrap_servers = {bootstrap:?}
{options}",
            data = self.data,
            socket = self.socket,
            metrics = self.metrics_port,
            bootstrap = self.bootstrap,
        );
        fs::write(self.config(), text).map_err(|e| format!("{}: {e}", self.config().display()))
    }

    /// The configuration file's text.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn configuration(&self) -> Outcome<String> {
        fs::read_to_string(self.config()).map_err(|e| format!("{}: {e}", self.config().display()))
    }

    /// Replaces the configuration file. A running process does not learn of it.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn configure(&self, text: &str) -> Outcome {
        fs::write(self.config(), text).map_err(|e| format!("{}: {e}", self.config().display()))
    }

    /// Bytes the running process has had fetched from storage (proc_pid_io(5)).
    ///
    /// # Errors
    /// It does not run or `/proc` cannot be read.
    pub fn bytes_read(&self) -> Outcome<u64> {
        let pid = self.process.as_ref().ok_or("it does not run")?.id();
        let path = format!("/proc/{pid}/io");
        let text = fs::read_to_string(&path).map_err(|e| format!("{path}: {e}"))?;
        let number = text.lines().find_map(|line| line.strip_prefix("read_bytes: "));
        number.and_then(|n| n.parse().ok()).ok_or_else(|| format!("{path}: {text}"))
    }

    /// Has the link's source be another cluster, in the file.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn source(&mut self, source: &Cluster) -> Outcome {
        self.bootstrap = source.bootstrap_servers();
        self.set("start", "\"earliest\"")
    }

    /// Starts the process and waits for its first answer.
    ///
    /// # Errors
    /// As [`Understudy::start`].
    pub fn launch(&mut self) -> Outcome {
        self.spawn()?;
        let mut process = self.process.take().ok_or("it does not run")?;
        let ready = wait_for("understudy to answer", READY, || match process.ended()? {
            Some(status) => Err(format!("understudy ended: {status}")),
            None => Ok((self.socket.exists() && status_of(&self.socket).is_ok()).then_some(())),
        });
        ready.map_err(|e| format!("{e}\n{}", process.log_tail()))?;
        self.process = Some(process);
        Ok(())
    }

    /// Starts the process and waits for nothing.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn(&mut self) -> Outcome {
        assert!(self.process.is_none(), "it runs already");
        self.starts += 1;
        let logs = work_dir().join("logs");
        fs::create_dir_all(&logs).map_err(|e| format!("{}: {e}", logs.display()))?;
        let binary = binary()?;
        let mut command = match self.within.split_first() {
            Some((program, arguments)) => {
                let mut command = process::mortal(program);
                command.args(arguments).arg(binary);
                command
            }
            None => process::mortal(binary),
        };
        command.args(["run", "--config"]).arg(self.config());
        let process = Process::start("understudy", &mut command, &self.log(), false)?;
        self.process = Some(process);
        Ok(())
    }

    /// From now on it is started by another program, as `prlimit --nofile=64`, which it takes the
    /// place of.
    pub fn within(&mut self, program: &[String]) {
        self.within = program.to_vec();
    }

    /// Waits for the process to end by itself.
    ///
    /// # Errors
    /// It does not run, or does not end in time.
    pub fn wait_ended(&mut self) -> Outcome<ExitStatus> {
        self.process.take().ok_or("it does not run")?.wait(READY)
    }

    /// The process, if it runs.
    pub fn process(&mut self) -> Option<&mut Process> {
        self.process.as_mut()
    }

    /// The admin socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The data folder.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// A clean stop: SIGTERM, and status 0.
    ///
    /// # Errors
    /// It does not end in time, or with another status.
    pub fn stop(&mut self) -> Outcome {
        let mut process = self.process.take().ok_or("it does not run")?;
        process.signal(Signal::SIGTERM);
        let status: ExitStatus = process.wait(STOP)?;
        if status.success() {
            return Ok(());
        }
        Err(format!("understudy stopped with {status}\n{}", process.log_tail()))
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Has the running process read its configuration again.
    pub fn reload(&self) {
        if let Some(process) = &self.process {
            process.signal(Signal::SIGHUP);
        }
    }

    /// A verb of the command line, by its arguments.
    ///
    /// # Errors
    /// It ends with another status than 0.
    pub fn verb(&self, arguments: &[&str]) -> Outcome<String> {
        let mut command = process::mortal(binary()?);
        command.args(arguments).arg("--socket").arg(&self.socket);
        process::run(&format!("understudy {arguments:?}"), &mut command)
    }

    /// The same in a thread of its own, which does not need this process to live on.
    ///
    /// # Errors
    /// There is no binary.
    pub fn verb_aside(&self, arguments: &[&str]) -> Outcome<JoinHandle<Outcome<String>>> {
        let mut command = process::mortal(binary()?);
        command.args(arguments).arg("--socket").arg(&self.socket);
        Ok(std::thread::spawn(move || process::run("understudy", &mut command)))
    }

    /// What the process says of all partitions of the link.
    ///
    /// # Errors
    /// It gives no answer, or one that is not as promised.
    pub fn status(&self) -> Outcome<Vec<Partition>> {
        status_of(&self.socket).map_err(|e| format!("{e}\n{}", self.log_tail()))
    }

    /// Waits until `such` holds of what the process says; `what` is the name of the thing waited
    /// for.
    ///
    /// # Errors
    /// It does not come in time, or the process ends.
    pub fn wait_until(
        &mut self,
        what: &str,
        such: impl Fn(&[Partition]) -> bool,
    ) -> Outcome<Vec<Partition>> {
        let mut last = Vec::new();
        let waited = wait_for(what, REACH, || {
            if let Some(status) = self.process.as_mut().ok_or("it does not run")?.ended()? {
                return Err(format!("understudy ended: {status}"));
            }
            last = self.status()?;
            Ok(such(&last).then(|| last.clone()))
        });
        waited.map_err(|e| {
            let shown: Vec<String> = last.iter().map(|p| format!("{p:?}")).collect();
            format!("{e}\n{}\n{}", shown.join("\n"), self.log_tail())
        })
    }

    /// Waits until the copy of a topic has come to exactly these ends, flushed.
    ///
    /// # Errors
    /// It does not come in time, a partition is in a state that no waiting mends, or it has more.
    pub fn wait_caught_up(&mut self, topic: &str, ends: &[i64]) -> Outcome {
        let hopeless = |p: &Partition| matches!(p.state.as_str(), "FAULTED" | "CORRUPT");
        let mine = |all: &[Partition]| -> Vec<Partition> {
            all.iter().filter(|p| p.topic == topic).cloned().collect()
        };
        let last = self.wait_until(&format!("{topic} to reach {ends:?}"), |all| {
            let mine = mine(all);
            let reached = |p: &Partition| p.flushed >= ends.get(p.partition).copied();
            mine.iter().any(hopeless) || mine.len() >= ends.len() && mine.iter().all(reached)
        })?;
        for partition in mine(&last) {
            let end = ends.get(partition.partition).copied();
            if hopeless(&partition) || partition.flushed != end {
                return Err(format!("{end:?} was due: {partition:?}\n{}", self.log_tail()));
            }
        }
        Ok(())
    }

    /// The folder that holds the link's partitions.
    pub fn link_dir(&self) -> PathBuf {
        self.data.join(LINK)
    }

    /// The folder of one partition.
    pub fn partition_dir(&self, topic: &str, partition: usize) -> PathBuf {
        self.link_dir().join(format!("{topic}-{partition}"))
    }

    /// How many TCP sockets the process has open to these ports (proc_pid_fd(5), proc_net_tcp(5)).
    ///
    /// # Errors
    /// The process does not run or `/proc` cannot be read.
    pub fn sockets_to(&self, servers: &[String]) -> Outcome<usize> {
        let pid = self.process.as_ref().ok_or("it does not run")?.id();
        let ports: Vec<u16> = servers
            .iter()
            .filter_map(|s| s.rsplit_once(':').and_then(|(_, port)| port.parse().ok()))
            .collect();
        let proc = PathBuf::from(format!("/proc/{pid}"));
        let told = |e: std::io::Error| format!("{}: {e}", proc.display());
        let mut mine = Vec::new();
        for entry in fs::read_dir(proc.join("fd")).map_err(told)?.flatten() {
            let Ok(target) = fs::read_link(entry.path()) else { continue };
            let target = target.to_string_lossy().into_owned();
            if let Some(inode) = target.strip_prefix("socket:[").and_then(|t| t.strip_suffix(']')) {
                mine.push(inode.to_owned());
            }
        }
        let table = fs::read_to_string(proc.join("net/tcp")).map_err(told)?;
        let open = table.lines().skip(1).filter(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let remote = fields.get(2).and_then(|a| a.rsplit_once(':'));
            let port = remote.and_then(|(_, port)| u16::from_str_radix(port, 16).ok());
            port.is_some_and(|p| ports.contains(&p))
                && fields.get(9).is_some_and(|inode| mine.iter().any(|m| m == inode))
        });
        Ok(open.count())
    }

    /// The last lines of its log.
    pub fn log_tail(&self) -> String {
        process::tail_of(&self.log())
    }

    /// The log of the process started last.
    pub fn log(&self) -> PathBuf {
        let name = format!("{}-understudy{}.log", self.name, self.starts);
        work_dir().join("logs").join(name)
    }

    fn config(&self) -> PathBuf {
        self.dir.join("understudy.toml")
    }
}

impl Drop for Understudy {
    fn drop(&mut self) {
        self.process = None;
        let _ = fs::remove_file(&self.socket);
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// What `understudy status --json` says of one partition.
#[derive(Debug, Clone)]
pub struct Partition {
    /// Its topic.
    pub topic: String,
    /// Its number.
    pub partition: usize,
    /// `ACTIVE`, `PAUSED`, `FAULTED`, …: the topic's where that is graver.
    pub state: String,
    /// The stable code of the trouble; empty if there is none.
    pub code: String,
    /// Why, in words; empty if there is nothing to say.
    pub reason: String,
    /// The source's end, as far as known.
    pub source_end: Option<i64>,
    /// Next offset to be received.
    pub received: Option<i64>,
    /// Next offset to be written.
    pub written: Option<i64>,
    /// Next offset to be flushed.
    pub flushed: Option<i64>,
}

fn status_of(socket: &Path) -> Outcome<Vec<Partition>> {
    let mut command = process::mortal(binary()?);
    command.args(["status", "--json", "--socket"]).arg(socket);
    let said = process::run("understudy status", &mut command)?;
    let status: Value = serde_json::from_str(&said).map_err(|e| format!("{e} in {said}"))?;
    partitions(&status).ok_or_else(|| format!("not the shape promised: {status}"))
}

fn partitions(status: &Value) -> Option<Vec<Partition>> {
    let mut all = Vec::new();
    for link in status["links"].as_array()?.iter().filter(|l| l["name"] == LINK) {
        for topic in link["topics"].as_array()? {
            for p in topic["partitions"].as_array()? {
                let reasons = [link, topic, p].map(|place| place["reason"].as_str());
                // What holds of the topic stands above what holds of the partition.
                let whose = if topic["state"] == "ACTIVE" { p } else { topic };
                all.push(Partition {
                    topic: topic["name"].as_str()?.to_owned(),
                    partition: usize::try_from(p["partition"].as_u64()?).ok()?,
                    state: whose["state"].as_str()?.to_owned(),
                    code: whose["code"].as_str().unwrap_or_default().to_owned(),
                    reason: reasons.into_iter().flatten().collect::<Vec<_>>().join("; "),
                    source_end: p["source_end"].as_i64(),
                    received: p["received"].as_i64(),
                    written: p["written"].as_i64(),
                    flushed: p["flushed"].as_i64(),
                });
            }
        }
    }
    Some(all)
}
