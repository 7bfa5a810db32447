//! Repeated measurements of one quantity: the median speaks, minimum and maximum say how far to
//! trust it.

use serde::{Deserialize, Serialize};

/// Values of one quantity, in the order of the runs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sample(pub Vec<f64>);

impl Sample {
    /// Adds a run's value.
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// The middle value, of two the mean.
    ///
    /// # Panics
    /// Without a value.
    pub fn median(&self) -> f64 {
        self.percentile(50.0)
    }

    /// The value below which `percent` of the values lie, interpolated.
    ///
    /// # Panics
    /// Without a value.
    pub fn percentile(&self, percent: f64) -> f64 {
        assert!(!self.0.is_empty(), "nothing was measured");
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let at = percent / 100.0 * (sorted.len() - 1) as f64;
        let (below, above) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
        below + (above - below) * at.fract()
    }

    /// The smallest value.
    pub fn min(&self) -> f64 {
        self.percentile(0.0)
    }

    /// The largest value.
    pub fn max(&self) -> f64 {
        self.percentile(100.0)
    }
}

impl From<Vec<f64>> for Sample {
    fn from(values: Vec<f64>) -> Self {
        Sample(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_percentiles() {
        let odd = Sample(vec![3.0, 1.0, 2.0]);
        assert_eq!((odd.min(), odd.median(), odd.max()), (1.0, 2.0, 3.0));
        assert_eq!(Sample(vec![1.0, 2.0]).median(), 1.5);
        let many: Sample = (0..=100).map(f64::from).collect::<Vec<_>>().into();
        assert_eq!(many.percentile(99.0), 99.0);
    }
}
