use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use host_core::{CheckpointDir, DeliveryState, Emitter, EventBody, QueuePolicy, Step};

use super::{Retry, Undelivered};

/// Maximum number of checkpoints that wait for a sink. A waiting checkpoint is a folder on the disk and needs
/// little memory.
const CAPACITY: usize = 1024;

/// When `QueuePolicy::Latest` drops a checkpoint, the recorded reason ends with these words.
pub(super) const TOOK_ITS_PLACE: &str = "took its place";

/// The checkpoints that wait for a sink.
pub(super) struct Queue {
    pub(super) label: String,
    policy: QueuePolicy,
    retry: Retry,
    cancel_sink: Box<dyn Fn() + Send + Sync>,
    emitter: Mutex<Option<Emitter>>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// The queued checkpoints, in order. The worker handles the first checkpoint and then removes it.
    waiting: VecDeque<Arc<CheckpointDir>>,
    /// Whether the worker is sending the first checkpoint.
    is_sending: bool,
    /// When to retry the first checkpoint after a temporary failure.
    retry_at: Option<Instant>,
    /// Number of consecutive failed attempts to deliver the first checkpoint.
    failures: u32,
    /// Like `failures`, but counts only the attempts that failed after the queue was closed.
    last_failures: u32,
    /// Whether the sink is disabled.
    is_given_up: bool,
    /// Whether no more checkpoints will be added.
    closed: bool,
    cancelled: bool,
    /// Checkpoints that this process does not deliver. A later process retries them.
    refused: Vec<Step>,
    last_reason: String,
    /// Checkpoints that can never be delivered, and why.
    lost: Vec<(Step, String)>,
}

impl State {
    /// Removes the first checkpoint.
    fn advance(&mut self) {
        self.waiting.pop_front();
        self.is_sending = false;
        self.retry_at = None;
        self.failures = 0;
        self.last_failures = 0;
    }

    fn needs(&self, step: Step) -> bool {
        self.waiting.iter().any(|c| c.step == step) || self.refused.contains(&step)
    }

    fn is_in_hands(&self, step: Step) -> bool {
        self.is_sending && self.waiting.front().is_some_and(|c| c.step == step)
    }

    /// Removes a checkpoint and records it as lost. The worker must not be sending it. If the sink does not
    /// need the checkpoint, changes nothing and returns false.
    fn give_up(&mut self, step: Step, reason: &str) -> bool {
        if !self.needs(step) {
            return false;
        }
        if self.waiting.front().is_some_and(|c| c.step == step) {
            self.advance();
        }
        self.waiting.retain(|c| c.step != step);
        self.refused.retain(|&refused| refused != step);
        self.lost.push((step, reason.to_owned()));
        true
    }
}

