//! The append buffer of a segment: bytes on their way from the socket to the disk, never copied.
//!
//! ```text
//!  file:  start               checked_end            end
//!           │ ready (slices)      │ unchecked (leases) │ free (leases)
//!           └─ a whole block      └─ ends a batch      └─ lent for the next receive
//! ```
//!
//! Memory is *phase-aligned*: the address of a byte and its position in the file are congruent
//! modulo the block size. So received bytes are written with direct I/O from where they landed.
//! Checked batches freeze into slices; an incomplete batch stays in leases, and rewinding it just
//! makes its memory free again. Whole blocks leave the chain when a write takes them; the partial
//! block at the end stays, for it is written again when it has grown.

use std::collections::VecDeque;

use ring::{BLOCK, Gather, Lease, Slice};

use crate::limits::{CHUNK_BYTES_MAX, CHUNK_BYTES_MIN, WRITE_BYTES_MAX, WRITE_PIECES_MAX};

const BLOCK_BYTES: u64 = BLOCK as u64;

/// The buffer.
pub struct Chain {
    /// Position of the first byte of `ready`; whole blocks.
    start: u64,
    ready: VecDeque<Slice>,
    checked_end: u64,
    unchecked: VecDeque<Lease>,
    unchecked_bytes: usize,
    free: VecDeque<Lease>,
    free_bytes: usize,
    /// Address and length of the lease that is out.
    lent: Option<(usize, usize)>,
    /// The size of the chunks the unchecked and free bytes lie in.
    chunk_bytes: usize,
    /// Bytes announced and not yet filled.
    coming: usize,
}

/// Whole blocks, taken out of the chain to be written.
pub struct Run {
    /// Position in the file.
    pub at: u64,
    /// The bytes.
    pub pieces: Gather,
    /// How many.
    pub bytes: u64,
}

impl Chain {
    /// An empty chain at the start of a block.
    pub fn new(position: u64) -> Chain {
        assert!(position.is_multiple_of(BLOCK_BYTES));
        Chain {
            start: position,
            ready: VecDeque::new(),
            checked_end: position,
            unchecked: VecDeque::new(),
            unchecked_bytes: 0,
            free: VecDeque::new(),
            free_bytes: 0,
            lent: None,
            chunk_bytes: 0,
            coming: 0,
        }
    }

    /// A chain that goes on inside a block: `block` begins with the block's first bytes.
    pub fn resume(position: u64, block: Lease) -> Chain {
        let phase = phase_of(position);
        assert!(phase > 0 && block.len() == BLOCK && block.address().is_multiple_of(BLOCK));
        let mut chain = Chain::new(position - phase as u64);
        chain.chunk_bytes = BLOCK;
        let (slice, rest) = block.freeze(phase);
        chain.ready.push_back(slice);
        chain.checked_end = position;
        chain.push_free(rest);
        chain
    }

    /// Where the checked bytes end.
    pub fn checked_end(&self) -> u64 {
        self.checked_end
    }

    /// Where the next write begins: everything before was taken in whole blocks.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Bytes of the batch that has begun.
    pub fn unchecked_bytes(&self) -> usize {
        self.unchecked_bytes
    }

    /// So many bytes are to come, in however many pieces: a new chunk has room for all of them, so
    /// that they are received and written as one.
    pub fn expect(&mut self, bytes: usize) {
        self.coming = bytes;
    }

    /// Bytes announced and not yet filled.
    pub fn coming(&self) -> usize {
        self.coming
    }

    /// Memory to receive up to `want` bytes into, in one piece, perhaps fewer. `allocate` is asked
    /// for a chunk when what is left is too little, and may answer with a smaller one.
    pub fn lend(
        &mut self,
        want: usize,
        allocate: impl FnOnce(usize) -> Option<Lease>,
    ) -> Option<Lease> {
        assert!(want > 0);
        if self.lent.is_some() {
            // The last one never came back: its connection broke, an operation may still own it.
            self.forget_lent();
        }
        let room = want.max(self.coming);
        if self.free_bytes < room.min(CHUNK_BYTES_MAX / 2)
            && (self.free_bytes == 0 || self.unchecked.is_empty())
        {
            self.extend(room, allocate);
        }
        let lease = self.free.pop_front()?;
        self.free_bytes -= lease.len();
        let taken = want.min(lease.len());
        let (lease, rest) = lease.split(taken);
        if !rest.is_empty() {
            self.free_bytes += rest.len();
            self.free.push_front(rest);
        }
        let end = self.checked_end + self.unchecked_bytes as u64;
        assert_eq!(lease.address() % BLOCK, phase_of(end), "memory out of phase with the file");
        self.lent = Some((lease.address(), lease.len()));
        Some(lease)
    }

