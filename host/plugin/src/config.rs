use host_core::{Error, ErrorKind, Result, nearest};
use jsonschema::ValidationError;
use jsonschema::error::ValidationErrorKind;
use serde_json::{Map, Value};

use crate::manifest::shortened;
use crate::spec::split_at_commas;
use crate::{PluginManifest, defaults, path_setting, schema};

/// A plugin's settings as the user wrote them.
#[derive(Clone, Debug, PartialEq)]
pub enum PluginConfig {
    /// From the command line: names and untyped text. The plugin's schema determines the types.
    Text(Vec<(String, String)>),
    /// From TOML: names and typed values.
    Values(Map<String, Value>),
}

impl Default for PluginConfig {
    fn default() -> Self {
        Self::Values(Map::new())
    }
}

impl PluginConfig {
    /// Converts the settings to the types of the manifest's schema, adds the schema's defaults, and validates
    /// the result. Settings that the schema marks as paths become absolute.
    ///
    /// # Errors
    /// Returns an error if a setting is invalid. The error names the plugin, the setting and the fault. Only
    /// one fault is reported. An unknown name takes precedence, since it often explains the other faults.
    pub fn resolve(&self, manifest: &PluginManifest) -> Result<Map<String, Value>> {
        self.resolve_as(manifest, &manifest.id)
    }

    /// Resolves the settings like [`PluginConfig::resolve`]. The commands in hints refer to the plugin by
    /// `name`: its id, or its path if the commands cannot find it by the id.
    ///
    /// # Errors
    /// Returns the errors of [`PluginConfig::resolve`].
    pub fn resolve_as(&self, manifest: &PluginManifest, name: &str) -> Result<Map<String, Value>> {
        let id = &manifest.id;
        let Some(schema) = &manifest.config else {
            return match self.first_key() {
                None => Ok(Map::new()),
                Some(key) => Err(config_error(id, format!("has no setting {key}"))
                    .hint("remove it: the plugin has no settings")),
            };
        };
        let values = match self {
            Self::Values(values) => values.clone(),
            Self::Text(pairs) => pairs
                .iter()
                .map(|(key, text)| (key.clone(), typed(text, property(schema, key), schema)))
                .collect(),
        };
        let validator = schema::compile(schema).map_err(|why| {
            Error::new(
                ErrorKind::Plugin,
                format!("plugin {id} has an invalid settings schema: {why}"),
            )
        })?;
        let mut filled = values.clone();
        defaults::fill(&mut filled, schema).map_err(|why| {
            own_fault(
                id,
                &format!("has a settings schema with too many defaults: {why}"),
            )
        })?;
        let mut instance = Value::Object(filled);
        let faults: Vec<_> = validator.iter_errors(&instance).collect();
        let unknown = |fault: &&ValidationError<'_>| {
            matches!(
                fault.kind(),
                ValidationErrorKind::AdditionalProperties { .. }
            )
        };
        if let Some(fault) = faults.iter().find(unknown).or(faults.first()) {
            let mut given = Value::Object(values);
            if !validator.is_valid(&given) {
                return Err(refusal(id, name, schema, fault));
            }
            // The user's settings are valid, so a default causes the fault. If the default is invalid by
            // itself, it is reported. If it only conflicts with the user's settings, the user's settings are
            // used without any defaults.
            let at = fault.instance_path().as_str();
            if !at.is_empty() && given.pointer(at).is_none() {
                return Err(own_fault(id, &bad_default(fault)));
            }
            path_setting::make_absolute(&mut given, schema);
            return match given {
                Value::Object(given) => Ok(given),
                _ => unreachable!("the value was created from an object"),
            };
        }
        drop(faults);
        path_setting::make_absolute(&mut instance, schema);
        match instance {
            Value::Object(values) => Ok(values),
            _ => unreachable!("the value was created from an object"),
        }
    }

    fn first_key(&self) -> Option<&str> {
        match self {
            Self::Text(pairs) => pairs.first().map(|(key, _)| key.as_str()),
            Self::Values(values) => values.keys().next().map(String::as_str),
        }
    }
}

/// Converts the text of a setting from the command line to a type that `schema` allows. If that is
/// impossible, returns the text as a string, and the later validation reports the fault.
fn typed(text: &str, schema: Option<&Value>, root: &Value) -> Value {
    let types = schema.map(|schema| types(schema, root)).unwrap_or_default();
    let allows = |name: &str| types.contains(&name);
    let list = text
        .strip_prefix('[')
        .and_then(|inner| inner.strip_suffix(']'));
    if allows("array")
        && let Some(inner) = list
    {
        let items = schema.and_then(|schema| resolved(schema, root).get("items"));
        return split_at_commas(inner)
            .map(|item| typed(item.trim(), items, root))
            .collect();
    }
    if allows("string") {
        return text.into();
    }
    let number = if allows("integer") && !text.contains(['.', 'e', 'E']) || allows("number") {
        text.parse::<serde_json::Number>().ok().map(Value::Number)
    } else {
        None
    };
    let flag = || allows("boolean").then(|| text.parse().ok().map(Value::Bool));
    number
        .or_else(|| flag().flatten())
        .unwrap_or_else(|| text.into())
}

