//! `understudy demo`: the whole promise in a minute, with nothing but this binary.
//!
//! It starts the embedded source and a node as processes of their own, uses the node as an operator
//! would (status, failover, a clean stop), kills the source in between, and then compares every
//! byte the copy has on disk with what the source must have served. Nothing is left behind.

mod processes;
mod proof;

use std::fmt::Write as _;
use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::statvfs::statvfs;
use source::{ChildConfig, Growth, Timestamps, TopicSpec};
use thiserror::Error;

use crate::controller::status::{LinkView, NodeView};
use processes::{Node, Source};

/// What the demo can be told.
#[derive(Clone, Debug)]
pub struct Options {
    /// How much waits at the source when the copy begins, in bytes.
    pub bytes: u64,
    /// Where its folder is made.
    pub parent: PathBuf,
    /// Leave the folder there.
    pub keep: bool,
}

/// Why a demo did not prove anything.
#[derive(Debug, Error)]
pub enum DemoError {
    /// A file, a process, a socket.
    #[error("{doing}: {source}")]
    Io {
        /// What was tried.
        doing: String,
        /// Why it failed.
        source: io::Error,
    },
    /// There is not enough room for the copy.
    #[error(
        "{path} has {free_bytes} bytes free, the demo needs {needed_bytes}; try --size or --dir"
    )]
    NoRoom {
        /// Where.
        path: PathBuf,
        /// What is there.
        free_bytes: u64,
        /// What is needed.
        needed_bytes: u64,
    },
    /// A process ended, or said what it should not.
    #[error("{0}")]
    Process(String),
    /// Something did not come to pass in time.
    #[error("waited {} s for {what}; the node's log is {log}", limit.as_secs())]
    TimedOut {
        /// What was waited for.
        what: &'static str,
        /// How long.
        limit: Duration,
        /// Where to read on.
        log: PathBuf,
    },
    /// The copy is not the source.
    #[error("{0}")]
    Different(String),
}

const LINK: &str = "demo";
const BATCH_BYTES: u64 = 64 << 10;
const PARTITIONS: i32 = 16;
/// The source goes on growing, so that it is killed in mid-sentence.
const GROWTH_BYTES_PER_SECOND: f64 = (1 << 20) as f64;
const GIB: f64 = (1u64 << 30) as f64;
/// How long the copy may take, and how long anything else.
const COPY_LIMIT: Duration = Duration::from_secs(900);
const STEP_LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(200);
/// How long the source is left dead, so that the lag can be seen to grow.
const OUTAGE: Duration = Duration::from_secs(2);

/// Runs the demo.
///
/// # Errors
/// When a step fails, and above all when the copy differs.
pub fn run(options: &Options) -> Result<(), DemoError> {
    let folder = Folder::make(options)?;
    let config = source_config(options.bytes);
    let mut out = Narrator::new();
    out.title("Understudy: copy a source, lose it, fail over, prove the copy");

    let source = Source::start(&config, &folder.path)?;
    out.step(
        "source",
        &format!(
            "embedded Kafka-protocol source on {}: {} topics, {} partitions, {} waiting, \
         {}/s more to come",
            source.address,
            config.topics.len(),
            config.topics.iter().map(|t| t.partitions).sum::<i32>(),
            size(options.bytes as f64),
            size(GROWTH_BYTES_PER_SECOND * f64::from(PARTITIONS)),
        ),
    );

    let begun = Instant::now();
    let node = Node::start(&folder.path, source.address)?;
    out.step("copy", "understudy run --config understudy.toml");
    let copied = watch_copy(&node, &mut out, options.bytes, begun)?;
    out.step("", &copied);

    source.kill()?;
    out.step("disaster", "the source is killed (SIGKILL), its sockets are gone");
    let view = wait_for(&node, "the lag to grow", |link| {
        link.totals.lag_seconds.is_some_and(|lag| lag >= OUTAGE.as_secs_f64())
    })?;
    out.step("", &describe_outage(&view));

    let since = Instant::now();
    let said = node.command(&["failover", LINK, "--all"])?;
    out.step(
        "failover",
        &format!("understudy failover {LINK} --all: {:.2} s", since.elapsed().as_secs_f64()),
    );
    out.quote(&said, 4);
    let view = node.status()?;
    let link = the_link(&view)?;
    let topics = link.topics.iter().flatten();
    if let Some(topic) = topics.clone().find(|topic| topic.state != "FAILED_OVER") {
        let reason = format!("{} is {}, not FAILED_OVER", topic.name, topic.state);
        return Err(DemoError::Process(reason));
    }

    let since = Instant::now();
    node.stop()?;
    out.step("stop", &format!("clean stop in {:.2} s", since.elapsed().as_secs_f64()));

    let since = Instant::now();
    let proof = proof::compare(&folder.path.join("data"), LINK, &config.topics, &view)?;
    out.step(
        "proof",
        &format!(
            "{} bytes, {} batches in {} partitions: every byte equals what the source served, \
         at its own offsets ({:.1} s)",
            thousands(proof.bytes),
            thousands(proof.batches),
            proof.partitions,
            since.elapsed().as_secs_f64(),
        ),
    );
    if options.keep {
        out.step("kept", &format!("{}", folder.path.display()));
    }
    Ok(())
}

