//! The boundary between two steps, where signals and the requests of observers and clients take effect.

use std::time::{Duration, Instant};

use host_core::{Asked, Control, Emitter, EventBody, Request, Requests, Result, Step, StopReason};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::TrainConfig;
use crate::checkpoint::BoundaryState;
use crate::collective::Collective;
use crate::config::OnNonfinite;
use crate::observers::Observers;
use crate::ports::BoundaryPorts;
use crate::rank_report::RankReport;
use crate::training::Training;

/// Maximum interval between two calls of [`BoundaryPorts::report`]. An evaluation triggers an earlier call.
const REPORT_PERIOD: Duration = Duration::from_secs(10);

/// How often a paused loop checks for signals.
const PAUSE_PERIOD: Duration = Duration::from_millis(50);

/// Carries out requests between two steps and returns the orders for the next step.
pub(crate) struct Boundary<'a> {
    collective: Collective,
    pub(crate) emitter: Emitter,
    pub(crate) control: Control,
    pub(crate) observers: Observers,
    /// See [`BoundaryPorts::put_back`].
    pub(crate) put_back: Box<dyn FnMut(Step, bool) + 'a>,
    /// Requests of clients; `None` once the loop has ended.
    requests: Option<Requests>,
    report: Box<dyn FnMut(Step) + 'a>,
    rank_report: RankReport,
    reported: Instant,
    max_train_steps: u64,
    save_checkpoint_steps: u64,
    /// The factor for the schedule's learning rate. Clients set it, and observers lower it.
    learning_rate_factor: f64,
    is_paused: bool,
    /// Why the loop ends, once that is decided.
    reason: StopReason,
}

/// What all ranks do next.
#[derive(Debug, Serialize, Deserialize)]
enum Decision {
    Train,
    CarryOut(Request),
    Stop(StopReason),
}

/// Settings of the next step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Orders {
    /// Whether to leave the weights unchanged.
    pub(crate) skip: bool,
    /// The factor for the schedule's learning rate.
    pub(crate) learning_rate_factor: f64,
}

impl Orders {
    /// Returns a flag that tells the optimizer whether to leave the weights unchanged (1) or to update them
    /// (0). The flag is a 0-d f32 tensor on the norm's device. Returns `None` if the optimizer always updates
    /// the weights.
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
            rank_report: RankReport::default(),
            reported: Instant::now(),
            max_train_steps: config.max_train_steps,
            save_checkpoint_steps: config.save_checkpoint_steps,
            learning_rate_factor: 1.0,
            is_paused: false,
            reason: StopReason::Completed,
        }
    }

    /// Carries out the pending requests, in order. Returns `None` if there is no next step; [`Boundary::end`]
    /// then returns the reason.
    ///
    /// # Errors
    /// Returns an error if a checkpoint cannot be written or read, or if the last loss was not finite.
    pub(crate) fn next(&mut self, training: &mut Training<'_>) -> Result<Option<Orders>> {
        if training.state.step.0 >= self.max_train_steps {
            return Ok(self.stop(StopReason::Completed));
        }
        self.collective.unlimited("between two steps");
        self.observe(training.state.step);
        let mut skip = false;
        loop {
            let decision = self.decide(training);
            let request = match self.collective.agree(decision, "the lead's decision")? {
                Decision::Train => break,
                Decision::Stop(reason) => return Ok(self.stop(reason)),
                Decision::CarryOut(request) => request,
            };
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
        if training
            .state
            .step
            .is_multiple_of(self.save_checkpoint_steps)
            || self.reported.elapsed() > REPORT_PERIOD
        {
            self.reported = Instant::now();
            (self.report)(training.state.step);
            self.rank_report.emit(
                training.state.step,
                &self.collective,
                &self.emitter,
                &mut training.log,
            );
        }
        self.collective
            .computing(|| format!("step {}", training.state.step.next()));
        Ok(Some(Orders {
            skip,
            learning_rate_factor: self.learning_rate_factor,
        }))
    }

    /// Replaces the factor for the learning rate with that of the lead.
    ///
    /// # Errors
    /// Returns an error if another rank fails.
    pub(crate) fn follow_lead(&mut self) -> Result<()> {
        let own = self.learning_rate_factor;
        self.learning_rate_factor = self.collective.agree(own, "the learning rate")?;
        Ok(())
    }

    fn stop(&mut self, reason: StopReason) -> Option<Orders> {
        self.reason = reason;
        None
    }

    /// Closes the request queue and returns why the loop ended. Clients whose requests are still in the queue
    /// then learn that these will not be carried out.
    pub(crate) fn end(&mut self) -> StopReason {
        drop(self.requests.take());
        self.reason
    }

    /// Passes to the observers the events that were emitted since the last call of this function.
    pub(crate) fn observe(&mut self, step: Step) {
        self.observers.observe(step, &self.emitter, &self.control);
        (self.put_back)(step, false);
    }

    /// Returns the state for a checkpoint.
    pub(crate) fn export(&mut self, step: Step) -> BoundaryState {
        let (observers, asked) = self.observers.export(step, &self.emitter, &self.control);
        (self.put_back)(step, true);
        BoundaryState {
            learning_rate_factor: self.learning_rate_factor,
            observers,
            asked,
        }
    }

    /// Restores the state from a checkpoint.
    ///
    /// # Errors
    /// Returns an error if an observer rejects its state.
    pub(crate) fn import(&mut self, step: Step, stored: BoundaryState) -> Result<()> {
        let left = self.observers.import(&stored.observers, stored.asked)?;
        if !left.is_empty() {
            let names = left.join(", ");
            let message = format!(
                "the checkpoint contains the state of plugins that this run does not use; that state is discarded: {names}"
            );
            self.emitter.emit(step, EventBody::Warning { message });
        }
        self.learning_rate_factor = stored.learning_rate_factor;
        Ok(())
    }

    /// On the lead, returns what to do next. The other ranks follow the lead.
    fn decide(&mut self, training: &mut Training<'_>) -> Decision {
        if !self.collective.is_lead() {
            return Decision::Train;
        }
        match (self.next_request(training), self.control.stop_requested()) {
            (Some(request), _) => Decision::CarryOut(request),
            (None, Some(reason)) => Decision::Stop(reason),
            (None, None) => Decision::Train,
        }
    }

    /// Returns the next request to carry out and emits its event. Requests of observers come before those of
    /// clients. A paused loop waits for a request. Returns `None` if there is no request or a signal stops
    /// the run.
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
            // The time of the next step must not include the pause.
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
