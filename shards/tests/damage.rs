//! Damage to what is stored: found unasked, mended from the source, or kept and named.

mod harness;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use harness::{LINK, Rig, settings};
use shards::control::*;
use source::{Config, Fault, Target, TopicSpec, serve};

const BATCHES: u64 = 300;
const RECORDS: i64 = 16;

fn topic() -> TopicSpec {
    TopicSpec::new("orders", 2, BATCHES).with_batches(7, 20_000, RECORDS as usize)
}

/// A copy of several sealed segments per partition, cleanly stopped.
fn stopped() -> Rig {
    let orders = topic();
    let source = serve(Config::loopback(2).with_topic(orders.clone())).expect("a source");
    let mut rig = Rig::new(source, &[&orders], settings());
    rig.until_caught_up();
    rig.stop();
    rig
}

fn segments(rig: &Rig, partition: i32) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(rig.log_folder("orders", partition)).expect("a folder");
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
    paths.sort();
    paths
}

fn flip(path: &PathBuf, at: u64) {
    let file = File::options().read(true).write(true).open(path).expect("a segment");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("a byte");
    byte[0] ^= 4;
    file.write_all_at(&byte, at).expect("a byte");
    file.sync_all().expect("a disk");
}

fn verify(rig: &Rig) {
    rig.tell(Command::Verify(VerifySettings {
        bytes_per_second: 0,
        first_after: Duration::ZERO,
        every: Duration::from_secs(3600),
    }));
}

fn is_repaired(event: &Event) -> bool {
    matches!(event, Event::Repaired { .. })
}

#[test]
fn flipped_bits_in_sealed_segments_and_in_the_last_are_found_and_repaired() {
    let mut rig = stopped();
    let paths = segments(&rig, 0);
    assert!(paths.len() > 4);
    flip(&paths[1], 300_000);
    flip(&paths[3], 1_000_000);
    flip(paths.last().expect("one"), 30_000);
    rig.start();
    rig.until_caught_up();
    rig.source.cluster().append("orders", 0, 20).expect("appends");
    verify(&rig);
    rig.until("a whole pass", |status| status.stats.verified_at_ms.is_some());
    rig.until("three repairs", |status| status.stats.damages_repaired == 3);
    // Sealing, too, may have come upon the last.
    assert!(rig.status().stats.damages_found >= 2);
    rig.until_caught_up();
    rig.until("ACTIVE", |status| {
        status.partitions.iter().all(|p| p.state == PartitionState::Active)
    });
    assert_eq!(rig.seen.iter().filter(|event| is_repaired(event)).count(), 3);
    rig.stop();
    rig.assert_equal();
}

#[test]
fn what_the_source_no_longer_has_is_kept_and_named_while_the_tail_goes_on() {
    let mut rig = stopped();
    let path = segments(&rig, 0)[1].clone();
    flip(&path, 300_000);
    let hurt = std::fs::read(&path).expect("a segment");
    rig.source.cluster().delete_records("orders", 0, 150 * RECORDS).expect("deletes");
    rig.start();
    verify(&rig);
    rig.until("a named state", |status| {
        status.partitions.iter().any(|p| {
            let reason = p.reason.clone().unwrap_or_default();
            p.state == PartitionState::Corrupt && reason.contains("no longer has it")
        })
    });
    assert_eq!(rig.partition("orders", 1).state, PartitionState::Active, "the neighbour");
    rig.source.cluster().append("orders", 0, 5).expect("appends");
    rig.until_caught_up();
    assert!(!rig.seen.iter().any(is_repaired));
    // A failover is not held up by it; it says what is damaged.
    let topics = vec!["orders".into()];
    let sealed = rig.ask(|reply| Command::Seal { link: LINK.into(), topics, reply });
    let hurt_end = sealed.iter().find(|sealed| sealed.key.partition == 0).expect("it");
    assert_eq!(hurt_end.end_offset, Some((BATCHES as i64 + 5) * RECORDS));
    assert!(hurt_end.error.as_ref().expect("named").contains("offsets"), "{hurt_end:?}");
    let well = sealed.iter().find(|sealed| sealed.key.partition == 1).expect("it");
    assert_eq!(well.error, None);
    rig.stop();
    assert_eq!(std::fs::read(&path).expect("it is still there"), hurt);
}

/// Where the batch at an offset begins in its segment.
fn position(path: &PathBuf, offset: i64) -> u64 {
    let bytes = std::fs::read(path).expect("a segment");
    let mut at = 0;
    while i64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes")) < offset {
        let length = i32::from_be_bytes(bytes[at + 8..at + 12].try_into().expect("four bytes"));
        at += 12 + length as usize;
    }
    at as u64
}

