use std::path::PathBuf;

use host_core::Result;
use host_train::Launch;

use crate::config::TrainArgs;
use crate::config::train_args::RANKS;
use crate::plan::Plan;
use crate::run::launcher;

const EXAMPLES: &str = "\
CONFIG accepts the same arguments, with _ for - (max_train_steps = 100), and a [[plugin]] table for \
each plugin. Flags override CONFIG, and CONFIG overrides the defaults. A relative path in CONFIG is \
relative to its folder. Flags in the spelling of CodeParrot's script, such as --train_batch_size 4, \
are accepted too.

Plugins are found by id in HOST_PLUGIN_PATH, next to this program, in $XDG_DATA_HOME/host/plugins \
and in /usr/lib/host/plugins. If no plugin provides the parameter groups, weight-decay is used. \
In addition to its own settings, every plugin accepts:
  on_error         what to do when a call fails: warn (default: record an event and continue),
                   disable_after=N (stop calling the plugin after N failures in a row) or fail
                   (stop the run, after a checkpoint, with exit code 3)
  time_limit_secs  time limit of a call; a call that takes longer has failed
  queue            for sinks: all (default: deliver every checkpoint, in order) or latest (of the
                   waiting checkpoints, deliver only the newest)

Example:
  host run --data ~/src --extensions rs --model demo --seq-length 256 --max-train-steps 400 \\
      --plugin weight-decay --plugin perplexity --plugin local-disk:dir=/data/checkpoints,keep=3";

/// Trains a model
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Run {
    /// TOML file with any of the arguments below
    config: Option<PathBuf>,

    #[command(flatten)]
    train: TrainArgs,

    /// Start this many processes on this machine, which train together
    #[arg(long, value_name = "COUNT", help_heading = RANKS)]
    nproc: Option<usize>,

    /// Write each event to stdout as a line of JSON, and nothing else
    #[arg(long, help_heading = "Run")]
    pub(crate) json: bool,
}

impl Run {
    /// Returns the number of processes to start, unless this process is one of them.
    ///
    /// # Errors
    /// Returns an error if the number is 0, or the variables of a launcher contradict each other.
    pub(crate) fn launches(&self) -> Result<Option<usize>> {
        let Some(count) = self.nproc else {
            return Ok(None);
        };
        launcher::check(count)?;
        Ok(Launch::from_env()?.is_none().then_some(count))
    }

    /// Reads the plan of the training.
    pub(crate) fn plan(&self) -> Result<Plan> {
        Plan::read(self.config.as_deref(), &self.train)
    }
}
