use super::*;
use proptest::prelude::*;
use shards::control::{OnSourceGap, Start};

const GOOD: &str = r#"
[node]
id = 1
data_dirs = ["/var/lib/understudy"]
admin_socket = "/run/understudy/admin.sock"
metrics = "127.0.0.1:9644"

[shards]
cores = "2-9,12"
memory = "2GiB"
profile = "dedicated"

[[link]]
name = "prod"
bootstrap_servers = ["kafka-1:9092", "[::1]:9092"]
topics = { include = ["*"], exclude = ["_*"] }
start = "earliest"
metadata_interval = "500ms"
rate_limit = "100MiB"
cluster_id = "abc"
on_source_gap = "fault"
batch_bytes_max = "32MiB"
"#;

fn problems(text: &str) -> Vec<Problem> {
    match Config::parse(text, Path::new("test.toml")) {
        Err(ConfigError::Wrong { problems, .. }) => problems,
        Err(other) => panic!("{other}"),
        Ok(_) => Vec::new(),
    }
}

#[test]
fn the_designs_shape_is_read() {
    let config = Config::parse(GOOD, Path::new("test.toml")).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(config.shards.cores, Cores::List("2-9,12".parse().expect("list")));
    assert_eq!(config.shards.memory_bytes, 2 << 30);
    let link = config.link("prod").expect("declared");
    assert_eq!(link.metadata_interval, Duration::from_millis(500));
    assert_eq!((link.rate_limit, link.batch_bytes_max), (Some(100 << 20), 32 << 20));
    assert_eq!(link.on_source_gap, OnSourceGap::Fault);
    assert_eq!(link.undo_window, Duration::from_secs(86_400));
    assert!(link.topics.covers("orders") && !link.topics.covers("_schemas"));
}

#[test]
fn the_example_file_is_valid() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("understudy.example.toml");
    let config = Config::load(&path).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(config.links[0].bootstrap_servers, ["localhost:9092"]);
}

#[test]
fn starts() {
    let start = |value: &str| {
        let text = GOOD.replace("start = \"earliest\"", &format!("start = {value}"));
        Config::parse(&text, Path::new("t")).ok().map(|config| config.links[0].start)
    };
    assert_eq!(start("\"latest\""), Some(Start::Latest));
    assert_eq!(start("\"1970-01-01T00:00:01Z\""), Some(Start::TimestampMs(1000)));
    assert_eq!(start("1970-01-01T00:00:01Z"), Some(Start::TimestampMs(1000)));
    assert_eq!(start("\"yesterday\""), None);
    assert_eq!(start("5"), None);
}

/// One byte too many for a socket.
const LONG_PATH: &str = "/run/a-folder-whose-name-is-so-long-that-nobody-would-ever-think-of-\
                         giving-it/to-a-socket/and-yet-somebody-d";

/// (what to replace, by what, key, words of the message)
const MISTAKES: &[(&str, &str, &str, &str)] = &[
    ("data_dirs", "data_dir", "node.data_dir", "did you mean `data_dirs`?"),
    ("understudy\"]", "understudy\", \"/var/lib\"]", "node.data_dirs", "lies in `/var/lib`"),
    ("understudy\"]", "understudy\", \"/var/lib/understudy/2\"]", "node.data_dirs", "lies in"),
    ("\"/run/understudy/admin.sock\"", "\"\"", "node.admin_socket", "a path of 0 bytes"),
    ("/run/understudy/admin.sock", LONG_PATH, "node.admin_socket", "has 1 to 107"),
    ("memory = \"2GiB\"", "memory = \"2 gigs\"", "shards.memory", "`2 gigs` is no size"),
    ("memory = \"2GiB\"", "memory = \"1MiB\"", "shards.memory", "from 64 MiB"),
    ("memory = \"2GiB\"", "memory = 1.5", "shards.memory", "is a float"),
    ("\"2-9,12\"", "\"2-x\"", "shards.cores", "`2-x` is no CPU number"),
    ("\"2-9,12\"", "\"\"", "shards.cores", "no CPU is named"),
    ("\"dedicated\"", "\"greedy\"", "shards.profile", "\"dedicated\""),
    ("id = 1", "id = -1", "node.id", "from 0 to"),
    ("127.0.0.1:9644", "localhost", "node.metrics", "127.0.0.1:9644"),
    ("\"500ms\"", "\"5\"", "link.metadata_interval", "with a unit"),
    ("\"500ms\"", "\"2d\"", "link.metadata_interval", "out of bounds"),
    ("kafka-1:9092", "kafka-1", "link.bootstrap_servers", "`kafka-1` is not host:port"),
    ("kafka-1:9092", "kafka://k:9092", "link.bootstrap_servers", "not host:port"),
    ("name = \"prod\"", "name = \"a/b\"", "link.name", "`a/b` is no name"),
    ("name = \"prod\"", "", "link.name", "has no name"),
    ("include = [\"*\"]", "include = [\"a*b\"]", "link.topics.include", "star"),
    ("exclude = [\"_*\"]", "exclude = [\"/(/\"]", "link.topics.exclude", "regular expression"),
    ("exclude =", "exlude =", "link.topics.exlude", "did you mean `exclude`?"),
    ("start = \"earliest\"", "listen = \"0.0.0.0:19092\"", "link.listen", "does not serve"),
    ("\"fault\"", "\"ignore\"", "link.on_source_gap", "\"continue\" or \"fault\""),
    ("[node]", "[nodes]", "node", "the table is missing"),
    ("[[link]]", "[link]", "link", "[[link]]"),
    ("id = 1", "id = ", "", "no TOML"),
];

