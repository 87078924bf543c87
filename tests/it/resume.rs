//! An interrupted run resumes to the same result as an uninterrupted one.

use std::fs;

use serde_json::{Value, json};

use crate::support::{Fixture, Home, Process, assert_complete, curve, events_of};

/// Arguments of a run that only a signal ends. The learning rate does not depend on the number of steps, so
/// that a shorter run takes the same steps.
const ENDLESS: [&str; 8] = [
    "--max-train-steps",
    "1000000",
    "--lr-scheduler-type",
    "constant_with_warmup",
    "--save-checkpoint-steps",
    "20",
    "--plugin",
    "perplexity",
];

/// Metrics whose values are the same if a run is repeated. Times are not among them.
const MEASURED: [&str; 7] = [
    "loss/train",
    "lr",
    "grad_norm",
    "samples",
    "tokens",
    "loss/eval",
    "perplexity",
];

/// Starts the endless run and waits for its checkpoint of step 40.
fn start_endless(home: &Home, name: &str) -> Process {
    let run = home.start_training(name, &[&ENDLESS[..], &["--json"]].concat());
    run.event(|event| event["kind"] == "checkpoint_written" && event["step"] == 40);
    run
}

/// Resumes the endless run for 30 more steps and asserts that it equals an uninterrupted run of the same
/// length.
fn assert_goes_on_exactly(home: &Home, name: &str) {
    let newest = *home.checkpoints(name).last().expect("a checkpoint");
    let last_step = newest + 30;
    let end = last_step.to_string();
    let resumed = home
        .host(&["resume", name, "--max-train-steps", &end])
        .succeeded();
    let from = format!("resuming from step {newest}: ");
    assert!(resumed.stderr.contains(&from), "{resumed}");

    let undisturbed = [&ENDLESS[..], &["--max-train-steps", &end]].concat();
    home.train("undisturbed", &undisturbed).succeeded();
    let [cut, whole] = [name, "undisturbed"].map(|run| {
        let manifest = home.checkpoint(run, last_step).join("manifest.json");
        fs::read_to_string(manifest).expect("a manifest")
    });
    assert_eq!(cut, whole);

    let [cut, whole] = [name, "undisturbed"].map(|run| home.run_dir(run));
    let steps: Vec<u64> = curve(&cut, "loss/train")
        .iter()
        .map(|point| point.0)
        .collect();
    assert_eq!(steps, (1..=last_step).collect::<Vec<_>>());
    for metric in MEASURED {
        assert_eq!(curve(&cut, metric), curve(&whole, metric), "{metric}");
    }
    // The sequence numbers of the events continue without a gap, and `generation` counts the resume.
    let events = events_of(&cut);
    let numbers: Vec<u64> = events.iter().map(|event| event.seq).collect();
    assert_eq!(numbers, (1..=events.len() as u64).collect::<Vec<_>>());
    let shown = home
        .host(&["runs", "show", name, "--json"])
        .succeeded()
        .json();
    assert_eq!(
        (&shown["status"], &shown["generation"]),
        (&json!("completed"), &json!(1))
    );
}

#[test]
fn a_killed_run_resumes_to_the_same_bytes() {
    let home = Home::new();
    let run = start_endless(&home, "killed");
    run.kill();
    assert_eq!(run.output().signal(), Some(9));
    assert_eq!(status(&home, "killed"), "crashed");
    assert_goes_on_exactly(&home, "killed");
}

fn status(home: &Home, run: &str) -> Value {
    let shown = home.host(&["runs", "show", run, "--json"]).succeeded();
    shown.json()["status"].clone()
}

#[test]
fn ctrl_c_finishes_the_step_and_the_run_resumes_to_the_same_bytes() {
    let home = Home::new();
    let run = start_endless(&home, "interrupted");
    run.interrupt();
    let output = run.output().ended_with(130);
    assert_ended_in_order(&home, "interrupted", &output.events());
    assert!(output.stderr.contains("host resume"), "{output}");
    assert_goes_on_exactly(&home, "interrupted");
}

#[test]
fn sigterm_finishes_the_step_and_the_run_resumes_to_the_same_bytes() {
    let home = Home::new();
    let run = start_endless(&home, "terminated");
    run.terminate();
    let output = run.output().ended_with(143);
    assert_ended_in_order(&home, "terminated", &output.events());
    assert_goes_on_exactly(&home, "terminated");
}

