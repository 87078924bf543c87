use serde::{Deserialize, Serialize};
use std::fmt;

/// A count of finished optimizer steps: 0 before the first.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Step(pub u64);

impl Step {
    /// The step after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// Whether something done every `period` steps is due now. Never at step 0, nor if `period` is 0.
    pub fn is_multiple_of(self, period: u64) -> bool {
        self.0 > 0 && period > 0 && self.0.is_multiple_of(period)
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
