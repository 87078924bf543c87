//! What a run leaves undelivered is delivered afterwards, once.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::support::{Fixture, Home, bare_repository, files_of, git, kill_at};

const STEPS: [u64; 4] = [5, 10, 15, 20];

/// The subjects of a branch's commits, oldest first.
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
fn what_a_remote_that_was_away_missed_is_pushed_later() {
    let home = Home::new();
    let remote = bare_repository(&home);
    let sink = format!("hub-git:repo=file://{}", remote.display());
    let away = home.path("away.git");
    fs::rename(&remote, &away).expect("moved");
    let plugins = ["--plugin", "perplexity", "--plugin", &sink];
    let output = home.train("missed", &[&plugins[..], &["--preflight", "warn"]].concat());
    let (error, hint) = output.failed_with(4);
    assert_eq!(error, "checkpoints did not reach hub-git");
    assert!(hint.contains("`host deliver missed` tries again"), "{hint}");
    assert!(output.stdout.contains("next"), "{output}");
    assert!(output.stdout.contains("host deliver missed"), "{output}");
    let before = show(&home, "missed");
    assert_eq!(before["sinks"][0]["sink"], "hub-git");
    assert_eq!(before["sinks"][0]["last_delivered"], Value::Null);

    // It is still away.
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

    // How the run ended is not touched.
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
fn a_killed_run_is_delivered_and_then_there_is_nothing_left() {
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
fn a_sink_that_was_added_gets_all_and_one_that_was_removed_is_named() {
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
    let removed = "waiting is no longer a sink of this run, and did not get step 5, 10, 15, 20";
    assert!(output.stderr.contains(removed), "{output}");
    for step in STEPS {
        let copy = home.path("kept/changed").join(format!("step-{step:06}"));
        assert_eq!(files_of(&copy), files_of(&home.checkpoint("changed", step)));
    }
}

#[test]
fn a_checkpoint_that_is_gone_is_said_once() {
    let home = Home::new();
    let waiting = Fixture::sink("waiting").build(&home.path(""));
    let waiting = format!("{}:how=wait", waiting.display());
    let run = home.start_training("gone", &["--plugin", &waiting]);
    run.said("waiting for waiting (4 checkpoints)");

    // While the run is at work, it delivers by itself.
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
    let reason = "step 5, 10, 15, 20: its folder is gone from the run folder";
    assert!(output.stdout.contains(reason), "{output}");
    let again = home.host(&["deliver", "gone"]).succeeded();
    assert_eq!(again.stdout, "nothing is left to deliver\n");
}

#[test]
fn time_and_ctrl_c_end_it_and_leave_the_rest() {
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
