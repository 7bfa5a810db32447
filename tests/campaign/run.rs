//! A world's life: some rounds that end in an accident each, and then, in peace, everything must
//! be there.

use std::sync::Arc;
use std::time::Duration;

use ring::sim::Machine;
use shards::control::*;
use tokio::sync::oneshot;

use crate::asked::Asked;
use crate::attend::{attend, look_anew, waits};
use crate::control::Shard;
use crate::plan::VERBS_FROM;
use crate::tally::Tally;
use crate::verbs::Standing;
use crate::world::{World, quiet};

/// How long, of a world's own time, opening logs may take.
const OPENING: Duration = Duration::from_secs(120);
/// How long catching up may take: longer than the longest pause between two tries.
const CATCHING_UP: Duration = Duration::from_secs(900);
/// How often a person has to say the same for one partition.
const ATTENDED_MAX: u32 = 4;

/// Runs the world of a seed.
///
/// # Errors
/// What is not as it must be.
pub fn run(seed: u64) -> Result<Tally, String> {
    let mut world = World::new(seed);
    if std::env::var("UNDERSTUDY_SEED").is_ok() {
        println!("{:#?}", world.plan);
    }
    if world.plan.trouble.frames {
        world.mischief.borrow_mut().frame_ppm = if seed < VERBS_FROM { 30_000 } else { 100_000 };
    }
    for round in 0..world.plan.rounds {
        live(&mut world).map_err(|error| format!("round {round}: {error}"))?;
    }
    finish(&mut world).map_err(|error| format!("at the end: {error}"))?;
    let mut tally = std::mem::take(&mut world.tally);
    tally.seeds = 1;
    tally.happened = world.sim.happened();
    tally.steps = world.sim.steps();
    for (kind, count) in crate::brokers::KIND_NAMES.iter().zip(world.mischief.borrow().done) {
        *tally.done.entry(kind).or_default() += count;
    }
    Ok(tally)
}

/// One life of the process, from its start to its end.
fn live(world: &mut World) -> Result<(), String> {
    let shards = 1 + world.below(2) as usize;
    let faults = match world.once_in(4) {
        true => quiet(),
        false => world.plan.faults.clone(),
    };
    begin(world, shards, faults)?;
    if world.plan.trouble.deceits && world.guile.coin() {
        let key = world.models.keys().nth(world.guile.index(world.models.len()));
        let key = key.expect("there are partitions").clone();
        if !world.is_gone(&key.topic) {
            world.deceive(&key);
        }
    }
    let until = world.sim.now() + Duration::from_millis(world.below(world.plan.round_ms_max));
    while world.sim.now() < until {
        world.pass(Duration::from_millis(1 + world.below(40)))?;
        world.happen();
    }
    match world.below(5) {
        0..3 => {
            world.end(true)?;
            world.tally.crashes += 1;
        }
        3 => {
            world.end(false)?;
            world.tally.kills += 1;
        }
        _ => {
            stop(world)?;
            world.tally.stops += 1;
        }
    }
    world.cluster.clear_faults();
    world.false_view = None;
    if world.plan.trouble.recreated && world.guile.below(3) == 0 {
        world.recreate();
    }
    if world.plan.trouble.flipped_bits && world.once_in(2) {
        world.flip_bit();
    }
    Ok(())
}

/// Starts the process and holds what it found against what must be there.
fn begin(world: &mut World, shards: usize, faults: ring::sim::Faults) -> Result<(), String> {
    // A node that cannot read its own folder does not start: the boot itself is spared.
    world.sim.set_faults(quiet());
    world.start(shards, faults)?;
    let until = world.sim.now() + OPENING;
    loop {
        world.pass(Duration::from_millis(1))?;
        if world.shards.iter_mut().all(|shard| shard.is_assigned()) {
            break;
        }
        if world.sim.now() > until {
            return Err("opening logs never ends".into());
        }
    }
    deleting(world).into_iter().for_each(|topic| world.delete(topic));
    until_obeyed(world)?;
    look_anew(world)?;
    let refused = world.shards.iter().flat_map(|shard| &shard.refused);
    let refused: Vec<(PartitionKey, String)> = refused.cloned().collect();
    for (key, reason) in &refused {
        if !world.bad_disk {
            return Err(format!("{key} was refused on a good disk: {reason}"));
        }
        world.tally.refused += 1;
    }
    check_copies(world, &refused, false)?;
    world.telling = true;
    world.tell_leaders();
    Ok(())
}

