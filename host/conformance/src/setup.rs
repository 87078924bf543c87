use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use host_core::{Error, ErrorKind, Result};
use serde_json::Value;

use crate::CheckOptions;
use crate::test::{Stop, skip};
use host_plugin::{PluginConfig, PluginManifest};

/// A placeholder in settings. It stands for a folder in the test's scratch folder.
const SCRATCH: &str = "{tmp}";

/// The input of every test.
#[derive(Clone, Debug)]
pub(super) struct Setup {
    pub(super) path: PathBuf,
    manifest: Option<PluginManifest>,
    settings: Vec<(String, String)>,
    pub(super) seed: u64,
    pub(super) time_limit: Duration,
    pub(super) in_process: bool,
    scratch: PathBuf,
}

impl Setup {
    pub(super) fn new(
        path: &Path,
        manifest: Option<&PluginManifest>,
        options: &CheckOptions,
        scratch: &Path,
    ) -> Self {
        Self {
            path: path.to_owned(),
            manifest: manifest.cloned(),
            settings: options.settings.clone(),
            seed: options.seed,
            time_limit: options.time_limit,
            in_process: options.in_process,
            scratch: scratch.to_owned(),
        }
    }

    /// Returns a copy with a separate scratch folder.
    pub(super) fn for_test(&self, name: &str) -> Result<Self> {
        let scratch = self.scratch.join(name);
        std::fs::create_dir_all(&scratch)
            .map_err(|error| Error::io("create a scratch folder", &scratch, &error))?;
        Ok(Self {
            scratch,
            ..self.clone()
        })
    }

    pub(super) fn manifest(&self) -> &PluginManifest {
        self.manifest
            .as_ref()
            .expect("tests of a rejected library are skipped")
    }

    pub(super) fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// Returns the folder that replaces `{tmp}` in settings; `None` if no setting contains `{tmp}`.
    pub(super) fn destination(&self) -> Option<PathBuf> {
        let has_scratch = |(_, value): &(String, String)| value.contains(SCRATCH);
        let is_used = self.settings.iter().any(has_scratch);
        is_used.then(|| self.scratch.join("destination"))
    }

    pub(super) fn random(&self) -> fastrand::Rng {
        fastrand::Rng::with_seed(self.seed)
    }

    /// Checks the user's settings against the schema. Missing required settings are not an error here.
    pub(super) fn check_settings(&self) -> Result<()> {
        match &self.manifest {
            Some(manifest) if self.missing(manifest).is_empty() => {
                match self.resolve(manifest, "/tmp") {
                    Err(error) if error.kind() == ErrorKind::Config => Err(error),
                    // Faults of the schema itself are reported by a test.
                    _ => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }

    /// Returns the settings as JSON, for `create`. If a setting names a `.git` folder below the scratch
    /// folder, creates an empty bare repository there.
    pub(super) fn config(&self) -> Result<String, Stop> {
        let manifest = self.manifest();
        let missing = self.missing(manifest);
        if !missing.is_empty() {
            let flags: Vec<String> = missing.iter().map(|key| format!("--set {key}=…")).collect();
            return skip(format!(
                "the plugin needs the setting {}: pass {}",
                missing.join(", "),
                flags.join(" ")
            ));
        }
        let destination = self.scratch.join("destination");
        let text = destination.to_string_lossy();
        let settings = self
            .resolve(manifest, &text)
            .or_else(|error| skip(error.message()))?;
        if self.destination().is_some() {
            std::fs::create_dir_all(&destination)
                .or_else(|error| skip(format!("cannot create the scratch folder: {error}")))?;
        }
        for (_, value) in &self.settings {
            if value.contains(SCRATCH) && value.ends_with(".git") {
                let place = value.replace(SCRATCH, &text);
                bare_repository(Path::new(place.strip_prefix("file://").unwrap_or(&place)))?;
            }
        }
        Ok(Value::Object(settings).to_string())
    }

    fn resolve(
        &self,
        manifest: &PluginManifest,
        scratch: &str,
    ) -> Result<serde_json::Map<String, Value>> {
        let settings = self
            .settings
            .iter()
            .map(|(key, value)| (key.clone(), value.replace(SCRATCH, scratch)));
        let path = self.path.to_string_lossy();
        PluginConfig::Text(settings.collect()).resolve_as(manifest, &path)
    }

    fn missing<'a>(&self, manifest: &'a PluginManifest) -> Vec<&'a str> {
        let mut missing = required(manifest);
        missing.retain(|key| !self.settings.iter().any(|(given, _)| given == key));
        missing
    }
}

/// Returns the settings that the user must pass: required settings without a default.
fn required(manifest: &PluginManifest) -> Vec<&str> {
    let schema = manifest.config.as_ref();
    let required = schema
        .and_then(|schema| schema.get("required"))
        .and_then(Value::as_array);
    let has_default = |key: &&str| {
        let property = schema.and_then(|schema| schema.get("properties")?.get(*key));
        property.is_some_and(|property| property.get("default").is_some())
    };
    required
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .filter(|key| !has_default(key))
        .collect()
}

fn bare_repository(path: &Path) -> Result<(), Stop> {
    if path.exists() {
        return Ok(());
    }
    let made = Command::new("git")
        .args(["init", "--quiet", "--bare"])
        .arg(path)
        .stdin(Stdio::null())
        .status();
    match made {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => skip(format!("git cannot create the repository: {status}")),
        Err(error) => skip(format!("git cannot create the repository: {error}")),
    }
}
