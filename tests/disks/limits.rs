//! What the machine does not give, and a stop at any moment.

use std::fs;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use nix::sys::signal::Signal;
use source::{Growth, TopicSpec};
use tests::Outcome;
use tests::understudy::Understudy;

use crate::stage::{Source, ensure, pause, seeded};
use crate::volume::{Kind, Volume};

const TOPIC: &str = "bound";

fn source(batches: u64, rate: f64) -> Outcome<Source> {
    let growth = Growth { backlog_batches: batches, ..Growth::rate(rate) };
    Source::start(&[TopicSpec::new(TOPIC, 8, batches).with_growth(growth)])
}

/// It does not start, and says why in these words.
fn refused(node: &mut Understudy, words: &[&str]) -> Outcome {
    node.spawn()?;
    let status = node.wait_ended()?;
    let said = fs::read_to_string(node.log()).map_err(|e| e.to_string())?;
    ensure(status.code().is_some_and(|code| code != 0), || format!("{status}\n{said}"))?;
    ensure(!said.contains("panicked"), || said.clone())?;
    let missing = words.iter().find(|word| !said.contains(**word));
    ensure(missing.is_none(), || format!("not a word of {missing:?}:\n{said}"))?;
    eprintln!("  {}", said.lines().last().unwrap_or_default());
    Ok(())
}

/// Two processes never write to one data folder.
pub fn second_process_is_refused() -> Outcome {
    let source = source(50, 0.0)?;
    let mut first = Understudy::at("first", source.bootstrap(), None, &[TOPIC])?;
    first.launch()?;
    let data = first.data().to_owned();
    let mut second = Understudy::at("second", source.bootstrap(), Some(&data), &[TOPIC])?;
    refused(&mut second, &[&data.display().to_string()])?;
    source.prove(&mut first).map(drop)
}

/// A folder whose disk is not mounted, one on a disk mounted read-only, one that is a file.
pub fn unusable_data_folders() -> Outcome {
    let source = source(10, 0.0)?;
    let volume = Volume::mount(Kind::Ext4, "readonly", Kind::Ext4.make(64 << 20)?)?;
    let missing = volume.path().join("not/there");
    let mut node = Understudy::at("missing", source.bootstrap(), Some(&missing), &[TOPIC])?;
    refused(&mut node, &[&missing.display().to_string()])?;
    let file = volume.path().join("file");
    fs::write(&file, "").map_err(|e| e.to_string())?;
    let mut node = Understudy::at("file", source.bootstrap(), Some(&file), &[TOPIC])?;
    refused(&mut node, &[&file.display().to_string()])?;
    let data = volume.path().join("data");
    let mut node = Understudy::at("readonly", source.bootstrap(), Some(&data), &[TOPIC])?;
    node.launch()?;
    source.prove(&mut node)?;
    volume.remount("ro")?;
    refused(&mut node, &[&data.display().to_string(), "Read-only"])?;
    volume.remount("rw")?;
    node.launch()?;
    source.prove(&mut node)?;
    drop(volume.unmount()?);
    Ok(())
}

/// Whether it has to run with that much of something.
#[derive(Clone, Copy)]
enum Must {
    /// It says what there is too little of, and does not start.
    BeRefused,
    /// It says so, or runs and copies what there is.
    SayOrRun,
    Run,
}

impl Must {
    fn hold(self, runs: bool, what: &str) -> Outcome {
        match self {
            Must::BeRefused => ensure(!runs, || format!("it runs with {what}")),
            Must::SayOrRun => Ok(()),
            Must::Run => ensure(runs, || format!("it does not run with {what}")),
        }
    }
}

/// Too few descriptors: it names the limit and does not start. With enough it runs.
pub fn few_descriptors() -> Outcome {
    for (count, must) in [(16, Must::BeRefused), (128, Must::BeRefused), (4096, Must::Run)] {
        let source = source(10, 0.0)?;
        let mut node = Understudy::at("descriptors", source.bootstrap(), None, &[TOPIC])?;
        node.within(&["prlimit".into(), format!("--nofile={count}:{count}"), "--".into()]);
        node.spawn()?;
        let proven = node_ends_or(&mut node, "NOFILE", |node| source.prove(node).map(drop))?;
        let said = fs::read_to_string(node.log()).map_err(|e| e.to_string())?;
        ensure(!said.contains("panicked"), || format!("{count} descriptors: {said}"))?;
        must.hold(proven, &format!("{count} descriptors"))?;
        eprintln!(
            "  {count}: {}",
            if proven { "runs" } else { said.lines().find(|l| l.contains("NOFILE")).unwrap_or("") }
        );
    }
    Ok(())
}

