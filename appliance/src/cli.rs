//! The command line. But for `run`, `check` and `tune` it is a client of the admin socket.
//!
//! Exit codes are stable: 0 done, or it was so already · 1 it failed, and may be run again · 2 the
//! command or the configuration is wrong · 3 refused in this state · 4 there is no such thing ·
//! 5 no node can be reached · 6 not permitted · 7 the node cannot run before a person has mended
//! what it names.

mod arguments;
mod client;
mod say;
mod table;

pub use arguments::{Arguments, Command};

use crate::admin::{Tune, VerbBody, Version};
use crate::config::Config;
use crate::controller::status::{LinkView, NodeView, TopicView};
use crate::controller::{Ending, Outcome};
use crate::states::Verb;
use argh::FromArgs;
use arguments::{Check, Demo, Run, Status, TuneCommand, VerbArguments, VersionCommand};
use client::Client;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Done, or it was so already.
const DONE: u8 = 0;
/// It failed and may be run again.
const FAILED: u8 = 1;
/// The command line or the configuration is wrong.
const USAGE: u8 = 2;
/// Refused in this state.
const REFUSED: u8 = 3;
/// There is no such thing.
const NOT_FOUND: u8 = 4;
/// No node can be reached.
const UNREACHABLE: u8 = 5;
/// The admin socket does not let us.
const NOT_PERMITTED: u8 = 6;
/// The node cannot run before a person has mended what it names.
const UNFIT: u8 = 7;

/// What ends a command early: an exit code and a sentence.
#[derive(Debug)]
pub struct Stop {
    code: u8,
    reason: String,
}

impl Stop {
    fn new(code: u8, reason: impl Into<String>) -> Self {
        Stop { code, reason: reason.into() }
    }
}

/// Everything `main` does.
pub fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let rest = words.get(1..).unwrap_or_default();
    let arguments = match Arguments::from_args(&["understudy"], rest) {
        Ok(arguments) => arguments,
        Err(early) if early.status.is_ok() => {
            say(&early.output);
            return ExitCode::from(DONE);
        }
        Err(early) => {
            eprintln!("{}", not_read(rest, &early.output));
            return ExitCode::from(USAGE);
        }
    };
    match dispatch(arguments.command) {
        Ok(code) => ExitCode::from(code),
        Err(stop) => {
            eprintln!("understudy: {}", stop.reason);
            ExitCode::from(stop.code)
        }
    }
}

/// Why a command line cannot be read, and what to write instead.
fn not_read(words: &[&str], why: &str) -> String {
    let command = words.first().copied().filter(|word| !word.starts_with('-'));
    let names_topics = matches!(command, Some("pause" | "resume" | "failover" | "delete"));
    let topics = match names_topics && why.starts_with("Unrecognized argument") {
        true => "topics are named with --topics a,b; ",
        false => "",
    };
    let help = command.map_or(String::new(), |command| format!("{command} "));
    format!("{}\n{topics}see: understudy {help}--help", why.trim_end())
}

fn dispatch(command: Command) -> Result<u8, Stop> {
    match command {
        Command::Run(Run { config }) => run(&config),
        Command::Check(check) => check_file(&check),
        Command::Status(command) => status(&command),
        Command::Pause(command) => verb(Verb::Pause, &command.into()),
        Command::Resume(command) => verb(Verb::Resume, &command.into()),
        Command::Failover(command) => {
            if command.all != command.topics.is_empty() {
                let reason = "failover takes either --all or --topics";
                return Err(Stop::new(USAGE, reason));
            }
            verb(Verb::Failover, &command.into())
        }
        Command::Delete(command) => verb(Verb::Delete, &command.into()),
        Command::Tune(command) => tune(&command),
        Command::Demo(command) => demo(command),
        Command::EmbeddedSource(command) => match source::run_child(&command.what) {
            Ok(()) => Ok(DONE),
            Err(error) => Err(Stop::new(FAILED, error.to_string())),
        },
        Command::Version(command) => version(&command),
    }
}

