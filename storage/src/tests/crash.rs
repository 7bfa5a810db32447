//! What a crash leaves, and what must be there after it: a copy of the directory is taken while the
//! log is live, recovered, and compared.

use proptest::prelude::*;

use super::*;
use crate::names::EPOCHS_FILE;

/// Copies a live data directory as a crash would leave it (everything handed to the kernel stays).
pub fn snapshot(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            snapshot(&entry.path(), &target);
        } else if entry.file_name() != "lock" && entry.file_name() != "reserve" {
            // A file may be renamed away meanwhile; a crash could come then, too.
            let _ = fs::copy(entry.path(), target);
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Append { batches: i64, body: usize, piece: usize },
    Write,
    Flush,
    Wait(u64),
    Crash,
    Truncate(i64),
    Close,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (1i64..30, 1usize..4000, 100usize..20_000)
            .prop_map(|(batches, body, piece)| Step::Append { batches, body, piece }),
        2 => Just(Step::Write),
        2 => Just(Step::Flush),
        2 => (0u64..20).prop_map(Step::Wait),
        4 => Just(Step::Crash),
        1 => (1i64..60).prop_map(Step::Truncate),
        1 => Just(Step::Close),
    ]
}

fn settings() -> LogSettings {
    LogSettings { segment_bytes: 60_000, ..LogSettings::default() }
}

/// The batches sent so far: (first byte, base offset) of each, and all bytes.
#[derive(Default)]
struct Sent {
    bytes: Vec<u8>,
    ends: Vec<(usize, i64)>,
}

impl Sent {
    fn end_of(&self, offset: i64) -> usize {
        self.ends.iter().find(|(_, next)| *next == offset).map_or(0, |(end, _)| *end)
    }
}

async fn play(steps: Vec<Step>) {
    let live = disk();
    let mut store = store(live.path()).await;
    let (mut log, _) = open(&store, settings()).await;
    let mut sent = Sent::default();
    let mut next = 0;
    for step in steps {
        match step {
            Step::Append { batches, body, piece } => {
                for base in next..next + batches {
                    let epoch = (base / 40) as i32;
                    let bytes = Shape { body, epoch, ..Shape::at(base) }.bytes();
                    sent.bytes.extend(&bytes);
                    sent.ends.push((sent.bytes.len(), base + 1));
                }
                let from = sent.end_of(next);
                respond(&log, &sent.bytes[from..], piece).unwrap();
                next += batches;
            }
            Step::Write => {
                log.write_out().await.unwrap();
                assert_eq!(log.positions().written.0.offset, next);
            }
            Step::Flush => {
                assert_eq!(log.flush().await.unwrap().flushed.0.offset, next);
            }
            Step::Wait(ms) => ring::sleep(std::time::Duration::from_millis(ms)).await,
            Step::Crash => {
                let written = log.positions().written.0.offset;
                let copy = disk();
                snapshot(live.path(), copy.path());
                check(copy.path(), &sent, written).await;
            }
            Step::Truncate(back) => {
                let to = (next - back).max(0);
                log.truncate_to(to).await.unwrap();
                next = log.positions().received.0.offset;
                assert_eq!(next, to);
                let keep = sent.end_of(next);
                sent.bytes.truncate(keep);
                sent.ends.retain(|(end, _)| *end <= keep);
            }
            Step::Close => {
                store.close().await;
                drop((log, store));
                assert_eq!(read_log(live.path()), sent.bytes);
                store = super::store(live.path()).await;
                let recovered;
                (log, recovered) = open(&store, settings()).await;
                assert_eq!(recovered.corrupt, None);
                assert_eq!(recovered.scanned_bytes, 0);
                assert_eq!(log.positions().received.0.offset, next);
            }
        }
    }
    store.close().await;
    assert_eq!(read_log(live.path()), sent.bytes);
}