/// Returns the types that a schema allows, including those from `$ref`, `anyOf` and `oneOf`.
fn types<'a>(schema: &'a Value, root: &'a Value) -> Vec<&'a str> {
    let schema = resolved(schema, root);
    let mut found: Vec<&str> = match schema.get("type") {
        Some(Value::String(name)) => vec![name],
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    for key in ["anyOf", "oneOf"] {
        let choices = schema.get(key).and_then(Value::as_array);
        for choice in choices.into_iter().flatten() {
            // One level of nesting suffices for the form in which schema generators write optional values.
            match resolved(choice, root).get("type") {
                Some(Value::String(name)) => found.push(name),
                Some(Value::Array(names)) => found.extend(names.iter().filter_map(Value::as_str)),
                _ => {}
            }
        }
    }
    found
}

/// Follows `$ref`s inside the document. Stops after a few steps, so that a cycle does not loop forever.
pub fn resolved<'a>(schema: &'a Value, root: &'a Value) -> &'a Value {
    let mut schema = schema;
    for _ in 0..8 {
        let target = schema
            .get("$ref")
            .and_then(Value::as_str)
            .and_then(|reference| root.pointer(reference.strip_prefix('#')?));
        match target {
            Some(target) => schema = target,
            None => break,
        }
    }
    schema
}

fn property<'a>(schema: &'a Value, key: &str) -> Option<&'a Value> {
    resolved(schema, schema).get("properties")?.get(key)
}

fn refusal(id: &str, name: &str, schema: &Value, fault: &ValidationError<'_>) -> Error {
    let at = shortened(fault.instance_path().as_str().trim_start_matches('/'));
    let what = shortened(&fault.to_string());
    let inside = if at.is_empty() {
        String::new()
    } else {
        format!(" in {at}")
    };
    match fault.kind() {
        ValidationErrorKind::AdditionalProperties { unexpected } => {
            let key = unexpected.first().map_or("", String::as_str);
            let properties = resolved(schema, schema)
                .get("properties")
                .and_then(Value::as_object);
            let known: Vec<&str> = properties
                .filter(|_| at.is_empty())
                .map(|properties| properties.keys().map(String::as_str).collect())
                .unwrap_or_default();
            let error = config_error(id, format!("has no setting {key}{inside}"));
            match nearest(key, known.iter().copied()) {
                Some(near) => error.hint(format!("did you mean {near}?")),
                None if known.is_empty() => error.hint("remove it"),
                None => error.hint(format!("its settings are: {}", known.join(", "))),
            }
        }
        ValidationErrorKind::Required { property } => {
            let key = property.as_str().unwrap_or_default();
            config_error(id, format!("needs the setting {key}{inside}")).hint(format!(
                "write --plugin {}:{key}=… or {key} = … in its [[plugin]] table",
                shell_word(name)
            ))
        }
        // If the schema allows no keys, the validator reports `FalseSchema` for any key.
        ValidationErrorKind::FalseSchema
            if at.is_empty() && resolved(schema, schema).get("properties").is_none() =>
        {
            config_error(id, "has no settings".to_owned()).hint("remove them")
        }
        ValidationErrorKind::Enum { options } if !at.is_empty() => {
            let options: Vec<String> = options.as_array().map_or(Vec::new(), |options| {
                options.iter().map(ToString::to_string).collect()
            });
            let what = format!("{} is not one of {}", fault.instance(), options.join(", "));
            let what = shortened(&what);
            config_error(id, format!("cannot use the setting {at}: {what}")).hint(describe(name))
        }
        _ if at.is_empty() => {
            config_error(id, format!("cannot use its settings: {what}")).hint(describe(name))
        }
        _ => config_error(id, format!("cannot use the setting {at}: {what}")).hint(describe(name)),
    }
}

/// Returns the hint with the command that lists a plugin's settings.
pub(crate) fn describe(name: &str) -> String {
    format!("`host plugin info {}` lists its settings", shell_word(name))
}

