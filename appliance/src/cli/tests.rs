use super::*;

fn parsed(words: &[&str]) -> Result<Command, String> {
    Arguments::from_args(&["understudy"], words)
        .map(|arguments| arguments.command)
        .map_err(|early| early.output)
}

#[test]
fn commands_are_read() {
    let Ok(Command::Failover(failover)) =
        parsed(&["failover", "prod", "--topics", "a,b", "--topics", "c", "--dry-run"])
    else {
        panic!("a failover");
    };
    assert_eq!(failover.link.as_deref(), Some("prod"));
    assert_eq!(failover.topics, ["a,b", "c"]);
    assert!(failover.dry_run && !failover.all && !failover.json);
    assert!(matches!(parsed(&["status", "--json"]), Ok(Command::Status(status)) if status.json));
    assert!(matches!(parsed(&["run", "--config", "x"]), Ok(Command::Run(_))));
}

#[test]
fn a_topic_in_the_wrong_place_is_told_where_to_go() {
    let words = ["failover", "prod", "orders"];
    let why = parsed(&words).expect_err("a topic is no positional argument");
    let said = not_read(&words, &why);
    assert!(said.contains("orders") && said.contains("--topics"), "{said}");
    assert!(said.ends_with("see: understudy failover --help"), "{said}");
    let said = not_read(&["fail"], "Unrecognized argument: fail");
    assert!(!said.contains("--topics"), "{said}");
}

#[test]
fn every_command_explains_itself() {
    let help = parsed(&["--help"]).expect_err("help");
    for command in
        ["run", "check", "status", "pause", "resume", "failover", "delete", "tune", "version"]
    {
        assert!(help.contains(command), "{command} is not in\n{help}");
        let help = parsed(&[command, "--help"]).expect_err("help");
        assert!(help.contains("Usage: understudy"), "{help}");
    }
    for absent in ["promote", "failback", "drill", "verify", "export", "snapshot"] {
        assert!(!help.contains(absent), "{absent} is not there yet");
        assert!(parsed(&[absent]).is_err());
    }
}

#[test]
fn failover_wants_to_know_what() {
    for words in [&["failover", "prod"][..], &["failover", "prod", "--all", "--topics", "a"]] {
        let stop = dispatch(parsed(words).expect("readable")).expect_err("ambiguous");
        assert_eq!((stop.code, stop.reason.contains("--all")), (USAGE, true));
    }
}

#[test]
fn a_node_that_is_not_there_is_named_by_its_socket() {
    let words = ["status", "--socket", "/nowhere/admin.sock"];
    let stop = dispatch(parsed(&words).expect("readable")).expect_err("nobody there");
    assert_eq!(stop.code, UNREACHABLE);
    assert!(stop.reason.contains("/nowhere/admin.sock"), "{}", stop.reason);
}

#[test]
fn a_wrong_file_is_a_usage_error_with_its_line() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("u.toml");
    std::fs::write(&path, "[node]\ndata_dir = []\n").expect("file");
    let words = ["check", "--config", path.to_str().expect("UTF-8")];
    let stop = dispatch(parsed(&words).expect("readable")).expect_err("wrong");
    assert_eq!(stop.code, USAGE);
    assert!(stop.reason.contains("u.toml:2: node.data_dir"), "{}", stop.reason);
}

/// Of link `prod`: `orders` with a partition that follows and one that does not, `clicks` well.
fn node() -> NodeView {
    let totals = r#""partitions_total": 2, "lag_unknown_partitions": 0, "troubled_partitions": 0"#;
    let partition = |number: i32, reason: &str| {
        format!(
            r#"{{"partition": {number}, "shard": 0, "state": "ACTIVE", "data_dir": "d"{reason}}}"#
        )
    };
    let topic = |name: &str, partitions: [String; 2]| {
        format!(
            r#"{{"name": "{name}", "state": "ACTIVE", "since_ms": 0, {totals},
                "partitions": [{}]}}"#,
            partitions.join(",")
        )
    };
    let well = || partition(0, "");
    let orders = topic("orders", [well(), partition(1, r#", "reason": "bad_batch""#)]);
    let clicks = topic("clicks", [well(), partition(1, "")]);
    let text = format!(
        r#"{{"version": "1", "node_id": 1, "ready": true, "now_ms": 0, "shards": [],
            "reload_refused": [], "links": [{{"name": "prod", "state": "ACTIVE", "since_ms": 0,
            "brokers": 1, "connections": 1, "topics_total": 2, {totals},
            "topics": [{orders}, {clicks}]}}]}}"#
    );
    serde_json::from_str(&text).expect("a status")
}

