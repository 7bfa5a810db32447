//! Reads again, unasked, what was written long ago: a device may give other bytes than it took.
//!
//! A sealed segment is held against its seal, stride by stride: a stride is a run of whole batches,
//! so a bad one names exact bytes and exact offsets. Where there is no seal (the segment in which
//! appending goes on, up to its flushed end) every batch is checked again; the checksum of a batch
//! leaves three fields of its head out, so the batch before a bad one is suspected with it, and the
//! range ends where whole batches begin again.
//!
//! Findings become the log's [`Log::damages`]; nothing on disk is changed. Reading goes past the
//! page cache, no faster than allowed, and waits while memory is short or the disk is busy.

use std::cell::Cell;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ring::{BLOCK, Class, File, Instant, Lease, OpenOptions};

use crate::batch::{MAGIC_AT, OVERHEAD_BYTES};
use crate::checkpoint::Replay;
use crate::crc::Crc32c;
use crate::limits::{VERIFY_BUSY_PAUSE, VERIFY_BUSY_PAUSES_MAX, VERIFY_BYTES};
use crate::log::{Log, LogState};
use crate::names::Kind;
use crate::position::Place;
use crate::recovery::{Corrupt, Known, Scanned, Stopped, describe};
use crate::scan::{FoundBatch, Scanner};
use crate::seal::{Seal, Stride};
use crate::work::read_small;

const BLOCK_BYTES: u64 = BLOCK as u64;

/// How fast stored bytes are read again, and how many were.
pub struct Verifier {
    /// 0: as fast as the device gives them.
    bytes_per_second: Cell<u64>,
    next: Cell<Instant>,
    bytes: Cell<u64>,
}

impl Verifier {
    /// Reads so many bytes per second at most; 0: without limit.
    pub fn new(bytes_per_second: u64) -> Verifier {
        let bytes_per_second = Cell::new(bytes_per_second);
        Verifier { bytes_per_second, next: Cell::default(), bytes: Cell::new(0) }
    }

    /// From now on so many bytes per second.
    pub fn set_rate(&self, bytes_per_second: u64) {
        self.bytes_per_second.set(bytes_per_second);
    }

