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

use crate::driver::{Address, Counters, Driver, Wait};
use crate::executor::Config;
use crate::helper::Helpers;
use crate::memory::Arena;
use crate::op::{Done, Op, Token};
use crate::time::Instant;

mod system;
pub use system::{free_bytes, sync_filesystem, thread_cpu};

/// The eventfd read that other threads complete to wake this one.
const BELL: u64 = u64::MAX;
/// Completions nobody waits for.
const IGNORED: u64 = u64::MAX - 1;
/// One registered buffer covers so much of the arena.
const REGISTERED_RANGE: usize = 1 << 30;
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
    bell: Arc<OwnedFd>,
    bell_word: ManuallyDrop<Box<u64>>,
    bell_armed: bool,
    arena: Registered,
    /// Holds the memory until the ring is gone.
    _memory: ManuallyDrop<Rc<Arena>>,
    in_flight: usize,
    random: u64,
    counters: Counters,
}

/// An operation in flight and what its submission points to.
struct Entry {
    op: Option<Op>,
    generation: u32,
    /// A socket not yet connected.
    socket: Option<OwnedFd>,
    vectors: SmallVec<[libc::iovec; 8]>,
    message: libc::msghdr,
    address: libc::sockaddr_storage,
}

/// Which addresses are registered with the ring as fixed buffers.
struct Registered {
    base: usize,
    len: usize,
    registered: bool,
}

type Bell = Box<dyn Fn() + Send + Sync>;

impl Uring {
    /// Sets the ring up; also gives the bell that other threads ring to wake it.
    pub fn new(config: &Config, arena: &Rc<Arena>) -> io::Result<(Self, Bell)> {
        let submissions = SUBMISSIONS_MAX.min(config.operations_max.next_power_of_two());
        let completions = (2 * config.operations_max).next_power_of_two();
        let ring: IoUring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_cqsize(completions.max(2 * submissions))
            .dontfork()
            .build(submissions)?;
        ring.submitter().register_iowq_max_workers(&mut [config.io_workers_max; 2])?;
        if !config.io_worker_cores.is_empty() {
            let set = system::processor_set(&config.io_worker_cores);
            ring.submitter().register_iowq_aff(&set)?;
        }
        let bell = Arc::new(system::event_descriptor()?);
        let theirs = Arc::clone(&bell);
        let ring_bell = move || system::ring_bell(&theirs);
        let mut driver = Self {
            arena: register(&ring, arena),
            ring: ManuallyDrop::new(ring),
            entries: ManuallyDrop::new(Vec::new()),
            spare: Vec::new(),
            ended: Vec::new(),
            helpers: Helpers::start(Arc::new(ring_bell.clone()))?,
            bell,
            bell_word: ManuallyDrop::new(Box::new(0)),
            bell_armed: false,
            _memory: ManuallyDrop::new(Rc::clone(arena)),
            in_flight: 0,
            random: seed(),
            counters: Counters::default(),
        };
        driver.arm_bell();
        Ok((driver, Box::new(ring_bell)))
    }

