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

/// Reads a run. This or another process can write to the run at the same time.
///
/// Each call reads the run as of one commit. A reader can move between threads, but only one thread can use
/// it at a time. To read in parallel, open several readers.
#[derive(Debug)]
pub struct Reader {
    connection: Connection,
    run_dir: PathBuf,
    path: PathBuf,
    /// Device and inode of the file.
    identity: (u64, u64),
    pub(crate) frames: FrameNames,
    /// Whether a check has found that all events are present.
    is_complete: Cell<bool>,
    // The last field, so that the connection is closed before the copy of the store is removed.
    copy: Option<Copy>,
}

impl Reader {
    /// Opens a run's store.
    ///
    /// # Errors
    /// Returns an error if the folder has no run, or its format is newer than this program.
    pub fn open(run_dir: &Path) -> Result<Self> {
        let path = run_dir.join(FILE);
        std::fs::metadata(&path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => no_run(run_dir),
            _ => Error::io("read the run store", &path, &e),
        })?;
        let (connection, copy) = schema::open_to_read(run_dir)?;
        match schema::recognize(&connection, &path)? {
            Found::Run => {
                let reader = Self::of(connection, run_dir)
                    .map_err(|e| Error::io("read the run store", &path, &e))?;
                Ok(Self { copy, ..reader })
            }
            Found::Empty => Err(no_run(run_dir)),
        }
    }

    /// Creates a reader for a store that is already open.
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

    /// Opens the store of a run that has no writer, for one short read. Takes a third of the time of
    /// [`Self::open`] and creates no file next to the store. Also returns an open file that holds a lock: no
    /// writer can start until this file is closed. Returns `None` if the store cannot be opened in this way.
    pub(crate) fn open_still(run_dir: &Path) -> Option<(Self, File)> {
        let path = run_dir.join(FILE);
        let guard = lock::keep_still(run_dir)?;
        if !has_no_log(run_dir) {
            return None;
        }
        let connection = schema::open_still(&path).ok()?;
        let found = schema::recognize(&connection, &path);
        let reader = Self::of(connection, run_dir).ok()?;
        matches!(found, Ok(Found::Run)).then_some((reader, guard))
    }

    /// Returns true if the file that this reader has open is still in the run's folder. Returns false if it
    /// was removed, or replaced by another file.
    pub fn is_current(&self) -> bool {
        let is_same = |copy: &Copy| copy.is_current(&self.run_dir);
        std::fs::metadata(&self.path).is_ok_and(|file| identity(&file) == self.identity)
            && self.copy.as_ref().is_none_or(is_same)
    }

    /// Returns the run's description and current state.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read.
    pub fn run(&self) -> Result<RunRow> {
        let alive = lock::is_held(&self.run_dir);
        self.snapshot(|tx| Ok(self.run_row(tx, alive)?))
    }

    /// Whether the training loop is paused, according to the requests since the run's last start. Only
    /// meaningful for a run that is running.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read.
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

    /// Returns the progress of the log. The call is cheap enough to be made many times a second.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read.
    pub fn progress(&self) -> Result<Progress> {
        // The lock is checked before the events are read. A run that ends in between then appears as ended,
        // not as crashed.
        let alive = lock::is_held(&self.run_dir);
        self.snapshot(|tx| {
            Ok(Progress {
                last_seq: last_seq(tx)?,
                status: status(alive, beginning_and_end(tx)?.1),
            })
        })
    }

    /// Returns the sequence number of the last event, or 0 if there is no event yet.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read.
    pub fn last_seq(&self) -> Result<u64> {
        self.snapshot(|tx| Ok(last_seq(tx)?))
    }

    /// Returns the path of the store's file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Calls `read` in one transaction, so that it reads the run as of one commit.
    pub(crate) fn snapshot<T>(
        &self,
        mut read: impl FnMut(&Transaction<'_>) -> Result<T, ReadError>,
    ) -> Result<T> {
        let result = match self.attempt(&mut read) {
            // The writer was killed since the last read. The failed attempt has read nothing, so `read` can
            // be called again.
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
    /// Like [`Reader::run`], but reads in the transaction `tx`. `alive` is true if a writer holds the run's lock.
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
        // A copied or renamed folder is a different run, so the folder's name replaces the recorded name.
        if let Some(name) = folder_name(&self.run_dir)
            && run.name != name
        {
            run.config_json = renamed(&run.config_json, &name);
            run.name = name;
        }
        Ok(run)
    }

    /// Calls `read` once, in one transaction.
    pub(crate) fn attempt<T>(
        &self,
        read: impl FnOnce(&Transaction<'_>) -> Result<T, ReadError>,
    ) -> Result<T, ReadError> {
        let transaction = self.connection.unchecked_transaction()?;
        read(&transaction)
    }

    /// Checks that all events are present. Does nothing if an earlier check succeeded. Without this check,
    /// events that were lost through damage would look as if they had never existed.
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
                "it has {found} of {last_seq} events"
            )));
        }
        self.is_complete.set(true);
        Ok(())
    }
}

/// Why a read failed. Later converted to an error with a message.
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

/// Returns the supersessions of the run.
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

/// Returns the name of the run's folder; `None` if that is not a valid name for a run.
fn folder_name(run_dir: &Path) -> Option<String> {
    let name: RunName = match run_dir.file_name() {
        Some(name) => name.to_str()?.parse().ok()?,
        // `file_name` returns `None` for a path such as `.` or `..`.
        None => {
            let folder = run_dir.canonicalize().ok()?;
            folder.file_name()?.to_str()?.parse().ok()?
        }
    };
    Some(name.to_string())
}

/// Returns the configuration with a different run name.
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
        format!("no run in the folder: {}", run_dir.display()),
    )
    .hint("list the runs with `host runs list`")
}