fn source_config(bytes: u64) -> ChildConfig {
    let batches = bytes / u64::try_from(PARTITIONS).unwrap_or(1) / BATCH_BYTES;
    let step = Timestamps { step_us: 250, ..Timestamps::default() };
    let mut orders = TopicSpec::new("orders", PARTITIONS, 0)
        .with_batches(1, BATCH_BYTES as usize, 64)
        .with_growth(Growth {
            backlog_batches: batches,
            bytes_per_second: GROWTH_BYTES_PER_SECOND,
            batches_max: u64::MAX,
        });
    orders.timestamps = step;
    let audit = TopicSpec::new("audit", 4, 0).with_batches(2, 400, 2).with_growth(Growth {
        backlog_batches: 1000,
        bytes_per_second: 2000.0,
        batches_max: u64::MAX,
    });
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    // The load gets a core of its own where there is one to spare: the last, as shards take the
    // first.
    let core = (cores > 1).then(|| cores - 1);
    ChildConfig { core, topics: vec![orders, audit], ..ChildConfig::default() }
}

/// Shows progress until what waited at the source is flushed here; says how fast that was.
fn watch_copy(
    node: &Node,
    out: &mut Narrator,
    bytes: u64,
    begun: Instant,
) -> Result<String, DemoError> {
    let mut first: Option<Instant> = None;
    loop {
        let view = node.status()?;
        let received = view.shards.iter().filter_map(|s| s.received_bytes).sum::<u64>();
        let link = the_link(&view)?;
        if received > 0 {
            first.get_or_insert_with(Instant::now);
        }
        let spent = first.map_or(Duration::ZERO, |first| first.elapsed());
        out.progress(received, bytes, spent, link);
        let caught_up = received >= bytes
            && partitions(link)
                .all(|p| p.flushed.is_some() && p.lag_records.is_some_and(|l| l < 10_000));
        if caught_up {
            out.end_progress();
            let cpu: f64 = view.shards.iter().filter_map(|s| s.cpu_seconds).sum();
            let gib = received as f64 / GIB;
            return Ok(format!(
                "{} in {:.1} s ({}/s), {:.2} CPU-seconds per GiB on the data shards, \
                 {} of {} memory used",
                size(received as f64),
                spent.as_secs_f64(),
                size(received as f64 / spent.as_secs_f64().max(0.001)),
                cpu / gib,
                size(view.shards.iter().filter_map(|s| s.memory_used_bytes).sum::<u64>() as f64),
                size(view.shards.iter().filter_map(|s| s.memory_budget_bytes).sum::<u64>() as f64),
            ));
        }
        if begun.elapsed() > COPY_LIMIT {
            return Err(node.timed_out("the copy", COPY_LIMIT));
        }
        std::thread::sleep(POLL);
    }
}

fn wait_for(
    node: &Node,
    what: &'static str,
    holds: impl Fn(&LinkView) -> bool,
) -> Result<NodeView, DemoError> {
    let begun = Instant::now();
    loop {
        let view = node.status()?;
        if holds(the_link(&view)?) {
            return Ok(view);
        }
        if begun.elapsed() > STEP_LIMIT {
            return Err(node.timed_out(what, STEP_LIMIT));
        }
        std::thread::sleep(POLL);
    }
}

fn describe_outage(view: &NodeView) -> String {
    let Ok(link) = the_link(view) else { return String::new() };
    let mut text = format!("the link is {}", link.state);
    if let Some(reason) = &link.reason {
        let _ = write!(text, ": {reason}");
    }
    if let Some(lag) = link.totals.lag_seconds {
        let _ = write!(text, "; lag {lag:.1} s and growing");
    }
    text
}

fn the_link(view: &NodeView) -> Result<&LinkView, DemoError> {
    let link = view.links.iter().find(|link| link.name == LINK);
    link.ok_or_else(|| DemoError::Process("the node does not know its link".into()))
}

fn partitions(link: &LinkView) -> impl Iterator<Item = &crate::controller::status::PartitionView> {
    link.topics.iter().flatten().flat_map(|topic| topic.partitions.iter().flatten())
}

