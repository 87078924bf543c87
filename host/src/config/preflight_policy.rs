use serde::{Deserialize, Serialize};

/// What happens if the preflight finds that a sink or the run's disk is not ready.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum PreflightPolicy {
    /// The run does not start.
    #[default]
    Fail,
    /// The run starts with a warning.
    Warn,
    /// There is no preflight.
    Off,
}
