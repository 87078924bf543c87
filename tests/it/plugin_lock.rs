//! A run loads the locked plugins, byte for byte, or does not start.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::support::{Fixture, Home, sha256};

const ID: &str = "locked-metric";

/// Compiles another version of the metric, with the same id and path. When this version is loaded, its
/// constructor function creates a file.
fn replace(home: &Home) -> PathBuf {
    let (mark, source) = (home.path("constructed"), home.path("constructor.c"));
    let text = format!(
        "#include <stdio.h>\n__attribute__((constructor)) static void mark(void) {{\n  \
         FILE *file = fopen({mark:?}, \"w\");\n  if (file) fclose(file);\n}}\n"
    );
    fs::write(&source, text).expect("written");
    let source = source.to_str().expect("UTF-8").to_owned();
    Fixture::metric(ID).flag(source).build(&home.path(""))
}

/// Returns the digest that a lock records for a file.
fn digest(file: &Path) -> String {
    sha256(&fs::read(file).expect("a file"))
}

/// Returns a home folder, and the library of a metric in it. The folder also contains a configuration that
/// names the metric by its path, and the lock file of this configuration.
fn locked() -> (Home, PathBuf) {
    let home = Home::new();
    let library = Fixture::metric(ID).build(&home.path(""));
    let config = fs::read_to_string(home.path("tiny.toml")).expect("a configuration");
    let plugin = format!("[[plugin]]\npath = \"lib{}.so\"\n", ID.replace('-', "_"));
    fs::write(home.path("tiny.toml"), config + &plugin).expect("written");
    home.host(&["plugin", "lock", "tiny.toml"]).succeeded();
    (home, library)
}

#[test]
fn a_lock_lists_every_plugin_of_the_run_and_the_run_must_match_it() {
    let (home, library) = locked();
    let lock: toml::Table = fs::read_to_string(home.path("plugins.lock"))
        .expect("a lock")
        .parse()
        .expect("TOML");
    let entries = lock["plugin"].as_array().expect("plugins");
    let ids: Vec<_> = entries.iter().map(|entry| entry["id"].as_str()).collect();
    assert_eq!(ids, [Some(ID), Some("weight-decay")]);
    assert_eq!(
        entries[0]["sha256"].as_str(),
        Some(digest(&library).as_str())
    );
    assert_eq!(entries[0]["abi"].as_str(), Some("1.0"));
    let size = fs::metadata(&library).expect("a file").len();
    assert_eq!(entries[0]["size"].as_integer(), i64::try_from(size).ok());

    let trained = home.train("held", &[]).succeeded();
    let said = format!("plugins are locked by {}", home.text_path("plugins.lock"));
    assert!(trained.stderr.contains(&said), "{trained}");
}

#[test]
fn a_replaced_plugin_is_refused_by_run_groups_and_resume_before_it_runs() {
    let (home, library) = locked();
    home.train("run", &[]).succeeded();
    let (good, then) = (fs::read(&library).expect("a file"), digest(&library));
    replace(&home);
    let (now, lock) = (digest(&library), home.text_path("plugins.lock"));
    let resume = ["resume", "run", "--max-train-steps", "25"];
    for args in [&["run", "tiny.toml"][..], &["groups", "tiny.toml"], &resume] {
        let output = home.host(args);
        let (error, hint) = output.failed_with(3);
        let start = format!("plugin {ID} differs from its entry in the lock: ");
        let end = format!(
            "sha256 {now} instead of {then} (lock: {lock}): {}",
            library.display()
        );
        assert!(
            error.starts_with(&start) && error.ends_with(&end),
            "{error}"
        );
        let way = format!(
            "if you trust the new file, run `host plugin lock --file {lock}` with the run's arguments"
        );
        assert_eq!(hint, way);
    }
    assert!(!home.path("constructed").exists(), "its code has run");

    fs::write(&library, good).expect("written");
    home.host(&resume).succeeded();
    replace(&home);
    home.host(&["plugin", "lock", "tiny.toml"]).succeeded();
    assert!(!home.path("constructed").exists(), "its code has run");
    let resumed = home.host(&["resume", "run", "--max-train-steps", "30"]);
    let changed = format!("the library of plugin {ID} has changed");
    assert!(resumed.succeeded().stderr.contains(&changed));
    assert!(home.path("constructed").exists());
}

#[test]
fn a_lock_can_be_anywhere_and_list_more_plugins_than_a_run_needs() {
    let home = Home::new();
    let mine = Fixture::metric(ID).build(&home.path(""));
    let (mine, file) = (mine.to_str().expect("UTF-8"), home.text_path("my.lock"));
    let lock = ["plugin", "lock", "--file", &file, "--plugin"];
    home.host(&[&lock[..], &[mine, "--plugin", "perplexity"]].concat())
        .succeeded();
    let run = ["--plugin-lock", "my.lock", "--plugin"];
    home.train("unused", &[&run[..], &["perplexity"]].concat())
        .succeeded();
    let text = fs::read_to_string(home.run_dir("unused").join("run.toml")).expect("a run");
    let table: toml::Table = text.parse().expect("TOML");
    assert_eq!(table["plugin_lock"].as_str(), Some(file.as_str()));

    let output = home.train("missing", &[&run[..], &["token-accuracy"]].concat());
    let (error, _) = output.failed_with(3);
    let start = format!("plugin token-accuracy is not in the lock {file}: ");
    assert!(error.starts_with(&start), "{error}");
    assert!(!home.run_dir("missing").exists());

    fs::remove_file(&file).expect("removed");
    let resume = home.host(&["resume", "unused", "--max-train-steps", "25"]);
    let (error, _) = resume.failed_with(2);
    assert!(
        error.starts_with("cannot read the plugin lock: "),
        "{error}"
    );
    assert!(error.ends_with(&file), "{error}");
}

