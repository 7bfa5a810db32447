//! Requests read and responses written, byte by byte.
//!
//! [`Reader`] takes requests apart: every length is checked against the bytes that are there
//! before anything is allocated. [`Response`] gathers a response from bytes of its own and ranges
//! of shared memory, and sends both with vectored writes, so that records are never copied here.

use crate::log::BatchSink;
use crate::payload::PayloadRing;
use std::io::{self, IoSlice, Write};
use std::ops::Range;
use std::sync::Arc;
use uuid::Uuid;

/// A request that cannot be read. The connection is closed on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed request")]
pub(crate) struct Malformed;

/// Reads a request's fields from the front.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
    /// Compact strings and arrays, tagged fields (KIP-482).
    pub flexible: bool,
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { rest: bytes, flexible: false }
    }

    fn take(&mut self, bytes: usize) -> Result<&'a [u8], Malformed> {
        let (head, rest) = self.rest.split_at_checked(bytes).ok_or(Malformed)?;
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        self.take(N)?.try_into().map_err(|_| Malformed)
    }

    pub fn i8(&mut self) -> Result<i8, Malformed> {
        Ok(i8::from_be_bytes(self.array()?))
    }

    pub fn i16(&mut self) -> Result<i16, Malformed> {
        Ok(i16::from_be_bytes(self.array()?))
    }

    pub fn i32(&mut self) -> Result<i32, Malformed> {
        Ok(i32::from_be_bytes(self.array()?))
    }

    pub fn i64(&mut self) -> Result<i64, Malformed> {
        Ok(i64::from_be_bytes(self.array()?))
    }

    pub fn uuid(&mut self) -> Result<Uuid, Malformed> {
        Ok(Uuid::from_bytes(self.array()?))
    }

    fn unsigned_varint(&mut self) -> Result<u32, Malformed> {
        let mut value = 0;
        for shift in (0..35).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return u32::try_from(value).map_err(|_| Malformed);
            }
        }
        Err(Malformed)
    }

    /// A nullable string in the old or the compact form.
    pub fn nullable_string(&mut self) -> Result<Option<&'a str>, Malformed> {
        let length = match self.flexible {
            true => self.unsigned_varint()?.checked_sub(1).map(|n| n as usize),
            false => usize::try_from(self.i16()?).ok(),
        };
        let Some(length) = length else { return Ok(None) };
        std::str::from_utf8(self.take(length)?).map(Some).map_err(|_| Malformed)
    }

    /// A string that may not be null.
    pub fn string(&mut self) -> Result<&'a str, Malformed> {
        self.nullable_string()?.ok_or(Malformed)
    }

    /// The length of a nullable array; `None` is null. Never above the bytes that are left, as
    /// each element has at least one.
    pub fn array_length(&mut self) -> Result<Option<usize>, Malformed> {
        let length = match self.flexible {
            true => self.unsigned_varint()?.checked_sub(1).map(|n| n as usize),
            false => usize::try_from(self.i32()?).ok(),
        };
        match length {
            Some(length) if length > self.rest.len() => Err(Malformed),
            length => Ok(length),
        }
    }

    /// Skips tagged fields, where there are any.
    pub fn skip_tags(&mut self) -> Result<(), Malformed> {
        if !self.flexible {
            return Ok(());
        }
        for _ in 0..self.unsigned_varint()? {
            self.unsigned_varint()?;
            let bytes = self.unsigned_varint()?;
            self.take(bytes as usize)?;
        }
        Ok(())
    }
}

/// Payload pieces shorter than this are copied: an iovec of their own would cost more.
const SHARED_BYTES_MIN: usize = 1024;
/// Pieces handed to the kernel at once, at most (its own limit is 1024).
const SLICES_MAX: usize = 512;

/// A response under construction. It begins with the frame's length, filled in at the end.
#[derive(Debug, Default)]
pub(crate) struct Response {
    own: Vec<u8>,
    pieces: Vec<Piece>,
    /// Rings that pieces point into; a response rarely needs more than a few.
    rings: Vec<Arc<PayloadRing>>,
    /// Own bytes that already belong to a piece.
    own_done: usize,
    shared_bytes: usize,
    /// Compact strings and arrays, tagged fields (KIP-482).
    pub flexible: bool,
}

#[derive(Clone, Debug)]
enum Piece {
    Own(Range<usize>),
    Shared { ring: usize, range: Range<usize> },
}

