//! Which checkpoints of a run stay.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::num::NonZeroUsize;

use crate::kept::Entry;

/// The newest, and the best beside them.
#[derive(Clone, Debug)]
pub(crate) struct Retention {
    /// How many of the newest stay.
    pub(crate) keep: NonZeroUsize,
    pub(crate) best: Option<Best>,
}

/// The best by a metric, however old they are.
#[derive(Clone, Debug)]
pub(crate) struct Best {
    /// How many of them stay.
    pub(crate) keep: NonZeroUsize,
    pub(crate) metric: String,
    /// As of an accuracy, and not of a loss.
    pub(crate) greater_is_better: bool,
}

impl Retention {
    /// The steps of those that stay, given them in the order in which they came.
    ///
    /// The newest are those of the highest steps. A run that went back to an earlier checkpoint comes to
    /// lower steps than it had, so those that came last stay as well.
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
    /// The best first. Of equally good ones the later is better, and what has no value is none.
    pub(crate) fn steps(&self, checkpoints: &[&Entry]) -> impl Iterator<Item = u64> {
        let value = |entry: &&Entry| Some((entry.metric(&self.metric)?, entry.step));
        let mut values: Vec<(f64, u64)> = checkpoints.iter().filter_map(value).collect();
        values.sort_by(|(a, a_step), (b, b_step)| {
            let order = match self.greater_is_better {
                false => a.partial_cmp(b),
                true => b.partial_cmp(a),
            };
            let order = order.expect("NaN was left out");
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

    /// Of checkpoints with these losses at steps 1, 2, … those that stay.
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
    fn the_best_stay_beside_the_newest() {
        let losses = [3.0, 1.0, 2.0, 4.0, 5.0].map(Some);
        assert_eq!(kept(1, 1, false, &losses), [2, 5]);
        assert_eq!(kept(2, 2, false, &losses), [2, 3, 4, 5]);
        assert_eq!(kept(1, 1, true, &losses), [5]);
        assert_eq!(kept(1, 3, true, &losses), [1, 4, 5]);
        assert_eq!(kept(9, 9, true, &losses), [1, 2, 3, 4, 5]);
    }

    #[test]
    fn what_came_last_stays_though_the_run_went_back() {
        let at = |steps: &[u64]| -> Vec<(u64, Option<f64>)> {
            steps.iter().map(|&step| (step, None)).collect()
        };
        // Back from 60 to 20, and on.
        assert_eq!(of(&at(&[50, 60, 30, 40]), 2, 1, false), [30, 40, 50, 60]);
        assert_eq!(of(&at(&[60, 30, 40, 50, 60]), 2, 1, false), [50, 60]);
    }

    #[test]
    fn of_equally_good_ones_the_later_stays() {
        let losses = [2.0, 1.0, 1.0, 3.0].map(Some);
        assert_eq!(kept(1, 1, false, &losses), [3, 4]);
        assert_eq!(kept(1, 1, true, &[Some(0.0), Some(-0.0), None]), [2, 3]);
    }

    #[test]
    fn what_has_no_value_is_never_among_the_best() {
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
