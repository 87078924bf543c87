use std::time::Duration;

use host_core::{Result, StopReason};

use super::RunsDir;
use crate::delivery::Wanted;
use crate::plan::plugins_of_run;
use crate::runs::run_dir::RunDir;

const DETAILS: &str = "\
Every checkpoint that stands in the run folder goes to every sink that does not have it, in order, each
once; what was delivered before is not sent again. The sinks are those of the run's run.toml: one that
was added there gets all checkpoints, one that was removed gets none, and one whose address was changed gets
all with --all. `host resume` does the same beside
the training.";

/// Finishes the deliveries that a stopped run left
#[derive(Debug, clap::Args)]
#[command(after_help = DETAILS)]
pub(crate) struct Deliver {
    /// The run's name or folder
    run: String,

    /// Offer every checkpoint that stands, those that were delivered as well: to a sink whose address was
    /// changed. What it has it does not take twice
    #[arg(long)]
    all: bool,

    /// Give up after this many seconds; what is not delivered stays queued
    #[arg(long, value_name = "SECS", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=31_536_000))]
    timeout: u64,

    /// Write each event to stdout as a line of JSON, and nothing else
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    runs: RunsDir,
}

impl Deliver {
    pub(super) fn execute(&self) -> Result<StopReason> {
        let dir = RunDir::find(&self.runs.runs_dir, &self.run)?;
        let (specs, search, secrets) = plugins_of_run(&dir.config_file())?;
        let patience = Duration::from_secs(self.timeout);
        let wanted = match self.all {
            true => Wanted::All,
            false => Wanted::Missing,
        };
        let sinks = (&specs[..], &search, secrets);
        crate::run::deliver::deliver(&dir, sinks, wanted, patience, self.json)
    }
}