impl Response {
    /// Empties it and begins a frame with the given correlation id.
    pub fn begin(&mut self, correlation_id: i32, flexible: bool) {
        self.own.clear();
        self.pieces.clear();
        self.rings.clear();
        (self.own_done, self.shared_bytes, self.flexible) = (0, 0, flexible);
        self.i32(0);
        self.i32(correlation_id);
    }

    pub fn bytes(&mut self, bytes: &[u8]) {
        self.own.extend_from_slice(bytes);
    }

    pub fn i16(&mut self, value: i16) {
        self.bytes(&value.to_be_bytes());
    }

    pub fn i32(&mut self, value: i32) {
        self.bytes(&value.to_be_bytes());
    }

    pub fn i64(&mut self, value: i64) {
        self.bytes(&value.to_be_bytes());
    }

    pub fn unsigned_varint(&mut self, mut value: u32) {
        while value >= 0x80 {
            self.own.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.own.push(value as u8);
    }

    /// The length of an array or of records; −1 is null. Whatever a fault asks for is written.
    pub fn length(&mut self, length: i32) {
        match self.flexible {
            true => self.unsigned_varint(length.wrapping_add(1).cast_unsigned()),
            false => self.i32(length),
        }
    }

    pub fn string(&mut self, text: &str) {
        match self.flexible {
            true => self.unsigned_varint(text.len() as u32 + 1),
            false => self.i16(text.len() as i16),
        }
        self.bytes(text.as_bytes());
    }

    /// An empty set of tagged fields, where there may be some.
    pub fn no_tags(&mut self) {
        if self.flexible {
            self.own.push(0);
        }
    }

    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.own.len() + self.shared_bytes
    }

    /// The bytes of its own, where there are no others.
    pub fn as_own(&self) -> &[u8] {
        debug_assert!(self.pieces.is_empty());
        &self.own
    }

    /// Closes the frame: nothing may be added after it.
    pub fn finish(&mut self) {
        self.close_own();
        let length = i32::try_from(self.len() - 4).expect("responses stay below 2 GiB");
        self.own[..4].copy_from_slice(&length.to_be_bytes());
    }

    /// Replaces the finished frame's bytes by others, gathered in one piece.
    pub fn edit(&mut self, change: impl FnOnce(&mut Vec<u8>)) {
        let mut whole = std::mem::take(self).into_bytes();
        change(&mut whole);
        self.own = whole;
        self.pieces.clear();
        (self.own_done, self.shared_bytes) = (0, 0);
        self.close_own();
    }

    /// The finished frame in one piece.
    pub fn into_bytes(self) -> Vec<u8> {
        let mut whole = Vec::with_capacity(self.len());
        for piece in &self.pieces {
            whole.extend_from_slice(self.piece(piece));
        }
        whole
    }

    /// Sends everything.
    pub fn send(&self, to: &mut impl Write) -> io::Result<()> {
        let mut next = 0;
        let mut skip = 0;
        while next < self.pieces.len() {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let mut used = 0;
            for (slot, piece) in slices.iter_mut().zip(&self.pieces[next..]) {
                let bytes = self.piece(piece);
                *slot = IoSlice::new(if used == 0 { &bytes[skip..] } else { bytes });
                used += 1;
            }
            let mut sent = match to.write_vectored(&slices[..used]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(sent) => sent,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            for slice in &slices[..used] {
                if sent < slice.len() {
                    break;
                }
                sent -= slice.len();
                next += 1;
                skip = 0;
            }
            skip += sent;
        }
        Ok(())
    }

    fn piece(&self, piece: &Piece) -> &[u8] {
        match piece {
            Piece::Own(range) => &self.own[range.clone()],
            Piece::Shared { ring, range } => &self.rings[*ring].bytes()[range.clone()],
        }
    }

    fn close_own(&mut self) {
        if self.own_done < self.own.len() {
            self.pieces.push(Piece::Own(self.own_done..self.own.len()));
            self.own_done = self.own.len();
        }
    }
}

impl BatchSink for Response {
    fn own(&mut self, bytes: &[u8]) {
        self.bytes(bytes);
    }

    fn shared(&mut self, ring: &Arc<PayloadRing>, range: Range<usize>) {
        if range.len() < SHARED_BYTES_MIN {
            self.bytes(&ring.bytes()[range]);
            return;
        }
        self.close_own();
        let known = self.rings.last().is_some_and(|last| Arc::ptr_eq(last, ring));
        if !known {
            self.rings.push(Arc::clone(ring));
        }
        self.shared_bytes += range.len();
        self.pieces.push(Piece::Shared { ring: self.rings.len() - 1, range });
    }
}
