//! Every harm at rest, and every two of them together: what was flushed and is visible is there
//! byte for byte or is named, all is whole again once an honest source has sent it, and nothing
//! panics or waits for ever.
//!
//! `UNDERSTUDY_DAMAGE=all` runs all pairs, `UNDERSTUDY_DAMAGE=2/8` the second eighth of them;
//! otherwise some of them are run.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;

use ring::sim::Simulation;

use super::repair::Origin;
use super::*;
use crate::epochs::Epochs;
use crate::recovery::Corrupt;
use crate::verify::Verifier;
use made::{END, Ended, Made, START, base_of, batch, batches, live, quiet_store, settings};

mod harms;
mod made;
mod pairs;

use harms::{Harm, How};

/// What there is to compare of an opened log.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    state: LogState,
    start: i64,
    end: i64,
    stable: i64,
    epoch: Option<i32>,
    epochs: Vec<(i32, i64)>,
    open: Vec<(i64, i64, i16)>,
}

impl Seen {
    fn of(log: &Log) -> Seen {
        let positions = log.positions();
        Seen {
            state: log.state(),
            start: positions.log_start_offset,
            end: positions.received.0.offset,
            stable: positions.last_stable_offset,
            epoch: positions.last_epoch,
            epochs: visible(log.inner.borrow().epochs.clone()).entries().to_vec(),
            open: log.open_transactions(),
        }
    }
}

/// Epochs as one sees them who reads from the visible start on: of what lies below, and was lost,
/// nobody knows which it had.
fn visible(mut epochs: Epochs) -> Epochs {
    epochs.truncate_start(START);
    epochs
}

/// How an undamaged log looks in the end, and its files.
#[derive(Clone)]
struct Whole {
    seen: Seen,
    files: BTreeMap<PathBuf, Vec<u8>>,
}

fn origin() -> Origin {
    let mut origin = Origin::default();
    for base in 0..END {
        origin.push_bytes(base, batch(base));
    }
    origin
}

async fn opened() -> Result<(Rc<Store>, Rc<Log>), String> {
    let store = quiet_store().await?;
    let opened = store.open_log(id(0), settings()).await;
    let (log, _) = opened.map_err(|error| format!("not opened: {error}"))?;
    Ok((store, log))
}

/// The files that a closed, whole log has to have, as they were.
fn kept_files(sim: &Simulation, made: &Made) -> BTreeMap<PathBuf, Vec<u8>> {
    let hidden: Vec<i64> = made.segments.iter().filter(|s| s.1 <= START).map(|s| s.0).collect();
    let is_kept = |path: &Path| {
        let base = path.file_stem().and_then(|stem| stem.to_str()?.parse::<i64>().ok());
        let own = path.to_string_lossy().contains("checkpoint-") && !path.ends_with(EPOCHS);
        // A snapshot is made anew where one is needed, the nearest below it will do.
        let spare =
            own || path.ends_with(REPAIR) || path.extension().is_some_and(|e| e == "snapshot");
        !spare && base.is_none_or(|base| !hidden.contains(&base))
    };
    let mut files: BTreeMap<PathBuf, Vec<u8>> = made::files(sim).into_iter().collect();
    files.retain(|path, _| is_kept(path));
    for (path, bytes) in &mut files {
        // How a text ends says nothing.
        if path.ends_with(EPOCHS) || path.ends_with(crate::names::METADATA_FILE) {
            *bytes = bytes.trim_ascii_end().to_vec();
            if bytes.last() == Some(&0x0b) {
                bytes.pop();
            }
            let text = std::str::from_utf8(bytes).ok().filter(|_| path.ends_with(EPOCHS));
            if let Some(epochs) = text.and_then(Epochs::parse) {
                *bytes = visible(epochs).format().into_bytes();
            }
        }
    }
    files
}

const EPOCHS: &str = crate::names::EPOCHS_FILE;
const REPAIR: &str = crate::names::REPAIR_FILE;

/// Looks at a log as a start leaves it, without changing more than a start does.
fn look(sim: &mut Simulation) -> Result<Seen, String> {
    live(sim, async {
        match opened().await {
            Ok((store, log)) => (Ok(Seen::of(&log)), Some((store, log))),
            Err(error) => (Err(error), None),
        }
    })
}

/// Verifies: what is damaged by name.
fn name_damage(sim: &mut Simulation) -> Result<(Seen, Vec<Corrupt>), String> {
    live(sim, async {
        match opened().await {
            Ok((store, log)) => {
                log.verify(&Verifier::new(0)).await;
                (Ok((Seen::of(&log), log.damages())), Some((store, log)))
            }
            Err(error) => (Err(error), None),
        }
    })
}

