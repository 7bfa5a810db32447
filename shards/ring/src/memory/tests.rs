use super::*;

fn arena(bytes: usize) -> Rc<Arena> {
    Arena::new(bytes, 64 << 10, false).expect("memory for a test")
}

#[test]
fn a_lease_freezes_at_any_byte_and_keeps_filling_behind_it() {
    let arena = arena(64 << 10);
    let mut lease = arena.try_lease(BLOCK, Class::Records).expect("memory");
    lease[..5].copy_from_slice(b"hello");
    let (hello, mut rest) = lease.freeze(5);
    rest[..6].copy_from_slice(b" world");
    let (world, rest) = rest.freeze(6);
    let mut joined = hello.clone();
    assert!(joined.try_join(&world));
    assert_eq!(&joined[..], b"hello world");
    assert_eq!(&joined.slice(4..7)[..], b"o w");
    assert_eq!(rest.len(), BLOCK - 11);
    drop((hello, world, rest));
    assert_eq!(arena.in_use().used, BLOCK);
    drop(joined);
    assert_eq!(arena.in_use().used, 0);
}

#[test]
fn leases_are_aligned_to_their_size_and_do_not_overlap() {
    let arena = arena(1 << 20);
    let mut held: Vec<Lease> = Vec::new();
    for blocks in [1, 2, 16, 3, 1, 8] {
        let lease = arena.try_lease(blocks * BLOCK, Class::Records).expect("memory");
        assert_eq!(lease.address() % lease.len(), 0);
        for other in &held {
            let apart = lease.address() + lease.len() <= other.address()
                || other.address() + other.len() <= lease.address();
            assert!(apart);
        }
        held.push(lease);
    }
}

#[test]
fn records_cannot_take_the_reserve() {
    let arena = arena(1 << 20);
    let mut held = Vec::new();
    while let Some(lease) = arena.try_lease(64 << 10, Class::Records) {
        held.push(lease);
    }
    assert_eq!(arena.in_use().used, (1 << 20) - (64 << 10));
    assert!(arena.try_lease(BLOCK, Class::Control).is_some());
}

#[test]
#[should_panic(expected = "split at")]
fn a_freeze_past_the_end_is_a_bug() {
    let lease = arena(64 << 10).try_lease(BLOCK, Class::Records).expect("memory");
    let _ = lease.freeze(BLOCK + 1);
}

const CASES: u32 = if cfg!(miri) { 4 } else { 256 };

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(CASES))]
    /// Whatever is taken and given back in whatever order, everything can be taken again.
    #[test]
    fn everything_comes_back(steps in proptest::collection::vec((0usize..5, 0usize..8), 1..80)) {
        let arena = arena(256 << 10);
        let mut held: Vec<Lease> = Vec::new();
        for (order, victim) in steps {
            if victim < held.len() {
                held.swap_remove(victim);
            }
            held.extend(arena.try_lease(BLOCK << order, Class::Control));
        }
        held.clear();
        proptest::prop_assert_eq!(arena.in_use().used, 0);
        for _ in 0..4 {
            held.push(arena.try_lease(64 << 10, Class::Control).expect("merged again"));
        }
    }
}
