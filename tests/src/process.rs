//! Child processes that cannot outlive us.
//!
//! The kernel kills each child when the thread that made it ends (`setpriv --pdeathsig`, from
//! util-linux, asks for that; PR_SET_PDEATHSIG(2const)). All children are therefore made by one
//! thread that ends with this process only: a panic, a signal or `kill -9` of the tests leaves
//! nothing running.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::Outcome;

type Answer = mpsc::SyncSender<std::io::Result<Child>>;

/// A child that writes to a log file, and is killed when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a program with its standard error, and its output unless piped, in the file `log`.
    ///
    /// # Errors
    /// The program cannot be started or the log cannot be written.
    pub fn start(name: &str, command: &mut Command, log: &Path, pipes: bool) -> Outcome<Process> {
        let file = File::create(log).map_err(|e| format!("create {}: {e}", log.display()))?;
        let output = file.try_clone().map_err(|e| format!("{}: {e}", log.display()))?;
        command.stderr(file);
        if pipes {
            command.stdin(Stdio::piped()).stdout(Stdio::piped());
        } else {
            command.stdin(Stdio::null()).stdout(output);
        }
        let child = spawn(command).map_err(|e| format!("start {name}: {e}"))?;
        Ok(Process { name: name.to_owned(), child, log: log.to_owned() })
    }

    /// Its standard input and output, once, if it was started with pipes.
    pub fn pipes(&mut self) -> Option<(std::process::ChildStdin, std::process::ChildStdout)> {
        self.child.stdin.take().zip(self.child.stdout.take())
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal. Nothing happens if the process has ended.
    pub fn signal(&self, signal: Signal) {
        let _ = kill(Pid::from_raw(self.child.id().cast_signed()), signal);
    }

    /// The status, if it has ended.
    ///
    /// # Errors
    /// The kernel does not know the process.
    pub fn ended(&mut self) -> Outcome<Option<ExitStatus>> {
        self.child.try_wait().map_err(|e| format!("wait for {}: {e}", self.name))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It has not ended in time; it runs on.
    pub fn wait(&mut self, time_out: Duration) -> Outcome<ExitStatus> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            if started.elapsed() > time_out {
                return Err(format!(
                    "{} has not ended in {} s\n{}",
                    self.name,
                    time_out.as_secs(),
                    self.log_tail()
                ));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// `kill -9`, and gone when this returns.
    pub fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        let _ = self.child.wait();
    }

    /// Its log file.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The last lines of its log, with the name of the file: for messages.
    pub fn log_tail(&self) -> String {
        tail_of(&self.log)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The last 2 KiB of a file, under its name.
pub fn tail_of(path: &Path) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(2048)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    format!("--- {}\n{}", path.display(), read().unwrap_or_else(|e| e.to_string()))
}

/// Runs a program to its end and returns its output.
///
/// # Errors
/// It cannot be started or ends with another status than 0; its words are in the message.
pub fn run(name: &str, command: &mut Command) -> Outcome<String> {
    let output = run_any(name, command)?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(format!("{name}: {}\n{}{}", output.status, output.stdout, output.stderr))
}

/// What a program said, and how it ended.
#[derive(Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// Runs a program to its end, whatever its status.
///
/// # Errors
/// It cannot be started.
pub fn run_any(name: &str, command: &mut Command) -> Outcome<Output> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = spawn(command).map_err(|e| format!("start {name}: {e}"))?;
    let output = child.wait_with_output().map_err(|e| format!("{name}: {e}"))?;
    Ok(Output {
        status: output.status,
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

fn spawn(command: &mut Command) -> std::io::Result<Child> {
    static SPAWNER: OnceLock<mpsc::Sender<(Command, Answer)>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, orders) = mpsc::channel::<(Command, Answer)>();
        std::thread::Builder::new()
            .name("spawner".into())
            .spawn(move || {
                for (mut command, answer) in orders {
                    let _ = answer.send(command.spawn());
                }
            })
            .expect("a thread to spawn from");
        sender
    });
    let (answer, child) = mpsc::sync_channel(1);
    let order = std::mem::replace(command, Command::new("true"));
    spawner.send((order, answer)).expect("the spawner lives as long as the process");
    child.recv().expect("the spawner answers every order")
}

/// A command that dies with us: to be used for everything that is started here.
pub fn mortal(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}
