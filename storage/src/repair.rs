//! Mends a damaged range with what the source still has.
//!
//! The batches of the range are fetched again, checked like any other, and gathered in a file of
//! their own beside the seals. Only when they are complete, end exactly where the whole batch after
//! the range begins, and have the checksum the seal remembers (where there is one), are they
//! written to where they belong: whole blocks, past the page cache, and of these only such as
//! differ on the device. A crash in between leaves the range as damaged as it was, or less; it is
//! found and fetched again. A file that is missing gets its name when it is whole.
//!
//! What does not fit is not written: the source has cleaned, deleted or replaced these records. The
//! damage stays, with its range.

use std::ops::Range;
use std::rc::Rc;

use ring::{File, OpenOptions, Slice};
use thiserror::Error;

use crate::check::{AppendError, Bounds, Checker};
use crate::crc::{self, Crc32c};
use crate::epochs::Epochs;
use crate::limits::BATCH_BYTES_MAX;
use crate::log::{AppendLimits, Log, LogError, LogState};
use crate::names::{Kind, REPAIR_FILE};
use crate::open::{Files, cut_of, load};
use crate::position::Place;
use crate::recovery::Corrupt;
use crate::verify::{Part, Verifier};
use crate::work::{at, cut_file, remove, write_all};

mod epochs;
mod overwrite;

/// Why a range was not repaired.
#[derive(Debug, Error)]
pub enum RepairError {
    /// What the source has does not belong into the range; asking again does not help.
    #[error("the source no longer has it: {0}")]
    Gone(String),
    /// What came was no good.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// The log cannot be worked on.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The device does not keep what is written.
    #[error("it was written again, and still reads otherwise")]
    Still,
    /// Nothing that was flushed is damaged, and what lies behind it is not to be had from here.
    #[error(
        "it cannot be read behind its flushed end, from offset {0} on; it is cut there once \
             the source has sent what it has at that offset"
    )]
    Unreadable(i64),
    /// The log has changed: look again what is damaged.
    #[error("the log has changed meanwhile")]
    Changed,
}

/// A damaged range on its way to be whole.
pub struct Repair {
    log: Rc<Log>,
    /// Counts the log's repairs: what is staged belongs to the last.
    number: u64,
    part: Part,
    damage: Corrupt,
    /// The checksum the range has to have.
    expected_crc: Option<u32>,
    generation: u64,
    checker: Checker,
    staged: File,
    staged_bytes: u64,
    staged_crc: Crc32c,
    /// Those of its batches.
    epochs: Epochs,
    /// A batch behind the range was seen.
    passed: bool,
}

/// What of a log is to be fetched again, exactly. A log that opening left corrupt, and whose files
/// are whole by now, or damaged only where the source has deleted, is opened again first. Where one
/// cannot be read behind its flushed end, and was tried twice, it is cut if that is allowed, when
/// it is asked for that offset just before: the source has sent what it has there, and all from
/// there on comes as any other record.
pub async fn plan(
    log: &Rc<Log>,
    verifier: &Verifier,
    may_cut: impl Fn(i64) -> bool,
) -> Result<Vec<Corrupt>, RepairError> {
    let mut seen: Vec<Corrupt> = Vec::new();
    loop {
        let LogState::Corrupt(corrupt) = log.state() else { return Ok(log.damages()) };
        let behind = log.is_behind_flushed(&corrupt);
        let found = match log.corrupt_part(&corrupt).await {
            Some(part) => part.check(verifier).await,
            None if behind => Vec::new(),
            None => {
                let reason = "where the damage ends is not known".to_owned();
                return Err(RepairError::Gone(reason));
            }
        };
        if !log.is_hidden(&found) || (!found.is_empty() && seen.contains(&corrupt)) {
            return Ok(found);
        }
        let cut = match seen.iter().filter(|other| **other == corrupt).count() {
            0 => false,
            1 if behind => true,
            _ => return Err(RepairError::Still),
        };
        log.alone(async || {
            if cut {
                cut_unreadable(log, &corrupt, &may_cut).await?;
            }
            Ok::<(), RepairError>(log.reload().await?)
        })
        .await?;
        seen.push(corrupt);
    }
}

