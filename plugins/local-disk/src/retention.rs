//! Selects which of a run's checkpoints to keep.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::num::NonZeroUsize;

use crate::kept::Entry;

/// Keeps the newest checkpoints, and optionally the best.
#[derive(Clone, Debug)]
pub(crate) struct Retention {
    /// The number of newest checkpoints to keep.
    pub(crate) keep: NonZeroUsize,
    pub(crate) best: Option<Best>,
}

/// Keeps the best checkpoints by a metric, regardless of their age.
#[derive(Clone, Debug)]
pub(crate) struct Best {
    /// The number of best checkpoints to keep.
    pub(crate) keep: NonZeroUsize,
    pub(crate) metric: String,
    /// True for a metric such as accuracy, false for a loss.
    pub(crate) greater_is_better: bool,
}

impl Retention {
    /// Returns the steps of the checkpoints to keep. `checkpoints` is in the order of creation.
    ///
    /// The newest are those with the highest steps. A run that went back to an earlier checkpoint writes
    /// lower steps than before, so the checkpoints that were created last are kept too.
    pub(crate) fn kept(&self, checkpoints: &[&Entry]) -> BTreeSet<u64> {
        let mut steps: Vec<u64> = checkpoints.iter().map(|entry| entry.step).collect();
        let last: Vec<u64> = steps.iter().rev().take(self.keep.get()).copied().collect();
        steps.sort_unstable_by_key(|&step| Reverse(step));
        let newest = steps.into_iter().take(self.keep.get());
        let best = self.best.iter().flat_map(|best| best.steps(checkpoints));
        newest.chain(last).chain(best).collect()
    }
}

impl Best {
    /// Returns the steps of the best checkpoints, with the best first. Of equal values, the later step is
    /// better. Checkpoints without a value are excluded.
    pub(crate) fn steps(&self, checkpoints: &[&Entry]) -> impl Iterator<Item = u64> {
        let value = |entry: &&Entry| Some((entry.metric(&self.metric)?, entry.step));
        let mut values: Vec<(f64, u64)> = checkpoints.iter().filter_map(value).collect();
        values.sort_by(|(a, a_step), (b, b_step)| {
            let order = match self.greater_is_better {
                false => a.partial_cmp(b),
                true => b.partial_cmp(a),
            };
            let order = order.expect("NaN is excluded");
            order.then(b_step.cmp(a_step))
        });
        let steps = values.into_iter().map(|(_, step)| step);
        steps.take(self.keep.get())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::copy::Placed;
    use crate::link::Way;

    const INF: f64 = f64::INFINITY;

    fn count(n: usize) -> NonZeroUsize {
        NonZeroUsize::new(n).expect("some")
    }

    /// Creates checkpoints at steps 1, 2, …, with these losses. Returns the steps of the kept checkpoints.
    fn kept(keep: usize, best: usize, greater_is_better: bool, losses: &[Option<f64>]) -> Vec<u64> {
        let checkpoints: Vec<(u64, Option<f64>)> = (1..).zip(losses.iter().copied()).collect();
        of(&checkpoints, keep, best, greater_is_better)
    }

    fn of(
        checkpoints: &[(u64, Option<f64>)],
        keep: usize,
        best: usize,
        greater_is_better: bool,
    ) -> Vec<u64> {
        let entries: Vec<Entry> = checkpoints
            .iter()
            .map(|&(step, loss)| {
                let loss = loss.map(|loss| ("loss/eval".to_owned(), loss));
                let placed = Placed {
                    manifest_sha256: String::new(),
                    link: Way::Copy,
                    written_bytes: 0,
                };
                Entry::new(step, placed, &BTreeMap::from_iter(loss))
            })
            .collect();
        let entries: Vec<&Entry> = entries.iter().collect();
        let best = Best {
            keep: count(best),
            metric: "loss/eval".to_owned(),
            greater_is_better,
        };
        let retention = Retention {
            keep: count(keep),
            best: Some(best),
        };
        retention.kept(&entries).into_iter().collect()
    }

    #[test]
    fn the_best_and_the_newest_are_kept() {
        let losses = [3.0, 1.0, 2.0, 4.0, 5.0].map(Some);
        assert_eq!(kept(1, 1, false, &losses), [2, 5]);
        assert_eq!(kept(2, 2, false, &losses), [2, 3, 4, 5]);
        assert_eq!(kept(1, 1, true, &losses), [5]);
        assert_eq!(kept(1, 3, true, &losses), [1, 4, 5]);
        assert_eq!(kept(9, 9, true, &losses), [1, 2, 3, 4, 5]);
    }

    #[test]
    fn the_last_created_are_kept_after_a_rollback() {
        let at = |steps: &[u64]| -> Vec<(u64, Option<f64>)> {
            steps.iter().map(|&step| (step, None)).collect()
        };
        // The run was rolled back from step 60 to step 20.
        assert_eq!(of(&at(&[50, 60, 30, 40]), 2, 1, false), [30, 40, 50, 60]);
        assert_eq!(of(&at(&[60, 30, 40, 50, 60]), 2, 1, false), [50, 60]);
    }

    #[test]
    fn of_equal_values_the_later_step_is_kept() {
        let losses = [2.0, 1.0, 1.0, 3.0].map(Some);
        assert_eq!(kept(1, 1, false, &losses), [3, 4]);
        assert_eq!(kept(1, 1, true, &[Some(0.0), Some(-0.0), None]), [2, 3]);
    }

    #[test]
    fn checkpoints_without_a_value_are_never_among_the_best() {
        let nan = Some(f64::NAN);
        for greater in [false, true] {
            assert_eq!(
                kept(1, 2, greater, &[nan, None, Some(INF), None, nan]),
                [3, 5]
            );
            assert_eq!(kept(1, 2, greater, &[nan, None, nan]), [3]);
        }
        let infinite = [Some(INF), Some(1.0), Some(-INF), None];
        assert_eq!(kept(1, 1, false, &infinite), [3, 4]);
        assert_eq!(kept(1, 1, true, &infinite), [1, 4]);
    }
}
