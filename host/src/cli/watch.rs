use std::path::Path;

use host_core::{Error, Kind, Result};
use host_serve::{Client, WatchEnd};
use host_store::{Reader, RunStatus};
use serde_json::Value;

use super::RunsDir;
use crate::progress::{Progress, Style};
use crate::run_dir::RunDir;

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
    runs: RunsDir,
}

impl Watch {
    pub(super) fn execute(&self) -> Result<()> {
        let client = Client::connect(&self.address()?)?;
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

    /// Of the server, or of the live run's own.
    fn address(&self) -> Result<String> {
        let is_address = self.target.contains(':') && !Path::new(&self.target).exists();
        if is_address {
            return Ok(self.target.clone());
        }
        let dir = RunDir::find(&self.runs.runs_dir, &self.target)?;
        // A process that was killed leaves its address behind, so the store is asked, too.
        let status = Reader::open(dir.path())?.run()?.status;
        match std::fs::read_to_string(dir.address_file()) {
            Ok(address) if status == RunStatus::Running => Ok(address.trim().to_owned()),
            _ => Err(Error::new(
                Kind::Config,
                format!("run {} is not live: {}", dir.name(), dir.path().display()),
            )
            .hint(format!(
                "`host runs show {0}` shows what it did, `host resume {0}` goes on with it",
                dir.name()
            ))),
        }
    }
}
