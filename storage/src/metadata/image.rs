//! The bytes of a snapshot: a head, and the records in the order of their keys.
//!
//! Little-endian. Head, 40 bytes: magic, format u32, count of records u32, number of the commit
//! u64, body bytes u64, CRC-64/NVME u64 of all of the head before it and of the body. Per record:
//! bytes of the key u32, bytes of the value u32, key (UTF-8), value. Keys go strictly up. What lies
//! behind the body is left over from a longer state and means nothing.

use std::collections::BTreeMap;
use std::io::{self, Read};

use thiserror::Error;

use super::Change;
use crate::crc::crc64;

const MAGIC: &[u8; 8] = b"USMETADA";
/// Raised whenever older code would misread what newer code writes.
pub const FORMAT: u32 = 1;
const HEAD_BYTES: usize = 40;
/// Where the checksum lies in the head: behind everything else.
const CHECKSUM: usize = 32;
/// The two lengths in front of a record.
const LENGTHS_BYTES: usize = 8;
/// All records together: what is stored is some hundred bytes for each topic and partition.
pub const BODY_BYTES_MAX: u64 = 1 << 30;

/// How a file differs from one that was written whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Damage {
    /// Cut short.
    #[error("it has {found} bytes of {expected}")]
    Short {
        /// As long as it is.
        found: u64,
        /// As long as it should be at least.
        expected: u64,
    },
    /// The first bytes are not ours.
    #[error("it does not begin as a metadata store does")]
    Magic,
    /// More than is ever written.
    #[error("it says that it has {0} bytes of records")]
    Length(u64),
    /// Bytes have turned.
    #[error("its checksum is {found:016x}, that of its bytes is {expected:016x}")]
    Checksum {
        /// In the file.
        found: u64,
        /// Of what the file holds.
        expected: u64,
    },
    /// The checksum fits, the records do not.
    #[error("its records do not make sense at byte {0}")]
    Record(u64),
}

/// Why there is no image.
#[derive(Debug)]
pub enum ReadError {
    /// It could not be read.
    Io(io::Error),
    /// It is of another format.
    Format(u32),
    /// It is not as it was written.
    Damage(Damage),
}

impl From<Damage> for ReadError {
    fn from(damage: Damage) -> ReadError {
        ReadError::Damage(damage)
    }
}

/// The whole state, as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Head and body, checked.
    bytes: Vec<u8>,
}

impl Image {
    /// No records.
    pub fn empty() -> Image {
        encode(0, &BTreeMap::new())
    }

    /// Reads and checks a file of `file_bytes`, allocating no more than that.
    pub fn read(mut file: impl Read, file_bytes: u64) -> Result<Image, ReadError> {
        let short = |expected| Damage::Short { found: file_bytes, expected };
        if file_bytes < HEAD_BYTES as u64 {
            return Err(short(HEAD_BYTES as u64).into());
        }
        let mut head = [0; HEAD_BYTES];
        file.read_exact(&mut head).map_err(ReadError::Io)?;
        if !head.starts_with(MAGIC) {
            return Err(Damage::Magic.into());
        }
        match u32_at(&head, 8) {
            FORMAT => {}
            found => return Err(ReadError::Format(found)),
        }
        let body_bytes = u64_at(&head, 24);
        if body_bytes > BODY_BYTES_MAX {
            return Err(Damage::Length(body_bytes).into());
        }
        let expected = HEAD_BYTES as u64 + body_bytes;
        if file_bytes < expected {
            return Err(short(expected).into());
        }
        let mut bytes = vec![0; expected as usize];
        bytes[..HEAD_BYTES].copy_from_slice(&head);
        file.read_exact(&mut bytes[HEAD_BYTES..]).map_err(ReadError::Io)?;
        let (found, expected) = (u64_at(&bytes, CHECKSUM), checksum(&bytes));
        if found != expected {
            return Err(Damage::Checksum { found, expected }.into());
        }
        check_records(&bytes)?;
        Ok(Image { bytes })
    }

    /// The state after `changes`, in their order, by the next commit.
    ///
    /// # Errors
    /// How many bytes the records would have, when that is more than [`BODY_BYTES_MAX`].
    pub fn with(&self, changes: &[Change]) -> Result<Image, u64> {
        let mut records: BTreeMap<&str, &[u8]> = self.records().collect();
        for change in changes {
            match &change.value {
                Some(value) => drop(records.insert(&change.key, value)),
                None => drop(records.remove(&*change.key)),
            }
        }
        match body_bytes(&records) {
            bytes if bytes > BODY_BYTES_MAX => Err(bytes),
            _ => Ok(encode(u64_at(&self.bytes, 16).saturating_add(1), &records)),
        }
    }

    /// Keys and values, in the order of the keys.
    pub fn records(&self) -> impl Iterator<Item = (&str, &[u8])> {
        let mut rest = &self.bytes[HEAD_BYTES..];
        std::iter::from_fn(move || {
            let (key, value, behind) = split_record(rest)?;
            rest = behind;
            Some((key, value))
        })
    }

    /// What a file holds of it.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

fn encode(sequence: u64, records: &BTreeMap<&str, &[u8]>) -> Image {
    let body = body_bytes(records);
    assert!(body <= BODY_BYTES_MAX, "no length of a record overflows");
    let mut bytes = Vec::with_capacity(HEAD_BYTES + body as usize);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&FORMAT.to_le_bytes());
    bytes.extend_from_slice(&(records.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&sequence.to_le_bytes());
    bytes.extend_from_slice(&body.to_le_bytes());
    bytes.extend_from_slice(&[0; HEAD_BYTES - CHECKSUM]);
    for (key, value) in records {
        bytes.extend_from_slice(&(key.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&(value.len() as u32).to_le_bytes());
        bytes.extend_from_slice(key.as_bytes());
        bytes.extend_from_slice(value);
    }
    assert_eq!(bytes.len(), HEAD_BYTES + body as usize);
    let checksum = checksum(&bytes);
    bytes[CHECKSUM..HEAD_BYTES].copy_from_slice(&checksum.to_le_bytes());
    Image { bytes }
}

fn body_bytes(records: &BTreeMap<&str, &[u8]>) -> u64 {
    records.iter().map(|(key, value)| (LENGTHS_BYTES + key.len() + value.len()) as u64).sum()
}

fn checksum(bytes: &[u8]) -> u64 {
    crc64(&[&bytes[..CHECKSUM], &bytes[HEAD_BYTES..]])
}

/// Every record is whole, each key above the one before, and there are as many as the head says.
fn check_records(bytes: &[u8]) -> Result<(), Damage> {
    let mut rest = &bytes[HEAD_BYTES..];
    let (mut count, mut last) = (0, None);
    while !rest.is_empty() {
        let damage = Damage::Record((bytes.len() - rest.len()) as u64);
        let (key, _, behind) = split_record(rest).ok_or(damage)?;
        if last >= Some(key) {
            return Err(damage);
        }
        (rest, last) = (behind, Some(key));
        count += 1;
    }
    match u32_at(bytes, 12) == count {
        true => Ok(()),
        false => Err(Damage::Record(bytes.len() as u64)),
    }
}

/// The first record's key and value, and what follows it.
fn split_record(bytes: &[u8]) -> Option<(&str, &[u8], &[u8])> {
    let (lengths, rest) = bytes.split_at_checked(LENGTHS_BYTES)?;
    let (key, rest) = rest.split_at_checked(u32_at(lengths, 0) as usize)?;
    let (value, rest) = rest.split_at_checked(u32_at(lengths, 4) as usize)?;
    Some((std::str::from_utf8(key).ok()?, value, rest))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
