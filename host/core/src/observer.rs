use serde::{Deserialize, Serialize};

use crate::{Error, ErrorKind, EventBody, Result, Step};

/// A request to the loop. It takes effect at the next step boundary, never within a step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Request {
    /// Write a checkpoint and end training.
    Stop,
    /// Write a checkpoint now, in addition to the periodic ones.
    Checkpoint,
    /// Run the next step as usual, but do not apply its update.
    SkipStep,
    /// Multiply the schedule's learning rate by this factor from now on. Factors accumulate.
    ScaleLearningRate {
        /// Must be in (0, 1], so the rate can only be lowered.
        factor: f64,
    },
    /// Restore the weights and the optimizer from the last complete checkpoint. Training continues with
    /// batches that it has not seen yet, because the same batches would lead to the same state.
    RollBack,
    /// Evaluate the model.
    Evaluate,
    /// Pause at the step boundary until `Continue` is requested.
    Pause,
    /// Continue after a pause.
    Continue,
    /// Multiply the schedule's learning rate by this factor from now on. Replaces earlier factors.
    SetLearningRate {
        /// Above 0 and finite.
        factor: f64,
    },
}

impl Request {
    /// Returns whether an observer may make this request. Other requests are reserved for people, who can
    /// judge the consequences.
    pub fn is_for_observers(self) -> bool {
        match self {
            Self::Stop
            | Self::Checkpoint
            | Self::SkipStep
            | Self::ScaleLearningRate { .. }
            | Self::RollBack => true,
            Self::Evaluate | Self::Pause | Self::Continue | Self::SetLearningRate { .. } => false,
        }
    }

    /// Checks that the request can be carried out.
    ///
    /// # Errors
    /// Returns an error if the factor of `ScaleLearningRate` is not in (0, 1], or the factor of
    /// `SetLearningRate` is not positive and finite.
    pub fn check(self) -> Result<()> {
        match self {
            Self::ScaleLearningRate { factor } if !(factor > 0.0 && factor <= 1.0) => {
                Err(Error::new(
                    ErrorKind::Config,
                    format!("the learning rate cannot be scaled by {factor}"),
                )
                .hint("use a factor above 0 and at most 1"))
            }
            Self::SetLearningRate { factor } if !(factor > 0.0 && factor.is_finite()) => {
                Err(Error::new(
                    ErrorKind::Config,
                    format!("the learning rate cannot be set to {factor} times the schedule's"),
                )
                .hint("use a finite factor above 0; 1 restores the schedule's rate"))
            }
            _ => Ok(()),
        }
    }
}

/// A request and its reason.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ask {
    /// What is requested.
    pub request: Request,
    /// The reason, as text for people: `loss/eval has not improved on 2.31 for 3 evaluations`.
    pub reason: String,
}

/// The port to an observer. It receives the run's events in order, on the loop's thread, and can make
/// requests. `[main]`
pub trait Observer: Send {
    /// Returns the observer's plugin id.
    fn id(&self) -> &str;

    /// Returns whether the observer subscribed to events of this kind.
    fn wants(&self, _event: &EventBody) -> bool {
        true
    }

    /// Passes an event to the observer and returns the observer's requests, in order. An event to which the
    /// observer has not subscribed is ignored.
    fn observe(&mut self, step: Step, event: &EventBody) -> Result<Vec<Ask>>;

    /// Returns the state for a checkpoint, as bytes that include the version number of their format. Empty if
    /// the observer has no state.
    fn export_state(&mut self) -> Result<Vec<u8>>;

    /// Replaces the state of a new observer with a state that an instance of the same plugin exported.
    /// `state` is never empty.
    fn import_state(&mut self, state: &[u8]) -> Result<()>;

    /// Returns a reason if the observer has panicked and cannot be called again in this run, because its
    /// state is lost. Otherwise, returns `None`.
    fn lost(&self) -> Option<String> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn observers_can_only_lower_the_learning_rate() {
        for factor in [f64::MIN_POSITIVE, 0.5, 1.0] {
            assert!(Request::ScaleLearningRate { factor }.check().is_ok());
        }
        for factor in [0.0, -0.5, 1.5, f64::NAN, f64::INFINITY] {
            assert!(Request::ScaleLearningRate { factor }.check().is_err());
        }
        assert!(Request::RollBack.check().is_ok());
    }

    #[test]
    fn the_learning_rate_can_be_set_to_a_positive_finite_factor() {
        for factor in [f64::MIN_POSITIVE, 1.0, 3.0] {
            assert!(Request::SetLearningRate { factor }.check().is_ok());
        }
        for factor in [0.0, -0.5, f64::NAN, f64::INFINITY] {
            assert!(Request::SetLearningRate { factor }.check().is_err());
        }
    }
}