/// Mends it, brings what the log lacks at its end, and closes it.
fn mend(sim: &mut Simulation) -> Result<(), String> {
    live(sim, async {
        let (store, log) = match opened().await {
            Ok(opened) => opened,
            Err(error) => return (Err(error), None),
        };
        let verifier = Verifier::new(0);
        let mut result = Ok(());
        for round in 0..4 {
            log.verify(&verifier).await;
            if round > 0 && !log.is_damaged() {
                break;
            }
            let mended = origin().mend_all(&log, &verifier).await;
            result = mended.map_err(|error| format!("not mended: {error}; {:?}", log.state()));
        }
        let end = log.positions().received.0.offset;
        // What lies below the visible start may stay as it is.
        if log.damages().iter().all(|damage| damage.offsets.end <= START) {
            result = Ok(());
        }
        if result.is_ok() && log.state() != LogState::Healthy {
            result = Err(format!("after the repair: {:?}", log.state()));
        }
        if result.is_ok()
            && end < END
            && let Err(error) = respond(&log, &batches(end..END), 3000)
        {
            result = Err(format!("not appended: {error}"));
        }
        if result.is_ok() && log.flush().await.is_err() {
            result = Err("not flushed".to_owned());
        }
        log.verify(&verifier).await;
        store.close().await;
        (result, Some((store, log)))
    })
}

/// The second start: all is whole.
fn look_again(sim: &mut Simulation) -> Result<Seen, String> {
    live(sim, async {
        let (store, log) = match opened().await {
            Ok(opened) => opened,
            Err(error) => return (Err(error), None),
        };
        let verifier = Verifier::new(0);
        log.verify(&verifier).await;
        let visible = log.damages().into_iter().find(|damage| damage.offsets.end > START);
        let result = match visible {
            None => Ok(Seen::of(&log)),
            Some(damage) => Err(format!("damaged at the next start: {damage}")),
        };
        store.close().await;
        (result, Some((store, log)))
    })
}

fn whole(made: &Made) -> Whole {
    let mut sim = made.simulation();
    look(&mut sim).unwrap();
    name_damage(&mut sim).unwrap();
    mend(&mut sim).unwrap();
    let seen = look_again(&mut sim).unwrap();
    let files = kept_files(&sim, made);
    Whole { seen, files }
}

/// The visible, flushed offsets whose blocks cannot be read.
fn unreadable(made: &Made, harms: &[Harm]) -> Vec<i64> {
    let mut offsets = Vec::new();
    for harm in harms {
        let (How::Unreadable(range), Some(base)) = (&harm.how, base_of(&harm.path)) else {
            continue;
        };
        let range = range.start / 512 * 512..range.end.div_ceil(512) * 512;
        let segment = made.segments.iter().position(|other| other.0 == base).unwrap();
        let within = made.places(segment).into_iter().filter(|(offset, place)| {
            (START..made.flushed).contains(offset)
                && place.start < range.end
                && range.start < place.end
        });
        offsets.extend(within.map(|place| place.0));
    }
    offsets
}

/// What went wrong with some harms, if anything.
fn try_harms(made: &Made, whole: &Whole, harms: &[Harm]) -> Result<(), String> {
    let mut sim = made.simulation();
    // What is written makes a sector readable again.
    let mut in_order = harms.to_vec();
    in_order.sort_by_key(|harm| matches!(harm.how, How::Unreadable(_)));
    if !in_order.iter().all(|harm| harm.apply(&mut sim)) {
        return Ok(());
    }
    let first = look(&mut sim).map_err(|error| format!("REFUSED {error}"))?;
    let second = look(&mut sim).map_err(|error| format!("REFUSED LATER {error}"))?;
    if first != second {
        return Err(format!("TWO STARTS {first:?} {second:?}"));
    }
    let (seen, damages) = name_damage(&mut sim).map_err(|error| format!("REFUSED {error}"))?;
    let files: BTreeMap<_, _> = made::files(&sim).into_iter().collect();
    let mut hurt = made.hurt(&files);
    hurt.extend(unreadable(made, harms));
    let named = |offset: &i64| damages.iter().any(|damage| damage.offsets.contains(offset));
    let corrupt = matches!(seen.state, LogState::Corrupt(_));
    if !corrupt {
        if seen.state != LogState::Healthy {
            return Err(format!("STATE {:?}", seen.state));
        }
        if let Some(offset) = hurt.iter().find(|offset| !named(offset)) {
            return Err(format!("SILENT {offset} is not as it was; {damages:?}"));
        }
        if seen.end < made.flushed {
            return Err(format!("SHORTER it ends at {}", seen.end));
        }
    } else if hurt.is_empty() && harms.iter().all(|harm| base_of(&harm.path).is_none()) {
        return Err(format!("NEEDLESSLY CORRUPT {:?}", seen.state));
    }
    mend(&mut sim).map_err(|error| format!("MENDING {error}"))?;
    let again = look_again(&mut sim).map_err(|error| format!("AGAIN {error}"))?;
    let lost = harms.iter().filter(|harm| harm.is_checkpoint()).count() > 1;
    if again != whole.seen && !(lost && Seen { start: START, ..again.clone() } == whole.seen) {
        return Err(format!("OTHERWISE {again:?}, not {:?}", whole.seen));
    }
    let files = kept_files(&sim, made);
    for (path, bytes) in &whole.files {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        match files.get(path) {
            None => return Err(format!("FILE {name} is missing")),
            Some(have) if have != bytes => return Err(format!("FILE {name} differs")),
            Some(_) => {}
        }
    }
    match files.keys().find(|path| !whole.files.contains_key(*path)) {
        Some(path) => Err(format!("FILE {} is too many", path.display())),
        None => Ok(()),
    }
}

