use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use host_core::{CheckpointDir, DeliveryState, Emitter, EventBody, QueuePolicy, Step};

use super::{Retry, Undelivered};

/// Checkpoints that may wait for one sink. They are folders on the disk, so a place costs little.
const CAPACITY: usize = 1024;

/// Ends the reason of what `QueuePolicy::Latest` drops.
pub(super) const TOOK_ITS_PLACE: &str = "took its place";

/// What waits for one sink.
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
    /// In order; the worker is at the first and removes it when it is done with it.
    waiting: VecDeque<Arc<CheckpointDir>>,
    /// The worker has the first in its hands.
    is_sending: bool,
    /// The first has failed for now, and is not tried again before this.
    retry_at: Option<Instant>,
    /// Tries of the first that failed in a row.
    failures: u32,
    /// The same since no more will come.
    last_failures: u32,
    /// The sink is not called any more.
    is_given_up: bool,
    /// No more will come.
    closed: bool,
    cancelled: bool,
    /// Checkpoints that the sink refused for as long as this process lasts. Another offers them again.
    refused: Vec<Step>,
    last_reason: String,
    /// Checkpoints that can never be delivered, and why.
    lost: Vec<(Step, String)>,
}

impl State {
    /// The first is no more.
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

    /// Loses a checkpoint that is not in the worker's hands. False if it was not needed.
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

    /// Puts a checkpoint behind the others.
    pub(super) fn offer(&self, checkpoint: Arc<CheckpointDir>) {
        // The event goes first: the worker's own must come after it.
        self.tell(checkpoint.step, DeliveryState::Queued, "", None);
        self.push(checkpoint);
    }

    /// The same, of one that is on record as queued.
    pub(super) fn push(&self, checkpoint: Arc<CheckpointDir>) {
        let step = checkpoint.step;
        let mut state = self.lock();
        let mut dropped = Vec::new();
        if self.policy == QueuePolicy::Latest {
            dropped.append(&mut state.refused);
            let in_hands = usize::from(state.is_sending);
            dropped.extend(state.waiting.drain(in_hands..).map(|old| old.step));
        }
        // A step that was done again: what was there before is no more.
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
            let reason = format!("{CAPACITY} checkpoints wait for this sink already");
            self.refuse(step, &reason);
        }
    }

    /// Puts on record that a checkpoint can never be delivered, and why.
    pub(super) fn lose(&self, step: Step, reason: &str) {
        self.lock().lost.push((step, reason.to_owned()));
        self.tell(step, DeliveryState::Dropped, reason, None);
    }

    /// Takes note of what the sink lacks, and that this process will not deliver it.
    pub(super) fn lacks(&self, steps: &[Step]) {
        self.lock().refused.extend_from_slice(steps);
    }

    fn superseded(&self, old: Step, newer: Step) {
        let reason = format!("step {newer} {TOOK_ITS_PLACE}");
        self.tell(old, DeliveryState::Dropped, &reason, None);
    }

    /// Puts on record that this process will not deliver a checkpoint, and why.
    pub(super) fn refuse(&self, step: Step, reason: &str) {
        let mut state = self.lock();
        state.refused.push(step);
        state.last_reason = reason.to_owned();
        drop(state);
        self.tell(step, DeliveryState::Failed, reason, None);
    }

    /// No more will come, and what has failed gets its last tries, the first of them now.
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

    /// The next to deliver; blocks until there is one whose time has come. None when there will be none.
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

    /// The one in the worker's hands has arrived. The queue changes before the event goes out, here and
    /// below, so that whoever sees the event finds the checkpoint no longer needed.
    pub(super) fn delivered(&self, step: Step, receipt: &str) {
        self.lock().advance();
        self.tell(step, DeliveryState::Delivered, receipt, None);
    }

    /// The sink will never take it.
    pub(super) fn refused(&self, step: Step, reason: &str) {
        let mut state = self.lock();
        state.advance();
        let newer = state.waiting.front().map(|newer| newer.step);
        let newer = newer.filter(|&newer| self.policy == QueuePolicy::Latest && newer != step);
        let is_done_again = state.waiting.iter().any(|c| c.step == step);
        if newer.is_none() && !is_done_again {
            // At no moment is it needed by nobody.
            state.refused.push(step);
        }
        state.last_reason = reason.to_owned();
        drop(state);
        self.tell(step, DeliveryState::Failed, reason, None);
        if let Some(newer) = newer {
            self.superseded(step, newer);
        }
    }

    /// It was not delivered, and may be later: by this process or, if the sink is not called again, by
    /// another.
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
            // The end has little time: it begins with short waits again.
            true => state.last_failures,
            false => state.failures,
        };
        let wait = again.then(|| self.retry.wait(in_a_row));
        state.retry_at = wait.map(|wait| Instant::now() + wait);
        drop(state);
        self.tell(step, DeliveryState::Failed, reason, wait);
    }

    /// How many tries of the first have failed in a row.
    pub(super) fn failures(&self) -> u32 {
        self.lock().failures
    }

    /// The sink is not called any more. What waits goes on waiting, and so does what is still to come.
    pub(super) fn give_up(&self) {
        self.lock().is_given_up = true;
    }

    /// Whether the sink lacks a checkpoint: it waits, is on its way, or was refused, which another process
    /// makes up for.
    pub(super) fn needs(&self, step: Step) -> bool {
        self.lock().needs(step)
    }

    /// How many wait, or are on their way.
    pub(super) fn depth(&self) -> usize {
        self.lock().waiting.len()
    }

    /// The step that comes first.
    pub(super) fn first(&self) -> Option<Step> {
        self.lock().waiting.front().map(|c| c.step)
    }

    /// What the sink does not have and may still get, and what it never will.
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

/// Takes a checkpoint from the queues, so that its folder may be removed: it is lost to those sinks that
/// lack it, which is on record then. False, and nothing is changed, while a sink has it in its hands.
pub(super) fn give_up(queues: &[&Queue], step: Step, reason: &str) -> bool {
    // All at once, so that none begins to send what another has lost. Nobody else holds two.
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
