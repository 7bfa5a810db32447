//! Any answers at all: what is decided by them is never more than they support.
//!
//! `PROPTEST_CASES=1000000 cargo test --release -p shards check::properties` searches for longer.

use proptest::prelude::*;
use proptest::sample::Index;
use source::{BatchFields, Record, encode_batch};

use super::*;

/// The epochs of a log, each with its first offset, and its end.
#[derive(Clone, Debug, Default)]
struct History {
    epochs: Vec<(i32, i64)>,
    end: i64,
}

impl History {
    /// The largest epoch at or below this one, and where it ends.
    fn end_of(&self, epoch: i32) -> Option<(i32, i64)> {
        let next = self.epochs.partition_point(|(e, _)| *e <= epoch);
        let (found, _) = self.epochs.get(next.checked_sub(1)?)?;
        Some((*found, self.epochs.get(next).map_or(self.end, |(_, start)| *start)))
    }

    /// What its leader of the last epoch answers. It knows that epoch before it appends anything;
    /// one below all it knows ends where the first of them begins.
    fn answer(&self, last: i32, epoch: i32) -> (i32, i64) {
        let mut known = self.clone();
        if known.epochs.last().is_none_or(|(epoch, _)| *epoch < last) {
            known.epochs.push((last, self.end));
        }
        known.end_of(epoch).unwrap_or((epoch, known.epochs[0].1))
    }

    fn epoch_at(&self, offset: i64) -> Option<i32> {
        let within = (0..self.end).contains(&offset);
        self.epochs.iter().rev().find(|(_, start)| *start <= offset && within).map(|(e, _)| *e)
    }

    fn cut(&mut self, end: i64) {
        self.end = self.end.min(end);
        self.epochs.retain(|(_, start)| *start < end);
    }

    /// How far two logs have the same records: those of the same epochs at the same offsets.
    fn common_end(&self, other: &History) -> i64 {
        let same = |offset: &i64| {
            self.epoch_at(*offset).is_some() && self.epoch_at(*offset) == other.epoch_at(*offset)
        };
        (0..).take_while(same).count() as i64
    }
}

/// An election at a partition with three replicas: who wins it, what he appends, and how much of it
/// each of the others takes over.
type Election = (Index, i64, [i64; 3]);

/// Elections, some of them unclean: the copy as it was at one of them, and the leader's log after
/// all of them.
fn lived(elections: &[Election], copied: Index, missing: i64) -> (History, History) {
    let mut replicas = [History::default(), History::default(), History::default()];
    let mut copies = Vec::new();
    let mut last = 0;
    for (epoch, (winner, appended, taken)) in elections.iter().enumerate() {
        last = winner.index(3);
        let leader = &mut replicas[last];
        if *appended > 0 {
            leader.epochs.push((epoch as i32, leader.end));
            leader.end += appended;
        }
        let leader = leader.clone();
        copies.push(leader.clone());
        for (replica, behind) in taken.iter().enumerate().filter(|(replica, _)| *replica != last) {
            // One that is away keeps what it has.
            if *behind >= 0 {
                replicas[replica] = leader.clone();
                replicas[replica].cut((leader.end - behind).max(0));
            }
        }
    }
    let mut copy = copies[copied.index(copies.len())].clone();
    copy.cut((copy.end - missing).max(0));
    (copy, replicas[last].clone())
}

/// What a fetcher does with the answers: where the logs part, if they do. `Err`: they make no
/// sense. Asked as often as it takes, which is bounded by how many epochs there are.
fn ask(
    ours: &History,
    start: i64,
    mut answer: impl FnMut(i32) -> (i32, i64),
) -> Result<Option<i64>, ()> {
    let Some((epoch, _)) = ours.epochs.last() else { return Ok(None) };
    let mut asked = AskedEpoch { epoch: *epoch, end: ours.end, below: None };
    for _ in 0..=ours.epochs.len() {
        match judge_epochs(asked, start, answer(asked.epoch), |epoch| ours.end_of(epoch)) {
            Epochs::Agree => return Ok(None),
            Epochs::Diverged { common_end } => return Ok(Some(common_end)),
            Epochs::Older(older) => {
                let goes_back = older.epoch < asked.epoch && older.end <= asked.end;
                assert!(goes_back, "{older:?} after {asked:?}");
                asked = older;
            }
            Epochs::Senseless => return Err(()),
        }
    }
    panic!("asked without an end: {ours:?}");
}

