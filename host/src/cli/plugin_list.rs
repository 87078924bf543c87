use host_core::Result;
use host_plugin::{Listed, SearchPath};
use serde_json::{Value, json};

use super::plugin::{kinds, manifest_json};
use super::{print, print_json};
use crate::show::event_line::one_line;
use crate::show::table::{Align, Table};

/// Prints every library on the search path, including shadowed and unusable libraries.
///
/// # Errors
/// Returns an error if stdout cannot be written.
pub(super) fn list(search: &SearchPath, json: bool) -> Result<()> {
    let listed = search.list();
    if json {
        return print_json(&listed.iter().map(as_json).collect());
    }
    let dirs: Vec<String> = search
        .dirs()
        .iter()
        .map(|dir| dir.display().to_string())
        .collect();
    let text = as_text(listed);
    print(&format!("{text}\nsearched in {}\n", dirs.join(", ")))
}

/// Returns one word for the library's state: "found" if a lookup by id finds the library, otherwise the
/// reason why not.
fn state(listed: &Listed) -> &'static str {
    match (&listed.shadowed_by, &listed.outcome) {
        (Some(_), _) => "shadowed",
        (None, Ok(_)) => "found",
        (None, Err(_)) => "refused",
    }
}

fn as_json(listed: &Listed) -> Value {
    let mut entry = match &listed.outcome {
        Ok(manifest) => manifest_json(manifest),
        Err(error) => json!({
            "id": listed.id,
            "error": error.message(),
            "hint": error.hint_text(),
        }),
    };
    entry["path"] = json!(listed.path.display().to_string());
    entry["state"] = json!(state(listed));
    let shadowed_by = listed.shadowed_by.as_ref();
    entry["shadowed_by"] = json!(shadowed_by.map(|path| path.display().to_string()));
    entry
}

/// Formats a table with one row per library, sorted by id. Libraries with the same id are in search order, so
/// a shadowed library comes after the library that shadows it. The errors of refused libraries follow the
/// table.
fn as_text(mut listed: Vec<Listed>) -> String {
    // Libraries without an id come last.
    listed.sort_by(|a, b| (a.id.is_none(), &a.id).cmp(&(b.id.is_none(), &b.id)));
    let mut table = Table::new([
        ("id", Align::Left),
        ("version", Align::Left),
        ("kind", Align::Left),
        ("", Align::Left),
        ("library", Align::Left),
    ]);
    for listed in &listed {
        let (version, kind) = match &listed.outcome {
            Ok(manifest) => (manifest.version.clone(), kinds(manifest).join(", ")),
            Err(_) => (String::new(), String::new()),
        };
        let mark = match state(listed) {
            "found" => String::new(),
            other => other.to_owned(),
        };
        table.row([
            listed.id.clone().unwrap_or_else(|| "?".to_owned()),
            version,
            kind,
            mark,
            listed.path.display().to_string(),
        ]);
    }
    let mut text = table.render();
    if listed.iter().any(|listed| listed.shadowed_by.is_some()) {
        text += "\nshadowed: an id selects the first library; use the path to select another\n";
    }
    for error in listed
        .iter()
        .filter_map(|listed| listed.outcome.as_ref().err())
    {
        text += &format!("\nrefused: {}\n", one_line(error.message()));
        if let Some(hint) = error.hint_text() {
            text += &format!("hint: {}\n", one_line(hint));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use host_core::{Error, ErrorKind};
    use host_plugin::{PluginKind, PluginManifest};

    use super::*;

    fn manifest(id: &str, version: &str) -> PluginManifest {
        PluginManifest {
            abi: (1, 0),
            min_host_minor: 0,
            id: id.to_owned(),
            version: version.to_owned(),
            description: String::new(),
            kinds: vec![PluginKind::Metric],
            needs: Vec::new(),
            reads_cuda: false,
            events: None,
            config: None,
        }
    }

    fn listed() -> Vec<Listed> {
        let row = |path: &str, id: Option<&str>, outcome, shadowed_by: Option<&str>| Listed {
            path: PathBuf::from(path),
            id: id.map(str::to_owned),
            outcome,
            shadowed_by: shadowed_by.map(PathBuf::from),
        };
        let no_elf =
            Error::new(ErrorKind::Plugin, "plugin is not an ELF file: /a/x.so").hint("use a .so");
        vec![
            row("/a/x.so", None, Err(no_elf), None),
            row(
                "/a/zeta.so",
                Some("zeta"),
                Ok(manifest("zeta", "1.2.0")),
                None,
            ),
            row("/b/ada.so", Some("ada"), Ok(manifest("ada", "0.1.0")), None),
            row(
                "/b/z.so",
                Some("zeta"),
                Ok(manifest("zeta", "1.1.0")),
                Some("/a/zeta.so"),
            ),
        ]
    }

    #[test]
    fn a_shadowed_library_follows_the_one_that_shadows_it() {
        assert_eq!(
            as_text(listed()),
            "\
id    version  kind              library
ada   0.1.0    metric            /b/ada.so
zeta  1.2.0    metric            /a/zeta.so
zeta  1.1.0    metric  shadowed  /b/z.so
?                      refused   /a/x.so

shadowed: an id selects the first library; use the path to select another

refused: plugin is not an ELF file: /a/x.so
hint: use a .so
"
        );
    }

    #[test]
    fn the_json_is_in_search_order() {
        let entries: Vec<Value> = listed().iter().map(as_json).collect();
        let states: Vec<&Value> = entries.iter().map(|entry| &entry["state"]).collect();
        assert_eq!(states, ["refused", "found", "found", "shadowed"]);
        assert_eq!(entries[0]["error"], "plugin is not an ELF file: /a/x.so");
        assert_eq!(entries[3]["shadowed_by"], "/a/zeta.so");
    }
}
