//! One tokio connection that speaks control messages.

use super::ControlOptions;
use crate::error::{DecodeError, NetError};
use crate::frame::{self, LENGTH_BYTES};
use crate::limits::CONTROL_RESPONSE_BYTES_MAX;
use crate::messages::{self, ControlRequest};
use crate::versions::{Api, Negotiation, NegotiationError, Step, Versions};
use bytes::Bytes;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// A connection that has agreed on versions. After an error it is to be dropped.
#[derive(Debug)]
pub struct Wire {
    stream: TcpStream,
    peer: String,
    versions: Versions,
    correlation_id: i32,
    request: Vec<u8>,
}

/// All addresses of a server, written `host:port`.
pub async fn resolve(server: &str, limit: Duration) -> Result<Vec<SocketAddr>, NetError> {
    let failed = |source| NetError::Connect { peer: server.to_owned(), source };
    match timeout(limit, tokio::net::lookup_host(server)).await {
        Ok(Ok(addresses)) => {
            let addresses: Vec<SocketAddr> = addresses.collect();
            if addresses.is_empty() {
                return Err(failed(io::Error::other("the name has no address")));
            }
            Ok(addresses)
        }
        Ok(Err(source)) => Err(failed(source)),
        Err(_) => Err(timed_out(server, "resolving the name", limit)),
    }
}

impl Wire {
    /// Connects and learns which versions the peer serves.
    pub async fn connect(
        server: &str,
        address: SocketAddr,
        options: &ControlOptions,
    ) -> Result<Wire, NetError> {
        let peer = match address.to_string() {
            literal if literal == server => literal,
            literal => format!("{server} ({literal})"),
        };
        let stream = match timeout(options.connect_limit, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(source)) => return Err(NetError::Connect { peer, source }),
            Err(_) => return Err(timed_out(&peer, "connecting", options.connect_limit)),
        };
        let (versions, request) = (Versions::default(), Vec::new());
        let mut wire = Wire { stream, peer, versions, correlation_id: 0, request };
        wire.negotiate(options).await?;
        Ok(wire)
    }

    /// Whom we talk to.
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// What the peer serves.
    pub fn versions(&self) -> &Versions {
        &self.versions
    }

    /// Asks, in the newest version that both sides speak, and decodes the answer.
    pub async fn request<R: ControlRequest>(
        &mut self,
        request: impl FnOnce(i16) -> R,
        options: &ControlOptions,
    ) -> Result<(i16, R::Response), NetError> {
        let version = self.versions.agreed(R::API, &self.peer)?;
        let frame = self.exchange(&request(version), version, options).await?;
        let decoded = messages::decode_answer::<R>(&frame, version, self.correlation_id);
        Ok((version, decoded.map_err(|e| self.misunderstood(R::API, version, e))?))
    }

    async fn negotiate(&mut self, options: &ControlOptions) -> Result<(), NetError> {
        const API: Api = Api::ApiVersions;
        let mut negotiation = Negotiation::start();
        loop {
            let version = negotiation.version();
            let frame = self.exchange(&negotiation.request(), version, options).await?;
            let body = frame::response_body(&frame, 0, self.correlation_id)
                .map_err(|e| self.misunderstood(API, version, e.into()))?;
            let step = negotiation.answer(frame.slice_ref(body)).map_err(|e| match e {
                NegotiationError::Decode(e) => self.misunderstood(API, version, e),
                NegotiationError::Refused(code) => {
                    NetError::Refused { peer: self.peer.clone(), api: API, code }
                }
            })?;
            if let Step::Done(versions) = step {
                self.versions = versions;
                return Ok(());
            }
        }
    }

    /// Sends a request and receives its answer's frame (without the length).
    async fn exchange<R: ControlRequest>(
        &mut self,
        request: &R,
        version: i16,
        options: &ControlOptions,
    ) -> Result<Bytes, NetError> {
        self.correlation_id = self.correlation_id.wrapping_add(1);
        let (id, client_id) = (self.correlation_id, &options.client_id);
        messages::encode_request(&mut self.request, request, version, id, client_id)?;
        let limit = options.request_limit;
        match timeout(limit, self.send_and_receive::<R>(version)).await {
            Ok(done) => done,
            Err(_) => Err(timed_out(&self.peer, "waiting for an answer", limit)),
        }
    }

    async fn send_and_receive<R: ControlRequest>(
        &mut self,
        version: i16,
    ) -> Result<Bytes, NetError> {
        let failed = |peer: &str, doing| {
            let peer = peer.to_owned();
            move |source| NetError::Io { peer, doing, source }
        };
        const SENDING: &str = "sending a request";
        const RECEIVING: &str = "waiting for an answer";
        self.stream.write_all(&self.request).await.map_err(failed(&self.peer, SENDING))?;
        let mut prefix = [0; LENGTH_BYTES];
        match self.stream.read_exact(&mut prefix).await {
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(NetError::Closed { peer: self.peer.clone(), api: R::API });
            }
            Err(e) => return Err(failed(&self.peer, RECEIVING)(e)),
        }
        let length = frame::response_length(prefix, CONTROL_RESPONSE_BYTES_MAX)
            .map_err(|e| self.misunderstood(R::API, version, e.into()))?;
        // The buffer grows with what arrives, not with what was claimed.
        let mut frame = Vec::new();
        let mut rest = (&mut self.stream).take(length as u64);
        rest.read_to_end(&mut frame).await.map_err(failed(&self.peer, RECEIVING))?;
        if frame.len() < length {
            return Err(NetError::Closed { peer: self.peer.clone(), api: R::API });
        }
        Ok(frame.into())
    }

    fn misunderstood(&self, api: Api, version: i16, source: DecodeError) -> NetError {
        NetError::Decode { peer: self.peer.clone(), api, version, source }
    }
}

fn timed_out(peer: &str, doing: &'static str, limit: Duration) -> NetError {
    NetError::TimedOut { peer: peer.to_owned(), doing, limit }
}
