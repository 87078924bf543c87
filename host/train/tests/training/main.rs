//! Tests that train a tiny model on the CPU, or on the device in `TEST_DEVICE`.

mod merged;
mod observers;
mod requests;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use host_core::{
    Control, Draft, Emitter, EventBody, Inbox, Observer, ParamGroup, RequestQueue, Requests, Step,
    StopReason, Supervised,
};
use host_train::{
    BoundaryPorts, CheckpointPorts, Collective, Observers, Outcome, Ports, Precision,
    SchedulerType, Start, TrainConfig, Trainer,
};
use parquet::file::writer::SerializedFileWriter;

/// Returns documents as pairs of name and text. A tiny model can learn from them within a few steps.
fn documents() -> Vec<(String, String)> {
    let document = |file| {
        let mut text = String::new();
        for line in 0..40 {
            let (a, b) = (file * 7 % 11, line * 5 % 13);
            text += &format!(
                "fn f_{a}(x: u32) -> u32 {{\n    x * {b} + {}\n}}\n\n",
                a + b
            );
        }
        (format!("{file:02}.rs"), text)
    };
    (0..40).map(document).collect()
}

/// Creates a folder of text files.
fn corpus(folder: &Path) {
    fs::create_dir(folder).expect("made");
    for (name, text) in documents() {
        fs::write(folder.join(name), text).expect("written");
    }
}

/// Creates a folder of compressed JSON Lines files.
fn json_lines(folder: &Path) {
    fs::create_dir(folder).expect("made");
    for (number, part) in documents().chunks(9).enumerate() {
        let file = fs::File::create(folder.join(format!("{number}.jsonl.gz"))).expect("made");
        let mut gzip = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
        for (name, text) in part {
            let line = serde_json::json!({ "path": name, "content": text });
            writeln!(gzip, "{line}").expect("written");
        }
        gzip.finish().expect("finished");
    }
}

fn device() -> String {
    std::env::var("TEST_DEVICE").unwrap_or_else(|_| "cpu".to_owned())
}

fn config(folder: &Path) -> TrainConfig {
    TrainConfig {
        data: vec![folder.to_owned()],
        model: "tiny".to_owned(),
        vocab_size: Some(300),
        deterministic: device() != "cpu",
        device: device(),
        threads: Some(1),
        train_batch_size: 4,
        valid_batch_size: 4,
        shuffle_buffer: 64,
        learning_rate: 3e-3,
        num_warmup_steps: 2,
        lr_scheduler_type: SchedulerType::Cosine,
        gradient_accumulation_steps: 2,
        gradient_checkpointing: false,
        max_train_steps: 10,
        max_eval_steps: 4,
        seq_length: 32,
        save_checkpoint_steps: 5,
        ..TrainConfig::default()
    }
}

struct Run {
    outcome: Outcome,
    drafts: Vec<Draft>,
    checkpoints: PathBuf,
}

impl Run {
    fn series(&self, name: &str) -> Vec<(u64, f64)> {
        let mut points = Vec::new();
        for draft in &self.drafts {
            if let EventBody::Metrics { values } = &draft.body {
                points.extend(
                    values
                        .iter()
                        .filter(|value| &*value.name == name)
                        .map(|value| (draft.step.0, value.value)),
                );
            }
        }
        points
    }
}

/// Waits until no other test is training, because the whole process shares libtorch's random number
/// generator.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn train(config: &TrainConfig, start: &Start, home: &Path, control: &Control) -> Run {
    train_observed(config, start, home, control, Vec::new())
}

fn train_observed(
    config: &TrainConfig,
    start: &Start,
    home: &Path,
    control: &Control,
    observers: Vec<Supervised<dyn Observer>>,
) -> Run {
    let (_queue, requests) = RequestQueue::new();
    train_asked(config, start, home, control, observers, requests)
}

