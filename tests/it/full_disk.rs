//! A full disk: failed writes are reported, existing files stay intact, and the training continues.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::{Value, json};

use crate::support::{
    Fixture, Home, Output, Process, SmallDisk, assert_complete, bare_repository, files_of, git,
    manifest_of,
};

/// Arguments of a run that trains until a signal ends it. A checkpoint takes 20 MB, far more than all events
/// together.
const ENDLESS: [&str; 8] = [
    "--model",
    "wide.json",
    "--lr-scheduler-type",
    "constant",
    "--save-checkpoint-steps",
    "10",
    "--max-train-steps",
    "1000000",
];

const WIDE: &str = r#"{
    "model_type": "gpt2", "n_layer": 2, "n_embd": 256, "n_head": 4, "n_positions": 64, "vocab_size": 300,
    "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0
}"#;

fn home() -> Home {
    let home = Home::new();
    fs::write(home.path("wide.json"), WIDE).expect("written");
    home
}

fn run<'a>(more: &[&'a str]) -> Vec<&'a str> {
    let run = ["run", "tiny.toml", "--name", "run", "--json"];
    [&run[..], &ENDLESS, more].concat()
}

/// Limits the size of the files that the process writes, in bytes. `None` removes the limit.
fn limit_file_size(process: &Process, bytes: Option<u64>) {
    let pid = Pid::from_raw(process.id().cast_signed()).expect("a process");
    let limit = Rlimit {
        current: bytes,
        maximum: None,
    };
    prlimit(Some(pid), Resource::Fsize, limit).expect("limited");
}

fn written_after(run: &Process, step: u64) -> u64 {
    let event = run.event(|event| {
        event["kind"] == "checkpoint_written" && event["step"].as_u64() > Some(step)
    });
    event["step"].as_u64().expect("a step")
}

fn checkpoint(run_dir: &Path, step: u64) -> PathBuf {
    run_dir.join(format!("checkpoints/step-{step:06}"))
}

/// Returns the names in the folder of the checkpoints.
fn names(run_dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(run_dir.join("checkpoints")).expect("a folder");
    let names = entries.map(|entry| entry.expect("an entry").file_name().into_string());
    names.map(|name| name.expect("UTF-8")).collect()
}

/// Returns the step of the newest checkpoint.
fn newest(run_dir: &Path) -> u64 {
    let names = names(run_dir).into_iter();
    let steps = names.filter_map(|name| name.strip_prefix("step-")?.parse().ok());
    steps.max().expect("a checkpoint")
}

/// Asserts that a checkpoint failed for this reason and left no files. Returns its step.
#[track_caller]
fn assert_failed(run_dir: &Path, failed: &Value, why: &str) -> u64 {
    let step = failed["step"].as_u64().expect("a step");
    let reason = failed["reason"].as_str().expect("a reason");
    assert!(reason.contains(why), "{reason}");
    let name = format!("step-{step:06}");
    let left = names(run_dir);
    assert!(!left.iter().any(|left| left.contains(&name)), "{left:?}");
    step
}

/// Asserts that all checkpoints equal those of a run with enough room, and that the newest is from this step
/// or later.
#[track_caller]
fn assert_as_with_room(home: &Home, run_dir: &Path, at_least: u64) {
    let newest = newest(run_dir);
    assert!(newest >= at_least, "{newest}");
    let end = newest.to_string();
    let whole = [&[
        "--name",
        "whole",
        "--runs-dir",
        "room",
        "--max-train-steps",
        &end,
    ][..]]
    .concat();
    home.host(&run(&whole)).succeeded();
    let whole = home.path("room/whole");
    for name in names(run_dir) {
        let [one, other] =
            [run_dir, &whole].map(|run| manifest_of(&run.join("checkpoints").join(&name)));
        assert_eq!(one, other, "{name}");
        assert_complete(&run_dir.join("checkpoints").join(&name));
    }
}

