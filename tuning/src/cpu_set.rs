//! Sets of logical CPUs in the kernel's list notation: `0-3,8,10-11`.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// Highest CPU number accepted; the kernel's own limit (`NR_CPUS`) is 8,192.
const CPU_MAX: usize = 8_191;

/// A set of logical CPU numbers, ordered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuSet(BTreeSet<usize>);

/// Why a CPU list cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{part}` is no CPU number or range: write for example \"2-9,12\" (numbers 0 to 8191)")]
pub struct ParseCpuSetError {
    /// The part of the list that is wrong.
    pub part: String,
}

impl CpuSet {
    /// Whether the set holds `cpu`.
    pub fn contains(&self, cpu: usize) -> bool {
        self.0.contains(&cpu)
    }

    /// How many CPUs the set holds.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The CPUs, ascending.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = usize> + '_ {
        self.0.iter().copied()
    }

    /// The lowest CPU.
    pub fn first(&self) -> Option<usize> {
        self.0.first().copied()
    }

    /// The CPUs that are in both sets.
    pub fn intersection(&self, other: &CpuSet) -> CpuSet {
        CpuSet(self.0.intersection(&other.0).copied().collect())
    }

    /// The CPUs of this set that are not in `other`.
    pub fn difference(&self, other: &CpuSet) -> CpuSet {
        CpuSet(self.0.difference(&other.0).copied().collect())
    }

    /// Adds one CPU.
    pub fn insert(&mut self, cpu: usize) {
        self.0.insert(cpu);
    }
}

impl FromIterator<usize> for CpuSet {
    fn from_iter<I: IntoIterator<Item = usize>>(cpus: I) -> Self {
        CpuSet(cpus.into_iter().collect())
    }
}

impl FromStr for CpuSet {
    type Err = ParseCpuSetError;

    /// Reads the kernel's list notation; an empty text is the empty set.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut set = CpuSet::default();
        for part in text.trim().split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let wrong = || ParseCpuSetError { part: part.to_owned() };
            let (low, high) = part.split_once('-').unwrap_or((part, part));
            let low: usize = low.trim().parse().map_err(|_| wrong())?;
            let high: usize = high.trim().parse().map_err(|_| wrong())?;
            if low > high || high > CPU_MAX {
                return Err(wrong());
            }
            set.0.extend(low..=high);
        }
        Ok(set)
    }
}

impl fmt::Display for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut cpus = self.iter().peekable();
        let mut separator = "";
        while let Some(low) = cpus.next() {
            let mut high = low;
            while let Some(next) = cpus.next_if(|next| *next == high + 1) {
                high = next;
            }
            match high - low {
                0 => write!(f, "{separator}{low}")?,
                _ => write!(f, "{separator}{low}-{high}")?,
            }
            separator = ",";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_kernels_notation_is_read() {
        let set: CpuSet = "0-2,7, 9-9\n".parse().expect("valid");
        assert_eq!(set.iter().collect::<Vec<_>>(), [0, 1, 2, 7, 9]);
        assert_eq!("".parse::<CpuSet>(), Ok(CpuSet::default()));
    }

    #[test]
    fn nonsense_names_the_part_that_is_wrong() {
        for (text, part) in
            [("0,a", "a"), ("3-1", "3-1"), ("0-999999999", "0-999999999"), ("-1", "-1")]
        {
            assert_eq!(text.parse::<CpuSet>(), Err(ParseCpuSetError { part: part.to_owned() }));
        }
    }

    proptest! {
        #[test]
        fn printing_and_reading_agree(cpus in proptest::collection::btree_set(0usize..64, 0..40)) {
            let set: CpuSet = cpus.into_iter().collect();
            prop_assert_eq!(set.to_string().parse::<CpuSet>(), Ok(set));
        }
    }
}
