use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use host_core::{Error, ErrorKind, Event, Result};
use host_serve::{Client, Remote, WatchEnd};
use host_store::RunRow;
use serde_json::Value;

use super::RunsDir;
use super::remote::{RemoteArgs, is_address};
use crate::cli::login_name::login_name;
use crate::dashboard;
use crate::runs::run_dir::RunDir;
use crate::runs::target::Target;
use crate::show::event_json::event_json;
use crate::show::narration::Narration;
use crate::show::printer::Printer;
use crate::show::terminal::can_draw;
use crate::show::{outlet, printable};

/// How long a run that is there but does not answer is tried again, and how often.
const PATIENCE: Duration = Duration::from_secs(30);
const RETRY: Duration = Duration::from_millis(250);

const KEYS: &str = "\
In a terminal it is a dashboard, of a live run or of a finished one; `?` there names the keys. Some ask
the run for something: to stop, to pause, for a checkpoint or an evaluation. That takes the control token,
which a live run's folder has; of a run elsewhere, give the address and --token-env.";

/// Shows a run over gRPC: in a terminal as a dashboard, else in lines
#[derive(Debug, clap::Args)]
#[command(after_help = KEYS)]
pub(crate) struct Watch {
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
        !self.plain && !self.json && can_draw(&std::io::stdout())
    }

    /// What is connected to, and connected to again.
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

    /// Writes the events to stdout until the run ends, or the pipe is closed.
    fn print(&self) -> Result<()> {
        leave_when_unread()?;
        let mut target = self.target()?;
        let (mut client, _) = target.connect()?;
        let run = client.run(target.name().unwrap_or(&self.run))?;
        let mut lines = EventLines::new(&run, self.json);
        lines.say(&format!("run {} at step {}", run.name, run.last_step))?;

        let mut cursor = self.after;
        let mut give_up_at = None;
        let end = loop {
            let before = cursor;
            let error = match follow(&client, &target, &run.name, &mut cursor, &mut lines) {
                Ok(Some(end)) => break end,
                Ok(None) => return Ok(()),
                Err(error) => error,
            };
            // A run by its name may be read elsewhere: from its folder, or where it was resumed.
            let now = Instant::now();
            if cursor > before {
                give_up_at = None;
            }
            let give_up_at = *give_up_at.get_or_insert(now + PATIENCE);
            if target.name().is_none() || error.kind() == ErrorKind::Config || now >= give_up_at {
                return Err(error);
            }
            std::thread::sleep(RETRY);
            if let Ok((again, _)) = target.connect() {
                client = again;
            }
        };
        if end == WatchEnd::RunCrashed {
            lines.say(&format!(
                "the run's process is gone; `host resume {}` resumes it from its newest checkpoint",
                run.name
            ))?;
        }
        Ok(())
    }
}

/// Writes the events of one connection; none if the pipe is closed.
fn follow(
    client: &Client,
    target: &Target,
    run: &str,
    cursor: &mut u64,
    lines: &mut EventLines,
) -> Result<Option<WatchEnd>> {
    let mut watch = client.watch(run, *cursor, true);
    if target.name().is_some() {
        // Whether it is worth waiting for, its folder says.
        watch = watch.patience(Duration::ZERO);
    }
    for event in &mut watch {
        let event = event?;
        *cursor = event.seq;
        if !lines.write(&event)? {
            return Ok(None);
        }
    }
    Ok(Some(watch.end().unwrap_or(WatchEnd::CaughtUp)))
}

/// Events on stdout, as lines for people or for programs.
struct EventLines {
    is_json: bool,
    narration: Narration,
}

impl EventLines {
    fn new(run: &RunRow, is_json: bool) -> Self {
        let config: Value = serde_json::from_str(&run.config_json).unwrap_or_default();
        let mut narration = Narration::new(config["max_train_steps"].as_u64().unwrap_or(0));
        narration.catch_up(run.last_time_us);
        Self { is_json, narration }
    }

    /// False if the pipe is closed.
    fn write(&mut self, event: &Event) -> Result<bool> {
        if self.is_json {
            let line = format!("{}\n", event_json(event));
            return super::write(printable::json(&line).as_bytes());
        }
        for line in self.narration.lines(event) {
            if !super::write(format!("{line}\n").as_bytes())? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// What is no event: beside those that are for programs.
    fn say(&self, line: &str) -> Result<()> {
        match self.is_json {
            true => Printer::of_process().insist(line),
            false => super::print(&format!("{line}\n"))?,
        }
        Ok(())
    }
}

/// Ends the process when stdout is closed, as behind `| head`: the next event may be far.
fn leave_when_unread() -> Result<()> {
    let wait = || {
        if outlet::wait_for_no_reader(std::io::stdout().as_fd()).is_ok() {
            signal_hook::low_level::exit(0);
        }
    };
    std::thread::Builder::new()
        .name("stdout".to_owned())
        .spawn(wait)
        .map(drop)
        .map_err(|e| Error::new(ErrorKind::System, format!("cannot start a thread: {e}")))
}
