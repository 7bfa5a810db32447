//! Which transactions are open, where that has to be told from what is left on disk: one that is
//! not would hold back readers of committed records for ever.

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

/// Damage that nobody reads any more may hold the marker of a transaction that began before it.
#[test]
fn what_ended_in_damage_below_the_start_is_not_open() {
    // The marker alone; all from there to the log's end.
    for damaged in [6..7, 6..20] {
        let dir = disk();
        let path = dir.path().to_owned();
        run(async move {
            let store = store(&path).await;
            let (log, _) = open(&store, LogSettings::default()).await;
            let batches: Vec<Vec<u8>> = (0..20)
                .map(|base| match base {
                    2 => begin(base),
                    6 => testing::marker(base, 0, 7, 0, false),
                    _ => Shape { body: 900, ..Shape::at(base) }.bytes(),
                })
                .collect();
            respond(&log, &batches.concat(), 4000).unwrap();
            log.flush().await.unwrap();
            assert_eq!(log.positions().last_stable_offset, 20);
            drop((log, store)); // as a process that is killed
            let segment = id(0).folder(&path).join(Kind::Log.name(0));
            let mut bytes = fs::read(&segment).unwrap();
            let at = |offset: usize| batches[..offset].concat().len();
            damaged.clone().for_each(|offset| bytes[at(offset) + 30] ^= 1);
            fs::write(&segment, bytes).unwrap();
            for goes_on in [false, true] {
                let store = super::store(&path).await;
                let (log, recovered) = open(&store, LogSettings::default()).await;
                assert_eq!(recovered.corrupt.is_none(), goes_on);
                assert!(goes_on || log.forget_below(damaged.end as i64).await.unwrap());
                assert_eq!(log.state(), LogState::Healthy);
                assert_eq!(
                    (log.open_transactions(), log.positions().last_stable_offset),
                    (vec![], 20)
                );
                log.flush().await.unwrap();
                store.close().await;
            }
            // One that goes on is open, from there.
            let store = super::store(&path).await;
            let (log, _) = open(&store, LogSettings::default()).await;
            respond(&log, &begin(20), 4000).unwrap();
            assert_eq!(log.open_transactions(), [(20, 7, 0)]);
            store.close().await;
        });
    }
}