fn train_asked(
    config: &TrainConfig,
    start: &Start,
    home: &Path,
    control: &Control,
    observers: Vec<Supervised<dyn Observer>>,
    requests: Requests,
) -> Run {
    let _alone = alone();
    let trainer = Trainer::prepare(
        config,
        start,
        &home.join("cache"),
        Collective::alone(),
        &mut |_| (),
    )
    .expect("prepared");
    let group = |name: &str, weight_decay, decays: bool| ParamGroup {
        name: name.to_owned(),
        weight_decay,
        lr_multiplier: 1.0,
        params: (0..trainer.params().len())
            .filter(|&index| (trainer.params()[index].shape.len() > 1) == decays)
            .collect(),
    };
    let groups = vec![group("decay", 0.1, true), group("no_decay", 0.0, false)];
    let (emitter, drafts) = Emitter::new(10_000);
    let inbox = Inbox::default();
    let emitter = emitter.with_inbox(inbox.clone());
    let checkpoints = home.join("checkpoints");
    let complete = Arc::new(Mutex::new(Vec::new()));
    let told = complete.clone();
    let outcome = trainer
        .fit(Ports {
            groups,
            emitter,
            generation: 0,
            boundary: BoundaryPorts {
                control: control.clone(),
                observers: Observers::new(observers, inbox),
                requests,
                put_back: Box::new(|_, _| ()),
                report: Box::new(|_| ()),
            },
            checkpoints: CheckpointPorts {
                folder: checkpoints.clone(),
                await_events: Box::new(|| ()),
                on_checkpoint: Box::new(move |dir| told.lock().expect("not poisoned").push(dir)),
                is_needed: Box::new(|_| false),
                give_up: Box::new(|_| true),
            },
        })
        .expect("trained");
    for dir in complete.lock().expect("not poisoned").iter() {
        host_train::verify_checkpoint(&dir.path).expect("complete");
    }
    Run {
        outcome,
        drafts: drafts.iter().collect(),
        checkpoints,
    }
}

/// The expected loss after each of ten steps with seed 1 and one thread.
const GOLDEN: [f64; 10] = [
    5.64167, 5.64923, 5.18801, 4.86417, 4.65997, 4.43901, 4.24974, 4.14892, 4.06365, 4.02104,
];

fn assert_golden(run: &Run) {
    let losses = run.series("loss/train");
    assert_eq!(
        losses.iter().map(|point| point.0).collect::<Vec<_>>(),
        (1..=10).collect::<Vec<_>>()
    );
    let losses: Vec<f64> = losses.into_iter().map(|point| point.1).collect();
    let near = losses
        .iter()
        .zip(GOLDEN)
        .all(|(loss, golden)| (loss - golden).abs() < 2e-3);
    assert!(near, "{losses:.5?}\ngolden: {GOLDEN:.5?}");
}

#[test]
fn ten_steps_give_the_golden_losses() {
    let home = tempfile::tempdir().expect("a folder");
    let data = home.path().join("data");
    corpus(&data);
    let run = train(&config(&data), &Start::Fresh, home.path(), &Control::new());
    assert_eq!(run.outcome.reason, StopReason::Completed);
    assert_golden(&run);
}

#[test]
fn bfloat16_learns_as_single_precision_does() {
    let home = tempfile::tempdir().expect("a folder");
    let data = home.path().join("data");
    corpus(&data);
    let config = TrainConfig {
        precision: Precision::Bf16,
        ..config(&data)
    };
    let run = train(&config, &Start::Fresh, home.path(), &Control::new());
    let losses = run.series("loss/train");
    let furthest = std::iter::zip(losses, GOLDEN)
        .map(|((_, loss), golden)| (loss - golden).abs())
        .fold(0.0, f64::max);
    // Weights, gradients and the loss are in single precision; only the products are in bfloat16.
    assert!(furthest > 1e-4 && furthest < 0.02, "{furthest}");
}

#[test]
fn a_resumed_training_gives_the_same_bytes() {
    let home = tempfile::tempdir().expect("a folder");
    for (name, write) in [
        ("text", corpus as fn(&Path)),
        ("jsonl.gz", json_lines),
        ("parquet", parquet),
    ] {
        let home = home.path().join(name);
        fs::create_dir(&home).expect("made");
        write(&home.join("data"));
        resume(&home, &config(&home.join("data")));
    }
}

/// Creates a folder of Parquet files.
fn parquet(folder: &Path) {
    use parquet::data_type::{ByteArray, ByteArrayType};
    let schema = "message m { REQUIRED BYTE_ARRAY content (UTF8); }";
    let schema = Arc::new(parquet::schema::parser::parse_message_type(schema).expect("a schema"));
    fs::create_dir(folder).expect("made");
    for (number, part) in documents().chunks(9).enumerate() {
        let file = fs::File::create(folder.join(format!("{number}.parquet"))).expect("made");
        let mut writer =
            SerializedFileWriter::new(file, schema.clone(), Arc::default()).expect("a writer");
        let mut group = writer.next_row_group().expect("a group");
        let mut column = group.next_column().expect("a column").expect("the text");
        let texts: Vec<_> = part
            .iter()
            .map(|(_, text)| ByteArray::from(text.as_str()))
            .collect();
        let values = column.typed::<ByteArrayType>();
        values.write_batch(&texts, None, None).expect("written");
        column.close().expect("closed");
        group.close().expect("closed");
        writer.close().expect("closed");
    }
}

