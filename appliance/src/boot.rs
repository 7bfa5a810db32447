//! From a checked configuration to a running node, and back.
//!
//! Order: data folders and their locks → host → metadata store → shards → admin socket and metrics
//! (503 until booted) → links → READY. A stop goes the other way: links and sockets first, then the
//! shards flush and seal, within `node.stop_timeout`.

mod dirs;
mod node;

use crate::config::{Config, ConfigError};
use crate::controller::store::StoreError;
use crate::host::HostError;
use node::Node;
use sd_notify::NotifyState;
use std::path::{Path, PathBuf};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Why the node does not run, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A data folder cannot be made.
    #[error("the data folder {} cannot be made: {source}", dir.display())]
    DataDir {
        /// The folder.
        dir: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A data folder that was in use before has nothing of ours.
    #[error(
        "the data folder {} was in use before, and is empty now: mount its disk. If that is lost, \
         name another, empty folder in its place; what was on it can be deleted then, and is \
         copied anew", .0.display()
    )]
    DataDirLost(PathBuf),
    /// The data folders are not ours, or damaged.
    #[error(transparent)]
    Data(#[from] storage::boot::BootError),
    /// Nothing can be chosen for this host.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The host cannot serve.
    #[error("this host cannot run Understudy:\n{0}")]
    HostUnfit(String),
    /// The metadata store.
    #[error("{0}")]
    Metadata(String),
    /// The metadata store, while running.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A shard did not start, or died.
    #[error("{0}")]
    Shard(String),
    /// The admin socket or the metrics address.
    #[error("{0}")]
    Listen(String),
    /// The operating system.
    #[error("the operating system refuses: {0}")]
    Io(#[from] std::io::Error),
    /// The stop took too long.
    #[error("the clean stop did not end in time: {0}; recovery at the next start will be longer")]
    StopLate(String),
}

impl BootError {
    /// Whether the next start fails the same way until a person has done something: a service
    /// manager need not try.
    pub fn lasts(&self) -> bool {
        use storage::boot::BootError as Data;
        match self {
            Self::Metadata(_) | Self::Host(_) | Self::HostUnfit(_) => true,
            Self::Data(error) => {
                let twice = matches!(
                    error,
                    Data::Inventory(storage::inventory::InventoryError::Twice { .. })
                );
                twice || matches!(error, Data::Overlap(..) | Data::Checksum)
            }
            Self::DataDir { .. }
            | Self::DataDirLost(_)
            | Self::Store(_)
            | Self::Shard(_)
            | Self::Listen(_) => false,
            Self::Io(_) | Self::StopLate(_) => false,
        }
    }
}

/// Runs a node until it is told to stop. `path` is read again on SIGHUP.
///
/// # Errors
/// When it cannot start, a shard dies, or the stop does not end in time.
pub fn run(config: Config, path: &Path) -> Result<(), BootError> {
    start_log();
    // What we make is for us and our group; connecting to a Unix socket takes the right to write.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o027));
    to_its_end(serve(config, path))?
}

/// Runs the control thread's tasks until this one has ended.
fn to_its_end<T>(task: impl Future<Output = T>) -> std::io::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // Names are resolved on these; one resolver that hangs must not hold all of them.
        .max_blocking_threads(8)
        .build()?;
    let local = tokio::task::LocalSet::new();
    let result = local.block_on(&runtime, task);
    // Tasks that hold sockets and handles go before the runtime does.
    drop(local);
    // A name that does not resolve would hold up the stop for as long as its resolver likes.
    runtime.shutdown_background();
    Ok(result)
}

fn start_log() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    // The journal has times of its own and no use for colours.
    let journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false);
    let _ = match journal {
        true => log.without_time().try_init(),
        false => log.try_init(),
    };
}

async fn serve(config: Config, path: &Path) -> Result<(), BootError> {
    let mut signals = Signals::new()?;
    let node = Node::start(&config).await?;
    let booted = tokio::select! {
        booted = node.boot() => booted,
        () = stop_asked(&mut signals.terminate, &mut signals.interrupt) => {
            tracing::info!("told to stop while starting");
            return node.stop().await;
        }
    };
    if let Err(error) = booted {
        let _ = node.stop().await;
        return Err(error);
    }
    notify(&[NotifyState::Ready]);
    tracing::info!("ready");
    // One after the other, and beside the rest: a reload waits for the verbs of its links, while
    // the watchdog and an order to stop wait for nobody.
    let reloads = async {
        while signals.hang_up.recv().await.is_some() {
            reload(&node, path).await;
        }
        std::future::pending::<()>().await;
    };
    let died = tokio::select! {
        () = stop_asked(&mut signals.terminate, &mut signals.interrupt) => None,
        () = reloads => None,
        died = node.watch() => Some(died),
    };
    if let Some(died) = died {
        tracing::error!(%died, "stopping, since a part is dead");
        let _ = node.stop().await;
        return Err(died);
    }
    tracing::info!("stopping");
    notify(&[NotifyState::Stopping]);
    node.stop().await
}

async fn reload(node: &Node, path: &Path) {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(_) => notify(&[NotifyState::Reloading]),
    }
    match Config::load(path) {
        Ok(config) => match node.reload(config).await {
            Ok(reload) => {
                for refused in &reload.refused {
                    tracing::error!(code = refused.code, "reload refused: {}", refused.reason);
                }
                let (applied, refused) = (reload.changes.len(), reload.refused.len());
                tracing::info!(applied, refused, "the configuration was read again");
            }
            Err(error) => tracing::error!(%error, "reload failed"),
        },
        Err(error) => unreadable(&error),
    }
    notify(&[NotifyState::Ready]);
}

fn unreadable(error: &ConfigError) {
    tracing::error!("reload refused, everything stays as it was:\n{error}");
}

/// Tells systemd, if it listens.
fn notify(state: &[NotifyState<'_>]) {
    let _ = sd_notify::notify(state);
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    fn new() -> Result<Self, BootError> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }
}

async fn stop_asked(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn a_stop_waits_for_no_name_that_does_not_resolve() {
        let begun = Instant::now();
        let resolver = || std::thread::sleep(Duration::from_secs(5));
        let ended = to_its_end(async move {
            tokio::task::spawn_blocking(resolver);
            tokio::time::sleep(Duration::from_millis(50)).await;
        });
        ended.expect("a runtime");
        assert!(begun.elapsed() < Duration::from_secs(4));
    }
}