/// The demo's folder, removed at the end.
struct Folder {
    path: PathBuf,
    keep: bool,
}

impl Folder {
    fn make(options: &Options) -> Result<Folder, DemoError> {
        let io = |doing: String| move |source| DemoError::Io { doing, source };
        let parent = fs::canonicalize(&options.parent)
            .map_err(io(format!("folder {}", options.parent.display())))?;
        let stat = statvfs(&parent)
            .map_err(|errno| io(format!("folder {}", parent.display()))(errno.into()))?;
        let free_bytes = stat.blocks_available() * stat.fragment_size();
        let needed_bytes = options.bytes + options.bytes / 2 + (1 << 30);
        if free_bytes < needed_bytes {
            return Err(DemoError::NoRoom { path: parent, free_bytes, needed_bytes });
        }
        let path = parent.join(format!("understudy-demo-{}", std::process::id()));
        fs::create_dir(&path).map_err(io(format!("folder {}", path.display())))?;
        Ok(Folder { path, keep: options.keep })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !self.keep
            && let Err(error) = fs::remove_dir_all(&self.path)
        {
            eprintln!("understudy: {} could not be removed: {error}", self.path.display());
        }
    }
}

/// Tells what happens, a step a line, and draws progress where somebody watches.
struct Narrator {
    terminal: bool,
    last_drawn: Option<Instant>,
}

impl Narrator {
    fn new() -> Narrator {
        Narrator { terminal: io::stdout().is_terminal(), last_drawn: None }
    }

    fn title(&mut self, text: &str) {
        println!("{text}\n");
    }

    fn step(&mut self, name: &str, text: &str) {
        println!("{name:>9}  {text}");
    }

    fn quote(&mut self, text: &str, lines_max: usize) {
        for line in text.lines().take(lines_max) {
            println!("{:>9}  | {line}", "");
        }
    }

    fn progress(&mut self, received: u64, bytes: u64, spent: Duration, link: &LinkView) {
        const CELLS: usize = 30;
        /// Without a terminal a line now and then is enough.
        const QUIET: Duration = Duration::from_secs(5);
        if !self.terminal && self.last_drawn.is_some_and(|last| last.elapsed() < QUIET) {
            return;
        }
        self.last_drawn = Some(Instant::now());
        let done = (received as f64 / bytes as f64).min(1.0);
        let filled = (done * CELLS as f64) as usize;
        let bar = format!("{}{}", "#".repeat(filled), "-".repeat(CELLS - filled));
        let rate = match spent.as_secs_f64() {
            seconds if seconds < 0.1 => "  ".into(),
            seconds => format!("  {}/s", size(received as f64 / seconds)),
        };
        let lag = link.totals.lag_records.map_or("unknown".into(), |l| thousands(l.unsigned_abs()));
        let line = format!(
            "{:>9}  [{bar}] {} of {}{rate}  lag {lag} records",
            "",
            size(received as f64),
            size(bytes as f64),
        );
        if self.terminal {
            print!("\r{line:<110}");
            let _ = io::stdout().flush();
        } else {
            println!("{line}");
        }
    }

    fn end_progress(&mut self) {
        if self.terminal {
            println!();
        }
    }
}

fn size(bytes: f64) -> String {
    match bytes {
        b if b >= GIB => format!("{:.2} GiB", b / GIB),
        b if b >= (1 << 20) as f64 => format!("{:.1} MiB", b / (1 << 20) as f64),
        b => format!("{:.0} KiB", b / 1024.0),
    }
}

fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// The configuration the demo's node runs with.
fn node_config(folder: &Path, source: std::net::SocketAddr) -> String {
    format!(
        "# Made by `understudy demo`.\n\
         [node]\n\
         id = 1\n\
         data_dirs = [\"{data}\"]\n\
         admin_socket = \"{socket}\"\n\
         metrics = \"127.0.0.1:0\"\n\n\
         [shards]\n\
         cores = \"0\"\n\
         memory = \"256MiB\"\n\
         profile = \"auto\"\n\n\
         [[link]]\n\
         name = \"{LINK}\"\n\
         bootstrap_servers = [\"{source}\"]\n\
         topics = {{ include = [\"*\"] }}\n\
         start = \"earliest\"\n\
         metadata_interval = \"1s\"\n",
        data = folder.join("data").display(),
        socket = folder.join("admin.sock").display(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        assert_eq!(thousands(0), "0");
        assert_eq!(thousands(999), "999");
        assert_eq!(thousands(1_234_567), "1,234,567");
        assert_eq!(size(2.5 * GIB), "2.50 GiB");
        assert_eq!(size(1536.0 * 1024.0), "1.5 MiB");
        assert_eq!(size(2048.0), "2 KiB");
    }
}