/// The recovered log holds a prefix of what was sent, at least what was written (the process died,
/// the kernel did not), and goes on.
async fn check(copy: &Path, sent: &Sent, written: i64) {
    let store = store(copy).await;
    let (log, recovered) = open(&store, settings()).await;
    assert_eq!(recovered.corrupt, None);
    let end = recovered.positions.received.0.offset;
    assert!(end >= written, "{end} is below the written {written}");
    let kept = sent.end_of(end);
    let last = log.last_batch();
    assert_eq!(last.map_or(0, |last| last.last_offset + 1), end);
    // Everything after the end arrives again.
    if kept < sent.bytes.len() {
        respond(&log, &sent.bytes[kept..], 3000).unwrap();
    }
    store.close().await;
    assert_eq!(read_log(copy), sent.bytes);
    format::check(copy);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn the_death_of_the_process_loses_nothing_that_was_written(
        steps in prop::collection::vec(step(), 1..25),
    ) {
        run(play(steps));
    }
}

/// Flips a bit of a flushed batch behind the log's back.
fn damage(dir: &Path, name: &str, at: u64) {
    use std::os::unix::fs::FileExt;
    let path = id(0).folder(dir).join(name);
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 4], at).unwrap();
}

#[test]
fn damage_below_the_flushed_end_is_kept_and_named() {
    let dir = disk();
    let path = dir.path().to_owned();
    run(async move {
        let live = store(&path).await;
        let (log, _) = open(&live, settings()).await;
        let sent = testing::run(0..40, 1000);
        respond(&log, &sent, 5000).unwrap();
        log.flush().await.unwrap();
        // The next flush makes the checkpoint of this one durable.
        log.flush().await.unwrap();
        let copy = disk();
        snapshot(&path, copy.path());
        live.close().await;
        // Side files were not saved yet: a recovery reads from the start.
        damage(copy.path(), &Kind::Log.name(0), 10 * 1061 + 500);
        let before = read_log(copy.path());
        let store = store(copy.path()).await;
        let (log, recovered) = open(&store, settings()).await;
        let corrupt = recovered.corrupt.unwrap();
        assert_eq!((corrupt.segment, corrupt.bytes.start), (0, 10 * 1061));
        assert_eq!(corrupt.offsets, 10..40);
        assert!(matches!(log.state(), LogState::Corrupt(_)));
        log.begin(LIMITS);
        assert!(log.lend(100).is_none());
        store.close().await;
        drop((log, store));
        assert_eq!(read_log(copy.path()), before, "nothing was cut");
        // And the next start finds the same.
        let store = super::store(copy.path()).await;
        let (_, recovered) = open(&store, settings()).await;
        assert_eq!(recovered.corrupt.unwrap().offsets, 10..40);
        store.close().await;
    });
}

#[test]
fn lost_checkpoints_cost_a_reading_and_nothing_else() {
    let dir = disk();
    let path = dir.path().to_owned();
    run(async move {
        let sent = testing::run(0..200, 1000);
        let first = store(&path).await;
        let (log, _) = open(&first, settings()).await;
        respond(&log, &sent, 5000).unwrap();
        first.close().await;
        drop((log, first));
        let own = path.join(OWN_FOLDER);
        for entry in fs::read_dir(&own).unwrap() {
            let entry = entry.unwrap();
            if entry.file_name().to_str().unwrap().starts_with("checkpoint-") {
                fs::write(entry.path(), b"garbage").unwrap();
            }
        }
        let second = store(&path).await;
        let (log, recovered) = open(&second, settings()).await;
        assert_eq!(recovered.corrupt, None);
        assert_eq!(recovered.scanned_bytes, sent.len() as u64);
        assert_eq!(recovered.positions.received.0.offset, 200);
        second.close().await;
        drop((log, second));
        assert_eq!(read_log(&path), sent);
        let third = store(&path).await;
        let (_, recovered) = open(&third, settings()).await;
        assert_eq!(recovered.scanned_bytes, 0, "once was enough");
        third.close().await;
        format::check(&path);
    });
}