/// Holds every copy against its source. `stopped`: the process has gone, cleanly.
fn check_copies(
    world: &mut World,
    refused: &[(PartitionKey, String)],
    stopped: bool,
) -> Result<(), String> {
    for key in world.models.keys().cloned().collect::<Vec<_>>() {
        let going = world.standing[&key.topic] == Standing::Deleting;
        if going || refused.iter().any(|(other, _)| *other == key) {
            continue;
        }
        let status = world.status(&key);
        let Some(status) = status else {
            return Err(format!("{key}: assigned, not refused, and not in the status"));
        };
        let log = world.log(&key);
        let model = world.models.get_mut(&key).expect("it is known");
        let corrupt = status.state == PartitionState::Corrupt;
        if corrupt && model.flips.is_empty() && !world.plan.trouble.bad_disk {
            return Err(format!("{key}: corrupt, but no bit was turned: {:?}", status.reason));
        }
        world.tally.corrupt += u64::from(corrupt);
        model.start_lie = None;
        if status.received < model.floor && !corrupt {
            let floor = model.floor;
            return Err(format!("{key}: {floor} was flushed, and is not there: {status:?}"));
        }
        // Of a damaged one all that was flushed must still be there, and nothing is cut.
        let limit = if corrupt { model.floor } else { status.received };
        let exactly = !corrupt && (stopped || !failed(&status));
        let compared = world
            .sim
            .disk(Machine::FIRST, |disk| model.compare(disk, &log, limit, exactly))
            .map_err(|error| format!("{error} ({status:?})"))?;
        let behind_gap = limit == status.log_start && compared.end >= status.written;
        // The last segment may begin behind a gap, and have no record yet: none is missing.
        let missing = compared.next < limit;
        if missing && !(compared.bytes == 0 && limit == status.log_start || behind_gap) {
            let end = compared.end;
            return Err(format!("{key}: the copy ends at {end}, not {limit} ({status:?})"));
        }
        world.tally.bytes += compared.bytes;
        world.tally.comparisons += 1;
    }
    Ok(())
}

fn failed(status: &PartitionStatus) -> bool {
    status.state == PartitionState::Faulted(FaultCode::LocalLog)
}

/// Stops the process as a service manager does.
fn stop(world: &mut World) -> Result<(), String> {
    world.stopping = true;
    let mut answers = Vec::new();
    for shard in &world.shards {
        let (reply, answer) = oneshot::channel();
        shard.tell(Command::Stop { reply });
        answers.push(answer);
    }
    let until = world.sim.now() + Duration::from_secs(300);
    while !answers.iter_mut().all(|answer| !answer.is_empty()) {
        world.sim.run_for(Duration::from_millis(5));
        if world.sim.now() > until {
            return Err("a clean stop never ends".into());
        }
    }
    while !world.shards.iter().all(|shard| shard.root.is_finished()) {
        world.sim.run_for(Duration::from_millis(1));
    }
    world.end(false)?;
    world.stopping = false;
    Ok(())
}

