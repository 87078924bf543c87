//! Plugins and hosts with different minor versions of the ABI.
//!
//! The later version is simulated: the current header with additional fields in every struct that may grow.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fs, iter};

use host_core::{DeliveryState, EventBody, Request};
use host_plugin_abi::HOST_ABI_MINOR;
use tempfile::TempDir;

use super::generate;
use crate::support::{Home, built, curve, events_of, root, sha256};

/// The files of the witnesses, with their digests. A witness is a plugin that was written when a version of
/// the ABI was released. It never changes.
const WITNESSES: [(&str, &str); 9] = [
    (
        "1.0/build.sh",
        "4d705a2db0e65eb79f6e223d28710693f5c0c836beb316bf8115edabcd369a8b",
    ),
    (
        "1.0/host_plugin.h",
        "74c769b9bdc7e510dc20a29818f8242cda597d48afecb166aa014e4da6b454e1",
    ),
    (
        "1.0/witness.c",
        "9b13cf0a13ef4c3f8b61ee4bb79f92ddc7363e843e5805958c7650b145e7e2fc",
    ),
    (
        "1.1/build.sh",
        "f993fac7a3eb78a110948ac0fc4c1671c9130210766a51a1bdd09194a09d9cbc",
    ),
    (
        "1.1/host_plugin.h",
        "00d4a044b6720b55dd37d602ef6325888c0a6d1a65282deecc347b9b3ebfa7ef",
    ),
    (
        "1.1/witness.c",
        "d412cdbb1019a1917d08e47ecab5f381eff0a411ea10d438765adfa8ab9f2aef",
    ),
    (
        "1.2/build.sh",
        "7b5d8c1159bfa532b3fb7a3ddcf2746e6cf8b2ac9923690763f7d352e15350bd",
    ),
    (
        "1.2/host_plugin.h",
        "1ad31b96f335c2a2b6232807d4fe1b399143233d8611ba9552c4990032a391b8",
    ),
    (
        "1.2/witness.c",
        "3c4a5fee88f8855e69579b6d372d4fd34144132ebdf4ffbe2923aa735b618fe9",
    ),
];

#[test]
fn the_files_of_the_witnesses_are_unchanged() {
    for (file, digest) in WITNESSES {
        let bytes = fs::read(fixtures().join(file)).expect(file);
        assert_eq!(sha256(&bytes), digest, "{file}");
    }
}

#[test]
fn a_plugin_of_abi_1_0_works_in_this_host() {
    let home = Home::new();
    let library = witness(&home, "1.0");
    trains_with_the_witness(&home, &library);
    let checked = format!("{}:checkpoint_at=7", library.display());
    home.host(&["plugin", "check", &checked]).succeeded();
}

#[test]
fn a_sink_of_abi_1_1_works_in_this_host_and_its_preflight_is_called() {
    let home = Home::new();
    let library = witness(&home, "1.1");
    home.train("run", &["--plugin", library.to_str().expect("UTF-8")])
        .succeeded();
    let state = home.run_dir("run").join("sinks/witness");
    let asked = fs::read_to_string(state.join("preflight")).expect("a preflight");
    assert_eq!(asked, "run");
    assert!(state.join("step-20").exists());
    passes(&home, &library, &["preflight", "preflight-refusal"]);
}

#[test]
fn a_sink_of_abi_1_2_works_in_this_host_and_fetches_what_it_stored() {
    let home = Home::new();
    let library = witness(&home, "1.2");
    home.train("run", &["--plugin", library.to_str().expect("UTF-8")])
        .succeeded();
    let kept = home
        .run_dir("run/sinks/witness/kept-20")
        .join("model.safetensors");
    let given = home.checkpoint("run", 20).join("model.safetensors");
    assert_eq!(
        fs::read(kept).expect("kept"),
        fs::read(given).expect("given")
    );
    passes(&home, &library, &["preflight", "fetch", "absent-fetch"]);
}

/// Builds the witness of a version, using the header of that version.
fn witness(home: &Home, version: &str) -> PathBuf {
    let library = home.path("libwitness.so");
    let build = fixtures().join(version).join("build.sh");
    succeed(Command::new(build).arg(&library));
    library
}

/// Asserts that the plugin passes the conformance suite, and that none of `tests` was skipped.
fn passes(home: &Home, library: &Path, tests: &[&str]) {
    let library = library.to_str().expect("UTF-8");
    let checked = home.host(&["plugin", "check", library]).succeeded();
    for test in tests {
        let passed = format!("passed   {test}\n");
        assert!(checked.stdout.contains(&passed), "{test}\n{checked}");
    }
}

