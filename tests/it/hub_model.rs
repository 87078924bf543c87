//! Tests runs that start from a pushed checkpoint, either from its weights or from its whole state.

use std::fs;

use test_hub::{READ_TOKEN, TestHub, WRITE_TOKEN};

use crate::support::{Home, curve, git, manifest_of};

const PUSHES: [&str; 2] = ["--plugin", "hub-git:repo=user/model,trainer=true"];

/// Trains a run `first` of 20 steps that pushes its checkpoints to a hub. Returns the hub and a function. For
/// a step, the function returns the commit of that step's checkpoint.
fn pushed(home: &Home) -> (TestHub, impl Fn(u64) -> String) {
    let hub = TestHub::start();
    let repo = hub.create_repo("user/model", &[(".gitattributes", "")]);
    let env = [("HF_ENDPOINT", hub.url()), ("HF_TOKEN", WRITE_TOKEN)];
    let run = ["run", "tiny.toml", "--name", "first"];
    home.host_with(&env, &[&run[..], &PUSHES].concat())
        .succeeded();
    let commit = move |step: u64| {
        let grep = format!("--grep=^step {step}$");
        let log = git(&repo, &["log", "--format=%H", &grep, "first"]);
        log.trim().to_owned()
    };
    (hub, commit)
}

/// Returns the line of a run's `run.toml` that begins with this key.
fn line(home: &Home, run: &str, key: &str) -> String {
    let file = home.path(&format!("runs/{run}/run.toml"));
    let text = fs::read_to_string(file).expect("run.toml");
    let mut lines = text.lines();
    lines
        .find(|line| line.starts_with(key))
        .unwrap_or_else(|| panic!("no {key} in {text}"))
        .to_owned()
}

#[test]
fn a_run_starts_with_the_weights_of_a_branch_and_records_their_commit() {
    let home = Home::new();
    let (hub, commit) = pushed(&home);
    let env = [("HF_ENDPOINT", hub.url()), ("HF_TOKEN", READ_TOKEN)];
    let begin = |name: &'static str| {
        let model = ["--model", "hub:user/model@first"];
        let run = ["run", "tiny.toml", "--name", name, "--max-train-steps", "5"];
        [&run[..], &model].concat()
    };
    home.host_with(&env, &begin("second")).succeeded();
    // The URL of the branch's page is accepted, too.
    let page = format!("{}/tree/first", hub.repo_url("user/model"));
    let by_page = [
        "run",
        "tiny.toml",
        "--name",
        "page",
        "--max-train-steps",
        "5",
    ];
    home.host_with(&env, &[&by_page[..], &["--model", &page]].concat())
        .succeeded();
    let named = format!("model = \"hub:user/model@{}\"", commit(20));
    assert_eq!(line(&home, "second", "model = "), named);
    // The run starts with the given weights, not with new ones.
    let losses = |run: &str| {
        let curve = curve(&home.run_dir(run), "loss/train");
        let values = curve.into_iter().map(|(_, bits)| f64::from_bits(bits));
        values.collect::<Vec<f64>>()
    };
    let (first, second) = (losses("first"), losses("second"));
    let between = f64::midpoint(first[0], first[19]);
    assert!(second[0] < between, "{first:?} {second:?}");

    // The commit is in the cache: repeating the run needs no network.
    let gone = [("HF_ENDPOINT", "http://127.0.0.1:1")];
    let config = home.path("runs/second/run.toml");
    let config = config.to_str().expect("a path");
    home.host_with(&gone, &["run", config, "--name", "third"])
        .succeeded();
    let manifest = |run: &str| manifest_of(&home.checkpoint(run, 5));
    assert_eq!(manifest("second"), manifest("third"));
    assert_eq!(manifest("second"), manifest("page"));
    let words = home.host_with(
        &gone,
        &["run", "tiny.toml", "--model", "hub:user/model@first"],
    );
    let (error, hint) = words.failed_with(3);
    assert!(
        error.starts_with("cannot fetch user/model at first: cannot reach"),
        "{error}"
    );
    assert!(hint.contains("try again"), "{hint}");
}

#[test]
fn a_run_continues_elsewhere_from_a_pushed_checkpoint_to_the_same_bytes() {
    let home = Home::new();
    let (hub, commit) = pushed(&home);
    let env = [("HF_ENDPOINT", hub.url()), ("HF_TOKEN", READ_TOKEN)];
    let checkpoint = format!("hub:user/model@{}", commit(10));
    let args = [
        "run",
        "tiny.toml",
        "--name",
        "elsewhere",
        "--resume-from-checkpoint",
        &checkpoint,
    ];
    home.host_with(&env, &args).succeeded();
    assert_eq!(home.checkpoints("elsewhere"), [15, 20]);
    for step in [15, 20] {
        let manifest = |run: &str| manifest_of(&home.checkpoint(run, step));
        assert_eq!(manifest("first"), manifest("elsewhere"));
    }

    // A folder with a checkpoint works in the same way.
    let folder = home.checkpoint("first", 10);
    let folder = folder.to_str().expect("a path");
    let here = [
        "run",
        "tiny.toml",
        "--name",
        "here",
        "--resume-from-checkpoint",
        folder,
    ];
    home.host(&here).succeeded();
    let manifest = |run: &str| manifest_of(&home.checkpoint(run, 20));
    assert_eq!(manifest("first"), manifest("here"));

    let far = [
        "run",
        "tiny.toml",
        "--name",
        "far",
        "--resume-from-checkpoint",
        folder,
    ];
    let far = home.host(&[&far[..], &["--max-train-steps", "10"]].concat());
    let (error, _) = far.failed_with(2);
    assert!(
        error.starts_with("the checkpoint is already at step 10 of 10: "),
        "{error}"
    );
    assert!(!home.run_dir("far").exists());
}

#[test]
fn a_run_killed_before_its_first_checkpoint_starts_over_from_the_same_checkpoint() {
    let home = Home::new();
    let (hub, commit) = pushed(&home);
    let env = [("HF_ENDPOINT", hub.url()), ("HF_TOKEN", READ_TOKEN)];
    let checkpoint = format!("hub:user/model@{}", commit(10));
    let args = [
        "run",
        "tiny.toml",
        "--name",
        "killed",
        "--json",
        "--max-train-steps",
        "100000",
    ];
    let begins = [
        "--save-checkpoint-steps",
        "0",
        "--resume-from-checkpoint",
        &checkpoint,
    ];
    let process = home.start_with(&env, &[&args[..], &begins].concat());
    process.event(|event| event["step"] == 11);
    process.kill();
    assert_eq!(process.output().signal(), Some(9));
    assert!(home.checkpoints("killed").is_empty());
    // The commit is in the cache, so the resume needs no hub.
    home.host(&["resume", "killed", "--max-train-steps", "20"])
        .succeeded();
    let model = |run: &str| fs::read(home.checkpoint(run, 20).join("model.safetensors"));
    assert_eq!(
        model("killed").expect("weights"),
        model("first").expect("weights")
    );
}
