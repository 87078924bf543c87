use clap::Subcommand;
use host_core::{Ask, Request, Result};
use host_serve::Client;
use serde_json::json;

use super::remote::RemoteArgs;
use super::{RunsDir, print, print_json};
use crate::cli::login_name::login_name;
use crate::show::event_line;

const DETAILS: &str = "\
The training loop accepts the request at the next step boundary; then this command returns. The results, \
such as a checkpoint, are later events of the run. The request is also an event, with --by and --reason. The token is read from control.token in the \
folder of your own live run. If the run was started with --control-token-env, pass --token-env. For a \
run on another machine, pass its address, --token-env and --tls-fingerprint.

Examples:
  host control demo pause --reason \"the GPU is needed\"
  host control demo set-lr 0.5
  host control https://gpu1:6006 stop --token-env HOST_TOKEN --tls-fingerprint 3f…";

/// Controls a live run: stop, pause, continue, evaluate, write a checkpoint, set the learning rate
#[derive(Debug, clap::Args)]
#[command(after_help = DETAILS)]
pub(crate) struct Control {
    /// Run name or folder, or the address of its server
    target: String,

    #[command(subcommand)]
    verb: Verb,

    /// Reason to record in the run's events
    #[arg(
        long,
        value_name = "TEXT",
        global = true,
        default_value = "",
        hide_default_value = true
    )]
    reason: String,

    /// Name to record in the run's events [default: the current user]
    #[arg(long, value_name = "NAME", global = true)]
    by: Option<String>,

    /// Print the result as JSON
    #[arg(long, global = true)]
    json: bool,

    #[command(flatten)]
    remote: RemoteArgs,

    #[command(flatten)]
    runs: RunsDir,
}

#[derive(Clone, Copy, Debug, Subcommand)]
enum Verb {
    /// Stops training, with an evaluation and a checkpoint
    #[command(after_help = "Example:\n  host control demo stop")]
    Stop,
    /// Writes a checkpoint
    #[command(after_help = "Example:\n  host control demo checkpoint")]
    Checkpoint,
    /// Evaluates the model
    #[command(after_help = "Example:\n  host control demo evaluate")]
    Evaluate,
    /// Pauses training at the next step boundary
    #[command(after_help = "Example:\n  host control demo pause --reason \"the GPU is needed\"")]
    Pause,
    /// Continues after a pause
    #[command(after_help = "Example:\n  host control demo continue")]
    Continue,
    /// Sets the learning rate to a multiple of the schedule's
    #[command(after_help = "Example:\n  host control demo set-lr 0.5")]
    SetLr {
        /// Factor for the schedule's rate from now on; 1 restores the schedule
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
                "step {:<6}  {by} requested {words} (event {})\n",
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
    fn server_options_are_accepted_after_the_verb() {
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
