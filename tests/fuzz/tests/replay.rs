//! Replays every corpus, and a bounded number of mutations of it, through its target.

use fuzz::input::Random;
use fuzz::mutate::mutate;
use fuzz::{Target, corpus_dir};
use libtest_mimic::{Arguments, Failed, Trial};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;

/// Mutations are cut to so many bytes.
const INPUT_BYTES_MAX: usize = 4096;
/// All corpora together: they lie in the repository.
const CORPORA_BYTES_MAX: u64 = 300 << 10;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    // A line for each panic will do.
    std::panic::set_hook(Box::new(|panic| eprintln!("{panic}")));
    let trials = fuzz::TARGETS.iter().map(|target| Trial::test(target.name, || replay(target)));
    let sizes = Trial::test("corpora_are_small", corpora_are_small);
    libtest_mimic::run(&arguments, trials.chain([sizes]).collect()).exit_code()
}

fn corpora_are_small() -> Result<(), Failed> {
    let mut bytes = 0;
    for target in fuzz::TARGETS {
        for entry in std::fs::read_dir(corpus_dir(target))? {
            bytes += entry?.metadata()?.len();
        }
    }
    match bytes <= CORPORA_BYTES_MAX {
        true => Ok(()),
        false => Err(format!("the corpora have {bytes} bytes").into()),
    }
}

fn replay(target: &'static Target) -> Result<(), Failed> {
    let folder = corpus_dir(target);
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder)
        .map_err(|error| format!("{}: {error}", folder.display()))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    files.sort();
    if files.is_empty() {
        return Err(format!("{} is empty", folder.display()).into());
    }
    let mut seeds = Vec::new();
    for file in files {
        let bytes = std::fs::read(&file)?;
        attempt(target, &bytes)
            .map_err(|()| format!("{} panics with {}", target.name, file.display()))?;
        seeds.push(bytes);
    }
    let mut random = Random::new(target.name.len() as u64);
    for round in 0..target.mutations {
        let bytes = mutate(&seeds, &mut random, INPUT_BYTES_MAX);
        if attempt(target, &bytes).is_err() {
            let kept =
                PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-{round}", target.name));
            std::fs::write(&kept, &bytes)?;
            return Err(format!(
                "{} panics with mutation {round}, kept as {}: once it is mended, it belongs into \
                 {}",
                target.name,
                kept.display(),
                folder.display()
            )
            .into());
        }
    }
    Ok(())
}

fn attempt(target: &Target, bytes: &[u8]) -> Result<(), ()> {
    catch_unwind(AssertUnwindSafe(|| (target.run)(bytes))).map_err(drop)
}
