//! The world: its clock, its machines' disks, the operations in flight and when each will happen.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::rc::Rc;

use super::disk::{Disk, Inode};
use super::faults::{Faults, Random};
use super::happened::Happened;
use super::network::{End, Network};
use super::{ExecutorId, Machine};
use crate::memory::{Gather, Lease};
use crate::op::{Done, HelpRequest, Op, Token};
use crate::time::Instant;

pub type SharedWorld = Rc<RefCell<World>>;

/// One operation of one executor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OpKey {
    pub executor: ExecutorId,
    pub token: Token,
}

/// What fills memory that an operation may write into before it is done.
pub const POISON: u8 = 0xA7;

/// Something that will happen.
#[derive(Debug)]
pub enum Event {
    /// A disk operation takes effect and ends.
    Disk(OpKey),
    /// A helper thread ends its front request.
    Helper(ExecutorId, usize),
    /// A socket operation has reached the kernel.
    Begin(OpKey),
    /// A cancellation has reached the kernel.
    Cancel(OpKey),
    /// The first packet of a connection arrives.
    Call(OpKey),
    /// The caller learns that its connection stands.
    Answered(OpKey, End),
    /// Something on the wire arrives at this end.
    Arrive(End),
    /// A connection is torn down, or falls silent.
    Break { connection: u64, silent: bool },
}

pub struct World {
    pub random: Random,
    pub faults: Faults,
    pub happened: Happened,
    pub network: Network,
    /// By machine.
    pub disks: Vec<Disk>,
    /// By machine: whether it has power.
    pub powered: Vec<bool>,
    pub executors: Vec<Process>,
    pub descriptors: BTreeMap<i32, Descriptor>,
    pub operations: BTreeMap<OpKey, Flight>,
    pub wall_offset_ms: i64,
    pub events_done: u64,
    now: u64,
    events: BTreeMap<(u64, u64), Event>,
    next_descriptor: i32,
}

/// An executor, as the world sees it.
pub struct Process {
    pub machine: Machine,
    pub alive: bool,
    /// Ended operations the executor has not collected.
    pub done: Vec<(Token, Done)>,
    /// Requests to its two helper threads, each first come, first served.
    pub helpers: [VecDeque<(Token, HelpRequest, u64)>; 2],
    /// Flush errors of its disk it was told of.
    pub errors_seen: u64,
    pub completions: u64,
    pub helped: u64,
    pub enters: u64,
}

pub struct Flight {
    pub op: Op,
    /// What a flush covers.
    pub stamp: u64,
    /// Of the bytes of a write or send when it was submitted.
    pub checksum: u64,
    /// Bytes a receive has so far.
    pub progress: usize,
}

pub struct Descriptor {
    pub executor: ExecutorId,
    pub kind: Kind,
}

#[derive(Clone, Copy, Debug)]
pub enum Kind {
    File { inode: Inode, direct: bool, errors_seen: u64 },
    Listener(u64),
    Stream(End),
}

pub fn failure<T>(code: i32) -> io::Result<T> {
    Err(io::Error::from_raw_os_error(code))
}

impl World {
    pub fn new(seed: u64, faults: Faults) -> SharedWorld {
        let disk = Disk::new(faults.disk.capacity_bytes);
        Rc::new(RefCell::new(Self {
            random: Random::new(seed),
            happened: Happened::default(),
            network: Network::default(),
            disks: vec![disk],
            powered: vec![true],
            executors: Vec::new(),
            descriptors: BTreeMap::new(),
            operations: BTreeMap::new(),
            wall_offset_ms: 1_700_000_000_000,
            events_done: 0,
            now: 1_000_000_000,
            events: BTreeMap::new(),
            next_descriptor: 1_000_000, // no real descriptor is so high
            faults,
        }))
    }

    pub fn add_machine(&mut self) -> Machine {
        self.disks.push(Disk::new(self.faults.disk.capacity_bytes));
        self.powered.push(true);
        Machine(self.disks.len() - 1)
    }

    pub fn add_executor(&mut self, machine: Machine) -> ExecutorId {
        if !std::mem::replace(&mut self.powered[machine.0], true) {
            self.send_again(); // and be told that nobody here knows
        }
        self.executors.push(Process {
            machine,
            alive: true,
            done: Vec::new(),
            helpers: Default::default(),
            errors_seen: 0,
            completions: 0,
            helped: 0,
            enters: 0,
        });
        ExecutorId(self.executors.len() - 1)
    }

