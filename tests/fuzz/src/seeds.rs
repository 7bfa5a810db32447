//! Seeds: small, well-formed inputs from which every target's search begins, made by encoders.

mod disk;
mod wire;

pub use disk::{batch_of_epoch, plain_batch};

use crate::Target;
use ::appliance::controller::records::{End, LinkRecord, TopicRecord, set_link, set_topic};
use ::appliance::states::{LinkMode, TopicState};
use uuid::Uuid;

/// The seeds of a target.
pub fn of(target: &Target) -> Vec<Vec<u8>> {
    match target.name {
        "fetch_response" => wire::fetch_responses(),
        "api_versions" => wire::api_versions(),
        "metadata" => wire::metadata(),
        "list_offsets" => wire::list_offsets(),
        "epoch_ends" => wire::epoch_ends(),
        "frames" => wire::frames(),
        "batches" => disk::batches(),
        "marker" => disk::markers(),
        "segment" => disk::segments(),
        "indexes" => disk::indexes(),
        "producers" => disk::producers(),
        "epochs" => texts(&["0\n0\n", "0\n3\n1 0\n4 10\n5 25\n", "0\n1\n-1 0\n"]),
        "names" => texts(&[
            "00000000000000000042.timeindex",
            "orders.v1-12",
            "AAAAAAAAAAAAAAAAAAAAAQ",
            "version: 0\ntopic_id: AAAAAAAAAAAAAAAAAAAAAQ\n",
        ]),
        "checkpoint" => disk::checkpoints(),
        "seal" => disk::seals(),
        "recovery" => disk::recoveries(),
        "open" => disk::folders(),
        "records" => vec![stored_records(), Vec::new()],
        "store" => store_changes(),
        "configuration" => texts(CONFIGURATIONS),
        "filters" => filters(),
        "admin_request" => texts(REQUESTS),
        "admin_body" => texts(&[
            "\0",
            "\0{\"dry_run\":true,\"force\":false}",
            "\0{\"topics\":[\"a\",\"b-1\"]}",
            "\u{1}{\"force\":true}",
        ]),
        other => panic!("{other} has no seeds"),
    }
}

/// Keys and values of a metadata store.
pub fn stored_pairs() -> Vec<(String, Vec<u8>)> {
    let link = LinkRecord { mode: LinkMode::Paused, since_ms: 7, cluster_id: Some("c".into()) };
    let topic = TopicRecord {
        topic_id: Some(Uuid::from_u128(5)),
        partitions: vec!["/a".into(), "/b".into()],
        state: TopicState::FailingOver,
        code: None,
        reason: Some("why".to_owned()),
        since_ms: 9,
        ends: vec![End { partition: 0, end_offset: Some(3), last_epoch: Some(1), error: None }],
        deleting: false,
    };
    [set_link("prod", &link), set_topic("prod", "a.b", &topic)]
        .map(|change| (change.key, change.value.expect("a value")))
        .into()
}

fn texts(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

/// Bytes behind their length.
fn run(bytes: &[u8]) -> Vec<u8> {
    let mut out = (bytes.len() as u16).to_be_bytes().to_vec();
    out.extend_from_slice(bytes);
    out
}

fn stored_records() -> Vec<u8> {
    let pairs = stored_pairs().into_iter();
    pairs.flat_map(|(key, value)| [run(key.as_bytes()), run(&value)].concat()).collect()
}

fn store_changes() -> Vec<Vec<u8>> {
    let changed = |forged: u8, at: u32, bytes: &[u8]| {
        [&[forged], &at.to_be_bytes()[1..], &run(bytes)[..]].concat()
    };
    vec![
        vec![0],
        changed(0, 0, b"redb"),
        changed(0, 8, &[2, 0, 0, 0]),
        changed(0, 50, &[0xff]),
        changed(0, 60, &[]),
        changed(1, 12, &[1]),
        changed(1, 16, &[0xff; 8]),
        changed(1, 24, &[0, 0, 0, 0x40]),
        changed(1, 24, &[0; 8]),
        changed(1, 40, &[0xff; 8]),
        changed(1, 48, b"zebra"),
        changed(1, 1900, b"behind the records"),
    ]
}

fn filters() -> Vec<Vec<u8>> {
    let seed = |parts: [&str; 3]| parts.map(|part| run(part.as_bytes())).concat();
    vec![
        seed(["*", "_*", "orders"]),
        seed(["orders", "", "orders"]),
        seed([r"/eu-\d+/", "eu-1*", "eu-12"]),
        seed(["/(a|b)+c?/", "/[^x]*/", "abab"]),
    ]
}

const CONFIGURATIONS: &[&str] = &[
    r#"[node]
id = 1
data_dirs = ["/var/lib/understudy"]
admin_socket = "/run/understudy/admin.sock"
admin_socket_mode = "0660"
metrics = "127.0.0.1:9644"
stop_timeout = "30s"
[shards]
cores = "2-9,12"
memory = "2GiB"
profile = "auto"
[[link]]
name = "prod"
bootstrap_servers = ["kafka-1:9092", "[::1]:9092"]
topics = { include = ["*", "/v\\d+/"], exclude = ["_*"] }
start = 2026-11-20T00:00:00Z
metadata_interval = "5s"
rate_limit = "10MiB"
connections_max = 8
cluster_id = "abc"
allow_truncation = false
on_source_gap = "fault"
undo_window = "7d"
batch_bytes_max = 0x100_000
"#,
    "[node]\ndata_dirs = [\"a\"]\n[[link]]\nname = \"b\"\nbootstrap_servers = [\"c:1\"]\n",
    "[node]\ndata_dir = 3\n[shards]\nmemory = \"many\"\n[[link]]\nlisten = 1\nstart = \"never\"\n",
];

const REQUESTS: &[&str] = &[
    "GET /v1/status HTTP/1.1\r\nhost: x\r\n\r\n",
    "POST /v1/links/prod/failover HTTP/1.1\r\nhost: x\r\ncontent-length: 16\r\n\r\n\
     {\"dry_run\":true}",
    "POST /v1/links/prod/topics/a.b/pause HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n\
     2\r\n{}\r\n0\r\n\r\n",
    "GET /v1/version HTTP/1.1\r\n\r\nGET /v1/links HTTP/1.1\r\nconnection: close\r\n\r\n",
    "DELETE /v1/links/%2e%2e?x#y HTTP/1.0\r\n\r\n",
];
