//! Parses valid SPECs, both as text and as a table, and arbitrary texts and tables.

use std::path::PathBuf;

use host_plugin::{Mode, OnError, PluginConfig, PluginSpec, Target};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use crate::{assert_readable, json, times};

const WORDS: &[&str] = &[
    "id",
    "path",
    "mode",
    "process",
    "in_process",
    "on_error",
    "fail",
    "warn",
    "disable_after",
    "time_limit_secs",
    "dir",
    "keep",
    "perplexity",
    "./libmine.so",
];

fn target() -> impl Strategy<Value = Target> {
    prop_oneof![
        "[a-z][a-z0-9_-]{0,12}".prop_map(Target::Id),
        "(/|\\./|\\.\\./)[a-zA-Z0-9_. /-]{0,12}\\.so"
            .prop_map(|path| Target::Path(PathBuf::from(path))),
    ]
}

fn policy() -> impl Strategy<Value = OnError> {
    prop_oneof![
        Just(OnError::Fail),
        Just(OnError::Warn),
        (1u32..).prop_map(OnError::DisableAfter),
    ]
}

/// Returns the policy's `on_error` as written on the command line.
fn policy_text(policy: OnError) -> String {
    match policy {
        OnError::Fail => "fail".to_owned(),
        OnError::Warn => "warn".to_owned(),
        OnError::DisableAfter(n) => format!("disable_after={n}"),
    }
}

fn policy_value(policy: OnError) -> Value {
    match policy {
        OnError::DisableAfter(n) => json!({"disable_after": n}),
        other => policy_text(other).into(),
    }
}

fn mode() -> impl Strategy<Value = Mode> {
    prop::sample::select(&[Mode::InProcess, Mode::Process][..])
}

/// Generates a value as on the command line: no commas outside of brackets, no leading or trailing spaces.
fn value_text() -> impl Strategy<Value = String> {
    prop_oneof![
        "",
        "[!-+./0-9:-Z^-~\\\\-]{1,12}",
        "[a-z]([a-z= :/]{0,12}[a-z])?",
        "\\[[a-z0-9., ]{0,12}\\]",
        "\\[\\[[a-z,]{0,6}\\],[a-z,]{0,6}\\]",
    ]
}

fn key() -> impl Strategy<Value = String> {
    "[a-z][a-z_]{0,8}".prop_filter("a key of the plugin", |key| !WORDS.contains(&key.as_str()))
}

proptest! {
    #![proptest_config(times(8))]

    #[test]
    fn a_printed_spec_reads_as_the_same(
        target in target(),
        config in prop::collection::btree_map(key(), value_text(), 0..5),
        mode in prop::option::of(mode()),
        policy in prop::option::of(policy()),
        limit in prop::option::of(1u32..100_000),
    ) {
        let config: Vec<(String, String)> = config.into_iter().collect();
        let mut settings: Vec<String> =
            config.iter().map(|(key, value)| format!("{key}={value}")).collect();
        settings.extend(mode.map(|mode| format!("mode={mode}")));
        settings.extend(policy.map(|policy| format!("on_error={}", policy_text(policy))));
        settings.extend(limit.map(|limit| format!("time_limit_secs={limit}")));
        let name = match &target {
            Target::Id(id) => id.clone(),
            Target::Path(path) => path.display().to_string(),
        };
        let text = format!("{name}:{}", settings.join(","));
        let spec: PluginSpec = text.parse().unwrap();
        prop_assert_eq!(&spec.target, &target);
        prop_assert_eq!(&spec.config, &PluginConfig::Text(config.clone()));
        prop_assert_eq!((spec.policy.mode, spec.policy.on_error), (mode, policy));
        prop_assert_eq!(spec.policy.time_limit.map(|limit| limit.as_secs()), limit.map(u64::from));

        let mut table: Map<String, Value> =
            config.iter().map(|(key, value)| (key.clone(), json!(value))).collect();
        match &target {
            Target::Id(id) => table.insert("id".to_owned(), json!(id)),
            Target::Path(path) => table.insert("path".to_owned(), json!(path)),
        };
        let own = table.clone();
        table.extend(mode.map(|mode| ("mode".to_owned(), json!(mode.name()))));
        table.extend(policy.map(|policy| ("on_error".to_owned(), policy_value(policy))));
        table.extend(limit.map(|limit| ("time_limit_secs".to_owned(), json!(limit))));
        let same = PluginSpec::from_table(table).unwrap();
        prop_assert_eq!(&same.target, &spec.target);
        prop_assert_eq!(
            same.policy, spec.policy
        );
        let mut own = own;
        own.retain(|key, _| key != "id" && key != "path");
        prop_assert_eq!(same.config, PluginConfig::Values(own));
    }

    #[test]
    fn any_text(text in prop_oneof![any::<String>(), "[a-z.:/=,\\[\\] ]{0,24}"]) {
        match text.parse::<PluginSpec>() {
            Ok(spec) => {
                let is_named = match spec.target {
                    Target::Id(id) => !id.is_empty(),
                    Target::Path(path) => !path.as_os_str().is_empty(),
                };
                prop_assert!(is_named);
            }
            Err(error) => assert_readable(&error, None),
        }
    }

    #[test]
    fn any_of_the_hosts_settings(
        key in prop::sample::select(&["mode", "on_error", "time_limit_secs"][..]),
        value in "\\PC{0,12}|-?[0-9]{1,20}(\\.[0-9]{1,9})?(e-?[0-9]{1,4})?|nan|inf|disable_after=[0-9]{1,12}",
    ) {
        if let Err(error) = format!("a:{key}={value}").parse::<PluginSpec>() {
            assert_readable(&error, None);
        }
    }

    #[test]
    fn any_table(
        fields in prop::collection::vec((prop::sample::select(WORDS), json::value(WORDS)), 0..5),
    ) {
        let fields = fields.into_iter().map(|(key, value)| (key.to_owned(), value));
        if let Err(error) = PluginSpec::from_table(fields.collect()) {
            assert!(error.hint_text().is_some());
        }
    }
}
