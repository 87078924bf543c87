//! `run.toml`: the configuration of a run, with its plugins.
//!
//! It is a valid configuration, so that `host run runs/NAME/run.toml --name OTHER` repeats the run. Readers
//! of configurations skip its `record` table, which records the program and plugins that were used.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use host_core::{Error, ErrorKind, Result, RunName};
use host_plugin::{Policy, Target};
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::config::settings::RECORD;
use crate::plan::Plan;

const HEADING: &str = "\
# The configuration of this run. `host resume` resumes the run; `host run` with this file and another
# --name repeats it. The last table records the program and the plugins that were used.

";

/// A plugin of the run: its SPEC, and the library that was found.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PluginEntry {
    /// The id or path in the SPEC.
    pub(crate) target: Target,
    /// How the plugin is run. Contains only what the user specified.
    pub(crate) policy: Policy,
    /// The plugin's settings, as typed values.
    pub(crate) config: serde_json::Map<String, serde_json::Value>,
    /// Its library.
    pub(crate) found: FoundPlugin,
}

/// The library of a plugin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FoundPlugin {
    /// The plugin's id.
    pub(crate) id: String,
    /// The plugin's version.
    pub(crate) version: String,
    /// SHA-256 of the library's file, in hexadecimal.
    pub sha256: String,
    /// The library's file; absolute.
    pub(crate) path: PathBuf,
    /// The library of the host's own plugin with the same id, which this plugin replaces. `None` if it
    /// replaces none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) shadows: Option<PathBuf>,
}

/// The `record` table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Version of the program.
    pub(crate) host: String,
    /// The git revision of the folder that the run was started in, with `-dirty` appended if files had
    /// changed. None outside a repository.
    pub(crate) git_revision: Option<String>,
    /// The time of the last resume or, if the run was never resumed, of its start; in RFC 3339 format.
    pub(crate) started: String,
    /// Number of processes that trained together.
    #[serde(default = "one")]
    pub(crate) world_size: usize,
    /// Sequences per step of all these processes.
    #[serde(default)]
    pub(crate) global_batch: u64,
    /// The plugins.
    #[serde(default)]
    pub(crate) plugin: Vec<FoundPlugin>,
}

fn one() -> usize {
    1
}

/// The contents of `run.toml`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RunFile(Table);

impl RunFile {
    /// Creates the contents from the plan and the loaded plugins.
    ///
    /// # Errors
    /// Returns an error if a value cannot be written as TOML, such as a number that is too large.
    pub(crate) fn new(plan: &Plan, name: &RunName, plugins: &[PluginEntry]) -> Result<Self> {
        let mut table = Table::try_from(&plan.train).map_err(|e| unfit(&e))?;
        let runs_dir = plan.runs_dir.to_str().unwrap_or("runs");
        table.insert("runs_dir".to_owned(), runs_dir.into());
        table.insert("name".to_owned(), name.as_str().into());
        let preflight = Value::try_from(plan.preflight).map_err(|e| unfit(&e))?;
        table.insert("preflight".to_owned(), preflight);
        let secs = plan.system_metrics.map_or(0, |every| every.as_secs());
        let secs = i64::try_from(secs).unwrap_or(i64::MAX);
        table.insert("system_metrics_secs".to_owned(), secs.into());
        table.extend(plan.service.as_table());
        let limits = plan.rank_limits;
        for (name, limit) in [
            ("rank_timeout_secs", limits.silence),
            ("rank_start_secs", limits.start),
        ] {
            let secs = i64::try_from(limit.as_secs()).unwrap_or(i64::MAX);
            table.insert(name.to_owned(), secs.into());
        }
        if plan.resume_auto {
            table.insert("resume".to_owned(), "auto".into());
        }
        if let Some(name) = &plan.resume_from_checkpoint {
            table.insert("resume_from_checkpoint".to_owned(), name.as_str().into());
        }
        if let Some(lock) = &plan.plugin_lock {
            let path = lock.path().to_str().unwrap_or_default();
            table.insert("plugin_lock".to_owned(), path.into());
        }
        let entries = plugins
            .iter()
            .map(plugin_table)
            .collect::<Result<Vec<Value>>>()?;
        if !entries.is_empty() {
            table.insert("plugin".to_owned(), Value::Array(entries));
        }
        let record = Record {
            host: env!("CARGO_PKG_VERSION").to_owned(),
            git_revision: git_revision(),
            started: jiff::Timestamp::now().to_string(),
            world_size: plan.ranks,
            global_batch: plan.train.global_batch(plan.ranks),
            plugin: plugins.iter().map(|plugin| plugin.found.clone()).collect(),
        };
        table.insert(
            RECORD.to_owned(),
            Value::try_from(record).map_err(|e| unfit(&e))?,
        );
        Ok(Self(table))
    }

