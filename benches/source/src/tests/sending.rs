//! Answers go out whole, however little the system takes at a time.

use crate::wire::Response;
use crate::{Expected, TopicSpec};
use proptest::prelude::*;
use std::io::{self, IoSlice, Write};

/// Takes a number of bytes at a time, from as many slices as that needs.
struct Narrow {
    widths: Vec<usize>,
    calls: usize,
    taken: Vec<u8>,
}

impl Write for Narrow {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let width = self.widths[self.calls % self.widths.len()];
        self.calls += 1;
        if width == 0 {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let mut left = width;
        for slice in slices {
            let now = slice.len().min(left);
            self.taken.extend_from_slice(&slice[..now]);
            left -= now;
        }
        Ok(width - left)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn nothing_is_lost_or_doubled(
        widths in proptest::collection::vec(0usize..5000, 1..8),
        batch_bytes in prop_oneof![Just(300usize), Just(1500), Just(4000)],
        cuts in proptest::collection::vec(1usize..4000, 1..6),
        last in 1usize..9000,
    ) {
        let spec = TopicSpec::new("t", 1, 12).with_batches(2, batch_bytes, 4);
        let log = Expected::new(&spec).unwrap().log(0, 48);
        let mut response = Response::default();
        response.begin(5, true);
        let mut expected = vec![0, 0, 0, 0, 0, 0, 0, 5];
        for (batch, cut) in log.batches_from(0).zip(cuts) {
            log.emit(&batch, cut, &mut response);
            let mut bytes = Vec::new();
            log.write_batch(&batch, &mut bytes);
            bytes.truncate(cut);
            expected.extend(bytes);
            response.string("between");
            expected.extend(b"\x08between");
        }
        response.finish();
        let length = expected.len() as i32 - 4;
        expected[..4].copy_from_slice(&length.to_be_bytes());
        let mut narrow = Narrow { widths, calls: 0, taken: Vec::new() };
        narrow.widths.push(last);
        response.send(&mut narrow).unwrap();
        prop_assert_eq!(&narrow.taken, &expected);

        response.edit(|frame| frame.truncate(6));
        let mut edited = Vec::new();
        response.send(&mut edited).unwrap();
        prop_assert_eq!(&edited[..], &expected[..6]);
    }
}
