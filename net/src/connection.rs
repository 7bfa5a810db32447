//! A connection from a data shard to one broker of the source.
//!
//! One request is in flight at a time: a broker answers in order, and the next fetch offset is
//! unknown until the last batch has arrived. Two kinds of request pass:
//!
//! * control messages ([`Connection::request`]), received whole and decoded;
//! * fetches ([`Connection::fetch`]), parsed while they arrive. Heads go through a head buffer.
//!   Small record sets are copied out of it, since one receive brings many of them. Large ones are
//!   received straight into memory that the [`RecordSink`] lends, with a few KiB of overshoot into
//!   the head buffer so that neither the next partition's head nor a last piece that the memory had
//!   no room for costs a receive of its own.
//!
//! Nothing is allocated per fetch or per batch: the request's buffer and the head buffer are the
//! connection's own. Every wait has a limit. After an error, or when the future of a request is
//! dropped half-way, the stream is at an unknown place: the connection answers everything with
//! [`NetError::Broken`] from then on.

mod fetching;

use crate::error::{DecodeError, NetError};
use crate::frame::{self, FrameError, LENGTH_BYTES};
use crate::limits::{HEAD_BYTES, SHARD_RESPONSE_BYTES_MAX};
use crate::messages::{self, ControlRequest};
use crate::transport::Transport;
use crate::versions::{Api, Negotiation, NegotiationError, Step, Versions};
use bytes::Bytes;
use ring::{Class, Gather, Lease, Stream};
use std::net::SocketAddr;
use std::time::Duration;

#[cfg(doc)]
use crate::fetch::RecordSink;
pub use fetching::FetchOutcome;

/// How to connect and how long to wait.
#[derive(Debug, Clone)]
pub struct ConnectOptions {
    /// Our name in the source's logs and quotas.
    pub client_id: String,
    /// How long connecting and agreeing on versions may take, each.
    pub connect_limit: Duration,
    /// How long a request may go without progress, beyond what it told the source to wait.
    pub idle_limit: Duration,
    /// How long a record sink may take to find memory.
    pub memory_limit: Duration,
    /// Below this the source counts as stuck, in bytes per second.
    pub slowest_bytes_per_second: u64,
}

impl Default for ConnectOptions {
    fn default() -> ConnectOptions {
        ConnectOptions {
            client_id: "understudy".to_owned(),
            connect_limit: Duration::from_secs(10),
            idle_limit: Duration::from_secs(30),
            memory_limit: Duration::from_secs(60),
            slowest_bytes_per_second: 16 << 10,
        }
    }
}

/// What a connection has cost so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Requests sent.
    pub requests: u64,
    /// Bytes sent, frames' lengths included.
    pub sent_bytes: u64,
    /// Receive operations.
    pub receives: u64,
    /// Bytes received, frames' lengths included.
    pub received_bytes: u64,
    /// Of these, record bytes that were copied out of the head buffer.
    pub copied_bytes: u64,
    /// Time between a request's last byte and its answer's first.
    pub waiting: Duration,
    /// How often a sink had no memory.
    pub memory_waits: u64,
}

/// A connection to one broker. See the module.
#[derive(Debug)]
pub struct Connection {
    transport: Transport,
    peer: String,
    options: ConnectOptions,
    versions: Versions,
    correlation_id: i32,
    request: Vec<u8>,
    /// The head buffer; away while an operation owns it.
    head: Option<Lease>,
    /// Record sets have been large lately: keep the overshoot small.
    large_records: bool,
    /// A request is under way, or has failed there.
    broken: bool,
    counters: Counters,
}

