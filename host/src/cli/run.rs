use std::path::PathBuf;

use host_core::Result;

use crate::config::TrainArgs;
use crate::plan::Plan;

const EXAMPLES: &str = "\
CONFIG.toml has the same arguments with _ for - (max_train_steps = 100), and a [[plugin]] table for
each plugin. Flags go before it, and it goes before the defaults. A relative path in it is relative
to its own folder. The spelling of CodeParrot's script works as well: --train_batch_size 4.

Plugins are found by id in HOST_PLUGIN_PATH, beside this program, in $XDG_DATA_HOME/host/plugins and
in /usr/lib/host/plugins. Without one for the parameter groups, weight-decay is used. Beside its
settings a plugin takes on_error: warn (the default: a failure is an event, and it is called again),
disable_after=N (not after N failures in a row) or fail (the run ends, after a checkpoint, with exit
code 3); and time_limit_secs, beyond which a call has failed. A sink takes queue: all (the default:
it gets every checkpoint, in order) or latest (of those that wait for it, only the newest).

Example:
  host run --data ~/src --extensions rs --model demo --seq-length 256 --max-train-steps 400 \\
      --plugin weight-decay --plugin perplexity --plugin local-disk:dir=/data/checkpoints,keep=3";

/// Trains a model
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Run {
    /// A TOML file with any of the arguments below
    config: Option<PathBuf>,

    #[command(flatten)]
    train: TrainArgs,

    /// Write each event to stdout as a line of JSON, and nothing else
    #[arg(long, help_heading = "Run")]
    pub(crate) json: bool,
}

impl Run {
    /// What is to be trained.
    pub(crate) fn plan(&self) -> Result<Plan> {
        Plan::read(self.config.as_deref(), &self.train)
    }
}
