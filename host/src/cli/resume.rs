use host_core::Result;

use super::RunsDir;
use crate::config::TrainArgs;
use crate::plan::Plan;
use crate::runs::run_dir::RunDir;

const DETAILS: &str = "\
A run that was ended before its first checkpoint begins again. A damaged checkpoint is refused, and the
one before it offered. With --from, what was recorded after that checkpoint no longer counts, and the
later checkpoints stay in the run folder as step-000040.superseded-1; remove them when you like.";

/// Resumes a run from its newest checkpoint, exactly
#[derive(Debug, clap::Args)]
#[command(after_help = DETAILS)]
pub(crate) struct Resume {
    /// The run's name or folder
    run: String,

    /// Go back to this checkpoint (step-000020, or 20) instead of the newest
    #[arg(long, value_name = "CHECKPOINT")]
    from: Option<String>,

    /// Train to this optimizer step instead of the one the run was started with
    #[arg(long, value_name = "STEPS")]
    max_train_steps: Option<u64>,

    /// Where gRPC listens, instead of where the run was started with
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<String>,

    /// What comes of a sink that is not ready, instead of what the run was started with
    #[arg(long, value_name = "WHAT", value_parser = ["fail", "warn", "off"])]
    preflight: Option<String>,

    /// Device to train on, instead of the one that the run is on; see the run's --device
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,

    /// Threads of a CPU training, instead of as many as before
    #[arg(long, value_name = "THREADS")]
    threads: Option<usize>,

    /// Write each event to stdout as a line of JSON, and nothing else
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    runs: RunsDir,
}

impl Resume {
    /// The plan that resumes the run, the run's folder, and where to go back to.
    pub(crate) fn plan(&self) -> Result<(Plan, RunDir, Option<&str>)> {
        let dir = RunDir::find(&self.runs.runs_dir, &self.run)?;
        let flags = TrainArgs::resuming(
            self.max_train_steps,
            self.listen.clone(),
            self.preflight.clone(),
            (self.device.clone(), self.threads),
        );
        let plan = Plan {
            // A run may have been moved.
            runs_dir: dir.runs_dir().to_owned(),
            ..Plan::read(Some(&dir.config_file()), &flags)?
        };
        Ok((plan, dir, self.from.as_deref()))
    }
}
