use std::fmt;

use serde::{Deserialize, Serialize};

/// The one error of the house: what failed and why, and the way out.
///
/// It is made where the failure is understood, passed on unchanged, and printed once, by `main`, as
/// an `error:` line and a `hint:` line.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    hint: Option<String>,
    is_disk_full: bool,
}

/// Shorthand for results of the house.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Whose fault it is, which decides the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ErrorKind {
    /// The machine's: a full disk, a lost device. Exit code 1.
    System,
    /// The command line's, the configuration's or the data's. Exit code 2.
    Config,
    /// A plugin's. Exit code 3.
    Plugin,
    /// A checkpoint did not reach every sink, though the run itself went well. Exit code 4.
    Delivery,
    /// The training's own: a loss that is not finite. Exit code 5.
    Training,
}

impl ErrorKind {
    /// The process's exit code.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::System => 1,
            Self::Config => 2,
            Self::Plugin => 3,
            Self::Delivery => 4,
            Self::Training => 5,
        }
    }
}

impl Error {
    /// An error that says what failed and why, in one line, with the path last.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            hint: None,
            is_disk_full: false,
        }
    }

    /// Adds the way out.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// A file operation that failed: `cannot VERB: REASON: PATH`.
    pub fn io(verb: &str, path: &std::path::Path, source: &std::io::Error) -> Self {
        let mut error = Self::new(
            ErrorKind::System,
            format!("cannot {verb}: {source}: {}", path.display()),
        );
        match source.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                error.is_disk_full = true;
                error.hint("free some disk space and try again")
            }
            std::io::ErrorKind::PermissionDenied => {
                error.hint("check who owns the path, or choose another")
            }
            _ => error,
        }
    }

    /// Whose fault it is.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Whether a disk, or the user's share of it, has no room.
    pub fn is_disk_full(&self) -> bool {
        self.is_disk_full
    }

    /// What failed and why, without the hint.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The way out, where one is known.
    pub fn hint_text(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}
