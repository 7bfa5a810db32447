//! Which transactions are open, where that has to be told from what is left on disk: one that is not
//! would hold back readers of committed records for ever.

use super::*;

/// A batch of a transaction of producer 7.
fn begin(base: i64) -> Vec<u8> {
    Shape { attributes: 0x10, producer: Some((7, 0, 0)), ..Shape::at(base) }.bytes()
}

/// A snapshot saved above the cut is of records that are gone; the log comes to end there again,
/// with others.
#[test]
fn what_was_open_above_a_cut_is_not_open_where_the_log_ends_again() {
    let dir = disk();
    let path = dir.path().to_owned();
    run(async move {
        let store = store(&path).await;
        let (log, _) = open(&store, LogSettings::default()).await;
        respond(&log, &testing::run(0..50, 100), 4000).unwrap();
        respond(&log, &begin(50), 4000).unwrap();
        store.close().await;
        let snapshot = log.path(Kind::Snapshot, 51);
        let stale = fs::read(&snapshot).unwrap();
        drop((log, store));
        let store = super::store(&path).await;
        let (log, _) = open(&store, LogSettings::default()).await;
        assert_eq!(log.positions().last_stable_offset, 50);
        log.truncate_to(50).await.unwrap();
        assert!(!snapshot.exists(), "Kafka's tools would take it for what is open");
        respond(&log, &testing::run(50..51, 100), 4000).unwrap();
        store.close().await;
        drop((log, store));
        for left in [false, true] {
            if left {
                fs::write(&snapshot, &stale).unwrap();
            }
            let store = super::store(&path).await;
            let (log, _) = open(&store, LogSettings::default()).await;
            assert_eq!(log.open_transactions(), []);
            assert_eq!(log.positions().last_stable_offset, 51);
            store.close().await;
        }
    });
}
