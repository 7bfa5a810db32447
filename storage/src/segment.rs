//! A segment that is being written: its buffer, its writes in flight, its indexes and checksums.
//!
//! Rules of writing, all held here:
//! - whole blocks go straight from the buffer, several writes in flight, none overlapping;
//! - the partial block at the end goes from a copy padded with zeros, only when no other write is
//!   in flight, and while it is, none is begun; it waits for what the source still has;
//! - a block that is written again begins with exactly the bytes it had (asserted).

use std::collections::VecDeque;

use ring::{BLOCK, Class, File, Gather};

use crate::batch::Batch;
use crate::chain::{Chain, Run};
use crate::checkpoint::Replay;
use crate::crc;
use crate::index::{IndexState, Indexes};
use crate::limits::{SPACE_BYTES_MIN, WRITE_BYTES_MAX, WRITE_BYTES_TRIGGER, WRITES_PER_LOG_MAX};
use crate::position::Place;
use crate::queue::pop_if;
use crate::seal::SealBuilder;

const BLOCK_BYTES: u64 = BLOCK as u64;

/// A segment with a buffer.
pub struct Segment {
    /// Base offset.
    pub base: i64,
    /// Open once the background has created it.
    pub file: Option<File>,
    /// Bytes on their way.
    pub chain: Chain,
    /// Index entries.
    pub indexes: Indexes,
    /// Checksums.
    pub seal: SealBuilder,
    /// Checked up to here.
    pub received: Place,
    /// Written up to here, counted in batches.
    pub written: Place,
    /// The epoch of the last batch written.
    pub written_epoch: Option<i32>,
    /// The file's length: prepared space included.
    pub space: u64,
    /// The file still has the name of a prepared one.
    pub unnamed: bool,
    /// The least step of prepared space.
    pub step: u64,
    /// When the segment was begun, for rolling by time where batches carry no timestamps.
    pub created_ms: i64,
    /// Set when the segment is complete.
    pub finished: Option<Box<Finished>>,
    /// Where it stood when it was opened: an idle segment takes no space ahead.
    opened: Place,
    marks: VecDeque<Mark>,
    flights: VecDeque<Flight>,
    next_flight: u64,
    written_bytes: u64,
    tail: Option<Tail>,
}

/// What is worth writing now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urge {
    /// Only as much as makes a good write: more bytes are on their way.
    Enough,
    /// Bytes have waited too long, but more are on their way.
    Overdue,
    /// More bytes will come with another response: all but the partial block, which they complete.
    Whole,
    /// No more bytes are on their way.
    All,
}

/// A segment that gets no more batches.
#[derive(Clone)]
pub struct Finished {
    /// The base of the next one.
    pub next_base: i64,
    /// The bytes of the `.snapshot` at its end, and whether they name any producer.
    pub snapshot: Vec<u8>,
    /// Producers were known.
    pub has_producers: bool,
    /// The leader epoch at its end.
    pub epoch: Option<i32>,
}

/// A write to make.
pub struct Write {
    /// The segment.
    pub segment: i64,
    /// Identifies it within the segment.
    pub flight: u64,
    /// The file.
    pub file: File,
    /// Position in the file.
    pub at: u64,
    /// Whole blocks.
    pub pieces: Gather,
}

impl Write {
    /// How many bytes.
    pub fn bytes(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.len() as u64).sum()
    }
}

/// The end of a batch that is not known to be written yet.
struct Mark {
    bytes: u64,
    offset: i64,
    epoch: Option<i32>,
}

struct Flight {
    id: u64,
    end: u64,
    tail: bool,
    done: bool,
}

/// The partial block as it was last written.
struct Tail {
    at: u64,
    bytes: usize,
    crc: u32,
}

impl Segment {
    /// A new segment. Its file is created by the background.
    pub fn new(base: i64, offset: i64, epoch: Option<i32>, now_ms: i64) -> Segment {
        let place = Place { segment: base, bytes: 0, offset };
        Segment::resume(place, epoch, Chain::new(0), IndexState::EMPTY, None, now_ms)
    }

