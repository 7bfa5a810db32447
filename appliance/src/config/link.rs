//! `[[link]]`: one source cluster, what of it is copied, and by which rules.

use super::reader::Section;
use super::units;
use crate::filters::TopicFilter;
use shards::control::{OnSourceGap, Start};
use std::time::Duration;
use storage::limits::BATCH_BYTES_MAX;
use toml::de::DeValue;

/// Link names are folder names and parts of URLs; topics' names follow the same rule.
const NAME_LENGTH_MAX: usize = 100;

/// One source cluster.
#[derive(Clone, Debug, PartialEq)]
pub struct LinkConfig {
    /// Unique name: letters, digits, `-` and `_`.
    pub name: String,
    /// `host:port`, any of which leads to the cluster.
    pub bootstrap_servers: Vec<String>,
    /// Which topics are copied.
    pub topics: TopicFilter,
    /// Where a partition that has no copy yet starts.
    pub start: Start,
    /// How often topics and leaders are asked for.
    pub metadata_interval: Duration,
    /// Bytes per second the link may take from the source.
    pub rate_limit: Option<u64>,
    /// Connections to one broker that carry records, all shards together.
    pub connections_max: u32,
    /// The cluster that must be found there; another one is refused.
    pub cluster_id: Option<String>,
    /// Whether a copy that has diverged may be cut back to the common point.
    pub allow_truncation: bool,
    /// What to do when the source has deleted records before we had them.
    pub on_source_gap: OnSourceGap,
    /// How long records deleted at the source stay on our disk, while that is not full.
    pub undo_window: Duration,
    /// Largest record batch accepted, in bytes.
    pub batch_bytes_max: u32,
}

/// Reads one link; `None` only where a problem has been noted.
pub fn read(mut link: Section<'_>) -> Option<LinkConfig> {
    let name = read_name(&mut link);
    let bootstrap_servers = read_bootstrap(&mut link);
    let topics = read_topics(&mut link);
    let start = read_start(&mut link);
    let second = Duration::from_secs(1);
    let day = 86_400 * second;
    let metadata_interval =
        link.duration("metadata_interval", 5 * second, second / 10..=3_600 * second);
    let rate_limit = match link.has("rate_limit") {
        true => link.size("rate_limit", 0, 1024..=1 << 50).map(Some),
        false => {
            let _ = link.any("rate_limit");
            Some(None)
        }
    };
    let connections_max = link.integer("connections_max", 8, 1..=1024);
    let cluster_id = link.string("cluster_id");
    let allow_truncation = link.boolean("allow_truncation", false);
    let on_source_gap = match link.string_or("on_source_gap", "continue").as_str() {
        "continue" => Some(OnSourceGap::Continue),
        "fault" => Some(OnSourceGap::Fault),
        other => {
            let what = format!("`{other}` is no policy");
            link.note("on_source_gap", what, "\"continue\" or \"fault\"");
            None
        }
    };
    let undo_window = link.duration("undo_window", day, Duration::ZERO..=3_650 * day);
    let batch_bytes_max =
        link.size("batch_bytes_max", 16 << 20, 64 << 10..=u64::from(BATCH_BYTES_MAX));
    link.refuse(
        "listen",
        "this version keeps the copy but does not serve it to clients yet",
        "remove the line",
    );
    link.finish();
    Some(LinkConfig {
        name: name?,
        bootstrap_servers: bootstrap_servers?,
        topics: topics?,
        start: start?,
        metadata_interval: metadata_interval?,
        rate_limit: rate_limit?,
        connections_max: connections_max? as u32,
        cluster_id,
        allow_truncation,
        on_source_gap: on_source_gap?,
        undo_window: undo_window?,
        batch_bytes_max: batch_bytes_max? as u32,
    })
}

fn read_name(link: &mut Section<'_>) -> Option<String> {
    let instead = "letters, digits, `-` and `_`: name = \"prod\"";
    if !link.has("name") {
        link.note("name", "the link has no name", instead);
    }
    let name = link.string("name")?;
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if name.is_empty() || name.len() > NAME_LENGTH_MAX || !name.chars().all(plain) {
        link.note("name", format!("`{name}` is no name for a link"), instead);
        return None;
    }
    Some(name)
}

fn read_bootstrap(link: &mut Section<'_>) -> Option<Vec<String>> {
    let instead = "bootstrap_servers = [\"kafka-1:9092\", \"kafka-2:9092\"]";
    let servers = link.strings("bootstrap_servers").unwrap_or_default();
    if servers.is_empty() {
        link.note("bootstrap_servers", "no server is named", instead);
        return None;
    }
    let mut sound = true;
    for server in &servers {
        let port = server.rsplit_once(':').and_then(|(host, port)| {
            // [::1]:9092 has its colons in brackets.
            let host_is_plain =
                !host.contains(':') || (host.starts_with('[') && host.ends_with(']'));
            let host_is_there = !host.is_empty() && !host.contains(['/', ' ']);
            (host_is_plain && host_is_there).then(|| port.parse::<u16>().ok())?
        });
        if port.is_none_or(|port| port == 0) {
            let what = format!("`{server}` is not host:port");
            link.note("bootstrap_servers", what, instead);
            sound = false;
        }
    }
    sound.then_some(servers)
}

fn read_topics(link: &mut Section<'_>) -> Option<TopicFilter> {
    if !link.has("topics") {
        let _ = link.any("topics");
        return TopicFilter::new(&["*".to_owned()], &[]).ok();
    }
    let mut topics = link.section("topics")?;
    let include = topics.strings("include").unwrap_or_else(|| vec!["*".to_owned()]);
    let exclude = topics.strings("exclude").unwrap_or_default();
    if include.is_empty() {
        topics.note("include", "nothing is included", "include = [\"*\"] for every topic");
    }
    let filter = TopicFilter::new(&include, &exclude);
    if let Err(error) = &filter {
        let key = if exclude.contains(&error.pattern) { "exclude" } else { "include" };
        topics.note(key, error.to_string(), error.instead);
    }
    topics.finish();
    filter.ok()
}

fn read_start(link: &mut Section<'_>) -> Option<Start> {
    let instead = "\"earliest\", \"latest\" or a time: \"2026-11-20T00:00:00Z\"";
    let parsed = match link.any("start") {
        None => return Some(Start::Earliest),
        Some(DeValue::String(text)) => match text.as_ref() {
            "earliest" => Some(Start::Earliest),
            "latest" => Some(Start::Latest),
            text => {
                text.parse().ok().as_ref().and_then(units::timestamp_ms).map(Start::TimestampMs)
            }
        },
        Some(DeValue::Datetime(at)) => units::timestamp_ms(at).map(Start::TimestampMs),
        Some(_) => None,
    };
    if parsed.is_none() {
        link.note("start", "is neither a place nor a time with its zone", instead);
    }
    parsed
}
