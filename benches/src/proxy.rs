//! A long line in a box: a proxy that delays both directions, lets only so many bytes be under way
//! on each connection, as sockets' buffers do, and, when told so, sends the answers of all
//! connections over one wire of limited bandwidth.
//!
//! A byte from the source first waits for the wire, which takes pieces of all connections one after
//! the other; it is handed on half a round trip later, and its place in the window is free again
//! another half later, when the acknowledgement would have come back. So a connection carries at
//! most a window per round trip, and all of them together what the wire carries. With a round trip
//! of 0 nothing is delayed, and the window bounds only what the proxy holds. There is no loss and
//! no slow start.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::Outcome;

const STACK_BYTES: usize = 128 << 10;
/// What one connection puts on the wire before another's turn.
const PIECE_BYTES: usize = 64 << 10;

/// What lies between the two.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    /// There and back.
    pub round_trip: Duration,
    /// Bytes under way on one connection at most.
    pub window_bytes: usize,
    /// What all answers together may use; without, as much as the proxy's threads can do.
    pub bytes_per_second: Option<f64>,
}

/// The proxy: threads of this process, two per direction of a connection.
pub struct Proxy {
    address: SocketAddr,
    stopping: Arc<AtomicBool>,
    delivered_bytes: Arc<AtomicU64>,
}

impl Proxy {
    /// Listens on a free port and connects whoever comes to `to`, a source that names its own
    /// address in its metadata: this one is put in its place there, so that all connections pass.
    ///
    /// # Errors
    /// No port is free.
    pub fn start(to: SocketAddr, link: Link) -> Outcome<Proxy> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let stopping = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&stopping);
        let delivered_bytes = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&delivered_bytes);
        let (delay, window) = (link.round_trip / 2, link.window_bytes);
        let wire = link.bytes_per_second.map(Wire::new).map(Arc::new);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(client) = client else { continue };
                let Ok(server) = TcpStream::connect(to) else { continue };
                let answers = Line::new(delay, window, wire.clone(), Arc::clone(&counter));
                let _ = join(client, server, answers, (to, address));
            }
        });
        Ok(Proxy { address, stopping, delivered_bytes })
    }

    /// Bytes of answers handed on so far, on all connections.
    pub fn delivered_bytes(&self) -> u64 {
        self.delivered_bytes.load(Ordering::Relaxed)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        // The listener looks at the flag when somebody comes.
        let _ = TcpStream::connect(self.address);
    }
}

/// Starts the four threads of a connection.
fn join(
    client: TcpStream,
    server: TcpStream,
    answers: Line,
    (to, own): (SocketAddr, SocketAddr),
) -> Outcome {
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let requests = Line::new(answers.delay, answers.window, None, Arc::default());
    let (from, onto) = (client.try_clone()?, server.try_clone()?);
    start(Arc::new(requests), from, onto, |_| {})?;
    let (advertised, instead) = (broker(to), broker(own));
    start(Arc::new(answers), server, client, move |bytes| {
        let head = bytes.len().min(HEAD_BYTES_MAX);
        let places = 0..(head + 1).saturating_sub(advertised.len());
        for at in places {
            if bytes[at..].starts_with(&advertised) {
                bytes[at..at + instead.len()].copy_from_slice(&instead);
            }
        }
    })
}

/// How far into a piece addresses are looked for: a metadata answer is a piece of its own, and
/// begins with its brokers.
const HEAD_BYTES_MAX: usize = 256;

/// A broker in a metadata answer: its host as text, its port.
fn broker(address: SocketAddr) -> Vec<u8> {
    let mut bytes = address.ip().to_string().into_bytes();
    bytes.extend(i32::from(address.port()).to_be_bytes());
    bytes
}

fn start(
    line: Arc<Line>,
    mut from: TcpStream,
    mut onto: TcpStream,
    change: impl Fn(&mut [u8]) + Send + 'static,
) -> Outcome {
    let writing = Arc::clone(&line);
    let small = || std::thread::Builder::new().stack_size(STACK_BYTES);
    small().spawn(move || {
        let mut buffer = vec![0; line.window.min(PIECE_BYTES)];
        loop {
            let room = line.wait_for_room().min(buffer.len());
            match from.read(&mut buffer[..room]) {
                Ok(bytes) if bytes > 0 => {
                    change(&mut buffer[..bytes]);
                    line.enter(buffer[..bytes].to_vec());
                }
                _ => return line.end(),
            }
        }
    })?;
    small().spawn(move || {
        while let Some(bytes) = writing.leave() {
            if onto.write_all(&bytes).is_err() {
                break;
            }
            writing.arrived(bytes.len());
        }
        let _ = onto.shutdown(Shutdown::Both);
        // Whoever waits for room finds it, reads the end, and goes.
        writing.release();
    })?;
    Ok(())
}

/// A wire that all answers share: when it is free again.
struct Wire {
    bytes_per_second: f64,
    free_at: Mutex<Instant>,
}

impl Wire {
    fn new(bytes_per_second: f64) -> Wire {
        Wire { bytes_per_second, free_at: Mutex::new(Instant::now()) }
    }

