use std::path::PathBuf;

use host_core::Result;
use host_store::Reader;
use serde_json::json;

use super::runs_compare::no_metric;
use super::{RunsDir, print, print_json};
use crate::export::{self, Format};
use crate::number;
use crate::run_dir::RunDir;

/// Writes a run's metrics to a file that other programs read
#[derive(Debug, clap::Args)]
pub(super) struct Export {
    /// The run's name or folder
    run: String,
    /// What to write. csv and parquet have a row for each point: step, time, metric, value;
    /// tensorboard is a folder with an event file, whose values have single precision
    #[arg(long, value_enum, default_value_t = Format::Csv)]
    format: Format,
    /// Where to write it, where nothing may be yet; without it, RUN.csv, RUN.parquet or the folder
    /// RUN.tensorboard in the current folder
    #[arg(long, value_name = "PATH")]
    out: Option<PathBuf>,
    /// Metrics to write; without it, all
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
        Ok(())
    }
}
