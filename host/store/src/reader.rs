use std::cell::Cell;
use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use host_core::{Error, ErrorKind, EventBody, Request, Result, RunName, Step};
use rusqlite::{Connection, Transaction};

use crate::copy::Copy;
use crate::frame::FrameNames;
use crate::run_list::has_no_log;
use crate::run_row::beginning_and_end;
use crate::schema::{self, Found};
use crate::supersession::Supersessions;
use crate::{FILE, Progress, RunRow, RunStatus, event_row, fault, lock};

/// Reads a run, which may be written meanwhile by this or another process.
///
/// Each call sees the run as it was at one commit. A reader may move between threads but serves one at
/// a time; open several to read in parallel.
#[derive(Debug)]
pub struct Reader {
    connection: Connection,
    run_dir: PathBuf,
    path: PathBuf,
    /// Device and inode of the file.
    identity: (u64, u64),
    pub(crate) frames: FrameNames,
    /// Whether all events were found to be there.
    is_complete: Cell<bool>,
    // Last, so that it is closed before it is removed.
    copy: Option<Copy>,
}

impl Reader {
    /// Opens a run's store.
    ///
    /// # Errors
    /// If the folder has no run, or its format is newer than this program.
    pub fn open(run_dir: &Path) -> Result<Self> {
        let path = run_dir.join(FILE);
        std::fs::metadata(&path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => no_run(run_dir),
            _ => Error::io("read the run store", &path, &e),
        })?;
        let (connection, copy) = schema::open_to_read(run_dir)?;
        match schema::recognise(&connection, &path)? {
            Found::Run => {
                let reader = Self::of(connection, run_dir)
                    .map_err(|e| Error::io("read the run store", &path, &e))?;
                Ok(Self { copy, ..reader })
            }
            Found::Empty => Err(no_run(run_dir)),
        }
    }

    /// A reader of a run's store that is open already.
    pub(crate) fn of(connection: Connection, run_dir: &Path) -> std::io::Result<Self> {
        let path = run_dir.join(FILE);
        Ok(Self {
            connection,
            run_dir: run_dir.to_owned(),
            identity: identity(&std::fs::metadata(&path)?),
            path,
            frames: FrameNames::default(),
            is_complete: Cell::default(),
            copy: None,
        })
    }

    /// Opens the store of a run that nobody writes to, for one short look: in a third of the time,
    /// without a file beside it. While the guard is there no writer begins. None if that cannot be.
    pub(crate) fn open_still(run_dir: &Path) -> Option<(Self, File)> {
        let path = run_dir.join(FILE);
        let guard = lock::keep_still(run_dir)?;
        if !has_no_log(run_dir) {
            return None;
        }
        let connection = schema::open_still(&path).ok()?;
        let found = schema::recognise(&connection, &path);
        let reader = Self::of(connection, run_dir).ok()?;
        matches!(found, Ok(Found::Run)).then_some((reader, guard))
    }

    /// Whether the run's folder still has the file that this reader has open, rather than another
    /// run's that took its place.
    pub fn is_current(&self) -> bool {
        let is_same = |copy: &Copy| copy.is_current(&self.run_dir);
        std::fs::metadata(&self.path).is_ok_and(|file| identity(&file) == self.identity)
            && self.copy.as_ref().is_none_or(is_same)
    }

    /// What the run is and how it stands.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn run(&self) -> Result<RunRow> {
        let alive = lock::is_held(&self.run_dir);
        self.snapshot(|tx| Ok(self.run_row(tx, alive)?))
    }

    /// Whether the loop stands still until it is asked to continue: by what was asked since it last
    /// began. Says nothing of a run that is not at work.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn is_paused(&self) -> Result<bool> {
        self.snapshot(|tx| {
            let mut query = tx.prepare_cached(
                "SELECT body FROM events WHERE kind = ?1 AND seq >
                 (SELECT coalesce(max(seq), 0) FROM events WHERE kind = ?2) ORDER BY seq DESC",
            )?;
            let mut rows = query.query([event_row::REQUEST, event_row::RUN_STARTED])?;
            while let Some(row) = rows.next()? {
                let body = event_row::decode(event_row::REQUEST, row.get_ref(0)?.as_str()?);
                let request = match body {
                    Ok(EventBody::Request { request, .. }) => request,
                    _ => continue,
                };
                match request {
                    Request::Pause => return Ok(true),
                    Request::Continue => return Ok(false),
                    _ => {}
                }
            }
            Ok(false)
        })
    }

    /// How far the log has come; cheap enough to ask many times a second.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn progress(&self) -> Result<Progress> {
        // The lock first: a run that ends between the two looks is then seen as ended, not as crashed.
        let alive = lock::is_held(&self.run_dir);
        self.snapshot(|tx| {
            Ok(Progress {
                last_seq: last_seq(tx)?,
                status: status(alive, beginning_and_end(tx)?.1),
            })
        })
    }

    /// The last event's sequence number; 0 before the first.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn last_seq(&self) -> Result<u64> {
        self.snapshot(|tx| Ok(last_seq(tx)?))
    }

    /// The store's file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads as of one commit.
    pub(crate) fn snapshot<T>(
        &self,
        mut read: impl FnMut(&Transaction<'_>) -> Result<T, ReadError>,
    ) -> Result<T> {
        let result = match self.attempt(&mut read) {
            // Found before anything was read: the writer was killed since the last look.
            Err(ReadError::Sql(error)) if schema::is_half_written(&error) => {
                schema::finish_commit(&self.path)
                    .map_err(ReadError::Sql)
                    .and_then(|()| self.attempt(read))
            }
            result => result,
        };
        result.map_err(|error| match error {
            ReadError::Sql(e) => fault::sql("read the run store", &self.path, &e),
            ReadError::Damaged(what) => fault::damaged(&self.path, &what),
        })
    }
}

