//! Batches as a producer makes them, and files as our own encoders write them.

use ::storage::batch::{CHECKED_FROM, HEADER_BYTES, Header, OVERHEAD_BYTES};
use ::storage::check::{Bounds, Checker};
use ::storage::checkpoint::{Checkpoint, Entry, Replay};
use ::storage::crc;
use ::storage::index::{AbortedEntry, IndexState, OffsetEntry, TimeEntry};
use ::storage::names::LogId;
use ::storage::position::Place;
use ::storage::producers::Producers;
use ::storage::seal::{Seal, Stride};
use zerocopy::IntoBytes;

use super::run;

const TRANSACTIONAL: i16 = 0x10;
const CONTROL: i16 = 0x20;

/// A magic 2 batch.
fn batch(base: i64, records: i32, epoch: i32, attributes: i16, body: &[u8]) -> Vec<u8> {
    let producer = if attributes == 0 { -1 } else { 42 };
    let header = Header {
        base_offset: base.into(),
        length: ((HEADER_BYTES - OVERHEAD_BYTES + body.len()) as i32).into(),
        leader_epoch: epoch.into(),
        magic: 2,
        crc: 0.into(),
        attributes: attributes.into(),
        last_offset_delta: (records - 1).into(),
        base_timestamp: 1000_i64.saturating_add(base).into(),
        max_timestamp: 1000_i64.saturating_add(base).into(),
        producer_id: producer.into(),
        producer_epoch: 1.into(),
        base_sequence: 0.into(),
        record_count: records.into(),
    };
    let mut bytes = [header.as_bytes(), body].concat();
    let crc = crc::crc32c(&bytes[CHECKED_FROM..]);
    bytes[17..21].copy_from_slice(&crc.to_be_bytes());
    bytes
}

/// The record of a transaction's marker.
fn marker(aborted: bool) -> Vec<u8> {
    let mut record = vec![0, 0, 0, 8, 0, 0, 0, u8::from(!aborted), 12, 0, 0, 0, 0, 0, 9, 0];
    record.insert(0, (record.len() * 2) as u8);
    record
}

/// A magic 0 or 1 message.
fn message(magic: u8, offset: i64) -> Vec<u8> {
    let mut checked = vec![magic, 0];
    checked.extend((magic == 1).then_some(1000i64.to_be_bytes()).into_iter().flatten());
    checked.extend_from_slice(&(-1i32).to_be_bytes());
    checked.extend_from_slice(&3i32.to_be_bytes());
    checked.extend_from_slice(b"old");
    [
        &offset.to_be_bytes()[..],
        &(checked.len() as i32 + 4).to_be_bytes(),
        &crc::crc32(&checked).to_be_bytes(),
        &checked,
    ]
    .concat()
}

/// A log: plain, transactional, its marker, a gap, the next epoch.
fn log() -> Vec<u8> {
    [
        batch(0, 3, 0, 0, b"records"),
        batch(3, 2, 0, TRANSACTIONAL, b"more"),
        batch(5, 1, 0, TRANSACTIONAL | CONTROL, &marker(true)),
        batch(9, 1, 2, 0, &[1; 30]),
    ]
    .concat()
}

fn old_log() -> Vec<u8> {
    [message(0, 0), message(1, 1), batch(2, 1, 0, 0, b"new")].concat()
}

pub fn batches() -> Vec<Vec<u8>> {
    let seed = |head: [u8; 7], log: &[u8]| [&head[..], log].concat();
    vec![
        seed([0, 0, 1, 0, 0, 0, 0], &log()),
        seed([1, 0, 2, 0, 10, 0, 2], &log()),
        seed([0x1e, 0, 0, 1, 0, 0, 5], &log()),
        seed([0, 0, 5, 0, 0, 0, 0], &old_log()),
    ]
}

pub fn markers() -> Vec<Vec<u8>> {
    vec![marker(true), marker(false)]
}

