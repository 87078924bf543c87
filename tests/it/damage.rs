//! Damaged checkpoints: they are rejected with the name of the damaged file, and the run can continue from an
//! intact checkpoint.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use host_core::FileEntry;
use serde_json::{Value, json};

use crate::support::{Home, curve, kill_at, manifest_of, sha256};

/// A learning rate schedule that does not depend on the run's number of steps, so that a longer run starts
/// with the same steps as a shorter one.
const STEADY: [&str; 2] = ["--lr-scheduler-type", "constant"];
/// Resumes the run beyond its last checkpoint.
const RESUME: [&str; 4] = ["resume", "run", "--max-train-steps", "25"];

/// Trains a run with checkpoints at steps 5, 10, 15 and 20. Returns its home and its newest checkpoint.
fn trained() -> (Home, PathBuf) {
    let home = Home::new();
    home.train("run", &STEADY).succeeded();
    let newest = home.checkpoint("run", 20);
    (home, newest)
}

fn flip(file: &Path, at: impl Fn(usize) -> usize) {
    let mut bytes = fs::read(file).expect("a file");
    let at = at(bytes.len());
    bytes[at] ^= 1;
    fs::write(file, bytes).expect("written");
}

/// Asserts that a resume is rejected because of this file, with a hint that names the previous checkpoint.
#[track_caller]
fn assert_refused(home: &Home, how: &str, file: &Path) {
    let output = home.host(&RESUME);
    let (error, hint) = output.failed_with(2);
    let expected = format!("the checkpoint is damaged: {how}");
    assert!(error.starts_with(&expected), "{error}");
    assert!(error.ends_with(&format!(": {}", file.display())), "{error}");
    let way_on = "resume from an older, undamaged checkpoint: `host resume run --from step-000015`";
    assert_eq!(hint, way_on);
}

#[test]
fn a_changed_byte_in_any_file_is_found() {
    let (home, checkpoint) = trained();
    let files = manifest_of(&checkpoint).files;
    assert!(files.len() >= 9, "{files:?}");
    for name in files.keys() {
        let file = checkpoint.join(name);
        let good = fs::read(&file).expect("a file");
        flip(&file, |length| length / 2);
        assert_refused(&home, "a file does not match its manifest", &file);
        fs::write(&file, good).expect("written");
    }
    // A rejected resume changes nothing.
    assert_eq!(home.checkpoints("run"), [5, 10, 15, 20]);
    home.host(&RESUME).succeeded();
}

#[test]
fn a_changed_byte_in_the_manifest_is_found() {
    let (home, checkpoint) = trained();
    let manifest = checkpoint.join("manifest.json");
    let good = fs::read_to_string(&manifest).expect("text");
    flip(&manifest, |_| 0);
    assert_refused(&home, "its manifest cannot be used: ", &manifest);

    // If the hash of the weights in the manifest is changed, the weights no longer match it.
    fs::write(&manifest, &good).expect("written");
    let at = good.find("model.safetensors").expect("the weights");
    let hash = at + good[at..].find("sha256").expect("a hash") + "sha256\": \"".len();
    flip(&manifest, |_| hash);
    let weights = checkpoint.join("model.safetensors");
    assert_refused(&home, "a file does not match its manifest", &weights);

    // If the name of a file in the manifest is changed, a file of the new name is missing.
    fs::write(&manifest, &good).expect("written");
    flip(&manifest, |_| at);
    let other = checkpoint.join("lodel.safetensors");
    assert_refused(&home, "a file is missing", &other);
}

#[test]
fn a_missing_file_is_found() {
    let (home, checkpoint) = trained();
    for name in ["model.safetensors", "trainer/state.json", "manifest.json"] {
        let file = checkpoint.join(name);
        let good = fs::read(&file).expect("a file");
        fs::remove_file(&file).expect("removed");
        assert_refused(&home, "a file is missing", &file);
        fs::write(&file, good).expect("written");
    }
}

