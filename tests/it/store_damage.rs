//! Damages the store of a run. Intact checkpoints must not be lost, and lost history must be reported. A
//! read-only store must still be readable up to its last event.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use host_store::Reader;
use serde_json::{Value, json};

use crate::support::{Home, Process, curve, kill_at, manifest_of};

/// A schedule that does not depend on the number of steps, so that a longer run starts with the same steps as
/// a shorter one.
const STEADY: [&str; 2] = ["--lr-scheduler-type", "constant"];
/// The files of a store.
const FILES: [&str; 3] = ["events.db", "events.db-wal", "events.db-shm"];

/// Trains a run that is killed just after its checkpoint of step 15 appears. Returns the run's folder.
fn killed(home: &Home, env: &[(&str, &str)]) -> PathBuf {
    let preload = kill_at(&home.path("")).display().to_string();
    let kill = [
        ("LD_PRELOAD", &*preload),
        ("KILL_AT", "renamed /step-000015"),
    ];
    let train = [&["run", "tiny.toml", "--name", "run"], &STEADY[..]].concat();
    let output = home.host_with(&[&kill[..], env].concat(), &train);
    assert_eq!(output.signal(), Some(9), "{output}");
    home.run_dir("run")
}

/// Copies a run's folder. Returns the copy.
fn copied(home: &Home, run: &str, name: &str) -> PathBuf {
    let copy = home.run_dir(name);
    let status = Command::new("cp")
        .arg("-r")
        .arg(home.run_dir(run))
        .arg(&copy)
        .status();
    assert!(status.expect("cp").success());
    copy
}

fn shown(home: &Home, run_dir: &Path) -> Value {
    let run = run_dir.to_str().expect("UTF-8");
    home.host(&["runs", "show", run, "--json"])
        .succeeded()
        .json()
}

fn warnings(shown: &Value) -> String {
    shown["warnings"].to_string()
}

/// Resumes a run from step `from` to step 25 and asserts that it gets the same weights as an uninterrupted
/// run. Returns stderr.
#[track_caller]
fn assert_goes_on(home: &Home, run_dir: &Path, from: u64, what: &str) -> String {
    let run = run_dir.to_str().expect("UTF-8");
    let resumed = home
        .host(&["resume", run, "--max-train-steps", "25"])
        .succeeded();
    let said = format!("resuming from step {from}: ");
    assert!(resumed.stderr.contains(&said), "{what}: {resumed}");
    let steps: Vec<u64> = curve(run_dir, "loss/train")
        .iter()
        .map(|point| point.0)
        .collect();
    let after: Vec<u64> = steps.iter().copied().filter(|&step| step > from).collect();
    assert_eq!(after, (from + 1..=25).collect::<Vec<_>>(), "{what}");
    let manifest = manifest_of(&run_dir.join("checkpoints/step-000025"));
    let whole = manifest_of(&home.checkpoint("whole", 25));
    assert_eq!(manifest, whole, "{what}");
    resumed.stderr
}

fn train_whole(home: &Home) {
    let longer = [&STEADY[..], &["--max-train-steps", "25"]].concat();
    home.train("whole", &longer).succeeded();
}

#[test]
fn a_damaged_store_does_not_prevent_a_checkpoint_from_being_resumed() {
    let home = Home::new();
    train_whole(&home);
    home.train("run", &STEADY).succeeded();
    let good = fs::read(home.run_dir("run").join("events.db")).expect("a store");
    let cut = |length: usize| good[..length].to_vec();
    let mut page_zeroed = good.clone();
    page_zeroed[2 * 4096..3 * 4096].fill(0);
    let damages = [
        ("empty", Some(Vec::new())),
        ("a byte", Some(cut(1))),
        ("the header", Some(cut(100))),
        ("a page", Some(cut(4096))),
        ("half", Some(cut(good.len() / 2))),
        ("a page less", Some(cut(good.len() - 4096))),
        ("zeroed", Some(vec![0; good.len()])),
        ("a page zeroed", Some(page_zeroed)),
        ("text", Some(b"no database, but text".to_vec())),
        ("deleted", None),
    ];
    for (number, (what, bytes)) in damages.into_iter().enumerate() {
        let dir = copied(&home, "run", &format!("case-{number}"));
        let store = dir.join("events.db");
        match &bytes {
            Some(bytes) => fs::write(&store, bytes).expect("written"),
            None => fs::remove_file(&store).expect("removed"),
        }
        let said = assert_goes_on(&home, &dir, 20, what);
        assert!(
            said.contains("and was replaced by a new one"),
            "{what}: {said}"
        );
        let kept = dir.join("events.db.damaged-1");
        assert_eq!(kept.exists(), bytes.is_some(), "{what}");
        let shown = shown(&home, &dir);
        let gap = "history ends at step 0, but the checkpoint is from step 20";
        assert!(warnings(&shown).contains(gap), "{what}: {shown}");
        assert_eq!(shown["status"], json!("completed"), "{what}");
    }
}

