use std::path::Path;

use host_core::{Error, EventBody, Result, RunName, Step, StopReason};
use rusqlite::{Connection, OptionalExtension};

use crate::{FILE, Reader, event_row};

/// What a run is, said once when it is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunRecord {
    /// The run's name; one that [`RunName`] accepts.
    pub name: String,
    /// When it was made, in microseconds since the Unix epoch.
    pub created_us: i64,
    /// Its resolved configuration, a JSON object.
    pub config_json: String,
}

/// What a run is and how it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunRow {
    /// The run's name.
    pub name: String,
    /// When it was made, in microseconds since the Unix epoch.
    pub created_us: i64,
    /// Its resolved configuration, a JSON object.
    pub config_json: String,
    /// Whether it is at work, and if not, why.
    pub status: RunStatus,
    /// How often it was resumed.
    pub generation: u32,
    /// The last event's sequence number; 0 before the first.
    pub last_seq: u64,
    /// The furthest step of what counts: a delivery's events stand at their checkpoint's step, behind
    /// which the run may be far ahead.
    pub last_step: Step,
    /// The last event's time in microseconds since the Unix epoch; before the first, the run's own.
    pub last_time_us: i64,
}

/// Whether a run is at work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunStatus {
    /// A writer holds the run, and it has not said that it ended.
    Running,
    /// The run said that it ended, and why.
    Finished(StopReason),
    /// Nobody holds the run, and it never said that it ended: it was killed, or the machine was.
    Crashed,
}

/// How far a run's log has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The last event's sequence number; 0 before the first.
    pub last_seq: u64,
    /// Whether more may come.
    pub status: RunStatus,
}

/// The names of the runs in a folder, in order. What is no run is passed over.
///
/// # Errors
/// If the folder cannot be read. A folder that is not there has no runs.
pub fn run_names(runs_dir: &Path) -> Result<Vec<RunName>> {
    let failed = |e: &std::io::Error| Error::io("list the runs", runs_dir, e);
    let entries = match std::fs::read_dir(runs_dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(failed(&e)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| failed(&e))?;
        if let Some(Ok(name)) = entry.file_name().to_str().map(str::parse::<RunName>)
            && entry.path().join(FILE).is_file()
        {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// The runs in a folder, in the order of their names; for one that cannot be read, why.
///
/// # Errors
/// If the folder itself cannot be read.
pub fn list_runs(runs_dir: &Path) -> Result<Vec<(RunName, Result<RunRow>)>> {
    Ok(run_rows(runs_dir, run_names(runs_dir)?))
}

/// What these runs of a folder are and how they stand, in the same order; for one that cannot be read,
/// why.
pub fn run_rows(runs_dir: &Path, names: Vec<RunName>) -> Vec<(RunName, Result<RunRow>)> {
    let read = |name: &RunName| run_row(&runs_dir.join(name.as_str()));
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    // What a thread costs is a run or two.
    let share = names
        .len()
        .div_ceil(cores.min(READERS))
        .max(RUNS_PER_READER);
    let mut rows: Vec<Result<RunRow>> = Vec::with_capacity(names.len());
    std::thread::scope(|scope| {
        let (mine, others) = names.split_at(share.min(names.len()));
        let work = |names: &[RunName]| names.iter().map(read).collect::<Vec<_>>();
        let threads: Vec<_> = others
            .chunks(share)
            .map(|names| {
                let named = std::thread::Builder::new().name("list-runs".to_owned());
                let thread = named.spawn_scoped(scope, move || work(names));
                (names, thread)
            })
            .collect();
        rows.extend(work(mine));
        for (names, thread) in threads {
            // Without a thread, or after its panic, the work is done here.
            let done = thread.ok().and_then(|thread| thread.join().ok());
            rows.extend(done.unwrap_or_else(|| work(names)));
        }
    });
    std::iter::zip(names, rows).collect()
}

/// Threads that read a list, and the fewest runs that are worth one.
const READERS: usize = 8;
const RUNS_PER_READER: usize = 32;

fn run_row(run_dir: &Path) -> Result<RunRow> {
    match Reader::open_still(run_dir) {
        Some((reader, _writers_wait)) => reader.run(),
        None => Reader::open(run_dir)?.run(),
    }
}

/// The run's last beginning (its generation) and its last end, if that came later.
pub(crate) fn beginning_and_end(
    connection: &Connection,
) -> rusqlite::Result<(u32, Option<StopReason>)> {
    let mut last = connection
        .prepare_cached("SELECT seq, body FROM events WHERE kind = ? ORDER BY seq DESC LIMIT 1")?;
    let mut last = |kind: &str| -> rusqlite::Result<Option<(i64, EventBody)>> {
        let found = last
            .query_row([kind], |row| Ok((row.get(0)?, row.get::<_, String>(1)?)))
            .optional()?;
        found
            .map(|(seq, body)| match event_row::decode(kind, &body) {
                Ok(body) => Ok((seq, body)),
                Err(e) => Err(rusqlite::Error::FromSqlConversionFailure(
                    1,
                    rusqlite::types::Type::Text,
                    e.into(),
                )),
            })
            .transpose()
    };
    let started = last(event_row::RUN_STARTED)?;
    let generation = match started {
        Some((_, EventBody::RunStarted { generation })) => generation,
        _ => 0,
    };
    let end = match last(event_row::RUN_FINISHED)? {
        Some((seq, EventBody::RunFinished { reason, .. }))
            if started.is_none_or(|(start, _)| seq > start) =>
        {
            Some(reason)
        }
        _ => None,
    };
    Ok((generation, end))
}
