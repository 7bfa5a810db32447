//! The house rules that a test can hold: which way imports run, how files look, what lies where.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::workspace_dir;

/// Folder of each crate, and the crates of ours it may name. Nothing names `appliance` but the fuzz
/// targets, to which it is one more parser.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("shards/ring", &[]),
    ("net", &["ring"]),
    ("storage", &["ring"]),
    ("shards", &["net", "storage", "ring"]),
    ("tuning", &[]),
    ("benches/source", &[]),
    ("appliance", &["shards", "net", "storage", "ring", "tuning", "source"]),
    ("benches", &["shards", "net", "storage", "ring", "tuning", "source", "tests"]),
    ("tests", &["shards", "net", "storage", "ring", "tuning", "source"]),
    ("tests/fuzz", &["understudy", "net", "ring", "storage"]),
];

/// What the root holds, and must.
const ROOMS: &[&str] = &[
    "Cargo.toml",
    "README.md",
    "appliance",
    "benches",
    "net",
    "shards",
    "storage",
    "tests",
    "tuning",
];

/// What else it may hold: only what tools, readers and lawyers expect there.
const AT_THE_DOOR: &[&str] = &[
    ".ci",
    ".git",
    ".gitignore",
    "ARCHITECTURE.md",
    "Cargo.lock",
    "LICENSE",
    "SPECIFICATION.md",
    "clippy.toml",
    "rustfmt.toml",
    "target",
];

const COLUMNS_MAX: usize = 100;
const FUNCTION_LINES_MAX: usize = 100;

#[test]
fn every_crate_has_its_place() {
    let manifest = toml_of("Cargo.toml");
    let members: BTreeSet<&str> = manifest["workspace"]["members"]
        .as_array()
        .expect("members")
        .iter()
        .filter_map(toml::Value::as_str)
        .collect();
    let placed: BTreeSet<&str> = MAY_IMPORT.iter().map(|(folder, _)| *folder).collect();
    assert_eq!(members, placed, "a crate that this test does not know");
}

#[test]
fn imports_run_one_way() {
    let ours: BTreeMap<String, &str> =
        MAY_IMPORT.iter().map(|(folder, _)| (package(folder), *folder)).collect();
    for (folder, allowed) in MAY_IMPORT {
        for (name, section) in dependencies(folder) {
            if let Some(of) = ours.get(&name) {
                let its_tests = section == "dev-dependencies" && name == "source";
                let allowed = allowed.contains(&name.as_str()) || its_tests;
                assert!(
                    allowed,
                    "{folder} must not import {name} ({of}), not in [{section}] either"
                );
            }
        }
    }
}

#[test]
fn versions_stand_once() {
    for (folder, _) in MAY_IMPORT {
        let manifest = toml_of(&format!("{folder}/Cargo.toml"));
        for section in SECTIONS {
            for (name, value) in
                manifest.get(section).and_then(|s| s.as_table()).into_iter().flatten()
            {
                let inherits = value.get("workspace").and_then(toml::Value::as_bool);
                assert_eq!(
                    inherits,
                    Some(true),
                    "{folder}: {name} wants `{name}.workspace = true`"
                );
            }
        }
        let lints = manifest.get("lints").and_then(|l| l.get("workspace"));
        assert_eq!(
            lints.and_then(toml::Value::as_bool),
            Some(true),
            "{folder}: no workspace lints"
        );
    }
}

#[test]
fn the_executor_knows_nothing_of_kafka() {
    for path in files().iter().filter(|p| p.starts_with("shards/ring")) {
        let text = text_of(path).to_lowercase();
        // Prose may say what the executor is not.
        for line in text.lines().filter(|line| !line.trim_start().starts_with("//")) {
            for word in ["kafka", "broker", "topic", "leader_epoch"] {
                let name = path.display();
                assert!(!line.contains(word), "{name}: {word:?} is no word for `ring`: {line}");
            }
        }
    }
}

#[test]
fn the_root_holds_only_rooms() {
    let found: BTreeSet<String> = fs::read_dir(workspace_dir())
        .expect("the root")
        .map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    for name in ROOMS {
        assert!(found.contains(*name), "{name} is missing");
    }
    let known =
        |name: &String| ROOMS.contains(&name.as_str()) || AT_THE_DOOR.contains(&name.as_str());
    let strangers: Vec<&String> = found.iter().filter(|name| !known(name)).collect();
    assert!(strangers.is_empty(), "{strangers:?} do not belong into the root");
}

