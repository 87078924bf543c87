//! `host runs` and `host watch`: comparing, exporting, listing and watching runs.

use std::fs;

use host_serve::Client;
use host_store::Reader;
use serde_json::json;

use crate::support::{Home, files_of};

#[test]
fn compared_runs_differ_in_the_changed_settings() {
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
    assert_eq!(error, "unknown metric: \"loss/trian\"");
    assert_eq!(hint, "did you mean loss/train?");
}

#[test]
fn a_run_is_exported_in_every_format_and_never_overwrites_a_file() {
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
        assert!(error.starts_with("the file already exists"), "{error}");
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
fn system_metrics_are_recorded_at_most_once_a_step_and_can_be_turned_off() {
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
    // A rejected resume adds no values, and no step has a second value.
    let resumed = home.host(&["resume", "run", "--max-train-steps", "1"]);
    let (error, hint) = resumed.failed_with(2);
    assert!(hint.contains("--max-train-steps"), "{error} {hint}");
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
fn a_run_name_cannot_lead_out_of_the_runs_folder() {
    let home = Home::new();
    for name in ["../out", "a/b", "..", "/tmp/out"] {
        let refused = home.train(name, &[]);
        let (error, hint) = refused.failed_with(2);
        assert_eq!(error, format!("invalid run name: {name:?}"));
        assert!(hint.contains("letters, digits"), "{hint}");
    }
    assert!(!home.path("runs").exists() && !home.path("out").exists());
}

#[test]
fn an_export_of_a_single_file_can_be_written_to_stdout() {
    let home = Home::new();
    home.train("run", &[]).succeeded();
    home.host(&["runs", "export", "run"]).succeeded();
    let whole = fs::read(home.path("run.csv")).expect("a file");
    let to_stdout = |more: &[&str]| {
        let args = [&["runs", "export", "run", "--out", "-"], more].concat();
        home.command(&args).output().expect("started")
    };
    let csv = to_stdout(&[]);
    assert!(csv.status.success(), "{csv:?}");
    assert!(csv.stdout == whole);
    let said = String::from_utf8(csv.stderr).expect("text");
    assert!(said.contains(" points of "), "{said}");

    home.host(&["runs", "export", "run", "--format", "parquet"])
        .succeeded();
    let parquet = to_stdout(&["--format", "parquet"]);
    assert!(parquet.stdout == fs::read(home.path("run.parquet")).expect("a file"));
    for (more, message) in [
        (
            &["--format", "tensorboard"][..],
            "a tensorboard export is a folder and cannot be written to stdout",
        ),
        (&["--json"], "--json and --out - both write to stdout"),
    ] {
        let args = [&["runs", "export", "run", "--out", "-"], more].concat();
        let refused = home.host(&args);
        assert_eq!(refused.failed_with(2).0, message);
        assert_eq!(refused.stdout, "");
    }
    assert!(!home.path("-").exists());
}

#[test]
fn a_copied_or_moved_run_is_named_after_its_folder() {
    let home = Home::new();
    let sink = format!("local-disk:dir={}", home.text_path("kept"));
    home.train("a", &["--plugin", &sink, "--max-train-steps", "10"])
        .succeeded();
    copy(&home.run_dir("a"), &home.run_dir("a-backup"));
    copy(&home.run_dir("a"), &home.path("elsewhere/moved"));
    copy(&home.run_dir("a"), &home.run_dir("a (copy)"));
    let original = files_of(&home.run_dir("a"));

    let listed = home.host(&["runs", "list", "--json"]).succeeded().json();
    let names: Vec<&str> = listed
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|run| run["name"].as_str())
        .collect();
    assert_eq!(names, ["a", "a-backup"]);
    let listed = home.host(&["runs", "list"]).succeeded();
    assert!(
        listed
            .stderr
            .contains("\"a (copy)\" is not a valid run name"),
        "{listed}"
    );
    let text = listed.stdout;
    assert!(
        text.lines()
            .any(|line| line.starts_with("a-backup  completed")),
        "{text}"
    );
    for (run, name, runs_dir) in [
        ("a-backup", "a-backup", "runs"),
        ("runs/a-backup", "a-backup", "runs"),
        ("elsewhere/moved", "moved", "elsewhere"),
    ] {
        let shown = home
            .host(&["runs", "show", run, "--json"])
            .succeeded()
            .json();
        assert_eq!(
            [&shown["name"], &shown["config"]["name"]],
            [name, name],
            "{run}"
        );
        let runs_dir = fs::canonicalize(home.path(runs_dir)).expect("a folder");
        assert_eq!(shown["config"]["runs_dir"], json!(runs_dir), "{run}");
        let text = home.host(&["runs", "show", run]).succeeded().stdout;
        assert!(text.starts_with(&format!("{name}  completed")), "{text}");
    }
    let compared = home
        .host(&["runs", "compare", "a", "a-backup", "--json"])
        .succeeded()
        .json();
    assert_eq!(compared["runs"][1]["name"], "a-backup");
    assert_eq!(compared["config"], json!({}));
    let exported = home
        .host(&["runs", "export", "a-backup", "--json"])
        .succeeded()
        .json();
    assert_eq!(exported["path"], "a-backup.csv");
    let watched = home
        .host(&["watch", "a-backup", "--plain"])
        .succeeded()
        .stdout;
    assert!(
        watched.starts_with("run a-backup at step 10\n"),
        "{watched}"
    );

    let serve = home.start(&["serve"]);
    let line = serve.printed("gRPC at ");
    let address = line.trim_start_matches("gRPC at ").split(": ").next();
    let client = Client::connect(address.expect("an address")).expect("connected");
    let runs = client.runs().expect("runs");
    let names: Vec<String> = runs
        .into_iter()
        .map(|(_, row)| row.expect("a row").name)
        .collect();
    assert_eq!(names, ["a", "a-backup"]);
    let row = client.run("a-backup").expect("a run");
    let config: serde_json::Value = serde_json::from_str(&row.config_json).expect("JSON");
    assert_eq!(
        [json!(row.name), config["name"].clone()],
        ["a-backup", "a-backup"]
    );

    // The copy is resumed under its own name, and the original does not change.
    let resumed = home.host(&[
        "resume",
        "elsewhere/moved",
        "--max-train-steps",
        "12",
        "--json",
    ]);
    let resumed = resumed.succeeded().objects();
    assert_eq!(resumed[0]["name"], "moved");
    let file = fs::read_to_string(home.path("elsewhere/moved/run.toml")).expect("text");
    let file: toml::Table = file.parse().expect("TOML");
    assert_eq!(file["name"].as_str(), Some("moved"));
    let elsewhere = fs::canonicalize(home.path("elsewhere")).expect("a folder");
    assert_eq!(file["runs_dir"].as_str(), elsewhere.to_str());
    assert!(home.path("kept/moved/step-000012").is_dir());
    home.host(&["deliver", "a-backup"]).succeeded();
    assert_eq!(files_of(&home.run_dir("a")), original);
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    fs::create_dir_all(to).expect("made");
    for entry in fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(fs::copy(entry.path(), target).expect("copied")),
        }
    }
}

