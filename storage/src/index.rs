//! The three index files of a segment, in Kafka's formats and by Kafka's rules.
//!
//! - `.index`: 8-byte entries, offset relative to the segment's base (u32) and byte position (u32).
//!   An entry names the *last* offset of a batch and where that batch begins. One is made for the
//!   first batch that begins more than 4,096 bytes after the last indexed one.
//! - `.timeindex`: 12-byte entries, the largest timestamp so far (i64) and the relative last offset
//!   of the batch that has it (u32). One is made together with each offset entry if the timestamp
//!   grew, and a last one when the segment is rolled or closed.
//! - `.txnindex`: 34-byte entries, version 0 (i16), producer id, first offset, last offset and last
//!   stable offset (i64 each), for each aborted transaction whose marker lies in the segment.
//!
//! Big-endian. Entries gather in memory and are appended to the files by a background task; the
//! first two can be rebuilt from the log at any time.

use zerocopy::byteorder::big_endian::{I16, I64, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::batch::Batch;
use crate::crc::{combine, crc32c};
use crate::limits::{INDEX_BYTES_MAX, INDEX_ENTRIES_PENDING, INDEX_INTERVAL_BYTES};

/// An entry of `.index`.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct OffsetEntry {
    /// Last offset of the batch, relative to the segment's base.
    pub relative_offset: U32,
    /// Where the batch begins.
    pub position: U32,
}

/// An entry of `.timeindex`.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct TimeEntry {
    /// The largest timestamp so far, ms.
    pub timestamp: I64,
    /// Last offset of the batch that has it, relative to the segment's base.
    pub relative_offset: U32,
}

/// An entry of `.txnindex`.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct AbortedEntry {
    /// 0.
    pub version: I16,
    /// Who aborted.
    pub producer_id: I64,
    /// First offset of the transaction.
    pub first_offset: I64,
    /// Offset of its marker.
    pub last_offset: I64,
    /// The last stable offset once the marker was appended.
    pub last_stable_offset: I64,
}

const _: () = assert!(size_of::<OffsetEntry>() == 8);
const _: () = assert!(size_of::<TimeEntry>() == 12);
const _: () = assert!(size_of::<AbortedEntry>() == 34);

/// What a segment's indexes have come to; small enough to stand in a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexState {
    /// Entries of `.index`, saved and pending.
    pub offset_entries: u32,
    /// Entries of `.timeindex`, saved and pending.
    pub time_entries: u32,
    /// Entries of `.txnindex`, saved and pending.
    pub aborted_entries: u32,
    /// Where the last indexed batch begins.
    pub indexed_at: u64,
    /// The largest timestamp in `.timeindex`, -1 if none.
    pub indexed_timestamp: i64,
    /// The largest timestamp seen, -1 if none.
    pub max_timestamp: i64,
    /// Last offset of the batch that has it.
    pub max_timestamp_offset: i64,
    /// Largest timestamp of the segment's first batch: rolling by time counts from it.
    pub first_timestamp: i64,
    /// The CRC-32C of each of the three files, once everything pending is saved.
    pub crc: [u32; 3],
}

impl IndexState {
    /// An empty segment's.
    pub const EMPTY: IndexState = IndexState {
        offset_entries: 0,
        time_entries: 0,
        aborted_entries: 0,
        indexed_at: 0,
        indexed_timestamp: -1,
        max_timestamp: -1,
        max_timestamp_offset: -1,
        first_timestamp: -1,
        crc: [0; 3],
    };

    /// Bytes of the three files once everything pending is saved.
    pub fn file_bytes(&self) -> [u64; 3] {
        [
            u64::from(self.offset_entries) * 8,
            u64::from(self.time_entries) * 12,
            u64::from(self.aborted_entries) * 34,
        ]
    }

    /// The CRC-32C of the three files, one behind another.
    pub fn joined_crc(&self) -> u32 {
        let files = self.crc.into_iter().zip(self.file_bytes());
        files.fold(0, |crc, (next, bytes)| combine(crc, next, bytes))
    }
}

/// The indexes of a segment that is being appended to.
pub struct Indexes {
    base: i64,
    /// Its checksums leave out what is pending.
    state: IndexState,
    offsets: Vec<OffsetEntry>,
    times: Vec<TimeEntry>,
    aborted: Vec<AbortedEntry>,
}

/// Bytes to append to the three files, each at the given position.
pub struct IndexBytes {
    /// For `.index`.
    pub offsets: (u64, Vec<u8>),
    /// For `.timeindex`.
    pub times: (u64, Vec<u8>),
    /// For `.txnindex`.
    pub aborted: (u64, Vec<u8>),
    /// The checksums of the files without them.
    crc_before: [u32; 3],
}

impl Indexes {
    /// The indexes of the segment at `base`, continued from `state`.
    pub fn new(base: i64, state: IndexState) -> Indexes {
        Indexes { base, state, offsets: Vec::new(), times: Vec::new(), aborted: Vec::new() }
    }

