use crate::setup::Setup;
use crate::subject::Failure;
use host_plugin::{PluginKind, PluginManifest};

/// One promise of the ABI, tried.
#[derive(Debug)]
pub struct Test {
    /// Stable, for `--only`.
    pub name: &'static str,
    /// What it belongs to.
    pub topic: &'static str,
    /// What it tries, in a line.
    pub about: &'static str,
    /// The kinds that it is for; empty if it is for all.
    pub(super) kinds: &'static [PluginKind],
    /// What must have gone well before it can tell anything.
    pub(super) needs: Needs,
    pub(super) run: fn(&Setup) -> Verdict,
}

/// What a test needs of the plugin. Without it every such test would fail for the same reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Needs {
    /// The file alone.
    File,
    /// That the library loads, and is what its manifest says.
    Library,
    /// That `create` makes an instance of good settings.
    Instance,
    /// That `create` returns, whatever the schema allows.
    Settings,
}

/// What some tests have in common.
#[derive(Clone, Copy, Debug)]
pub(super) struct Topic {
    pub(super) name: &'static str,
    /// The kinds that they are for; empty if they are for all.
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

/// How a test ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The promise was kept.
    Passed,
    /// It was kept, and something is odd.
    Warned(Finding),
    /// It was not kept.
    Failed(Finding),
    /// It could not be tried, and why.
    Skipped(String),
}

/// What is wrong with a plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What the plugin did.
    pub did: String,
    /// What the ABI expects of it.
    pub expected: String,
    /// How its author repairs it.
    pub fix: String,
}

/// A test that is over.
#[derive(Clone, Debug)]
pub struct TestReport {
    /// The test's name.
    pub name: &'static str,
    /// The test's topic.
    pub topic: &'static str,
    /// How it ended.
    pub outcome: Outcome,
    /// How long it took.
    pub secs: f64,
    /// What the plugin wrote to stderr meanwhile, and logged.
    pub stderr: String,
}

/// What a test's function gives.
pub(super) type Verdict = Result<(), Stop>;

/// Why a test ends before its end.
#[derive(Debug)]
pub(super) enum Stop {
    Fault(Finding),
    Warning(Finding),
    Skip(String),
}

/// A fault of the plugin's.
pub(super) fn fault(did: impl Into<String>, expected: &str, fix: &str) -> Stop {
    Stop::Fault(Finding::new(did, expected, fix))
}

/// Something odd.
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

    /// All of it in one line.
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

    /// `passed`, `warned`, `failed` or `skipped`.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Warned(_) => "warned",
            Self::Failed(_) => "failed",
            Self::Skipped(_) => "skipped",
        }
    }

    /// What there is to say, in one line; nothing if it passed.
    pub fn message(&self) -> String {
        match self {
            Self::Passed => String::new(),
            Self::Warned(finding) | Self::Failed(finding) => finding.line(),
            Self::Skipped(reason) => reason.clone(),
        }
    }
}

impl Test {
    /// The same, of which less must have gone well.
    pub(super) const fn needs(mut self, needs: Needs) -> Self {
        self.needs = needs;
        self
    }

    /// Whether the library is of a kind that the test is for. One without a manifest is of any.
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
                Some("the host refuses the file before it runs any of it".to_owned())
            }
            Some(manifest) if !self.is_for(Some(manifest)) => Some(format!(
                "it is for {}, the plugin is {}",
                names(self.kinds),
                names(&manifest.kinds)
            )),
            _ => None,
        }
    }
}

impl From<Failure> for Stop {
    /// A call that had to succeed.
    fn from(failure: Failure) -> Self {
        fault(
            failure.words(),
            "the call succeeds: its arguments are ones that a host passes",
            "make the call work for them; the text given to set_error is the reason that it did not",
        )
    }
}
