//! Data as users store it: links, patterns, shards of every kind, edited files.

use std::fs;
use std::os::unix::fs::symlink;

use host_core::EventBody;
use serde_json::json;

use crate::support::{Home, events_of};

/// Returns a JSON Lines record of a few hundred bytes.
fn record(n: usize) -> String {
    let text = format!("fn f_{n}(x: u32) -> u32 {{\n    x * {n}\n}}\n").repeat(20);
    json!({ "content": text }).to_string() + "\n"
}

/// A gzip file without content.
const EMPTY_GZIP: [u8; 20] = [
    0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];

/// Returns the warnings that a run recorded.
fn warnings(home: &Home, run: &str) -> Vec<String> {
    let events = events_of(&home.run_dir(run)).into_iter();
    let warnings = events.filter_map(|event| match event.body {
        EventBody::Warning { message } => Some(message),
        _ => None,
    });
    warnings.collect()
}

/// Finds the number of training files in a run's output. Returns the number as text.
fn trained_on(said: &str) -> &str {
    let at = said.find(" files with ").expect("a summary");
    let begin = said[..at].rfind("; ").expect("its beginning") + 2;
    &said[begin..at]
}

#[test]
fn links_below_a_folder_are_followed_and_each_file_counts_once() {
    let home = Home::new();
    fs::create_dir(home.path("links")).expect("made");
    for name in ["00.rs", "01.rs", "02.rs"] {
        let to = home.path("data").join(name);
        symlink(to, home.path("links").join(name)).expect("linked");
    }
    symlink(home.path("data/00.rs"), home.path("links/again.rs")).expect("linked");
    symlink(home.path("links"), home.path("links/loop")).expect("linked");
    symlink(home.path("gone"), home.path("links/gone.rs")).expect("linked");
    let more = [
        "--data",
        "links",
        "--valid-data",
        "data/03.rs",
        "--max-train-steps",
        "3",
    ];
    let output = home.train("links", &more).succeeded();
    assert_eq!(trained_on(&output.stderr), "3", "{output}");
    let warnings = warnings(&home, "links");
    assert_eq!(warnings.len(), 1, "{output}");
    let said = "1 symbolic link in the data is broken (first: ";
    assert!(warnings[0].starts_with(said), "{output}");
    let help = home.host(&["run", "--help"]).succeeded();
    assert!(help.stdout.contains("links are followed"), "{help}");
}

#[test]
fn the_folder_of_a_configuration_is_not_a_pattern() {
    let home = Home::new();
    for folder in ["p[1]", "p1"] {
        fs::create_dir(home.path(folder)).expect("made");
    }
    for n in 0..3 {
        let text = fs::read(home.path("data/00.rs")).expect("read");
        fs::write(home.path(&format!("p[1]/{n}.rs")), text).expect("written");
    }
    fs::write(home.path("p1/other.rs"), "other").expect("written");
    let tiny = fs::read_to_string(home.path("tiny.toml")).expect("read");
    let own = tiny
        .replace("data = \"data\"", "data = [\"*.rs\"]")
        .replace("max_train_steps = 20", "max_train_steps = 2")
        .replace("runs_dir = \"runs\"", "runs_dir = \"../runs\"");
    fs::write(home.path("p[1]/c.toml"), own).expect("written");
    let output = home
        .host(&["run", "p[1]/c.toml", "--name", "pattern"])
        .succeeded();
    assert_eq!(trained_on(&output.stderr), "2", "{output}");
}

#[test]
fn a_run_skips_empty_shards_and_reads_what_python_writes() {
    let home = Home::new();
    fs::create_dir(home.path("shards")).expect("made");
    let put = |name: &str, bytes: &[u8]| {
        fs::write(home.path("shards").join(name), bytes).expect("written");
    };
    put("0.jsonl.gz", &EMPTY_GZIP);
    put("1.jsonl", b"\xef\xbb\xbf\r\n");
    let records: String = (0..40).map(record).collect();
    let records = records.replace("{\"content\"", "{\"score\": NaN, \"content\"");
    put(
        "2.jsonl",
        format!("\u{feff}{}", records.replace('\n', "\r\n")).as_bytes(),
    );
    put("3.jsonl", records.as_bytes());
    let more = ["--data", "shards", "--max-train-steps", "3"];
    let output = home.train("shards", &more).succeeded();
    assert_eq!(trained_on(&output.stderr), "1", "{output}");
    assert_eq!(warnings(&home, "shards"), Vec::<String>::new(), "{output}");
}