#[test]
fn the_suggested_checkpoint_is_intact() {
    let (home, checkpoint) = trained();
    let weights = |step| home.checkpoint("run", step).join("model.safetensors");
    flip(&weights(20), |length| length - 1);
    flip(&weights(15), |length| length - 1);
    let output = home.host(&RESUME);
    let (error, hint) = output.failed_with(2);
    assert!(error.contains(&checkpoint.display().to_string()), "{error}");
    assert!(hint.contains("--from step-000010"), "{hint}");

    let output = home.host(&[&RESUME[..], &["--from", "15"]].concat());
    let (error, hint) = output.failed_with(2);
    assert!(
        error.ends_with(&weights(15).display().to_string()),
        "{error}"
    );
    assert!(hint.contains("--from step-000010"), "{hint}");

    flip(&weights(10), |length| length - 1);
    flip(&weights(5), |length| length - 1);
    let output = home.host(&RESUME);
    let (_, hint) = output.failed_with(2);
    let again = home.run_dir("run").join("run.toml");
    let again = format!("`host run {} --name OTHER`", again.display());
    let none = "repeat the run, which has no undamaged checkpoint: ";
    assert!(hint.starts_with(none), "{hint}");
    assert!(hint.contains(&again), "{hint}");
}

#[test]
fn a_run_continues_from_an_older_checkpoint_to_the_same_bytes() {
    let (home, checkpoint) = trained();
    flip(&checkpoint.join("model.safetensors"), |length| length / 2);
    let back = [&RESUME[..], &["--from", "step-000010"]].concat();

    // If the resumed run is killed before its first new checkpoint, the next resume does not use the
    // superseded checkpoints.
    let preload = kill_at(&home.path("")).display().to_string();
    let env = [
        ("LD_PRELOAD", &*preload),
        ("KILL_AT", "rename /step-000015"),
    ];
    let killed = home.host_with(&env, &back);
    assert_eq!(killed.signal(), Some(9), "{killed}");
    assert!(
        killed.stderr.contains("resuming from step 10: "),
        "{killed}"
    );
    assert_eq!(home.checkpoints("run"), [5, 10]);
    let left = home.run_dir("run").join("checkpoints");
    for step in ["step-000015", "step-000020"] {
        let name = format!("{step}.superseded-1");
        assert!(left.join(&name).join("model.safetensors").is_file());
        let said =
            format!("a later checkpoint was set aside; delete it if you do not need it: {name}");
        assert!(killed.stderr.contains(&said), "{killed}");
    }
    let resumed = home.host(&RESUME).succeeded();
    assert!(
        resumed.stderr.contains("resuming from step 10: "),
        "{resumed}"
    );

    let longer = [&STEADY[..], &["--max-train-steps", "25"]].concat();
    home.train("whole", &longer).succeeded();
    for step in [15, 20, 25] {
        let [one, other] = ["run", "whole"].map(|run| manifest_of(&home.checkpoint(run, step)));
        assert_eq!(one, other, "step {step}");
    }
    let [run, whole] = ["run", "whole"].map(|run| home.run_dir(run));
    for metric in ["loss/train", "loss/eval", "lr", "tokens"] {
        assert_eq!(curve(&run, metric), curve(&whole, metric), "{metric}");
    }
}

#[test]
fn a_run_cannot_continue_from_a_missing_checkpoint() {
    let (home, _) = trained();
    let output = home.host(&[&RESUME[..], &["--from", "step-000012"]].concat());
    let (error, hint) = output.failed_with(2);
    assert!(
        error.starts_with("the run has no checkpoint step-000012: "),
        "{error}"
    );
    assert_eq!(
        hint,
        "choose one of step-000005, step-000010, step-000015, step-000020"
    );

    // A run whose checkpoints were removed does not start over.
    fs::remove_dir_all(home.run_dir("run").join("checkpoints")).expect("removed");
    let output = home.host(&RESUME);
    let (error, hint) = output.failed_with(2);
    assert!(
        error.starts_with("the run's checkpoints are missing: "),
        "{error}"
    );
    assert!(hint.contains("--name OTHER"), "{hint}");
}

#[test]
fn a_half_written_checkpoint_is_skipped() {
    let (home, newest) = trained();
    // Partial checkpoints, as left by two killed processes. After the resume, step 25 gets a checkpoint and
    // step 23 does not.
    for name in [".step-000023.partial", ".step-000025.partial"] {
        let partial = newest.with_file_name(name);
        fs::create_dir(&partial).expect("made");
        fs::copy(newest.join("manifest.json"), partial.join("manifest.json")).expect("copied");
        fs::write(partial.join("model.safetensors"), b"half").expect("written");
    }
    let resumed = home.host(&RESUME).succeeded();
    assert!(
        resumed.stderr.contains("resuming from step 20: "),
        "{resumed}"
    );
    for name in [".step-000023.partial", ".step-000025.partial"] {
        assert!(!newest.with_file_name(name).exists(), "{name}");
    }
    let longer = [&STEADY[..], &["--max-train-steps", "25"]].concat();
    home.train("whole", &longer).succeeded();
    let [one, other] = ["run", "whole"].map(|run| manifest_of(&home.checkpoint(run, 25)));
    assert_eq!(one, other);
}

