//! What this crate bounds, in one place.

/// The largest control response (Metadata of a very large cluster) that is accepted, in bytes.
pub const CONTROL_RESPONSE_BYTES_MAX: usize = 64 << 20;

/// The same on a data shard, which asks for no more than offsets of its own partitions.
pub const SHARD_RESPONSE_BYTES_MAX: usize = 8 << 20;

/// The largest fetch response that is accepted, in bytes. Nothing is allocated on its word: the
/// bound only tells a sane frame from a desynchronised stream.
pub const FETCH_RESPONSE_BYTES_MAX: usize = 1 << 30;

/// Kafka's own bound on the length of a topic name, in bytes.
pub const TOPIC_NAME_BYTES_MAX: usize = 249;

/// How many tagged fields unknown to us one control response may carry in all. They are kept by
/// the decoder at some hundred bytes each, so their number is what bounds its memory.
pub const UNKNOWN_TAGS_MAX: usize = 4096;

/// Keys a caller may give to the partitions of a fetch session are below this.
pub const PARTITION_KEYS_MAX: u32 = 1 << 20;

/// Record sets (or what remains of one) up to this many bytes are copied out of the head buffer;
/// larger ones are received straight into the sink's memory. Must be smaller than [`HEAD_BYTES`].
pub const COPY_BYTES_MAX: usize = 16 << 10;

/// The head buffer while record sets are small: many partitions arrive with one receive.
pub const HEAD_BYTES: usize = 64 << 10;

/// The head buffer while record sets are large: what is received into it beside the records has
/// to be copied, so it is no larger than a few response heads.
pub const OVERSHOOT_BYTES: usize = 4 << 10;

const _: () = assert!(COPY_BYTES_MAX < HEAD_BYTES);
const _: () = assert!(OVERSHOOT_BYTES <= COPY_BYTES_MAX);
const _: () = assert!(COPY_BYTES_MAX + OVERSHOOT_BYTES <= HEAD_BYTES);
