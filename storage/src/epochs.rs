//! Leader epochs of a log: which epoch began at which offset (KIP-101), with *mirrored* epochs
//! only: one we advertise but the source never gave does not belong here.
//!
//! The file is Kafka's `leader-epoch-checkpoint`: version 0, the count, then `epoch offset` lines.

use std::fmt::Write;
use std::ops::Range;

/// The epochs of a log, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Epochs {
    /// (epoch, first offset); both strictly increasing.
    entries: Vec<(i32, i64)>,
}

impl Epochs {
    /// A batch of `epoch` begins at `offset`. True if the epoch is new.
    pub fn assign(&mut self, epoch: i32, offset: i64) -> bool {
        if self.entries.last().is_some_and(|&(last, _)| epoch <= last) {
            return false;
        }
        // An epoch without records of its own in this log is superseded, as in Kafka.
        while self.entries.last().is_some_and(|&(_, start)| start >= offset) {
            self.entries.pop();
        }
        self.entries.push((epoch, offset));
        true
    }

    /// The last epoch.
    pub fn last(&self) -> Option<i32> {
        self.entries.last().map(|&(epoch, _)| epoch)
    }

    /// All entries, oldest first.
    pub fn entries(&self) -> &[(i32, i64)] {
        &self.entries
    }

    /// The largest epoch at or below `epoch`, and where it ended: the start of the next one or the
    /// log's end. None if every epoch here is newer.
    pub fn end_offset(&self, epoch: i32, log_end: i64) -> Option<(i32, i64)> {
        let next = self.entries.partition_point(|&(e, _)| e <= epoch);
        let (found, _) = *self.entries.get(next.checked_sub(1)?)?;
        let end = self.entries.get(next).map_or(log_end, |&(_, start)| start);
        Some((found, end))
    }

    /// Whether this says of a range of offsets what the batches that lie in it say themselves.
    pub fn agrees_with(&self, offsets: &Range<i64>, batches: &Epochs) -> bool {
        let from = self.entries.partition_point(|&(_, start)| start < offsets.start);
        let to = self.entries.partition_point(|&(_, start)| start < offsets.end);
        let here = &self.entries[from..to.max(from)];
        let Some(&(epoch, offset)) = batches.entries.first() else { return here.is_empty() };
        // The first of them may have begun before.
        let begun = self.entries.iter().rfind(|&&(_, start)| start <= offset);
        let goes_on = begun.is_some_and(|&(found, _)| found == epoch);
        goes_on && (here == batches.entries || *here == batches.entries[1..])
    }

    /// Epochs above this one are gone.
    pub fn forget_above(&mut self, epoch: i32) {
        self.entries.retain(|&(other, _)| other <= epoch);
    }

    /// Everything from `end` on is gone. True if an epoch went with it.
    pub fn truncate_end(&mut self, end: i64) -> bool {
        let before = self.entries.len();
        self.entries.retain(|&(_, start)| start < end);
        self.entries.len() < before
    }

    /// Everything below `start` is gone; the epoch that covers `start` now begins there.
    pub fn truncate_start(&mut self, start: i64) -> bool {
        let covering = self.entries.partition_point(|&(_, s)| s <= start);
        if covering == 0 || (covering == 1 && self.entries[0].1 == start) {
            return false;
        }
        self.entries.drain(..covering - 1);
        self.entries[0].1 = start;
        true
    }

    /// The file's text.
    pub fn format(&self) -> String {
        let mut text = format!("0\n{}\n", self.entries.len());
        for (epoch, start) in &self.entries {
            let _ = writeln!(text, "{epoch} {start}");
        }
        text
    }

    /// Reads the file's text. None if it is not whole and in order.
    pub fn parse(text: &str) -> Option<Epochs> {
        let mut lines = text.lines();
        if lines.next()?.trim() != "0" {
            return None;
        }
        let count: usize = lines.next()?.trim().parse().ok()?;
        let mut epochs = Epochs::default();
        for line in lines {
            let (epoch, start) = line.trim().split_once(' ')?;
            let entry = (epoch.parse().ok()?, start.parse().ok()?);
            if epochs.entries.last().is_some_and(|last| last.0 >= entry.0 || last.1 >= entry.1) {
                return None;
            }
            epochs.entries.push(entry);
        }
        (epochs.entries.len() == count).then_some(epochs)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn three() -> Epochs {
        let mut epochs = Epochs::default();
        for (epoch, start) in [(1, 0), (4, 10), (5, 25)] {
            assert!(epochs.assign(epoch, start));
        }
        epochs
    }

    #[test]
    fn the_end_of_an_epoch() {
        let epochs = three();
        assert_eq!(epochs.end_offset(0, 40), None);
        assert_eq!(epochs.end_offset(1, 40), Some((1, 10)));
        assert_eq!(epochs.end_offset(3, 40), Some((1, 10)));
        assert_eq!(epochs.end_offset(4, 40), Some((4, 25)));
        assert_eq!(epochs.end_offset(9, 40), Some((5, 40)));
    }

    #[test]
    fn old_epochs_do_not_come_back() {
        let mut epochs = three();
        assert!(!epochs.assign(5, 50));
        assert!(!epochs.assign(2, 50));
        assert_eq!(epochs, three());
    }

    #[test]
    fn truncation_at_both_ends() {
        let mut epochs = three();
        assert!(epochs.truncate_end(25));
        assert_eq!(epochs.entries(), [(1, 0), (4, 10)]);
        assert!(epochs.truncate_start(12));
        assert_eq!(epochs.entries(), [(4, 12)]);
        assert!(!epochs.truncate_start(12));
    }

    #[test]
    fn what_batches_say_of_their_range() {
        let of = |entries: &[(i32, i64)]| Epochs { entries: entries.to_vec() };
        let agrees = |range, entries: &[_]| three().agrees_with(&range, &of(entries));
        assert!(agrees(2..8, &[(1, 3)]) && agrees(0..8, &[(1, 0)]));
        assert!(agrees(2..30, &[(1, 3), (4, 10), (5, 25)]));
        assert!(agrees(10..20, &[(4, 10)]) && agrees(11..20, &[]));
        assert!(!agrees(10..20, &[]), "an epoch began here");
        assert!(!agrees(10..20, &[(4, 12)]), "it began later");
        assert!(!agrees(12..20, &[(3, 12)]) && !agrees(12..20, &[(5, 12)]));
        assert!(!agrees(2..20, &[(1, 3)]) && !agrees(12..20, &[(4, 12), (5, 15)]));
    }

    #[test]
    fn the_file_is_kafkas() {
        assert_eq!(three().format(), "0\n3\n1 0\n4 10\n5 25\n");
        assert_eq!(Epochs::parse(&three().format()), Some(three()));
        for bad in ["", "1\n0\n", "0\n2\n1 0\n", "0\n2\n1 5\n2 5\n", "0\n1\n1\n", "0\nx\n"] {
            assert_eq!(Epochs::parse(bad), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn entries_stay_in_order(ops in prop::collection::vec((0i32..20, 0i64..100), 0..40)) {
            let (mut epochs, mut offset) = (Epochs::default(), 0);
            for (epoch, step) in ops {
                offset += step;
                epochs.assign(epoch, offset);
                let entries = epochs.entries();
                prop_assert!(entries.windows(2).all(|w| w[0].0 < w[1].0 && w[0].1 < w[1].1));
            }
            prop_assert_eq!(Epochs::parse(&epochs.format()), Some(epochs));
        }
    }
}
