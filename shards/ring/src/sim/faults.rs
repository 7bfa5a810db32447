//! What goes wrong in a simulated world and how often, and the random numbers that decide it.

use std::ops::Range;
use std::time::Duration;

/// What goes wrong. Chances are in parts per million, each drawn per operation unless said
/// otherwise.
///
/// [`Faults::default`] holds what any correct program must live with unharmed: delays, any order of
/// completions, short reads and writes. [`Faults::harsh`] adds errors. [`Faults::none`] only
/// delays.
#[derive(Clone, Debug)]
pub struct Faults {
    /// Of the disks.
    pub disk: DiskFaults,
    /// Of the network.
    pub network: NetworkFaults,
    /// Of the clocks and processors.
    pub clock: ClockFaults,
    /// Steps after which a run counts as livelocked and panics.
    pub steps_max: u64,
}

/// What goes wrong with disks.
#[derive(Clone, Debug)]
pub struct DiskFaults {
    /// How long an operation takes.
    pub delay: Range<Duration>,
    /// An operation takes a hundred times as long.
    pub slow_ppm: u32,
    /// A read or write moves fewer bytes than asked: whole blocks of a direct file, whole 512-byte
    /// sectors of another.
    pub short_ppm: u32,
    /// A read fails with EIO, this once.
    pub read_error_ppm: u32,
    /// A write fails with EIO and changes nothing.
    pub write_error_ppm: u32,
    /// A flush (of a file, of a directory, of the file system) fails with EIO; what it should have
    /// flushed then counts as clean, as on Linux, and may be lost.
    pub flush_error_ppm: u32,
    /// At a power loss, per sector with unflushed changes: it cannot be read any more.
    pub torn_unreadable_ppm: u32,
    /// Bytes each disk holds.
    pub capacity_bytes: u64,
}

/// What goes wrong with the network.
#[derive(Clone, Debug)]
pub struct NetworkFaults {
    /// How long bytes travel one way. Order within a stream is kept.
    pub delay: Range<Duration>,
    /// A piece travels a thousand times as long, and what is behind it waits: a slow peer.
    pub stall_ppm: u32,
    /// A receive or send moves fewer bytes than it could.
    pub short_ppm: u32,
    /// A connection attempt is refused.
    pub refuse_ppm: u32,
    /// An accept fails with EMFILE; the connection stays in the line.
    pub accept_error_ppm: u32,
    /// Per connection: it is reset, within [`NetworkFaults::life`].
    pub reset_ppm: u32,
    /// Per connection: it falls silent both ways and stays so, within [`NetworkFaults::life`].
    pub silence_ppm: u32,
    /// How long a connection lives that is reset or falls silent.
    pub life: Range<Duration>,
    /// Bytes a stream holds between sender and receiver.
    pub window_bytes: usize,
}

/// What goes wrong with clocks and processors.
#[derive(Clone, Debug)]
pub struct ClockFaults {
    /// Per step: the wall clock jumps by up to an hour, either way.
    pub jump_ppm: u32,
    /// Per step: the executor is not run for up to a second.
    pub pause_ppm: u32,
}

const fn micros(from: u64, to: u64) -> Range<Duration> {
    Duration::from_micros(from)..Duration::from_micros(to)
}

impl Default for Faults {
    fn default() -> Self {
        let mut faults = Self::none();
        faults.disk.short_ppm = 20_000;
        faults.disk.slow_ppm = 5_000;
        faults.network.short_ppm = 200_000;
        faults.network.stall_ppm = 2_000;
        faults.clock.pause_ppm = 500;
        faults
    }
}

impl Faults {
    /// Nothing but delays.
    pub fn none() -> Self {
        Self {
            disk: DiskFaults {
                delay: micros(5, 500),
                slow_ppm: 0,
                short_ppm: 0,
                read_error_ppm: 0,
                write_error_ppm: 0,
                flush_error_ppm: 0,
                torn_unreadable_ppm: 0,
                capacity_bytes: 1 << 40,
            },
            network: NetworkFaults {
                delay: micros(10, 500),
                stall_ppm: 0,
                short_ppm: 0,
                refuse_ppm: 0,
                accept_error_ppm: 0,
                reset_ppm: 0,
                silence_ppm: 0,
                life: micros(1_000, 10_000_000),
                window_bytes: 256 << 10,
            },
            clock: ClockFaults { jump_ppm: 0, pause_ppm: 0 },
            steps_max: 10_000_000,
        }
    }

    /// Errors of every kind, each now and then.
    pub fn harsh() -> Self {
        let mut faults = Self::default();
        faults.disk.read_error_ppm = 2_000;
        faults.disk.write_error_ppm = 2_000;
        faults.disk.flush_error_ppm = 10_000;
        faults.disk.torn_unreadable_ppm = 1_000;
        faults.network.refuse_ppm = 50_000;
        faults.network.accept_error_ppm = 10_000;
        faults.network.reset_ppm = 200_000;
        faults.network.silence_ppm = 50_000;
        faults.clock.jump_ppm = 100;
        faults
    }
}

/// Random numbers of a seed (SplitMix64: Steele, Lea, Flood 2014). Cheap, and every draw counts.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The stream of a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`; 0 if `end` is 0.
    pub fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.draw()) * u128::from(end)) >> 64) as u64
    }

    /// An index below `end`.
    pub fn index(&mut self, end: usize) -> usize {
        self.below(end as u64) as usize
    }

    /// True so many times in a million.
    pub fn chance(&mut self, ppm: u32) -> bool {
        ppm > 0 && self.below(1_000_000) < u64::from(ppm)
    }

    /// Heads or tails.
    pub fn coin(&mut self) -> bool {
        self.draw() & 1 == 1
    }

    /// A duration of the range, in nanoseconds; small ones more often than large ones.
    pub fn nanos(&mut self, range: &Range<Duration>) -> u64 {
        let span = range.end.saturating_sub(range.start).as_nanos() as u64;
        let bound = self.below(span + 1);
        range.start.as_nanos() as u64 + self.below(bound + 1)
    }
}