#[test]
fn side_files_are_rebuilt() {
    let dir = disk();
    let path = dir.path().to_owned();
    run(async move {
        let sent = testing::run(0..200, 1000);
        let first = store(&path).await;
        let (log, _) = open(&first, settings()).await;
        respond(&log, &sent, 5000).unwrap();
        first.close().await;
        drop((log, first));
        for entry in fs::read_dir(id(0).folder(&path)).unwrap() {
            let file = entry.unwrap().path();
            if file.extension().is_some_and(|e| e != "log" && e != "metadata") {
                fs::remove_file(file).unwrap();
            }
        }
        for entry in fs::read_dir(id(0).seal_folder(&path)).unwrap() {
            fs::write(entry.unwrap().path(), b"garbage").unwrap();
        }
        let second = store(&path).await;
        let (log, recovered) = open(&second, settings()).await;
        assert_eq!(recovered.corrupt, None);
        assert_eq!(recovered.positions.received.0.offset, 200);
        respond(&log, &testing::run(200..210, 1000), 5000).unwrap();
        second.close().await;
        drop((log, second));
        format::check(&path);
        let third = store(&path).await;
        let (_, recovered) = open(&third, settings()).await;
        assert_eq!(recovered.scanned_bytes, 0);
        assert_eq!(recovered.positions.received.0.offset, 210);
        third.close().await;
    });
}

/// Stale bytes behind the tail must not come back: they have a valid CRC and rising offsets.
#[test]
fn what_was_cut_never_returns() {
    let dir = disk();
    let path = dir.path().to_owned();
    run(async move {
        let live = store(&path).await;
        let (log, _) = open(&live, LogSettings::default()).await;
        respond(&log, &testing::run(0..20, 1000), 5000).unwrap();
        log.flush().await.unwrap();
        log.flush().await.unwrap();
        respond(&log, &testing::run(20..60, 1000), 5000).unwrap();
        log.write_out().await.unwrap();
        let copy = disk();
        snapshot(&path, copy.path());
        live.close().await;
        // A torn batch in the middle of what was not flushed; whole ones behind it.
        damage(copy.path(), &Kind::Log.name(0), 30 * 1061 + 500);
        let store = store(copy.path()).await;
        let (log, recovered) = open(&store, LogSettings::default()).await;
        assert_eq!(recovered.corrupt, None);
        assert_eq!(recovered.positions.received.0.offset, 30);
        assert!(recovered.torn_bytes > 0);
        // One batch over the torn one: what lay behind it must be gone.
        respond(&log, &testing::run(30..31, 1000), 5000).unwrap();
        log.write_out().await.unwrap();
        let again = disk();
        snapshot(copy.path(), again.path());
        let third = super::store(again.path()).await;
        let (_, recovered) = open(&third, LogSettings::default()).await;
        assert_eq!(recovered.positions.received.0.offset, 31);
        third.close().await;
        store.close().await;
    });
}

/// No checksum covers the file of epochs. What one bit of it says wrongly is no measure for the
/// batches that are read after a crash.
#[test]
fn a_wrong_epoch_in_its_file_condemns_no_batch() {
    let dir = disk();
    let path = dir.path().to_owned();
    run(async move {
        let first = store(&path).await;
        let (log, _) = open(&first, settings()).await;
        respond(&log, &testing::run(0..20, 1000), 5000).unwrap();
        first.close().await;
        drop((log, first));
        let epochs = id(0).folder(&path).join(EPOCHS_FILE);
        assert_eq!(fs::read_to_string(&epochs).unwrap(), "0\n1\n0 0\n");
        fs::write(&epochs, "0\n1\n8 0\n").unwrap();
        let second = store(&path).await;
        let (log, _) = open(&second, settings()).await;
        respond(&log, &testing::run(20..200, 1000), 5000).unwrap();
        for _ in 0..3 {
            log.flush().await.unwrap();
        }
        let copy = disk();
        snapshot(&path, copy.path());
        second.close().await;
        let third = store(copy.path()).await;
        let (log, recovered) = open(&third, settings()).await;
        assert_eq!(recovered.corrupt, None);
        assert_eq!(log.positions().received.0.offset, 200);
        third.close().await;
    });
}
