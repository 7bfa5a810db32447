//! What lies between a socket and the frames on it.
//!
//! Today that is nothing: bytes on the socket are bytes of frames. TLS slots in here as one more
//! variant, and SASL as an exchange of frames between [`Transport`] and the first request.
//!
//! The contract every variant keeps:
//!
//! * `receive` yields plaintext, in order, into the leases in order, and gives the leases back
//!   whatever happens. With `all` it fills them wholly unless the stream ends; without, it may
//!   stop after any byte. It never puts bytes anywhere else: a variant that decrypts keeps what
//!   does not fit yet for the next call.
//! * `send_all` returns when the bytes need not be kept any longer, not when they have arrived.
//! * Dropping the future of either leaves the stream at an unknown place: the transport is then
//!   good for nothing but being dropped.

use ring::{Gather, Lease, Stream};
use std::io;

/// A way to exchange the bytes of frames with a peer. See the module for the contract.
#[derive(Debug)]
pub enum Transport {
    /// Nothing in between.
    Plain(Stream),
}

impl Transport {
    /// Receives into the leases in order; 0 is the end of the stream.
    pub async fn receive(
        &mut self,
        into: [Option<Lease>; 2],
        all: bool,
    ) -> (io::Result<usize>, [Option<Lease>; 2]) {
        match self {
            Transport::Plain(stream) => stream.receive(into, all).await,
        }
    }

    /// Sends all of it.
    pub async fn send_all(&mut self, from: Gather) -> io::Result<()> {
        match self {
            Transport::Plain(stream) => stream.send_all(from).await,
        }
    }

    /// A watch on the socket's end that does not keep it open.
    pub fn watch(&self) -> ring::SocketWatch {
        match self {
            Transport::Plain(stream) => stream.watch(),
        }
    }

    /// Ends the stream both ways.
    pub fn shutdown(&self) {
        match self {
            Transport::Plain(stream) => stream.shutdown(),
        }
    }
}
