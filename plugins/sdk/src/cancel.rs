use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::{Error, Result};

/// Whether the host wants the running [`publish`](crate::CheckpointSink::publish) to end soon.
///
/// Clones share the flag, so a helper thread can hold one.
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
    /// Whether it was asked for since `publish` began.
    pub fn is_requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Fails with [`Error::cancelled`] if it was asked for.
    pub fn check(&self) -> Result<()> {
        if self.is_requested() {
            return Err(Error::cancelled());
        }
        Ok(())
    }

    /// Asks for it. The host does so; a test may.
    pub fn request(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(crate) fn clear(&self) {
        self.0.store(false, Ordering::Relaxed);
    }
}
