//! Tests a loss that is not finite. Depending on `--on-nonfinite`, the run stops, skips the step or
//! continues. In each case, it records an event.

use std::fs;

use safetensors::SafeTensors;
use serde_json::{Value, json};

use crate::support::{Home, Output, assert_complete, curve, manifest_of};

/// A checkpoint at each step, and a schedule that does not warm up.
const EACH_STEP: [&str; 4] = [
    "--save-checkpoint-steps",
    "1",
    "--lr-scheduler-type",
    "constant",
];
const STEPS: u64 = 20;

/// Returns a home with a model in which the embedding of one token is NaN. Batches without the token train
/// normally.
pub(crate) fn poisoned() -> Home {
    let home = Home::new();
    let config = r#"{
        "model_type": "gpt2", "n_layer": 1, "n_embd": 32, "n_head": 2, "n_positions": 64, "vocab_size": 300,
        "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "tie_word_embeddings": false
    }"#;
    fs::write(home.path("untied.json"), config).expect("written");
    let flags = ["--model", "untied.json", "--max-train-steps", "1"];
    home.train("good", &flags).succeeded();
    let model = home.path("model");
    fs::rename(home.checkpoint("good", 1), &model).expect("moved");
    // If the manifest remained, the changed weights would count as damage.
    fs::remove_file(model.join("manifest.json")).expect("removed");

    let text = fs::read(model.join("tokenizer.json")).expect("a tokenizer");
    let tokenizer: Value = serde_json::from_slice(&text).expect("JSON");
    let token = tokenizer["model"]["vocab"]["~"].as_u64().expect("a token") as usize;
    let file = model.join("model.safetensors");
    let mut bytes = fs::read(&file).expect("weights");
    let (header, metadata) = SafeTensors::read_metadata(&bytes).expect("a header");
    let embedding = metadata
        .info("transformer.wte.weight")
        .expect("the embedding");
    let row = 4 * embedding.shape[1];
    let begin = 8 + header + embedding.data_offsets.0 + token * row;
    for value in bytes[begin..begin + row].chunks_exact_mut(4) {
        value.copy_from_slice(&f32::NAN.to_le_bytes());
    }
    fs::write(file, bytes).expect("written");

    // Put the token once into each file, so that only one sequence of each file contains it.
    for entry in fs::read_dir(home.path("data")).expect("a folder") {
        let path = entry.expect("an entry").path();
        let text = fs::read_to_string(&path).expect("text");
        let (one, other) = text.split_at(text.len() / 2);
        fs::write(path, format!("{one}~{other}")).expect("written");
    }
    home
}

fn train(home: &Home, name: &str, on_nonfinite: &str) -> Output {
    let flags = ["--model", "model", "--on-nonfinite", on_nonfinite, "--json"];
    home.train(name, &[&EACH_STEP[..], &flags].concat())
}

/// Returns the steps at which the loss was NaN, according to the events.
fn steps_without_a_number(output: &Output) -> Vec<u64> {
    let mut events = output.events();
    events.retain(|event| event["values"]["loss/train"] == "NaN");
    events
        .iter()
        .map(|event| event["step"].as_u64().expect("a step"))
        .collect()
}

/// Returns the warnings about NaN losses, as (step, text).
fn warnings(output: &Output) -> Vec<(u64, String)> {
    let told = |event: &Value| {
        let message = event["message"].as_str()?;
        let is_one =
            event["kind"] == "warning" && message.starts_with("loss NaN with gradient norm");
        is_one.then(|| (event["step"].as_u64().unwrap_or(0), message.to_owned()))
    };
    output.events().iter().filter_map(told).collect()
}

/// Returns the hash of a file in the checkpoint of a step.
fn hash(home: &Home, run: &str, step: u64, file: &str) -> String {
    manifest_of(&home.checkpoint(run, step)).files[file]
        .sha256
        .clone()
}

const WEIGHTS: &str = "model.safetensors";
const OPTIMIZER: &str = "trainer/optimizer.safetensors";
const STATE: &str = "trainer/state.json";