#[test]
fn a_paused_run_is_listed_as_paused_until_it_continues() {
    let home = Home::new();
    let run = home.start_training("run", &["--max-train-steps", "1000000", "--json"]);
    run.event(|event| event["kind"] == "run_started");
    let status = || {
        let listed = home.host(&["runs", "list", "--json"]).succeeded().json();
        let shown = home.host(&["runs", "show", "run"]).succeeded().stdout;
        let status = listed[0]["status"].as_str().expect("text").to_owned();
        assert!(
            shown.starts_with(&format!("run  {status} at step ")),
            "{shown}"
        );
        status
    };
    assert_eq!(status(), "running");
    home.host(&["control", "run", "pause"]).succeeded();
    assert_eq!(status(), "paused");
    home.host(&["control", "run", "checkpoint"]).succeeded();
    assert_eq!(status(), "paused");
    home.host(&["control", "run", "continue"]).succeeded();
    assert_eq!(status(), "running");
    home.host(&["control", "run", "pause"]).succeeded();
    run.kill();
    run.output();
    assert_eq!(status(), "crashed");
    // The pause request to the killed process does not affect the new process.
    let resumed = home.start(&["resume", "run", "--json"]);
    resumed.event(|event| event["kind"] == "run_started");
    assert_eq!(status(), "running");
    resumed.terminate();
    resumed.output().ended_with(143);
}

