use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};

use host_core::{Error, ErrorKind, Result};
use host_store::Reader;
use serde_json::json;

use super::runs_compare::no_metric;
use super::{RunsDir, print, print_json};
use crate::export::{self, Format};
use crate::runs::run_dir::RunDir;
use crate::show::number;
use crate::show::printer::Printer;

const EXAMPLE: &str = "\
Example:
  host runs export demo --format parquet --out demo.parquet";

/// Exports a run's metrics as CSV, Parquet or TensorBoard files
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLE)]
pub(super) struct Export {
    /// Run name or folder
    run: String,
    /// Format. csv and parquet have one row per point: step, time, metric, value; tensorboard is a folder
    /// with an event file, whose values have single precision
    #[arg(long, value_enum, default_value_t = Format::Csv)]
    format: Format,
    /// Path to write to, which must not exist, or - for stdout [default: RUN.csv, RUN.parquet or the folder
    /// RUN.tensorboard in the current folder]
    #[arg(long, value_name = "PATH")]
    out: Option<PathBuf>,
    /// Metrics to export [default: all]
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    metrics: Vec<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    runs: RunsDir,
}

impl Export {
    pub(super) fn execute(&self) -> Result<()> {
        let dir = RunDir::find(&self.runs.runs_dir, &self.run)?;
        let reader = Reader::open(dir.path())?;
        let known = reader.series()?;
        let known = || known.iter().map(|series| &*series.name);
        if let Some(name) = self
            .metrics
            .iter()
            .find(|name| !known().any(|k| k == **name))
        {
            return Err(no_metric(name, known()));
        }
        let wanted = |name: &str| self.metrics.is_empty() || self.metrics.iter().any(|m| m == name);
        if self.out.as_deref() == Some(Path::new("-")) {
            return self.print(&reader, wanted);
        }
        let out = match &self.out {
            Some(out) => out.clone(),
            None => PathBuf::from(format!("{}.{}", dir.name(), self.format.extension())),
        };
        let written = export::export(&reader, wanted, self.format, &out)?;
        let path = written.path.display();
        match self.json {
            true => print_json(&json!({
                "path": path.to_string(),
                "points": written.points,
                "metrics": written.metrics,
            })),
            false => print(&format!(
                "{} points of {} metrics: {path}\n",
                number::grouped(i64::try_from(written.points).unwrap_or(i64::MAX)),
                written.metrics,
            )),
        }
    }

    /// Writes the export to stdout, and a summary to stderr.
    fn print(&self, reader: &Reader, wanted: impl Fn(&str) -> bool) -> Result<()> {
        let refused =
            |message: String, hint: &str| Err(Error::new(ErrorKind::Config, message).hint(hint));
        if !self.format.is_one_file() {
            let format = self.format.extension();
            return refused(
                format!("a {format} export is a folder and cannot be written to stdout"),
                "set --out to a folder, or use --format csv or parquet",
            );
        }
        if self.json {
            return refused(
                "--json and --out - both write to stdout".to_owned(),
                "remove one of them",
            );
        }
        if self.format == Format::Parquet && std::io::stdout().is_terminal() {
            return refused(
                "a parquet export is binary, but stdout is a terminal".to_owned(),
                "write it to a file or a pipe: `… --out - > run.parquet`",
            );
        }
        let (points, metrics) = export::print(reader, wanted, self.format)?;
        let points = number::grouped(i64::try_from(points).unwrap_or(i64::MAX));
        Printer::of_process().say(&format!("{points} points of {metrics} metrics"));
        Ok(())
    }
}
