//! Fields of a frame, read from pieces of any size.
//!
//! A field of which `input` holds only the beginning is kept, and completed by the next piece:
//! every read answers `None` then, having used `input` up, and is repeated as it was. What is left
//! of the frame is counted, and every length checked against it.

use super::ParseError;

/// Reads fields. One read at a time may be incomplete.
#[derive(Debug)]
pub struct Fields {
    /// Lengths are varints, and structs end in tagged fields.
    flexible: bool,
    /// Bytes of the frame in front of us, the beginning that is kept included.
    left: usize,
    kept: [u8; FIELD_BYTES_MAX],
    kept_bytes: usize,
    /// A varint of which the first bytes have come.
    varint: u32,
    shift: u32,
    tags: Tags,
}

/// The longest field of fixed size: what a partition begins with.
const FIELD_BYTES_MAX: usize = 30;

#[derive(Debug, Default)]
struct Tags {
    /// `None`: their number has not been read.
    left: Option<u32>,
    stage: TagStage,
    number: u32,
    /// What is left to read of the current one, in bytes.
    size: usize,
    /// Its first bytes, as far as they can matter.
    body: [u8; TAG_BYTES],
    body_bytes: usize,
}

/// No tagged field that matters holds more, but for tagged fields of its own.
const TAG_BYTES: usize = 12;

#[derive(Debug, Default)]
enum TagStage {
    #[default]
    Number,
    Size,
    Body,
}

impl Fields {
    /// A reader with `left` bytes in front of it.
    pub fn new(flexible: bool, left: usize) -> Fields {
        Fields {
            flexible,
            left,
            kept: [0; FIELD_BYTES_MAX],
            kept_bytes: 0,
            varint: 0,
            shift: 0,
            tags: Tags::default(),
        }
    }

    /// From here on `left` bytes are in front of us.
    pub fn limit(&mut self, left: usize) {
        self.left = left;
    }

    /// How many bytes have not come yet, or not been skipped.
    pub fn left(&self) -> usize {
        self.left - self.kept_bytes
    }

    /// Somebody else has taken the next `bytes`.
    pub fn skip(&mut self, bytes: usize) {
        assert!(self.kept_bytes == 0 && bytes <= self.left);
        self.left -= bytes;
    }

    /// Errs when `bytes` more do not fit into the frame.
    pub fn within(&self, what: &'static str, bytes: usize) -> Result<(), ParseError> {
        if bytes > self.left {
            return Err(ParseError::PastEnd { what, bytes, left: self.left });
        }
        Ok(())
    }

    /// A field of N bytes.
    pub fn fixed<const N: usize>(
        &mut self,
        input: &mut &[u8],
        what: &'static str,
    ) -> Result<Option<[u8; N]>, ParseError> {
        const { assert!(N <= FIELD_BYTES_MAX) };
        self.within(what, N)?;
        if self.kept_bytes == 0
            && let Some((field, rest)) = input.split_first_chunk::<N>()
        {
            *input = rest;
            self.left -= N;
            return Ok(Some(*field));
        }
        let more = input.len().min(N - self.kept_bytes);
        let (head, rest) = input.split_at(more);
        self.kept[self.kept_bytes..self.kept_bytes + more].copy_from_slice(head);
        *input = rest;
        self.kept_bytes += more;
        if self.kept_bytes < N {
            return Ok(None);
        }
        self.kept_bytes = 0;
        self.left -= N;
        Ok(self.kept.first_chunk().copied())
    }

    /// Fills `field` from `at` on; returns how far it is filled.
    pub fn fill(&mut self, input: &mut &[u8], field: &mut [u8], at: usize) -> usize {
        let more = input.len().min(field.len() - at);
        let (head, rest) = input.split_at(more);
        field[at..at + more].copy_from_slice(head);
        *input = rest;
        self.left -= more;
        at + more
    }

    /// An unsigned varint of at most 32 bits.
    pub fn varint(
        &mut self,
        input: &mut &[u8],
        what: &'static str,
    ) -> Result<Option<u32>, ParseError> {
        while let Some([byte]) = self.fixed(input, what)? {
            if self.shift == 28 && byte > 0x0f {
                return Err(ParseError::BadLength(what));
            }
            self.varint |= u32::from(byte & 0x7f) << self.shift;
            self.shift += 7;
            if byte < 0x80 {
                self.shift = 0;
                return Ok(Some(std::mem::take(&mut self.varint)));
            }
        }
        Ok(None)
    }

    /// A count of elements or bytes; the inner `None` is null. Each element takes at least a byte,
    /// so no count may exceed what is left of the frame.
    pub fn count(
        &mut self,
        input: &mut &[u8],
        what: &'static str,
    ) -> Result<Option<Option<usize>>, ParseError> {
        let count = if self.flexible {
            let Some(count) = self.varint(input, what)? else { return Ok(None) };
            count.checked_sub(1).map(|count| count as usize)
        } else {
            let Some(count) = self.fixed(input, what)? else { return Ok(None) };
            match i32::from_be_bytes(count) {
                -1 => None,
                count => Some(usize::try_from(count).map_err(|_| ParseError::BadLength(what))?),
            }
        };
        self.within(what, count.unwrap_or(0))?;
        Ok(Some(count))
    }

    /// Walks a struct's tagged fields. `found` is given the number of each and its first bytes.
    pub fn tags(
        &mut self,
        input: &mut &[u8],
        mut found: impl FnMut(u32, &[u8]) -> Result<(), ParseError>,
    ) -> Result<Option<()>, ParseError> {
        const WHAT: &str = "tagged field";
        let mut left = match self.tags.left {
            Some(left) => left,
            None => match self.varint(input, WHAT)? {
                Some(count) => count,
                None => return Ok(None),
            },
        };
        while left > 0 {
            self.tags.left = Some(left);
            match self.tags.stage {
                TagStage::Number => {
                    let Some(number) = self.varint(input, WHAT)? else { return Ok(None) };
                    self.tags.number = number;
                    self.tags.stage = TagStage::Size;
                }
                TagStage::Size => {
                    let Some(size) = self.varint(input, WHAT)? else { return Ok(None) };
                    self.within(WHAT, size as usize)?;
                    self.tags.size = size as usize;
                    self.tags.body_bytes = 0;
                    self.tags.stage = TagStage::Body;
                }
                TagStage::Body => {
                    self.tag_body(input);
                    if self.tags.size > 0 {
                        return Ok(None);
                    }
                    found(self.tags.number, &self.tags.body[..self.tags.body_bytes])?;
                    self.tags.stage = TagStage::Number;
                    left -= 1;
                }
            }
        }
        self.tags.left = None;
        Ok(Some(()))
    }

    fn tag_body(&mut self, input: &mut &[u8]) {
        let tags = &mut self.tags;
        let (body, rest) = input.split_at(input.len().min(tags.size));
        *input = rest;
        let keep = body.len().min(TAG_BYTES - tags.body_bytes);
        tags.body[tags.body_bytes..tags.body_bytes + keep].copy_from_slice(&body[..keep]);
        tags.body_bytes += keep;
        tags.size -= body.len();
        self.left -= body.len();
    }
}