    /// Bytes read so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.get()
    }

    /// Memory to read into, when there is plenty.
    async fn memory(&self, bytes: usize) -> Lease {
        loop {
            let memory = ring::memory();
            if memory.used < memory.total / 4 * 3
                && let Some(lease) = ring::try_lease(bytes, Class::Records)
            {
                return lease;
            }
            ring::sleep(VERIFY_BUSY_PAUSE).await;
        }
    }

    async fn spend(&self, bytes: usize) {
        self.bytes.set(self.bytes.get() + bytes as u64);
        let rate = self.bytes_per_second.get();
        if rate == 0 {
            return ring::yield_now().await;
        }
        let cost = Duration::from_secs_f64(bytes as f64 / rate as f64);
        let next = self.next.get().max(ring::now()) + cost;
        self.next.set(next);
        ring::sleep_until(next).await;
    }

    /// Reads the whole blocks around byte `at`, up to `end`: the bytes from `at` on, and how many.
    async fn read(&self, file: &File, at: u64, end: u64) -> io::Result<(Lease, Range<usize>)> {
        let aligned = at / BLOCK_BYTES * BLOCK_BYTES;
        // The end may be unknown.
        let wanted = (end - aligned).min(VERIFY_BYTES as u64).next_multiple_of(BLOCK_BYTES);
        let lease = self.memory(wanted as usize).await.split(wanted as usize).0;
        let (mut read, mut lease) = file.read_at(aligned, lease).await;
        if read.is_err() && lease.len() > BLOCK {
            // So that an error is that of a block.
            (read, lease) = file.read_at(aligned, lease.split(BLOCK).0).await;
        }
        let skipped = (at - aligned) as usize;
        let have = read?.min((end - aligned) as usize).max(skipped);
        self.spend(have - skipped).await;
        Ok((lease, skipped..have))
    }

    /// The CRC-32C of a range; none if the file ends before it does.
    pub(crate) async fn checksum(&self, file: &File, range: Range<u64>) -> io::Result<Option<u32>> {
        let mut crc = Crc32c::new();
        let mut at = range.start;
        while at < range.end {
            let (lease, have) = self.read(file, at, range.end).await?;
            if have.is_empty() {
                return Ok(None);
            }
            at += have.len() as u64;
            crc.update(&lease[have]);
        }
        Ok(Some(crc.finish()))
    }

    /// As [`crate::scan::scan`], past the page cache and paced.
    pub(crate) async fn scan(
        &self,
        file: &File,
        from: Place,
        to_bytes: u64,
        mut visit: impl FnMut(&FoundBatch) -> bool,
    ) -> Scanned {
        let start = Replay { place: from, ..Replay::segment_start(from.segment, None, false) };
        let mut scanner = Scanner::new(&start);
        let mut at = from.bytes;
        while at < to_bytes {
            let (lease, have) = match self.read(file, at, to_bytes).await {
                Ok((_, have)) if have.is_empty() => break,
                Ok(read) => read,
                Err(error) => {
                    let stopped = Stopped::Unreadable(error.to_string());
                    return Scanned { place: scanner.place(), stopped };
                }
            };
            at += have.len() as u64;
            if let Some(stopped) = scanner.take(&lease[have], &mut visit) {
                return stopped;
            }
        }
        scanner.end()
    }

    /// Where the next whole batch begins at or after byte `from`, of those whose offsets lie in
    /// `offsets`.
    pub(crate) async fn next_batch(
        &self,
        file: &File,
        from: u64,
        to: Place,
        offsets: Range<i64>,
    ) -> Option<Place> {
        let mut at = from;
        // Bytes of a head that began in the piece before.
        let mut carried: Vec<u8> = Vec::new();
        while at < to.bytes {
            let Ok((lease, have)) = self.read(file, at, to.bytes).await else {
                at = (at / BLOCK_BYTES + 1) * BLOCK_BYTES;
                carried.clear();
                continue;
            };
            if have.is_empty() {
                return None;
            }
            let start = at - carried.len() as u64;
            at += have.len() as u64;
            carried.extend_from_slice(&lease[have]);
            drop(lease);
            for (index, head) in carried.windows(MAGIC_AT + 1).enumerate() {
                let position = start + index as u64;
                let Some(offset) = promising(head, to.bytes - position, &offsets) else { continue };
                let place = Place { segment: to.segment, bytes: position, offset };
                let mut batches = 0;
                let one = |_: &FoundBatch| {
                    batches += 1;
                    batches == 1
                };
                if self.scan(file, place, to.bytes, one).await.place.bytes > position {
                    return Some(place);
                }
            }
            let kept = carried.len().min(MAGIC_AT);
            carried.drain(..carried.len() - kept);
        }
        None
    }
}

/// The base offset of what may be the head of a batch, of at most `room` bytes.
fn promising(head: &[u8], room: u64, offsets: &Range<i64>) -> Option<i64> {
    let offset = i64::from_be_bytes(head[..8].try_into().expect("eight bytes"));
    let length = i32::from_be_bytes(head[8..12].try_into().expect("four bytes"));
    let fits = length > 0 && length as u64 + OVERHEAD_BYTES as u64 <= room;
    (offsets.contains(&offset) && fits && head[MAGIC_AT] <= 2).then_some(offset)
}

/// A segment as it should be.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    /// Base offset.
    pub base: i64,
    /// Its file.
    pub path: PathBuf,
    /// Where it ends; `u64::MAX` bytes: not known.
    pub end: Place,
    /// Whether the end's offset is known, too, and not only a bound.
    pub exact: bool,
    /// At least up to here it holds offsets.
    pub least: i64,
    /// Nothing is appended to it any more.
    pub sealed: bool,
    /// The last batch of it that was flushed, if its end lies further on: what a crash has torn
    /// behind that is no damage, whatever a seal says of it.
    pub flushed: Option<Known>,
    /// The epoch of the batch that ends where this does, if that is known: without a seal no
    /// checksum covers it.
    pub last_epoch: Option<i32>,
    /// The checksums, if there is a seal.
    pub strides: Vec<Stride>,
}

impl Part {
    fn damage(&self, from: Place, to: Place, reason: &str) -> Corrupt {
        Corrupt {
            segment: self.base,
            bytes: from.bytes..to.bytes,
            offsets: from.offset..to.offset,
            reason: reason.to_owned(),
        }
    }