impl Connection {
    /// Connects and learns which versions the peer serves.
    ///
    /// # Errors
    /// [`NetError::Connect`], [`NetError::TimedOut`], and as [`Connection::over`].
    pub async fn connect(
        address: SocketAddr,
        options: ConnectOptions,
    ) -> Result<Connection, NetError> {
        let peer = address.to_string();
        let stream = match ring::timeout(options.connect_limit, Stream::connect(address)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(source)) => return Err(NetError::Connect { peer, source }),
            Err(_) => {
                let limit = options.connect_limit;
                return Err(NetError::TimedOut { peer, doing: "connecting", limit });
            }
        };
        Connection::over(Transport::Plain(stream), peer, options).await
    }

    /// Learns which versions the peer serves, over a transport that stands. `peer` is for errors.
    ///
    /// # Errors
    /// [`NetError::NoMemory`], or whatever goes wrong with the first answer.
    pub async fn over(
        transport: Transport,
        peer: String,
        options: ConnectOptions,
    ) -> Result<Connection, NetError> {
        let limit = options.memory_limit;
        let Ok(head) = ring::timeout(limit, ring::lease(HEAD_BYTES, Class::Control)).await else {
            return Err(NetError::NoMemory { peer, bytes: HEAD_BYTES, limit });
        };
        let mut connection = Connection {
            transport,
            peer,
            options,
            versions: Versions::default(),
            correlation_id: 0,
            request: Vec::new(),
            head: Some(head.split(HEAD_BYTES).0),
            large_records: false,
            broken: false,
            counters: Counters::default(),
        };
        let limit = connection.options.connect_limit;
        match ring::timeout(limit, connection.negotiate()).await {
            Ok(done) => done.map(|()| connection),
            Err(_) => {
                let (peer, doing) = (connection.peer, "agreeing on versions");
                Err(NetError::TimedOut { peer, doing, limit })
            }
        }
    }

    /// Whom we talk to, for messages.
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// A watch on the socket's end that does not keep it open.
    pub fn watch(&self) -> ring::SocketWatch {
        self.transport.watch()
    }

    /// What the peer serves.
    pub fn versions(&self) -> &Versions {
        &self.versions
    }

    /// What the connection has cost so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Whether an earlier failure has made the connection useless.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Sends a control message and decodes its answer. An error code inside of the answer is the
    /// caller's to read.
    ///
    /// # Errors
    /// Any [`NetError`] but `NoMemory`, `Fetch` and `Refused`.
    pub async fn request<R: ControlRequest>(
        &mut self,
        request: &R,
    ) -> Result<R::Response, NetError> {
        let version = self.version(R::API)?;
        self.begin()?;
        let answered = self.exchange(request, version).await?;
        let decoded = messages::decode_answer::<R>(&answered, version, self.correlation_id);
        let response = decoded.map_err(|e| self.misunderstood(R::API, version, e))?;
        self.broken = false;
        Ok(response)
    }

    async fn negotiate(&mut self) -> Result<(), NetError> {
        const API: Api = Api::ApiVersions;
        let mut negotiation = Negotiation::start();
        loop {
            let version = negotiation.version();
            self.begin()?;
            let frame = self.exchange(&negotiation.request(), version).await?;
            // The head of this one answer is of version 0, whatever the version of the rest.
            let body = frame::response_body(&frame, 0, self.correlation_id)
                .map_err(|e| self.misunderstood(API, version, e.into()))?;
            let step = negotiation.answer(frame.slice_ref(body)).map_err(|e| match e {
                NegotiationError::Decode(e) => self.misunderstood(API, version, e),
                NegotiationError::Refused(code) => {
                    NetError::Refused { peer: self.peer.clone(), api: API, code }
                }
            })?;
            self.broken = false;
            if let Step::Done(versions) = step {
                self.versions = versions;
                return Ok(());
            }
        }
    }

    fn version(&self, api: Api) -> Result<i16, NetError> {
        self.versions.agreed(api, &self.peer)
    }

    /// Marks the connection as broken until the request that begins here has succeeded.
    fn begin(&mut self) -> Result<(), NetError> {
        if self.broken {
            return Err(NetError::Broken { peer: self.peer.clone() });
        }
        self.broken = true;
        self.correlation_id = self.correlation_id.wrapping_add(1);
        Ok(())
    }

    /// Sends a control request and receives its answer's frame (without the length).
    async fn exchange<R: ControlRequest>(
        &mut self,
        request: &R,
        version: i16,
    ) -> Result<Bytes, NetError> {
        let (id, client) = (self.correlation_id, &self.options.client_id);
        if let Err(e) = messages::encode_request(&mut self.request, request, version, id, client) {
            self.broken = false; // nothing was sent
            return Err(e);
        }
        self.send_request().await?;
        let malformed =
            |this: &Connection, e: FrameError| this.misunderstood(R::API, version, e.into());
        let mut frame = Vec::new();
        let mut pace = Pace::start(&self.options, Duration::ZERO);
        while frame.len() < LENGTH_BYTES {
            let bytes = self.receive_head(HEAD_BYTES, R::API, &mut pace).await?;
            frame.extend_from_slice(&self.head()[..bytes]);
        }
        let prefix = *frame.first_chunk().expect("a length has come");
        let length = frame::response_length(prefix, SHARD_RESPONSE_BYTES_MAX)
            .map_err(|e| malformed(self, e))?;
        // The buffer grows with what arrives, not with what was claimed.
        while frame.len() < LENGTH_BYTES + length {
            let bytes = self.receive_head(HEAD_BYTES, R::API, &mut pace).await?;
            frame.extend_from_slice(&self.head()[..bytes]);
        }
        if frame.len() > LENGTH_BYTES + length {
            return Err(malformed(self, FrameError::Unasked));
        }
        Ok(Bytes::from(frame).split_off(LENGTH_BYTES))
    }

    /// Sends what stands in `self.request`.
    async fn send_request(&mut self) -> Result<(), NetError> {
        const DOING: &str = "sending a request";
        let limit = self.options.idle_limit;
        let (transport, request) = (&mut self.transport, &self.request);
        let sending = async {
            for piece in request.chunks(SEND_BYTES_MAX) {
                let mut lease = ring::lease(piece.len(), Class::Control).await;
                lease[..piece.len()].copy_from_slice(piece);
                let (slice, _) = lease.freeze(piece.len());
                transport.send_all(Gather::from_iter([slice])).await?;
            }
            Ok(())
        };
        match ring::timeout(limit, sending).await {
            Ok(Ok(())) => {
                self.counters.requests += 1;
                self.counters.sent_bytes += self.request.len() as u64;
                Ok(())
            }
            Ok(Err(source)) => Err(NetError::Io { peer: self.peer.clone(), doing: DOING, source }),
            Err(_) => Err(NetError::TimedOut { peer: self.peer.clone(), doing: DOING, limit }),
        }
    }

    /// Receives up to `window` bytes into the front of the head buffer; at least one.
    async fn receive_head(
        &mut self,
        window: usize,
        api: Api,
        pace: &mut Pace,
    ) -> Result<usize, NetError> {
        let (bytes, _) = self.receive(None, window, api, pace).await?;
        Ok(bytes)
    }

    /// Receives into `records`, if given, and then up to `window` bytes into the head buffer. With
    /// records it waits until both are full. Returns how much came, and the records' lease.
    async fn receive(
        &mut self,
        records: Option<Lease>,
        window: usize,
        api: Api,
        pace: &mut Pace,
    ) -> Result<(usize, Option<Lease>), NetError> {
        const DOING: &str = "waiting for an answer";
        let limit = pace.limit(records.as_ref().map_or(0, |records| records.len() + window));
        let whole = self.head.take().expect("the head buffer is at home");
        let (head, rest) = whole.split(window);
        let all = records.is_some();
        let into = match records {
            Some(records) => [Some(records), (window > 0).then_some(head)],
            None => [Some(head), None],
        };
        let received = ring::timeout(limit, self.transport.receive(into, all)).await;
        let Ok((result, into)) = received else {
            return Err(NetError::TimedOut { peer: self.peer.clone(), doing: DOING, limit });
        };
        let (records, head) = match into {
            [records, head] if all => (records, head),
            [head, _] => (None, head),
        };
        self.head = Some(match head {
            Some(mut head) => {
                head.try_join(rest).expect("the two halves of the head buffer");
                head
            }
            None => rest,
        });
        self.counters.receives += 1;
        match result {
            Ok(0) => Err(NetError::Closed { peer: self.peer.clone(), api }),
            Ok(bytes) => {
                self.counters.received_bytes += bytes as u64;
                if pace.received(bytes) {
                    self.counters.waiting += pace.elapsed();
                }
                Ok((bytes, records))
            }
            Err(source) => Err(NetError::Io { peer: self.peer.clone(), doing: DOING, source }),
        }
    }

    fn head(&self) -> &[u8] {
        self.head.as_ref().expect("the head buffer is at home")
    }

    fn misunderstood(&self, api: Api, version: i16, source: DecodeError) -> NetError {
        NetError::Decode { peer: self.peer.clone(), api, version, source }
    }
}

