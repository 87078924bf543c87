use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::Error;

/// Stops the loop from outside, for example from a signal handler. Clones share their state. The loop checks
/// for a stop request only at a step boundary, so a step is never interrupted. `[any]`
#[derive(Clone, Debug, Default)]
pub struct Control(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicU8,
    failure: Mutex<Option<Error>>,
}

/// Why training ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// `max_train_steps` was reached.
    Completed,
    /// Ctrl-C (SIGINT).
    Interrupted,
    /// SIGTERM.
    Terminated,
    /// An observer or a client requested it.
    Requested,
    /// An error occurred.
    Failed,
}

impl Control {
    /// Creates a control without a stop request.
    pub fn new() -> Self {
        Self::default()
    }

    /// Requests that the loop finish its current step, write a checkpoint and return. Only the first
    /// reason counts. Safe in a signal handler: it is a single atomic operation.
    pub fn stop(&self, reason: StopReason) {
        let code = match reason {
            // The loop sets these reasons itself.
            StopReason::Completed | StopReason::Requested => return,
            StopReason::Interrupted => 1,
            StopReason::Terminated => 2,
            StopReason::Failed => 3,
        };
        // The exchange fails if a stop was already requested. The result is ignored, since only the first
        // request counts.
        let _ = self
            .0
            .stop
            .compare_exchange(0, code, Ordering::SeqCst, Ordering::SeqCst);
    }

    /// Requests a stop with [`StopReason::Failed`], and stores the error with which the run ends. Only the
    /// first error is stored.
    pub fn fail(&self, error: Error) {
        let mut failure = self.failure();
        failure.get_or_insert(error);
        self.stop(StopReason::Failed);
    }

    /// Removes and returns the error of [`Control::fail`].
    pub fn take_failure(&self) -> Option<Error> {
        self.failure().take()
    }

    fn failure(&self) -> std::sync::MutexGuard<'_, Option<Error>> {
        self.0
            .failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns why the loop must stop, or `None` if no stop was requested.
    pub fn stop_requested(&self) -> Option<StopReason> {
        match self.0.stop.load(Ordering::SeqCst) {
            0 => None,
            1 => Some(StopReason::Interrupted),
            2 => Some(StopReason::Terminated),
            _ => Some(StopReason::Failed),
        }
    }
}
