//! What lies on disk or goes there: batches, segments, side files, our own small files.

use crate::input::{Input, Pieces};
use crate::memory;
use ::storage::batch::{self, Batch, CHECKED_FROM, HEADER_BYTES, MAGIC_AT, OVERHEAD_BYTES};
use ::storage::check::{AppendError, Bounds, Checker};
use ::storage::checkpoint::{self, Checkpoint, Replay};
use ::storage::epochs::Epochs;
use ::storage::index::{self, IndexState, Indexes};
use ::storage::limits::BATCH_BYTES_MAX;
use ::storage::position::Place;
use ::storage::producers::Producers;
use ::storage::recovery::{Found, FoundSegment, ReadFrom, Recovery, Scan, Scanned, Step, Stopped};
use ::storage::scan::Scanner;
use ::storage::seal::{Seal, SealBuilder};
use ::storage::{crc, names};

/// Puts the checksums of the batches right whose lengths make sense, and returns the bytes.
pub fn with_checksums(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let mut at = 0;
    while let Some(head) = bytes.get(at..at + MAGIC_AT + 1) {
        let length = i32::from_be_bytes(head[8..12].try_into().expect("four bytes"));
        let magic = head[MAGIC_AT];
        let whole = usize::try_from(length).ok().map(|length| length + OVERHEAD_BYTES);
        let Some(batch) = whole.and_then(|whole| bytes.get_mut(at..at + whole)) else { break };
        match magic {
            2 if batch.len() >= HEADER_BYTES => {
                let crc = crc::crc32c(&batch[CHECKED_FROM..]);
                batch[17..21].copy_from_slice(&crc.to_be_bytes());
            }
            0 | 1 if batch.len() >= batch::LEGACY_HEADER_BYTES => {
                let crc = crc::crc32(&batch[batch::LEGACY_CHECKED_FROM..]);
                batch[12..16].copy_from_slice(&crc.to_be_bytes());
            }
            _ => {}
        }
        at += batch.len();
    }
    bytes
}

/// Puts a checksum right that covers all behind it.
pub fn with_checksum(bytes: &[u8], at: usize, of: fn(&[u8]) -> u32, big_endian: bool) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    if bytes.len() >= at + 4 {
        let crc = of(&bytes[at + 4..]);
        let crc = if big_endian { crc.to_be_bytes() } else { crc.to_le_bytes() };
        bytes[at..at + 4].copy_from_slice(&crc);
    }
    bytes
}

/// What a checker made of an input.
type Checked = (Vec<(Batch, u64, u32)>, Option<AppendError>);

/// Flags, where to cut, what batches are held against; then batches. Flag 1 leaves their checksums
/// as they are.
pub fn batches(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let (flags, cuts) = (input.byte(), u16::from_be_bytes(input.take()));
    let [expected, mark] = [input.byte(), input.byte()].map(i64::from);
    let [last_epoch, leader] = [input.byte(), input.byte()].map(i32::from);
    let bounds = Bounds {
        high_watermark: if mark == 0 { i64::MAX } else { mark },
        leader_epoch: if flags & 2 == 0 { -1 } else { leader },
        batch_bytes_max: if flags & 4 == 0 { BATCH_BYTES_MAX } else { 1024 },
    };
    let checker = || {
        let epoch = (flags & 8 != 0).then_some(last_epoch);
        let mut checker = Checker::new(expected, epoch, 0, bounds);
        if flags & 16 != 0 {
            checker.allow_straddle(0);
        }
        checker
    };
    let rest = input.rest();
    let bytes = if flags & 1 == 0 { with_checksums(rest) } else { rest.to_vec() };
    memory::none(|| check(checker(), [&bytes[..]].into_iter(), |_, _, _| {}).is_none());
    let gather = |seen: &mut Vec<_>, batch: &Batch, at, crc| seen.push((*batch, at, crc));
    let mut whole: Checked = Default::default();
    whole.1 = check(checker(), [&bytes[..]].into_iter(), |b, at, crc| {
        gather(&mut whole.0, b, at, crc);
    });
    let mut cut: Checked = Default::default();
    cut.1 = check(checker(), Pieces::new(&bytes, cuts), |b, at, crc| {
        gather(&mut cut.0, b, at, crc);
    });
    assert_eq!(whole, cut, "cuts change what is accepted");
    judge(&bytes, &whole.0, &bounds, expected, flags & 16 != 0);
    follow(expected, &bytes, &whole.0);
}

