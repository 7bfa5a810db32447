use std::cmp::Reverse;
use std::collections::BinaryHeap;

use proptest::prelude::*;

use super::*;
use crate::limits::{BACKFILL_ANSWER_TARGET, POOL_INTERVAL};

/// A link on which every connection carries `each` bytes an interval, and all `most`.
fn settle(pool: &mut Pool, each: u64, most: u64, intervals: u32, max: usize) {
    for _ in 0..intervals {
        let bytes = (pool.connections() as u64 * each).min(most);
        pool.consider(&Interval { backfilling: 1000, bytes, settled: true, busy: false }, max);
    }
}

#[test]
fn no_partition_behind_needs_no_connection() {
    let mut pool = Pool::default();
    settle(&mut pool, 1, 100, 10, 16);
    pool.consider(&Interval::default(), 16);
    assert_eq!(pool.connections(), 0);
}

#[test]
fn a_short_link_stays_at_two_most_of_the_time() {
    let mut pool = Pool::default();
    let mut at_two = 0;
    for _ in 0..1000 {
        settle(&mut pool, 100, 100, 1, 16);
        at_two += u32::from(pool.connections() == 2);
    }
    assert!(at_two > 940, "{at_two}");
}

#[test]
fn a_busy_core_is_left_alone() {
    let mut pool = Pool::default();
    for _ in 0..100 {
        let seen = Interval { backfilling: 100, bytes: 1, settled: true, busy: true };
        pool.consider(&seen, 16);
    }
    assert_eq!(pool.connections(), 2);
}

#[test]
fn new_connections_are_judged_when_they_carry_something() {
    let mut pool = Pool::default();
    let (mut carrying, mut most) = (0, 0);
    for round in 0..60 {
        // It takes three intervals until a new connection has its partitions.
        if round % 4 == 3 {
            carrying = pool.connections();
        }
        let (bytes, settled) = (carrying as u64 * 10, carrying == pool.connections());
        pool.consider(&Interval { backfilling: 100, bytes, settled, busy: false }, 65);
        most = most.max(pool.connections());
    }
    assert_eq!(most, 64);
    assert!(pool.connections() >= 48, "{}", pool.connections());
}

/// A long link piece by piece: connections with a window each that share one wire, answers of the
/// sizes that are asked for, partitions that change their connection between two answers.
struct Link {
    bytes_per_second: f64,
    round_trip_us: u64,
    window: usize,
    partitions: usize,
    connections: Vec<Connection>,
    events: BinaryHeap<Reverse<(u64, u64, usize, Event)>>,
    happened: u64,
    now_us: u64,
    wire_free_us: u64,
    arrived: u64,
    /// The number of connections by which partitions are placed.
    placed: usize,
    random: u64,
    /// The part of the wire that others use at most, now more, now less.
    others: f64,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// It may ask for its partitions' records.
    Ready,
    /// The request has reached the source.
    Asked,
    Arrived(usize),
    /// An acknowledgement for so much has reached the source.
    Acknowledged(usize),
}

#[derive(Default)]
struct Connection {
    open: bool,
    partitions: Vec<usize>,
    inbox: Vec<usize>,
    size: FetchSize,
    asked: usize,
    unsent: usize,
    missing: usize,
    in_flight: usize,
    first_us: Option<u64>,
    carried: bool,
}

/// What a connection takes until it can ask: to connect, for versions, for offsets.
const ROUND_TRIPS_BEFORE: u64 = 3;

impl Link {
    fn new(bytes_per_second: f64, round_trip_ms: u64, window: usize, partitions: usize) -> Self {
        Link {
            bytes_per_second,
            round_trip_us: (round_trip_ms * 1000).max(100),
            window,
            partitions,
            connections: (0..partitions).map(|_| Connection::default()).collect(),
            events: BinaryHeap::new(),
            happened: 0,
            now_us: 0,
            wire_free_us: 0,
            arrived: 0,
            placed: 0,
            random: round_trip_ms,
            others: 0.0,
        }
    }

    /// Connections whose windows fill the wire, if they never pause.
    fn filled_by(&self) -> f64 {
        self.bytes_per_second * self.round_trip_us as f64 / 1e6 / self.window as f64
    }

