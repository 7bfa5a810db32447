//! The real driver: one io_uring, used by one thread.
//!
//! Every operation in flight has an entry here that owns it, together with the message headers and
//! vectors the kernel reads, at an address that does not move. An entry is emptied by the
//! operation's own completion and by nothing else.
//!
//! Unsafe code lives here: building submissions from owned operations, and a few system calls.
#![allow(unsafe_code)]

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode, squeue};
use smallvec::SmallVec;

use crate::driver::{Address, Bell, Counters, Driver, Wait};
use crate::executor::Config;
use crate::helper::Helpers;
use crate::memory::Arena;
use crate::op::{Done, Op, Token};
use crate::time::Instant;

mod entry;
mod setup;
mod system;
pub use entry::REGISTERED_RANGE;
use entry::{Entry, Registered, finish, vector};
#[cfg(test)]
pub use setup::explain;
pub use system::{
    close_descriptor, free_bytes, return_freed_memory, sync_filesystem, thread_cpu,
    trim_freed_memory,
};

/// The eventfd read that other threads complete to wake this one.
const BELL: u64 = u64::MAX;
/// Completions nobody waits for.
const IGNORED: u64 = u64::MAX - 1;
/// Another ring's message: wakes are in the inbox.
const WAKE: u64 = u64::MAX - 2;
/// The slot number of our own messages to others; the rest of the word is their index.
const MESSAGE_SLOT: u32 = u32::MAX - 1;
const SUBMISSIONS_MAX: u32 = 1024;
pub struct Uring {
    ring: ManuallyDrop<IoUring>,
    entries: ManuallyDrop<Vec<Option<Box<Entry>>>>,
    /// Boxes of ended operations, used again: an entry's address must not change.
    #[expect(clippy::vec_box, reason = "the boxes themselves are what is kept")]
    spare: Vec<Box<Entry>>,
    /// Operations that ended without the kernel.
    ended: Vec<(Token, Done)>,
    helpers: Helpers,
    bell: Arc<RingBell>,
    bell_word: ManuallyDrop<Box<u64>>,
    bell_armed: bool,
    /// Messages to other rings whose completions have not come; their bells, should they fail.
    messages: Vec<Option<Arc<dyn Bell>>>,
    messages_free: Vec<u32>,
    /// Cleared when this kernel refuses messages.
    messages_work: bool,
    /// `IORING_OP_FTRUNCATE` is younger (Linux 6.9) than what else is used.
    truncates: bool,
    arena: Registered,
    /// Holds the memory until the ring is gone.
    _memory: ManuallyDrop<Rc<Arena>>,
    in_flight: usize,
    random: u64,
    counters: Counters,
}

/// Wakes a ring: by its eventfd, which a read in the ring waits for, or by a message.
struct RingBell {
    event: OwnedFd,
    /// A descriptor of the ring of its own: its number is not used again while this lives.
    ring: OwnedFd,
}

impl Bell for RingBell {
    fn ring(&self) {
        system::ring_bell(&self.event);
    }

    fn ring_descriptor(&self) -> Option<RawFd> {
        Some(self.ring.as_raw_fd())
    }
}

impl Uring {
    /// Sets the ring up; also gives the bell that other threads ring to wake it.
    pub fn new(config: &Config, arena: &Rc<Arena>) -> io::Result<(Self, Arc<dyn Bell>)> {
        let ring = setup::ring(config)?;
        let event = system::event_descriptor()?;
        let ring_again = system::duplicate(ring.as_raw_fd())?;
        let bell = Arc::new(RingBell { event, ring: ring_again });
        let theirs: Arc<dyn Bell> = bell.clone();
        let mut driver = Self {
            arena: setup::register(&ring, arena),
            truncates: setup::can_truncate(&ring),
            ring: ManuallyDrop::new(ring),
            entries: ManuallyDrop::new(Vec::new()),
            spare: Vec::new(),
            ended: Vec::new(),
            helpers: Helpers::start(Arc::clone(&theirs))?,
            bell,
            bell_word: ManuallyDrop::new(Box::new(0)),
            bell_armed: false,
            messages: Vec::new(),
            messages_free: Vec::new(),
            messages_work: true,
            _memory: ManuallyDrop::new(Rc::clone(arena)),
            in_flight: 0,
            random: seed(),
            counters: Counters::default(),
        };
        driver.arm_bell();
        Ok((driver, theirs))
    }

    fn arm_bell(&mut self) {
        let word = ptr_of(&mut self.bell_word);
        let entry =
            opcode::Read::new(Fd(self.bell.event.as_raw_fd()), word, 8).build().user_data(BELL);
        self.bell_armed = true;
        self.push(&entry);
    }

