//! A changed configuration file and SIGHUP: what can apply does, what cannot is refused in words,
//! and everything else goes on.

use std::fs;
use std::time::Duration;

use source::TopicSpec;
use tests::image::Image;
use tests::understudy::{LINK, Understudy};
use tests::{Outcome, wait_for};

use crate::stage::Source;

/// A file that cannot be read, a wider filter, another link, a link that is gone, and what only a
/// restart can change; the copy runs all the while.
pub fn reloaded_while_it_runs() -> Outcome {
    let topics = ["kept", "late"].map(|name| TopicSpec::new(name, 2, 20));
    let source = Source::start(&topics)?;
    let mut node = Understudy::at("reload", source.bootstrap(), None, &["kept"])?;
    node.launch()?;
    node.wait_caught_up("kept", &source.ends("kept")?)?;

    let good = node.configuration()?;
    node.configure(&good.replace("[node]", "[nod]"))?;
    reload(&mut node, &["reload refused", "nod"])?;
    grows(&source, &mut node)?;

    node.set("topics", r#"{ include = ["kept", "late"] }"#)?;
    node.reload();
    node.wait_caught_up("late", &source.ends("late")?)?;

    let good = node.configuration()?;
    let bootstrap = source.bootstrap();
    let other = format!(
        "{good}\n[[link]]\nname = \"other\"\nbootstrap_servers = {bootstrap:?}\n\
         topics = {{ include = [\"late\"] }}\nstart = \"earliest\"\n"
    );
    node.configure(&other)?;
    node.reload();
    let folder = node.data().join("other/late-0");
    let end = source.ends("late")?[0];
    wait_for("the second link's copy", Duration::from_secs(60), || {
        Ok(Image::read(&folder).ok().filter(|image| image.end_offset() == end))
    })?;

    let (head, links) = other.split_once("[[link]]").ok_or("no link")?;
    let (_, second) = links.split_once("[[link]]").ok_or("no second link")?;
    node.configure(&format!("{head}[[link]]{second}"))?;
    reload(&mut node, &["link_live", LINK])?;
    grows(&source, &mut node)?;

    node.configure(&other.replace("id = 1", "id = 2"))?;
    reload(&mut node, &["restart_needed", "node.id"])?;
    grows(&source, &mut node)?;
    node.configure(&other)?;
    source.prove(&mut node)?;
    source.compare("late", 0, &folder).map(drop)
}

/// Sends SIGHUP and waits until its log has these words in new lines.
fn reload(node: &mut Understudy, words: &[&str]) -> Outcome {
    let log = node.log();
    let read = || fs::read_to_string(&log).map_err(|e| format!("{}: {e}", log.display()));
    let before = read()?.len();
    node.reload();
    wait_for(&format!("{words:?} in its log"), Duration::from_secs(60), || {
        let said = read()?;
        let new = said.get(before..).unwrap_or_default();
        Ok(words.iter().all(|word| new.contains(word)).then_some(()))
    })
}

/// The copy follows what comes.
fn grows(source: &Source, node: &mut Understudy) -> Outcome {
    for partition in 0..2 {
        source.cluster().append("kept", partition, 5).map_err(|e| e.to_string())?;
    }
    node.wait_caught_up("kept", &source.ends("kept")?)
}