    /// A batch was appended at `position`.
    pub fn append(&mut self, position: u64, batch: &Batch) {
        if position == 0 {
            self.state.first_timestamp = batch.max_timestamp;
        }
        if batch.max_timestamp > self.state.max_timestamp {
            self.state.max_timestamp = batch.max_timestamp;
            self.state.max_timestamp_offset = batch.last_offset;
        }
        if position - self.state.indexed_at > INDEX_INTERVAL_BYTES {
            let position_field = u32::try_from(position).expect("a segment is below 2 GiB");
            self.offsets.push(OffsetEntry {
                relative_offset: self.relative(batch.last_offset).into(),
                position: position_field.into(),
            });
            self.state.offset_entries += 1;
            self.state.indexed_at = position;
            self.append_time();
        }
    }

    /// A transaction whose marker lies in this segment was aborted.
    pub fn append_aborted(&mut self, entry: AbortedEntry) {
        self.aborted.push(entry);
        self.state.aborted_entries += 1;
    }

    /// The segment ends: the largest timestamp gets its entry.
    pub fn finish(&mut self) {
        self.append_time();
    }

    /// Whether either file would grow beyond Kafka's default size. One slot of the time index is
    /// kept for [`Indexes::finish`].
    pub fn full(&self) -> bool {
        self.state.offset_entries as usize >= INDEX_BYTES_MAX / 8
            || self.state.time_entries as usize >= INDEX_BYTES_MAX / 12 - 1
    }

    /// What they have come to.
    pub fn state(&self) -> IndexState {
        IndexState { crc: self.crc(), ..self.state }
    }

    /// Whether so much waits in memory that it should be saved.
    pub fn wants_saving(&self) -> bool {
        self.waiting() >= INDEX_ENTRIES_PENDING
    }

    /// Entries that wait in memory.
    pub fn waiting(&self) -> usize {
        self.offsets.len() + self.times.len() + self.aborted.len()
    }

    /// Takes what is pending, to be appended to the files.
    pub fn take(&mut self) -> IndexBytes {
        let pending = self.pending();
        self.state.crc = self.crc();
        // Their room goes with them: where logs are thousands, all of it is much.
        (self.offsets, self.times, self.aborted) = Default::default();
        pending
    }

    /// What was taken could not be appended: it comes before everything since.
    pub fn put_back(&mut self, taken: &IndexBytes) {
        self.offsets.splice(0..0, read_offsets(&taken.offsets.1).iter().copied());
        self.times.splice(0..0, read_times(&taken.times.1).iter().copied());
        self.aborted.splice(0..0, read_aborted(&taken.aborted.1).iter().copied());
        self.state.crc = taken.crc_before;
    }

    /// What is pending.
    pub fn pending(&self) -> IndexBytes {
        let [offsets_end, times_end, aborted_end] = self.state.file_bytes();
        let offsets = self.offsets.as_bytes().to_vec();
        let times = self.times.as_bytes().to_vec();
        let aborted = self.aborted.as_bytes().to_vec();
        IndexBytes {
            offsets: (offsets_end - offsets.len() as u64, offsets),
            times: (times_end - times.len() as u64, times),
            aborted: (aborted_end - aborted.len() as u64, aborted),
            crc_before: self.state.crc,
        }
    }

    /// The checksums of the files, once everything pending is saved.
    fn crc(&self) -> [u32; 3] {
        let pending = [self.offsets.as_bytes(), self.times.as_bytes(), self.aborted.as_bytes()];
        let mut crc = self.state.crc;
        for (crc, bytes) in crc.iter_mut().zip(pending) {
            *crc = combine(*crc, crc32c(bytes), bytes.len() as u64);
        }
        crc
    }

    fn append_time(&mut self) {
        if self.state.max_timestamp > self.state.indexed_timestamp {
            self.times.push(TimeEntry {
                timestamp: self.state.max_timestamp.into(),
                relative_offset: self.relative(self.state.max_timestamp_offset).into(),
            });
            self.state.time_entries += 1;
            self.state.indexed_timestamp = self.state.max_timestamp;
        }
    }

    fn relative(&self, offset: i64) -> u32 {
        let relative = offset - self.base;
        assert!(fits(self.base, offset), "offset {offset} does not fit the segment");
        relative as u32
    }
}

/// Whether `offset` can be indexed in the segment at `base`: Kafka reads it as a positive i32.
pub fn fits(base: i64, offset: i64) -> bool {
    (0..=i64::from(i32::MAX)).contains(&(offset - base))
}

/// The entries of an `.index` file; a trailing partial entry is left out.
pub fn read_offsets(bytes: &[u8]) -> &[OffsetEntry] {
    let whole = bytes.len() / 8;
    <[OffsetEntry]>::ref_from_bytes(&bytes[..whole * 8]).expect("whole entries")
}

