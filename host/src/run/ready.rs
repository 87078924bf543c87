//! Prepares a run. A new run is prepared before its folder is created, so most failures leave no folder
//! behind.

use host_core::{Observer, Result, Supervised};
use host_train::{Collective, Start, Trainer};

use super::cache::Cache;
use super::origin::Origin;
use super::preflight::{self, CheckpointSize, Sink};
use super::ranks::{Task, group_facts};
use crate::plan::Plan;
use crate::plugins::{self, Grouping, Plugins};
use crate::runs::run_dir::RunDir;
use crate::show::console::Console;
use crate::show::progress::Progress;
use crate::show::warnings::Warnings;

/// Returns the parameter groups of a plan.
///
/// # Errors
/// Returns an error if a run with this plan could not start.
pub(crate) fn groups(plan: &Plan) -> Result<Grouping> {
    let console = Console::new(false, 0);
    let grouping = grouping(plan, &console)?;
    let warnings = console.end();
    grouping.warnings.iter().for_each(|w| warnings.warn(w));
    Ok(grouping)
}

fn grouping(plan: &Plan, Console { progress, warnings }: &Console) -> Result<Grouping> {
    plugins::show_logs(progress, warnings);
    let plugins = Plugins::load(plan)?;
    let origin = Origin::find(plan.clone(), progress, warnings)?;
    let alone = Collective::alone();
    let trainer = prepare(&origin.local, &origin.start, alone, progress)?;
    let mut grouping = plugins.group(trainer.params(), plan.train.weight_decay)?;
    grouping.warnings = [plugins.warnings(), grouping.warnings].concat();
    Ok(grouping)
}

/// A prepared training run.
pub(super) struct Ready {
    pub(super) plugins: Plugins,
    pub(super) sinks: Vec<Sink>,
    pub(super) observers: Vec<Supervised<dyn Observer>>,
    pub(super) trainer: Trainer,
    pub(super) grouping: Grouping,
}

impl Ready {
    pub(super) fn prepare(
        plan: &Plan,
        start: &Start,
        collective: &Collective,
        Console { progress, warnings }: &Console,
    ) -> Result<Self> {
        plugins::show_logs(progress, warnings);
        let plugins = Plugins::load(plan)?;
        let metrics = plugins.metrics()?;
        let sinks = plugins.sinks(|_| true)?;
        let observers = plugins.observers()?;
        for line in plugins.lines() {
            progress.say(&line);
        }
        if let Some(lock) = &plan.plugin_lock {
            progress.say(&format!("plugins are locked by {}", lock.path().display()));
        }
        collective.hand_out(Some(Task::Train(Box::new(plan.train.clone()))))?;
        let mut trainer = prepare(plan, start, collective.clone(), progress)?;
        trainer.add_metrics(metrics)?;
        let grouping = plugins.group(trainer.params(), plan.train.weight_decay)?;
        collective.compare(&group_facts(&grouping))?;
        let news = plugins.warnings().into_iter();
        news.chain(grouping.warnings.iter().cloned())
            .for_each(|warning| warnings.warn(warning));
        Ok(Self {
            plugins,
            sinks,
            observers,
            trainer,
            grouping,
        })
    }

    /// Returns the plan for `run.toml`. A setting that has no value in the plan gets the value that the run
    /// uses.
    pub(super) fn used(&self, plan: &Plan) -> Plan {
        let train = self.trainer.used(&plan.train);
        Plan {
            train,
            ..plan.clone()
        }
    }

    /// Runs the preflight.
    pub(super) fn check_sinks(
        mut self,
        plan: &Plan,
        dir: &RunDir,
        progress: &Progress,
        warnings: &Warnings,
    ) -> Result<Self> {
        let size = CheckpointSize::of(self.trainer.params());
        let (sinks, faults) = preflight::check(plan.preflight, dir, size, self.sinks, progress)?;
        self.sinks = sinks;
        faults.into_iter().for_each(|fault| warnings.warn(fault));
        Ok(self)
    }
}

fn prepare(
    plan: &Plan,
    start: &Start,
    collective: Collective,
    progress: &Progress,
) -> Result<Trainer> {
    let cache = Cache::find()?;
    if let Some(warning) = &cache.warning {
        progress.say(&format!("warning: {warning}"));
    }
    let say = &mut |what: &str| progress.busy(what);
    let trainer = Trainer::prepare(&plan.train, start, cache.folder(), collective, say)?;
    progress.begin(trainer.step());
    progress.say(&trainer.summary());
    Ok(trainer)
}
