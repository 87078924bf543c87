//! `host deliver`: checkpoints that a run left undelivered are delivered later, each exactly once.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::{Value, json};

use crate::support::{Fixture, Home, bare_repository, files_of, git, kill_at};

const STEPS: [u64; 4] = [5, 10, 15, 20];

/// Returns the subjects of a branch's commits, oldest first.
fn pushed(remote: &Path, branch: &str) -> Vec<String> {
    let log = git(remote, &["log", "--reverse", "--format=%s", branch]);
    log.lines().map(str::to_owned).collect()
}

fn show(home: &Home, run: &str) -> Value {
    home.host(&["runs", "show", run, "--json"])
        .succeeded()
        .json()
}

fn count_of(home: &Home, run: &str, state: &str) -> usize {
    let shown = show(home, run);
    let deliveries = shown["deliveries"].as_array().expect("a list");
    deliveries.iter().filter(|d| d["state"] == state).count()
}

#[test]
fn checkpoints_that_an_unreachable_remote_missed_are_pushed_later() {
    let home = Home::new();
    let remote = bare_repository(&home);
    let sink = format!("hub-git:repo=file://{}", remote.display());
    let away = home.path("away.git");
    fs::rename(&remote, &away).expect("moved");
    let plugins = ["--plugin", "perplexity", "--plugin", &sink];
    let output = home.train("missed", &[&plugins[..], &["--preflight", "warn"]].concat());
    let (error, hint) = output.failed_with(4);
    assert_eq!(error, "checkpoints did not reach hub-git");
    assert!(
        hint.contains("run `host deliver missed` to retry"),
        "{hint}"
    );
    assert!(output.stdout.contains("next"), "{output}");
    assert!(output.stdout.contains("host deliver missed"), "{output}");
    let before = show(&home, "missed");
    assert_eq!(before["sinks"][0]["sink"], "hub-git");
    assert_eq!(before["sinks"][0]["last_delivered"], Value::Null);

    // The remote is still unreachable.
    let args = ["deliver", "missed"];
    home.host(&args).failed_with(4);

    fs::rename(&away, &remote).expect("moved");
    let output = home.host(&["deliver", "missed", "--json"]).succeeded();
    let delivered: Vec<Value> = output
        .events()
        .into_iter()
        .filter(|event| event["state"] == "delivered")
        .map(|event| event["checkpoint"].clone())
        .collect();
    assert_eq!(delivered, STEPS);
    let expected = STEPS.map(|step| format!("step {step}"));
    assert_eq!(pushed(&remote, "missed"), expected);
    let card = git(&remote, &["show", "missed:README.md"]);
    assert!(card.contains("perplexity"), "{card}");

    let again = home.host(&args).succeeded();
    assert_eq!(again.stdout, "nothing is left to deliver\n");
    assert_eq!(pushed(&remote, "missed"), expected);

    // The record of how the run ended does not change.
    let after = show(&home, "missed");
    for field in ["status", "last_step", "generation"] {
        assert_eq!(before[field], after[field], "{field}");
    }
    let sink = json!({
        "sink": "hub-git", "delivered": 4, "dropped": 0, "last_delivered": 20, "left": []
    });
    assert_eq!(after["sinks"], json!([sink]));
}

#[test]
fn the_checkpoints_of_a_killed_run_are_delivered_once() {
    let home = Home::new();
    let kept = home.text_path("kept");
    let sink = format!("local-disk:dir={kept},mode=in_process");
    let preload = kill_at(&home.path("")).display().to_string();
    let moment = "write /step-000010.partial/model.safetensors";
    let env = [("LD_PRELOAD", &*preload), ("KILL_AT", moment)];
    let run = ["run", "tiny.toml", "--name", "killed", "--plugin", &sink];
    let output = home.host_with(&env, &run);
    assert_eq!(output.signal(), Some(9), "{output}");

    let standing = home.checkpoints("killed");
    home.host(&["deliver", "killed"]).succeeded();
    for step in &standing {
        let copy = files_of(&home.path("kept/killed").join(format!("step-{step:06}")));
        assert_eq!(copy, files_of(&home.checkpoint("killed", *step)));
    }
    assert_eq!(count_of(&home, "killed", "delivered"), standing.len());
    assert_eq!(show(&home, "killed")["status"], "crashed");
    let again = home.host(&["deliver", "killed"]).succeeded();
    assert_eq!(again.stdout, "nothing is left to deliver\n");
    assert_eq!(count_of(&home, "killed", "delivered"), standing.len());
}

