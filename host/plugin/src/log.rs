use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use host_plugin_abi as abi;

/// How important a plugin's log line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Something failed.
    Error,
    /// A problem that does not stop the plugin.
    Warn,
    /// Information for users.
    Info,
    /// Information for the plugin's author.
    Debug,
}

/// A line that a plugin logs.
#[derive(Clone, Copy, Debug)]
pub struct LogRecord<'a> {
    /// How important the line is.
    pub level: Level,
    /// The plugin's id.
    pub plugin: &'a str,
    /// The part of the plugin that wrote the line; for a Rust plugin, a module path.
    pub target: &'a str,
    /// The text of the line.
    pub message: &'a str,
}

type Hook = Arc<dyn Fn(&LogRecord<'_>) + Send + Sync>;

static HOOK: RwLock<Option<Hook>> = RwLock::new(None);
/// Lines of this level and of more important levels are kept. The level is a number of the ABI. 0 keeps no
/// lines.
static KEPT: AtomicI32 = AtomicI32::new(0);

/// Passes the log lines of all plugins to `hook`. `kept` is the least important level that is passed. The
/// hook is called on the thread that logs. Without a hook, the lines are discarded.
pub fn set_log(kept: Level, hook: impl Fn(&LogRecord<'_>) + Send + Sync + 'static) {
    set_log_by_number(kept.number(), hook);
}

/// Like [`set_log`], but the level is a number of the ABI. 0 keeps no lines.
pub(crate) fn set_log_by_number(kept: i32, hook: impl Fn(&LogRecord<'_>) + Send + Sync + 'static) {
    *HOOK.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(hook));
    KEPT.store(kept, Ordering::Relaxed);
}

/// Returns the least important level that is kept, as a number of the ABI. Returns 0 if no lines are kept.
pub(crate) fn kept() -> i32 {
    KEPT.load(Ordering::Relaxed)
}

/// Whether log lines of a level are kept. `level` is the level's number in the ABI.
pub(crate) fn is_kept(level: i32) -> bool {
    level <= kept()
}

pub(crate) fn write(record: &LogRecord<'_>) {
    // The lock is not held while the hook runs, so the hook can set another hook.
    let hook = HOOK
        .read()
        .unwrap_or_else(PoisonError::into_inner)
        .as_ref()
        .map(Arc::clone);
    if let Some(hook) = hook {
        hook(record);
    }
}

/// The target of log lines that the host itself writes about a plugin.
pub(crate) const HOST: &str = "host";

/// Maximum number of log lines that are shown for each plugin: the first limit is per second, the second per
/// run.
const MOST_IN_A_SECOND: u64 = 200;
const MOST_IN_A_RUN: u64 = 10_000;

/// Limits the rate of a plugin's log. Lines beyond the limits are counted but not shown.
#[derive(Debug, Default)]
pub(crate) struct Flow(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    /// The start of the current second.
    begun: Option<Instant>,
    in_second: u64,
    shown: u64,
    /// The number of lines that were not shown and are not yet reported.
    left_out: u64,
}

impl Flow {
    /// Returns whether the next line is shown. If a report is due, also returns the report. Log the report
    /// before the line.
    pub(crate) fn admit(&self, now: Instant) -> (bool, Option<String>) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_over = counts
            .begun
            .is_none_or(|begun| now.duration_since(begun) >= Duration::from_secs(1));
        let mut news = None;
        if is_over {
            counts.begun = Some(now);
            counts.in_second = 0;
            if counts.shown < MOST_IN_A_RUN {
                news = counts.take_left_out();
            }
        }
        if counts.shown >= MOST_IN_A_RUN || counts.in_second >= MOST_IN_A_SECOND {
            counts.left_out += 1;
            return (false, news);
        }
        counts.in_second += 1;
        counts.shown += 1;
        if counts.shown == MOST_IN_A_RUN {
            news = Some(format!(
                "it has reached the limit of {MOST_IN_A_RUN} log lines per run; the next line is the last one shown, and later lines are only counted"
            ));
        }
        (true, news)
    }

    /// Returns a report about the lines that were not shown, if there are any.
    pub(crate) fn left_out(&self) -> Option<String> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.take_left_out()
    }
}

impl Counts {
    fn take_left_out(&mut self) -> Option<String> {
        let count = std::mem::take(&mut self.left_out);
        let limit = match self.shown >= MOST_IN_A_RUN {
            true => format!("{MOST_IN_A_RUN} per run"),
            false => format!("{MOST_IN_A_SECOND} per second"),
        };
        (count > 0).then(|| format!("{count} lines of its log are not shown: the limit is {limit}"))
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

    /// Returns the level with this number in the ABI, or the nearest level if no level has this number.
    pub(crate) fn from_number(level: i32) -> Self {
        match level {
            ..=abi::HOST_LOG_ERROR => Self::Error,
            abi::HOST_LOG_WARN => Self::Warn,
            abi::HOST_LOG_INFO => Self::Info,
            _ => Self::Debug,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_limited_per_second_and_per_run_and_counted() {
        let flow = Flow::default();
        let begin = Instant::now();
        let mut shown = 0;
        let mut said = Vec::new();
        for second in 0..200 {
            for _ in 0..350 {
                let (is_shown, news) = flow.admit(begin + Duration::from_secs(second));
                shown += u64::from(is_shown);
                said.extend(news);
            }
        }
        assert_eq!(shown, MOST_IN_A_RUN);
        let of_a_second = "150 lines of its log are not shown: the limit is 200 per second";
        assert_eq!(said[..49], vec![of_a_second; 49]);
        assert!(
            said[49].starts_with("it has reached the limit of 10000 log lines per run; "),
            "{said:?}"
        );
        assert_eq!(said.len(), 50);
        let rest = "52650 lines of its log are not shown: the limit is 10000 per run";
        assert_eq!(flow.left_out().as_deref(), Some(rest));
        assert_eq!(flow.left_out(), None);
    }

    #[test]
    fn a_plugin_that_logs_rarely_is_never_limited() {
        let flow = Flow::default();
        let begin = Instant::now();
        for line in 0..1000 {
            let at = begin + Duration::from_millis(20 * line);
            assert_eq!(flow.admit(at), (true, None));
        }
    }
}