    /// A segment that goes on at `place`, all of which is on disk.
    pub fn resume(
        place: Place,
        epoch: Option<i32>,
        chain: Chain,
        index: IndexState,
        file: Option<(File, u64)>,
        now_ms: i64,
    ) -> Segment {
        assert_eq!(chain.checked_end(), place.bytes);
        let tail = (chain.pending() > 0).then(|| Tail {
            at: chain.start(),
            bytes: chain.tail().len(),
            crc: crc::crc32c(chain.tail()),
        });
        let (file, space) = file.map_or((None, 0), |(file, space)| (Some(file), space));
        Segment {
            base: place.segment,
            file,
            chain,
            indexes: Indexes::new(place.segment, index),
            seal: SealBuilder::starting_at(place.bytes),
            received: place,
            written: place,
            written_epoch: epoch,
            space,
            unnamed: false,
            step: SPACE_BYTES_MIN,
            created_ms: now_ms,
            finished: None,
            opened: place,
            marks: VecDeque::new(),
            flights: VecDeque::new(),
            next_flight: 0,
            written_bytes: place.bytes,
            tail,
        }
    }

    /// The first `batch.bytes` unchecked bytes of the buffer are this batch. `file_crc` is the
    /// checksum over all its bytes, if that is known.
    pub fn append(&mut self, batch: &Batch, file_crc: Option<u32>) {
        let bytes = batch.bytes as usize;
        match file_crc {
            Some(crc) => {
                self.seal.append_checksum(crc, u64::from(batch.bytes), batch.next_offset());
            }
            None => {
                self.chain.pieces(bytes).for_each(|piece| self.seal.append_piece(piece));
                self.seal.end_pieces(batch.next_offset());
            }
        }
        self.indexes.append(self.received.bytes, batch);
        self.chain.accept(bytes);
        self.received.bytes += u64::from(batch.bytes);
        self.received.offset = batch.next_offset();
        assert_eq!(self.received.bytes, self.chain.checked_end());
        self.mark(batch.leader_epoch);
    }

    /// Everything received is written, and nothing is in flight.
    pub fn settled(&self) -> bool {
        self.written_bytes == self.received.bytes && self.flights.is_empty()
    }

    /// Bytes received that no write has taken yet.
    pub fn unsent(&self) -> u64 {
        let sent = self.flights.back().map_or(self.written_bytes, |flight| flight.end);
        self.received.bytes - sent.min(self.received.bytes)
    }

    /// The next write, if one is due.
    pub fn next_write(&mut self, urge: Urge) -> Option<Write> {
        let file = self.file.clone()?;
        if self.unsent() == 0
            || self.flights.len() >= WRITES_PER_LOG_MAX
            || self.flights.iter().any(|flight| flight.tail)
        {
            return None;
        }
        let whole = self.chain.pending() / BLOCK_BYTES * BLOCK_BYTES;
        let room = self.space.saturating_sub(self.chain.start()) / BLOCK_BYTES * BLOCK_BYTES;
        let sendable = whole.min(room).min(WRITE_BYTES_MAX);
        let alone = self.flights.is_empty();
        if sendable < WRITE_BYTES_TRIGGER && !(alone && urge != Urge::Enough) {
            return None;
        }
        let run = self.chain.take_whole(sendable);
        let at = run.as_ref().map_or(self.chain.start(), |run| run.at);
        let mut pieces = run.map_or_else(Gather::new, |run| self.check_rewrite(run));
        let with_tail = match urge {
            Urge::Enough | Urge::Whole => false,
            // The partial block is still growing; it is written again for nothing.
            Urge::Overdue => pieces.is_empty(),
            Urge::All => true,
        };
        let tail =
            with_tail && alone && self.chain.pending() < BLOCK_BYTES && self.push_tail(&mut pieces);
        if pieces.is_empty() {
            return None;
        }
        let end = if tail { self.received.bytes } else { self.chain.start() };
        let id = self.next_flight;
        self.next_flight += 1;
        self.flights.push_back(Flight { id, end, tail, done: false });
        Some(Write { segment: self.base, flight: id, file, at, pieces })
    }

