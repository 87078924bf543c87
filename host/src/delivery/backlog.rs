use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use host_core::{CheckpointDir, DeliveryState, EventBody, MetricValue, Result, Step};
use host_store::{Delivery, Reader};

use super::{count, is_superseded};
use crate::runs::run_dir::RunDir;

/// Events looked at in one go.
const PAGE: usize = 10_000;

/// What the end of an evaluation's values is known by: it is a time of the host's, and no sink's.
const EVAL_SECS: &str = "eval_secs";

/// What an earlier process of a run left to deliver: by the ledger in the run's store, every checkpoint
/// that stands in its folder and that a sink does not have, those of before a sink was added included.
#[derive(Debug, Default)]
pub(crate) struct Backlog {
    /// By the sink's label, in the order of the steps; none is empty.
    of_sinks: BTreeMap<String, Vec<Owed>>,
    /// What is owed to sinks that the run no longer has.
    removed: Vec<(String, Vec<Step>)>,
    /// What was lost before a sink had it.
    lost: Vec<(String, Vec<Step>)>,
}

/// What of a run's checkpoints is to be delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// What a sink does not have by the ledger.
    Missing,
    /// All that stands, whatever the ledger says: it does not know of a sink that it has another address now.
    All,
}

/// A checkpoint that a sink does not have.
#[derive(Clone, Debug)]
pub(super) enum Owed {
    /// It waits, and is on record as waiting.
    Queued(Arc<CheckpointDir>),
    /// It was on its way, had failed, or the sink was never told of it.
    Again(Arc<CheckpointDir>),
    /// It stands, but cannot be used as it is, and why.
    Damaged(Step, String),
    /// It is gone, and cannot be delivered any more.
    Gone(Step),
}

impl Backlog {
    /// What is owed to these sinks. Of the ledger, entries beyond `up_to` do not count: the run goes
    /// back there.
    ///
    /// # Errors
    /// The store cannot be read.
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

    /// What is owed to a sink.
    pub(super) fn of(&self, sink: &str) -> &[Owed] {
        self.of_sinks.get(sink).map_or(&[], Vec::as_slice)
    }

    /// Whether anything is owed to this sink.
    pub(crate) fn owes(&self, sink: &str) -> bool {
        self.of_sinks.contains_key(sink)
    }

    /// `hub-git (2 checkpoints), local-disk (1 checkpoint)`; none if nothing is left.
    pub(crate) fn describe(&self) -> Option<String> {
        let of_sinks = self.of_sinks.iter();
        let told: Vec<String> = of_sinks.map(|(sink, o)| count(sink, o.len())).collect();
        (!told.is_empty()).then(|| told.join(", "))
    }

    /// The sinks that the run no longer has, each with what it lacks.
    pub(super) fn removed_sinks(&self) -> impl Iterator<Item = (&str, &[Step])> {
        let removed = self.removed.iter();
        removed.map(|(sink, steps)| (sink.as_str(), steps.as_slice()))
    }

    /// What cannot be delivered since its sink is gone, a line for each.
    pub(crate) fn removed(&self) -> impl Iterator<Item = String> {
        self.removed.iter().map(|(sink, steps)| {
            let steps = joined(steps);
            format!("{sink} is no longer a sink of this run, and did not get step {steps}")
        })
    }

    /// What a sink never got and never will, a line for each.
    pub(crate) fn lost(&self) -> impl Iterator<Item = String> {
        self.lost.iter().map(|(sink, steps)| {
            let steps = joined(steps);
            format!("{sink} did not get step {steps}, which the run folder no longer has")
        })
    }
}

fn joined(steps: &[Step]) -> String {
    let steps: Vec<String> = steps.iter().map(ToString::to_string).collect();
    steps.join(", ")
}

/// How a checkpoint came to be owed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Debt {
    Queued,
    Again,
    Gone,
}

/// What is owed to a sink by the ledger, given the checkpoints that stand in the run folder.
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

/// What stands and is owed to sinks that are not among these.
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

/// What these sinks lost by the ledger, though nothing newer was wanted in its place.
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

/// The checkpoint in a folder. Its files are not looked at: whoever sends them does.
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

/// The evaluations' values at these steps, as the checkpoints had them.
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
                // A step that was done again has its values again.
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
    fn what_stands_and_was_not_delivered_is_owed_in_order() {
        let ledger = [
            entry("a", 10, Delivered),
            entry("a", 20, Failed),
            entry("a", 30, Sending),
            entry("a", 40, Queued),
            entry("a", 45, Dropped),
            entry("b", 10, Queued),
        ];
        // The process died before it could queue the last.
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
    fn what_is_gone_is_said_once_and_delivered_is_delivered() {
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
            ["b is no longer a sink of this run, and did not get step 20, 30"]
        );
        assert_eq!(backlog.describe(), None);
    }
}
