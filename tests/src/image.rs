//! One partition's log as it stands on disk, whoever wrote it: its segments in order, its batches,
//! and what follows the last of them.
//!
//! The files are opened first and read later, so that a broker that deletes or rewrites a segment
//! meanwhile takes nothing away from an image. Nothing here comes from the product: a fault in its
//! own parser cannot hide itself.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::Outcome;

/// Offset and length, which every magic has.
const OVERHEAD: u64 = 12;
/// Up to and including the magic byte.
const TO_MAGIC: usize = 17;
/// The whole header of magic 2.
const HEADER: usize = 61;

/// A partition's log on disk.
#[derive(Debug)]
pub struct Image {
    dir: PathBuf,
    segments: Vec<Segment>,
    /// Its batches, in order.
    pub batches: Vec<Batch>,
    /// Zero bytes behind the last batch: space prepared and not used.
    pub zero_tail: u64,
}

/// One file of a log.
#[derive(Debug)]
struct Segment {
    path: PathBuf,
    base_offset: i64,
    file: File,
}

/// One record batch (or old message set), by what its header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// First offset (magic 0 and 1: the offset of the outer message).
    pub base_offset: i64,
    /// Last offset.
    pub last_offset: i64,
    /// The leader epoch, which no checksum covers; -1 before magic 2.
    pub leader_epoch: i32,
    /// 0, 1 or 2.
    pub magic: i8,
    /// Codec, timestamp type, transactional and control bits.
    pub attributes: i16,
    /// The producer's id, or -1.
    pub producer_id: i64,
    /// How many records it holds.
    pub records: i32,
    /// All of it, header included.
    pub length: u64,
    segment: usize,
    position: u64,
}

impl Batch {
    /// none, gzip, snappy, lz4, zstd: 0 to 4.
    pub fn codec(&self) -> i16 {
        self.attributes & 0x7
    }

    /// LogAppendTime, not CreateTime.
    pub fn append_time(&self) -> bool {
        self.attributes & 0x8 != 0
    }

    /// Part of a transaction.
    pub fn transactional(&self) -> bool {
        self.attributes & 0x10 != 0
    }

    /// A marker.
    pub fn control(&self) -> bool {
        self.attributes & 0x20 != 0
    }

    /// A cleaner has taken records out of it.
    pub fn thinned(&self) -> bool {
        i64::from(self.records) < self.last_offset - self.base_offset + 1
    }
}

impl Image {
    /// Reads the folder of a partition.
    ///
    /// # Errors
    /// A file cannot be read, or something between two batches is none; the message says where.
    pub fn read(dir: &Path) -> Outcome<Image> {
        let mut segments = Vec::new();
        for name in names(dir)? {
            let Some(base) = name.strip_suffix(".log").and_then(|n| n.parse().ok()) else {
                continue;
            };
            let path = dir.join(&name);
            let file = File::open(&path).map_err(|e| format!("open {}: {e}", path.display()))?;
            segments.push(Segment { path, base_offset: base, file });
        }
        segments.sort_by_key(|s| s.base_offset);
        let mut image = Image { dir: dir.to_owned(), segments, batches: Vec::new(), zero_tail: 0 };
        for index in 0..image.segments.len() {
            image.scan(index)?;
        }
        Ok(image)
    }

    /// The folder it was read from.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// How many files its log has.
    pub fn segments(&self) -> usize {
        self.segments.len()
    }

    /// The offset after the last record; the base of the last segment if there is none.
    pub fn end_offset(&self) -> i64 {
        let base = self.segments.last().map_or(0, |s| s.base_offset);
        self.batches.last().map_or(base, |b| (b.last_offset + 1).max(base))
    }

    /// The offset of the first record.
    pub fn first_offset(&self) -> Option<i64> {
        self.batches.first().map(|b| b.base_offset)
    }

    /// All bytes of all batches.
    pub fn bytes(&self) -> u64 {
        self.batches.iter().map(|b| b.length).sum()
    }

    /// How many batches are such.
    pub fn count(&self, such: impl Fn(&Batch) -> bool) -> usize {
        self.batches.iter().filter(|b| such(b)).count()
    }

    /// How often an offset does not follow on the one before.
    pub fn gaps(&self) -> usize {
        self.batches.windows(2).filter(|w| w[1].base_offset != w[0].last_offset + 1).count()
    }

