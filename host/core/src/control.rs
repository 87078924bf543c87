use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::Error;

/// What the outside may ask of the loop. Shared and `[any]`; the loop looks at it only at a step
/// boundary, so a request never splits a step.
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
    /// `max_train_steps` were done.
    Completed,
    /// Ctrl-C (SIGINT).
    Interrupted,
    /// SIGTERM.
    Terminated,
    /// An observer or a client asked for it.
    Requested,
    /// An error.
    Failed,
}

impl Control {
    /// Nothing is asked for.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks the loop to finish the step it is in, write a checkpoint and return. The first reason
    /// stands. Safe in a signal handler: it is one atomic operation.
    pub fn stop(&self, reason: StopReason) {
        let code = match reason {
            // Those do not come from outside the loop.
            StopReason::Completed | StopReason::Requested => return,
            StopReason::Interrupted => 1,
            StopReason::Terminated => 2,
            StopReason::Failed => 3,
        };
        // A second request changes nothing, so the result does not matter.
        let _ = self
            .0
            .stop
            .compare_exchange(0, code, Ordering::SeqCst, Ordering::SeqCst);
    }

    /// Asks the loop to stop as [`StopReason::Failed`], with the error that the run ends with. The
    /// first error stands.
    pub fn fail(&self, error: Error) {
        let mut failure = self.failure();
        failure.get_or_insert(error);
        self.stop(StopReason::Failed);
    }

    /// Takes the error of [`Control::fail`] out.
    pub fn take_failure(&self) -> Option<Error> {
        self.failure().take()
    }

    fn failure(&self) -> std::sync::MutexGuard<'_, Option<Error>> {
        self.0
            .failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the loop shall stop, and why.
    pub fn stop_requested(&self) -> Option<StopReason> {
        match self.0.stop.load(Ordering::SeqCst) {
            0 => None,
            1 => Some(StopReason::Interrupted),
            2 => Some(StopReason::Terminated),
            _ => Some(StopReason::Failed),
        }
    }
}
