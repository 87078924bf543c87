use std::path::Path;

use host_plugin_sdk::fake;
use hub_git::PLUGIN;
use serde_json::json;

use crate::support::{bare, git, messages, sha256};

#[test]
fn the_host_receives_a_receipt() {
    let (_remote, url) = bare();
    let plugin = fake::Plugin::load(&PLUGIN);
    let config = json!({"repo": url}).to_string();
    let mut sink = plugin.checkpoint_sink(&config).expect("created");
    let scratch = fake::Scratch::new();
    let files: [(&str, &[u8]); 2] = [("config.json", b"{}"), ("model.safetensors", b"weights")];
    let checkpoint = fake::Checkpoint::write(&scratch.path().join("step-5"), 5, &files)
        .of_run("demo")
        .with_metric("loss/eval", 1.25);
    let manifest = scratch.path().join("step-5/manifest.json");
    let manifest_sha256 = sha256(&std::fs::read(manifest).expect("a manifest"));
    let receipt = sink.publish(&checkpoint).expect("published");
    let commit = git(Path::new(&url), &["rev-parse", "demo"]);
    let expected = json!({
        "commit": commit.trim(), "branch": "demo", "remote": url, "manifest_sha256": manifest_sha256
    });
    assert_eq!(receipt, expected);
    assert_eq!(messages(&url, "demo"), ["step 5"]);
    assert!(
        plugin.log().iter().any(|line| line.contains("step 5")),
        "{:?}",
        plugin.log()
    );
}

#[test]
fn a_bad_configuration_is_refused_at_the_start() {
    let plugin = fake::Plugin::load(&PLUGIN);
    for config in [
        json!({"repo": "ftp://example.org/x"}),
        json!({"repo": "a/b", "color": 1}),
        json!({"repo": "./x", "lfs": "sometimes"}),
        json!({}),
    ] {
        assert!(
            plugin.checkpoint_sink(&config.to_string()).is_err(),
            "{config}"
        );
    }
}

#[test]
fn the_schema_and_the_configuration_agree() {
    let plugin = fake::Plugin::load(&PLUGIN);
    let schema = &plugin.manifest()["config"];
    let mut names: Vec<&String> = schema["properties"]
        .as_object()
        .expect("names")
        .keys()
        .collect();
    names.sort();
    assert_eq!(
        names,
        [
            "author_email",
            "author_name",
            "branch",
            "ca_file",
            "create",
            "lfs",
            "lfs_token_env",
            "private",
            "proxy",
            "repo",
            "timeout_secs",
            "token_env",
            "trainer"
        ]
    );
    let defaults = hub_git::Config {
        repo: "a/b".to_owned(),
        branch: None,
        token_env: None,
        lfs_token_env: None,
        create: false,
        private: None,
        lfs: hub_git::LfsMode::Auto,
        trainer: false,
        author_name: None,
        author_email: None,
        ca_file: None,
        proxy: None,
        timeout_secs: schema["properties"]["timeout_secs"]["default"]
            .as_u64()
            .expect("a number"),
    };
    let read: hub_git::Config = serde_json::from_value(json!({"repo": "a/b"})).expect("read");
    assert_eq!(read, defaults);
}
