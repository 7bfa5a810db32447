//! Damage that is found when a segment is sealed, in what was written before the last start: the
//! log goes on, and nothing that came behind it waits.

use super::*;
use crate::names::Kind;

/// A log of 20 batches, opened again, of which a bit has turned where nobody reads it before its
/// segment is sealed; 40 more come then.
async fn sealed_over_damage(dir: &Path) -> (Rc<Store>, Rc<Log>) {
    let store = store(dir).await;
    let (log, _) = open(&store, settings()).await;
    respond(&log, &testing::run(0..20, 2000), 5000).unwrap();
    store.close().await;
    drop((log, store));
    spoil(&segments(dir)[0], 5000, &[1]);
    let store = super::super::store(dir).await;
    let (log, recovered) = open(&store, settings()).await;
    assert_eq!(recovered.corrupt, None);
    respond(&log, &testing::run(20..60, 2000), 5000).unwrap();
    (store, log)
}

#[test]
fn what_sealing_finds_damaged_does_not_stop_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    run(async move {
        let (store, log) = sealed_over_damage(&path).await;
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
        let mut origin = Origin::default();
        for base in 0..60 {
            origin.batches.push((base, base + 1, testing::run(base..base + 1, 2000)));
        }
        let (store, log) = sealed_over_damage(&path).await;
        log.flush().await.unwrap();
        let verifier = Verifier::new(0);
        assert_eq!(log.take_doubted(), Some(0));
        log.verify_segment(0, &verifier).await;
        origin.mend_all(&log, &verifier).await.unwrap();
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