/// Feeds a checker until the pieces or its patience end.
fn check<'a>(
    mut checker: Checker,
    pieces: impl Iterator<Item = &'a [u8]>,
    mut seen: impl FnMut(&Batch, u64, u32),
) -> Option<AppendError> {
    for mut piece in pieces {
        while !piece.is_empty() {
            let at = checker.position();
            match checker.feed(piece) {
                Ok(fed) => {
                    assert!(
                        fed.consumed > 0 && (fed.consumed == piece.len() || fed.batch.is_some())
                    );
                    piece = &piece[fed.consumed..];
                    if let Some(batch) = fed.batch {
                        seen(&batch, at, checker.file_crc(&batch));
                    }
                }
                Err(error) => {
                    checker.rewind();
                    assert!(!checker.in_batch() && checker.position() == at);
                    return Some(error);
                }
            }
        }
    }
    None
}

/// What must be true of every batch that was accepted.
fn judge(
    bytes: &[u8],
    batches: &[(Batch, u64, u32)],
    bounds: &Bounds,
    expected: i64,
    straddles: bool,
) {
    let mut next = expected;
    for (n, (batch, at, file_crc)) in batches.iter().enumerate() {
        let from = *at as usize;
        let own = &bytes[from..from + batch.bytes as usize];
        assert_eq!(*file_crc, crc::crc32c(own));
        let checked = match batch.magic {
            2 => crc::crc32c(&own[CHECKED_FROM..]),
            _ => crc::crc32(&own[batch::LEGACY_CHECKED_FROM..]),
        };
        assert_eq!(batch.crc, checked);
        assert!(batch.bytes <= bounds.batch_bytes_max);
        assert!(batch.last_offset >= batch.base_offset && batch.last_offset >= next);
        assert!(batch.last_offset < bounds.high_watermark);
        assert!(batch.base_offset >= next || (straddles && n == 0));
        assert!(bounds.leader_epoch < 0 || batch.leader_epoch <= Some(bounds.leader_epoch));
        next = batch.next_offset();
    }
}

/// What an append does with accepted batches: epochs, producers, indexes, the seal.
fn follow(base: i64, bytes: &[u8], batches: &[(Batch, u64, u32)]) {
    let mut epochs = Epochs::default();
    let mut indexes = Indexes::new(base, IndexState::EMPTY);
    let mut seal = SealBuilder::starting_at(0);
    let mut producers = Producers::default();
    memory::bounded(bytes.len(), || {
        for (batch, at, file_crc) in batches {
            if batch.base_offset < base || !index::fits(base, batch.last_offset) {
                break;
            }
            if let Some(epoch) = batch.leader_epoch {
                epochs.assign(epoch, batch.base_offset);
            }
            if let Some(aborted) = producers.append(batch) {
                indexes.append_aborted(aborted);
            }
            indexes.append(*at, batch);
            seal.append_checksum(*file_crc, batch.bytes.into(), batch.next_offset());
        }
        indexes.finish();
    });
    assert_eq!(Epochs::parse(&epochs.format()), Some(epochs));
    assert_eq!(Producers::decode(&producers.encode()).as_ref(), Ok(&producers));
    let saved = indexes.take();
    assert!(index::read_times(&saved.times.1).is_sorted_by_key(|entry| entry.timestamp.get()));
    assert_eq!(index::read_offsets(&saved.offsets.1).len() * 8, saved.offsets.1.len());
}

/// The records of a control batch.
pub fn marker(bytes: &[u8]) {
    memory::none(|| batch::parse_marker(bytes));
}

