use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use host_core::{Error, ErrorKind, Result};

use crate::PluginKind;

/// Where a plugin's code runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// In the host's process. A call costs next to nothing; a crash is the host's.
    InProcess,
    /// In a child process for each instance. A call costs some microseconds, and its inputs are
    /// copied; a crash, or a call without end, costs the process and not the run.
    Process,
}

impl Mode {
    /// What is chosen where the user says nothing: sinks talk to networks for minutes, and the others
    /// are called at every step or batch.
    pub fn default_of(kind: PluginKind) -> Self {
        match kind {
            PluginKind::CheckpointSink => Self::Process,
            PluginKind::ParamGroups | PluginKind::Metric | PluginKind::Observer => Self::InProcess,
        }
    }

    /// The word in SPEC and in TOML.
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
                Error::new(ErrorKind::Config, format!("mode of a plugin cannot be {text:?}"))
                    .hint("use process or in_process; sinks are in a process of their own, the others not")
            })
    }
}

/// How long a call into a child process may take where the user says nothing. A checkpoint may be
/// gigabytes on their way over a slow line.
pub(crate) fn default_time_limit(kind: PluginKind) -> Duration {
    match kind {
        PluginKind::CheckpointSink => Duration::from_secs(3600),
        PluginKind::ParamGroups | PluginKind::Metric | PluginKind::Observer => {
            Duration::from_secs(60)
        }
    }
}
