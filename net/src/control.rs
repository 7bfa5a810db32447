//! The control thread's client, on tokio: what is rare, and never records.
//!
//! One connection to any broker of the cluster serves all questions about the cluster. It is
//! opened by trying the bootstrap servers in turn, each name resolved anew and every address it
//! has tried, and after them the brokers that the cluster itself named last. When it breaks, it is
//! opened anew within the same call, once: a broker closes what has been idle for long.
//! Questions about offsets go to the partitions' leaders, over connections of their own.
//!
//! Every wait has a limit; what was tried, where, and what came of it is in the error.

mod cluster;
mod wire;

use crate::codes::ErrorCode;
use crate::error::NetError;
use crate::messages::ControlRequest;
use crate::questions::{self, OffsetQuestion};
use crate::versions::{Api, Versions};
use kafka_protocol::messages::MetadataRequest;
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::protocol::StrBytes;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;
use wire::Wire;

pub use cluster::{Broker, ClusterMetadata, Operation, PartitionMetadata, Rights, TopicMetadata};

/// How to connect and how long to wait.
#[derive(Debug, Clone)]
pub struct ControlOptions {
    /// Our name in the source's logs and quotas.
    pub client_id: String,
    /// How long resolving one name, and connecting to one address, may take.
    pub connect_limit: Duration,
    /// How long an answer may take, whole.
    pub request_limit: Duration,
}

impl Default for ControlOptions {
    fn default() -> ControlOptions {
        ControlOptions {
            client_id: "understudy".to_owned(),
            connect_limit: Duration::from_secs(5),
            request_limit: Duration::from_secs(30),
        }
    }
}

/// Which topics to ask for.
#[derive(Debug, Clone, Copy)]
pub enum Topics<'a> {
    /// All that we may describe.
    All,
    /// These. None is created by asking.
    Named(&'a [&'a str]),
}

/// One server that was tried in vain.
#[derive(Debug)]
pub struct Attempt {
    /// As configured, or as the cluster named it.
    pub server: String,
    /// The address its name resolved to; `None` when it did not.
    pub address: Option<SocketAddr>,
    /// What came of it.
    pub error: NetError,
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.server, self.error)
    }
}

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// No server could be reached.
    #[error("no server answers: {}", attempts(.0))]
    Unreachable(Vec<Attempt>),
    /// A server was reached, and then the request failed.
    #[error(transparent)]
    Request(#[from] NetError),
}

/// A client for questions about one cluster. Dropping it closes every socket.
#[derive(Debug)]
pub struct ControlClient {
    bootstrap: Vec<String>,
    options: ControlOptions,
    /// Away while a request is under way, so that one given up half-way is not used again.
    wire: Option<Wire>,
    /// Brokers that the cluster named last.
    brokers: Vec<String>,
}

impl ControlClient {
    /// A client for the cluster behind these servers (`host:port`). Opens nothing yet.
    pub fn new(bootstrap: Vec<String>, options: ControlOptions) -> ControlClient {
        ControlClient { bootstrap, options, wire: None, brokers: Vec::new() }
    }

    /// Who answers at the moment.
    pub fn peer(&self) -> Option<&str> {
        self.wire.as_ref().map(Wire::peer)
    }

    /// Which versions that one serves.
    pub fn versions(&self) -> Option<&Versions> {
        self.wire.as_ref().map(Wire::versions)
    }

    /// Closes the connection; the next question opens another.
    pub fn close(&mut self) {
        self.wire = None;
    }

    /// Opens the connection, if there is none.
    ///
    /// # Errors
    /// [`ControlError::Unreachable`].
    pub async fn connect(&mut self) -> Result<(), ControlError> {
        if self.wire.is_some() {
            return Ok(());
        }
        let servers = self.bootstrap.iter().chain(&self.brokers);
        self.wire = Some(connect_any(servers, &self.options).await?);
        Ok(())
    }

