//! Models and tokenizers from other programs: supported files are read as those programs intend. All other
//! files are rejected before a run is created, with an error that names the file.

use std::fs;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors, View};
use serde_json::{Value, json};

use crate::support::{Home, Output, manifest_of};

/// Returns a home with a checkpoint, and the path of the folder `model`. This folder is a copy of the
/// checkpoint, but without the manifest and the trainer's state.
fn with_model() -> (Home, PathBuf) {
    let home = Home::new();
    home.train("first", &["--max-train-steps", "5"]).succeeded();
    let model = home.path("model");
    copy_model(&home.checkpoint("first", 5), &model);
    (home, model)
}

fn copy_model(from: &Path, to: &Path) {
    fs::create_dir(to).expect("made");
    for entry in fs::read_dir(from).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name");
        if path.is_file() && name != "manifest.json" {
            fs::copy(&path, to.join(name)).expect("copied");
        }
    }
}

/// Trains for two steps, starting from a model.
fn begin(home: &Home, name: &str, model: &Path, more: &[&str]) -> Output {
    let model = model.to_str().expect("a path");
    let args = [
        "--model",
        model,
        "--max-train-steps",
        "2",
        "--num-warmup-steps",
        "0",
    ];
    home.train(name, &[&args[..], more].concat())
}

/// Asserts that the command failed without creating a run. Returns the error and the hint.
#[track_caller]
fn refused(home: &Home, output: &Output) -> (String, String) {
    let (error, hint) = output.failed_with(2);
    let runs = fs::read_dir(home.path("runs")).expect("runs").count();
    assert_eq!(runs, 1, "{output}");
    assert!(!output.stderr.contains("panicked"), "{output}");
    (error.to_owned(), hint.to_owned())
}

fn edit(file: &Path, change: impl Fn(&mut Value)) {
    let mut json = read(file);
    change(&mut json);
    fs::write(file, json.to_string()).expect("written");
}

fn read(file: &Path) -> Value {
    serde_json::from_slice(&fs::read(file).expect("a file")).expect("JSON")
}

/// A tensor that was read from one file and can be written to another.
struct Part(Dtype, Vec<usize>, Vec<u8>);

impl View for &Part {
    fn dtype(&self) -> Dtype {
        self.0
    }
    fn shape(&self) -> &[usize] {
        &self.1
    }
    fn data(&self) -> std::borrow::Cow<'_, [u8]> {
        (&self.2[..]).into()
    }
    fn data_len(&self) -> usize {
        self.2.len()
    }
}

fn tensors(file: &Path) -> Vec<(String, Part)> {
    let bytes = fs::read(file).expect("weights");
    let tensors = SafeTensors::deserialize(&bytes).expect("safetensors");
    let part = |(name, view): (String, safetensors::tensor::TensorView<'_>)| {
        (
            name,
            Part(view.dtype(), view.shape().to_vec(), view.data().to_vec()),
        )
    };
    tensors.tensors().into_iter().map(part).collect()
}

fn write(file: &Path, tensors: &[(String, Part)]) {
    let tensors = tensors.iter().map(|(name, part)| (name, part));
    safetensors::serialize_to_file(tensors, None, file).expect("written");
}

