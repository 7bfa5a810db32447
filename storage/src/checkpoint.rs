//! The checkpoint: for every partition, up to where its files are known to be on the device.
//!
//! Each shard writes one per data directory after each completed flush, into two slots in turn, so
//! that one whole slot survives a crash in the middle of the other. At start all checkpoints of all
//! shards are merged, newest entry first: the number of shards may have changed since.
//!
//! Layout, little-endian: a 40-byte head, then per partition 168 fixed bytes, the link's
//! name and the topic's name, padded to 8 bytes. The head's CRC-32 covers all that follows it.

use std::collections::BTreeMap;

use bytemuck::{Pod, Zeroable};
use thiserror::Error;

use crate::crc;
use crate::index::IndexState;
use crate::names::LogId;
use crate::position::Place;

#[cfg(not(target_endian = "little"))]
compile_error!("our own files are little-endian");

/// Slots per shard and data directory.
pub const SLOTS: u64 = 2;

/// Why bytes are no checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CheckpointError {
    /// Shorter than its head says.
    #[error("the checkpoint is cut short")]
    Short,
    /// Another file, or a format newer than this code.
    #[error("this is no checkpoint of a known version")]
    Magic,
    /// The checksum differs.
    #[error("the checkpoint's CRC does not match")]
    Crc,
    /// Whole, yet impossible.
    #[error("the checkpoint holds impossible values")]
    Values,
}

/// Where a recovery begins to read, and the state there: everything that is kept in side files is
/// saved up to this place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replay {
    /// The place; never above the flushed one.
    pub place: Place,
    /// The indexes' state there.
    pub index: IndexState,
    /// The last leader epoch there.
    pub epoch: Option<i32>,
    /// Whether a `.snapshot` named for the place's offset holds the producers there. Without one
    /// no producer was known.
    pub snapshot: bool,
}

impl Replay {
    /// The start of an empty segment.
    pub fn segment_start(base: i64, epoch: Option<i32>, snapshot: bool) -> Replay {
        let place = Place { segment: base, bytes: 0, offset: base };
        Replay { place, index: IndexState::EMPTY, epoch, snapshot }
    }
}

/// What is known of one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The source's topic id, if it has them.
    pub topic_id: Option<[u8; 16]>,
    /// The visible start.
    pub log_start_offset: i64,
    /// The source's high watermark as last told.
    pub high_watermark: i64,
    /// The leader epoch of the last flushed batch.
    pub last_epoch: Option<i32>,
    /// On the device up to here.
    pub flushed: Place,
    /// Where a recovery begins to read.
    pub replay: Replay,
    /// Which owner of the log in this run of the process says this; 0: the run before.
    pub turn: u64,
    /// Checkpoints were lost: this may be older than what was flushed, or made up. The partition is
    /// read whole, once.
    pub doubtful: bool,
    /// The device failed: what lies above the flushed place may be readable and yet not on it, so
    /// it is cut and asked for again.
    pub suspect: bool,
}

impl Entry {
    /// For a partition of which no checkpoint is left.
    pub const UNKNOWN: Entry = Entry {
        topic_id: None,
        log_start_offset: 0,
        high_watermark: 0,
        last_epoch: None,
        flushed: Place { segment: 0, bytes: 0, offset: 0 },
        replay: Replay {
            place: Place { segment: 0, bytes: 0, offset: 0 },
            index: IndexState::EMPTY,
            epoch: None,
            snapshot: false,
        },
        turn: 0,
        doubtful: true,
        suspect: false,
    };
}

/// A checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checkpoint {
    /// Counts the starts of the process.
    pub boot: u64,
    /// Counts the checkpoints of one start.
    pub sequence: u64,
    /// By partition.
    pub entries: BTreeMap<LogId, Entry>,
    /// Logs of which nothing said in turns before this one holds any more.
    pub gone: BTreeMap<LogId, u64>,
}

#[derive(Pod, Zeroable, Clone, Copy)]
#[repr(C)]
struct Head {
    magic: [u8; 8],
    crc: u32,
    count: u32,
    boot: u64,
    sequence: u64,
    body_bytes: u64,
}

#[derive(Pod, Zeroable, Clone, Copy)]
#[repr(C)]
struct Fixed {
    topic_id: [u8; 16],
    log_start_offset: i64,
    high_watermark: i64,
    turn: u64,
    flushed_segment: i64,
    flushed_bytes: u64,
    flushed_offset: i64,
    replay_segment: i64,
    replay_bytes: u64,
    replay_offset: i64,
    indexed_at: u64,
    indexed_timestamp: i64,
    max_timestamp: i64,
    max_timestamp_offset: i64,
    first_timestamp: i64,
    offset_entries: u32,
    time_entries: u32,
    aborted_entries: u32,
    replay_epoch: i32,
    last_epoch: i32,
    partition: i32,
    link_bytes: u32,
    topic_bytes: u32,
    index_crc: [u32; 3],
    flags: u32,
}