    fn at(&mut self, at_us: u64, connection: usize, event: Event) {
        self.happened += 1;
        self.events.push(Reverse((at_us, self.happened, connection, event)));
    }

    /// Partitions belong on so many connections from now on.
    fn place(&mut self, connections: usize) {
        let first = self.placed == 0;
        self.placed = connections;
        if first {
            (0..self.partitions).for_each(|partition| self.give(partition));
        }
    }

    fn give(&mut self, partition: usize) {
        let to = partition % self.placed;
        self.connections[to].inbox.push(partition);
        if !std::mem::replace(&mut self.connections[to].open, true) {
            let ready = self.now_us + ROUND_TRIPS_BEFORE * self.round_trip_us;
            self.at(ready, to, Event::Ready);
        }
    }

    fn run(&mut self, time: Duration) {
        let until = self.now_us + time.as_micros() as u64;
        while let Some(Reverse((at, ..))) = self.events.peek()
            && *at <= until
        {
            let Some(Reverse((at, _, connection, event))) = self.events.pop() else { return };
            self.now_us = at;
            self.happen(connection, event);
        }
        self.now_us = until;
    }

    fn happen(&mut self, number: usize, event: Event) {
        let half_us = self.round_trip_us / 2;
        let now = self.now_us;
        let connection = &mut self.connections[number];
        match event {
            Event::Ready => self.ask(number),
            Event::Asked => self.send(number),
            Event::Acknowledged(bytes) => {
                connection.in_flight -= bytes;
                self.send(number);
            }
            Event::Arrived(bytes) => {
                self.arrived += bytes as u64;
                connection.first_us.get_or_insert(now);
                connection.carried = true;
                connection.missing -= bytes;
                let over = connection.missing == 0;
                self.at(now + half_us, number, Event::Acknowledged(bytes));
                if over {
                    let connection = &mut self.connections[number];
                    let spent = now - connection.first_us.take().expect("it has begun");
                    let (asked, spent) = (connection.asked, Duration::from_micros(spent));
                    connection.size.answered(asked, asked as u64, spent, BACKFILL_ANSWER_TARGET);
                    self.ask(number);
                }
            }
        }
    }

    /// Between two answers.
    fn ask(&mut self, number: usize) {
        let placed = self.placed;
        let random = self.random();
        let connection = &mut self.connections[number];
        let mut partitions = std::mem::take(&mut connection.partitions);
        partitions.append(&mut connection.inbox);
        let (stay, go) = partitions.into_iter().partition(|p| p % placed == number);
        connection.partitions = stay;
        let partitions = connection.partitions.len();
        let all = partitions * connection.size.bytes_of_each(partitions) as usize;
        let asked = connection.size.bytes_of_many(random).min(all);
        if asked == 0 {
            *connection = Connection { in_flight: connection.in_flight, ..Connection::default() };
        } else {
            (connection.asked, connection.unsent, connection.missing) = (asked, asked, asked);
            self.at(self.now_us + self.round_trip_us / 2, number, Event::Asked);
        }
        let go: Vec<usize> = go;
        go.into_iter().for_each(|partition| self.give(partition));
    }

    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        self.random >> 33
    }

    fn send(&mut self, number: usize) {
        loop {
            let connection = &mut self.connections[number];
            let room = self.window.saturating_sub(connection.in_flight);
            let piece = room.min(connection.unsent).min(64 << 10);
            if piece == 0 {
                return;
            }
            connection.unsent -= piece;
            connection.in_flight += piece;
            let takes = (piece as f64 * 1e6 / self.bytes_per_second) as u64;
            self.wire_free_us = self.wire_free_us.max(self.now_us) + takes;
            self.at(self.wire_free_us + self.round_trip_us / 2, number, Event::Arrived(piece));
        }
    }

    fn is_settled(&self) -> bool {
        let fine = |(number, connection): (usize, &Connection)| {
            let mine = connection.partitions.iter().all(|p| p % self.placed == number);
            mine && connection.inbox.is_empty() && connection.carried == connection.open
        };
        self.connections.iter().enumerate().all(fine)
    }

    /// What the pool is told of another interval.
    fn interval(&mut self) -> Interval {
        let whole = self.bytes_per_second;
        let less = self.others * (self.random() % 1000) as f64 / 1000.0;
        self.bytes_per_second = whole * (1.0 - less);
        self.run(POOL_INTERVAL);
        self.bytes_per_second = whole;
        let bytes = std::mem::take(&mut self.arrived);
        let (backfilling, settled) = (self.partitions, self.is_settled());
        Interval { backfilling, bytes, settled, busy: false }
    }

    /// Follows a pool for so long: the part of the wire that is used, and the mean number of
    /// connections.
    fn follow(&mut self, pool: &mut Pool, max: usize, seconds: u32) -> (f64, f64) {
        let (mut bytes, mut connections) = (0, 0);
        for _ in 0..2 * seconds {
            let seen = self.interval();
            if pool.consider(&seen, max) {
                self.place(pool.connections());
            }
            bytes += seen.bytes;
            connections += pool.connections();
        }
        let whole = self.bytes_per_second * f64::from(seconds);
        (bytes as f64 / whole, connections as f64 / f64::from(2 * seconds))
    }
}