fn demo(command: Demo) -> Result<u8, Stop> {
    let Some(bytes) = crate::config::units::size(&command.size) else {
        let reason = format!("--size {}: write it as 4GiB or 500MiB", command.size);
        return Err(Stop::new(USAGE, reason));
    };
    let options = crate::demo::Options { bytes, parent: command.dir, keep: command.keep };
    match crate::demo::run(&options) {
        Ok(()) => Ok(DONE),
        Err(error) => Err(Stop::new(FAILED, error.to_string())),
    }
}

fn run(config: &Path) -> Result<u8, Stop> {
    let loaded = load(config)?;
    crate::boot::run(loaded, config).map_err(|error| {
        let code = if error.lasts() { UNFIT } else { FAILED };
        Stop::new(code, error.to_string())
    })?;
    Ok(DONE)
}

fn check_file(check: &Check) -> Result<u8, Stop> {
    let config = load(&check.config)?;
    let report = block_on(crate::check::check(&config));
    match check.json {
        true => json(&report),
        false => say(&crate::check::text(&report)),
    }
    Ok(if report.good { DONE } else { FAILED })
}

fn load(path: &Path) -> Result<Config, Stop> {
    Config::load(path).map_err(|error| Stop::new(USAGE, error.to_string()))
}

fn status(command: &Status) -> Result<u8, Stop> {
    let client = Client::find(command.socket.as_deref())?;
    let (_, body) = block_on(client.get("/v1/status"))?;
    let mut node: NodeView = parse(&body)?;
    narrow(&mut node, command)?;
    match command.json {
        true => json(&node),
        false => say(&table::status(&node, client.socket())),
    }
    Ok(DONE)
}

/// Leaves in a status what was asked for; the totals stay those of the whole link.
fn narrow(node: &mut NodeView, command: &Status) -> Result<(), Stop> {
    if let Some(name) = &command.link {
        node.links.retain(|link| link.name == *name);
        if node.links.is_empty() {
            return Err(Stop::new(NOT_FOUND, format!("no link is called {name}")));
        }
    }
    let names = topics_named(&command.topics)?;
    let known = || node.links.iter().flat_map(|link| link.topics.iter().flatten());
    if let Some(name) = names.iter().find(|name| !known().any(|topic| topic.name == **name)) {
        return Err(Stop::new(NOT_FOUND, format!("no topic is called {name}")));
    }
    for topics in node.links.iter_mut().filter_map(|link| link.topics.as_mut()) {
        topics.retain(|topic| names.is_empty() || names.contains(&topic.name));
        if command.troubled {
            for topic in topics.iter_mut() {
                topic.partitions.iter_mut().for_each(|all| all.retain(|one| one.reason.is_some()));
            }
            let troubled = |topic: &TopicView| topic.partitions.iter().flatten().next().is_some();
            topics.retain(|topic| topic.reason.is_some() || troubled(topic));
        }
    }
    Ok(())
}

/// What `--topics` names; empty when it was not given.
fn topics_named(lists: &[String]) -> Result<Vec<String>, Stop> {
    let names = lists.iter().flat_map(|list| list.split(',')).map(|name| name.trim().to_owned());
    let names: Vec<String> = names.filter(|name| !name.is_empty()).collect();
    match names.is_empty() && !lists.is_empty() {
        true => Err(Stop::new(USAGE, "--topics names no topic")),
        false => Ok(names),
    }
}

fn verb(verb: Verb, arguments: &VerbArguments) -> Result<u8, Stop> {
    let client = Client::find(arguments.socket.as_deref())?;
    let topics = topics_named(&arguments.topics)?;
    let body = VerbBody {
        dry_run: arguments.dry_run,
        force: arguments.force,
        topics: (!topics.is_empty()).then_some(topics),
    };
    let mut worst = DONE;
    for link in block_on(links_meant(&client, verb, arguments))? {
        // One that does not answer, or not as it should, keeps no other waiting.
        let code = verb_on(&client, &link, verb, &body, arguments.json).unwrap_or_else(|stop| {
            eprintln!("understudy: {link}: {}", stop.reason);
            stop.code
        });
        worst = worst.max(code);
    }
    Ok(worst)
}

