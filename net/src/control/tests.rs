//! The control client against server threads.

use super::*;
use crate::testing::{Reply, encoded, serve, serve_all};
use kafka_protocol::messages::api_versions_response::ApiVersion;
use kafka_protocol::messages::list_offsets_response::{
    ListOffsetsPartitionResponse, ListOffsetsTopicResponse,
};
use kafka_protocol::messages::metadata_response::{
    MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use kafka_protocol::messages::{
    ApiVersionsResponse, ListOffsetsResponse, MetadataRequest, MetadataResponse,
};
use kafka_protocol::protocol::{Decodable, Encodable};
use std::net::TcpListener;
use uuid::Uuid;

fn on_tokio<T>(root: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(root)
}

fn client(servers: &[String]) -> ControlClient {
    ControlClient::new(servers.to_vec(), ControlOptions::default())
}

/// An address where nobody listens.
fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").to_string()
}

fn cluster(port: u16) -> MetadataResponse {
    let broker = MetadataResponseBroker::default()
        .with_node_id(3.into())
        .with_host(StrBytes::from_static_str("127.0.0.1"))
        .with_port(port.into());
    let partition = MetadataResponsePartition::default()
        .with_partition_index(0)
        .with_leader_id(3.into())
        .with_leader_epoch(8)
        .with_replica_nodes(vec![3.into(), 4.into()])
        .with_isr_nodes(vec![3.into()]);
    let orphan = MetadataResponsePartition::default()
        .with_partition_index(1)
        .with_leader_id((-1).into())
        .with_error_code(5);
    let topic = MetadataResponseTopic::default()
        .with_name(Some(StrBytes::from_static_str("orders").into()))
        .with_topic_id(Uuid::from_u128(5))
        .with_partitions(vec![partition, orphan])
        .with_topic_authorized_operations(1 << 3 | 1 << 8);
    MetadataResponse::default()
        .with_cluster_id(Some(StrBytes::from_static_str("the-cluster")))
        .with_controller_id(3.into())
        .with_brokers(vec![broker])
        .with_topics(vec![topic])
}

#[test]
fn a_cluster_is_described() {
    let address = serve(18, 11, |asked| {
        assert_eq!((asked.api_key, asked.version), (3, 13));
        Reply::Body(encoded(&cluster(1234), 13))
    });
    on_tokio(async {
        let mut client = client(&[address.to_string()]);
        let found = client.metadata(Topics::All, true).await.expect("answers");
        assert_eq!(found.cluster_id.as_deref(), Some("the-cluster"));
        assert_eq!((found.controller, found.rights), (Some(3), Rights::default()));
        assert_eq!(found.broker(3).expect("a broker").server(), "127.0.0.1:1234");
        let topic = &found.topics[0];
        assert_eq!((topic.name.as_str(), topic.id), ("orders", Some(Uuid::from_u128(5))));
        assert_eq!(topic.rights.may(Operation::Read), Some(true));
        assert_eq!(topic.rights.may(Operation::DescribeConfigs), Some(false));
        assert_eq!(found.rights.may(Operation::Read), None);
        let [first, second] = &topic.partitions[..] else { panic!("two partitions") };
        assert_eq!((first.leader, first.leader_epoch), (Some(3), 8));
        assert_eq!((&first.replicas[..], &first.in_sync[..]), (&[3, 4][..], &[3][..]));
        assert_eq!((second.leader, second.error), (None, ErrorCode(5)));
        assert_eq!(client.peer(), Some(address.to_string().as_str()));
    });
}

/// Every version can ask, and never asks for a topic to be created.
#[test]
fn questions_are_expressible_in_every_version() {
    for version in Api::Metadata.spoken() {
        for (topics, rights) in [(Topics::All, true), (Topics::Named(&["a", "b"]), false)] {
            let mut out = Vec::new();
            metadata_request(topics, rights, version).encode(&mut out, version).expect("encodes");
            let decoded = MetadataRequest::decode(&mut &out[..], version).expect("decodes");
            assert!(!decoded.allow_auto_topic_creation);
            assert_eq!(decoded.include_topic_authorized_operations, rights && version >= 8);
            assert_eq!(
                decoded.topics.map(|topics| topics.len()),
                match topics {
                    Topics::All => None,
                    Topics::Named(names) => Some(names.len()),
                }
            );
        }
    }
}

#[test]
fn any_server_of_the_list_will_do_and_the_error_names_all() {
    let address = serve(18, usize::MAX, |_| Reply::Body(encoded(&cluster(1), 13)));
    let (dead, nameless) = (nobody(), "no-such-host.invalid:9092".to_owned());
    on_tokio(async {
        let mut with_one = client(&[nameless.clone(), dead.clone(), address.to_string()]);
        with_one.metadata(Topics::All, false).await.expect("the third answers");
        let mut without = client(&[nameless.clone(), dead.clone(), dead.clone()]);
        let error = without.metadata(Topics::All, false).await.expect_err("nobody answers");
        let ControlError::Unreachable(tried) = &error else { panic!("{error}") };
        assert_eq!(tried.len(), 2, "{error}");
        assert_eq!((tried[0].server.as_str(), tried[0].address), (nameless.as_str(), None));
        assert_eq!(tried[1].address.expect("resolved").to_string(), dead);
        assert!(error.to_string().contains(&dead), "{error}");
        let empty = client(&[]).connect().await.expect_err("nothing to try");
        assert_eq!(empty.to_string(), "no server answers: there is none to try");
    });
}

