use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use clap::Subcommand;
use host_core::{DeliveryState, Event, EventBody, Result, RunName, Step};
use host_store::{Delivery, Reader, RunList, RunRow, RunStatus};
use serde_json::{Value, json};

use super::{RunsDir, print, print_json, runs_compare, runs_export};
use crate::delivery::is_superseded;
use crate::runs::how_to_name;
use crate::runs::run_dir::RunDir;
use crate::show::event_json;
use crate::show::event_line::{event_line, one_line, reason_word};
use crate::show::number;
use crate::show::printer::Printer;
use crate::show::sparkline::sparkline;
use crate::show::table::{Align, Table};

const EXAMPLES: &str = "\
Examples:
  host runs list
  host runs compare demo demo-2";

const LIST_EXAMPLE: &str = "\
Example:
  host runs list --runs-dir /data/runs";

const SHOW_EXAMPLE: &str = "\
Example:
  host runs show demo";

/// Lists, shows, compares and exports runs, live or finished
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Runs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Lists the runs, with their status and last step
    #[command(after_help = LIST_EXAMPLE)]
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        runs: RunsDir,
    },
    /// Shows a run: status, metrics, plugins, checkpoints, deliveries, warnings, configuration
    #[command(after_help = SHOW_EXAMPLE)]
    Show {
        /// Run name or folder
        run: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        runs: RunsDir,
    },
    Compare(runs_compare::Compare),
    Export(runs_export::Export),
}

impl Runs {
    pub(super) fn execute(&self) -> Result<()> {
        match &self.command {
            Command::List { json, runs } => list(&runs.runs_dir, *json),
            Command::Show { run, json, runs } => {
                let shown = Shown::read(&RunDir::find(&runs.runs_dir, run)?)?;
                match json {
                    true => print_json(&shown.json()),
                    false => print(&shown.text()),
                }
            }
            Command::Compare(compare) => compare.execute(),
            Command::Export(export) => export.execute(),
        }
    }
}

fn list(runs_dir: &Path, json: bool) -> Result<()> {
    for folder in odd_folders(runs_dir) {
        Printer::of_process().say(&format!(
            "not shown: {folder:?} is not a valid run name; rename the folder to list the run"
        ));
    }
    let runs: Vec<Listed> = RunList::new(runs_dir)
        .all()?
        .into_iter()
        .map(|(name, row)| Listed::new(runs_dir, name, row))
        .collect();
    if json {
        let entries = runs.iter().map(|listed| match &listed.row {
            Ok(row) => row_json(row, listed.is_paused),
            Err(error) => json!({ "name": listed.name, "error": error.message() }),
        });
        return print_json(&entries.collect());
    }
    if runs.is_empty() {
        return print(&format!("no runs in the folder {}\n", runs_dir.display()));
    }
    print(&list_text(&runs))
}

/// Returns the run folders whose names are invalid, such as copies made by a file manager.
fn odd_folders(runs_dir: &Path) -> Vec<String> {
    let entries = runs_dir.read_dir().into_iter().flatten().flatten();
    let mut odd: Vec<String> = entries
        .filter(|entry| entry.path().join(host_store::FILE).is_file())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        // A leading dot hides a folder on purpose.
        .filter(|name| !name.starts_with('.') && name.parse::<RunName>().is_err())
        .collect();
    odd.sort();
    odd
}

/// A run in the list.
struct Listed {
    name: RunName,
    row: Result<RunRow>,
    is_paused: bool,
}

impl Listed {
    fn new(runs_dir: &Path, name: RunName, row: Result<RunRow>) -> Self {
        let is_paused = row.as_ref().is_ok_and(|row| {
            let reader = || Reader::open(&runs_dir.join(name.as_str()));
            row.status == RunStatus::Running && reader().is_ok_and(|reader| is_paused(&reader, row))
        });
        Self {
            name,
            row,
            is_paused,
        }
    }
}

/// Returns true if a run is paused on request.
pub(super) fn is_paused(reader: &Reader, row: &RunRow) -> bool {
    // Ignores a read error, which affects only one word of the output.
    row.status == RunStatus::Running && reader.is_paused().unwrap_or(false)
}