/// Asserts that every step was recorded, once and in order.
#[track_caller]
fn assert_recorded(output: &Output) {
    let events = output.events();
    let numbers: Vec<_> = events.iter().map(|event| event["seq"].as_u64()).collect();
    let whole: Vec<_> = (1..=events.len() as u64).map(Some).collect();
    assert_eq!(numbers, whole);
    let trained = |event: &&Value| !event["values"]["loss/train"].is_null();
    let steps: Vec<_> = events
        .iter()
        .filter(trained)
        .map(|event| event["step"].as_u64())
        .collect();
    let whole: Vec<_> = (1..=steps.len() as u64).map(Some).collect();
    assert_eq!(steps, whole);
}

#[test]
fn a_checkpoint_that_fails_on_a_full_disk_is_an_event_and_the_next_is_written() {
    let home = home();
    // Room for two checkpoints.
    let Some(disk) = SmallDisk::new(&home, 48) else {
        return;
    };
    let run_dir = disk.run_dir("run");
    let process = disk.start(&run(&[]));
    let failed = process.event(|event| event["kind"] == "checkpoint_failed");
    let step = assert_failed(&run_dir, &failed, "No space left on device");
    assert_eq!(step, 30);
    let before: Vec<BTreeMap<_, _>> = [10, 20]
        .map(|step| files_of(&checkpoint(&run_dir, step)))
        .into();
    disk.resize(500);
    let written = written_after(&process, step);
    process.terminate();
    let output = process.output().ended_with(143);
    let after: Vec<BTreeMap<_, _>> = [10, 20]
        .map(|step| files_of(&checkpoint(&run_dir, step)))
        .into();
    assert_eq!(before, after);
    assert_recorded(&output);
    assert_as_with_room(&home, &run_dir, written);
}

#[test]
fn a_run_without_room_for_its_last_checkpoint_fails_and_can_be_resumed() {
    let home = home();
    let Some(disk) = SmallDisk::new(&home, 48) else {
        return;
    };
    let run_dir = disk.run_dir("run");
    let output = disk.host(&run(&["--max-train-steps", "30"]));
    let (error, hint) = output.failed_with(1);
    assert!(
        error.starts_with("the last checkpoint was not written: cannot write"),
        "{error}"
    );
    assert!(error.contains("No space left on device"), "{error}");
    assert!(hint.contains("free some disk space"), "{hint}");
    assert!(hint.contains("host resume"), "{hint}");
    assert_recorded(&output);
    let events = output.events();
    let last = events.last().expect("events");
    assert_eq!(
        (&last["kind"], &last["reason"]),
        (&json!("run_finished"), &json!("failed"))
    );

    disk.resize(500);
    let resumed = disk.host(&["resume", "run"]).succeeded();
    assert!(
        resumed.stderr.contains("resuming from step 20: "),
        "{resumed}"
    );
    assert_as_with_room(&home, &run_dir, 30);
}

#[test]
fn events_are_kept_until_the_disk_has_room() {
    let home = home();
    let Some(disk) = SmallDisk::new(&home, 500) else {
        return;
    };
    let process = disk.start(&run(&["--keep-checkpoints", "3"]));
    written_after(&process, 0);
    // A checkpoint that was incomplete is removed, and makes room again.
    process.said_while("warning: cannot write to the run store: ", || disk.fill());
    let newest = newest(&disk.run_dir("run"));
    disk.empty();
    written_after(&process, newest);
    process.terminate();
    let output = process.output().ended_with(143);
    assert_recorded(&output);
    assert!(!output.stderr.contains("events were lost"), "{output}");
    let shown = disk.host(&["runs", "show", "run", "--json"]).succeeded();
    assert_eq!(shown.json()["status"], "terminated");
}

