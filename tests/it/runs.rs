//! The store from the shell: what differs between runs, a run in other programs' formats, and how the
//! machine did meanwhile.

use std::fs;

use host_store::Reader;
use serde_json::json;

use crate::support::Home;

#[test]
fn runs_side_by_side_differ_in_what_was_changed() {
    let home = Home::new();
    home.train("a", &[]).succeeded();
    home.train("b", &["--seed", "7", "--max-train-steps", "10"])
        .succeeded();
    let compared = home.host(&["runs", "compare", "a", "b", "--json", "--points", "3"]);
    let compared = compared.succeeded().json();
    assert_eq!(compared["config"]["seed"], json!([1, 7]));
    assert_eq!(compared["config"]["max_train_steps"], json!([20, 10]));
    assert_eq!(
        compared["config"].as_object().expect("an object").len(),
        2,
        "{compared}"
    );
    let metrics = compared["metrics"].as_array().expect("metrics");
    let loss = metrics
        .iter()
        .find(|metric| metric["name"] == "loss/train")
        .expect("a loss");
    assert_eq!(loss["steps"], json!([1, 5, 10]));
    for (run, index) in [("a", 0), ("b", 1)] {
        let reader = Reader::open(&home.run_dir(run)).expect("a run");
        let history = reader
            .history("loss/train", 1000)
            .expect("readable")
            .expect("points");
        let values: Vec<f64> = [0, 4, 9].map(|at: usize| history[at].value).to_vec();
        assert_eq!(loss["runs"][index]["values"], json!(values), "{run}");
        let lowest = history
            .iter()
            .map(|point| point.value)
            .fold(f64::INFINITY, f64::min);
        assert_eq!(
            loss["runs"][index]["lowest"]["value"],
            json!(lowest),
            "{run}"
        );
    }

    let text = home.host(&["runs", "compare", "a", "b"]).succeeded().stdout;
    let line = |start: &str| {
        text.lines()
            .find(|line| line.starts_with(start))
            .map(str::to_owned)
    };
    assert_eq!(
        line("  seed").as_deref(),
        Some("  seed             a    1"),
        "{text}"
    );
    assert!(
        line("  loss/train ").expect("a metric").contains(" @10  "),
        "{text}"
    );
    assert!(!text.contains("plugin/"), "{text}");

    let unknown = home.host(&["runs", "compare", "a", "b", "--metrics", "loss/trian"]);
    let (error, hint) = unknown.failed_with(2);
    assert_eq!(error, "no run of these has the metric \"loss/trian\"");
    assert_eq!(hint, "did you mean loss/train?");
}

#[test]
fn a_run_is_exported_in_every_format_and_never_over_another_file() {
    let home = Home::new();
    home.train("run", &[]).succeeded();
    let reader = Reader::open(&home.run_dir("run")).expect("a run");
    let points: u64 = reader
        .series()
        .expect("readable")
        .iter()
        .map(|series| series.count)
        .sum();
    for format in ["csv", "parquet", "tensorboard"] {
        let export = ["runs", "export", "run", "--json", "--format", format];
        let exported = home.host(&export).succeeded().json();
        assert_eq!(exported["points"], json!(points), "{format}");
        let path = exported["path"].as_str().expect("a path").to_owned();
        let first = fs::read(home.path(&path)).expect("a file");
        let again = home.host(&export);
        let (error, _) = again.failed_with(2);
        assert!(error.starts_with("there is a file already"), "{error}");
        assert!(error.ends_with(&path), "{error}");
        assert_eq!(fs::read(home.path(&path)).expect("a file"), first);
    }
    let csv = fs::read_to_string(home.path("run.csv")).expect("a file");
    assert_eq!(csv.lines().count() as u64, 1 + points);

    let asked = ["--metrics", "loss/train,lr", "--out", "some.csv"];
    let some = home
        .host(&[&["runs", "export", "run"], &asked[..]].concat())
        .succeeded();
    assert_eq!(some.stdout, "40 points of 2 metrics: some.csv\n");
    let unknown = home.host(&["runs", "export", "run", "--metrics", "los/train"]);
    assert_eq!(unknown.failed_with(2).1, "did you mean loss/train?");
    let nowhere = home.host(&["runs", "export", "run", "--out", "no/such/folder/run.csv"]);
    let (error, _) = nowhere.failed_with(2);
    assert!(error.ends_with(": no/such/folder"), "{error}");
}

#[test]
fn the_machine_is_looked_at_at_most_once_a_step_and_not_at_all_if_told_so() {
    let home = Home::new();
    let flags = [
        "--system-metrics-secs",
        "1",
        "--max-train-steps",
        "1000000",
        "--json",
    ];
    let run = home.start_training("run", &flags);
    let looks = |event: &serde_json::Value| event["values"].get("system/memory_bytes").is_some();
    let first = run.event(looks);
    let second = run.event(|event| looks(event) && event["step"].as_u64() > first["step"].as_u64());
    run.interrupt();
    run.output().ended_with(130);
    for name in [
        "system/cpu_percent",
        "system/process_cpu_percent",
        "system/disk_free_bytes",
    ] {
        assert!(
            second["values"][name]
                .as_f64()
                .is_some_and(|value| value > 0.0),
            "{second}"
        );
    }
    // As it goes on, none of its steps has a second value.
    let resumed = home.host(&["resume", "run", "--max-train-steps", "1"]);
    assert_eq!(
        resumed.failed_with(2).1.split(' ').next(),
        Some("--max-train-steps")
    );
    let reader = Reader::open(&home.run_dir("run")).expect("a run");
    let history = reader
        .history("system/memory_bytes", 1000)
        .expect("readable");
    let history = history.expect("points");
    assert!(history.is_sorted_by(|a, b| a.step < b.step), "{history:?}");

    home.train("quiet", &[]).succeeded();
    let reader = Reader::open(&home.run_dir("quiet")).expect("a run");
    let series = reader.series().expect("readable");
    assert!(
        !series
            .iter()
            .any(|series| series.name.starts_with("system/"))
    );
}

#[test]
fn no_name_of_a_run_leaves_the_folder_of_the_runs() {
    let home = Home::new();
    for name in ["../out", "a/b", "..", "/tmp/out"] {
        let refused = home.train(name, &[]);
        let (error, hint) = refused.failed_with(2);
        assert_eq!(error, format!("{name:?} cannot name a run"));
        assert!(hint.contains("letters, digits"), "{hint}");
    }
    assert!(!home.path("runs").exists() && !home.path("out").exists());
}