#[test]
fn a_plugin_of_a_later_minor_version_works_in_this_host() {
    let home = Home::new();
    let source = fs::read_to_string(fixtures().join("1.0/witness.c")).expect("the witness");
    let later = source
        .replace(r#"\"abi\": [1, 0]"#, r#"\"abi\": [1, 7]"#)
        .replace("sizeof plugin, 1, 0, 0,", "sizeof plugin, 1, 7, 0,");
    assert_eq!(later.matches('7').count(), source.matches('7').count() + 2);
    let folder = TempDir::new().expect("a folder");
    fs::write(folder.path().join("host_plugin.h"), later_header()).expect("the header");
    fs::write(folder.path().join("witness.c"), later).expect("the source");
    let library = home.path("libwitness.so");
    let flags = ["-std=c11", "-O2", "-fPIC", "-shared", "witness.c", "-o"];
    succeed(
        Command::new("cc")
            .current_dir(&folder)
            .args(flags)
            .arg(&library),
    );
    trains_with_the_witness(&home, &library);
}

/// Trains with the witness, which is a plugin of all four kinds, and checks the effects of each kind.
fn trains_with_the_witness(home: &Home, library: &Path) {
    let plugin = format!("{}:checkpoint_at=7", library.display());
    home.train("run", &["--plugin", &plugin]).succeeded();
    let run = home.run_dir("run");

    let groups = home.host(&["groups", "tiny.toml", "--plugin", &plugin, "--json"]);
    let groups = groups.succeeded().json();
    let names: Vec<&str> = iter::successors(Some(0), |i| Some(i + 1))
        .map_while(|i| groups["groups"][i]["name"].as_str())
        .collect();
    assert_eq!(names, ["matrices", "others"]);

    let losses = curve(&run, "witness/loss");
    assert!(!losses.is_empty());
    for ((step, theirs), (at, ours)) in iter::zip(losses, curve(&run, "loss/eval")) {
        let (theirs, ours) = (f64::from_bits(theirs), f64::from_bits(ours));
        assert_eq!(step, at);
        assert!((theirs - ours).abs() < 1e-9, "{theirs} {ours}");
    }

    let (mut asked, mut delivered) = (Vec::new(), Vec::new());
    for event in events_of(&run) {
        match event.body {
            EventBody::Request { by, request, .. } => asked.push((by, request, event.step.0)),
            EventBody::Delivery {
                checkpoint,
                state: DeliveryState::Delivered,
                detail,
                ..
            } => {
                assert_eq!(detail, format!("{{\"step\":{}}}", checkpoint.0));
                delivered.push(checkpoint.0);
            }
            EventBody::PluginFault { message, .. } => panic!("{message}"),
            _ => {}
        }
    }
    let [(by, request, at)] = &asked[..] else {
        panic!("{asked:?}");
    };
    assert_eq!((by.as_str(), *request), ("witness", Request::Checkpoint));
    assert!((7..10).contains(at), "{at}");
    assert_eq!(delivered, [5, *at, 10, 15, 20]);
    assert!(run.join("sinks/witness/step-20").exists());
}

#[test]
fn current_plugins_work_in_a_host_of_a_later_minor_version() {
    let folder = TempDir::new().expect("a folder");
    let witness = folder.path().join("libwitness.so");
    succeed(Command::new(fixtures().join("1.0/build.sh")).arg(&witness));
    let host = folder.path().join("newer_host");
    fs::write(folder.path().join("host_plugin.h"), later_header()).expect("the header");
    fs::copy(fixtures().join("newer_host.c"), folder.path().join("h.c")).expect("the source");
    let strict = ["-std=c11", "-Wall", "-Wextra", "-Werror", "h.c", "-o"];
    succeed(
        Command::new("cc")
            .current_dir(&folder)
            .args(strict)
            .arg(&host)
            .arg("-ldl"),
    );
    let run = |library: &Path, config: &str| {
        let scratch = TempDir::new().expect("a folder");
        for dir in ["step-000007", "state"] {
            fs::create_dir(scratch.path().join(dir)).expect("made");
        }
        let manifest = scratch.path().join("step-000007/manifest.json");
        fs::write(manifest, "{\"files\": {}}").expect("written");
        let config = config.replace("{scratch}", scratch.path().to_str().expect("UTF-8"));
        let mut host = Command::new(&host);
        succeed(host.arg(library).arg(config).arg(scratch.path()))
    };

    let made = "log: it was made\n";
    let groups = "group matrices 0.1 1\ngroup others 0 1\nparam 0 in 0\nparam 1 in 1\n\
                  param 2 in 1\nwarning: this is the witness\n";
    let values = "value witness/loss 1.5\nvalue witness/tokens 4\n";
    let asked = "request 2: the witness has seen enough\n";
    assert_eq!(
        run(&witness, "{}"),
        format!(
            "plugin witness\n{made}{groups}{made}{values}{made}receipt: {{\"step\":7}}\n{made}{asked}"
        )
    );
    // Plugins that are built with the SDK, one of each kind.
    let metric = run(&built("libperplexity.so"), "{}");
    assert!(metric.contains("value perplexity 4.48169\n"), "{metric}");
    let groups = run(&built("libweight_decay.so"), "{}");
    assert!(groups.contains("param 2 in 1\n"), "{groups}");
    let sink = run(&built("liblocal_disk.so"), r#"{"dir": "{scratch}/out"}"#);
    assert!(sink.contains("\nreceipt: {\""), "{sink}");
    let observer = run(&built("libloss_guard.so"), "{}");
    assert!(observer.contains("\nrequest "), "{observer}");
}

/// Returns the current header with two changes: a later minor version, and additional fields in every struct
/// that contains its own size.
fn later_header() -> String {
    let this = format!("HOST_ABI_MINOR {HOST_ABI_MINOR}");
    let mut later = String::new();
    let mut grows = false;
    for line in generate().lines() {
        grows |= line.trim() == "uint32_t struct_size;";
        if line.starts_with('}') && grows {
            later += "    void *of_a_later_version[3];\n";
            grows = false;
        }
        later += &line.replace(&this, "HOST_ABI_MINOR 7");
        later.push('\n');
    }
    assert!(later.contains("HOST_ABI_MINOR 7") && later.matches("later_version").count() > 10);
    later
}

fn fixtures() -> PathBuf {
    root().join("tests/fixtures/witness")
}

fn succeed(command: &mut Command) -> String {
    let output = command.output().expect("the program starts");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}\n{said}{errors}");
    said
}