fn election() -> impl Strategy<Value = Election> {
    let taken = prop_oneof![3 => Just(-1i64), 2 => 0i64..4];
    (any::<Index>(), 0i64..6, prop::array::uniform3(taken))
}

fn offset() -> impl Strategy<Value = i64> {
    prop_oneof![
        6 => -2i64..40,
        1 => any::<i64>(),
        1 => prop::sample::select(vec![i64::MIN, i64::MAX, i64::MAX - 1, -1, 0]),
    ]
}

fn epoch() -> impl Strategy<Value = i32> {
    prop_oneof![6 => -2i32..8, 1 => any::<i32>()]
}

fn compared() -> impl Strategy<Value = Compared> {
    use Compared::{Cleaned, Different, Gone, NotYet, Same};
    prop::sample::select(vec![Same, Cleaned, Gone, Different, NotYet])
}

fn last_batch() -> (LastBatch, Vec<u8>) {
    let record = Record { value: Some(b"ours".to_vec()), ..Record::default() };
    let bytes = whole(record, 100, 3);
    let ours = LastBatch {
        base_offset: 100,
        last_offset: 100,
        bytes: bytes.len() as u32,
        leader_epoch: Some(3),
        crc: u32::from_be_bytes(bytes[17..21].try_into().expect("4")),
        producer: None,
        record_count: 1,
        segment: 0,
        position: 0,
    };
    (ours, bytes)
}

fn whole(record: Record, base_offset: i64, leader_epoch: i32) -> Vec<u8> {
    let fields = BatchFields { base_offset, leader_epoch, ..BatchFields::default() };
    encode_batch(&[record], &fields)
}

/// Feeds an answer in pieces; what came of it.
fn feed(bytes: &[u8], piece: usize) -> Result<Option<Compared>, AppendError> {
    let mut comparison = Comparison::new(last_batch().0, None);
    comparison.begin(Bounds::local(BATCH_BYTES_MAX));
    for piece in bytes.chunks(piece.max(1)) {
        if !comparison.take(piece)? {
            break;
        }
    }
    Ok(comparison.result())
}