    /// Queues a submission; when the queue is full, the kernel takes what is there first.
    fn push(&mut self, entry: &squeue::Entry) {
        loop {
            // SAFETY: all the entry points to is owned by `self.entries` (or the bell's word), at
            // a stable address, until its completion is seen; `drop` leaks it if that never comes.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return;
            }
            self.enter(0, None).expect("the kernel takes submissions");
        }
    }

    /// Submits what is queued and waits for `want` completions, until `limit`.
    fn enter(&mut self, want: usize, limit: Option<Timespec>) -> io::Result<()> {
        let before = self.now();
        let result = match &limit {
            Some(limit) => {
                let args = SubmitArgs::new().timespec(limit);
                self.ring.submitter().submit_with_args(want, &args)
            }
            None => self.ring.submitter().submit_with_args(want, &SubmitArgs::new()),
        };
        let spent = self.now() - before;
        self.counters.enters += 1;
        self.counters.enter_time += spent;
        if want == 0 {
            self.counters.enter_busy_time += spent;
        }
        match result {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
                _ => Err(error),
            },
        }
    }

    /// Moves completions out of the ring. True if someone rang.
    fn collect(&mut self, done: &mut Vec<(Token, Done)>) -> bool {
        let mut rearm = false;
        let mut rung = false;
        let mut failed = Vec::new();
        let mut again = SmallVec::<[squeue::Entry; 4]>::new();
        // SAFETY: `&mut self`: no other completion queue of this ring exists.
        for completion in unsafe { self.ring.completion_shared() } {
            match completion.user_data() {
                BELL => rearm = true,
                WAKE => rung = true,
                IGNORED => {}
                word if (word >> 32) as u32 == MESSAGE_SLOT => {
                    let bell = self.messages[word as u32 as usize].take();
                    self.messages_free.push(word as u32);
                    if completion.result() < 0 {
                        failed.extend(bell.map(|bell| (bell, -completion.result())));
                    }
                }
                word => {
                    let token = Token { slot: (word >> 32) as u32, generation: word as u32 };
                    let slot = &mut self.entries[token.slot as usize];
                    let mut entry = slot.take().expect("a completion has its operation");
                    assert_eq!(entry.generation, token.generation, "another operation's slot");
                    if let Some(submission) = entry.go_on(&self.arena, completion.result()) {
                        again.push(submission.user_data(word));
                        *slot = Some(entry);
                        continue;
                    }
                    self.in_flight -= 1;
                    self.counters.completions += 1;
                    done.push((token, finish(&mut entry, completion.result())));
                    self.spare.push(entry);
                }
            }
        }
        if rearm {
            self.bell_armed = false;
            self.arm_bell();
        }
        for submission in &again {
            self.push(submission);
        }
        for (bell, error) in failed {
            bell.ring();
            self.messages_work &= !matches!(error, libc::EINVAL | libc::EOPNOTSUPP);
        }
        for (token, answer) in self.helpers.collect() {
            self.in_flight -= 1;
            let (result, reply) = match answer {
                Ok(reply) => (Ok(0), Some(reply)),
                Err(error) => (Err(error), None),
            };
            done.push((token, Done { result, reply, op: None }));
        }
        done.append(&mut self.ended);
        rearm || rung
    }
}

impl Driver for Uring {
    fn submit(&mut self, token: Token, op: Op) {
        if let Op::Help(request) = op {
            self.in_flight += 1;
            self.counters.helped += 1;
            self.helpers.send(token, request);
            return;
        }
        if let Op::Truncate { file, len } = &op
            && !self.truncates
        {
            // Rare, and short enough to do here.
            let result = system::truncate(file.number(), *len).map(|()| 0);
            self.ended.push((token, Done { result, reply: None, op: Some(op) }));
            return;
        }
        let mut entry = self.spare.pop().unwrap_or_else(|| Box::new(Entry::empty()));
        entry.generation = token.generation;
        (entry.received, entry.cancelled) = (0, false);
        entry.op = Some(op);
        match entry.build(&self.arena) {
            Ok(submission) => {
                let slot = token.slot as usize;
                if self.entries.len() <= slot {
                    self.entries.resize_with(slot + 1, || None);
                }
                assert!(self.entries[slot].is_none(), "a slot is used twice");
                // The submission points into the box, which does not move with its owner.
                self.entries[slot] = Some(entry);
                self.in_flight += 1;
                self.push(&submission.user_data(word(token)));
            }
            Err(error) => {
                let op = entry.op.take();
                self.ended.push((token, Done { result: Err(error), reply: None, op }));
                self.spare.push(entry);
            }
        }
    }

