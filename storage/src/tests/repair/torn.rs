//! What a crash tore behind the flushed end of a segment whose seal it spared.

use std::time::Duration;

use super::*;

/// The batch that the crash tore.
const TORN: i64 = 27;

/// A log whose seal reaches further than what was flushed, as a crash left it: bits turned in what
/// was flushed, and behind it what was torn. `again`: there was another crash after so many
/// batches, and a stride ends there.
async fn sealed_beyond_its_flushed_end(to: &Path, flushed: i64, again: Option<i64>) -> Origin {
    let mut live = disk();
    let open_store = async |dir: &Path| {
        let boot = Boot::prepare(&[dir.to_owned()]).unwrap();
        let flush_interval = Duration::from_secs(3600);
        let config = StoreConfig { flush_interval, ..StoreConfig::new(0, boot) };
        let store = Store::open(config).await.unwrap();
        let (log, _) = open(&store, settings()).await;
        (store, log)
    };
    let (mut store, mut log) = open_store(live.path()).await;
    let mut origin = Origin::default();
    for base in 0..100 {
        if again == Some(base) {
            log.flush().await.unwrap();
            let left = disk();
            crash::snapshot(live.path(), left.path());
            store.close().await;
            (store, log) = open_store(left.path()).await;
            live = left;
        }
        let epoch = i32::from(base >= flushed);
        let bytes = origin.push(&Shape { body: 1000, epoch, ..Shape::at(base) });
        respond(&log, &bytes, 5000).unwrap();
        if base + 1 == flushed {
            log.flush().await.unwrap();
        }
    }
    while log.positions().written.0.offset < 80 {
        log.changed.after(log.changed.count()).await;
    }
    assert_eq!(log.positions().flushed.0.offset, flushed);
    crash::snapshot(live.path(), to);
    store.close().await;
    let bytes = |end: i64| -> u64 {
        origin.batches[..end as usize].iter().map(|batch| batch.2.len() as u64).sum()
    };
    spoil(&segments(to)[0], bytes(3) + 300, &[0x10]);
    spoil(&segments(to)[0], bytes(TORN) + 300, &[0x77; 2000]);
    origin
}

/// What was never flushed is no damage, however much of it a seal speaks of: it is torn, and cut
/// as ever once all that was flushed is whole.
#[test]
fn what_a_seal_says_of_bytes_that_were_never_flushed_keeps_no_log_corrupt() {
    const FLUSHED: i64 = 20;
    for (again, tail_is_gone) in [(None, false), (Some(10), true), (Some(FLUSHED), true)] {
        run(async move {
            let dir = disk();
            let path = dir.path().to_owned();
            let sent = sealed_beyond_its_flushed_end(&path, FLUSHED, again).await.batches;
            let mut origin = Origin { batches: sent.clone() };
            let store = store(&path).await;
            let (log, recovered) = open(&store, settings()).await;
            assert_eq!(recovered.corrupt.expect("damage").offsets.end, FLUSHED);
            if tail_is_gone {
                origin.batches.truncate(FLUSHED as usize);
            }
            origin.mend_all(&log, &Verifier::new(0)).await.unwrap();
            assert_eq!(log.state(), LogState::Healthy, "{again:?}");
            let end = log.positions().received.0.offset as usize;
            let beyond = if tail_is_gone { TORN..=TORN } else { 80..=100 };
            assert!(beyond.contains(&(end as i64)), "{again:?}: {end}");
            store.close().await;
            let sent: Vec<u8> = sent[..end].iter().flat_map(|batch| batch.2.clone()).collect();
            assert_eq!(read_log(&path), sent);
            format::check(&path);
        });
    }
}
