//! The folder that a bench fills and leaves empty behind.

use std::fs;
use std::path::{Path, PathBuf};

use crate::Outcome;

const NAME: &str = "understudy-bench-";

/// Bytes that are free where a folder lies.
///
/// # Errors
/// It is not there.
pub fn free_bytes(folder: &Path) -> Outcome<u64> {
    let found = nix::sys::statvfs::statvfs(folder)?;
    Ok(found.blocks_available() * found.fragment_size())
}

/// A folder of our own below another one, removed when dropped.
pub struct Folder(pub PathBuf);

impl Folder {
    /// Makes it. What a bench left there that was killed is removed first.
    ///
    /// # Errors
    /// The parent cannot be read or written to.
    pub fn make(parent: &Path) -> Outcome<Folder> {
        let parent = fs::canonicalize(parent)
            .map_err(|error| format!("folder {}: {error}", parent.display()))?;
        for entry in fs::read_dir(&parent)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let process = name.strip_prefix(NAME).and_then(|id| id.parse::<u32>().ok());
            if process.is_some_and(|id| !Path::new(&format!("/proc/{id}")).exists()) {
                fs::remove_dir_all(entry.path())?;
            }
        }
        let path = parent.join(format!("{NAME}{}", std::process::id()));
        fs::create_dir_all(&path)?;
        Ok(Folder(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("{} could not be removed: {error}", self.0.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_bench_left_is_removed_and_nothing_else() {
        let parent = std::env::temp_dir().join(format!("benches-folder-{}", std::process::id()));
        let (left, other) = (parent.join(format!("{NAME}4194305")), parent.join("other"));
        for folder in [&left, &other] {
            fs::create_dir_all(folder).expect("made");
        }
        let folder = Folder::make(&parent).expect("a folder");
        assert!(!left.exists() && other.exists() && folder.0.exists());
        drop(folder);
        assert_eq!(fs::read_dir(&parent).expect("read").count(), 1);
        fs::remove_dir_all(&parent).expect("removed");
    }
}