impl Queue {
    pub(super) fn new(
        label: String,
        policy: QueuePolicy,
        retry: Retry,
        cancel_sink: Box<dyn Fn() + Send + Sync>,
        emitter: Emitter,
    ) -> Self {
        Self {
            label,
            policy,
            retry,
            cancel_sink,
            emitter: Mutex::new(Some(emitter)),
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is consistent between any two statements, so it is usable after a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn emit(&self, step: Step, body: EventBody) {
        let emitter = self.emitter.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(emitter) = emitter.as_ref() {
            emitter.emit(step, body);
        }
    }

    /// Emits a delivery event at the checkpoint's step, so that the event is also reverted if the run goes
    /// back to an earlier step.
    fn tell(&self, step: Step, state: DeliveryState, detail: &str, retry_in: Option<Duration>) {
        let retry_time = |wait: Duration| {
            let wait = i64::try_from(wait.as_micros()).unwrap_or(i64::MAX);
            jiff::Timestamp::now().as_microsecond().saturating_add(wait)
        };
        let body = EventBody::Delivery {
            sink: self.label.clone(),
            checkpoint: step,
            state,
            detail: detail.to_owned(),
            retry_time_us: retry_in.map(retry_time),
        };
        self.emit(step, body);
    }

    pub(super) fn mute(&self) {
        *self.emitter.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Appends a checkpoint and emits its `Queued` event.
    pub(super) fn offer(&self, checkpoint: Arc<CheckpointDir>) {
        // Emits the event first: the worker's events must follow it.
        self.tell(checkpoint.step, DeliveryState::Queued, "", None);
        self.push(checkpoint);
    }

    /// Appends a checkpoint that is already recorded as queued.
    pub(super) fn push(&self, checkpoint: Arc<CheckpointDir>) {
        let step = checkpoint.step;
        let mut state = self.lock();
        let mut dropped = Vec::new();
        if self.policy == QueuePolicy::Latest {
            dropped.append(&mut state.refused);
            let in_hands = usize::from(state.is_sending);
            dropped.extend(state.waiting.drain(in_hands..).map(|old| old.step));
        }
        // If an earlier checkpoint of the same step is queued, removes it, unless it is being sent.
        state.refused.retain(|&refused| refused != step);
        let in_hands = usize::from(state.is_sending);
        let mut place = 0;
        state.waiting.retain(|waiting| {
            place += 1;
            place <= in_hands || waiting.step != step
        });
        let is_full = state.waiting.len() >= CAPACITY;
        if !is_full {
            state.waiting.push_back(checkpoint);
            self.changed.notify_all();
        }
        drop(state);
        dropped
            .into_iter()
            .for_each(|old| self.superseded(old, step));
        if is_full {
            let reason = format!("{CAPACITY} checkpoints are already waiting for this sink");
            self.refuse(step, &reason);
        }
    }

    /// Records that a checkpoint can never be delivered, and why.
    pub(super) fn lose(&self, step: Step, reason: &str) {
        self.lock().lost.push((step, reason.to_owned()));
        self.tell(step, DeliveryState::Dropped, reason, None);
    }

    /// Records the steps of checkpoints that the sink has not received and that this process will not
    /// deliver.
    pub(super) fn lacks(&self, steps: &[Step]) {
        self.lock().refused.extend_from_slice(steps);
    }

    fn superseded(&self, old: Step, newer: Step) {
        let reason = format!("step {newer} {TOOK_ITS_PLACE}");
        self.tell(old, DeliveryState::Dropped, &reason, None);
    }

    /// Records that this process will not deliver a checkpoint, and why.
    pub(super) fn refuse(&self, step: Step, reason: &str) {
        let mut state = self.lock();
        state.refused.push(step);
        state.last_reason = reason.to_owned();
        drop(state);
        self.tell(step, DeliveryState::Failed, reason, None);
    }

    /// Closes the queue for new checkpoints. If the first checkpoint is waiting for a retry, it is retried at
    /// once. Failed deliveries are then retried a few more times.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.retry_at = None;
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

    /// Blocks until a checkpoint is due, and returns it. None if the worker should end.
    pub(super) fn next(&self) -> Option<Arc<CheckpointDir>> {
        let mut state = self.lock();
        loop {
            if state.cancelled || state.is_given_up {
                return None;
            }
            let no_more_tries = state.last_failures >= self.retry.tries;
            if state.closed && (state.waiting.is_empty() || no_more_tries) {
                return None;
            }
            let wait = state.retry_at.map_or(Duration::ZERO, |at| {
                at.saturating_duration_since(Instant::now())
            });
            state = match state.waiting.front().cloned() {
                Some(checkpoint) if wait.is_zero() => {
                    state.is_sending = true;
                    drop(state);
                    self.tell(checkpoint.step, DeliveryState::Sending, "", None);
                    return Some(checkpoint);
                }
                Some(_) => {
                    let waited = self.changed.wait_timeout(state, wait);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => {
                    let waited = self.changed.wait(state);
                    waited.unwrap_or_else(PoisonError::into_inner)
                }
            };
        }
    }

    /// Records that the first checkpoint was delivered. Here and below, the queue is changed before the event
    /// is emitted, so that [`Queue::needs`] is already up to date when other threads see the event.
    pub(super) fn delivered(&self, step: Step, receipt: &str) {
        self.lock().advance();
        self.tell(step, DeliveryState::Delivered, receipt, None);
    }

    /// Records that the sink permanently rejected the first checkpoint.
    pub(super) fn refused(&self, step: Step, reason: &str) {
        let mut state = self.lock();
        state.advance();
        let newer = state.waiting.front().map(|newer| newer.step);
        let newer = newer.filter(|&newer| self.policy == QueuePolicy::Latest && newer != step);
        let is_done_again = state.waiting.iter().any(|c| c.step == step);
        if newer.is_none() && !is_done_again {
            // The lock has been held since before `advance`, so that the checkpoint counts as needed at all
            // times.
            state.refused.push(step);
        }
        state.last_reason = reason.to_owned();
        drop(state);
        self.tell(step, DeliveryState::Failed, reason, None);
        if let Some(newer) = newer {
            self.superseded(step, newer);
        }
    }

    /// Records a temporary failure to deliver the first checkpoint. The delivery is retried by this process
    /// or, if the sink is disabled, by a later process.
    pub(super) fn postponed(&self, step: Step, reason: &str, is_called_again: bool) {
        let mut state = self.lock();
        state.is_sending = false;
        state.failures += 1;
        state.last_failures += u32::from(state.closed);
        state.is_given_up |= !is_called_again;
        state.last_reason = reason.to_owned();
        let no_more_tries = state.last_failures >= self.retry.tries;
        let again = is_called_again && !no_more_tries && !state.cancelled;
        let in_a_row = match state.closed {
            // The time at the end of the run is limited, so the waits between attempts start again with the
            // shortest.
            true => state.last_failures,
            false => state.failures,
        };
        let wait = again.then(|| self.retry.wait(in_a_row));
        state.retry_at = wait.map(|wait| Instant::now() + wait);
        drop(state);
        self.tell(step, DeliveryState::Failed, reason, wait);
    }

    /// Returns the number of consecutive failed attempts to deliver the first checkpoint.
    pub(super) fn failures(&self) -> u32 {
        self.lock().failures
    }

    /// Disables the sink. Its checkpoints stay queued, including those that are added later.
    pub(super) fn give_up(&self) {
        self.lock().is_given_up = true;
    }

    /// Whether the sink still needs a checkpoint. True if the checkpoint is waiting, is being sent, or is
    /// left to a later process.
    pub(super) fn needs(&self, step: Step) -> bool {
        self.lock().needs(step)
    }

    /// Returns the number of checkpoints that wait or are being sent.
    pub(super) fn depth(&self) -> usize {
        self.lock().waiting.len()
    }

    /// Returns the step of the first checkpoint.
    pub(super) fn first(&self) -> Option<Step> {
        self.lock().waiting.front().map(|c| c.step)
    }

    /// Returns the checkpoints that the sink did not receive. They are grouped: a group's `is_lost` tells
    /// whether its checkpoints can never be delivered.
    pub(super) fn undelivered(&self) -> Vec<Undelivered> {
        let state = self.lock();
        let mut lost = BTreeMap::<&str, Vec<Step>>::new();
        for (step, reason) in &state.lost {
            lost.entry(reason).or_default().push(*step);
        }
        let lost = lost.into_iter().map(|(reason, steps)| Undelivered {
            sink: self.label.clone(),
            steps,
            reason: reason.to_owned(),
            is_lost: true,
        });
        let waiting = state.waiting.iter().map(|checkpoint| checkpoint.step);
        let steps: Vec<Step> = state.refused.iter().copied().chain(waiting).collect();
        let left = (!steps.is_empty()).then(|| Undelivered {
            sink: self.label.clone(),
            steps,
            reason: if state.last_reason.is_empty() {
                "there was no time left".to_owned()
            } else {
                state.last_reason.clone()
            },
            is_lost: false,
        });
        lost.chain(left).collect()
    }
}

/// Removes a checkpoint from the queues, so that its folder can be removed. Records it as lost for the sinks
/// that need it. If a sink is sending the checkpoint, changes nothing and returns false.
pub(super) fn give_up(queues: &[&Queue], step: Step, reason: &str) -> bool {
    // Locks all queues, so that no sink starts to send a checkpoint that other sinks have lost. No other code
    // locks more than one queue.
    let mut states: Vec<MutexGuard<'_, State>> = queues.iter().map(|queue| queue.lock()).collect();
    if states.iter().any(|state| state.is_in_hands(step)) {
        return false;
    }
    let losers: Vec<&Queue> = queues
        .iter()
        .zip(&mut states)
        .filter_map(|(queue, state)| state.give_up(step, reason).then_some(*queue))
        .collect();
    drop(states);
    for queue in losers {
        queue.changed.notify_all();
        queue.tell(step, DeliveryState::Dropped, reason, None);
    }
    true
}