proptest! {
    /// Whatever elections went before: of a source that tells the truth, the logs part exactly
    /// where they do.
    #[test]
    fn true_epochs_part_where_the_records_do(
        elections in prop::collection::vec(election(), 1..10),
        copied in any::<Index>(),
        missing in 0i64..5,
    ) {
        let (ours, theirs) = lived(&elections, copied, missing);
        let (common, last) = (ours.common_end(&theirs), elections.len() as i32 - 1);
        let parted = ask(&ours, 0, |epoch| theirs.answer(last, epoch));
        prop_assert_eq!(
            parted.expect("a true answer").unwrap_or(ours.end),
            common,
            "{:?} and {:?}", ours, theirs
        );
    }

    /// Any answers: they come to an end, and nothing is called parted that some answer, or the end
    /// of an epoch that the source did not know, does not.
    #[test]
    fn any_epochs_part_where_an_answer_says_so(
        elections in prop::collection::vec(election(), 1..10),
        copied in any::<Index>(),
        start in 0i64..20,
        answers in prop::collection::vec((epoch(), offset()), 1..12),
    ) {
        let (ours, _) = lived(&elections, copied, 0);
        let mut told = Vec::new();
        let mut next = answers.iter().cycle();
        let parted = ask(&ours, start, |asked| {
            let answer = *next.next().expect("endless");
            told.push((asked, answer));
            answer
        });
        if let Ok(Some(common_end)) = parted {
            let lowest = told.iter().filter(|(_, (_, end))| *end >= 0).map(|(_, (_, end))| *end);
            let unknown = told.iter().any(|(asked, (epoch, _))| epoch < asked);
            let boundary = ours.epochs.iter().any(|(_, start)| *start == common_end);
            let supported = lowest.clone().any(|end| end == common_end)
                || unknown && (boundary || common_end == start || common_end == ours.end);
            prop_assert!(supported, "{common_end} of {ours:?} after {told:?}");
            prop_assert!((0..=ours.end.max(start)).contains(&common_end));
        }
    }

    /// Nothing is cut that the source was seen to have, and nothing is taken behind a last batch
    /// that is another one, is not committed yet, or whose epoch the source never had.
    #[test]
    fn nothing_follows_from_what_contradicts_itself(
        compared in compared(),
        parted in prop::option::of(offset()),
        records_end in offset(),
    ) {
        let has_it = matches!(compared, Compared::Same | Compared::Cleaned);
        match decide(compared, parted, records_end) {
            Decision::GoOn => {
                prop_assert!(parted.is_none());
                prop_assert!(has_it || compared == Compared::Gone);
            }
            Decision::LeaveGap { common_end } => {
                prop_assert!(has_it && parted == Some(common_end) && records_end <= common_end);
            }
            Decision::Diverged { common_end } => {
                prop_assert!(!has_it && parted == Some(common_end));
            }
            Decision::Contradiction { common_end } => {
                prop_assert!(has_it && parted == Some(common_end) && common_end < records_end);
            }
            Decision::Wait => prop_assert!(parted.is_none() && compared == Compared::NotYet),
            Decision::Another => prop_assert!(parted.is_none() && compared == Compared::Different),
        }
    }

    /// A range that cannot be moves nothing, and one that can says only what it holds.
    #[test]
    fn any_range_is_judged_by_itself(ours in 0i64.., start in offset(), end in offset()) {
        let theirs = SourceLog { start, end };
        let possible = 0 <= start && start <= end;
        prop_assert_eq!(theirs.is_possible(), possible);
        prop_assert_eq!(theirs.holds(ours), possible && start <= ours && ours <= end);
        match classify(ours, theirs) {
            OutOfRange::Senseless => prop_assert!(!possible),
            OutOfRange::Gap { source_start } => {
                prop_assert!(possible && source_start == start && ours < start);
            }
            OutOfRange::BeyondEnd => prop_assert!(possible && end < ours),
            OutOfRange::InRange => prop_assert!(theirs.holds(ours)),
        }
    }

    /// Any bytes: cut anywhere they come to the same, and only a batch that is whole, by its own
    /// checksum, is another one.
    #[test]
    fn any_bytes_are_another_batch_only_when_they_are_whole(
        noise in prop::collection::vec(any::<u8>(), 0..200),
        piece in 1usize..80,
        base in prop_oneof![2 => Just(100i64), 1 => offset()],
        leader_epoch in prop_oneof![2 => Just(3i32), 1 => epoch()],
        turned in prop::collection::vec((any::<Index>(), 0u8..8), 0..3),
        cut in any::<Index>(),
        kind in 0..4,
    ) {
        let value = Some(noise.clone());
        let mut bytes = match kind {
            0 => noise,
            1 => last_batch().1,
            _ => whole(Record { value, ..Record::default() }, base, leader_epoch),
        };
        for (at, bit) in turned.iter().filter(|_| !bytes.is_empty()).collect::<Vec<_>>() {
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
        }
        if kind == 3 {
            bytes.truncate(cut.index(bytes.len() + 1));
        }
        let result = feed(&bytes, piece);
        prop_assert_eq!(&result, &feed(&bytes, usize::MAX));
        let crc = |bytes: &[u8]| source::crc32c(&bytes[21..]).to_be_bytes() == bytes[17..21];
        match result {
            Ok(Some(Compared::Same)) => {
                let ours = last_batch().1;
                prop_assert_eq!(&bytes[..16], &ours[..16]);
                prop_assert_eq!(&bytes[17..21], &ours[17..21]);
            }
            Ok(Some(Compared::Different | Compared::Cleaned)) if bytes[16] == 2 => {
                let length = i32::from_be_bytes(bytes[8..12].try_into().expect("4")) as usize + 12;
                prop_assert!(length <= bytes.len() && crc(&bytes[..length]));
            }
            _ => {}
        }
    }
}