/// Asserts that the last step has a checkpoint, that the last event has this reason, and that the files that
/// exist only during a run are gone.
fn assert_ended_in_order(home: &Home, name: &str, events: &[Value]) {
    let last = events.last().expect("events");
    assert_eq!(
        (&last["kind"], &last["reason"]),
        (&json!("run_finished"), &json!(name))
    );
    let newest = home.checkpoints(name).last().copied();
    assert_eq!(last["step"].as_u64(), newest);
    assert_eq!(status(home, name), name);
    assert!(!home.run_dir(name).join("grpc.addr").exists());
}

/// Returns the SPEC of a sink that delivers until it is cancelled.
fn waiting_sink(home: &Home) -> String {
    let library = Fixture::sink("waiting").build(&home.path(""));
    format!("{}:how=wait", library.display())
}

#[test]
fn ctrl_c_after_the_last_step_leaves_the_deliveries() {
    let home = Home::new();
    let run = home.start_training("drained", &["--plugin", &waiting_sink(&home)]);
    run.said("waiting for waiting (4 checkpoints); press Ctrl-C to stop waiting");
    run.interrupt();
    let output = run.output();
    let (error, _) = output.failed_with(4);
    assert_eq!(error, "checkpoints did not reach waiting");
    assert_eq!(home.checkpoints("drained"), [5, 10, 15, 20]);
    assert_eq!(status(&home, "drained"), "completed");
}

#[test]
fn a_second_ctrl_c_ends_at_once() {
    let home = Home::new();
    let sink = waiting_sink(&home);
    let run = home.start_training(
        "stuck",
        &[&ENDLESS[..], &["--plugin", &sink, "--json"]].concat(),
    );
    run.event(|event| event["kind"] == "delivery" && event["state"] == "sending");
    run.interrupt();
    run.said("waiting for waiting");
    run.interrupt();
    let output = run.output().ended_with(130);
    assert!(output.stderr.contains("stopped immediately"), "{output}");
    // The run has the checkpoint that is written after the first Ctrl-C. In all other respects, it is like a
    // killed run.
    let newest = *home.checkpoints("stuck").last().expect("a checkpoint");
    let steps = curve(&home.run_dir("stuck"), "loss/train");
    assert_eq!(steps.last().map(|point| point.0), Some(newest));
    assert_complete(&home.checkpoint("stuck", newest));
    assert_eq!(status(&home, "stuck"), "crashed");
    assert!(!home.run_dir("stuck").join("grpc.addr").exists());
}

#[test]
fn a_name_is_used_once_and_a_live_run_has_one_process() {
    let home = Home::new();
    let run = start_endless(&home, "live");
    let second = home.train("live", &[]);
    let (error, hint) = second.failed_with(2);
    assert!(
        error.starts_with("a run named live already exists: "),
        "{error}"
    );
    assert!(hint.contains("host resume live"), "{hint}");

    let second = home.host(&["resume", "live"]);
    let (error, _) = second.failed_with(2);
    let holder = format!("process {} is writing to this run: ", run.id());
    assert!(error.starts_with(&holder), "{error}");
    // The live run is not affected.
    run.terminate();
    run.output().ended_with(143);
}

#[test]
fn the_error_explains_why_a_run_cannot_be_resumed() {
    let home = Home::new();
    home.train("done", &[]).succeeded();
    let output = home.host(&["resume", "done"]);
    let (error, hint) = output.failed_with(2);
    assert!(
        error.starts_with("the run is already at step 20 of 20: "),
        "{error}"
    );
    assert!(hint.contains("--max-train-steps"), "{hint}");

    let output = home.host(&["resume", "dine"]);
    assert_eq!(output.failed_with(2).1, "did you mean done?");

    fs::write(home.path("data/00.rs"), "fn other() {}\n").expect("written");
    let output = home.host(&["resume", "done", "--max-train-steps", "25"]);
    let (error, hint) = output.failed_with(2);
    assert!(error.contains("the training data has changed"), "{error}");
    assert!(hint.contains("restore the files"), "{hint}");
}