const MAGIC: [u8; 8] = *b"USCKPT03";
const HEAD_BYTES: usize = size_of::<Head>();
const FIXED_BYTES: usize = size_of::<Fixed>();
/// The checksum covers everything after itself.
const CRC_COVERS_FROM: usize = 12;
const NO_EPOCH: i32 = -1;
/// The flag of a log of which nothing is known any more.
const GONE: u32 = 4;
const DOUBTFUL: u32 = 1;
const SUSPECT: u32 = 2;
const SNAPSHOT: u32 = 8;

const _: () = assert!(HEAD_BYTES == 40);
const _: () = assert!(FIXED_BYTES == 176);

fn flag(set: bool, flag: u32) -> u32 {
    if set { flag } else { 0 }
}

impl Checkpoint {
    /// The slot's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut encoder = Encoder::for_logs(self.entries.keys().chain(self.gone.keys()));
        self.entries.iter().for_each(|(id, entry)| encoder.entry(id, entry));
        self.gone.iter().for_each(|(id, turn)| encoder.gone(id, *turn));
        encoder.finish(self.boot, self.sequence)
    }

    /// Reads a slot. What lies behind the checkpoint (an older, longer one) is ignored.
    pub fn decode(bytes: &[u8]) -> Result<Checkpoint, CheckpointError> {
        let head: Head =
            bytemuck::pod_read_unaligned(bytes.get(..HEAD_BYTES).ok_or(CheckpointError::Short)?);
        if head.magic != MAGIC {
            return Err(CheckpointError::Magic);
        }
        let end = usize::try_from(head.body_bytes).ok().and_then(|b| b.checked_add(HEAD_BYTES));
        let bytes = end.and_then(|end| bytes.get(..end)).ok_or(CheckpointError::Short)?;
        if crc::crc32(&bytes[CRC_COVERS_FROM..]) != head.crc {
            return Err(CheckpointError::Crc);
        }
        let mut rest = &bytes[HEAD_BYTES..];
        let (mut entries, mut gone) = (BTreeMap::new(), BTreeMap::new());
        for _ in 0..head.count {
            let (id, fixed) = read_fixed(&mut rest).ok_or(CheckpointError::Values)?;
            if fixed.flags & GONE != 0 {
                gone.insert(id, fixed.turn);
            } else {
                entries.insert(id, fixed.entry().ok_or(CheckpointError::Values)?);
            }
        }
        Ok(Checkpoint { boot: head.boot, sequence: head.sequence, entries, gone })
    }
}

/// Makes a slot's bytes log by log: of thousands nothing is gathered in a table first.
pub struct Encoder {
    bytes: Vec<u8>,
    count: u32,
}

impl Encoder {
    /// With room for these logs: what is large is made once, not grown.
    pub fn for_logs<'a>(ids: impl Iterator<Item = &'a LogId>) -> Encoder {
        let each = |id: &LogId| FIXED_BYTES + id.link.len() + id.topic.len() + 7;
        let mut bytes = Vec::with_capacity(HEAD_BYTES + ids.map(each).sum::<usize>());
        bytes.resize(HEAD_BYTES, 0);
        Encoder { bytes, count: 0 }
    }

    /// What is known of a log. Of each there is one entry.
    pub fn entry(&mut self, id: &LogId, entry: &Entry) {
        self.push(id, &Fixed::from_entry(id, entry));
    }

    /// Nothing said of this log in turns before this one holds any more.
    pub fn gone(&mut self, id: &LogId, turn: u64) {
        let fixed = Fixed::from_entry(id, &Entry { turn, ..Entry::UNKNOWN });
        self.push(id, &Fixed { flags: GONE, ..fixed });
    }

    /// The bytes.
    pub fn finish(mut self, boot: u64, sequence: u64) -> Vec<u8> {
        let head = Head {
            magic: MAGIC,
            crc: 0,
            count: self.count,
            boot,
            sequence,
            body_bytes: (self.bytes.len() - HEAD_BYTES) as u64,
        };
        self.bytes[..HEAD_BYTES].copy_from_slice(bytemuck::bytes_of(&head));
        let crc = crc::crc32(&self.bytes[CRC_COVERS_FROM..]);
        self.bytes[8..12].copy_from_slice(&crc.to_le_bytes());
        self.bytes
    }

    fn push(&mut self, id: &LogId, fixed: &Fixed) {
        self.bytes.extend_from_slice(bytemuck::bytes_of(fixed));
        self.bytes.extend_from_slice(id.link.as_bytes());
        self.bytes.extend_from_slice(id.topic.as_bytes());
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
        self.count += 1;
    }
}