    fn start(&self) -> Place {
        Place { segment: self.base, bytes: 0, offset: self.base }
    }

    /// Each stride's place and end.
    pub fn runs(&self) -> impl Iterator<Item = (Place, Place, u32)> {
        let mut from = self.start();
        self.strides.iter().map(move |stride| {
            let bytes = u64::from(stride.end);
            let to = Place { segment: self.base, bytes, offset: stride.next_offset };
            (std::mem::replace(&mut from, to), to, stride.crc)
        })
    }

    /// Reads it all; what is damaged, in order.
    pub async fn check(&self, verifier: &Verifier) -> Vec<Corrupt> {
        let file = match File::open(&self.path, OpenOptions::READ.direct()).await {
            Ok(file) => file,
            Err(error) => {
                let reason = match error.kind() {
                    io::ErrorKind::NotFound => "the segment's file is missing".to_owned(),
                    _ => error.to_string(),
                };
                return vec![self.damage(self.start(), self.end, &reason)];
            }
        };
        if self.strides.is_empty() {
            return self.check_batches(&file, verifier).await;
        }
        let mut damages = Vec::new();
        for (from, to, crc) in self.runs() {
            let reason = match verifier.checksum(&file, from.bytes..to.bytes).await {
                Ok(Some(found)) if found == crc => continue,
                _ if self.is_torn_only(&file, from, to, verifier).await => continue,
                Ok(Some(_)) => "the bytes do not match the checksum in the seal".to_owned(),
                Ok(None) => "the file is too short".to_owned(),
                Err(error) => error.to_string(),
            };
            damages.push(self.damage(from, to, &reason));
        }
        damages
    }

    /// Whether all that was flushed of a run of batches is whole.
    async fn is_torn_only(&self, file: &File, from: Place, to: Place, by: &Verifier) -> bool {
        let Some(flushed) = self.flushed.filter(|flushed| flushed.bytes < to.bytes) else {
            return false;
        };
        if flushed.bytes <= from.bytes {
            return true;
        }
        let mut is_it = false;
        let scanned = by
            .scan(file, from, flushed.bytes, |found| {
                let FoundBatch { batch, position, .. } = found;
                let bytes = *position..*position + u64::from(batch.bytes);
                is_it = !flushed.contradicts(&bytes, batch.next_offset(), batch.leader_epoch);
                is_it
            })
            .await;
        is_it && scanned.place.bytes == flushed.bytes
    }

    /// Whether a range that was damaged is so no more.
    pub async fn check_range(&self, damage: &Corrupt, crc: Option<u32>, by: &Verifier) -> bool {
        let Ok(file) = File::open(&self.path, OpenOptions::READ.direct()).await else {
            return false;
        };
        if let Some(crc) = crc {
            return by.checksum(&file, damage.bytes.clone()).await.ok() == Some(Some(crc));
        }
        let overlaps = |other: &Corrupt| {
            other.bytes.start < damage.bytes.end && damage.bytes.start < other.bytes.end
        };
        !self.check_batches(&file, by).await.iter().any(overlaps)
    }

    async fn check_batches(&self, file: &File, verifier: &Verifier) -> Vec<Corrupt> {
        let mut damages = Vec::new();
        let mut from = self.start();
        loop {
            let (mut before, mut last) = (from, from);
            let mut epoch = None;
            let scanned = verifier
                .scan(file, from, self.end.bytes, |found| {
                    let bytes = found.position + u64::from(found.batch.bytes);
                    let offset = found.batch.next_offset();
                    before = std::mem::replace(&mut last, Place { bytes, offset, ..from });
                    epoch = found.batch.leader_epoch;
                    true
                })
                .await;
            // How long a file was that is gone is not known.
            let ends = self.end.bytes == u64::MAX
                && scanned.stopped == Stopped::End
                && scanned.place.bytes > 0
                && scanned.place.offset >= self.least;
            let whole = ends || scanned.place.bytes == self.end.bytes;
            let other_epoch =
                self.last_epoch.zip(epoch).is_some_and(|(ours, theirs)| ours != theirs);
            let offset = scanned.place.offset;
            let as_known = match self.exact {
                true => offset == self.end.offset && !other_epoch,
                false => offset <= self.end.offset,
            };
            if whole && as_known {
                return damages;
            }
            let reason = match &scanned.stopped {
                Stopped::End if whole => describe(&Stopped::Displaced),
                stopped => describe(stopped),
            };
            let offsets = before.offset..self.end.offset;
            let search = scanned.place.bytes + 1;
            match verifier.next_batch(file, search, self.end, offsets).await {
                Some(next) => {
                    damages.push(self.damage(before, next, &reason));
                    from = next;
                }
                None => {
                    damages.push(self.damage(before, self.end, &reason));
                    return damages;
                }
            }
        }
    }
}

