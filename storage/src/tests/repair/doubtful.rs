//! Lost checkpoints, and flushes that failed: what doubtful checkpoints call flushed is not the end
//! of what is, and no cut follows from it.

use super::*;
use crate::boot::slot_path;

#[test]
fn a_failed_flush_of_a_doubtful_log_takes_none_of_its_segments() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let _origin = closed_log(&path, &[1000; 200]);
    let all = segments(&path);
    spoil(&all[1], 5000, &[1]);
    lose_checkpoints(&path);
    run(async move {
        let store = store(&path).await;
        let (log, recovered) = open(&store, settings()).await;
        assert!(recovered.corrupt.is_some());
        log.fail("a flush failed");
        store.close().await;
        drop((log, store));
        let store = super::super::store(&path).await;
        let (_log, recovered) = open(&store, settings()).await;
        assert!(recovered.corrupt.is_some());
        assert_eq!(segments(&path), all);
        store.close().await;
    });
}

/// An older checkpoint speaks of a flush that failed; those that came after it are lost.
#[test]
fn a_flush_that_failed_long_ago_takes_nothing_when_later_checkpoints_are_lost() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    run(async move {
        let store = store(&path).await;
        let (log, _) = open(&store, settings()).await;
        respond(&log, &testing::run(0..20, 2000), 5000).unwrap();
        log.flush().await.unwrap();
        log.fail("a flush failed");
        store.close().await;
        drop((log, store));
        let store = super::super::store(&path).await;
        let (log, _) = open(&store, settings()).await;
        assert_eq!(log.positions().received.0.offset, 20);
        respond(&log, &testing::run(20..300, 2000), 5000).unwrap();
        assert_eq!(log.flush().await.unwrap().flushed.0.offset, 300);
        store.close().await;
        drop((log, store));
        let all = segments(&path);
        for slot in 0..2 {
            fs::write(slot_path(&path, 0, slot), "garbled").unwrap();
        }
        let store = super::super::store(&path).await;
        let (log, _) = open(&store, settings()).await;
        assert_eq!(segments(&path), all);
        assert_eq!(log.positions().received.0.offset, 300);
        store.close().await;
    });
}