fn list_text(runs: &[Listed]) -> String {
    let mut table = Table::new([
        ("run", Align::Left),
        ("status", Align::Left),
        ("step", Align::Right),
        ("started", Align::Left),
        ("last event", Align::Left),
    ]);
    for listed in runs {
        match &listed.row {
            Ok(row) => table.row([
                listed.name.to_string(),
                status_word(row.status, listed.is_paused).to_owned(),
                row.last_step.to_string(),
                local_time(row.created_us),
                local_time(row.last_time_us),
            ]),
            Err(error) => table.row([
                listed.name.to_string(),
                format!("unreadable: {}", error.message()),
                String::new(),
                String::new(),
                String::new(),
            ]),
        }
    }
    table.render()
}

/// Everything that `host runs show` prints about a run.
struct Shown {
    dir: RunDir,
    row: RunRow,
    is_paused: bool,
    metrics: Vec<Curve>,
    /// The checkpoints, warnings and other events, without metrics and without superseded events.
    events: Vec<Event>,
    /// Sorted by sink, then by step.
    deliveries: Vec<Delivery>,
    /// The checkpoints that are in the run folder.
    standing: BTreeSet<Step>,
}

/// A metric's values over the run.
struct Curve {
    name: String,
    count: u64,
    last_step: Step,
    last: f64,
    values: Vec<f64>,
}

/// Number of points read from each curve, and of bars in its sparkline.
const POINTS: usize = 240;
const BARS: usize = 24;

/// Events per page.
const PAGE: usize = 4096;

impl Shown {
    fn read(dir: &RunDir) -> Result<Self> {
        let reader = Reader::open(dir.path())?;
        let curve = |series: host_store::Series| {
            let points = reader.history(&series.name, POINTS)?.unwrap_or_default();
            Ok(Curve {
                name: series.name.to_string(),
                count: series.count,
                last_step: series.last.step,
                last: series.last.value,
                values: points.iter().map(|point| point.value).collect(),
            })
        };
        let metrics = reader
            .series()?
            .into_iter()
            .map(curve)
            .collect::<Result<_>>()?;
        let mut events: Vec<Event> = Vec::new();
        let mut cursor = 0;
        loop {
            let page = reader.events_after(cursor, PAGE)?;
            let Some(last) = page.last() else { break };
            cursor = last.seq;
            for event in page {
                if let EventBody::Superseded { from_step, .. } = event.body {
                    events.retain(|earlier| earlier.step <= from_step);
                }
                if !matches!(event.body, EventBody::Metrics { .. }) {
                    events.push(event);
                }
            }
        }
        let row = reader.run()?;
        Ok(Self {
            dir: dir.clone(),
            is_paused: is_paused(&reader, &row),
            row,
            metrics,
            events,
            deliveries: reader.deliveries()?,
            standing: dir.checkpoint_folders().into_iter().map(|c| c.0).collect(),
        })
    }

    /// Returns the last state of each delivery, sorted by checkpoint.
    fn deliveries(&self) -> Vec<&Delivery> {
        let mut entries: Vec<&Delivery> = self.deliveries.iter().collect();
        entries.sort_by_key(|entry| entry.checkpoint);
        entries
    }

