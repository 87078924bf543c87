use std::path::{Path, PathBuf};
use std::time::Duration;

use host_core::{Error, ErrorKind, Result};
use rusqlite::{Connection, OpenFlags};

use crate::copy::Copy;
use crate::migration::MIGRATIONS;
use crate::run_list::has_no_log;
use crate::{FILE, fault};

/// `PRAGMA user_version` of the files that this program writes. A change of the tables, or a new kind of
/// event, requires a new migration, which increments this version.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "few"
)]
pub(crate) const VERSION: i32 = 1 + MIGRATIONS.len() as i32;

/// `PRAGMA application_id`: "Host" in ASCII. The `file` command and this program identify the file by it.
const APPLICATION_ID: i32 = 0x486f_7374;

/// Steps are u64. Their bits are stored as SQLite's i64, so queries must not compare steps.
const TABLES: &str = "
-- The run's description. One row, written once.
CREATE TABLE run (
    id          INTEGER PRIMARY KEY CHECK (id = 1),
    name        TEXT NOT NULL,
    created_us  INTEGER NOT NULL,
    config_json TEXT NOT NULL
) STRICT;

-- The end of the log. One row, written with every commit; polling readers read nothing else.
CREATE TABLE head (
    id           INTEGER PRIMARY KEY CHECK (id = 1),
    last_seq     INTEGER NOT NULL,
    last_step    INTEGER NOT NULL,
    last_time_us INTEGER NOT NULL
) STRICT;

CREATE TABLE series (
    id   INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE
) STRICT;

-- A frame: the series that are measured together, in order. folded: whether it has chunks.
CREATE TABLE frames (
    id     INTEGER PRIMARY KEY,
    folded INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX frames_folded ON frames(id) WHERE folded = 1;
CREATE TABLE frame_series (
    frame  INTEGER NOT NULL REFERENCES frames,
    place  INTEGER NOT NULL,
    series INTEGER NOT NULL REFERENCES series,
    PRIMARY KEY (frame, place)
) STRICT, WITHOUT ROWID;
CREATE INDEX frame_series_by_series ON frame_series(series, frame, place);

-- Events that are not folded. Metrics: frame, and the values as little-endian doubles in body.
-- Everything else: kind, and the rest of the event as JSON in body.
CREATE TABLE events (
    seq     INTEGER PRIMARY KEY,
    step    INTEGER NOT NULL,
    time_us INTEGER NOT NULL,
    frame   INTEGER REFERENCES frames,
    kind    TEXT,
    body    ANY NOT NULL,
    CHECK ((frame IS NULL) <> (kind IS NULL))
) STRICT;
CREATE INDEX events_by_frame ON events(frame, seq) WHERE frame IS NOT NULL;
CREATE INDEX events_by_kind ON events(kind, seq) WHERE kind IS NOT NULL;

-- Folded metric events of one frame. axis: seq, step and time of every row.
CREATE TABLE chunks (
    id        INTEGER PRIMARY KEY,
    frame     INTEGER NOT NULL REFERENCES frames,
    first_seq INTEGER NOT NULL,
    last_seq  INTEGER NOT NULL,
    rows      INTEGER NOT NULL,
    min_step  INTEGER NOT NULL,
    max_step  INTEGER NOT NULL,
    axis      BLOB NOT NULL
) STRICT;
CREATE INDEX chunks_by_frame ON chunks(frame, last_seq, first_seq, rows, min_step, max_step);

-- The values of one series of a chunk, by its place in the frame.
CREATE TABLE columns (
    chunk INTEGER NOT NULL REFERENCES chunks,
    place INTEGER NOT NULL,
    data  BLOB NOT NULL,
    PRIMARY KEY (chunk, place)
) STRICT;
";

/// The content of a file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// Empty: a new file, or one whose creation was interrupted.
    Empty,
    /// A run store in a format that this program reads.
    Run,
}

/// Opens the file for writing; creates it if it does not exist.
pub(crate) fn open_to_write(path: &Path) -> Result<Connection> {
    open_read_write(path, OpenFlags::SQLITE_OPEN_CREATE)
        .map_err(|e| fault::sql("open the run store", path, &e))
}

/// Opens an existing file for writing.
pub(crate) fn open_existing(path: &Path) -> rusqlite::Result<Connection> {
    open_read_write(path, OpenFlags::empty())
}

fn open_read_write(path: &Path, more: OpenFlags) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | more;
    let connection = Connection::open_with_flags(path, flags)?;
    // The timeout is short, because the writer's thread does not empty the queue while it waits here. The
    // thread retries later.
    connection.busy_timeout(Duration::from_millis(100))?;
    Ok(connection)
}

/// Opens a run's store for reading. If the store cannot be read in place, opens a copy. A writer can be
/// active at the same time, in any process.
pub(crate) fn open_to_read(run_dir: &Path) -> Result<(Connection, Option<Copy>)> {
    let path = &run_dir.join(FILE);
    let failed = |e: rusqlite::Error| fault::sql("read the run store", path, &e);
    let opened = open_read_only(path).or_else(|error| match is_half_written(&error) {
        true => finish_commit(path).and_then(|()| open_read_only(path)),
        false => Err(error),
    });
    match opened {
        Ok(connection) => Ok((connection, None)),
        // Without write access, SQLite cannot create the index (`-shm`) that it needs for reading a log
        // (`-wal`).
        Err(_) if is_fixed(run_dir, path) => match has_no_log(run_dir) {
            true => Ok((open_still(path).map_err(failed)?, None)),
            false => {
                let copy = Copy::make(run_dir)?;
                let path = copy.path();
                // Merges the copy with its log into one file, which only this process uses.
                finish_commit(&path).map_err(failed)?;
                Ok((open_read_only(&path).map_err(failed)?, Some(copy)))
            }
        },
        Err(error) => Err(failed(error)),
    }
}