fn verb_on(
    client: &Client,
    link: &str,
    verb: Verb,
    body: &VerbBody,
    as_json: bool,
) -> Result<u8, Stop> {
    let path = format!("/v1/links/{link}/{}", verb.name());
    let (status, answer) = block_on(client.post(&path, body))?;
    match status {
        200 | 409 | 404 | 503 if answer.get("ending").is_some() => {}
        _ => return Err(client::refused(status, &answer)),
    }
    let outcome: Outcome = parse(&answer)?;
    match as_json {
        true => json(&outcome),
        false => say(&say::outcome(link, &outcome)),
    }
    Ok(match outcome.ending {
        Ending::Done | Ending::Unchanged => DONE,
        Ending::Refused => REFUSED,
        Ending::NotFound => NOT_FOUND,
        Ending::Failed => FAILED,
    })
}

/// The link named, the only one there is, or, for `failover --all` alone, every link: at three in
/// the morning nobody should have to look its name up.
async fn links_meant(
    client: &Client,
    verb: Verb,
    arguments: &VerbArguments,
) -> Result<Vec<String>, Stop> {
    if let Some(link) = &arguments.link {
        return Ok(vec![link.clone()]);
    }
    let (_, body) = client.get("/v1/links").await?;
    let links: Vec<LinkView> = parse(&body)?;
    let names: Vec<String> = links.into_iter().map(|link| link.name).collect();
    if names.len() == 1 || (verb == Verb::Failover && arguments.topics.is_empty()) {
        return Ok(names);
    }
    Err(Stop::new(USAGE, format!("name the link: {}", names.join(", "))))
}

fn tune(command: &TuneCommand) -> Result<u8, Stop> {
    let tune: Tune = match &command.config {
        Some(path) => crate::host::tune(&load(path)?),
        None => match Client::find(command.socket.as_deref()) {
            Ok(client) => parse(&block_on(client.get("/v1/tune"))?.1)?,
            Err(stop) if command.socket.is_some() => return Err(stop),
            Err(_) => crate::host::tune_without_config(),
        },
    };
    match command.json {
        true => json(&tune),
        false => say(&tune.text),
    }
    let bad = tune.findings.iter().any(|finding| finding["severity"] == "error");
    Ok(if bad { FAILED } else { DONE })
}

fn version(command: &VersionCommand) -> Result<u8, Stop> {
    let version = Version { version: env!("CARGO_PKG_VERSION").to_owned(), ready: false };
    match command.json {
        true => json(&serde_json::json!({ "version": version.version })),
        false => say(&format!("understudy {}\n", version.version)),
    }
    Ok(DONE)
}

fn parse<T: serde::de::DeserializeOwned>(value: &serde_json::Value) -> Result<T, Stop> {
    serde_json::from_value(value.clone()).map_err(|error| {
        Stop::new(FAILED, format!("the node's answer is not as expected ({error}): other version?"))
    })
}

fn json(value: &impl serde::Serialize) {
    let text = serde_json::to_string_pretty(value).expect("answers have string keys only");
    say(&format!("{text}\n"));
}

/// Prints; a reader that has gone away (`| head`) is no error.
fn say(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime needs only memory and descriptors").block_on(future)
}

/// Where the admin socket may be, in the order tried.
fn socket_candidates() -> Vec<PathBuf> {
    let mut places = vec![PathBuf::from("/run/understudy/admin.sock")];
    if let Some(folder) = std::env::var_os("XDG_RUNTIME_DIR") {
        places.push(Path::new(&folder).join("understudy/admin.sock"));
    }
    places.push(PathBuf::from("./understudy-data/admin.sock"));
    places
}

#[cfg(test)]
mod tests;