impl Log {
    /// What is known to be damaged, in order. The log goes on unless its state is
    /// [`LogState::Corrupt`].
    pub fn damages(&self) -> Vec<Corrupt> {
        let inner = self.inner.borrow();
        let state = match &inner.state {
            LogState::Corrupt(corrupt) => Some(corrupt.clone()),
            _ => None,
        };
        state.into_iter().chain(inner.damages.iter().cloned()).collect()
    }

    /// Whether anything is known to be damaged.
    pub fn is_damaged(&self) -> bool {
        let inner = self.inner.borrow();
        !inner.damages.is_empty() || matches!(inner.state, LogState::Corrupt(_))
    }

    /// Whether there is a segment for [`Log::take_doubted`].
    pub fn has_doubted(&self) -> bool {
        !self.inner.borrow().doubted.is_empty()
    }

    /// A segment of which only roughly is known what of it is damaged: it is to be verified.
    pub fn take_doubted(&self) -> Option<i64> {
        self.inner.borrow_mut().doubted.pop()
    }

    /// Reads all that is flushed again. What is damaged is in [`Log::damages`] after it; what was
    /// and is no more is not. Returns how many ranges were found that were not known.
    pub async fn verify(&self, verifier: &Verifier) -> usize {
        let bases: Vec<i64> = {
            let inner = self.inner.borrow();
            inner.sealed.iter().map(|sealed| sealed.0).chain([inner.active.base]).collect()
        };
        let mut new = 0;
        for base in bases {
            for _ in 0..VERIFY_BUSY_PAUSES_MAX {
                if !self.volume().is_busy() || self.volume().is_stopping() {
                    break;
                }
                ring::sleep(VERIFY_BUSY_PAUSE).await;
            }
            new += self.verify_segment(base, verifier).await;
        }
        new
    }

    /// The same for the segment at `base` alone, if it is still there.
    pub async fn verify_segment(&self, base: i64, verifier: &Verifier) -> usize {
        let generation = self.inner.borrow().generation;
        let Some(part) = self.part(base).await else { return 0 };
        let found = part.check(verifier).await;
        if found.is_empty() && part.sealed {
            self.verify_sides(&part, verifier).await;
        }
        self.note_damages(base, generation, found)
    }

    /// Indexes and seals are made anew where they are not what they were.
    async fn verify_sides(&self, part: &Part, verifier: &Verifier) {
        let sound = match self.read_seal(part.base).await {
            Some(seal) if seal.bytes == part.end.bytes => self.indexes_match(&seal).await,
            _ => Ok(false),
        };
        let result = match sound {
            Ok(true) => return,
            _ => self.rebuild(part, verifier).await,
        };
        if let Err(error) = result {
            tracing::warn!(log = %self.id(), base = part.base, %error, "indexes not made anew");
        }
    }

    /// What the segment at `base` should be, if it is still there.
    pub(crate) async fn part(&self, base: i64) -> Option<Part> {
        let seal = self.read_seal(base).await;
        let inner = self.inner.borrow();
        if !inner.is_readable() {
            return None;
        }
        let path = self.path(Kind::Log, base);
        if base == inner.active.base {
            let end = inner.flushed;
            let sound = end.segment == base && end.bytes > 0;
            let last_epoch = inner.flushed_epoch;
            return sound.then(|| Part { last_epoch, ..unsealed_part(path, end) });
        }
        let at = inner.sealed.iter().position(|sealed| sealed.0 == base)?;
        let bytes = inner.sealed[at].1;
        if let Some(seal) = seal.filter(|seal| seal.bytes == bytes) {
            return Some(sealed_part(seal, path));
        }
        let next = inner.sealed.get(at + 1).map_or(inner.first_unsealed(), |sealed| sealed.0);
        let end = Place { segment: base, bytes, offset: next };
        Some(guessed_part(path, end))
    }

