//! What must be there and what may be there: a partition's source through its whole history, and
//! the comparison of a copy with it.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ring::sim::Disk;
use shards::control::PartitionKey;
use source::{BatchAt, PartitionLog};
use storage::checkpoint::Checkpoint;
use storage::names::{Kind, LogId, OWN_FOLDER, parse_file};
use storage::seal::Seal;

/// The data directory of every world.
pub const DATA: &str = "/data";

/// One partition, as somebody who sees everything knows it.
#[derive(Debug)]
pub struct Model {
    /// Which.
    pub key: PartitionKey,
    /// What the source held before each loss of its tail, oldest first.
    pub before: Vec<PartitionLog>,
    /// Where it was cut, as long as the copy may still have to follow.
    pub open_cuts: Vec<i64>,
    /// Reported flushed: must be there whatever happens.
    pub floor: i64,
    /// What was reported flushed in this process's life.
    pub flushed: i64,
    /// Ranges reported as lost at the source.
    pub gaps: Vec<Range<i64>>,
    /// Bits turned.
    pub flips: Vec<Flip>,
    /// Nothing more may be received than this: it is not fetched, by order. As large as can be:
    /// what the next status says.
    pub stands: Option<i64>,
    /// Where the source's log begins.
    pub deleted_to: i64,
    /// It has failed over, and ends here, if the flush went well.
    pub sealed: Option<Option<i64>>,
    /// The source has another log of that name now than the copy began with.
    pub recreated: bool,
    /// The source has deleted records of it.
    pub trimmed: bool,
    /// What the source says of where its log begins, if it lies about that.
    pub start_lie: Option<StartLie>,
}

/// Where a source lies about where a log begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartLie {
    /// In answers to fetches.
    Fetched,
    /// In answers to questions.
    Asked,
}

/// A bit that was turned in a file.
#[derive(Clone, Debug)]
pub struct Flip {
    /// The segment.
    pub path: PathBuf,
    /// Which byte of it.
    pub at: usize,
    /// What the byte was.
    pub was: u8,
    /// What it is since.
    pub is: u8,
    /// Whether anything at all tells that it was turned.
    pub told: bool,
}

impl Flip {
    /// Whether the byte is still what it was turned to.
    fn stands_in(&self, bytes: &[u8]) -> bool {
        bytes.get(self.at) == Some(&self.is)
    }
}

/// A copy that is as it may be.
#[derive(Clone, Copy, Debug)]
pub struct Compared {
    /// Its end.
    pub end: i64,
    /// Where the source's log goes on behind its end: beyond it, if a gap is between.
    pub next: i64,
    /// Bytes held against the source's.
    pub bytes: u64,
    /// Bits that are turned in it.
    pub flips: usize,
}

impl Compared {
    fn before_what_follows_in(self, log: &PartitionLog) -> Compared {
        // The source may have deleted what comes first, not what comes then: of a batch in which
        // its log begins, only what lies from there on.
        let from = self.end.max(log.log_start());
        let following = log.batches_from(from).next();
        let next = following.map_or(log.end_offset(), |batch| batch.base_offset.max(from));
        Compared { next: self.end.max(next), ..self }
    }
}

impl Model {
    /// A partition that nothing is known of.
    pub fn new(key: PartitionKey) -> Model {
        Model {
            key,
            before: Vec::new(),
            open_cuts: Vec::new(),
            floor: 0,
            flushed: 0,
            gaps: Vec::new(),
            flips: Vec::new(),
            stands: None,
            deleted_to: 0,
            sealed: None,
            recreated: false,
            trimmed: false,
            start_lie: None,
        }
    }

    /// The copy was deleted: another one begins. Until its files are gone for good it may be found
    /// again, so what the source was is not forgotten.
    pub fn forget(&mut self) {
        let before = std::mem::take(&mut self.before);
        *self = Model { before, ..Model::new(self.key.clone()) };
    }

    /// The copy has failed over and follows no more; all of it up to `end` is flushed, if that is
    /// known.
    pub fn seal(&mut self, end: Option<i64>) {
        self.sealed = Some(end);
        self.open_cuts.clear();
        self.stands = None;
        self.floor = self.floor.max(end.unwrap_or(0));
        // The last status may be of before a cut.
        self.flushed = end.map_or(self.flushed, |end| self.flushed.min(end));
    }

