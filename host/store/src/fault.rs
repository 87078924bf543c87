use std::path::Path;

use host_core::{Error, ErrorKind};
use rusqlite::ErrorCode;

/// Words for an SQLite error: `cannot VERB: REASON: PATH`, with the way out where one is known.
pub(crate) fn sql(verb: &str, path: &Path, source: &rusqlite::Error) -> Error {
    let error = Error::new(
        ErrorKind::System,
        format!("cannot {verb}: {source}: {}", path.display()),
    );
    match source.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => error.hint("free some disk space"),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            error.hint("another program holds the file; close it and try again")
        }
        Some(ErrorCode::NotADatabase) => {
            error.hint("the file is something else than a run store; move it away")
        }
        Some(ErrorCode::DatabaseCorrupt) => {
            error.hint("`sqlite3 events.db .recover` may save what is left")
        }
        Some(ErrorCode::CannotOpen | ErrorCode::PermissionDenied | ErrorCode::ReadOnly) => {
            error.hint("check that the folder is there and who owns it")
        }
        _ => error,
    }
}

/// Whether the file itself is to blame, and not the system, or another program that holds it.
pub(crate) fn is_damage(error: &rusqlite::Error) -> bool {
    /// `SQLITE_IOERR_SHORT_READ`: the file ends before it should.
    const SHORT_READ: i32 = 522;
    let is_short = matches!(
        error,
        rusqlite::Error::SqliteFailure(code, _) if code.extended_code == SHORT_READ
    );
    match error.sqlite_error_code() {
        _ if is_short => true,
        // `Unknown` is the plain error: a table or a column is missing.
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase | ErrorCode::Unknown) => true,
        Some(_) => false,
        // A row is missing, or what is in it is of another kind.
        None => true,
    }
}

/// The file contradicts itself.
pub(crate) fn damaged(path: &Path, what: &str) -> Error {
    Error::new(
        ErrorKind::System,
        format!("the run store is damaged: {what}: {}", path.display()),
    )
    .hint("`sqlite3 events.db 'PRAGMA integrity_check'` says more")
}
