use std::time::{Duration, Instant};

use crate::{Error, Result};

/// The deadline and the cancellation of a delivery, which every wait in the delivery checks. Also contains
/// the function that receives the delivery's warnings.
pub(crate) struct Limit<'a> {
    secs: u64,
    deadline: Instant,
    cancelled: &'a (dyn Fn() -> bool + Sync),
    warn: &'a (dyn Fn(&str) + Sync),
}

impl<'a> Limit<'a> {
    /// Creates a limit that is reached after `secs` seconds, or when `cancelled` returns true.
    pub(crate) fn new(secs: u64, cancelled: &'a (dyn Fn() -> bool + Sync)) -> Self {
        Self {
            secs,
            deadline: Instant::now() + Duration::from_secs(secs),
            cancelled,
            warn: &|_| {},
        }
    }

    /// Sets the receiver of warnings about waits and retries.
    #[must_use]
    pub(crate) fn warning(mut self, warn: &'a (dyn Fn(&str) + Sync)) -> Self {
        self.warn = warn;
        self
    }

    pub(crate) fn warn(&self, words: &str) {
        (self.warn)(words);
    }

    /// Returns an error if the deadline has passed or the delivery was cancelled.
    pub(crate) fn check(&self) -> Result<()> {
        if (self.cancelled)() {
            return Err(Error::Cancelled);
        }
        if self.remaining().is_zero() {
            let words = format!("the remote took longer than {} s (timeout_secs)", self.secs);
            return Err(Error::Temporary(words));
        }
        Ok(())
    }

    /// Returns the time left.
    pub(crate) fn remaining(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Sleeps for `time`. Returns an error as soon as the limit is reached.
    pub(crate) fn sleep(&self, time: Duration) -> Result<()> {
        let until = Instant::now() + time;
        while Instant::now() < until {
            self.check()?;
            std::thread::sleep(Duration::from_millis(10));
        }
        self.check()
    }
}