/// Everything is mended: the copy must catch up, and be what the source is.
fn finish(world: &mut World) -> Result<(), String> {
    world.calm();
    world.resume_all();
    begin(world, 1 + world.below(2) as usize, quiet())?;
    if world.once_in(3) {
        // Two more lives under the last troubles, then peace without a restart.
        let until = world.sim.now() + Duration::from_millis(world.below(500));
        let spared = world.plan.trouble;
        world.plan.trouble.full_disk = false;
        world.plan.trouble.bad_disk = false;
        while world.sim.now() < until {
            world.pass(Duration::from_millis(1 + world.below(40)))?;
            world.happen();
        }
        world.plan.trouble = spared;
        world.calm();
        until_obeyed(world)?;
        world.resume_all();
    }
    // What could not be deleted on the bad disk is now.
    while !deleting(world).is_empty() {
        deleting(world).into_iter().for_each(|topic| world.delete(topic));
        until_obeyed(world)?;
    }
    let sick = world.plan.trouble.lies.then(|| world.any_key());
    let followed = |key: &PartitionKey| world.standing[&key.topic] == Standing::Followed;
    let sick = sick.filter(followed);
    if let Some(key) = &sick {
        let target = source::Target::partition(key.topic.to_string(), key.partition);
        world.cluster.inject(target, source::Fault::FlipBit { byte: 30, bit: 1 }, None);
        (0..3).for_each(|_| world.grow(key));
    }
    for key in world.models.keys().cloned().collect::<Vec<_>>() {
        if world.once_in(3) {
            world.grow(&key);
        }
    }
    until_caught_up(world, sick.as_ref())?;
    if sick.is_some() {
        world.cluster.clear_faults();
        until_caught_up(world, None)?;
    }
    verify(world)?;
    let peace = world.shards.iter().flat_map(|shard| shard.last.clone()).collect::<Vec<_>>();
    stop(world)?;
    check_final(world, &peace)
}

/// Whether a partition has come as far as it can.
fn is_done(world: &World, status: &PartitionStatus) -> bool {
    let model = &world.models[&status.key];
    let log = world.log(&status.key);
    match status.state {
        PartitionState::Active => {
            // A copy may begin later than its source, and a source that lost its log's end may
            // begin earlier than it did.
            let later = world.settings.start != Start::Earliest || !model.before.is_empty();
            let start = status.log_start == log.log_start()
                || (later && status.log_start > log.log_start());
            // Behind a gap there may be no record to flush.
            let none = status.received == status.log_start;
            // A source's log may end with a gap; then the copy must know that there is no more.
            let bare = log.batches_from(status.received).next().is_none()
                && status.source_records_end == Some(status.received);
            let all = status.received == log.high_watermark() || bare;
            // One without records waits for a source that fell behind where it begins.
            let ahead = none && later && status.received > log.high_watermark();
            ahead || all && (none || status.flushed == status.received) && start
        }
        PartitionState::Sealed => {
            let empty = status.received == status.log_start;
            let ended = |end: Option<i64>| status.flushed == end.unwrap_or(status.received);
            model.sealed.is_some_and(|end| empty || ended(end))
        }
        PartitionState::Corrupt => {
            // A power loss may have left a torn sector that cannot be read.
            let damaged = !model.flips.is_empty() || world.plan.trouble.bad_disk;
            damaged && !is_mendable(world, &status.key)
        }
        PartitionState::Retrying => {
            // Nothing of it can be compared with a source that ends before it begins.
            status.received == status.log_start
                && !model.before.is_empty()
                && status.received > log.high_watermark()
        }
        _ => false,
    }
}

/// Whether whatever may be damaged in a copy can be had from its source, and is looked for there.
fn is_mendable(world: &World, key: &PartitionKey) -> bool {
    let model = &world.models[key];
    let first = world.sim.disk(Machine::FIRST, |disk| model.first_base(disk));
    let there = first.is_some_and(|first| world.log(key).log_start() <= first);
    // Where a source has no topic ids, what no checksum vouches for is not taken from it.
    there
        && world.standing[&key.topic] == Standing::Followed
        && !world.plan.old_source
        && model.before.is_empty()
}

/// Has everything read again: what is damaged is found, and mended.
fn verify(world: &mut World) -> Result<(), String> {
    for shard in &world.shards {
        shard.tell(Command::Verify(VerifySettings {
            bytes_per_second: 0,
            first_after: Duration::ZERO,
            every: CATCHING_UP * 10,
        }));
    }
    let until = world.sim.now() + CATCHING_UP;
    let verified = |shard: &Shard| {
        shard.last.as_ref().is_some_and(|status| status.stats.verified_at_ms.is_some())
    };
    while !world.shards.iter().all(verified) {
        world.pass(Duration::from_millis(50))?;
        if world.sim.now() > until {
            return Err("reading everything again never ends".into());
        }
    }
    until_caught_up(world, None)
}

