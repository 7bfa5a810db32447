//! Whether a fetch response has its tagged fields where a decoder that believes no size looks for
//! them.
//!
//! `kafka-protocol` reads a known tagged field by its type and leaves the size aside. Where the
//! two differ it goes on at another place than we do, and takes what it finds there for lengths:
//! some of them are of gigabytes, which it allocates. Such a response is no witness.

/// The sizes of the tagged fields of a partition, none of which has tagged fields itself: diverging
/// epoch, current leader, snapshot id (KIP-595).
const TAGGED_BYTES: [usize; 3] = [13, 9, 13];
/// index, error, high watermark, last stable offset, log start.
const PARTITION_BYTES: usize = 4 + 2 + 8 + 8 + 8;
/// producer, first offset.
const ABORTED_BYTES: usize = 8 + 8;

/// Whether the body, of version 12 to 15, is read alike by both.
pub fn is_canonical(version: i16, body: &[u8]) -> bool {
    response(&mut Body(body), version).is_some()
}

/// What is left of a body. Every step is none where it ends, or where it is not canonical.
struct Body<'a>(&'a [u8]);

fn response(body: &mut Body<'_>, version: i16) -> Option<()> {
    body.skip(4 + 2 + 4)?; // throttle time, error, session
    for _ in 0..body.count()? {
        match version {
            ..13 => body.run()?,
            13.. => body.skip(16)?,
        };
        for _ in 0..body.count()? {
            body.skip(PARTITION_BYTES)?;
            for _ in 0..body.count()? {
                body.skip(ABORTED_BYTES)?;
                body.tags(&[])?;
            }
            body.skip(4)?; // preferred replica
            body.run()?; // records
            body.tags(&TAGGED_BYTES)?;
        }
        body.tags(&[])?;
    }
    body.tags(&[])?;
    body.0.is_empty().then_some(())
}

impl<'a> Body<'a> {
    fn skip(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(head)
    }

    fn number(&mut self) -> Option<usize> {
        let mut number = 0;
        for shift in (0..35).step_by(7) {
            let byte = *self.skip(1)?.first()?;
            number |= usize::from(byte & 0x7F) << shift;
            if byte < 0x80 {
                return Some(number);
            }
        }
        None
    }

    /// Of a compact array; none for null, too.
    fn count(&mut self) -> Option<usize> {
        Some(self.number()?.saturating_sub(1))
    }

    /// Compact bytes, or a compact string.
    fn run(&mut self) -> Option<&'a [u8]> {
        let bytes = self.count()?;
        self.skip(bytes)
    }

    /// Tagged fields: of the known ones, from 0 on, each has exactly these bytes.
    fn tags(&mut self, known: &[usize]) -> Option<()> {
        for _ in 0..self.number()? {
            let tag = self.number()?;
            let bytes = self.number()?;
            let field = self.skip(bytes)?;
            let fits = |wanted: &usize| *wanted == bytes && field.last() == Some(&0);
            if !known.get(tag).is_none_or(fits) {
                return None;
            }
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::BytesMut;
    use kafka_protocol::messages::FetchResponse;
    use kafka_protocol::messages::fetch_response::{
        EpochEndOffset, FetchableTopicResponse, PartitionData,
    };
    use kafka_protocol::protocol::Encodable;

    #[test]
    fn what_is_encoded_is_canonical_until_a_size_lies() {
        for version in 12..=15 {
            let epoch = EpochEndOffset::default().with_epoch(5).with_end_offset(9);
            let partition = PartitionData::default().with_diverging_epoch(epoch);
            let topic = FetchableTopicResponse::default().with_partitions(vec![partition]);
            let response = FetchResponse::default().with_responses(vec![topic]);
            let mut body = BytesMut::new();
            response.encode(&mut body, version).expect("encoded");
            assert!(is_canonical(version, &body), "{version}");
            let size = body.iter().rposition(|byte| *byte == 13).expect("the size of the tag");
            body[size] = 12;
            assert!(!is_canonical(version, &body), "{version}");
        }
    }
}
