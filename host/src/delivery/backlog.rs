use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use host_core::{CheckpointDir, DeliveryState, EventBody, MetricValue, Result, Step};
use host_store::{Delivery, Reader};

use super::{count, is_superseded};
use crate::runs::run_dir::RunDir;

/// Number of events to read at a time.
const PAGE: usize = 10_000;

/// The host adds this metric to an evaluation, after all other metrics. Checkpoints do not contain it.
const EVAL_SECS: &str = "eval_secs";

/// The checkpoints that an earlier process of a run left undelivered. The ledger in the run's store shows
/// which checkpoints a sink has not received. The undelivered checkpoints include checkpoints that were
/// written before the sink was added.
#[derive(Debug, Default)]
pub(crate) struct Backlog {
    /// For each sink's label, the undelivered checkpoints in step order. No list is empty.
    of_sinks: BTreeMap<String, Vec<Owed>>,
    /// Sinks that the run no longer has, each with the steps that it did not receive.
    removed: Vec<(String, Vec<Step>)>,
    /// Sinks, each with the steps of the checkpoints that were lost before they were delivered.
    lost: Vec<(String, Vec<Step>)>,
}

/// Which of a run's checkpoints to deliver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// The checkpoints that a sink did not receive, according to the ledger.
    Missing,
    /// All checkpoints in the run folder. Even delivered ones are included, because the ledger does not
    /// record whether a sink's address has changed.
    All,
}

/// A checkpoint to deliver to a sink.
#[derive(Clone, Debug)]
pub(super) enum Owed {
    /// A checkpoint that is already recorded as queued.
    Queued(Arc<CheckpointDir>),
    /// Any other intact checkpoint. For example, its delivery failed, or it was never queued.
    Again(Arc<CheckpointDir>),
    /// A checkpoint that exists but is damaged, with the reason.
    Damaged(Step, String),
    /// A checkpoint that no longer exists and cannot be delivered.
    Gone(Step),
}

impl Backlog {
    /// Reads which checkpoints these sinks have not received. If the run goes back to the step `up_to`,
    /// ignores the ledger entries of later checkpoints.
    ///
    /// # Errors
    /// Returns an error if the store cannot be read.
    pub(crate) fn read(
        dir: &RunDir,
        reader: &Reader,
        sinks: &[String],
        up_to: Option<Step>,
        wanted: Wanted,
    ) -> Result<Self> {
        let mut ledger = reader.deliveries()?;
        ledger.retain(|entry| up_to.is_none_or(|step| entry.checkpoint <= step));
        let folders: BTreeMap<Step, _> = dir.checkpoint_folders().into_iter().collect();
        let standing: BTreeSet<Step> = folders.keys().copied().collect();
        let debts: Vec<(&String, Vec<(Step, Debt)>)> = sinks
            .iter()
            .map(|sink| (sink, debts(&ledger, &standing, sink, wanted)))
            .filter(|(_, debts)| !debts.is_empty())
            .collect();
        let steps: BTreeSet<Step> = debts.iter().flat_map(|(_, d)| d).map(|d| d.0).collect();
        let mut metrics = evaluations(reader, &steps)?;
        let checkpoints: BTreeMap<Step, Result<Arc<CheckpointDir>, String>> = steps
            .into_iter()
            .filter_map(|step| {
                let metrics = metrics.remove(&step).unwrap_or_default();
                let found = checkpoint(step, folders.get(&step)?, metrics);
                Some((step, found.map(Arc::new)))
            })
            .collect();
        let owed = |(step, debt): (Step, Debt)| match (checkpoints.get(&step), debt) {
            (None, _) => Owed::Gone(step),
            (Some(Err(reason)), _) => Owed::Damaged(step, reason.clone()),
            (Some(Ok(checkpoint)), Debt::Queued) => Owed::Queued(Arc::clone(checkpoint)),
            (Some(Ok(checkpoint)), _) => Owed::Again(Arc::clone(checkpoint)),
        };
        Ok(Self {
            of_sinks: debts
                .into_iter()
                .map(|(sink, debts)| (sink.clone(), debts.into_iter().map(owed).collect()))
                .collect(),
            removed: removed(&ledger, &standing, sinks),
            lost: lost(&ledger, sinks),
        })
    }

    /// Returns the checkpoints that a sink has not received.
    pub(super) fn of(&self, sink: &str) -> &[Owed] {
        self.of_sinks.get(sink).map_or(&[], Vec::as_slice)
    }