/// Writes the corpus as token files for training and for evaluation. Returns a configuration that uses them.
fn tokens(home: &Path, config: &TrainConfig) -> TrainConfig {
    let output = home.join("tokens");
    let cache = home.join("cache");
    let written = host_train::tokenize(config, &output, &cache, &mut |_| ()).expect("written");
    let names: Vec<_> = written.iter().map(|file| file.path.clone()).collect();
    assert_eq!(
        names,
        [output.join("train.tokens"), output.join("valid.tokens")]
    );
    let left: Vec<_> = fs::read_dir(&output).expect("a folder").collect();
    assert_eq!(
        left.len(),
        4,
        "two token files, two of the tokenizer: {left:?}"
    );
    TrainConfig {
        data: vec![output.join("train.tokens")],
        valid_data: vec![output.join("valid.tokens")],
        ..config.clone()
    }
}

#[test]
fn token_files_train_like_the_text_and_resume() {
    let home = tempfile::tempdir().expect("a folder");
    let data = home.path().join("data");
    corpus(&data);
    let config = tokens(home.path(), &config(&data));
    let run = train(&config, &Start::Fresh, home.path(), &Control::new());
    assert_golden(&run);
    resume(home.path(), &config);
}

#[test]
fn a_failed_tokenization_changes_no_files() {
    let home = tempfile::tempdir().expect("a folder");
    let data = home.path().join("data");
    corpus(&data);
    let output = home.path().join("out");
    let all = output.join("all.tokens");
    let tokenize = |config: &TrainConfig| {
        host_train::tokenize(config, &all, &home.path().join("cache"), &mut |_| ())
    };
    let good = config(&data);
    let written = tokenize(&good).expect("written");
    assert!(written[0].tokens > 1000 && written[0].vocab_size > 256);
    let before = fs::read(&all).expect("read");
    assert_eq!(before.len() as u64, 64 + 2 * written[0].tokens);

    let binary = home.path().join("binary.txt");
    fs::write(&binary, [0xff; 9]).expect("written");
    let bad = TrainConfig {
        data: vec![binary],
        tokenizer: Some(output.clone()),
        ..good.clone()
    };
    let error = tokenize(&bad).expect_err("nothing to tokenize");
    assert!(error.message().starts_with("no usable data"));
    assert!(fs::read(&all).expect("read") == before);
    assert_eq!(fs::read_dir(&output).expect("a folder").count(), 3);

    let again = TrainConfig {
        data: vec![all.clone()],
        ..good
    };
    let error = tokenize(&again).expect_err("tokenized already");
    assert!(error.message().starts_with("the data is already tokenized"));
}

/// Checks that ten steps give the same result as five steps followed by a resume for five more.
fn resume(home: &Path, config: &TrainConfig) {
    let whole = train(config, &Start::Fresh, &home.join("whole"), &Control::new());

    let parts = home.join("parts");
    let first = train(config, &Start::Fresh, &parts, &Control::new());
    fs::remove_dir_all(first.checkpoints.join("step-000010")).expect("removed");
    let second = train(
        config,
        &Start::From(first.checkpoints.join("step-000005")),
        &parts,
        &Control::new(),
    );
    assert_eq!(second.outcome.step, Step(10));
    let manifest = |run: &Run| {
        fs::read_to_string(run.checkpoints.join("step-000010/manifest.json")).expect("read")
    };
    assert_eq!(manifest(&whole), manifest(&second));
    assert_eq!(whole.series("loss/train")[5..], second.series("loss/train"));
}

#[test]
fn data_that_is_left_out_is_reported() {
    let home = tempfile::tempdir().expect("a folder");
    let data = home.path().join("data");
    corpus(&data);
    let valid = data.join("00.rs");
    fs::write(data.join("binary.rs"), [0xff; 9]).expect("written");
    let config = TrainConfig {
        valid_data: vec![valid],
        ..config(&data)
    };
    let run = train(&config, &Start::Fresh, home.path(), &Control::new());
    let warnings: Vec<_> = run
        .drafts
        .iter()
        .filter_map(|draft| match &draft.body {
            EventBody::Warning { message } => Some((draft.step.0, message.as_str())),
            _ => None,
        })
        .collect();
    let [(5, message)] = warnings[..] else {
        panic!("one warning with the first checkpoint: {warnings:?}");
    };
    assert!(
        message.starts_with("1 document of the training data was left out: 1 not UTF-8 (first: "),
        "{message}"
    );
}