    /// Takes the lent lease back with `bytes` new bytes at its start. Gives it back if it is not
    /// the one that is out.
    pub fn fill(&mut self, lease: Lease, bytes: usize) -> Result<(), Lease> {
        if self.lent.take_if(|lent| *lent == (lease.address(), lease.len())).is_none() {
            return Err(lease);
        }
        let (filled, rest) = lease.split(bytes);
        self.push_free_front(rest);
        if filled.is_empty() {
            return Ok(());
        }
        self.unchecked_bytes += filled.len();
        self.coming = self.coming.saturating_sub(filled.len());
        push_joined(&mut self.unchecked, filled);
        Ok(())
    }

    /// The first piece of the last `count` unchecked bytes.
    pub fn unfed(&self, count: usize) -> &[u8] {
        let mut skip = self.unchecked_bytes - count;
        for lease in &self.unchecked {
            if skip < lease.len() {
                return &lease[skip..];
            }
            skip -= lease.len();
        }
        &[]
    }

    /// The pieces of the first `count` unchecked bytes.
    pub fn pieces(&self, count: usize) -> impl Iterator<Item = &[u8]> {
        assert!(count <= self.unchecked_bytes);
        let mut left = count;
        self.unchecked.iter().map_while(move |lease| {
            let taken = left.min(lease.len());
            left -= taken;
            (taken > 0).then(|| &lease[..taken])
        })
    }

    /// The first `count` unchecked bytes are a good batch: from now on they cannot change.
    pub fn accept(&mut self, count: usize) {
        assert!(count <= self.unchecked_bytes);
        self.unchecked_bytes -= count;
        self.checked_end += count as u64;
        let mut left = count;
        while left > 0 {
            let lease = self.unchecked.pop_front().expect("counted");
            let taken = left.min(lease.len());
            let (slice, rest) = lease.freeze(taken);
            left -= taken;
            if !rest.is_empty() {
                self.unchecked.push_front(rest);
            }
            if !self.ready.back_mut().is_some_and(|last| last.try_join(&slice)) {
                self.ready.push_back(slice);
            }
        }
    }

    /// The batch that has begun is dropped; its memory is free again.
    pub fn rewind(&mut self) {
        self.unchecked_bytes = 0;
        while let Some(lease) = self.unchecked.pop_back() {
            self.push_free_front(lease);
        }
        if self.lent.is_some() {
            self.forget_lent();
        }
    }

    /// Whether a lease is out.
    pub fn is_lent(&self) -> bool {
        self.lent.is_some()
    }

    /// Takes the unchecked bytes out, to be moved into another chain.
    pub fn take_unchecked(&mut self) -> VecDeque<Lease> {
        assert!(self.lent.is_none());
        self.unchecked_bytes = 0;
        std::mem::take(&mut self.unchecked)
    }

    /// No more bytes will come: all memory that holds none is given back.
    pub fn drop_free(&mut self) {
        assert!(self.lent.is_none() && self.unchecked.is_empty());
        self.free.clear();
        self.free_bytes = 0;
    }

    /// Takes whole blocks out, at most `bytes_max`.
    pub fn take_whole(&mut self, bytes_max: u64) -> Option<Run> {
        let whole = (self.checked_end - self.start) / BLOCK_BYTES * BLOCK_BYTES;
        let mut left = whole.min(bytes_max / BLOCK_BYTES * BLOCK_BYTES) as usize;
        let at = self.start;
        let mut pieces = Gather::new();
        while left > 0 && pieces.len() < WRITE_PIECES_MAX {
            // A piece that makes a good write goes alone: then it goes from registered memory.
            if self.start - at >= WRITE_BYTES_MAX / 2 {
                break;
            }
            let slice = self.ready.pop_front().expect("counted");
            if slice.len() <= left {
                left -= slice.len();
                self.start += slice.len() as u64;
                pieces.push(slice);
            } else {
                pieces.push(slice.slice(0..left));
                self.ready.push_front(slice.slice(left..slice.len()));
                self.start += left as u64;
                left = 0;
            }
        }
        assert!(self.start.is_multiple_of(BLOCK_BYTES));
        let bytes = self.start - at;
        (bytes > 0).then_some(Run { at, pieces, bytes })
    }

