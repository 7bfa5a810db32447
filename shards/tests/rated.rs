//! Links with a rate limit whose answers cost long pauses.

mod world;

use std::time::Duration;

use shards::control::*;
use source::TopicSpec;
use world::{LINK, World, settings};

const MINUTE: Duration = Duration::from_secs(60);

/// One batch is worth eight seconds of the rate. What such a pause makes uncertain is not found out
/// by spending the rate on batches that are here already.
#[test]
fn a_long_pause_for_the_rate_is_not_followed_by_a_longer_one() {
    let orders = TopicSpec::new("orders", 50, 1).with_batches(7, 20_000, 16);
    let bulk = TopicSpec::new("bulk", 1, 1).with_batches(3, 20_000, 16);
    let mut world = World::before_ids(&[orders, bulk], settings());
    world.until_caught_up(MINUTE);
    let limited = LinkSettings { rate_limit: Some(2_500), ..settings() };
    world.tell(Command::Link { link: LINK.into(), settings: limited });
    world.sim.run_for(Duration::from_secs(3));
    world.cluster.append("bulk", 0, 4).expect("appends");
    world.until_caught_up(MINUTE);
}
