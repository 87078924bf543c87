//! Schemas of all shapes, including hostile ones, and settings for them.

use std::fmt::Write as _;

use host_core::Error;
use host_plugin::{PluginConfig, PluginManifest, PluginSpec};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::elf::with_manifest;
use crate::gate::good;
use crate::{allocation, assert_readable, json, look, times};

/// Words that are likely in generated schemas.
const WORDS: &[&str] = &[
    "$ref",
    "$defs",
    "$id",
    "$schema",
    "$dynamicRef",
    "$dynamicAnchor",
    "$anchor",
    "definitions",
    "type",
    "object",
    "array",
    "string",
    "integer",
    "number",
    "boolean",
    "null",
    "properties",
    "required",
    "items",
    "prefixItems",
    "contains",
    "minContains",
    "additionalProperties",
    "patternProperties",
    "propertyNames",
    "unevaluatedProperties",
    "unevaluatedItems",
    "dependentSchemas",
    "dependencies",
    "anyOf",
    "oneOf",
    "allOf",
    "not",
    "if",
    "then",
    "else",
    "enum",
    "const",
    "default",
    "pattern",
    "format",
    "multipleOf",
    "minimum",
    "maxLength",
    "uniqueItems",
    "a",
    "b",
    "#",
    "#/",
    "#/$defs/a",
    "#/$defs/b",
    "#/properties/a",
    "#a",
    "http://127.0.0.1:9/x",
    "file:///etc/passwd",
    "https://json-schema.org/draft/2020-12/schema",
    "http://json-schema.org/draft-04/schema#",
    "^(a+)+$",
    "(?<x>a)\\k<x>",
    "(((a{99}){99}){99}){99}",
    "\\p{L}{1000}",
    "regex",
    "date-time",
    "uri",
];

/// Returns a manifest with this schema, if the inspection accepts it.
fn with_schema(schema: Value) -> Option<PluginManifest> {
    let manifest = json!({
        "abi": [1, 0], "id": "a", "version": "1", "kinds": ["metric"], "config": schema
    });
    look(&with_manifest(&good()[0], manifest.to_string().as_bytes()))
}

/// Returns the settings as the plugin receives them, and checks that resolving them uses little memory.
fn resolve(config: &PluginConfig, manifest: &PluginManifest) -> Result<Value, Error> {
    let (outcome, peak) = allocation::peak(|| config.resolve(manifest));
    assert!(peak < 16 << 20, "{peak} bytes");
    outcome.map(Value::Object)
}

fn settings() -> impl Strategy<Value = PluginConfig> {
    let values = json::value(WORDS)
        .prop_map(|value| PluginConfig::Values(value.as_object().cloned().unwrap_or_default()));
    let pairs = prop::collection::vec(
        (
            prop::sample::select(WORDS),
            "\\PC{0,20}|\\[{0,9}[a,]{0,9}\\]{0,9}",
        ),
        0..4,
    )
    .prop_map(|pairs| {
        let pairs = pairs.into_iter();
        PluginConfig::Text(pairs.map(|(key, text)| (key.to_owned(), text)).collect())
    });
    prop_oneof![values, pairs]
}

proptest! {
    #![proptest_config(times(4))]

    #[test]
    fn any_schema(schema in json::value(WORDS), settings in settings()) {
        if let Some(manifest) = with_schema(schema) {
            match resolve(&settings, &manifest) {
                // Settings given as typed values are either accepted unchanged or rejected.
                Ok(values) => if let PluginConfig::Values(given) = settings {
                    prop_assert_eq!(values, Value::Object(given));
                },
                Err(error) => assert_readable(&error, None),
            }
        }
    }

    /// Schemas whose definitions refer to each other arbitrarily.
    #[test]
    fn any_net_of_references(
        edges in prop::collection::vec((0usize..12, prop::sample::select(&["allOf", "anyOf", "items", "properties", "not", "$ref"][..]), 0usize..12), 1..40),
        text in "\\[{0,40}a\\]{0,40}",
    ) {
        let mut schema = json!({"$ref": "#/$defs/0", "$defs": {}});
        for node in 0..12 {
            schema["$defs"][node.to_string()] = json!({});
        }
        for (from, how, to) in edges {
            let to = json!({"$ref": format!("#/$defs/{to}")});
            let from = &mut schema["$defs"][from.to_string()];
            match how {
                "allOf" | "anyOf" => match from[how].as_array_mut() {
                    Some(list) => list.push(to),
                    None => from[how] = json!([to]),
                },
                "properties" => from[how]["a"] = to,
                "$ref" => from[how] = to["$ref"].clone(),
                _ => from[how] = to,
            }
        }
        if let Some(manifest) = with_schema(schema) {
            let pairs = vec![("a".to_owned(), text)];
            if let Err(error) = resolve(&PluginConfig::Text(pairs), &manifest) {
                assert_readable(&error, None);
            }
        }
    }
}

/// Settings that would take unbounded time or memory if the host processed them naively.
#[test]
fn hostile_settings_end() {
    let lists = json!({"type": ["array", "string"], "items": {"type": ["array", "string"]}});
    let manifest = with_schema(json!({"properties": {
        "lists": lists,
        "number": {"type": "number"},
        "text": {"type": "string", "pattern": "^(a|a)*$", "maxLength": 10},
    }}))
    .unwrap();
    let deep = format!("{}a{}", "[".repeat(50_000), "]".repeat(50_000));
    let mut wide = "[".to_owned();
    for number in 0..10_000 {
        write!(wide, "{number},").unwrap();
    }
    for (key, text, is_good) in [
        ("lists", deep, true),
        ("lists", wide + "x]", true),
        ("text", "a".repeat(100_000), false),
        ("number", "nan".to_owned(), false),
        ("number", "inf".to_owned(), false),
        ("number", "1e999".to_owned(), false),
        ("number", "-0".to_owned(), true),
        ("number", "9".repeat(300), true),
    ] {
        let outcome = PluginConfig::Text(vec![(key.to_owned(), text)]).resolve(&manifest);
        match outcome {
            Ok(_) => assert!(is_good, "{key}"),
            Err(error) => {
                assert!(!is_good, "{key}: {error}");
                assert_readable(&error, None);
            }
        }
    }
    let spec: PluginSpec = "a:number=nan".parse().unwrap();
    let error = spec.config.resolve(&manifest).unwrap_err();
    assert_eq!(
        error.message(),
        "plugin a cannot use the setting number: \"nan\" is not of type \"number\""
    );
}
