use std::time::Duration;

use host_core::{Result, StopReason};

use super::RunsDir;
use crate::delivery::Wanted;
use crate::plan::plugins_of_run;
use crate::runs::run_dir::RunDir;

const DETAILS: &str = "\
Sends every checkpoint in the run folder, in order, to every sink that does not have it yet. The sinks \
are those in the run's run.toml: a sink that was added there gets all checkpoints, and a removed sink \
gets none. After changing a sink's address, use --all. `host resume` makes the same deliveries while \
it trains.

Example:
  host deliver demo --timeout 3600";

/// Delivers the checkpoints that a stopped run did not deliver
#[derive(Debug, clap::Args)]
#[command(after_help = DETAILS)]
pub(crate) struct Deliver {
    /// Run name or folder
    run: String,

    /// Also send checkpoints that were delivered before, for example to a sink whose address was changed. A
    /// sink skips a checkpoint that it already has
    #[arg(long)]
    all: bool,

    /// Give up after this many seconds; undelivered checkpoints stay queued
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
