//! One line that says what is being measured now.

use std::io::{self, IsTerminal, Write};

/// Draws on standard error, so that the table on standard output stays clean.
pub struct Progress {
    terminal: bool,
    step: usize,
    steps: usize,
}

impl Progress {
    /// Nothing done of so many steps.
    pub fn new(steps: usize) -> Progress {
        Progress { terminal: io::stderr().is_terminal(), step: 0, steps }
    }

    /// Begins the next step.
    pub fn next(&mut self, what: &str) {
        self.step += 1;
        let line = format!("[{}/{}] {what}", self.step, self.steps);
        if self.terminal {
            eprint!("\r{line:<100}");
            let _ = io::stderr().flush();
        } else {
            eprintln!("{line}");
        }
    }

    /// Clears the line.
    pub fn end(&self) {
        if self.terminal {
            eprint!("\r{:<100}\r", "");
        }
    }
}
