use serde::{Deserialize, Serialize};

/// What `host run` does if the run's folder exists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ResumePolicy {
    /// It is an error.
    #[default]
    Never,
    /// The run is resumed.
    Auto,
}
