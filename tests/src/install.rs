//! What the tests need of the machine, installed once: a JDK and Maven by the distribution's own
//! means, Kafka through Maven by its coordinates (`kafka/<version>/pom.xml`), the load tool by the
//! JDK.
//!
//! Each part is complete or absent: it is made in a folder beside its place and renamed into it,
//! with a stamp of what it was made from, so that an interrupted run does no harm and a changed one
//! is redone.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Outcome, crate_dir, process, work_dir};

/// The Kafka of today.
pub const KAFKA: &str = "4.3.1";
/// The last one before 4.
pub const KAFKA_3: &str = "3.9.2";
/// The oldest that may be a source; it runs on ZooKeeper.
pub const KAFKA_2: &str = "2.1.1";

/// MirrorMaker 2 of the Kafka of today, in a folder of its own: it brings all of Connect.
const MIRROR_MAKER: &str = "mirror";

/// Kafka 4's brokers run on no older Java.
const JAVA_MIN: u32 = 17;

/// What is installed, and where.
#[derive(Debug, Clone)]
pub struct Installed {
    java_classes: PathBuf,
}

impl Installed {
    /// The class path of one version of Kafka.
    pub fn kafka(&self, version: &str) -> String {
        format!("{}/*", kafka_dir(version).display())
    }

    /// The class path of MirrorMaker 2, installed when it is asked for: only benches want it.
    ///
    /// # Errors
    /// As [`install`].
    pub fn mirror_maker(&self) -> Outcome<String> {
        let _lock = lock()?;
        kafka(MIRROR_MAKER)?;
        Ok(self.kafka(MIRROR_MAKER))
    }

    /// The class path of the load tool: it runs on the newer Kafka's client.
    pub fn load(&self) -> String {
        format!("{}:{}", self.java_classes.display(), self.kafka(KAFKA))
    }
}

/// Installs what is missing. Several processes may call this at once.
///
/// # Errors
/// Says which command failed, with its words, and what to do.
pub fn install() -> Outcome<Installed> {
    let _lock = lock()?;
    packages()?;
    for version in [KAFKA, KAFKA_3, KAFKA_2] {
        kafka(version)?;
    }
    let java_classes = load_classes()?;
    Ok(Installed { java_classes })
}

/// Whether all of it is there already, so that nothing would be fetched.
pub fn is_installed() -> bool {
    let parts = [KAFKA, KAFKA_3, KAFKA_2, MIRROR_MAKER, "classes"];
    missing().is_empty() && parts.iter().all(|part| kafka_dir(part).join("stamp").exists())
}

/// Held while something is installed; given up when the file is closed.
fn lock() -> Outcome<fs::File> {
    let dir = work_dir();
    fs::create_dir_all(&dir).map_err(|e| format!("create {}: {e}", dir.display()))?;
    let lock = fs::File::create(dir.join("lock")).map_err(|e| format!("{}: {e}", dir.display()))?;
    lock.lock().map_err(|e| format!("lock {}: {e}", dir.display()))?;
    Ok(lock)
}

fn kafka_dir(version: &str) -> PathBuf {
    work_dir().join(version)
}

fn packages() -> Outcome {
    let lacking = missing();
    if lacking.is_empty() {
        return Ok(());
    }
    let advice = format!("install by hand what is missing here: {}", lacking.join(" "));
    if !nix::unistd::geteuid().is_root() {
        return Err(format!(
            "the tests need a JDK of {JAVA_MIN} or later and Maven; not being root, {advice}"
        ));
    }
    eprintln!("installing {}", lacking.join(" "));
    // A package list that cannot be renewed is no reason to stop: the old one may do.
    let _ = process::run("apt-get update", apt().arg("update"));
    process::run(
        "apt-get install",
        apt().args(["install", "--no-install-recommends"]).args(lacking),
    )
    .map_err(|e| format!("{e}\n{advice}"))?;
    if missing().is_empty() {
        return Ok(());
    }
    Err(format!("installed, and still no Java {JAVA_MIN} or no Maven answers; {advice}"))
}

fn apt() -> Command {
    let mut apt = process::mortal("apt-get");
    apt.arg("-qq").arg("-y").env("DEBIAN_FRONTEND", "noninteractive");
    apt
}

/// The packages of Debian that have what does not answer here.
fn missing() -> Vec<&'static str> {
    let mut missing = Vec::new();
    let recent = |program: &str| java_release(program).is_some_and(|release| release >= JAVA_MIN);
    if !recent("java") || !recent("javac") {
        missing.push("default-jdk-headless");
    }
    if process::run("mvn", process::mortal("mvn").arg("-version")).is_err() {
        missing.push("maven");
    }
    missing
}

/// The feature release of a JDK's tool: `openjdk version "17.0.15"`, `javac 17.0.15`.
fn java_release(program: &str) -> Option<u32> {
    let said = process::run_any(program, process::mortal(program).arg("-version")).ok()?;
    if !said.status.success() {
        return None;
    }
    format!("{}{}", said.stdout, said.stderr).split_whitespace().find_map(|word| {
        let release = word.trim_matches('"').split(['.', '-', '+']).next()?;
        release.parse().ok()
    })
}

fn kafka(version: &str) -> Outcome {
    let pom = crate_dir().join("kafka").join(version).join("pom.xml");
    once(&kafka_dir(version), &pom, |into| {
        eprintln!("fetching Kafka {version} through Maven");
        process::run(
            "mvn dependency:copy-dependencies",
            process::mortal("mvn")
                .args(["-B", "-q", "dependency:copy-dependencies", "-DincludeScope=runtime"])
                .arg(format!("-DoutputDirectory={}", into.display()))
                .arg("-f")
                .arg(&pom),
        )
        .map(drop)
    })
}

fn load_classes() -> Outcome<PathBuf> {
    let source = crate_dir().join("java/Load.java");
    let classes = work_dir().join("classes");
    once(&classes, &source, |into| {
        process::run(
            "javac",
            process::mortal("javac")
                .arg("-cp")
                .arg(format!("{}/*", kafka_dir(KAFKA).display()))
                .arg("-d")
                .arg(into)
                .arg(&source),
        )
        .map(drop)
    })?;
    Ok(classes)
}

/// Makes `place` by `make`, unless it was made before from the same `source`.
fn once(place: &Path, source: &Path, make: impl FnOnce(&Path) -> Outcome) -> Outcome {
    let told = |e: std::io::Error| format!("{}: {e}", place.display());
    let text = fs::read(source).map_err(|e| format!("read {}: {e}", source.display()))?;
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    let stamp = format!("{:016x}\n", hasher.finish());
    if fs::read_to_string(place.join("stamp")).is_ok_and(|found| found == stamp) {
        return Ok(());
    }
    let partial = place.with_file_name(format!(
        "{}.partial",
        place.file_name().and_then(|n| n.to_str()).expect("a named folder")
    ));
    let _ = fs::remove_dir_all(&partial);
    fs::create_dir_all(&partial).map_err(told)?;
    make(&partial)?;
    fs::write(partial.join("stamp"), &stamp).map_err(told)?;
    let _ = fs::remove_dir_all(place);
    fs::rename(&partial, place).map_err(told)
}
