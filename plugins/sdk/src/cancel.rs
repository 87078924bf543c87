use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::{Error, Result};

/// A flag that the host sets to request that the running call of a [`CheckpointSink`](crate::CheckpointSink)
/// ends soon.
///
/// Clones share the flag, so that a helper thread can have its own clone.
///
/// ```
/// use host_plugin_sdk::{Cancel, Result};
///
/// fn send(chunks: &[&[u8]], cancel: &Cancel) -> Result<()> {
///     for _chunk in chunks {
///         cancel.check()?;
///         // … send it …
///     }
///     Ok(())
/// }
/// let cancel = Cancel::default();
/// assert!(send(&[b"a", b"b"], &cancel).is_ok());
/// cancel.request(); // as the host does
/// assert!(cancel.is_requested());
/// assert!(send(&[b"a", b"b"], &cancel).is_err());
/// ```
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Whether cancellation was requested since the call started.
    pub fn is_requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Returns [`Error::cancelled`] if cancellation was requested.
    pub fn check(&self) -> Result<()> {
        if self.is_requested() {
            return Err(Error::cancelled());
        }
        Ok(())
    }

    /// Requests cancellation, as the host does. For tests.
    pub fn request(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(crate) fn clear(&self) {
        self.0.store(false, Ordering::Relaxed);
    }
}