/// Flags, where to cut, the place to begin at; then a segment from there on.
pub fn segment(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let (flags, cuts) = (input.byte(), u16::from_be_bytes(input.take()));
    let offset = i64::from(input.byte());
    let place = Place { segment: 0, bytes: input.byte().into(), offset };
    let epoch = (flags & 2 != 0).then_some(1);
    let from = Replay { place, ..Replay::segment_start(0, epoch, false) };
    let bytes = if flags & 1 == 0 { with_checksums(input.rest()) } else { input.rest().to_vec() };
    memory::none(|| scan(&from, [&bytes[..]].into_iter(), |_, _| {}).place);
    let (mut batches, mut cut_batches) = (Vec::new(), Vec::new());
    let whole = scan(&from, [&bytes[..]].into_iter(), |batch, at| batches.push((batch, at)));
    let cut = scan(&from, Pieces::new(&bytes, cuts), |batch, at| cut_batches.push((batch, at)));
    assert_eq!((&whole, &batches), (&cut, &cut_batches), "cuts change what is found");
    let found: u64 = batches.iter().map(|(batch, _)| u64::from(batch.bytes)).sum();
    assert_eq!(whole.place.bytes, place.bytes + found);
    assert!(whole.place.offset >= place.offset && found <= bytes.len() as u64);
    let last = batches.last().map_or(place.offset, |(batch, _)| batch.next_offset());
    assert_eq!(whole.place.offset, last);
}

fn scan<'a>(
    from: &Replay,
    pieces: impl Iterator<Item = &'a [u8]>,
    mut seen: impl FnMut(Batch, u64),
) -> Scanned {
    let mut scanner = Scanner::new(from);
    for piece in pieces {
        let visited = scanner.take(piece, &mut |found| {
            seen(found.batch, found.position);
            true
        });
        if let Some(scanned) = visited {
            return scanned;
        }
    }
    scanner.end()
}

/// Offset, time and transaction index: entries as they are read, and what appending to files makes
/// of them and of their checksums.
pub fn indexes(bytes: &[u8]) {
    grow_indexes(bytes);
    memory::none(|| {
        let offsets = index::read_offsets(bytes);
        assert_eq!(offsets.len(), bytes.len() / 8);
        let times = index::read_times(bytes);
        assert_eq!(times.len(), bytes.len() / 12);
        let aborted = index::read_aborted(bytes);
        assert_eq!(aborted.len(), bytes.len() / 34);
        offsets.iter().map(|entry| u64::from(entry.position.get())).sum::<u64>()
    });
}

/// Steps of indexing, each a choice and what it needs: a batch, an aborted transaction, a save that
/// succeeds, one that fails. The checksums are those of the files, whenever they are asked for.
fn grow_indexes(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut indexes = Indexes::new(0, IndexState::EMPTY);
    let mut files: [Vec<u8>; 3] = Default::default();
    let (mut position, mut offset) = (0, 0);
    while !input.is_empty() {
        match input.byte() % 4 {
            0 => {
                let step = u16::from_be_bytes(input.take());
                let timestamp = i64::from(input.byte());
                let batch = timed_batch(offset, timestamp);
                indexes.append(position, &batch);
                position += u64::from(step);
                offset = batch.next_offset();
            }
            1 => {
                let [first_offset, producer_id] = [input.byte(), input.byte()].map(i64::from);
                indexes.append_aborted(index::AbortedEntry {
                    version: 0.into(),
                    producer_id: producer_id.into(),
                    first_offset: first_offset.into(),
                    last_offset: offset.into(),
                    last_stable_offset: offset.into(),
                });
            }
            2 => save(&mut indexes, &mut files),
            _ => {
                let taken = indexes.take();
                indexes.put_back(&taken);
            }
        }
    }
    let told = indexes.state();
    save(&mut indexes, &mut files);
    assert_eq!(indexes.state(), told, "saving changes what they will have come to");
    assert_eq!(told.crc, files.each_ref().map(|file| crc::crc32c(file)));
    assert_eq!(told.file_bytes(), files.each_ref().map(|file| file.len() as u64));
    assert_eq!(told.joined_crc(), crc::crc32c(&files.concat()));
}

