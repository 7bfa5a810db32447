//! What a power loss left unreadable behind the flushed end.

use ring::Config;
use ring::sim::Machine;

use super::simulated::live;
use super::*;

/// A log of which 30 records are flushed and 60 written, a process that dies, and a sector that
/// cannot be read, so many bytes behind the flushed end.
fn spoiled(behind: u64, then: impl AsyncFnOnce(Rc<Log>, i64) + 'static) {
    let mut sim = Simulation::new(4, Faults::none());
    let flushed = Rc::new(RefCell::new(0));
    let told = Rc::clone(&flushed);
    let executor = live(&mut sim, async move {
        let boot = Boot::prepare_simulated(&[PathBuf::from("/data")]).await.unwrap();
        let flush_interval = std::time::Duration::from_secs(3600);
        let config = StoreConfig { flush_interval, ..StoreConfig::new(0, boot) };
        let store = Store::open(config).await.unwrap();
        let (log, _) = open(&store, LogSettings::default()).await;
        let batches = |range: std::ops::Range<i64>| range.flat_map(batch).collect::<Vec<u8>>();
        respond(&log, &batches(0..30), 3000).unwrap();
        *told.borrow_mut() = log.flush().await.unwrap().flushed.0.bytes;
        respond(&log, &batches(30..60), 3000).unwrap();
        log.write_out().await.unwrap();
        (store, log)
    });
    sim.kill(executor);
    let at = *flushed.borrow() + behind;
    let path = id(0).folder(Path::new("/data")).join(Kind::Log.name(0));
    sim.disk(Machine::FIRST, |disk| disk.spoil(&path, at..at + 1));
    let last = sim.executor(Config::small());
    sim.run_on(last, async move {
        let store = simulated_store().await;
        let (log, recovered) = open(&store, LogSettings::default()).await;
        let corrupt = recovered.corrupt.expect("what cannot be read is not cut");
        then(Rc::clone(&log), corrupt.offsets.start).await;
        store.close().await;
        compare(&log, 70).await;
    });
}

/// Nothing that was flushed is lost there, and what was not, the source still has: the log is cut
/// where it can be read no further, and goes on.
#[test]
fn what_cannot_be_read_behind_the_flushed_end_keeps_no_log_corrupt() {
    for behind in [512, 1024, 4096, 9000, 20_000] {
        spoiled(behind, async move |log, readable_to| {
            let origin = Origin::simulated(60);
            if behind > 4096 {
                let before = log.state();
                let kept = plan(&log, &Verifier::new(0), |_| false).await;
                assert!(matches!(kept, Err(RepairError::Unreadable(_))), "{kept:?}");
                assert_eq!(log.state(), before);
            }
            origin.mend_all(&log, &Verifier::new(0)).await.unwrap();
            assert_eq!(log.state(), LogState::Healthy, "{behind} bytes behind");
            let end = log.positions().received.0.offset;
            assert!(end >= readable_to.max(30), "{behind} bytes behind: {readable_to}, {end}");
            let more: Vec<u8> = (end..70).flat_map(batch).collect();
            respond(&log, &more, 3000).unwrap();
            assert_eq!(log.flush().await.unwrap().flushed.0.offset, 70);
        });
    }
}

/// The source is heard first, about that very offset: it may be gone, or a failover begin.
#[test]
fn what_cannot_be_read_is_cut_only_where_that_is_allowed_just_then() {
    spoiled(9000, async move |log, readable_to| {
        let verifier = Verifier::new(0);
        let path = log.path(Kind::Log, 0);
        let bytes = ring::fs::size(&path).await.unwrap();
        let asked = RefCell::new(Vec::new());
        for _ in 0..3 {
            let kept = plan(&log, &verifier, |offset| {
                asked.borrow_mut().push(offset);
                false
            });
            let kept = kept.await;
            assert!(
                matches!(kept, Err(RepairError::Unreadable(at)) if at == readable_to),
                "{kept:?}"
            );
            assert!(matches!(log.state(), LogState::Corrupt(_)));
            assert_eq!(ring::fs::size(&path).await.unwrap(), bytes);
        }
        assert_eq!(asked.take(), [readable_to; 3]);
        assert_eq!(plan(&log, &verifier, |at| at == readable_to).await.unwrap(), []);
        assert_eq!(log.state(), LogState::Healthy);
        let end = log.positions().received.0.offset;
        respond(&log, &(end..70).flat_map(batch).collect::<Vec<u8>>(), 3000).unwrap();
        log.flush().await.unwrap();
    });
}