    /// Whether there is a checkpoint that the sink has not received.
    pub(crate) fn owes(&self, sink: &str) -> bool {
        self.of_sinks.contains_key(sink)
    }

    /// Formats the backlog as `hub-git (2 checkpoints), local-disk (1 checkpoint)`. None if the backlog is
    /// empty.
    pub(crate) fn describe(&self) -> Option<String> {
        let of_sinks = self.of_sinks.iter();
        let told: Vec<String> = of_sinks.map(|(sink, o)| count(sink, o.len())).collect();
        (!told.is_empty()).then(|| told.join(", "))
    }

    /// Returns the sinks that the run no longer has, each with the steps that it did not receive.
    pub(super) fn removed_sinks(&self) -> impl Iterator<Item = (&str, &[Step])> {
        let removed = self.removed.iter();
        removed.map(|(sink, steps)| (sink.as_str(), steps.as_slice()))
    }

    /// Returns a line for each sink that the run no longer has, with the steps that the sink did not receive.
    pub(crate) fn removed(&self) -> impl Iterator<Item = String> {
        self.removed.iter().map(|(sink, steps)| {
            let steps = joined(steps);
            format!("{sink} is no longer a sink of this run and did not receive step {steps}")
        })
    }

    /// Returns a line for each sink to which some checkpoints can never be delivered, because they were lost.
    pub(crate) fn lost(&self) -> impl Iterator<Item = String> {
        self.lost.iter().map(|(sink, steps)| {
            let steps = joined(steps);
            format!("{sink} did not receive step {steps}, which the run folder no longer has")
        })
    }
}

fn joined(steps: &[Step]) -> String {
    let steps: Vec<String> = steps.iter().map(ToString::to_string).collect();
    steps.join(", ")
}

/// Why a sink has not received a checkpoint; see [`Owed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Debt {
    Queued,
    Again,
    Gone,
}

/// Returns the steps of the checkpoints that a sink has not received, each with the reason. Compares the
/// ledger with the checkpoints in the run folder.
fn debts(
    ledger: &[Delivery],
    standing: &BTreeSet<Step>,
    sink: &str,
    wanted: Wanted,
) -> Vec<(Step, Debt)> {
    let mut states: BTreeMap<Step, Option<DeliveryState>> =
        standing.iter().map(|step| (*step, None)).collect();
    for entry in ledger.iter().filter(|entry| entry.sink == sink) {
        states.insert(entry.checkpoint, Some(entry.state));
    }
    let debt = |(step, state): (Step, Option<DeliveryState>)| {
        use DeliveryState::{Delivered, Dropped, Failed, Queued, Sending};
        let debt = match (state, standing.contains(&step)) {
            (Some(Delivered | Dropped), true) if wanted == Wanted::All => Debt::Again,
            (Some(Delivered | Dropped), _) => return None,
            (Some(Queued), true) => Debt::Queued,
            (Some(Sending | Failed) | None, true) => Debt::Again,
            (Some(Queued | Sending | Failed), false) => Debt::Gone,
            (None, false) => return None,
        };
        Some((step, debt))
    };
    states.into_iter().filter_map(debt).collect()
}

/// Finds the sinks in the ledger that are not in `sinks`. Returns each with the steps of the checkpoints that
/// it has not received. Considers only checkpoints that are in the run folder.
fn removed(
    ledger: &[Delivery],
    standing: &BTreeSet<Step>,
    sinks: &[String],
) -> Vec<(String, Vec<Step>)> {
    let mut removed: BTreeMap<&str, Vec<Step>> = BTreeMap::new();
    for entry in ledger {
        let is_owed = !matches!(
            entry.state,
            DeliveryState::Delivered | DeliveryState::Dropped
        );
        if is_owed && standing.contains(&entry.checkpoint) && !sinks.contains(&entry.sink) {
            let steps = removed.entry(&entry.sink).or_default();
            steps.push(entry.checkpoint);
        }
    }
    removed
        .into_iter()
        .map(|(sink, steps)| (sink.to_owned(), steps))
        .collect()
}

/// Returns each of these sinks with the steps of the checkpoints that the ledger records as lost. Excludes
/// checkpoints that were replaced by newer ones.
fn lost(ledger: &[Delivery], sinks: &[String]) -> Vec<(String, Vec<Step>)> {
    let of = |sink: &String| {
        let is_lost = |entry: &&Delivery| {
            entry.sink == *sink
                && entry.state == DeliveryState::Dropped
                && !is_superseded(&entry.detail)
        };
        let steps = ledger.iter().filter(is_lost).map(|entry| entry.checkpoint);
        (sink.clone(), steps.collect::<Vec<Step>>())
    };
    let lost = sinks.iter().map(of);
    lost.filter(|(_, steps)| !steps.is_empty()).collect()
}

