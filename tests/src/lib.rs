//! End to end: the release binary against a real Kafka, driven by a real client, compared byte for
//! byte.
//!
//! A scenario ([`../end_to_end`]) creates topics on a cluster ([`kafka`]), has the Java client
//! write to them ([`load`]), lets Understudy copy them ([`understudy`]), and then reads the files
//! of both sides ([`image`]), compares every byte ([`compare`]) and has Kafka's own tool read every
//! file of the copy ([`dump`]). What it needs of the machine it installs itself ([`install`]): a
//! JDK and Maven from the distribution, Kafka by its coordinates.
//!
//! Guarantees: every process started here dies with the process that started it, whatever ends that
//! ([`process`]); no port is fixed; everything lies below `tests/.kafka`, which git does not see.
//!
//! The house rules that a test can hold are held by [`house`].

pub mod compare;
pub mod dump;
pub mod image;
pub mod install;
pub mod kafka;
pub mod load;
pub mod process;
pub mod understudy;

#[cfg(test)]
mod house;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What a scenario returns: a sentence that says what is wrong, and where to look.
pub type Outcome<T = ()> = Result<T, String>;

/// The folder of this crate.
pub fn crate_dir() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Where everything that is installed or written lies. Ignored by git.
pub fn work_dir() -> PathBuf {
    crate_dir().join(".kafka")
}

/// The root of the workspace.
pub fn workspace_dir() -> &'static Path {
    crate_dir().parent().expect("this crate lies in the workspace")
}

/// Asks again and again until `probe` has an answer, and says what it waited for if none comes in
/// time.
///
/// `probe` returns `Ok(Some(answer))`, `Ok(None)` for not yet, or an error that ends the waiting.
pub fn wait_for<T>(
    what: &str,
    time_out: Duration,
    mut probe: impl FnMut() -> Outcome<Option<T>>,
) -> Outcome<T> {
    let started = Instant::now();
    loop {
        if let Some(answer) = probe()? {
            return Ok(answer);
        }
        if started.elapsed() > time_out {
            return Err(format!("waited {} s in vain: {what}", time_out.as_secs()));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}
