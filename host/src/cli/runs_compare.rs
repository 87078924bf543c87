use std::collections::BTreeSet;

use host_core::{Error, ErrorKind, Result, nearest};
use host_store::{
    ConfigDifference, MetricComparison, Point, Reader, RunMetric, RunRow, config_differences,
};
use serde_json::{Value, json};

use super::runs::{config, is_paused, local_time, row_json, status_word};
use super::{RunsDir, print, print_json};
use crate::runs::run_dir::RunDir;
use crate::show::event_json;
use crate::show::number;
use crate::show::sparkline::sparklines;
use crate::show::table::{Align, Table};

const EXAMPLE: &str = "\
Example:
  host runs compare demo demo-2 --metrics loss/train,loss/eval";

/// Compares runs: the settings that differ, and the metrics
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLE)]
pub(super) struct Compare {
    /// Run names or folders
    #[arg(required = true, num_args = 2.., value_name = "RUN")]
    of_runs: Vec<String>,
    /// Metrics to compare [default: all, except those of plugin calls and of the machine]
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    metrics: Vec<String>,
    /// With --json, list the values of each metric at up to this many steps that the runs have in common
    #[arg(long, value_name = "COUNT", default_value_t = 100)]
    points: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    runs: RunsDir,
}

/// Bars in a sparkline.
const BARS: usize = 24;

impl Compare {
    pub(super) fn execute(&self) -> Result<()> {
        let compared = Compared::read(self)?;
        match self.json {
            true => print_json(&compared.json()),
            false => print(&compared.text()),
        }
    }
}

struct Compared {
    rows: Vec<RunRow>,
    /// For each run, whether it is paused.
    paused: Vec<bool>,
    differences: Vec<ConfigDifference>,
    metrics: Vec<MetricComparison>,
    /// Number of metrics left out by default.
    left_out: usize,
}

impl Compared {
    fn read(asked: &Compare) -> Result<Self> {
        let find = |run: &String| {
            let dir = RunDir::find(&asked.runs.runs_dir, run)?;
            let reader = Reader::open(dir.path())?;
            Ok((dir, reader))
        };
        let runs: Vec<(RunDir, Reader)> = asked.of_runs.iter().map(find).collect::<Result<_>>()?;
        let rows: Vec<RunRow> = runs.iter().map(|(_, r)| r.run()).collect::<Result<_>>()?;
        let paused = std::iter::zip(&runs, &rows).map(|((_, r), row)| is_paused(r, row));
        let paused = paused.collect();
        let configs = std::iter::zip(&runs, &rows).map(|((dir, _), row)| config(dir, row));
        let mut known = BTreeSet::new();
        for (_, reader) in &runs {
            known.extend(reader.series()?.into_iter().map(|series| series.name));
        }
        let total = known.len();
        let names = match &asked.metrics[..] {
            [] => known
                .into_iter()
                .filter(|name| is_of_training(name))
                .collect(),
            asked => asked
                .iter()
                .map(|name| match known.get(&**name) {
                    Some(name) => Ok(name.clone()),
                    None => Err(no_metric(name, known.iter().map(|name| &**name))),
                })
                .collect::<Result<Vec<_>>>()?,
        };
        let left_out = match asked.metrics.is_empty() {
            true => total - names.len(),
            false => 0,
        };
        let points = match asked.json {
            true => asked.points,
            // Each bar of a sparkline is the mean of up to 100 values.
            false => 100 * BARS,
        };
        let metric = |name: std::sync::Arc<str>| {
            let curves = runs.iter().map(|(_, reader)| reader.curve(&name));
            let curves = curves.collect::<Result<_>>()?;
            Ok(MetricComparison::new(name, curves, points))
        };
        Ok(Self {
            differences: config_differences(&configs.collect::<Vec<_>>()),
            metrics: names.into_iter().map(metric).collect::<Result<_>>()?,
            rows,
            paused,
            left_out,
        })
    }

    fn rows(&self) -> impl Iterator<Item = (&RunRow, bool)> {
        std::iter::zip(&self.rows, self.paused.iter().copied())
    }

    fn json(&self) -> Value {
        let config = self.differences.iter();
        let config: serde_json::Map<String, Value> = config
            .map(|difference| (difference.key.clone(), json!(difference.values)))
            .collect();
        let metrics = self.metrics.iter().map(|metric| {
            let runs = metric.runs.iter().map(|run| run.as_ref().map(run_json));
            json!({
                "name": metric.name,
                "steps": metric.steps,
                "runs": runs.collect::<Vec<_>>(),
            })
        });
        json!({
            "runs": self.rows().map(|(row, paused)| row_json(row, paused)).collect::<Value>(),
            "config": config,
            "metrics": metrics.collect::<Value>(),
        })
    }