fn until_caught_up(world: &mut World, but: Option<&PartitionKey>) -> Result<(), String> {
    let until = world.sim.now() + CATCHING_UP;
    let mut attended = std::collections::BTreeMap::new();
    let mut asked = Asked::default();
    loop {
        world.pass(Duration::from_millis(50))?;
        let keys: Vec<PartitionKey> = world.models.keys().cloned().collect();
        let (mut open, mut gone) = (Vec::new(), None);
        for key in keys {
            if Some(&key) == but {
                continue;
            }
            match world.status(&key) {
                Some(status) if is_done(world, &status) => {}
                Some(status) => open.push(status),
                None => gone = Some(key),
            }
        }
        if open.is_empty() && gone.is_none() {
            if asked.again(world) {
                return Ok(());
            }
            continue;
        }
        asked = Asked::default();
        if world.sim.now() > until {
            if let Some(key) = gone {
                return Err(format!("{key} is gone"));
            }
            let log = world.log(&open[0].key);
            let (start, end) = (log.log_start(), log.high_watermark());
            let status = &open[0];
            return Err(format!("it never caught up: {status:?}, source {start}..{end}"));
        }
        // One at a time: settings hold for all, and each is asked to go on by itself.
        if let Some(status) = open.iter().find(|status| waits(world, status)) {
            let tries = attended.entry(status.key.clone()).or_insert(0);
            *tries += 1;
            if *tries > ATTENDED_MAX {
                return Err(format!("no help helps: {status:?}"));
            }
            attend(world, status)?;
        }
    }
}

fn deleting(world: &World) -> Vec<Arc<str>> {
    let standing = world.standing.iter();
    let deleting = standing.filter(|(_, standing)| **standing == Standing::Deleting);
    deleting.map(|(topic, _)| Arc::clone(topic)).collect()
}

/// Waits until every shard has carried out what was ordered.
pub fn until_obeyed(world: &mut World) -> Result<(), String> {
    let until = world.sim.now() + CATCHING_UP;
    while !world.orders.is_empty() || !world.shards.iter_mut().all(|shard| shard.is_assigned()) {
        world.pass(Duration::from_millis(5))?;
        if world.sim.now() > until {
            return Err("an order is never carried out".into());
        }
    }
    Ok(())
}

/// After a clean stop every copy is what the source is now, and every seal true.
fn check_final(world: &mut World, peace: &[ShardStatus]) -> Result<(), String> {
    for status in peace.iter().flat_map(|status| &status.partitions) {
        let key = &status.key;
        let log = world.log(key);
        let mendable = is_mendable(world, key);
        let model = world.models.get_mut(key).expect("it is known");
        let corrupt = status.state == PartitionState::Corrupt;
        let limit = match (corrupt, model.sealed.is_some()) {
            (true, _) => model.floor,
            (false, true) => status.received,
            (false, false) => log.end_offset(),
        };
        let sealed = model.sealed.is_some();
        let compared = world.sim.disk(Machine::FIRST, |disk| match sealed || corrupt {
            // The source may have gone its own way since: neither of them is cut.
            true => model.compare(disk, &log, limit, false),
            false => model.compare_with(&model.segments(disk), &log, limit, false),
        });
        let compared = compared.map_err(|error| format!("{key}: {error}"))?;
        // Nothing, or nothing behind a gap.
        let empty = limit <= status.log_start;
        if compared.next < limit && !empty {
            return Err(format!("{key}: ends at {}, not {limit}", compared.end));
        }
        world.tally.bytes += compared.bytes;
        world.tally.comparisons += 1;
        let turned = world.sim.disk(Machine::FIRST, |disk| model.turned(disk));
        if let Some(flip) = turned.first().filter(|_| mendable) {
            return Err(format!("{key}: still turned: {flip:?}"));
        }
        // Of a damaged one nothing was changed, and on a bad disk nothing can be said.
        if !corrupt || !model.flips.is_empty() && !world.plan.trouble.bad_disk {
            world.sim.disk(Machine::FIRST, |disk| model.check_seals(disk))?;
        }
    }
    Ok(())
}
