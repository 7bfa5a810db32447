//! Copies what was gathered over what is damaged: past the page cache, which may remember better
//! than the device, so in whole blocks, and of these only such as the device has otherwise.

use std::io;
use std::ops::Range;

use ring::{BLOCK, Class, File, Gather, Lease, OpenOptions, Slice};

use super::{Repair, RepairError};
use crate::limits::SCAN_BYTES;
use crate::log::LogError;
use crate::position::Place;
use crate::read_ahead::lease_of_any_size;
use crate::recovery::Corrupt;
use crate::verify::Part;
use crate::work::at;

const BLOCK_BYTES: u64 = BLOCK as u64;

/// Whole blocks of a file.
struct Blocks {
    lease: Lease,
    /// So many bytes of them are what the device has.
    sure: usize,
}

impl Repair {
    /// Copies the gathered bytes over the damaged ones, where they differ.
    pub(super) async fn overwrite(&self) -> Result<(), RepairError> {
        let path = &self.part.path;
        let options = OpenOptions { read: true, write: true, ..OpenOptions::default() };
        let file = at(path, File::open(path, options.direct()).await)?;
        let range = self.damage.bytes.start..self.damage.bytes.start + self.staged_bytes;
        let length = at(path, ring::fs::size(path).await)?.max(range.end);
        let mut position = range.start / BLOCK_BYTES * BLOCK_BYTES;
        while position < range.end {
            let mut blocks = self.read_blocks(&file, position, &range).await?;
            let count = blocks.lease.len();
            if self.mix_in(&mut blocks, position, &range).await? {
                let slice = blocks.lease.freeze(count).0;
                at(path, write_blocks(&file, position, slice).await)?;
            }
            position += count as u64;
            ring::yield_now().await;
        }
        if position > length {
            // A crash before it leaves zeros behind the end, which a start cuts.
            at(path, file.truncate(length).await)?;
        }
        at(path, file.sync_data().await)?;
        Ok(())
    }

    /// The blocks of the file from `position` on.
    async fn read_blocks(
        &self,
        file: &File,
        position: u64,
        range: &Range<u64>,
    ) -> Result<Blocks, LogError> {
        let wanted = (range.end - position).next_multiple_of(BLOCK_BYTES).min(SCAN_BYTES as u64);
        let lease = lease_of_any_size(wanted as usize).await;
        let count = lease.len().min(wanted as usize) / BLOCK * BLOCK;
        let (mut read, mut lease) = file.read_at(position, lease.split(count).0).await;
        if read.is_err() && count > BLOCK {
            // So that an error is that of a block.
            (read, lease) = file.read_at(position, lease.split(BLOCK).0).await;
        }
        let have = match read {
            Ok(have) => have,
            Err(error) => {
                let have = self.remember(position, range, &mut lease, error).await?;
                lease[have..].fill(0);
                return Ok(Blocks { lease, sure: 0 });
            }
        };
        // Less than a block is all that the file has there.
        let mut lease = lease.split((have / BLOCK * BLOCK).max(BLOCK)).0;
        let sure = have.min(lease.len());
        lease[sure..].fill(0);
        Ok(Blocks { lease, sure })
    }

    /// Of a block that cannot be read, what the page cache knows; it is needed where the block has
    /// more than the range. How many bytes of it matter.
    async fn remember(
        &self,
        position: u64,
        range: &Range<u64>,
        lease: &mut Lease,
        error: io::Error,
    ) -> Result<usize, LogError> {
        let begins_before = position < range.start;
        let ends_behind = position + BLOCK_BYTES > range.end;
        if !begins_before && !ends_behind {
            return Ok(0);
        }
        let path = &self.part.path;
        let file = at(path, File::open(path, OpenOptions::READ).await)?;
        let (read, cached) = file.read_at(position, ring::lease(BLOCK, Class::Control).await).await;
        if let Ok(have) = read {
            let have = have.min(BLOCK);
            lease[..have].copy_from_slice(&cached[..have]);
            return Ok(have);
        }
        // Behind the end of a sealed segment there is nothing; behind the flushed end of another
        // nothing counted, and a log that is not open is about to be cut there.
        let nothing_behind = self.part.sealed || !self.log.is_open();
        let last = range.end == self.part.end.bytes && nothing_behind;
        match !begins_before && last {
            true => Ok(0),
            false => at(path, Err(error)),
        }
    }

    /// Puts what was gathered into blocks of the file. Whether that changes them.
    async fn mix_in(
        &self,
        blocks: &mut Blocks,
        position: u64,
        range: &Range<u64>,
    ) -> Result<bool, RepairError> {
        let end = (position + blocks.lease.len() as u64).min(range.end);
        let mut from = position.max(range.start);
        let mut changed = false;
        while from < end {
            let good = lease_of_any_size((end - from) as usize).await;
            let (read, good) = self.staged.read_at(from - range.start, good).await;
            let bytes = at(&self.part.path, read)?.min((end - from) as usize);
            if bytes == 0 {
                return Err(RepairError::Changed);
            }
            let place = (from - position) as usize..(from - position) as usize + bytes;
            changed |= place.end > blocks.sure || blocks.lease[place.clone()] != good[..bytes];
            blocks.lease[place].copy_from_slice(&good[..bytes]);
            from += bytes as u64;
        }
        Ok(changed)
    }
}

/// The range with those of its neighbours without which it cannot be written: a block in which one
/// ends and the other begins, and which cannot be read, has to come whole.
pub(super) async fn with_neighbours(part: &Part, mut damage: Corrupt) -> Corrupt {
    let Ok(file) = File::open(&part.path, OpenOptions::READ.direct()).await else { return damage };
    let is_lost = async |bytes: u64| {
        let lease = ring::lease(BLOCK, Class::Control).await;
        let within = !bytes.is_multiple_of(BLOCK_BYTES);
        within && file.read_at(bytes / BLOCK_BYTES * BLOCK_BYTES, lease).await.0.is_err()
    };
    let runs: Vec<(Place, Place, u32)> = part.runs().collect();
    loop {
        let (start, end) = (damage.bytes.start, damage.bytes.end);
        let before = runs.iter().find(|run| run.1.bytes == start);
        if let Some((from, ..)) = before
            && is_lost(start).await
        {
            (damage.bytes.start, damage.offsets.start) = (from.bytes, from.offset);
            continue;
        }
        let behind = runs.iter().find(|run| run.0.bytes == end);
        if let Some((_, to, _)) = behind
            && is_lost(end).await
        {
            (damage.bytes.end, damage.offsets.end) = (to.bytes, to.offset);
            continue;
        }
        return damage;
    }
}

/// Writes whole blocks, however few of them a write takes.
async fn write_blocks(file: &File, position: u64, slice: Slice) -> io::Result<()> {
    let (mut at, mut rest) = (position, slice);
    while !rest.is_empty() {
        let written = file.write_at(at, Gather::from_iter([rest.clone()])).await?;
        // One that ends inside a block is repeated from the block's start.
        let whole = written / BLOCK * BLOCK;
        if whole == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        at += whole as u64;
        rest = rest.slice(whole..rest.len());
    }
    Ok(())
}
