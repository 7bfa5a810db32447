//! Damage that whole blocks make: what the page cache hides, and blocks that cannot be read in
//! which more than one range lies.

use ring::Config;
use ring::sim::Machine;

use super::simulated::live;
use super::*;

#[test]
fn what_the_page_cache_still_has_right_is_written_to_the_device() {
    let mut sim = Simulation::new(7, Faults::none());
    let first = live(&mut sim, async {
        let store = simulated_store().await;
        let (log, _) = open(&store, simulated::settings()).await;
        respond(&log, &(0..70).flat_map(batch).collect::<Vec<u8>>(), 3000).unwrap();
        store.close().await;
    });
    sim.kill(first);
    let path = id(0).folder(Path::new("/data")).join(Kind::Log.name(0));
    // In the midst, in the first block, and in the last, which the file does not fill.
    let length = sim.disk(Machine::FIRST, |disk| disk.read_file(&path).unwrap().len() as u64);
    assert!(!length.is_multiple_of(4096));
    for at in [9_000, 17, length - 3] {
        sim.disk(Machine::FIRST, |disk| disk.rot_bit(&path, at, 3));
    }
    let second = live(&mut sim, async {
        let store = simulated_store().await;
        let (log, _) = open(&store, simulated::settings()).await;
        let verifier = Verifier::new(0);
        assert_eq!(log.verify(&verifier).await, 1, "the device is read");
        Origin::simulated(70).mend_all(&log, &verifier).await.unwrap();
        assert_eq!(log.verify(&verifier).await, 0);
        log.flush().await.unwrap();
        (store, log)
    });
    sim.crash(second);
    assert_eq!(
        sim.disk(Machine::FIRST, |disk| disk.read_file(&path).unwrap().len() as u64),
        length
    );
    let last = sim.executor(Config::small());
    sim.run_on(last, async {
        let store = simulated_store().await;
        let (log, _) = open(&store, simulated::settings()).await;
        assert_eq!(log.verify(&Verifier::new(0)).await, 0);
        store.close().await;
        compare(&log, 70).await;
    });
}

#[test]
fn a_block_that_cannot_be_read_is_mended_also_where_two_ranges_meet_and_at_the_end() {
    const END: i64 = 1500;
    let settings = || LogSettings { segment_bytes: 2 << 20, ..LogSettings::default() };
    let mut sim = Simulation::new(7, Faults::none());
    let meet = Rc::new(RefCell::new(0));
    let told = Rc::clone(&meet);
    let first = live(&mut sim, async move {
        let store = simulated_store().await;
        let (log, _) = open(&store, settings()).await;
        for base in 0..END {
            respond(&log, &batch(base), 3000).unwrap();
            if base % 100 == 0 {
                log.flush().await.unwrap();
            }
        }
        log.flush().await.unwrap();
        let part = log.part(0).await.unwrap();
        assert!(part.sealed && part.strides.len() > 1);
        *told.borrow_mut() = u64::from(part.strides[0].end);
        store.close().await;
    });
    sim.kill(first);
    let path = id(0).folder(Path::new("/data")).join(Kind::Log.name(0));
    let length = sim.disk(Machine::FIRST, |disk| disk.read_file(&path).unwrap().len() as u64);
    for at in [*meet.borrow(), length - 1] {
        assert!(!at.is_multiple_of(4096));
        sim.disk(Machine::FIRST, |disk| disk.spoil(&path, at / 4096 * 4096..at + 1));
    }
    let last = sim.executor(Config::small());
    sim.run_on(last, async move {
        let store = simulated_store().await;
        let (log, _) = open(&store, settings()).await;
        let verifier = Verifier::new(0);
        assert_eq!(log.verify(&verifier).await, 2);
        Origin::simulated(END).mend_all(&log, &verifier).await.unwrap();
        assert_eq!((log.verify(&verifier).await, log.is_damaged()), (0, false));
        store.close().await;
        compare(&log, END).await;
    });
}