fn open_read_only(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    open_with(path, flags)
}

/// Opens a file without locks and without reading a log next to it. The caller must ensure that the file
/// does not change.
pub(crate) fn open_still(path: &Path) -> rusqlite::Result<Connection> {
    let escaped = path.to_str().unwrap_or_default();
    let escaped = escaped
        .replace('%', "%25")
        .replace('?', "%3f")
        .replace('#', "%23");
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_URI;
    open_with(Path::new(&format!("file:{escaped}?immutable=1")), flags)
}

fn open_with(name: &Path, flags: OpenFlags) -> rusqlite::Result<Connection> {
    let connection = Connection::open_with_flags(name, flags)?;
    connection.busy_timeout(Duration::from_secs(5))?;
    // Only the first read shows whether the file can be read at all.
    connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
    Ok(connection)
}

/// Whether the error means that a commit was interrupted. Only a process with write access can undo such a
/// commit.
pub(crate) fn is_half_written(error: &rusqlite::Error) -> bool {
    /// `SQLITE_READONLY_ROLLBACK` and `SQLITE_READONLY_RECOVERY`.
    const CODES: [i32; 2] = [776, 264];
    matches!(error, rusqlite::Error::SqliteFailure(code, _) if CODES.contains(&code.extended_code))
}

/// Undoes the commit of a killed writer. `SQLite` itself ensures that no writer is alive.
pub(crate) fn finish_commit(path: &Path) -> rusqlite::Result<()> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    open_with(path, flags).map(drop)
}

/// Returns true if at least one of these is read-only for this process: the file, its folder, its log, its
/// index.
fn is_fixed(folder: &Path, path: &Path) -> bool {
    use rustix::fs::{Access, access};
    let log = folder.join(format!("{FILE}-wal"));
    let index = folder.join(format!("{FILE}-shm"));
    let cannot_write = |path: &Path| access(path, Access::WRITE_OK).is_err();
    let is_other = |path: &PathBuf| path.exists() && cannot_write(path);
    path.is_file()
        && (cannot_write(folder) || cannot_write(path) || is_other(&log) || is_other(&index))
}

/// Checks that the file is a run store that this program supports.
pub(crate) fn recognize(connection: &Connection, path: &Path) -> Result<Found> {
    let mark = mark(connection).map_err(|e| fault::sql("read the run store", path, &e))?;
    match mark {
        Mark::Blank => Ok(Found::Empty),
        Mark::Run => Ok(Found::Run),
        Mark::Newer(newer) => Err(Error::new(
            ErrorKind::Config,
            format!(
                "the run store has format {newer}, but this program supports formats up to {VERSION}: {}",
                path.display()
            ),
        )
        .hint("use the newer version of this program that wrote it")),
        Mark::Foreign => Err(Error::new(
            ErrorKind::Config,
            format!("not a run store: {}", path.display()),
        )
        .hint("move the file away; events.db in a run folder must be a run store")),
    }
}

/// The kind of a file, according to its header.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    /// Empty: it has no table.
    Blank,
    /// A run store that this program reads.
    Run,
    /// A run store in this format, which is newer than this program.
    Newer(i32),
    /// A file of another program.
    Foreign,
}

pub(crate) fn mark(connection: &Connection) -> rusqlite::Result<Mark> {
    let pragma = |name: &str| connection.pragma_query_value(None, name, |row| row.get(0));
    let (application, version): (i32, i32) = (pragma("application_id")?, pragma("user_version")?);
    Ok(match (application, version) {
        (0, 0) if is_blank(connection)? => Mark::Blank,
        (APPLICATION_ID, 1..=VERSION) => Mark::Run,
        (APPLICATION_ID, newer) if newer > VERSION => Mark::Newer(newer),
        _ => Mark::Foreign,
    })
}

fn is_blank(connection: &Connection) -> rusqlite::Result<bool> {
    connection.query_row("SELECT count(*) = 0 FROM sqlite_schema", [], |row| {
        row.get(0)
    })
}

/// Creates the tables and marks the file as a run store. Must be called in a transaction.
pub(crate) fn make_tables(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch(TABLES)?;
    connection.pragma_update(None, "application_id", APPLICATION_ID)?;
    connection.pragma_update(None, "user_version", VERSION)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recognized(sql: &str) -> Result<Found> {
        let connection = Connection::open_in_memory().expect("a database");
        connection.execute_batch(sql).expect("SQL");
        recognize(&connection, Path::new("events.db"))
    }

    #[test]
    fn only_a_store_of_a_known_format_is_accepted() {
        assert_eq!(recognized("").expect("fine"), Found::Empty);

        let ours = format!("PRAGMA application_id = {APPLICATION_ID};");
        let newer = format!("{ours} PRAGMA user_version = {};", VERSION + 1);
        let error = recognized(&newer).expect_err("refused");
        assert!(
            error
                .message()
                .starts_with(&format!("the run store has format {}", VERSION + 1)),
            "{error}"
        );
        assert!(error.hint_text().expect("a hint").contains("newer"));

        for foreign in ["CREATE TABLE t(x)", "PRAGMA user_version = 1", &ours] {
            let error = recognized(foreign).expect_err("refused");
            assert!(error.message().starts_with("not a run store"), "{error}");
        }
    }

    #[test]
    fn the_created_tables_are_recognized() {
        let connection = Connection::open_in_memory().expect("a database");
        make_tables(&connection).expect("tables");
        let found = recognize(&connection, Path::new("events.db")).expect("fine");
        assert_eq!(found, Found::Run);
    }
}