/// A cut cannot be told to the byte behind a damaged batch: that is mended first, then it is cut.
#[test]
fn damage_just_below_where_the_source_parted_is_mended_and_the_log_cut() {
    const PARTED: i64 = (BATCHES as i64 - 10) * RECORDS;
    let mut rig = stopped();
    let last = segments(&rig, 0).last().expect("one").clone();
    flip(&last, position(&last, PARTED - RECORDS) + 500);
    let cluster = rig.source.cluster();
    cluster.lose_tail("orders", 0, PARTED).expect("loses");
    cluster.append("orders", 0, 40).expect("appends");
    rig.settings.allow_truncation = true;
    rig.start();
    rig.until("the repair", |status| status.stats.damages_repaired == 1);
    rig.until_caught_up();
    let position = |wanted: fn(&Event) -> bool| rig.seen.iter().position(wanted).expect("told");
    let cut = position(|event| matches!(event, Event::Truncated { from: PARTED, .. }));
    assert!(position(is_repaired) < cut);
    assert!(!rig.seen.iter().any(|event| matches!(event, Event::Fault { .. })));
    rig.stop();
    rig.assert_equal();
}

#[test]
fn missing_and_short_segments_are_fetched_again() {
    for hurt in 0..4 {
        let mut rig = stopped();
        let paths = segments(&rig, 0);
        match hurt {
            0 => std::fs::remove_file(&paths[0]).expect("it was there"),
            1 => std::fs::remove_file(&paths[2]).expect("it was there"),
            2 => {
                let file = File::options().write(true).open(&paths[1]).expect("it is there");
                file.set_len(400_000).expect("shorter");
            }
            _ => std::fs::remove_file(paths.last().expect("one")).expect("it was there"),
        }
        rig.start();
        rig.until("repair", |status| {
            status.stats.damages_repaired > 0
                && status.partitions.iter().all(|p| p.state == PartitionState::Active)
        });
        rig.source.cluster().append("orders", 0, 5).expect("appends");
        rig.until_caught_up();
        rig.stop();
        rig.assert_equal();
    }
}

#[test]
fn a_source_that_sends_damaged_records_does_not_get_them_written() {
    let mut rig = stopped();
    flip(&segments(&rig, 0)[1], 300_000);
    rig.start();
    rig.until_caught_up();
    let target = Target::partition("orders", 0);
    rig.source.cluster().inject(target, Fault::FlipBit { byte: 500, bit: 3 }, None);
    verify(&rig);
    rig.until("a failed try", |status| {
        let named = |p: &PartitionStatus| {
            p.reason.as_ref().is_some_and(|reason| reason.contains("not repaired"))
        };
        status.partitions.iter().any(named)
    });
    assert_eq!(rig.status().stats.damages_repaired, 0);
    rig.source.cluster().clear_faults();
    rig.tell(Command::Resume { link: LINK.into(), topics: Some(vec!["orders".into()]) });
    rig.until("repair", |status| status.stats.damages_repaired == 1);
    rig.stop();
    rig.assert_equal();
}

/// What a source says once is not its last word: it may have lied, or not have committed it yet.
#[test]
fn what_the_source_once_did_not_have_is_asked_for_again() {
    for lie in [Fault::Empty, Fault::ShiftOffsets(-5), Fault::ErrorCode(1)] {
        let mut rig = stopped();
        flip(&segments(&rig, 0)[1], 300_000);
        rig.start();
        rig.until_caught_up();
        rig.source.cluster().inject(Target::partition("orders", 0), lie.clone(), None);
        verify(&rig);
        rig.until("a try in vain", |status| {
            let gone = |reason: &String| reason.contains("the source no longer has it");
            status.partitions.iter().any(|p| p.reason.as_ref().is_some_and(gone))
        });
        rig.source.cluster().clear_faults();
        rig.until("repair", |status| status.stats.damages_repaired == 1);
        rig.stop();
        rig.assert_equal();
    }
}

#[test]
fn a_paused_link_repairs_nothing_and_a_sealed_topic_never() {
    let mut rig = stopped();
    flip(&segments(&rig, 0)[1], 300_000);
    rig.start();
    rig.until_caught_up();
    rig.ask(|reply| Command::Pause { link: LINK.into(), topics: None, reply });
    verify(&rig);
    rig.until("found", |status| status.stats.damages_found == 1);
    let connections = rig.status().connections;
    assert!(connections.iter().all(|(_, count)| *count == 0), "{connections:?}");
    let topics = vec!["orders".into()];
    rig.ask(|reply| Command::Seal { link: LINK.into(), topics, reply });
    rig.tell(Command::Resume { link: LINK.into(), topics: None });
    // Another pass, and nothing has been fetched for it.
    verify(&rig);
    let before = rig.status().stats.verified_at_ms;
    rig.until("another pass", |status| status.stats.verified_at_ms > before);
    let status = rig.status();
    assert_eq!(status.stats.damages_repaired, 0);
    assert!(status.partitions.iter().any(|p| p.state == PartitionState::Corrupt));
    rig.stop();
}
