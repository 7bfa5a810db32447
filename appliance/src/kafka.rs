//! A real Kafka behind the controller's `Source`.

use crate::config::LinkConfig;
use crate::controller::source::{
    Connector, LocalFuture, Source, SourceBroker, SourceCluster, SourcePartition, SourceTopic,
};
use net::control::{ClusterMetadata, ControlClient, ControlOptions, Topics};
use std::time::Duration;

/// How long connecting to one address may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// How long an answer may take; metadata of ten thousand topics is some megabytes.
const REQUEST_LIMIT: Duration = Duration::from_secs(15);

/// Makes clients that call themselves so.
#[derive(Clone, Debug)]
pub struct Kafka {
    /// What the source sees.
    pub client_id: String,
}

impl Kafka {
    /// A client for a link's source; opens nothing yet.
    pub fn client(&self, link: &LinkConfig) -> ControlClient {
        let options = ControlOptions {
            client_id: self.client_id.clone(),
            connect_limit: CONNECT_LIMIT,
            request_limit: REQUEST_LIMIT,
        };
        ControlClient::new(link.bootstrap_servers.clone(), options)
    }
}

impl Connector for Kafka {
    fn source(&self, link: &LinkConfig) -> Box<dyn Source> {
        Box::new(Client(self.client(link)))
    }
}

struct Client(ControlClient);

impl Source for Client {
    fn metadata(&mut self) -> LocalFuture<'_, Result<SourceCluster, String>> {
        Box::pin(async {
            let metadata = self.0.metadata(Topics::All, false).await;
            metadata.map(cluster).map_err(|error| error.to_string())
        })
    }
}

/// What control needs of a cluster's metadata.
pub fn cluster(metadata: ClusterMetadata) -> SourceCluster {
    let brokers = metadata.brokers.into_iter().map(|broker| SourceBroker {
        id: broker.id,
        host: broker.host,
        port: broker.port,
    });
    let topics = metadata.topics.into_iter().map(|topic| {
        let mut partitions: Vec<SourcePartition> = topic
            .partitions
            .iter()
            .map(|seen| SourcePartition {
                partition: seen.partition,
                leader: seen.leader,
                leader_epoch: seen.leader_epoch,
            })
            .collect();
        partitions.sort_by_key(|seen| seen.partition);
        SourceTopic {
            name: topic.name,
            id: topic.id,
            error: (!topic.error.is_none()).then(|| topic.error.to_string()),
            partitions,
        }
    });
    SourceCluster {
        cluster_id: metadata.cluster_id,
        brokers: brokers.collect(),
        topics: topics.collect(),
    }
}
