//! The simulated network: stream connections with delay, a bounded window, and every way to end.
//!
//! A stream behaves as TCP does. Bytes arrive in order; a close sends what was sent before and then
//! the end (FIN), or a reset if bytes were left unread; bytes for a closed end are answered by a
//! reset; a reset end fails one call and then shows the end of the stream. A machine that lost its
//! power says nothing (the connection is half open) until another executor starts on it: then it
//! answers with resets. Machines can be cut from each other; what was on its way arrives later.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::Machine;
use super::happened::Accident;
use super::world::{Event, Kind, OpKey, World, failure};
use crate::driver::Address;
use crate::op::Op;

/// One end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct End {
    pub connection: u64,
    pub side: usize,
}

impl End {
    pub fn peer(self) -> Self {
        Self { side: 1 - self.side, ..self }
    }
}

/// Who is connected and who listens.
#[derive(Default)]
pub struct Network {
    pub connections: BTreeMap<u64, [Side; 2]>,
    pub listeners: BTreeMap<u64, Listening>,
    /// Calls under way: when they began, and whether their connection stands already.
    pub calls: BTreeMap<OpKey, Call>,
    pub cut: BTreeSet<(Machine, Machine)>,
    /// Every address that was ever listened at, and on which machine last.
    pub homes: Vec<(Address, Machine)>,
    pub next: u64,
    pub next_port: u16,
}

pub struct Call {
    pub since: u64,
    pub end: Option<End>,
}

pub struct Listening {
    pub machine: Machine,
    pub address: Address,
    pub backlog: VecDeque<End>,
    pub accepts: VecDeque<OpKey>,
}

pub struct Side {
    pub machine: Machine,
    /// Arrived and not yet received.
    arrived: VecDeque<u8>,
    /// All that ever arrived, in bytes.
    arrived_bytes: u64,
    /// On the wire towards this side: when it arrives, and what.
    incoming: VecDeque<(u64, Segment)>,
    incoming_bytes: usize,
    /// The peer's end of stream has arrived.
    ended: bool,
    /// A reset has arrived and no call has failed for it yet.
    reset: bool,
    /// Not even a write is possible any more.
    broken: bool,
    receive_shut: bool,
    send_shut: bool,
    closed: bool,
    /// Its machine lost its power: it takes and says nothing while that is off.
    pub silent: bool,
    /// Nothing arrives here any more.
    dark: bool,
    receives: VecDeque<OpKey>,
    sends: VecDeque<OpKey>,
}

pub enum Segment {
    Bytes(Vec<u8>),
    End,
    Reset,
}

impl Side {
    pub fn new(machine: Machine) -> Self {
        Self {
            machine,
            arrived: VecDeque::new(),
            arrived_bytes: 0,
            incoming: VecDeque::new(),
            incoming_bytes: 0,
            ended: false,
            reset: false,
            broken: false,
            receive_shut: false,
            send_shut: false,
            closed: false,
            silent: false,
            dark: false,
            receives: VecDeque::new(),
            sends: VecDeque::new(),
        }
    }
}

impl Network {
    pub fn side(&mut self, end: End) -> Option<&mut Side> {
        Some(&mut self.connections.get_mut(&end.connection)?[end.side])
    }

    /// An end says nothing more, for ever.
    pub fn silence(&mut self, end: End) {
        if let Some(side) = self.side(end) {
            side.silent = true;
        }
    }

    /// Whom a listener has not accepted yet hears nothing more, either.
    pub fn silence_backlog(&mut self, listener: u64) {
        let ends: Vec<End> = self.listeners[&listener].backlog.iter().copied().collect();
        ends.into_iter().for_each(|end| self.silence(end));
    }

    pub fn is_cut(&self, a: Machine, b: Machine) -> bool {
        self.cut.contains(&(a.min(b), a.max(b)))
    }

    pub fn cut(&mut self, a: Machine, b: Machine) {
        self.cut.insert((a.min(b), a.max(b)));
    }

    pub fn find_listener(&self, caller: Machine, wanted: &Address) -> Option<u64> {
        let matches = |listening: &Listening| match (&listening.address, wanted) {
            (Address::Tcp(bound), Address::Tcp(wanted)) => {
                let everywhere = bound.ip().is_unspecified();
                let reachable = listening.machine == caller || !wanted.ip().is_loopback();
                reachable && bound.port() == wanted.port() && (everywhere || bound == wanted)
            }
            (bound, wanted) => listening.machine == caller && bound == wanted,
        };
        self.listeners.iter().find(|(_, listening)| matches(listening)).map(|(id, _)| *id)
    }
}

impl World {
    pub fn travel_nanos(&mut self) -> u64 {
        let nanos = self.random.nanos(&self.faults.network.delay);
        let stalled = self.random.chance(self.faults.network.stall_ppm);
        if stalled { nanos * 1000 } else { nanos }
    }

    // Streams.