#[test]
fn a_long_link_is_filled_within_tens_of_seconds() {
    for (round_trip_ms, begins) in [(20, 10), (100, 15), (200, 25), (400, 40)] {
        let mut link = Link::new(125e6, round_trip_ms, 100 << 10, 1200);
        let mut pool = Pool::default();
        link.follow(&mut pool, 1201, begins);
        let (soon, _) = link.follow(&mut pool, 1201, 20);
        let (used, connections) = link.follow(&mut pool, 1201, 60);
        let filled_by = link.filled_by();
        assert!(soon >= 0.9 && used >= 0.9, "{round_trip_ms} ms: {soon:.3}, {used:.3}");
        assert!(connections <= filled_by * 2.0, "{connections} for {filled_by}");
    }
}

#[test]
fn as_many_as_are_allowed_are_used_where_they_are_too_few() {
    let (mut link, mut pool) = (Link::new(125e6, 200, 100 << 10, 256), Pool::default());
    link.follow(&mut pool, 101, 30);
    let (used, connections) = link.follow(&mut pool, 101, 60);
    let part = 100.0 / link.filled_by();
    assert!(used >= 0.8 * part && connections > 95.0, "{used:.3} of {part:.3}, {connections}");
}

#[test]
fn too_many_connections_are_taken_back() {
    let (mut link, mut pool) = (Link::new(125e6, 100, 100 << 10, 256), Pool::default());
    link.follow(&mut pool, 257, 30);
    let before = pool.connections();
    link.round_trip_us /= 5;
    link.follow(&mut pool, 257, 120);
    let (used, connections) = link.follow(&mut pool, 257, 60);
    assert!(before > 110 && connections < 60.0, "{before} → {connections}");
    assert!(used >= 0.9, "{used:.3}");
}

#[test]
fn a_link_that_grows_long_gets_more() {
    let (mut link, mut pool) = (Link::new(125e6, 20, 100 << 10, 256), Pool::default());
    link.follow(&mut pool, 257, 40);
    link.round_trip_us *= 5;
    link.follow(&mut pool, 257, 60);
    let (used, connections) = link.follow(&mut pool, 257, 60);
    assert!(used >= 0.9, "{used:.3} with {connections}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn any_wire_is_filled_with_few_more_than_it_takes(
        bytes_per_second in 2e6..250e6,
        round_trip_ms in 0u64..400,
        window in 32usize << 10..1 << 20,
        others in 0.0..0.15,
    ) {
        let mut link = Link::new(bytes_per_second, round_trip_ms, window, 256);
        link.others = others;
        let filled_by = link.filled_by();
        prop_assume!(filled_by < 100.0);
        let mut pool = Pool::default();
        link.follow(&mut pool, 257, 60);
        let (used, connections) = link.follow(&mut pool, 257, 60);
        let used = used / (1.0 - others / 2.0);
        prop_assert!(used >= 0.85, "{used:.3}, {connections} for {filled_by}");
        let few = filled_by.max(1.0) * 2.0 + 2.0;
        prop_assert!(connections <= few, "{connections} for {filled_by}");
    }

    #[test]
    fn never_more_than_allowed_and_always_one(
        seen in prop::collection::vec((1usize..50, 0u64..1000, any::<[bool; 2]>()), 1..200),
        max in 0usize..40,
    ) {
        let mut pool = Pool::default();
        for (backfilling, bytes, [busy, settled]) in seen {
            pool.consider(&Interval { backfilling, bytes, settled, busy }, max);
            let most = backfilling.min(max.saturating_sub(1).max(1));
            prop_assert!((1..=most).contains(&pool.connections()));
        }
    }
}

