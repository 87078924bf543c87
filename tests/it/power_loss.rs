//! The power fails at fifty moments of a run. In each resulting state of the disk, all complete checkpoints
//! are intact, and so is the history before them. A resumed run ends with the same bytes as a run without a
//! power failure.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::support::{
    Disk, Home, Operation, Unsynced, curve, files_of, read_record, record_writes,
};

/// The number of moments at which the power fails.
const CUTS: usize = 50;

/// Returns the files below a folder with their hashes, except for SQLite's shared memory, which SQLite
/// recreates.
fn lasting(folder: &Path) -> BTreeMap<String, String> {
    let mut files = files_of(folder);
    files.retain(|name, _| !name.ends_with("-shm"));
    files
}

/// Returns the step of a checkpoint if the operation gives the checkpoint's folder its final name.
fn checkpoint_appears(operation: &Operation) -> Option<&str> {
    let Operation::Rename { to, .. } = operation else {
        return None;
    };
    to.strip_prefix("run/checkpoints/step-")
}

#[test]
fn a_power_failure_loses_no_checkpoint_and_no_history_before_it() {
    let whole = Home::new();
    whole.train("run", &[]).succeeded();
    let files = files_of(&whole.checkpoint("run", 20));
    let losses = curve(&whole.run_dir("run"), "loss/train");

    let recorded = Home::new();
    let root = recorded.text_path("runs");
    fs::create_dir(&root).expect("made");
    let record = recorded.path("record");
    let preload = record_writes(&recorded.path("")).display().to_string();
    recorded
        .host_with(
            &[
                ("LD_PRELOAD", &preload),
                ("RECORD_ROOT", &root),
                ("RECORD_TO", record.to_str().expect("UTF-8")),
            ],
            &["run", "tiny.toml", "--name", "run"],
        )
        .succeeded();
    let operations = read_record(&record, &root);

    // The record is complete: replaying it without losses gives the same files.
    let mut disk = Disk::new(Path::new(&root));
    operations
        .iter()
        .for_each(|operation| disk.apply(operation));
    let again = tempfile::tempdir().expect("a folder");
    disk.write_to(again.path(), Unsynced::Kept);
    assert_eq!(lasting(again.path()), lasting(Path::new(&root)));

    let last = operations
        .iter()
        .rposition(|operation| checkpoint_appears(operation).is_some())
        .expect("a checkpoint");
    let mut disk = Disk::new(Path::new(&root));
    let mut done = 0;
    let mut safe: Option<String> = None;
    let (mut resumed, mut from_checkpoints) = (0, 0);
    for cut in 1..=CUTS {
        let end = last * cut / CUTS;
        for operation in &operations[done..=end] {
            disk.apply(operation);
        }
        done = end + 1;
        for operation in &operations[..done] {
            if let Some(step) = checkpoint_appears(operation) {
                let is_safe = disk.keeps(&format!("run/checkpoints/step-{step}"));
                if is_safe && safe.as_deref().is_none_or(|older| older < step) {
                    safe = Some(step.to_owned());
                }
            }
        }
        for unsynced in [Unsynced::Lost, Unsynced::Torn(cut as u64)] {
            let what = format!("cut {cut}, {unsynced:?}, safe: {safe:?}");
            let home = Home::new();
            fs::create_dir(home.path("runs")).expect("made");
            disk.write_to(&home.path("runs"), unsynced);
            let stands = home.run_dir("run").join("run.toml").exists();
            let output = home.host(&["resume", "run"]);
            let Some(safe) = &safe else {
                // Before the first checkpoint there may be nothing to resume, which is an error and not a
                // panic.
                if !output.is_success() {
                    assert!(output.stderr.contains("error: "), "{what}: {output}");
                    assert!(!output.stderr.contains("panicked"), "{what}: {output}");
                    continue;
                }
                assert!(stands, "{what}: {output}");
                assert_eq!(files_of(&home.checkpoint("run", 20)), files, "{what}");
                resumed += 1;
                continue;
            };
            let output = output.succeeded();
            let from = output
                .stderr
                .lines()
                .find_map(|line| line.strip_prefix("resuming from step "))
                .and_then(|rest| rest.split(':').next())
                .unwrap_or_else(|| panic!("{what}: {output}"));
            let from: u64 = from.parse().expect("a step");
            let safe: u64 = safe.parse().expect("a step");
            assert!(from >= safe, "{what}: from {from}");
            assert_eq!(files_of(&home.checkpoint("run", 20)), files, "{what}");
            assert_eq!(curve(&home.run_dir("run"), "loss/train"), losses, "{what}");
            resumed += 1;
            from_checkpoints += 1;
        }
    }
    // In most of the states, a checkpoint was certain to survive on the disk, so the run resumed from a
    // checkpoint.
    assert!(from_checkpoints > CUTS, "{from_checkpoints} of {resumed}");
}