    /// A socket operation has reached the kernel.
    pub fn begin_socket(&mut self, key: OpKey) {
        let Some(flight) = self.operations.get(&key) else { return };
        let (number, receive) = match &flight.op {
            Op::Accept { socket } | Op::Send { socket, .. } => (socket.number(), false),
            Op::Receive { socket, .. } => (socket.number(), true),
            other => unreachable!("{other:?} is no socket's"),
        };
        match self.descriptors.get(&number).map(|d| d.kind) {
            Some(Kind::Listener(listener)) => {
                let listening = self.network.listeners.get_mut(&listener);
                listening.expect("an open listener").accepts.push_back(key);
                self.try_accept(listener);
            }
            Some(Kind::Stream(end)) => {
                let side = self.network.side(end).expect("an open stream");
                if receive {
                    side.receives.push_back(key);
                    self.try_receive(end);
                } else {
                    side.sends.push_back(key);
                    self.try_send(end);
                }
            }
            other => panic!("descriptor {number} is {other:?}, not a socket"),
        }
    }

    /// Takes a cancelled operation out of every line.
    pub fn forget_waiter(&mut self, key: OpKey) {
        for listening in self.network.listeners.values_mut() {
            listening.accepts.retain(|waiting| *waiting != key);
        }
        for side in self.network.connections.values_mut().flatten() {
            side.receives.retain(|waiting| *waiting != key);
            side.sends.retain(|waiting| *waiting != key);
        }
    }

    fn try_receive(&mut self, end: End) {
        loop {
            let short = self.random.chance(self.faults.network.short_ppm);
            let Some(side) = self.network.side(end) else { return };
            let Some(key) = side.receives.front().copied() else { return };
            let flight = self.operations.get_mut(&key).expect("who waits is in flight");
            let Op::Receive { into, all, .. } = &mut flight.op else {
                unreachable!("a receive waits to receive")
            };
            let wanted: usize = into.iter().flatten().map(|lease| lease.len()).sum();
            let mut take = (wanted - flight.progress).min(side.arrived.len());
            if self.happened.count_if(Accident::ShortSocket, short && take > 1 && !*all) {
                take = 1 + self.random.index(take - 1);
            }
            let mut at = flight.progress;
            let mut skip = at;
            for lease in into.iter_mut().flatten() {
                let start = skip.min(lease.len());
                skip -= start;
                let part = (lease.len() - start).min(flight.progress + take - at);
                move_out(&mut side.arrived, &mut lease[start..start + part]);
                at += part;
            }
            flight.progress += take;
            let over = side.ended || side.receive_shut || side.broken;
            let full = flight.progress == wanted || (!*all && flight.progress > 0);
            let progress = flight.progress as u32;
            let result = if full || (over && progress > 0) {
                Ok(progress)
            } else if std::mem::take(&mut side.reset) {
                failure(libc::ECONNRESET)
            } else if over {
                Ok(0)
            } else {
                break;
            };
            side.receives.pop_front();
            self.finish(key, result);
        }
        self.try_send(end.peer()); // there may be room in the window now
    }

    fn try_send(&mut self, end: End) {
        loop {
            let short = self.random.chance(self.faults.network.short_ppm);
            let window = self.faults.network.window_bytes;
            let Some(peer) = self.network.side(end.peer()) else { return };
            let room = window.saturating_sub(peer.arrived.len() + peer.incoming_bytes);
            let side = self.network.side(end).expect("both ends or none");
            let Some(key) = side.sends.front().copied() else { return };
            let flight = self.operations.get(&key).expect("who waits is in flight");
            let Op::Send { from, .. } = &flight.op else { unreachable!("a send waits to send") };
            let wanted: usize = from.iter().map(|slice| slice.len()).sum();
            let result = if std::mem::take(&mut side.reset) {
                failure(libc::ECONNRESET)
            } else if side.broken || side.send_shut {
                failure(libc::EPIPE)
            } else if room == 0 && wanted > 0 {
                return;
            } else {
                let mut take = wanted.min(room);
                if self.happened.count_if(Accident::ShortSocket, short && take > 1) {
                    take = 1 + self.random.index(take - 1);
                }
                let mut bytes = super::world::concatenate(from);
                bytes.truncate(take);
                self.send_segment(end, Segment::Bytes(bytes));
                Ok(take as u32)
            };
            if let Some(side) = self.network.side(end) {
                side.sends.pop_front();
            }
            self.finish(key, result);
        }
    }

    /// Puts something on the wire from this end to its peer.
    pub fn send_segment(&mut self, from: End, segment: Segment) {
        let delay = self.travel_nanos();
        let now = self.now().as_nanos();
        let Some(peer) = self.network.side(from.peer()) else { return };
        // Order within a stream is kept.
        let last = peer.incoming.back().map_or(0, |(at, _)| *at);
        let at = (now + delay).max(last);
        if let Segment::Bytes(bytes) = &segment {
            peer.incoming_bytes += bytes.len();
        }
        peer.incoming.push_back((at, segment));
        self.at(at, Event::Arrive(from.peer()));
    }

