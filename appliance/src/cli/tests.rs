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
