//! What a person does about a partition that waits for one.

use std::sync::Arc;
use std::time::Duration;

use shards::control::*;

use crate::control::link;
use crate::run::until_obeyed;
use crate::verbs::Standing;
use crate::world::World;

/// Whether a partition waits for a person: it says so, or that its source holds less than the copy,
/// which is so as long as another log of that name does not grow.
pub fn waits(world: &World, status: &PartitionStatus) -> bool {
    let reason = status.reason.as_deref().unwrap_or_default();
    let shorter = ["is below the copy's", "committed ends before the copy's last batch"];
    match status.state {
        PartitionState::Faulted(_) => true,
        PartitionState::Retrying => {
            let unknown = world.plan.old_source && world.models[&status.key].recreated;
            unknown && shorter.iter().any(|words| reason.contains(words))
        }
        _ => false,
    }
}

/// Whether a reason tells that the source has another log now.
fn says_so(reason: &str) -> bool {
    reason.contains("recreated")
}

/// The copy is of a topic that is no more: it goes, and another begins.
fn begin_anew(world: &mut World, status: &PartitionStatus) -> Result<(), String> {
    let topic = Arc::clone(&status.key.topic);
    if world.standing[&topic] == Standing::Deleting {
        return until_obeyed(world);
    }
    let of_it = world.models.keys().filter(|key| key.topic == topic).cloned();
    for key in of_it.collect::<Vec<_>>() {
        if let Some(status) = world.status(&key) {
            world.check_old_copy(&status)?;
        }
    }
    world.tally.count("copy of a topic that is no more");
    loop {
        world.delete(Arc::clone(&topic));
        until_obeyed(world)?;
        if world.standing[&topic] != Standing::Deleting {
            return look_anew(world);
        }
    }
}

/// Control finds it at the source again.
fn still_there(world: &mut World) -> Result<(), String> {
    world.tell_leaders();
    world.pass(Duration::from_millis(200))?;
    look_anew(world)
}

/// What a person does about a partition that waits for one.
pub fn attend(world: &mut World, status: &PartitionStatus) -> Result<(), String> {
    let PartitionState::Faulted(code) = status.state else { return begin_anew(world, status) };
    let reason = status.reason.as_deref().unwrap_or_default();
    match code {
        FaultCode::TopicRecreated => return begin_anew(world, status),
        FaultCode::TopicDeleted => return still_there(world),
        FaultCode::PartitionsDecreased => {
            let topic = Arc::clone(&status.key.topic);
            world.resume(Some(topic));
            return look_anew(world);
        }
        FaultCode::Diverged if world.models[&status.key].recreated && says_so(reason) => {
            return begin_anew(world, status);
        }
        FaultCode::Diverged if world.models[&status.key].before.is_empty() => {
            if !world.plan.trouble.deceits {
                return Err(format!("{}: diverged from a source that never did", status.key));
            }
        }
        FaultCode::Diverged => {
            world.settings.allow_truncation = true;
            world.models.values_mut().for_each(|model| model.allow_cuts());
        }
        FaultCode::SourceGap => {
            world.settings.on_source_gap = OnSourceGap::Continue;
        }
        FaultCode::CorruptBatch | FaultCode::BadBatch | FaultCode::BatchTooLarge
            if world.plan.trouble.lies => {}
        code => return Err(format!("{}: {}: {reason}", status.key, code.name())),
    }
    let settings = world.settings.clone();
    for shard in &world.shards {
        shard.tell(Command::Link { link: link(), settings: settings.clone() });
        let topics = Some(vec![status.key.topic.clone()]);
        shard.tell(Command::Resume { link: link(), topics });
    }
    world.pass(Duration::from_millis(200))?;
    look_anew(world)
}

/// Waits until every shard has said how it stands now; one may be held up for a while.
pub fn look_anew(world: &mut World) -> Result<(), String> {
    // The first answer may be to what was asked before the last order was carried out.
    for _ in 0..2 {
        world.shards.iter_mut().for_each(|shard| shard.last = None);
        while world.shards.iter().any(|shard| shard.last.is_none()) {
            world.pass(Duration::from_millis(1))?;
        }
    }
    Ok(())
}
