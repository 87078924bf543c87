use std::path::PathBuf;

use host_core::Result;

use super::print;
use crate::config::TrainArgs;
use crate::plan::Plan;
use crate::run::verify_resume::verify_resume;
use crate::show::printer::Printer;

/// Proves for a training, which takes the same arguments as run, that a resume is exact: trains some
/// steps twice, kills one of the runs in the middle, resumes it, and compares every byte
#[derive(Debug, clap::Args)]
pub(crate) struct VerifyResume {
    /// A TOML file with any of the arguments below
    config: Option<PathBuf>,

    #[command(flatten)]
    train: TrainArgs,

    /// Optimizer steps before the kill, and as many after it
    #[arg(long, value_name = "STEPS", default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=1_000_000), help_heading = "Run")]
    steps: u64,
}

impl VerifyResume {
    pub(super) fn execute(&self) -> Result<()> {
        let plan = Plan::read(self.config.as_deref(), &self.train)?;
        let printer = Printer::of_process();
        let proof = verify_resume(plan, self.steps, &mut |what| printer.say(what))?;
        print(&format!(
            "the resume is exact: {} files of the last checkpoint and {} metrics are equal after {} steps\n",
            proof.files, proof.metrics, proof.steps
        ))
    }
}
