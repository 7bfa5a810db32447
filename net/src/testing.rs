//! A server thread for tests: plays answers encoded by `kafka-protocol`.

use crate::frame;
use kafka_protocol::messages::ApiVersionsResponse;
use kafka_protocol::messages::api_versions_response::ApiVersion;
use kafka_protocol::protocol::Encodable;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

/// A request as the server sees it.
pub struct Asked {
    pub api_key: i16,
    pub version: i16,
    pub correlation_id: i32,
}

/// What the server does next.
pub enum Reply {
    /// Sends a body with a fitting head.
    Body(Vec<u8>),
    /// Sends bytes as they are.
    Raw(Vec<u8>),
    /// Sends bytes as they are and hangs up.
    RawAndClose(Vec<u8>),
    /// Says nothing and keeps the connection.
    Silence,
}

pub fn encoded(message: &impl Encodable, version: i16) -> Vec<u8> {
    let mut out = Vec::new();
    message.encode(&mut out, version).expect("encodes");
    out
}

pub fn framed(asked: &Asked, body: &[u8]) -> Vec<u8> {
    let mut out = vec![0; 4];
    out.extend_from_slice(&asked.correlation_id.to_be_bytes());
    let flexible = match asked.api_key {
        1 => asked.version >= 12,
        2 => asked.version >= 6,
        3 => asked.version >= 9,
        23 => asked.version >= 4,
        _ => false,
    };
    out.extend(flexible.then_some(0));
    out.extend_from_slice(body);
    frame::finish_request(&mut out);
    out
}

/// ApiVersions with the highest fetch version as given; the others as Kafka 4.3 has them.
pub fn api_versions(fetch: i16) -> Vec<u8> {
    let rows = [(1, 4, fetch), (2, 1, 11), (3, 0, 13), (18, 0, 4), (23, 2, 4)];
    let rows = rows.map(|(key, low, high)| {
        ApiVersion::default().with_api_key(key).with_min_version(low).with_max_version(high)
    });
    encoded(&ApiVersionsResponse::default().with_api_keys(rows.into()), 3)
}

/// Serves connections one after another: ApiVersions, then what `reply` says. Pieces of `piece`
/// bytes are written one by one.
pub fn serve(
    fetch: i16,
    piece: usize,
    mut reply: impl FnMut(&Asked) -> Reply + Send + 'static,
) -> SocketAddr {
    serve_all(piece, move |asked| match asked.api_key {
        18 => Reply::Body(api_versions(fetch)),
        _ => reply(asked),
    })
}

pub fn serve_all(
    piece: usize,
    mut reply: impl FnMut(&Asked) -> Reply + Send + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            // The client hanging up in the middle is part of some tests.
            let _ = serve_stream(stream, piece, &mut reply);
        }
    });
    address
}

fn serve_stream(
    mut stream: TcpStream,
    piece: usize,
    reply: &mut impl FnMut(&Asked) -> Reply,
) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    loop {
        let mut length = [0; 4];
        stream.read_exact(&mut length)?;
        let mut request = vec![0; i32::from_be_bytes(length) as usize];
        stream.read_exact(&mut request)?;
        let asked = Asked {
            api_key: i16::from_be_bytes([request[0], request[1]]),
            version: i16::from_be_bytes([request[2], request[3]]),
            correlation_id: i32::from_be_bytes(request[4..8].try_into().expect("four bytes")),
        };
        let (bytes, close) = match reply(&asked) {
            Reply::Body(body) => (framed(&asked, &body), false),
            Reply::Raw(bytes) => (bytes, false),
            Reply::RawAndClose(bytes) => (bytes, true),
            Reply::Silence => (Vec::new(), false),
        };
        for piece in bytes.chunks(piece) {
            stream.write_all(piece)?;
        }
        if close {
            return Ok(());
        }
    }
}