/// Appends what is pending to the files.
fn save(indexes: &mut Indexes, files: &mut [Vec<u8>; 3]) {
    let taken = indexes.take();
    for (file, (at, bytes)) in files.iter_mut().zip([taken.offsets, taken.times, taken.aborted]) {
        assert_eq!(file.len() as u64, at);
        file.extend(bytes);
    }
}

/// A batch of one record.
fn timed_batch(offset: i64, timestamp: i64) -> Batch {
    let bytes = crate::seeds::plain_batch(offset);
    let fed = Checker::new(offset, None, 0, Bounds::local(BATCH_BYTES_MAX)).feed(&bytes);
    let batch = fed.expect("a good batch").batch.expect("a whole one");
    Batch { max_timestamp: timestamp, ..batch }
}

/// Flags, then a `.snapshot`. Flag 1 leaves its checksum as it is.
pub fn producers(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let flags = input.byte();
    let rest = input.rest();
    let bytes =
        if flags & 1 == 0 { with_checksum(rest, 2, crc::crc32c, true) } else { rest.to_vec() };
    let Ok(mut producers) = memory::bounded(bytes.len(), || Producers::decode(&bytes)) else {
        return;
    };
    let again = producers.encode();
    assert_eq!(Producers::decode(&again).as_ref(), Ok(&producers));
    assert_eq!(producers.first_open(), producers.open_transactions().next().map(|open| open.0));
    assert!(producers.open_transactions().count() <= producers.len());
    producers.expire(i64::MAX);
    producers.expire(i64::MIN);
    assert!(producers.open_transactions().count() <= producers.len());
}

/// A `leader-epoch-checkpoint`.
pub fn epochs(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Some(epochs) = memory::bounded(bytes.len(), || Epochs::parse(text)) else { return };
    assert_eq!(Epochs::parse(&epochs.format()).as_ref(), Some(&epochs));
    assert!(epochs.entries().is_sorted_by(|a, b| a.0 < b.0 && a.1 < b.1));
    for &(epoch, start) in epochs.entries() {
        let end = epochs.end_offset(epoch, i64::MAX).expect("it is there");
        assert!(end.0 == epoch && end.1 > start || start == i64::MAX);
        let mut cut = epochs.clone();
        cut.truncate_end(start);
        assert!(cut.last() < Some(epoch));
        let mut cut = epochs.clone();
        cut.truncate_start(start);
        assert_eq!(cut.entries().first(), Some(&(epoch, start)));
    }
}

/// Names of files and folders, topic ids, `partition.metadata`.
pub fn names(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    memory::bounded(bytes.len(), || {
        if let Some((offset, kind)) = names::parse_file(text) {
            assert_eq!(kind.name(offset), text);
        }
        if let Some((topic, partition)) = names::parse_folder(text) {
            assert_eq!(format!("{topic}-{partition}"), text);
            assert!(partition >= 0 && !topic.contains('/'));
        }
        if let Some(id) = names::parse_topic_id(text) {
            assert_eq!(names::format_topic_id(id), text);
        }
        if let Some(id) = names::parse_metadata(text) {
            assert_eq!(names::parse_metadata(&names::format_metadata(id)), Some(id));
        }
    });
}

/// Flags, then a slot. Flag 1 leaves its checksum as it is; else its length is put right, too.
pub fn checkpoint(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let flags = input.byte();
    let mut bytes = input.rest().to_vec();
    if flags & 1 == 0 && bytes.len() >= 40 {
        let body_bytes = (bytes.len() - 40) as u64;
        bytes[32..40].copy_from_slice(&body_bytes.to_le_bytes());
        bytes = with_checksum(&bytes, 8, crc::crc32, false);
    }
    let Ok(read) = memory::bounded(bytes.len(), || Checkpoint::decode(&bytes)) else { return };
    assert_eq!(Checkpoint::decode(&read.encode()).as_ref(), Ok(&read));
    for (id, entry) in &read.entries {
        assert!(id.check().is_ok(), "{id}");
        assert!(entry.replay.place <= entry.flushed && entry.replay.place.segment >= 0);
    }
    let older = Checkpoint { boot: 0, ..Checkpoint::default() };
    let mut left = read.entries.clone();
    left.retain(|id, entry| read.gone.get(id).is_none_or(|turn| *turn < entry.turn));
    assert_eq!(checkpoint::merge(vec![older, read]), left);
}

