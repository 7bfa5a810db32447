//! What is wrong in a file: where, what, and what to write instead.

use std::fmt;
use std::path::PathBuf;

/// One problem in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Line, counted from 1.
    pub line: usize,
    /// The key in full (`shards.memory`); empty for bad syntax.
    pub key: String,
    /// What is wrong.
    pub what: String,
    /// What to write instead.
    pub instead: String,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}: {source}", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is no configuration.
    #[error("{} has {bytes} bytes, too many for a configuration", file.display())]
    TooLarge {
        /// The file.
        file: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// The file has mistakes.
    #[error("{}", listed(file, problems))]
    Wrong {
        /// The file.
        file: PathBuf,
        /// All of them, by line.
        problems: Vec<Problem>,
    },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        write!(f, "{}", self.what)?;
        if !self.instead.is_empty() {
            write!(f, "\n    instead: {}", self.instead)?;
        }
        Ok(())
    }
}

fn listed(file: &std::path::Path, problems: &[Problem]) -> String {
    let lines: Vec<String> = problems
        .iter()
        .map(|problem| format!("{}:{}: {problem}", file.display(), problem.line))
        .collect();
    lines.join("\n")
}