#[test]
fn weights_in_another_format_are_never_replaced_by_new_weights() {
    let (home, model) = with_model();
    let whole = fs::read(model.join("model.safetensors")).expect("weights");
    fs::remove_file(model.join("model.safetensors")).expect("removed");
    for (name, way) in [
        ("pytorch_model-00001-of-00002.bin", "save_pretrained"),
        ("tf_model.h5", "from_tf=True"),
        ("flax_model.msgpack", "from_flax=True"),
        ("model.Q4_K_M.gguf", "gguf_file"),
        ("consolidated.00.pth", "safetensors.torch.save_file"),
        ("model.ckpt.index", "model.safetensors"),
        ("adapter_model.safetensors", "merge_and_unload"),
        (
            "model-00001-of-00002.safetensors",
            "model.safetensors.index.json",
        ),
        ("onnx/model.onnx", "model.safetensors"),
    ] {
        let file = model.join(name);
        fs::create_dir_all(file.parent().expect("a folder")).expect("made");
        fs::write(&file, &whole).expect("written");
        let (error, hint) = refused(&home, &begin(&home, "refused", &model, &[]));
        assert!(
            error.contains(&format!("unsupported format: {name}")),
            "{error}"
        );
        assert!(hint.contains(way), "{hint}");
        let (error, _) = refused(&home, &home.host(&["generate", "model"]));
        assert!(error.contains(name), "{error}");
        fs::remove_file(&file).expect("removed");
    }
    // If the folder has no weights, there is a warning, and the training starts with new weights.
    let output = begin(&home, "new", &model, &[]).succeeded();
    assert!(
        output
            .stderr
            .contains("has no weights; training starts with new ones"),
        "{output}"
    );
    // A checkpoint that still has its manifest can be used, too. Its weights can also have the name
    // pytorch_model.bin.
    let checkpoint = home.checkpoint("first", 5);
    begin(&home, "whole", &checkpoint, &[]).succeeded();
    let rename = |from: &str, to: &str| {
        fs::rename(checkpoint.join(from), checkpoint.join(to)).expect("renamed");
    };
    rename("model.safetensors", "pytorch_model.bin");
    begin(&home, "renamed", &checkpoint, &[]).succeeded();
    let manifest = |run: &str| manifest_of(&home.checkpoint(run, 2));
    assert_eq!(manifest("renamed"), manifest("whole"));
    rename("pytorch_model.bin", "tf_model.h5");
    let output = begin(&home, "refused", &checkpoint, &[]);
    let (error, _) = output.failed_with(2);
    assert!(error.contains("tf_model.h5"), "{error}");
}