/// How long an answer may take: a fixed time, and more the more of it has come. So a source may
/// pause, and it may be slow, but it cannot hold a connection by a byte now and then.
#[derive(Debug)]
struct Pace {
    started: ring::Instant,
    /// Time that was not the source's to account for.
    excused: Duration,
    allowed: Duration,
    bytes: u64,
    slowest_bytes_per_second: u64,
}

impl Pace {
    fn start(options: &ConnectOptions, max_wait: Duration) -> Pace {
        Pace {
            started: ring::now(),
            excused: Duration::ZERO,
            allowed: options.idle_limit + max_wait,
            bytes: 0,
            slowest_bytes_per_second: options.slowest_bytes_per_second.max(1),
        }
    }

    /// How long to wait at most for so many more bytes.
    fn limit(&self, more_bytes: usize) -> Duration {
        let bytes = self.bytes + more_bytes as u64;
        let allowed_ms = bytes.saturating_mul(1000) / self.slowest_bytes_per_second;
        let allowed = self.allowed + self.excused + Duration::from_millis(allowed_ms);
        allowed.saturating_sub(self.elapsed())
    }

    /// Returns whether these were the first.
    fn received(&mut self, bytes: usize) -> bool {
        let first = self.bytes == 0;
        self.bytes += bytes as u64;
        first
    }

    fn elapsed(&self) -> Duration {
        ring::now().since(self.started)
    }
}

/// Longer requests are sent in pieces, so that no large lease is needed.
const SEND_BYTES_MAX: usize = 64 << 10;

#[cfg(test)]
mod simulated;
#[cfg(test)]
mod tests;