    /// The checked bytes of the partial block at the end. Call when no whole block is left.
    pub fn tail(&self) -> &[u8] {
        let bytes = (self.checked_end - self.start) as usize;
        assert!(bytes < BLOCK, "whole blocks go first");
        match self.ready.front() {
            Some(slice) if bytes > 0 => {
                // All of a block lies in one chunk, so its pieces were joined.
                assert!(self.ready.len() == 1 && slice.len() == bytes);
                slice
            }
            _ => &[],
        }
    }

    /// Bytes checked and not yet taken in whole blocks.
    pub fn pending(&self) -> u64 {
        self.checked_end - self.start
    }

    /// An idle partition holds at most one block: moves the partial block into one and gives the
    /// chunk back, and the lists' own memory. Keeps it if there is no memory.
    pub fn compact(&mut self, allocate: impl FnOnce() -> Option<Lease>) {
        let idle = self.unchecked.is_empty() && self.lent.is_none();
        if !idle || self.pending() >= BLOCK_BYTES {
            return;
        }
        if self.chunk_bytes > BLOCK {
            if self.pending() == 0 {
                self.ready.clear();
                self.drop_free();
                self.chunk_bytes = 0;
            } else if let Some(block) = allocate() {
                self.move_tail(block);
            }
        }
        self.unchecked = VecDeque::new();
        self.ready.shrink_to_fit();
        self.free.shrink_to_fit();
    }

    /// Takes a new chunk. If the checked bytes end inside a block, these are copied to its front.
    fn extend(&mut self, want: usize, allocate: impl FnOnce(usize) -> Option<Lease>) {
        let phase = phase_of(self.checked_end);
        let moves_tail = self.unchecked.is_empty() && phase > 0;
        let wanted = if moves_tail { want + phase } else { want };
        let Some(chunk) = allocate(chunk_bytes(wanted)) else { return };
        if moves_tail {
            if chunk.len() - phase > self.free_bytes {
                self.move_tail(chunk);
            }
        } else if chunk.len() > self.free_bytes {
            self.free.clear();
            self.free_bytes = 0;
            let kept = if self.unchecked.is_empty() { 0 } else { self.chunk_bytes };
            self.chunk_bytes = kept + chunk.len();
            self.push_free(chunk);
        }
    }

    /// Moves the partial block into a new chunk, which becomes the free memory.
    fn move_tail(&mut self, mut chunk: Lease) {
        let phase = phase_of(self.checked_end);
        assert!(self.unchecked.is_empty() && self.lent.is_none());
        assert!(phase > 0 && phase < chunk.len() && chunk.address().is_multiple_of(BLOCK));
        let last = self.ready.pop_back().expect("a partial block is never taken");
        let kept = last.len() - phase;
        chunk[..phase].copy_from_slice(&last[kept..]);
        if kept > 0 {
            self.ready.push_back(last.slice(0..kept));
        }
        self.chunk_bytes = chunk.len();
        let (slice, rest) = chunk.freeze(phase);
        self.ready.push_back(slice);
        self.drop_free();
        self.push_free(rest);
    }

    fn forget_lent(&mut self) {
        self.lent = None;
        self.free.clear();
        self.free_bytes = 0;
        // What follows the gap needs its own chunk; an incomplete batch before it is incomplete for
        // good, for its connection is gone.
        self.unchecked.clear();
        self.unchecked_bytes = 0;
    }

    fn push_free(&mut self, lease: Lease) {
        if !lease.is_empty() {
            self.free_bytes += lease.len();
            self.free.push_back(lease);
        }
    }