/// Nothing that was flushed goes, and only if it is allowed now.
async fn cut_unreadable(
    log: &Log,
    corrupt: &Corrupt,
    may_cut: impl Fn(i64) -> bool,
) -> Result<(), RepairError> {
    let (path, bytes) = (log.path(Kind::Log, corrupt.segment), corrupt.bytes.start);
    let same = log.state() == LogState::Corrupt(corrupt.clone());
    if !same || !log.is_behind_flushed(corrupt) {
        return Err(RepairError::Changed);
    }
    if !may_cut(corrupt.offsets.start) {
        return Err(RepairError::Unreadable(corrupt.offsets.start));
    }
    tracing::warn!(path = %path.display(), bytes, "cut where it cannot be read");
    Ok(cut_file(&path, bytes).await?)
}

impl Repair {
    /// Begins with one of the ranges that [`plan`] told of. One that began before is over: what it
    /// gathered is not written any more.
    pub async fn begin(log: &Rc<Log>, damage: Corrupt) -> Result<Repair, RepairError> {
        let held = log.hold().await;
        let begun = Repair::begin_alone(log, damage).await;
        held.release();
        begun
    }

    async fn begin_alone(log: &Rc<Log>, damage: Corrupt) -> Result<Repair, RepairError> {
        if log.inner.borrow().closing_down {
            return Err(RepairError::Changed);
        }
        let number = log.flags.repairs.get() + 1;
        log.flags.repairs.set(number);
        let part = match log.state() {
            LogState::Corrupt(corrupt) => log.corrupt_part(&corrupt).await,
            _ => log.part(damage.segment).await,
        };
        let part = part.ok_or(RepairError::Changed)?;
        let damage = overwrite::with_neighbours(&part, damage).await;
        let expected_crc = match part.strides.is_empty() {
            true => None,
            false => Some(range_crc(&part, &damage).ok_or(RepairError::Changed)?),
        };
        let folder = log.seal_folder();
        at(&folder, ring::fs::create_dir_all(&folder).await)?;
        let path = folder.join(REPAIR_FILE);
        // A file of its own: a write of the one before may still be under way.
        remove(&path).await?;
        let options = OpenOptions { create_new: true, ..OpenOptions::READ_WRITE };
        let staged = at(&path, File::open(&path, options).await)?;
        let start = damage.offsets.start;
        let bounds = Bounds::local(BATCH_BYTES_MAX);
        Ok(Repair {
            log: Rc::clone(log),
            number,
            part,
            expected_crc,
            generation: log.inner.borrow().generation,
            checker: Checker::new(start, None, damage.bytes.start, bounds),
            damage,
            staged,
            staged_bytes: 0,
            staged_crc: Crc32c::new(),
            epochs: Epochs::default(),
            passed: false,
        })
    }

    /// The range.
    pub fn damage(&self) -> &Corrupt {
        &self.damage
    }

    /// Whether a checksum of the range is known.
    pub fn has_checksum(&self) -> bool {
        self.expected_crc.is_some()
    }

    /// Whether it is mended beside the live log. Else nothing may be appended while
    /// [`Repair::finish`] runs.
    pub fn keeps_log_open(&self) -> bool {
        let inner = self.log.inner.borrow();
        inner.takes_records() && inner.sealed.iter().any(|sealed| sealed.0 == self.part.base)
    }

    /// The next offset to ask the source for; none: all is here.
    pub fn next_offset(&self) -> Option<i64> {
        let length = self.damage.bytes.end - self.damage.bytes.start;
        let whole = if self.damage.bytes.end == u64::MAX {
            self.passed || self.checker.expected() >= self.damage.offsets.end
        } else {
            self.staged_bytes == length
        };
        (!whole).then(|| self.checker.expected())
    }

