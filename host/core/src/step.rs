use serde::{Deserialize, Serialize};
use std::fmt;

/// A number of finished optimizer steps: 0 before the first step.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Step(pub u64);

impl Step {
    /// Returns the step after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// Returns whether an action that repeats every `period` steps is due at this step. It is never due at
    /// step 0 or if `period` is 0.
    pub fn is_multiple_of(self, period: u64) -> bool {
        self.0 > 0 && period > 0 && self.0.is_multiple_of(period)
    }

    /// Returns the name of a checkpoint's folder, for example `step-000100`. The number is zero-padded, so
    /// that names sort by step.
    pub fn checkpoint_name(self) -> String {
        format!("step-{:06}", self.0)
    }

    /// Parses the name of a checkpoint's folder and returns the step. The name may have any number of digits.
    /// Returns `None` if the text is not such a name.
    pub fn of_checkpoint(name: &str) -> Option<Self> {
        name.strip_prefix("step-")?.parse().ok().map(Self)
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoints_name_contains_its_step() {
        for (step, name) in [(100, "step-000100"), (12_345_678, "step-12345678")] {
            assert_eq!(Step(step).checkpoint_name(), name);
            assert_eq!(Step::of_checkpoint(name), Some(Step(step)));
        }
        for other in ["step-", "step-x", "100", ".step-000100.partial"] {
            assert_eq!(Step::of_checkpoint(other), None, "{other}");
        }
    }
}
