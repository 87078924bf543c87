//! Invalid arguments, with the error and the hint for each.

use std::fs;

use serde_json::Value;

use crate::support::Home;

/// Runs the tiny configuration with these arguments, which must be rejected before a run is created. Returns
/// the error and the hint.
fn refusal(home: &Home, more: &[&str]) -> (String, String) {
    let output = home.train("refused", more);
    let (error, hint) = output.failed_with(2);
    assert_eq!(output.stdout, "");
    assert!(!home.path("runs").exists(), "{output}");
    (error.to_owned(), hint.to_owned())
}

#[test]
fn numbers_out_of_range_and_unknown_words_are_rejected() {
    let home = Home::new();
    for (argument, value, says, way) in [
        (
            "--train-batch-size",
            "0",
            "train_batch_size is 0, but must be at least 1",
            "--train-batch-size 2",
        ),
        (
            "--learning-rate",
            "nan",
            "learning_rate is NaN, but must be a number above 0",
            "--learning-rate 0.0002",
        ),
        (
            "--learning-rate",
            "fast",
            "invalid value 'fast' for '--learning-rate <RATE>'",
            "host run --help",
        ),
        (
            "--seq-length",
            "129",
            "seq_length 129 is longer than the model's 128 positions",
            "--seq-length 128",
        ),
        (
            "--seq-length",
            "1",
            "seq_length is 1, but must be at least 2",
            "--seq-length 1024",
        ),
        (
            "--max-train-steps",
            "0",
            "max_train_steps is 0, but must be at least 1",
            "--max-train-steps 50000",
        ),
        (
            "--model",
            "gpt5",
            "model is neither a preset nor a config.json nor a folder with one: gpt5",
            "tiny",
        ),
        ("--device", "tpu", "unknown device: tpu", "cpu, cuda"),
        (
            "--precision",
            "f16",
            "invalid value 'f16' for '--precision <TYPE>'",
            "'bf16'",
        ),
        (
            "--name",
            "a/b",
            "invalid run name: \"a/b\"",
            "letters, digits",
        ),
        (
            "--listen",
            "nowhere",
            "cannot listen on \"nowhere\"",
            "127.0.0.1",
        ),
        (
            "--listen",
            "0.0.0.0:0",
            "cannot listen on 0.0.0.0:0",
            "ssh -L",
        ),
        (
            "--learning-rat",
            "1",
            "unexpected argument '--learning-rat' found",
            "'--learning-rate'",
        ),
        (
            "--resume_from_checkpoint",
            "x",
            "no checkpoint to resume from: ",
            "step-000100",
        ),
        (
            "--tokenized",
            "True",
            "unsupported argument: tokenized",
            "`data`",
        ),
    ] {
        let (error, hint) = refusal(&home, &[argument, value]);
        assert!(error.starts_with(says), "{argument} {value}: {error}");
        assert!(hint.contains(way), "{argument} {value}: {hint}");
    }
}

#[test]
fn missing_or_empty_data_is_rejected() {
    let home = Home::new();
    fs::create_dir(home.path("empty")).expect("made");
    fs::create_dir(home.path("binary")).expect("made");
    for file in ["a.rs", "b.rs", "c.rs"] {
        fs::write(home.path("empty").join(file), "").expect("written");
        fs::write(
            home.path("binary").join(file),
            [0xff, 0xfe, 0xc0].repeat(200),
        )
        .expect("written");
    }
    let said = |data: &str, more: &[&str]| {
        let config = home.path("other.toml");
        let text = fs::read_to_string(home.path("tiny.toml")).expect("read");
        let text = text.replace("data = \"data\"", &format!("data = {data}"));
        fs::write(&config, text).expect("written");
        let output = home.host(&[&["run", "other.toml"], more].concat());
        let (error, hint) = output.failed_with(2);
        assert!(!home.path("runs").exists(), "{output}");
        (error.to_owned(), hint.to_owned())
    };
    let (error, hint) = said("[]", &[]);
    assert_eq!(error, "no training data is given");
    assert!(hint.contains("--data"), "{hint}");
    let (error, hint) = said("\"none\"", &[]);
    assert_eq!(
        error,
        format!("data does not exist: {}", home.text_path("none"))
    );
    assert!(hint.contains("check the path"), "{hint}");
    let (error, hint) = said("\"empty\"", &[]);
    assert_eq!(
        error,
        format!("data has no non-empty file: {}", home.text_path("empty"))
    );
    assert!(hint.contains("another folder"), "{hint}");
    let (error, _) = said("\"data\"", &["--extensions", "py"]);
    assert!(
        error.starts_with("data has no non-empty file with the extension py"),
        "{error}"
    );
    let (error, hint) = said("\"binary\"", &[]);
    assert!(error.contains("not UTF-8"), "{error}");
    assert!(hint.contains("--extensions"), "{hint}");
}