    /// Takes the records of an answer; those behind the range, and a batch cut short at their end,
    /// are left. Returns how many batches were taken.
    pub async fn take(
        &mut self,
        records: &[Slice],
        limits: AppendLimits,
    ) -> Result<usize, RepairError> {
        // What replaced our records has an epoch that our log has not seen. A checksum tells that
        // better: a seal's may cover batches that were never flushed.
        let flushed_epoch = self.log.inner.borrow().flushed_epoch;
        let epoch = flushed_epoch.filter(|_| !self.has_checksum());
        self.checker.set_bounds(Bounds {
            high_watermark: limits.high_watermark,
            leader_epoch: epoch.unwrap_or(limits.leader_epoch),
            batch_bytes_max: BATCH_BYTES_MAX,
        });
        let (batches, bytes) = self.judge(records)?;
        self.checker.rewind();
        let mut left = bytes;
        for piece in records {
            let taken = piece.len().min(left);
            if taken == 0 {
                break;
            }
            left -= taken;
            self.staged_crc.update(&piece[..taken]);
            self.stage(piece.slice(0..taken)).await?;
        }
        Ok(batches)
    }

    /// How many batches, and bytes, of an answer belong into the range.
    fn judge(&mut self, records: &[Slice]) -> Result<(usize, usize), RepairError> {
        let (mut batches, mut bytes, mut seen) = (0, 0, 0);
        let room = self.damage.bytes.end - self.damage.bytes.start - self.staged_bytes;
        for piece in records {
            let mut rest = &piece[..];
            while !rest.is_empty() {
                let fed = self.checker.feed(rest).map_err(unfit)?;
                rest = &rest[fed.consumed..];
                seen += fed.consumed;
                let Some(batch) = fed.batch else { continue };
                if batch.base_offset >= self.damage.offsets.end {
                    self.passed = true;
                    if self.damage.bytes.end == u64::MAX {
                        return Ok((batches, bytes));
                    }
                }
                if batch.next_offset() > self.damage.offsets.end || seen as u64 > room {
                    let at = batch.base_offset;
                    let reason = format!("its batch at offset {at} does not end where ours did");
                    return Err(RepairError::Gone(reason));
                }
                batches += 1;
                bytes = seen;
                if let Some(epoch) = batch.leader_epoch {
                    self.epochs.assign(epoch, batch.base_offset);
                }
                let whole = seen as u64 == room
                    || (self.damage.bytes.end == u64::MAX
                        && batch.next_offset() == self.damage.offsets.end);
                if whole {
                    return Ok((batches, bytes));
                }
            }
        }
        Ok((batches, bytes))
    }

    async fn stage(&mut self, slice: Slice) -> Result<(), LogError> {
        let path = self.log.seal_folder().join(REPAIR_FILE);
        let bytes = slice.len() as u64;
        at(&path, write_all(&self.staged, self.staged_bytes, slice).await)?;
        self.staged_bytes += bytes;
        Ok(())
    }

    /// Writes what was gathered to where it belongs, reads it again, and takes the range off the
    /// list. A log that was corrupt goes on when nothing of it is damaged any more. Whether it may
    /// be written is asked when nobody else is at the files, just before.
    pub async fn finish(
        self,
        paced: &Verifier,
        may_write: impl Fn() -> bool,
    ) -> Result<(), RepairError> {
        assert!(self.next_offset().is_none(), "all of the range has come");
        if self.expected_crc.is_some_and(|crc| crc != self.staged_crc.finish()) {
            let reason = "it has other records at these offsets than were copied".to_owned();
            return Err(RepairError::Gone(reason));
        }
        let path = self.log.seal_folder().join(REPAIR_FILE);
        // Durable before anything is overwritten with it, and before it gets a name.
        at(&path, self.staged.sync_data().await)?;
        if self.keeps_log_open() {
            return self.finish_beside(paced, may_write).await;
        }
        let log = Rc::clone(&self.log);
        // The tail waits for it, and a failover does: no pace is kept.
        let verifier = &Verifier::new(0);
        log.alone(async || {
            self.write(may_write).await?;
            self.look_again(verifier).await?;
            match log.is_hidden(&self.part.check(verifier).await) {
                true => Ok(log.reload().await?),
                false => Ok(()), // there is more of it
            }
        })
        .await
    }

