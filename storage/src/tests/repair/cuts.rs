//! Cuts of a log that is damaged: what is damaged goes with what is cut, or stays and is mended.

use super::*;

const BATCHES: usize = 200;

/// A log in segments, the bits of one batch turned while it was closed, opened again.
async fn damaged(path: &Path, origin: &Origin, batch: i64) -> (Rc<Store>, Rc<Log>) {
    let segments = segments(path);
    let base = |path: &PathBuf| path.file_stem().unwrap().to_str().unwrap().parse::<i64>().unwrap();
    let of_it = segments.iter().rfind(|path| base(path) <= batch).unwrap();
    let before = &origin.batches[base(of_it) as usize..batch as usize];
    let at: usize = before.iter().map(|batch| batch.2.len()).sum();
    spoil(of_it, at as u64 + 300, &[0x10]);
    let store = store(path).await;
    let (log, recovered) = open(&store, settings()).await;
    assert_eq!(recovered.corrupt, None, "a start reads none of it");
    (store, log)
}

/// The first batches of the source, as bytes.
fn first(origin: &Origin, batches: i64) -> Vec<u8> {
    origin.batches[..batches as usize].iter().flat_map(|batch| batch.2.clone()).collect()
}

/// What a source has that has lost its records from `at` on.
fn parted(origin: &Origin, at: i64) -> Origin {
    let mut batches = origin.batches.clone();
    batches.truncate(at as usize);
    Origin { batches }
}

/// It goes on behind a cut at `at`, and is whole, also after a restart.
async fn goes_on(path: &Path, store: Rc<Store>, log: Rc<Log>, origin: &Origin, at: i64) {
    assert_eq!((log.state(), log.is_damaged()), (LogState::Healthy, false));
    assert_eq!(log.positions().received.0.offset, at);
    let more: Vec<u8> =
        (at..at + 9).flat_map(|at| Shape { epoch: 11, ..Shape::at(at) }.bytes()).collect();
    respond(&log, &more, 4000).unwrap();
    store.close().await;
    assert_eq!(read_log(path), [first(origin, at), more].concat());
    drop((log, store));
    let store = self::store(path).await;
    let (log, recovered) = open(&store, settings()).await;
    assert_eq!((recovered.corrupt, recovered.positions.received.0.offset), (None, at + 9));
    assert_eq!(log.verify(&Verifier::new(0)).await, 0);
    store.close().await;
}

/// In a sealed segment, and in the one that goes on.
const CUTS: [i64; 2] = [100, 190];

#[test]
fn damage_behind_a_cut_goes_with_it() {
    for (cut, behind) in CUTS.into_iter().flat_map(|cut| [0, 1].map(|behind| (cut, behind))) {
        let dir = disk();
        let path = dir.path().to_owned();
        let origin = closed_log(&path, &[1000; BATCHES]);
        run(async move {
            let (store, log) = damaged(&path, &origin, cut + behind).await;
            log.truncate_to(cut).await.unwrap();
            goes_on(&path, store, log, &origin, cut).await;
        });
    }
}

#[test]
fn damage_just_below_a_cut_is_mended_before_it() {
    let cut = CUTS[1];
    let dir = disk();
    let path = dir.path().to_owned();
    let origin = closed_log(&path, &[1000; BATCHES]);
    run(async move {
        let (store, log) = damaged(&path, &origin, cut - 1).await;
        let (before, positions) = (read_log(&path), log.positions());
        let error = log.truncate_to(cut).await.unwrap_err();
        let LogError::Damaged { segment, .. } = error else { panic!("{error}") };
        // Nothing has changed, and it goes on.
        assert_eq!((log.state(), log.positions()), (LogState::Healthy, positions));
        assert!(read_log(&path).starts_with(&before));
        let verifier = Verifier::new(0);
        assert_eq!(log.verify_segment(segment, &verifier).await, 1);
        assert_eq!(log.damages()[0].offsets, cut - 2..cut);
        parted(&origin, cut).mend_all(&log, &verifier).await.unwrap();
        log.truncate_to(cut).await.unwrap();
        goes_on(&path, store, log, &origin, cut).await;
    });
}

#[test]
fn damage_far_below_a_cut_stays_named_and_is_mended_after_it() {
    // In the segment of the cut, and before it; known, and not.
    for (cut, batch) in [(100, 60), (100, 3), (190, 170), (190, 3)] {
        for known in [true, false] {
            let dir = disk();
            let path = dir.path().to_owned();
            let origin = closed_log(&path, &[1000; BATCHES]);
            run(async move {
                let (store, log) = damaged(&path, &origin, batch).await;
                let verifier = Verifier::new(0);
                if known {
                    assert_eq!(log.verify(&verifier).await, 1);
                }
                log.truncate_to(cut).await.unwrap();
                assert_eq!(log.positions().flushed.0.offset, cut);
                assert_eq!(read_log(&path).len(), first(&origin, cut).len());
                assert!(log.is_damaged() || !known);
                assert!(log.damages().iter().all(|damage| damage.offsets.end <= cut));
                let parted = parted(&origin, cut);
                parted.mend_all(&log, &verifier).await.unwrap();
                if log.verify(&verifier).await > 0 {
                    parted.mend_all(&log, &verifier).await.unwrap();
                }
                goes_on(&path, store, log, &origin, cut).await;
            });
        }
    }
}