    // Time.

    pub fn now(&self) -> Instant {
        Instant::from_nanos(self.now)
    }

    pub fn advance(&mut self, nanos: u64) {
        self.now += nanos;
    }

    pub fn advance_to(&mut self, at: Instant) {
        self.now = self.now.max(at.as_nanos());
    }

    pub fn next_event(&self) -> Option<Instant> {
        self.events.first_key_value().map(|((at, _), _)| Instant::from_nanos(*at))
    }

    pub fn after(&mut self, nanos: u64, event: Event) {
        self.at(self.now + nanos, event);
    }

    /// Events of one moment happen in any order.
    pub fn at(&mut self, at: u64, event: Event) {
        while self.events.contains_key(&(at, self.random.clone().draw())) {
            self.random.draw();
        }
        let tie = self.random.draw();
        self.events.insert((at, tie), event);
    }

    /// Lets everything happen that is due.
    pub fn process_due(&mut self) {
        while let Some(entry) = self.events.first_entry() {
            if entry.key().0 > self.now {
                return;
            }
            let event = entry.remove();
            self.events_done += 1;
            match event {
                Event::Disk(key) => self.end_disk(key),
                Event::Helper(executor, queue) => self.end_help(executor, queue),
                Event::Begin(key) => self.begin_socket(key),
                Event::Cancel(key) => self.cancel_now(key),
                Event::Call(key) => self.call_arrives(key),
                Event::Answered(key, end) => self.connected(key, end),
                Event::Arrive(end) => self.arrive(end),
                Event::Break { connection, silent } => self.break_connection(connection, silent),
            }
        }
    }

    // Operations.

    pub fn submit(&mut self, key: OpKey, mut op: Op) {
        let machine = self.machine(key.executor);
        if let Op::Help(request) = op {
            return self.ask(key, request);
        }
        poison(&mut op);
        let checksum = match &op {
            Op::Write { from, .. } | Op::Send { from, .. } => checksum(from),
            _ => 0,
        };
        let stamp = self.disks[machine.0].stamp();
        let event = match &op {
            Op::Connect { .. } => Event::Call(key),
            Op::Accept { .. } | Op::Receive { .. } | Op::Send { .. } => Event::Begin(key),
            _ => Event::Disk(key),
        };
        let delay = match &event {
            Event::Call(_) => self.travel_nanos(),
            Event::Begin(_) if self.random.coin() => 0,
            Event::Begin(_) => self.random.below(20_000),
            _ => self.disk_nanos(),
        };
        self.operations.insert(key, Flight { op, stamp, checksum, progress: 0 });
        match event {
            Event::Begin(key) if delay == 0 => self.begin_socket(key),
            event => self.after(delay, event),
        }
    }

    pub fn cancel(&mut self, key: OpKey) {
        // Before, with or after the completion it races against.
        match self.random.below(3) {
            0 => self.cancel_now(key),
            _ => {
                let delay = self.random.below(200_000);
                self.after(delay, Event::Cancel(key));
            }
        }
    }

    fn cancel_now(&mut self, key: OpKey) {
        let Some(flight) = self.operations.get(&key) else { return };
        let progress = flight.progress;
        match &flight.op {
            Op::Accept { .. } | Op::Receive { .. } | Op::Send { .. } => self.forget_waiter(key),
            Op::Connect { .. } => self.abandon_call(key, false),
            _ => return, // a disk's operation runs to its end
        }
        let result = if progress > 0 { Ok(progress as u32) } else { failure(libc::ECANCELED) };
        self.finish(key, result);
    }

    /// An operation ends; its executor will learn of it.
    pub fn finish(&mut self, key: OpKey, result: io::Result<u32>) {
        let flight = self.operations.remove(&key).expect("an operation ends once");
        if let Op::Write { from, .. } | Op::Send { from, .. } = &flight.op {
            assert_eq!(flight.checksum, checksum(from), "bytes changed under a write or send");
        }
        let process = &mut self.executors[key.executor.0];
        process.completions += 1;
        process.done.push((key.token, Done { result, reply: None, op: Some(flight.op) }));
    }