    /// Nobody else is at the files while they are written. To read them again may take long.
    async fn finish_beside(
        &self,
        verifier: &Verifier,
        may_write: impl Fn() -> bool,
    ) -> Result<(), RepairError> {
        let held = self.log.hold().await;
        // Whoever was there before may have cut it back, closed it or deleted the segment.
        let written = match self.keeps_log_open() {
            true => self.write(may_write).await,
            false => Err(RepairError::Changed),
        };
        held.release();
        written?;
        match self.look_again(verifier).await {
            Err(RepairError::Still) if !self.is_current() || !self.keeps_log_open() => {
                return Err(RepairError::Changed);
            }
            looked => looked?,
        }
        if let Err(error) = self.log.remake_epochs(verifier).await {
            tracing::warn!(log = %self.log.id(), %error, "epochs not made anew");
        }
        Ok(())
    }

    /// Whether the log is what it was, and this the last repair that began.
    fn is_current(&self) -> bool {
        self.log.inner.borrow().generation == self.generation
            && self.log.flags.repairs.get() == self.number
    }

    /// Writes what was gathered to where it belongs, while nobody else is at the files.
    async fn write(&self, may_write: impl Fn() -> bool) -> Result<(), RepairError> {
        if !self.is_current() || !may_write() {
            return Err(RepairError::Changed);
        }
        self.log.doubt_epochs(self.part.base, &self.damage.offsets, &self.epochs).await?;
        let written = self.write_staged().await;
        let _ = remove(&self.log.seal_folder().join(REPAIR_FILE)).await;
        written
    }

    async fn write_staged(&self) -> Result<(), RepairError> {
        let (path, folder) = (&self.part.path, self.log.folder());
        if at(path, ring::fs::exists(path).await)? {
            return self.overwrite().await;
        }
        if self.damage.bytes.start > 0 {
            return Err(RepairError::Changed);
        }
        let staged = self.log.seal_folder().join(REPAIR_FILE);
        at(path, ring::fs::rename(&staged, path).await)?;
        at(&folder, ring::fs::sync_dir(&folder).await)?;
        Ok(())
    }

    /// Reads the range again, and takes it off the list if it is whole.
    async fn look_again(&self, verifier: &Verifier) -> Result<(), RepairError> {
        let mut again = self.part.check_range(&self.damage, self.expected_crc, verifier).await;
        let end = self.part.end.bytes;
        let alone = self.log.inner.borrow().mending;
        let last = !self.part.sealed && self.damage.bytes.end == end;
        if !again && last && alone && !self.log.is_open() {
            // What is broken may lie behind the flushed end, in the same block.
            cut_file(&self.part.path, end).await?;
            again = self.part.check_range(&self.damage, self.expected_crc, verifier).await;
        }
        if !again {
            return Err(RepairError::Still);
        }
        let mut inner = self.log.inner.borrow_mut();
        let Corrupt { segment, bytes, .. } = &self.damage;
        let within = |range: &Range<u64>| bytes.start <= range.start && range.end <= bytes.end;
        inner.damages.retain(|damage| damage.segment != *segment || !within(&damage.bytes));
        drop(inner);
        tracing::info!(log = %self.log.id(), damage = %self.damage, "repaired from the source");
        self.log.changed.notify();
        Ok(())
    }
}

/// Offsets that go otherwise than ours are no trouble of the connection's.
fn unfit(error: AppendError) -> RepairError {
    match error {
        AppendError::OffsetBelowExpected { .. } | AppendError::EpochBeyondLeader { .. } => {
            RepairError::Gone(error.to_string())
        }
        error => RepairError::Append(error),
    }
}

/// The checksum a range of whole strides has to have.
fn range_crc(part: &Part, damage: &Corrupt) -> Option<u32> {
    let (mut crc, mut end) = (0, damage.bytes.start);
    for (from, to, stride_crc) in part.runs() {
        if from.bytes == end && to.bytes <= damage.bytes.end {
            crc = crc::combine(crc, stride_crc, to.bytes - from.bytes);
            end = to.bytes;
        }
    }
    (end == damage.bytes.end).then_some(crc)
}

