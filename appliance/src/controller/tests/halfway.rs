//! What is left when a verb, a start or a reload failed half-way, and what may be asked of it then.

use super::super::testing::*;
use super::super::*;
use crate::states::{TopicState, Verb};
use ::shards::control::Mode;
use std::time::Duration;

fn fail_after(house: &House, commits: Option<usize>) {
    house.disk.0.lock().expect("lock").fail_after = commits;
}

/// `prod` and another link.
fn with(name: &str) -> Config {
    config(&format!("[[link]]\nname = \"{name}\"\nbootstrap_servers = [\"z:1\"]\n"))
}

/// The other link alone.
fn without_prod(name: &str) -> Config {
    let mut config = with(name);
    config.links.remove(0);
    config
}

#[test]
fn a_failover_that_cannot_be_finished_at_a_start_keeps_the_node_from_nothing() {
    run(async {
        let house = copied().await;
        fail_after(&house, Some(1));
        assert_eq!(house.verb(Verb::Failover, Some(&["users"])).await.ending, Ending::Failed);
        fail_after(&house, Some(0));
        let house = house.crash("").await;
        assert_eq!(house.state("users"), Some(TopicState::FailingOver));
        assert_eq!(house.modes("users"), vec![Mode::Sealed]);
        assert_eq!(house.modes("orders"), vec![Mode::Replicate; 3]);
        fail_after(&house, None);
        assert_eq!(house.verb(Verb::Failover, Some(&["users"])).await.ending, Ending::Done);
    });
}

#[test]
fn a_link_that_comes_back_while_the_store_fails_forgets_no_failover() {
    run(async {
        let house = copied().await;
        assert_eq!(house.verb(Verb::Failover, Some(&["orders"])).await.ending, Ending::Done);
        fail_after(&house, Some(1));
        assert_eq!(house.verb(Verb::Failover, Some(&["users"])).await.ending, Ending::Failed);
        fail_after(&house, None);
        // The link is lost from the file over a restart, and comes back by a reload.
        let house = house_of(house.disk, house.kafka, without_prod("two")).await;
        fail_after(&house, Some(0));
        let _ = house.controller.reload(with("two")).await;
        fail_after(&house, None);
        house.controller.reload(with("two")).await.expect("store");
        house.rounds(3).await;
        assert_eq!(house.state("orders"), Some(TopicState::FailedOver));
        let house = house.crash("").await;
        assert_eq!(house.state("orders"), Some(TopicState::FailedOver));
        assert_eq!(house.modes("orders"), vec![Mode::Sealed; 3], "never fetched again");
    });
}

#[test]
fn a_link_that_was_lost_from_the_file_is_as_it_was_when_it_comes_back() {
    run(async {
        let house = copied().await;
        assert_eq!(house.verb(Verb::Pause, None).await.code, "paused");
        let house = house_of(house.disk, house.kafka, without_prod("two")).await;
        house.controller.reload(with("two")).await.expect("store");
        house.settle().await;
        assert_eq!(house.link().shown().0.name(), "PAUSED");
        assert!(house.shards.iter().all(|shard| shard.0.gate_closed.get()));
        let known = house.link().facts().cluster_id;
        assert_eq!(known.as_deref(), Some("cluster-a"), "another cluster is refused as before");
    });
}

#[test]
fn a_deleted_link_that_is_lost_from_the_file_is_gone_over_a_restart_too() {
    run(async {
        let house = copied().await;
        assert_eq!(house.ask(Verb::Delete, None, false, true).await.code, "deleted");
        let house = house_of(house.disk, house.kafka, without_prod("two")).await;
        let house = house.crash("").await;
        house.rounds(2).await;
        assert_eq!(house.link().shown().0.name(), "ACTIVE");
        assert_eq!(house.state("orders"), Some(TopicState::Active));
    });
}

#[test]
fn a_topic_whose_deletion_is_not_done_is_deleted_and_nothing_else() {
    run(async {
        let house = copied().await;
        house.shards.iter().for_each(|shard| shard.0.undeletable.set(Some(1)));
        let left = house.ask(Verb::Delete, Some(&["orders"]), false, true).await;
        assert_eq!((left.ending, left.code.as_str()), (Ending::Failed, "files_remain"));
        assert!(!left.reason.contains("nothing is half done"), "{}", left.reason);
        for verb in [Verb::Pause, Verb::Resume, Verb::Failover] {
            let refused = house.verb(verb, Some(&["orders"])).await;
            assert_eq!(
                (refused.ending, refused.code.as_str()),
                (Ending::Refused, "topic_deleting"),
                "{verb:?}: the next start would remove it all the same"
            );
        }
        // It keeps nothing else from failing over.
        let all = house.verb(Verb::Failover, None).await;
        assert_eq!(all.ending, Ending::Done, "{all:?}");
        assert_eq!(house.state("users"), Some(TopicState::FailedOver));
        assert!(all.topics.iter().all(|topic| topic.topic != "orders"), "{all:?}");
        house.shards.iter().for_each(|shard| shard.0.undeletable.set(None));
        let gone = house.verb(Verb::Delete, Some(&["orders"])).await;
        assert_eq!((gone.ending, gone.code.as_str()), (Ending::Done, "deleted"));
        assert_eq!(house.state("orders"), None);
    });
}

