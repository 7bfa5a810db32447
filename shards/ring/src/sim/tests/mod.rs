//! The simulator itself: what its worlds keep, lose and permit.

mod crash;
mod network;
mod runs;

use crate::sim::*;
use crate::*;

/// Few under Miri, which is slow.
const SEEDS: u64 = if cfg!(miri) { 2 } else { 100 };

fn tiny() -> Config {
    Config { arena_bytes: 1 << 20, lease_bytes_max: 64 << 10, ..Config::small() }
}

/// A whole block of one byte.
async fn block(byte: u8) -> Gather {
    let mut lease = lease(BLOCK, Class::Records).await;
    lease.fill(byte);
    smallvec::smallvec![lease.freeze(BLOCK).0]
}
