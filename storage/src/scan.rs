//! Reads a segment's batches from disk, checking each again.

use std::io;
use std::path::Path;

use crate::batch::Batch;
use crate::check::{AppendError, Bounds, Checker};
use crate::checkpoint::Replay;
use crate::index::fits;
use crate::limits::BATCH_BYTES_MAX;
use crate::position::Place;
use crate::read_ahead::ReadAhead;
use crate::recovery::{Scanned, Stopped};
use crate::write_again::WriteAgain;

/// A batch found, where it begins, and the CRC-32C of all its bytes.
pub struct FoundBatch {
    /// The batch.
    pub batch: Batch,
    /// Where it begins.
    pub position: u64,
    /// Over all its bytes.
    pub file_crc: u32,
}

/// Scans the segment's file from a place to byte `to_bytes`, telling of every batch. `visit` may
/// stop the scan before a batch by answering false; the place is then the end of the one before.
pub async fn scan(
    path: &Path,
    from: &Replay,
    to_bytes: u64,
    visit: impl FnMut(&FoundBatch) -> bool,
) -> Scanned {
    let nothing = WriteAgain::above(path, u64::MAX);
    let scanned = scan_writing(path, from, to_bytes, nothing, visit).await;
    scanned.expect("nothing is written")
}

/// The same; what `again` is about is written once more, as it was read.
///
/// # Errors
/// It cannot be written.
pub(crate) async fn scan_writing(
    path: &Path,
    from: &Replay,
    to_bytes: u64,
    mut again: WriteAgain<'_>,
    mut visit: impl FnMut(&FoundBatch) -> bool,
) -> io::Result<Scanned> {
    let mut reader = Scanner::new(from);
    let unreadable = |place, error: io::Error| Scanned {
        place,
        stopped: Stopped::Unreadable(format!("{}: {error}", path.display())),
    };
    if from.place.bytes >= to_bytes {
        return Ok(reader.end());
    }
    let mut file = match ReadAhead::open(path, from.place.bytes, to_bytes).await {
        Ok(file) => file,
        Err(error) => return Ok(unreadable(from.place, error)),
    };
    loop {
        let piece = match file.next().await {
            Ok(Some(piece)) => piece,
            Ok(None) => return Ok(reader.end()),
            Err(error) => return Ok(unreadable(reader.place, error)),
        };
        let scanned = reader.take(&piece, &mut visit);
        // Behind the last batch there may be space that nobody has written to.
        let end = scanned.as_ref().map_or(u64::MAX, |scanned| scanned.place.bytes);
        if let Some(piece) = again.write(piece, end).await? {
            file.recycle(piece);
        }
        if let Some(scanned) = scanned {
            return Ok(scanned);
        }
        ring::yield_now().await;
    }
}

/// The scan without its I/O: bytes in, in pieces of any size, batches out.
pub struct Scanner {
    checker: Checker,
    place: Place,
}

impl Scanner {
    /// Begins at a place, in the state there.
    pub fn new(from: &Replay) -> Scanner {
        let Replay { place, epoch, .. } = *from;
        let bounds = Bounds::local(BATCH_BYTES_MAX);
        Scanner { checker: Checker::new(place.offset, epoch, place.bytes, bounds), place }
    }

    /// Takes the next piece. Answers when the scan has come to its end within it.
    pub fn take(
        &mut self,
        piece: &[u8],
        visit: &mut impl FnMut(&FoundBatch) -> bool,
    ) -> Option<Scanned> {
        let mut rest = piece;
        while !rest.is_empty() {
            match self.checker.feed(rest) {
                Ok(fed) => {
                    rest = &rest[fed.consumed..];
                    let Some(batch) = fed.batch else { continue };
                    let (base_offset, segment) = (batch.base_offset, self.place.segment);
                    if !fits(segment, batch.last_offset) {
                        let stopped =
                            Stopped::Bad(AppendError::OutOfSegment { base_offset, segment });
                        return Some(Scanned { place: self.place, stopped });
                    }
                    let file_crc = self.checker.file_crc(&batch);
                    let found = FoundBatch { batch, position: self.place.bytes, file_crc };
                    if !visit(&found) {
                        return Some(Scanned { place: self.place, stopped: Stopped::End });
                    }
                    self.place.bytes += u64::from(batch.bytes);
                    self.place.offset = batch.next_offset();
                }
                Err(error) => {
                    // No batch has length 0: prepared space, or a write that never arrived.
                    let zeros = matches!(error, AppendError::BadLength { length: 0, .. });
                    let stopped = if zeros { Stopped::Zeros } else { Stopped::Bad(error) };
                    return Some(Scanned { place: self.place, stopped });
                }
            }
        }
        None
    }

    /// The end of the last good batch.
    pub fn place(&self) -> Place {
        self.place
    }

    /// The bytes end. A batch that has begun is torn.
    pub fn end(&self) -> Scanned {
        let stopped = if self.checker.in_batch() {
            Stopped::Bad(AppendError::BadLength { position: self.place.bytes, length: -1 })
        } else {
            Stopped::End
        };
        Scanned { place: self.place, stopped }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    /// No checksum covers a base offset: a bit turned in it may name any offset there is.
    #[test]
    fn no_base_offset_is_too_large_to_be_read() {
        let bytes = testing::run(0..3, 100);
        let second = bytes.len() / 3;
        for bit in 0..63 {
            let mut turned = bytes.clone();
            turned[second + 7 - bit / 8] ^= 1 << (bit % 8);
            let (mut found, mut scanner) =
                (0, Scanner::new(&Replay::segment_start(0, None, false)));
            let scanned = scanner.take(&turned, &mut |found_batch: &FoundBatch| {
                assert!(fits(0, found_batch.batch.last_offset));
                found += 1;
                true
            });
            let stopped = scanned.map(|scanned| scanned.stopped);
            let far = matches!(stopped, Some(Stopped::Bad(AppendError::OutOfSegment { .. })));
            assert_eq!(far, bit > 30, "bit {bit}: {stopped:?} behind {found}");
        }
    }
}