    /// Asks for the cluster, its brokers and topics. With `rights` also for what we may do there,
    /// as far as the source tells.
    ///
    /// # Errors
    /// Any [`ControlError`]. What concerns one topic or partition is in its own error code.
    pub async fn metadata(
        &mut self,
        topics: Topics<'_>,
        rights: bool,
    ) -> Result<ClusterMetadata, ControlError> {
        let answer = self.ask(|version| metadata_request(topics, rights, version)).await;
        let (peer, version, response) = answer?;
        if response.error_code != 0 {
            self.close();
            let (api, code) = (Api::Metadata, ErrorCode(response.error_code));
            return Err(NetError::Refused { peer, api, code }.into());
        }
        let cluster = match ClusterMetadata::from_response(response) {
            Ok(cluster) => cluster,
            Err(source) => {
                self.close();
                let api = Api::Metadata;
                return Err(NetError::Decode { peer, api, version, source }.into());
            }
        };
        self.brokers = cluster.brokers.iter().map(Broker::server).collect();
        Ok(cluster)
    }

    /// Asks the broker that leads these partitions for offsets by time; one answer for each
    /// question, in order.
    ///
    /// # Errors
    /// Any [`ControlError`]. What concerns one partition is in its answer.
    pub async fn list_offsets(
        &self,
        leader: &Broker,
        asked: &[OffsetQuestion<'_>],
    ) -> Result<Vec<Result<i64, ErrorCode>>, ControlError> {
        let mut wire = connect_any([&leader.server()], &self.options).await?;
        let request = questions::offsets_request(asked);
        let (_, response) = wire.request(|_| request, &self.options).await?;
        Ok(questions::offset_answers(asked, &response))
    }

    /// Asks over the connection, over a new one if it broke.
    async fn ask<R: ControlRequest>(
        &mut self,
        request: impl Fn(i16) -> R,
    ) -> Result<(String, i16, R::Response), ControlError> {
        let mut fresh = self.wire.is_none();
        loop {
            self.connect().await?;
            let mut wire = self.wire.take().expect("connected");
            match wire.request(&request, &self.options).await {
                Ok((version, response)) => {
                    let peer = wire.peer().to_owned();
                    self.wire = Some(wire);
                    return Ok((peer, version, response));
                }
                Err(error) if fresh || !error.retriable() => return Err(error.into()),
                Err(error) => {
                    tracing::debug!(%error, "asking again over a new connection");
                    fresh = true;
                }
            }
        }
    }
}

fn metadata_request(topics: Topics<'_>, rights: bool, version: i16) -> MetadataRequest {
    let named = match topics {
        Topics::All => None,
        Topics::Named(names) => Some(names.iter().map(|name| {
            let name = StrBytes::from_string((*name).to_owned());
            MetadataRequestTopic::default().with_name(Some(name.into()))
        })),
    };
    MetadataRequest::default()
        .with_topics(named.map(Iterator::collect))
        .with_allow_auto_topic_creation(false)
        .with_include_topic_authorized_operations(rights && version >= 8)
        .with_include_cluster_authorized_operations(rights && (8..=10).contains(&version))
}

/// Tries the servers in turn, and of each every address, until one answers ApiVersions.
async fn connect_any(
    servers: impl IntoIterator<Item = &String>,
    options: &ControlOptions,
) -> Result<Wire, ControlError> {
    let mut tried: Vec<Attempt> = Vec::new();
    for server in servers {
        if tried.iter().any(|attempt| attempt.server == *server) {
            continue;
        }
        let addresses = match wire::resolve(server, options.connect_limit).await {
            Ok(addresses) => addresses,
            Err(error) => {
                tried.push(Attempt { server: server.clone(), address: None, error });
                continue;
            }
        };
        for address in addresses {
            match Wire::connect(server, address, options).await {
                Ok(wire) => return Ok(wire),
                Err(error) => {
                    tracing::debug!(server, %address, %error, "no answer");
                    let address = Some(address);
                    tried.push(Attempt { server: server.clone(), address, error });
                }
            }
        }
    }
    Err(ControlError::Unreachable(tried))
}

fn attempts(tried: &[Attempt]) -> String {
    if tried.is_empty() {
        return "there is none to try".to_owned();
    }
    tried.iter().map(Attempt::to_string).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests;
