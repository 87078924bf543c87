//! Unmounts a sink's folder during a run. Nothing must be written to the empty mount point. When the folder
//! is mounted again, it must get the missing checkpoints.

use std::fs;

use serde_json::Value;

use crate::support::{Home, Process, SmallDisk, assert_complete, files_of};

/// Starts a run that only a signal ends.
fn start(disk: &SmallDisk<'_>, home: &Home) -> Process {
    let sink = format!("local-disk:dir={}", home.text_path("mnt"));
    disk.start(&[
        "run",
        "tiny.toml",
        "--name",
        "run",
        "--json",
        "--runs-dir",
        "room",
        "--lr-scheduler-type",
        "constant",
        "--max-train-steps",
        "1000000",
        "--save-checkpoint-steps",
        "50",
        "--keep-checkpoints",
        "2",
        "--plugin",
        &sink,
    ])
}

fn delivery(run: &Process, state: &str, after: u64) -> Value {
    run.event(|event| {
        event["kind"] == "delivery"
            && event["state"] == state
            && event["checkpoint"].as_u64() > Some(after)
    })
}

fn step(event: &Value) -> u64 {
    event["checkpoint"].as_u64().expect("a step")
}

#[test]
fn an_unmounted_disk_gets_all_checkpoints_when_it_is_mounted_again() {
    let home = Home::new();
    let Some(disk) = SmallDisk::new(&home, 500) else {
        return;
    };
    fs::create_dir(home.path("mnt")).expect("made");
    let (source, mnt) = (home.text_path("runs"), home.text_path("mnt"));
    let mount = ["mount", "--bind", &source, &mnt];
    disk.does(&mount);
    let run = start(&disk, &home);
    let mut last = step(&delivery(&run, "delivered", 0));
    let away: [(&[&str], &[&str], &str); 3] = [
        (
            &["umount", "-l", &mnt],
            &mount,
            "mount the disk with that folder",
        ),
        (
            &["mount", "-o", "remount,bind,ro", &mnt],
            &["mount", "-o", "remount,bind,rw", &mnt],
            "Read-only file system",
        ),
        // Another disk is mounted over the folder.
        (
            &["mount", "-t", "tmpfs", "tmpfs", &mnt],
            &["umount", "-l", &mnt],
            "mount the disk with that folder",
        ),
    ];
    for (go, back, why) in away {
        disk.does(go);
        // A delivery may have been in progress.
        let failed = delivery(&run, "failed", last);
        let detail = failed["detail"].as_str().expect("a reason");
        assert!(detail.contains(why), "{detail}");
        assert!(!failed["retry_time_us"].is_null(), "{failed}");
        // The mount point is still empty.
        assert_eq!(fs::read_dir(home.path("mnt")).expect("a folder").count(), 0);
        disk.does(back);
        let missed = step(&failed);
        last = step(&delivery(&run, "delivered", missed - 1));
        assert_eq!(last, missed);
        let copy = disk.run_dir("run").join(format!("step-{missed:06}"));
        assert_complete(&copy);
    }
    run.terminate();
    run.output().ended_with(143);
    let kept = fs::read_dir(disk.run_dir("run")).expect("a folder");
    let kept = kept.filter(|entry| {
        let name = entry.as_ref().expect("an entry").file_name();
        name.to_string_lossy().starts_with("step-")
    });
    // The folder contains at least one checkpoint for every 50 steps.
    let deliver = disk
        .host(&["deliver", "run", "--runs-dir", "room"])
        .succeeded();
    assert!(deliver.stdout.contains("nothing is left"), "{deliver}");
    assert!(kept.count() as u64 >= last / 50);
}