/// Reads the checkpoint in a folder. Does not check its files: they are checked before they are sent.
fn checkpoint(
    step: Step,
    folder: &Path,
    metrics: Vec<MetricValue>,
) -> Result<CheckpointDir, String> {
    let manifest = host_train::read_manifest(folder).map_err(|error| error.message().to_owned())?;
    Ok(CheckpointDir {
        step,
        path: folder.to_owned(),
        manifest,
        metrics,
    })
}

/// Reads the evaluation metrics that belong to the checkpoints at these steps.
fn evaluations(
    reader: &Reader,
    steps: &BTreeSet<Step>,
) -> Result<BTreeMap<Step, Vec<MetricValue>>> {
    let mut found = BTreeMap::new();
    let mut cursor = 0;
    while !steps.is_empty() {
        let page = reader.events_after(cursor, PAGE)?;
        let Some(last) = page.last() else { break };
        cursor = last.seq;
        for event in page {
            if let EventBody::Metrics { mut values } = event.body
                && steps.contains(&event.step)
                && values.pop_if(|value| &*value.name == EVAL_SECS).is_some()
            {
                // Later values of a repeated step replace the earlier ones.
                found.insert(event.step, values);
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use DeliveryState::{Delivered, Dropped, Failed, Queued, Sending};

    fn entry(sink: &str, step: u64, state: DeliveryState) -> Delivery {
        Delivery {
            sink: sink.to_owned(),
            checkpoint: Step(step),
            state,
            detail: String::new(),
            retry_time_us: None,
            seq: step,
            time_us: 0,
        }
    }

    fn standing(steps: &[u64]) -> BTreeSet<Step> {
        steps.iter().copied().map(Step).collect()
    }

    #[test]
    fn undelivered_checkpoints_in_the_run_folder_are_owed_in_order() {
        let ledger = [
            entry("a", 10, Delivered),
            entry("a", 20, Failed),
            entry("a", 30, Sending),
            entry("a", 40, Queued),
            entry("a", 45, Dropped),
            entry("b", 10, Queued),
        ];
        // The process died before it could queue step 50.
        let standing = standing(&[10, 20, 30, 40, 45, 50]);
        assert_eq!(
            debts(&ledger, &standing, "a", Wanted::Missing),
            [
                (Step(20), Debt::Again),
                (Step(30), Debt::Again),
                (Step(40), Debt::Queued),
                (Step(50), Debt::Again)
            ]
        );
        let all = debts(&ledger, &standing, "a", Wanted::All);
        assert_eq!(all.len(), standing.len());
        let added: Vec<u64> = debts(&ledger, &standing, "new", Wanted::Missing)
            .iter()
            .map(|debt| debt.0.0)
            .collect();
        assert_eq!(added, [10, 20, 30, 40, 45, 50]);
    }

    #[test]
    fn a_missing_checkpoint_is_reported_once_unless_it_was_delivered() {
        let ledger = [
            entry("a", 10, Delivered),
            entry("a", 20, Failed),
            entry("a", 30, Sending),
            entry("a", 40, Queued),
        ];
        let expected = [20, 30, 40].map(|step| (Step(step), Debt::Gone));
        assert_eq!(
            debts(&ledger, &standing(&[]), "a", Wanted::Missing),
            expected
        );
        let said = [20, 30, 40].map(|step| entry("a", step, Dropped));
        assert_eq!(debts(&said, &standing(&[]), "a", Wanted::Missing), []);
    }

    #[test]
    fn a_sink_that_was_removed_is_named_with_what_it_lacks() {
        let ledger = [
            entry("a", 10, Failed),
            entry("b", 10, Delivered),
            entry("b", 20, Failed),
            entry("b", 30, Queued),
            entry("b", 40, Queued),
        ];
        let backlog = Backlog {
            removed: removed(&ledger, &standing(&[10, 20, 30]), &["a".to_owned()]),
            ..Backlog::default()
        };
        let told: Vec<String> = backlog.removed().collect();
        assert_eq!(
            told,
            ["b is no longer a sink of this run and did not receive step 20, 30"]
        );
        assert_eq!(backlog.describe(), None);
    }
}
