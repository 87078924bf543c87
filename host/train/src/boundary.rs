//! What happens between two steps: observers, clients and signals decide what the loop does next.

use std::time::{Duration, Instant};

use host_core::{Asked, Control, Emitter, EventBody, Request, Requests, Result, Step, StopReason};
use tch::{Kind, Tensor};

use crate::TrainConfig;
use crate::checkpoint::BoundaryState;
use crate::collective::Collective;
use crate::config::OnNonfinite;
use crate::observers::Observers;
use crate::ports::BoundaryPorts;
use crate::training::Training;

/// Longest interval between two reports of what surrounds the loop, where no evaluation triggers one.
const REPORT_PERIOD: Duration = Duration::from_secs(10);

/// How often a paused loop checks for signals.
const PAUSE_PERIOD: Duration = Duration::from_millis(50);

/// Decides between two steps, and yields the orders for the next.
pub(crate) struct Boundary<'a> {
    collective: Collective,
    pub(crate) emitter: Emitter,
    pub(crate) control: Control,
    pub(crate) observers: Observers,
    /// Called after plugins were called, with whether it may not be put off.
    pub(crate) put_back: Box<dyn FnMut(Step, bool) + 'a>,
    /// What clients ask for; none once the loop has ended.
    requests: Option<Requests>,
    report: Box<dyn FnMut(Step) + 'a>,
    reported: Instant,
    max_train_steps: u64,
    save_checkpoint_steps: u64,
    /// Set by clients and lowered by observers.
    learning_rate_factor: f64,
    is_paused: bool,
    /// Why the loop ends, once that is decided.
    reason: StopReason,
}

/// What the next step does beside training.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Orders {
    /// Changes no weight.
    pub(crate) skip: bool,
    /// Multiplies the schedule's learning rate by this.
    pub(crate) learning_rate_factor: f64,
}

impl Orders {
    /// Whether the optimizer leaves the weights as they are: 0-d f32, 1 for yes, on the norm's device.
    /// None where it never does.
    pub(crate) fn skip(self, mode: OnNonfinite, loss: &Tensor, norm: &Tensor) -> Option<Tensor> {
        let skip = match mode {
            _ if self.skip => norm.ones_like(),
            OnNonfinite::Continue => return None,
            OnNonfinite::Stop | OnNonfinite::Skip => (loss + norm).isfinite().logical_not(),
        };
        Some(skip.to_kind(Kind::Float))
    }
}

impl<'a> Boundary<'a> {
    pub(crate) fn new(
        config: &TrainConfig,
        collective: Collective,
        emitter: Emitter,
        ports: BoundaryPorts<'a>,
    ) -> Self {
        Self {
            collective,
            emitter,
            control: ports.control,
            observers: ports.observers,
            put_back: ports.put_back,
            requests: Some(ports.requests),
            report: ports.report,
            reported: Instant::now(),
            max_train_steps: config.max_train_steps,
            save_checkpoint_steps: config.save_checkpoint_steps,
            learning_rate_factor: 1.0,
            is_paused: false,
            reason: StopReason::Completed,
        }
    }

    /// Carries out what is asked for before the next step, in order. None when there is no next step;
    /// [`Boundary::end`] says why.
    ///
    /// # Errors
    /// A checkpoint could not be made or read, or the loss before it was not finite.
    pub(crate) fn next(&mut self, training: &mut Training<'_>) -> Result<Option<Orders>> {
        if training.state.step.0 >= self.max_train_steps {
            return Ok(self.stop(StopReason::Completed));
        }
        self.observe(training.state.step);
        let mut skip = false;
        while let Some(request) = self.collective.agree(self.next_request(training))? {
            match request {
                Request::Stop => return Ok(self.stop(StopReason::Requested)),
                Request::Checkpoint => training.save_once(self)?,
                Request::SkipStep => skip = true,
                Request::ScaleLearningRate { factor } => self.learning_rate_factor *= factor,
                Request::SetLearningRate { factor } => self.learning_rate_factor = factor,
                Request::RollBack => training.roll_back(self)?,
                Request::Evaluate => {
                    training.log.flush()?;
                    training.evaluate(self)?;
                }
                Request::Pause => {
                    training.log.flush()?;
                    self.is_paused = true;
                }
                Request::Continue => self.is_paused = false,
            }
        }
        if let Some(reason) = self.collective.agree(self.control.stop_requested())? {
            return Ok(self.stop(reason));
        }
        if training
            .state
            .step
            .is_multiple_of(self.save_checkpoint_steps)
            || self.reported.elapsed() > REPORT_PERIOD
        {
            self.reported = Instant::now();
            (self.report)(training.state.step);
        }
        Ok(Some(Orders {
            skip,
            learning_rate_factor: self.learning_rate_factor,
        }))
    }

    fn stop(&mut self, reason: StopReason) -> Option<Orders> {
        self.reason = reason;
        None
    }

    /// Takes no more requests, so that those who wait for one to be carried out hear that it will not be,
    /// and says why the loop ended.
    pub(crate) fn end(&mut self) -> StopReason {
        drop(self.requests.take());
        self.reason
    }

    /// Shows the observers what happened since the last time.
    pub(crate) fn observe(&mut self, step: Step) {
        self.observers.observe(step, &self.emitter, &self.control);
        (self.put_back)(step, false);
    }

    /// What a checkpoint keeps.
    pub(crate) fn export(&mut self, step: Step) -> BoundaryState {
        let (observers, asked) = self.observers.export(step, &self.emitter, &self.control);
        (self.put_back)(step, true);
        BoundaryState {
            learning_rate_factor: self.learning_rate_factor,
            observers,
            asked,
        }
    }

    /// Takes over what a checkpoint kept.
    ///
    /// # Errors
    /// An observer refuses its state.
    pub(crate) fn import(&mut self, step: Step, stored: BoundaryState) -> Result<()> {
        let left = self.observers.import(&stored.observers, stored.asked)?;
        if !left.is_empty() {
            let names = left.join(", ");
            let message = format!(
                "the checkpoint has the state of plugins that this run does not have, and it is lost: {names}"
            );
            self.emitter.emit(step, EventBody::Warning { message });
        }
        self.learning_rate_factor = stored.learning_rate_factor;
        Ok(())
    }

    /// The next request to carry out before the step, recorded: first of the observers, then of clients.
    /// A paused loop waits for one. Returns `None` if nothing is requested or a signal stops the run.
    fn next_request(&mut self, training: &mut Training<'_>) -> Option<Request> {
        let was_paused = self.is_paused;
        let asked = loop {
            if self.control.stop_requested().is_some() {
                return None;
            }
            let requests = self.requests.as_mut()?;
            match self.observers.take().or_else(|| requests.take()) {
                None if self.is_paused => requests.wait(PAUSE_PERIOD),
                next => break next,
            }
        };
        if was_paused {
            // The pause does not count as a part of the next step.
            training.log.begin();
        }
        let Asked {
            by,
            request,
            reason,
        } = asked?;
        let event = EventBody::Request {
            by,
            request,
            reason,
        };
        self.emitter.emit(training.state.step, event);
        Some(request)
    }
}