#[test]
fn three_records_or_one_text_can_be_split_but_not_one_record() {
    let home = Home::new();
    let steps = ["--max-train-steps", "3"];
    fs::write(
        home.path("three.jsonl"),
        (0..3).map(record).collect::<String>(),
    )
    .expect("written");
    let three = [&["--data", "three.jsonl"][..], &steps].concat();
    home.train("three", &three).succeeded();
    let text: String = (0..40)
        .map(|n| fs::read_to_string(home.path(&format!("data/{n:02}.rs"))).expect("read"))
        .collect();
    fs::write(home.path("one.rs"), text).expect("written");
    home.train("text", &[&["--data", "one.rs"][..], &steps].concat())
        .succeeded();
    fs::write(home.path("one.jsonl"), record(1)).expect("written");
    let refused = home.train("one", &[&["--data", "one.jsonl"][..], &steps].concat());
    let (error, hint) = refused.failed_with(2);
    assert!(error.contains("they are all identical"), "{error}");
    assert!(hint.contains("--valid-data"), "{hint}");
}

#[test]
fn a_resume_refuses_a_file_that_was_edited_in_place() {
    let home = Home::new();
    let more = ["--max-train-steps", "5", "--save-checkpoint-steps", "5"];
    let valid = fs::read(home.path("data/39.rs")).expect("read");
    fs::write(home.path("valid.rs"), &valid).expect("written");
    let valid_data = ["--valid-data", "valid.rs"];
    home.train("edited", &[&more[..], &valid_data].concat())
        .succeeded();
    let resume = ["resume", "edited", "--max-train-steps", "10"];
    for (name, what) in [("data/07.rs", "training"), ("valid.rs", "evaluation")] {
        let good = fs::read(home.path(name)).expect("read");
        let mut other = good.clone();
        let middle = other.len() / 2;
        other[middle] = if other[middle] == b'x' { b'y' } else { b'x' };
        fs::write(home.path(name), other).expect("written");
        let refused = home.host(&resume);
        let (error, hint) = refused.failed_with(2);
        let expected = format!(
            "the {what} data has changed since the checkpoint was written: a file has different content: {}",
            home.text_path(name)
        );
        assert_eq!(error, expected);
        assert!(hint.contains("restore the files"), "{hint}");
        fs::write(home.path(name), good).expect("written");
    }
    home.host(&resume).succeeded();
}

#[test]
fn an_unreadable_folder_is_a_warning_unless_it_is_excluded() {
    let home = Home::new();
    // Even root cannot open a path of more than 4096 bytes. The path is assembled from two shorter ones.
    let name = "d".repeat(200);
    let chain = |top: &str| (0..11).fold(home.path(top), |path, _| path.join(&name));
    let (upper, lower) = (chain("data"), chain("elsewhere"));
    for part in [&upper, &lower] {
        fs::create_dir_all(part).expect("made");
    }
    fs::rename(home.path("elsewhere").join(&name), upper.join(&name)).expect("moved");
    let more = ["--max-train-steps", "3"];
    let output = home.train("warned", &more).succeeded();
    let said = warnings(&home, "warned");
    assert_eq!(said.len(), 1, "{output}");
    assert!(
        said[0].starts_with("1 folder of the data cannot be read"),
        "{output}"
    );
    let more = [&more[..], &["--exclude", "ddd*", "--exclude", "0?.rs"]].concat();
    let output = home.train("excluded", &more).succeeded();
    assert_eq!(
        warnings(&home, "excluded"),
        Vec::<String>::new(),
        "{output}"
    );
    let files: usize = trained_on(&output.stderr).parse().expect("a number");
    assert!(files < 30, "{output}");
}
