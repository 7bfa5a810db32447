//! Whose a log is, and what is known of those that nobody has open.
//!
//! The shards of a process share one ledger per data directory; it is asked when a log is opened,
//! closed or deleted, never on the data path. A claim gives a log to one shard, with what the owner
//! before left of it, and with a *turn* that no claim before had. Checkpoint entries carry the
//! turn: of two shards' words about one log the later owner's counts, however far each has counted
//! its own checkpoints. What was known of a log ends with its deletion; whoever makes a log of that
//! name again is told, and says so durably before there is a file.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::checkpoint::Entry;
use crate::names::LogId;

/// The lines of one data directory.
#[derive(Debug)]
pub struct Ledger(Mutex<BTreeMap<LogId, Line>>);

#[derive(Debug, Default)]
struct Line {
    /// Counts the claims.
    turn: u64,
    owned: bool,
    /// It was deleted since the start.
    deleted: bool,
    /// What the owner before left, until a log is open.
    entry: Option<Box<Entry>>,
}

/// A log that is being opened. Dropped before it is kept, everything is as it was.
pub struct Claim<'a> {
    ledger: &'a Ledger,
    id: LogId,
    before: Line,
    /// Greater than every one before.
    pub turn: u64,
    /// What the owner before left.
    pub entry: Option<Entry>,
    /// Older checkpoints may still tell of a log of that name.
    pub deleted: bool,
    kept: bool,
}

impl Ledger {
    /// What the checkpoints of the runs before say.
    pub fn new(entries: &BTreeMap<LogId, Entry>) -> Ledger {
        let line = |(id, entry): (&LogId, &Entry)| {
            (id.clone(), Line { entry: Some(Box::new(*entry)), ..Line::default() })
        };
        Ledger(Mutex::new(entries.iter().map(line).collect()))
    }

    fn lines(&self) -> MutexGuard<'_, BTreeMap<LogId, Line>> {
        // Every change is one assignment: there is no half-made one to fear.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a log. None: it is open, in this shard or another.
    pub fn claim(&self, id: &LogId) -> Option<Claim<'_>> {
        let mut lines = self.lines();
        let line = lines.entry(id.clone()).or_default();
        if line.owned {
            return None;
        }
        let turn = line.turn + 1;
        let before = std::mem::replace(line, Line { turn, owned: true, ..Line::default() });
        Some(Claim {
            ledger: self,
            id: id.clone(),
            turn,
            entry: before.entry.as_deref().copied(),
            deleted: before.deleted,
            before,
            kept: false,
        })
    }

    /// The owner of this turn closed the log, with this entry, or deleted it.
    pub fn give_back(&self, id: &LogId, turn: u64, entry: Option<Entry>) {
        if let Some(line) = self.lines().get_mut(id)
            && line.turn == turn
        {
            let deleted = entry.is_none();
            *line = Line { turn, owned: false, deleted, entry: entry.map(Box::new) };
        }
    }
}

impl Claim<'_> {
    /// The log is open.
    pub fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        if !self.kept
            && let Some(line) = self.ledger.lines().get_mut(&self.id)
        {
            // The turn is spent: a checkpoint may have carried it already.
            *line = Line { turn: self.turn, ..std::mem::take(&mut self.before) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_has_one_owner_and_every_claim_a_greater_turn() {
        let id = LogId { link: "l".into(), topic: "t".into(), partition: 0 };
        let known = Entry { high_watermark: 7, ..Entry::UNKNOWN };
        let ledger = Ledger::new(&[(id.clone(), known)].into());
        let first = ledger.claim(&id).unwrap();
        assert_eq!((first.turn, first.entry, first.deleted), (1, Some(known), false));
        assert!(ledger.claim(&id).is_none(), "it is being opened");
        drop(first);
        let second = ledger.claim(&id).unwrap();
        assert_eq!((second.turn, second.entry), (2, Some(known)));
        second.keep();
        assert!(ledger.claim(&id).is_none(), "it is open");
        ledger.give_back(&id, 1, None);
        assert!(ledger.claim(&id).is_none(), "an older owner has no say");
        let newer = Entry { high_watermark: 9, turn: 2, ..known };
        ledger.give_back(&id, 2, Some(newer));
        let third = ledger.claim(&id).unwrap();
        assert_eq!((third.turn, third.entry, third.deleted), (3, Some(newer), false));
        third.keep();
        ledger.give_back(&id, 3, None);
        let fourth = ledger.claim(&id).unwrap();
        assert_eq!((fourth.turn, fourth.entry, fourth.deleted), (4, None, true));
    }
}