    pub fn machine(&self, executor: ExecutorId) -> Machine {
        self.executors[executor.0].machine
    }

    pub fn disk_of(&mut self, executor: ExecutorId) -> &mut Disk {
        let machine = self.machine(executor);
        &mut self.disks[machine.0]
    }

    pub fn add_descriptor(&mut self, executor: ExecutorId, kind: Kind) -> i32 {
        self.next_descriptor += 1;
        self.descriptors.insert(self.next_descriptor, Descriptor { executor, kind });
        self.next_descriptor
    }

    pub fn close(&mut self, number: i32) {
        // A dead executor's descriptors are gone already.
        let Some(descriptor) = self.descriptors.remove(&number) else { return };
        match descriptor.kind {
            Kind::File { inode, .. } => self.disk_of(descriptor.executor).close(inode),
            Kind::Listener(listener) => self.close_listener(listener),
            Kind::Stream(end) => self.close_stream(end),
        }
    }

    pub fn in_flight(&self, executor: ExecutorId) -> usize {
        let process = &self.executors[executor.0];
        let first = OpKey { executor, token: Token { slot: 0, generation: 0 } };
        let next = OpKey { executor: ExecutorId(executor.0 + 1), ..first };
        self.operations.range(first..next).count()
            + process.done.len()
            + process.helpers.iter().map(VecDeque::len).sum::<usize>()
    }

    // Ends.

    /// The process dies; what its operations hold is returned, to be dropped outside of the world.
    pub fn kill(&mut self, executor: ExecutorId, power: bool) -> Remains {
        let first = OpKey { executor, token: Token { slot: 0, generation: 0 } };
        let next = OpKey { executor: ExecutorId(executor.0 + 1), ..first };
        let keys: Vec<OpKey> = self.operations.range(first..next).map(|(key, _)| *key).collect();
        let mut flights = Vec::new();
        for key in keys {
            let mut flight = self.operations.remove(&key).expect("just listed");
            self.forget_waiter(key);
            self.abandon_call(key, power);
            let on_disk =
                matches!(flight.op, Op::Write { .. } | Op::Allocate { .. } | Op::Truncate { .. });
            // What was on its way to the device may have got there.
            if on_disk && self.random.coin() {
                let _ = self.perform_on_disk(executor, &mut flight);
            }
            flights.push(flight);
        }
        let process = &mut self.executors[executor.0];
        process.alive = false;
        let helpers = std::mem::take(&mut process.helpers);
        let done = std::mem::take(&mut process.done);
        for mut queue in helpers {
            if let Some((_, request, stamp)) = queue.pop_front()
                && self.random.coin()
            {
                let _ = self.help(executor, request, stamp);
            }
        }
        let mine = |(number, d): (&i32, &Descriptor)| (d.executor == executor).then_some(*number);
        let numbers: Vec<i32> = self.descriptors.iter().filter_map(mine).collect();
        for number in numbers {
            match self.descriptors.get(&number).map(|descriptor| descriptor.kind) {
                Some(Kind::Stream(end)) if power => self.network.silence(end),
                Some(Kind::Listener(listener)) if power => self.network.silence_backlog(listener),
                _ => {}
            }
            self.close(number);
        }
        Remains { _flights: flights, _done: done }
    }
}

/// What a dead process held. Drop it where no borrow of the world is held.
pub struct Remains {
    _flights: Vec<Flight>,
    _done: Vec<(Token, Done)>,
}

/// Memory that an operation may write into holds no sense until it is done.
fn poison(op: &mut Op) {
    let fill = |lease: &mut Lease| lease.fill(POISON);
    match op {
        Op::Read { into, .. } => fill(into),
        Op::Receive { into, .. } => into.iter_mut().flatten().for_each(fill),
        _ => {}
    }
}

/// All bytes of a gather, in order.
pub fn concatenate(from: &Gather) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(from.iter().map(|slice| slice.len()).sum());
    from.iter().for_each(|slice| bytes.extend_from_slice(slice));
    bytes
}

/// FNV-1a over words: enough to notice a changed byte.
fn checksum(from: &Gather) -> u64 {
    let mut sum = 0xcbf2_9ce4_8422_2325_u64;
    for slice in from {
        for chunk in slice.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            sum = (sum ^ u64::from_le_bytes(word)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    sum
}