#[test]
fn an_added_sink_gets_all_checkpoints_and_a_removed_one_is_named() {
    let home = Home::new();
    let waiting = Fixture::sink("waiting").build(&home.path(""));
    let waiting = format!("{}:how=publish", waiting.display());
    home.train("changed", &["--plugin", &waiting])
        .failed_with(4);
    let file = home.run_dir("changed").join("run.toml");
    let text = fs::read_to_string(&file).expect("a file");
    let mut config: toml::Table = text.parse().expect("TOML");
    let plugins = config["plugin"].as_array_mut().expect("plugins");
    plugins.retain(|plugin| plugin.get("path").is_none());
    let added = json!({ "id": "local-disk", "dir": home.text_path("kept") });
    plugins.push(toml::Value::try_from(added).expect("TOML"));
    fs::write(&file, config.to_string()).expect("written");

    let output = home.host(&["deliver", "changed"]).succeeded();
    let removed = "waiting is no longer a sink of this run and did not receive step 5, 10, 15, 20";
    assert!(output.stderr.contains(removed), "{output}");
    for step in STEPS {
        let copy = home.path("kept/changed").join(format!("step-{step:06}"));
        assert_eq!(files_of(&copy), files_of(&home.checkpoint("changed", step)));
    }
}

/// Edits a run's `run.toml`.
fn edit_run_file(home: &Home, run: &str, edit: impl FnOnce(&mut toml::Table)) {
    let file = home.run_dir(run).join("run.toml");
    let text = fs::read_to_string(&file).expect("a file");
    let mut config: toml::Table = text.parse().expect("TOML");
    edit(&mut config);
    fs::write(&file, config.to_string()).expect("written");
}

/// Sets the setting `how` of the fixture sink.
fn told(config: &mut toml::Table, how: &str) {
    let plugins = config["plugin"].as_array_mut().expect("plugins");
    let sink = plugins
        .iter_mut()
        .find(|plugin| plugin.get("path").is_some());
    let sink = sink.and_then(toml::Value::as_table_mut);
    sink.expect("the sink").insert("how".to_owned(), how.into());
}

#[test]
fn undelivered_checkpoints_are_not_pruned_after_any_kind_of_failure() {
    let home = Home::new();
    let sink = Fixture::sink("needy").build(&home.path(""));
    for (run, how) in [
        ("refused", "how=publish"),
        ("disabled", "how=publish,on_error=disable_after=1"),
        ("crashing", "how=segfault,mode=process"),
        ("poisoned", "how=panic"),
    ] {
        let sink = format!("{}:{how}", sink.display());
        let keep = ["--keep-checkpoints", "1", "--plugin", &sink];
        let output = home.train(run, &keep);
        let (error, _) = output.failed_with(4);
        assert_eq!(error, "checkpoints did not reach needy", "{run}");
        assert_eq!(home.checkpoints(run), STEPS, "{run}");
        let shown = show(&home, run);
        let left = shown["sinks"][0]["left"].as_array().expect("a list");
        assert_eq!(left.len(), 4, "{run}: {left:?}");
        assert!(left.iter().all(|left| left["stands"] == true), "{left:?}");

        edit_run_file(&home, run, |config| told(config, "deliver"));
        home.host(&["deliver", run]).succeeded();
        assert_eq!(count_of(&home, run, "delivered"), 4, "{run}");
        assert_eq!(show(&home, run)["sinks"][0]["left"], json!([]), "{run}");
    }
}

#[test]
fn a_token_that_expires_during_the_run_loses_no_checkpoint() {
    let home = Home::new();
    let remote = bare_repository(&home);
    // The remote accepts the first push and no more, as if the token had expired.
    let hook = "#!/bin/sh\n[ -z \"$(git for-each-ref)\" ] || { echo expired >&2; exit 1; }\n";
    let file = remote.join("hooks/pre-receive");
    fs::create_dir_all(remote.join("hooks")).expect("made");
    fs::write(&file, hook).expect("written");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).expect("executable");
    let sink = format!("hub-git:repo=file://{}", remote.display());
    let keep = ["--keep-checkpoints", "1", "--plugin", &sink];
    home.train("expired", &keep).failed_with(4);
    assert_eq!(pushed(&remote, "expired"), ["step 5"]);
    let standing = home.checkpoints("expired");
    assert!(standing.ends_with(&[10, 15, 20]), "{standing:?}");

    fs::remove_file(file).expect("removed");
    home.host(&["deliver", "expired"]).succeeded();
    assert_eq!(
        pushed(&remote, "expired"),
        STEPS.map(|step| format!("step {step}"))
    );
}