/// What is not told apart from what is whole, or not undone, and is said so: of a segment without a
/// seal no checksum covers the epochs, and where it ended is not known; nor is what the visible
/// start was without a checkpoint.
fn is_known(made: &Made, harms: &[Harm], failure: &str) -> bool {
    let ending = |harm: &Harm, wanted: &str| harm.path.extension().is_some_and(|e| e == wanted);
    let base = |path: &Path| path.file_stem().and_then(|stem| stem.to_str()?.parse::<i64>().ok());
    let unsealed = made.segments[2].0;
    let without_seal = |path: &Path| {
        let same = |harm: &&Harm| ending(harm, "seal") && base(&harm.path) == base(path);
        let made_so = made.ended == Ended::Unsealed && base(path) == Some(unsealed);
        made_so || harms.iter().any(|harm| same(&harm))
    };
    let batches = || harms.iter().filter(|harm| ending(harm, "log"));
    let index_hurt = |of: &Harm| {
        let index = |harm: &&Harm| ending(harm, "index") || ending(harm, "timeindex");
        harms.iter().filter(index).any(|harm| base(&harm.path) == base(&of.path))
    };
    let seals = harms.iter().any(|harm| ending(harm, "seal"));
    let segment_hurt = batches().any(|harm| without_seal(&harm.path));
    match failure.split(' ').next() {
        Some("SILENT") => {
            let unseen = |harm: &Harm| match harm.how {
                How::Flip(..) => harm.is_epoch(),
                How::Cut(at) => at > 0 && index_hurt(harm),
                How::Lost => made.ended == Ended::Unsealed && seals,
                _ => false,
            };
            batches().any(|harm| without_seal(&harm.path) && unseen(harm))
        }
        Some("FILE") => failure.contains(".seal") && segment_hurt,
        Some("MENDING") => failure.contains("does not end where ours did") && segment_hurt,
        _ => false,
    }
}

/// The same on a thread of its own, so that a panic is one failure of many.
fn run_case(made: &Arc<Made>, whole: &Arc<Whole>, harms: Vec<Harm>) -> Result<(), String> {
    let (made, whole) = (Arc::clone(made), Arc::clone(whole));
    let case = std::thread::spawn(move || try_harms(&made, &whole, &harms));
    case.join().unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("no text");
        Err(format!("PANIC {text}"))
    })
}

fn matrix(ended: Ended) {
    let made = Arc::new(Made::new(ended));
    let whole = Arc::new(whole(&made));
    let harms = harms::all(&made);
    let wanted = std::env::var("UNDERSTUDY_DAMAGE").ok();
    let (part, parts) = match wanted.as_deref() {
        None => (0, 97),
        Some("all") => (0, 1),
        Some(text) => {
            let (part, parts) = text.split_once('/').expect("all, or part/parts");
            (part.parse::<usize>().unwrap(), parts.parse::<usize>().unwrap())
        }
    };
    let (ran, known, mut failures) = (Cell::new(0), Cell::new(0), Vec::new());
    let mut run = |some: Vec<Harm>| {
        ran.set(ran.get() + 1);
        let names: Vec<String> = some.iter().map(Harm::to_string).collect();
        if let Err(failure) = run_case(&made, &whole, some.clone()) {
            if is_known(&made, &some, &failure) {
                known.set(known.get() + 1);
                return;
            }
            let failure = format!("{} => {failure}", names.join(" + "));
            if wanted.is_some() {
                println!("{ended:?}: {failure}");
            }
            failures.push(failure);
        }
    };
    for harm in &harms {
        run(vec![harm.clone()]);
    }
    let mut number = 0;
    for (at, one) in harms.iter().enumerate() {
        for other in &harms[at + 1..] {
            number += 1;
            if number % parts == part % parts {
                run(vec![one.clone(), other.clone()]);
            }
        }
    }
    let (ran, known, failed) = (ran.get(), known.get(), failures.len());
    println!("{ended:?}: {} harms, {ran} cases, {known} known, {failed} failed", harms.len());
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn any_two_harms_to_a_closed_log_are_named_and_mended() {
    matrix(Ended::Clean);
}

#[test]
fn any_two_harms_to_a_log_with_a_finished_segment_without_a_seal_are_named_and_mended() {
    matrix(Ended::Unsealed);
}

#[test]
fn any_two_harms_to_a_killed_log_are_named_and_mended() {
    matrix(Ended::Killed);
}
