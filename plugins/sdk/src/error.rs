use std::fmt;
use std::io;
use std::path::Path;

use host_plugin_abi::{HOST_CANCELLED, HOST_ERROR, HOST_TEMPORARY, HOST_UNSUPPORTED, HostStatus};

/// The reason for a failed call: a one-line message for the user, and whether a retry can help.
///
/// ```
/// use host_plugin_sdk::{Error, Result};
///
/// fn parse(text: &str) -> Result<u64> {
///     text.parse().map_err(|_| Error::new(format!("{text:?} is not a number")))
/// }
/// assert_eq!(parse("x").unwrap_err().message(), "\"x\" is not a number");
/// ```
///
/// The constructor determines how the host reacts:
///
/// ```
/// use host_plugin_sdk::Error;
/// use std::{io, path::Path};
///
/// assert!(Error::temporary("the server is busy").is_temporary()); // the host calls a sink again
/// let full = io::Error::from(io::ErrorKind::StorageFull);
/// assert!(Error::io("write", Path::new("/data/x"), &full).is_temporary());
/// let missing = io::Error::from(io::ErrorKind::NotFound);
/// assert!(!Error::io("read", Path::new("/data/x"), &missing).is_temporary());
/// assert!(!Error::unsupported("nll is not a matrix").is_temporary()); // a retry would not help
/// assert_eq!(Error::cancelled().message(), "cancelled"); // the host requested it
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    status: HostStatus,
    message: String,
}

/// The result of a plugin's call.
///
/// ```
/// use host_plugin_sdk::Result;
///
/// fn first_byte(state: &[u8]) -> Result<u8> {
///     Ok(*state.first().ok_or("the state is empty")?) // strings become errors
/// }
/// assert_eq!(first_byte(&[7]), Ok(7));
/// assert_eq!(first_byte(&[]).unwrap_err().message(), "the state is empty");
/// ```
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Creates an error. The message should contain what failed and why, with the path last.
    pub fn new(message: impl Into<String>) -> Self {
        Self::with_status(HOST_ERROR, message)
    }

    /// Creates an error with a temporary reason, such as a lost connection or a lock that is held. The host
    /// can try again.
    pub fn temporary(message: impl Into<String>) -> Self {
        Self::with_status(HOST_TEMPORARY, message)
    }

    /// Creates an error for a call that is not supported. A retry would not help.
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::with_status(HOST_UNSUPPORTED, message)
    }

    /// Creates the error for a call that ended early because the host cancelled it.
    pub fn cancelled() -> Self {
        Self::with_status(HOST_CANCELLED, "cancelled")
    }

    /// Creates an error for a failed file operation: `cannot VERB: REASON: PATH`. It is temporary in the same
    /// cases as [`From<io::Error>`](Error#impl-From<Error>-for-Error).
    pub fn io(verb: &str, path: &Path, source: &io::Error) -> Self {
        Self::with_status(
            io_status(source.kind()),
            format!("cannot {verb}: {source}: {}", path.display()),
        )
    }

    /// Returns what failed and why.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Whether the host can try again.
    pub fn is_temporary(&self) -> bool {
        self.status == HOST_TEMPORARY
    }

    pub(crate) fn status(&self) -> HostStatus {
        self.status
    }

    pub(crate) fn with_status(status: HostStatus, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl From<String> for Error {
    fn from(message: String) -> Self {
        Self::new(message)
    }
}

impl From<&str> for Error {
    fn from(message: &str) -> Self {
        Self::new(message)
    }
}

/// Reasons such as a full disk or a lost network are temporary.
impl From<io::Error> for Error {
    fn from(source: io::Error) -> Self {
        Self::with_status(io_status(source.kind()), source.to_string())
    }
}

impl From<serde_json::Error> for Error {
    fn from(source: serde_json::Error) -> Self {
        Self::new(source.to_string())
    }
}

fn io_status(kind: io::ErrorKind) -> HostStatus {
    use io::ErrorKind::{
        ConnectionAborted, ConnectionRefused, ConnectionReset, HostUnreachable, Interrupted,
        NetworkDown, NetworkUnreachable, NotConnected, QuotaExceeded, ResourceBusy,
        StaleNetworkFileHandle, StorageFull, TimedOut, WouldBlock,
    };
    match kind {
        ConnectionAborted
        | ConnectionRefused
        | ConnectionReset
        | HostUnreachable
        | Interrupted
        | NetworkDown
        | NetworkUnreachable
        | NotConnected
        | QuotaExceeded
        | ResourceBusy
        | StaleNetworkFileHandle
        | StorageFull
        | TimedOut
        | WouldBlock => HOST_TEMPORARY,
        _ => HOST_ERROR,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_temporary_and_a_missing_file_is_not() {
        let full = Error::io("write", Path::new("/x"), &io::ErrorKind::StorageFull.into());
        assert!(full.is_temporary());
        assert!(full.message().starts_with("cannot write: "));
        assert!(full.message().ends_with(": /x"));
        assert!(!Error::from(io::Error::from(io::ErrorKind::NotFound)).is_temporary());
    }
}
