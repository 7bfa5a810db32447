//! Durability words as types: what was received, what was written, what was flushed.
//!
//! | word | survives the process's death | survives power loss |
//! |---|---|---|
//! | [`Received`] | no | no |
//! | [`Written`] | yes | no |
//! | [`Flushed`] | yes | yes |
//!
//! All three name the end of a complete, checked batch. Received ≥ written ≥ flushed always.

/// The end of a batch: the next offset, and where that is in the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Place {
    /// The base offset of the segment.
    pub segment: i64,
    /// Bytes of that segment.
    pub bytes: u64,
    /// The offset after the last record.
    pub offset: i64,
}

/// In memory, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Received(pub Place);

/// Handed to the disk, the write completed; every segment before it is sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Written(pub Place);

/// Covered by a completed flush of the file system, and a durable checkpoint says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Flushed(pub Place);

/// Where a log stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Positions {
    /// The first offset readers may see; the source's log start.
    pub log_start_offset: i64,
    /// See [`Received`].
    pub received: Received,
    /// See [`Written`].
    pub written: Written,
    /// See [`Flushed`].
    pub flushed: Flushed,
    /// The source's high watermark as last told, never going back.
    pub high_watermark: i64,
    /// The first offset of the oldest open transaction, or the received end.
    pub last_stable_offset: i64,
    /// The leader epoch of the last batch, if batches carry one.
    pub last_epoch: Option<i32>,
}
