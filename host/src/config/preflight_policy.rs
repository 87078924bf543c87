use serde::{Deserialize, Serialize};

/// What comes of a sink that is not ready.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum PreflightPolicy {
    /// The run does not start.
    #[default]
    Fail,
    /// A warning.
    Warn,
    /// No sink is checked.
    Off,
}