#[test]
fn lost_events_are_counted_and_the_store_stays_intact() {
    let home = home();
    let run_dir = home.run_dir("run");
    let process = home.start(&run(&[]));
    let written = written_after(&process, 0);
    // Unlike a full disk, this limit also prevents writes to existing parts of a file.
    limit_file_size(&process, Some(0));
    process.said("warning: cannot write to the run store: ");
    process.terminate();
    let output = process.output();
    let (error, hint) = output.failed_with(1);
    assert!(
        error.starts_with("the last checkpoint was not written: "),
        "{error}"
    );
    assert!(hint.contains("host resume"), "{hint}");
    let lost = output.stderr.lines().find_map(|line| {
        let (count, reason) = line.split_once(" events were lost: ")?;
        assert!(reason.starts_with("cannot write to the run store: "));
        count.rsplit(' ').next()?.parse::<u64>().ok()
    });
    assert!(lost > Some(0), "{output}");
    // The store still has all committed events.
    let last = output.events().last().expect("events")["seq"].clone();
    let show = ["runs", "show", "run", "--json"];
    let shown = home.host(&show).succeeded().json();
    assert_eq!(
        (&shown["status"], &shown["last_seq"]),
        (&json!("crashed"), &last)
    );
    let end = newest(&run_dir) + 10;
    assert!(end > written);
    home.host(&["resume", "run", "--max-train-steps", &end.to_string()])
        .succeeded();
    let shown = home.host(&show).succeeded().json();
    assert_eq!(
        (&shown["status"], &shown["last_step"]),
        (&json!("completed"), &json!(end))
    );
    assert_as_with_room(&home, &run_dir, end);
}

#[test]
fn a_run_that_starts_on_a_full_disk_leaves_nothing() {
    let home = home();
    let Some(disk) = SmallDisk::new(&home, 48) else {
        return;
    };
    disk.fill();
    let output = disk.host(&["run", "tiny.toml", "--name", "run"]);
    let (error, hint) = output.failed_with(1);
    assert!(error.contains("No space left on device"), "{error}");
    assert!(hint.contains("free some disk space"), "{hint}");
    assert!(!disk.run_dir("run").exists());
    disk.empty();
    disk.host(&["run", "tiny.toml", "--name", "run"])
        .succeeded();
}

#[test]
fn a_file_size_limit_is_handled_like_a_full_disk() {
    let home = home();
    let run_dir = home.run_dir("run");
    let process = home.start(&run(&[]));
    let first = written_after(&process, 0);
    let before = files_of(&checkpoint(&run_dir, first));
    // The optimizer's state exceeds the limit; the store does not.
    limit_file_size(&process, Some(10 << 20));
    let failed = process.event(|event| event["kind"] == "checkpoint_failed");
    let step = assert_failed(&run_dir, &failed, "File too large");
    limit_file_size(&process, None);
    let written = written_after(&process, step);
    process.terminate();
    assert_recorded(&process.output().ended_with(143));
    assert_eq!(files_of(&checkpoint(&run_dir, first)), before);
    assert_as_with_room(&home, &run_dir, written);
}

#[test]
fn a_push_that_failed_on_a_full_disk_is_retried_when_there_is_room() {
    let home = home();
    // Room for a checkpoint, but not for a second copy of its model.
    let Some(disk) = SmallDisk::new(&home, 24) else {
        return;
    };
    let remote = bare_repository(&home);
    let sink = format!("hub-git:repo={}", remote.display());
    // The preflight is off, because it would find the lack of room before the first step.
    let mut args = run(&["--plugin", &sink, "--preflight", "off"]);
    let endless = args.iter().position(|arg| *arg == "1000000");
    args[endless.expect("the steps of the endless one")] = "10";
    let process = disk.start(&args);
    let failed = process.event(|event| event["kind"] == "delivery" && event["state"] == "failed");
    let detail = failed["detail"].as_str().expect("a reason");
    assert!(detail.contains("No space left on device"), "{detail}");
    assert_eq!(failed["checkpoint"], 10);
    assert_complete(&checkpoint(&disk.run_dir("run"), 10));
    disk.resize(100);
    process.output().succeeded();
    let log = git(&remote, &["log", "--reverse", "--format=%s", "run"]);
    assert_eq!(log, "step 10\n");
    git(&remote, &["fsck", "--strict"]);
}

