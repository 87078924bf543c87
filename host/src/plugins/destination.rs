//! Finds sinks that deliver to the same place.

use std::path::Path;

use host_plugin::PluginManifest;
use serde_json::{Map, Value};

/// Returns a warning for each sink that has the same plugin and the same string settings as an earlier sink.
/// String settings, such as the folder, the repository or the branch, determine where a checkpoint is kept.
/// Other settings only determine how it is delivered.
pub(super) fn shared(sinks: &[(&str, &PluginManifest, &Map<String, Value>)]) -> Vec<String> {
    let mut warnings = Vec::new();
    for (n, (label, manifest, config)) in sinks.iter().enumerate() {
        let place = place(manifest, config);
        let earlier = sinks[..n].iter().find(|(_, other, of_other)| {
            other.id == manifest.id && self::place(other, of_other) == place
        });
        if let Some((other, ..)) = earlier.filter(|_| !place.is_empty()) {
            let place: Vec<String> = place
                .iter()
                .map(|(key, text)| format!("{key} = {text:?}"))
                .collect();
            warnings.push(format!(
                "the sinks {other} and {label} deliver to the same place: {}",
                place.join(", ")
            ));
        }
    }
    warnings
}

/// Returns the string settings. Leaves out settings with a fixed set of values, and settings that name
/// environment variables.
fn place(manifest: &PluginManifest, config: &Map<String, Value>) -> Vec<(String, String)> {
    let schema = manifest.config.as_ref();
    let is_choice = |key: &str| {
        let property = schema.and_then(|schema| schema.get("properties")?.get(key));
        property.is_some_and(|property| property.get("enum").is_some())
    };
    let mut place: Vec<(String, String)> = config
        .iter()
        .filter(|(key, _)| !key.ends_with("_env") && !is_choice(key))
        .filter_map(|(key, value)| Some((key.clone(), normal(value.as_str()?))))
        .collect();
    place.sort();
    place
}

/// Normalizes paths, so that two spellings of an existing folder are equal.
fn normal(text: &str) -> String {
    let path = Path::new(text);
    let real = path.canonicalize().or_else(|_| match path.is_absolute() {
        true => std::path::absolute(path),
        false => Ok(path.to_owned()),
    });
    let real = real.ok().and_then(|path| path.to_str().map(str::to_owned));
    real.unwrap_or_else(|| text.to_owned())
        .trim_end_matches('/')
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use host_plugin::PluginKind;
    use serde_json::json;

    #[test]
    fn two_sinks_with_the_same_place_are_both_named() {
        let manifest = |id: &str| PluginManifest {
            abi: (1, 0),
            min_host_minor: 0,
            id: id.to_owned(),
            version: "1".to_owned(),
            description: String::new(),
            kinds: vec![PluginKind::CheckpointSink],
            needs: Vec::new(),
            reads_cuda: false,
            events: None,
            config: Some(json!({"properties": {"dir": {}, "link": {"enum": ["a", "b"]}}})),
        };
        let (disk, other) = (manifest("disk"), manifest("other"));
        let config = |value: Value| value.as_object().expect("settings").clone();
        let all = [
            (
                "disk",
                &disk,
                config(json!({"dir": "/nowhere/a", "keep": 1, "link": "a"})),
            ),
            ("disk-2", &disk, config(json!({"dir": "/nowhere/b"}))),
            ("other", &other, config(json!({"dir": "/nowhere/a"}))),
            (
                "disk-3",
                &disk,
                config(json!({"dir": "/nowhere//a/", "keep": 2, "link": "b"})),
            ),
            ("none", &disk, config(json!({}))),
            ("none-2", &disk, config(json!({}))),
        ];
        let sinks: Vec<_> = all
            .iter()
            .map(|(label, of, config)| (*label, *of, config))
            .collect();
        assert_eq!(
            shared(&sinks),
            ["the sinks disk and disk-3 deliver to the same place: dir = \"/nowhere/a\""]
        );
    }
}
