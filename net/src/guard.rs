//! Proves the lengths of a control message before a decoder believes them.
//!
//! `kafka-protocol` decodes an array by allocating for as many elements as the wire claims: eight
//! bytes can ask for gigabytes. So every message is first walked by its [`Layout`], a small table
//! of what stands where in which version. The walk allocates nothing; it ends well only when every
//! string, array and tagged field lies inside the message and the message is used up exactly. After
//! that, what the decoder allocates is a small multiple of what was received.
//!
//! A layout names fields only as far as lengths matter: neighbouring fixed fields are one entry.

use crate::limits::UNKNOWN_TAGS_MAX;

/// How one kind of message (or a struct inside it) is laid out.
#[derive(Debug)]
pub struct Layout {
    /// From this version on lengths are varints and every struct ends in tagged fields.
    pub flexible_since: i16,
    /// The fields, in wire order.
    pub fields: &'static [Field],
    /// Tagged fields which the decoder knows and descends into.
    pub tags: &'static [Tag],
}

/// A field and the versions that have it.
#[derive(Debug)]
pub struct Field {
    /// First version that has the field.
    pub since: i16,
    /// Last version that has the field.
    pub until: i16,
    /// How long it is.
    pub kind: Kind,
}

/// How long a field is.
#[derive(Debug)]
pub enum Kind {
    /// So many bytes.
    Fixed(usize),
    /// A string, perhaps null.
    Text,
    /// An array, perhaps null, of elements of so many bytes.
    Fixeds(usize),
    /// An array, perhaps null, of structs.
    Structs(&'static Layout),
}

/// A tagged field with structure inside.
#[derive(Debug)]
pub struct Tag {
    /// Its number.
    pub tag: u32,
    /// What it holds.
    pub kind: Kind,
}

/// A message whose lengths do not add up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GuardError {
    /// A field reaches beyond the end of the message.
    #[error("a field of {bytes} bytes where {left} are left")]
    PastEnd {
        /// The length claimed, in bytes.
        bytes: usize,
        /// What is left of the message, in bytes.
        left: usize,
    },
    /// A negative length other than null, or a varint of more than 32 bits.
    #[error("impossible length")]
    BadLength,
    /// Bytes remain behind the last field.
    #[error("{0} bytes behind the end of the message")]
    Trailing(usize),
    /// A known tagged field does not fill its size exactly, or comes twice.
    #[error("tagged field {0} has another size than its content")]
    BadTag(u32),
    /// More tagged fields unknown to us than [`UNKNOWN_TAGS_MAX`].
    #[error("more than {UNKNOWN_TAGS_MAX} unknown tagged fields")]
    TooManyTags,
}

/// A field that every version has.
pub const fn always(kind: Kind) -> Field {
    since(0, kind)
}

/// A field that versions from `since` on have.
pub const fn since(since: i16, kind: Kind) -> Field {
    Field { since, until: i16::MAX, kind }
}

/// A field that versions `since..=until` have.
pub const fn within(since: i16, until: i16, kind: Kind) -> Field {
    Field { since, until, kind }
}

/// Walks a whole message of the given version; `Ok` when its lengths can be believed.
pub fn check(layout: &Layout, version: i16, message: &[u8]) -> Result<(), GuardError> {
    let mut walk = Walk { version, flexible: version >= layout.flexible_since, unknown_tags: 0 };
    let mut rest = message;
    walk.layout(layout, &mut rest)?;
    if rest.is_empty() { Ok(()) } else { Err(GuardError::Trailing(rest.len())) }
}

/// Reads an unsigned varint of at most 32 bits off the front of `bytes`.
pub fn varint(bytes: &mut &[u8]) -> Result<u32, GuardError> {
    let mut value = 0u32;
    for shift in [0, 7, 14, 21, 28] {
        let [byte] = *fixed::<1>(bytes)?;
        if shift == 28 && byte > 0x0f {
            return Err(GuardError::BadLength);
        }
        value |= u32::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err(GuardError::BadLength)
}

struct Walk {
    version: i16,
    flexible: bool,
    unknown_tags: usize,
}

impl Walk {
    fn layout(&mut self, layout: &Layout, rest: &mut &[u8]) -> Result<(), GuardError> {
        for field in layout.fields {
            if (field.since..=field.until).contains(&self.version) {
                self.kind(&field.kind, rest)?;
            }
        }
        if self.flexible { self.tagged(layout.tags, rest) } else { Ok(()) }
    }

    fn kind(&mut self, kind: &Kind, rest: &mut &[u8]) -> Result<(), GuardError> {
        match kind {
            Kind::Fixed(bytes) => skip(rest, *bytes),
            Kind::Text => {
                let bytes = if self.flexible {
                    varint(rest)?.saturating_sub(1) as usize
                } else {
                    length(i16::from_be_bytes(*fixed(rest)?).into())?
                };
                skip(rest, bytes)
            }
            Kind::Fixeds(bytes) => {
                let count = self.count(rest)?;
                skip(rest, count.checked_mul(*bytes).ok_or(GuardError::BadLength)?)
            }
            Kind::Structs(layout) => {
                let count = self.count(rest)?;
                // Every struct takes at least a byte; so this also bounds the loop below.
                if count > rest.len() {
                    return Err(GuardError::PastEnd { bytes: count, left: rest.len() });
                }
                (0..count).try_for_each(|_| self.layout(layout, rest))
            }
        }
    }

    fn count(&self, rest: &mut &[u8]) -> Result<usize, GuardError> {
        if self.flexible {
            Ok(varint(rest)?.saturating_sub(1) as usize)
        } else {
            length(i32::from_be_bytes(*fixed(rest)?))
        }
    }

    fn tagged(&mut self, known: &[Tag], rest: &mut &[u8]) -> Result<(), GuardError> {
        let mut seen = 0u32;
        for _ in 0..varint(rest)? {
            let number = varint(rest)?;
            let size = varint(rest)? as usize;
            let left = rest.len();
            let mut body =
                rest.split_off(..size).ok_or(GuardError::PastEnd { bytes: size, left })?;
            match known.iter().position(|tag| tag.tag == number) {
                Some(at) => {
                    self.kind(&known[at].kind, &mut body)?;
                    if !body.is_empty() || seen & 1 << at != 0 {
                        return Err(GuardError::BadTag(number));
                    }
                    seen |= 1 << at;
                }
                None => {
                    self.unknown_tags += 1;
                    if self.unknown_tags > UNKNOWN_TAGS_MAX {
                        return Err(GuardError::TooManyTags);
                    }
                }
            }
        }
        Ok(())
    }
}

/// -1 is null and takes nothing, like an empty one.
fn length(claimed: i32) -> Result<usize, GuardError> {
    match claimed {
        -1 => Ok(0),
        _ => usize::try_from(claimed).map_err(|_| GuardError::BadLength),
    }
}

fn skip(rest: &mut &[u8], bytes: usize) -> Result<(), GuardError> {
    let left = rest.len();
    rest.split_off(..bytes).map(|_| ()).ok_or(GuardError::PastEnd { bytes, left })
}

fn fixed<'a, const N: usize>(rest: &mut &'a [u8]) -> Result<&'a [u8; N], GuardError> {
    let left = rest.len();
    let (head, tail) = rest.split_first_chunk().ok_or(GuardError::PastEnd { bytes: N, left })?;
    *rest = tail;
    Ok(head)
}
