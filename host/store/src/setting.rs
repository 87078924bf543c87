use std::collections::BTreeMap;

use serde_json::Value;

/// Returns the settings of a run's configuration by name, each with the value that takes effect. A key in a
/// table is prefixed with the table's name and a dot. A plugin's setting is named `plugin/ID/KEY`. If several
/// plugins have the same id, the second is `ID-2`, as in the names of its metrics.
pub fn settings(config: &Value) -> BTreeMap<String, Value> {
    let mut all = BTreeMap::new();
    let Value::Object(fields) = config else {
        return all;
    };
    for (name, value) in fields {
        match (name.as_str(), value) {
            (PLUGIN, Value::Array(tables)) => plugin_settings(config, tables, &mut all),
            _ => flatten(name, value, &mut |key, value| {
                all.insert(key, value.clone());
            }),
        }
    }
    // A plugin that groups the parameters sets their weight decay. This is the only setting of the run that a
    // plugin can override.
    let is_own = |key: &&String| key.starts_with("plugin/") && key.ends_with("/weight_decay");
    if let Some(own) = all
        .keys()
        .find(is_own)
        .and_then(|key| all.get(key))
        .cloned()
    {
        all.insert("weight_decay".to_owned(), own);
    }
    all
}

const PLUGIN: &str = "plugin";

fn plugin_settings(config: &Value, tables: &[Value], all: &mut BTreeMap<String, Value>) {
    let mut ids: Vec<&str> = Vec::new();
    for (place, table) in tables.iter().enumerate() {
        // If the plugin is given by its path, its id is only in the run's record.
        let found = &config["record"][PLUGIN][place]["id"];
        let id = table["id"].as_str().or(found.as_str());
        let id = id.unwrap_or("unknown");
        let label = label(id, &ids);
        ids.push(id);
        for (key, value) in table.as_object().into_iter().flatten() {
            flatten(
                &format!("{PLUGIN}/{label}/{key}"),
                value,
                &mut |key, value| {
                    all.insert(key, value.clone());
                },
            );
        }
    }
}

fn flatten(key: &str, value: &Value, each: &mut impl FnMut(String, &Value)) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (name, value) in fields {
                flatten(&format!("{key}.{name}"), value, each);
            }
        }
        Value::Array(tables)
            if !tables.is_empty() && tables.iter().all(|table| table["id"].is_string()) =>
        {
            let ids: Vec<&str> = tables
                .iter()
                .filter_map(|table| table["id"].as_str())
                .collect();
            for (place, table) in tables.iter().enumerate() {
                let label = label(ids[place], &ids[..place]);
                flatten(&format!("{key}.{label}"), table, each);
            }
        }
        value => each(key.to_owned(), value),
    }
}

/// Returns a label for a plugin's table. It is the plugin's id, with a number appended if `before` already
/// contains this id.
fn label(id: &str, before: &[&str]) -> String {
    match before.iter().filter(|other| **other == id).count() {
        0 => id.to_owned(),
        same => format!("{id}-{}", same + 1),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(config: &Value) -> Vec<(String, Value)> {
        settings(config).into_iter().collect()
    }

    #[test]
    fn plugin_settings_are_named_by_id_whether_given_by_id_or_path() {
        let config = json!({
            "seed": 1,
            "plugin": [
                { "id": "local-disk", "dir": "/a", "keep": 1 },
                { "path": "/lib/libmine.so", "how": { "deep": true }, "on_error": "warn" },
                { "id": "local-disk", "dir": "/b" },
            ],
            "record": { "host": "1", "plugin": [
                { "id": "local-disk", "version": "1" },
                { "id": "mine", "version": "2" },
                { "id": "local-disk", "version": "1" },
            ] },
        });
        let named = |key: &str, value: Value| (key.to_owned(), value);
        assert_eq!(
            of(&config),
            [
                named("plugin/local-disk-2/dir", json!("/b")),
                named("plugin/local-disk-2/id", json!("local-disk")),
                named("plugin/local-disk/dir", json!("/a")),
                named("plugin/local-disk/id", json!("local-disk")),
                named("plugin/local-disk/keep", json!(1)),
                named("plugin/mine/how.deep", json!(true)),
                named("plugin/mine/on_error", json!("warn")),
                named("plugin/mine/path", json!("/lib/libmine.so")),
                named("record.host", json!("1")),
                named("record.plugin.local-disk-2.id", json!("local-disk")),
                named("record.plugin.local-disk-2.version", json!("1")),
                named("record.plugin.local-disk.id", json!("local-disk")),
                named("record.plugin.local-disk.version", json!("1")),
                named("record.plugin.mine.id", json!("mine")),
                named("record.plugin.mine.version", json!("2")),
                named("seed", json!(1)),
            ]
        );
        assert_eq!(of(&json!("no table")), []);
    }

    #[test]
    fn the_weight_decay_is_the_one_that_takes_effect() {
        let decay = |plugin: Value| {
            let config = json!({ "weight_decay": 0.1, "plugin": plugin });
            settings(&config)["weight_decay"].clone()
        };
        assert_eq!(decay(json!([])), 0.1);
        assert_eq!(decay(json!([{ "id": "weight-decay" }])), 0.1);
        let own = json!([{ "id": "perplexity" }, { "id": "weight-decay", "weight_decay": 0.5 }]);
        assert_eq!(decay(own), 0.5);
    }
}
