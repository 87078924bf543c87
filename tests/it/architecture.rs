//! Who may import whom, over `cargo metadata`.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

/// Every crate of the workspace and the crates of the workspace it may know.
const ROOMS: &[(&str, &[&str])] = &[
    ("host-core", &[]),
    ("host-proto", &[]),
    ("host-plugin-abi", &[]),
    ("host-train", &["host-core"]),
    ("host-store", &["host-core"]),
    ("host-plugin", &["host-core", "host-plugin-abi"]),
    ("host-serve", &["host-core", "host-store", "host-proto"]),
    (
        "host",
        &[
            "host-core",
            "host-train",
            "host-plugin",
            "host-store",
            "host-serve",
        ],
    ),
    ("host-plugin-sdk", &["host-plugin-abi"]),
];

/// The tests' own crates.
const TESTS: [&str; 3] = ["host-tests", "host-fuzz", "test-hub"];

/// Crates that live in one room only.
const CONFINED: &[(&str, &[&str])] = &[
    ("tch", &["host-train"]),
    ("torch-sys", &["host-train"]),
    ("libloading", &["host-plugin"]),
    ("tonic", &["host-serve", "host-proto"]),
    ("tokio", &["host-serve"]),
    ("rusqlite", &["host-store"]),
];

/// Normal and build dependencies of every crate of the workspace. What only tests use does not count.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--format-version",
            "1",
            "--no-deps",
            "--offline",
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("metadata");
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    metadata["packages"]
        .as_array()
        .expect("packages")
        .iter()
        .map(|package| {
            let names = package["dependencies"]
                .as_array()
                .expect("dependencies")
                .iter()
                .filter(|dependency| dependency["kind"] != "dev")
                .map(|dependency| text(&dependency["name"]))
                .collect();
            (text(&package["name"]), names)
        })
        .collect()
}

#[test]
fn every_room_knows_only_those_it_may() {
    let dependencies = dependencies();
    let mut faults = Vec::new();
    for (name, known) in &dependencies {
        let ours = known
            .iter()
            .filter(|known| dependencies.contains_key(*known));
        let allowed = match ROOMS.iter().find(|room| room.0 == name) {
            Some(room) => room.1,
            // What the tests link is their own affair, but no other crate links them.
            None if TESTS.contains(&name.as_str()) => continue,
            // Every other crate is a plugin.
            None => &["host-plugin-sdk"],
        };
        faults.extend(
            ours.filter(|known| !allowed.contains(&known.as_str()))
                .map(|known| format!("{name} -> {known}")),
        );
    }
    assert!(
        faults.is_empty(),
        "these arrows are not in ARCHITECTURE.md: {faults:?}"
    );
    for (room, _) in ROOMS {
        assert!(
            dependencies.contains_key(*room),
            "no crate is called {room}: has it moved?"
        );
    }
}

#[test]
fn what_is_confined_to_a_room_stays_there() {
    for (name, known) in dependencies() {
        for (confined, rooms) in CONFINED {
            let lawful = !known.contains(*confined)
                || rooms.contains(&name.as_str())
                || TESTS.contains(&name.as_str());
            assert!(lawful, "{name} uses {confined}, which belongs to {rooms:?}");
        }
    }
}
