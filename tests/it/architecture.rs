//! Checks the dependencies between crates, which `cargo metadata` prints. Also checks the dependencies
//! between the folders of a crate.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::support::{built, root};

/// Each entry names a workspace crate, and the workspace crates that it may depend on.
const ROOMS: &[(&str, &[&str])] = &[
    ("host-core", &[]),
    ("host-proto", &[]),
    ("host-plugin-abi", &[]),
    ("host-train", &["host-core"]),
    ("host-nccl", &[]),
    ("host-store", &["host-core"]),
    ("host-plugin", &["host-core", "host-plugin-abi"]),
    (
        "host-conformance",
        &["host-core", "host-plugin", "host-plugin-abi"],
    ),
    ("host-serve", &["host-core", "host-store", "host-proto"]),
    (
        "host",
        &[
            "host-core",
            "host-train",
            "host-plugin",
            "host-conformance",
            "host-store",
            "host-serve",
        ],
    ),
    ("host-plugin-sdk", &["host-plugin-abi"]),
];

/// The crates that contain only tests.
const TESTS: [&str; 3] = ["host-tests", "host-fuzz", "test-hub"];

/// Each entry names an external crate, and the only workspace crates that may use it.
const CONFINED: &[(&str, &[&str])] = &[
    ("tch", &["host-train"]),
    ("torch-sys", &["host-train", "host-nccl"]),
    ("libloading", &["host-plugin"]),
    ("tonic", &["host-serve", "host-proto"]),
    ("tokio", &["host-serve"]),
    ("rusqlite", &["host-store"]),
];

/// Returns the packages of the workspace from `cargo metadata`.
fn manifests() -> Vec<Value> {
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
    let mut metadata: Value = serde_json::from_slice(&output.stdout).expect("metadata");
    match metadata["packages"].take() {
        Value::Array(packages) => packages,
        other => panic!("no packages: {other}"),
    }
}

/// Returns the normal and build dependencies of every crate of the workspace, without dev-dependencies.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    manifests()
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
fn every_crate_has_only_the_allowed_dependencies() {
    let dependencies = dependencies();
    let mut faults = Vec::new();
    for (name, known) in &dependencies {
        let ours = known
            .iter()
            .filter(|known| dependencies.contains_key(*known));
        let allowed = match ROOMS.iter().find(|room| room.0 == name) {
            Some(room) => room.1,
            // Test crates may depend on any crate, but no other crate may depend on them.
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
        "dependencies that ARCHITECTURE.md does not allow: {faults:?}"
    );
    for (room, _) in ROOMS {
        assert!(
            dependencies.contains_key(*room),
            "there is no crate {room}: was it renamed?"
        );
    }
}

#[test]
fn confined_crates_are_used_only_where_allowed() {
    for (name, known) in dependencies() {
        for (confined, rooms) in CONFINED {
            let lawful = !known.contains(*confined)
                || rooms.contains(&name.as_str())
                || TESTS.contains(&name.as_str());
            assert!(lawful, "{name} uses {confined}, which belongs to {rooms:?}");
        }
    }
}

/// Returns the Rust code of each folder in a crate's source folder, without tests. The key is the folder's
/// name.
fn folders(source: &str) -> BTreeMap<String, String> {
    let root = root().join(source);
    let mut folders = BTreeMap::new();
    for entry in fs::read_dir(&root).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            let name = path.file_name().expect("a name").to_string_lossy();
            let mut text = String::new();
            read_all(&path, &mut text);
            // For example, `model.rs` belongs to the folder `model/`.
            if let Ok(own) = fs::read_to_string(path.with_extension("rs")) {
                text += without_tests(&own);
            }
            folders.insert(name.into_owned(), text);
        }
    }
    folders
}

fn read_all(folder: &Path, text: &mut String) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name").to_string_lossy();
        if path.is_dir() {
            read_all(&path, text);
        } else if name.ends_with(".rs") && !name.ends_with("tests.rs") {
            *text += without_tests(&fs::read_to_string(&path).expect("a text"));
        }
    }
}