#[test]
fn shards_equal_the_single_file_and_a_list_next_to_the_single_file_is_ignored() {
    let (home, model) = with_model();
    begin(&home, "whole", &model, &[]).succeeded();
    let list = model.join("model.safetensors.index.json");
    fs::write(&list, r#"{"weight_map":{"w":"x.safetensors"}}"#).expect("written");
    let output = begin(&home, "beside", &model, &[]).succeeded();
    assert!(
        output
            .stderr
            .contains("the list of shards next to it is ignored"),
        "{output}"
    );

    let mut all = tensors(&model.join("model.safetensors"));
    let second = all.split_off(all.len() / 2);
    let mut map = serde_json::Map::new();
    for (file, part) in [("a.safetensors", &all), ("b.safetensors", &second)] {
        write(&model.join(file), part);
        map.extend(part.iter().map(|(name, _)| (name.clone(), json!(file))));
    }
    fs::write(
        &list,
        json!({ "metadata": {}, "weight_map": map }).to_string(),
    )
    .expect("written");
    fs::remove_file(model.join("model.safetensors")).expect("removed");
    begin(&home, "shards", &model, &[]).succeeded();
    let manifest = |run: &str| manifest_of(&home.checkpoint(run, 2));
    assert_eq!(manifest("shards"), manifest("whole"));
    assert_eq!(manifest("beside"), manifest("whole"));

    fs::remove_file(model.join("b.safetensors")).expect("removed");
    let output = begin(&home, "refused", &model, &[]);
    assert!(
        output.failed_with(2).0.contains("b.safetensors is missing"),
        "{output}"
    );
    assert!(!home.run_dir("refused").exists());
}

#[test]
fn weights_need_their_tokenizer() {
    let (home, model) = with_model();
    begin(&home, "usual", &model, &[]).succeeded();
    let json = read(&model.join("tokenizer.json"));
    fs::remove_file(model.join("tokenizer.json")).expect("removed");
    fs::remove_file(model.join("tokenizer_config.json")).expect("removed");
    let output = begin(&home, "refused", &model, &[]);
    let (error, hint) = output.failed_with(2);
    assert!(
        error.starts_with("the model has weights but no tokenizer"),
        "{error}"
    );
    assert!(hint.contains("--tokenizer"), "{hint}");

    fs::write(model.join("tokenizer.model"), "x").expect("written");
    let output = begin(&home, "refused", &model, &[]);
    let (error, hint) = output.failed_with(2);
    assert!(
        error.contains("in an unsupported format: tokenizer.model"),
        "{error}"
    );
    assert!(
        hint.contains("AutoTokenizer") && hint.contains("--tokenizer"),
        "{hint}"
    );
    assert!(!home.run_dir("refused").exists());

    // Old versions of transformers wrote these two files instead of tokenizer.json.
    fs::write(model.join("vocab.json"), json["model"]["vocab"].to_string()).expect("written");
    let merges = json["model"]["merges"].as_array().expect("merges");
    let line = |pair: &Value| match pair.as_array() {
        Some(pair) => format!(
            "{} {}\n",
            pair[0].as_str().unwrap_or(""),
            pair[1].as_str().unwrap_or("")
        ),
        None => format!("{}\n", pair.as_str().unwrap_or("")),
    };
    let merges: String = merges.iter().map(line).collect();
    fs::write(model.join("merges.txt"), format!("#version: 0.2\n{merges}")).expect("written");
    begin(&home, "older", &model, &[]).succeeded();
    let weights = |run: &str| fs::read(home.checkpoint(run, 2).join("model.safetensors"));
    assert_eq!(
        weights("older").expect("weights"),
        weights("usual").expect("weights")
    );
    assert!(home.checkpoint("older", 2).join("tokenizer.json").is_file());
}

#[test]
fn a_gap_in_a_tokenizers_ids_gets_a_row_or_is_rejected() {
    let (home, model) = with_model();
    let tokenizer = model.join("tokenizer.json");
    let given = ["--tokenizer", tokenizer.to_str().expect("a path")];
    let args = [&given[..], &["--max-train-steps", "2"]].concat();
    edit(&tokenizer, |json| json["model"]["vocab"]["x"] = 700.into());
    home.train("hole", &args).succeeded();
    let config = read(&home.checkpoint("hole", 2).join("config.json"));
    assert_eq!(config["vocab_size"], 701);
    // The weights have no row for the new id.
    let output = begin(&home, "refused", &model, &[]);
    let (error, _) = output.failed_with(2);
    assert!(
        error.starts_with("the tokenizer has ids up to 700"),
        "{error}"
    );

    edit(&tokenizer, |json| {
        let token = json!({ "id": 900, "content": "<x>", "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true });
        json["added_tokens"]
            .as_array_mut()
            .expect("a list")
            .push(token);
    });
    let output = home.train("refused", &args);
    let (error, _) = output.failed_with(2);
    assert!(error.contains("\"<x>\" has the id 900"), "{error}");
    assert!(!home.run_dir("refused").exists());
}

#[test]
fn a_padded_vocabulary_keeps_its_rows() {
    let (home, model) = with_model();
    let own = read(&model.join("config.json"))["vocab_size"]
        .as_i64()
        .expect("a size");
    fs::remove_file(model.join("model.safetensors")).expect("removed");
    edit(&model.join("config.json"), |json| {
        json["vocab_size"] = 384.into();
    });
    assert!(own < 384);
    let config = home.path("plain.toml");
    let text = fs::read_to_string(home.path("tiny.toml")).expect("a configuration");
    fs::write(&config, text.replace("vocab_size = 300\n", "")).expect("written");
    let args = [
        "run",
        "plain.toml",
        "--model",
        "model",
        "--max-train-steps",
        "2",
        "--name",
    ];
    home.host(&[&args[..], &["padded"]].concat()).succeeded();
    let rows = |run: &str| read(&home.checkpoint(run, 2).join("config.json"))["vocab_size"].clone();
    assert_eq!(rows("padded"), 384);
    // A run that starts from these weights keeps all 384 rows.
    let padded = home.checkpoint("padded", 2);
    begin(&home, "again", &padded, &[]).succeeded();
    assert_eq!(rows("again"), 384);
    // If config.json specifies fewer rows than the tokenizer has ids, the model gets a row for each id, and
    // there is a warning.
    edit(&model.join("config.json"), |json| {
        json["vocab_size"] = 100.into();
    });
    let output = home.host(&[&args[..], &["grown"]].concat()).succeeded();
    assert!(
        output
            .stderr
            .contains("instead of the 100 in its config.json"),
        "{output}"
    );
    assert_eq!(rows("grown"), own);
}

#[test]
fn a_head_that_differs_from_the_embedding_is_not_dropped() {
    let (home, model) = with_model();
    let file = model.join("model.safetensors");
    let mut all = tensors(&file);
    let wte = all
        .iter()
        .find(|(name, _)| name == "transformer.wte.weight");
    let Part(dtype, shape, data) = &wte.expect("an embedding").1;
    let head = Part(*dtype, shape.clone(), data.clone());
    all.push(("lm_head.weight".to_owned(), head));
    write(&file, &all);
    begin(&home, "same", &model, &[]).succeeded();
    all.last_mut().expect("the head").1.2[0] ^= 1;
    write(&file, &all);
    let output = begin(&home, "refused", &model, &[]);
    let (error, hint) = output.failed_with(2);
    assert!(
        error.starts_with("lm_head.weight differs from wte.weight"),
        "{error}"
    );
    assert!(hint.contains("tie_word_embeddings"), "{hint}");
    edit(&model.join("config.json"), |json| {
        json["tie_word_embeddings"] = false.into();
    });
    begin(&home, "untied", &model, &[]).succeeded();
    let names = |run: &str| {
        let tensors = tensors(&home.checkpoint(run, 2).join("model.safetensors"));
        tensors
            .into_iter()
            .any(|(name, _)| name == "lm_head.weight")
    };
    assert!(names("untied") && !names("same"));
}

#[test]
fn a_cache_that_cannot_be_written_does_not_end_a_run() {
    let home = Home::new();
    fs::write(home.path(".cache"), "").expect("written");
    let output = home.train("run", &["--max-train-steps", "2"]).succeeded();
    assert!(
        output.stderr.contains("the cache cannot be written"),
        "{output}"
    );
    assert_eq!(home.checkpoints("run"), [2]);
    let args = [
        "data",
        "tokenize",
        "--data",
        "data",
        "--vocab-size",
        "300",
        "--output",
        "tokens",
    ];
    let output = home.host(&args).succeeded();
    assert!(
        output.stderr.contains("the cache cannot be written"),
        "{output}"
    );
}

#[test]
fn a_schedule_without_a_peak_is_a_warning_and_one_without_an_end_an_error() {
    let home = Home::new();
    let output = home.train(
        "warm",
        &["--max-train-steps", "2", "--num-warmup-steps", "2"],
    );
    let said = &output.succeeded().stderr;
    assert!(
        said.contains("the learning rate never reaches its peak"),
        "{said}"
    );
    let args = [
        "--lr-scheduler-type",
        "warmup_stable_decay",
        "--num-warmup-steps",
        "12",
        "--num-decay-steps",
        "9",
    ];
    let output = home.train("refused", &args);
    let (error, hint) = output.failed_with(2);
    assert!(error.contains("exceeds max_train_steps 20"), "{error}");
    assert!(hint.contains("--num-decay-steps"), "{hint}");
}

#[test]
fn the_token_between_documents_can_be_set() {
    let (home, model) = with_model();
    edit(&model.join("tokenizer.json"), |json| {
        json["added_tokens"][0]["content"] = "<end>".into();
        let vocab = json["model"]["vocab"]
            .as_object_mut()
            .expect("a vocabulary");
        let id = vocab.remove("<|endoftext|>").expect("an end");
        vocab.insert("<end>".to_owned(), id);
    });
    fs::remove_file(model.join("tokenizer_config.json")).expect("removed");
    let output = begin(&home, "refused", &model, &[]);
    assert!(
        output.failed_with(2).1.contains("--end-of-text"),
        "{output}"
    );
    begin(&home, "named", &model, &["--end-of-text", "<end>"]).succeeded();
    let config = read(&home.checkpoint("named", 2).join("tokenizer_config.json"));
    assert_eq!(config["eos_token"], "<end>");
}