pub fn segments() -> Vec<Vec<u8>> {
    let seed = |head: [u8; 5], log: &[u8]| [&head[..], log].concat();
    vec![
        seed([0, 0, 1, 0, 0], &log()),
        seed([2, 0, 2, 9, 7], &log()),
        seed([0, 0, 3, 0, 0], &[old_log(), vec![0; 100]].concat()),
    ]
}

pub fn indexes() -> Vec<Vec<u8>> {
    let offsets = [1u32, 2]
        .map(|n| OffsetEntry { relative_offset: (n * 10).into(), position: (n * 5000).into() });
    let times = TimeEntry { timestamp: 1000.into(), relative_offset: 7.into() };
    let aborted = AbortedEntry {
        version: 0.into(),
        producer_id: 42.into(),
        first_offset: 3.into(),
        last_offset: 5.into(),
        last_stable_offset: 6.into(),
    };
    // As `grow_indexes` reads them: batches that are indexed, a save, one that fails, an abort.
    let batch = |timestamp| [0, 0x20, 0, timestamp];
    let saved = [batch(5), batch(6), batch(4), batch(7)].concat();
    let steps = [&saved[..], &[2], &saved, &[1, 3, 42, 3], &saved, &[2]].concat();
    vec![offsets.as_bytes().to_vec(), times.as_bytes().to_vec(), aborted.as_bytes().to_vec(), steps]
}

/// A batch of one record.
pub fn plain_batch(offset: i64) -> Vec<u8> {
    batch(offset, 1, 0, 0, b"record")
}

/// The same, of a leader's epoch.
pub fn batch_of_epoch(offset: i64, epoch: i32) -> Vec<u8> {
    batch(offset, 1, epoch, 0, b"record")
}

pub fn producers() -> Vec<Vec<u8>> {
    let mut producers = Producers::default();
    let mut seeds = vec![[&[0][..], &producers.encode()].concat()];
    let log = log();
    let mut checker = Checker::new(0, None, 0, Bounds::local(1 << 20));
    let mut rest = &log[..];
    while let Some(batch) = checker.feed(rest).ok().and_then(|fed| fed.batch) {
        rest = &rest[batch.bytes as usize..];
        producers.append(&batch);
        if !producers.is_empty() {
            seeds.push([&[0][..], &producers.encode()].concat());
        }
    }
    seeds
}

fn checkpoint_of(count: i32) -> Checkpoint {
    let mut read = Checkpoint { boot: 3, sequence: 9, ..Checkpoint::default() };
    for partition in 0..count {
        let id = LogId { link: "prod".into(), topic: "orders".into(), partition };
        let place = Place { segment: 0, bytes: 74, offset: 3 };
        let start = Replay::segment_start(0, Some(0), partition == 1);
        // What was saved of the indexes, and its checksums.
        let index = IndexState {
            offset_entries: 1,
            time_entries: 1,
            aborted_entries: 1,
            indexed_at: 70,
            indexed_timestamp: 1000,
            max_timestamp: 1002,
            max_timestamp_offset: 2,
            first_timestamp: 1000,
            crc: [0x1122_3344, 0x5566_7788, 0x99aa_bbcc],
        };
        let entry = Entry {
            topic_id: Some([7; 16]),
            high_watermark: 10,
            last_epoch: Some(2),
            flushed: Place { segment: 10, bytes: 91, offset: 12 },
            replay: Replay { place, index, ..start },
            turn: 2,
            doubtful: partition == 2,
            suspect: partition == 1,
            ..Entry::UNKNOWN
        };
        read.entries.insert(id, entry);
    }
    read
}

pub fn checkpoints() -> Vec<Vec<u8>> {
    let mut read = [0, 1, 3].map(checkpoint_of);
    let again = read[2].entries.keys().next().cloned();
    let never = LogId { link: "dr".into(), topic: "payments".into(), partition: 7 };
    read[2].gone.extend(again.map(|id| (id, 1)));
    read[2].gone.insert(never, 3);
    read.map(|read| [&[0][..], &read.encode()].concat()).into()
}