/// One of all: for each log what its latest owner says of it, in the newest of its checkpoints that
/// does. A log whose latest owner says that what was known is over has no entry.
pub fn merge(checkpoints: Vec<Checkpoint>) -> BTreeMap<LogId, Entry> {
    /// Boot, turn and sequence, in this order.
    type Age = (u64, u64, u64);
    let mut newest: BTreeMap<LogId, (Age, Option<Entry>)> = BTreeMap::new();
    let mut hear = |id: LogId, age: Age, entry: Option<Entry>| {
        let known = newest.entry(id).or_insert((age, entry));
        if age >= known.0 {
            *known = (age, entry);
        }
    };
    for Checkpoint { boot, sequence, entries, gone } in checkpoints {
        for (id, entry) in entries {
            hear(id, (boot, entry.turn, sequence), Some(entry));
        }
        for (id, turn) in gone {
            hear(id, (boot, turn, sequence), None);
        }
    }
    newest.into_iter().filter_map(|(id, (_, entry))| Some((id, entry?))).collect()
}

impl Fixed {
    fn from_entry(id: &LogId, entry: &Entry) -> Fixed {
        let Entry { flushed, replay, .. } = entry;
        Fixed {
            topic_id: entry.topic_id.unwrap_or_default(),
            log_start_offset: entry.log_start_offset,
            high_watermark: entry.high_watermark,
            turn: entry.turn,
            flushed_segment: flushed.segment,
            flushed_bytes: flushed.bytes,
            flushed_offset: flushed.offset,
            replay_segment: replay.place.segment,
            replay_bytes: replay.place.bytes,
            replay_offset: replay.place.offset,
            indexed_at: replay.index.indexed_at,
            indexed_timestamp: replay.index.indexed_timestamp,
            max_timestamp: replay.index.max_timestamp,
            max_timestamp_offset: replay.index.max_timestamp_offset,
            first_timestamp: replay.index.first_timestamp,
            offset_entries: replay.index.offset_entries,
            time_entries: replay.index.time_entries,
            aborted_entries: replay.index.aborted_entries,
            replay_epoch: replay.epoch.unwrap_or(NO_EPOCH),
            last_epoch: entry.last_epoch.unwrap_or(NO_EPOCH),
            partition: id.partition,
            link_bytes: id.link.len() as u32,
            topic_bytes: id.topic.len() as u32,
            index_crc: replay.index.crc,
            flags: flag(entry.doubtful, DOUBTFUL)
                | flag(entry.suspect, SUSPECT)
                | flag(replay.snapshot, SNAPSHOT),
        }
    }

    fn entry(&self) -> Option<Entry> {
        let flushed = Place {
            segment: self.flushed_segment,
            bytes: self.flushed_bytes,
            offset: self.flushed_offset,
        };
        let place = Place {
            segment: self.replay_segment,
            bytes: self.replay_bytes,
            offset: self.replay_offset,
        };
        if place > flushed || place.segment < 0 || place.offset < place.segment {
            return None;
        }
        let index = IndexState {
            offset_entries: self.offset_entries,
            time_entries: self.time_entries,
            aborted_entries: self.aborted_entries,
            indexed_at: self.indexed_at,
            indexed_timestamp: self.indexed_timestamp,
            max_timestamp: self.max_timestamp,
            max_timestamp_offset: self.max_timestamp_offset,
            first_timestamp: self.first_timestamp,
            crc: self.index_crc,
        };
        let epoch = |epoch| (epoch != NO_EPOCH).then_some(epoch);
        Some(Entry {
            topic_id: (self.topic_id != [0; 16]).then_some(self.topic_id),
            log_start_offset: self.log_start_offset,
            high_watermark: self.high_watermark,
            last_epoch: epoch(self.last_epoch),
            flushed,
            replay: Replay {
                place,
                index,
                epoch: epoch(self.replay_epoch),
                snapshot: self.flags & SNAPSHOT != 0,
            },
            turn: self.turn,
            doubtful: self.flags & DOUBTFUL != 0,
            suspect: self.flags & SUSPECT != 0,
        })
    }
}

