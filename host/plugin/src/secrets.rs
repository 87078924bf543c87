use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::{PluginConfig, PluginManifest, PluginSpec};

/// The environment variables of a run that hold secrets. The child process of a plugin gets those alone
/// that the plugin reads; the host's own process has what its user gave it.
///
/// A plugin says which it reads by its settings: one whose name ends in `_env` has the name of such a
/// variable as its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Secrets(BTreeSet<String>);

/// What the Hub's own tools read.
const HUB: [&str; 2] = ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"];

impl Secrets {
    /// Those that any of the plugins reads, and the Hub's.
    pub fn of(specs: &[PluginSpec]) -> Self {
        let named = specs.iter().flat_map(|spec| named(&spec.config));
        Self(named.chain(HUB.map(str::to_owned)).collect())
    }

    /// The variables that are not a plugin's own. One that takes a secret and is not told which may
    /// read the Hub's.
    pub(crate) fn hidden_from(
        &self,
        manifest: &PluginManifest,
        config: &Map<String, Value>,
    ) -> Vec<String> {
        let mut own = named(&PluginConfig::Values(config.clone()));
        if own.is_empty() && takes_secret(manifest) {
            own.extend(HUB.map(str::to_owned));
        }
        let hidden = self.0.iter().filter(|name| !own.contains(name));
        hidden.cloned().collect()
    }
}

impl Default for Secrets {
    fn default() -> Self {
        Self::of(&[])
    }
}

fn names_variable(setting: &str) -> bool {
    setting.ends_with("_env")
}

/// The variables that settings name.
fn named(config: &PluginConfig) -> Vec<String> {
    match config {
        PluginConfig::Text(pairs) => pairs
            .iter()
            .filter(|(setting, _)| names_variable(setting))
            .map(|(_, value)| value.clone())
            .collect(),
        PluginConfig::Values(values) => values
            .iter()
            .filter(|(setting, _)| names_variable(setting))
            .filter_map(|(_, value)| value.as_str().map(str::to_owned))
            .collect(),
    }
}

fn takes_secret(manifest: &PluginManifest) -> bool {
    let properties = manifest.config.as_ref().map(|schema| &schema["properties"]);
    properties
        .and_then(Value::as_object)
        .is_some_and(|properties| properties.keys().any(|name| names_variable(name)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn manifest(settings: Value) -> PluginManifest {
        let text = json!({
            "abi": [1, 0], "id": "p", "version": "1", "kinds": ["checkpoint_sink"],
            "config": {"type": "object", "properties": settings},
        });
        let object = text.as_object().expect("an object");
        PluginManifest::from_object(object).expect("a manifest")
    }

    #[test]
    fn a_plugin_sees_its_own_secrets_alone() {
        let with = |text: &str| text.parse::<PluginSpec>().expect("a spec");
        let specs = ["a:token_env=MINE", "b:dir=x", "c:token_env=THEIRS"].map(with);
        let secrets = Secrets::of(&specs);
        let takes = manifest(json!({"token_env": {"type": "string"}}));
        let takes_none = manifest(json!({"dir": {"type": "string"}}));
        let hidden = |manifest: &PluginManifest, config: Value| {
            let config = config.as_object().expect("settings");
            secrets.hidden_from(manifest, config).join(" ")
        };
        assert_eq!(
            hidden(&takes, json!({"token_env": "MINE"})),
            "HF_TOKEN HUGGING_FACE_HUB_TOKEN THEIRS"
        );
        assert_eq!(hidden(&takes, json!({})), "MINE THEIRS");
        assert_eq!(
            hidden(&takes_none, json!({"dir": "x"})),
            "HF_TOKEN HUGGING_FACE_HUB_TOKEN MINE THEIRS"
        );
    }
}