#[test]
fn watch_prints_lines_of_live_and_finished_runs_until_stdout_is_closed() {
    let home = Home::new();
    home.train("over", &["--plugin", "perplexity"]).succeeded();
    let count = Reader::open(&home.run_dir("over")).and_then(|reader| reader.last_seq());
    let count = count.expect("a run");
    let seqs = |args: &[&str]| {
        let watched = home
            .host(&[&["watch", "over", "--json"], args].concat())
            .succeeded();
        let seqs = watched
            .objects()
            .into_iter()
            .map(|event| event["seq"].as_u64());
        seqs.map(|seq| seq.expect("a number")).collect::<Vec<_>>()
    };
    assert_eq!(seqs(&[]), (1..=count).collect::<Vec<_>>());
    assert_eq!(seqs(&["--after", "5"]), (6..=count).collect::<Vec<_>>());
    let plain = home.host(&["watch", "over", "--plain"]).succeeded();
    assert!(
        plain.stdout.ends_with("step 20      completed\n"),
        "{plain}"
    );
    assert!(
        plain.stdout.contains("\nstep 20      loss/eval "),
        "{plain}"
    );
    assert_eq!(plain.stderr, "");

    let run = home.start_training("live", &["--max-train-steps", "1000000", "--json"]);
    let opened = run.event(|event| event["kind"] == "run");
    let address = opened["listen"].as_str().expect("an address").to_owned();
    run.event(|event| event["kind"] == "checkpoint_written");
    home.host(&["control", "live", "pause"]).succeeded();
    let script = format!(r#""$0" watch {address} --run live | head -1"#);
    for script in [&script, r#""$0" watch live --json | head -1"#] {
        let host = home.command(&[]);
        let mut shell = std::process::Command::new("bash");
        shell
            .args(["-o", "pipefail", "-c", script])
            .arg(host.get_program());
        shell.env_clear().current_dir(home.path(""));
        shell.envs(
            host.get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        );
        // A paused run has no more events: `host watch` must notice the closed pipe itself.
        let output = crate::support::Process::start(&mut shell)
            .output()
            .succeeded();
        assert_eq!(output.stdout.lines().count(), 1, "{output}");
    }
    let watch = home.start(&["watch", &address, "--run", "live"]);
    watch.printed("checkpoint step-000005: ");
    watch.printed("requested a pause");
    run.terminate();
    run.output().ended_with(143);
    let watched = watch.output().succeeded();
    assert!(watched.stdout.ends_with(" terminated\n"), "{watched}");
    assert_eq!(watched.stderr, "");

    let serve = home.start(&["serve"]);
    let line = serve.printed("gRPC at ");
    let address = line.trim_start_matches("gRPC at ").split(": ").next();
    let watched = home.host(&["watch", address.expect("an address")]);
    let (error, hint) = watched.failed_with(2);
    assert!(error.contains("several runs"), "{error}");
    assert_eq!(hint, "add --run NAME; the server has live, over");
}

#[test]
fn run_toml_records_the_values_that_are_used() {
    let home = Home::new();
    let text = fs::read_to_string(home.path("tiny.toml")).expect("text");
    let open: Vec<&str> = text
        .lines()
        .filter(|line| !line.starts_with("device") && !line.starts_with("threads"))
        .collect();
    fs::write(home.path("open.toml"), open.join("\n")).expect("written");
    home.host(&[
        "run",
        "open.toml",
        "--name",
        "run",
        "--max-train-steps",
        "5",
    ])
    .succeeded();
    let file = fs::read_to_string(home.run_dir("run").join("run.toml")).expect("text");
    let file: toml::Table = file.parse().expect("TOML");
    let device = file["device"].as_str().expect("text");
    assert!(device == "cpu" || device.starts_with("cuda:"), "{device}");
    let cores = std::thread::available_parallelism()
        .expect("a number")
        .get();
    assert_eq!(file["threads"].as_integer(), i64::try_from(cores).ok());
    assert!(file["data_workers"].as_integer() > Some(0));
    let data = home.text_path("data");
    assert_eq!(file["data"][0].as_str(), Some(&*data));
    assert!(file["runs_dir"].as_str().expect("text").starts_with('/'));

    let resumed = ["resume", "run", "--max-train-steps", "6", "--threads", "1"];
    home.host(&resumed).succeeded();
    let file = fs::read_to_string(home.run_dir("run").join("run.toml")).expect("text");
    let file: toml::Table = file.parse().expect("TOML");
    assert_eq!(file["threads"].as_integer(), Some(1));
}