/// What a status of it shows: topics and their partitions.
fn shown(words: &[&str]) -> Result<Vec<(String, Vec<i32>)>, u8> {
    let Ok(Command::Status(command)) = parsed(&[&["status"], words].concat()) else {
        panic!("a status");
    };
    let mut node = node();
    narrow(&mut node, &command).map_err(|stop| stop.code)?;
    let topics = node.links.into_iter().flat_map(|link| link.topics.unwrap_or_default());
    let numbers = |topic: &TopicView| {
        topic.partitions.iter().flatten().map(|partition| partition.partition).collect()
    };
    Ok(topics.map(|topic| (topic.name.clone(), numbers(&topic))).collect())
}

#[test]
fn a_status_can_be_narrowed() {
    let both = || vec![0, 1];
    let all = Ok(vec![("orders".to_owned(), both()), ("clicks".to_owned(), both())]);
    assert_eq!(shown(&[]), all);
    assert_eq!(shown(&["prod", "--topics", "orders, clicks"]), all);
    assert_eq!(shown(&["--topics", "clicks"]), Ok(vec![("clicks".to_owned(), both())]));
    assert_eq!(shown(&["--troubled"]), Ok(vec![("orders".to_owned(), vec![1])]));
    assert_eq!(shown(&["--topics", "clicks", "--troubled"]), Ok(vec![]));
    assert_eq!(shown(&["test"]), Err(NOT_FOUND));
    assert_eq!(shown(&["--topics", "clicks,carts"]), Err(NOT_FOUND));
    assert_eq!(shown(&["--topics", ","]), Err(USAGE));
}

/// Answers a list of links, breaks off when `first` is to fail over, and obeys for any other; what
/// it was asked for.
fn node_of_links(socket: &Path, names: &[&str], asks: usize) -> std::thread::JoinHandle<String> {
    use std::io::{BufRead, BufReader};
    let views = names.iter().map(|name| {
        format!(
            r#"{{"name": "{name}", "state": "ACTIVE", "since_ms": 0, "brokers": 1,
                "connections": 1, "topics_total": 1, "partitions_total": 1,
                "lag_unknown_partitions": 0, "troubled_partitions": 0}}"#
        )
    });
    let links = format!("[{}]", views.collect::<Vec<_>>().join(","));
    let done = r#"{"ending": "done", "code": "failed_over", "reason": "done", "dry_run": false,
        "steps": [], "topics": []}"#;
    let listener = std::os::unix::net::UnixListener::bind(socket).expect("a socket");
    std::thread::spawn(move || {
        let mut asked = String::new();
        for stream in listener.incoming().take(asks) {
            let mut stream = stream.expect("a connection");
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).expect("a request");
            asked += &line;
            let body = match line.contains("POST") {
                true if line.contains("first") => continue,
                true => done,
                false => &links,
            };
            let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close";
            let answer = format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            let _ = stream.write_all(answer.as_bytes());
        }
        asked
    })
}

#[test]
fn one_link_that_does_not_answer_keeps_no_other_from_failing_over() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let socket = folder.path().join("s");
    let node = node_of_links(&socket, &["first", "second"], 3);
    let words = ["failover", "--all", "--socket", socket.to_str().expect("UTF-8")];
    let result = dispatch(parsed(&words).expect("readable"));
    assert!(!matches!(result, Ok(DONE)), "one of them did not");
    // Who waits for one more question, if it was not asked.
    let _ = std::os::unix::net::UnixStream::connect(&socket).map(|mut s| s.write_all(b"end\n"));
    let asked = node.join().expect("it ends");
    assert!(asked.contains("/v1/links/second/failover"), "{asked}");
}
