//! `host plugin new`: every kind in every language is built, tested and checked as its README describes,
//! without a network, and then used in a run.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{Home, built, cargo, curve};

/// The values of `--kind`, each with the kind's name in a manifest.
const KINDS: [(&str, &str); 4] = [
    ("metric", "metric"),
    ("groups", "param_groups"),
    ("sink", "checkpoint_sink"),
    ("observer", "observer"),
];

#[test]
fn plugins_in_rust_build_and_train() {
    // All plugins and later test runs share one build folder, so that the SDK is built only once.
    let target = built("scaffold");
    each_kind("rust", |folder, identifier| {
        for command in ["test", "build"] {
            succeed(
                cargo()
                    .args([command, "--release", "--quiet"])
                    .current_dir(folder)
                    .env("CARGO_NET_OFFLINE", "true")
                    .env("CARGO_TARGET_DIR", &target)
                    .env("RUSTFLAGS", "-Dwarnings"),
            );
        }
        target.join(format!("release/lib{identifier}.so"))
    });
}

#[test]
fn plugins_in_c_build_and_train() {
    each_kind("c", make);
}

#[test]
fn plugins_in_cpp_build_and_train() {
    each_kind("cpp", make);
}

#[test]
fn an_invalid_project_is_rejected_and_nothing_is_written() {
    let home = Home::new();
    let new = |name: &str, more: &[&str]| {
        let args = ["plugin", "new", name, "--kind", "sink", "--lang"];
        home.host(&[&args, more].concat())
    };
    for (name, more, error) in [
        ("../x", &["c"][..], "invalid plugin id: \"../x\""),
        ("Mine", &["c"], "invalid plugin id: \"Mine\""),
        ("serde", &["rust"], "reserved plugin id: \"serde\""),
        ("test-plugin", &["c"], "reserved plugin id: \"test-plugin\""),
        (
            "mine",
            &["c", "--sdk", "."],
            "plugins in C do not use the SDK",
        ),
        (
            "mine",
            &["rust", "--sdk", "data"],
            "not the crate host-plugin-sdk: ",
        ),
        ("data", &["c"], "the folder already exists: data"),
    ] {
        let output = new(name, more);
        let (said, _) = output.failed_with(2);
        assert!(said.starts_with(error), "{said}");
        assert!(!home.path("mine").exists());
    }
    new("mine", &["c", "--path", "some/where"]).succeeded();
    assert!(home.path("some/where/mine.c").is_file());
}

/// Creates, builds and checks a plugin of each kind in the language, and trains with all of them at once.
fn each_kind(language: &str, build: impl Fn(&Path, &str) -> PathBuf) {
    let home = Home::new();
    let mut plugins = Vec::new();
    for (kind, in_manifest) in KINDS {
        let id = format!("my-{kind}-{language}");
        let args = ["plugin", "new", &id, "--kind", kind, "--lang", language];
        let said = home.host(&args).succeeded().stdout;
        assert!(said.starts_with(&format!("created ./{id}, ")), "{said}");
        assert!(said.contains(&format!("test   cd {id} && ")), "{said}");
        let library = build(&home.path(&id), &id.replace('-', "_"));
        let library = library.to_str().expect("UTF-8").to_owned();
        let info = home.host(&["plugin", "info", "--json", &library]);
        let info = info.succeeded().json();
        assert_eq!(
            (&info["id"], &info["kinds"][0]),
            (&id.into(), &in_manifest.into())
        );
        let report = home.host(&["plugin", "check", "--json", "--seed", "1", &library]);
        let report = report.succeeded().json();
        assert!(report["passed"].as_u64() > Some(20), "{report:#}");
        plugins.extend(["--plugin".to_owned(), library]);
    }
    let plugins: Vec<&str> = plugins.iter().map(String::as_str).collect();
    home.train("all", &plugins).succeeded();

    let run = home.run_dir("all");
    let share = curve(&run, &format!("my_metric_{language}"));
    assert!(!share.is_empty());
    assert!(
        share
            .iter()
            .all(|&(_, bits)| (0.0..=1.0).contains(&f64::from_bits(bits)))
    );
    let note = run.join(format!("sinks/my-sink-{language}/latest.txt"));
    let note = std::fs::read_to_string(note).expect("the sink's note");
    assert_eq!(Path::new(note.trim_end()), home.checkpoint("all", 20));
    for kind in ["groups", "observer"] {
        let calls = curve(&run, &format!("plugin/my-{kind}-{language}/calls"));
        assert!(
            calls.iter().any(|&(_, bits)| f64::from_bits(bits) >= 1.0),
            "{kind}"
        );
    }
    let groups = home
        .host(&[&["groups", "tiny.toml"], &plugins[..]].concat())
        .succeeded();
    assert!(groups.stdout.contains("no_decay"), "{}", groups.stdout);
}

/// Builds and tests a project with warnings as errors. Returns the library.
fn make(folder: &Path, identifier: &str) -> PathBuf {
    succeed(
        Command::new("make")
            .arg("test")
            .current_dir(folder)
            .env("CFLAGS", "-O1 -Wall -Wextra -Werror")
            // These variables are set if `make` started the tests, and would affect this `make`.
            .env_remove("MAKEFLAGS")
            .env_remove("MAKELEVEL"),
    );
    folder.join(format!("lib{identifier}.so"))
}

fn succeed(command: &mut Command) {
    let output = command.output().expect("the program starts");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success(), "{command:?}\n{said}");
}