    /// Writes the file atomically.
    ///
    /// # Errors
    /// Returns an error if the file cannot be written.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let text = toml::to_string(&self.0).map_err(|e| unfit(&e))?;
        let partial = path.with_extension("toml.partial");
        let write = || {
            let mut file = std::fs::File::create(&partial)?;
            file.write_all(HEADING.as_bytes())?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&partial, path)
        };
        write().map_err(|e| Error::io("write the run's configuration", path, &e))
    }

    /// Reads a run's file and its `record` table.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read, or is not a run's file.
    pub(crate) fn read(path: &Path) -> Result<(Self, Record)> {
        let text = std::fs::read_to_string(path)
            .map_err(|e| Error::io("read the run's configuration", path, &e))?;
        let strange = |e: toml::de::Error| {
            let (why, path) = (e.message(), path.display());
            let message = format!("not a run's configuration: {why}: {path}");
            Error::new(ErrorKind::Config, message).hint(
                "restore the file that `host run` wrote; keep configurations of your own elsewhere",
            )
        };
        let table: Table = toml::from_str(&text).map_err(strange)?;
        let record = table.get(RECORD).cloned();
        let record = record.unwrap_or_else(|| Value::Table(Table::new()));
        Ok((Self(table), record.try_into().map_err(strange)?))
    }

    /// Returns a setting if it is a string.
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.as_str()
    }

    /// Returns the contents as JSON, for the store.
    pub(crate) fn to_json(&self) -> String {
        serde_json::to_string(&self.0).unwrap_or_default()
    }
}

fn plugin_table(plugin: &PluginEntry) -> Result<Value> {
    let mut table = Table::new();
    match &plugin.target {
        Target::Id(id) => table.insert("id".to_owned(), id.as_str().into()),
        Target::Path(_) => {
            let path = plugin.found.path.to_str().unwrap_or_default();
            table.insert("path".to_owned(), path.into())
        }
    };
    let settings = plugin.policy.to_table();
    for (key, value) in settings.iter().chain(&plugin.config) {
        // TOML has no null; an absent key means the same.
        if !value.is_null() {
            table.insert(key.clone(), Value::try_from(value).map_err(|e| unfit(&e))?);
        }
    }
    Ok(Value::Table(table))
}

fn unfit(error: &toml::ser::Error) -> Error {
    Error::new(
        ErrorKind::Config,
        format!("the configuration cannot be written as TOML: {error}"),
    )
    .hint("use numbers up to 9223372036854775807, and paths in UTF-8")
}

/// Returns the git revision of the current folder, if git and a repository exist.
fn git_revision() -> Option<String> {
    let output = Command::new("git")
        .args([
            "describe",
            "--always",
            "--dirty",
            "--abbrev=40",
            "--exclude=*",
        ])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    (output.status.success() && !text.trim().is_empty()).then(|| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use host_core::QueuePolicy;
    use host_plugin::{Mode, OnError};

    use super::*;
    use crate::config::TrainArgs;
    use serde_json::json;

    #[test]
    fn a_runs_file_is_a_configuration_that_reads_the_same() {
        let dir = tempfile::tempdir().expect("a folder");
        let source = dir.path().join("c.toml");
        let text = "data = \"src\"\nmodel = \"tiny\"\nlearning_rate = 5e-4\n";
        std::fs::write(&source, text).expect("written");
        let plan = Plan::read(Some(&source), &TrainArgs::default()).expect("a plan");
        let entry = PluginEntry {
            target: Target::Id("local-disk".to_owned()),
            policy: Policy {
                mode: Some(Mode::InProcess),
                on_error: Some(OnError::DisableAfter(3)),
                time_limit: Some(Duration::from_millis(2500)),
                queue: Some(QueuePolicy::Latest),
            },
            config: json!({ "dir": "/c", "keep": 2, "nothing": null })
                .as_object()
                .expect("an object")
                .clone(),
            found: FoundPlugin {
                id: "local-disk".to_owned(),
                version: "0.1.0".to_owned(),
                sha256: "ab".to_owned(),
                path: "/lib/liblocal_disk.so".into(),
                shadows: Some("/usr/lib/host/plugins/liblocal_disk.so".into()),
            },
        };
        let name: RunName = "one".parse().expect("a name");
        let file = RunFile::new(&plan, &name, std::slice::from_ref(&entry)).expect("a file");
        let path = dir.path().join("run.toml");
        file.write(&path).expect("written");

        let again = Plan::read(Some(&path), &TrainArgs::default()).expect("a plan");
        assert_eq!(again.train, plan.train);
        assert_eq!(again.runs_dir, plan.runs_dir);
        assert_eq!(again.name, Some(name));
        assert_eq!(again.plugins.len(), 1);
        assert_eq!(again.plugins[0].target, entry.target);
        assert_eq!(again.plugins[0].policy, entry.policy);
        let (read, record) = RunFile::read(&path).expect("a run's file");
        assert_eq!((&read, record.plugin), (&file, vec![entry.found]));
        let json: serde_json::Value = serde_json::from_str(&file.to_json()).expect("JSON");
        assert_eq!(json["plugin"][0]["keep"], 2);
    }
}
