//! Damage that is found when a segment is sealed, in what was written before the last start: the
//! log goes on, and nothing that came behind it waits.

use super::*;
use crate::names::Kind;

/// A log of 20 batches, opened again, that was damaged where nobody reads it before its segment is
/// sealed; 40 more come then.
async fn sealed_over(dir: &Path, damage: impl FnOnce(&Path)) -> (Rc<Store>, Rc<Log>) {
    let store = store(dir).await;
    let (log, _) = open(&store, settings()).await;
    respond(&log, &testing::run(0..20, 2000), 5000).unwrap();
    store.close().await;
    drop((log, store));
    damage(&segments(dir)[0]);
    let store = super::super::store(dir).await;
    let (log, recovered) = open(&store, settings()).await;
    assert_eq!(recovered.corrupt, None);
    respond(&log, &testing::run(20..60, 2000), 5000).unwrap();
    (store, log)
}

fn turn_a_bit(segment: &Path) {
    spoil(segment, 5000, &[1]);
}

/// The head of the fourth batch reads as zeros.
fn lose_a_block(segment: &Path) {
    let at = 3 * testing::run(0..1, 2000).len() as u64;
    let file = fs::File::options().write(true).open(segment).unwrap();
    file.write_all_at(&[0; 100], at).unwrap();
}

fn origin() -> Origin {
    let mut origin = Origin::default();
    for base in 0..60 {
        origin.batches.push((base, base + 1, testing::run(base..base + 1, 2000)));
    }
    origin
}

fn length(path: &Path) -> u64 {
    fs::metadata(path).unwrap().len()
}

#[test]
fn what_sealing_finds_damaged_does_not_stop_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    run(async move {
        let (store, log) = sealed_over(&path, turn_a_bit).await;
        assert_eq!(log.flush().await.unwrap().flushed.0.offset, 60);
        assert_eq!(log.state(), LogState::Healthy);
        let [damage] = &log.damages()[..] else { panic!("{:?}", log.damages()) };
        assert_eq!(damage.segment, 0);
        assert!(damage.offsets.contains(&2), "{damage:?}");
        assert!(!log.path(Kind::Seal, 0).exists(), "damage is not sealed");
        // The next start finds it, too.
        store.close().await;
        drop((log, store));
        let store = super::super::store(&path).await;
        let (log, _) = open(&store, settings()).await;
        assert!(matches!(log.state(), LogState::Corrupt(_)));
        assert_eq!(log.positions().received.0.offset, 60);
        store.close().await;
    });
}

#[test]
fn what_sealing_finds_damaged_is_mended_and_sealed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    run(async move {
        let (store, log) = sealed_over(&path, turn_a_bit).await;
        log.flush().await.unwrap();
        let verifier = Verifier::new(0);
        assert_eq!(log.take_doubted(), Some(0));
        log.verify_segment(0, &verifier).await;
        origin().mend_all(&log, &verifier).await.unwrap();
        log.verify_segment(0, &verifier).await;
        assert_eq!(log.damages(), []);
        assert!(log.path(Kind::Seal, 0).exists());
        store.close().await;
        drop((log, store));
        let store = super::super::store(&path).await;
        let (log, recovered) = open(&store, settings()).await;
        assert_eq!((recovered.corrupt, recovered.scanned_bytes), (None, 0));
        assert_eq!(log.positions().received.0.offset, 60);
        store.close().await;
    });
}

/// Where nothing vouches for its end, a segment is not cut at zeros either: not at the next start,
/// not when the log is cut behind it.
#[test]
fn zeros_that_sealing_found_are_never_taken_for_an_end() {
    for cut in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_owned();
        run(async move {
            let (store, log) = sealed_over(&path, lose_a_block).await;
            log.flush().await.unwrap();
            let before = length(&segments(&path)[0]);
            if cut {
                log.truncate_to(55).await.unwrap();
            } else {
                store.close().await;
            }
            drop((log, store));
            let store = super::super::store(&path).await;
            let (log, recovered) = open(&store, settings()).await;
            assert!(recovered.corrupt.is_some());
            assert_eq!(length(&segments(&path)[0]), before);
            assert!(!log.path(Kind::Seal, 0).exists());
            origin().mend_all(&log, &Verifier::new(0)).await.unwrap();
            assert_eq!(log.state(), LogState::Healthy);
            store.close().await;
        });
    }
}

/// A segment without a seal that ends where the next begins was finished, whatever became of the
/// checkpoints.
#[test]
fn what_sealing_found_is_mended_also_when_the_checkpoints_are_lost() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    run(async move {
        let (store, log) = sealed_over(&path, turn_a_bit).await;
        log.flush().await.unwrap();
        store.close().await;
        drop((log, store));
        lose_checkpoints(&path);
        let store = super::super::store(&path).await;
        let (log, recovered) = open(&store, settings()).await;
        assert!(recovered.corrupt.is_some());
        origin().mend_all(&log, &Verifier::new(0)).await.unwrap();
        assert_eq!(log.state(), LogState::Healthy);
        assert_eq!(log.positions().received.0.offset, 60);
        store.close().await;
    });
}