    fn push_free_front(&mut self, mut lease: Lease) {
        self.free_bytes += lease.len();
        if let Some(next) = self.free.pop_front()
            && let Err(next) = lease.try_join(next)
        {
            self.free.push_front(next);
        }
        if !lease.is_empty() {
            self.free.push_front(lease);
        }
    }
}

/// The size of a chunk for so many bytes. The largest is taken only if most of it will be used.
fn chunk_bytes(wanted: usize) -> usize {
    let bytes = wanted.clamp(CHUNK_BYTES_MIN, CHUNK_BYTES_MAX).next_power_of_two();
    if bytes == CHUNK_BYTES_MAX && wanted <= bytes / 4 * 3 { bytes / 2 } else { bytes }
}

fn phase_of(position: u64) -> usize {
    (position % BLOCK_BYTES) as usize
}

fn push_joined(leases: &mut VecDeque<Lease>, lease: Lease) {
    match leases.back_mut() {
        Some(last) => {
            if let Err(lease) = last.try_join(lease) {
                leases.push_back(lease);
            }
        }
        None => leases.push_back(lease),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use ring::Class;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Receive { want: usize, got: usize },
        Accept(usize),
        Rewind,
        Take(u64),
        Compact,
        Lose(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (1usize..40_000, 0usize..40_000)
                .prop_map(|(want, got)| Step::Receive { want, got }),
            5 => (1usize..30_000).prop_map(Step::Accept),
            1 => Just(Step::Rewind),
            3 => (4096u64..60_000).prop_map(Step::Take),
            1 => Just(Step::Compact),
            1 => (1usize..20_000).prop_map(Step::Lose),
        ]
    }

    fn allocate(bytes: usize) -> Option<Lease> {
        ring::try_lease(bytes, Class::Records)
    }

    /// The model: every byte's value follows from its position, `disk` is what was taken.
    async fn play(steps: Vec<Step>) {
        let (mut chain, mut disk) = (Chain::new(0), Vec::new());
        let value = |position: u64| (position * 31 % 251) as u8;
        for step in steps {
            match step {
                Step::Receive { want, got } => {
                    let Some(mut lease) = chain.lend(want, allocate) else { continue };
                    assert!(lease.len() <= want);
                    let got = got.min(lease.len());
                    let end = chain.checked_end() + chain.unchecked_bytes() as u64;
                    for i in 0..got {
                        lease[i] = value(end + i as u64);
                    }
                    chain.fill(lease, got).unwrap();
                }
                Step::Accept(count) => {
                    let count = count.min(chain.unchecked_bytes());
                    let start = chain.checked_end();
                    let bytes: Vec<u8> = chain.pieces(count).flatten().copied().collect();
                    assert!(bytes.iter().enumerate().all(|(i, b)| *b == value(start + i as u64)));
                    assert_eq!(bytes.len(), count);
                    chain.accept(count);
                }
                Step::Rewind => chain.rewind(),
                Step::Take(max) => {
                    if let Some(run) = chain.take_whole(max) {
                        assert_eq!(run.at, disk.len() as u64);
                        for piece in &run.pieces {
                            assert_eq!(piece.address() % BLOCK, 0);
                            assert_eq!(piece.len() % BLOCK, 0);
                            disk.extend_from_slice(piece);
                        }
                        assert_eq!(run.at + run.bytes, disk.len() as u64);
                    }
                }
                Step::Compact => chain.compact(|| allocate(BLOCK)),
                Step::Lose(want) => drop(chain.lend(want, allocate)),
            }
        }
        chain.rewind();
        while let Some(run) = chain.take_whole(u64::MAX) {
            run.pieces.iter().for_each(|piece| disk.extend_from_slice(piece));
        }
        disk.extend_from_slice(chain.tail());
        assert_eq!(disk.len() as u64, chain.checked_end());
        assert!(disk.iter().enumerate().all(|(i, b)| *b == value(i as u64)));
        chain.compact(|| allocate(BLOCK));
        assert!(ring::memory().used <= BLOCK, "an idle chain holds at most one block");
        drop(chain);
        assert_eq!(ring::memory().used, 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn bytes_keep_their_places(steps in prop::collection::vec(step(), 1..60)) {
            ring::run(ring::Config::small(), play(steps)).unwrap();
        }
    }
}