#[test]
fn a_skipped_step_changes_no_weight_and_is_reported() {
    let home = poisoned();
    let output = train(&home, "skipping", "skip").succeeded();
    let odd = steps_without_a_number(&output);
    assert!(!odd.is_empty() && odd.len() < 15, "{odd:?}");
    let told = warnings(&output);
    assert_eq!(told.iter().map(|told| told.0).collect::<Vec<_>>(), odd);
    for (step, message) in told {
        let expected = format!("at step {step}: the step was skipped");
        assert!(message.ends_with(&expected), "{message}");
    }
    let hash = |step, file| hash(&home, "skipping", step, file);
    for step in 2..=STEPS {
        let kept = [WEIGHTS, OPTIMIZER].map(|file| hash(step, file) == hash(step - 1, file));
        assert_eq!(kept, [odd.contains(&step); 2], "step {step}");
        assert_ne!(
            hash(step, STATE),
            hash(step - 1, STATE),
            "the data position advances"
        );
    }
}

#[test]
fn a_run_that_stopped_continues_when_set_to_skip() {
    let home = poisoned();
    let skipping = train(&home, "skipping", "skip").succeeded();
    let first = steps_without_a_number(&skipping)[0];
    assert!(first > 1, "there is a trained step before it");

    let output = train(&home, "stopping", "stop");
    let (error, hint) = output.failed_with(5);
    let expected = "training diverged: loss NaN with gradient norm ";
    assert!(error.starts_with(expected), "{error}");
    assert!(error.ends_with(&format!(" at step {first}")), "{error}");
    assert!(hint.contains("run.toml"), "{hint}");
    let events = output.events();
    let last = events.last().expect("events");
    assert_eq!(
        (&last["kind"], &last["reason"], &last["message"]),
        (&json!("run_finished"), &json!("failed"), &json!(error))
    );
    // The step with the NaN loss is recorded, but has no checkpoint.
    assert_eq!(steps_without_a_number(&output), [first]);
    assert_eq!(home.checkpoints("stopping").last(), Some(&(first - 1)));
    assert_complete(&home.checkpoint("stopping", first - 1));

    let file = home.run_dir("stopping").join("run.toml");
    let text = fs::read_to_string(&file).expect("run.toml");
    assert!(text.contains("on_nonfinite = \"stop\""), "{text}");
    fs::write(
        &file,
        text.replace("on_nonfinite = \"stop\"", "on_nonfinite = \"skip\""),
    )
    .expect("written");
    home.host(&["resume", "stopping"]).succeeded();
    let [one, other] =
        ["stopping", "skipping"].map(|run| manifest_of(&home.checkpoint(run, STEPS)));
    assert_eq!(one, other);
    let [one, other] = ["stopping", "skipping"].map(|run| curve(&home.run_dir(run), "loss/train"));
    assert_eq!(one, other);
}

#[test]
fn a_run_that_continues_reports_that_the_weights_were_updated() {
    let home = poisoned();
    let output = train(&home, "going-on", "continue").succeeded();
    let odd = steps_without_a_number(&output);
    // After the first NaN, every loss is NaN.
    assert_eq!(odd, (odd[0]..=STEPS).collect::<Vec<_>>());
    let told = warnings(&output);
    assert_eq!(told.iter().map(|told| told.0).collect::<Vec<_>>(), odd);
    for (_, message) in told {
        assert!(
            message.ends_with("the weights were updated, because on_nonfinite is continue"),
            "{message}"
        );
    }
    let hash = |step| hash(&home, "going-on", step, WEIGHTS);
    assert_ne!(hash(odd[0]), hash(odd[0] - 1));
}

#[test]
fn an_enormous_learning_rate_stops_the_run() {
    let home = Home::new();
    let output = home.train(
        "wild",
        &[&EACH_STEP[..], &["--learning-rate", "1e30"]].concat(),
    );
    let (error, _) = output.failed_with(5);
    assert!(error.starts_with("training diverged: loss NaN"), "{error}");
    assert!(error.ends_with(" at step 2"), "{error}");
    assert_eq!(home.checkpoints("wild"), [1]);
    let shown = home.host(&["runs", "show", "wild", "--json"]).succeeded();
    assert_eq!(shown.json()["status"], "failed");
}