#[test]
fn a_file_with_a_wrong_key_or_value_is_rejected() {
    let home = Home::new();
    for (text, says, way) in [
        (
            "learning_rat = 1e-3",
            "unknown key learning_rat",
            "did you mean learning_rate?",
        ),
        (
            "seed = \"one\"",
            "seed is \"one\", but must be a whole number",
            "seed = 1",
        ),
        ("data = 3", "data is 3, but must be a list", "data = []"),
        ("seed =", "not TOML: ", "key = value"),
        (
            "tokenized = true",
            "unsupported argument: tokenized",
            "`data`",
        ),
        (
            "plugin = [3]",
            "plugin is 3, but must be a table",
            "[[plugin]]",
        ),
        (
            "[[plugin]]\nid = \"local-disk\"\ndir = 3",
            "plugin local-disk cannot use the setting dir: 3 is not of type \"string\"",
            "host plugin info local-disk",
        ),
    ] {
        fs::write(home.path("tiny.toml"), text).expect("written");
        let (error, hint) = refusal(&home, &["--data", "data"]);
        assert!(error.starts_with(says), "{text}: {error}");
        assert!(hint.contains(way), "{text}: {hint}");
    }
    let (error, hint) = {
        fs::remove_file(home.path("tiny.toml")).expect("removed");
        refusal(&home, &[])
    };
    assert!(
        error.starts_with("cannot read the configuration: "),
        "{error}"
    );
    assert!(error.ends_with(": tiny.toml"), "{error}");
    assert!(hint.contains("TOML file"), "{hint}");
}

#[test]
fn a_missing_plugin_or_an_invalid_setting_is_rejected() {
    let home = Home::new();
    for (spec, says, way) in [
        (
            "perplexit",
            "unknown plugin: \"perplexit\"",
            "did you mean perplexity?",
        ),
        ("xyz", "unknown plugin: \"xyz\"", "HOST_PLUGIN_PATH"),
        ("./none.so", "plugin does not exist: ./none.so", "its id"),
        (
            "local-disk",
            "plugin local-disk needs the setting dir",
            "--plugin local-disk:dir=",
        ),
        (
            "local-disk:dir=x,kep=3",
            "plugin local-disk has no setting kep",
            "did you mean keep?",
        ),
        (
            "local-disk:dir=x,keep=few",
            "plugin local-disk cannot use the setting keep",
            "host plugin info local-disk",
        ),
        (
            "local-disk:dir=x,keep=0",
            "plugin local-disk cannot use the setting keep",
            "host plugin info local-disk",
        ),
        (
            "hub-git:branch=b",
            "plugin hub-git needs the setting repo",
            "--plugin hub-git:repo=",
        ),
    ] {
        let (error, hint) = refusal(&home, &["--plugin", spec]);
        assert!(error.starts_with(says), "{spec}: {error}");
        assert!(hint.contains(way), "{spec}: {hint}");
    }
    let (error, _) = refusal(&home, &["--plugin", "perplexity", "--plugin", "perplexity"]);
    assert_eq!(error, "the metric perplexity is given twice");
}

/// Returns the configuration that a run recorded.
fn recorded(home: &Home, run: &str) -> Value {
    let shown = home.host(&["runs", "show", run, "--json"]).succeeded();
    shown.json()["config"].clone()
}

#[test]
fn flags_override_the_file_and_the_file_overrides_the_defaults() {
    let home = Home::new();
    home.train("mixed", &["--seed", "3", "--max-train-steps", "6"])
        .succeeded();
    let config = recorded(&home, "mixed");
    assert_eq!(config["seed"], 3, "by flag");
    assert_eq!(config["max_train_steps"], 6, "by flag and file");
    assert_eq!(config["learning_rate"], 3e-3, "by file");
    assert_eq!(config["weight_decay"], 0.1, "by default");
    assert_eq!(home.checkpoints("mixed"), [5, 6]);
}

#[test]
fn the_argument_names_of_the_codeparrot_script_work() {
    let home = Home::new();
    let script = [
        "run",
        "tiny.toml",
        "--name",
        "script",
        "--train_batch_size",
        "3",
        "--model_ckpt",
        "tiny",
        "--save_dir",
        "saved",
        "--dataset_name_train",
        "data",
        "--gradient_checkpointing",
        "True",
        "--max_train_steps=5",
    ];
    home.host(&script).succeeded();
    let shown = home.host(&["runs", "show", "script", "--json", "--runs-dir", "saved"]);
    let config = shown.succeeded().json()["config"].clone();
    assert_eq!(config["train_batch_size"], 3);
    assert_eq!(config["gradient_checkpointing"], true);
    assert_eq!(config["max_train_steps"], 5);
    assert!(!home.path("runs").exists());
}
