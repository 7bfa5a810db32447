//! A blocking client: one request at a time, everything decoded by the `kafka-protocol` crate.

use bytes::{Buf, Bytes, BytesMut};
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::fetch_response::PartitionData;
use kafka_protocol::messages::{
    FetchRequest, FetchResponse, RequestHeader, ResponseHeader, TopicName,
};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, Request, StrBytes};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;
use uuid::Uuid;

pub struct Client {
    pub stream: TcpStream,
    correlation_id: i32,
}

impl Client {
    pub fn connect(address: SocketAddr) -> Client {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        Client { stream, correlation_id: 7 }
    }

    pub fn ask<R: Request>(&mut self, request: &R, version: i16) -> R::Response {
        self.try_ask(request, version).unwrap()
    }

    pub fn try_ask<R: Request>(&mut self, request: &R, version: i16) -> io::Result<R::Response> {
        self.send(request, version);
        let mut frame = self.frame()?;
        let header = ResponseHeader::decode(&mut frame, R::Response::header_version(version))
            .map_err(io::Error::other)?;
        if header.correlation_id != self.correlation_id {
            return Err(io::Error::other("another correlation id"));
        }
        let response = R::Response::decode(&mut frame, version).map_err(io::Error::other)?;
        if frame.has_remaining() {
            return Err(io::Error::other("bytes left over"));
        }
        Ok(response)
    }

    pub fn send<R: Request>(&mut self, request: &R, version: i16) {
        self.correlation_id += 1;
        let header = RequestHeader::default()
            .with_request_api_key(R::KEY)
            .with_request_api_version(version)
            .with_correlation_id(self.correlation_id)
            .with_client_id(Some(StrBytes::from_static_str("test")));
        let mut bytes = BytesMut::new();
        header.encode(&mut bytes, R::header_version(version)).unwrap();
        request.encode(&mut bytes, version).unwrap();
        self.send_frame(&bytes);
    }

    pub fn send_frame(&mut self, bytes: &[u8]) {
        let mut frame = (bytes.len() as u32).to_be_bytes().to_vec();
        frame.extend_from_slice(bytes);
        self.stream.write_all(&frame).unwrap();
    }

    pub fn frame(&mut self) -> io::Result<Bytes> {
        let mut length = [0; 4];
        self.stream.read_exact(&mut length)?;
        let mut frame = vec![0; u32::from_be_bytes(length) as usize];
        self.stream.read_exact(&mut frame)?;
        Ok(frame.into())
    }
}

/// What a test asks of one partition.
#[derive(Clone, Debug)]
pub struct Ask {
    pub topic: &'static str,
    pub id: Uuid,
    pub partition: i32,
    pub offset: i64,
    pub epoch: i32,
    pub last_epoch: i32,
    pub bytes_max: i32,
}

pub fn ask(topic: &'static str, id: Uuid, partition: i32, offset: i64) -> Ask {
    Ask { topic, id, partition, offset, epoch: -1, last_epoch: -1, bytes_max: 1 << 20 }
}

pub fn topic_name(name: &str) -> TopicName {
    TopicName(StrBytes::from_string(name.to_owned()))
}

pub fn fetch_request(version: i16, asks: &[Ask]) -> FetchRequest {
    let topics = asks.iter().map(|ask| {
        let mut partition = FetchPartition::default()
            .with_partition(ask.partition)
            .with_fetch_offset(ask.offset)
            .with_partition_max_bytes(ask.bytes_max);
        if version >= 9 {
            partition = partition.with_current_leader_epoch(ask.epoch);
        }
        if version >= 12 {
            partition = partition.with_last_fetched_epoch(ask.last_epoch);
        }
        let topic = FetchTopic::default().with_partitions(vec![partition]);
        match version {
            13.. => topic.with_topic_id(ask.id),
            _ => topic.with_topic(topic_name(ask.topic)),
        }
    });
    let request = FetchRequest::default()
        .with_max_wait_ms(0)
        .with_min_bytes(1)
        .with_max_bytes(50 << 20)
        .with_topics(topics.collect());
    if version >= 7 { request.with_session_id(0).with_session_epoch(-1) } else { request }
}

/// All partitions of an answer, in order.
pub fn partitions(response: &FetchResponse) -> Vec<&PartitionData> {
    response.responses.iter().flat_map(|topic| &topic.partitions).collect()
}

pub fn records(data: &PartitionData) -> Bytes {
    data.records.clone().unwrap_or_default()
}

/// Fetch one partition without a session.
pub fn fetch_one(client: &mut Client, version: i16, what: Ask) -> PartitionData {
    let response = client.ask(&fetch_request(version, &[what]), version);
    assert_eq!(response.error_code, 0);
    let all = partitions(&response);
    assert_eq!(all.len(), 1);
    all[0].clone()
}
