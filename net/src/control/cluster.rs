//! A cluster as its metadata shows it.

use crate::codes::ErrorCode;
use crate::error::DecodeError;
use crate::limits::TOPIC_NAME_BYTES_MAX;
use kafka_protocol::messages::MetadataResponse;
use kafka_protocol::messages::metadata_response::{
    MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use uuid::Uuid;

/// A cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterMetadata {
    /// Its id.
    pub cluster_id: Option<String>,
    /// Its controller, as clients may know it.
    pub controller: Option<i32>,
    /// Its brokers that are up.
    pub brokers: Vec<Broker>,
    /// The topics asked for, as far as we may describe them.
    pub topics: Vec<TopicMetadata>,
    /// What we may do on the cluster.
    pub rights: Rights,
}

/// A broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broker {
    /// Its id.
    pub id: i32,
    /// Its advertised name.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Where it stands.
    pub rack: Option<String>,
}

/// A topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicMetadata {
    /// Its name.
    pub name: String,
    /// Its id; sources before 2.8 have none.
    pub id: Option<Uuid>,
    /// Concerns the topic.
    pub error: ErrorCode,
    /// Kafka's own.
    pub internal: bool,
    /// Its partitions, in the order of the answer.
    pub partitions: Vec<PartitionMetadata>,
    /// What we may do with it.
    pub rights: Rights,
}

/// A partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionMetadata {
    /// Its number.
    pub partition: i32,
    /// Concerns the partition.
    pub error: ErrorCode,
    /// Who leads it; `None` when nobody does.
    pub leader: Option<i32>,
    /// Since which epoch; -1 when not told.
    pub leader_epoch: i32,
    /// Who has copies.
    pub replicas: Vec<i32>,
    /// Whose copies are complete.
    pub in_sync: Vec<i32>,
}

/// What we may do, as the source tells when asked (KIP-430).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rights {
    bits: Option<i32>,
}

/// Something one may be allowed to do; the values are Kafka's operation codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Fetch records, or a group's offsets.
    Read = 3,
    /// Produce records.
    Write = 4,
    /// See that something exists, and its offsets.
    Describe = 8,
    /// Act as a broker.
    ClusterAction = 9,
    /// Read configuration.
    DescribeConfigs = 10,
}

impl Rights {
    /// Whether we may; `None` when the source does not tell.
    pub fn may(self, operation: Operation) -> Option<bool> {
        self.bits.map(|bits| bits & (1 << operation as i32) != 0)
    }

    fn from_wire(bits: i32) -> Rights {
        Rights { bits: (bits != i32::MIN).then_some(bits) }
    }
}

impl Broker {
    /// `host:port`, as a bootstrap server is written.
    pub fn server(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }
}

impl ClusterMetadata {
    /// Finds a broker by its id.
    pub fn broker(&self, id: i32) -> Option<&Broker> {
        self.brokers.iter().find(|broker| broker.id == id)
    }

    /// Takes what an answer says.
    ///
    /// # Errors
    /// Where it cannot be meant: names that no topic can have, negative partitions, strange ports.
    pub fn from_response(response: MetadataResponse) -> Result<Self, DecodeError> {
        let brokers = response.brokers.into_iter().map(broker);
        Ok(ClusterMetadata {
            cluster_id: response.cluster_id.map(|id| id.to_string()),
            controller: (response.controller_id.0 >= 0).then_some(response.controller_id.0),
            brokers: brokers.collect::<Result<_, _>>()?,
            topics: response.topics.into_iter().map(topic).collect::<Result<_, _>>()?,
            rights: Rights::from_wire(response.cluster_authorized_operations),
        })
    }
}

fn broker(row: MetadataResponseBroker) -> Result<Broker, DecodeError> {
    let strange = || DecodeError::Content(format!("broker {}: port {}", row.node_id.0, row.port));
    Ok(Broker {
        id: row.node_id.0,
        port: u16::try_from(row.port).map_err(|_| strange())?,
        host: row.host.to_string(),
        rack: row.rack.map(|rack| rack.to_string()),
    })
}

fn topic(row: MetadataResponseTopic) -> Result<TopicMetadata, DecodeError> {
    let name = row.name.map(|name| name.to_string()).unwrap_or_default();
    if !is_topic_name(&name) {
        return Err(DecodeError::Content(format!("{name:?} is no topic's name")));
    }
    Ok(TopicMetadata {
        name,
        id: (!row.topic_id.is_nil()).then_some(row.topic_id),
        error: ErrorCode(row.error_code),
        internal: row.is_internal,
        partitions: row.partitions.into_iter().map(partition).collect::<Result<_, _>>()?,
        rights: Rights::from_wire(row.topic_authorized_operations),
    })
}

/// Kafka's own rule. Names become folders, so nothing else may pass.
fn is_topic_name(name: &str) -> bool {
    let legal = |c: u8| c.is_ascii_alphanumeric() || b"._-".contains(&c);
    (1..=TOPIC_NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(legal)
        && !matches!(name, "." | "..")
}

fn partition(row: MetadataResponsePartition) -> Result<PartitionMetadata, DecodeError> {
    if row.partition_index < 0 {
        return Err(DecodeError::Content(format!("partition {}", row.partition_index)));
    }
    Ok(PartitionMetadata {
        partition: row.partition_index,
        error: ErrorCode(row.error_code),
        leader: (row.leader_id.0 >= 0).then_some(row.leader_id.0),
        leader_epoch: row.leader_epoch,
        replicas: row.replica_nodes.iter().map(|id| id.0).collect(),
        in_sync: row.isr_nodes.iter().map(|id| id.0).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_their_folder_are_refused() {
        for good in ["a", "orders.v1_X-2", "...", "__consumer_offsets", &"x".repeat(249)] {
            assert!(is_topic_name(good), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "../a", "a\0b", "ä", "a b", &"x".repeat(250)] {
            assert!(!is_topic_name(bad), "{bad:?}");
        }
    }
}
