use std::collections::{BTreeMap, BTreeSet};

use host_core::{Emitter, EventBody, MetricValue, Step};

use crate::TrainConfig;
use crate::collective::Collective;
use crate::ranks::Measured;
use crate::step_log::StepLog;

/// Emits how fast each rank is, and warns of slow ranks. With a single process, does nothing.
#[derive(Debug, Default)]
pub(crate) struct RankReport {
    /// For each slow rank, the number of reports in a row in which it was slow.
    slow: BTreeMap<usize, u32>,
    /// The ranks of which a warning has been emitted.
    warned: BTreeSet<usize>,
}

/// Emits the number of ranks and of sequences per step. With a single process, does nothing.
pub(crate) fn announce(
    step: Step,
    config: &TrainConfig,
    collective: &Collective,
    emitter: &Emitter,
) {
    let share = collective.share();
    if share.of == 1 {
        return;
    }
    let values = vec![
        MetricValue::new("rank/world_size", share.of as f64),
        MetricValue::new("rank/global_batch", config.global_batch(share.of) as f64),
    ];
    emitter.emit(step, EventBody::Metrics { values });
}

/// A rank is slow if it computes longer than the median rank by this factor.
const SLOW: f64 = 1.2;
/// The number of reports in a row after which a slow rank leads to a warning.
const REPORTS: u32 = 3;

impl RankReport {
    /// Tells the lead how fast this rank was since the last call. On the lead, emits the values of all ranks.
    pub(crate) fn emit(
        &mut self,
        step: Step,
        collective: &Collective,
        emitter: &Emitter,
        log: &mut StepLog,
    ) {
        if collective.share().of == 1 {
            return;
        }
        let Some(own) = log.measured() else {
            return;
        };
        collective.measured(own);
        if !collective.is_lead() {
            return;
        }
        let mut all = BTreeMap::from([(0, own)]);
        let others = collective.others().into_iter();
        all.extend(others.filter(|(_, measured)| measured.step_secs > 0.0));
        let values = all
            .iter()
            .flat_map(|(&rank, measured)| values(rank, measured))
            .collect();
        emitter.emit(step, EventBody::Metrics { values });
        for (rank, secs, median) in self.slow_ranks(&all) {
            let message = format!(
                "{} is slow: it computes {secs:.3} s per step, the median rank {median:.3} s",
                collective.name(rank)
            );
            emitter.emit(step, EventBody::Warning { message });
        }
    }

    /// Returns the ranks of which to warn now, each with its time and the median.
    fn slow_ranks(&mut self, all: &BTreeMap<usize, Measured>) -> Vec<(usize, f64, f64)> {
        let own_secs = |measured: &Measured| measured.step_secs - measured.wait_secs;
        let mut sorted: Vec<f64> = all.values().map(own_secs).collect();
        sorted.sort_by(f64::total_cmp);
        let Some(&median) = sorted.get((sorted.len() - 1) / 2) else {
            return Vec::new();
        };
        let mut found = Vec::new();
        for (&rank, measured) in all {
            let secs = own_secs(measured);
            let count = self.slow.entry(rank).or_default();
            *count = if secs > SLOW * median { *count + 1 } else { 0 };
            if *count >= REPORTS && self.warned.insert(rank) {
                found.push((rank, secs, median));
            }
        }
        found
    }
}

fn values(rank: usize, measured: &Measured) -> Vec<MetricValue> {
    let Measured {
        step_secs,
        wait_secs,
        data_wait_secs,
        memory_bytes,
    } = *measured;
    let named = [
        ("step_secs", step_secs),
        ("wait_secs", wait_secs),
        ("data_wait_secs", data_wait_secs),
        ("memory_bytes", memory_bytes),
    ];
    named
        .into_iter()
        .map(|(name, value)| MetricValue::new(format!("rank/{rank}/{name}"), value))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranks(secs: &[f64]) -> BTreeMap<usize, Measured> {
        let measured = |&secs| Measured {
            step_secs: 2.0,
            wait_secs: 2.0 - secs,
            ..Measured::default()
        };
        secs.iter().map(measured).enumerate().collect()
    }

    #[test]
    fn a_rank_that_stays_slow_is_reported_once() {
        let mut report = RankReport::default();
        let slow = ranks(&[1.0, 1.0, 1.5, 1.1]);
        assert_eq!(report.slow_ranks(&slow), []);
        assert_eq!(report.slow_ranks(&slow), []);
        // A normal report in between starts the count again.
        assert_eq!(report.slow_ranks(&ranks(&[1.0, 1.0, 1.0, 1.0])), []);
        assert_eq!(report.slow_ranks(&slow), []);
        assert_eq!(report.slow_ranks(&slow), []);
        let found = report.slow_ranks(&slow);
        assert_eq!(
            found.iter().map(|(rank, ..)| *rank).collect::<Vec<_>>(),
            [2]
        );
        assert_eq!(report.slow_ranks(&slow), []);
    }
}