    /// Holds what is received against an order to stand still. A log that was just being made, and
    /// has no record, may begin anywhere.
    pub fn received(&mut self, received: i64, log_start: i64) -> Result<(), String> {
        if received == log_start {
            return Ok(());
        }
        if let Some(Some(end)) = self.sealed
            && received > end
        {
            return Err(format!("{}: failed over at {end}, has {received}", self.key));
        }
        match self.stands {
            Some(i64::MAX) => self.stands = Some(received),
            Some(stands) if received > stands => {
                return Err(format!("{}: paused at {stands}, has {received}", self.key));
            }
            _ => {}
        }
        Ok(())
    }

    /// A flushed end was reported.
    pub fn reported(&mut self, flushed: i64, log_start: i64) -> Result<(), String> {
        let back = flushed < self.flushed && flushed > log_start;
        if back && self.open_cuts.is_empty() {
            let before = self.flushed;
            return Err(format!("{}: flushed went back from {before} to {flushed}", self.key));
        }
        if flushed <= log_start {
            // No record is promised; the first may come in a batch that begins below the start.
            self.flushed = 0;
            return Ok(());
        }
        self.flushed = flushed;
        let sure = self.open_cuts.iter().copied().min().unwrap_or(i64::MAX);
        self.floor = self.floor.max(flushed.min(sure));
        Ok(())
    }

    /// The source lost what it had from `at` on, and the copy may have to follow.
    pub fn lost(&mut self, before: PartitionLog, at: i64) {
        // There may be a gap before the cut: what is sure ends with the last record.
        let whole = before.batches_from(before.log_start()).take_while(|b| b.next_offset <= at);
        let sure = whole.last().map_or(before.log_start().min(at), |batch| batch.next_offset);
        self.before.push(before);
        if self.sealed.is_none() {
            self.open_cuts.push(sure);
        }
    }

    /// The topic was created again, with other records. Without ids the copy may be cut, where that
    /// is allowed, since the epochs of both may part somewhere.
    pub fn recreated(&mut self, before: PartitionLog, may_cut: bool) {
        if may_cut && self.sealed.is_none() {
            self.open_cuts.push(before.log_start().min(0));
        }
        self.before.push(before);
        self.recreated = true;
    }

    /// The copy may be cut: what was reported beyond the cuts need not stay.
    pub fn allow_cuts(&mut self) {
        if let Some(cut) = self.open_cuts.iter().copied().min() {
            self.floor = self.floor.min(cut);
        }
    }

    fn id(&self) -> LogId {
        LogId {
            link: Arc::clone(&self.key.link),
            topic: Arc::clone(&self.key.topic),
            partition: self.key.partition,
        }
    }

    /// Up to where the disk itself knows that it was flushed: damage below is told from torn
    /// writes.
    pub fn checkpointed(&self, disk: &Disk) -> i64 {
        let files = disk.files(Path::new(DATA).join(OWN_FOLDER)).unwrap_or_default();
        let checkpoints = files.into_iter().filter_map(|(path, _)| {
            let name = path.file_name()?.to_str()?;
            let of_it = name.starts_with("checkpoint-") && !name.ends_with(".new");
            Checkpoint::decode(&disk.read_file(&path).filter(|_| of_it)?).ok()
        });
        let entries = checkpoints.filter_map(|checkpoint| {
            let entry = checkpoint.entries.get(&self.id())?;
            Some((checkpoint.boot, entry.turn, checkpoint.sequence, entry.flushed.offset))
        });
        entries.max().map_or(0, |(.., flushed)| flushed)
    }

    /// Its segments on a disk, oldest first.
    pub fn segments(&self, disk: &Disk) -> Vec<(i64, PathBuf, Vec<u8>)> {
        let folder = self.id().folder(Path::new(DATA));
        let files = disk.files(&folder).unwrap_or_default();
        let segment = |(path, _): (PathBuf, u64)| {
            let (base, kind) = parse_file(path.file_name()?.to_str()?)?;
            let bytes = (kind == Kind::Log).then(|| disk.read_file(&path)).flatten()?;
            Some((base, path, bytes))
        };
        files.into_iter().filter_map(segment).collect()
    }

