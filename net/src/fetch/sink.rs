//! Who takes the records of a fetch response.

use super::response::{PartitionHead, PartitionTail};
use ring::Lease;
use std::future::Future;

/// Whether a partition's records are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Take {
    /// Hand them over.
    Records,
    /// Receive and forget them. `end` is still called.
    Skip,
}

/// Whether to go on with this partition's records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// Go on.
    Continue,
    /// Receive and forget the rest of them. `end` is still called.
    SkipRest,
}

/// How a partition's records ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// All that the response held were handed over (or skipped as told).
    Complete(PartitionTail),
    /// The connection failed in the middle: what was handed over is all there will be.
    CutShort,
}

/// Takes the records of a fetch response, partition by partition, into memory of its own.
///
/// For each partition of the answer, in this order: one `partition`; then, if it said
/// [`Take::Records`], any mix of `copy_in` and `lend`/`filled` until all `records_bytes` are handed
/// over in order; one `end`. If the future of [`crate::Connection::fetch`] is dropped in between,
/// nothing more is called, and a lease that was lent is gone with it.
pub trait RecordSink {
    /// A partition's head has arrived; `key` is what the caller named it in the session.
    fn partition(&mut self, key: u32, head: &PartitionHead) -> Take;

    /// Completes when the sink is not too far behind with what it took before. Called before
    /// `lend`; the source is not blamed for the time it takes.
    fn keep_pace(&mut self) -> impl Future<Output = ()> {
        std::future::ready(())
    }

    /// Lends memory for the bytes that come next: at least one byte, at most `remaining`, which is
    /// what is still to come for this partition. `None` when there is no memory now.
    fn lend(&mut self, remaining: usize) -> Option<Lease>;

    /// Gives a lent lease back; its first `bytes` are new.
    fn filled(&mut self, lease: Lease, bytes: usize) -> Flow;

    /// Offers bytes that were received with a head; says how many of them were copied. Fewer than
    /// all means that there is no memory for the others now; they are offered again.
    fn copy_in(&mut self, bytes: &[u8]) -> (usize, Flow);

    /// Completes when it is worth trying to lend or copy `bytes` again. Called only after `lend`
    /// or `copy_in` found no memory; bounded by [`crate::ConnectOptions::memory_limit`].
    fn memory(&mut self, bytes: usize) -> impl Future<Output = ()>;

    /// This partition's part of the response is over.
    fn end(&mut self, end: End);
}
