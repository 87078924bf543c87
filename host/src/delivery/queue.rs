use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use host_core::{CheckpointDir, DeliveryState, Emitter, EventBody, Step};

use super::Undelivered;

/// Checkpoints that may wait for one sink. They are folders on the disk, so a place costs little.
const CAPACITY: usize = 1024;

/// What waits for one sink.
pub(super) struct Queue {
    pub(super) label: String,
    cancel_sink: Box<dyn Fn() + Send + Sync>,
    emitter: Mutex<Option<Emitter>>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
pub(super) struct State {
    /// In order; the worker is at the first and removes it when it is done with it.
    pub(super) waiting: VecDeque<Arc<CheckpointDir>>,
    /// The first has failed for now and waits for news.
    pub(super) stalled: bool,
    /// Something came, or the end, since the worker last looked.
    news: bool,
    /// No more will come.
    closed: bool,
    cancelled: bool,
    /// Checkpoints that the sink refused for good.
    pub(super) refused: Vec<Step>,
    pub(super) last_reason: String,
}

impl Queue {
    pub(super) fn new(
        label: String,
        cancel_sink: Box<dyn Fn() + Send + Sync>,
        emitter: Emitter,
    ) -> Self {
        Self {
            label,
            cancel_sink,
            emitter: Mutex::new(Some(emitter)),
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // The state is whole between any two statements, so a panic elsewhere leaves it usable.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn emit(&self, step: Step, body: EventBody) {
        let emitter = self.emitter.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(emitter) = emitter.as_ref() {
            emitter.emit(step, body);
        }
    }

    /// A delivery's events stand at the checkpoint's step, so that a run which goes back behind it
    /// takes them back as well.
    pub(super) fn tell(&self, step: Step, state: DeliveryState, detail: &str) {
        let body = EventBody::Delivery {
            sink: self.label.clone(),
            checkpoint: step,
            state,
            detail: detail.to_owned(),
        };
        self.emit(step, body);
    }

    pub(super) fn mute(&self) {
        *self.emitter.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Puts a checkpoint behind the others.
    pub(super) fn offer(&self, checkpoint: Arc<CheckpointDir>) {
        // The event goes first: the worker's own must come after it.
        self.tell(checkpoint.step, DeliveryState::Queued, "");
        self.push(checkpoint);
    }

    /// The same, of one that is on record as queued.
    pub(super) fn push(&self, checkpoint: Arc<CheckpointDir>) {
        let mut state = self.lock();
        if state.waiting.len() >= CAPACITY {
            drop(state);
            let reason = format!("{CAPACITY} checkpoints wait for this sink already");
            return self.refuse(checkpoint.step, &reason);
        }
        state.waiting.push_back(checkpoint);
        state.news = true;
        self.changed.notify_all();
    }

    /// Puts on record that a checkpoint will not be delivered, and why.
    pub(super) fn refuse(&self, step: Step, reason: &str) {
        let mut state = self.lock();
        state.refused.push(step);
        state.last_reason = reason.to_owned();
        drop(state);
        self.tell(step, DeliveryState::Failed, reason);
    }

    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.news = true;
        self.changed.notify_all();
    }

    pub(super) fn cancel(&self) {
        self.lock().cancelled = true;
        self.changed.notify_all();
        (self.cancel_sink)();
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.lock().cancelled
    }

    /// The next to deliver; blocks until there is one. None when there will be none.
    pub(super) fn next(&self) -> Option<Arc<CheckpointDir>> {
        let mut state = self.lock();
        loop {
            if state.cancelled {
                return None;
            }
            match state.waiting.front().cloned() {
                Some(checkpoint) if !state.stalled || state.news => {
                    state.stalled = false;
                    state.news = false;
                    return Some(checkpoint);
                }
                _ if state.closed => return None,
                _ => {
                    state = self
                        .changed
                        .wait(state)
                        .unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }

    /// Waits; false if everything was cancelled meanwhile.
    pub(super) fn sleep(&self, time: Duration) -> bool {
        let (state, _) = self
            .changed
            .wait_timeout_while(self.lock(), time, |state| !state.cancelled)
            .unwrap_or_else(PoisonError::into_inner);
        !state.cancelled
    }

    pub(super) fn undelivered(&self) -> Option<Undelivered> {
        let state = self.lock();
        let waiting = state.waiting.iter().map(|checkpoint| checkpoint.step);
        let steps: Vec<Step> = state.refused.iter().copied().chain(waiting).collect();
        (!steps.is_empty()).then(|| Undelivered {
            sink: self.label.clone(),
            steps,
            reason: if state.last_reason.is_empty() {
                "there was no time left".to_owned()
            } else {
                state.last_reason.clone()
            },
        })
    }
}
