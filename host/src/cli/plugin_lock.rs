use std::path::{Path, PathBuf};

use host_core::{Error, ErrorKind, Result};
use host_plugin::{Found, LockedPlugin, PluginKind, PluginLock, PluginSpec, SearchPath, Target};
use serde_json::{Value, json};

use super::{print, print_json};
use crate::config::TrainArgs;
use crate::plan::plugins_and_lock;
use crate::plugins::DEFAULT_GROUPS;
use crate::show::number::grouped;
use crate::show::table::{Align, Table};

const DETAILS: &str = "\
A run with a plugins.lock next to its configuration, or with --plugin-lock, rejects every plugin that \
is not in the lock or does not match it, before any code of the plugin runs. The lock covers \
all plugins that the run would load, including the default weight-decay if no plugin provides the \
parameter groups. This command runs no plugin code.

Examples:
  host plugin lock run.toml
  host plugin lock run.toml --check";

/// Writes or checks the lock file of a run, which pins the exact files of its plugins
#[derive(Debug, clap::Args)]
#[command(after_help = DETAILS)]
pub(super) struct Lock {
    /// TOML file of the run
    config: Option<PathBuf>,

    /// Plugin id or path, as for `host run`; repeat for more
    #[arg(long, value_name = "SPEC")]
    plugin: Vec<String>,

    /// Lock file [default: plugins.lock next to the TOML file, else in the current folder]
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,

    /// Write nothing; fail if a plugin does not match the lock
    #[arg(long)]
    check: bool,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A plugin, with its new entry and its previous entry in the lock file.
struct Pinned {
    path: PathBuf,
    now: LockedPlugin,
    locked: Option<LockedPlugin>,
}

impl Lock {
    pub(super) fn execute(&self, search: &SearchPath) -> Result<()> {
        let flags = TrainArgs::of_plugins(self.plugin.clone());
        let (specs, usual) = plugins_and_lock(self.config.as_deref(), &flags)?;
        let file = match &self.file {
            Some(file) => std::path::absolute(file)
                .map_err(|error| Error::io("find the plugin lock", file, &error))?,
            None => usual,
        };
        // An existing file is read first. The read fails if the file is not a lock file, so such a file is
        // never overwritten.
        let before = match self.check || file.symlink_metadata().is_ok() {
            true => PluginLock::read(&file)?,
            false => PluginLock::new(&file, [])?,
        };
        let plugins = pin(&specs, search, &before)?;
        let lock = PluginLock::new(&file, plugins.iter().map(|plugin| plugin.now.clone()))?;
        let unused: Vec<&LockedPlugin> = before
            .plugins()
            .filter(|locked| lock.get(&locked.id).is_none())
            .collect();
        if !self.check {
            write(&file, &lock.to_toml())?;
        }
        if self.json {
            print_json(&as_json(&file, &plugins, &unused, !self.check))?;
        } else {
            print(&as_text(&plugins, &unused, self.check))?;
        }
        let wrong: Vec<&str> = plugins
            .iter()
            .filter(|plugin| plugin.state() != "as locked")
            .map(|plugin| plugin.now.id.as_str())
            .collect();
        let (path, count) = (file.display(), plugins.len());
        if self.check && !wrong.is_empty() {
            return Err(Error::new(
                ErrorKind::Plugin,
                format!(
                    "{} of {count} plugins do not match the lock: {}: {path}",
                    wrong.len(),
                    wrong.join(", ")
                ),
            )
            .hint("if you trust the new files, run the same command without --check"));
        }
        if !self.json {
            let plugins = if count == 1 { "plugin" } else { "plugins" };
            print(&match self.check {
                true => format!("the lock matches {count} {plugins}: {path}\n"),
                false => format!("locked {count} {plugins}: {path}\n"),
            })?;
        }
        Ok(())
    }
}

impl Pinned {
    fn state(&self) -> &'static str {
        match &self.locked {
            None => "new",
            Some(locked) if *locked == self.now => "as locked",
            Some(_) => "changed",
        }
    }
}

