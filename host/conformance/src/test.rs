use crate::setup::Setup;
use crate::subject::Failure;
use host_plugin::{PluginKind, PluginManifest};

/// A test of one rule of the ABI.
#[derive(Debug)]
pub struct Test {
    /// The stable name, for `--only`.
    pub name: &'static str,
    /// The topic that the test belongs to.
    pub topic: &'static str,
    /// What the test checks, in one line.
    pub about: &'static str,
    /// The kinds of plugins that the test applies to; empty for all kinds.
    pub(super) kinds: &'static [PluginKind],
    /// What must work before the test can run.
    pub(super) needs: Needs,
    pub(super) run: fn(&Setup) -> Verdict,
}

/// The requirement that a plugin must meet before a test runs. Without such requirements, many tests could
/// fail for the same reason: if one feature has a defect, all tests that depend on it fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Needs {
    /// Only the file.
    File,
    /// The library loads, and its description matches its manifest.
    Library,
    /// `create` returns an instance for valid settings.
    Instance,
    /// `create` returns, with success or an error, for all settings that the schema allows.
    Settings,
}

/// Properties that several tests share.
#[derive(Clone, Copy, Debug)]
pub(super) struct Topic {
    pub(super) name: &'static str,
    /// The kinds of plugins that the tests apply to; empty for all kinds.
    pub(super) kinds: &'static [PluginKind],
}

impl Topic {
    pub(super) const fn test(
        self,
        name: &'static str,
        about: &'static str,
        run: fn(&Setup) -> Verdict,
    ) -> Test {
        Test {
            name,
            topic: self.name,
            about,
            kinds: self.kinds,
            needs: Needs::Instance,
            run,
        }
    }
}

/// The result of a test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The plugin follows the rule.
    Passed,
    /// The plugin follows the rule, but something is unusual.
    Warned(Finding),
    /// The plugin breaks the rule.
    Failed(Finding),
    /// The test could not run, for this reason.
    Skipped(String),
}

/// A fault of a plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What the plugin did.
    pub did: String,
    /// What the ABI expects.
    pub expected: String,
    /// How the plugin's author can fix it.
    pub fix: String,
}

/// The report of a finished test.
#[derive(Clone, Debug)]
pub struct TestReport {
    /// The test's name.
    pub name: &'static str,
    /// The test's topic.
    pub topic: &'static str,
    /// The result.
    pub outcome: Outcome,
    /// The test's duration in seconds.
    pub secs: f64,
    /// The plugin's output on stderr, including its log.
    pub stderr: String,
}

/// The result of a test function.
pub(super) type Verdict = Result<(), Stop>;

/// Why a test ends early.
#[derive(Debug)]
pub(super) enum Stop {
    Fault(Finding),
    Warning(Finding),
    Skip(String),
}

/// Returns a [`Stop`] for a fault of the plugin.
pub(super) fn fault(did: impl Into<String>, expected: &str, fix: &str) -> Stop {
    Stop::Fault(Finding::new(did, expected, fix))
}

/// Returns a [`Stop`] for unusual but allowed behavior.
pub(super) fn warning(did: impl Into<String>, expected: &str, fix: &str) -> Stop {
    Stop::Warning(Finding::new(did, expected, fix))
}

pub(super) fn skip<T>(reason: impl Into<String>) -> Result<T, Stop> {
    Err(Stop::Skip(reason.into()))
}

impl Finding {
    pub(super) fn new(did: impl Into<String>, expected: &str, fix: &str) -> Self {
        Self {
            did: did.into(),
            expected: expected.to_owned(),
            fix: fix.to_owned(),
        }
    }

    /// Returns the finding in one line.
    pub fn line(&self) -> String {
        format!(
            "it {}; expected: {}; fix: {}",
            self.did, self.expected, self.fix
        )
    }
}

impl Outcome {
    pub(super) fn of(verdict: Verdict) -> Self {
        match verdict {
            Ok(()) => Self::Passed,
            Err(Stop::Warning(finding)) => Self::Warned(finding),
            Err(Stop::Fault(finding)) => Self::Failed(finding),
            Err(Stop::Skip(reason)) => Self::Skipped(reason),
        }
    }

    /// Returns `passed`, `warned`, `failed` or `skipped`.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Warned(_) => "warned",
            Self::Failed(_) => "failed",
            Self::Skipped(_) => "skipped",
        }
    }

    /// Returns the finding or the reason for skipping, in one line. Returns an empty text if the test passed.
    pub fn message(&self) -> String {
        match self {
            Self::Passed => String::new(),
            Self::Warned(finding) | Self::Failed(finding) => finding.line(),
            Self::Skipped(reason) => reason.clone(),
        }
    }
}

impl Test {
    /// Replaces the requirement that the plugin must meet before the test runs.
    pub(super) const fn needs(mut self, needs: Needs) -> Self {
        self.needs = needs;
        self
    }

    /// Whether the test applies to at least one of the library's kinds. Without a manifest, only the tests
    /// for all kinds apply.
    pub(super) fn is_for(&self, manifest: Option<&PluginManifest>) -> bool {
        let is_of = |manifest: &PluginManifest| {
            self.kinds.is_empty() || self.kinds.iter().any(|kind| manifest.kinds.contains(kind))
        };
        manifest.map_or(self.kinds.is_empty(), is_of)
    }

    pub(super) fn reason_to_skip(&self, manifest: Option<&PluginManifest>) -> Option<String> {
        let names = |kinds: &[PluginKind]| {
            let names: Vec<&str> = kinds.iter().map(|kind| kind.name()).collect();
            names.join(", ")
        };
        match manifest {
            None if self.name != super::gate::STATIC_GATE => {
                Some("the host rejects the file before running any of its code".to_owned())
            }
            Some(manifest) if !self.is_for(Some(manifest)) => Some(format!(
                "the test is for {}, but the plugin implements {}",
                names(self.kinds),
                names(&manifest.kinds)
            )),
            _ => None,
        }
    }
}

impl From<Failure> for Stop {
    /// Returns the fault of a call that should have succeeded.
    fn from(failure: Failure) -> Self {
        fault(
            failure.words(),
            "the call succeeds: a host passes such arguments",
            "make the call succeed with these arguments; the reason in this message is the text that the plugin passed to set_error",
        )
    }
}