#[test]
fn a_connection_that_broke_is_opened_again_once() {
    let mut requests = 0;
    let address = serve(18, usize::MAX, move |_| {
        requests += 1;
        match requests {
            2 | 4.. => Reply::RawAndClose(Vec::new()),
            _ => Reply::Body(encoded(&cluster(1), 13)),
        }
    });
    on_tokio(async {
        let mut client = client(&[address.to_string()]);
        client.metadata(Topics::All, false).await.expect("the first");
        client.metadata(Topics::All, false).await.expect("the second, asked again");
        let error = client.metadata(Topics::All, false).await.expect_err("closed twice");
        assert!(matches!(error, ControlError::Request(NetError::Closed { .. })), "{error}");
        assert_eq!(client.peer(), None);
    });
}

#[test]
fn lies_are_errors_with_the_address() {
    let lies: [fn() -> Reply; 6] = [
        || Reply::Raw(vec![0x7f, 0xff, 0xff, 0xff]),
        || Reply::Raw(vec![0, 0, 0, 4, 1, 2, 3, 4]),
        || Reply::Body(vec![0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0x0f]),
        || Reply::Body(encoded(&cluster(1).with_error_code(129), 13)),
        || {
            let mut lying = cluster(1);
            lying.brokers[0].port = 70_000;
            Reply::Body(encoded(&lying, 13))
        },
        || {
            let mut lying = cluster(1);
            lying.topics[0].name = Some(StrBytes::from_static_str("../../etc").into());
            Reply::Body(encoded(&lying, 13))
        },
    ];
    for (number, lie) in lies.into_iter().enumerate() {
        let address = serve(18, usize::MAX, move |_| lie());
        on_tokio(async {
            let mut client = client(&[address.to_string()]);
            let error = client.metadata(Topics::All, false).await.expect_err("a lie");
            assert!(error.to_string().contains(&address.to_string()), "{number}: {error}");
            assert_eq!(client.peer(), None, "{number}");
        });
    }
}

#[test]
fn silence_has_a_limit() {
    let address = serve(18, usize::MAX, |_| Reply::Silence);
    on_tokio(async {
        let options =
            ControlOptions { request_limit: Duration::from_millis(50), ..Default::default() };
        let mut client = ControlClient::new(vec![address.to_string()], options);
        let error = client.metadata(Topics::All, false).await.expect_err("silence");
        assert!(matches!(error, ControlError::Request(NetError::TimedOut { .. })), "{error}");
    });
}

#[test]
fn an_old_source_has_neither_ids_nor_rights() {
    let address = serve_all(usize::MAX, |asked| {
        if asked.api_key == 3 {
            assert_eq!(asked.version, 7);
            let mut old = cluster(1);
            old.topics[0].topic_authorized_operations = i32::MIN;
            return Reply::Body(encoded(&old, 7));
        }
        let answer = ApiVersionsResponse::default();
        let rows = [(1, 10), (2, 4), (3, 7), (18, 2), (23, 2)]
            .map(|(key, high)| ApiVersion::default().with_api_key(key).with_max_version(high));
        Reply::Body(match asked.version {
            0 => encoded(&answer.with_api_keys(rows.into()), 0),
            _ => encoded(&answer.with_error_code(35), 0),
        })
    });
    on_tokio(async {
        let mut client = client(&[address.to_string()]);
        let found = client.metadata(Topics::All, true).await.expect("answers");
        assert_eq!(found.topics[0].id, None);
        assert_eq!(found.topics[0].rights.may(Operation::Read), None);
        assert_eq!(client.versions().and_then(|known| known.newest(Api::Fetch)), Some(10));
    });
}

#[test]
fn offsets_are_asked_of_the_leader() {
    let address = serve(18, usize::MAX, |asked| {
        assert_eq!((asked.api_key, asked.version), (2, 10));
        let row = ListOffsetsPartitionResponse::default().with_offset(41);
        let topic = ListOffsetsTopicResponse::default()
            .with_name(StrBytes::from_static_str("orders").into())
            .with_partitions(vec![row]);
        let answer = ListOffsetsResponse::default().with_topics(vec![topic]);
        Reply::Body(encoded(&answer, 10))
    });
    on_tokio(async {
        let host = address.ip().to_string();
        let leader = Broker { id: 3, host, port: address.port(), rack: None };
        let question = OffsetQuestion {
            topic: "orders",
            partition: 0,
            leader_epoch: -1,
            timestamp: questions::LATEST,
        };
        let answers = client(&[]).list_offsets(&leader, &[question]).await.expect("answers");
        assert_eq!(answers, [Ok(41)]);
    });
}
