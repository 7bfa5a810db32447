//! The bare hardware path: what the product is measured against.
//!
//! [`pipe`] receives, checks and writes in one thread on one core with nothing but the `io-uring`
//! crate; [`sender`] feeds it from another process on another core. [`paced`] only writes, at a
//! given rate. [`glommio`] has the pipe done by a program of its own, a peer to measure.

pub mod glommio;
pub mod paced;
pub mod pipe;
pub mod sender;

pub use paced::Paced;
pub use pipe::{Job, Spent};

/// Size of the sender's batches: each is a whole record batch of Kafka's format with its CRC.
pub const BATCH_BYTES: usize = 64 << 10;
/// Batches that the sender repeats: 4 MiB, as much as the embedded source prepares.
pub const BATCHES: usize = 64;

/// What the sender sends again and again.
pub fn content() -> Vec<u8> {
    let batches = (0..BATCHES as u64).map(|seed| {
        let batch = source::generated_batch(seed + 1, 64, BATCH_BYTES);
        batch.expect("64 records fit a batch of 64 KiB")
    });
    batches.flatten().collect()
}
