//! Manifests of all shapes, each in an otherwise valid library.

use proptest::prelude::*;
use serde_json::{Value, json};

use crate::elf::with_manifest;
use crate::gate::good;
use crate::{json, look, times};

/// Words that are likely in generated manifests.
const WORDS: &[&str] = &[
    "id",
    "abi",
    "version",
    "min_host_minor",
    "description",
    "kinds",
    "needs",
    "devices",
    "events",
    "config",
    "metric",
    "observer",
    "param_groups",
    "checkpoint_sink",
    "loss_sum",
    "nll",
    "logits",
    "cpu",
    "cuda",
    "type",
    "object",
    "properties",
    "1.0",
    "perplexity",
    "../x",
    "\u{1b}[2J",
];

fn manifest() -> Value {
    json!({
        "abi": [1, 0], "id": "perplexity", "version": "0.1.0", "description": "text",
        "kinds": ["metric"], "needs": ["loss_sum", "token_count"], "devices": ["cpu", "cuda"],
        "events": ["metrics"], "min_host_minor": 0,
        "config": {"type": "object", "properties": {"dir": {"type": "string"}}}
    })
}

fn read(text: &[u8]) -> Option<host_plugin::PluginManifest> {
    look(&with_manifest(&good()[0], text))
}

proptest! {
    #![proptest_config(times(4))]

    #[test]
    fn any_json(value in json::value(WORDS)) {
        read(value.to_string().as_bytes());
    }

    #[test]
    fn a_manifest_with_other_fields(
        fields in prop::collection::vec((prop::sample::select(WORDS), json::value(WORDS)), 1..4),
    ) {
        let mut changed = manifest();
        for (key, value) in fields {
            changed[key] = value;
        }
        if let Some(read) = read(changed.to_string().as_bytes()) {
            prop_assert_eq!(&changed["id"], &read.id);
            prop_assert_eq!(&changed["version"], &read.version);
            let schema = changed.get("config").filter(|schema| !schema.is_null());
            prop_assert_eq!(schema, read.config.as_ref());
        }
    }

    /// The text of the valid manifest, with a few bytes inserted, removed or changed.
    #[test]
    fn a_manifest_with_other_bytes(
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0usize..3, any::<u8>()), 1..4),
    ) {
        let mut text = manifest().to_string().into_bytes();
        for (at, how, byte) in edits {
            let at = at.index(text.len());
            match how {
                0 => text[at] = byte,
                1 => text.insert(at, byte),
                _ => drop(text.remove(at)),
            }
        }
        if read(&text).is_some() {
            prop_assert!(serde_json::from_slice::<Value>(&text).is_ok());
        }
    }
}

#[test]
fn a_manifest_of_one_deep_or_long_value() {
    for text in [
        "[".repeat(500_000),
        format!(
            "{{\"config\": {}1{}}}",
            "{\"a\":".repeat(120),
            "}".repeat(120)
        ),
        format!(
            "{{\"id\": \"a\", \"kinds\": [\"{}\"]}}",
            "x".repeat(1_000_000)
        ),
        format!("{{\"id\": {}}}", "9".repeat(1_000_000)),
        "{}".repeat(500_000),
        "\u{0}".repeat(1_000_000),
    ] {
        assert!(read(text.as_bytes()).is_none());
    }
}