#[test]
fn a_pause_that_one_shard_did_not_hear_reaches_the_others_and_is_said_again() {
    run(async {
        let house = copied().await;
        tokio::time::pause();
        for topics in [None, Some(&["orders", "users"][..])] {
            let shard = &house.shards[0].0;
            shard.stuck.set(true);
            for _ in 0..70 {
                house.settle().await;
            }
            let failed = house.verb(Verb::Pause, topics).await;
            assert_eq!((failed.ending, failed.code.as_str()), (Ending::Failed, "shard_failed"));
            assert!(!failed.reason.contains("nothing is half done"), "{}", failed.reason);
            shard.stuck.set(false);
            tokio::time::sleep(Duration::from_secs(1)).await;
            let paused = |shard: &Shard| match topics {
                None => shard.0.gate_closed.get(),
                Some(_) => shard.0.partitions.borrow().values().all(|mode| *mode == Mode::Paused),
            };
            assert!(paused(&house.shards[1]), "it answers");
            let again = house.verb(Verb::Pause, topics).await;
            assert_eq!((again.ending, again.code.as_str()), (Ending::Unchanged, "already_paused"));
            assert!(house.shards.iter().all(paused), "what is said to be paused is paused");
            house.verb(Verb::Resume, None).await;
        }
    });
}

#[test]
fn of_a_node_with_a_dead_shard_the_others_are_stopped_cleanly() {
    run(async {
        let (dead, gone) = mpsc::channel(1);
        let (alive, mut commands) = mpsc::channel(1);
        drop(gone);
        let stopped = tokio::task::spawn_local(async move { commands.recv().await.is_some() });
        let shards = Shards::new(vec![dead, alive]);
        assert!(shards.stop(Duration::from_secs(1)).await.is_err());
        drop(shards);
        assert!(stopped.await.expect("a task"), "told to stop");
    });
}

#[test]
fn a_failover_waits_for_no_name_that_does_not_resolve() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(1)
        .build()
        .expect("runtime");
    let (resolved, resolver) = std::sync::mpsc::channel::<()>();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let house = copied().await;
        // Where names are resolved, all are at work.
        tokio::task::spawn_blocking(move || resolver.recv());
        let failover = house.verb(Verb::Failover, None);
        let outcome = tokio::time::timeout(Duration::from_secs(5), failover).await;
        drop(resolved);
        assert_eq!(outcome.expect("it waits for a name").ending, Ending::Done);
    });
}

#[test]
fn of_another_cluster_nothing_is_fetched_whatever_is_resumed() {
    run(async {
        let house = copied().await;
        let is = |id: &str| {
            let mut cluster = house.kafka.0.cluster.borrow_mut();
            cluster.as_mut().expect("it answers").cluster_id = Some(id.to_owned());
        };
        let closed = || house.shards.iter().all(|shard| shard.0.gate_closed.get());
        is("cluster-b");
        house.rounds(2).await;
        assert!(closed());
        assert_eq!(house.verb(Verb::Resume, None).await.code, "already_active");
        house.settle().await;
        assert!(closed(), "what answers there is still another cluster");
        house.verb(Verb::Pause, None).await;
        house.verb(Verb::Resume, None).await;
        house.settle().await;
        assert!(closed(), "nobody knows yet which cluster answers");
        house.rounds(2).await;
        assert!(closed());
        is("cluster-a");
        house.kafka.0.asked.set(0);
        let opened = async {
            while closed() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), opened).await.expect("it is the one");
    });
}

#[test]
fn one_answer_of_a_broker_that_lags_behind_faults_no_topic() {
    run(async {
        let house = copied().await;
        let others = |partitions| vec![topic("orders", 1, partitions), topic("users", 2, 1)];
        house.kafka.answer(others(5));
        house.rounds(2).await;
        assert_eq!(house.modes("orders"), vec![Mode::Replicate; 5]);
        house.kafka.answer(others(3));
        house.rounds(1).await;
        house.kafka.answer(others(5));
        house.rounds(1).await;
        assert_eq!(house.state("orders"), Some(TopicState::Active));
        house.kafka.answer(others(3));
        house.rounds(4).await;
        assert_eq!(house.code("orders").as_deref(), Some("partitions_decreased"));
    });
}

#[test]
fn a_store_that_fails_keeps_no_leader_from_the_shards() {
    run(async {
        let house = copied().await;
        let told = house.shards[0].0.leaders.get();
        fail_after(&house, Some(0));
        let mut moved = topic("orders", 1, 3);
        moved.partitions[1].leader = Some(2);
        house.kafka.answer(vec![moved, topic("users", 2, 1), topic("new", 3, 1)]);
        house.rounds(2).await;
        assert_eq!(house.state("new"), None, "it cannot be stored");
        assert_eq!(house.shards[0].0.leaders.get(), told + 1);
        fail_after(&house, None);
        house.rounds(2).await;
        assert_eq!(house.state("new"), Some(TopicState::Active));
    });
}