#[test]
fn a_truncated_log_is_reported_as_a_gap() {
    let home = Home::new();
    train_whole(&home);
    let dir = killed(&home, &[]);
    let log = fs::read(dir.join("events.db-wal")).expect("a log");
    assert!(log.len() > 10_000, "the log is too short");
    let whole = copied(&home, "run", "untouched");
    let said = assert_goes_on(&home, &whole, 15, "untouched");
    assert!(!said.contains("history ends"), "{said}");
    for (number, length) in [log.len() * 55 / 100, log.len() / 3, 32, 0]
        .into_iter()
        .enumerate()
    {
        let what = format!("cut to {length}");
        let dir = copied(&home, "run", &format!("cut-{number}"));
        fs::write(dir.join("events.db-wal"), &log[..length]).expect("written");
        // After a crash of the machine, the log has no index.
        fs::remove_file(dir.join("events.db-shm")).expect("removed");
        let said = assert_goes_on(&home, &dir, 15, &what);
        assert!(
            said.contains("the run's history ends at step "),
            "{what}: {said}"
        );
        let shown = shown(&home, &dir);
        assert!(
            warnings(&shown).contains("but the checkpoint is from step 15"),
            "{what}: {shown}"
        );
    }
}

#[test]
fn a_power_failure_loses_no_history_before_a_checkpoint() {
    let home = Home::new();
    train_whole(&home);
    let dir = killed(&home, &[("KEEP_SYNCED", "sync /events.db*")]);
    // Data that was not synced is lost.
    for file in FILES {
        let (file, synced) = (dir.join(file), dir.join(format!("{file}.synced")));
        match synced.exists() {
            true => fs::rename(&synced, &file).expect("renamed"),
            false => fs::remove_file(&file).expect("removed"),
        }
    }
    let said = assert_goes_on(&home, &dir, 15, "without unsynced data");
    assert!(
        !said.contains("history ends") && !said.contains("damaged"),
        "{said}"
    );
    let steps: Vec<u64> = curve(&dir, "loss/train")
        .iter()
        .map(|point| point.0)
        .collect();
    assert_eq!(steps, (1..=25).collect::<Vec<_>>());
}

/// Starts `host` with `folder` mounted read-only. Returns `None` if the system allows no mount namespace.
fn read_only(home: &Home, folder: &Path, args: &[&str]) -> Option<Process> {
    let probe = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "true"])
        .status();
    if !probe.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: no mount namespace here");
        return None;
    }
    let plain = home.command(args);
    let script = "mount --bind \"$0\" \"$0\" && mount -o remount,bind,ro \"$0\" && exec \"$@\"";
    let mut command = Command::new("unshare");
    command
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", script])
        .arg(folder)
        .arg(plain.get_program())
        .args(plain.get_args())
        .current_dir(home.path(""))
        .env_clear()
        .envs(
            plain
                .get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        );
    Some(Process::start(&mut command))
}

#[test]
fn a_store_that_cannot_be_written_is_read_to_the_end_of_its_log() {
    let home = Home::new();
    let dir = killed(&home, &[]);
    let before = FILES.map(|file| fs::read(dir.join(file)).expect("a file"));
    // The expected row is read from a writable copy.
    let copy = tempfile::tempdir().expect("a folder");
    for file in FILES {
        fs::copy(dir.join(file), copy.path().join(file)).expect("copied");
    }
    let row = Reader::open(copy.path())
        .and_then(|reader| reader.run())
        .expect("readable");
    assert!(row.last_step.0 >= 15 && !before[1].is_empty());

    // The store is read first with the log's index, then without it, as after a crash of the machine.
    for has_index in [true, false] {
        if !has_index {
            fs::remove_file(dir.join("events.db-shm")).expect("removed");
        }
        let host = |args: &[&str]| read_only(&home, &home.path("runs"), args);
        let Some(listed) = host(&["runs", "list", "--json"]) else {
            return;
        };
        let listed = listed.output().succeeded().json();
        assert_eq!(listed[0]["last_step"], row.last_step.0, "{listed}");
        let shown = host(&["runs", "show", "run", "--json"]).expect("as before");
        let shown = shown.output().succeeded().json();
        assert_eq!(shown["last_seq"], row.last_seq, "{shown}");
        assert_eq!(shown["status"], "crashed", "{shown}");
        let out = home.text_path(&format!("points-{has_index}.csv"));
        let export = ["runs", "export", "run", "--format", "csv", "--out", &out];
        host(&export).expect("as before").output().succeeded();
        let points = fs::read_to_string(&out).expect("points");
        let losses = points.lines().filter(|line| line.contains("loss/train"));
        assert_eq!(losses.count() as u64, row.last_step.0, "{points}");

        let server = host(&["serve"]).expect("as before");
        let line = server.printed("gRPC at ");
        let address = line
            .split(' ')
            .nth(2)
            .expect("an address")
            .trim_end_matches(':');
        let client = host_serve::Client::connect(address).expect("connected");
        assert_eq!(client.run("run").expect("a run"), row);
        let seen = client
            .watch("run", 0, true)
            .map(|event| event.expect("an event").seq);
        assert_eq!(seen.last(), Some(row.last_seq));
        server.interrupt();
        server.output().succeeded();
    }
    for (file, before) in FILES.into_iter().zip(before).take(2) {
        assert!(
            fs::read(dir.join(file)).expect("a file") == before,
            "{file} was changed"
        );
    }
}