    fn cancel(&mut self, token: Token) {
        if let Some(Some(entry)) = self.entries.get_mut(token.slot as usize)
            && entry.generation == token.generation
        {
            entry.cancelled = true;
        }
        let entry = opcode::AsyncCancel::new(word(token)).build();
        self.push(&entry.flags(squeue::Flags::SKIP_SUCCESS).user_data(IGNORED));
    }

    fn listen(&mut self, address: &Address) -> io::Result<(RawFd, Address)> {
        system::listen(address)
    }

    fn close(&mut self, descriptor: RawFd) {
        // Through the ring, so that a slow close does not hold the thread.
        let entry = opcode::Close::new(Fd(descriptor)).build();
        self.push(&entry.flags(squeue::Flags::SKIP_SUCCESS).user_data(IGNORED));
    }

    fn shutdown(&mut self, descriptor: RawFd) {
        // Not through the ring: there a worker would do it later, perhaps after the descriptor was
        // closed and its number used again. The call itself never blocks.
        system::shutdown(descriptor);
    }

    fn arrived_bytes(&self, descriptor: RawFd) -> u64 {
        system::arrived_bytes(descriptor).unwrap_or(0)
    }

    fn turn(&mut self, wait: Wait, done: &mut Vec<(Token, Done)>) -> io::Result<()> {
        let rung = self.collect(done);
        let wait = if done.is_empty() && !rung { wait } else { Wait::No };
        match wait {
            Wait::No => {
                let submissions = self.ring.submission();
                let queued = !submissions.is_empty();
                let waiting = submissions.taskrun() || submissions.cq_overflow();
                drop(submissions);
                if queued || waiting {
                    self.enter(0, None)?;
                }
            }
            Wait::Until(None) => self.enter(1, None)?,
            Wait::Until(Some(at)) => {
                let left = at - self.now();
                let limit = Timespec::new().sec(left.as_secs()).nsec(left.subsec_nanos());
                self.enter(1, Some(limit))?;
            }
        }
        self.collect(done);
        Ok(())
    }

    fn now(&self) -> Instant {
        Instant::from_nanos(system::monotonic_nanos())
    }

    fn wall_ms(&self) -> i64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
    }

    fn random(&mut self) -> u64 {
        // SplitMix64 (Steele, Lea, Flood 2014): spreading, not secrecy, is what is wanted here.
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn pick(&mut self, _ready: usize) -> usize {
        0
    }

    fn in_flight(&self) -> usize {
        self.in_flight + self.ended.len()
    }

    fn counters(&self) -> Counters {
        self.counters
    }

    fn wake(&mut self, bell: &Arc<dyn Bell>) {
        let Some(ring) = bell.ring_descriptor().filter(|_| self.messages_work) else {
            return bell.ring();
        };
        let index = self.messages_free.pop().unwrap_or_else(|| {
            self.messages.push(None);
            (self.messages.len() - 1) as u32
        });
        self.messages[index as usize] = Some(Arc::clone(bell));
        let entry = opcode::MsgRingData::new(Fd(ring), 0, WAKE, None).build();
        let data = u64::from(MESSAGE_SLOT) << 32 | u64::from(index);
        self.push(&entry.user_data(data));
        self.counters.messages += 1;
    }

    fn is_registered(&self) -> bool {
        self.arena.registered
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        // Closes and cancellations still in the queue; and who was to be woken is, in any case.
        let _ = self.enter(0, None);
        for bell in self.messages.iter().flatten() {
            bell.ring();
        }
        if self.in_flight > self.helpers.waiting() {
            // The kernel may still write into our memory: entries, arena and ring stay for ever.
            return;
        }
        if self.bell_armed {
            // Complete the bell's read, so that its word can be freed.
            self.bell.ring();
            while self.bell_armed {
                if self.enter(1, None).is_err() {
                    return;
                }
                // SAFETY: `&mut self`: no other completion queue of this ring exists.
                for completion in unsafe { self.ring.completion_shared() } {
                    self.bell_armed &= completion.user_data() != BELL;
                }
            }
        }
        // SAFETY: nothing is in flight, so nothing points to any of these, and each is dropped
        // once, here: the ring first, then what it could have pointed to.
        unsafe {
            ManuallyDrop::drop(&mut self.ring);
            ManuallyDrop::drop(&mut self.entries);
            ManuallyDrop::drop(&mut self.bell_word);
            ManuallyDrop::drop(&mut self._memory);
        }
    }
}

fn word(token: Token) -> u64 {
    u64::from(token.slot) << 32 | u64::from(token.generation)
}

fn ptr_of(word: &mut u64) -> *mut u8 {
    (word as *mut u64).cast()
}

fn seed() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish()
}
