//! The controller against shards, sources and stores that do as they are told.

use super::testing::*;
use super::*;
use crate::states::{TopicState, Verb};
use ::shards::control::{FaultCode, Mode, PartitionState};
use std::time::Duration;

mod halfway;

#[test]
fn topics_are_discovered_spread_and_replicated() {
    run(async {
        let house = copied().await;
        assert_eq!(house.modes("orders"), vec![Mode::Replicate; 3]);
        assert_eq!(house.modes("__internal"), Vec::<Mode>::new());
        let counts: Vec<usize> =
            house.shards.iter().map(|shard| shard.0.partitions.borrow().len()).collect();
        assert_eq!(counts, [2, 2]);
        assert_eq!(house.link().shown().0.name(), "ACTIVE");
        assert_eq!(house.shards[0].0.leaders.get(), 1, "unchanged leaders are not sent again");
    });
}

#[test]
fn partitions_are_added_and_topics_that_change_identity_are_faulted() {
    run(async {
        let house = copied().await;
        house.kafka.answer(vec![topic("orders", 1, 5), topic("users", 9, 1)]);
        house.rounds(2).await;
        assert_eq!(house.modes("orders"), vec![Mode::Replicate; 5]);
        assert_eq!(house.state("users"), Some(TopicState::Faulted));
        assert_eq!(house.code("users").as_deref(), Some("topic_recreated"));
        assert!(matches!(
            &house.modes("users")[..],
            [Mode::Held { state: PartitionState::Faulted(FaultCode::TopicRecreated), .. }]
        ));
        house.kafka.answer(vec![topic("users", 9, 1)]);
        house.rounds(5).await;
        assert_eq!(house.code("orders").as_deref(), Some("topic_deleted"));
        house.kafka.answer(vec![topic("orders", 1, 5)]);
        house.rounds(2).await;
        assert_eq!(house.state("orders"), Some(TopicState::Active), "it was only hidden");
    });
}

#[test]
fn a_dead_source_makes_the_link_unavailable_with_reason_and_retry() {
    run(async {
        let house = copied().await;
        house.kafka.die();
        house.rounds(2).await;
        let (state, code, reason, _) = house.link().shown();
        assert_eq!((state.name(), code.as_deref()), ("UNAVAILABLE", Some("source_unreachable")));
        assert_eq!(reason.as_deref(), Some("connection refused"));
        assert_eq!(house.state("orders"), Some(TopicState::Active));
    });
}

