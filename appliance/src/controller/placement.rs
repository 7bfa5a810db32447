//! Which shard owns a partition, and which data folder it lives in.
//!
//! The folder is durable (it is in the topic's record); the shard is chosen anew at every start, so
//! that the number of cores may change. Both go to whoever has least.

use std::path::{Path, PathBuf};

/// How many partitions each shard and folder has.
#[derive(Clone, Debug)]
pub struct Placement {
    shards: Vec<usize>,
    dirs: Vec<(PathBuf, usize)>,
}

impl Placement {
    /// Nothing placed yet.
    ///
    /// # Panics
    /// Without a shard or a folder.
    pub fn new(shards: usize, dirs: &[PathBuf]) -> Self {
        assert!(shards > 0 && !dirs.is_empty(), "partitions need a shard and a folder");
        let dirs = dirs.iter().map(|dir| (dir.clone(), 0)).collect();
        Placement { shards: vec![0; shards], dirs }
    }

    /// The data folders.
    pub fn dirs(&self) -> impl Iterator<Item = &Path> {
        self.dirs.iter().map(|(dir, _)| dir.as_path())
    }

    /// The shard for one more partition.
    pub fn shard(&mut self) -> usize {
        let least = (0..self.shards.len()).min_by_key(|shard| self.shards[*shard]);
        let shard = least.expect("at least one shard");
        self.shards[shard] += 1;
        shard
    }

    /// A partition has left that shard.
    pub fn leave(&mut self, shard: usize, dir: &Path) {
        self.shards[shard] = self.shards[shard].saturating_sub(1);
        if let Some((_, count)) = self.dirs.iter_mut().find(|(known, _)| known == dir) {
            *count = count.saturating_sub(1);
        }
    }

    /// The folder for one new partition.
    pub fn dir(&mut self) -> PathBuf {
        let least = self.dirs.iter_mut().min_by_key(|(_, count)| *count);
        let (dir, count) = least.expect("at least one folder");
        *count += 1;
        dir.clone()
    }

    /// A partition known from before lives in `dir`; false if that folder is not configured.
    pub fn found(&mut self, dir: &Path) -> bool {
        match self.dirs.iter_mut().find(|(known, _)| known == dir) {
            Some((_, count)) => {
                *count += 1;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_spread_evenly_and_refill_gaps() {
        let dirs = [PathBuf::from("/a"), PathBuf::from("/b")];
        let mut placement = Placement::new(3, &dirs);
        let mut counts = [0; 3];
        for _ in 0..9 {
            counts[placement.shard()] += 1;
        }
        assert_eq!(counts, [3, 3, 3]);
        assert!(placement.found(Path::new("/a")) && !placement.found(Path::new("/gone")));
        assert_eq!(placement.dir(), PathBuf::from("/b"));
        placement.leave(1, Path::new("/b"));
        assert_eq!((placement.shard(), placement.dir()), (1, PathBuf::from("/b")));
    }
}