#[test]
fn a_damaged_checkpoint_is_refused_by_every_command_that_reads_one() {
    let (home, checkpoint) = trained();
    let place = checkpoint.to_str().expect("a path");
    flip(&checkpoint.join("model.safetensors"), |length| length - 1);
    let said = |args: &[&str]| {
        let output = home.host(args);
        let (error, hint) = output.failed_with(2);
        assert!(
            error.starts_with("the checkpoint is damaged: "),
            "{args:?}: {error}"
        );
        assert!(error.contains("model.safetensors"), "{error}");
        assert!(!hint.is_empty());
        assert_eq!(output.stdout.trim(), "", "{output}");
    };
    said(&["generate", "run"]);
    said(&["generate", place]);
    said(&["run", "tiny.toml", "--name", "other", "--model", place]);
    said(&[
        "run",
        "tiny.toml",
        "--name",
        "other",
        "--resume-from-checkpoint",
        place,
    ]);
    said(&["groups", "tiny.toml", "--model", place]);
    assert!(!home.run_dir("other").exists());

    let (home, checkpoint) = trained();
    let place = checkpoint.to_str().expect("a path");
    flip(&checkpoint.join("tokenizer.json"), |length| length / 2);
    let tokenize = ["data", "tokenize", "--data", "data", "--output", "tokens"];
    let run = ["run", "tiny.toml", "--name", "other"];
    let file = checkpoint.join("tokenizer.json");
    for tokenizer in [place, file.to_str().expect("a path")] {
        for command in [&tokenize[..], &run] {
            let output = home.host(&[command, &["--tokenizer", tokenizer]].concat());
            let (error, _) = output.failed_with(2);
            assert!(error.starts_with("the checkpoint is damaged: "), "{error}");
        }
    }
}

/// Replaces a file of a checkpoint and updates the manifest, as in a forged checkpoint.
fn make_up(checkpoint: &Path, name: &str, content: &[u8]) {
    fs::write(checkpoint.join(name), content).expect("written");
    let mut manifest = manifest_of(checkpoint);
    let entry = FileEntry {
        sha256: sha256(content),
        size: content.len() as u64,
    };
    manifest.files.insert(name.to_owned(), entry);
    fs::write(
        checkpoint.join("manifest.json"),
        json!(manifest).to_string(),
    )
    .expect("written");
}

