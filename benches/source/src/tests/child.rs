//! The source as a process of its own.

use super::client::{Client, ask, fetch_one, records};
use crate::{ChildConfig, Expected, Growth, TopicSpec, parse_addresses, run_child};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

const CONFIG: &str = "UNDERSTUDY_TEST_SOURCE";

fn config() -> ChildConfig {
    let mut slow = TopicSpec::new("slow", 3, 0).with_batches(8, 300, 2);
    slow.growth = Growth { backlog_batches: 5, bytes_per_second: 0.25, batches_max: 9 };
    let slow = slow.growing_after(250);
    let topics = vec![TopicSpec::new("fast", 2, 40).with_batches(4, 1000, 5), slow];
    ChildConfig { brokers: 2, cluster_id: "child".into(), topics, ..ChildConfig::default() }
}

#[test]
fn a_configuration_survives_being_text() {
    let mut config = config();
    for core in [None, Some(3)] {
        config.core = core;
        assert_eq!(config.to_string().parse::<ChildConfig>().unwrap(), config);
    }
    for bad in ["brokers", "brokers=x", "weight=3", "topic=a weight=3", "partitions=3"] {
        assert!(bad.parse::<ChildConfig>().is_err(), "{bad}");
    }
}

/// Is the child where the variable says so; else nothing.
#[test]
fn child_process() {
    if let Ok(config) = std::env::var(CONFIG) {
        run_child(&config).unwrap();
    }
}

#[test]
fn a_child_serves_until_its_input_ends() {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "tests::child::child_process", "--nocapture"])
        .env(CONFIG, config().to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    // The test harness talks first.
    let addresses = lines.find_map(|line| parse_addresses(&line.unwrap())).unwrap();
    assert_eq!(addresses.len(), 2);
    let expected = Expected::new(&config().topics[0]).unwrap();
    let mut client = Client::connect(addresses[1]);
    let data = fetch_one(&mut client, 13, ask("fast", TopicSpec::topic_id("fast", 0), 1, 0));
    assert_eq!(records(&data), expected.bytes(1, 0..200));
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
    assert!(client.frame().is_err());
}
