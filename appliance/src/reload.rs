//! A changed configuration file against the one in force: what applies, what is refused and why.
//!
//! Pure comparison. Each link stands for itself: a refused change leaves that link as it was and
//! does not keep the others from applying.

use crate::config::{Config, LinkConfig};
use crate::states::Answer;

/// What is known of a link at run time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkFacts {
    /// Topics that still follow the source, or could.
    pub live_topics: Vec<String>,
    /// The source's cluster id as first seen.
    pub cluster_id: Option<String>,
    /// Whether a person has deleted the link.
    pub deleted: bool,
}

/// One change that applies.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// A new link.
    Add(LinkConfig),
    /// A link's settings.
    Update(LinkConfig),
    /// A link that is no longer declared, and no longer needed.
    Remove(String),
}

/// The comparison's result.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reload {
    /// To carry out, in order.
    pub changes: Vec<Change>,
    /// Left as it was.
    pub refused: Vec<Answer>,
}

/// Compares; `facts` answers for every link in force.
pub fn compare(old: &Config, new: &Config, facts: impl Fn(&str) -> LinkFacts) -> Reload {
    let mut reload = Reload::default();
    settled_at_start(old, new, &mut reload.refused);
    for link in &old.links {
        if new.link(&link.name).is_none() {
            vanished(&link.name, &facts(&link.name), &mut reload);
        }
    }
    for link in &new.links {
        match old.link(&link.name) {
            None => reload.changes.push(Change::Add(link.clone())),
            Some(before) if before == link => {}
            Some(_) => changed(link, &facts(&link.name), &mut reload),
        }
    }
    reload
}

fn settled_at_start(old: &Config, new: &Config, refused: &mut Vec<Answer>) {
    let mut refuse = |same: bool, key: &str| {
        if !same {
            let reason = format!("{key} is read at start only: restart to change it");
            refused.push(Answer::new("restart_needed", reason));
        }
    };
    refuse(old.node.id == new.node.id, "node.id");
    refuse(old.node.data_dirs == new.node.data_dirs, "node.data_dirs");
    let socket = |config: &Config| {
        let node = &config.node;
        (node.admin_socket.clone(), node.admin_socket_mode, node.admin_group.clone())
    };
    refuse(socket(old) == socket(new), "node.admin_socket");
    refuse(old.node.metrics == new.node.metrics, "node.metrics");
    refuse(old.node.stop_timeout == new.node.stop_timeout, "node.stop_timeout");
    refuse(old.shards == new.shards, "[shards]");
}

fn vanished(link: &str, facts: &LinkFacts, reload: &mut Reload) {
    match facts.live_topics.first() {
        Some(first) if !facts.deleted => reload.refused.push(Answer::new(
            "link_live",
            format!(
                "link {link} is no longer declared, but {} of its topics have not failed over \
                 (first: {first}); it goes on. Fail it over or delete it first",
                facts.live_topics.len()
            ),
        )),
        _ => reload.changes.push(Change::Remove(link.to_owned())),
    }
}

fn changed(link: &LinkConfig, facts: &LinkFacts, reload: &mut Reload) {
    match (&link.cluster_id, &facts.cluster_id) {
        (Some(wanted), Some(known)) if wanted != known && !facts.deleted => {
            reload.refused.push(Answer::new(
                "cluster_id_changed",
                format!(
                    "link {} was made with cluster {known}, the file now says {wanted}: another \
                     cluster needs a link of its own. The link stays as it was",
                    link.name
                ),
            ));
        }
        _ => reload.changes.push(Change::Update(link.clone())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn config(links: &[(&str, &str)]) -> Config {
        let mut text = "[node]\ndata_dirs = [\"/d\"]\n".to_owned();
        for (name, more) in links {
            text.push_str(&format!(
                "[[link]]\nname = \"{name}\"\nbootstrap_servers = [\"k:1\"]\n{more}\n"
            ));
        }
        Config::parse(&text, Path::new("t")).unwrap_or_else(|error| panic!("{error}"))
    }

    fn facts(live: &[&str], cluster: Option<&str>, deleted: bool) -> LinkFacts {
        LinkFacts {
            live_topics: live.iter().map(|topic| (*topic).to_owned()).collect(),
            cluster_id: cluster.map(str::to_owned),
            deleted,
        }
    }

    #[test]
    fn the_same_file_changes_nothing() {
        let same = config(&[("a", "")]);
        assert_eq!(compare(&same, &same, |_| facts(&["t"], None, false)), Reload::default());
    }

    #[test]
    fn links_come_change_and_go() {
        let old = config(&[("a", ""), ("b", "")]);
        let new = config(&[("b", "rate_limit = \"1MiB\""), ("c", "")]);
        let reload = compare(&old, &new, |_| LinkFacts::default());
        assert_eq!(
            reload.changes,
            [
                Change::Remove("a".to_owned()),
                Change::Update(new.links[0].clone()),
                Change::Add(new.links[1].clone())
            ]
        );
        assert!(reload.refused.is_empty());
    }

    #[test]
    fn a_live_link_may_not_vanish_unless_deleted() {
        let (old, new) = (config(&[("a", ""), ("b", "")]), config(&[("b", "")]));
        let refused = compare(&old, &new, |_| facts(&["orders"], None, false));
        assert_eq!(refused.refused[0].code, "link_live");
        assert!(refused.refused[0].reason.contains("orders") && refused.changes.is_empty());
        let allowed = compare(&old, &new, |_| facts(&["orders"], None, true));
        assert_eq!(allowed.changes, [Change::Remove("a".to_owned())]);
    }

    #[test]
    fn another_cluster_id_is_refused_and_a_known_one_is_not() {
        let old = config(&[("a", "")]);
        let known = |_: &str| facts(&["t"], Some("one"), false);
        let other = compare(&old, &config(&[("a", "cluster_id = \"two\"")]), known);
        assert_eq!(other.refused[0].code, "cluster_id_changed");
        assert!(other.changes.is_empty());
        let same = compare(&old, &config(&[("a", "cluster_id = \"one\"")]), known);
        assert_eq!((same.changes.len(), same.refused.len()), (1, 0));
    }

    #[test]
    fn what_is_read_at_start_says_so() {
        let old = config(&[("a", "")]);
        let mut new = old.clone();
        new.node.data_dirs.push("/e".into());
        new.shards.memory_bytes += 1;
        let codes: Vec<String> = compare(&old, &new, |_| LinkFacts::default())
            .refused
            .into_iter()
            .map(|answer| answer.code)
            .collect();
        assert_eq!(codes, ["restart_needed", "restart_needed"]);
    }
}
