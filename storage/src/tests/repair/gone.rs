//! Damage in segments that go, since the source has deleted what is in them.

use std::time::Duration;

use super::*;

/// What has gone is not damaged, and keeps nothing that stays from being mended.
#[test]
fn damage_of_a_segment_that_goes_goes_with_it_and_the_rest_is_mended() {
    let dir = disk();
    let path = dir.path().to_owned();
    let mut origin = closed_log(&path, &[1000; 200]);
    run(async move {
        let files = segments(&path);
        spoil(&files[0], 7_777, &[0x10]);
        spoil(&files[2], 5_555, &[0x08]);
        let store = store(&path).await;
        let (log, _) = open(&store, settings()).await;
        log.set_limits(settings().batch_bytes_max, Duration::ZERO);
        let verifier = Verifier::new(0);
        assert_eq!(log.verify(&verifier).await, 2);
        let bases: Vec<i64> = log.inner.borrow().sealed.iter().map(|sealed| sealed.0).collect();
        let damaged = |log: &Log| log.damages().iter().map(|d| d.segment).collect::<Vec<_>>();
        assert_eq!(damaged(&log), [bases[0], bases[2]]);
        log.advance_start(bases[1]);
        log.flush().await.unwrap();
        while files[0].exists() || log.flags.working.get() {
            ring::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(damaged(&log), [bases[2]]);
        origin.batches.retain(|batch| batch.0 >= bases[1]);
        origin.mend_all(&log, &verifier).await.unwrap();
        assert!(!log.is_damaged());
        assert_eq!(log.verify(&verifier).await, 0);
        store.close().await;
        let whole: Vec<u8> = origin.batches.iter().flat_map(|batch| batch.2.clone()).collect();
        assert_eq!(read_log(&path), whole);
    });
}
