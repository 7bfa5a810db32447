//! Record batches of magic 2, written byte by byte.
//!
//! [`encode_batch`] makes one batch from records; [`generated_batch`] makes one of an exact size
//! from a seed. The CRC of a batch covers everything from the attributes on, so base offset,
//! batch length and partition leader epoch may be patched in place without touching it
//! ([`place`]). Formats: KIP-98, `DefaultRecordBatch` and `DefaultRecord` of Apache Kafka.

/// Bytes of a batch header, from the base offset to the record count.
pub const HEADER_BYTES: usize = 61;
/// Bytes in front of what the batch length field counts: base offset and the field itself.
pub const LENGTH_PREFIX_BYTES: usize = 12;
/// Where the bytes covered by the CRC begin: the attributes.
pub const CRC_COVERS_FROM: usize = 21;

const LEADER_EPOCH_AT: usize = 12;
const MAGIC_AT: usize = 16;
const CRC_AT: usize = 17;
const LAST_OFFSET_DELTA_AT: usize = 23;
pub(crate) const BASE_TIMESTAMP_AT: usize = 27;
pub(crate) const MAX_TIMESTAMP_AT: usize = 35;

/// CRC-32C, as batches of magic 2 carry it.
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}

/// One record to put into a batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// Milliseconds after the batch's base timestamp.
    pub timestamp_delta_ms: i64,
    /// The key; `None` is Kafka's null.
    pub key: Option<Vec<u8>>,
    /// The value; `None` is Kafka's null (a tombstone where topics are compacted).
    pub value: Option<Vec<u8>>,
    /// Header names with their values; `None` is Kafka's null.
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}

/// The header fields of a batch that its records do not decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchFields {
    /// Offset of the first record.
    pub base_offset: i64,
    /// Epoch of the leader that is said to have appended the batch.
    pub leader_epoch: i32,
    /// Codec, timestamp type, transactional and control bits, as on the wire. The records are
    /// written uncompressed whatever the codec bits say.
    pub attributes: i16,
    /// Timestamp that the records' deltas count from, ms since 1970.
    pub base_timestamp_ms: i64,
    /// Producer id, −1 for none.
    pub producer_id: i64,
    /// Producer epoch, −1 for none.
    pub producer_epoch: i16,
    /// Sequence number of the first record, −1 for none.
    pub base_sequence: i32,
}

impl Default for BatchFields {
    fn default() -> Self {
        BatchFields {
            base_offset: 0,
            leader_epoch: 0,
            attributes: 0,
            base_timestamp_ms: 0,
            producer_id: -1,
            producer_epoch: -1,
            base_sequence: -1,
        }
    }
}

/// Encodes one batch; its offsets are consecutive from `fields.base_offset`.
///
/// # Panics
/// If there is no record, or the batch would not fit the format's 2 GiB.
pub fn encode_batch(records: &[Record], fields: &BatchFields) -> Vec<u8> {
    assert!(!records.is_empty(), "a batch holds at least one record");
    let count = i32::try_from(records.len()).expect("record count fits the format");
    let max_delta = records.iter().map(|r| r.timestamp_delta_ms).max().unwrap_or(0);

    let mut out = vec![0; MAGIC_AT];
    out.push(2);
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&fields.attributes.to_be_bytes());
    out.extend_from_slice(&(count - 1).to_be_bytes());
    out.extend_from_slice(&fields.base_timestamp_ms.to_be_bytes());
    out.extend_from_slice(&(fields.base_timestamp_ms + max_delta).to_be_bytes());
    out.extend_from_slice(&fields.producer_id.to_be_bytes());
    out.extend_from_slice(&fields.producer_epoch.to_be_bytes());
    out.extend_from_slice(&fields.base_sequence.to_be_bytes());
    out.extend_from_slice(&count.to_be_bytes());
    debug_assert_eq!(out.len(), HEADER_BYTES);

    let mut body = Vec::new();
    for (delta, record) in (0..).zip(records) {
        body.clear();
        encode_record_body(record, delta, &mut body);
        put_varint(&mut out, body.len() as i64);
        out.extend_from_slice(&body);
    }
    place(&mut out, fields.base_offset, fields.leader_epoch);
    let length = i32::try_from(out.len() - LENGTH_PREFIX_BYTES).expect("batch below 2 GiB");
    out[8..12].copy_from_slice(&length.to_be_bytes());
    seal(&mut out);
    out
}

/// Writes base offset and leader epoch into a batch; the CRC covers neither.
pub fn place(batch: &mut [u8], base_offset: i64, leader_epoch: i32) {
    batch[0..8].copy_from_slice(&base_offset.to_be_bytes());
    batch[LEADER_EPOCH_AT..MAGIC_AT].copy_from_slice(&leader_epoch.to_be_bytes());
}

/// Computes and writes a batch's CRC.
pub fn seal(batch: &mut [u8]) {
    let crc = crc32c(&batch[CRC_COVERS_FROM..]);
    batch[CRC_AT..CRC_COVERS_FROM].copy_from_slice(&crc.to_be_bytes());
}

/// The fields of a batch header that the source looks at in batches given to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub base_offset: i64,
    pub bytes: usize,
    pub last_offset_delta: i32,
    pub crc: u32,
    pub max_timestamp_ms: i64,
}

/// Reads the header of the batch at the start of `bytes`, if it is whole and of magic 2.
pub(crate) fn header(bytes: &[u8]) -> Option<Header> {
    if bytes.len() < HEADER_BYTES || bytes[MAGIC_AT] != 2 {
        return None;
    }
    let length = usize::try_from(i32_at(bytes, 8)).ok()?;
    let total = length.checked_add(LENGTH_PREFIX_BYTES)?;
    if total < HEADER_BYTES || total > bytes.len() {
        return None;
    }
    Some(Header {
        base_offset: i64_at(bytes, 0),
        bytes: total,
        last_offset_delta: i32_at(bytes, LAST_OFFSET_DELTA_AT),
        crc: i32_at(bytes, CRC_AT).cast_unsigned(),
        max_timestamp_ms: i64_at(bytes, MAX_TIMESTAMP_AT),
    })
}

