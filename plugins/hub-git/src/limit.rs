use std::time::{Duration, Instant};

use crate::{Error, Result};

/// How long a delivery may take, whether it was asked to end, and who is told of a wait. Everything
/// that waits looks here.
pub(crate) struct Limit<'a> {
    secs: u64,
    deadline: Instant,
    cancelled: &'a (dyn Fn() -> bool + Sync),
    warn: &'a (dyn Fn(&str) + Sync),
}

impl<'a> Limit<'a> {
    /// `secs` from now, or until `cancelled` says so.
    pub(crate) fn new(secs: u64, cancelled: &'a (dyn Fn() -> bool + Sync)) -> Self {
        Self {
            secs,
            deadline: Instant::now() + Duration::from_secs(secs),
            cancelled,
            warn: &|_| {},
        }
    }

    /// Who is told when something takes longer than usual.
    #[must_use]
    pub(crate) fn warning(mut self, warn: &'a (dyn Fn(&str) + Sync)) -> Self {
        self.warn = warn;
        self
    }

    pub(crate) fn warn(&self, words: &str) {
        (self.warn)(words);
    }

    /// Nothing if there is time left and nobody asked to end.
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

    /// Time left.
    pub(crate) fn remaining(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Waits, but not beyond the limit.
    pub(crate) fn sleep(&self, time: Duration) -> Result<()> {
        let until = Instant::now() + time;
        while Instant::now() < until {
            self.check()?;
            std::thread::sleep(Duration::from_millis(10));
        }
        self.check()
    }
}
