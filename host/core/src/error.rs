use std::fmt;

use serde::{Deserialize, Serialize};

/// The error type of all crates of the host. It describes what failed and why, with a hint on how to fix it.
///
/// An error is created where the failure is understood, passed on unchanged, and printed once, by `main`,
/// as an `error:` line and a `hint:` line.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    hint: Option<String>,
    is_disk_full: bool,
}

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The cause of an error, which determines the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ErrorKind {
    /// The machine, for example a full disk or a lost device. Exit code 1.
    System,
    /// The command line, the configuration or the data. Exit code 2.
    Config,
    /// A plugin. Exit code 3.
    Plugin,
    /// The run succeeded, but a sink lacks at least one checkpoint. Exit code 4.
    Delivery,
    /// The training itself, for example a loss that is not finite. Exit code 5.
    Training,
}

impl ErrorKind {
    /// Returns the exit code of the process.
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
    /// Creates an error. The message must describe what failed and why, in one line, with the path last if
    /// there is one.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            hint: None,
            is_disk_full: false,
        }
    }

    /// Sets the hint, which describes how to fix the error.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Creates an error for a failed file operation: `cannot VERB: REASON: PATH`.
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
            std::io::ErrorKind::PermissionDenied => error
                .hint("check the owner and the permissions of the path, or choose another path"),
            _ => error,
        }
    }

    /// Returns the cause of the error.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Returns whether the disk, or the user's quota on it, is full.
    pub fn is_disk_full(&self) -> bool {
        self.is_disk_full
    }

    /// Returns what failed and why, without the hint.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Returns the hint, if there is one.
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
