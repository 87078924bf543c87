use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use host_core::{Error, ErrorKind, Result};
use serde_json::Value;

use crate::CheckOptions;
use crate::test::{Stop, skip};
use host_plugin::{PluginConfig, PluginManifest};

/// What stands for a test's scratch folder in a setting.
const SCRATCH: &str = "{tmp}";

/// What every test is given.
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

    /// The same with a scratch folder of its own.
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
            .expect("a test of a library that is refused is skipped")
    }

    pub(super) fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// The folder that `{tmp}` in a setting stands for; none if no setting has it.
    pub(super) fn destination(&self) -> Option<PathBuf> {
        let has_scratch = |(_, value): &(String, String)| value.contains(SCRATCH);
        let is_used = self.settings.iter().any(has_scratch);
        is_used.then(|| self.scratch.join("destination"))
    }

    pub(super) fn random(&self) -> fastrand::Rng {
        fastrand::Rng::with_seed(self.seed)
    }

    /// Whether the settings that were given fit the schema, as far as they go.
    pub(super) fn check_settings(&self) -> Result<()> {
        match &self.manifest {
            Some(manifest) if self.missing(manifest).is_empty() => {
                match self.resolve(manifest, "/tmp") {
                    Err(error) if error.kind() == ErrorKind::Config => Err(error),
                    // A fault of the schema itself is a test's to tell.
                    _ => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }

    /// The settings as JSON, for `create`. A `.git` folder below the scratch folder is made as an
    /// empty bare repository.
    pub(super) fn config(&self) -> Result<String, Stop> {
        let manifest = self.manifest();
        let missing = self.missing(manifest);
        if !missing.is_empty() {
            let flags: Vec<String> = missing.iter().map(|key| format!("--set {key}=…")).collect();
            return skip(format!(
                "the plugin needs the setting {}: give {}",
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
                .or_else(|error| skip(format!("no scratch folder: {error}")))?;
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

/// What the user must give: the schema has no default for it.
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
        Ok(status) => skip(format!("git cannot make the repository: {status}")),
        Err(error) => skip(format!("git cannot make the repository: {error}")),
    }
}
