//! Verifies that a resume is exact for a user's configuration. To do so, it compares an uninterrupted run
//! with a run that was killed and resumed.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use host_core::{Error, ErrorKind, Manifest, Result, RunName, Step};
use host_store::{Point, Reader};
use serde_json::Value;

use crate::plan::Plan;
use crate::plan::run_file::RunFile;
use crate::plugins::Plugins;

/// Counts of what was compared and was equal in both runs.
#[derive(Debug)]
pub(crate) struct Proof {
    /// Number of files in the last checkpoint.
    pub(crate) files: usize,
    /// Number of metrics with the same points.
    pub(crate) metrics: usize,
    /// Number of steps of each run.
    pub(crate) steps: u64,
}

/// Trains `2 * steps` steps twice. One of the runs is killed with SIGKILL after the checkpoint in the middle,
/// and then resumed. Compares all files of the last checkpoint. Also compares the metrics, except those that
/// measure time or memory. The runs have no sinks, so nothing is delivered. Reports progress through `say`.
///
/// # Errors
/// Returns an error if a run fails, or if the runs differ. The error describes the first difference.
pub(crate) fn verify_resume(
    mut plan: Plan,
    steps: u64,
    say: &mut dyn FnMut(&str),
) -> Result<Proof> {
    plan.train.max_train_steps = 2 * steps;
    plan.train.save_checkpoint_steps = steps;
    plan.train.keep_checkpoints = 0;
    if plan.resume_from_checkpoint.take().is_some() {
        say("starting at step 0, without resume_from_checkpoint");
    }
    if plan.train.max_eval_steps <= 0 {
        plan.train.max_eval_steps = 4;
    }
    let io = |e: std::io::Error| {
        Error::io(
            "create a folder for the verification runs",
            &plan.runs_dir,
            &e,
        )
    };
    std::fs::create_dir_all(&plan.runs_dir).map_err(io)?;
    let folder = tempfile::Builder::new()
        .prefix(".verify-resume-")
        .tempdir_in(&plan.runs_dir)
        .map_err(io)?;
    let folder = folder.path();
    let config = folder.join("proof.toml");
    write_config(&plan, &config)?;

    say(&format!("training {} steps", 2 * steps));
    let whole = folder.join("runs/whole");
    finish(
        host(&["run", &text(&config), "--name", "whole"])
            .spawn()
            .map_err(cannot_start)?,
    )?;
    say(&format!(
        "training again, in a process that is killed after step {steps}"
    ));
    let killed = folder.join("runs/killed");
    kill_after_checkpoint(host(&["run", &text(&config), "--name", "killed", "--json"]))?;
    say("resuming");
    finish(
        host(&["resume", &text(&killed)])
            .spawn()
            .map_err(cannot_start)?,
    )?;

    Ok(Proof {
        files: equal_files(&whole, &killed, 2 * steps)?,
        metrics: equal_metrics(&whole, &killed)?,
        steps: 2 * steps,
    })
}

/// Writes the plan as a configuration file, without the sinks.
fn write_config(plan: &Plan, config: &Path) -> Result<()> {
    let plugins = Plugins::load(plan)?.without_sinks();
    let name: RunName = "proof".parse()?;
    let plan = Plan {
        runs_dir: config.with_file_name("runs"),
        ..plan.clone()
    };
    RunFile::new(&plan, &name, &plugins.entries())?.write(config)
}

/// Returns a command that runs this program with other arguments and captures its output.
fn host(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap_or_else(|_| "host".into()));
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Waits for a run. If it failed, returns its error message and hint as an error.
fn finish(child: Child) -> Result<()> {
    let output = child.wait_with_output().map_err(cannot_start)?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let last = |prefix: &str| {
        said.lines()
            .rev()
            .find_map(|line| line.strip_prefix(prefix))
    };
    let error = Error::new(
        ErrorKind::System,
        format!(
            "a verification run failed: {}",
            last("error: ").unwrap_or("no error message")
        ),
    );
    Err(match last("hint: ") {
        Some(hint) => error.hint(hint),
        None => error,
    })
}

/// Starts a run and kills it with SIGKILL after its first checkpoint.
fn kill_after_checkpoint(mut command: Command) -> Result<()> {
    // Discards stderr. Nothing reads the pipe, so the child process would block as soon as the pipe is full.
    let mut child = command
        .stderr(Stdio::null())
        .spawn()
        .map_err(cannot_start)?;
    let events = child.stdout.take().map(BufReader::new);
    for line in events
        .into_iter()
        .flat_map(BufRead::lines)
        .map_while(std::io::Result::ok)
    {
        let event: Value = serde_json::from_str(&line).unwrap_or_default();
        if event["kind"] == "checkpoint_written" {
            child.kill().map_err(cannot_start)?;
            child.wait().map_err(cannot_start)?;
            return Ok(());
        }
    }
    finish(child)?;
    Err(Error::new(
        ErrorKind::System,
        "a verification run ended before it could be killed",
    ))
}

fn equal_files(whole: &Path, killed: &Path, step: u64) -> Result<usize> {
    let manifest = |run: &Path| {
        let path = run.join("checkpoints").join(Step(step).checkpoint_name());
        host_train::verify_checkpoint(&path)
    };
    let (Manifest { files: whole }, Manifest { files: killed }) =
        (manifest(whole)?, manifest(killed)?);
    let different: Vec<&str> = whole
        .iter()
        .filter(|(name, entry)| killed.get(*name) != Some(entry))
        .map(|(name, _)| name.as_str())
        .collect();
    if different.is_empty() && whole.len() == killed.len() {
        return Ok(whole.len());
    }
    Err(not_exact(format!(
        "these files of the last checkpoint differ: {}",
        different.join(", ")
    )))
}

fn equal_metrics(whole: &Path, killed: &Path) -> Result<usize> {
    let (whole, killed) = (Reader::open(whole)?, Reader::open(killed)?);
    let mut equal = 0;
    for series in whole
        .series()?
        .iter()
        .filter(|series| !measures_cost(&series.name))
    {
        let points = |reader: &Reader| -> Result<Vec<(u64, u64)>> {
            let history = reader
                .history(&series.name, usize::MAX)?
                .unwrap_or_default();
            Ok(history
                .iter()
                .map(|Point { step, value, .. }| (step.0, value.to_bits()))
                .collect())
        };
        let (whole, killed) = (points(&whole)?, points(&killed)?);
        let differs = |at: &usize| whole.get(*at) != killed.get(*at);
        let first = (0..whole.len().max(killed.len())).find(differs);
        if let Some((step, _)) = first.and_then(|at| whole.get(at).or(killed.get(at))) {
            return Err(not_exact(format!(
                "from step {step} on, {} differs",
                series.name
            )));
        }
        equal += 1;
    }
    Ok(equal)
}

/// Whether a metric measures time or memory, which differ between identical runs.
fn measures_cost(name: &str) -> bool {
    name.ends_with("_secs")
        || name == "peak_memory_bytes"
        || name.ends_with("_per_second")
        || name == "mfu"
        || name.starts_with("plugin/")
        || name.starts_with("system/")
}

fn not_exact(what: String) -> Error {
    Error::new(ErrorKind::Training, format!("the resume is not exact: {what}"))
        .hint("on CUDA, set deterministic = true; look for metric plugins with state that is not in checkpoints")
}

fn cannot_start(error: std::io::Error) -> Error {
    Error::new(
        ErrorKind::System,
        format!("cannot start another process of this program: {error}"),
    )
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
