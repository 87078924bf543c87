use std::io::IsTerminal as _;

use host_core::Result;
use host_serve::{Client, Remote, WatchEnd};
use serde_json::Value;

use super::RunsDir;
use super::remote::{RemoteArgs, is_address};
use crate::dashboard::{self, Target};
use crate::login_name::login_name;
use crate::progress::{Progress, Style};
use crate::run_dir::RunDir;

const KEYS: &str = "\
In a terminal it is a dashboard, of a live run or of a finished one; `?` there names the keys. Some ask
the run for something: to stop, to pause, for a checkpoint or an evaluation. That takes the control token,
which a live run's folder has; of a run elsewhere, give the address and --token-env.";

/// Shows a run over gRPC: in a terminal as a dashboard, else in lines
#[derive(Debug, clap::Args)]
#[command(after_help = KEYS)]
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

    /// Write lines in a terminal, too
    #[arg(long, conflicts_with = "json")]
    plain: bool,

    #[command(flatten)]
    remote: RemoteArgs,

    #[command(flatten)]
    runs: RunsDir,
}

impl Watch {
    pub(super) fn execute(&self) -> Result<()> {
        match self.is_dashboard() {
            true => dashboard::show(self.target()?, &self.run, self.after, login_name()),
            false => self.print(),
        }
    }

    /// Whether there is a screen to draw on, and lines were not asked for.
    fn is_dashboard(&self) -> bool {
        let is_dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        !self.plain && !self.json && !is_dumb && std::io::stdout().is_terminal()
    }

    /// What the dashboard connects to, and connects to again.
    fn target(&self) -> Result<Target> {
        let (remote, target, runs) = (self.remote.clone(), self.target.clone(), self.runs.clone());
        let remote: Box<dyn Fn() -> Result<Remote> + Send> =
            Box::new(move || remote.resolve(&target, &runs));
        if is_address(&self.target) {
            return Ok(Target::server(remote));
        }
        let dir = RunDir::find(&self.runs.runs_dir, &self.target)?;
        Ok(Target::run(dir, remote))
    }

    fn print(&self) -> Result<()> {
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
                "the run's process is gone; `host resume {}` resumes it from its newest checkpoint",
                run.name
            ));
        }
        Ok(())
    }
}