#[test]
fn a_source_is_not_asked_without_end_while_the_store_fails() {
    run(async {
        let kafka = Kafka::default();
        let house = house(Disk::default(), kafka, "").await;
        house.rounds(1).await;
        fail_after(&house, Some(0));
        house.kafka.answer(vec![topic("orders", 1, 3)]);
        house.rounds(1).await;
        let asked = house.kafka.0.asked.get();
        tokio::time::sleep(Duration::from_millis(1500)).await;
        assert!(house.kafka.0.asked.get() - asked < 20, "{}", house.kafka.0.asked.get() - asked);
    });
}

#[test]
fn partitions_of_a_shard_that_does_not_answer_are_in_trouble() {
    run(async {
        let house = copied().await;
        house.shards[1].0.mute.set(true);
        let statuses = house.controller.shared().shards.status(None).await;
        let rates = status::Rates::default();
        let snapshot = status::Snapshot::new(&statuses, &rates);
        let node = snapshot.node(&house.controller, status::Depth::Partitions);
        assert_eq!(node.links[0].totals.troubled_partitions, 2);
        let topics = node.links[0].topics.iter().flatten();
        let all = topics.flat_map(|topic| topic.partitions.iter().flatten());
        for partition in all.filter(|partition| partition.shard == 1) {
            assert_eq!(partition.state, "UNKNOWN");
            let reason = partition.reason.as_deref();
            assert_eq!(reason, Some("shard 1, which has it, does not answer"));
        }
    });
}

#[test]
fn a_verb_that_waited_until_its_link_was_gone_changes_nothing() {
    run(async {
        let house = copied().await;
        assert_eq!(house.verb(Verb::Failover, None).await.ending, Ending::Done);
        let link = house.link();
        let turn = link.turn.lock().await;
        let removed = tokio::task::spawn_local({
            let controller = house.controller.clone();
            async move { controller.reload(without_prod("two")).await }
        });
        tokio::time::sleep(Duration::from_millis(20)).await;
        let waiting = tokio::task::spawn_local({
            let link = link.clone();
            let request = Request { verb: Verb::Delete, topics: None, dry_run: false, force: true };
            async move { link.carry(&request).await }
        });
        tokio::time::sleep(Duration::from_millis(20)).await;
        drop(turn);
        removed.await.expect("a task").expect("store");
        let outcome = waiting.await.expect("a task");
        assert_eq!((outcome.ending, outcome.code.as_str()), (Ending::Failed, "link_gone"));
        let kept = house.disk.0.lock().expect("lock").records.contains_key("link/prod");
        assert!(!kept, "or the next link of that name is a deleted one");
    });
}

#[test]
fn a_disk_that_hangs_is_given_up_for_all_of_the_link_and_not_unasked_for_a_topic() {
    run(async {
        let house = copied().await;
        house.shards.iter().for_each(|shard| shard.0.hung.set(Some(1)));
        let failed = house.verb(Verb::Failover, Some(&["orders"])).await;
        let found = (failed.ending, failed.code.as_str());
        assert_eq!(found, (Ending::Failed, "flush_barrier_failed"), "{failed:?}");
        assert!(failed.reason.contains("orders-1: its disk"), "{}", failed.reason);
        assert_eq!(house.state("orders"), Some(TopicState::Active));
        let all = house.verb(Verb::Failover, None).await;
        assert_eq!(all.ending, Ending::Done, "{all:?}");
        let orders = &all.topics[0];
        assert_eq!(orders.code, "failed_over_with_errors");
        assert!(orders.ends[1].error.is_some() && orders.ends[0].error.is_none());
    });
}

#[test]
fn what_a_failed_failover_has_sealed_is_in_trouble_until_it_is_run_again() {
    run(async {
        let house = copied().await;
        fail_after(&house, Some(0));
        assert_eq!(house.verb(Verb::Failover, None).await.ending, Ending::Failed);
        fail_after(&house, None);
        let view = async || {
            let statuses = house.controller.shared().shards.status(None).await;
            let rates = status::Rates::default();
            let snapshot = status::Snapshot::new(&statuses, &rates);
            snapshot.topic_of(&house.link(), "orders").expect("it is known")
        };
        let orders = view().await;
        assert_eq!((orders.state.as_str(), orders.totals.troubled_partitions), ("ACTIVE", 3));
        let partition = &orders.partitions.expect("partitions")[0];
        assert_eq!(partition.state, "SEALED");
        let reason = partition.reason.as_deref().unwrap_or_default();
        assert!(reason.contains("run the failover again"), "{reason}");
        let resumed = house.verb(Verb::Resume, Some(&["orders"])).await;
        assert_eq!((resumed.ending, resumed.code.as_str()), (Ending::Failed, "sealed"));
        assert_eq!(house.verb(Verb::Failover, None).await.ending, Ending::Done);
        let orders = view().await;
        assert_eq!((orders.state.as_str(), orders.totals.troubled_partitions), ("FAILED_OVER", 0));
    });
}