    /// Returns the delivery ledger, grouped by sink.
    fn sinks(&self) -> impl Iterator<Item = SinkLedger<'_>> {
        let by_sink = self.deliveries.chunk_by(|a, b| a.sink == b.sink);
        by_sink.map(|entries| SinkLedger {
            label: &entries[0].sink,
            entries,
        })
    }

    fn checkpoints(&self) -> impl Iterator<Item = (&str, u64, bool)> {
        self.events.iter().filter_map(|event| match &event.body {
            EventBody::CheckpointWritten { name, bytes, .. } => {
                let stands = self
                    .standing
                    .iter()
                    .any(|step| *name == step.checkpoint_name());
                Some((name.as_str(), *bytes, stands))
            }
            _ => None,
        })
    }

    fn config(&self) -> Value {
        config(&self.dir, &self.row)
    }

    fn json(&self) -> Value {
        let mut json = row_json(&self.row, self.is_paused);
        json["path"] = json!(self.dir.path().display().to_string());
        json["config"] = self.config();
        let metrics = self.metrics.iter().map(|curve| {
            json!({
                "name": curve.name,
                "points": curve.count,
                "step": curve.last_step,
                "value": event_json::number(curve.last),
            })
        });
        json["metrics"] = metrics.collect();
        let checkpoints = self
            .checkpoints()
            .map(|(name, bytes, stands)| json!({ "name": name, "bytes": bytes, "stands": stands }));
        json["checkpoints"] = checkpoints.collect();
        json["deliveries"] = self.deliveries().into_iter().map(delivery_json).collect();
        let sinks = self.sinks().map(|sink| {
            let left = sink.left().map(|entry| {
                json!({
                    "checkpoint": entry.checkpoint,
                    "state": entry.state,
                    "detail": entry.detail,
                    "stands": self.standing.contains(&entry.checkpoint),
                })
            });
            json!({
                "sink": sink.label,
                "dropped": sink.dropped().count(),
                "delivered": sink.delivered().count(),
                "last_delivered": sink.delivered().last().map(|entry| entry.checkpoint),
                "left": left.collect::<Value>(),
            })
        });
        json["sinks"] = sinks.collect();
        let warnings = self.events.iter().filter_map(|event| match event.body {
            EventBody::Warning { .. }
            | EventBody::PluginFault { .. }
            | EventBody::Request { .. } => event_line(event),
            _ => None,
        });
        json["warnings"] = warnings.collect();
        json
    }

    fn text(&self) -> String {
        let row = &self.row;
        let mut text = format!(
            "{}  {} at step {}\n{}\nstarted {}, last event {}{}\n",
            one_line(&row.name),
            status_word(row.status, self.is_paused),
            row.last_step,
            self.dir.path().display(),
            local_time(row.created_us),
            local_time(row.last_time_us),
            match row.generation {
                0 => String::new(),
                1 => ", resumed once".to_owned(),
                n => format!(", resumed {n} times"),
            },
        );
        let mut section = |heading: &str, body: String| {
            if !body.is_empty() {
                text.push_str(&format!("\n{heading}\n{body}"));
            }
        };
        section("metrics", self.metrics_text());
        section("plugins", self.plugins_text());
        section("checkpoints", self.checkpoints_text());
        section("sinks", self.sinks_text());
        let warnings = self.events.iter().filter(|event| {
            matches!(
                event.body,
                EventBody::Warning { .. }
                    | EventBody::PluginFault { .. }
                    | EventBody::Request { .. }
            )
        });
        let warnings = warnings
            .filter_map(event_line)
            .map(|line| format!("  {line}\n"));
        section("warnings", warnings.collect());
        section("configuration", config_text(&self.config()));
        text
    }

    fn metrics_text(&self) -> String {
        let mut table = Table::new([
            ("  name", Align::Left),
            ("last", Align::Right),
            ("step", Align::Right),
            ("points", Align::Right),
            ("", Align::Left),
        ]);
        let of_the_run = |curve: &&Curve| plugin_metric(&curve.name).is_none();
        for curve in self.metrics.iter().filter(of_the_run) {
            table.row([
                format!("  {}", curve.name),
                number::value(curve.last),
                curve.last_step.to_string(),
                curve.count.to_string(),
                sparkline(&curve.values, BARS),
            ]);
        }
        table.render()
    }

    /// Formats the cost of the calls into plugins.
    fn plugins_text(&self) -> String {
        let mut plugins: BTreeMap<&str, BTreeMap<&str, f64>> = BTreeMap::new();
        for curve in &self.metrics {
            if let Some((plugin, what)) = plugin_metric(&curve.name) {
                plugins.entry(plugin).or_default().insert(what, curve.last);
            }
        }
        if plugins.is_empty() {
            return String::new();
        }
        let mut table = Table::new([
            ("  name", Align::Left),
            ("calls", Align::Right),
            ("failed", Align::Right),
            ("median", Align::Right),
            ("p99", Align::Right),
        ]);
        for (plugin, values) in plugins {
            let secs = |what: &str| match values.get(what) {
                Some(&secs) => format!("{} s", number::value(secs)),
                None => String::new(),
            };
            let count = |what: &str| values.get(what).copied().map(number::value);
            table.row([
                format!("  {plugin}"),
                count("calls").unwrap_or_default(),
                count("failures").unwrap_or_default(),
                secs("p50_secs"),
                secs("p99_secs"),
            ]);
        }
        table.render()
    }

    /// Formats the deliveries of each sink. For each sink, states how many checkpoints were delivered, which
    /// were not, and why not.
    fn sinks_text(&self) -> String {
        let mut text = String::new();
        let mut is_anything_left = false;
        for sink in self.sinks() {
            let has = match sink.delivered().last() {
                Some(last) => format!(
                    "{} delivered, last at step {}",
                    sink.delivered().count(),
                    last.checkpoint
                ),
                None => "none delivered".to_owned(),
            };
            let left: Vec<String> = sink
                .left()
                .map(|entry| match entry.state {
                    _ if !self.standing.contains(&entry.checkpoint) => {
                        let step = entry.checkpoint;
                        format!("step {step} was not delivered, and is no longer in the run folder")
                    }
                    DeliveryState::Failed => {
                        format!(
                            "step {} failed{}: {}",
                            entry.checkpoint,
                            self.next_try(entry),
                            one_line(&entry.detail)
                        )
                    }
                    _ => format!("step {} is queued", entry.checkpoint),
                })
                .collect();
            is_anything_left |= sink.left().any(|e| self.standing.contains(&e.checkpoint));
            let (superseded, lost): (Vec<&Delivery>, Vec<&Delivery>) = sink
                .dropped()
                .partition(|entry| is_superseded(&entry.detail));
            let dropped = match superseded.len() {
                0 => None,
                n => Some(format!("{n} dropped in favor of newer ones")),
            };
            let lost = lost.into_iter().map(|entry| {
                let why = one_line(&entry.detail);
                format!("step {} dropped: {why}", entry.checkpoint)
            });
            let told = std::iter::once(has).chain(dropped).chain(lost).chain(left);
            let told = told.collect::<Vec<_>>();
            text += &format!("  {}  {}\n", one_line(sink.label), told.join("; "));
        }
        if is_anything_left && self.row.status != RunStatus::Running {
            let run = how_to_name(&self.dir);
            text += &format!("  run `host deliver {run}` to deliver the rest\n");
        }
        text
    }

    /// Formats the time at which a live run retries a failed delivery.
    fn next_try(&self, entry: &Delivery) -> String {
        match entry.retry_time_us {
            Some(time) if self.row.status == RunStatus::Running => {
                format!(", next try {}", local_time(time))
            }
            _ => String::new(),
        }
    }

    fn checkpoints_text(&self) -> String {
        let deliveries = self.deliveries();
        let line = |(name, bytes, stands): (&str, u64, bool)| {
            let of_this = |entry: &&&Delivery| name == entry.checkpoint.checkpoint_name();
            let told: Vec<String> = deliveries
                .iter()
                .filter(of_this)
                .map(|entry| delivery_words(entry))
                .collect();
            let pruned = if stands { "" } else { " (pruned)" };
            format!(
                "  {}  {}{pruned}  {}",
                one_line(name),
                number::bytes(bytes),
                one_line(&told.join(", "))
            )
            .trim_end()
            .to_owned()
                + "\n"
        };
        self.checkpoints().map(line).collect()
    }
}

