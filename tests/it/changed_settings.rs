//! Resuming with changed settings. If the checkpoint's state depends on a changed setting, the error names
//! the setting. The new values of all other settings are recorded.

use std::fs;

use toml::{Table, Value};

use crate::support::{Home, Output};

/// Returns a home with a run `first`, and the path of its checkpoint at step 10.
fn trained() -> (Home, String) {
    let home = Home::new();
    home.train("first", &[]).succeeded();
    let checkpoint = home.text_path("runs/first/checkpoints/step-000010");
    (home, checkpoint)
}

fn resume(home: &Home, name: &str, checkpoint: &str, more: &[&str]) -> Output {
    home.train(
        name,
        &[&["--resume-from-checkpoint", checkpoint], more].concat(),
    )
}

fn recorded(home: &Home, run: &str) -> Table {
    let text = fs::read_to_string(home.run_dir(run).join("run.toml")).expect("run.toml");
    text.parse().expect("TOML")
}

#[test]
fn settings_that_the_state_depends_on_are_rejected_by_name() {
    let (home, checkpoint) = trained();
    let other = home.text_path("other");
    let args = [
        "data",
        "tokenize",
        "--data",
        "data",
        "--vocab-size",
        "280",
        "--output",
        &other,
    ];
    home.host(&args).succeeded();
    fs::create_dir(home.path("others")).expect("made");
    for name in ["a.rs", "b.rs", "c.rs"] {
        fs::copy(home.path("data/00.rs"), home.path("others").join(name)).expect("copied");
    }
    for (name, more) in [
        ("seq_length", &["--seq-length", "64"][..]),
        ("seq_length", &["--seq-length", "16"]),
        ("seed", &["--seed", "2"]),
        ("precision", &["--precision", "f64"]),
        ("text_column", &["--text-column", "text"]),
        ("data_weights", &["--data-weights", "0.5"]),
        ("vocab_size", &["--vocab-size", "400"]),
        ("model", &["--model", "demo"]),
        (
            "model",
            &[
                "--model",
                &home.text_path("runs/first/checkpoints/step-000020"),
            ],
        ),
        ("tokenizer", &["--tokenizer", &other]),
        ("end_of_text", &["--end-of-text", "a"]),
        ("training data", &["--data", "others"]),
        ("valid_data", &["--valid-data", "others"]),
        ("valid_every", &["--valid-every", "3", "--extensions", "rs"]),
    ] {
        let output = resume(&home, "refused", &checkpoint, more);
        let (error, hint) = output.failed_with(2);
        assert!(error.contains(name), "{more:?}: {error}");
        assert!(
            !hint.is_empty() && !output.stderr.contains("panicked"),
            "{output}"
        );
        assert!(!home.run_dir("refused").exists(), "{more:?}");
    }
}

#[test]
fn changed_settings_are_recorded() {
    let (home, checkpoint) = trained();
    let more = [
        "--train-batch-size",
        "2",
        "--gradient-accumulation-steps",
        "2",
        "--shuffle-buffer",
        "8",
        "--learning-rate",
        "1e-4",
        "--weight-decay",
        "0.5",
        "--max-grad-norm",
        "0.5",
        "--lr-scheduler-type",
        "linear",
        "--valid-batch-size",
        "2",
        "--max-eval-steps",
        "1",
        "--gradient-checkpointing",
        "--max-train-steps",
        "14",
        "--save-checkpoint-steps",
        "2",
    ];
    resume(&home, "changed", &checkpoint, &more).succeeded();
    assert_eq!(home.checkpoints("changed"), [12, 14]);
    let table = recorded(&home, "changed");
    for (key, value) in [
        ("train_batch_size", Value::from(2)),
        ("shuffle_buffer", 8.into()),
        ("learning_rate", 1e-4.into()),
        ("lr_scheduler_type", "linear".into()),
        ("resume_from_checkpoint", checkpoint.as_str().into()),
        // `tiny` names only a shape, and the checkpoint's model has the same shape. So the model is recorded
        // as `tiny`, not as the checkpoint.
        ("model", "tiny".into()),
    ] {
        assert_eq!(table[key], value, "{key}");
    }
    // A larger buffer is accepted, too.
    resume(&home, "larger", &checkpoint, &["--shuffle-buffer", "200"]).succeeded();
}

#[test]
fn a_checkpoint_provides_its_model() {
    let (home, checkpoint) = trained();
    let text = fs::read_to_string(home.path("tiny.toml")).expect("a configuration");
    let without = text.replace("model = \"tiny\"\n", "");
    fs::write(home.path("without.toml"), &without).expect("written");
    let more = ["--resume-from-checkpoint", &checkpoint];
    let run = ["run", "without.toml", "--name", "second"];
    home.host(&[&run[..], &more].concat()).succeeded();
    assert_eq!(
        recorded(&home, "second")["model"],
        Value::from(&*checkpoint)
    );
    // A run with the recorded configuration gives the same weights as the first run.
    let again = home.text_path("runs/second/run.toml");
    home.host(&["run", &again, "--name", "third"]).succeeded();
    let weights = |run: &str| fs::read(home.checkpoint(run, 20).join("model.safetensors"));
    assert_eq!(
        weights("third").expect("weights"),
        weights("first").expect("weights")
    );

    // If the configuration names weights that are not the checkpoint's, there is a warning.
    let other = home.text_path("runs/first/checkpoints/step-000020");
    let fine = format!("model = {other:?}\n{without}");
    fs::write(home.path("fine.toml"), fine).expect("written");
    let run = ["run", "fine.toml", "--name", "fine"];
    let output = home.host(&[&run[..], &more].concat()).succeeded();
    assert!(
        output
            .stderr
            .contains("using the weights of the checkpoint instead of"),
        "{output}"
    );
    assert_eq!(recorded(&home, "fine")["model"], Value::from(&*checkpoint));
}

#[test]
fn an_edited_run_file_is_checked_in_the_same_way() {
    let (home, _) = trained();
    let file = home.run_dir("first").join("run.toml");
    let good = fs::read_to_string(&file).expect("run.toml");
    let other = home.text_path("runs/first/checkpoints/step-000005");
    for (from, to, name) in [
        (
            "seq_length = 32",
            "seq_length = 64".to_owned(),
            "seq_length",
        ),
        ("seed = 1", "seed = 7".to_owned(), "seed"),
        (
            "data_weights = []",
            "data_weights = [1.0]".to_owned(),
            "data_weights",
        ),
        ("model = \"tiny\"", "model = \"demo\"".to_owned(), "model"),
        ("model = \"tiny\"", format!("model = {other:?}"), "model"),
        (
            "model = \"tiny\"",
            "model = \"hub:ann/gpt\"".to_owned(),
            "model",
        ),
    ] {
        assert!(good.contains(from), "{good}");
        fs::write(&file, good.replace(from, &to)).expect("written");
        let output = home.host(&["resume", "first", "--max-train-steps", "25"]);
        let (error, _) = output.failed_with(2);
        assert!(error.contains(name), "{to}: {error}");
        assert!(!output.stderr.contains("panicked"), "{output}");
    }
    fs::write(
        &file,
        good.replace("learning_rate = 0.003", "learning_rate = 0.001"),
    )
    .expect("written");
    home.host(&["resume", "first", "--max-train-steps", "25"])
        .succeeded();
    assert_eq!(
        recorded(&home, "first")["learning_rate"],
        Value::from(0.001)
    );
}
