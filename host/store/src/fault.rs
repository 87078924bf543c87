use std::path::Path;

use host_core::{Error, ErrorKind};
use rusqlite::ErrorCode;

/// Converts an SQLite error. The result has the message `cannot VERB: REASON: PATH`, and a hint if one is
/// known.
pub(crate) fn sql(verb: &str, path: &Path, source: &rusqlite::Error) -> Error {
    let error = Error::new(
        ErrorKind::System,
        format!("cannot {verb}: {source}: {}", path.display()),
    );
    match source.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => error.hint("free some disk space"),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            error.hint("another program is using the file; close it and try again")
        }
        Some(ErrorCode::NotADatabase) => error.hint("move the file away; it is not a run store"),
        Some(ErrorCode::DatabaseCorrupt) => {
            error.hint("try to recover the data with `sqlite3 events.db .recover`")
        }
        Some(ErrorCode::CannotOpen | ErrorCode::PermissionDenied | ErrorCode::ReadOnly) => {
            error.hint("check that the folder exists and who owns it")
        }
        _ => error,
    }
}

/// Returns true if the file itself causes the error. Returns false if the system causes it, or another
/// program that holds the file.
pub(crate) fn is_damage(error: &rusqlite::Error) -> bool {
    /// `SQLITE_IOERR_SHORT_READ`: the file ends before it should.
    const SHORT_READ: i32 = 522;
    let is_short = matches!(
        error,
        rusqlite::Error::SqliteFailure(code, _) if code.extended_code == SHORT_READ
    );
    match error.sqlite_error_code() {
        _ if is_short => true,
        // `Unknown` is SQLite's general error code. Here, it means that a table or a column is missing.
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase | ErrorCode::Unknown) => true,
        Some(_) => false,
        // Errors without a code: a row is missing, or a value does not have the expected type.
        None => true,
    }
}

/// Returns the error for a file that contradicts itself.
pub(crate) fn damaged(path: &Path, what: &str) -> Error {
    Error::new(
        ErrorKind::System,
        format!("the run store is damaged: {what}: {}", path.display()),
    )
    .hint("for details, run `sqlite3 events.db 'PRAGMA integrity_check'`")
}