#[test]
fn an_impossible_state_of_the_training_is_an_error() {
    let (home, checkpoint) = trained();
    let name = "trainer/state.json";
    let good: Value =
        serde_json::from_slice(&fs::read(checkpoint.join(name)).expect("a state")).expect("JSON");
    let refused = |what: &str| {
        let output = home.host(&RESUME);
        assert!(!output.stderr.contains("panicked"), "{what}: {output}");
        output.failed_with(2);
    };
    let source = "/data/position/sources/0";
    for (at, value) in [
        ("/step", json!(u64::MAX)),
        ("/step", json!(-1)),
        ("/data/sequences", json!(u64::MAX)),
        ("/data/position/current", json!(7)),
        ("/data/position/sources", json!([{}, {}])),
        (&*format!("{source}/place/epoch"), json!(u64::MAX)),
        (&*format!("{source}/place/file"), json!(1_000_000)),
        (&*format!("{source}/place/passage"), json!(u64::MAX)),
        (&*format!("{source}/token"), json!(u64::MAX)),
        (&*format!("{source}/tokens"), json!(u64::MAX)),
        ("/learning_rate_factor", json!(-1.0)),
        ("/learning_rate_factor", json!("x")),
        ("/asked", json!([{ "by": 1 }])),
        ("/setup", json!({ "seq_length": "x" })),
        ("/format", json!(99)),
    ] {
        let mut state = good.clone();
        *state
            .pointer_mut(at)
            .unwrap_or_else(|| panic!("no {at} in {good}")) = value.clone();
        make_up(&checkpoint, name, state.to_string().as_bytes());
        refused(&format!("{at} = {value}"));
    }
    make_up(&checkpoint, name, good.to_string().as_bytes());

    for (name, tensors) in [
        ("optimizer.safetensors", json!({})),
        (
            "optimizer.safetensors",
            json!({ "step": { "dtype": "F32", "shape": [2], "data_offsets": [0, 8] } }),
        ),
        (
            "random.safetensors",
            json!({ "cpu": { "dtype": "U8", "shape": [8], "data_offsets": [0, 8] } }),
        ),
        (
            "random.safetensors",
            json!({ "cpu": { "dtype": "F32", "shape": [2], "data_offsets": [0, 8] } }),
        ),
        ("data.safetensors", json!({})),
        (
            "data.safetensors",
            json!({ "buffer": { "dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8] } }),
        ),
        (
            "data.safetensors",
            json!({ "buffer": { "dtype": "U32", "shape": [2], "data_offsets": [0, 8] } }),
        ),
        (
            "data.safetensors",
            json!({ "buffer": { "dtype": "U32", "shape": [1, 2], "data_offsets": [0, 8] } }),
        ),
        (
            "data.safetensors",
            json!({ "buffer": { "dtype": "U32", "shape": [1, 1_u64 << 62], "data_offsets": [0, 8] } }),
        ),
    ] {
        let name = format!("trainer/{name}");
        let whole = fs::read(checkpoint.join(&name)).expect("a file");
        let header = tensors.to_string();
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.as_bytes());
        if header.contains("dtype") {
            file.extend([0xff; 8]);
        }
        make_up(&checkpoint, &name, &file);
        let output = home.host(&RESUME);
        assert!(
            !output.stderr.contains("panicked"),
            "{name} {header}: {output}"
        );
        assert!(
            output.stderr.contains("error: "),
            "{name} {header}: {output}"
        );
        make_up(&checkpoint, &name, &whole);
    }
    // The buffer contains a token that is not in the vocabulary.
    let name = "trainer/data.safetensors";
    let whole = fs::read(checkpoint.join(name)).expect("a file");
    let mut changed = whole.clone();
    let last = changed.len() - 2;
    changed[last] = 0xff;
    make_up(&checkpoint, name, &changed);
    refused("a token beyond the vocabulary");
    make_up(&checkpoint, name, &whole);
    home.host(&RESUME).succeeded();
}

#[test]
fn a_manifest_stays_within_its_folder_and_lists_all_files() {
    let (home, checkpoint) = trained();
    let manifest = checkpoint.join("manifest.json");
    let good = fs::read_to_string(&manifest).expect("text");
    let edited = |change: &dyn Fn(&mut Value)| {
        let mut json: Value = serde_json::from_str(&good).expect("JSON");
        change(&mut json["files"]);
        fs::write(&manifest, json.to_string()).expect("written");
        let output = home.host(&RESUME);
        let (error, _) = output.failed_with(2);
        assert!(error.starts_with("the checkpoint is damaged: "), "{error}");
        // An attempt to deliver the damaged checkpoint does not panic.
        let deliver = home.host(&["deliver", "run"]);
        assert!(!deliver.stderr.contains("panicked"), "{deliver}");
    };
    let entry = json!({ "sha256": "00", "size": 1 });
    for name in [
        "../config.json",
        "/dev/zero",
        "trainer/../../../run.toml",
        "",
    ] {
        edited(&|files| files[name] = entry.clone());
    }
    edited(&|files| files["model.safetensors"]["size"] = json!(u64::MAX));
    // A modified optimizer state that the manifest does not list.
    let optimizer = checkpoint.join("trainer/optimizer.safetensors");
    flip(&optimizer, |length| length - 1);
    edited(&|files| {
        files
            .as_object_mut()
            .expect("files")
            .remove("trainer/optimizer.safetensors");
    });
    flip(&optimizer, |length| length - 1);

    // Replace a regular file with something else.
    fs::write(&manifest, &good).expect("written");
    let state = checkpoint.join("trainer/state.json");
    let whole = fs::read(&state).expect("a state");
    let pipe = |file: &Path| {
        let made = std::process::Command::new("mkfifo").arg(file).status();
        assert!(made.expect("mkfifo").success());
    };
    let makes: [&dyn Fn(&Path); 3] = [
        &|file| symlink("/dev/zero", file).expect("linked"),
        &pipe,
        &|file| fs::create_dir(file).expect("made"),
    ];
    for make in makes {
        fs::remove_file(&state).expect("removed");
        make(&state);
        assert_refused(&home, "it is ", &state);
        let _ = fs::remove_file(&state);
        let _ = fs::remove_dir(&state);
        fs::write(&state, &whole).expect("written");
    }
    home.host(&RESUME).succeeded();
}
