use host_core::Result;
use host_serve::{Client, WatchEnd};
use serde_json::Value;

use super::RunsDir;
use super::remote::RemoteArgs;
use crate::progress::{Progress, Style};

/// Shows a live run in the terminal, over gRPC
#[derive(Debug, clap::Args)]
pub(super) struct Watch {
    /// A run's name or folder, or the address of a server
    target: String,

    /// Which of the server's runs, if there are several
    #[arg(
        long,
        value_name = "NAME",
        default_value = "",
        hide_default_value = true
    )]
    run: String,

    /// Show only what comes after this event, by its sequence number
    #[arg(long, value_name = "SEQ", default_value_t = 0)]
    after: u64,

    /// Write each event to stdout as a line of JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    remote: RemoteArgs,

    #[command(flatten)]
    runs: RunsDir,
}

impl Watch {
    pub(super) fn execute(&self) -> Result<()> {
        let client = Client::connect_to(&self.remote.resolve(&self.target, &self.runs)?)?;
        let run = client.run(&self.run)?;
        let config: Value = serde_json::from_str(&run.config_json).unwrap_or_default();
        let last_step = config["max_train_steps"].as_u64().unwrap_or(0);
        let progress = Progress::new(Style::choose(self.json), last_step);
        progress.say(&format!("run {} at step {}", run.name, run.last_step));
        progress.begin(run.last_step);
        progress.catch_up(run.last_time_us);

        let mut watch = client.watch(&run.name, self.after, true);
        for event in &mut watch {
            match event {
                Ok(event) => progress.show(&[event]),
                Err(error) => {
                    progress.end();
                    return Err(error);
                }
            }
            if progress.has_no_reader() {
                return Ok(());
            }
        }
        progress.end();
        if watch.end() == Some(WatchEnd::RunCrashed) {
            progress.say(&format!(
                "the run's process is gone; `host resume {}` goes on from its newest checkpoint",
                run.name
            ));
        }
        Ok(())
    }
}
