use clap::Subcommand;
use host_core::{Ask, Request, Result};
use host_serve::Client;
use serde_json::json;

use super::remote::RemoteArgs;
use super::{RunsDir, print, print_json};
use crate::cli::login_name::login_name;
use crate::show::event_line;

const DETAILS: &str = "\
The loop does it at the next step boundary; then this returns. It is an event of the run, with who asked
and why. The token is in the folder of a live run of yours (control.token); of one that was started with
--control-token-env, give --token-env; of a run elsewhere, the address and --tls-fingerprint, too.

Examples:
  host control demo pause --reason \"the GPU is needed\"
  host control demo set-lr 0.5
  host control https://gpu1:6006 stop --token-env HOST_TOKEN --tls-fingerprint 3f…";

/// Asks a live run to stop, pause, continue, evaluate, write a checkpoint or change its learning rate
#[derive(Debug, clap::Args)]
#[command(after_help = DETAILS)]
pub(crate) struct Control {
    /// A run's name or folder, or the address of its server
    target: String,

    #[command(subcommand)]
    verb: Verb,

    /// Why, for the run's events
    #[arg(
        long,
        value_name = "TEXT",
        global = true,
        default_value = "",
        hide_default_value = true
    )]
    reason: String,

    /// Who asks, for the run's events; without it, this user
    #[arg(long, value_name = "NAME", global = true)]
    by: Option<String>,

    /// Write the outcome to stdout as JSON
    #[arg(long, global = true)]
    json: bool,

    #[command(flatten)]
    remote: RemoteArgs,

    #[command(flatten)]
    runs: RunsDir,
}

#[derive(Clone, Copy, Debug, Subcommand)]
enum Verb {
    /// Ends the training, with an evaluation and a checkpoint
    Stop,
    /// Writes a checkpoint
    Checkpoint,
    /// Evaluates the model
    Evaluate,
    /// Stands still at the step boundary
    Pause,
    /// Continues after a pause
    Continue,
    /// Sets the learning rate to a multiple of the schedule's
    SetLr {
        /// What the schedule's rate is multiplied by from now on; 1 is the schedule itself
        #[arg(allow_negative_numbers = true)]
        factor: f64,
    },
}

impl Control {
    pub(super) fn execute(&self) -> Result<()> {
        let request = self.verb.request();
        request.check()?;
        let client = Client::connect_to(&self.remote.resolve(&self.target, &self.runs)?)?;
        let ask = Ask {
            request,
            reason: self.reason.clone(),
        };
        let by = self.by.clone().unwrap_or_else(login_name);
        let done = client.ask("", &by, ask)?;
        if self.json {
            let request = serde_json::to_value(request).unwrap_or_default();
            print_json(&json!({ "request": request, "step": done.step, "seq": done.seq }))
        } else {
            let words = event_line::request_words(request);
            print(&format!(
                "step {:<6}  asked {words}: event {}\n",
                done.step, done.seq
            ))
        }
    }
}

impl Verb {
    fn request(self) -> Request {
        match self {
            Self::Stop => Request::Stop,
            Self::Checkpoint => Request::Checkpoint,
            Self::Evaluate => Request::Evaluate,
            Self::Pause => Request::Pause,
            Self::Continue => Request::Continue,
            Self::SetLr { factor } => Request::SetLearningRate { factor },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        control: Control,
    }

    #[test]
    fn what_is_about_the_server_may_stand_behind_the_verb() {
        let fingerprint = "3f".repeat(32);
        let flags = [
            ["--token-env", "HOST_TOKEN"],
            ["--tls-fingerprint", &fingerprint],
            ["--runs-dir", "elsewhere"],
        ];
        let (target, verb) = (["https://gpu1:6006"], ["set-lr", "0.5"]);
        let behind = [&["host"], &target[..], &verb, flags.as_flattened()].concat();
        let before = [&["host"], flags.as_flattened(), &target, &verb].concat();
        for line in [behind, before] {
            let control = Line::try_parse_from(line).expect("a line").control;
            let told = format!("{control:?}");
            for part in ["HOST_TOKEN", "Fingerprint", "elsewhere", "factor: 0.5"] {
                assert!(told.contains(part), "{part}: {told}");
            }
        }
    }
}