/// A sink's part of the delivery ledger, in step order.
struct SinkLedger<'a> {
    label: &'a str,
    entries: &'a [Delivery],
}

impl<'a> SinkLedger<'a> {
    fn delivered(&self) -> impl Iterator<Item = &'a Delivery> {
        let entries = self.entries.iter();
        entries.filter(|entry| entry.state == DeliveryState::Delivered)
    }

    fn left(&self) -> impl Iterator<Item = &'a Delivery> {
        use DeliveryState::{Delivered, Dropped};
        let entries = self.entries.iter();
        entries.filter(|entry| !matches!(entry.state, Delivered | Dropped))
    }

    fn dropped(&self) -> impl Iterator<Item = &'a Delivery> {
        let entries = self.entries.iter();
        entries.filter(|entry| entry.state == DeliveryState::Dropped)
    }
}

/// Formats an entry of the ledger as the text that follows the name of its checkpoint.
fn delivery_words(entry: &Delivery) -> String {
    let sink = &entry.sink;
    match entry.state {
        DeliveryState::Queued => format!("queued for {sink}"),
        DeliveryState::Sending => format!("being sent to {sink}"),
        DeliveryState::Delivered => {
            let at = local_time(entry.time_us);
            let place = entry
                .location()
                .map(|place| format!(" as {}", short(&place)));
            format!("delivered to {sink}{} {at}", place.unwrap_or_default())
        }
        DeliveryState::Failed => {
            format!("not delivered to {sink}: {}", one_line(&entry.detail))
        }
        DeliveryState::Dropped => format!(
            "dropped, not delivered to {sink}: {}",
            one_line(&entry.detail)
        ),
    }
}

