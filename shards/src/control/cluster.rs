//! The source as control sees it, for the shards: brokers, and who leads what.

use std::net::SocketAddr;
use std::sync::Arc;

use uuid::Uuid;

/// The source cluster as control last saw it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterView {
    /// Its brokers.
    pub brokers: Vec<Broker>,
    /// The link's topics.
    pub topics: Vec<TopicView>,
}

/// One broker, its name resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broker {
    /// Its id.
    pub id: i32,
    /// Its name as advertised.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Where that is; tried in order.
    pub addresses: Vec<SocketAddr>,
}

/// One topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicView {
    /// Its name.
    pub topic: Arc<str>,
    /// Its id, if the source has ids.
    pub topic_id: Option<Uuid>,
    /// Its partitions.
    pub partitions: Vec<PartitionView>,
}

/// One partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionView {
    /// Its number.
    pub partition: i32,
    /// Who leads it; `None`: nobody now.
    pub leader: Option<i32>,
    /// The leader's epoch; −1 when unknown.
    pub leader_epoch: i32,
}
