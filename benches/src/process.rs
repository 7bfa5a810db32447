//! Child processes: started so that they cannot outlive this one, and what the kernel says of them.
#![allow(unsafe_code)]

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::Outcome;

/// A child, killed when dropped.
pub struct Process {
    child: Child,
}

/// CPU time of a process, all its threads, ended ones included.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cpu {
    /// Seconds in its own code, as the kernel's sampling splits them.
    pub user: f64,
    /// Seconds in the kernel on its behalf.
    pub system: f64,
    /// Both together, counted to the nanosecond.
    pub total: f64,
}

impl Cpu {
    /// What was spent since `earlier`.
    pub fn since(self, earlier: Cpu) -> Cpu {
        Cpu {
            user: self.user - earlier.user,
            system: self.system - earlier.system,
            total: self.total - earlier.total,
        }
    }

    /// The exact total, split as the samples say.
    pub fn split(self) -> (f64, f64) {
        let sampled = self.user + self.system;
        match sampled > 0.0 {
            true => (self.total * self.user / sampled, self.total * self.system / sampled),
            false => (0.0, self.total),
        }
    }
}

impl Process {
    /// Starts a program; the kernel kills it when this thread ends.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(command: &mut Command) -> Outcome<Process> {
        // SAFETY: between fork and exec only prctl(2) is called, which is async-signal-safe.
        unsafe {
            command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(Some(Signal::SIGKILL))?));
        }
        let name = command.get_program().to_string_lossy().into_owned();
        let child = command.spawn().map_err(|error| format!("starting {name}: {error}"))?;
        Ok(Process { child })
    }

    /// Its pipes and status.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Its id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// There is no such process any more.
    pub fn signal(&self, signal: Signal) -> Outcome {
        Ok(kill(Pid::from_raw(self.child.id().cast_signed()), signal)?)
    }

    /// Waits for its end; an error unless it ends well.
    ///
    /// # Errors
    /// It fails, or does not end in time.
    pub fn wait(&mut self, limit: Duration) -> Outcome {
        let begun = Instant::now();
        loop {
            match self.child.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(format!("a process ended with {status}").into()),
                None if begun.elapsed() > limit => return Err("a process does not end".into()),
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    /// CPU time so far.
    ///
    /// # Errors
    /// The process has ended.
    pub fn cpu(&self) -> Outcome<Cpu> {
        cpu_of(self.id())
    }

    /// The largest resident set so far, bytes.
    ///
    /// # Errors
    /// The process has ended.
    pub fn peak_resident_bytes(&self) -> Outcome<u64> {
        peak_resident_bytes_of(self.id())
    }

    /// Context switches of all its living threads: given up, taken away.
    ///
    /// # Errors
    /// The process has ended.
    pub fn switches(&self) -> Outcome<(u64, u64)> {
        let mut sum = (0, 0);
        for entry in fs::read_dir(format!("/proc/{}/task", self.id()))? {
            let Ok(text) = fs::read_to_string(entry?.path().join("status")) else { continue };
            let number = |name: &str| {
                let line = text.lines().find_map(|line| line.strip_prefix(name));
                line.and_then(|rest| rest.trim().parse::<u64>().ok()).unwrap_or(0)
            };
            sum.0 += number("voluntary_ctxt_switches:");
            sum.1 += number("nonvoluntary_ctxt_switches:");
        }
        Ok(sum)
    }

    /// Bytes that the process had written to storage, side files included.
    ///
    /// # Errors
    /// The process has ended.
    pub fn written_bytes(&self) -> Outcome<u64> {
        io_of(self.id(), "write_bytes:")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// CPU time of a process so far, whoever started it.
///
/// # Errors
/// The process has ended.
pub fn cpu_of(id: u32) -> Outcome<Cpu> {
    let text = fs::read_to_string(format!("/proc/{id}/stat"))?;
    let fields: Vec<&str> = text.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let ticks = |index: usize| -> Outcome<f64> {
        let field = fields.get(index).ok_or("/proc/PID/stat is too short")?;
        Ok(field.parse::<f64>()? / 100.0)
    };
    let mut clock = 0;
    // SAFETY: the call writes to the variable it is given and to nothing else.
    if unsafe { libc::clock_getcpuclockid(id.cast_signed(), &raw mut clock) != 0 } {
        return Err("the process has no CPU clock".into());
    }
    Ok(Cpu { user: ticks(11)?, system: ticks(12)?, total: read_clock(clock)? })
}

/// CPU time of a process's living threads whose names begin with one of these, seconds. Of a name
/// the kernel keeps 15 bytes.
///
/// # Errors
/// The process has ended, or the kernel does not count by thread (`CONFIG_SCHED_INFO`).
pub fn threads_cpu_of(id: u32, names: &[&str]) -> Outcome<f64> {
    let mut nanoseconds = 0;
    for entry in fs::read_dir(format!("/proc/{id}/task"))? {
        let thread = entry?.path();
        // A thread may end between two looks.
        let Ok(name) = fs::read_to_string(thread.join("comm")) else { continue };
        if names.iter().any(|known| name.starts_with(known)) {
            let Ok(text) = fs::read_to_string(thread.join("schedstat")) else { continue };
            let spent = text.split_whitespace().next().ok_or("an empty schedstat")?;
            nanoseconds += spent.parse::<u64>()?;
        }
    }
    Ok(nanoseconds as f64 / 1e9)
}

/// The largest resident set of a process so far, bytes, whoever started it.
///
/// # Errors
/// The process has ended.
pub fn peak_resident_bytes_of(id: u32) -> Outcome<u64> {
    let text = fs::read_to_string(format!("/proc/{id}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|rest| rest.trim().strip_suffix(" kB"));
    Ok(kib.ok_or("no VmHWM in /proc/PID/status")?.parse::<u64>()? << 10)
}

/// A count of /proc/PID/io, by its name and colon: `rchar:` also counts what read(2) had of
/// sockets.
///
/// # Errors
/// The process has ended.
pub fn io_of(id: u32, name: &str) -> Outcome<u64> {
    let text = fs::read_to_string(format!("/proc/{id}/io"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    Ok(line.ok_or_else(|| format!("no {name} in /proc/PID/io"))?.trim().parse()?)
}

/// CLOCK_MONOTONIC, which all processes share, seconds.
///
/// # Errors
/// The clock cannot be read.
pub fn monotonic() -> Outcome<f64> {
    read_clock(libc::CLOCK_MONOTONIC)
}

fn read_clock(clock: libc::clockid_t) -> Outcome<f64> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes to the variable it is given and to nothing else.
    let failed = unsafe { libc::clock_gettime(clock, &raw mut time) != 0 };
    match failed {
        true => Err(std::io::Error::last_os_error().into()),
        false => Ok(time.tv_sec as f64 + time.tv_nsec as f64 / 1e9),
    }
}
