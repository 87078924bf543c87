use serde::{Deserialize, Serialize};

use crate::{Error, ErrorKind, EventBody, Result, Step};

/// What may be asked of the loop. It takes effect at the next step boundary, never within a step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Request {
    /// Training ends, with a checkpoint.
    Stop,
    /// A checkpoint is written, whatever the period says.
    Checkpoint,
    /// The next step takes its batches and counts, but its update is not applied.
    SkipStep,
    /// The learning rate is the schedule's times this factor from now on; factors multiply.
    ScaleLearningRate {
        /// In (0, 1]: it can be lowered only.
        factor: f64,
    },
    /// Weights and optimizer become those of the last complete checkpoint, and training goes on
    /// with the batches behind those already seen, since the same ones would lead here again.
    RollBack,
    /// The model is evaluated.
    Evaluate,
    /// The loop stands still at the step boundary until it is asked to continue.
    Pause,
    /// The loop goes on after a pause.
    Continue,
    /// The learning rate is the schedule's times this factor from now on, whatever it was before.
    SetLearningRate {
        /// Above 0 and finite.
        factor: f64,
    },
}

impl Request {
    /// Whether an observer may ask for it. The others are for people, who see to what comes of them.
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

    /// Proves that the request can be carried out.
    ///
    /// # Errors
    /// A factor outside (0, 1], or one to set that is not above 0 and finite.
    pub fn check(self) -> Result<()> {
        match self {
            Self::ScaleLearningRate { factor } if !(factor > 0.0 && factor <= 1.0) => {
                Err(Error::new(
                    ErrorKind::Config,
                    format!("the learning rate cannot be scaled by {factor}"),
                )
                .hint("give a factor above 0 and at most 1"))
            }
            Self::SetLearningRate { factor } if !(factor > 0.0 && factor.is_finite()) => {
                Err(Error::new(
                    ErrorKind::Config,
                    format!("the learning rate cannot be set to {factor} of the schedule's"),
                )
                .hint("give a factor above 0: 1 is the schedule itself"))
            }
            _ => Ok(()),
        }
    }
}

/// A request and why it is made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ask {
    /// What is asked for.
    pub request: Request,
    /// For people: `loss/eval has not improved on 2.31 for 3 evaluations`.
    pub reason: String,
}

/// The port to an observer: it is shown what happens in a run, in order, on the loop's thread, and
/// may ask for something. `[main]`
pub trait Observer: Send {
    /// The observer's plugin id.
    fn id(&self) -> &str;

    /// Whether it asked to see events of this one's kind.
    fn wants(&self, _event: &EventBody) -> bool {
        true
    }

    /// Shows it an event; what it asks for, in its order. An event that it does not want costs nothing
    /// and is no call.
    fn observe(&mut self, step: Step, event: &EventBody) -> Result<Vec<Ask>>;

    /// Its state as bytes that say their own version, for a checkpoint. Empty if it has none.
    fn export_state(&mut self) -> Result<Vec<u8>>;

    /// Makes its state one that an instance of the same plugin exported. Empty bytes are never
    /// passed on: they make the state that of a new instance, which it is.
    fn import_state(&mut self, state: &[u8]) -> Result<()>;

    /// Why it cannot be called again in this run: it panicked, and what it had seen is lost.
    fn lost(&self) -> Option<String> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_learning_rate_can_be_lowered_only() {
        for factor in [f64::MIN_POSITIVE, 0.5, 1.0] {
            assert!(Request::ScaleLearningRate { factor }.check().is_ok());
        }
        for factor in [0.0, -0.5, 1.5, f64::NAN, f64::INFINITY] {
            assert!(Request::ScaleLearningRate { factor }.check().is_err());
        }
        assert!(Request::RollBack.check().is_ok());
    }

    #[test]
    fn the_learning_rate_can_be_set_to_what_a_schedule_can_be_multiplied_by() {
        for factor in [f64::MIN_POSITIVE, 1.0, 3.0] {
            assert!(Request::SetLearningRate { factor }.check().is_ok());
        }
        for factor in [0.0, -0.5, f64::NAN, f64::INFINITY] {
            assert!(Request::SetLearningRate { factor }.check().is_err());
        }
    }
}
