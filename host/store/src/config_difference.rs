use std::collections::BTreeMap;

use serde_json::Value;

use crate::settings;

/// A configuration key whose values differ between runs.
#[derive(Clone, Debug, PartialEq)]
pub struct ConfigDifference {
    /// The key. A key in a table is prefixed with the table's name and a dot; a plugin's setting has a key
    /// such as `plugin/hub-git/repo`.
    pub key: String,
    /// The values in the order of the runs; `None` for a run whose configuration lacks the key.
    pub values: Vec<Option<Value>>,
}

/// Returns the differences between configurations, sorted by key. Plugins are matched by their ids. Keys that
/// are specific to each run, such as its name and start time, are left out.
pub fn config_differences(configs: &[Value]) -> Vec<ConfigDifference> {
    let mut all: BTreeMap<String, Vec<Option<Value>>> = BTreeMap::new();
    for (run, config) in configs.iter().enumerate() {
        for (key, value) in settings(config) {
            all.entry(key).or_insert_with(|| vec![None; configs.len()])[run] = Some(value);
        }
    }
    all.into_iter()
        .filter(|(key, _)| !OWN.contains(&key.as_str()))
        .filter(|(_, values)| values.windows(2).any(|pair| pair[0] != pair[1]))
        .map(|(key, values)| ConfigDifference { key, values })
        .collect()
}

/// Keys that identify a run and do not affect its training.
const OWN: [&str; 4] = ["name", "runs_dir", "listen", "record.started"];

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_differences_are_listed_and_plugins_are_matched_by_id() {
        let differences = config_differences(&[
            json!({ "name": "a", "seed": 1, "lr": 0.1, "data": ["a"], "plugin": [
                { "id": "hub-git", "repo": "x" }, { "id": "perplexity" }
            ] }),
            json!({ "name": "b", "seed": 2, "lr": 0.1, "data": ["a", "b"], "plugin": [
                { "id": "perplexity" }, { "id": "hub-git", "repo": "y" }
            ], "new": null }),
        ]);
        let told: Vec<(&str, Value)> = differences
            .iter()
            .map(|difference| (difference.key.as_str(), json!(difference.values)))
            .collect();
        assert_eq!(
            told,
            [
                ("data", json!([["a"], ["a", "b"]])),
                ("new", json!([null, null])),
                ("plugin/hub-git/repo", json!(["x", "y"])),
                ("seed", json!([1, 2])),
            ]
        );
        assert_eq!(config_differences(&[json!({ "a": 1 })]), []);
        assert_eq!(config_differences(&[]), []);
    }
}