#[test]
fn a_sink_on_a_full_disk_leaves_no_partial_copy_and_delivers_when_there_is_room() {
    let home = home();
    // Room for two of the three checkpoints.
    let Some(disk) = SmallDisk::new(&home, 48) else {
        return;
    };
    let sink = format!("local-disk:dir={}", home.text_path("runs/kept"));
    let more = ["--runs-dir", "room", "--plugin", &sink];
    let more = [&more[..], &["--max-train-steps", "30"]].concat();
    let mut args = run(&more);
    // A repeated flag would be rejected, so the one in `ENDLESS` is removed.
    let endless = args.iter().position(|arg| *arg == "1000000");
    let endless = endless.expect("the steps of the endless one");
    args.drain(endless - 1..=endless);
    let process = disk.start(&args);
    let failed = process.event(|event| event["kind"] == "delivery" && event["state"] == "failed");
    let detail = failed["detail"].as_str().expect("a reason");
    assert!(detail.contains("No space left on device"), "{detail}");
    let kept = disk.run_dir("kept").join("run");
    let whole = |step: u64| {
        let name = format!("step-{step:06}");
        let own = home.path("room/run/checkpoints").join(&name);
        files_of(&kept.join(name)) == files_of(&own)
    };
    let failed = failed["checkpoint"].as_u64().expect("a step");
    assert_eq!(failed, 30);
    assert!(whole(10) && whole(20));
    assert!(!kept.join("step-000030").exists());
    disk.resize(100);
    process.output().succeeded();
    assert!(whole(30));
    let entries = fs::read_dir(&kept).expect("a folder").flatten();
    let mut names: Vec<String> = entries
        .map(|entry| entry.file_name().into_string().expect("UTF-8"))
        .filter(|name| !name.starts_with('.'))
        .collect();
    names.sort();
    assert_eq!(names, ["step-000010", "step-000020", "step-000030"]);
}

/// The sink accepts no checkpoint. When undelivered checkpoints fill the disk, the oldest are dropped and
/// recorded as dropped, and the training continues.
#[test]
fn a_disk_full_of_undelivered_checkpoints_drops_the_oldest_and_reports_them() {
    let home = home();
    // Room for three checkpoints.
    let Some(disk) = SmallDisk::new(&home, 72) else {
        return;
    };
    let sink = Fixture::sink("needy").build(&home.path(""));
    let failing = format!("{}:how=publish", sink.display());
    let mut args = run(&["--keep-checkpoints", "1", "--plugin", &failing]);
    let endless = args.iter().position(|arg| *arg == "1000000");
    args[endless.expect("the steps of the endless one")] = "60";
    let output = disk.host(&args);
    let (error, _) = output.failed_with(4);
    assert_eq!(error, "checkpoints did not reach needy");
    let events = output.events();
    let failed = events
        .iter()
        .find(|event| event["kind"] == "checkpoint_failed");
    assert_eq!(failed, None);
    let dropped: Vec<u64> = events
        .iter()
        .filter(|event| event["kind"] == "delivery" && event["state"] == "dropped")
        .filter_map(|event| event["checkpoint"].as_u64())
        .collect();
    let run_dir = disk.run_dir("run");
    let mut standing: Vec<u64> = names(&run_dir)
        .iter()
        .filter_map(|name| name.strip_prefix("step-")?.parse().ok())
        .collect();
    standing.sort_unstable();
    let all: Vec<u64> = dropped.iter().chain(&standing).copied().collect();
    assert_eq!(all, [10, 20, 30, 40, 50, 60]);
    assert!(!dropped.is_empty() && standing.len() > 1, "{all:?}");
    for step in &standing {
        assert_complete(&checkpoint(&run_dir, *step));
    }

    let file = run_dir.join("run.toml");
    let text = fs::read_to_string(&file).expect("a file");
    fs::write(&file, text.replace("\"publish\"", "\"deliver\"")).expect("written");
    let delivered = disk.host(&["deliver", "run"]).succeeded();
    let lost: Vec<String> = dropped.iter().map(ToString::to_string).collect();
    let said = format!("needy did not receive step {}, which", lost.join(", "));
    assert!(delivered.stderr.contains(&said), "{delivered}");
    let shown = disk.host(&["runs", "show", "run", "--json"]).succeeded();
    let sink = &shown.json()["sinks"][0];
    assert_eq!(sink["delivered"], standing.len());
    assert_eq!(sink["dropped"], dropped.len());
    assert_eq!(sink["left"], json!([]));
}