/// Shortens a commit id as git does; returns a path unchanged.
fn short(location: &str) -> &str {
    let is_id = location.len() >= 40 && location.bytes().all(|b| b.is_ascii_hexdigit());
    if is_id { &location[..12] } else { location }
}

fn delivery_json(entry: &Delivery) -> Value {
    json!({
        "checkpoint": entry.checkpoint,
        "sink": entry.sink,
        "state": entry.state,
        "detail": entry.detail,
        "time_us": entry.time_us,
        "retry_time_us": entry.retry_time_us,
        "location": entry.location(),
        "manifest_sha256": entry.manifest_sha256(),
    })
}

/// Splits `plugin/hub-git/calls` into the plugin and the quantity.
fn plugin_metric(name: &str) -> Option<(&str, &str)> {
    name.strip_prefix("plugin/")?.split_once('/')
}

/// Formats the configuration as lines of TOML.
fn config_text(config: &Value) -> String {
    let table = toml::Table::try_from(config).unwrap_or_default();
    let text = toml::to_string(&table).unwrap_or_default();
    let lines = text.lines().map(|line| match line {
        "" => "\n".to_owned(),
        line => format!("  {line}\n"),
    });
    lines.collect()
}

/// Returns the configuration in `run.toml`, which can differ from the original after a resume. If the file is
/// unreadable, returns the configuration that the store recorded at the start.
pub(super) fn config(dir: &RunDir, row: &RunRow) -> Value {
    let file = std::fs::read_to_string(dir.config_file()).ok();
    let table = file.and_then(|text| text.parse::<toml::Table>().ok());
    let mut config = match table.map(serde_json::to_value) {
        Some(Ok(config)) => config,
        _ => serde_json::from_str(&row.config_json).unwrap_or_default(),
    };
    // Uses the current name and folder, since the run may have been copied, renamed or moved.
    if let Value::Object(config) = &mut config {
        config.insert("name".to_owned(), json!(dir.name()));
        let runs_dir = dir.runs_dir().display().to_string();
        config.insert("runs_dir".to_owned(), json!(runs_dir));
    }
    config
}

pub(super) fn row_json(row: &RunRow, is_paused: bool) -> Value {
    json!({
        "name": row.name,
        "status": status_word(row.status, is_paused),
        "generation": row.generation,
        "created_us": row.created_us,
        "last_seq": row.last_seq,
        "last_step": row.last_step,
        "last_time_us": row.last_time_us,
    })
}

pub(super) fn status_word(status: RunStatus, is_paused: bool) -> &'static str {
    match status {
        RunStatus::Running if is_paused => "paused",
        RunStatus::Running => "running",
        RunStatus::Finished(reason) => reason_word(reason),
        RunStatus::Crashed => "crashed",
    }
}

pub(super) fn local_time(time_us: i64) -> String {
    let Ok(time) = jiff::Timestamp::from_microsecond(time_us) else {
        return String::new();
    };
    let time = time.to_zoned_datetime(jiff::tz::TimeZone::system());
    time.strftime("%Y-%m-%d %H:%M:%S").to_string()
}
