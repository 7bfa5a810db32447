//! The binary as a process: exit codes, signals, locks, sockets. No source is needed for any of it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

const BINARY: &str = env!("CARGO_BIN_EXE_understudy");
/// A machine under load takes its time.
const PATIENCE: Duration = Duration::from_secs(120);

/// A folder with a configuration whose source nobody serves, and perhaps a node that runs there.
struct House {
    folder: TempDir,
    node: Option<Child>,
}

impl House {
    fn new() -> House {
        let house = House { folder: tempfile::tempdir().expect("temporary folder"), node: None };
        house.write("prod", "");
        house
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Port 1 is never served, and refused at once.
    fn write(&self, link: &str, node: &str) {
        let text = format!(
            "[node]\ndata_dirs = [{:?}]\nadmin_socket = {:?}\n{node}\n\
             [shards]\nmemory = \"64MiB\"\nprofile = \"dev\"\n\
             [[link]]\nname = \"{link}\"\nbootstrap_servers = [\"127.0.0.1:1\"]\n",
            self.path("data"),
            self.path("admin.sock"),
        );
        std::fs::write(self.path("u.toml"), text).expect("configuration");
    }

    fn run(&self, words: &[&str]) -> Output {
        let mut command = Command::new(BINARY);
        command.args(words).current_dir(self.folder.path()).env_remove("NOTIFY_SOCKET");
        command.env("UNDERSTUDY_SOCKET", self.path("admin.sock"));
        command.output().expect("the binary runs")
    }

    fn spawn(&mut self) {
        let log = std::fs::File::options().append(true).create(true).open(self.path("log"));
        let mut command = Command::new(BINARY);
        command.args(["run", "--config"]).arg(self.path("u.toml"));
        command.current_dir(self.folder.path()).env_remove("NOTIFY_SOCKET");
        command.stdin(Stdio::null()).stderr(log.expect("log"));
        self.node = Some(command.spawn().expect("the binary runs"));
    }

    fn start(&mut self) {
        self.spawn();
        self.until("the node to answer", |house| house.run(&["status"]).status.success());
    }

    fn signal(&self, signal: Signal) {
        let pid = self.node.as_ref().expect("it runs").id();
        kill(Pid::from_raw(pid.cast_signed()), signal).expect("signal");
    }

    fn ended(&mut self) -> i32 {
        let status = self.node.take().expect("it runs").wait().expect("ends");
        status.code().unwrap_or(-1)
    }

    fn until(&self, what: &str, such: impl Fn(&House) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !such(self) {
            let log = std::fs::read_to_string(self.path("log")).unwrap_or_default();
            assert!(Instant::now() < deadline, "waited for {what}\n{log}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn status(&self) -> Value {
        let output = self.run(&["status", "--json"]);
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    fn link_state(&self) -> String {
        self.status()["links"][0]["state"].as_str().expect("a state").to_owned()
    }
}

impl Drop for House {
    fn drop(&mut self) {
        if let Some(mut node) = self.node.take() {
            let _ = node.kill();
            let _ = node.wait();
        }
    }
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("not by a signal")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.as_slice(), output.stderr.as_slice()].concat())
        .into_owned()
}

#[test]
fn a_node_lives_obeys_and_stops() {
    let mut house = House::new();
    house.start();
    house.until("the dead source to be seen", |house| house.link_state() == "UNAVAILABLE");
    assert_eq!(code(&house.run(&["pause"])), 0);
    assert_eq!(house.link_state(), "PAUSED");
    assert_eq!(code(&house.run(&["pause", "prod", "--topics", "none"])), 4);
    assert_eq!(code(&house.run(&["failover", "--all"])), 3, "there is no topic to fail over");
    assert_eq!(code(&house.run(&["status", "nope"])), 4);

    let second = house.run(&["run", "--config", "u.toml"]);
    assert_eq!(code(&second), 1);
    assert!(said(&second).contains("in use"), "{}", said(&second));

    house.signal(Signal::SIGTERM);
    assert_eq!(house.ended(), 0);
    assert!(!house.path("admin.sock").exists());
    assert_eq!(code(&house.run(&["status"])), 5);

    house.start();
    assert_eq!(house.link_state(), "PAUSED", "it survived the restart");
    house.signal(Signal::SIGKILL);
    house.ended();
    assert!(house.path("admin.sock").exists(), "a stale socket is left");
    house.start();
    assert_eq!(house.link_state(), "PAUSED", "it survived the crash");
    house.signal(Signal::SIGINT);
    assert_eq!(house.ended(), 0);
}

#[test]
fn a_changed_file_is_read_again_and_a_wrong_one_changes_nothing() {
    let mut house = House::new();
    house.start();
    std::fs::write(house.path("u.toml"), "[node]\n").expect("configuration");
    house.signal(Signal::SIGHUP);
    house.until("the wrong file to be refused", |house| {
        let log = std::fs::read_to_string(house.path("log")).expect("log");
        log.contains("reload refused") && log.contains("u.toml:1")
    });
    assert_eq!(house.status()["links"][0]["name"], "prod");
    house.write("other", "stop_timeout = \"20s\"");
    house.signal(Signal::SIGHUP);
    house.until("the new link", |house| house.status()["links"][0]["name"] == "other");
    let refused = house.status()["reload_refused"].clone();
    assert_eq!(refused[0]["code"], "restart_needed", "{refused}");
}

#[test]
fn a_disk_that_is_not_mounted_is_no_empty_copy() {
    let mut house = House::new();
    let disks = ["one", "two"].map(|name| house.path(name));
    let text = std::fs::read_to_string(house.path("u.toml")).expect("configuration");
    let text = text.replace(&format!("[{:?}]", house.path("data")), &format!("{disks:?}"));
    std::fs::write(house.path("u.toml"), text).expect("configuration");
    for lost in disks.iter().rev() {
        house.start();
        house.signal(Signal::SIGTERM);
        assert_eq!(house.ended(), 0);
        let away = lost.with_extension("away");
        std::fs::rename(lost, &away).expect("it is there");
        std::fs::create_dir(lost).expect("a mount point");
        for _ in 0..2 {
            std::fs::remove_file(house.path("log")).expect("a log");
            house.spawn();
            let answers = |house: &House| house.run(&["status"]).status.success();
            let begun = Instant::now();
            while house.node.as_mut().is_some_and(|node| matches!(node.try_wait(), Ok(None))) {
                assert!(!answers(&house) && begun.elapsed() < PATIENCE, "it runs without its disk");
            }
            assert_eq!(house.ended(), if *lost == disks[0] { 7 } else { 1 });
            let log = std::fs::read_to_string(house.path("log")).expect("a log");
            assert!(log.contains(&*lost.to_string_lossy()), "{log}");
        }
        std::fs::remove_dir_all(lost).expect("a mount point");
        std::fs::rename(&away, lost).expect("it is there");
    }
    house.start();
}

#[test]
fn a_stop_at_any_moment_is_clean() {
    let mut house = House::new();
    for delay_ms in [0, 3, 10, 30, 100, 300] {
        let mut command = Command::new(BINARY);
        command.args(["run", "--config"]).arg(house.path("u.toml"));
        command.env_remove("NOTIFY_SOCKET").stderr(Stdio::null());
        house.node = Some(command.spawn().expect("the binary runs"));
        std::thread::sleep(Duration::from_millis(delay_ms));
        house.signal(Signal::SIGTERM);
        let code = house.ended();
        // Before the signals are taken over, the system's own way of stopping holds.
        assert!(code == 0 || code == -1, "{delay_ms} ms: {code}");
    }
    house.start();
}

#[test]
fn what_cannot_be_used_is_a_clear_error() {
    let house = House::new();
    let run = |text: &str| {
        std::fs::write(house.path("bad.toml"), text).expect("configuration");
        house.run(&["run", "--config", "bad.toml"])
    };
    let link = "[[link]]\nname = \"a\"\nbootstrap_servers = [\"127.0.0.1:1\"]\n";
    let with_dir = |dir: &Path| {
        format!(
            "[node]\nadmin_socket = \"./s\"\ndata_dirs = [{dir:?}]\n[shards]\n\
             memory = \"64MiB\"\nprofile = \"dev\"\n{link}"
        )
    };
    let wrong = run("[node]\ndata_dirs = [\"d\"]\n[shards]\nmemroy = 1\n");
    assert_eq!(code(&wrong), 2);
    assert!(said(&wrong).contains("bad.toml:4: shards.memroy"), "{}", said(&wrong));
    assert_eq!(code(&house.run(&["run", "--config", "missing.toml"])), 2);

    let missing = run(&with_dir(&house.path("not/there")));
    assert_eq!(code(&missing), 1);
    assert!(said(&missing).contains("not/there cannot be made"), "{}", said(&missing));
    // procfs takes no files, not even root's.
    let sealed = run(&with_dir(Path::new("/proc/self/task")));
    assert_eq!(code(&sealed), 1);
    assert!(said(&sealed).contains("/proc/self/task"), "{}", said(&sealed));

    std::fs::create_dir_all(house.path("garbled/.understudy")).expect("folder");
    std::fs::write(house.path("garbled/.understudy/metadata.store"), [7; 9000]).expect("file");
    let garbled = run(&with_dir(&house.path("garbled")));
    // A restart mends nothing: the unit names this code.
    assert_eq!(code(&garbled), 7);
    assert!(said(&garbled).contains("metadata.store is damaged"), "{}", said(&garbled));

    std::fs::create_dir_all(house.path("former/.understudy")).expect("folder");
    std::fs::write(house.path("former/.understudy/metadata.redb"), [7; 9000]).expect("file");
    let former = run(&with_dir(&house.path("former")));
    assert_eq!(code(&former), 7);
    assert!(said(&former).contains("an earlier version"), "{}", said(&former));
    assert!(!house.path("former/.understudy/metadata.store").exists());
}

#[test]
fn check_changes_nothing() {
    let house = House::new();
    let output = house.run(&["check", "--config", "u.toml", "--json"]);
    assert_eq!(code(&output), 1, "the source is dead");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["good"], false);
    let problem = report["links"][0]["problems"][0].as_str().expect("a problem");
    assert!(problem.contains("127.0.0.1:1"), "{problem}");
    assert!(!house.path("data").exists());
    assert_eq!(code(&house.run(&["tune", "--config", "u.toml"])), 0);
    assert!(!house.path("data").exists());
}

#[test]
fn the_unit_does_not_start_again_what_only_a_person_can_mend() {
    let unit = include_str!("../systemd/understudy.service");
    for line in ["Restart=on-failure", "RestartPreventExitStatus=2 7", "RestartMaxDelaySec=1min"] {
        assert!(unit.lines().any(|other| other == line), "{line}");
    }
}