fn seal_at(base: i64) -> Seal {
    let (bytes, next_offset) = (91, base + 10);
    let strides = vec![Stride { end: bytes, crc: 5, next_offset }];
    let bytes = bytes.into();
    let index_bytes = [8, 12, 0];
    Seal {
        base,
        bytes,
        next_offset,
        next_base: next_offset,
        index_bytes,
        crc: 5,
        index_crc: 7,
        strides,
    }
}

pub fn seals() -> Vec<Vec<u8>> {
    let empty = Seal { strides: Vec::new(), ..seal_at(7) };
    vec![[&[0][..], &seal_at(0).encode()].concat(), [&[0][..], &empty.encode()].concat()]
}

/// As `open` reads them: flags, then files.
pub fn folders() -> Vec<Vec<u8>> {
    let (log, old) = (log(), old_log());
    let next = [batch(12, 2, 2, 0, &[2; 40]), batch(14, 1, 3, 0, &[3; 300])].concat();
    let prepared = [&log[..], &[0; 700]].concat();
    let torn = &log[..log.len() - 5];
    let epochs = b"0\n2\n0 0\n2 9\n";
    let snapshot = producers().pop().unwrap_or_default();
    let index = OffsetEntry { relative_offset: 3.into(), position: 70.into() };
    let time = TimeEntry { timestamp: 1003.into(), relative_offset: 3.into() };
    let checkpoint = checkpoint_of(1).encode();
    let segment = |base: i64, bytes: &[u8]| (0, base, bytes.to_vec());
    let side = [
        (1, 0, index.as_bytes().to_vec()),
        (2, 0, time.as_bytes().to_vec()),
        (6, 0, epochs.to_vec()),
        (4, 12, snapshot.get(1..).unwrap_or_default().to_vec()),
    ];
    let two = [segment(0, &log), segment(12, &next)];
    let folder = |flags: u8, files: &[(u8, i64, Vec<u8>)]| {
        let mut seed = vec![flags, files.len() as u8];
        for (which, base, bytes) in files {
            seed.push(*which);
            seed.extend(base.to_be_bytes());
            seed.extend(run(bytes));
        }
        seed
    };
    vec![
        folder(0, &[]),
        folder(0, &[segment(0, &log)]),
        folder(8, &[segment(0, &prepared)]),
        folder(1, &[segment(0, torn)]),
        folder(0, &[segment(0, &old)]),
        folder(16, &two),
        folder(32, &two),
        folder(48, &[&two[..], &side].concat()),
        folder(8, &[&two[..1], &side].concat()),
        folder(20, &[&two[..1], &[(5, 0, seal_at(0).encode()), (8, 0, checkpoint)]].concat()),
        folder(0, &[segment(0, &log), (9, 0, vec![0; 100]), (10, 0, plain_batch(3))]),
        folder(4, &[segment(1 << 40, &batch(1 << 40, 1, 5, 0, b"far"))]),
    ]
}

/// As `recovery` reads them: flags, slot, segments, where an empty log begins, scans.
pub fn recoveries() -> Vec<Vec<u8>> {
    let segment = |base: i64, bytes: u32, seal: &[u8]| {
        [&base.to_be_bytes()[..], &bytes.to_be_bytes(), &run(seal)].concat()
    };
    let whole = [0; 16];
    let mut seeds = Vec::new();
    for flags in 0..8 {
        let mut seed = vec![flags];
        seed.extend(run(&checkpoint_of(1).encode()));
        seed.push(2);
        seed.extend(segment(0, 91, &seal_at(0).encode()));
        seed.extend(segment(10, 4096, &[]));
        seed.push(0);
        seed.extend(whole);
        seeds.push(seed);
    }
    let mut seed = vec![0, 0, 0, 1];
    seed.extend(segment(0, 500, &[]));
    seed.extend([0, 1, 0, 0, 0, 60, 0, 4, 2]);
    seeds.push(seed);
    seeds
}
