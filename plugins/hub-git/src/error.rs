use std::fmt;
use std::path::Path;

/// Why a checkpoint was not delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// It may go well later: the network, a busy server, a full disk.
    Temporary(String),
    /// It will not go well without somebody doing something: a refused token, a hook's refusal.
    Permanent(String),
    /// It was asked to end.
    Cancelled,
}

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A file operation that failed, which may pass: disks are emptied, folders come back.
    pub(crate) fn io(verb: &str, path: &Path, source: &std::io::Error) -> Self {
        Self::Temporary(format!("cannot {verb}: {source}: {}", path.display()))
    }

    /// The same error with its words changed.
    #[must_use]
    pub(crate) fn map(self, change: impl FnOnce(String) -> String) -> Self {
        match self {
            Self::Temporary(words) => Self::Temporary(change(words)),
            Self::Permanent(words) => Self::Permanent(change(words)),
            Self::Cancelled => Self::Cancelled,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Temporary(words) | Self::Permanent(words) => f.write_str(words),
            Self::Cancelled => f.write_str("cancelled"),
        }
    }
}

impl std::error::Error for Error {}
