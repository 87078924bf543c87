use std::sync::Arc;

use host_core::{
    CheckpointDir, Control, Error, ErrorKind, EventBody, Publish, Receipt, RunName, SinkError,
    Step, Verdict,
};

use super::custody::{Custody, Holders};
use super::queue::Queue;
use super::{Destination, Retry};

/// The worker of one sink. `[worker]`
pub(super) struct Courier {
    pub(super) run: RunName,
    pub(super) destination: Destination,
    pub(super) retry: Retry,
    pub(super) queue: Arc<Queue>,
    pub(super) control: Control,
    pub(super) holders: Holders,
    /// The checkpoint that the sink received most recently. A faulty sink can still write to it.
    pub(super) last: Option<(Step, Custody)>,
}

impl Courier {
    /// Delivers checkpoints until [`Queue::next`] returns None.
    pub(super) fn work(mut self) {
        while let Some(checkpoint) = self.queue.next() {
            let step = checkpoint.step;
            match self.publish(&checkpoint) {
                Ok(Receipt(receipt)) => {
                    self.queue.delivered(step, &receipt);
                    self.destination.sink.succeeded();
                }
                Err(SinkError::Cancelled) if self.queue.is_cancelled() => {
                    self.queue.postponed(step, "it was cancelled", true);
                }
                Err(SinkError::Permanent(reason)) => self.refused(step, &reason),
                Err(SinkError::Temporary(reason)) => self.postponed(step, &reason),
                Err(SinkError::Cancelled) => {
                    self.postponed(
                        step,
                        "the sink reports that it was cancelled, but it was not",
                    );
                }
            }
        }
        self.look_back();
    }

    /// Delivers a checkpoint, and verifies that the sink did not change it.
    fn publish(&mut self, checkpoint: &CheckpointDir) -> Result<Receipt, SinkError> {
        let (step, label) = (checkpoint.step, self.queue.label.clone());
        let mut custody = Custody::begin(checkpoint).map_err(|damage| {
            SinkError::Permanent(match &self.holders.others(step, &label)[..] {
                [] => damage,
                others => format!(
                    "{damage}; {} had access to the checkpoint earlier",
                    others.join(", ")
                ),
            })
        })?;
        self.holders.enter(step, &label);
        let sink = self
            .destination
            .sink
            .active()
            .expect("a disabled sink gets no checkpoints");
        let published = sink.publish(Publish {
            run: &self.run,
            checkpoint,
            state_dir: &self.destination.state_dir,
        });
        let kept = custody.end();
        self.look_back();
        self.last = Some((step, custody));
        match kept {
            Ok(()) => published,
            Err(damage) => {
                let others = self.holders.others(step, &label);
                Err(SinkError::Permanent(damage.describe(&others)))
            }
        }
    }

    /// Checks the sink's previous checkpoint again, because the sink may have changed it after the delivery.
    fn look_back(&mut self) {
        if let Some((step, mut custody)) = self.last.take()
            && let Err(damage) = custody.end()
        {
            let others = self.holders.others(step, &self.queue.label);
            let reason = format!("after the delivery, {}", damage.describe(&others));
            self.fault(step, &reason);
        }
    }

    /// Handles a permanent failure: the sink will never accept this checkpoint.
    fn refused(&mut self, step: Step, reason: &str) {
        self.fault(step, reason);
        let verdict = self.judge(reason);
        if self.destination.sink.active().is_none() {
            self.queue.give_up();
        }
        self.queue.refused(step, reason);
        self.carry_out(step, verdict);
    }

    /// Handles a temporary failure. `retry.tries` consecutive failures count as one failure for the policy.
    fn postponed(&mut self, step: Step, reason: &str) {
        self.fault(step, reason);
        let is_lost = self.destination.sink.port().lost().is_some();
        let tries = self.queue.failures() + 1;
        let verdict = if is_lost || tries.is_multiple_of(self.retry.tries) {
            self.judge(reason)
        } else {
            Verdict::GoOn
        };
        let is_called_again = self.destination.sink.active().is_some();
        self.queue.postponed(step, reason, is_called_again);
        self.carry_out(step, verdict);
    }

    fn fault(&self, step: Step, reason: &str) {
        let fault = self.destination.sink.fault("publish", reason);
        self.queue.emit(step, fault);
    }

    /// Reports a failed delivery to the policy and returns its verdict.
    fn judge(&mut self, reason: &str) -> Verdict {
        let label = &self.queue.label;
        let message = format!("plugin {label} failed in publish: {reason}");
        let lost = self.destination.sink.port().lost();
        let error = Error::new(ErrorKind::Plugin, message);
        self.destination.sink.failed(error, lost)
    }

    fn carry_out(&self, step: Step, verdict: Verdict) {
        match verdict {
            Verdict::GoOn => {}
            Verdict::Disable(why) => {
                let which = match self.queue.first() {
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
