//! Frames: a length, a head, a body (Kafka protocol guide, "Protocol primitives").
//!
//! Requests are written into a buffer that the caller reuses. Of responses only what decides
//! whether the rest may be believed is read here: the length against a bound, and the correlation
//! id against the one awaited. Either being wrong costs the connection, for then nothing that
//! follows on the stream can be trusted.

/// Size of the length in front of every frame, in bytes.
pub const LENGTH_BYTES: usize = 4;

/// A response whose frame cannot be believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A length below the smallest response or above the bound.
    #[error("response length {length} is outside of 4..={max} bytes")]
    Length {
        /// What the peer wrote.
        length: i32,
        /// The bound, in bytes.
        max: usize,
    },
    /// An answer to something else than was asked.
    #[error("correlation id {got} where {expected} was awaited")]
    Correlation {
        /// The id of the request in flight.
        expected: i32,
        /// The id that came.
        got: i32,
    },
    /// More bytes than the answer has, while nothing else was asked.
    #[error("bytes that nobody asked for behind the response")]
    Unasked,
    /// A frame that ends inside its own head, or does not end where its content does.
    #[error("response head is cut short")]
    ShortHead,
}

/// What stands in front of a request's body.
#[derive(Debug, Clone, Copy)]
pub struct RequestHead<'a> {
    /// Which request, by Kafka's number.
    pub api_key: i16,
    /// In which version.
    pub api_version: i16,
    /// 1, or 2 for flexible versions.
    pub header_version: i16,
    /// Comes back with the response.
    pub correlation_id: i32,
    /// Our name in the source's logs and quotas.
    pub client_id: &'a str,
}

/// Clears `out` and writes a request's length (yet unknown) and head. The body is appended next,
/// then [`finish_request`] called.
pub fn begin_request(out: &mut Vec<u8>, head: RequestHead<'_>) {
    assert!(matches!(head.header_version, 1 | 2), "request header {}", head.header_version);
    assert!(head.client_id.len() <= i16::MAX as usize);
    out.clear();
    out.extend_from_slice(&[0; LENGTH_BYTES]);
    out.extend_from_slice(&head.api_key.to_be_bytes());
    out.extend_from_slice(&head.api_version.to_be_bytes());
    out.extend_from_slice(&head.correlation_id.to_be_bytes());
    out.extend_from_slice(&(head.client_id.len() as i16).to_be_bytes());
    out.extend_from_slice(head.client_id.as_bytes());
    if head.header_version == 2 {
        out.push(0); // no tagged fields
    }
}

/// Writes the length that [`begin_request`] left open.
pub fn finish_request(out: &mut [u8]) {
    let length = i32::try_from(out.len() - LENGTH_BYTES).expect("requests are far below 2 GiB");
    out[..LENGTH_BYTES].copy_from_slice(&length.to_be_bytes());
}

/// The length of the response that follows, if it can be one.
pub fn response_length(prefix: [u8; LENGTH_BYTES], max: usize) -> Result<usize, FrameError> {
    let length = i32::from_be_bytes(prefix);
    match usize::try_from(length) {
        Ok(bytes) if (4..=max).contains(&bytes) => Ok(bytes),
        _ => Err(FrameError::Length { length, max }),
    }
}

/// Checks the correlation id of a response.
pub fn check_correlation(expected: i32, got: i32) -> Result<(), FrameError> {
    if expected == got { Ok(()) } else { Err(FrameError::Correlation { expected, got }) }
}

/// Cuts the head off a whole response frame (without its length) and returns the body.
/// `header_version` is 1 for flexible versions and 0 else; ApiVersions always answers with 0.
pub fn response_body(
    frame: &[u8],
    header_version: i16,
    correlation_id: i32,
) -> Result<&[u8], FrameError> {
    let (id, mut body) = frame.split_first_chunk().ok_or(FrameError::ShortHead)?;
    check_correlation(correlation_id, i32::from_be_bytes(*id))?;
    if header_version >= 1 {
        let tags = crate::guard::varint(&mut body).map_err(|_| FrameError::ShortHead)?;
        for _ in 0..tags {
            let skip = |body: &mut &[u8]| -> Option<()> {
                crate::guard::varint(body).ok()?;
                let size = crate::guard::varint(body).ok()? as usize;
                body.split_off(..size).map(|_| ())
            };
            skip(&mut body).ok_or(FrameError::ShortHead)?;
        }
    }
    Ok(body)
}

/// Appends an unsigned varint: seven bits a byte, lowest first.
pub fn put_varint(out: &mut Vec<u8>, mut value: u32) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use kafka_protocol::messages::RequestHeader;
    use kafka_protocol::protocol::Decodable;

    #[test]
    fn request_heads_decode_elsewhere() {
        for header_version in [1, 2] {
            let mut out = Vec::from(&b"old"[..]);
            let client_id = "understudy";
            let head = RequestHead {
                api_key: 1,
                api_version: 12,
                header_version,
                correlation_id: -7,
                client_id,
            };
            begin_request(&mut out, head);
            out.extend_from_slice(b"body");
            finish_request(&mut out);
            let mut bytes = Bytes::from(out);
            assert_eq!(bytes.split_to(4), (bytes.len() as i32).to_be_bytes()[..]);
            let decoded = RequestHeader::decode(&mut bytes, header_version).unwrap();
            assert_eq!((decoded.request_api_key, decoded.request_api_version), (1, 12));
            assert_eq!(decoded.correlation_id, -7);
            assert_eq!(decoded.client_id.as_deref(), Some(client_id));
            assert_eq!(&bytes[..], b"body");
        }
    }

    #[test]
    fn lengths_are_checked_before_they_are_believed() {
        for length in [-1, 0, 3, 101, i32::MIN, i32::MAX] {
            let got = response_length(length.to_be_bytes(), 100);
            assert_eq!(got, Err(FrameError::Length { length, max: 100 }));
        }
        assert_eq!(response_length(4i32.to_be_bytes(), 100), Ok(4));
        assert_eq!(response_length(100i32.to_be_bytes(), 100), Ok(100));
    }

    #[test]
    fn heads_that_lie_are_errors() {
        let body = |bytes: &'static [u8], version| response_body(bytes, version, 5);
        assert_eq!(body(&[0, 0, 0, 5, 9], 0), Ok(&[9][..]));
        assert_eq!(body(&[0, 0, 0, 5, 1, 7, 2, 1, 1, 9], 1), Ok(&[9][..]));
        assert_eq!(body(&[0, 0, 0, 6], 0), Err(FrameError::Correlation { expected: 5, got: 6 }));
        assert_eq!(body(&[0, 0, 0], 0), Err(FrameError::ShortHead));
        assert_eq!(body(&[0, 0, 0, 5], 1), Err(FrameError::ShortHead));
        assert_eq!(body(&[0, 0, 0, 5, 1, 7, 200, 1, 1], 1), Err(FrameError::ShortHead));
        assert_eq!(
            body(&[0, 0, 0, 5, 0xff, 0xff, 0xff, 0xff, 0xf, 0], 1),
            Err(FrameError::ShortHead)
        );
    }
}
