//! Settings that are paths. The schema marks such a setting with `"format": "path"`. The plugin and
//! `run.toml` get it as an absolute path, so that it stays valid if the run is resumed from another folder.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::config::resolved;
use crate::schema;

const PATH: &str = "path";

/// Makes relative paths in the settings absolute, based on the current folder. Replaces a leading `~` with
/// the home folder, since shells do not expand the `~` in `dir=~/checkpoints`.
pub(crate) fn make_absolute(settings: &mut Value, schema: &Value) {
    let home = std::env::home_dir().filter(|home| home.is_absolute());
    let absolute = |text: &str| absolute(text, home.as_deref());
    visit(settings, schema, schema, &absolute);
}

fn absolute(text: &str, home: Option<&Path>) -> Option<String> {
    if text.is_empty() {
        // The plugin decides what an empty path means.
        return None;
    }
    let in_home = match text.strip_prefix('~') {
        Some("") => home.map(Path::to_owned),
        Some(rest) => rest
            .strip_prefix('/')
            .and_then(|rest| Some(home?.join(rest.trim_start_matches('/')))),
        None => None,
    };
    let path = in_home.unwrap_or_else(|| PathBuf::from(text));
    std::path::absolute(path).ok()?.to_str().map(str::to_owned)
}

/// Makes the paths in a value absolute. `schema` is the part of `root` that the value was checked against.
/// The recursion ends, because the schema is bounded and has no cycles.
fn visit(
    value: &mut Value,
    schema: &Value,
    root: &Value,
    absolute: &dyn Fn(&str) -> Option<String>,
) {
    let schema = resolved(schema, root);
    match value {
        Value::String(text) => {
            if is_path(text, schema, root)
                && let Some(path) = absolute(text)
            {
                *text = path;
            }
            return;
        }
        Value::Array(items) => {
            if let Some(schema) = schema.get("items") {
                for item in items {
                    visit(item, schema, root, absolute);
                }
            }
        }
        Value::Object(members) => {
            for (key, member) in members {
                let property = schema.get("properties").and_then(|all| all.get(key));
                if let Some(schema) = property.or_else(|| schema.get("additionalProperties")) {
                    visit(member, schema, root, absolute);
                }
            }
        }
        _ => return,
    }
    for key in ["allOf", "anyOf", "oneOf"] {
        let parts = schema.get(key).and_then(Value::as_array);
        for part in parts.into_iter().flatten() {
            visit(value, part, root, absolute);
        }
    }
}

/// Whether a schema marks a string as a path. Among alternative schemas, only the first that accepts the
/// string counts.
fn is_path(text: &str, schema: &Value, root: &Value) -> bool {
    let schema = resolved(schema, root);
    if schema.get("format").and_then(Value::as_str) == Some(PATH) {
        return true;
    }
    let parts = |key| schema.get(key).and_then(Value::as_array);
    let all = parts("allOf").into_iter().flatten();
    let fits = |part: &&Value| {
        // If a subschema cannot be compiled without the rest of the schema, assume that it accepts the
        // string.
        let part = resolved(part, root);
        schema::compile(part).map_or(true, |part| part.is_valid(&Value::from(text)))
    };
    let one = ["anyOf", "oneOf"]
        .into_iter()
        .filter_map(parts)
        .filter_map(|parts| parts.iter().find(fits));
    all.chain(one).any(|part| is_path(text, part, root))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_path_becomes_absolute_and_home_is_expanded() {
        let home = Some(Path::new("/home/ada"));
        let here = std::env::current_dir().expect("a folder");
        let here = |path: &str| here.join(path).display().to_string();
        for (text, expected) in [
            ("/x/y", "/x/y".to_owned()),
            ("/x//y/./z/", "/x/y/z".to_owned()),
            ("ck", here("ck")),
            ("./ck", here("ck")),
            ("../ck", here("../ck")),
            ("~", "/home/ada".to_owned()),
            ("~/ck", "/home/ada/ck".to_owned()),
            ("~ada/ck", here("~ada/ck")),
        ] {
            let found = absolute(text, home).expect(text);
            assert_eq!(Path::new(&found), Path::new(&expected), "{text}");
        }
        assert_eq!(absolute("", home), None);
        assert_eq!(absolute("~/ck", None), Some(here("~/ck")));
    }

    #[test]
    fn paths_are_found_everywhere_in_a_schema() {
        let path = json!({ "type": "string", "format": "path" });
        let schema = json!({
            "type": "object",
            "properties": {
                "dir": path,
                "name": { "type": "string" },
                "list": { "type": "array", "items": { "$ref": "#/$defs/Path" } },
                "maybe": { "anyOf": [path, { "type": "null" }] },
                "lists": { "anyOf": [{ "type": "array", "items": path }, { "type": "null" }] },
                "inner": { "type": "object", "properties": { "file": path } },
                "all": { "allOf": [{ "type": "string" }, { "$ref": "#/$defs/Path" }] },
                "place": { "type": "string", "anyOf": [
                    { "pattern": "^(\\.|/|~/)", "format": "path" }, {}
                ] },
                "other": { "$ref": "#/properties/place" }
            },
            "additionalProperties": path,
            "$defs": { "Path": path }
        });
        let mut settings = json!({
            "dir": "a", "name": "a", "list": ["a", "b"], "maybe": "a", "lists": ["a"],
            "inner": { "file": "a", "more": "a" }, "all": "a", "place": "./a", "other": "ann/gpt",
            "extra": "a", "count": 3
        });
        schema::compile(&schema).expect("a schema");
        visit(&mut settings, &schema, &schema, &|text| {
            Some(format!("/{text}"))
        });
        assert_eq!(
            settings,
            json!({
                "dir": "/a", "name": "a", "list": ["/a", "/b"], "maybe": "/a", "lists": ["/a"],
                "inner": { "file": "/a", "more": "a" }, "all": "/a", "place": "/./a", "other": "ann/gpt",
                "extra": "/a", "count": 3
            })
        );
    }
}