/// Returns the plugins that a run with `specs` would load, sorted by id, without duplicates.
fn pin(specs: &[PluginSpec], search: &SearchPath, before: &PluginLock) -> Result<Vec<Pinned>> {
    let mut found = specs
        .iter()
        .map(|spec| search.find(&spec.target))
        .collect::<Result<Vec<Found>>>()?;
    let groups = |found: &Found| found.manifest.kinds.contains(&PluginKind::ParamGroups);
    if !found.iter().any(groups) {
        found.push(search.find(&Target::Id(DEFAULT_GROUPS.to_owned()))?);
    }
    let mut plugins = found
        .into_iter()
        .map(|found| {
            let now = found.pin()?;
            Ok(Pinned {
                locked: before.get(&now.id).cloned(),
                path: std::path::absolute(&found.path).unwrap_or(found.path),
                now,
            })
        })
        .collect::<Result<Vec<Pinned>>>()?;
    plugins.sort_by(|a, b| a.now.id.cmp(&b.now.id));
    // A run can use a plugin twice, with different settings. The list then contains the plugin once. If two
    // different files have the same id, both stay in the list, so that the lock rejects them.
    plugins.dedup_by(|a, b| a.now == b.now);
    Ok(plugins)
}

/// Writes the lock file atomically. Does not touch a file that already has this text.
fn write(file: &Path, text: &str) -> Result<()> {
    if std::fs::read_to_string(file).is_ok_and(|before| before == text) {
        return Ok(());
    }
    let mut partial = file.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    std::fs::write(&partial, text)
        .and_then(|()| std::fs::rename(&partial, file))
        .map_err(|error| {
            let _ = std::fs::remove_file(&partial);
            Error::io("write the plugin lock", file, &error)
                .hint("choose another path with --file; its folder must exist")
        })
}

fn as_text(plugins: &[Pinned], unused: &[&LockedPlugin], check: bool) -> String {
    let mut table = Table::new([
        ("id", Align::Left),
        ("version", Align::Left),
        ("ABI", Align::Left),
        ("bytes", Align::Right),
        ("sha256", Align::Left),
        ("", Align::Left),
    ]);
    let mut row = |plugin: &LockedPlugin, state: &str| {
        table.row([
            plugin.id.clone(),
            plugin.version.clone(),
            format!("{}.{}", plugin.abi.0, plugin.abi.1),
            grouped(i64::try_from(plugin.size).unwrap_or(i64::MAX)),
            format!("{}…", &plugin.sha256[..16]),
            state.to_owned(),
        ]);
    };
    for plugin in plugins {
        row(&plugin.now, plugin.state());
    }
    for plugin in unused {
        row(plugin, if check { "not used" } else { "removed" });
    }
    let mut text = table.render() + "\n";
    for plugin in plugins {
        if let (Some(locked), "changed") = (&plugin.locked, plugin.state()) {
            let differences = locked.differences(&plugin.now);
            text += &format!("changed: {}: {differences}\n", plugin.now.id);
        }
    }
    text
}

fn as_json(file: &Path, plugins: &[Pinned], unused: &[&LockedPlugin], written: bool) -> Value {
    let entry = |plugin: &LockedPlugin| {
        json!({
            "id": plugin.id,
            "version": plugin.version,
            "abi": [plugin.abi.0, plugin.abi.1],
            "sha256": plugin.sha256,
            "size": plugin.size,
        })
    };
    let plugins: Vec<Value> = plugins
        .iter()
        .map(|plugin| {
            let mut json = entry(&plugin.now);
            json["path"] = json!(plugin.path.display().to_string());
            json["state"] = json!(plugin.state().replace(' ', "_"));
            json["locked"] = json!(plugin.locked.as_ref().map(entry));
            json
        })
        .collect();
    json!({
        "file": file.display().to_string(),
        "written": written,
        "plugins": plugins,
        "unused": unused.iter().copied().map(entry).collect::<Vec<_>>(),
    })
}