#[test]
fn deliver_leaves_the_mount_point_of_an_unmounted_folder_empty() {
    let home = Home::new();
    let kept = home.text_path("kept");
    let sink = format!("local-disk:dir={kept}");
    home.train("run", &["--plugin", &sink]).succeeded();
    let resume = [
        "resume",
        "run",
        "--max-train-steps",
        "25",
        "--preflight",
        "warn",
    ];
    fs::rename(home.path("kept"), home.path("away")).expect("unmounted");
    fs::create_dir(home.path("kept")).expect("the mount point");
    home.host(&resume).failed_with(4);
    assert_eq!(
        fs::read_dir(home.path("kept")).expect("a folder").count(),
        0
    );
    home.host(&["deliver", "run", "--timeout", "1"])
        .failed_with(4);
    assert_eq!(
        fs::read_dir(home.path("kept")).expect("a folder").count(),
        0
    );

    fs::remove_dir(home.path("kept")).expect("removed");
    fs::rename(home.path("away"), home.path("kept")).expect("mounted");
    home.host(&["deliver", "run"]).succeeded();
    let copy = home.path("kept/run/step-000025");
    assert_eq!(files_of(&copy), files_of(&home.checkpoint("run", 25)));
}

#[test]
fn a_relative_folder_is_the_same_wherever_the_run_continues() {
    let home = Home::new();
    home.train("run", &["--plugin", "local-disk:dir=ck"])
        .succeeded();
    let text = fs::read_to_string(home.run_dir("run").join("run.toml")).expect("a file");
    let absolute = format!("dir = {:?}", home.text_path("ck"));
    assert!(text.contains(&absolute), "{text}");
    fs::create_dir(home.path("elsewhere")).expect("made");
    let mut command = home.command(&["resume", "../runs/run", "--max-train-steps", "25"]);
    Process::start(command.current_dir(home.path("elsewhere")))
        .output()
        .succeeded();
    assert_eq!(
        fs::read_dir(home.path("elsewhere"))
            .expect("a folder")
            .count(),
        0
    );
    assert!(home.path("ck/run/step-000025").is_dir());
    assert!(home.path("ck/run/step-000005").is_dir());

    home.train("home", &["--plugin", "local-disk:dir=~/mine"])
        .succeeded();
    assert!(home.path("mine/home/step-000020").is_dir());
}

#[test]
fn a_users_file_in_a_pruned_checkpoint_stays() {
    let home = Home::new();
    home.train("run", &[]).succeeded();
    let oldest = home.checkpoint("run", 5);
    fs::write(oldest.join("my-eval.json"), "mine").expect("written");
    let file = home.run_dir("run").join("run.toml");
    let text = fs::read_to_string(&file).expect("a file");
    let fewer = text.replace("keep_checkpoints = 0", "keep_checkpoints = 2");
    assert_ne!(fewer, text);
    fs::write(&file, fewer).expect("written");
    home.host(&["resume", "run", "--max-train-steps", "30"])
        .succeeded();
    let left = files_of(&oldest);
    assert_eq!(left.keys().collect::<Vec<_>>(), ["my-eval.json"]);
    assert!(!home.checkpoint("run", 10).exists());
    let shown = home.host(&["runs", "show", "run", "--json"]).succeeded();
    let shown = shown.json();
    let said = "the checkpoint of step 5 was removed, but its folder remains because it contains other files (my-eval.json): ";
    let warnings = shown["warnings"].as_array().expect("a list");
    let warned = warnings
        .iter()
        .filter(|line| line.as_str().is_some_and(|line| line.contains(said)));
    assert_eq!(warned.count(), 1, "{warnings:?}");
    // The folder of step 5 is no longer a checkpoint: a run cannot continue from it.
    let stands = |name: &str| {
        let checkpoints = shown["checkpoints"].as_array().expect("a list");
        let found = checkpoints
            .iter()
            .find(|checkpoint| checkpoint["name"] == name);
        found.expect("a checkpoint")["stands"] == true
    };
    assert!(!stands("step-000005") && stands("step-000030"));
    home.host(&["resume", "run", "--from", "5", "--max-train-steps", "40"])
        .failed_with(2);
}