#[test]
fn a_check_reports_what_differs_and_writes_nothing() {
    let (home, library) = locked();
    let check = ["plugin", "lock", "tiny.toml", "--check"];
    home.host(&check).succeeded();
    let before = fs::read_to_string(home.path("plugins.lock")).expect("a lock");
    let then = digest(&library);
    replace(&home);
    let output = home.host(&check);
    let (error, _) = output.failed_with(3);
    let lock = home.text_path("plugins.lock");
    assert_eq!(
        error,
        format!("1 of 2 plugins do not match the lock: {ID}: {lock}")
    );
    let changed = format!("sha256 {} instead of {then}", digest(&library));
    assert!(output.stdout.contains(&changed), "{output}");

    let output = home.host(&[&check[..], &["--plugin", "perplexity", "--json"]].concat());
    output.failed_with(3);
    let json = output.json();
    let states: Vec<_> = json["plugins"]
        .as_array()
        .expect("plugins")
        .iter()
        .map(|plugin| (plugin["id"].as_str(), plugin["state"].as_str()))
        .collect();
    let expected = [
        (ID, "changed"),
        ("perplexity", "new"),
        ("weight-decay", "as_locked"),
    ];
    assert_eq!(states, expected.map(|(id, state)| (Some(id), Some(state))));
    assert_eq!(json["plugins"][0]["locked"]["sha256"], json!(then));
    assert_eq!(json["written"], json!(false));
    let after = fs::read_to_string(home.path("plugins.lock")).expect("a lock");
    assert_eq!(before, after);
}

#[test]
fn a_file_that_is_not_a_lock_is_neither_read_nor_overwritten() {
    let home = Home::new();
    for (text, fault) in [
        ("notes = 1\n", "not a plugin lock: format = 1 is missing: "),
        (
            "format = 7\n",
            "the plugin lock has format 7, this host reads format 1: ",
        ),
    ] {
        fs::write(home.path("plugins.lock"), text).expect("written");
        for args in [
            &["plugin", "lock", "tiny.toml"][..],
            &["plugin", "lock"],
            &["run", "tiny.toml"],
        ] {
            let output = home.host(args);
            let (error, _) = output.failed_with(2);
            assert_eq!(error, format!("{fault}{}", home.text_path("plugins.lock")));
        }
        let after = fs::read_to_string(home.path("plugins.lock")).expect("a file");
        assert_eq!(after, text);
    }
}

/// The search path has a plugin twice, and a file that is not a plugin.
#[test]
fn the_list_shows_shadowed_and_refused_plugins() {
    let home = Home::new();
    let [first, second] = ["first", "second"].map(|name| {
        let dir = home.path(name);
        fs::create_dir(&dir).expect("made");
        dir
    });
    let taken = Fixture::metric(ID).build(&first);
    let behind = Fixture::metric(ID).build(&second);
    let none = second.join("libnotes.so");
    fs::write(&none, "no library, but long enough").expect("written");
    let path = format!("{}:{}", first.display(), second.display());
    let env = [("HOST_PLUGIN_PATH", path.as_str())];
    let text = home.host_with(&env, &["plugin", "list"]).succeeded().stdout;
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    let at = |library: &Path| {
        let end = library.display().to_string();
        lines
            .iter()
            .position(|line| line.ends_with(&end))
            .unwrap_or_else(|| panic!("no {end} in\n{text}"))
    };
    assert_eq!(at(&taken) + 1, at(&behind), "{text}");
    assert!(!lines[at(&taken)].contains("shadowed"), "{text}");
    assert!(lines[at(&behind)].contains("  shadowed  "), "{text}");
    assert!(lines[at(&none)].starts_with("?"), "{text}");
    assert!(lines[at(&none)].contains("  refused  "), "{text}");
    let reason = format!(
        "refused: plugin is a file without an ELF header, not a shared library: {}",
        none.display()
    );
    assert!(lines.contains(&reason.as_str()), "{text}");

    let json = home.host_with(&env, &["plugin", "list", "--json"]);
    let json = json.succeeded().json();
    let of = |library: &Path| {
        let path = json!(library.display().to_string());
        let entries = json.as_array().expect("a list");
        entries
            .iter()
            .find(|entry| entry["path"] == path)
            .expect("listed")
            .clone()
    };
    assert_eq!(of(&taken)["state"], "found");
    assert_eq!(of(&behind)["state"], "shadowed");
    assert_eq!(
        of(&behind)["shadowed_by"],
        json!(taken.display().to_string())
    );
    assert_eq!(of(&none)["state"], "refused");
    assert_eq!(of(&none)["id"], json!(null));
    assert!(of(&none)["hint"].is_string());
    assert_eq!(of(&taken)["version"], "0.1.0");
}
