use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use host_plugin_abi as abi;

/// How important a plugin's log line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Something failed.
    Error,
    /// Something is wrong, and the plugin goes on.
    Warn,
    /// What a user may like to know.
    Info,
    /// What an author may like to know.
    Debug,
}

/// A line that a plugin logs.
#[derive(Clone, Copy, Debug)]
pub struct LogRecord<'a> {
    /// How important it is.
    pub level: Level,
    /// The plugin's id.
    pub plugin: &'a str,
    /// The part of the plugin that speaks; for a Rust plugin a module path.
    pub target: &'a str,
    /// What it says.
    pub message: &'a str,
}

type Hook = Arc<dyn Fn(&LogRecord<'_>) + Send + Sync>;

static HOOK: RwLock<Option<Hook>> = RwLock::new(None);
/// The ABI's number of the least important level that is kept; 0 keeps nothing.
static KEPT: AtomicI32 = AtomicI32::new(0);

/// Sends the log lines of all plugins, down to the level `kept`, to `hook`, which is called on
/// whatever thread the plugin logs from. Without a hook they go nowhere.
pub fn set_log(kept: Level, hook: impl Fn(&LogRecord<'_>) + Send + Sync + 'static) {
    set_log_by_number(kept.number(), hook);
}

/// The same with the ABI's number of the level, 0 for none.
pub(crate) fn set_log_by_number(kept: i32, hook: impl Fn(&LogRecord<'_>) + Send + Sync + 'static) {
    *HOOK.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(hook));
    KEPT.store(kept, Ordering::Relaxed);
}

/// The ABI's number of the least important level that is kept; 0 keeps nothing.
pub(crate) fn kept() -> i32 {
    KEPT.load(Ordering::Relaxed)
}

/// Whether a line of this level, by the ABI's number, is kept.
pub(crate) fn is_kept(level: i32) -> bool {
    level <= kept()
}

pub(crate) fn write(record: &LogRecord<'_>) {
    // The lock is not held while the hook runs: it may set another one.
    let hook = HOOK
        .read()
        .unwrap_or_else(PoisonError::into_inner)
        .as_ref()
        .map(Arc::clone);
    if let Some(hook) = hook {
        hook(record);
    }
}

impl Level {
    pub(crate) fn number(self) -> i32 {
        match self {
            Self::Error => abi::HOST_LOG_ERROR,
            Self::Warn => abi::HOST_LOG_WARN,
            Self::Info => abi::HOST_LOG_INFO,
            Self::Debug => abi::HOST_LOG_DEBUG,
        }
    }

    /// The level with this number in the ABI, or the nearest.
    pub(crate) fn from_number(level: i32) -> Self {
        match level {
            ..=abi::HOST_LOG_ERROR => Self::Error,
            abi::HOST_LOG_WARN => Self::Warn,
            abi::HOST_LOG_INFO => Self::Info,
            _ => Self::Debug,
        }
    }
}