fn without_tests(text: &str) -> &str {
    text.split("#[cfg(test)]\nmod tests")
        .next()
        .expect("a part")
}

/// Returns the names from `folders` that occur in the code in `text`, either as `crate::folder` or inside
/// `crate::{folder, other}`.
fn known<'a>(text: &str, folders: &'a BTreeMap<String, String>) -> BTreeSet<&'a str> {
    let code = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"));
    let code = code.collect::<Vec<_>>().join("\n");
    let mut known = BTreeSet::new();
    for part in code.split("crate::").skip(1) {
        let named = match part.strip_prefix('{') {
            Some(list) => list.split('}').next().expect("a part").split(',').collect(),
            None => vec![part],
        };
        for name in named {
            let is_word = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
            let name = name.trim_start();
            let word = name.split(|letter| !is_word(letter)).next();
            known.extend(
                folders
                    .get_key_value(word.expect("a part"))
                    .map(|(name, _)| &**name),
            );
        }
    }
    known
}

#[test]
fn folders_of_a_crate_have_no_circular_dependencies() {
    for source in ["host/src", "host/train/src"] {
        let folders = folders(source);
        assert!(folders.len() > 5, "{source}: {:?}", folders.keys());
        let mut arrows: BTreeMap<&str, BTreeSet<&str>> = folders
            .iter()
            .map(|(name, text)| {
                let mut known = known(text, &folders);
                known.remove(&**name);
                (&**name, known)
            })
            .collect();
        assert!(arrows.values().any(|known| !known.is_empty()), "{source}");
        // Repeatedly removes each folder that depends on no remaining folder.
        loop {
            let here: BTreeSet<&str> = arrows.keys().copied().collect();
            let floors = arrows.len();
            arrows.retain(|_, known| known.iter().any(|name| here.contains(name)));
            if arrows.len() == floors {
                break;
            }
        }
        assert!(
            arrows.is_empty(),
            "{source}: these folders have circular dependencies: {arrows:?}"
        );
    }
}

/// The program starts on machines without CUDA's libraries, even if the libtorch of the build contains CUDA.
#[test]
fn the_program_does_not_depend_on_cuda() {
    let output = Command::new("readelf")
        .arg("--dynamic")
        .arg(built("host"))
        .output();
    let output = output.expect("readelf, which the C++ compiler needs, too");
    let table = String::from_utf8_lossy(&output.stdout);
    assert!(table.contains("libtorch_cpu"), "{table}");
    assert!(!table.contains("cuda"), "{table}");
}

#[test]
fn every_path_in_architecture_md_exists() {
    let map = fs::read_to_string(root().join("ARCHITECTURE.md")).expect("a text");
    let rooms = ["host/", "plugins/", "proto/", "tests/", "examples/"];
    let is_path = |text: &&str| {
        rooms.iter().any(|room| text.starts_with(room)) && !text.contains(['*', ' ', '('])
    };
    let paths: Vec<&str> = map.split('`').skip(1).step_by(2).filter(is_path).collect();
    assert!(paths.len() > 50, "{paths:?}");
    let missing: Vec<&&str> = paths
        .iter()
        .filter(|path| !root().join(path).exists())
        .collect();
    assert!(missing.is_empty(), "ARCHITECTURE.md: {missing:?}");
}

#[test]
fn the_dependency_page_lists_exactly_the_dependencies() {
    let page = fs::read_to_string(root().join("host/docs/dependencies.md")).expect("a text");
    let listed: BTreeSet<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
        .collect();
    let manifests = manifests();
    let is_ours = |name: &str| manifests.iter().any(|package| package["name"] == name);
    let used: BTreeSet<&str> = manifests
        .iter()
        .flat_map(|package| package["dependencies"].as_array().expect("dependencies"))
        .map(|dependency| dependency["name"].as_str().expect("a name"))
        .filter(|name| !is_ours(name))
        .collect();
    assert_eq!(listed, used);
}
