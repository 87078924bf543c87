//! Token files that are made on the command line, and a run that trains on them.

use std::fs;

use crate::support::{Home, curve};

#[test]
fn a_training_on_token_files_equals_the_training_on_their_text() {
    let home = Home::new();
    let tokenize = ["data", "tokenize", "--data", "data", "--vocab-size", "300"];
    let said = home
        .host(&[&tokenize[..], &["--output", "out", "--json"]].concat())
        .succeeded()
        .json();
    assert_eq!(said[0]["path"], "out/train.tokens");
    assert!(said[0]["tokens"].as_u64().expect("a count") > 1000);

    home.train("text", &[]).succeeded();
    let (train, valid) = ("out/train.tokens", "out/valid.tokens");
    let tokens = ["--data", train, "--valid-data", valid];
    home.train("tokens", &tokens).succeeded();
    for metric in ["loss/train", "loss/eval"] {
        let [text, tokens] = ["text", "tokens"].map(|run| curve(&home.run_dir(run), metric));
        assert_eq!(text, tokens, "{metric}");
    }

    let other = ["data", "tokenize", "--data", "data", "--vocab-size", "270"];
    home.host(&[&other[..], &["--output", "other/all.tokens"]].concat())
        .succeeded();
    let other = [&tokens[..], &["--tokenizer", "other"]].concat();
    let refused = home.train("refused", &other);
    let (error, hint) = refused.failed_with(2);
    assert_eq!(
        error,
        format!(
            "the token file was created with a different tokenizer: {}",
            home.text_path(train)
        )
    );
    assert!(hint.contains("--tokenizer"), "{hint}");
    assert!(!home.run_dir("refused").exists());
}

#[test]
fn data_that_cannot_be_tokenized_leaves_no_token_file() {
    let home = Home::new();
    fs::create_dir(home.path("binary")).expect("made");
    fs::write(home.path("binary/a.rs"), [0xff; 9]).expect("written");
    let args = [
        "data",
        "tokenize",
        "--data",
        "binary",
        "--output",
        "out/a.tokens",
    ];
    let refused = home.host(&args);
    let (error, hint) = refused.failed_with(2);
    assert!(error.contains("no usable data"), "{error}");
    assert!(error.contains("not UTF-8"), "{error}");
    assert!(hint.contains("--extensions"), "{hint}");
    let left = fs::read_dir(home.path("out")).expect("a folder");
    assert!(
        left.flatten()
            .all(|file| !file.file_name().to_string_lossy().contains(".tokens"))
    );
}
