//! Requests and answers without a socket: what a broker says to a frame, whoever carries it.
//!
//! The server's threads use it, and so may a simulator: bytes of a request in, bytes of the
//! answer out, and a fetch that finds nothing is looked at again whenever the caller likes.

use crate::cluster::{Broker, Cluster, ControlError, Shared};
use crate::control::{self, Versions};
use crate::fetch::{self, FetchSettings, Look, Pending};
use crate::server::Config;
use crate::session::SessionCache;
use crate::wire::{Malformed, Reader, Response};
use kafka_protocol::messages::ApiKey;
use std::sync::Arc;
use std::time::Duration;

/// The brokers of a source, without their sockets. Clones are the same source.
#[derive(Clone, Debug)]
pub struct Desk {
    pub(crate) shared: Arc<Shared>,
    pub(crate) versions: Versions,
    pub(crate) fetch: FetchSettings,
}

/// What a request comes to.
#[derive(Debug)]
pub enum Reply {
    /// A whole frame.
    Answer(Vec<u8>),
    /// A fetch that may have to wait.
    Fetch(Box<WaitingFetch>),
    /// Not a request that can be answered: the connection is closed on it.
    Close,
}

/// A fetch that may have to wait for records.
#[derive(Debug)]
pub struct WaitingFetch {
    desk: Desk,
    broker: usize,
    pending: Box<Pending>,
    response: Response,
}

pub(crate) enum Begun {
    Written(i16),
    Fetch(Box<Pending>),
}

impl Desk {
    /// A source as configured; the addresses are told as they stand.
    pub fn new(config: Config) -> Result<Desk, ControlError> {
        let (sessions_max, evict_after) = (config.sessions_max, config.session_evict_after);
        let broker = |(seed, address)| {
            let sessions = SessionCache::new(sessions_max, evict_after, seed);
            Broker { address, up: true, paused: false, sessions }
        };
        let brokers = (config.seed..).zip(config.listen).map(broker).collect();
        let shared = Arc::new(Shared::new(config.cluster_id, brokers));
        let fetch = FetchSettings {
            bytes_max: config.fetch_bytes_max,
            partial_batches: config.partial_batches,
        };
        let desk = Desk { shared, versions: config.versions, fetch };
        for topic in config.topics {
            desk.cluster().add_topic(topic)?;
        }
        Ok(desk)
    }

    /// The hand that moves the source.
    pub fn cluster(&self) -> Cluster {
        Cluster { shared: Arc::clone(&self.shared) }
    }

    /// Answers a request, given without the length in front of its frame.
    pub fn request(&self, broker: usize, request: &[u8]) -> Reply {
        let mut response = Response::default();
        match self.begin(broker, request, &mut response) {
            Ok(Begun::Written(_)) => Reply::Answer(response.into_bytes()),
            Ok(Begun::Fetch(pending)) => {
                let desk = self.clone();
                Reply::Fetch(Box::new(WaitingFetch { desk, broker, pending, response }))
            }
            Err(Malformed) => Reply::Close,
        }
    }

    /// Reads a request; all but a fetch are answered at once.
    pub(crate) fn begin(
        &self,
        broker: usize,
        request: &[u8],
        response: &mut Response,
    ) -> Result<Begun, Malformed> {
        let mut r = Reader::new(request);
        let (api_key, version, correlation_id) = (r.i16()?, r.i16()?, r.i32()?);
        let offered = self.versions.offers(api_key, version);
        if api_key == ApiKey::ApiVersions as i16 {
            // Its response header never has tagged fields, whatever the version.
            response.begin(correlation_id, false);
            control::api_versions(response, &self.versions, version);
            response.finish();
            return Ok(Begun::Written(api_key));
        }
        if !offered {
            return Err(Malformed);
        }
        r.nullable_string()?; // Client id.
        r.flexible = control::is_flexible(api_key, version);
        r.skip_tags()?;
        response.begin(correlation_id, r.flexible);
        let state = &mut self.shared.lock();
        if api_key == ApiKey::Fetch as i16 {
            let pending = fetch::open(state, broker, version, r)?;
            return Ok(Begun::Fetch(Box::new(pending)));
        }
        response.no_tags();
        match ApiKey::try_from(api_key) {
            Ok(ApiKey::Metadata) => control::metadata(state, broker, version, &mut r, response)?,
            Ok(ApiKey::ListOffsets) => {
                control::list_offsets(state, broker, version, &mut r, response)?;
            }
            Ok(ApiKey::OffsetForLeaderEpoch) => {
                control::offset_for_leader_epoch(state, broker, version, &mut r, response)?;
            }
            _ => return Err(Malformed),
        }
        response.finish();
        Ok(Begun::Written(api_key))
    }
}

impl WaitingFetch {
    /// How many bytes the answer may have.
    pub fn bytes_max(&self) -> i32 {
        self.pending.bytes_max()
    }

    /// How long the request wants to wait at most.
    pub fn wait_max(&self) -> Duration {
        self.pending.wait_max()
    }

    /// The answer, a whole frame, if there is enough to say or the time is over. Not to be asked
    /// again after it.
    pub fn look(&mut self, time_over: bool) -> Option<Vec<u8>> {
        let Self { desk, broker, pending, response } = self;
        let mut state = desk.shared.lock();
        match pending.look(&mut state, desk.fetch, *broker, time_over, response) {
            Look::NotYet(_) => None,
            Look::Written => {
                response.finish();
                Some(std::mem::take(response).into_bytes())
            }
        }
    }
}
