//! The benches as they are run, shortened: so that they do not rot.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The benches that need the product's binary and are run here. The others differ from these in
/// load only.
const WITH_PRODUCT: [&str; 6] = ["replicate", "steady", "failover", "recovery", "roundtrip", "lag"];
/// The one that needs a real Kafka. It runs here only where nothing would have to be fetched.
const WITH_KAFKA: &str = "kafka";

fn benches(words: &[&str]) -> Output {
    let folder = env!("CARGO_TARGET_TMPDIR");
    let mut command = Command::new(env!("CARGO_BIN_EXE_benches"));
    command.args(words).current_dir(folder);
    command.output().expect("the binary runs")
}

fn succeeds(words: &[&str]) -> String {
    let output = benches(words);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{words:?}: {said}");
    String::from_utf8(output.stdout).expect("text")
}

/// The product, `UNDERSTUDY_BIN` or in the profile of this test: whoever tests the workspace has
/// built that already.
fn product() -> PathBuf {
    if let Some(path) = std::env::var_os("UNDERSTUDY_BIN") {
        return PathBuf::from(path);
    }
    let bench = Path::new(env!("CARGO_BIN_EXE_benches"));
    let folder = bench.parent().expect("a folder");
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "-p", "understudy", "--bin", "understudy"]);
    if folder.ends_with("release") {
        build.arg("--release");
    }
    let status = build.current_dir(env!("CARGO_MANIFEST_DIR")).status().expect("cargo runs");
    assert!(status.success(), "the product does not build");
    folder.join("understudy")
}

#[test]
fn what_is_listed_is_there_and_nothing_else() {
    let listed = succeeds(&["list"]);
    for name in WITH_PRODUCT.iter().chain(&["ceiling", WITH_KAFKA]) {
        assert!(listed.lines().any(|line| line.starts_with(name)), "{name} is not listed");
    }
    let refused = benches(&["no-such-bench"]);
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("list"));
}

#[test]
fn quick_benches_measure_write_and_compare() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (json, svg) = (folder.join("ceiling.json"), folder.join("ceiling.svg"));
    let (json, svg) = (json.to_str().expect("a path"), svg.to_str().expect("a path"));
    let table = succeeds(&["ceiling", "--quick", "--json", json, "--svg", svg]);
    for files in ["growing", "fresh", "overwritten"] {
        assert!(table.contains(&format!("GiB/s: the best pipe onto {files} files")), "{table}");
    }
    assert!(table.contains("pipe 1024 KiB × 8") && table.contains("GiB/s"), "{table}");
    let plot = std::fs::read_to_string(svg).expect("a plot");
    assert!(plot.starts_with("<svg") && plot.contains("stroke-dasharray"), "no ceiling is drawn");

    let text = std::fs::read_to_string(json).expect("results");
    let mut found: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(found["bench"], "ceiling");
    found["conditions"]["kernel"] = "0.1".into();
    std::fs::write(json, found.to_string()).expect("written");
    let refused = benches(&["ceiling", "--quick", "--against", json]);
    assert!(!refused.status.success(), "numbers of another kernel were compared");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("not compared"));

    let product = product();
    let product = product.to_str().expect("a path");
    for name in WITH_PRODUCT {
        let table = succeeds(&[name, "--quick", "--understudy", product]);
        assert!(table.starts_with(name), "{table}");
        assert!(name != "lag" || table.contains("× that of the 10 %"), "no ceiling: {table}");
    }
    if tests::install::is_installed() {
        let table = succeeds(&[WITH_KAFKA, "--quick", "--understudy", product]);
        for row in ["understudy", "kafka follower", "mirror maker 2", "consumer"] {
            assert!(table.lines().any(|line| line.starts_with(row)), "no {row}: {table}");
        }
    }
}