    /// The segment in which opening found damage. None: where it ends cannot be told, or nothing of
    /// it was flushed.
    pub(crate) async fn corrupt_part(&self, corrupt: &Corrupt) -> Option<Part> {
        let base = corrupt.segment;
        let path = self.path(Kind::Log, base);
        let (flushed, epoch, doubtful) = {
            let inner = self.inner.borrow();
            (inner.flushed, inner.flushed_epoch, inner.doubtful)
        };
        let here = base == flushed.segment && flushed.bytes > 0;
        if !doubtful && !here && base >= flushed.segment {
            return None;
        }
        if let Some(seal) = self.read_seal(base).await {
            let known = Known { bytes: flushed.bytes, offset: flushed.offset, epoch };
            let beyond = here && !doubtful && flushed.bytes < seal.bytes;
            return Some(Part { flushed: beyond.then_some(known), ..sealed_part(seal, path) });
        }
        if here {
            return Some(Part { last_epoch: epoch, ..unsealed_part(path, flushed) });
        }
        if base > flushed.segment {
            return None;
        }
        let mut least = i64::MIN;
        let bytes = match ring::fs::size(&path).await {
            // How long it was, only its seal said.
            Ok(bytes) if is_cut_short(&path, corrupt.bytes.start, bytes).await => {
                if bytes == corrupt.bytes.start {
                    least = corrupt.offsets.start + 1;
                }
                u64::MAX
            }
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => u64::MAX,
            Err(_) => return None,
        };
        let end = Place { segment: base, bytes, offset: corrupt.offsets.end };
        Some(Part { least, ..guessed_part(path, end) })
    }

    pub(crate) async fn read_seal(&self, base: i64) -> Option<Seal> {
        let bytes = read_small(&self.path(Kind::Seal, base)).await.ok()??;
        Seal::decode(&bytes).ok().filter(|seal| seal.base == base)
    }

    /// Takes in what was found in a segment, unless it has changed meanwhile.
    fn note_damages(&self, base: i64, generation: u64, found: Vec<Corrupt>) -> usize {
        let new = {
            let mut inner = self.inner.borrow_mut();
            let there = base == inner.active.base || inner.sealed.iter().any(|s| s.0 == base);
            if inner.generation != generation || !there || !inner.is_readable() {
                return 0;
            }
            let known = |damage: &&Corrupt| !inner.damages.contains(damage);
            let new = found.iter().filter(known).count();
            inner.damages.retain(|damage| damage.segment != base);
            for damage in &found {
                tracing::error!(log = %self.id(), %damage, "stored bytes have changed");
            }
            inner.add_damages(found);
            new
        };
        self.changed.notify();
        new
    }
}

/// Whether the batch that begins at a place of a file goes on behind the file's end.
async fn is_cut_short(path: &Path, at: u64, file_bytes: u64) -> bool {
    let head = 12;
    if at + head > file_bytes {
        return true;
    }
    let Ok(file) = File::open(path, OpenOptions::READ).await else { return false };
    let lease = ring::lease(BLOCK, Class::Control).await;
    let (read, lease) = file.read_at(at, lease).await;
    if !read.is_ok_and(|read| read as u64 >= head) {
        return false;
    }
    let length = i32::from_be_bytes(lease[8..12].try_into().expect("four bytes"));
    length > 0 && at + head + length as u64 > file_bytes
}

fn sealed_part(seal: Seal, path: PathBuf) -> Part {
    let end = Place { segment: seal.base, bytes: seal.bytes, offset: seal.next_offset };
    Part { sealed: true, strides: seal.strides, ..unsealed_part(path, end) }
}

/// A finished segment whose seal is lost: the offset behind it is only a bound.
fn guessed_part(path: PathBuf, end: Place) -> Part {
    Part { exact: false, sealed: true, ..unsealed_part(path, end) }
}

/// The segment in which appending goes on, up to where it was flushed.
fn unsealed_part(path: PathBuf, end: Place) -> Part {
    let (base, strides) = (end.segment, Vec::new());
    let (flushed, last_epoch) = (None, None);
    let least = i64::MIN;
    Part { base, path, end, exact: true, least, sealed: false, flushed, last_epoch, strides }
}
