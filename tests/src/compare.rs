//! Source and copy, byte for byte.
//!
//! Segments roll at different places on the two sides, so what is compared is the sequence of
//! batches with all their bytes: leader epoch, timestamps, checksums, producer ids, gaps and all.

use std::ops::Range;

use crate::Outcome;
use crate::image::{Batch, Image};

/// What was found equal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Equal {
    /// Batches compared.
    pub batches: usize,
    /// Bytes compared.
    pub bytes: u64,
}

/// Compares all batches that hold an offset in `offsets`.
///
/// # Errors
/// The first difference: offset, field, both values, both places.
pub fn equal(source: &Image, copy: &Image, offsets: Range<i64>) -> Outcome<Equal> {
    let within = |b: &&Batch| b.last_offset >= offsets.start && b.base_offset < offsets.end;
    let mut theirs = source.batches.iter().filter(within);
    let mut ours = copy.batches.iter().filter(within);
    let mut equal = Equal::default();
    loop {
        match (theirs.next(), ours.next()) {
            (None, None) => return Ok(equal),
            (Some(b), None) => {
                let rest = theirs.count();
                return Err(format!(
                    "the copy lacks offsets {}..={} ({}) and {rest} batches more; \
                     it ends at {} ({})",
                    b.base_offset,
                    b.last_offset,
                    source.place(b),
                    copy.end_offset(),
                    copy.dir().display()
                ));
            }
            (None, Some(b)) => {
                return Err(format!(
                    "the copy has offsets {}..={} ({}) which the source has not; \
                     that ends at {} ({})",
                    b.base_offset,
                    b.last_offset,
                    copy.place(b),
                    source.end_offset(),
                    source.dir().display()
                ));
            }
            (Some(t), Some(o)) => {
                same(source, t, copy, o)?;
                equal.batches += 1;
                equal.bytes += t.length;
            }
        }
    }
}

fn same(source: &Image, theirs: &Batch, copy: &Image, ours: &Batch) -> Outcome {
    let (their_bytes, our_bytes) = (source.bytes_of(theirs)?, copy.bytes_of(ours)?);
    if their_bytes == our_bytes {
        return Ok(());
    }
    let at = their_bytes.iter().zip(&our_bytes).position(|(t, o)| t != o);
    let at = at.unwrap_or(their_bytes.len().min(our_bytes.len()));
    let around = |bytes: &[u8]| -> String {
        let end = bytes.len().min(at + 8);
        bytes[at.saturating_sub(4).min(end)..end].iter().map(|b| format!("{b:02x} ")).collect()
    };
    Err(format!(
        "at offset {} byte {at} of the batch ({}) differs\n\
         source {} … {} : {:?}\ncopy   {} … {} : {:?}",
        theirs.base_offset,
        field(theirs.magic, at),
        around(&their_bytes),
        source.place(theirs),
        theirs,
        around(&our_bytes),
        copy.place(ours),
        ours,
    ))
}

/// Which field of a batch a byte belongs to.
fn field(magic: i8, at: usize) -> &'static str {
    if magic != 2 {
        return if at < 8 { "offset" } else { "message" };
    }
    match at {
        0..8 => "base offset",
        8..12 => "length",
        12..16 => "leader epoch",
        16 => "magic",
        17..21 => "checksum",
        21..23 => "attributes",
        23..27 => "last offset delta",
        27..35 => "first timestamp",
        35..43 => "maximum timestamp",
        43..51 => "producer id",
        51..53 => "producer epoch",
        53..57 => "first sequence",
        57..61 => "count of records",
        _ => "records",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// A batch of magic 2 without meaning but in its header.
    fn batch(base: i64, records: i32, payload: u8) -> Vec<u8> {
        let mut bytes = vec![payload; 61 + 20];
        bytes[..61].fill(0);
        bytes[..8].copy_from_slice(&base.to_be_bytes());
        bytes[8..12].copy_from_slice(&(49_i32 + 20).to_be_bytes());
        bytes[16] = 2;
        bytes[23..27].copy_from_slice(&(records - 1).to_be_bytes());
        bytes[57..61].copy_from_slice(&records.to_be_bytes());
        bytes
    }

    fn image(name: &str, segments: &[(i64, Vec<u8>)]) -> Outcome<Image> {
        let dir = std::env::temp_dir().join(format!("compare-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).expect("a folder");
        for (base, bytes) in segments {
            fs::write(dir.join(format!("{base:020}.log")), bytes).expect("a file");
        }
        let image = Image::read(&dir);
        fs::remove_dir_all(&dir).expect("the folder goes");
        image
    }

    #[test]
    fn where_segments_roll_makes_no_difference() {
        let one = image("one", &[(0, [batch(0, 3, 7), batch(3, 2, 8)].concat())]).unwrap();
        let two = image("two", &[(0, batch(0, 3, 7)), (3, batch(3, 2, 8))]).unwrap();
        assert_eq!(equal(&one, &two, 0..i64::MAX), Ok(Equal { batches: 2, bytes: 162 }));
        assert_eq!(two.end_offset(), 5);
    }

    #[test]
    fn every_single_byte_counts() {
        let good = image("good", &[(0, batch(0, 3, 7))]).unwrap();
        for at in (12..16).chain(17..23).chain(27..57).chain([61, 80]) {
            let mut bytes = batch(0, 3, 7);
            bytes[at] ^= 1;
            let bad = image("bad", &[(0, bytes)]).unwrap();
            let said = equal(&good, &bad, 0..i64::MAX).unwrap_err();
            assert!(said.contains(&format!("byte {at} of the batch ({})", field(2, at))), "{said}");
        }
    }

    #[test]
    fn what_is_missing_or_too_much_is_found() {
        let long = image("long", &[(0, [batch(0, 3, 7), batch(3, 2, 8)].concat())]).unwrap();
        let short = image("short", &[(0, batch(0, 3, 7))]).unwrap();
        assert!(equal(&long, &short, 0..i64::MAX).unwrap_err().contains("lacks offsets 3..=4"));
        assert!(equal(&short, &long, 0..i64::MAX).unwrap_err().contains("has offsets 3..=4"));
        assert_eq!(equal(&long, &short, 0..3), Ok(Equal { batches: 1, bytes: 81 }));
    }

    #[test]
    fn a_tail_of_zeros_is_told_and_anything_else_is_an_error() {
        let prepared = image("zeros", &[(0, [batch(0, 3, 7), vec![0; 5000]].concat())]).unwrap();
        assert_eq!(prepared.zero_tail, 5000);
        let torn = [batch(0, 3, 7), batch(3, 2, 8)[..70].to_vec()].concat();
        assert!(image("torn", &[(0, torn)]).unwrap_err().contains("cut short"));
        let dirt = [batch(0, 3, 7), vec![0; 4000], vec![1]].concat();
        assert!(image("dirt", &[(0, dirt)]).unwrap_err().contains("neither a batch nor the end"));
        let holed = [batch(0, 3, 7), vec![0; 100]].concat();
        let between = image("holed", &[(0, holed), (3, batch(3, 2, 8))]);
        assert!(between.unwrap_err().contains("neither a batch nor the end"));
    }
}
