//! The end of opening a log: what was decided is carried out, and the log goes on from there.

use super::*;

/// Up to where the log is on the device, and from where it is to be read the next time.
fn what_is_flushed(found: &Found, end: Place, sound: bool) -> (Place, Replay) {
    let start = |segment| Replay::segment_start(segment, None, false);
    match found.entry {
        // What was flushed stays so; a scan may have gone beyond.
        Some(entry) if !sound => (entry.flushed, entry.replay),
        Some(entry) => {
            let flushed = entry.flushed.min(end);
            let replay = entry.replay;
            let usable = found.read_from == ReadFrom::Replay && replay.place <= flushed;
            (flushed, if usable { replay } else { start(flushed.segment) })
        }
        // Sealed segments are believed to have been flushed: see `recovery`.
        None if found.lost => (start(end.segment).place, start(end.segment)),
        // No checkpoint has named it: that segments are sealed does not say that they are on the
        // device.
        None => {
            let none = start(found.segments.first().map_or(end.segment, |first| first.base));
            (none.place, none)
        }
    }
}

impl Loading<'_> {
    /// Cuts, removes, seals.
    pub(super) async fn carry_out(&mut self, verdict: &Verdict) -> Result<(), LogError> {
        let open_segment = self.segment.as_ref().map(|segment| segment.base);
        if open_segment.is_some_and(|base| base != verdict.end.segment) {
            self.leave_segment().await?;
        }
        for (offset, snapshot) in self.snapshots.drain(..) {
            let path = self.files.path(Kind::Snapshot, offset);
            at(&path, ring::fs::write(&path, snapshot).await)?;
        }
        for &base in &verdict.remove {
            self.files.remove_behind(verdict.end.offset, base).await?;
        }
        if let Some(base) = verdict.unseal {
            remove(&self.files.path(Kind::Seal, base)).await?;
        }
        for &(base, bytes) in &verdict.cut {
            // Durable before anything is appended: what lay behind must not come back.
            cut_file(&self.files.path(Kind::Log, base), bytes).await?;
        }
        for &(base, next_base) in &verdict.reseal {
            let Some(reseal) = self.reseals.remove(&base) else { continue };
            let Reseal { checksums, end, indexes } = reseal;
            let ends = Ends { base, next_offset: end.offset, next_base, indexes };
            let seal = checksums.finish(Vec::new(), ends);
            let path = self.files.path(Kind::Seal, base);
            at(&self.files.seals, ring::fs::create_dir_all(&self.files.seals).await)?;
            at(&path, ring::fs::write(&path, seal.encode()).await)?;
        }
        Ok(())
    }

    /// The log as it goes on.
    pub(super) async fn finish(
        mut self,
        settings: LogSettings,
        entry: Option<Entry>,
        verdict: &Verdict,
        found: &Found,
        new: bool,
    ) -> Result<Opened, LogError> {
        let end = verdict.end;
        let log_start_offset = match entry.filter(|_| found.entry.is_some()) {
            Some(entry) => entry.log_start_offset,
            None if new => settings.start_offset_if_new,
            // Of lost checkpoints it may be all that is known.
            None => {
                let first = found.segments.first();
                let first = first.map_or(settings.start_offset_if_new, |segment| segment.base);
                first.max(found.visible_start)
            }
        };
        let sound = verdict.corrupt.is_none();
        let (mut index, mut pending) = (IndexState::EMPTY, None);
        match self.segment.take() {
            Some(scanned) if scanned.base == end.segment => {
                if sound {
                    self.cut_indexes(scanned.base, scanned.kept).await?;
                }
                index = scanned.indexes.state();
                pending = Some(scanned.indexes);
            }
            _ => {
                // Nothing was scanned here: a new segment, or damage elsewhere.
                if let Some(producers) = read_snapshot(self.files, end.offset).await? {
                    self.producers = producers;
                }
            }
        }
        let epochs_cut = self.epochs.truncate_end(end.offset);
        let mut epochs_dirty = false;
        if sound && (epochs_cut || self.scanned_bytes > 0) {
            match write_epochs(&self.files.folder, self.epochs.format()).await {
                // They are saved when there is room; the log can be read without.
                Err(LogError::Io { source, .. }) if is_full(&source) => epochs_dirty = true,
                other => other?,
            }
        }
        let mut active = if sound {
            self.resume(end, index).await?
        } else {
            Segment::new(end.segment, end.offset, self.last_epoch, ring::wall_ms())
        };
        if let Some(indexes) = pending.filter(|_| sound) {
            active.indexes = indexes;
        }
        let mut damages = self.stepped_over;
        damages.retain(|_| sound);
        damages.sort_by_key(|damage| (damage.segment, damage.bytes.start));
        let start = Replay::segment_start(end.segment, None, false);
        let (flushed, replay) = what_is_flushed(found, end, sound);
        // The flushed batch's, also when reading did not come so far, or went further.
        let flushed_epoch = match found.entry {
            Some(entry) if !sound => entry.last_epoch.or(self.last_epoch),
            Some(entry) if flushed == entry.flushed && flushed != end => entry.last_epoch,
            None if !found.lost => None,
            _ => self.last_epoch,
        };
        let sealed =
            verdict.sealed.iter().copied().filter(|&(base, _)| base < end.segment).collect();
        Ok(Opened {
            doubtful: !sound && entry.is_some_and(|entry| entry.doubtful),
            suspect: !sound && entry.is_some_and(|entry| entry.suspect),
            settings,
            state: verdict.corrupt.clone().map_or(LogState::Healthy, LogState::Corrupt),
            active,
            sealed,
            epochs: self.epochs,
            epochs_dirty,
            producers: self.producers,
            last_batch: self.last_batch,
            // The flushed batch's, also when reading did not come so far.
            last_epoch: entry.filter(|_| !sound).and_then(|e| e.last_epoch).or(self.last_epoch),
            log_start_offset,
            // What an owner in this run said may not be durable yet.
            shown_start: entry.filter(|e| e.turn == 0).map_or(i64::MIN, |e| e.log_start_offset),
            high_watermark: entry.map_or(0, |entry| entry.high_watermark),
            flushed,
            flushed_epoch,
            replay,
            // Nothing before the last segment is read again once it is flushed.
            saved: (sound && replay.place < start.place).then_some(start),
            damages,
            new,
        })
    }

    /// The segment in which appending goes on, with its partial last block in memory.
    async fn resume(&self, end: Place, index: IndexState) -> Result<Segment, LogError> {
        let now_ms = ring::wall_ms();
        let path = self.files.path(Kind::Log, end.segment);
        let size = match ring::fs::size(&path).await {
            Ok(size) => size,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Segment::new(end.segment, end.offset, self.last_epoch, now_ms));
            }
            Err(error) => return at(&path, Err(error)),
        };
        let file = at(&path, File::open(&path, APPEND).await)?;
        let phase = (end.bytes % BLOCK as u64) as usize;
        let mut chain = Chain::new(end.bytes - phase as u64);
        if phase > 0 {
            // Whatever has room: opening must not fail because records fill their share.
            let mut block = ring::lease(BLOCK, Class::Control).await;
            let mut have = 0;
            while have < phase {
                let (result, back) = file.read_at(end.bytes - phase as u64, block).await;
                block = back;
                have = at(&path, result)?;
                if have == 0 {
                    return at(&path, Err(io::ErrorKind::UnexpectedEof.into()));
                }
            }
            chain = Chain::resume(end.bytes, block);
        }
        // Prepared space counts in whole blocks; the file ends with its last batch now.
        let space = size / BLOCK as u64 * BLOCK as u64;
        let last_epoch = self.last_epoch;
        Ok(Segment::resume(end, last_epoch, chain, index, Some((file, space)), now_ms))
    }
}