/// Quotes a text so that a shell reads it as one word.
pub fn shell_word(text: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "/.-_+:,=@%".contains(c);
    match !text.is_empty() && text.chars().all(is_plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

/// Returns the error for a fault of the plugin itself, which the user cannot correct.
fn own_fault(id: &str, fault: &str) -> Error {
    Error::new(ErrorKind::Plugin, format!("plugin {id} {fault}"))
        .hint("its author must correct the schema in its manifest")
}

fn bad_default(fault: &ValidationError<'_>) -> String {
    let at = shortened(fault.instance_path().as_str().trim_start_matches('/'));
    let what = shortened(&fault.to_string());
    format!("has an invalid default for the setting {at}: {what}")
}

fn config_error(id: &str, fault: String) -> Error {
    Error::new(ErrorKind::Config, format!("plugin {id} {fault}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PluginKind;
    use serde_json::json;

    fn manifest(config: Option<Value>) -> PluginManifest {
        PluginManifest {
            abi: (1, 0),
            min_host_minor: 0,
            id: "local-disk".to_owned(),
            version: "1".to_owned(),
            description: String::new(),
            kinds: vec![PluginKind::CheckpointSink],
            needs: Vec::new(),
            reads_cuda: false,
            events: None,
            config,
        }
    }

    fn schema() -> Value {
        json!({
            "type": "object",
            "properties": {
                "dir": {"type": "string"},
                "keep": {"type": ["integer", "null"], "minimum": 1},
                "rate": {"type": "number"},
                "best": {"type": "boolean"},
                "patterns": {"type": "array", "items": {"type": "string"}},
                "sizes": {"$ref": "#/$defs/Sizes"},
                "level": {"anyOf": [{"$ref": "#/$defs/Level"}, {"type": "null"}]},
                "anything": {}
            },
            "$defs": {
                "Sizes": {"type": "array", "items": {"type": "integer"}},
                "Level": {"type": "integer"}
            },
            "required": ["dir"],
            "additionalProperties": false
        })
    }

    fn resolve(spec: &str) -> Result<Map<String, Value>> {
        let spec: crate::PluginSpec = spec.parse().expect(spec);
        spec.config.resolve(&manifest(Some(schema())))
    }

    #[test]
    fn the_schema_determines_the_types() {
        let values = resolve(
            "local-disk:dir=3,keep=3,rate=1e-3,best=true,patterns=[bias,ln_1.weight],sizes=[1, 2],level=4,anything=5",
        );
        assert_eq!(
            Value::Object(values.expect("good settings")),
            json!({
                "dir": "3", "keep": 3, "rate": 1e-3, "best": true,
                "patterns": ["bias", "ln_1.weight"], "sizes": [1, 2], "level": 4, "anything": "5"
            })
        );
        let empty = resolve("local-disk:dir=,patterns=[]").expect("good settings");
        assert_eq!(Value::Object(empty), json!({"dir": "", "patterns": []}));
    }

    #[test]
    fn a_fault_names_the_plugin_and_the_setting() {
        for (spec, message, hint) in [
            (
                "local-disk:dirr=x",
                "plugin local-disk has no setting dirr",
                "did you mean dir?",
            ),
            (
                "local-disk:dir=x,color=red",
                "plugin local-disk has no setting color",
                "its settings are: dir, keep, rate, best, patterns, sizes, level, anything",
            ),
            (
                "local-disk",
                "plugin local-disk needs the setting dir",
                "write --plugin local-disk:dir=… or dir = … in its [[plugin]] table",
            ),
            (
                "local-disk:dir=x,keep=some",
                "plugin local-disk cannot use the setting keep: \"some\" is not of types \"integer\", \"null\"",
                "`host plugin info local-disk` lists its settings",
            ),
            (
                "local-disk:dir=x,keep=0",
                "plugin local-disk cannot use the setting keep: 0 is less than the minimum of 1",
                "`host plugin info local-disk` lists its settings",
            ),
            (
                "local-disk:dir=x,sizes=[1,b]",
                "plugin local-disk cannot use the setting sizes/1: \"b\" is not of type \"integer\"",
                "`host plugin info local-disk` lists its settings",
            ),
        ] {
            let error = resolve(spec).expect_err(spec);
            assert_eq!(error.message(), message);
            assert_eq!(error.hint_text(), Some(hint));
            assert_eq!(error.kind(), ErrorKind::Config);
        }
    }

    #[test]
    fn defaults_are_filled_in_before_the_check() {
        let schema = json!({
            "type": "object", "additionalProperties": false, "required": ["level"],
            "properties": {
                "level": {"type": "integer", "default": 3},
                "word": {"type": "string", "default": "x"},
                "free": {"type": "integer"}
            }
        });
        let manifest = manifest(Some(schema));
        let filled = PluginConfig::default().resolve(&manifest);
        assert_eq!(
            Value::Object(filled.expect("defaults")),
            json!({"level": 3, "word": "x"})
        );
        let spec: crate::PluginSpec = "local-disk:word=y,level=1".parse().expect("a spec");
        let filled = spec.config.resolve(&manifest).expect("settings");
        assert_eq!(Value::Object(filled), json!({"word": "y", "level": 1}));
    }

    #[test]
    fn a_default_that_violates_its_own_schema_is_the_plugins_fault() {
        let schema = json!({
            "type": "object",
            "properties": {"level": {"type": "number", "default": "high"}}
        });
        let manifest = manifest(Some(schema));
        let error = PluginConfig::default().resolve(&manifest).expect_err("bad");
        assert_eq!(error.kind(), ErrorKind::Plugin);
        assert_eq!(
            error.message(),
            "plugin local-disk has an invalid default for the setting level: \"high\" is not of type \"number\""
        );
        let spec: crate::PluginSpec = "local-disk:level=2".parse().expect("a spec");
        assert!(spec.config.resolve(&manifest).is_ok());
        let wrong: crate::PluginSpec = "local-disk:level=x".parse().expect("a spec");
        let error = wrong.config.resolve(&manifest).expect_err("the user's");
        assert_eq!(error.kind(), ErrorKind::Config);
    }

    #[test]
    fn a_default_that_conflicts_with_the_users_settings_is_left_out() {
        let schema = json!({
            "type": "object",
            "properties": {"a": {"type": "integer", "default": 1}, "b": {"type": "integer"}},
            "not": {"required": ["a", "b"]}
        });
        let manifest = manifest(Some(schema));
        let resolve = |text: &str| {
            let spec: crate::PluginSpec = text.parse().expect("a spec");
            Value::Object(spec.config.resolve(&manifest).expect("settings"))
        };
        assert_eq!(resolve("local-disk"), json!({"a": 1}));
        assert_eq!(resolve("local-disk:b=2"), json!({"b": 2}));
    }

    #[test]
    fn a_hint_names_the_plugin_as_commands_find_it() {
        let spec: crate::PluginSpec = "local-disk:dir=x,keep=0".parse().expect("a spec");
        let manifest = manifest(Some(schema()));
        for (name, word) in [
            ("./libx.so", "./libx.so"),
            ("/my plugins/it's.so", r"'/my plugins/it'\''s.so'"),
        ] {
            let error = spec.config.resolve_as(&manifest, name).expect_err("zero");
            let hint = format!("`host plugin info {word}` lists its settings");
            assert_eq!(error.hint_text(), Some(&*hint));
            let error = PluginConfig::default().resolve_as(&manifest, name);
            let hint = format!("write --plugin {word}:dir=… or dir = … in its [[plugin]] table");
            assert_eq!(error.expect_err("no dir").hint_text(), Some(&*hint));
        }
    }

    #[test]
    fn typed_values_are_not_converted() {
        let table = json!({"dir": "x", "keep": "3"});
        let config = PluginConfig::Values(table.as_object().expect("a table").clone());
        let error = config.resolve(&manifest(Some(schema()))).expect_err("text");
        assert_eq!(
            error.message(),
            "plugin local-disk cannot use the setting keep: \"3\" is not of types \"integer\", \"null\""
        );
    }

    #[test]
    fn without_a_schema_there_are_no_settings() {
        let none = PluginConfig::default().resolve(&manifest(None));
        assert_eq!(none.expect("nothing"), Map::new());
        let spec: crate::PluginSpec = "local-disk:a=1".parse().expect("a spec");
        let error = spec.config.resolve(&manifest(None)).expect_err("rejected");
        assert_eq!(error.message(), "plugin local-disk has no setting a");
        assert_eq!(
            error.hint_text(),
            Some("remove it: the plugin has no settings")
        );
    }

    #[test]
    fn a_schema_without_properties_allows_no_settings() {
        let schema = json!({ "type": "object", "additionalProperties": false });
        let spec: crate::PluginSpec = "local-disk:a=1".parse().expect("a spec");
        let error = spec
            .config
            .resolve(&manifest(Some(schema)))
            .expect_err("refused");
        assert_eq!(error.message(), "plugin local-disk has no settings");
        assert_eq!(error.hint_text(), Some("remove them"));
    }

    #[test]
    fn an_unknown_enum_value_is_reported_with_the_options() {
        let link = json!({ "enum": ["auto", "reflink", "hard", "copy"] });
        let schema = json!({ "type": "object", "properties": { "link": link } });
        let config = PluginConfig::Values(json!({"link": "soft"}).as_object().unwrap().clone());
        let error = config.resolve(&manifest(Some(schema))).unwrap_err();
        let told = r#"link: "soft" is not one of "auto", "reflink", "hard", "copy""#;
        assert!(error.message().ends_with(told), "{error}");
    }
}
