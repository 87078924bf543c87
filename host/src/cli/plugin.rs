use clap::Subcommand;
use host_core::{Need, Result};
use host_plugin::{Found, PluginManifest, PluginSpec, SearchPath};
use serde_json::{Value, json};

use super::plugin_check::Check;
use super::plugin_lock::Lock;
use super::plugin_new::New;
use super::{plugin_list, print, print_json};
use crate::plugins::kind_word;
use crate::show::event_line::one_line;
use crate::show::table::{Align, Table};

const EXAMPLES: &str = "\
Examples:
  host plugin new costly-tokens --kind metric --lang rust
  host plugin check ./costly-tokens/target/release/libcostly_tokens.so";

const LIST_EXAMPLE: &str = "\
Example:
  HOST_PLUGIN_PATH=~/plugins host plugin list";

const INFO_EXAMPLE: &str = "\
Example:
  host plugin info local-disk";

/// Lists, inspects, checks, locks and creates plugins
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Plugin {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Lists the plugins that are found by id, and the shadowed and unusable libraries
    #[command(after_help = LIST_EXAMPLE)]
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Shows a plugin's manifest and settings, without running its code
    #[command(after_help = INFO_EXAMPLE)]
    Info {
        /// Plugin id or path
        spec: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    Check(Check),
    New(New),
    Lock(Lock),
    /// Runs a plugin in a child process, for mode=process; the host starts it
    #[command(hide = true)]
    Serve {
        /// File descriptors inherited from the host
        inherited: String,
    },
}

impl Plugin {
    pub(super) fn execute(&self) -> Result<()> {
        let search = SearchPath::from_env();
        match &self.command {
            Command::List { json } => plugin_list::list(&search, *json),
            Command::Info { spec, json } => info(&search, spec, *json),
            Command::Check(check) => check.execute(&search),
            Command::New(new) => new.execute(),
            Command::Lock(lock) => lock.execute(&search),
            Command::Serve { inherited } => host_plugin::serve(inherited),
        }
    }
}

fn info(search: &SearchPath, spec: &str, json: bool) -> Result<()> {
    let spec: PluginSpec = spec.parse()?;
    let found = search.find(&spec.target)?;
    let sha256 = found.sha256()?;
    if json {
        let mut info = manifest_json(&found.manifest);
        info["path"] = json!(found.path.display().to_string());
        info["sha256"] = json!(sha256);
        print_json(&info)
    } else {
        print(&info_text(&found, &sha256))
    }
}

fn info_text(Found { path, manifest, .. }: &Found, sha256: &str) -> String {
    let (major, minor) = manifest.abi;
    let needs: Vec<&str> = manifest.needs.iter().copied().map(Need::name).collect();
    let lines = [
        ("kind", kinds(manifest).join(", ")),
        ("ABI", format!("{major}.{minor}")),
        ("needs", needs.join(", ")),
        ("library", path.display().to_string()),
        ("sha256", sha256.to_owned()),
    ];
    let mut text = format!("{} {}\n", manifest.id, manifest.version);
    if !manifest.description.is_empty() {
        text.push_str(&format!("{}\n", one_line(&manifest.description)));
    }
    text.push('\n');
    for (label, value) in lines {
        if !value.is_empty() {
            text.push_str(&format!("{label:<8} {value}\n"));
        }
    }
    text.push('\n');
    text.push_str(&settings_text(manifest.config.as_ref()));
    text
}

/// Formats the settings that a JSON Schema describes. Reads only the top-level properties.
fn settings_text(schema: Option<&Value>) -> String {
    let properties = schema
        .and_then(|schema| schema.get("properties"))
        .and_then(Value::as_object)
        .filter(|properties| !properties.is_empty());
    let Some(properties) = properties else {
        return "no settings\n".to_owned();
    };
    let required = schema
        .and_then(|schema| schema.get("required"))
        .and_then(Value::as_array);
    let mut table = Table::new([
        ("setting", Align::Left),
        ("type", Align::Left),
        ("default", Align::Left),
        ("", Align::Left),
    ]);
    for (name, property) in properties {
        let text = |key: &str| match property.get(key) {
            None => String::new(),
            Some(Value::String(text)) => one_line(text),
            Some(other) => other.to_string(),
        };
        let is_required = required.is_some_and(|required| required.contains(&json!(name)));
        let default = match is_required {
            true => "(required)".to_owned(),
            false => text("default"),
        };
        table.row([one_line(name), text("type"), default, text("description")]);
    }
    table.render()
}

pub(super) fn kinds(manifest: &PluginManifest) -> Vec<&'static str> {
    manifest.kinds.iter().copied().map(kind_word).collect()
}

pub(super) fn manifest_json(manifest: &PluginManifest) -> Value {
    let kinds: Vec<&str> = manifest.kinds.iter().map(|kind| kind.name()).collect();
    let needs: Vec<&str> = manifest.needs.iter().copied().map(Need::name).collect();
    json!({
        "id": manifest.id,
        "version": manifest.version,
        "description": manifest.description,
        "abi": [manifest.abi.0, manifest.abi.1],
        "kinds": kinds,
        "needs": needs,
        "reads_cuda": manifest.reads_cuda,
        "config": manifest.config,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_listed_with_type_and_default() {
        let schema = json!({
            "type": "object",
            "required": ["dir"],
            "properties": {
                "dir": { "type": "string", "description": "Where to" },
                "keep": { "type": "integer", "default": 3 },
            },
        });
        assert_eq!(
            settings_text(Some(&schema)),
            "setting  type     default\n\
             dir      string   (required)  Where to\n\
             keep     integer  3\n"
        );
        assert_eq!(settings_text(None), "no settings\n");
    }
}