#[test]
fn sources_are_tidy() {
    let mut faults = Vec::new();
    for path in rust_files() {
        let text = text_of(&path);
        let name = path.display();
        if !text.starts_with("//!") && !path.ends_with("tests.rs") {
            faults.push(format!("{name}: does not open with `//!`, what it is for"));
        }
        for (number, line) in text.lines().enumerate() {
            let at = format!("{name}:{}", number + 1);
            if line.chars().count() > COLUMNS_MAX {
                faults.push(format!("{at}: longer than {COLUMNS_MAX} columns"));
            }
            for left in left_overs() {
                if line.contains(&left) {
                    faults.push(format!("{at}: {left:?} was left behind"));
                }
            }
        }
        for (line, length) in long_functions(&text) {
            faults.push(format!("{name}:{line}: a function of {length} lines"));
        }
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn no_source_file_is_dead() {
    let all = rust_files();
    for path in &all {
        let stem = path.file_stem().and_then(|s| s.to_str()).expect("a name");
        let root = path.parent().is_some_and(|p| p.ends_with("bin") || p.ends_with("fuzz_targets"));
        if root || ["lib", "main", "mod"].contains(&stem) || declared(path) {
            continue;
        }
        let named = all.iter().filter(|p| *p != path).any(|other| {
            let near = path.parent().zip(other.parent()).is_some_and(|(p, o)| p.starts_with(o));
            near && text_of(other).contains(&format!("mod {stem};"))
        });
        assert!(named, "{} is part of no crate", path.display());
    }
}

#[test]
fn no_file_names_a_registry_or_a_machine() {
    // Split, so that this file does not name them either.
    let hosts = [
        concat!("repo.maven", ".apache"),
        concat!("repo1.", "maven"),
        concat!("maven", "central."),
        concat!("index.", "crates.io"),
        concat!("static.", "crates.io"),
        concat!("pypi", ".org"),
        concat!("registry.", "npmjs"),
        concat!("proxy.", "golang"),
        concat!("deb.", "debian"),
        concat!("arti", "factory"),
        concat!("/work", "/main"),
        concat!("/work", "/shared"),
    ];
    for path in files().iter().filter(|p| *p != Path::new("Cargo.lock")) {
        let text = text_of(path);
        for host in hosts {
            assert!(!text.contains(host), "{} names {host}", path.display());
        }
    }
}

#[test]
fn links_in_documents_lead_somewhere() {
    for path in files().iter().filter(|p| p.extension().is_some_and(|e| e == "md")) {
        let folder = workspace_dir().join(path.parent().expect("below the root"));
        for link in text_of(path).split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = link.split('#').next().unwrap_or("");
            let outside = link.contains("://") || link.starts_with("mailto:");
            let there = outside || target.is_empty() || folder.join(target).exists();
            assert!(there, "{}: {link} leads nowhere", path.display());
        }
    }
}

#[test]
fn one_command_runs_all_tests_and_is_the_one_that_is_run() {
    let command = "cargo test --workspace";
    for file in ["README.md", ".ci/run"] {
        let text = text_of(Path::new(file));
        assert!(text.lines().any(|l| l.trim() == command), "{file} has no line `{command}`");
    }
}

const SECTIONS: [&str; 3] = ["dependencies", "dev-dependencies", "build-dependencies"];

fn toml_of(path: &str) -> toml::Table {
    text_of(Path::new(path)).parse().unwrap_or_else(|e| panic!("{path}: {e}"))
}

fn package(folder: &str) -> String {
    let manifest = toml_of(&format!("{folder}/Cargo.toml"));
    manifest["package"]["name"].as_str().expect("a name").to_owned()
}

fn dependencies(folder: &str) -> Vec<(String, &'static str)> {
    let manifest = toml_of(&format!("{folder}/Cargo.toml"));
    let of = |section: &'static str| {
        let table = manifest.get(section).and_then(toml::Value::as_table).cloned();
        table.into_iter().flatten().map(move |(name, _)| (name, section))
    };
    SECTIONS.into_iter().flat_map(of).collect()
}

/// All text files of the project, below the root.
fn files() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![workspace_dir().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder") {
            let entry = entry.expect("an entry");
            let name = entry.file_name();
            if [".git", "target", ".kafka", "corpus"].iter().any(|skip| name == *skip) {
                continue;
            }
            if entry.file_type().expect("a type").is_dir() {
                folders.push(entry.path());
            } else if fs::read_to_string(entry.path()).is_ok() {
                let below = entry.path();
                let below = below.strip_prefix(workspace_dir()).expect("below the root");
                found.push(below.to_owned());
            }
        }
    }
    found.sort();
    found
}

fn rust_files() -> Vec<PathBuf> {
    files().into_iter().filter(|p| p.extension().is_some_and(|e| e == "rs")).collect()
}

fn text_of(path: &Path) -> String {
    fs::read_to_string(workspace_dir().join(path))
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// What must not stay, split so that this file does not hold it.
fn left_overs() -> [String; 6] {
    [
        ("to", "do!("),
        ("db", "g!("),
        ("FIX", "ME"),
        ("TO", "DO"),
        ("XX", "X"),
        ("unimple", "mented!("),
    ]
    .map(|(a, b)| format!("{a}{b}"))
}

/// Whether a manifest names the file as a target of its own, or tools find it by its place.
fn declared(path: &Path) -> bool {
    path.ancestors().skip(1).any(|folder| {
        let manifest = workspace_dir().join(folder).join("Cargo.toml");
        let below = path.strip_prefix(folder).unwrap_or(path);
        let by_place = ["tests", "benches", "examples"].iter().any(|place| {
            below.parent() == Some(Path::new(place)) || below == Path::new("build.rs")
        });
        manifest.is_file()
            && (by_place
                || fs::read_to_string(&manifest)
                    .is_ok_and(|text| text.contains(&format!("\"{}\"", below.display()))))
    })
}

/// First line and length of functions that are too long. Formatted code closes at its own
/// indentation.
fn long_functions(text: &str) -> Vec<(usize, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut long = Vec::new();
    for (first, line) in lines.iter().enumerate() {
        let code = line.trim_start();
        let is_function = ["fn ", "pub fn ", "async fn ", "pub async fn ", "unsafe fn "]
            .iter()
            .any(|start| code.starts_with(start))
            || code.starts_with("pub(") && code.contains(" fn ");
        if !is_function {
            continue;
        }
        let close = format!("{}}}", &line[..line.len() - code.len()]);
        let length = lines[first..].iter().position(|l| *l == close).map_or(1, |n| n + 1);
        if length > FUNCTION_LINES_MAX {
            long.push((first + 1, length));
        }
    }
    long
}

#[test]
fn a_long_function_is_found() {
    let body = "    let a = 1;\n".repeat(FUNCTION_LINES_MAX);
    let text = format!("fn short() {{\n}}\n\npub(crate) fn long() {{\n{body}}}\n");
    assert_eq!(long_functions(&text), [(4, FUNCTION_LINES_MAX + 2)]);
}