/// Flags, then a seal. Flag 1 leaves its checksum as it is.
pub fn seal(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let (flags, rest) = (input.byte(), input.rest());
    let bytes =
        if flags & 1 == 0 { with_checksum(rest, 8, crc::crc32, false) } else { rest.to_vec() };
    let Ok(seal) = memory::bounded(bytes.len(), || Seal::decode(&bytes)) else { return };
    assert_eq!(Seal::decode(&seal.encode()).as_ref(), Ok(&seal));
    assert!(0 <= seal.base && seal.base <= seal.next_offset && seal.next_offset <= seal.next_base);
}

/// A partition's folder after a start: flags, a checkpoint, then for each segment its base, its
/// length and its seal; then what the scans find.
pub fn recovery(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let flags = input.byte();
    let slot = with_checksum(input.run(), 8, crc::crc32, false);
    let entry = Checkpoint::decode(&slot).ok().and_then(|read| read.entries.into_values().next());
    let mut segments = Vec::new();
    for _ in 0..input.byte() % 8 {
        // Names have twenty digits: bases are never negative.
        let base = input.long() & i64::MAX;
        let bytes = u64::from(u32::from_be_bytes(input.take()));
        let sealed = with_checksum(input.run(), 8, crc::crc32, false);
        let seal = Seal::decode(&sealed).ok().filter(|seal| seal.base == base);
        let has_seal = !sealed.is_empty();
        let as_sealed = seal.as_ref().filter(|_| flags & 4 == 0);
        let index_bytes = as_sealed.map_or([0; 3], |seal| seal.index_bytes.map(u64::from));
        segments.push(FoundSegment { base, bytes, seal, has_seal, index_bytes, indexed: None });
    }
    segments.sort_by_key(|segment| segment.base);
    segments.dedup_by_key(|segment| segment.base);
    let start_offset = i64::from(input.byte());
    let lost = flags & 1 != 0;
    let read_from = match flags & 0b1010 {
        0 => ReadFrom::Segment,
        2 => ReadFrom::Replay,
        _ => ReadFrom::Start,
    };
    let count = segments.len();
    let visible_start = entry.map_or(0, |entry| entry.log_start_offset);
    let found = Found { segments, entry, lost, read_from, start_offset, visible_start };
    memory::bounded(4 * bytes.len(), || {
        let mut recovery = Recovery::new(found);
        for _ in 0..=2 * count {
            match recovery.step() {
                Step::Scan(scan) => recovery.scanned(scanned(&mut input, &scan)),
                Step::Done(verdict) => {
                    if verdict.corrupt.is_some() {
                        assert!(verdict.cut.is_empty() && verdict.remove.is_empty());
                        assert!(verdict.reseal.is_empty() && verdict.unseal.is_none());
                    }
                    return;
                }
            }
        }
        panic!("a recovery without end");
    });
}

/// A scan's result: it never goes back, and never beyond what it was given.
fn scanned(input: &mut Input<'_>, scan: &Scan) -> Scanned {
    let from = scan.from.place;
    assert!(from.bytes <= scan.to_bytes);
    let whole = input.byte() & 1 == 0;
    let room = scan.to_bytes - from.bytes;
    let more = u64::from(u32::from_be_bytes(input.take()));
    let bytes = from.bytes + if whole { room } else { more % (room + 1) };
    let offset = from.offset.saturating_add(i64::from(u16::from_be_bytes(input.take())));
    let stopped = match input.byte() % 4 {
        0 => Stopped::End,
        1 => Stopped::Zeros,
        2 => Stopped::Bad(AppendError::NoMemory),
        _ => Stopped::Unreadable(String::new()),
    };
    Scanned { place: Place { bytes, offset, ..from }, stopped }
}