/// Fewer are being tried when partitions catch up, and fewer than before are allowed.
#[test]
fn a_trial_that_ends_goes_back_to_no_more_than_allowed() {
    let mut pool = Pool::default();
    let mut see = |backfilling, bytes| {
        pool.consider(&Interval { backfilling, bytes, settled: true, busy: false }, 41);
        pool.connections()
    };
    let bytes = |connections: usize| connections as u64 * 1_000_000;
    let mut connections = 0;
    for _ in 0..2_000 {
        let before = connections;
        connections = see(40, bytes(connections.min(24)));
        if connections > LEAST && connections < before {
            break;
        }
    }
    for _ in 0..2 * SETTLING_MAX {
        let now = see(connections, bytes(1));
        assert!(now <= connections, "{now} of {connections}");
    }
}

#[test]
fn answers_take_about_as_long_as_they_should() {
    let target = Duration::from_millis(1000);
    for rate in [1 << 20, 10 << 20, 1 << 30u64] {
        let mut size = FetchSize::default();
        for _ in 0..20 {
            let spent = Duration::from_secs_f64(size.bytes() as f64 / rate as f64);
            size.answered(size.bytes(), size.bytes() as u64, spent, target);
        }
        let fits = rate as usize;
        let least = (fits / 4).min(FETCH_BYTES_MAX);
        assert!((least..=fits.max(FETCH_BYTES_MIN)).contains(&size.bytes()), "{rate}");
    }
}

#[test]
fn an_answer_that_brings_little_asks_for_no_more() {
    let mut size = FetchSize::default();
    size.answered(FETCH_BYTES_FIRST, 10, Duration::ZERO, Duration::from_secs(1));
    assert_eq!(size.bytes(), FETCH_BYTES_FIRST);
}

#[test]
fn of_many_each_asks_for_a_little_less() {
    let size = FetchSize::default();
    for random in [0, 1, u64::MAX / 3, u64::MAX] {
        let asked = size.bytes_of_many(random);
        assert!(asked <= size.bytes() && asked * 4 > size.bytes() * 3, "{asked}");
    }
    assert_ne!(size.bytes_of_many(1), size.bytes_of_many(70_000));
}

#[test]
fn few_partitions_fill_an_answer_as_many_do() {
    let mut size = FetchSize::default();
    assert_eq!(size.bytes_of_each(0), PARTITION_BYTES_MAX);
    while size.bytes() < FETCH_BYTES_MAX {
        size.answered(size.bytes(), size.bytes() as u64, Duration::ZERO, BACKFILL_ANSWER_TARGET);
    }
    let least = FETCH_BYTES_MAX / PARTITION_BYTES_OF_FEW_MAX as usize;
    for partitions in least..=FETCH_BYTES_MAX / PARTITION_BYTES_MAX as usize {
        let asked = partitions * size.bytes_of_each(partitions) as usize;
        assert!((FETCH_BYTES_MAX - partitions..=FETCH_BYTES_MAX).contains(&asked), "{partitions}");
    }
    assert_eq!(size.bytes_of_each(1), PARTITION_BYTES_OF_FEW_MAX);
    assert_eq!(size.bytes_of_each(10_000), PARTITION_BYTES_MAX);
}

#[test]
fn far_behind_is_a_matter_of_bytes() {
    assert_eq!(missing_bytes(-1, u64::MAX), 0);
    assert_eq!(missing_bytes(1000, 1000), 1_000_000);
    assert_eq!(missing_bytes(i64::MAX, u64::MAX), u64::MAX);
}