#[test]
fn shards_in_trouble_do_not_hurry_a_dead_source() {
    run(async {
        let house = copied().await;
        house.kafka.die();
        house.rounds(2).await;
        let asked = house.kafka.0.asked.get();
        for _ in 0..20 {
            let link = house.link().name().clone();
            house.controller.handle_event(Event::MetadataStale { link });
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // At most the one question that was due anyway.
        assert!(house.kafka.0.asked.get() <= asked + 1);
    });
}

#[test]
fn another_cluster_at_the_address_is_refused() {
    run(async {
        let house = copied().await;
        let good = house.kafka.0.cluster.borrow().clone();
        house.kafka.0.cluster.borrow_mut().as_mut().expect("set").cluster_id = Some("evil".into());
        house.rounds(2).await;
        let (state, code, reason, _) = house.link().shown();
        assert_eq!((state.name(), code.as_deref()), ("UNAVAILABLE", Some("cluster_id_changed")));
        let reason = reason.expect("a reason");
        assert!(reason.contains("cluster-a") && reason.contains("evil"), "{reason}");
        assert!(house.shards[0].0.gate_closed.get(), "nothing is fetched from it");
        *house.kafka.0.cluster.borrow_mut() = good;
        house.rounds(2).await;
        assert_eq!(house.link().shown().0.name(), "ACTIVE");
        assert!(!house.shards[0].0.gate_closed.get());
    });
}

#[test]
fn a_paused_link_is_silent_and_stays_so_over_a_restart() {
    run(async {
        let house = copied().await;
        assert_eq!(house.verb(Verb::Pause, None).await.code, "paused");
        assert_eq!(house.verb(Verb::Pause, None).await.code, "already_paused");
        assert_eq!(house.kafka.0.clients.get(), 0, "no client, no socket");
        assert!(house.shards.iter().all(|shard| shard.0.gate_closed.get()));
        let asked = house.kafka.0.asked.get();
        let house = house.crash("").await;
        assert_eq!(house.link().shown().0.name(), "PAUSED");
        assert!(house.shards.iter().all(|shard| shard.0.gate_closed.get()));
        assert_eq!(house.kafka.0.asked.get(), asked, "the source heard nothing");
        assert_eq!(house.verb(Verb::Resume, None).await.code, "resumed");
        house.settle().await;
        assert!(house.shards.iter().all(|shard| !shard.0.gate_closed.get()));
        house.rounds(1).await;
    });
}

#[test]
fn pause_does_not_wait_for_a_source_that_hangs() {
    run(async {
        let house = copied().await;
        house.kafka.0.hangs.set(true);
        house.link().refresh_soon();
        let asked = house.kafka.0.asked.get();
        while house.kafka.0.asked.get() == asked {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(house.verb(Verb::Pause, None).await.code, "paused");
        assert_eq!(house.kafka.0.clients.get(), 0);
    });
}

#[test]
fn resume_of_a_running_link_tries_partitions_again_but_not_faulted_topics() {
    run(async {
        let house = copied().await;
        house.kafka.answer(vec![topic("orders", 7, 3), topic("users", 2, 1)]);
        house.rounds(2).await;
        assert_eq!(house.state("orders"), Some(TopicState::Faulted));
        assert_eq!(house.verb(Verb::Resume, None).await.code, "already_active");
        house.settle().await;
        assert_eq!(house.shards[0].0.retried.get(), 1);
        assert!(house.modes("orders").iter().all(|mode| matches!(mode, Mode::Held { .. })));
        assert_eq!(house.verb(Verb::Resume, Some(&["orders"])).await.code, "resumed");
        house.rounds(2).await;
        assert_eq!(house.state("orders"), Some(TopicState::Faulted), "it is still another topic");
    });
}

#[test]
fn partitions_that_cannot_be_opened_say_why_until_resume_opens_them() {
    run(async {
        let house = copied().await;
        house.shards.iter().for_each(|shard| shard.0.sick.set(true));
        house.kafka.answer(vec![topic("orders", 1, 3), topic("users", 2, 1), topic("new", 5, 2)]);
        house.rounds(2).await;
        let view = async || {
            let statuses = house.controller.shared().shards.status(None).await;
            let rates = status::Rates::default();
            let snapshot = status::Snapshot::new(&statuses, &rates);
            snapshot.topic_of(&house.link(), "new").expect("discovered")
        };
        let partition = view().await.partitions.expect("partitions").remove(1);
        assert_eq!(
            (partition.state.as_str(), partition.code.as_deref()),
            ("FAULTED", Some("local_log"))
        );
        assert_eq!(partition.reason.as_deref(), Some("no data directory"));
        house.shards.iter().for_each(|shard| shard.0.sick.set(false));
        house.verb(Verb::Resume, Some(&["new"])).await;
        let partition = view().await.partitions.expect("partitions").remove(1);
        assert_eq!((partition.state.as_str(), partition.reason), ("ACTIVE", None));
    });
}

#[test]
fn a_partition_that_cannot_be_opened_keeps_nothing_from_failing_over() {
    run(async {
        let house = copied().await;
        house.shards.iter().for_each(|shard| shard.0.sick.set(true));
        house.kafka.answer(vec![topic("orders", 1, 3), topic("users", 2, 1), topic("new", 5, 2)]);
        house.rounds(2).await;
        let outcome = house.verb(Verb::Failover, None).await;
        assert_eq!(outcome.ending, Ending::Done, "{outcome:?}");
        assert_eq!(house.state("orders"), Some(TopicState::FailedOver));
        let new = outcome.topics.iter().find(|topic| topic.topic == "new").expect("it is told of");
        assert_eq!((new.code.as_str(), new.ends.len()), ("failed_over_with_errors", 2));
        assert_eq!(new.ends[0].error.as_deref(), Some("no data directory"));
        assert_eq!(new.ends[0].end_offset, None, "nothing is known of it");
    });
}

#[test]
fn a_topic_whose_log_failed_fails_over_only_when_it_is_forced() {
    run(async {
        let house = copied().await;
        house.shards.iter().for_each(|shard| shard.0.failed.set(true));
        for dry in [true, false] {
            let refused = house.ask(Verb::Failover, Some(&["orders"]), dry, false).await;
            assert_eq!((refused.ending, refused.code.as_str()), (Ending::Refused, "log_failed"));
            let reason = refused.reason;
            assert!(reason.contains("orders-0") && reason.contains("a write failed"), "{reason}");
        }
        assert_eq!(house.state("orders"), Some(TopicState::Active));
        assert_eq!(house.modes("orders"), vec![Mode::Replicate; 3], "nothing was sealed");
        let forced = house.ask(Verb::Failover, Some(&["orders"]), false, true).await;
        assert_eq!(forced.ending, Ending::Done, "{forced:?}");
        let all = house.verb(Verb::Failover, None).await;
        assert_eq!(all.ending, Ending::Done, "a disaster is not kept waiting: {all:?}");
    });
}

#[test]
fn topics_pause_and_resume_alone() {
    run(async {
        let house = copied().await;
        assert_eq!(house.verb(Verb::Pause, Some(&["orders"])).await.code, "paused");
        assert_eq!(house.modes("orders"), vec![Mode::Paused; 3]);
        assert_eq!(house.modes("users"), vec![Mode::Replicate]);
        let house = house.crash("").await;
        assert_eq!(house.modes("orders"), vec![Mode::Paused; 3]);
        assert_eq!(house.verb(Verb::Resume, Some(&["orders"])).await.code, "resumed");
        house.settle().await;
        assert_eq!(house.modes("orders"), vec![Mode::Replicate; 3]);
        let unknown = house.verb(Verb::Pause, Some(&["orders", "nope"])).await;
        assert_eq!((unknown.ending, unknown.code.as_str()), (Ending::NotFound, "topic_not_found"));
        assert_eq!(house.state("orders"), Some(TopicState::Active), "all or nothing");
    });
}

#[test]
fn failover_works_with_the_source_dead_and_the_link_paused() {
    run(async {
        let house = copied().await;
        house.kafka.die();
        house.verb(Verb::Pause, None).await;
        let house = house.crash("").await;
        let outcome = house.verb(Verb::Failover, None).await;
        assert_eq!((outcome.ending, outcome.code.as_str()), (Ending::Done, "failed_over"));
        assert_eq!(outcome.topics.len(), 2);
        let orders = &outcome.topics[0];
        let ends: Vec<i64> = orders.ends.iter().filter_map(|end| end.end_offset).collect();
        assert_eq!((orders.topic.as_str(), ends), ("orders", vec![100, 101, 102]));
        assert_eq!(house.verb(Verb::Failover, None).await.code, "already_failed_over");
        let house = house.crash("").await;
        assert_eq!(house.state("orders"), Some(TopicState::FailedOver));
        assert_eq!(house.modes("orders"), vec![Mode::Sealed; 3], "never fetched again");
        assert_eq!(house.link().shown().0.name(), "PAUSED");
    });
}

#[test]
fn failover_interrupted_at_every_commit_can_be_run_again() {
    for survived in 0..3 {
        run(async move {
            let house = copied().await;
            house.disk.0.lock().expect("lock").fail_after = Some(survived);
            let outcome = house.verb(Verb::Failover, None).await;
            house.disk.0.lock().expect("lock").fail_after = None;
            let house = house.crash("").await;
            let expected = match survived {
                0 => TopicState::Active,
                _ => TopicState::FailedOver,
            };
            assert_eq!(house.state("orders"), Some(expected), "{survived} commits survived");
            assert_eq!(house.state("users"), Some(expected), "all topics together, or none");
            assert_eq!(outcome.ending == Ending::Done, survived == 2, "{outcome:?}");
            let again = house.verb(Verb::Failover, None).await;
            assert!(matches!(again.ending, Ending::Done | Ending::Unchanged), "{again:?}");
            assert_eq!(house.state("users"), Some(TopicState::FailedOver));
            let link = house.link();
            let ends = link.state.borrow().topics["orders"].record.ends.len();
            assert_eq!(ends, 3, "the ends are kept");
        });
    }
}

#[test]
fn a_shard_that_does_not_confirm_the_barrier_changes_nothing() {
    run(async {
        let house = copied().await;
        house.shards[1].0.mute.set(true);
        let outcome = house.verb(Verb::Failover, None).await;
        assert_eq!(
            (outcome.ending, outcome.code.as_str()),
            (Ending::Failed, "flush_barrier_failed")
        );
        assert!(outcome.reason.contains("fetched no more"), "{}", outcome.reason);
        assert_eq!(house.state("orders"), Some(TopicState::Active));
        house.shards[1].0.mute.set(false);
        assert_eq!(house.verb(Verb::Failover, None).await.ending, Ending::Done);
    });
}

#[test]
fn dry_runs_change_nothing() {
    run(async {
        let house = copied().await;
        let commits = house.disk.0.lock().expect("lock").commits;
        for verb in [Verb::Pause, Verb::Failover, Verb::Delete] {
            for topics in [None, Some(&["orders"][..])] {
                let outcome = house.ask(verb, topics, true, true).await;
                assert_eq!(outcome.ending, Ending::Done, "{outcome:?}");
                assert!(outcome.dry_run && !outcome.steps.is_empty());
            }
        }
        assert_eq!(house.disk.0.lock().expect("lock").commits, commits);
        assert_eq!(house.modes("orders"), vec![Mode::Replicate; 3]);
        assert_eq!(house.link().shown().0.name(), "ACTIVE");
    });
}

#[test]
fn delete_is_refused_while_live_and_removes_files_when_forced() {
    run(async {
        let house = copied().await;
        let refused = house.verb(Verb::Delete, Some(&["orders"])).await;
        assert_eq!((refused.ending, refused.code.as_str()), (Ending::Refused, "topic_live"));
        assert_eq!(house.verb(Verb::Delete, None).await.code, "topics_live");
        house.kafka.answer(vec![topic("users", 2, 1)]);
        let forced = house.ask(Verb::Delete, Some(&["orders"]), false, true).await;
        assert_eq!((forced.ending, forced.code.as_str()), (Ending::Done, "deleted"));
        assert_eq!(house.state("orders"), None);
        let removed: usize =
            house.shards.iter().map(|shard| shard.0.files_removed.borrow().len()).sum();
        assert_eq!(removed, 3);
        let house = house.crash("").await;
        assert_eq!(house.state("orders"), None);
    });
}

#[test]
fn a_deletion_interrupted_is_finished_at_the_next_start() {
    run(async {
        let house = copied().await;
        house.disk.0.lock().expect("lock").fail_after = Some(1);
        let outcome = house.ask(Verb::Delete, Some(&["orders"]), false, true).await;
        assert_eq!(outcome.ending, Ending::Failed);
        house.disk.0.lock().expect("lock").fail_after = None;
        house.kafka.die();
        let house = house.crash("").await;
        assert_eq!(house.state("orders"), None);
    });
}

#[test]
fn a_deleted_link_keeps_files_and_answers_so() {
    run(async {
        let house = copied().await;
        assert_eq!(house.ask(Verb::Delete, None, false, true).await.code, "deleted");
        assert_eq!(house.verb(Verb::Delete, None).await.code, "already_deleted");
        assert_eq!(house.verb(Verb::Resume, None).await.code, "link_deleted");
        assert_eq!(house.verb(Verb::Pause, Some(&["orders"])).await.code, "link_deleted");
        assert_eq!(house.kafka.0.clients.get(), 0);
        assert!(house.shards.iter().all(|shard| shard.0.partitions.borrow().is_empty()));
        assert!(house.shards.iter().all(|shard| shard.0.files_removed.borrow().is_empty()));
    });
}

#[test]
fn reload_adds_updates_removes_and_refuses() {
    run(async {
        let house = copied().await;
        let second = "[[link]]\nname = \"two\"\nbootstrap_servers = [\"z:1\"]\n";
        let both = config(second);
        let reload = house.controller.reload(both.clone()).await.expect("store");
        assert_eq!((reload.changes.len(), reload.refused.len()), (1, 0));
        assert!(house.controller.link("two").is_some());
        let mut without = both.clone();
        without.links.remove(0);
        let reload = house.controller.reload(without.clone()).await.expect("store");
        assert_eq!(reload.refused[0].code, "link_live");
        assert!(house.controller.link("prod").is_some(), "it goes on");
        let outcome = house.verb(Verb::Failover, None).await;
        assert_eq!(outcome.ending, Ending::Done, "{outcome:?}");
        let reload = house.controller.reload(without).await.expect("store");
        assert!(reload.refused.is_empty(), "{reload:?}");
        assert!(house.controller.link("prod").is_none());
        let reload = house.controller.reload(both).await.expect("store");
        assert_eq!(reload.refused.len(), 0);
        assert_eq!(house.state("orders"), Some(TopicState::FailedOver), "it was not forgotten");
    });
}

#[test]
fn status_tells_known_lag_and_leaves_unknown_out() {
    run(async {
        let house = copied().await;
        let statuses = house.controller.shared().shards.status(None).await;
        let rates = status::Rates::default();
        let snapshot = status::Snapshot::new(&statuses, &rates);
        let node = snapshot.node(&house.controller, status::Depth::Partitions);
        let link = &node.links[0];
        assert_eq!((link.topics_total, link.partitions_total), (2, 4));
        assert_eq!(link.totals.lag_records, Some(6), "two partitions with a known end, 3 each");
        assert_eq!(link.totals.lag_unknown_partitions, 2);
        assert!(link.totals.lag_seconds.is_some_and(|lag| lag >= 1.5));
        let json = serde_json::to_value(&node).expect("JSON");
        let partitions = &json["links"][0]["topics"][0]["partitions"];
        assert_eq!(partitions[0]["lag_records"], 3);
        assert!(partitions[1].get("lag_records").is_none(), "unknown is absent");
        assert!(partitions[1].get("rate_bytes_per_second").is_none());
    });
}

#[test]
fn a_store_that_fails_changes_nothing() {
    run(async {
        let house = copied().await;
        house.disk.0.lock().expect("lock").fail_after = Some(0);
        for (verb, topics) in
            [(Verb::Pause, None), (Verb::Pause, Some(&["orders"][..])), (Verb::Failover, None)]
        {
            let outcome = house.verb(verb, topics).await;
            assert_eq!((outcome.ending, outcome.code.as_str()), (Ending::Failed, "store_failed"));
        }
        assert_eq!(house.state("orders"), Some(TopicState::Active));
        assert_eq!(house.link().shown().0.name(), "ACTIVE");
    });
}

#[test]
fn a_deletion_is_not_said_to_be_done_while_a_log_cannot_be_opened() {
    run(async {
        let house = copied().await;
        house.shards.iter().for_each(|shard| shard.0.sick.set(true));
        let all = || vec![topic("orders", 1, 3), topic("users", 2, 1), topic("new", 5, 2)];
        house.kafka.answer(all());
        house.rounds(2).await;
        house.kafka.answer(vec![topic("orders", 1, 3), topic("users", 2, 1)]);
        let outcome = house.ask(Verb::Delete, Some(&["new"]), false, true).await;
        assert_eq!((outcome.ending, outcome.code.as_str()), (Ending::Failed, "files_remain"));
        assert!(house.state("new").is_some(), "what is left of it is not forgotten");
        house.shards.iter().for_each(|shard| shard.0.sick.set(false));
        let outcome = house.ask(Verb::Delete, Some(&["new"]), false, true).await;
        assert_eq!((outcome.ending, outcome.code.as_str()), (Ending::Done, "deleted"));
        assert_eq!(house.state("new"), None);
        let removed = |shard: &Shard| shard.0.files_removed.borrow().len();
        assert_eq!(house.shards.iter().map(removed).sum::<usize>(), 2);
    });
}
