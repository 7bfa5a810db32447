//! What really went wrong in a simulated world: counted where it happens, so that a campaign can
//! tell what it has tried from what it only might have.

use std::ops::AddAssign;

/// A kind of accident.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accident {
    /// A file transfer moved fewer bytes than asked.
    ShortTransfer,
    /// A read failed, once or for good.
    FailedRead,
    /// A write failed and changed nothing.
    FailedWrite,
    /// A flush failed.
    FailedFlush,
    /// There was no room on a disk.
    FullDisk,
    /// A power loss kept some sectors of a write and not others.
    TornWrite,
    /// A power loss kept a write and not an earlier one of the same file.
    ReorderedWrite,
    /// A power loss took a write altogether.
    LostWrite,
    /// A power loss left a sector that cannot be read.
    UnreadableSector,
    /// A receive or send moved fewer bytes than it could.
    ShortSocket,
    /// A connection attempt was refused by lot.
    RefusedCall,
    /// An accept failed.
    FailedAccept,
    /// A connection was reset.
    Reset,
    /// A connection fell silent.
    Silence,
    /// The wall clock jumped.
    ClockJump,
    /// An executor stood still for a while.
    Pause,
}

impl Accident {
    /// Every kind.
    pub const ALL: [Accident; 16] = [
        Accident::ShortTransfer,
        Accident::FailedRead,
        Accident::FailedWrite,
        Accident::FailedFlush,
        Accident::FullDisk,
        Accident::TornWrite,
        Accident::ReorderedWrite,
        Accident::LostWrite,
        Accident::UnreadableSector,
        Accident::ShortSocket,
        Accident::RefusedCall,
        Accident::FailedAccept,
        Accident::Reset,
        Accident::Silence,
        Accident::ClockJump,
        Accident::Pause,
    ];

    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Accident::ShortTransfer => "short file transfer",
            Accident::FailedRead => "failed read",
            Accident::FailedWrite => "failed write",
            Accident::FailedFlush => "failed flush",
            Accident::FullDisk => "full disk",
            Accident::TornWrite => "torn write",
            Accident::ReorderedWrite => "reordered write",
            Accident::LostWrite => "lost write",
            Accident::UnreadableSector => "unreadable sector",
            Accident::ShortSocket => "short receive or send",
            Accident::RefusedCall => "refused call",
            Accident::FailedAccept => "failed accept",
            Accident::Reset => "connection reset",
            Accident::Silence => "connection silent",
            Accident::ClockJump => "clock jump",
            Accident::Pause => "executor paused",
        }
    }
}

/// How often what happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Happened([u64; Accident::ALL.len()]);

impl Happened {
    /// Of one kind.
    pub fn of(&self, kind: Accident) -> u64 {
        self.0[kind as usize]
    }

    pub(super) fn count(&mut self, kind: Accident) {
        self.0[kind as usize] += 1;
    }

    pub(super) fn count_if(&mut self, kind: Accident, so: bool) -> bool {
        self.0[kind as usize] += u64::from(so);
        so
    }
}

impl AddAssign for Happened {
    fn add_assign(&mut self, other: Happened) {
        self.0.iter_mut().zip(other.0).for_each(|(mine, theirs)| *mine += theirs);
    }
}
