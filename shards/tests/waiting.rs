//! Whoever waits is served in the end: for memory, for a leader, for a person.

mod harness;

use std::time::{Duration, Instant, UNIX_EPOCH};

use harness::{LINK, Rig, settings};
use shards::control::*;
use source::{Config, Fault, Target, TopicSpec, serve};

fn topic(name: &str, partitions: i32, batches: u64) -> TopicSpec {
    TopicSpec::new(name, partitions, batches).with_batches(7, 20_000, 16)
}

/// Waits without answering for control: nobody tells the shard anything.
fn until_alone(rig: &Rig, what: &str, holds: impl Fn(&ShardStatus) -> bool) {
    let begun = Instant::now();
    loop {
        let status = rig.status();
        if holds(&status) {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{what} never came: {status:#?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn more_connections_than_memory_for_whole_fetches() {
    let orders = topic("orders", 9, 60);
    let source = serve(Config::loopback(9).with_topic(orders.clone())).expect("a source");
    let mut rig = Rig::new(source, &[&orders], settings());
    rig.until_caught_up();
    rig.stop();
    rig.assert_equal();
}

#[test]
fn a_leader_that_refuses_for_a_moment_is_asked_again_though_metadata_says_nothing_new() {
    let orders = topic("orders", 2, 50);
    let source = serve(Config::loopback(1).with_topic(orders.clone())).expect("a source");
    // NOT_LEADER_OR_FOLLOWER, as from a broker that has not heard yet that it leads.
    source.cluster().inject(Target::partition("orders", 1), Fault::ErrorCode(6), Some(1));
    let mut rig = Rig::new(source, &[&orders], settings());
    until_alone(&rig, "both partitions", |status| {
        status.partitions.iter().all(|p| p.flushed == 800)
    });
    rig.stop();
    rig.assert_equal();
}

#[test]
fn to_resume_what_runs_changes_nothing() {
    let orders = topic("orders", 2, 50);
    let source = serve(Config::loopback(1).with_topic(orders.clone())).expect("a source");
    let mut rig = Rig::new(source, &[&orders], settings());
    rig.until_caught_up();
    let active =
        |status: &ShardStatus| status.partitions.iter().all(|p| p.state == PartitionState::Active);
    rig.until("an active topic", active);
    rig.tell(Command::Resume { link: LINK.into(), topics: None });
    rig.tell(Command::Resume { link: LINK.into(), topics: Some(vec!["orders".into()]) });
    until_alone(&rig, "an active topic", active);
    rig.stop();
}

#[test]
fn a_link_paused_while_a_log_is_cut_goes_on_afterwards() {
    let orders = topic("orders", 1, 300);
    let source = serve(Config::loopback(1).with_topic(orders.clone())).expect("a source");
    let mut rig = Rig::new(source, &[&orders], settings());
    rig.until_caught_up();
    rig.settings.allow_truncation = true;
    rig.tell(Command::Link { link: LINK.into(), settings: rig.settings.clone() });
    for round in 0..20 {
        rig.source.cluster().lose_tail("orders", 0, 1600 + 16 * round).expect("loses");
        rig.source.cluster().append("orders", 0, 100).expect("appends");
        rig.tell_leaders();
        std::thread::sleep(Duration::from_millis(2 * round as u64));
        rig.ask(|reply| Command::Pause { link: LINK.into(), topics: None, reply });
        rig.tell(Command::Resume { link: LINK.into(), topics: None });
        rig.until_caught_up();
    }
    rig.stop();
    rig.assert_equal();
}

#[test]
fn a_larger_batch_limit_counts_for_open_logs_too() {
    let huge = TopicSpec::new("huge", 1, 2).with_batches(3, 5 << 20, 2);
    let source = serve(Config::loopback(1).with_topic(huge.clone())).expect("a source");
    let mut rig = Rig::new(source, &[&huge], settings());
    rig.until("the fault", |status| {
        status.partitions[0].state == PartitionState::Faulted(FaultCode::BatchTooLarge)
    });
    rig.settings.batch_bytes_max = 8 << 20;
    rig.tell(Command::Link { link: LINK.into(), settings: rig.settings.clone() });
    rig.tell(Command::Resume { link: LINK.into(), topics: Some(vec!["huge".into()]) });
    rig.until_caught_up();
    rig.stop();
    rig.assert_equal();
}

#[test]
fn a_source_that_is_back_is_tried_at_once_when_control_hears_of_it() {
    let orders = TopicSpec::new("orders", 2, 40).with_batches(7, 20_000, 16);
    let source = serve(Config::loopback(1).with_topic(orders.clone())).expect("a source");
    let mut rig = Rig::new(source, &[&orders], settings());
    rig.until_caught_up();
    rig.source.stop_broker(0).expect("stops");
    // Nobody answers the shard's questions meanwhile, so its pauses grow.
    let now_ms = || UNIX_EPOCH.elapsed().expect("a clock").as_millis() as i64;
    let retry_at_ms = loop {
        let status = rig.status();
        let retries: Vec<_> = status.partitions.iter().filter_map(|p| p.retry_at_ms).collect();
        match retries.iter().min() {
            Some(at) if *at - now_ms() > 12_000 && retries.len() == 2 => break *at,
            _ => std::thread::sleep(Duration::from_millis(50)),
        }
    };
    rig.source.start_broker(0).expect("starts");
    rig.source.cluster().append("orders", 0, 5).expect("appends");
    rig.tell_leaders();
    rig.until_caught_up();
    assert!(now_ms() < retry_at_ms, "it waited its pause out");
    rig.stop();
    rig.assert_equal();
}
