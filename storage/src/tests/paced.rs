//! Records are not received faster than the device takes them, however much memory there is.

use std::cell::Cell;
use std::time::Duration;

use ring::Config;
use ring::sim::{Faults, Simulation};

use super::simulated::simulated_store;
use super::*;
use crate::limits::{AHEAD_BYTES_MAX, STANDSTILL};

const PART_BYTES: usize = 512 << 10;
const PARTS: i64 = 128;

/// The most memory that was lent while 64 MiB were appended, each part as soon as it may come.
fn peak(paced: bool, delay: Duration) -> u64 {
    let mut faults = Faults::none();
    faults.disk.delay = delay..delay * 2;
    let mut sim = Simulation::new(3, faults);
    let executor = sim.executor(Config { arena_bytes: 128 << 20, ..Config::small() });
    let peak = Rc::new(Cell::new(0));
    let seen = Rc::clone(&peak);
    sim.run_on(executor, async move {
        let store = simulated_store().await;
        let (log, _) = open(&store, LogSettings::default()).await;
        for base in 0..PARTS {
            if paced {
                log.keep_pace().await;
            }
            let body = PART_BYTES - 100;
            respond(&log, &Shape { body, ..Shape::at(base) }.bytes(), PART_BYTES).unwrap();
            ring::sleep(Duration::from_micros(10)).await;
        }
        seen.set(ring::memory().peak as u64);
        store.close().await;
    });
    peak.get()
}

#[test]
fn a_device_that_is_slower_than_the_source_holds_it_back() {
    const DELAY: Duration = Duration::from_micros(500);
    let (paced, free) = (peak(true, DELAY), peak(false, DELAY));
    assert!(paced <= AHEAD_BYTES_MAX + (4 << 20), "{paced} bytes were waiting");
    assert!(free >= 2 * paced, "{free} without a word about pace");
}

#[test]
fn one_that_stands_still_does_not_as_long_as_there_is_memory() {
    let waiting = peak(true, STANDSTILL * 100);
    assert!(waiting >= 2 * AHEAD_BYTES_MAX, "only {waiting} bytes came");
}
