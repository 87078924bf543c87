use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use host_core::{Error, ErrorKind, Result};

use crate::PluginKind;

/// Where a plugin's code runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// In the host's process. A call costs almost nothing; a crash ends the host.
    InProcess,
    /// In a child process, one for each instance. A call costs a few microseconds, and its inputs are copied.
    /// A crash or an endless call ends the child process, not the run.
    Process,
}

impl Mode {
    /// Returns the mode that applies if the user sets none. By default, only sinks run in child processes,
    /// because a sink can use the network for minutes. Metrics and observers run in the host's process,
    /// because they are called for every batch or step.
    pub fn default_of(kind: PluginKind) -> Self {
        match kind {
            PluginKind::CheckpointSink => Self::Process,
            PluginKind::ParamGroups | PluginKind::Metric | PluginKind::Observer => Self::InProcess,
        }
    }

    /// Returns the mode's name in a plugin SPEC and in TOML.
    pub fn name(self) -> &'static str {
        match self {
            Self::InProcess => "in_process",
            Self::Process => "process",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Mode {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        [Self::InProcess, Self::Process]
            .into_iter()
            .find(|mode| mode.name() == text)
            .ok_or_else(|| {
                Error::new(ErrorKind::Config, format!("unknown plugin mode: {text:?}"))
                    .hint("use process or in_process; the default is process for sinks and in_process for other plugins")
            })
    }
}

/// Returns the time limit that applies to a call into a child process if the user sets none. It is longer for
/// sinks, because sending a checkpoint of several gigabytes over a slow connection may take long.
pub(crate) fn default_time_limit(kind: PluginKind) -> Duration {
    match kind {
        PluginKind::CheckpointSink => Duration::from_secs(3600),
        PluginKind::ParamGroups | PluginKind::Metric | PluginKind::Observer => {
            Duration::from_secs(60)
        }
    }
}