    /// Where its first segment begins.
    pub fn first_base(&self, disk: &Disk) -> Option<i64> {
        let files = disk.files(self.id().folder(Path::new(DATA))).unwrap_or_default();
        let parsed = files.iter().filter_map(|(path, _)| parse_file(path.file_name()?.to_str()?));
        parsed.filter(|(_, kind)| *kind == Kind::Log).map(|(base, _)| base).min()
    }

    /// Whether a segment has a good seal.
    pub fn is_sealed(&self, disk: &Disk, base: i64) -> bool {
        let path = self.id().seal_folder(Path::new(DATA)).join(Kind::Seal.name(base));
        disk.read_file(path).is_some_and(|bytes| Seal::decode(&bytes).is_ok())
    }

    /// Holds the copy on a disk, up to `limit`, against everything the source ever was. With
    /// `exactly`, nothing may lie behind it.
    pub fn compare(
        &mut self,
        disk: &Disk,
        now: &PartitionLog,
        limit: i64,
        exactly: bool,
    ) -> Result<Compared, String> {
        self.deleted_to = now.log_start();
        let segments = self.segments(disk);
        let current = self.compare_with(&segments, now, limit, exactly);
        let error = match current {
            Ok(compared) => {
                // All of it is on the source's present way: nothing has to be cut any more.
                let cut = self.open_cuts.iter().copied().max().unwrap_or(i64::MIN);
                if exactly && (compared.end > cut || compared.end >= now.end_offset()) {
                    self.open_cuts.clear();
                }
                return Ok(compared);
            }
            Err(error) => error,
        };
        for before in self.before.iter().rev() {
            if let Ok(compared) = self.compare_with(&segments, before, limit, exactly) {
                return Ok(compared);
            }
        }
        let gaps = &self.gaps;
        Err(format!("{}: {error} (nor is it what the source was before; gaps {gaps:?})", self.key))
    }

    /// Holds a copy against one log.
    pub fn compare_with(
        &self,
        segments: &[(i64, PathBuf, Vec<u8>)],
        log: &PartitionLog,
        limit: i64,
        exactly: bool,
    ) -> Result<Compared, String> {
        let deleted_to = self.deleted_to.max(log.log_start());
        let mut result = Compared { end: 0, next: 0, bytes: 0, flips: 0 };
        let mut first = true;
        let mut expected = Vec::new();
        for (base, path, bytes) in segments {
            let empty = bytes.iter().all(|byte| *byte == 0);
            // One without records that begins where the source has deleted leaves nothing out.
            if first || empty && (result.end..=deleted_to).contains(base) {
                result.end = *base;
                first = false;
            }
            let mut at = 0;
            // The source's next behind what it has deleted, which may leave a gap, too.
            let next_kept = log.batches_from(deleted_to).next().map(|batch| batch.base_offset);
            while bytes.len() >= at + 12 && bytes[at..at + 12].iter().any(|byte| *byte != 0) {
                if result.end >= limit {
                    if exactly {
                        return Err(format!("{} goes on behind {limit}", path.display()));
                    }
                    return Ok(result.before_what_follows_in(log));
                }
                let found = self.base_offset_at(path, at, bytes);
                let mut next = log.batch_at(result.end);
                if next.is_none_or(|next| next.base_offset != found) {
                    // What the source has deleted need not be here.
                    let deleted =
                        found <= deleted_to || result.end < deleted_to && next_kept == Some(found);
                    let deleted = (found > result.end && deleted).then_some(found);
                    // Behind a gap that was told the source may have deleted more.
                    let behind = deleted.or_else(|| self.behind_gaps(result.end));
                    next = behind.map_or(next, |behind| log.batch_at(behind));
                }
                let next = self.or_of_the_past(log, next, found, &bytes[at..]);
                let Some((log, batch)) = next else {
                    return Err(format!("{} has {found}, the source ends before", path.display()));
                };
                expected.clear();
                log.write_batch(&batch, &mut expected);
                let there = &bytes[at..bytes.len().min(at + expected.len())];
                result.flips += self.hold_against(path, at, there, &expected, batch.base_offset)?;
                at += expected.len();
                result.bytes += expected.len() as u64;
                result.end = batch.next_offset;
            }
            if exactly && bytes[at.min(bytes.len())..].iter().any(|byte| *byte != 0) {
                return Err(format!("{} has bytes behind a hole at {at}", path.display()));
            }
        }
        Ok(result.before_what_follows_in(log))
    }