#[test]
fn checkpoints_that_a_removed_sink_lacks_stay_until_it_is_added_again() {
    let home = Home::new();
    let sink = Fixture::sink("needy").build(&home.path(""));
    let sink = format!("{}:how=publish", sink.display());
    let keep = ["--keep-checkpoints", "1", "--plugin", &sink];
    home.train("run", &keep).failed_with(4);
    let mut plugins = toml::Value::Array(Vec::new());
    edit_run_file(&home, "run", |config| {
        let all = config["plugin"].as_array_mut().expect("plugins");
        let others = all.iter().filter(|plugin| plugin.get("path").is_none());
        let others = toml::Value::Array(others.cloned().collect());
        plugins = config.insert("plugin".to_owned(), others).expect("plugins");
    });
    home.host(&["resume", "run", "--max-train-steps", "30"])
        .succeeded();
    assert_eq!(home.checkpoints("run"), [5, 10, 15, 20, 30]);
    edit_run_file(&home, "run", |config| {
        config.insert("plugin".to_owned(), plugins);
        told(config, "deliver");
    });
    home.host(&["deliver", "run"]).succeeded();
    assert_eq!(count_of(&home, "run", "delivered"), 5);
}

#[test]
fn with_queue_latest_no_older_checkpoint_stays() {
    let home = Home::new();
    let sink = Fixture::sink("needy").build(&home.path(""));
    let sink = format!("{}:how=publish,queue=latest", sink.display());
    let keep = ["--keep-checkpoints", "1", "--plugin", &sink];
    home.train("run", &keep).failed_with(4);
    // Checkpoint 15 was kept only if it was being delivered when checkpoint 20 was written.
    let standing = home.checkpoints("run");
    assert!(matches!(standing[..], [20] | [15, 20]), "{standing:?}");
    let shown = show(&home, "run");
    assert_eq!(shown["sinks"][0]["dropped"], 3);
    assert_eq!(shown["sinks"][0]["left"][0]["checkpoint"], 20);
}

#[test]
fn removed_checkpoints_are_not_promised_to_be_delivered() {
    let home = Home::new();
    let sink = Fixture::sink("needy").build(&home.path(""));
    let sink = format!("{}:how=publish", sink.display());
    home.train("run", &["--plugin", &sink]).failed_with(4);
    for step in [5, 10, 15, 20] {
        fs::remove_dir_all(home.checkpoint("run", step)).expect("removed");
    }
    let text = home.host(&["runs", "show", "run"]).succeeded().stdout;
    let gone = "step 5 was not delivered, and is no longer in the run folder";
    assert!(text.contains(gone), "{text}");
    assert!(!text.contains("to deliver the rest"), "{text}");
    let output = home.host(&["deliver", "run"]);
    let (_, hint) = output.failed_with(4);
    assert!(hint.contains("cannot be delivered"), "{hint}");
    let again = home.host(&["deliver", "run"]).succeeded();
    let said = "needy did not receive step 5, 10, 15, 20, which the run folder no longer has";
    assert!(again.stderr.contains(said), "{again}");
    let shown = show(&home, "run");
    assert_eq!(shown["sinks"][0]["left"], json!([]));
    assert_eq!(shown["sinks"][0]["dropped"], 4);
}

#[test]
fn a_missing_checkpoint_is_reported_once() {
    let home = Home::new();
    let waiting = Fixture::sink("waiting").build(&home.path(""));
    let waiting = format!("{}:how=wait", waiting.display());
    let run = home.start_training("gone", &["--plugin", &waiting]);
    run.said("waiting for waiting (4 checkpoints)");

    // A live run makes its own deliveries.
    let output = home.host(&["deliver", "gone"]);
    let (error, _) = output.failed_with(2);
    let owner = format!("process {} is writing to this run", run.id());
    assert!(error.starts_with(&owner), "{error}");

    run.kill();
    assert_eq!(run.output().signal(), Some(9));
    home.wait_for_no_child();
    for step in STEPS {
        fs::remove_dir_all(home.checkpoint("gone", step)).expect("removed");
    }
    let output = home.host(&["deliver", "gone"]);
    output.failed_with(4);
    let reason = "step 5, 10, 15, 20: its folder is missing from the run folder";
    assert!(output.stdout.contains(reason), "{output}");
    let again = home.host(&["deliver", "gone"]).succeeded();
    assert_eq!(again.stdout, "nothing is left to deliver\n");
}

#[test]
fn a_timeout_or_ctrl_c_ends_deliver_and_leaves_the_rest() {
    let home = Home::new();
    let waiting = Fixture::sink("waiting").build(&home.path(""));
    let waiting = format!("{}:how=wait", waiting.display());
    let run = home.start_training("patient", &["--plugin", &waiting]);
    run.said("waiting for waiting (4 checkpoints)");
    run.interrupt();
    run.output().failed_with(4);

    let output = home.host(&["deliver", "patient", "--timeout", "1"]);
    output.failed_with(4);
    let deliver = home.start(&["deliver", "patient", "--json"]);
    deliver.event(|event| event["state"] == "sending");
    deliver.interrupt();
    deliver.output().ended_with(130);
    assert_eq!(show(&home, "patient")["status"], "completed");
    assert_eq!(
        show(&home, "patient")["sinks"][0]["left"]
            .as_array()
            .map(Vec::len),
        Some(4)
    );
}
