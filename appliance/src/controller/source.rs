//! What control needs of a source cluster: its metadata. A trait, so that tests can lie.

use crate::config::LinkConfig;
use std::future::Future;
use std::pin::Pin;
use uuid::Uuid;

/// A future of the control thread.
pub type LocalFuture<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// A cluster as its metadata shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceCluster {
    /// Its id; sources before 0.10.1 have none.
    pub cluster_id: Option<String>,
    /// Its brokers.
    pub brokers: Vec<SourceBroker>,
    /// Every topic we may describe.
    pub topics: Vec<SourceTopic>,
}

/// One broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceBroker {
    /// Its id.
    pub id: i32,
    /// Its advertised name.
    pub host: String,
    /// Its port.
    pub port: u16,
}

/// One topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceTopic {
    /// Its name.
    pub name: String,
    /// Its id; sources before 2.8 have none.
    pub id: Option<Uuid>,
    /// The source could not describe it.
    pub error: Option<String>,
    /// Its partitions, by number.
    pub partitions: Vec<SourcePartition>,
}

/// One partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourcePartition {
    /// Partition number.
    pub partition: i32,
    /// Broker id of its leader.
    pub leader: Option<i32>,
    /// Leader epoch; -1 unknown.
    pub leader_epoch: i32,
}

/// Connections to one source cluster. Dropping it closes every socket.
pub trait Source {
    /// Asks for all topics. Bounded in time by itself.
    fn metadata(&mut self) -> LocalFuture<'_, Result<SourceCluster, String>>;
}

/// Makes [`Source`]s.
pub trait Connector {
    /// Prepares a client for a link; opens nothing yet.
    fn source(&self, link: &LinkConfig) -> Box<dyn Source>;
}