#[test]
fn every_mistake_names_line_key_and_remedy() {
    for (good, bad, key, words) in MISTAKES {
        let text = GOOD.replacen(good, bad, 1);
        assert_ne!(text, GOOD, "{good} is not in the file");
        let problems = problems(&text);
        let found = problems.iter().find(|problem| problem.key == *key);
        let found = found.unwrap_or_else(|| panic!("{bad}: nothing about `{key}`: {problems:?}"));
        let said = found.to_string();
        assert!(said.contains(words), "{bad}: `{words}` is not in `{said}`");
        if !matches!(*key, "link.name" | "node") {
            let line = 1 + text.lines().position(|line| line.contains(bad.trim())).expect("line");
            assert_eq!(found.line, line, "{bad}: {problems:?}");
        }
    }
}

#[test]
fn a_file_in_another_encoding_is_named_with_its_line() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let bytes = [GOOD.as_bytes(), b"# caf\xe9\n"].concat();
    std::fs::write(file.path(), bytes).expect("written");
    let error = Config::load(file.path()).expect_err("no UTF-8").to_string();
    let line = 1 + GOOD.lines().count();
    assert!(error.contains(&format!(":{line}: byte 0xe9 is no UTF-8")), "{error}");
    assert!(error.contains("save the file as UTF-8"), "{error}");
}

#[test]
fn all_mistakes_come_at_once_and_in_order() {
    let text = GOOD.replace("2GiB", "lots").replace("127.0.0.1:9644", "x").replace("500ms", "y");
    let lines: Vec<usize> = problems(&text).iter().map(|problem| problem.line).collect();
    assert_eq!(lines.len(), 3);
    assert!(lines.is_sorted());
}

#[test]
fn the_list_of_mistakes_ends() {
    let unknown: String = (0..5000).map(|n| format!("key{n} = 1\n")).collect();
    let problems = problems(&format!("{unknown}{GOOD}"));
    assert_eq!(problems.len(), 101);
    assert_eq!(problems.iter().filter(|p| p.what == "there are more problems").count(), 1);
}

#[test]
fn two_links_of_one_name_are_refused() {
    let text = format!("{GOOD}\n[[link]]\nname = \"prod\"\nbootstrap_servers = [\"b:1\"]\n");
    assert!(problems(&text)[0].what.contains("two links"));
}

#[test]
fn the_message_starts_with_file_and_line() {
    let error = Config::parse(&GOOD.replace("2GiB", "lots"), Path::new("/etc/u.toml"));
    let said = error.expect_err("no size").to_string();
    assert!(said.starts_with("/etc/u.toml:10: shards.memory: `lots` is no size\n"), "{said}");
}

proptest! {
    #[test]
    fn no_text_panics(text in "\\PC{0,200}") {
        let _ = Config::parse(&text, Path::new("t"));
    }

    #[test]
    fn no_cut_or_changed_file_panics(cut in 0usize..700, junk in "\\PC{0,10}") {
        let mut text: String = GOOD.chars().take(cut).collect();
        text.push_str(&junk);
        text.extend(GOOD.chars().skip(cut + 1));
        let _ = Config::parse(&text, Path::new("t"));
    }
}
