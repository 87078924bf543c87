use host_core::Result;

use super::RunsDir;
use crate::config::TrainArgs;
use crate::plan::Plan;
use crate::runs::run_dir::RunDir;

const DETAILS: &str = "\
A run that stopped before its first checkpoint starts over. If a checkpoint is damaged, the error \
names an undamaged one. With --from, everything recorded after that checkpoint no longer counts; the \
later checkpoints are renamed, for example to step-000040.superseded-1, and can be deleted.

Example:
  host resume demo --max-train-steps 2000";

/// Resumes a run exactly where its newest checkpoint left off
#[derive(Debug, clap::Args)]
#[command(after_help = DETAILS)]
pub(crate) struct Resume {
    /// Run name or folder
    run: String,

    /// Go back to this checkpoint (step-000020, or 20) instead of the newest
    #[arg(long, value_name = "CHECKPOINT")]
    from: Option<String>,

    /// Train to this optimizer step, instead of the run's setting
    #[arg(long, value_name = "STEPS")]
    max_train_steps: Option<u64>,

    /// Address of the gRPC service, instead of the run's setting
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<String>,

    /// What to do if a sink is not ready, instead of the run's setting
    #[arg(long, value_name = "WHAT", value_parser = ["fail", "warn", "off"])]
    preflight: Option<String>,

    /// Device to train on, instead of the run's: cpu, cuda, cuda:N or auto
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,

    /// Threads for training on the CPU, instead of the run's setting
    #[arg(long, value_name = "THREADS")]
    threads: Option<usize>,

    /// Write each event to stdout as a line of JSON, and nothing else
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    runs: RunsDir,
}

impl Resume {
    /// Returns the plan that resumes the run, the run's folder, and the checkpoint to go back to.
    pub(crate) fn plan(&self) -> Result<(Plan, RunDir, Option<&str>)> {
        let dir = RunDir::find(&self.runs.runs_dir, &self.run)?;
        let flags = TrainArgs::resuming(
            self.max_train_steps,
            self.listen.clone(),
            self.preflight.clone(),
            (self.device.clone(), self.threads),
        );
        let plan = Plan {
            // The run folder may have been moved since the configuration was written.
            runs_dir: dir.runs_dir().to_owned(),
            ..Plan::read(Some(&dir.config_file()), &flags)?
        };
        Ok((plan, dir, self.from.as_deref()))
    }
}
