//! The operations in flight, and who waits for a slot.

use std::collections::VecDeque;
use std::task::Waker;

use crate::op::{Done, Op, Token};

/// A table of operations, bounded; who finds it full waits in line.
pub struct Flights {
    slots: Vec<FlightSlot>,
    free: Vec<u32>,
    max: usize,
    line: VecDeque<(u64, Waker)>,
    next_ticket: u64,
}

struct FlightSlot {
    generation: u32,
    cancel: bool,
    state: FlightState,
}

enum FlightState {
    Free,
    Waiting(Waker),
    Orphaned,
    Done(Done),
}

/// What became of an operation's end.
pub enum Ended {
    /// Its future is to be woken.
    Awaited(Waker),
    /// Nobody waits for it: let go of it.
    Orphaned(Done),
}

impl Flights {
    pub fn new(max: u32) -> Self {
        let line = VecDeque::new();
        Self { slots: Vec::new(), free: Vec::new(), max: max as usize, line, next_ticket: 0 }
    }

    /// A slot for an operation. When there is none, or others came first, `ticket` is a place in
    /// the line; the waker is woken when it is at the front and a slot is free.
    pub fn begin(&mut self, op: &Op, waker: &Waker, ticket: &mut Option<u64>) -> Option<Token> {
        let at_front = match (*ticket, self.line.front()) {
            (None, None) => true,
            (Some(mine), Some((first, _))) => mine == *first,
            _ => false,
        };
        if !at_front || !self.has_room() {
            self.wait(waker, ticket);
            return None;
        }
        if ticket.take().is_some() {
            self.line.pop_front();
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            let state = FlightState::Free;
            self.slots.push(FlightSlot { generation: 0, cancel: false, state });
            (self.slots.len() - 1) as u32
        });
        let entry = &mut self.slots[slot as usize];
        entry.state = FlightState::Waiting(waker.clone());
        entry.cancel = op.may_wait_forever();
        let token = Token { slot, generation: entry.generation };
        self.wake_front();
        Some(token)
    }

    fn has_room(&self) -> bool {
        !self.free.is_empty() || self.slots.len() < self.max
    }

    fn wait(&mut self, waker: &Waker, ticket: &mut Option<u64>) {
        match *ticket {
            Some(mine) => {
                let place = self.line.iter_mut().find(|(other, _)| *other == mine);
                place.expect("a ticket keeps its place").1.clone_from(waker);
            }
            None => {
                *ticket = Some(self.next_ticket);
                self.line.push_back((self.next_ticket, waker.clone()));
                self.next_ticket += 1;
            }
        }
    }

    /// Leaves the line.
    pub fn leave(&mut self, ticket: u64) {
        if let Some(place) = self.line.iter().position(|(other, _)| *other == ticket) {
            self.line.remove(place);
        }
        self.wake_front();
    }

    fn wake_front(&self) {
        if self.has_room()
            && let Some((_, waker)) = self.line.front()
        {
            waker.wake_by_ref();
        }
    }

    fn get(&mut self, token: Token) -> &mut FlightSlot {
        let entry = &mut self.slots[token.slot as usize];
        assert_eq!(entry.generation, token.generation, "a completion of another operation");
        entry
    }

    /// The operation's end if it has come; otherwise the waker is kept.
    pub fn take(&mut self, token: Token, waker: &Waker) -> Option<Done> {
        let entry = self.get(token);
        match std::mem::replace(&mut entry.state, FlightState::Free) {
            FlightState::Done(done) => {
                self.release(token.slot);
                Some(done)
            }
            FlightState::Waiting(_) => {
                entry.state = FlightState::Waiting(waker.clone());
                None
            }
            FlightState::Free | FlightState::Orphaned => unreachable!("a future owns its flight"),
        }
    }

    /// The result if it is there already, and whether the driver should be asked to cancel.
    pub fn orphan(&mut self, token: Token) -> (Option<Done>, bool) {
        let entry = self.get(token);
        let cancel = entry.cancel;
        match std::mem::replace(&mut entry.state, FlightState::Orphaned) {
            FlightState::Done(done) => {
                self.release(token.slot);
                (Some(done), false)
            }
            _ => (None, cancel),
        }
    }

    /// Keeps a result for its future, or returns it when nobody waits.
    pub fn complete(&mut self, token: Token, done: Done) -> Ended {
        let entry = self.get(token);
        match std::mem::replace(&mut entry.state, FlightState::Free) {
            FlightState::Waiting(waker) => {
                entry.state = FlightState::Done(done);
                Ended::Awaited(waker)
            }
            FlightState::Orphaned => {
                self.release(token.slot);
                Ended::Orphaned(done)
            }
            FlightState::Free | FlightState::Done(_) => unreachable!("completed twice"),
        }
    }

    fn release(&mut self, slot: u32) {
        let entry = &mut self.slots[slot as usize];
        entry.state = FlightState::Free;
        entry.generation = entry.generation.wrapping_add(1);
        self.free.push(slot);
        self.wake_front();
    }

    /// Operations that may never end by themselves.
    pub fn endless(&self) -> Vec<Token> {
        let endless = |(slot, entry): (usize, &FlightSlot)| {
            let waits = matches!(entry.state, FlightState::Waiting(_) | FlightState::Orphaned);
            (waits && entry.cancel)
                .then_some(Token { slot: slot as u32, generation: entry.generation })
        };
        self.slots.iter().enumerate().filter_map(endless).collect()
    }

    pub fn live(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}