    /// Sends a piece after all that were sent before; when its last byte has left.
    fn send(&self, bytes: usize, now: Instant) -> Instant {
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        let takes = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second);
        *free_at = (*free_at).max(now) + takes;
        *free_at
    }
}

/// One direction of a connection.
struct Line {
    delay: Duration,
    window: usize,
    wire: Option<Arc<Wire>>,
    arrived_bytes: Arc<AtomicU64>,
    state: Mutex<Traffic>,
    changed: Condvar,
}

#[derive(Default)]
struct Traffic {
    /// Pieces under way, and when they arrive.
    pieces: VecDeque<(Instant, Vec<u8>)>,
    /// Acknowledgements under way, for how many bytes.
    acknowledged: VecDeque<(Instant, usize)>,
    in_flight: usize,
    ended: bool,
}

impl Line {
    fn new(
        delay: Duration,
        window: usize,
        wire: Option<Arc<Wire>>,
        arrived_bytes: Arc<AtomicU64>,
    ) -> Line {
        let (state, changed) = (Mutex::default(), Condvar::new());
        Line { delay, window, wire, arrived_bytes, state, changed }
    }

    fn lock(&self) -> MutexGuard<'_, Traffic> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(
        &self,
        state: MutexGuard<'a, Traffic>,
        until: Option<Instant>,
    ) -> MutexGuard<'a, Traffic> {
        let limit = until.map_or(Duration::from_secs(3600), |until| {
            until.saturating_duration_since(Instant::now())
        });
        self.changed.wait_timeout(state, limit).unwrap_or_else(PoisonError::into_inner).0
    }

    /// Bytes that may enter now; waits for at least one.
    fn wait_for_room(&self) -> usize {
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            while let Some((at, bytes)) = state.acknowledged.front().copied()
                && at <= now
            {
                state.acknowledged.pop_front();
                state.in_flight = state.in_flight.saturating_sub(bytes);
            }
            if state.in_flight < self.window {
                return self.window - state.in_flight;
            }
            let next = state.acknowledged.front().map(|(at, _)| *at);
            state = self.wait(state, next);
        }
    }

    fn enter(&self, bytes: Vec<u8>) {
        let now = Instant::now();
        let left = self.wire.as_ref().map_or(now, |wire| wire.send(bytes.len(), now));
        let mut state = self.lock();
        state.in_flight += bytes.len();
        state.pieces.push_back((left + self.delay, bytes));
        self.changed.notify_all();
    }

    /// The next piece to arrive, when it does. `None` at the end.
    fn leave(&self) -> Option<Vec<u8>> {
        let mut state = self.lock();
        loop {
            match state.pieces.front().map(|(at, _)| *at) {
                Some(at) if at <= Instant::now() => {
                    return state.pieces.pop_front().map(|(_, bytes)| bytes);
                }
                None if state.ended => return None,
                next => state = self.wait(state, next),
            }
        }
    }

    fn release(&self) {
        self.lock().acknowledged.push_back((Instant::now(), usize::MAX));
        self.changed.notify_all();
    }

    fn arrived(&self, bytes: usize) {
        self.arrived_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.lock().acknowledged.push_back((Instant::now() + self.delay, bytes));
        self.changed.notify_all();
    }

    fn end(&self) {
        self.lock().ended = true;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_pass_in_order_and_the_address_is_replaced() {
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let to = server.local_addr().expect("an address");
        let round_trip = Duration::from_millis(2);
        let link = Link { round_trip, window_bytes: 1000, bytes_per_second: Some(1e9) };
        let proxy = Proxy::start(to, link).expect("a proxy");
        let mut client = TcpStream::connect(proxy.address()).expect("the proxy listens");
        let (mut peer, _) = server.accept().expect("the proxy comes");
        let sent: Vec<u8> = (0..10_000u32).map(|n| n as u8).collect();
        client.write_all(&sent).expect("sent");
        let mut got = vec![0; sent.len()];
        peer.read_exact(&mut got).expect("it arrives");
        assert_eq!(got, sent);
        peer.write_all(&broker(to)).expect("answered");
        let mut answer = vec![0; broker(to).len()];
        client.read_exact(&mut answer).expect("the answer");
        assert_eq!(answer, broker(proxy.address()));
    }

    #[test]
    fn a_full_window_waits_for_its_acknowledgement() {
        let line = Line::new(Duration::ZERO, 10, None, Arc::default());
        line.enter(vec![0; 7]);
        assert_eq!(line.wait_for_room(), 3);
        line.enter(vec![0; 3]);
        assert_eq!(line.leave().map(|piece| piece.len()), Some(7));
        line.arrived(7);
        assert_eq!(line.wait_for_room(), 7);
    }
    #[test]
    fn a_wire_takes_one_piece_after_the_other() {
        let wire = Wire::new(1000.0);
        let now = Instant::now() + Duration::from_secs(1);
        assert_eq!(wire.send(500, now), now + Duration::from_millis(500));
        assert_eq!(wire.send(250, now), now + Duration::from_millis(750));
        let later = now + Duration::from_secs(5);
        assert_eq!(wire.send(1000, later), later + Duration::from_secs(1), "it idled meanwhile");
    }
}
