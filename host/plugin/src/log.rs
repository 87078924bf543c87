use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

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

/// The target of what the host itself says about a plugin.
pub(crate) const HOST: &str = "host";

/// Most lines of a plugin that are shown in a second, and in a run.
const MOST_IN_A_SECOND: u64 = 200;
const MOST_IN_A_RUN: u64 = 10_000;

/// How much a plugin has logged. What is more than a person can read is counted and not shown.
#[derive(Debug, Default)]
pub(crate) struct Flow(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    /// The second that runs, and the lines in it.
    begun: Option<Instant>,
    in_second: u64,
    shown: u64,
    /// Left out and not told of yet.
    left_out: u64,
}

impl Flow {
    /// Whether the next line is shown, and what there is to say of those before it.
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
                "it has logged {MOST_IN_A_RUN} lines; those behind the next one are counted and not shown"
            ));
        }
        (true, news)
    }

    /// What there is to say of the lines that were left out.
    pub(crate) fn left_out(&self) -> Option<String> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.take_left_out()
    }
}

impl Counts {
    fn take_left_out(&mut self) -> Option<String> {
        let count = std::mem::take(&mut self.left_out);
        let limit = match self.shown >= MOST_IN_A_RUN {
            true => format!("{MOST_IN_A_RUN} in a run"),
            false => format!("{MOST_IN_A_SECOND} in a second"),
        };
        (count > 0).then(|| format!("{count} lines of its log are not shown: at most {limit} are"))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_to_a_second_and_to_a_run_and_counted() {
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
        let of_a_second = "150 lines of its log are not shown: at most 200 in a second are";
        assert_eq!(said[..49], vec![of_a_second; 49]);
        assert!(
            said[49].starts_with("it has logged 10000 lines; "),
            "{said:?}"
        );
        assert_eq!(said.len(), 50);
        let rest = "52650 lines of its log are not shown: at most 10000 in a run are";
        assert_eq!(flow.left_out().as_deref(), Some(rest));
        assert_eq!(flow.left_out(), None);
    }

    #[test]
    fn a_plugin_that_speaks_now_and_then_is_never_cut() {
        let flow = Flow::default();
        let begin = Instant::now();
        for line in 0..1000 {
            let at = begin + Duration::from_millis(20 * line);
            assert_eq!(flow.admit(at), (true, None));
        }
    }
}