    fn arm_bell(&mut self) {
        let word = ptr_of(&mut self.bell_word);
        let entry = opcode::Read::new(Fd(self.bell.as_raw_fd()), word, 8).build().user_data(BELL);
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

    /// Moves completions out of the ring.
    fn collect(&mut self, done: &mut Vec<(Token, Done)>) {
        let mut rearm = false;
        // SAFETY: `&mut self`: no other completion queue of this ring exists.
        for completion in unsafe { self.ring.completion_shared() } {
            match completion.user_data() {
                BELL => rearm = true,
                IGNORED => {}
                word => {
                    let token = Token { slot: (word >> 32) as u32, generation: word as u32 };
                    let slot = &mut self.entries[token.slot as usize];
                    let mut entry = slot.take().expect("a completion has its operation");
                    assert_eq!(entry.generation, token.generation, "another operation's slot");
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
        for (token, answer) in self.helpers.collect() {
            self.in_flight -= 1;
            let (result, reply) = match answer {
                Ok(reply) => (Ok(0), Some(reply)),
                Err(error) => (Err(error), None),
            };
            done.push((token, Done { result, reply, op: None }));
        }
        done.append(&mut self.ended);
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
        let mut entry = self.spare.pop().unwrap_or_else(|| Box::new(Entry::empty()));
        entry.generation = token.generation;
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
        let entry = opcode::AsyncCancel::new(word(token)).build().user_data(IGNORED);
        self.push(&entry);
    }

    fn listen(&mut self, address: &Address) -> io::Result<(RawFd, Address)> {
        system::listen(address)
    }

    fn close(&mut self, descriptor: RawFd) {
        // Through the ring, so that a slow close does not hold the thread.
        let entry = opcode::Close::new(Fd(descriptor)).build().user_data(IGNORED);
        self.push(&entry);
    }

    fn shutdown(&mut self, descriptor: RawFd) {
        let entry = opcode::Shutdown::new(Fd(descriptor), libc::SHUT_RDWR).build();
        self.push(&entry.user_data(IGNORED));
    }

    fn turn(&mut self, wait: Wait, done: &mut Vec<(Token, Done)>) -> io::Result<()> {
        self.collect(done);
        let queued = !self.ring.submission().is_empty();
        let wait = if done.is_empty() { wait } else { Wait::No };
        match wait {
            Wait::No => {
                if queued || self.ring.submission().taskrun() {
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
}

impl Drop for Uring {
    fn drop(&mut self) {
        if self.in_flight > self.helpers.waiting() {
            // The kernel may still write into our memory: entries, arena and ring stay for ever.
            return;
        }
        if self.bell_armed {
            // Complete the bell's read, so that its word can be freed.
            system::ring_bell(&self.bell);
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

impl Entry {
    fn empty() -> Self {
        // SAFETY: both are plain C structures for which all zeros is a valid value.
        let (message, address) = unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        let vectors = SmallVec::new();
        Self { op: None, generation: 0, socket: None, vectors, message, address }
    }

    /// The submission for `self.op`. It points into `self`, which must not be freed before the
    /// completion.
    fn build(&mut self, arena: &Registered) -> io::Result<squeue::Entry> {
        self.vectors.clear();
        let op = self.op.as_mut().expect("an operation to build");
        Ok(match op {
            Op::Read { file, at, into } => {
                let (pointer, len) = (into.pointer(), length(into.len()));
                let fd = Fd(file.number());
                match arena.index(pointer.addr()) {
                    Some(index) => {
                        opcode::ReadFixed::new(fd, pointer, len, index).offset(*at).build()
                    }
                    None => opcode::Read::new(fd, pointer, len).offset(*at).build(),
                }
            }
            Op::Write { file, at, from } => {
                let fd = Fd(file.number());
                if let [slice] = &from[..] {
                    let (pointer, len) = (slice.pointer(), length(slice.len()));
                    match arena.index(pointer.addr()) {
                        Some(index) => {
                            opcode::WriteFixed::new(fd, pointer, len, index).offset(*at).build()
                        }
                        None => opcode::Write::new(fd, pointer, len).offset(*at).build(),
                    }
                } else {
                    self.vectors
                        .extend(from.iter().map(|s| vector(s.pointer().cast_mut(), s.len())));
                    let count = length(self.vectors.len());
                    opcode::Writev::new(fd, self.vectors.as_ptr(), count).offset(*at).build()
                }
            }
            Op::Allocate { file, at, len } => {
                opcode::Fallocate::new(Fd(file.number()), *len).offset(*at).build()
            }
            Op::Truncate { file, len } => opcode::Ftruncate::new(Fd(file.number()), *len).build(),
            Op::SyncData { file } => opcode::Fsync::new(Fd(file.number()))
                .flags(io_uring::types::FsyncFlags::DATASYNC)
                .build(),
            Op::Connect { address } => {
                let socket = system::stream_socket(address)?;
                let len = system::write_address(address, &mut self.address)?;
                let fd = Fd(socket.as_raw_fd());
                self.socket = Some(socket);
                opcode::Connect::new(fd, (&raw const self.address).cast(), len).build()
            }
            Op::Accept { socket } => {
                let null = std::ptr::null_mut();
                opcode::Accept::new(Fd(socket.number()), null, std::ptr::null_mut())
                    .flags(libc::SOCK_CLOEXEC)
                    .build()
            }
            Op::Receive { socket, into, all } => {
                let leases = into.iter_mut().flatten().filter(|lease| !lease.is_empty());
                self.vectors.extend(leases.map(|lease| vector(lease.pointer(), lease.len())));
                let flags = if *all { libc::MSG_WAITALL } else { 0 };
                let fd = Fd(socket.number());
                if let [only] = self.vectors[..] {
                    opcode::Recv::new(fd, only.iov_base.cast(), length(only.iov_len))
                        .flags(flags)
                        .build()
                } else {
                    let message = message(&mut self.message, &mut self.vectors);
                    opcode::RecvMsg::new(fd, message).flags(flags.cast_unsigned()).build()
                }
            }
            Op::Send { socket, from } => {
                self.vectors.extend(from.iter().map(|s| vector(s.pointer().cast_mut(), s.len())));
                let message = message(&mut self.message, &mut self.vectors);
                opcode::SendMsg::new(Fd(socket.number()), message)
                    .flags(libc::MSG_NOSIGNAL.cast_unsigned())
                    .build()
            }
            Op::Help(_) => unreachable!("helpers do not go through the ring"),
        })
    }
}

impl Registered {
    fn index(&self, address: usize) -> Option<u16> {
        let inside = self.registered && (self.base..self.base + self.len).contains(&address);
        inside.then(|| ((address - self.base) / REGISTERED_RANGE) as u16)
    }
}

/// Registers the arena in a few large ranges; without permission to lock memory, not at all.
fn register(ring: &IoUring, arena: &Arena) -> Registered {
    let (base, len) = arena.range();
    let ranges: Vec<libc::iovec> = (0..len)
        .step_by(REGISTERED_RANGE)
        .map(|at| vector(base.wrapping_add(at), REGISTERED_RANGE.min(len - at)))
        .collect();
    // SAFETY: the ranges are mapped memory that outlives the ring: the driver keeps the arena.
    let registered = unsafe { ring.submitter().register_buffers(&ranges) }.is_ok();
    Registered { base: base.addr(), len, registered }
}

/// What a completion means for its operation.
fn finish(entry: &mut Entry, result: i32) -> Done {
    let op = entry.op.take();
    let socket = entry.socket.take();
    entry.vectors.clear();
    let result = match (result, socket) {
        (..0, _) => Err(io::Error::from_raw_os_error(-result)),
        (_, Some(socket)) => Ok(std::os::fd::IntoRawFd::into_raw_fd(socket).cast_unsigned()),
        (_, None) => Ok(result.cast_unsigned()),
    };
    if let (Ok(number), Some(Op::Accept { .. })) = (&result, &op) {
        system::set_no_delay(number.cast_signed());
    }
    Done { result, reply: None, op }
}

fn word(token: Token) -> u64 {
    u64::from(token.slot) << 32 | u64::from(token.generation)
}

fn ptr_of(word: &mut u64) -> *mut u8 {
    (word as *mut u64).cast()
}

fn vector(pointer: *mut u8, len: usize) -> libc::iovec {
    libc::iovec { iov_base: pointer.cast(), iov_len: len }
}

fn message(
    message: &mut libc::msghdr,
    vectors: &mut SmallVec<[libc::iovec; 8]>,
) -> *mut libc::msghdr {
    message.msg_iov = vectors.as_mut_ptr();
    message.msg_iovlen = vectors.len() as _;
    message
}

fn length(len: usize) -> u32 {
    u32::try_from(len).expect("one operation moves less than 4 GiB")
}

fn seed() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish()
}
