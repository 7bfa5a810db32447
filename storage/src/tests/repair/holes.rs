//! Segments that are gone together with what speaks of them: a hole is named, and never looks like
//! a gap of the source's.

use ring::sim::Machine;

use super::forgotten::{END, data, file, flushed};
use super::simulated::{live, settings as small};
use super::*;

fn seal(segment: i64) -> PathBuf {
    id(0).seal_folder(data()).join(Kind::Seal.name(segment))
}

/// A start finds the log corrupt from this offset on; it is mended, and whole at the next start.
fn is_found_and_mended(sim: &mut Simulation, from: i64) {
    let second = live(sim, async move {
        let store = simulated_store().await;
        let (log, recovered) = open(&store, small()).await;
        let corrupt = recovered.corrupt.expect("a hole");
        assert_eq!(corrupt.offsets.start, from);
        let mended = Origin::simulated(END).mend_all(&log, &Verifier::new(0)).await;
        assert!(mended.is_ok(), "{mended:?}");
        assert_eq!(log.state(), LogState::Healthy);
        compare(&log, END).await;
        log.flush().await.unwrap();
        (store, log)
    });
    sim.crash(second);
    live(sim, async move {
        let store = simulated_store().await;
        let (log, recovered) = open(&store, small()).await;
        assert_eq!(recovered.corrupt, None);
        compare(&log, END).await;
        assert_eq!(log.verify(&Verifier::new(0)).await, 0);
    });
}

#[test]
fn a_segment_is_missed_also_when_the_seal_that_names_it_is_lost() {
    let mut sim = Simulation::new(3, Faults::none());
    let bases = flushed(&mut sim);
    assert!(bases.len() > 3);
    sim.disk(Machine::FIRST, |disk| {
        disk.lose_file(seal(bases[0])).unwrap();
        disk.lose_file(file(bases[1])).unwrap();
    });
    is_found_and_mended(&mut sim, bases[1]);
}

/// One that damage keeps from being sealed has no seal to lose.
#[test]
fn a_first_segment_is_missed_also_without_a_seal() {
    let mut sim = Simulation::new(3, Faults::none());
    let bases = flushed(&mut sim);
    sim.disk(Machine::FIRST, |disk| {
        disk.lose_file(seal(bases[0])).unwrap();
        disk.lose_file(file(bases[0])).unwrap();
    });
    is_found_and_mended(&mut sim, 0);
}

/// Where the first records lie too far off for a segment that begins at the visible start, there is
/// an empty one at it.
#[test]
fn a_log_whose_first_records_lie_far_off_misses_nothing() {
    let far = 5i64 << 31;
    let mut sim = Simulation::new(3, Faults::none());
    for round in 0..3 {
        let life = live(&mut sim, async move {
            let store = simulated_store().await;
            let (log, recovered) = open(&store, small()).await;
            assert_eq!(recovered.corrupt, None, "round {round}");
            let next = far + round * 20;
            respond(&log, &testing::run(next..next + 20, 3000), 3000).unwrap();
            log.flush().await.unwrap();
            assert_eq!(log.positions().log_start_offset, 0);
            (store, log)
        });
        sim.crash(life);
    }
}
