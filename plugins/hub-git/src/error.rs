use std::fmt;
use std::path::Path;

/// Why a checkpoint was not delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// A later attempt can succeed, for example if the network failed, the server is busy, or the disk is
    /// full.
    Temporary(String),
    /// Later attempts fail too, until the user removes the cause. Examples of causes: an invalid token, a
    /// hook.
    Permanent(String),
    /// The host cancelled the operation.
    Cancelled,
}

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Returns the error for a failed file operation. It is temporary, because space can be freed and folders
    /// can be mounted again.
    pub(crate) fn io(verb: &str, path: &Path, source: &std::io::Error) -> Self {
        Self::Temporary(format!("cannot {verb}: {source}: {}", path.display()))
    }

    /// Returns the same error with its message changed.
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