    /// A write is complete.
    pub fn complete(&mut self, id: u64) {
        let flight = self.flights.iter_mut().find(|flight| flight.id == id);
        flight.expect("completed once").done = true;
        while let Some(flight) = pop_if(&mut self.flights, |flight| flight.done) {
            self.written_bytes = self.written_bytes.max(flight.end);
        }
        let written_bytes = self.written_bytes;
        while let Some(mark) = pop_if(&mut self.marks, |mark| mark.bytes <= written_bytes) {
            self.written.bytes = mark.bytes;
            self.written.offset = mark.offset;
            self.written_epoch = mark.epoch.or(self.written_epoch);
        }
        // The lists' own memory is given back: where logs are thousands, most of them wait.
        if self.marks.is_empty() && self.flights.is_empty() {
            (self.marks, self.flights) = Default::default();
        }
    }

    /// A write failed. What it held is not on disk; nothing after it counts.
    pub fn abandon(&mut self, id: u64) {
        // Those that were complete behind it would never be counted again.
        self.flights.retain(|flight| flight.id != id && !flight.done);
        self.marks.clear();
    }

    /// Gives back the memory of what no write has taken. None of it is written any more.
    pub fn drop_unwritten(&mut self) {
        self.chain = Chain::new(0);
    }

    /// Writes are in flight.
    pub fn in_flight(&self) -> usize {
        self.flights.len()
    }

    /// How far the file should be prepared, if that is more than it is. Kept ahead of need by half
    /// a step, in steps that double up to `step_max`.
    pub fn wanted_space(&self, segment_bytes: u64, step_max: u64) -> Option<u64> {
        let needed = self.received.bytes.next_multiple_of(BLOCK_BYTES);
        if self.received == self.opened {
            return None;
        }
        if self.finished.is_some() {
            return (needed > self.space).then_some(needed);
        }
        let step = self.space.max(self.step).min(step_max.max(SPACE_BYTES_MIN));
        if self.space >= needed + step / 2 {
            return None;
        }
        let most = segment_bytes.next_multiple_of(BLOCK_BYTES).max(needed);
        let target = (self.space.max(needed) + step).min(most).next_multiple_of(BLOCK_BYTES);
        (target > self.space).then_some(target)
    }

    /// Where a recovery could begin once everything pending is saved.
    pub fn replay(&self, epoch: Option<i32>, snapshot: bool) -> Replay {
        Replay { place: self.received, index: self.indexes.state(), epoch, snapshot }
    }

    fn mark(&mut self, epoch: Option<i32>) {
        let Place { bytes, offset, .. } = self.received;
        let mark = Mark { bytes, offset, epoch };
        // Ends within one block of each other need not be told apart.
        let len = self.marks.len();
        if len >= 2 && bytes - self.marks[len - 2].bytes < BLOCK_BYTES {
            self.marks[len - 1] = mark;
        } else {
            self.marks.push_back(mark);
        }
    }

    fn push_tail(&mut self, pieces: &mut Gather) -> bool {
        let at = self.chain.start();
        let bytes = self.chain.tail();
        if bytes.is_empty() || self.space < at + BLOCK_BYTES {
            return false;
        }
        let Some(mut bounce) = ring::try_lease(BLOCK, Class::Control) else { return false };
        bounce[..bytes.len()].copy_from_slice(bytes);
        bounce[bytes.len()..BLOCK].fill(0);
        if let Some(tail) = &self.tail
            && tail.at == at
        {
            assert_eq!(tail.crc, crc::crc32c(&bytes[..tail.bytes]), "a written block changed");
        }
        self.tail = Some(Tail { at, bytes: bytes.len(), crc: crc::crc32c(bytes) });
        pieces.push(bounce.freeze(BLOCK).0);
        true
    }

    fn check_rewrite(&mut self, run: Run) -> Gather {
        if let Some(tail) = self.tail.take() {
            assert_eq!(tail.at, run.at, "the partial block is the first to be written again");
            let old = &run.pieces[0][..tail.bytes];
            assert_eq!(tail.crc, crc::crc32c(old), "a written block changed");
        }
        run.pieces
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_in_flight_once_all_writes_have_ended_also_badly() {
        let mut segment = Segment::new(0, 0, None, 0);
        for id in 0..3 {
            segment.flights.push_back(Flight {
                id,
                end: (id + 1) * 4096,
                tail: false,
                done: false,
            });
        }
        segment.complete(1);
        segment.abandon(0);
        assert_eq!(segment.in_flight(), 1);
        segment.complete(2);
        assert_eq!(segment.in_flight(), 0);
        assert_eq!(segment.written.bytes, 0, "nothing behind the failed write counts");
    }
}