fn read_fixed(rest: &mut &[u8]) -> Option<(LogId, Fixed)> {
    let fixed: Fixed = bytemuck::pod_read_unaligned(rest.get(..FIXED_BYTES)?);
    let link_end = FIXED_BYTES.checked_add(fixed.link_bytes as usize)?;
    let topic_end = link_end.checked_add(fixed.topic_bytes as usize)?;
    let text = |range| Some(std::str::from_utf8(rest.get(range)?).ok()?.into());
    let id = LogId {
        link: text(FIXED_BYTES..link_end)?,
        topic: text(link_end..topic_end)?,
        partition: fixed.partition,
    };
    id.check().ok()?;
    *rest = rest.get(topic_end.next_multiple_of(8)..)?;
    Some((id, fixed))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry() -> impl Strategy<Value = Entry> {
        let place = (0i64..1000, 0u64..1000, 0i64..1000);
        (place, any::<Option<[u8; 16]>>(), any::<i64>(), prop::option::of(0i32..9), any::<bool>())
            .prop_map(|((segment, bytes, more), topic_id, high_watermark, epoch, snapshot)| {
                let place = Place { segment, bytes, offset: segment + more };
                let flushed = Place { bytes: bytes + 7, offset: place.offset + 3, ..place };
                let index = IndexState {
                    offset_entries: 9,
                    max_timestamp: 7,
                    crc: [1, 2, 3],
                    ..IndexState::EMPTY
                };
                Entry {
                    topic_id: topic_id.filter(|id| *id != [0; 16]),
                    log_start_offset: segment,
                    high_watermark,
                    last_epoch: epoch,
                    flushed,
                    replay: Replay { place, index, epoch, snapshot },
                    turn: bytes,
                    doubtful: snapshot,
                    suspect: !snapshot,
                }
            })
    }

    fn checkpoint() -> impl Strategy<Value = Checkpoint> {
        let id = ("[a-z]{1,9}", "[a-zA-Z0-9._-]{3,20}", 0i32..100).prop_map(
            |(link, topic, partition): (String, String, _)| LogId {
                link: link.into(),
                topic: topic.into(),
                partition,
            },
        );
        let gone = prop::collection::btree_map("[a-z]{1,9}", any::<u64>(), 0..3);
        (any::<u64>(), any::<u64>(), prop::collection::btree_map(id, entry(), 0..8), gone).prop_map(
            |(boot, sequence, entries, gone)| {
                let id =
                    |link: String| LogId { link: link.into(), topic: "gone".into(), partition: 7 };
                let gone = gone.into_iter().map(|(link, turn)| (id(link), turn)).collect();
                Checkpoint { boot, sequence, entries, gone }
            },
        )
    }

    proptest! {
        #[test]
        fn checkpoints_come_back(
            checkpoint in checkpoint(),
            behind in prop::collection::vec(any::<u8>(), 0..50),
        ) {
            let mut bytes = checkpoint.encode();
            bytes.extend(behind);
            prop_assert_eq!(Checkpoint::decode(&bytes), Ok(checkpoint));
        }

        #[test]
        fn a_torn_or_flipped_slot_is_refused(
            checkpoint in checkpoint(),
            at in any::<prop::sample::Index>(),
            bit in 0u8..8,
        ) {
            let mut bytes = checkpoint.encode();
            let at = at.index(bytes.len());
            prop_assert!(Checkpoint::decode(&bytes[..at]).is_err());
            bytes[at] ^= 1 << bit;
            prop_assert!(Checkpoint::decode(&bytes).is_err());
        }
    }

    #[test]
    fn the_latest_owners_newest_entry_wins() {
        let id = |p| LogId { link: "l".into(), topic: "t".into(), partition: p };
        let entry = |turn, offset| {
            let flushed = Place { segment: 0, bytes: 10, offset };
            Entry { flushed, turn, doubtful: false, ..Entry::UNKNOWN }
        };
        let of = |boot, sequence, list: &[(i32, u64, i64)]| Checkpoint {
            boot,
            sequence,
            entries: list.iter().map(|&(p, turn, offset)| (id(p), entry(turn, offset))).collect(),
            ..Checkpoint::default()
        };
        let gone = [(id(4), 2), (id(5), 2)].into();
        let merged = merge(vec![
            of(2, 1, &[(0, 1, 20), (1, 1, 5), (3, 2, 8), (5, 3, 11)]),
            of(1, 900, &[(0, 9, 30), (1, 7, 3), (2, 1, 7)]),
            of(2, 3, &[(1, 1, 4)]),
            // Another shard, which has counted further, had these before.
            of(2, 500, &[(3, 1, 9), (4, 1, 10), (5, 1, 12)]),
            Checkpoint { gone, ..of(2, 2, &[]) },
        ]);
        let offsets: Vec<_> =
            merged.iter().map(|(id, e)| (id.partition, e.flushed.offset)).collect();
        assert_eq!(offsets, [(0, 20), (1, 4), (2, 7), (3, 8), (5, 11)]);
    }
}
