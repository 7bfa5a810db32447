//! Batches for tests.

use zerocopy::IntoBytes;

use crate::batch::{CHECKED_FROM, HEADER_BYTES, Header, OVERHEAD_BYTES};
use crate::crc;

/// What a test wants to say about a batch; the rest is filled in.
#[derive(Clone, Debug)]
pub struct Shape {
    pub base: i64,
    pub records: i32,
    pub body: usize,
    pub epoch: i32,
    pub timestamp: i64,
    pub producer: Option<(i64, i16, i32)>,
    pub attributes: i16,
    pub fill: u8,
}

impl Shape {
    pub fn at(base: i64) -> Shape {
        Shape {
            base,
            records: 1,
            body: 40,
            epoch: 0,
            timestamp: 1000 + base,
            producer: None,
            attributes: 0,
            fill: base as u8,
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let body: Vec<u8> = (0..self.body).map(|i| self.fill.wrapping_add(i as u8)).collect();
        encode(self, &body)
    }
}

/// A one-record batch at each of `offsets`, one after the other.
pub fn run(offsets: std::ops::Range<i64>, body: usize) -> Vec<u8> {
    offsets.flat_map(|base| Shape { body, ..Shape::at(base) }.bytes()).collect()
}

fn encode(shape: &Shape, body: &[u8]) -> Vec<u8> {
    let (producer_id, producer_epoch, base_sequence) = shape.producer.unwrap_or((-1, -1, -1));
    let header = Header {
        base_offset: shape.base.into(),
        length: ((HEADER_BYTES - OVERHEAD_BYTES + body.len()) as i32).into(),
        leader_epoch: shape.epoch.into(),
        magic: 2,
        crc: 0.into(),
        attributes: shape.attributes.into(),
        last_offset_delta: (shape.records - 1).into(),
        base_timestamp: shape.timestamp.into(),
        max_timestamp: shape.timestamp.into(),
        producer_id: producer_id.into(),
        producer_epoch: producer_epoch.into(),
        base_sequence: base_sequence.into(),
        record_count: shape.records.into(),
    };
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(body);
    let crc = crc::crc32c(&bytes[CHECKED_FROM..]);
    bytes[17..21].copy_from_slice(&crc.to_be_bytes());
    bytes
}

/// A transaction marker with coordinator epoch 9.
pub fn marker(base: i64, epoch: i32, producer: i64, producer_epoch: i16, aborted: bool) -> Vec<u8> {
    let mut record = vec![0, 0, 0, 8, 0, 0, 0, u8::from(!aborted), 12, 0, 0];
    record.extend_from_slice(&9i32.to_be_bytes());
    record.push(0);
    let mut body = vec![(record.len() * 2) as u8];
    body.extend_from_slice(&record);
    let shape = Shape {
        epoch,
        producer: Some((producer, producer_epoch, -1)),
        attributes: 0x30,
        ..Shape::at(base)
    };
    encode(&shape, &body)
}

/// A magic 0 or 1 message with a value of `value` bytes.
pub fn legacy(magic: u8, offset: i64, timestamp: i64, value: usize) -> Vec<u8> {
    let mut checked = vec![magic, 0];
    if magic == 1 {
        checked.extend_from_slice(&timestamp.to_be_bytes());
    }
    checked.extend_from_slice(&(-1i32).to_be_bytes());
    checked.extend_from_slice(&(value as i32).to_be_bytes());
    checked.extend(std::iter::repeat_n(7u8, value));
    let mut bytes = offset.to_be_bytes().to_vec();
    bytes.extend_from_slice(&(checked.len() as i32 + 4).to_be_bytes());
    bytes.extend_from_slice(&crc::crc32(&checked).to_be_bytes());
    bytes.extend_from_slice(&checked);
    bytes
}