/// The least size of a generated batch of so many records.
pub fn generated_batch_bytes_min(records: usize) -> usize {
    // Length, attributes, two deltas, key, value and header count of an empty record.
    HEADER_BYTES + records * 20
}

/// A batch of exactly `bytes` bytes with `records` records, its content drawn from `seed`. Base
/// offset, leader epoch and timestamps are 0. `None` if there is no such batch: without a record,
/// below [`generated_batch_bytes_min`], and in the rare case of a single record whose size the
/// format cannot express (a length field that grows by a byte skips a size).
pub fn generated_batch(seed: u64, records: usize, bytes: usize) -> Option<Vec<u8>> {
    let sizes = record_sizes(records, bytes)?;
    let mut random = Random(seed);
    let mut list = Vec::with_capacity(records);
    for (index, size) in (0..).zip(sizes) {
        let (key_bytes, value_bytes) = key_and_value_bytes(index, size);
        let mut fill = |length: usize| {
            let mut bytes = vec![0; length];
            random.fill(&mut bytes);
            bytes
        };
        let key = key_bytes.map(&mut fill);
        let value = Some(fill(value_bytes));
        list.push(Record { timestamp_delta_ms: 0, key, value, headers: Vec::new() });
    }
    let batch = encode_batch(&list, &BatchFields::default());
    assert_eq!(batch.len(), bytes, "generated batches have the size asked for");
    Some(batch)
}

/// Sizes of the records of a generated batch: all about the same, each one possible.
pub(crate) fn record_sizes(records: usize, batch_bytes: usize) -> Option<Vec<usize>> {
    if records == 0 || batch_bytes < generated_batch_bytes_min(records) {
        return None;
    }
    let body_bytes = batch_bytes - HEADER_BYTES;
    let (mut sizes, mut from) = (Vec::with_capacity(records), 0);
    for index in 1..=records {
        let size = body_bytes * index / records - from;
        // Impossible sizes stand alone; the byte that is left goes to the next record.
        let size = if is_record_size(size) { size } else { size - 1 };
        from += size;
        sizes.push(size);
    }
    if from < body_bytes {
        sizes[records - 1] += 1;
        let last = sizes[records - 1];
        let others = &mut sizes[..records - 1];
        if let Some(other) = others.iter_mut().find(|size| is_record_size(**size + 1)) {
            *other += 1;
            sizes[records - 1] = last - 1;
        } else {
            *others.iter_mut().find(|size| is_record_size(**size - 1))? -= 1;
            sizes[records - 1] = last + 1;
        }
    }
    Some(sizes)
}

/// Whether a record can be so long, its length field included.
fn is_record_size(bytes: usize) -> bool {
    (1..=5).any(|length| bytes > length && varint_bytes((bytes - length) as i64) == length)
}

/// Key and value lengths that make a record exactly `bytes` long on the wire.
fn key_and_value_bytes(offset_delta: i64, bytes: usize) -> (Option<usize>, usize) {
    for slack in 0..12 {
        // A null key takes as much room as an empty one; both spellings occur.
        let key: Option<usize> = usize::checked_sub(slack, 1);
        let mut value = bytes.saturating_sub(6 + slack);
        for _ in 0..12 {
            let body = 1
                + 1
                + varint_bytes(offset_delta)
                + key.map_or(1, |length| varint_bytes(length as i64) + length)
                + varint_bytes(value as i64)
                + value
                + 1;
            match (body + varint_bytes(body as i64)).cmp(&bytes) {
                std::cmp::Ordering::Equal => return (key, value),
                std::cmp::Ordering::Greater if value > 0 => value -= 1,
                _ => break,
            }
        }
    }
    unreachable!("a key of some bytes meets every possible size above the minimum")
}

fn encode_record_body(record: &Record, offset_delta: i64, out: &mut Vec<u8>) {
    out.push(0);
    put_varint(out, record.timestamp_delta_ms);
    put_varint(out, offset_delta);
    put_nullable(out, record.key.as_deref());
    put_nullable(out, record.value.as_deref());
    put_varint(out, record.headers.len() as i64);
    for (name, value) in &record.headers {
        put_nullable(out, Some(name.as_bytes()));
        put_nullable(out, value.as_deref());
    }
}

fn put_nullable(out: &mut Vec<u8>, bytes: Option<&[u8]>) {
    match bytes {
        None => put_varint(out, -1),
        Some(bytes) => {
            put_varint(out, bytes.len() as i64);
            out.extend_from_slice(bytes);
        }
    }
}

/// Zigzag varint, as inside records.
fn put_varint(out: &mut Vec<u8>, value: i64) {
    let mut rest = ((value << 1) ^ (value >> 63)).cast_unsigned();
    while rest >= 0x80 {
        out.push((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

fn varint_bytes(value: i64) -> usize {
    let zigzag = ((value << 1) ^ (value >> 63)).cast_unsigned();
    (64 - zigzag.leading_zeros() as usize).div_ceil(7).max(1)
}

pub(crate) fn i32_at(bytes: &[u8], at: usize) -> i32 {
    i32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

pub(crate) fn i64_at(bytes: &[u8], at: usize) -> i64 {
    i64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// SplitMix64: small, seeded, the same everywhere.
#[derive(Clone, Debug)]
pub(crate) struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let word = self.next().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }
}
