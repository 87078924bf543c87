use std::fmt;

use host_plugin_abi::{
    HOST_LOG_DEBUG, HOST_LOG_ERROR, HOST_LOG_INFO, HOST_LOG_WARN, HostApi, HostStr,
};

use crate::Result;
use crate::sized;

/// The host that loaded the plugin. This handle can be copied, and is valid on every thread until the process
/// ends.
///
/// ```
/// use host_plugin_sdk::{Level, fake};
///
/// let (host, log) = fake::host();
/// host.info("the folder is ready");
/// host.warn("it is nearly full");
/// host.error("it is full");
/// host.log(Level::Info, "the same as info");
/// if host.is_enabled(Level::Debug) {
///     host.debug(&format!("ABI 1.{}", host.abi_minor()));
/// }
/// assert_eq!(log()[..2], ["info: the folder is ready", "warn: it is nearly full"]);
/// ```
#[derive(Clone, Copy)]
pub struct Host {
    /// A copy of the host's table. Functions that an older host lacks are `None`.
    api: HostApi,
    /// The plugin's id, which its log lines contain.
    plugin: &'static str,
}

/// Level of a log line.
///
/// ```
/// use host_plugin_sdk::Level;
///
/// let level = |tries: u32| if tries < 3 { Level::Debug } else { Level::Warn };
/// assert_eq!(level(5), Level::Warn);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// A failure.
    Error,
    /// A problem. The plugin continues.
    Warn,
    /// Information for users.
    Info,
    /// Information for plugin authors.
    Debug,
}

impl Level {
    fn code(self) -> i32 {
        match self {
            Self::Error => HOST_LOG_ERROR,
            Self::Warn => HOST_LOG_WARN,
            Self::Info => HOST_LOG_INFO,
            Self::Debug => HOST_LOG_DEBUG,
        }
    }
}

impl Host {
    /// # Safety
    /// `api` is null or points to a `HostApi` whose functions and `ctx` stay valid until the
    /// process ends.
    pub(crate) unsafe fn new(api: *const HostApi, plugin: &'static str) -> Result<Self> {
        // SAFETY: guaranteed by the caller.
        let api = unsafe { sized::read(api) }?;
        Ok(Self { api, plugin })
    }

    /// Writes one line to the run's log.
    pub fn log(&self, level: Level, message: &str) {
        if let Some(log) = self.api.log {
            let (target, message) = (HostStr::new(self.plugin), HostStr::new(message));
            // SAFETY: the host's function and `ctx` are valid on any thread until the process ends. The
            // function copies both texts before it returns.
            unsafe { log(self.api.ctx, level.code(), target, message) };
        }
    }

    /// Logs a failure.
    pub fn error(&self, message: &str) {
        self.log(Level::Error, message);
    }

    /// Logs a problem that does not stop the plugin.
    pub fn warn(&self, message: &str) {
        self.log(Level::Warn, message);
    }

    /// Logs information for users.
    pub fn info(&self, message: &str) {
        self.log(Level::Info, message);
    }

    /// Logs information for plugin authors.
    pub fn debug(&self, message: &str) {
        self.log(Level::Debug, message);
    }

    /// Whether lines of this level are logged. If they are not, the plugin can avoid the cost of creating
    /// them.
    pub fn is_enabled(&self, level: Level) -> bool {
        match self.api.log_enabled {
            // SAFETY: as in `log`.
            Some(log_enabled) => unsafe { log_enabled(self.api.ctx, level.code()) },
            None => self.api.log.is_some(),
        }
    }

    /// Returns the host's minor version of the ABI.
    pub fn abi_minor(&self) -> u32 {
        self.api.abi_minor
    }

    pub(crate) fn abi_major(&self) -> u32 {
        self.api.abi_major
    }

    /// Sets the error message of the call that is running on this thread.
    pub(crate) fn set_error(&self, message: &str) {
        if let Some(set_error) = self.api.set_error {
            // SAFETY: as in `log`.
            unsafe { set_error(self.api.ctx, HostStr::new(message)) };
        }
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host")
            .field("abi_major", &self.api.abi_major)
            .field("abi_minor", &self.api.abi_minor)
            .field("plugin", &self.plugin)
            .finish()
    }
}