/// The entries of a `.timeindex` file; a trailing partial entry is left out.
pub fn read_times(bytes: &[u8]) -> &[TimeEntry] {
    let whole = bytes.len() / 12;
    <[TimeEntry]>::ref_from_bytes(&bytes[..whole * 12]).expect("whole entries")
}

/// The entries of a `.txnindex` file; a trailing partial entry is left out.
pub fn read_aborted(bytes: &[u8]) -> &[AbortedEntry] {
    let whole = bytes.len() / 34;
    <[AbortedEntry]>::ref_from_bytes(&bytes[..whole * 34]).expect("whole entries")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::check::{Bounds, Checker};
    use crate::testing::Shape;

    fn batch(base: i64, body: usize, timestamp: i64) -> Batch {
        let bytes = Shape { body, timestamp, ..Shape::at(base) }.bytes();
        let mut checker = Checker::new(base, None, 0, Bounds::local(1 << 20));
        checker.feed(&bytes).unwrap().batch.unwrap()
    }

    #[test]
    fn what_is_taken_leaves_no_room_behind() {
        let mut indexes = Indexes::new(0, IndexState::EMPTY);
        for at in 0..100u64 {
            indexes.append(at * 5000, &batch(at as i64, 10, at as i64));
        }
        let waiting = indexes.waiting();
        let taken = indexes.take();
        assert!(waiting > 100 && indexes.waiting() == 0);
        assert_eq!(taken.offsets.1.len() / 8 + taken.times.1.len() / 12, waiting);
        assert_eq!((indexes.offsets.capacity(), indexes.times.capacity()), (0, 0));
        let state = indexes.state();
        indexes.put_back(&taken);
        assert_eq!((indexes.waiting(), indexes.state()), (waiting, state));
        assert_eq!(indexes.take().offsets, taken.offsets);
        assert_eq!(indexes.state(), state);
    }

    proptest! {
        /// What `kafka-dump-log` checks: every offset entry names the last offset of the batch at
        /// its position; time entries go up, and name the batch that has that timestamp.
        #[test]
        fn entries_agree_with_the_log(
            shapes in prop::collection::vec((1usize..3000, 0i64..50), 1..60),
            save_every in 1usize..10,
        ) {
            let base = 1000;
            let mut indexes = Indexes::new(base, IndexState::EMPTY);
            let (mut position, mut log) = (0, Vec::new());
            let mut files = [Vec::new(), Vec::new()];
            let save = |indexes: &mut Indexes, files: &mut [Vec<u8>; 2]| {
                let bytes = indexes.take();
                assert_eq!(bytes.offsets.0, files[0].len() as u64);
                assert_eq!(bytes.times.0, files[1].len() as u64);
                files[0].extend(bytes.offsets.1);
                files[1].extend(bytes.times.1);
            };
            for (i, &(body, timestamp)) in shapes.iter().enumerate() {
                let batch = batch(base + i as i64, body, timestamp);
                indexes.append(position, &batch);
                log.push((position, batch));
                position += u64::from(batch.bytes);
                if i % save_every == 0 {
                    save(&mut indexes, &mut files);
                }
            }
            indexes.finish();
            indexes.finish();
            save(&mut indexes, &mut files);
            let state = indexes.state();
            prop_assert_eq!(state.file_bytes()[0], files[0].len() as u64);
            prop_assert_eq!(state.crc, [crc32c(&files[0]), crc32c(&files[1]), 0]);
            prop_assert_eq!(state.joined_crc(), crc32c(&files.concat()));
            let mut before = 0;
            for entry in read_offsets(&files[0]) {
                let at = u64::from(entry.position.get());
                let (_, batch) = log.iter().find(|(p, _)| *p == at).expect("a batch begins there");
                prop_assert_eq!(batch.last_offset - base, i64::from(entry.relative_offset.get()));
                prop_assert!(at - before > INDEX_INTERVAL_BYTES);
                before = at;
            }
            let times = read_times(&files[1]);
            prop_assert!(times.windows(2).all(|w| w[0].timestamp.get() < w[1].timestamp.get()));
            for entry in times {
                let offset = base + i64::from(entry.relative_offset.get());
                let (_, batch) = log.iter().find(|(_, b)| b.last_offset == offset).unwrap();
                prop_assert_eq!(batch.max_timestamp, entry.timestamp.get());
            }
            let max = log.iter().map(|(_, b)| b.max_timestamp).max();
            prop_assert_eq!(times.last().map(|t| t.timestamp.get()), max);
        }
    }

    #[test]
    fn relative_offsets_stay_below_two_to_the_31() {
        assert!(fits(5, 5 + i64::from(i32::MAX)));
        assert!(!fits(5, 6 + i64::from(i32::MAX)));
        assert!(!fits(5, 4));
    }
}
