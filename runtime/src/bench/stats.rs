//! What many runs come to.

use serde::Serialize;

/// One line of the result.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// What was measured, and whose it is: "boot/bulkhead".
    pub name: String,
    /// The middle of all runs, ms. (For rows about memory and rates see `unit`.)
    pub median_ms: f64,
    /// The best run.
    pub min_ms: f64,
    /// The run that 99 of 100 are as good as.
    pub p99_ms: f64,
    /// How many runs.
    pub runs: usize,
    /// What the figures are: "ms", "MiB/s", "KiB".
    pub unit: &'static str,
    /// VM exits of the median run, where KVM's counters can be read.
    pub exits: Option<u64>,
    /// Instructions of host and guest together, where the clock counts them (`--exact`).
    pub instructions: Option<u64>,
    /// Phases of one run: name and end, ms.
    pub phases: Vec<(String, f64)>,
    /// The command, as a shell takes it.
    pub command: String,
}

impl Row {
    /// A row of `samples` (value, exits); there must be one at least.
    pub fn new(name: &str, unit: &'static str, mut samples: Vec<(f64, Option<u64>)>) -> Self {
        samples.sort_by(|a, b| a.0.total_cmp(&b.0));
        let last = samples.len().saturating_sub(1);
        let at = |index: usize| samples.get(index.min(last)).copied().unwrap_or((f64::NAN, None));
        let (median_ms, exits) = at(samples.len() / 2);
        // Of a rate the best is the greatest, and the rare bad one the least.
        let rate = unit.ends_with("/s");
        let (best, bad) = (at(0).0, at((samples.len() * 99).div_ceil(100).saturating_sub(1)).0);
        let (min_ms, p99_ms) = if rate { (at(last).0, best) } else { (best, bad) };
        Self {
            name: name.to_owned(),
            median_ms,
            min_ms,
            p99_ms,
            runs: samples.len(),
            unit,
            exits,
            instructions: None,
            phases: Vec::new(),
            command: String::new(),
        }
    }

    /// A row of times, ms, which are instructions too where the clock counts those (`exact`).
    pub fn of_times(name: &str, samples: Vec<(f64, Option<u64>)>, exact: bool) -> Self {
        let row = Self::new(name, "ms", samples);
        let instructions = exact.then_some((row.median_ms * 1e6) as u64);
        Self { instructions, ..row }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_brings_its_exits() {
        let samples = vec![(3.0, Some(30)), (1.0, Some(10)), (2.0, Some(20))];
        let row = Row::new("x", "ms", samples);
        assert_eq!((row.median_ms, row.min_ms, row.p99_ms, row.exits), (2.0, 1.0, 3.0, Some(20)));
    }

    #[test]
    fn one_bad_run_in_two_hundred_is_not_the_99th() {
        let samples = (0..200).map(|n| (f64::from(n), None)).collect();
        let row = Row::new("x", "ms", samples);
        assert_eq!((row.median_ms, row.p99_ms), (100.0, 197.0));
    }

    #[test]
    fn the_best_rate_is_the_greatest() {
        let row = Row::new("x", "MiB/s", vec![(5.0, None), (9.0, None), (7.0, None)]);
        assert_eq!((row.min_ms, row.median_ms, row.p99_ms), (9.0, 7.0, 5.0));
    }
}