impl Log {
    /// Whether all of this begins below the visible start: opening passes by what ends there, too.
    fn is_hidden(&self, damages: &[Corrupt]) -> bool {
        let start = self.inner.borrow().log_start_offset;
        damages.iter().all(|damage| damage.offsets.start < start)
    }

    /// Whether damage that opening found lies behind all that is known to be flushed.
    fn is_behind_flushed(&self, corrupt: &Corrupt) -> bool {
        let inner = self.inner.borrow();
        let Place { segment, bytes, .. } = inner.flushed;
        !inner.doubtful && (corrupt.segment, corrupt.bytes.start) >= (segment, bytes)
    }

    /// The source has deleted what lies below `offset`, and a log that opening left corrupt cannot
    /// follow it by itself: its visible start goes there, though not beyond what is known of its
    /// end, durably, and it is read anew. What is damaged below that keeps it from nothing. Whether
    /// the visible start moved; where this failed on the way, the same is done again.
    ///
    /// # Errors
    /// As [`Log::flush`], and as opening a log.
    pub async fn forget_below(&self, offset: i64) -> Result<bool, LogError> {
        let mut moved = false;
        self.alone(async || {
            let LogState::Corrupt(corrupt) = self.state() else { return Ok(()) };
            let last = Files::of(self.id(), self.volume().path()).last_base().await?;
            let seal = self.read_seal(corrupt.segment).await;
            {
                let cut = cut_of(self.entry());
                let mut inner = self.inner.borrow_mut();
                let mut known = inner.flushed.offset;
                if cut.is_none() {
                    known = known.max(last.unwrap_or(0)).max(seal.map_or(0, |seal| seal.next_base));
                }
                let start = offset.min(known).max(inner.log_start_offset);
                let before = std::mem::replace(&mut inner.log_start_offset, start);
                // There may have been no room, for one thing.
                if start == before && !self.flags.unread.get() {
                    return Ok(());
                }
                self.flags.unread.set(true);
            }
            let failures = self.volume().flush_failures();
            // Whatever is done because of it, no checkpoint may say less.
            if !self.volume().flush().await {
                let reason = "a new visible start could not be made durable".to_owned();
                return Err(LogError::State(match self.volume().flush_failures() == failures {
                    true => LogState::DiskFull,
                    false => LogState::Failed(reason),
                }));
            }
            self.reload().await?;
            self.flags.unread.set(false);
            moved = true;
            Ok(())
        })
        .await?;
        Ok(moved)
    }

    /// Reads the log anew, as at a start; what is known to be damaged stays known.
    async fn reload(&self) -> Result<(), LogError> {
        let entry = self.entry();
        let (settings, generation) = {
            let mut inner = self.inner.borrow_mut();
            inner.generation += 1;
            inner.active.file = None;
            inner.prepared = None;
            (inner.settings.clone(), inner.generation)
        };
        let until = cut_of(entry);
        let failures = self.volume().flush_failures();
        let files = Files::of(self.id(), self.volume().path());
        let (opened, _) = match load(&files, settings, Some(entry), until).await {
            Ok(loaded) => loaded,
            Err(error) => {
                self.fail(&format!("not read again after a repair: {error}"));
                return Err(error);
            }
        };
        {
            let mut inner = self.inner.borrow_mut();
            let damages = std::mem::take(&mut inner.damages);
            inner.replace(opened, generation, damages);
        }
        self.mark_dirty();
        self.outlive_flush_failures(failures)?;
        if until.is_some() {
            // As at a start: the cut is durable before anything more counts as flushed.
            self.volume().flush().await;
        }
        Ok(())
    }

    /// What was just read may have been part of what a flush lost that failed meanwhile, with so
    /// many failures before: the log fails with it.
    pub(crate) fn outlive_flush_failures(&self, before: u64) -> Result<(), LogError> {
        if self.volume().flush_failures() == before {
            return Ok(());
        }
        self.fail("a flush failed while it was read");
        Err(LogError::State(self.state()))
    }
}
