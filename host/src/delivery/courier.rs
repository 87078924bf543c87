use std::sync::Arc;

use host_core::{
    CheckpointDir, Control, DeliveryState, Error, EventBody, Kind, Publish, Receipt, RunName,
    SinkError, Step, Verdict,
};

use super::queue::Queue;
use super::{Destination, Retry};

/// The worker of one sink. `[worker]`
pub(super) struct Courier {
    pub(super) run: RunName,
    pub(super) destination: Destination,
    pub(super) retry: Retry,
    pub(super) queue: Arc<Queue>,
    pub(super) control: Control,
}

/// How a delivery ended.
enum Ending {
    Delivered(Receipt),
    /// The sink will never take it.
    Refused(String),
    /// It may go well later.
    Postponed(String),
    /// Everything ends.
    Cancelled,
}

impl Courier {
    /// Delivers until there will be nothing more, or the sink is not called any more.
    pub(super) fn work(mut self) {
        while let Some(checkpoint) = self.queue.next() {
            let step = checkpoint.step;
            self.queue.tell(step, DeliveryState::Sending, "");
            let ending = self.deliver(&checkpoint);
            // The queue changes before the event goes out, so that whoever sees the event finds the
            // checkpoint no longer needed.
            let mut state = self.queue.lock();
            let (result, detail) = match &ending {
                Ending::Delivered(Receipt(receipt)) => {
                    state.waiting.pop_front();
                    (DeliveryState::Delivered, receipt.as_str())
                }
                Ending::Refused(reason) => {
                    state.waiting.pop_front();
                    state.refused.push(step);
                    state.last_reason.clone_from(reason);
                    (DeliveryState::Failed, reason.as_str())
                }
                Ending::Postponed(reason) => {
                    state.stalled = true;
                    state.last_reason.clone_from(reason);
                    (DeliveryState::Failed, reason.as_str())
                }
                Ending::Cancelled => {
                    state.stalled = true;
                    state.last_reason = "it was cancelled".to_owned();
                    (DeliveryState::Failed, "it was cancelled")
                }
            };
            drop(state);
            self.queue.tell(step, result, detail);
            match ending {
                Ending::Delivered(_) => self.destination.sink.succeeded(),
                Ending::Cancelled => {}
                Ending::Refused(reason) | Ending::Postponed(reason) => self.failed(step, &reason),
            }
            if self.destination.sink.active().is_none() {
                // What waits goes on waiting, and so does what is still to come.
                return;
            }
        }
    }

    fn deliver(&mut self, checkpoint: &CheckpointDir) -> Ending {
        let mut wait = self.retry.first_wait;
        let mut tries = 0;
        loop {
            tries += 1;
            let sink = self.destination.sink.active().expect("it is at work");
            let outcome = sink.publish(Publish {
                run: &self.run,
                checkpoint,
                state_dir: &self.destination.state_dir,
            });
            let reason = match outcome {
                Ok(receipt) => return Ending::Delivered(receipt),
                Err(SinkError::Cancelled) if self.queue.is_cancelled() => return Ending::Cancelled,
                Err(SinkError::Permanent(reason)) => {
                    self.fault(checkpoint.step, &reason);
                    return Ending::Refused(reason);
                }
                Err(SinkError::Temporary(reason)) => reason,
                Err(SinkError::Cancelled) => {
                    "it says that it was cancelled, and was not".to_owned()
                }
            };
            self.fault(checkpoint.step, &reason);
            let is_lost = self.destination.sink.port().lost().is_some();
            if is_lost || tries >= self.retry.tries || !self.queue.sleep(wait) {
                return Ending::Postponed(reason);
            }
            wait = wait.saturating_mul(2);
        }
    }

    fn fault(&self, step: Step, reason: &str) {
        let fault = self.destination.sink.fault("publish", reason);
        self.queue.emit(step, fault);
    }

    /// A delivery has failed, its tries included: the policy says what comes of it.
    fn failed(&mut self, step: Step, reason: &str) {
        let label = &self.queue.label;
        let message = format!("plugin {label} failed in publish: {reason}");
        let lost = self.destination.sink.port().lost();
        let error = Error::new(Kind::Plugin, message);
        match self.destination.sink.failed(error, lost) {
            Verdict::GoOn => {}
            Verdict::Disable(why) => {
                let first = self.queue.lock().waiting.front().map(|c| c.step);
                let which = match first {
                    Some(step) => format!("the checkpoints from step {step} on"),
                    None => "the next checkpoints".to_owned(),
                };
                let message = format!("{why}; {which} stay queued in the run folder");
                self.queue.emit(step, EventBody::Warning { message });
            }
            Verdict::End(error) => self.control.fail(error),
        }
    }
}