/// Too few threads for a user that is not root: it says so and does not start. With enough it runs.
pub fn few_threads() -> Outcome {
    let few = [(2, Must::BeRefused), (6, Must::SayOrRun), (12, Must::SayOrRun), (64, Must::Run)];
    for (count, must) in few {
        let source = source(10, 0.0)?;
        let mut node = Understudy::at("threads", source.bootstrap(), None, &[TOPIC])?;
        // Root has no such limit; nobody else is this user.
        let user = ["setpriv", "--reuid", "54321", "--clear-groups", "--pdeathsig", "KILL"];
        let files = ["--inh-caps", "+dac_override", "--ambient-caps", "+dac_override", "--"];
        let limit = ["prlimit".to_owned(), format!("--nproc={count}:{count}"), "--".to_owned()];
        let words = user.into_iter().chain(files).map(str::to_owned);
        node.within(&words.chain(limit).collect::<Vec<_>>());
        node.spawn()?;
        let proven = node_ends_or(&mut node, "TasksMax", |node| source.prove(node).map(drop))?;
        let said = fs::read_to_string(node.log()).map_err(|e| e.to_string())?;
        ensure(!said.contains("panicked"), || format!("{count} threads: {said}"))?;
        must.hold(proven, &format!("{count} threads"))?;
        let words = said.lines().rev().find(|line| line.contains("TasksMax")).unwrap_or("");
        eprintln!("  {count}: {}", if proven { "runs" } else { words });
    }
    Ok(())
}

/// Little memory may be locked: the arena is used unregistered. Where not even the rings may be,
/// it says so and does not start.
pub fn little_locked_memory() -> Outcome {
    let source = source(50, 0.0)?;
    let mut node = Understudy::at("memlock", source.bootstrap(), None, &[TOPIC])?;
    // Root may lock what it likes, unless that right is taken away.
    let limited = |bytes: u64| {
        let limit = format!("--memlock={bytes}:{bytes}");
        let take = ["setpriv", "--bounding-set", "-ipc_lock", "--pdeathsig", "KILL", "--"];
        let words = take.map(str::to_owned).into_iter();
        words.chain(["prlimit".to_owned(), limit, "--".to_owned()]).collect::<Vec<_>>()
    };
    node.within(&limited(0));
    refused(&mut node, &["LimitMEMLOCK"])?;
    node.within(&limited(8 << 20));
    node.launch()?;
    source.prove(&mut node)?;
    let said = fs::read_to_string(node.log()).map_err(|e| e.to_string())?;
    ensure(said.contains("work unregistered"), || said)
}

/// SIGTERM at random moments, from the first on: status 0 within the time set for it, nothing lost.
pub fn stopped_at_any_moment() -> Outcome {
    let source = source(100, 300_000.0)?;
    let mut node = Understudy::at("sigterm", source.bootstrap(), None, &[TOPIC])?;
    let mut random = seeded();
    let (mut early, mut told) = (0, Vec::new());
    for round in 0..20 {
        node.spawn()?;
        let below = [60, 250, 1_000, 2_000][round % 4];
        pause(&mut random, below);
        if below > 500 {
            told = node.status().unwrap_or(told);
        }
        let process = node.process().ok_or("it does not run")?;
        process.signal(Signal::SIGTERM);
        let status = process.wait(Duration::from_secs(35))?;
        let said = fs::read_to_string(node.log()).map_err(|e| e.to_string())?;
        node.kill();
        // Before its first word it has no hold of the signal, and of nothing else either.
        let unborn = status.signal() == Some(Signal::SIGTERM as i32) && said.is_empty();
        early += u32::from(unborn);
        ensure(status.success() || unborn, || format!("round {round}: {status}\n{said}"))?;
        if node.link_dir().exists() {
            source.holds(&node, &told)?;
        }
    }
    node.launch()?;
    source.prove(&mut node)?;
    eprintln!("  20 stops, {early} of them before the first word");
    Ok(())
}

/// Idle connections by the hundred on the admin socket: it still answers, and the copy goes on.
pub fn crowded_admin_socket() -> Outcome {
    let source = source(50, 100_000.0)?;
    let mut node = Understudy::at("crowd", source.bootstrap(), None, &[TOPIC])?;
    node.launch()?;
    let mut idle = Vec::new();
    for _ in 0..500 {
        // A queue that is full refuses; it does not hang.
        let Ok(stream) = UnixStream::connect(node.socket()) else { break };
        idle.push(stream);
    }
    let answered = node.status();
    eprintln!(
        "  {} idle connections; status: {}",
        idle.len(),
        match &answered {
            Ok(all) => format!("{} partitions", all.len()),
            Err(error) => error.lines().take(3).collect::<Vec<_>>().join(" "),
        }
    );
    let busy = |error: &String| error.contains("too_many_connections");
    ensure(answered.as_ref().err().is_none_or(busy), || format!("{answered:?}"))?;
    drop(idle);
    source.prove(&mut node).map(drop)
}

/// True if it does not end by itself, with a status other than 0 and this word, but goes through.
fn node_ends_or(
    node: &mut Understudy,
    word: &str,
    through: impl Fn(&mut Understudy) -> Outcome,
) -> Outcome<bool> {
    let comes = tests::wait_for("its end, or an answer", Duration::from_secs(60), || {
        let process = node.process().ok_or("it does not run")?;
        if let Some(status) = process.ended()? {
            return Ok(Some(Some(status)));
        }
        Ok((node.socket().exists() && node.status().is_ok()).then_some(None))
    });
    match comes.map_err(|e| format!("{e}\n{}", node.log_tail()))? {
        None => through(node).map(|()| true),
        Some(status) => {
            let said = fs::read_to_string(node.log()).map_err(|e| e.to_string())?;
            let clear = status.code().is_some_and(|code| code != 0) && said.contains(word);
            node.kill();
            ensure(clear, || format!("{status}\n{said}")).map(|()| false)
        }
    }
}
