//! The bare sender: a process that writes memory to a socket, 1 MiB at a time, until the other end
//! has had enough. No source can send faster by plain writes.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::{Command, Stdio};

use super::content;
use crate::Outcome;
use crate::process::Process;
use crate::serving::first_line;

/// The hidden command that runs it; its argument is the core.
pub const COMMAND: &str = "bare-sender";
const PIECE_BYTES: usize = 1 << 20;

/// The sender as a child. It ends when this process does.
pub struct Sender {
    /// Where it listens.
    pub address: SocketAddr,
    _process: Process,
}

impl Sender {
    /// Starts it on a core.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(core: usize) -> Outcome<Sender> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args([COMMAND, &core.to_string()]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Process::start(&mut command)?;
        let address = first_line(&mut process)?.trim().parse()?;
        Ok(Sender { address, _process: process })
    }
}

/// The child's whole life: one receiver after the other.
///
/// # Errors
/// The core or the socket is not to be had.
pub fn run(core: usize) -> Outcome {
    if !core_affinity::set_for_current(core_affinity::CoreId { id: core }) {
        return Err(format!("cannot run on core {core}").into());
    }
    std::thread::spawn(|| {
        let _ = io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let memory = content();
    println!("{}", listener.local_addr()?);
    loop {
        let (mut stream, _) = listener.accept()?;
        let mut pieces = memory.chunks(PIECE_BYTES).cycle();
        while pieces.next().is_some_and(|piece| stream.write_all(piece).is_ok()) {}
    }
}