    /// The bytes of one batch.
    ///
    /// # Errors
    /// The file cannot be read, or is shorter than it was.
    pub fn bytes_of(&self, batch: &Batch) -> Outcome<Vec<u8>> {
        let segment = &self.segments[batch.segment];
        let mut bytes = vec![0; usize::try_from(batch.length).map_err(|e| e.to_string())?];
        segment
            .file
            .read_exact_at(&mut bytes, batch.position)
            .map_err(|e| format!("{} at {}: {e}", segment.path.display(), batch.position))?;
        Ok(bytes)
    }

    /// Where a batch lies, for messages.
    pub fn place(&self, batch: &Batch) -> String {
        format!("{} at byte {}", self.segments[batch.segment].path.display(), batch.position)
    }

    fn scan(&mut self, index: usize) -> Outcome {
        let segment = &self.segments[index];
        let last = index + 1 == self.segments.len();
        let told = |at: u64, what: &str| format!("{} at byte {at}: {what}", segment.path.display());
        let length = segment.file.metadata().map_err(|e| told(0, &e.to_string()))?.len();
        let mut at = 0;
        let mut found = Vec::new();
        let mut zero_tail = 0;
        while at < length {
            let mut head = [0; HEADER];
            let have = (length - at).min(HEADER as u64) as usize;
            segment
                .file
                .read_exact_at(&mut head[..have], at)
                .map_err(|e| told(at, &e.to_string()))?;
            let rest = i32::from_be_bytes(take(&head, 8));
            if have < TO_MAGIC || rest == 0 {
                if last && all_zero(&segment.file, at, length).map_err(|e| told(at, &e))? {
                    zero_tail = length - at;
                    break;
                }
                return Err(told(at, "neither a batch nor the end"));
            }
            let batch = header(&head, index, at).map_err(|e| told(at, &e))?;
            if at + batch.length > length {
                return Err(told(at, &format!("a batch of {} bytes, cut short", batch.length)));
            }
            at += batch.length;
            found.push(batch);
        }
        self.batches.extend(found);
        self.zero_tail = zero_tail;
        Ok(())
    }
}

/// The names of the files in a folder.
///
/// # Errors
/// It cannot be read.
pub fn names(dir: &Path) -> Outcome<Vec<String>> {
    let told = |e: std::io::Error| format!("read {}: {e}", dir.display());
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(told)? {
        names.push(entry.map_err(told)?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

fn header(head: &[u8; HEADER], segment: usize, position: u64) -> Outcome<Batch> {
    let base_offset = i64::from_be_bytes(take(head, 0));
    let rest = u64::try_from(i32::from_be_bytes(take(head, 8)))
        .map_err(|_| "a batch of negative length".to_owned())?;
    let magic = head[16].cast_signed();
    let mut batch = Batch {
        base_offset,
        last_offset: base_offset,
        leader_epoch: -1,
        magic,
        attributes: i16::from(head[17]),
        producer_id: -1,
        records: 1,
        length: OVERHEAD + rest,
        segment,
        position,
    };
    match magic {
        0 | 1 => {}
        2 if rest + OVERHEAD >= HEADER as u64 => {
            batch.leader_epoch = i32::from_be_bytes(take(head, 12));
            batch.attributes = i16::from_be_bytes(take(head, 21));
            batch.last_offset = base_offset + i64::from(i32::from_be_bytes(take(head, 23)));
            batch.producer_id = i64::from_be_bytes(take(head, 43));
            batch.records = i32::from_be_bytes(take(head, 57));
        }
        other => return Err(format!("magic {other}, length {rest}: no batch")),
    }
    Ok(batch)
}

fn take<const N: usize>(head: &[u8; HEADER], at: usize) -> [u8; N] {
    head[at..at + N].try_into().expect("a fixed place in the header")
}

fn all_zero(file: &File, mut at: u64, end: u64) -> Outcome<bool> {
    let mut bytes = vec![0; 1 << 16];
    while at < end {
        let want = (end - at).min(bytes.len() as u64) as usize;
        file.read_exact_at(&mut bytes[..want], at).map_err(|e| e.to_string())?;
        if bytes[..want].iter().any(|b| *b != 0) {
            return Ok(false);
        }
        at += want as u64;
    }
    Ok(true)
}