    /// What is on the wire and due arrives.
    pub fn arrive(&mut self, end: End) {
        let now = self.now().as_nanos();
        let Some([one, other]) = self.network.connections.get(&end.connection) else { return };
        if self.network.is_cut(one.machine, other.machine) {
            return; // the mending sends it again
        }
        let machine = if end.side == 0 { one.machine } else { other.machine };
        let up = self.powered[machine.0];
        let mut answer_reset = false;
        let side = self.network.side(end).expect("just seen");
        while side.incoming.front().is_some_and(|(at, _)| *at <= now) {
            if side.dark || (side.silent && !up) {
                return; // its window stays full of what nobody takes
            }
            let (_, segment) = side.incoming.pop_front().expect("just seen");
            match segment {
                Segment::Bytes(bytes) => {
                    side.incoming_bytes -= bytes.len();
                    if side.closed {
                        answer_reset = true;
                    } else {
                        side.arrived_bytes += bytes.len() as u64;
                        side.arrived.extend(bytes);
                    }
                }
                Segment::End => side.ended = true,
                Segment::Reset => {
                    side.reset = !side.broken;
                    side.broken = true;
                }
            }
        }
        if answer_reset {
            self.send_segment(end, Segment::Reset);
        }
        self.try_receive(end);
        self.try_send(end);
        self.forget_closed(end.connection);
    }

    /// Ends both directions, as `shutdown(2)` with `SHUT_RDWR`.
    pub fn shutdown(&mut self, number: i32) {
        let Some(Kind::Stream(end)) = self.descriptors.get(&number).map(|d| d.kind) else { return };
        let Some(side) = self.network.side(end) else { return };
        side.receive_shut = true;
        if !std::mem::replace(&mut side.send_shut, true) && !side.broken {
            self.send_segment(end, Segment::End);
        }
        self.try_receive(end);
        self.try_send(end);
    }

    /// What has arrived on a stream so far, received or not.
    pub fn arrived_bytes(&mut self, number: i32) -> u64 {
        let Some(Kind::Stream(end)) = self.descriptors.get(&number).map(|d| d.kind) else {
            return 0;
        };
        self.network.side(end).map_or(0, |side| side.arrived_bytes)
    }

    pub fn close_stream(&mut self, end: End) {
        let Some(side) = self.network.side(end) else { return };
        side.closed = true;
        let quiet = side.silent || side.broken;
        let unread = !std::mem::take(&mut side.arrived).is_empty();
        let said = std::mem::replace(&mut side.send_shut, true);
        match (quiet, unread, said) {
            (true, ..) | (_, false, true) => {}
            (_, true, _) => self.send_segment(end, Segment::Reset),
            (_, false, false) => self.send_segment(end, Segment::End),
        }
        self.forget_closed(end.connection);
    }

    /// A call that was never accepted: its far end goes away.
    pub fn forget_end(&mut self, end: End) {
        if let Some(side) = self.network.side(end) {
            side.closed = true;
        }
    }

    fn forget_closed(&mut self, connection: u64) {
        let over = |sides: &[Side; 2]| sides.iter().all(|s| s.closed && s.incoming.is_empty());
        if self.network.connections.get(&connection).is_some_and(over) {
            self.network.connections.remove(&connection);
        }
    }

    pub fn break_connection(&mut self, connection: u64, silent: bool) {
        if self.network.connections.contains_key(&connection) {
            self.happened.count(if silent { Accident::Silence } else { Accident::Reset });
        }
        for side in [0, 1] {
            let end = End { connection, side };
            let Some(side) = self.network.side(end) else { return };
            if silent {
                side.dark = true;
                continue;
            }
            side.reset = !side.broken;
            side.broken = true;
            side.incoming.clear();
            side.incoming_bytes = 0;
        }
        for side in [0, 1] {
            self.try_receive(End { connection, side });
            self.try_send(End { connection, side });
        }
        self.forget_closed(connection);
    }

    /// Two machines hear each other again.
    pub fn mend(&mut self, a: Machine, b: Machine) {
        self.network.cut.remove(&(a.min(b), a.max(b)));
        self.send_again();
    }

    /// What did not arrive is sent again.
    pub fn send_again(&mut self) {
        let ids: Vec<u64> = self.network.connections.keys().copied().collect();
        for connection in ids {
            for side in [0, 1] {
                let delay = self.travel_nanos();
                self.after(delay, Event::Arrive(End { connection, side }));
            }
        }
    }
}

/// Moves the front of a queue into `target`, which is not longer.
fn move_out(queue: &mut VecDeque<u8>, target: &mut [u8]) {
    let (front, back) = queue.as_slices();
    let first = front.len().min(target.len());
    let rest = target.len() - first;
    target[..first].copy_from_slice(&front[..first]);
    target[first..].copy_from_slice(&back[..rest]);
    queue.drain(..target.len());
}
