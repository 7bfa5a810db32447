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
                let kept = plan(&log, &Verifier::new(0), false).await;
                assert!(matches!(kept, Err(RepairError::Unreadable)), "{kept:?}");
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
