//! Members that are below the source's end, and how many answers have passed each of them over.
//!
//! Of thousands of members most may be below the end, and answers are many: an answer looks only at
//! those that have been passed over long enough.

use std::collections::{BTreeMap, BTreeSet};

/// The members, by key.
#[derive(Default)]
pub struct BelowEnd {
    /// Answers that had room for more than they brought.
    roomy: u64,
    /// By key: how many of these there had been when it was last sent something.
    since: BTreeMap<u32, u64>,
    /// The same, the longest first.
    waiting: BTreeSet<(u64, u32)>,
}

impl BelowEnd {
    pub fn is_empty(&self) -> bool {
        self.since.is_empty()
    }

    pub fn clear(&mut self) {
        self.since.clear();
        self.waiting.clear();
    }

    /// A member is below the end; one that was so already goes on being passed over.
    pub fn note(&mut self, key: u32) {
        if !self.since.contains_key(&key) {
            self.since.insert(key, self.roomy);
            self.waiting.insert((self.roomy, key));
        }
    }

    /// A member is at the end, or gone.
    pub fn forget(&mut self, key: u32) {
        if let Some(since) = self.since.remove(&key) {
            self.waiting.remove(&(since, key));
        }
    }

    /// An answer with room in it has passed all of them over. Takes out those whom so many in a
    /// row have.
    pub fn passed_over(&mut self, times: u32) -> Vec<u32> {
        self.roomy += 1;
        let mut taken = Vec::new();
        while let Some(&(since, key)) = self.waiting.first()
            && self.roomy - since >= u64::from(times)
        {
            self.forget(key);
            taken.push(key);
        }
        taken
    }

    /// Takes all of them out.
    pub fn take(&mut self) -> Vec<u32> {
        let taken = self.since.keys().copied().collect();
        self.clear();
        taken
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Note(u32),
        Forget(u32),
        PassOver,
        Take,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0u32..6).prop_map(Step::Note),
            2 => (0u32..6).prop_map(Step::Forget),
            4 => Just(Step::PassOver),
            1 => Just(Step::Take),
        ]
    }

    proptest! {
        /// Against a table in which every answer counts every member up.
        #[test]
        fn the_same_as_counting_all(steps in prop::collection::vec(step(), 1..80)) {
            let (mut below, mut counts) = (BelowEnd::default(), BTreeMap::<u32, u32>::new());
            for step in steps {
                match step {
                    Step::Note(key) => {
                        below.note(key);
                        counts.entry(key).or_insert(0);
                    }
                    Step::Forget(key) => {
                        below.forget(key);
                        counts.remove(&key);
                    }
                    Step::PassOver => {
                        let mut taken = below.passed_over(3);
                        taken.sort_unstable();
                        counts.values_mut().for_each(|count| *count += 1);
                        let due: Vec<u32> = counts.extract_if(.., |_, n| *n >= 3)
                            .map(|(key, _)| key)
                            .collect();
                        prop_assert_eq!(taken, due);
                    }
                    Step::Take => {
                        prop_assert_eq!(below.take(), counts.keys().copied().collect::<Vec<_>>());
                        counts.clear();
                    }
                }
                prop_assert_eq!(below.is_empty(), counts.is_empty());
                prop_assert_eq!(below.since.len(), below.waiting.len());
            }
        }
    }
}