    fn text(&self) -> String {
        let mut text = self.runs_text();
        let mut section = |heading: &str, body: String| {
            if !body.is_empty() {
                text += &format!("\n{heading}\n{body}");
            }
        };
        section("settings that differ", self.config_text());
        section("metrics", self.metrics_text());
        if self.left_out > 0 {
            let n = self.left_out;
            text += &format!(
                "\n{n} metrics of plugin calls and of the machine are not shown; select them with --metrics\n"
            );
        }
        text
    }

    fn runs_text(&self) -> String {
        let mut table = Table::new([
            ("run", Align::Left),
            ("status", Align::Left),
            ("step", Align::Right),
            ("begun", Align::Left),
        ]);
        for (row, is_paused) in self.rows() {
            table.row([
                row.name.clone(),
                status_word(row.status, is_paused).to_owned(),
                row.last_step.to_string(),
                local_time(row.created_us),
            ]);
        }
        table.render()
    }

    fn config_text(&self) -> String {
        let mut table = Table::new([
            ("  key", Align::Left),
            ("run", Align::Left),
            ("value", Align::Left),
        ]);
        for difference in &self.differences {
            for (i, (row, value)) in std::iter::zip(&self.rows, &difference.values).enumerate() {
                table.row([
                    first_only(i, || format!("  {}", difference.key)),
                    row.name.clone(),
                    value.as_ref().map_or("-".to_owned(), ToString::to_string),
                ]);
            }
        }
        match self.differences.is_empty() {
            true => "  none\n".to_owned(),
            false => table.render(),
        }
    }

    fn metrics_text(&self) -> String {
        let mut table = Table::new([
            ("  name", Align::Left),
            ("run", Align::Left),
            ("last", Align::Right),
            ("lowest", Align::Right),
            ("highest", Align::Right),
            ("at last common step", Align::Right),
            ("", Align::Left),
        ]);
        for metric in &self.metrics {
            let values: Vec<&[f64]> = metric
                .runs
                .iter()
                .map(|run| run.as_ref().map_or(&[][..], |run| &run.values))
                .collect();
            let curves = sparklines(&values, BARS);
            let runs = std::iter::zip(&self.rows, std::iter::zip(&metric.runs, curves));
            for (i, (row, (run, curve))) in runs.enumerate() {
                let Some(run) = run else { continue };
                let common = metric.steps.last().zip(run.values.last());
                let common =
                    common.map(|(step, &value)| format!("{} @{step}", number::value(value)));
                table.row([
                    first_only(i, || format!("  {}", metric.name)),
                    row.name.clone(),
                    at(&Some(run.last)),
                    at(&run.lowest),
                    at(&run.highest),
                    common.unwrap_or_default(),
                    curve,
                ]);
            }
        }
        table.render()
    }
}

/// Returns the text if this is the first row, and an empty cell for any other row.
fn first_only(row: usize, text: impl Fn() -> String) -> String {
    match row {
        0 => text(),
        _ => String::new(),
    }
}

/// Formats a value and its step.
fn at(point: &Option<Point>) -> String {
    point.map_or_else(String::new, |point| {
        format!("{} @{}", number::value(point.value), point.step)
    })
}

fn run_json(run: &RunMetric) -> Value {
    let point =
        |point: Point| json!({ "step": point.step, "value": event_json::number(point.value) });
    json!({
        "points": run.count,
        "last": point(run.last),
        "lowest": run.lowest.map(point),
        "highest": run.highest.map(point),
        "values": run.values.iter().map(|&v| event_json::number(v)).collect::<Value>(),
    })
}

/// Returns true for a metric of the training, and false for a metric of plugin calls or of the machine.
fn is_of_training(name: &str) -> bool {
    !name.starts_with("plugin/") && !name.starts_with("system/")
}

/// Returns the error for a metric that none of the runs has.
pub(super) fn no_metric<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Error {
    let error = Error::new(ErrorKind::Config, format!("unknown metric: {name:?}"));
    match nearest(name, known) {
        Some(known) => error.hint(format!("did you mean {known}?")),
        None => error.hint("use `host runs show RUN` to list a run's metrics"),
    }
}
