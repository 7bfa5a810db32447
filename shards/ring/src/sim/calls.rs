//! How connections begin in the simulated network: listening, calling, accepting.

use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;

use super::happened::Accident;
use super::network::{Call, End, Listening, Segment, Side};
use super::world::{Event, Flight, Kind, OpKey, World, failure};
use super::{ExecutorId, Machine};
use crate::driver::Address;
use crate::op::Op;

const BACKLOG: usize = 1024;
/// How long a caller whom nobody answers waits, in nanoseconds, and how often it calls again.
const CALL_LIMIT: u64 = 127_000_000_000;
const CALL_AGAIN: u64 = 1_000_000_000;
const EPHEMERAL_FIRST: u16 = 32_768;

impl World {
    pub fn listen(
        &mut self,
        executor: ExecutorId,
        address: &Address,
    ) -> io::Result<(i32, Address)> {
        let machine = self.machine(executor);
        let mut address = address.clone();
        if let Address::Tcp(tcp) = &mut address
            && tcp.port() == 0
        {
            let port = self.network.next_port.max(EPHEMERAL_FIRST);
            self.network.next_port = port.checked_add(1).unwrap_or(EPHEMERAL_FIRST);
            tcp.set_port(port);
        }
        let taken = |listening: &Listening| match (&listening.address, &address) {
            (Address::Tcp(a), Address::Tcp(b)) => {
                let local = |ip: IpAddr| ip.is_loopback() || ip.is_unspecified();
                let apart = listening.machine != machine && local(b.ip());
                let overlap = a == b || a.ip().is_unspecified() || b.ip().is_unspecified();
                a.port() == b.port() && overlap && !apart
            }
            (a, b) => listening.machine == machine && a == b,
        };
        if self.network.listeners.values().any(taken) {
            return failure(libc::EADDRINUSE);
        }
        self.network.next += 1;
        let id = self.network.next;
        let (backlog, accepts) = (VecDeque::new(), VecDeque::new());
        let listening = Listening { machine, address: address.clone(), backlog, accepts };
        self.network.listeners.insert(id, listening);
        self.network.homes.retain(|(known, _)| *known != address);
        self.network.homes.push((address.clone(), machine));
        Ok((self.add_descriptor(executor, Kind::Listener(id)), address))
    }

    pub fn close_listener(&mut self, id: u64) {
        let listening = self.network.listeners.remove(&id).expect("an open listener");
        for end in listening.backlog {
            let silent = self.network.side(end).is_some_and(|side| side.silent);
            if !silent {
                self.send_segment(end, Segment::Reset);
            }
            self.forget_end(end);
        }
    }

    /// The first packet of a call arrives, or does not.
    pub fn call_arrives(&mut self, key: OpKey) {
        let Some(Flight { op: Op::Connect { address }, .. }) = self.operations.get(&key) else {
            self.network.calls.remove(&key);
            return;
        };
        let address = address.clone();
        let now = self.now().as_nanos();
        let since = self.network.calls.entry(key).or_insert(Call { since: now, end: None }).since;
        let caller = self.machine(key.executor);
        let listener = self.network.find_listener(caller, &address);
        let target = listener.map(|id| self.network.listeners[&id].machine);
        let unheard = match target {
            Some(machine) => self.network.is_cut(caller, machine),
            // Nobody listens: a machine that is up and can be heard says so.
            None => self.is_dark(caller, &address),
        };
        let full = listener.is_some_and(|id| self.network.listeners[&id].backlog.len() >= BACKLOG);
        if unheard || full {
            if now - since > CALL_LIMIT {
                return self.end_call(key, failure(libc::ETIMEDOUT));
            }
            return self.after(CALL_AGAIN, Event::Call(key));
        }
        let refused = self.random.chance(self.faults.network.refuse_ppm);
        self.happened.count_if(Accident::RefusedCall, refused);
        let Some(listener) = listener.filter(|_| !refused) else {
            return self.end_call(key, failure(libc::ECONNREFUSED));
        };
        let machine = self.network.listeners[&listener].machine;
        self.network.next += 1;
        let connection = self.network.next;
        let sides = [Side::new(caller), Side::new(machine)];
        self.network.connections.insert(connection, sides);
        self.plan_break(connection);
        let end = End { connection, side: 0 };
        self.network.calls.insert(key, Call { since, end: Some(end) });
        let delay = self.travel_nanos();
        self.after(delay, Event::Answered(key, end));
        let listening = self.network.listeners.get_mut(&listener).expect("just found");
        listening.backlog.push_back(end.peer());
        self.try_accept(listener);
    }

    /// Whether whoever last listened at this address is switched off or cut from the caller.
    fn is_dark(&self, caller: Machine, address: &Address) -> bool {
        if matches!(address, Address::Unix(_))
            || matches!(address, Address::Tcp(tcp) if tcp.ip().is_loopback())
        {
            return false; // the caller's own machine
        }
        let home = self.network.homes.iter().rev().find(|(known, _)| known == address);
        home.is_some_and(|(_, m)| !self.powered[m.0] || self.network.is_cut(caller, *m))
    }

    fn plan_break(&mut self, connection: u64) {
        let faults = self.faults.network.clone();
        for (ppm, silent) in [(faults.reset_ppm, false), (faults.silence_ppm, true)] {
            if self.random.chance(ppm) {
                let delay = self.random.nanos(&faults.life);
                self.after(delay, Event::Break { connection, silent });
            }
        }
    }

    fn end_call(&mut self, key: OpKey, result: io::Result<u32>) {
        self.network.calls.remove(&key);
        self.finish(key, result);
    }

    pub fn connected(&mut self, key: OpKey, end: End) {
        let mine = self.network.calls.get(&key).is_some_and(|call| call.end == Some(end));
        if !mine {
            return; // given up meanwhile
        }
        let number = self.add_descriptor(key.executor, Kind::Stream(end));
        self.end_call(key, Ok(number.cast_unsigned()));
    }

    /// The caller gives up, or its machine lost its power; a connection that stands already is
    /// closed.
    pub fn abandon_call(&mut self, key: OpKey, power: bool) {
        if let Some(Call { end: Some(end), .. }) = self.network.calls.remove(&key) {
            if power {
                self.network.silence(end);
            }
            self.close_stream(end);
        }
    }

    pub fn try_accept(&mut self, listener: u64) {
        loop {
            let listening = self.network.listeners.get_mut(&listener).expect("an open listener");
            if listening.backlog.is_empty() {
                return;
            }
            let Some(key) = listening.accepts.pop_front() else { return };
            if self.random.chance(self.faults.network.accept_error_ppm) {
                self.happened.count(Accident::FailedAccept);
                self.finish(key, failure(libc::EMFILE));
                continue;
            }
            let listening = self.network.listeners.get_mut(&listener).expect("an open listener");
            let end = listening.backlog.pop_front().expect("just seen");
            let number = self.add_descriptor(key.executor, Kind::Stream(end));
            self.finish(key, Ok(number.cast_unsigned()));
        }
    }
}