    /// What the source deleted is not compared with it any more: there the copy may hold what the
    /// source once held, even if it had lost and replaced it before it was deleted.
    fn or_of_the_past<'a>(
        &'a self,
        log: &'a PartitionLog,
        next: Option<BatchAt>,
        found: i64,
        there: &[u8],
    ) -> Option<(&'a PartitionLog, BatchAt)> {
        let is_it = |log: &PartitionLog, batch: &BatchAt| {
            let mut expected = Vec::new();
            log.write_batch(batch, &mut expected);
            there.starts_with(&expected)
        };
        if next.is_some_and(|batch| is_it(log, &batch)) {
            return Some((log, next?));
        }
        let past = self.before.iter().find_map(|before| {
            let batch = before.batch_at(found)?;
            (batch.next_offset <= log.log_start() && is_it(before, &batch))
                .then_some((before, batch))
        });
        past.or(next.map(|next| (log, next)))
    }

    /// The base offset of the batch at a byte, as it was before a bit of it was turned.
    fn base_offset_at(&self, path: &Path, at: usize, bytes: &[u8]) -> i64 {
        let mut head: [u8; 8] = bytes[at..at + 8].try_into().expect("8 bytes");
        let here = |flip: &&Flip| flip.path == path && (at..at + 8).contains(&flip.at);
        for flip in self.flips.iter().filter(here).filter(|flip| flip.stands_in(bytes)) {
            head[flip.at - at] = flip.was;
        }
        i64::from_be_bytes(head)
    }

    /// Bits that are still turned though something tells so.
    pub fn turned(&self, disk: &Disk) -> Vec<&Flip> {
        let stands = |flip: &&Flip| {
            flip.told && disk.read_file(&flip.path).is_some_and(|bytes| flip.stands_in(&bytes))
        };
        self.flips.iter().filter(stands).collect()
    }

    /// Where the records go on, if they were reported lost from here on.
    fn behind_gaps(&self, end: i64) -> Option<i64> {
        let mut at = end;
        while let Some(gap) = self.gaps.iter().find(|gap| gap.contains(&at)) {
            at = gap.end;
        }
        (at > end).then_some(at)
    }

    fn hold_against(
        &self,
        path: &Path,
        at: usize,
        there: &[u8],
        expected: &[u8],
        offset: i64,
    ) -> Result<usize, String> {
        if there == expected {
            return Ok(0);
        }
        let name = path.display();
        if there.len() != expected.len() {
            let (is, wanted) = (there.len(), expected.len());
            return Err(format!("{name} at {at}: {is} of the {wanted} bytes of batch {offset}"));
        }
        let differ = (0..there.len()).filter(|index| there[*index] != expected[*index]);
        let mut flips = 0;
        for index in differ {
            let (is, wanted) = (there[index], expected[index]);
            let turned = |flip: &Flip| flip.path == path && flip.at == at + index && flip.is == is;
            if !self.flips.iter().any(turned) {
                return Err(format!(
                    "{name} at {at}: byte {index} of batch {offset} is {is:#04x}, not {wanted:#04x}"
                ));
            }
            flips += 1;
        }
        Ok(flips)
    }

    /// No seal vouches for other bytes than the source's.
    pub fn check_seals(&self, disk: &Disk) -> Result<(), String> {
        let folder = self.id().seal_folder(Path::new(DATA));
        let segments = self.segments(disk);
        for (path, _) in disk.files(&folder).unwrap_or_default() {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let Some((base, Kind::Seal)) = parse_file(name) else { continue };
            let Some((_, file, bytes)) = segments.iter().find(|(b, ..)| *b == base) else {
                continue;
            };
            let bytes_of_seal = disk.read_file(&path).unwrap_or_default();
            let seal = Seal::decode(&bytes_of_seal)
                .map_err(|error| format!("{}: {error}", path.display()))?;
            let same = seal.bytes == bytes.len() as u64 && seal.crc == source::crc32c(bytes);
            let mut turned =
                self.flips.iter().filter(|flip| flip.path == *file && flip.stands_in(bytes));
            let flipped = turned.clone().next().is_some();
            if !same && !flipped {
                return Err(format!("{} does not fit its segment", path.display()));
            }
            if same && turned.any(|flip| flip.told) && self.before.is_empty() {
                return Err(format!("{} vouches for turned bits", path.display()));
            }
        }
        Ok(())
    }
}
