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
use crate::runs::target::{Target, read_run};
use crate::show::event_json::event_json;
use crate::show::narration::Narration;
use crate::show::printer::Printer;
use crate::show::terminal::can_draw;
use crate::show::{outlet, printable};

/// How long, and at what interval, to retry a run that exists but does not answer.
const PATIENCE: Duration = Duration::from_secs(30);
const RETRY: Duration = Duration::from_millis(250);

const KEYS: &str = "\
In a terminal, shows a dashboard of a live or finished run; `?` lists the keys. Some keys send a request \
to the run: stop, pause, write a checkpoint, evaluate. Requests need the control token. It is read from \
the folder of a live run on this machine; for other runs, pass the address and --token-env.

Examples:
  host watch demo
  host watch https://gpu1:6006 --token-env HOST_TOKEN --tls-fingerprint 3f…";

/// Follows a run over gRPC: as a dashboard in a terminal, otherwise as lines
#[derive(Debug, clap::Args)]
#[command(after_help = KEYS)]
pub(crate) struct Watch {
    /// Run name or folder, or the address of a server
    target: String,

    /// Run to show, if the server has several
    #[arg(
        long,
        value_name = "NAME",
        default_value = "",
        hide_default_value = true
    )]
    run: String,

    /// Show only the events after this sequence number
    #[arg(long, value_name = "SEQ", default_value_t = 0)]
    after: u64,

    /// Write each event to stdout as a line of JSON
    #[arg(long)]
    json: bool,

    /// Write lines even in a terminal
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

    /// Returns true if stdout is a terminal that can be drawn on and neither --plain nor --json is set.
    fn is_dashboard(&self) -> bool {
        !self.plain && !self.json && can_draw(&std::io::stdout())
    }

    /// Returns the server to connect to. Each connection looks up the address again.
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
        let run = read_run(&client, target.name().unwrap_or(&self.run))?;
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
            // Reconnects only if the run was given by name or folder: after a resume, the run's folder
            // contains the new address.
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

/// Writes the events of one connection. Returns `None` if the pipe is closed.
fn follow(
    client: &Client,
    target: &Target,
    run: &str,
    cursor: &mut u64,
    lines: &mut EventLines,
) -> Result<Option<WatchEnd>> {
    let mut watch = client.watch(run, *cursor, true);
    if target.name().is_some() {
        // Does not retry here: the caller retries, because it can find the run's new address.
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

/// Writes events to stdout, as lines for people or as JSON.
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

    /// Writes an event. Returns false if the pipe is closed.
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

    /// Writes a line that is not an event: to stderr if the events are written as JSON, otherwise to stdout.
    fn say(&self, line: &str) -> Result<()> {
        match self.is_json {
            true => Printer::of_process().insist(line),
            false => super::print(&format!("{line}\n"))?,
        }
        Ok(())
    }
}

/// Ends the process as soon as stdout is closed, for example by `| head`, and not only at the next event.
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
