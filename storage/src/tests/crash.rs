//! What a crash leaves, and what must be there after it: a copy of the directory is taken while the
//! log is live, recovered, and compared.

use proptest::prelude::*;

use super::*;

/// Copies a live data directory as a crash would leave it (everything handed to the kernel stays).
fn snapshot(from: &Path, to: &Path) {
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
            Step::Flush => {
                assert_eq!(log.flush().await.unwrap().flushed.0.offset, next);
            }
            Step::Wait(ms) => ring::sleep(std::time::Duration::from_millis(ms)).await,
            Step::Crash => {
                let flushed = log.positions().flushed.0.offset;
                let copy = disk();
                snapshot(live.path(), copy.path());
                check(copy.path(), &sent, flushed).await;
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

/// The recovered log holds a prefix of what was sent, at least what was flushed, and goes on.
async fn check(copy: &Path, sent: &Sent, flushed: i64) {
    let store = store(copy).await;
    let (log, recovered) = open(&store, settings()).await;
    assert_eq!(recovered.corrupt, None);
    let end = recovered.positions.received.0.offset;
    assert!(end >= flushed, "{end} is below the flushed {flushed}");
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
    fn a_crash_loses_nothing_that_was_flushed(steps in prop::collection::vec(step(), 1..25)) {
        run(play(steps));
    }
}
