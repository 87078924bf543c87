//! The parameter groups of a run.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::support::{Home, built};

fn groups(home: &Home, more: &[&str]) -> Value {
    home.host(&[&["groups", "tiny.toml", "--json"], more].concat())
        .succeeded()
        .json()
}

fn names(group: &Value) -> Vec<&str> {
    let params = group["params"].as_array().expect("parameters");
    let names = params
        .iter()
        .map(|param| param["name"].as_str().expect("a name"));
    names.collect()
}

#[test]
fn the_table_has_every_parameter_once() {
    let home = Home::new();
    let json = groups(&home, &[]);
    assert_eq!(json["plugin"], "weight-decay");
    let groups = json["groups"].as_array().expect("groups");
    let kinds: Vec<_> = groups
        .iter()
        .map(|group| (&group["name"], &group["weight_decay"]))
        .collect();
    assert_eq!(
        kinds,
        [
            (&"decay".into(), &0.1.into()),
            (&"no_decay".into(), &0.0.into())
        ]
    );
    let all: Vec<&str> = groups.iter().flat_map(names).collect();
    let distinct: BTreeSet<&str> = all.iter().copied().collect();
    // Two embeddings, twelve parameters in each of two blocks, two in the last norm.
    assert_eq!((all.len(), distinct.len()), (28, 28));
    for name in names(&groups[1]) {
        assert!(name.ends_with("bias") || name.contains("ln_"), "{name}");
    }

    let table = home.host(&["groups", "tiny.toml"]).succeeded();
    for name in all {
        let lines = table
            .stdout
            .lines()
            .filter(|line| line.split_whitespace().next() == Some(name));
        assert_eq!(lines.count(), 1, "{name}\n{table}");
    }
    assert!(!home.path("runs").exists(), "nothing was trained");
}

#[test]
fn the_groups_follow_the_plugins_settings_and_the_runs_weight_decay() {
    let home = Home::new();
    let json = groups(
        &home,
        &[
            "--weight-decay",
            "0.3",
            "--plugin",
            "weight-decay:no_decay=[wpe]",
        ],
    );
    assert_eq!(json["groups"][0]["weight_decay"], 0.3);
    assert_eq!(names(&json["groups"][1]), ["transformer.wpe.weight"]);

    let unmatched = [
        "groups",
        "tiny.toml",
        "--plugin",
        "weight-decay:no_decay=[LayerNorm]",
    ];
    let output = home.host(&unmatched).succeeded();
    let warned = |line: &str| line.starts_with("warning: ") && line.contains("LayerNorm");
    assert!(output.stderr.lines().any(warned), "{output}");
}

#[test]
fn two_plugins_for_the_groups_are_an_error() {
    let home = Home::new();
    let other = built("libmisbehaving.so");
    let other = other.to_str().expect("UTF-8");
    let output = home.train("two", &["--plugin", "weight-decay", "--plugin", other]);
    let (error, _) = output.failed_with(2);
    assert_eq!(
        error,
        format!("two plugins decide the parameter groups: weight-decay, misbehaving of {other}")
    );
    assert!(!home.run_dir("two").exists());
}

#[test]
fn a_given_plugin_for_the_groups_replaces_the_default() {
    let home = Home::new();
    let other = built("libmisbehaving.so");
    let json = groups(&home, &["--plugin", other.to_str().expect("UTF-8")]);
    assert_eq!(json["plugin"], "misbehaving");
    assert_eq!(json["groups"].as_array().expect("groups").len(), 1);
}