impl Reader {
    /// [`Reader::run`] within one look at the file. `alive`: whether a writer holds the run.
    pub(crate) fn run_row(&self, tx: &Connection, alive: bool) -> rusqlite::Result<RunRow> {
        let (generation, end) = beginning_and_end(tx)?;
        let status = status(alive, end);
        let mut run = tx.query_row(
            "SELECT name, created_us, config_json, last_seq, last_step, last_time_us
             FROM run JOIN head",
            [],
            |row| {
                Ok(RunRow {
                    name: row.get(0)?,
                    created_us: row.get(1)?,
                    config_json: row.get(2)?,
                    status,
                    generation,
                    last_seq: row.get::<_, i64>(3)?.cast_unsigned(),
                    last_step: Step(row.get::<_, i64>(4)?.cast_unsigned()),
                    last_time_us: row.get(5)?,
                })
            },
        )?;
        // A folder that was copied or renamed is another run, whatever it was called when it was made.
        if let Some(name) = folder_name(&self.run_dir)
            && run.name != name
        {
            run.config_json = renamed(&run.config_json, &name);
            run.name = name;
        }
        Ok(run)
    }

    /// One look at the file.
    pub(crate) fn attempt<T>(
        &self,
        read: impl FnOnce(&Transaction<'_>) -> Result<T, ReadError>,
    ) -> Result<T, ReadError> {
        let transaction = self.connection.unchecked_transaction()?;
        read(&transaction)
    }

    /// Looks, once, whether all events are there: what a damaged file has lost would look like what never
    /// was.
    pub(crate) fn check_complete(&self, connection: &Connection) -> Result<(), ReadError> {
        if self.is_complete.get() {
            return Ok(());
        }
        let (found, last_seq): (i64, i64) = connection.query_row(
            "SELECT (SELECT count(*) FROM events) + (SELECT ifnull(sum(rows), 0) FROM chunks), last_seq
             FROM head",
            [],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )?;
        if found != last_seq {
            return Err(ReadError::damaged(format!(
                "it has {found} events, of {last_seq}"
            )));
        }
        self.is_complete.set(true);
        Ok(())
    }
}

/// Why a read failed, before it has words.
#[derive(Debug)]
pub(crate) enum ReadError {
    Sql(rusqlite::Error),
    Damaged(String),
}

impl ReadError {
    pub(crate) fn damaged(what: impl Into<String>) -> Self {
        Self::Damaged(what.into())
    }
}

impl From<rusqlite::Error> for ReadError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}

impl From<rusqlite::types::FromSqlError> for ReadError {
    fn from(error: rusqlite::types::FromSqlError) -> Self {
        Self::Damaged(error.to_string())
    }
}

pub(crate) fn last_seq(connection: &Connection) -> rusqlite::Result<u64> {
    let seq: i64 = connection
        .prepare_cached("SELECT last_seq FROM head")?
        .query_row([], |row| row.get(0))?;
    Ok(seq.cast_unsigned())
}

/// What no longer counts.
pub(crate) fn supersessions(connection: &Connection) -> Result<Supersessions, ReadError> {
    let mut query =
        connection.prepare_cached("SELECT seq, body FROM events WHERE kind = ? ORDER BY seq")?;
    let mut rows = query.query([event_row::SUPERSEDED])?;
    let mut limits = Vec::new();
    while let Some(row) = rows.next()? {
        let seq = row.get::<_, i64>(0)?.cast_unsigned();
        match event_row::decode(event_row::SUPERSEDED, row.get_ref(1)?.as_str()?) {
            Ok(host_core::EventBody::Superseded { from_step, .. }) => {
                limits.push((seq, from_step.0));
            }
            _ => return Err(ReadError::damaged(format!("event {seq} cannot be read"))),
        }
    }
    Ok(Supersessions::new(limits))
}

fn status(alive: bool, end: Option<host_core::StopReason>) -> RunStatus {
    match end {
        Some(reason) => RunStatus::Finished(reason),
        None if alive => RunStatus::Running,
        None => RunStatus::Crashed,
    }
}

/// What the run is called: its folder's name, if a run can have it.
fn folder_name(run_dir: &Path) -> Option<String> {
    let name: RunName = match run_dir.file_name() {
        Some(name) => name.to_str()?.parse().ok()?,
        // `.` and `..` have none.
        None => {
            let folder = run_dir.canonicalize().ok()?;
            folder.file_name()?.to_str()?.parse().ok()?
        }
    };
    Some(name.to_string())
}

/// A configuration with another name for the run.
fn renamed(config_json: &str, name: &str) -> String {
    match serde_json::from_str(config_json) {
        Ok(serde_json::Value::Object(mut config)) if config.contains_key("name") => {
            config.insert("name".to_owned(), name.into());
            serde_json::Value::Object(config).to_string()
        }
        _ => config_json.to_owned(),
    }
}

fn identity(file: &Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}

fn no_run(run_dir: &Path) -> Error {
    Error::new(
        ErrorKind::Config,
        format!("there is no run in the folder: {}", run_dir.display()),
    )
    .hint("`host runs list` shows the runs there are")
}
