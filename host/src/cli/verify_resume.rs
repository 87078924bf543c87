use std::path::PathBuf;

use host_core::Result;

use super::print;
use crate::config::TrainArgs;
use crate::plan::Plan;
use crate::run::verify_resume::verify_resume;
use crate::show::printer::Printer;

const DETAILS: &str = "\
Takes the same arguments as `host run`. Trains twice for 2 * --steps optimizer steps, kills the second \
training halfway, resumes it, and compares the files of the last checkpoints and the metrics of both. \
The runs are deleted afterwards, and nothing is sent to sinks.

Example:
  host verify-resume --data ~/src --model tiny --seq-length 128 --steps 4";

/// Checks that a killed and resumed training equals an uninterrupted one, byte for byte
#[derive(Debug, clap::Args)]
#[command(after_help = DETAILS)]
pub(crate) struct VerifyResume {
    /// TOML file with any of the arguments below
    config: Option<PathBuf>,

    #[command(flatten)]
    train: TrainArgs,

    /// Optimizer steps before the kill, and again after it
    #[arg(long, value_name = "STEPS", default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=1_000_000), help_heading = "Run")]
    steps: u64,
}

impl VerifyResume {
    pub(super) fn execute(&self) -> Result<()> {
        let plan = Plan::read(self.config.as_deref(), &self.train)?;
        let printer = Printer::of_process();
        let proof = verify_resume(plan, self.steps, &mut |what| printer.say(what))?;
        print(&format!(
            "the resume is exact: {} files of the last checkpoint and {} metrics are identical after {} steps\n",
            proof.files, proof.metrics, proof.steps
        ))
    }
}
